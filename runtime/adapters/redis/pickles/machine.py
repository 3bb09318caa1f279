"""An unpickler for what is not proven: its only classes are a table, and it counts what it does.

Classes that an application has vouched for (`Admitted`) are called as any unpickler calls them: by their names, with
whatever arguments and state the body has.
"""

# `type(x) is list` tells pyright nothing of the members, and a cast would cost time for each value that is read.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import builtins
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import repeat
from struct import unpack_from
from types import NoneType
from typing import Any, Final, NoReturn, Self
from uuid import UUID, SafeUUID

from runtime.adapters.redis.pickles.proof import MEMOIZE, SHORT_BINUNICODE, STOP, after_string
from runtime.adapters.redis.pickles.values import (
    LEAVES,
    LOOK_EVERY,
    MAX_COLLISIONS,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_KEY_NODES,
    MAX_NODES,
    MAX_OPCODES,
    NOT_LISTED,
    Admitted,
    RemoteError,
    Undecodable,
    refuse,
    too_many_values,
)

NONE_ADMITTED: Final[Admitted] = {}


class Machine:
    """A pickle machine for the binary opcodes that picklers of protocol 2 to 5 write.

    An opcode's method takes the place after the opcode and answers the place of the next. Fixed widths need no check of
    their own: a slice beyond the end is short, and reading the next opcode there is an IndexError.
    """

    __slots__ = (
        "_admitted",
        "_any_error",
        "_copied",
        "_key_nodes",
        "_made",
        "_tallies",
        "_unbuilt",
        "data",
        "marks",
        "memo",
        "others",
        "stack",
    )

    def __init__(self, data: bytes, *, any_error: bool = False, admitted: Admitted = NONE_ADMITTED) -> None:
        self.data = data
        self._any_error = any_error
        self._admitted = admitted
        self.others: set[type] = set()
        """Of what was made that is not in the tables."""
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
        for _ in range(MAX_OPCODES // LOOK_EVERY):
            for _ in repeat(None, LOOK_EVERY):
                code = data[at]
                at += 1
                # Half of all opcodes are these two, hence here.
                if code == SHORT_BINUNICODE:
                    end = at + 1 + data[at]
                    stack.append(data[at + 1 : end].decode("utf-8", "surrogatepass"))
                    at = end
                elif code == MEMOIZE:
                    memo[len(memo)] = stack[-1]
                elif code == STOP:
                    return self.finish(at)
                else:
                    at = opcodes[code](self, at)
            if len(stack) > MAX_NODES or len(memo) > 2 * MAX_NODES:
                too_many_values()
        raise Undecodable(f"it takes more than {MAX_OPCODES} opcodes")

    def finish(self, at: int) -> object:
        if at != len(self.data):
            refuse("it goes on after its end")
        if self._unbuilt:
            refuse("it holds a UUID without a value")
        return self.stack.pop()

    # Counting

    def count(self, more: int = 1) -> None:
        """Every container and object made counts as a node before the tree is seen, for memory's sake."""
        self._made += more
        if self._made > MAX_NODES:
            too_many_values()

    def count_copy(self, size: int) -> None:
        """What a constructor copies was in the body once, so copies of more than that are of something shared."""
        self._copied += size
        if self._copied > 4 * len(self.data) + 2**16:
            refuse("it copies one value too often")

    def admit_keys(self, keys: Collection[object], target: Collection[object] = ()) -> None:
        """Refuse keys that are costly to hash, or to tell from others in `target`. Call it before they are hashed."""
        if _CHEAP_KEYS.issuperset(map(type, keys)):
            return
        # An id may have been another container's before, but then this one is still empty.
        tally = self._tallies.setdefault(id(target), {}) if target else {}
        for key in keys:
            if type(key) in _CHEAP_KEYS or (type(key) is int and abs(key) < 2**63):
                continue
            self._key_nodes += 1 if type(key) in self.others else _key_nodes(key)
            if self._key_nodes > MAX_NODES:
                refuse("its keys are too large")
            code = hash(key)
            tally[code] = tally.get(code, 0) + 1
            if tally[code] > MAX_COLLISIONS:
                refuse("its keys share a hash value")
        self._tallies[id(target)] = tally

    # Stack

    def push(self, value: object, at: int) -> int:
        self.stack.append(value)
        return at

    def pop_to_mark(self) -> list[object]:
        start = self.marks.pop()
        if start > len(self.stack):
            refuse("its marks are out of place")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, at: int) -> int:
        if len(self.marks) > 2 * MAX_DEPTH:  # an object and its arguments are two marks, and one node
            refuse(f"it is nested more than {MAX_DEPTH} deep")
        self.marks.append(len(self.stack))
        return at

    # Memo

    def put(self, index: int, at: int) -> int:
        if index > at:
            refuse("its memo index is beyond what it can have stored")
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
            refuse(f"it has an integer of more than {MAX_DIGITS} digits")
        return self.push(value, at + size)

    # Text and bytes

    def string(self, at: int, width: int) -> tuple[bytes, int]:
        end = after_string(self.data, at, width)
        if end > len(self.data):
            refuse("it is cut off")
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
            refuse("it is cut off")
        return at + 8

    # Containers

    def collect(self, value: object, at: int) -> int:
        self._made += 1  # count(), without the call
        if self._made > MAX_NODES:
            too_many_values()
        self.stack.append(value)
        return at

    def tuple_of(self, size: int, at: int) -> int:
        if len(self.stack) < size:
            refuse("it takes from an empty stack")
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
            refuse("it appends to what is no list")
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
            refuse("it sets items of what is no dict")
        return target

    def add_items(self, at: int) -> int:
        items = self.pop_to_mark()
        target = self.stack[-1]
        if type(target) is not set:
            refuse("it adds members to what is no set")
        self.admit_keys(items, target)
        target.update(items)
        return at

    # Classes, all of them stand-ins

    def global_name(self, at: int) -> int:
        middle = self.data.index(b"\n", at, at + 100)
        end = self.data.index(b"\n", middle + 1, middle + 100)
        module, name = self.data[at:middle].decode(), self.data[middle + 1 : end].decode()
        return self.push(self.constructor(module, name), end + 1)

    def stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        return self.push(self.constructor(module, name), at)

    def constructor(self, module: object, name: object) -> object:
        if self._admitted and type(module) is str and type(name) is str:
            if name == "getattr" and module in ("builtins", "__builtin__"):
                return _GETATTR
            admitted = self._admitted.get((module, name))
            if admitted is not None:
                return _Guest(admitted)
        return _constructor(module, name, self._any_error)

    def reduce(self, at: int) -> int:
        args, constructor = self.stack.pop(), self.stack.pop()
        if type(constructor) is _Guest and type(args) is tuple:
            return self.collect(self.guest(constructor.kind(*args)), at)
        if constructor is _GETATTR:
            return self.push(_attribute(args), at)
        if type(constructor) is not _Constructor or type(args) is not tuple:
            refuse("it calls what is no class")
        return self.collect(constructor.make(self, args), at)

    def guest(self, made: object) -> object:
        if type(made) not in LEAVES and type(made) not in _CONTAINERS:
            self.others.add(type(made))
        return made

    def newobj(self, at: int) -> int:
        args, constructor = self.stack.pop(), self.stack.pop()
        if type(constructor) is _Guest and isinstance(constructor.kind, type) and type(args) is tuple:
            kind: type[object] = constructor.kind
            return self.collect(self.guest(kind.__new__(kind, *args)), at)
        if constructor is not _UUID or args != ():
            refuse("it makes an object in a way that its class does not use")
        blank = UUID.__new__(UUID)
        self._unbuilt[id(blank)] = blank
        return self.collect(blank, at)

    def build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is RemoteError:
            return at  # notes and attributes: nothing that a stand-in needs
        if type(target) in self.others:
            _set_state(target, state)
            return at
        blank = self._unbuilt.pop(id(target), None)
        if blank is None:
            refuse("it sets attributes")
        _fill_uuid(blank, state)
        return at


