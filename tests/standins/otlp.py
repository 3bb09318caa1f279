"""A stand-in for a collector of traces: OTLP over HTTP, decoded; its log has a line of spans for each request.

With a fault it refuses (`status`), or takes the spans and never says so (`hang`).
"""

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.standins.program import Answer, Call, Fault, StandIn, arguments, run


class Collector(StandIn[Fault]):
    fault_type = Fault

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [("POST", "/v1/traces", self._take)]

    def _take(self, call: Call) -> Answer:
        fault = self.meet_fault(call)
        call.facts["authorization"] = call.headers.get("authorization")
        call.facts["raw"] = call.body.decode("latin-1")
        if fault is not None and fault.fails:
            return Answer(fault.status or 500, {})
        call.facts["spans"] = list(decoded(call.body))
        return Answer(200, {})

    def error(self, status: int, route: str) -> Answer:
        return Answer(status, {"error": route})

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        return {}

    def forget(self) -> None: ...


def decoded(body: bytes) -> Iterable[dict[str, Any]]:
    """The spans of a request, as plain data."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "resource": _attributes(resource.resource.attributes),
                    "scope": scope.scope.name,
                    "schema": scope.schema_url,
                    "name": span.name,
                    "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "attributes": _attributes(span.attributes),
                    "links": [link.span_id.hex() for link in span.links],
                    "link_traces": [link.trace_id.hex() for link in span.links],
                    "events": len(span.events),
                    "status": Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    "status_text": span.status.message,
                    "start_ns": span.start_time_unix_nano,
                    "end_ns": span.end_time_unix_nano,
                }


def _attributes(attributes: Iterable[Any]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def main() -> None:
    options = arguments("A stand-in for a collector of traces.", key="").parse_args()
    run(Collector(options.log), options)


if __name__ == "__main__":
    main()
