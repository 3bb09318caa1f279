"""Logs: one JSON object per line on stdout, or text for people on a terminal. And the engine's `Journal`.

Railway's rules: `message` is required, `level` is debug, info, warn or error, stderr counts as error; every other key
can be searched for. The events of the user documents keep their names. Every line goes through the `Redactor` last, and
so does what Python itself would print of exceptions that nobody catches, and of warnings.
"""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, TextIO

from runtime.adapters.payload import to_json
from runtime.adapters.telemetry import traces
from runtime.adapters.telemetry.writer import LineWriter, text_of
from runtime.core.job import Call, Cancelled, Claim, Dead, Done, Released, Retried, Settlement, Snoozed, Verdict
from runtime.core.policy import describe
from runtime.core.redaction import BY_SHAPE, Redactor
from runtime.core.span import spell
from runtime.core.text import one_line
from runtime.ports import Away, Journal

SAME_CAUSE_S = 10.0
"""The same trouble is told once in so long."""
UNKNOWN_EVERY_S = 300.0
"""A handler that is not there, likewise: a job for it comes back in so long at the latest."""
FRAMES = 25
"""Of the calls that led to a failure, the innermost are told."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_BY_LEVEL = (("error", logging.ERROR), ("warning", logging.WARNING), ("info", logging.INFO))
_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}
_TOLD_AS = {"warning": "warn", "critical": "error"}


_writer: LineWriter | None = None
_stdout: TextIO | None = None


def configure(level: str, style: str | None, worker_id: str, *, redact: Redactor = BY_SHAPE) -> "Log":
    """Set up logging for the process and give the worker's log. `style` None: text if stdout is a terminal.

    From now on no line blocks who writes it, nor does what is printed. If structlog has been imported (by a handler
    module), it writes the same lines; else that is to be asked for (`Log.take_structlog`).
    """
    global _writer, _stdout
    fd = sys.stdout.fileno()
    text = style == "text" or (style is None and os.isatty(fd))
    encoding = sys.stdout.encoding if text else "utf-8"  # which JSON is, whatever the locale
    form = _Form(redact, _Text(encoding, colour=_wants_colour(fd)) if text else _json)
    bound = {"worker_id": worker_id}
    with suppress(OSError):
        sys.stdout.flush()
    writer = _writer = LineWriter(fd, lambda count: form("warning", {**bound, **_lost(count)}))
    sys.stdout = _stdout = text_of(writer, fd, encoding)
    log = Log(form, writer.write, _LEVELS[level], bound)
    if "structlog" in sys.modules:
        log.take_structlog()
    _route_standard_logging(level, log)
    _route_uncaught(log)
    return log


def close() -> None:
    """Have what was said written, for a second at most: the process is about to end. Lines are written at once then."""
    if _writer is not None:
        _writer.close()
    # Python flushes them at its end, and exits with 120 where it cannot: what a handler has put there may be anything.
    sys.stdout, sys.stderr = _stdout or sys.stdout, sys.__stderr__ or sys.stderr


class _Form:
    """Makes a line of an event, whoever tells it."""

    def __init__(self, redact: Redactor, render: Callable[[dict[str, Any]], bytes]) -> None:
        self._redact = redact
        self._render = render

    def __call__(self, level: str, event: dict[str, Any]) -> bytes:
        if "exc_info" in event:
            event |= _told_of_exception(event.pop("exc_info"))
        return self._render(self._redact.fields(_arranged(level, event)))


class Log:
    """The worker's own log, with structlog's calls as far as they are made here.

    It is not structlog's, whose import takes 11 ms: a worker that was just woken has a job waiting. What `_bound` holds
    stands in each line; what handlers have bound to their context does, too, once structlog is there.
    """

    def __init__(self, form: _Form, write: Callable[[bytes], object], least: int, bound: Mapping[str, Any]) -> None:
        self._form = form
        self._write = write
        self._least = least
        self._bound = bound
        self._of_context: Callable[[], Mapping[str, Any]] = dict

    def debug(self, message: str, /, **fields: Any) -> None:
        self.log(logging.DEBUG, message, **fields)

    def info(self, message: str, /, **fields: Any) -> None:
        self.log(logging.INFO, message, **fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        self.log(logging.WARNING, message, **fields)

    def error(self, message: str, /, **fields: Any) -> None:
        self.log(logging.ERROR, message, **fields)

    def log(self, level: int, message: str, /, **fields: Any) -> None:
        if level >= self._least:
            event = {**self._of_context(), **self._bound, **fields, "event": message}
            self._write(self._form(_name_of(level), event))

    def take_structlog(self) -> None:
        """Have structlog write such lines, too: `structlog.get_logger()` is what handlers log with."""
        import structlog

        def render(logger: object, name: str, event: Any) -> bytes:
            return self._form(name, event)

        pen = _Pen(self._write)
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, render],
            wrapper_class=structlog.make_filtering_bound_logger(self._least),
            logger_factory=lambda: pen,
            cache_logger_on_first_use=True,
        )
        self._of_context = structlog.contextvars.get_contextvars


async def beside(log: Log, what: str, part: Callable[[], Awaitable[object]]) -> None:
    """Do what no job needs: a bug of ours in it, or a connection that will not close, ends nothing else."""
    try:
        await part()
    except Exception as error:
        failure = describe(error)
        log.error(f"{what} failed: {failure.error}: {failure.text}", event_name="PART_FAILED", exc_info=error)


class _Pen:
    """What structlog hands its lines to. (Its own take a lock, at which a destructor would wait for itself.)"""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


@cache
def _name_of(level: int) -> str:
    return next((name for name, least in _BY_LEVEL if level >= least), "debug")


def _lost(count: int) -> dict[str, Any]:
    return {
        "event": f"{count} log lines are missing here: they were not read in time, or could not be written",
        "event_name": "LOG_LINES_LOST",
        "lines": count,
    }


def _told_of_exception(said: Any) -> dict[str, str]:
    """`exc_info`, as logging takes it: an exception, its three parts, or True for the one that is being handled."""
    error: BaseException | None
    match said:
        case BaseException() as error:
            pass
        case (_, BaseException() as error, _):
            pass
        case _:
            error = sys.exc_info()[1] if said else None
    return {} if error is None else {"exception": "".join(traceback.format_exception(error)).rstrip("\n")}


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


def _arranged(name: str, event: dict[str, Any]) -> dict[str, Any]:
    """When, how bad, what, and whose line it is: the job's fields, and the ids of its trace."""
    first = {"timestamp": _now(), "level": _TOLD_AS.get(name, name), "message": event.pop("event")}
    if "event_name" in event:
        first["event"] = event.pop("event_name")
    claim = _claim.get()
    whose = fields_of(claim) if claim is not None and "attempt" not in event else {}
    return {**first, **traces.ids(), **whose, **event, **first}


