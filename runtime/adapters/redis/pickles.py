"""Pickles that strangers may have written: read without trusting them, written so that stock arq reads them.

`pickle.loads` runs whatever the bytes say, and so does every arq worker and client. Here a body becomes a value in one
of two ways, and nothing it contains is ever imported, looked up or called:

1. Bodies of plain values, if they are of ordinary size and make: `_proven` shows by their opcodes that the C unpickler
   has nothing to do that could go wrong, and it may load them. This is the way of nearly all of them, and the fast one.
2. All others (a datetime, an exception, something huge, something hostile) go through `_Machine`, an unpickler whose
   only classes are the table `_CONSTRUCTORS`, and which counts what it does.

Refusing imports is not enough, as the C unpickler is no friend of strangers even without them. Measured on 3.11: a memo
index of 2^27 (9 bytes) allocates 2 GB; a dict key of a million nested tuples (1 MB) overflows the C stack and ends the
process; 16 000 integers with one hash value (200 KB) take 3 s; forty tuples, each holding the one before twice, take
for ever to hash. Hence the proof before the C unpickler, and the checks of keys in the machine.

Facts about the format are from CPython's `Lib/pickletools.py` and `Lib/pickle.py`; how each type is written, in
protocols 2 to 5, was looked up in the output of CPython 3.8 to 3.13.
"""

from __future__ import annotations

import builtins
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import repeat
from struct import unpack_from
from types import NoneType
from typing import Final, Literal, NoReturn
from uuid import UUID, SafeUUID

MAX_BYTES: Final = 8 * 2**20
MAX_NODES: Final = 200_000  # values in the tree, a shared one counted wherever it appears
MAX_DEPTH: Final = 64  # containers inside containers
MAX_DIGITS: Final = 4_300  # of an int or a Decimal; CPython's own limit for turning an int into text
MAX_EXPONENT: Final = 6_144  # of a Decimal; decimal128's, so that int() of one stays cheap

_MAX_OPCODES: Final = 10 * MAX_NODES  # a UUID, the wordiest of the types, takes ten
_LOOK_EVERY: Final = 2_000  # opcodes, at how much has piled up
_MAX_KEY_NODES: Final = 1_000  # in one dict key or set member
_MAX_COLLISIONS: Final = 16  # different keys of one container with one hash value


