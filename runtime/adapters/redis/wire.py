"""Bodies and results as arq 0.28 writes and reads them (`arq/jobs.py`): dicts with one-letter keys.

A body is `{t: job_try, f: function, a: args, k: kwargs, et: enqueue ms}`; ours carry one more plain key, `rt`, with
what is ours. A result is the body's fields and `{s: success, r: value or exception, st, ft: start and finish ms,
q: queue, id}`. Nothing we write names a class that a stock reader might lack, nothing we read can run code. `codecs`
turns them into bytes: pickles where nothing else is asked for.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import field
from functools import partial
from types import NoneType
from typing import Any, cast

from runtime.adapters.redis import codecs, pickles
from runtime.adapters.redis.codecs import Serializer, Undecodable
from runtime.core.job import Call, Cancelled, Claim, Codec, Dead, Done, Failure, Settlement, Unreadable
from runtime.core.values import frozen

MAX_BODY = codecs.MAX_BYTES
"""Largest body, in bytes: refused at our enqueue, a dead letter at the worker."""
MAX_TRACE = 512
"""Longest traceparent or tracestate, in characters: what W3C asks everybody to carry."""
NO_RESULT = "the handler's return value cannot be kept as a result"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def encode_call(
    handler: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    expires_ms: int | None,
    priority: int,
    trace: Mapping[str, str] | None = None,
    scheduled_ms: int | None = None,
    serializer: Serializer | None = None,
) -> bytes:
    """A body. Raises `TypeError` naming the type that no reader would admit."""
    own: dict[str, object] = {}
    if expires_ms is not None:
        own["x"] = expires_ms
    if priority:
        own["p"] = priority
    if trace:
        own["trace"] = dict(trace)
    if scheduled_ms is not None:
        own["s"] = scheduled_ms
    fields = {"t": None, "f": handler, "a": args, "k": dict(kwargs), "et": now_ms(), "rt": own}
    return codecs.dumps(fields, serializer.codec if serializer else "pickle", serializer)


# With the first of a class its `__init__` is compiled; nothing is to be while a body is read.
Call("", (), {}, 0)
Unreadable("")


def decode_call(body: bytes, serializer: Serializer | None = None) -> Call | Unreadable:
    """The call in a body, ours or stock arq's; or why it is none. Never raises."""
    if len(body) > MAX_BODY:
        return Unreadable(f"the body has {len(body)} bytes, more than {MAX_BODY}")
    try:
        fields, codec = codecs.loads(body, serializer)
    except Undecodable as error:
        return Unreadable(error.reason)
    if not isinstance(fields, dict):
        return Unreadable(f"the body is a {type(fields).__name__}, not a dict")
    said = cast("dict[object, Any]", fields)
    for key, kinds in _SHAPE.items():
        if type(said.get(key, ...)) not in kinds:
            what = f"is of type {type(said[key]).__name__}" if key in said else "is missing"
            return Unreadable(f"the body's {key!r} {what}")
    if not _TEXT.issuperset(map(type, said["k"])):
        return Unreadable("the body's 'k' has a key that is no text")
    rt = said.get("rt")
    own = cast("dict[object, Any]", rt) if isinstance(rt, dict) else {}
    expires_ms, scheduled_ms = own.get("x"), own.get("s")
    if serializer is not None and serializer.revive is not None and any(name in body for name in _OF_ERRORS):
        # Not `|=`: the dict may be a Counter, which compares what it has with what is new.
        said = {**said, **{key: _revived(said[key], serializer.revive) for key in ("a", "k")}}
    return Call(
        handler=said["f"],
        args=tuple(said["a"]),
        kwargs=said["k"],
        enqueued_ms=said["et"],
        job_try=said["t"],
        foreign=rt is None,
        expires_ms=expires_ms if type(expires_ms) is int else None,
        codec=codec,
        trace=_trace_of(own.get("trace")),
        scheduled_ms=scheduled_ms if type(scheduled_ms) is int else None,
    )


def _revived(value: object, revive: Callable[[pickles.RemoteError], BaseException]) -> Any:
    """`value` with the exceptions themselves: an application gives them as arguments, and writes them into results."""
    if isinstance(value, pickles.RemoteError):
        return revive(pickles.RemoteError(value.name, tuple(_revived(one, revive) for one in value.args)))
    make = _SEQUENCES.get(type(value))
    if make is not None:
        return make(_revived(one, revive) for one in cast("Iterable[object]", value))
    if type(value) is dict:
        return {key: _revived(one, revive) for key, one in cast("dict[object, object]", value).items()}
    return value


