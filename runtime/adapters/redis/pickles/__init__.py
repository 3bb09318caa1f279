"""Pickles that strangers may have written: read without trusting them, written so that stock arq reads them.

`pickle.loads` runs whatever the bytes say, and so does every arq worker and client. Here a body becomes a value in one
of two ways, and nothing it contains is ever imported, looked up or called:

1. Bodies of plain values, if they are of ordinary size and make: `proven` shows by their opcodes that the C unpickler
   has nothing to do that could go wrong, and it may load them. This is the way of nearly all of them, and the fast one.
2. All others (a datetime, a path, an exception, something huge, something hostile) go through `Machine`, an unpickler
   whose only classes are the table `CONSTRUCTORS`, and which counts what it does.

Refusing imports is not enough, as the C unpickler is no friend of strangers even without them. Measured on 3.11: a memo
index of 2^27 (9 bytes) allocates 2 GB; a dict key of a million nested tuples (1 MB) overflows the C stack and ends the
process; 16 000 integers with one hash value (200 KB) take 3 s; forty tuples, each holding the one before twice, take
for ever to hash. Nor are all constructors: 1 MB may ask 160 000 times for one Fraction of two numbers of 4 300 digits,
at 0.3 ms each. Hence the proof before the C unpickler, and in the machine the checks of keys and the count of work.

Facts about the format are from CPython's `Lib/pickletools.py` and `Lib/pickle.py`; how each type is written, in
protocols 2 to 5, was looked up in the output of CPython 3.8 to 3.13.
"""

from __future__ import annotations

import builtins
import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, time, timezone
from types import NoneType
from typing import Final, cast

from runtime.adapters.redis.pickles.constructors import CONSTRUCTORS
from runtime.adapters.redis.pickles.machine import NONE_ADMITTED, Machine, Strangers
from runtime.adapters.redis.pickles.proof import PROTO, proven
from runtime.adapters.redis.pickles.values import (
    BARE,
    MAX_BYTES,
    MAX_NODES,
    Admitted,
    RemoteError,
    Undecodable,
    check_tree,
    is_leaf,
    parts_of,
    refuse,
)

__all__ = ["MAX_BYTES", "Admitted", "RemoteError", "Undecodable", "dumps", "dumps_failure", "loads", "strangers"]


def loads(
    data: bytes, *, max_bytes: int = MAX_BYTES, any_error: bool = False, admitted: Admitted = NONE_ADMITTED
) -> object:
    """The value in a pickle of protocol 2 to 5; raises `Undecodable` for whatever else it is given, and nothing else.

    What comes back as it was: plain values; dates and times with UTC, a fixed offset or a ZoneInfo; ZoneInfo, UUID,
    Decimal, Fraction, complex, bytearray; range and slice of 64-bit integers; OrderedDict, Counter, deque,
    SimpleNamespace, and defaultdict of empty builtins; pure and concrete paths (a WindowsPath as a PureWindowsPath);
    addresses, networks and interfaces of `ipaddress`. Builtin exceptions, arq's and asyncio's are `RemoteError`s. A
    zone is looked up by its name, as ZoneInfo does it: one that this machine lacks is refused. Other classes are
    refused, or with `any_error` taken for exceptions too: for results, where a stock worker leaves whatever its
    function raised. Those that are `admitted` are made: their own code runs, and what it raises makes the body
    unreadable.
    """
    try:
        return _load(data, max_bytes, any_error, admitted)
    except Undecodable:
        raise
    except Exception as error:
        # Text of the unpickler's own errors can quote the body; so can a chained exception.
        reason = f"not a well-formed pickle ({type(error).__name__})"
    raise Undecodable(reason)


def strangers(data: bytes, admitted: Admitted = NONE_ADMITTED) -> list[str]:
    """The classes that a pickle names and `loads` would refuse, dotted and sorted: as far as it can be followed."""
    names = Strangers(admitted)
    with suppress(Exception):
        Machine(data, admitted=names).run()
    return sorted(names.found)


def dumps(value: object, *, max_bytes: int = MAX_BYTES) -> bytes:
    """A pickle of protocol 4 that `loads` accepts; raises `TypeError` naming the type that stands in the way."""
    return _checked_dump(value, lambda: pickle.dumps(value, 4), max_bytes)