class Undecodable(ValueError):
    """Why a body is refused.

    `reason` is a short sentence about the rule that was broken and holds nothing of the body, so it may be logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RemoteError:
    """An exception found in a result: what it was called and its arguments, and no behaviour."""

    name: str  # e.g. "builtins.ValueError", "arq.worker.JobExecutionFailed"
    args: tuple[object, ...]


def loads(data: bytes, *, max_bytes: int = MAX_BYTES) -> object:
    """The value in a pickle of protocol 2 to 5; raises `Undecodable` for whatever else it is given, and nothing else.

    Plain values, dates and times with UTC or a fixed offset, UUID, Decimal, bytearray, complex and OrderedDict come
    back as what they were; builtin exceptions, arq's and asyncio's as `RemoteError`. Other classes are refused.
    """
    try:
        return _load(data, max_bytes)
    except Undecodable:
        raise
    except Exception as error:
        # Text of the unpickler's own errors can quote the body; so can a chained exception.
        reason = f"not a well-formed pickle ({type(error).__name__})"
    raise Undecodable(reason)


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
        if len(data) > max_bytes or _proven(data) != "tree":
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
    if (error.name in _KNOWN_TO_ANY_CLIENT or _is_common_builtin(error)) and _is_plain(error.args):
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


def _is_plain(value: object) -> bool:
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
        new = [part for part in _parts(item) if id(part) not in seen] if len(pending) < MAX_NODES else []
        seen.update(map(id, new))
        pending += new
    return type(value).__qualname__


def _strange_type(item: object) -> type | None:
    kind = type(item)
    if kind in (datetime, time):
        zone = type(getattr(item, "tzinfo", None))  # ZoneInfo is the usual stranger
        return None if zone in (NoneType, timezone) else zone
    return None if (kind.__module__, kind.__qualname__) in _CONSTRUCTORS or kind in _BARE else kind


# Reading


def _load(data: bytes, max_bytes: int) -> object:
    if type(data) is not bytes:
        _refuse("it is not bytes")
    if len(data) > max_bytes:
        _refuse(f"it is larger than {max_bytes} bytes")
    if len(data) < 3 or data[0] != _PROTO or not 2 <= data[1] <= 5:
        _refuse("it is not a pickle of protocol 2 to 5")
    proof = _proven(data)
    value = pickle.loads(data) if proof else _Machine(data).run()
    if proof != "tree":
        _check_tree(value)
    return value


def _refuse(reason: str) -> NoReturn:
    raise Undecodable(reason)


def _too_many_values() -> NoReturn:
    _refuse(f"it has more than {MAX_NODES} values")


# The proof that the C unpickler may have it


def _counted(longest: int) -> bytes:
    """A pattern for a length byte and as many bytes as it says."""
    return b"(?:" + b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(longest + 1)) + b")"


# What shares nothing, hashes nothing of size and imports nothing. Integers have at most 64 bits, as only wider ones can
# be made to share a hash value. The memo is written (MEMOIZE, BINPUT) for nobody.
_LEAF: Final = (
    rb"[\x8cC]" + _counted(63) + rb"\x94?"  # SHORT_BINUNICODE, SHORT_BINBYTES
    rb"|[N\x88\x89)(usea\x90\x94]+"  # None, bools, (), MARK, what fills containers, MEMOIZE
    rb"|K.(?:K.)*|M..|J.{4}|G.{8}|\x8a" + _counted(8) + rb"|q.|\x95.{8}"  # BININT1…, BINFLOAT, LONG1, BINPUT, FRAME
)
_CONTAINER: Final = rb"[}\]\x8fld]"  # dict, list, set; what cannot be a key
# Greedy on purpose: possessive repeats were wrong before Python 3.11.5 (python/cpython#106052).
_PLAIN: Final = re.compile(rb"(?s:(?:(?:" + _LEAF + rb")*" + _CONTAINER + rb"?){0,5})")
_SHARING: Final = re.compile(rb"(?s:(?:" + _LEAF + rb"|" + _CONTAINER + rb"|h.|j.{4})*)")

# Ten runs, with five containers each and a tuple between any two, make fewer than MAX_DEPTH containers, so that depth
# needs no check. All runs together leave no room for more nodes than memory can take.
_RUNS: Final = 32
_RUNS_OF_A_TREE: Final = 10
_RUN_BYTES: Final = 2**13

_PROTO: Final = pickle.PROTO[0]
_STOP: Final = pickle.STOP[0]
_MEMOIZE: Final = pickle.MEMOIZE[0]
_SHORT_BINUNICODE: Final = pickle.SHORT_BINUNICODE[0]
_LENGTH_WIDTHS: Final = {
    pickle.SHORT_BINUNICODE[0]: 1,
    pickle.SHORT_BINBYTES[0]: 1,
    pickle.BINUNICODE[0]: 4,
    pickle.BINBYTES[0]: 4,
}
_SMALL_TUPLES: Final = {pickle.TUPLE1[0]: 2, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_MARKED_TUPLES: Final = {pickle.TUPLE[0], pickle.FROZENSET[0]}
_MEMO_READS: Final = {pickle.BINGET[0], pickle.LONG_BINGET[0]}
# A tuple used twice inside a tuple used twice, and so on, is hashed over and over when it is a key: at most as often as
# the sizes of all tuples multiply to, for each key that the bytes have room for.
_MAX_HASHING: Final = 2**24


def _proven(data: bytes) -> Literal["tree", "graph"] | None:
    """What is certain of these bytes: that the C unpickler loads them at a bounded cost and makes plain values only.

    Regular expressions swallow runs of opcodes, and the loop sees what stands between them. A "tree" is within
    MAX_NODES and MAX_DEPTH too; of a "graph" that is still to be checked. None means that nothing is known. Otherwise
    the last opcode is also the last byte, and every length lies within the data.
    """
    at, run, hashing = 2, _PLAIN, 1
    for runs in range(1, _RUNS + 1):
        match = run.match(data, at, at + _RUN_BYTES)
        end = match.end() if match else at
        code = data[end] if end < len(data) else 0
        if code == _STOP:
            if end != len(data) - 1 or (run is _SHARING and hashing * len(data) > _MAX_HASHING):
                return None
            return "tree" if run is _PLAIN else "graph"
        if code in _SMALL_TUPLES:
            hashing *= _SMALL_TUPLES[code]
            at = end + 1
        elif code in _MARKED_TUPLES:
            hashing *= len(data)
            at = end + 1
        elif code in _LENGTH_WIDTHS:
            at = _after_string(data, end + 1, _LENGTH_WIDTHS[code])
        elif end > at or (code in _MEMO_READS and run is _PLAIN):
            at = end
        else:
            return None
        if code in _MEMO_READS or runs == _RUNS_OF_A_TREE:
            run = _SHARING
    return None


def _after_string(data: bytes, at: int, width: int) -> int:
    return at + width + int.from_bytes(data[at : at + width], "little")


# The tree


_LEAVES: Final[frozenset[type]] = frozenset(
    {NoneType, bool, int, float, complex, str, bytes, bytearray}
    | {datetime, date, time, timedelta, timezone, UUID, Decimal}
)
_SEQUENCES: Final = (list, tuple, set, frozenset)
_MAPPINGS: Final = (dict, OrderedDict)
_ERRORS: Final = (RemoteError, BaseException)  # the latter only in what is to be written
_CONTAINERS: Final[frozenset[type]] = frozenset({*_SEQUENCES, *_MAPPINGS, RemoteError})
# Written by opcodes of their own, not by the name of a class.
_BARE: Final[frozenset[type]] = frozenset({NoneType, bool, int, float, str, bytes, list, tuple, dict})


def _parts(item: object) -> Collection[object]:
    if isinstance(item, _MAPPINGS):
        return [*item, *item.values()]
    if isinstance(item, _SEQUENCES):
        return item
    return item.args if isinstance(item, _ERRORS) else ()


def _check_tree(root: object) -> None:
    """Refuse a value with too many nodes, too deep (which a cycle is), or of a type that is not in the tables.

    Level by level, and on each level every container once, so that neither depth nor sharing costs more than counting.
    """
    nodes = 1
    level = [root] if type(root) not in _LEAVES else []
    times: Mapping[int, int] = {}  # how often a container is on this level, by id; empty if all are there once
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        surplus: dict[int, int] = {}
        for item in level:
            if type(item) not in _CONTAINERS:
                _refuse("it holds a class, not an object of it")
            parts = _parts(item)
            more = times[id(item)] if times else 1
            nodes += more * len(parts)
            if nodes > MAX_NODES:
                _too_many_values()
            if not _LEAVES.issuperset(map(type, parts)):
                inner = [part for part in parts if type(part) not in _LEAVES]
                below += inner
                if more > 1:
                    for part in inner:
                        surplus[id(part)] = surplus.get(id(part), 0) + more - 1
        if not below:
            return
        distinct = dict(zip(map(id, below), below, strict=True))
        times = {}
        if surplus or len(distinct) < len(below):
            times = Counter(map(id, below))
            times.update(surplus)
        level = list(distinct.values())
    _refuse(f"it is nested more than {MAX_DEPTH} deep, or contains itself")


# The machine


class _Machine:
    """A pickle machine for the binary opcodes that picklers of protocol 2 to 5 write.

    An opcode's method takes the place after the opcode and answers the place of the next. Fixed widths need no check of
    their own: a slice beyond the end is short, and reading the next opcode there is an IndexError.
    """

    __slots__ = ("_copied", "_key_nodes", "_made", "_tallies", "_unbuilt", "data", "marks", "memo", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}  # a dict, as an index may be anything
        self._unbuilt: dict[int, UUID] = {}
        self._made = 0
        self._copied = 0
        self._key_nodes = 0
        self._tallies: dict[int, dict[int, int]] = {}

    def run(self) -> object:
        data, stack, memo, opcodes = self.data, self.stack, self.memo, _OPCODES
        at = 2
        for _ in range(_MAX_OPCODES // _LOOK_EVERY):
            for _ in repeat(None, _LOOK_EVERY):
                code = data[at]
                at += 1
                # Half of all opcodes are these two, hence here.
                if code == _SHORT_BINUNICODE:
                    end = at + 1 + data[at]
                    stack.append(data[at + 1 : end].decode("utf-8", "surrogatepass"))
                    at = end
                elif code == _MEMOIZE:
                    memo[len(memo)] = stack[-1]
                elif code == _STOP:
                    return self.finish(at)
                else:
                    at = opcodes[code](self, at)
            if len(stack) > MAX_NODES or len(memo) > 2 * MAX_NODES:
                _too_many_values()
        _refuse(f"it takes more than {_MAX_OPCODES} opcodes")

    def finish(self, at: int) -> object:
        if at != len(self.data):
            _refuse("it goes on after its end")
        if self._unbuilt:
            _refuse("it holds a UUID without a value")
        return self.stack.pop()

    # Counting

    def count(self, more: int = 1) -> None:
        """Every container and object made counts as a node before the tree is seen, for memory's sake."""
        self._made += more
        if self._made > MAX_NODES:
            _too_many_values()

    def count_copy(self, size: int) -> None:
        """What a constructor copies was in the body once, so copies of more than that are of something shared."""
        self._copied += size
        if self._copied > 4 * len(self.data) + 2**16:
            _refuse("it copies one value too often")

    def admit_keys(self, keys: Collection[object], target: Collection[object] = ()) -> None:
        """Refuse keys that are costly to hash, or to tell from others in `target`. Call it before they are hashed."""
        if _CHEAP_KEYS.issuperset(map(type, keys)):
            return
        # An id may have been another container's before, but then this one is still empty.
        tally = self._tallies.setdefault(id(target), {}) if target else {}
        for key in keys:
            if type(key) in _CHEAP_KEYS or (type(key) is int and abs(key) < 2**63):
                continue
            self._key_nodes += _key_nodes(key)
            if self._key_nodes > MAX_NODES:
                _refuse("its keys are too large")
            code = hash(key)
            tally[code] = tally.get(code, 0) + 1
            if tally[code] > _MAX_COLLISIONS:
                _refuse("its keys share a hash value")
        self._tallies[id(target)] = tally

    # Stack

    def push(self, value: object, at: int) -> int:
        self.stack.append(value)
        return at

    def pop_to_mark(self) -> list[object]:
        start = self.marks.pop()
        if start > len(self.stack):
            _refuse("its marks are out of place")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, at: int) -> int:
        if len(self.marks) > 2 * MAX_DEPTH:  # an object and its arguments are two marks, and one node
            _refuse(f"it is nested more than {MAX_DEPTH} deep")
        self.marks.append(len(self.stack))
        return at

    # Memo

    def put(self, index: int, at: int) -> int:
        if index > at:
            _refuse("its memo index is beyond what it can have stored")
        self.memo[index] = self.stack[-1]
        return at

    def binput(self, at: int) -> int:
        return self.put(self.data[at], at + 1)

    def long_binput(self, at: int) -> int:
        return self.put(self.unsigned(at, 4), at + 4)

    def binget(self, at: int) -> int:
        self.stack.append(self.memo[self.data[at]])
        return at + 1

    def long_binget(self, at: int) -> int:
        return self.push(self.memo[self.unsigned(at, 4)], at + 4)

    # Numbers

    def unsigned(self, at: int, width: int) -> int:
        return int.from_bytes(self.data[at : at + width], "little")

    def binint1(self, at: int) -> int:
        self.stack.append(self.data[at])
        return at + 1

    def binint2(self, at: int) -> int:
        return self.push(self.unsigned(at, 2), at + 2)

    def binint(self, at: int) -> int:
        return self.push(unpack_from("<i", self.data, at)[0], at + 4)

    def binfloat(self, at: int) -> int:
        return self.push(unpack_from(">d", self.data, at)[0], at + 8)

    def long1(self, at: int) -> int:
        return self.long(at + 1, self.data[at])

    def long4(self, at: int) -> int:
        return self.long(at + 4, self.unsigned(at, 4))

    def long(self, at: int, size: int) -> int:
        value = 0 if size > MAX_DIGITS else int.from_bytes(self.data[at : at + size], "little", signed=True)
        if size > MAX_DIGITS or abs(value) >= _TOO_WIDE:
            _refuse(f"it has an integer of more than {MAX_DIGITS} digits")
        return self.push(value, at + size)

    # Text and bytes

    def string(self, at: int, width: int) -> tuple[bytes, int]:
        end = _after_string(self.data, at, width)
        if end > len(self.data):
            _refuse("it is cut off")
        return self.data[at + width : end], end

    def binunicode(self, at: int, width: int) -> int:
        raw, end = self.string(at, width)
        return self.push(raw.decode("utf-8", "surrogatepass"), end)

    def binbytes(self, at: int, width: int) -> int:
        return self.push(*self.string(at, width))

    def bytearray8(self, at: int) -> int:
        raw, end = self.string(at, 8)
        self.count()
        return self.push(bytearray(raw), end)

    def frame(self, at: int) -> int:
        # Only a hint for reading ahead; but one that is wrong is no pickler's.
        if at + 8 + self.unsigned(at, 8) > len(self.data):
            _refuse("it is cut off")
        return at + 8

    # Containers

    def collect(self, value: object, at: int) -> int:
        self._made += 1  # count(), without the call
        if self._made > MAX_NODES:
            _too_many_values()
        self.stack.append(value)
        return at

    def tuple_of(self, size: int, at: int) -> int:
        if len(self.stack) < size:
            _refuse("it takes from an empty stack")
        self.count()
        self.stack[-size:] = [tuple(self.stack[-size:])]
        return at

    def tuple_to_mark(self, at: int) -> int:
        return self.collect(tuple(self.pop_to_mark()), at)

    def list_to_mark(self, at: int) -> int:
        return self.collect(self.pop_to_mark(), at)

    def dict_to_mark(self, at: int) -> int:
        items = self.pop_to_mark()
        self.collect({}, at)
        return self.set_items(items, at)

    def frozenset_to_mark(self, at: int) -> int:
        items = self.pop_to_mark()
        self.admit_keys(items)
        return self.collect(frozenset(items), at)

    def append(self, at: int) -> int:
        return self.extend([self.stack.pop()], at)

    def extend_to_mark(self, at: int) -> int:
        return self.extend(self.pop_to_mark(), at)

    def extend(self, items: list[object], at: int) -> int:
        target = self.stack[-1]
        if type(target) is not list:
            _refuse("it appends to what is no list")
        target += items
        return at

    def set_item(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        target = self.dict_on_top()
        self.admit_keys((key,), target)
        target[key] = value
        return at

    def set_items_to_mark(self, at: int) -> int:
        return self.set_items(self.pop_to_mark(), at)

    def set_items(self, items: list[object], at: int) -> int:
        target = self.dict_on_top()
        keys = items[::2]
        self.admit_keys(keys, target)
        target.update(zip(keys, items[1::2], strict=True))
        return at

    def dict_on_top(self) -> dict[object, object]:
        target = self.stack[-1]
        if not (type(target) is dict or type(target) is OrderedDict):
            _refuse("it sets items of what is no dict")
        return target

    def add_items(self, at: int) -> int:
        items = self.pop_to_mark()
        target = self.stack[-1]
        if type(target) is not set:
            _refuse("it adds members to what is no set")
        self.admit_keys(items, target)
        target.update(items)
        return at

    # Classes, all of them stand-ins

    def global_name(self, at: int) -> int:
        middle = self.data.index(b"\n", at, at + 100)
        end = self.data.index(b"\n", middle + 1, middle + 100)
        module, name = self.data[at:middle].decode(), self.data[middle + 1 : end].decode()
        return self.push(_constructor(module, name), end + 1)

    def stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        return self.push(_constructor(module, name), at)

    def reduce(self, at: int) -> int:
        args, constructor = self.stack.pop(), self.stack.pop()
        if type(constructor) is not _Constructor or type(args) is not tuple:
            _refuse("it calls what is no class")
        return self.collect(constructor.make(self, args), at)

    def newobj(self, at: int) -> int:
        args, constructor = self.stack.pop(), self.stack.pop()
        if constructor is not _UUID or args != ():
            _refuse("it makes an object in a way that its class does not use")
        blank = UUID.__new__(UUID)
        self._unbuilt[id(blank)] = blank
        return self.collect(blank, at)

    def build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is RemoteError:
            return at  # notes and attributes: nothing that a stand-in needs
        blank = self._unbuilt.pop(id(target), None)
        if blank is None:
            _refuse("it sets attributes")
        _fill_uuid(blank, state)
        return at


# Their hashes are keyed with a secret of the process, or shared by few values.
_CHEAP_KEYS: Final[frozenset[type]] = frozenset({NoneType, bool, float, str, bytes})
_TOO_WIDE: Final = 10**MAX_DIGITS


def _key_nodes(key: object) -> int:
    """How many values are hashed with a key. Tuples keep no hash, so one inside another is walked again each time."""
    nodes, pending = 1, [key]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple | frozenset):
            nodes += len(item)
            if nodes > _MAX_KEY_NODES:
                _refuse(f"it has a key of more than {_MAX_KEY_NODES} values")
            pending += item
        elif type(item) not in _LEAVES:
            _refuse("it has a key that is no plain value")
    return nodes


