"""Traces: one for each job, from its enqueue to the store's answer. With `otlp.py` all that knows OpenTelemetry.

enqueue <queue>          PRODUCER   in the client; its W3C context travels in the body
  └─ process <queue>     CONSUMER   a run; a later one also has a link to the one before it, as far as it is remembered
       ├─ GET            CLIENT     a request of `ctx.http`; the context goes out in its headers
       ├─ once <step>    INTERNAL
       ├─ pool <name>    INTERNAL   the wait for an item
       └─ settle <queue> CLIENT     from the outcome to the store's answer

Names and attributes are those of the semantic conventions 1.44.0; what is ours begins with `runtime.`.

Nothing is imported before the first span, and nothing at all where nobody wants traces. The first span costs the import
of the SDK (some 50 ms) in the event loop; the exporter, which is twice as dear, is imported in its own thread.
"""

import asyncio
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from runtime.adapters.egress import Row
from runtime.core.errors import Snooze
from runtime.core.job import (
    NEW,
    Call,
    Cancelled,
    Claim,
    Dead,
    Done,
    Outcome,
    Released,
    Retried,
    Settlement,
    Snoozed,
    Verdict,
)
from runtime.core.place import place
from runtime.core.policy import describe
from runtime.core.values import record
from runtime.ports import Away, Journal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "runtime"
FLUSH_S = 2.0
"""The longest that sending the last spans may hold up a stop."""
LONGEST = 200
"""Most characters of a name from outside."""

Carrier = Mapping[str, str]
"""A W3C trace context as it travels: `traceparent`, and `tracestate` if there is one."""

_worker: "Traces | None" = None
_continued: ContextVar[Carrier | None] = ContextVar("runtime_continued", default=None)


def installed() -> bool:
    """Whether the packages of the extra `otlp` are there. Imports nothing of them but the empty ones at the top."""
    try:
        return all(importlib.util.find_spec(f"opentelemetry.{name}") for name in ("sdk", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


def set_up_by_others() -> bool:
    """Whether a handler module has set OpenTelemetry up by itself: then its provider gets our spans too."""
    api, sdk = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.sdk.trace")
    return api is not None and sdk is not None and isinstance(api.get_tracer_provider(), sdk.TracerProvider)


def ids() -> Mapping[str, str]:
    """The ids of the current span, for a log line; empty where there is none."""
    current = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current is None:
        return {}
    context = current().get_span_context()
    if not context.is_valid:
        return {}
    return _ids(context.trace_id, context.span_id)


@lru_cache(maxsize=1024)
def _ids(trace_id: int, span_id: int) -> Mapping[str, str]:
    """A run's are asked for with each of its lines."""
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}


@contextmanager
def continued(headers: Mapping[str, str]) -> Generator[None]:
    """What is enqueued in the block continues the trace that these headers of a request name, if they do.

    Also where nothing is traced: then their context travels on as it is. `headers` know their names in lower case.
    """
    carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    token = _continued.set(carrier or None)
    try:
        yield
    finally:
        _continued.reset(token)


def _tracer() -> "Tracer | None":
    """The worker's tracer, else that of a process that has set OpenTelemetry up by itself; None where nobody traces."""
    if _worker is not None:
        return _worker.start()
    return _global_tracer() if hasattr(sys.modules.get("opentelemetry.trace"), "get_tracer") else None


@cache
def _global_tracer() -> "Tracer":
    from opentelemetry import trace

    return trace.get_tracer(SCOPE, schema_url=SCHEMA)


class _Spared:
    """What OpenTelemetry raises here, or a processor that a handler module has put into it, costs a span and no job."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> bool:
        if not isinstance(error, Exception):
            return False
        _tell(type(error).__name__)
        return True


_SPARED = _Spared()


@cache
def _tell(error: str) -> None:
    """Once for each kind of error."""
    logging.getLogger(__name__).warning("spans are lost: OpenTelemetry, or a processor in it, raises %s", error)


class _Api:
    """What spans need of OpenTelemetry. It is looked up once: an import statement in a function has its price."""

    def __init__(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.attach, self.detach, self.Context = context.attach, context.detach, context.Context
        self.current, self.put = trace.get_current_span, trace.set_span_in_context
        self.Link, self.SpanKind, self.use_span = trace.Link, trace.SpanKind, trace.use_span
        self.w3c = TraceContextTextMapPropagator()


@cache
def _api() -> _Api:
    return _Api()


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(carrier: Carrier) -> "Span | None":
    """The span elsewhere that a carrier names; None if it names none."""
    api = _api()
    span = api.current(api.w3c.extract(carrier, api.Context()))
    return span if span.get_span_context().is_valid else None


def _written(context: "Context | None" = None) -> dict[str, str]:
    """The carrier of this context, or of the current one."""
    carrier: dict[str, str] = {}
    _api().w3c.inject(carrier, context)
    return carrier


def _under(parent: "Span | None") -> "Context":
    """A context in which this span is the current one, and nothing else is there."""
    api = _api()
    return api.Context() if parent is None else api.put(parent, api.Context())


def _current(span: "Span") -> AbstractContextManager[object]:
    """A block in which this span is the current one. Exceptions that leave it are logged elsewhere."""
    return _api().use_span(span, record_exception=False, set_status_on_exception=False)


def _fail(span: "Span", error: str) -> None:
    """Without a text, which might show what nobody is to see."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", error)