def _now() -> str:
    second, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_spelt(second)}.{micros:06d}Z"


@lru_cache(maxsize=2)
def _spelt(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _json(event: dict[str, Any]) -> bytes:
    return to_json(event) + b"\n"


def _wants_colour(fd: int) -> bool:
    return os.isatty(fd) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class _Text:
    """A line for people: time, message, and the fields that are not already in it."""

    HIDDEN = ("timestamp", "level", "message", "event", "worker_id", "handler", "job_id", "data", "trace_id", "span_id")

    def __init__(self, encoding: str, *, colour: bool) -> None:
        self._encoding = encoding
        self._colour = colour

    def __call__(self, event: dict[str, Any]) -> bytes:
        clock, level = event["timestamp"][11:19], event["level"]
        sign = f"{_COLOURS[level]}{level:<5}\x1b[0m" if self._colour else f"{level:<5}"
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in self.HIDDEN)
        line = f"{clock} {sign} {event['message']}{'  ' if fields else ''}{fields}\n"
        return line.encode(self._encoding, "backslashreplace")


class _Forward(logging.Handler):
    """Standard logging (libraries, user code) into the same stream."""

    def __init__(self, log: Log) -> None:
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


def _route_standard_logging(level: str, log: Log) -> None:
    root = logging.getLogger()
    # What was set up to write elsewhere (a file, syslog) goes on; what would write to the console writes these lines.
    root.handlers = [_Forward(log), *(handler for handler in root.handlers if not _is_console(handler))]
    root.setLevel(max(_LEVELS[level], logging.INFO) if level != "debug" else logging.DEBUG)
    logging.captureWarnings(True)
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    asyncio_says = logging.getLogger("asyncio")
    asyncio_says.filters = [_Flood(), *(one for one in asyncio_says.filters if not isinstance(one, _Flood))]