_CONTAINERS: Final = (dict, list, tuple, set, frozenset, OrderedDict, RemoteError)
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
            if nodes > MAX_KEY_NODES:
                refuse(f"it has a key of more than {MAX_KEY_NODES} values")
            pending += item
        elif type(item) not in LEAVES:
            refuse("it has a key that is no plain value")
    return nodes


# What may be constructed


_LONGEST_NAME: Final = 200


_Args = tuple[object, ...]


class _Constructor:
    """What stands on the stack for a class: it checks arguments exactly as that class's pickles have them."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Machine, _Args], object]) -> None:
        self.make = make


class _Guest:
    """What stands on the stack for a class that was vouched for."""

    __slots__ = ("kind",)

    def __init__(self, kind: Callable[..., object]) -> None:
        self.kind = kind


_GETATTR: Final = object()


def _attribute(args: object) -> _Guest:
    """What a class that was vouched for makes its objects with: `getattr(ZoneInfo, "_unpickle")`."""
    match args:
        case (_Guest() as guest, str() as name):
            found = getattr(guest.kind, name)
        case _:
            refuse("it takes an attribute of what is no class on the list")
    if not callable(found):
        refuse("it calls what is no class")
    return _Guest(found)


class _AnyAttribute(type):
    def __getattr__(cls, name: str) -> Any:
        return cls


class _StandIn(tzinfo, metaclass=_AnyAttribute):
    """For an object of any class, in a pickle of which only the names are wanted. It may be a datetime's zone, too."""

    def __new__(cls, *args: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class Strangers(Mapping[tuple[str, str], Callable[..., object]]):
    """Admits all classes, each as a stand-in; those that are neither in the tables nor `admitted` are in `found`."""

    def __init__(self, admitted: Admitted) -> None:
        self._admitted = admitted
        self.found: set[str] = set()

    def __getitem__(self, key: tuple[str, str]) -> Callable[..., object]:
        if key in CONSTRUCTORS:
            raise KeyError(key)
        if key not in self._admitted:
            self.found.add(".".join(key))
        return _StandIn

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._admitted)

    def __len__(self) -> int:
        return 1  # never none