def _plain(name: str) -> str:
    """A name from outside: one that is no Unicode could not be sent, nor could the others of its batch."""
    safe = name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()
    return safe[:LONGEST]


@cache
def _store(url: str) -> Mapping[str, str | int]:
    """Where Redis is, without its secrets."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return {"server.address": unquote(parts.path)}
    return {"server.address": parts.hostname or "localhost", "server.port": parts.port or 6379}


class _Late(Mapping[str, Any]):
    """Attributes that are put together for a sampler that looks at them, and for a span that is recorded."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> dict[str, Any]:
        return self._make()

    def __getitem__(self, name: str) -> Any:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def copy(self) -> dict[str, Any]:
        return self._made.copy()


def _message(what: str, kind: str, queue: str, job_id: str) -> dict[str, Any]:
    return {
        "messaging.system": "arq",
        "messaging.operation.name": what,
        "messaging.operation.type": kind,
        "messaging.destination.name": _plain(queue),
        "messaging.message.id": _plain(job_id),
    }


# ── the producer ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Enqueueing:
    """The producer's spans of the jobs of one call; as a block, it ends with the block's error those that are open."""

    def __init__(self, tracer: "Tracer | None", url: str) -> None:
        self._tracer = tracer
        self._url = url
        self._open: dict[str, Span] = {}

    def begin(self, job_id: str, queue: str, handler: str, priority: int) -> Carrier | None:
        """Begin the span of a job; what is to travel with it."""
        above = _continued.get()
        if self._tracer is None:
            return above
        carrier: Carrier = {}
        with _SPARED:
            api = _api()
            current = api.current()
            if not current.get_span_context().is_valid and above is not None:
                current = _read(above) or current
            span = self._tracer.start_span(
                f"enqueue {_plain(queue)}",
                api.put(current),
                api.SpanKind.PRODUCER,
                _Late(
                    lambda: {
                        **_message("enqueue", "send", queue, job_id),
                        **_store(self._url),
                        "runtime.handler": _plain(handler),
                        "runtime.priority": priority,
                    }
                ),
            )
            self._open[job_id] = span
            carrier = _written(api.put(span))
        return carrier or above

    def end(self, job_id: str, *, created: bool) -> None:
        """The store has answered."""
        span = self._open.pop(job_id, None)
        if span is not None:
            with _SPARED:
                span.set_attribute("runtime.created", created)
                span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        for span in self._open.values():
            with _SPARED:
                if error is not None:
                    _fail(span, describe(error).error)
                span.end()


def enqueueing(url: str) -> Enqueueing:
    """For one call of a client of the Redis at `url`."""
    return Enqueueing(_tracer(), url)


# ── the worker ───────────────────────────────────────────────────────────────────────────────────────────────────────


@record
class _Run:
    """A run, and once it has come to its outcome the span of its settling."""

    span: "Span"
    inside: "Context"
    """In which its span is the current one."""
    name: str
    """Its traceparent."""
    settle: "Span | None" = None


class _Within:
    """A block that belongs to a run."""

    __slots__ = ("_run", "_token", "_told")

    def __init__(self, told: AbstractContextManager[object], run: _Run) -> None:
        self._told = told
        self._run = run

    def __enter__(self) -> str:
        self._told.__enter__()
        self._token = _api().attach(self._run.inside)
        return self._run.name

    def __exit__(self, *_: object) -> None:
        _api().detach(self._token)
        self._told.__exit__(None, None, None)