# What may be constructed


_Args = tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Constructor:
    """What stands on the stack for a class: it checks arguments exactly as that class's pickles have them."""

    make: Callable[[_Machine, _Args], object]


def _constructor(module: object, name: object) -> _Constructor:
    found = _CONSTRUCTORS.get((module, name)) if type(module) is str and type(name) is str else None
    if found is None:
        _refuse("it refers to a class that is not on the list")
    return found


def _wrong_arguments() -> NoReturn:
    _refuse("it calls a class with other arguments than its pickles have")


def _state_and_zone(args: _Args, size: int) -> tuple[bytes, timezone | None]:
    state, zone = args if len(args) == 2 else (*args, None)
    if type(state) is not bytes or len(state) != size or not (zone is None or type(zone) is timezone):
        _wrong_arguments()
    return state, zone


# The classes of `datetime` take their packed form on trust, hour 255 included; so it is unpacked here. `fold` is the
# highest bit of the month, or of a time's hour.


def _datetime(_: _Machine, args: _Args) -> datetime:
    state, zone = _state_and_zone(args, 10)
    year, month, micros = int.from_bytes(state[:2]), state[2] & 127, int.from_bytes(state[7:])
    return datetime(year, month, state[3], state[4], state[5], state[6], micros, zone, fold=state[2] >> 7)