def _set_state(target: object, state: object) -> None:
    """As the C unpickler does it."""
    set_state = getattr(target, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    attributes, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    for part in (attributes, slots):
        if part is None:
            continue
        if type(part) is not dict:
            _wrong_arguments()
        for key, value in part.items():
            object.__setattr__(target, key, value)


def _constructor(module: object, name: object, any_error: bool) -> _Constructor:
    if type(module) is str and type(name) is str:
        found = CONSTRUCTORS.get((module, name))
        if found is not None:
            return found
        dotted = f"{module}.{name}"
        if any_error and len(dotted) <= _LONGEST_NAME and all(part.isidentifier() for part in dotted.split(".")):
            return _remote_error(dotted)
    raise Undecodable(NOT_LISTED)


def _wrong_arguments() -> NoReturn:
    refuse("it calls a class with other arguments than its pickles have")


def _state_and_zone(args: _Args, size: int) -> tuple[bytes, tzinfo | None]:
    state, zone = args if len(args) == 2 else (*args, None)
    if type(state) is not bytes or len(state) != size or not (zone is None or isinstance(zone, tzinfo)):
        _wrong_arguments()
    return state, zone


# The classes of `datetime` take their packed form on trust, hour 255 included; so it is unpacked here. `fold` is the
# highest bit of the month, or of a time's hour.


def _datetime(_: Machine, args: _Args) -> datetime:
    state, zone = _state_and_zone(args, 10)
    year, month, micros = int.from_bytes(state[:2]), state[2] & 127, int.from_bytes(state[7:])
    return datetime(year, month, state[3], state[4], state[5], state[6], micros, zone, fold=state[2] >> 7)


def _date(_: Machine, args: _Args) -> date:
    state, zone = _state_and_zone(args, 4)
    if zone is not None:
        _wrong_arguments()
    return date(int.from_bytes(state[:2]), state[2], state[3])


def _time(_: Machine, args: _Args) -> time:
    state, zone = _state_and_zone(args, 6)
    return time(state[0] & 127, state[1], state[2], int.from_bytes(state[3:]), zone, fold=state[0] >> 7)


def _timedelta(_: Machine, args: _Args) -> timedelta:
    days, seconds, micros = args
    if not (type(days) is int and type(seconds) is int and type(micros) is int):
        _wrong_arguments()
    return timedelta(days, seconds, micros)


def _timezone(_: Machine, args: _Args) -> timezone:
    offset, *name = args
    if type(offset) is not timedelta:
        _wrong_arguments()
    if not name:
        return timezone(offset)
    if len(name) > 1 or type(name[0]) is not str:
        _wrong_arguments()
    return timezone(offset, name[0])


_DECIMAL: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:E([+-]\d{1,5}))?|Infinity|s?NaN\d*)", re.ASCII)


def _decimal(machine: Machine, args: _Args) -> Decimal:
    (text,) = args
    if type(text) is not str:
        _wrong_arguments()
    number = _DECIMAL.fullmatch(text) if len(text) <= MAX_DIGITS + 8 else None  # 8 for sign, point and exponent
    if number is None or abs(int(number[1] or 0)) > MAX_EXPONENT:
        refuse(f"it has a Decimal of more than {MAX_DIGITS} digits or an exponent beyond {MAX_EXPONENT}")
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


