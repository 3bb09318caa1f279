"""Pickles with classes that an application has vouched for, and the names of those for which nobody has."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from arq.worker import JobExecutionFailed
from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.redis import pickles, wire
from runtime.adapters.redis.pickles import Undecodable
from runtime.arq import codec
from runtime.core.errors import HandlerInvalid
from runtime.core.job import Call


@dataclass
class Item:
    name: str
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    amount: Decimal


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Struct(msgspec.Struct):
    n: int


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.x == self.x


class Error(Exception):
    pass


class Ordered(list[int]):
    pass


def ran(what: str) -> str:
    raise AssertionError(f"{what} was run")


class Hostile:
    def __reduce__(self) -> Any:
        return ran, ("a reduction",)


VALUES: list[object] = [
    Item("a", [Item("b"), {"k": Item("c")}]),
    Frozen("a", Decimal("1.5")),
    Colour.RED,
    {Colour.RED: 1, "x": {Colour.RED}},
    Point(1, 2),
    Struct(7),
    Slotted(3),
    [Item("a"), datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))],
    [UUID(int=5), Item("a", [datetime(2026, 1, 1, tzinfo=UTC)])],
]
TYPES = codec.admitted(
    [Item, Frozen, Colour, Point, Struct, Slotted, Error, f"{__name__}.Ordered", "zoneinfo.ZoneInfo"]
)


@dataclass
class Maker:
    """One that is made by a method, as ZoneInfo is, and has another inside it."""

    @dataclass
    class Inner:
        pass

    path = Path
    maker = Item("a")

    def doubled(self) -> None: ...

    @classmethod
    def made(cls) -> Maker:
        return cls()

    def __reduce__(self) -> Any:
        return Maker.made, ()


MAKER = codec.admitted([Maker, Maker.Inner])


def loads(value: object, protocol: int, admitted: pickles.Admitted = TYPES) -> object:
    return pickles.loads(pickle.dumps(value, protocol), admitted=admitted)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_is_vouched_for_is_read_as_it_was_written(value: object, protocol: int) -> None:
    found = loads(value, protocol)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_without_it_is_refused_and_its_name_can_be_had(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    with pytest.raises(Undecodable):
        pickles.loads(data)
    names = pickles.strangers(data)
    assert names
    assert all(name.startswith(__name__) for name in names)
    assert pickles.strangers(data, TYPES) == []


def test_an_exception_keeps_its_arguments() -> None:
    found = loads([Error("a", 1)], 4)
    assert isinstance(found, list)
    assert isinstance(found[0], Error)
    assert found[0].args == ("a", 1)


def test_what_is_not_vouched_for_is_not_run_beside_what_is() -> None:
    for value in ([Item("a"), Hostile()], Item("a", [Hostile()]), {"k": (Hostile(), Item("a"))}):
        with pytest.raises(Undecodable, match="not on the list"):
            loads(value, 4)
    assert pickles.strangers(pickle.dumps([Item("a"), Hostile()], 4), TYPES) == [f"{__name__}.ran"]


def test_attributes_are_taken_of_nothing_else() -> None:
    class Reaches:
        def __reduce__(self) -> Any:
            return getattr, (Hostile.__reduce__, "__globals__")

    for value in (Reaches(), [Item("a"), Reaches()]):
        with pytest.raises(Undecodable):
            loads(value, 4)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def attribute(of: bytes, name: str) -> bytes:
    return b"cbuiltins\ngetattr\n" + of + short(name) + b"\x86R"


def way_out(kind: bytes, bases: int, code: str) -> bytes:
    """A body that runs any code, where it may take any attribute of a class: from `object` to `eval`."""
    base = kind
    for _ in range(bases):
        base = attribute(base, "__base__")
    look_up = attribute(base, "__getattribute__")

    def looked_up(of: bytes, name: str) -> bytes:
        return look_up + of + short(name) + b"\x86R"

    def called(function: bytes, *args: bytes) -> bytes:
        builtin = attribute(attribute(kind, "__init_subclass__"), "__class__")
        return attribute(builtin, "__call__") + b"(" + function + b"".join(args) + b"tR"

    there = looked_up(looked_up(looked_up(kind + short("a") + b"\x85R", "__init__"), "__func__"), "__globals__")
    builtins = called(looked_up(there, "get"), short("__builtins__"))
    return b"\x80\x04" + called(called(looked_up(builtins, "get"), short("eval")), short(code)) + b"."


@pytest.mark.parametrize("bases", [0, 1, 2])
def test_no_attribute_of_a_class_leads_out_of_it(bases: int, tmp_path: Path) -> None:
    evil = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    with pytest.raises(Undecodable, match="an attribute that is no class method"):
        pickles.loads(way_out(f"c{__name__}\nItem\n".encode(), bases, evil), admitted=TYPES)
    pickles.strangers(way_out(b"capp\nItem\n", bases, evil))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["__init__", "__subclasses__", "__class__", "mro", "doubled", "maker", "path", "none"])
def test_of_a_class_nothing_but_its_class_methods_and_inner_classes_can_be_had(name: str) -> None:
    with pytest.raises(Undecodable):
        pickles.loads(b"\x80\x04" + attribute(f"c{__name__}\nMaker\n".encode(), name) + b")R.", admitted=MAKER)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_class_methods_and_inner_classes_make_objects(protocol: int) -> None:
    assert loads([Maker(), Maker.Inner()], protocol, MAKER) == [Maker(), Maker.Inner()]


def test_one_that_cannot_be_read_is_refused_in_words() -> None:
    with pytest.raises(Undecodable, match=r"not a well-formed pickle \(ValueError\)"):
        pickles.loads(pickle.dumps(Colour.RED, 4).replace(b"red", b"ded"), admitted=TYPES)
    with pytest.raises(Undecodable):  # its items would be appended by its own method
        loads(Ordered([1, 2]), 4)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_mutated_bodies_raise_nothing_else(noise: bytes, at: int) -> None:
    data = pickle.dumps(VALUES[:2], 4)
    for mutated in (data[:at] + noise + data[at:], data[:at] + noise + data[at + len(noise) :]):
        for read in (partial(pickles.loads, admitted=TYPES), pickles.strangers):
            call: Callable[[bytes], object] = read
            with suppress(Undecodable):
                call(mutated)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ExceptionGroup", ("x", [])),
        ("ExceptionGroup", ("x", [1])),
        ("UnicodeDecodeError", ("x", b"", 2**70, 1, "y")),
        ("UnicodeDecodeError", ()),
        ("SyntaxError", ("x", 1)),
    ],
)
def test_an_exception_that_cannot_be_made_is_told_of_instead(name: str, args: tuple[object, ...]) -> None:
    error_of = f"cbuiltins\n{name}\n".encode() + pickle.dumps(args, 3)[2:-1] + b"R"
    fields = [short("t"), b"N", short("f"), short("work"), short("a"), error_of + b"\x85", short("k"), b"}"]
    body = b"}(" + b"".join(fields) + short("et") + b"K\x01u"
    for data in (body, b"ccollections\nCounter\n" + body + b"\x85R"):
        call = wire.decode_call(b"\x80\x04" + data + b".", codec.serializer(None, None, []))
        assert isinstance(call, Call)
        (error,) = call.args
        assert isinstance(error, JobExecutionFailed)
        assert str(error).startswith(f"{name}: ")


@pytest.mark.parametrize("types", [[1], "app.Item", 7, ["no.such.module.Item"], [Item, None]])
def test_types_that_are_none_are_refused_by_name(types: object) -> None:
    with pytest.raises(HandlerInvalid, match="runtime_types"):
        codec.admitted(types)