def _date(_: _Machine, args: _Args) -> date:
    state, zone = _state_and_zone(args, 4)
    if zone is not None:
        _wrong_arguments()
    return date(int.from_bytes(state[:2]), state[2], state[3])


def _time(_: _Machine, args: _Args) -> time:
    state, zone = _state_and_zone(args, 6)
    return time(state[0] & 127, state[1], state[2], int.from_bytes(state[3:]), zone, fold=state[0] >> 7)


def _timedelta(_: _Machine, args: _Args) -> timedelta:
    days, seconds, micros = args
    if not (type(days) is int and type(seconds) is int and type(micros) is int):
        _wrong_arguments()
    return timedelta(days, seconds, micros)


def _timezone(_: _Machine, args: _Args) -> timezone:
    offset, *name = args
    if type(offset) is not timedelta:
        _wrong_arguments()
    if not name:
        return timezone(offset)
    if len(name) > 1 or type(name[0]) is not str:
        _wrong_arguments()
    return timezone(offset, name[0])


_DECIMAL: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:E([+-]\d{1,5}))?|Infinity|s?NaN\d*)", re.ASCII)


def _decimal(machine: _Machine, args: _Args) -> Decimal:
    (text,) = args
    if type(text) is not str:
        _wrong_arguments()
    number = _DECIMAL.fullmatch(text) if len(text) <= MAX_DIGITS + 8 else None  # 8 for sign, point and exponent
    if number is None or abs(int(number[1] or 0)) > MAX_EXPONENT:
        _refuse(f"it has a Decimal of more than {MAX_DIGITS} digits or an exponent beyond {MAX_EXPONENT}")
    machine.count_copy(len(text))
    return Decimal(text)