class _Flood(logging.Filter):
    """Without descriptors asyncio says so a hundred times a second. All else that it says passes: tasks that failed."""

    TEXT = "socket.accept() out of system resource"

    def __init__(self) -> None:
        super().__init__()
        self._news = _News(SAME_CAUSE_S)

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.TEXT) or self._news.is_news(self.TEXT)


def _is_console(handler: logging.Handler) -> bool:
    if isinstance(handler, _Forward):
        return True
    stream: Any = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)  # rich's
    try:
        return any(os.path.sameopenfile(stream.fileno(), fd) for fd in (1, 2))  # by whichever name, as /dev/stdout
    except (AttributeError, OSError, ValueError):  # it has no stream, or one without a descriptor
        return False


def _route_uncaught(log: Log) -> None:
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

    def __init__(self, log: Log, level: str) -> None:
        self._log = log
        self._quiet = _LEVELS[level] > logging.INFO
        self._told_away = False
        self._troubles = _News(SAME_CAUSE_S)
        self._unknown = _News(UNKNOWN_EVERY_S)

    def within(self, claim: Claim, part: str | None = None) -> Within:
        return Within(claim)

    def started(self, claim: Claim, running: int) -> None:
        if self._quiet:
            return
        fields = fields_of(claim)
        self._log.info(
            f"Job picked up: {fields['job_id']} ({fields['handler']}). Currently processing: {running} jobs",
            event_name="JOB_STARTED",
            **fields,
            running=running,
        )

    def ended(self, settlement: Settlement, running: int) -> None:
        claim, outcome = settlement.claim, settlement.outcome
        if self._quiet and isinstance(outcome, Done):
            return
        took_ms = max(0, settlement.finished_ms - settlement.started_ms)
        fields = {**fields_of(claim), "duration_ms": took_ms, "running": running}
        if settlement.waited_s:
            fields["limit_wait_ms"] = round(1000 * settlement.waited_s)
        job, now = fields["job_id"], f"Currently processing: {running} jobs"
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
                if failure.raised is not None and failure.raised.__traceback__ is not None:
                    # Lines of code alone: an exception's own text may be of any length, and is there already.
                    fields["traceback"] = "".join(traceback.format_tb(failure.raised.__traceback__, -FRAMES))
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
                if why == "unknown-handler":
                    self._miss(str(fields["handler"]), claim.queue)
            case Cancelled():
                self._log.info(f"Job cancelled: {job}", event_name="JOB_CANCELLED", **fields)

    def _miss(self, handler: str, queue: str) -> None:
        if self._unknown.is_news(handler):
            self._log.warning(
                f"No handler is named {handler}: jobs for it wait for a worker that has it",
                event_name="HANDLER_UNKNOWN",
                handler=handler,
                queue=queue,
            )

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
        if self._troubles.is_news(away.cause):
            self._told_away = True
            self._log.warning(f"Redis is away: {away}", event_name="REDIS_AWAY")

    def back(self, away_s: float) -> None:
        """Redis works again. Told where its being away was."""
        if self._told_away:
            self._told_away = False
            self._log.info(
                f"Redis is back after {spell(away_s)}", event_name="REDIS_BACK", duration_ms=round(1000 * away_s)
            )

    def trouble(self, text: str, key: str) -> None:
        """Something in the store is not as it should be; `key`, if it is one that is. Of several the first is named."""
        if self._troubles.is_news(text):
            at = f" (the key is {one_line(key)})" if key else ""
            self._log.warning(f"{text}{at}", event_name="REDIS_TROUBLE")

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        failure = describe(error)
        self._log.error(
            f"Actor of {actor} crashed, again in {spell(restart_in_s)}: {failure.error}: {failure.text}",
            event_name="ACTOR_CRASH",
            exc_info=error,
        )


class _News:
    """What is told once in `every_s`; of different things `MOST` in that time, as some of them come from outside."""

    MOST = 100

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._told: dict[str, float] = {}

    def is_news(self, what: str) -> bool:
        now = time.monotonic()
        self._told = {told: at for told, at in self._told.items() if now - at < self._every_s}
        return len(self._told) < self.MOST and self._told.setdefault(what, now) == now


def fields_of(claim: Claim) -> dict[str, Any]:
    """Whose line it is."""
    handler = one_line(claim.call.handler) if isinstance(claim.call, Call) else "?"
    return {"job_id": one_line(claim.id), "queue": claim.queue, "handler": handler, "attempt": claim.attempt}