_SEQUENCES: Mapping[type, Callable[[Iterable[object]], object]] = {kind: kind for kind in (list, tuple, set, frozenset)}
_OF_ERRORS = (b"builtins", b"arq.", b"asyncio")
"""One of them stands in each pickle with an exception that is read as its name, and in few others."""


def _trace_of(found: object) -> dict[str, str] | None:
    """The W3C trace context in `rt`, as `{traceparent, tracestate}`; whether it is one, its reader checks."""
    if not isinstance(found, dict):
        return None
    said = cast("dict[object, object]", found)
    return {
        name: value for name in _TRACE if isinstance(value := said.get(name), str) and len(value) <= MAX_TRACE
    } or None


_TRACE = ("traceparent", "tracestate")

_TEXT = frozenset({str})
_SHAPE: dict[str, tuple[type, ...]] = {
    "f": (str,),
    "a": (tuple, list),
    "k": (dict,),
    "et": (int,),
    "t": (int, type(None)),
}


def encode_result(settlement: Settlement, serializer: Serializer | None = None) -> bytes:
    """The result of an ended job, in the codec of its body.

    A value that cannot be kept makes no failure of a success, but in an arq application: a marker stands for it. Only
    pickles can hold an exception; in the others a failure's `r` is the text `name: message`, and
    `asyncio.exceptions.CancelledError` for a job that was cancelled. (Stock `Job.result()` raises `SerializationError`
    with it.)
    """
    outcome = settlement.outcome
    assert isinstance(outcome, Done | Dead | Cancelled)
    codec, fields = _codec_of(settlement.claim, serializer), _result_fields(settlement)
    with suppress(TypeError):  # too large, or it holds what no reader would admit
        return _encode(fields, outcome, codec, serializer)
    if isinstance(outcome, Done):
        with suppress(TypeError):
            return codecs.dumps({**fields, **_marked(outcome, serializer)}, codec, serializer)
    return encode_marker(settlement, serializer)


def encode_marker(settlement: Settlement, serializer: Serializer | None = None) -> bytes:
    """The result of an ended job without its arguments, and with a marker instead of its value."""
    outcome = settlement.outcome
    assert isinstance(outcome, Done | Dead | Cancelled)
    fields: dict[str, object] = {**_result_fields(settlement), "a": (), "k": {}}
    if isinstance(outcome, Done):
        encode = partial(codecs.dumps, {**fields, **_marked(outcome, serializer)})
    else:
        encode = partial(_encode, fields, outcome)
    try:
        return encode(_codec_of(settlement.claim, serializer), serializer)
    except TypeError:  # not even the names: half a surrogate pair, say, where text is UTF-8
        return encode("pickle", None)


def _marked(outcome: Done, serializer: Serializer | None) -> dict[str, object]:
    """What stands for a value that cannot be kept. In an application of arq's, arq's meaning of it holds: a failure."""
    kind = type(outcome.result).__name__
    if serializer is not None and serializer.revive is not None:
        return {"s": False, "r": f"unable to serialize result: {kind}"}
    return {"s": True, "r": f"{NO_RESULT}: {kind}"}


def encode_cancelled(job_id: str, queue: str, body: bytes, starts: int, serializer: Serializer | None = None) -> bytes:
    """The result of a job with this body that is cancelled while no worker has it."""
    now = now_ms()
    claim = Claim(job_id, queue, "", "", starts, starts, decode_call(body, serializer), body, now)
    return encode_result(Settlement(claim, Cancelled(), now, now), serializer)


def _codec_of(claim: Claim, serializer: Serializer | None) -> Codec:
    if isinstance(claim.call, Call):
        return claim.call.codec
    return serializer.codec if serializer else codecs.recognise(claim.body)


def _encode(
    fields: dict[str, object], outcome: Done | Dead | Cancelled, codec: Codec, serializer: Serializer | None
) -> bytes:
    if isinstance(outcome, Done):
        return codecs.dumps({**fields, "s": True, "r": outcome.result}, codec, serializer)
    if serializer is not None and serializer.revive is not None and codec == serializer.codec:
        raised = outcome.failure.raised if isinstance(outcome, Dead) else None
        told = serializer.revive(_as_remote(outcome))
        for error in (told,) if raised is None else (raised, told):
            with suppress(TypeError):
                return codecs.dumps({**fields, "s": False, "r": error}, codec, serializer)
    if codec == "pickle":
        return pickles.dumps_failure({**fields, "s": False}, "r", _as_remote(outcome))
    return codecs.dumps({**fields, "s": False, "r": _as_text(outcome)}, codec, serializer)


