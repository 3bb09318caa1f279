"""Logs: one JSON object per line on stdout, or text for people on a terminal. And the engine's `Journal`.

Railway's rules: `message` is required, `level` is debug, info, warn or error, stderr counts as error; every other key
can be searched for. The events of the user documents keep their names. Every line goes through the `Redactor` last, and
so does what Python itself would print of exceptions that nobody catches, and of warnings.
"""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from runtime.adapters.payload import to_json
from runtime.adapters.telemetry import traces
from runtime.core.job import Call, Cancelled, Claim, Dead, Done, Released, Retried, Settlement, Snoozed, Verdict
from runtime.core.policy import describe
from runtime.core.redaction import BY_SHAPE, Redactor
from runtime.core.span import spell
from runtime.core.text import one_line
from runtime.ports import Away, Journal

SAME_CAUSE_S = 10.0
"""The same trouble is told once in so long."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}


def configure(
    level: str, style: str | None, worker_id: str, out: TextIO | None = None, *, redact: Redactor = BY_SHAPE
) -> Any:
    """Set up logging for the process and give the worker's logger. `style` None: text if `out` is a terminal."""
    stream = _Stream(out or sys.stdout)
    text = style == "text" or (style is None and stream.isatty())
    stream.take_all(None if text else "utf-8")  # which JSON is, whatever the locale
    render: Any = _Text(colour=_wants_colour(stream)) if text else _json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _belonging,
        structlog.processors.add_log_level,
        _railway_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message", "event_name"),
            _redacting(redact),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, stream)),
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger().bind(worker_id=worker_id)
    _route_standard_logging(level, log)
    _route_uncaught(log)
    return log