def dumps_failure(fields: Mapping[str, object], error_field: str, error: RemoteError) -> bytes:
    """A pickled dict of `fields` plus the error, as an exception object that any Python with arq can load.

    Builtin exceptions, `asyncio.exceptions.CancelledError` and `arq.worker.JobExecutionFailed` keep their names. All
    others, those that a reader could not build, and those that would end a client which raises what it finds
    (SystemExit), become a `JobExecutionFailed` that says what they were. Raises `TypeError` as `dumps` does.

    It is composed by hand in protocol 3, the newest that names a class in plain text, so that arq is not imported. Each
    fragment writes its memo entries before it reads them, so fragments do not disturb each other.
    """
    kept = {key: value for key, value in fields.items() if key != error_field}
    items = [part for item in kept.items() for part in item]

    def compose() -> bytes:
        body = b"".join(map(_fragment, items)) + _fragment(error_field) + _exception_fragment(error)
        return b"\x80\x03(" + body + b"d."

    return _checked_dump(items, compose, MAX_BYTES)


# Writing


def _checked_dump(value: object, write: Callable[[], bytes], max_bytes: int) -> bytes:
    try:
        data = write()
        if len(data) > max_bytes or proven(data) != "tree":
            loads(data, max_bytes=max_bytes)
    except Undecodable as refusal:
        reason = refusal.reason
    except Exception:
        # Pickling runs the value's own code, and pickle's messages quote the value.
        reason = "it cannot be pickled"
    else:
        return data
    raise TypeError(f"cannot write a value of type {_culprit(value)}: {reason}")


def _fragment(value: object) -> bytes:
    return pickle.dumps(value, 3)[2:-1]  # without PROTO and STOP


def _exception_fragment(error: RemoteError) -> bytes:
    name, args = _readable_anywhere(error)
    module, _, qualname = name.rpartition(".")
    return f"c{module}\n{qualname}\n".encode() + _fragment(args) + b"R"


_JOB_FAILED: Final = "arq.worker.JobExecutionFailed"
_KNOWN_TO_ANY_CLIENT: Final = {_JOB_FAILED, "asyncio.exceptions.CancelledError"}
# Groups hold exceptions, which cannot be written here; the others are younger than the oldest Python that arq runs on.
_NOT_IN_EVERY_PYTHON: Final = {"ExceptionGroup", "EncodingWarning", "PythonFinalizationError"}


def _readable_anywhere(error: RemoteError) -> tuple[str, tuple[object, ...]]:
    if (error.name in _KNOWN_TO_ANY_CLIENT or _is_common_builtin(error)) and is_plain(error.args):
        return error.name, error.args
    text = error.args[0] if error.args and type(error.args[0]) is str else ""
    return _JOB_FAILED, (f"{error.name}: {text}" if text else error.name,)


def _is_common_builtin(error: RemoteError) -> bool:
    module, _, name = error.name.rpartition(".")
    if module != "builtins" or name in _NOT_IN_EVERY_PYTHON:
        return False
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return False
    try:
        kind(*error.args)  # UnicodeDecodeError, for one, takes exactly five
    except Exception:
        return False
    return True


def is_plain(value: object) -> bool:
    try:
        dumps(value)
    except TypeError:
        return False
    return True


def _culprit(value: object) -> str:
    """The name of the first type in a value that cannot be written, else of the value's own."""
    seen = {id(value)}
    pending = [value]
    for item in pending:  # grows as it goes
        strange = _strange_type(item)
        if strange is not None:
            return f"{strange.__module__}.{strange.__qualname__}"
        new = [part for part in parts_of(item) if id(part) not in seen] if len(pending) < MAX_NODES else []
        seen.update(map(id, new))
        pending += new
    return type(value).__qualname__


def _strange_type(item: object) -> type | None:
    kind = type(item)
    if kind in (datetime, time):
        zone = cast("type[object]", type(getattr(item, "tzinfo", None)))
        return None if zone in (NoneType, timezone) or is_leaf(zone) else zone
    if isinstance(item, defaultdict):
        factory = cast("object", item.default_factory)
        return None if factory is None or any(factory is one.factory for one in CONSTRUCTORS.values()) else kind
    return None if (kind.__module__, kind.__qualname__) in CONSTRUCTORS or kind in BARE else kind


# Reading


def _load(data: bytes, max_bytes: int, any_error: bool, admitted: Admitted) -> object:
    if type(data) is not bytes:
        refuse("it is not bytes")
    if len(data) > max_bytes:
        refuse(f"it is larger than {max_bytes} bytes")
    if len(data) < 3 or data[0] != PROTO or not 2 <= data[1] <= 5:
        refuse("it is not a pickle of protocol 2 to 5")
    proof = proven(data)
    if proof == "tree":
        return pickle.loads(data)
    if proof:
        value = pickle.loads(data)
        check_tree(value)
        return value
    machine = Machine(data, any_error=any_error, admitted=admitted)
    value = machine.run()
    check_tree(value, machine.others)
    return value
