"""Bodies and results, from bytes to fields and back: pickle, JSON, MessagePack, or a user's own serializer.

arq lets producers and workers agree on any pair of functions (`job_serializer`, `job_deserializer` of `arq/jobs.py`).
Here the first byte tells which of the three usual ones a body is written with, and nothing has to be agreed on:

    0x80                                a pickle of protocol 2 to 5 (in MessagePack an empty map, which is no body)
    { after any white space             JSON
    0x81 to 0x8f, 0xde, 0xdf            a MessagePack map

Others are named by RUNTIME_SERIALIZER, and asked first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from runtime.adapters.redis import documents, pickles
from runtime.adapters.redis.pickles import MAX_BYTES, Admitted, RemoteError, Undecodable
from runtime.adapters.redis.pickles.machine import NONE_ADMITTED
from runtime.adapters.redis.pickles.values import NOT_LISTED, check_tree, refuse
from runtime.core.errors import SettingsInvalid
from runtime.core.job import Codec
from runtime.core.values import frozen

__all__ = ["MAX_BYTES", "Serializer", "Undecodable", "dumps", "loads", "named", "recognise"]

_JSON: Final = re.compile(rb"[ \t\r\n]*\{")
_MAPS: Final = frozenset({*range(0x81, 0x90), 0xDE, 0xDF})
_CLASS: Final = re.compile(r"[\w.]{1,100}", re.ASCII)
"""What of a body may stand in a log: no text that somebody has put there but the dotted name of a class."""
MOST_NAMED: Final = 3
MAX_WHOLE: Final = 64 * 2**20
"""The largest result of a whole application, in bytes. What it returns may be a file, which arq would keep."""
_PICKLERS: Final = ("pickle", "_pickle", "cloudpickle", "dill")


@frozen
class Serializer:
    """A codec of the user's. It is trusted: `loads` sees bytes that anybody may have put into Redis."""

    name: str
    dumps: Callable[[Mapping[str, object]], bytes | str]
    loads: Callable[[bytes], object]
    revive: Callable[[RemoteError], BaseException] | None = None
    """Of a whole application, whose values may be of any type, and whose failures are exceptions: makes those that we
    have the name of alone."""
    admitted: Admitted | None = None
    """It writes pickles, and they are read by ours, which makes these classes, too."""

    @property
    def codec(self) -> Codec:
        """What it writes."""
        return "custom" if self.admitted is None else "pickle"

    @property
    def runs_code(self) -> bool:
        """It is a pickle module: who can write to Redis can run code wherever this reads."""
        return getattr(self.loads, "__module__", None) in _PICKLERS or self.name.partition(".")[0] in _PICKLERS


def named(name: str | None) -> Serializer | None:
    """The serializer of this dotted name: a module or an object with `dumps` and `loads`. None for none.

    Raises `SettingsInvalid` if it cannot be imported or lacks one of them.
    """
    if name is None:
        return None
    import pkgutil

    hint = "name a module or an object in one, such as app.serializer, with dumps(dict) -> bytes and loads(bytes)"
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:
        raise SettingsInvalid(
            f"RUNTIME_SERIALIZER={name} cannot be imported", cause=f"{type(error).__name__}: {error}", hint=hint
        ) from None
    missing = [part for part in ("dumps", "loads") if not callable(getattr(found, part, None))]
    if missing:
        raise SettingsInvalid(f"RUNTIME_SERIALIZER={name} has no {' and no '.join(missing)}", hint=hint)
    return Serializer(name, found.dumps, found.loads)


def recognise(data: bytes) -> Codec:
    """What the first byte says. `pickle` where it says nothing, as that is arq's own."""
    first = data[0] if data else 0x80
    if first == 0x80:
        return "pickle"
    if first in _MAPS:
        return "msgpack"
    return "json" if _JSON.match(data) else "pickle"