def _result_fields(settlement: Settlement) -> dict[str, object]:
    claim = settlement.claim
    call = claim.call
    # arq's own stand-ins for a body that cannot be read (`worker.py`, "job expired").
    said: dict[str, object] = (
        {"f": call.handler, "a": call.args, "k": call.kwargs, "et": call.enqueued_ms}
        if isinstance(call, Call)
        else {"f": "<unknown>", "a": (), "k": {}, "et": 0}
    )
    return {
        "t": claim.attempt,
        **said,
        "st": settlement.started_ms,
        "ft": settlement.finished_ms,
        "q": claim.queue,
        "id": claim.id,
    }


def _as_remote(outcome: Dead | Cancelled) -> pickles.RemoteError:
    if isinstance(outcome, Cancelled):
        return pickles.RemoteError(_CANCELLED, ())
    failure: Failure = outcome.failure
    if failure.builtin:
        return pickles.RemoteError(f"builtins.{failure.error}", (failure.text,))
    text = failure.text if failure.error == _JOB_FAILED else _as_text(outcome)
    return pickles.RemoteError(_JOB_FAILED, (text,))


_CANCELLED = "asyncio.exceptions.CancelledError"
_JOB_FAILED = "arq.worker.JobExecutionFailed"


def _as_text(outcome: Dead | Cancelled) -> str:
    if isinstance(outcome, Cancelled):
        return _CANCELLED
    failure = outcome.failure
    return f"{failure.error}: {failure.text}" if failure.text else failure.error


@frozen
class Result:
    """A stored result."""

    ok: bool
    value: object = field(repr=False)
    """What the handler returned; for a failure None."""
    error: str | None
    """For a failure: the exception's name."""
    text: str
    handler: str
    attempt: int
    started_ms: int
    finished_ms: int

    @property
    def cancelled(self) -> bool:
        return self.error == _CANCELLED


def decode_result(data: bytes, serializer: Serializer | None = None) -> Result:
    """A result, ours or stock arq's. Raises `Undecodable`."""
    found = codecs.loads(data, serializer, any_error=True)[0]
    if not isinstance(found, dict) or not {"s", "r", "f", "t", "st", "ft"} <= found.keys():
        raise Undecodable("it is not a result as arq writes it")
    fields = cast("dict[object, Any]", found)
    if any(type(fields[key]) not in (int, NoneType) for key in ("t", "st", "ft")):
        raise Undecodable("it is not a result as arq writes it")
    ok, value = bool(fields["s"]), fields["r"]
    error, text = None, ""
    if not ok:
        error, text = _error_of(value)
        value = None
    return Result(ok, value, error, text, str(fields["f"]), fields["t"] or 0, fields["st"] or 0, fields["ft"] or 0)


def _error_of(value: object) -> tuple[str, str]:
    if not isinstance(value, pickles.RemoteError):
        said = str(value)[:2000]
        named = _NAMED.fullmatch(said)
        return (named[1], named[2] or "") if named else ("error", said)
    text = " ".join(str(arg) for arg in value.args)
    name = value.name.removeprefix("builtins.")
    if name == _JOB_FAILED and ": " in text:
        inner, _, rest = text.partition(": ")
        if " " not in inner:  # as `_as_remote` writes it; arq's own texts are sentences
            return inner, rest
    return name, text


_NAMED = re.compile(r"(\w+(?:\.\w+)*)(?:: (.*))?", re.DOTALL)
"""As `_as_text` writes a failure; "unable to serialize result", arq's own text, is none."""


def letter_of(claim: Claim, settlement: Settlement) -> dict[str, Any]:
    """What is kept of a dead letter beside its body; plain, to be written as JSON."""
    outcome = settlement.outcome
    assert isinstance(outcome, Dead)
    call = claim.call
    return {
        "id": claim.id,
        "queue": claim.queue,
        "handler": call.handler if isinstance(call, Call) else None,
        "reason": outcome.reason,
        "error": outcome.failure.error,
        "text": outcome.failure.text,
        "category": outcome.failure.category,
        "attempt": claim.attempt,
        "crashes": settlement.history.crashes,
        "place": claim.place,
        "enqueued_ms": call.enqueued_ms if isinstance(call, Call) else None,
        "died_ms": settlement.finished_ms,
        "errors": [
            {"attempt": e.attempt, "at_ms": e.at_ms, "error": e.error, "text": e.text, "category": e.category}
            for e in settlement.history.errors
        ],
    }