class Traces(Journal):
    """Makes spans of what the engine tells, and tells it to the journal that writes it down.

    `handlers` by name, as declared; `resource`: who this process is, unless OTEL_RESOURCE_ATTRIBUTES says otherwise.
    `warn` is told once if OpenTelemetry cannot be imported or set up; then no span is made, and nothing else changes.
    Exports are entered in `row`.
    """

    def __init__(
        self,
        told: Journal,
        handlers: Mapping[str, Any],
        *,
        url: str,
        worker_id: str,
        resource: Mapping[str, str],
        warn: Callable[[str], object],
        row: Row,
    ) -> None:
        global _worker
        self._told = told
        self._handlers = handlers
        self._resource = resource
        self._common = {"messaging.client.id": worker_id, **_store(url)}
        self._runs: dict[str, _Run] = {}
        self._settling: dict[str, _Run] = {}
        self._warn = warn
        self._row = row
        self._broken = False
        self._tracer: Tracer | None = None
        self._flush: Callable[[], object] = lambda: None
        _worker = self

    def start(self) -> "Tracer | None":
        """Import OpenTelemetry and set it up, the first time; None if it is broken. The first span does it."""
        if self._tracer is None and not self._broken:
            try:
                from runtime.adapters.telemetry import otlp

                _api()  # what is imported for a span later is imported with it
                self._flush = otlp.set_up(self._resource, self._row)
                self._tracer = _global_tracer()
            except Exception as error:  # half an installation, or a variable with a value that the SDK refuses
                self._broken = True
                self._warn(f"There will be no traces, as OpenTelemetry cannot be set up: {type(error).__name__}")
        return self._tracer

    async def flush_and_stop(self) -> None:
        """Send the spans that have ended, for 2 s at most, and close the connection: nothing is sent after that.

        The next span that ends starts it again.
        """
        for run in self._settling.values():
            if run.settle is not None:
                with _SPARED:
                    _fail(run.settle, "unanswered")
                    run.settle.end()
        self._settling.clear()
        if self._tracer is None:
            return
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            try:
                self._flush()
            finally:
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(sent.set)

        # Not by `to_thread`: the loop would wait for the thread when it ends.
        threading.Thread(target=flush, name="runtime-traces", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), FLUSH_S)

    def within(self, claim: Claim, part: str | None = None) -> AbstractContextManager[str | None]:
        if part is not None:
            return self._part(claim, part)
        run = self._runs.get(claim.token)
        if run is None:
            tracer = self.start()
            if tracer is None:
                return self._told.within(claim)
            with _SPARED:
                run = self._runs[claim.token] = self._begin(tracer, claim)
        return self._known(claim, run)

    def started(self, claim: Claim, running: int) -> None:
        self._told.started(claim, running)

    def ended(self, settlement: Settlement, running: int) -> None:
        claim, outcome = settlement.claim, settlement.outcome
        if isinstance(outcome, Released) and claim.token not in self._runs:  # it was not run
            self._told.ended(settlement, running)
            return
        with self.within(claim):
            self._told.ended(settlement, running)
        run = self._runs.pop(claim.token, None)
        if run is None:
            return
        with _SPARED:
            _say(run.span, outcome)
            run.span.end()
            run.settle = self._begin_settle(claim, run)
            self._settling[claim.token] = run

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        claim = settlement.claim
        run = self._settling.pop(claim.token, None)
        # Of what was settled as it should be nobody says anything that had to name its trace.
        with nullcontext() if verdict == "settled" else self._known(claim, run):
            self._told.settled(settlement, verdict)
        if run is not None and run.settle is not None:
            with _SPARED:
                run.settle.set_attribute("runtime.verdict", verdict)
                run.settle.end()

    def lost(self, claim: Claim) -> None:
        run = self._runs.pop(claim.token, None)
        with self._known(claim, run):
            self._told.lost(claim)
        if run is not None:
            with _SPARED:
                _fail(run.span, "runtime.LeaseLost")
                run.span.end()

    def stuck(self, claim: Claim) -> None:
        with self._known(claim, self._runs.get(claim.token)):
            self._told.stuck(claim)

    def weather(self, away: Away) -> None:
        self._told.weather(away)

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        self._told.crashed(actor, error, restart_in_s)

    def _known(self, claim: Claim, run: _Run | None) -> AbstractContextManager[str | None]:
        told = self._told.within(claim)
        return told if run is None else _Within(told, run)

    @contextmanager
    def _part(self, claim: Claim, part: str) -> Generator[None]:
        with self._told.within(claim, part), ExitStack() as stack:
            tracer, span = self.start(), None
            with _SPARED:
                if tracer is not None:
                    kind, _, name = _plain(part).partition(" ")
                    attributes = {"runtime.handler": _handler(claim), _PARTS.get(kind, f"runtime.{kind}"): name}
                    span = tracer.start_span(_plain(part), attributes=attributes)
                    stack.enter_context(_current(span))
            try:
                yield
            except Exception as error:
                if span is not None and not isinstance(error, Snooze):
                    _fail(span, describe(error).error)
                raise
            finally:
                if span is not None:
                    with _SPARED:
                        span.end()

    def _begin(self, tracer: "Tracer", claim: Claim) -> _Run:
        """A run. Its span is the child of the producer's, or for want of one of the first run's that is remembered."""
        api, call, past = _api(), claim.call, claim.history
        producer = _read(call.trace) if isinstance(call, Call) and call.trace else None
        before = _read({"traceparent": past.trace}) if past.trace else None
        linked = before or (producer if claim.starts > 1 or past != NEW else None)
        span = tracer.start_span(
            f"process {_plain(claim.queue)}",
            _under(producer or before),
            api.SpanKind.CONSUMER,
            _Late(lambda: self._about(claim)),
            [api.Link(linked.get_span_context())] if linked is not None else None,
        )
        ours = span.get_span_context()
        said = _ids(ours.trace_id, ours.span_id)
        return _Run(span, _under(span), f"00-{said['trace_id']}-{said['span_id']}-{ours.trace_flags:02x}")

    def _about(self, claim: Claim) -> dict[str, Any]:
        where = place(claim.place)
        about: dict[str, Any] = {
            **_message("process", "process", claim.queue, claim.id),
            **self._common,
            "runtime.handler": _handler(claim),
            "runtime.attempt": claim.attempt,
            "runtime.crashes": claim.history.crashes,
            "runtime.snoozes": claim.history.snoozes,
        }
        if where is not None:
            about["runtime.priority"] = where.priority
            about["runtime.queue_wait_s"] = max(0.0, claim.now_ms - where.due_ms) / 1000
        handler = self._handlers.get(claim.call.handler) if isinstance(claim.call, Call) else None
        if handler is not None:
            function = handler.function
            name = getattr(function, "__qualname__", type(function).__qualname__)
            about["code.function.name"] = f"{function.__module__}.{name}"
            about["runtime.max_attempts"] = handler.spec.retry.attempts
        return about

    def _begin_settle(self, claim: Claim, run: _Run) -> "Span | None":
        tracer = self.start()
        if tracer is None or not run.span.get_span_context().trace_flags.sampled:
            return None
        attributes = {**_message("settle", "settle", claim.queue, claim.id), **self._common}
        return tracer.start_span(f"settle {_plain(claim.queue)}", run.inside, _api().SpanKind.CLIENT, attributes)


