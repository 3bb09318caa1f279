"""A stand-in for any API: `GET /things/…` answers, and its log has the trace context that came with the request."""

from collections.abc import Callable

from tests.standins.program import Answer, Call, Fault, StandIn, arguments, run


class Web(StandIn[Fault]):
    fault_type = Fault

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [("GET", "/things/{name}", self._answer)]

    def _answer(self, call: Call) -> Answer:
        call.facts["traceparent"] = call.headers.get("traceparent")
        call.facts["query"] = dict(call.query)
        fault = self.meet_fault(call)
        return Answer(fault.status or 200 if fault else 200, {})

    def error(self, status: int, route: str) -> Answer:
        return Answer(status, {"error": route})

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        return {}

    def forget(self) -> None: ...


def main() -> None:
    options = arguments("A stand-in for any API.", key="").parse_args()
    run(Web(options.log), options)


if __name__ == "__main__":
    main()
