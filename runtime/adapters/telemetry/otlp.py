"""Where a worker's spans go: by OTLP over HTTP, in batches, from a thread. Imported by `traces.py` with the first span.

The SDK reads its own variables: endpoint, headers, sampler, limits, OTEL_RESOURCE_ATTRIBUTES.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from runtime.adapters.egress import Row

TELL_S = 10.0
"""That spans cannot be sent is told once in so long."""
_CHATTY = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)


def set_up(resource: Mapping[str, str], row: Row) -> Callable[[], object]:
    """Make OpenTelemetry's global provider, unless a handler module has; what sends the rest and stops (it blocks).

    Exports are entered in `row`, but not those of others' providers. Raises whatever the SDK does, for a variable with
    a value that it refuses.
    """
    theirs = trace.get_tracer_provider()
    if isinstance(theirs, TracerProvider):
        return theirs.force_flush
    _quieten()
    outlet = _Outlet(row)
    provider = TracerProvider(resource=_resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(outlet)
    trace.set_tracer_provider(provider)
    return outlet.stop


def _resource(ours: Mapping[str, str]) -> Resource:
    given = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in given})


class _Outlet(SpanProcessor):
    """Opens with a span that has ended, closes when told to, and opens again with the next one."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._lock = threading.Lock()
        self._batches: BatchSpanProcessor | None = BatchSpanProcessor(_LateExporter(row))

    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            if self._batches is None:
                self._batches = BatchSpanProcessor(_LateExporter(self._row))
            self._batches.on_end(span)

    def stop(self) -> None:
        with self._lock:
            batches, self._batches = self._batches, None
        if batches is not None:
            batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK's own omission

    def shutdown(self) -> None:
        self.stop()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        with self._lock:
            batches = self._batches
        return batches is None or batches.force_flush(timeout_millis)


class _LateExporter(SpanExporter):
    """Imports the OTLP exporter in the thread that exports first: it costs a tenth of a second."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._exporter: SpanExporter | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            self._exporter = OTLPSpanExporter()
        self._row.sent()
        try:
            return self._exporter.export(spans)
        finally:
            self._row.stirred()  # it may have tried several times

    def shutdown(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()
            self._row.stirred()


def _quieten() -> None:
    discreet = _Discreet()
    for name in _CHATTY:
        logging.getLogger(name).addFilter(discreet)


class _Discreet(logging.Filter):
    """One line of the exporter's in ten seconds, without what its exceptions show: addresses with what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.WARNING or now < self._next_at:
            return False
        self._next_at = now + TELL_S
        if isinstance(record.args, tuple):
            record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
        record.exc_info = record.exc_text = record.stack_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