def loads(data: bytes, serializer: Serializer | None = None, *, any_error: bool = False) -> tuple[object, Codec]:
    """The value in a body or result, and the codec to answer in. Raises `Undecodable`, and nothing else.

    What `serializer` cannot read, or makes no plain dict of, is read as if there were none: while producers change
    over, a queue holds both. `any_error` is that of `pickles.loads`.
    """
    if serializer is None:
        if data[:1] == b"\x80":  # nearly all of them: no further question
            return pickles.loads(data, any_error=any_error), "pickle"
        return _load(data, any_error)
    if serializer.admitted is not None:
        return _load_admitted(data, any_error, serializer.admitted)
    try:
        return _load_custom(data, serializer), "pickle" if serializer.runs_code else "custom"
    except Undecodable as refusal:
        reason = refusal.reason
    try:
        return _load(data, any_error)
    except Undecodable as refusal:
        reason = f"{serializer.name} cannot read it: {reason}; without it: {refusal.reason}"
    raise Undecodable(reason)


def _load(data: bytes, any_error: bool, admitted: Admitted = NONE_ADMITTED) -> tuple[object, Codec]:
    codec = recognise(data)
    if codec == "pickle":
        return pickles.loads(data, any_error=any_error, admitted=admitted), codec
    if len(data) > MAX_BYTES:
        refuse(f"it is larger than {MAX_BYTES} bytes")
    try:
        return (documents.loads_json if codec == "json" else documents.loads_msgpack)(data), codec
    except Undecodable:
        raise
    except RecursionError:
        reason = "it is nested too deep"
    except Exception as error:  # whose text may quote the body
        reason = f"not well-formed {_SPELT[codec]} ({type(error).__name__})"
    raise Undecodable(reason)


def _load_admitted(data: bytes, any_error: bool, admitted: Admitted) -> tuple[object, Codec]:
    """The same. A refusal names the classes that somebody could vouch for."""
    try:
        return _load(data, any_error, admitted)
    except Undecodable as refusal:
        reason = refusal.reason
    if reason == NOT_LISTED:
        named = [name for name in pickles.strangers(data, admitted) if _CLASS.fullmatch(name)]
        reason += f": {', '.join(named[:MOST_NAMED])} (classes of your own are named in runtime_types)"
    raise Undecodable(reason)


_SPELT: Final[Mapping[Codec, str]] = {"json": "JSON", "msgpack": "MessagePack"}


def _load_custom(data: bytes, serializer: Serializer) -> object:
    if len(data) > MAX_BYTES:
        refuse(f"it is larger than {MAX_BYTES} bytes")
    try:
        value = serializer.loads(data)
    except Exception as error:
        reason = type(error).__name__
    else:
        if type(value) is not dict:
            refuse(f"a {type(value).__name__}, not a dict")
        fields = cast("dict[object, Any]", value)
        if serializer.revive is None:
            check_tree(fields)
        return fields
    raise Undecodable(reason)


def dumps(fields: Mapping[str, object], codec: Codec, serializer: Serializer | None = None) -> bytes:
    """`fields` as bytes that `loads` reads. Raises `TypeError` for what the codec cannot hold.

    A whole application's are written as they are, in its own codec: it must read them itself.
    """
    if serializer is not None and serializer.revive is not None and codec == serializer.codec:
        return _dump_whole(fields, serializer)
    if codec == "pickle":
        return pickles.dumps(fields)
    try:
        data = _dump(fields, codec, serializer)
        loads(data, serializer if codec == "custom" else None)
        return data
    except Undecodable as refusal:
        reason = refusal.reason
    except Exception as error:  # it has run the value's own code, and may quote it
        reason = type(error).__name__
    by = serializer.name if serializer and codec == "custom" else _SPELT[codec]
    raise TypeError(f"{by} cannot hold it: {reason}")


def _dump_whole(fields: Mapping[str, object], serializer: Serializer) -> bytes:
    try:
        data = serializer.dumps(fields)
        data = data.encode() if isinstance(data, str) else bytes(data)
    except Exception as error:
        reason = type(error).__name__
    else:
        if len(data) <= MAX_WHOLE:
            return data
        reason = f"it is larger than {MAX_WHOLE} bytes"
    raise TypeError(f"{serializer.name} cannot hold it: {reason}")


def _dump(fields: Mapping[str, object], codec: Codec, serializer: Serializer | None) -> bytes:
    if codec == "json":
        return documents.dumps_json(fields)
    if codec == "msgpack":
        return documents.dumps_msgpack(fields)
    assert serializer is not None
    data = serializer.dumps(fields)
    return data.encode() if isinstance(data, str) else bytes(data)
