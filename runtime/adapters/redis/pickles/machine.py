"""An unpickler for what is not proven: its only classes are a table, and it counts what it does.

Classes that an application has vouched for (`Admitted`) are called as any unpickler calls them: by their names, with
whatever arguments and state the body has.
"""

# `type(x) is list` tells pyright nothing of the members, and a cast would cost time for each value that is read.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import tzinfo
from itertools import repeat
from struct import unpack_from
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Final, Self, TypeGuard
from uuid import UUID

from runtime.adapters.redis.pickles.constructors import (
    CONSTRUCTORS,
    UUID_CLASS,
    ZONE,
    ZONE_INFO_CLASS,
    Constructor,
    fill_namespace,
    fill_uuid,
    remote_error,
    wrong_arguments,
)
from runtime.adapters.redis.pickles.proof import MEMOIZE, SHORT_BINUNICODE, STOP, after_string
from runtime.adapters.redis.pickles.values import (
    CONTAINERS,
    LEAVES,
    LOOK_EVERY,
    MAX_COLLISIONS,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_KEY_NODES,
    MAX_KEY_PAIRS,
    MAX_NODES,
    MAX_OPCODES,
    MAX_WORK_US,
    NOT_LISTED,
    Admitted,
    RemoteError,
    Stub,
    Undecodable,
    is_leaf,
    refuse,
    too_many_values,
)

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

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
        "_key_pairs",
        "_made",
        "_tallies",
        "_unbuilt",
        "_work_us",
        "data",
        "marks",
        "memo",
        "others",
        "stack",
        "zones",
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
        self.zones: dict[str, ZoneInfo] = {}  # each is read from its file once
        self._unbuilt: dict[int, UUID] = {}
        self._made = 0
        self._copied = 0
        self._work_us = 0
        self._key_nodes = 0
        self._key_pairs = 0
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

    def count_work(self, us: int) -> None:
        """Call it before what takes that many microseconds, roughly, of any machine of these years."""
        self._work_us += us
        if self._work_us > MAX_WORK_US:
            refuse("its values take too long to make")

    def admit_keys(self, keys: Collection[object], target: Collection[object] = ()) -> None:
        """Refuse keys that are costly to hash, or to tell from others in `target`. Call it before they are hashed."""
        if _CHEAP_KEYS.issuperset(map(type, keys)):
            return
        # Small integers with hash values of their own can be made to try the same places of a table, one after another.
        self._key_pairs += len(keys) * (len(target) + len(keys) // 2)
        if self._key_pairs > MAX_KEY_PAIRS:
            refuse("it has too many keys that are no text")
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
        if not (type(target) is list or type(target) is deque):
            refuse("it appends to what is no list")
        target.extend(items)
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
        if not (type(target) is dict or type(target) is OrderedDict or type(target) is defaultdict):
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
        if name == "getattr" and module in ("builtins", "__builtin__"):
            return _GETATTR
        if self._admitted and type(module) is str and type(name) is str:
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
        if type(constructor) is not Constructor or type(args) is not tuple:
            refuse("it calls what is no class")
        return self.collect(constructor.make(self, args), at)

    def guest(self, made: object) -> object:
        if type(made) not in LEAVES and type(made) not in CONTAINERS:
            self.others.add(type(made))
        return made

    def newobj(self, at: int) -> int:
        args, constructor = self.stack.pop(), self.stack.pop()
        if type(constructor) is _Guest and isinstance(constructor.kind, type) and type(args) is tuple:
            kind: type[object] = constructor.kind
            return self.collect(self.guest(kind.__new__(kind, *args)), at)
        if constructor is not UUID_CLASS or args != ():
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
        if type(target) is SimpleNamespace:
            fill_namespace(self, target, state)
            return at
        blank = self._unbuilt.pop(id(target), None)
        if blank is None:
            refuse("it sets attributes")
        fill_uuid(blank, state)
        return at


# Their hashes are keyed with a secret of the process, or shared by few values.
_CHEAP_KEYS: Final[frozenset[type]] = frozenset({NoneType, bool, float, str, bytes})
_TOO_WIDE: Final = 10**MAX_DIGITS
_SLOW_TO_HASH: Final = 32  # times as slow as others is a Fraction


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
        elif not is_leaf(type(item)):
            refuse("it has a key that is no plain value")
        elif type(item).__module__ == "fractions":
            nodes += _SLOW_TO_HASH
    return nodes


# What stands for classes


_LONGEST_NAME: Final = 200


class _Guest(Stub):
    """What stands on the stack for a class that was vouched for."""

    __slots__ = ("kind",)

    def __init__(self, kind: Callable[..., object]) -> None:
        self.kind = kind


_GETATTR: Final = object()


def _attribute(args: object) -> _Guest | Constructor:
    """What ZoneInfo, or a class that was vouched for, makes its objects with: `getattr(ZoneInfo, "_unpickle")`."""
    match args:
        case (Constructor() as known, "_unpickle") if known is ZONE_INFO_CLASS:
            return ZONE
        case (_Guest() as guest, str() as name):
            return _Guest(_own_attribute(guest.kind, name))
        case _:
            raise Undecodable("it takes an attribute of what is no class on the list")


def _own_attribute(kind: Callable[..., object], name: str) -> Callable[..., object]:
    """A class method of a class, or a class inside it: all that picklers take from one.

    Any attribute else, above all those that each class has from `object` and `type`, is a way out of it: by
    `__base__.__getattribute__` and `__globals__` to every function there is.
    """
    if kind is _StandIn:
        return kind
    found = getattr(kind, name) if isinstance(kind, type) and not name.startswith("__") else None
    if not _is_own(found, kind, name):
        refuse("it takes an attribute that is no class method of a class on the list")
    return found


def _is_own(found: object, kind: Callable[..., object], name: str) -> TypeGuard[Callable[..., object]]:
    if isinstance(found, type):
        return (found.__module__, found.__qualname__) == (kind.__module__, f"{kind.__qualname__}.{name}")
    return callable(found) and getattr(found, "__self__", None) is kind and not hasattr(type, name)


class _StandIn(tzinfo):
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
            wrong_arguments()
        for key, value in part.items():
            object.__setattr__(target, key, value)


def _constructor(module: object, name: object, any_error: bool) -> Constructor:
    if type(module) is str and type(name) is str:
        found = CONSTRUCTORS.get((module, name))
        if found is not None:
            return found
        dotted = f"{module}.{name}"
        if any_error and len(dotted) <= _LONGEST_NAME and all(part.isidentifier() for part in dotted.split(".")):
            return remote_error(dotted)
    raise Undecodable(NOT_LISTED)


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