_PARTS = {"once": "runtime.step", "limit": "runtime.limit.name"}
"""What the parts of a run are called in attributes."""


def _handler(claim: Claim) -> str:
    return _plain(claim.call.handler) if isinstance(claim.call, Call) else "?"


def _say(run: "Span", outcome: Outcome) -> None:
    """What became of a run. Being stopped, put off or cancelled is no error."""
    if not run.is_recording():
        return
    match outcome:
        case Done():
            run.set_attribute("runtime.outcome", "done")
        case Retried(delay_s=delay_s, failure=failure):
            _fail(run, failure.error)
            run.set_attributes({"runtime.outcome": "retry", "runtime.delay_s": delay_s})
            run.set_attribute("runtime.error_category", failure.category)
        case Dead(reason=reason, failure=failure):
            _fail(run, failure.error)
            run.set_attributes({"runtime.outcome": "dead", "runtime.reason": reason})
            run.set_attribute("runtime.error_category", failure.category)
        case Snoozed(delay_s=delay_s):
            run.set_attributes({"runtime.outcome": "snooze", "runtime.delay_s": delay_s})
        case Released(why=why):
            run.set_attributes({"runtime.outcome": "released", "runtime.reason": why})
        case Cancelled():
            run.set_attribute("runtime.outcome", "cancelled")


# ── requests of `ctx.http` ───────────────────────────────────────────────────────────────────────────────────────────


def of_requests() -> list[Any]:
    """What an `aiohttp.ClientSession` is opened with, as its `trace_configs`, so that its requests are traced."""
    tracer = _tracer()
    if tracer is None:
        return []
    import aiohttp

    api = _api()

    async def started(session: Any, request: Any, params: Any) -> None:
        # The query and the user part may be secrets.
        url = params.url.with_user(None).with_query(None).with_fragment(None)
        attributes: dict[str, Any] = {
            "http.request.method": params.method,
            "url.full": str(url),
            "server.address": url.host or "",
        }
        if url.port is not None:
            attributes["server.port"] = url.port
        request.span = None
        with _SPARED:
            request.span = tracer.start_span(params.method, None, api.SpanKind.CLIENT, attributes)
            params.headers.update(_written(api.put(request.span)))

    async def ended(session: Any, request: Any, params: Any) -> None:
        if request.span is None:
            return
        with _SPARED:
            status = params.response.status
            request.span.set_attribute("http.response.status_code", status)
            if status >= 400:
                _fail(request.span, str(status))
            request.span.end()

    async def failed(session: Any, request: Any, params: Any) -> None:
        if request.span is None:
            return
        with _SPARED:
            _fail(request.span, describe(params.exception).error)
            request.span.end()

    config = aiohttp.TraceConfig()
    config.on_request_start.append(started)
    config.on_request_end.append(ended)
    config.on_request_exception.append(failed)
    return [config]