def _fill_uuid(blank: UUID, state: object) -> None:
    if type(state) is not dict or not state.keys() <= {"int", "is_safe"}:
        _wrong_arguments()
    value = state["int"]
    if type(value) is not int or not 0 <= value < 2**128:
        _wrong_arguments()
    # The class forbids assignment, and its own __setstate__ goes this way round it too.
    object.__setattr__(blank, "int", value)
    object.__setattr__(blank, "is_safe", SafeUUID(state.get("is_safe")))


def _complex(_: _Machine, args: _Args) -> complex:
    real, imaginary = args
    if type(real) is not float or type(imaginary) is not float:
        _wrong_arguments()
    return complex(real, imaginary)


def _encode(machine: _Machine, args: _Args) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2, which has no bytes, writes them."""
    text, codec = args
    if type(text) is not str or codec != "latin1":
        _wrong_arguments()
    machine.count_copy(len(text))
    return text.encode("latin1")


def _empty_bytes(_: _Machine, args: _Args) -> bytes:
    """`bytes()`: how protocol 2 writes that one."""
    if args:
        _wrong_arguments()
    return b""


def _bytearray(machine: _Machine, args: _Args) -> bytearray:
    (raw,) = args or (b"",)
    if type(raw) is not bytes:
        _wrong_arguments()
    machine.count_copy(len(raw))
    return bytearray(raw)


def _members(machine: _Machine, args: _Args) -> list[object]:
    (members,) = args or ([],)
    if type(members) is not list:
        _wrong_arguments()
    machine.count(len(members))
    machine.admit_keys(members)
    return members


def _set(machine: _Machine, args: _Args) -> set[object]:
    return set(_members(machine, args))


def _frozenset(machine: _Machine, args: _Args) -> frozenset[object]:
    return frozenset(_members(machine, args))


def _ordered_dict(_: _Machine, args: _Args) -> OrderedDict[object, object]:
    if args:
        _wrong_arguments()
    return OrderedDict()


def _uuid(_: _Machine, args: _Args) -> NoReturn:
    _wrong_arguments()  # only ever made empty by NEWOBJ, then filled by BUILD


def _remote_error(name: str) -> _Constructor:
    return _Constructor(lambda _, args: RemoteError(name, args))


_UUID: Final = _Constructor(_uuid)

_BUILTINS: Final = {
    "bytearray": _Constructor(_bytearray),
    "bytes": _Constructor(_empty_bytes),
    "complex": _Constructor(_complex),
    "frozenset": _Constructor(_frozenset),
    "set": _Constructor(_set),
}
_BUILTIN_ERRORS: Final = {
    name: _remote_error(f"builtins.{name}")
    for name, kind in [*vars(builtins).items(), ("PythonFinalizationError", Exception)]  # that one is new in 3.13
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
_OTHER_ERRORS: Final = {
    "arq.worker": ("FailedJobs", "JobExecutionFailed", "Retry", "RetryJob"),
    "arq.jobs": ("DeserializationError", "ResultNotFound", "SerializationError"),
    "asyncio.exceptions": ("CancelledError", "TimeoutError"),  # the latter is the builtin one since 3.11
}


def _named(
    module: str, constructors: Mapping[str, _Constructor]
) -> Iterator[tuple[tuple[object, object], _Constructor]]:
    return (((module, name), constructor) for name, constructor in constructors.items())


_CONSTRUCTORS: Final[Mapping[tuple[object, object], _Constructor]] = {
    ("datetime", "datetime"): _Constructor(_datetime),
    ("datetime", "date"): _Constructor(_date),
    ("datetime", "time"): _Constructor(_time),
    ("datetime", "timedelta"): _Constructor(_timedelta),
    ("datetime", "timezone"): _Constructor(_timezone),
    ("decimal", "Decimal"): _Constructor(_decimal),
    ("uuid", "UUID"): _UUID,
    ("collections", "OrderedDict"): _Constructor(_ordered_dict),
    ("_codecs", "encode"): _Constructor(_encode),
    **dict(_named("builtins", _BUILTINS | _BUILTIN_ERRORS)),
    # Protocol 2 speaks of Python 2's modules.
    **dict(_named("__builtin__", _BUILTINS | _BUILTIN_ERRORS)),
    **dict(_named("exceptions", _BUILTIN_ERRORS)),
    **{(module, name): _remote_error(f"{module}.{name}") for module, names in _OTHER_ERRORS.items() for name in names},
}


# The opcodes


_Opcode = Callable[[_Machine, int], int]


def _refused(what: str) -> _Opcode:
    def opcode(machine: _Machine, at: int) -> int:
        _refuse(f"it uses {what}")

    return opcode


def _opcodes() -> list[_Opcode]:
    table = [_refused("an opcode that picklers of protocol 2 to 5 do not write for plain values")] * 256
    for codes, what in _FORBIDDEN.items():
        for code in codes:
            table[code] = _refused(what)
    for name, opcode in _ADMITTED.items():
        table[name[0]] = opcode
    return table


_ADMITTED: Final[Mapping[bytes, _Opcode]] = {
    pickle.NONE: lambda machine, at: machine.push(None, at),
    pickle.NEWTRUE: lambda machine, at: machine.push(True, at),
    pickle.NEWFALSE: lambda machine, at: machine.push(False, at),
    pickle.EMPTY_TUPLE: lambda machine, at: machine.push((), at),
    pickle.BININT1: _Machine.binint1,
    pickle.BININT2: _Machine.binint2,
    pickle.BININT: _Machine.binint,
    pickle.LONG1: _Machine.long1,
    pickle.LONG4: _Machine.long4,
    pickle.BINFLOAT: _Machine.binfloat,
    pickle.BINUNICODE: lambda machine, at: machine.binunicode(at, 4),
    pickle.BINUNICODE8: lambda machine, at: machine.binunicode(at, 8),
    pickle.SHORT_BINBYTES: lambda machine, at: machine.binbytes(at, 1),
    pickle.BINBYTES: lambda machine, at: machine.binbytes(at, 4),
    pickle.BINBYTES8: lambda machine, at: machine.binbytes(at, 8),
    pickle.BYTEARRAY8: _Machine.bytearray8,
    pickle.MARK: _Machine.mark,
    pickle.TUPLE1: lambda machine, at: machine.tuple_of(1, at),
    pickle.TUPLE2: lambda machine, at: machine.tuple_of(2, at),
    pickle.TUPLE3: lambda machine, at: machine.tuple_of(3, at),
    pickle.TUPLE: _Machine.tuple_to_mark,
    pickle.EMPTY_LIST: lambda machine, at: machine.collect([], at),
    pickle.LIST: _Machine.list_to_mark,
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: _Machine.extend_to_mark,
    pickle.EMPTY_DICT: lambda machine, at: machine.collect({}, at),
    pickle.DICT: _Machine.dict_to_mark,
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_items_to_mark,
    pickle.EMPTY_SET: lambda machine, at: machine.collect(set(), at),
    pickle.ADDITEMS: _Machine.add_items,
    pickle.FROZENSET: _Machine.frozenset_to_mark,
    pickle.BINPUT: _Machine.binput,
    pickle.LONG_BINPUT: _Machine.long_binput,
    pickle.BINGET: _Machine.binget,
    pickle.LONG_BINGET: _Machine.long_binget,
    pickle.GLOBAL: _Machine.global_name,
    pickle.STACK_GLOBAL: _Machine.stack_global,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.newobj,
    pickle.BUILD: _Machine.build,
    pickle.FRAME: _Machine.frame,
}
_FORBIDDEN: Final[Mapping[bytes, str]] = {
    pickle.PERSID + pickle.BINPERSID: "a persistent id",
    pickle.EXT1 + pickle.EXT2 + pickle.EXT4: "the extension registry",
    pickle.NEXT_BUFFER + pickle.READONLY_BUFFER: "out-of-band buffers",
    pickle.INST + pickle.OBJ + pickle.NEWOBJ_EX: "a way to make objects that no admitted class uses",
    pickle.INT + pickle.LONG + pickle.FLOAT + pickle.UNICODE + pickle.GET + pickle.PUT: "text opcodes of protocol 0",
    pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING: "strings of Python 2",
}
_OPCODES: Final = _opcodes()