def _complex(_: Machine, args: _Args) -> complex:
    real, imaginary = args
    if type(real) is not float or type(imaginary) is not float:
        _wrong_arguments()
    return complex(real, imaginary)


def _encode(machine: Machine, args: _Args) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2, which has no bytes, writes them."""
    text, codec = args
    if type(text) is not str or codec != "latin1":
        _wrong_arguments()
    machine.count_copy(len(text))
    return text.encode("latin1")


def _empty_bytes(_: Machine, args: _Args) -> bytes:
    """`bytes()`: how protocol 2 writes that one."""
    if args:
        _wrong_arguments()
    return b""


def _bytearray(machine: Machine, args: _Args) -> bytearray:
    (raw,) = args or (b"",)
    if type(raw) is not bytes:
        _wrong_arguments()
    machine.count_copy(len(raw))
    return bytearray(raw)


def _members(machine: Machine, args: _Args) -> list[object]:
    (members,) = args or ([],)
    if type(members) is not list:
        _wrong_arguments()
    machine.count(len(members))
    machine.admit_keys(members)
    return members


def _set(machine: Machine, args: _Args) -> set[object]:
    return set(_members(machine, args))


def _frozenset(machine: Machine, args: _Args) -> frozenset[object]:
    return frozenset(_members(machine, args))


def _ordered_dict(_: Machine, args: _Args) -> OrderedDict[object, object]:
    if args:
        _wrong_arguments()
    return OrderedDict()


def _uuid(_: Machine, args: _Args) -> NoReturn:
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


CONSTRUCTORS: Final[Mapping[tuple[object, object], _Constructor]] = {
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


_Opcode = Callable[[Machine, int], int]


def _refused(what: str) -> _Opcode:
    def opcode(machine: Machine, at: int) -> int:
        refuse(f"it uses {what}")

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
    pickle.BININT1: Machine.binint1,
    pickle.BININT2: Machine.binint2,
    pickle.BININT: Machine.binint,
    pickle.LONG1: Machine.long1,
    pickle.LONG4: Machine.long4,
    pickle.BINFLOAT: Machine.binfloat,
    pickle.BINUNICODE: lambda machine, at: machine.binunicode(at, 4),
    pickle.BINUNICODE8: lambda machine, at: machine.binunicode(at, 8),
    pickle.SHORT_BINBYTES: lambda machine, at: machine.binbytes(at, 1),
    pickle.BINBYTES: lambda machine, at: machine.binbytes(at, 4),
    pickle.BINBYTES8: lambda machine, at: machine.binbytes(at, 8),
    pickle.BYTEARRAY8: Machine.bytearray8,
    pickle.MARK: Machine.mark,
    pickle.TUPLE1: lambda machine, at: machine.tuple_of(1, at),
    pickle.TUPLE2: lambda machine, at: machine.tuple_of(2, at),
    pickle.TUPLE3: lambda machine, at: machine.tuple_of(3, at),
    pickle.TUPLE: Machine.tuple_to_mark,
    pickle.EMPTY_LIST: lambda machine, at: machine.collect([], at),
    pickle.LIST: Machine.list_to_mark,
    pickle.APPEND: Machine.append,
    pickle.APPENDS: Machine.extend_to_mark,
    pickle.EMPTY_DICT: lambda machine, at: machine.collect({}, at),
    pickle.DICT: Machine.dict_to_mark,
    pickle.SETITEM: Machine.set_item,
    pickle.SETITEMS: Machine.set_items_to_mark,
    pickle.EMPTY_SET: lambda machine, at: machine.collect(set(), at),
    pickle.ADDITEMS: Machine.add_items,
    pickle.FROZENSET: Machine.frozenset_to_mark,
    pickle.BINPUT: Machine.binput,
    pickle.LONG_BINPUT: Machine.long_binput,
    pickle.BINGET: Machine.binget,
    pickle.LONG_BINGET: Machine.long_binget,
    pickle.GLOBAL: Machine.global_name,
    pickle.STACK_GLOBAL: Machine.stack_global,
    pickle.REDUCE: Machine.reduce,
    pickle.NEWOBJ: Machine.newobj,
    pickle.BUILD: Machine.build,
    pickle.FRAME: Machine.frame,
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