def _redacting(redact: Redactor) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    def process(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        return redact.fields(event)

    return process


class _Stream(io.TextIOBase):
    """What lines are written to. A reader that has gone, a full disk or whoever closes it costs lines, not jobs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def isatty(self) -> bool:
        return self._out.isatty()

    def take_all(self, encoding: str | None) -> None:
        """Write in `encoding`, or as before, and characters that it lacks by their number."""
        reconfigure = getattr(self._out, "reconfigure", None)  # a file has it; what somebody put in its place may not
        if reconfigure is not None:
            reconfigure(encoding=encoding, errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            self._out.write(text)
        except (OSError, ValueError):  # the latter once it is closed
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._out.flush()
        except (OSError, ValueError):  # the latter once it is closed
            self._give_up()

    def _give_up(self) -> None:
        """Send the rest to nowhere: what is left in the buffer would raise again when the process ends."""
        if self._out.closed:
            self._out = open(os.devnull, "w")  # noqa: SIM115  # to the end of the process
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._out.fileno())
        os.close(nowhere)


_claim: ContextVar[Claim | None] = ContextVar("runtime_claim", default=None)


class Within:
    """A block whose lines, and those of the tasks started in it, name the job."""

    __slots__ = ("_claim", "_token")

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def __enter__(self) -> None:
        self._token: Token[Claim | None] = _claim.set(self._claim)

    def __exit__(self, *_: object) -> None:
        _claim.reset(self._token)


def _belonging(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Whose line it is: the job's fields, and the ids of its trace."""
    claim = _claim.get()
    if claim is not None:
        for key, value in (*fields_of(claim).items(), ("attempt", claim.attempt)):
            event.setdefault(key, value)
    for key, value in traces.ids().items():
        event.setdefault(key, value)
    return event


def _railway_level(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    if event["level"] in ("warning", "critical"):
        event["level"] = {"warning": "warn", "critical": "error"}[event["level"]]
    return event


def _json(logger: WrappedLogger, name: str, event: EventDict) -> str:
    first = {key: event.pop(key) for key in ("timestamp", "level", "message", "event") if key in event}
    return to_json({**first, **event}).decode()


def _wants_colour(stream: "_Stream") -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class _Text:
    """A line for people: time, message, and the fields that are not already in it."""

    HIDDEN = ("timestamp", "level", "message", "event", "worker_id", "handler", "job_id", "data", "trace_id", "span_id")

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        clock, level = event["timestamp"][11:19], event["level"]
        sign = f"{_COLOURS[level]}{level:<5}\x1b[0m" if self._colour else f"{level:<5}"
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in self.HIDDEN)
        return f"{clock} {sign} {event['message']}{'  ' if fields else ''}{fields}"


class _Forward(logging.Handler):
    """Standard logging (libraries, user code) into the same stream."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.log(
                record.levelno, record.getMessage(), logger_name=record.name, exc_info=record.exc_info or None
            )
        except Exception:
            # logging's own way is to print the arguments.
            where = f"{record.pathname}:{record.lineno}"
            self._log.error(f"A log call at {where} cannot be written", logger_name=record.name)


def _route_standard_logging(level: str, log: Any) -> None:
    root = logging.getLogger()
    root.handlers = [_Forward(log)]
    root.setLevel(max(_LEVELS[level], logging.INFO) if level != "debug" else logging.DEBUG)
    logging.captureWarnings(True)
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _route_uncaught(log: Any) -> None:
    """What Python prints to stderr by itself, of the main thread, of other threads, and of destructors."""

    def tell(text: str, error: BaseException | None) -> None:
        log.error(text, event_name="UNCAUGHT", exc_info=error or None)

    def of_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        tell("An exception was not caught", error)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            tell(f"An exception ended the thread {args.thread.name if args.thread else '?'}", args.exc_value)

    sys.excepthook = of_main
    threading.excepthook = of_thread
    # Its object is not named: that would be by its repr, which may hold anything.
    sys.unraisablehook = lambda args: tell("An exception was ignored", args.exc_value)


class LogJournal(Journal):
    """What the engine tells, as log lines. Arguments and results are never logged."""

    def __init__(self, log: Any, level: str) -> None:
        self._log = log
        self._quiet = _LEVELS[level] > logging.INFO
        self._told: dict[str, float] = {}

    def within(self, claim: Claim, part: str | None = None) -> Within:
        return Within(claim)

    def started(self, claim: Claim, running: int) -> None:
        if self._quiet:
            return
        self._log.info(
            f"Job picked up: {one_line(claim.id)} ({_handler(claim)}). Currently processing: {running} jobs",
            event_name="JOB_STARTED",
            **fields_of(claim),
            attempt=claim.attempt,
            running=running,
        )

    def ended(self, settlement: Settlement, running: int) -> None:
        claim, outcome = settlement.claim, settlement.outcome
        if self._quiet and isinstance(outcome, Done):
            return
        took_ms = max(0, settlement.finished_ms - settlement.started_ms)
        fields = {**fields_of(claim), "attempt": claim.attempt, "duration_ms": took_ms, "running": running}
        if settlement.waited_s:
            fields["limit_wait_ms"] = round(1000 * settlement.waited_s)
        job, now = one_line(claim.id), f"Currently processing: {running} jobs"
        match outcome:
            case Done():
                self._log.info(
                    f"Job completed: {job} in {spell(took_ms / 1000)}. {now}", event_name="JOB_COMPLETED", **fields
                )
            case Retried(delay_s=delay_s, failure=failure):
                self._log.warning(
                    f"Job failed: {job}, again in {spell(delay_s)}: {failure.error}: {failure.text}",
                    event_name="JOB_RETRIED",
                    error_category=failure.category,
                    error_type=failure.error,
                    **fields,
                )
            case Dead(reason=reason, failure=failure):
                self._log.error(
                    f"Job failed: {job} is a dead letter ({reason}): {failure.error}: {failure.text}",
                    event_name="JOB_DEAD",
                    reason=reason,
                    error_category=failure.category,
                    error_type=failure.error,
                    **fields,
                )
            case Snoozed(delay_s=delay_s, waits_for=limit):
                fields |= {"limit": one_line(limit)} if limit else {}
                why = f", waiting for the limit {one_line(limit)}" if limit else ""
                self._log.info(
                    f"Job snoozed: {job} for {spell(delay_s)}{why}. {now}", event_name="JOB_SNOOZED", **fields
                )
            case Released(why=why):
                self._log.info(f"Job given back: {job} ({why})", event_name="JOB_RELEASED", reason=why, **fields)
            case Cancelled():
                self._log.info(f"Job cancelled: {job}", event_name="JOB_CANCELLED", **fields)

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        if verdict == "refused":
            self._log.warning(
                f"Outcome refused: {one_line(settlement.claim.id)} is another worker's now, or was settled before",
                event_name="JOB_REFUSED",
                **fields_of(settlement.claim),
            )

    def lost(self, claim: Claim) -> None:
        self._log.warning(f"Lease lost: {one_line(claim.id)}", event_name="LEASE_LOST", **fields_of(claim))

    def stuck(self, claim: Claim) -> None:
        self._log.error(
            f"Job does not stop: {one_line(claim.id)} swallows cancellations; its slot is lost until it ends",
            event_name="JOB_STUCK",
            **fields_of(claim),
        )

    def weather(self, away: Away) -> None:
        """One line for each cause, whoever met it."""
        if self._news(away.cause):
            self._told_away = True
            self._log.warning(f"Redis is away: {away}", event_name="REDIS_AWAY")

    def back(self, away_s: float) -> None:
        """Redis works again. Told where its being away was."""
        if self._told_away:
            self._told_away = False
            self._log.info(
                f"Redis is back after {spell(away_s)}", event_name="REDIS_BACK", duration_ms=round(1000 * away_s)
            )

    def trouble(self, text: str) -> None:
        """Something in the store is not as it should be."""
        if self._news(text):
            self._log.warning(text, event_name="REDIS_TROUBLE")

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        failure = describe(error)
        self._log.error(
            f"Actor of {actor} crashed, again in {spell(restart_in_s)}: {failure.error}: {failure.text}",
            event_name="ACTOR_CRASH",
            exc_info=error,
        )

    def _news(self, cause: str) -> bool:
        now = time.monotonic()
        self._told = {text: at for text, at in self._told.items() if now - at < SAME_CAUSE_S}
        return self._told.setdefault(cause, now) == now


def fields_of(claim: Claim) -> dict[str, Any]:
    """Whose line it is."""
    return {"job_id": one_line(claim.id), "queue": claim.queue, "handler": _handler(claim)}


def _handler(claim: Claim) -> str:
    return one_line(claim.call.handler) if isinstance(claim.call, Call) else "?"
