"""Arguments at both ends: taken apart by the producer, checked, and put together again at the worker."""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Self, TypeVar
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.payload import Signature, digest, from_json, is_async, to_json
from tests.unit.annotated import Card, Later, haunted, late


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass
class Thing:
    name: str


@dataclass(frozen=True)
class Path:
    name: str
    points: list[Point] = field(default_factory=list)
    centre: Point | None = None


class Order(msgspec.Struct):
    number: int
    paid: bool = False


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model:
    """What the packing needs to know of a pydantic model."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def model_dump(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count}

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        if not isinstance(value, dict) or set(value) != {"name", "count"}:
            raise ValueError("1 validation error for Model")
        return cls(**value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


Function = Callable[..., Any]


async def takes_path(ctx: Any, path: Path) -> Path:
    return path


async def takes_order(ctx: Any, order: Order) -> Order:
    return order


async def takes_card(ctx: Any, card: Card) -> list[Card]:
    return [card]


async def takes_model(ctx: Any, model: Model) -> Model:
    return model


async def takes_maybe(ctx: Any, point: Point | None = None, colour: Colour = Colour.RED) -> None: ...


async def takes_many(ctx: Any, first: int, *rest: Point, **named: Order) -> None: ...


async def takes_keywords(ctx: Any, /, text: str, *, loud: bool = False) -> None: ...


async def takes_points(ctx: Any, *points: Point) -> None: ...


async def takes_anything(ctx: Any, one, two: Any = None, three: object = None):  # type: ignore[no-untyped-def]
    return one


async def takes_mapping(ctx: Any, points: dict[str, Point], pair: tuple[int, Point]) -> None: ...


async def takes_nothing(ctx: Any) -> None: ...


async def takes_times(ctx: Any, at: datetime, on: date, when: time, span: timedelta) -> None: ...


async def takes_exact(ctx: Any, price: Decimal, id: UUID, raw: bytes, mode: Literal["a", "b"]) -> None: ...


def there_and_back(function: Function, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the handler gets them; on the way they have to be plain."""
    signature = Signature(function)
    packed_args, packed_kwargs = signature.pack(args, kwargs)
    assert_plain([packed_args, packed_kwargs])
    unpacked_args, unpacked_kwargs = signature.unpack(packed_args, packed_kwargs)
    return unpacked_args, dict(unpacked_kwargs)


def assert_plain(value: Any) -> None:
    if isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
    elif isinstance(value, dict):
        assert_plain([*value.keys(), *value.values()])
    else:
        plain = (type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID)
        assert type(value) in plain, value


NESTED = Path("p", [Point(1), Point(2, 3)], Point(4))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (takes_path, (NESTED,)),
        (takes_path, (Path("empty"),)),
        (takes_order, (Order(7, paid=True),)),
        (takes_card, ({"question": "q", "answer": "a"},)),
        (takes_maybe, (None, Colour.BLUE)),
        (takes_maybe, (Point(1, 2),)),
        (takes_many, (1, Point(2), Point(3))),
        (takes_mapping, ({"a": Point(1)}, (1, Point(2)))),
        (takes_nothing, ()),
        (takes_times, (datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1), time(12), timedelta(hours=1))),
        (takes_exact, (Decimal("1.10"), UUID(int=7), b"\x00\xff", "a")),
        (takes_anything, (1, "2", [3])),
        (late, (Later("x"),)),
    ],
)
def test_what_annotations_describe_arrives_as_it_was_sent(function: Function, args: tuple[Any, ...]) -> None:
    assert there_and_back(function, *args) == (args, {})


def test_keyword_arguments_arrive_too() -> None:
    args, kwargs = there_and_back(takes_many, 1, other=Order(2), another=Order(3))
    assert args == (1,)
    assert kwargs == {"other": Order(2), "another": Order(3)}
    assert there_and_back(takes_keywords, text="x", loud=True) == (("x",), {"loud": True})
    assert there_and_back(takes_path, path=NESTED) == ((NESTED,), {})


def test_defaults_are_left_to_the_worker() -> None:
    assert Signature(takes_keywords).pack(("x",), {}) == (("x",), {})
    assert there_and_back(takes_maybe) == ((), {})


def test_plain_dicts_are_as_good_as_objects() -> None:
    plain = {"name": "p", "points": [{"x": 1}], "centre": None}
    assert Signature(takes_path).pack((plain,), {}) == ((plain,), {})
    assert there_and_back(takes_path, plain) == ((Path("p", [Point(1)]),), {})


def test_a_pydantic_model_is_dumped_and_validated_by_its_own_methods() -> None:
    model = Model("m", 2)
    signature = Signature(takes_model)
    assert signature.pack((model,), {}) == (({"name": "m", "count": 2},), {})
    assert there_and_back(takes_model, model) == ((model,), {})
    assert there_and_back(takes_model, {"name": "m", "count": 2}) == ((model,), {})


def test_a_pydantic_model_inside_of_something_is_dumped_and_validated_too() -> None:
    async def takes_models(ctx: Any, models: list[Model], by_name: dict[str, Model]) -> None: ...

    args = ([Model("a", 1), Model("b", 2)], {"c": Model("c", 3)})
    assert there_and_back(takes_models, *args) == (args, {})


def test_what_a_pydantic_model_refuses_is_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match="validation error for Model"):
        Signature(takes_model).pack(({"name": "m"},), {})


def test_what_does_not_fit_is_not_quoted() -> None:
    async def takes_colours(ctx: Any, colours: list[Colour], word: Literal["a"]) -> None: ...

    for args in ((["canary"], "a"), ([], "canary - at `$`")):
        with pytest.raises(ValueError, match=r"argument '\w+': Invalid enum value( - at `.+`)?$") as refusal:
            Signature(takes_colours).unpack(args, {})
        assert "canary" not in str(refusal.value)


def test_what_pydantic_refuses_is_not_quoted() -> None:
    class Refusal(ValueError):
        def errors(self, **left_out: bool) -> list[dict[str, Any]]:
            assert not any(left_out.values())
            return [{"loc": ("point", 0), "msg": "Input should be a number"}]

    class Strict:
        @classmethod
        def model_validate(cls, value: object) -> Strict:
            raise Refusal(f"input_value={value}")

    async def takes_strict(ctx: Any, strict: Strict) -> None: ...

    takes_strict.__annotations__["strict"] = Strict
    with pytest.raises(ValueError, match=r"point\.0: Input should be a number") as refusal:
        Signature(takes_strict).unpack(("canary",), {})
    assert "canary" not in str(refusal.value)


def test_what_pydantic_refuses_as_a_whole_has_no_path() -> None:
    class Refusal(ValueError):
        def errors(self, **left_out: bool) -> list[dict[str, Any]]:
            return [{"loc": (), "msg": "Input should be an object"}]

    class Strict:
        @classmethod
        def model_validate(cls, value: object) -> Strict:
            raise Refusal

    async def takes_strict(ctx: Any, strict: Strict) -> None: ...

    takes_strict.__annotations__["strict"] = Strict
    with pytest.raises(ValueError, match="argument 'strict': Input should be an object"):
        Signature(takes_strict).unpack((5,), {})


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (takes_path, (), {}),
        (takes_path, (NESTED, 2), {}),
        (takes_path, (NESTED,), {"path": NESTED}),
        (takes_path, (), {"route": NESTED}),
        (takes_keywords, ("x", True), {}),
        (takes_nothing, (1,), {}),
        (takes_many, (), {"first_": Order(1)}),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_both_ends(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = Signature(function)
    for end in (signature.pack, signature.unpack):
        with pytest.raises(TypeError):
            end(args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "named"),
    [
        (takes_keywords, (5,), {}, "text"),
        (takes_keywords, ("x",), {"loud": "yes"}, "loud"),
        (takes_path, ({"points": []},), {}, "name"),
        (takes_path, ({"name": "p", "points": [{"x": "1"}]},), {}, r"points\[0\]\.x"),
        (takes_order, ({"number": 1.5},), {}, "number"),
        (takes_card, ({"question": "q"},), {}, "answer"),
        (takes_maybe, (3,), {}, "point"),
        (takes_maybe, (None, "green"), {}, "colour"),
        (takes_many, (1, {"x": "?"}), {}, "rest"),
        (takes_many, (1,), {"other": {"number": "?"}}, "named"),
        (takes_exact, (Decimal(1), UUID(int=1), b"", "c"), {}, "mode"),
        (late, ({"name": 1},), {}, "name"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused_at_both_ends_by_name(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    signature = Signature(function)
    for end in (signature.pack, signature.unpack):
        with pytest.raises(ValueError, match=named):
            end(args, kwargs)


@dataclass
class Named:
    name: str
    number: int = 0


@dataclass
class Visit:
    at: datetime
    day: date | str
    cost: Decimal | None = None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (date, "2027-01-31", date(2027, 1, 31)),
        (datetime, "2027-01-31T09:30:00Z", datetime(2027, 1, 31, 9, 30, tzinfo=UTC)),
        (datetime | None, "2027-01-31T09:30:00", datetime(2027, 1, 31, 9, 30)),
        (time, "09:30:00", time(9, 30)),
        (timedelta, "PT1H", timedelta(hours=1)),
        (UUID, "00000000-0000-0000-0000-000000000001", UUID(int=1)),
        (Decimal, "1.10", Decimal("1.10")),
        (list[date], ["2027-01-31"], [date(2027, 1, 31)]),
        (dict[date, int], {"2027-01-31": 1}, {date(2027, 1, 31): 1}),
        (Order | date, "2027-01-31", date(2027, 1, 31)),
    ],
    ids=str,
)
def test_text_that_json_has_for_it_makes_what_the_annotation_says(kind: Any, text: Any, value: Any) -> None:
    async def work(ctx: Any, value: Any) -> None: ...

    work.__annotations__.update(value=kind)
    work.__annotations__["return"] = kind
    signature = Signature(work)
    assert signature.unpack(*signature.pack((text,), {})) == ((value,), {})
    assert signature.unpack(*signature.pack((value,), {})) == ((value,), {})
    assert signature.unpack_result(text) == value


def test_text_that_makes_none_is_refused_unquoted_and_bytes_are_never_guessed_from_it() -> None:
    async def work(ctx: Any, day: date, raw: bytes = b"") -> None: ...

    work.__annotations__.update(day=date, raw=bytes)
    for args, rule in (("canary",), "RFC3339"), (("2027-01-31", "abcd"), "Expected `bytes`"), ((5,), "Expected `date`"):
        with pytest.raises(ValueError, match=rule) as refusal:
            Signature(work).pack(args, {})
        assert "canary" not in str(refusal.value)


VISIT = Visit(datetime(2027, 1, 31, tzinfo=UTC), date(2027, 1, 31), Decimal(1))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (str | date, "2027-01-31"),
        (date | str, "2027-01-31"),
        (date | str, date(2027, 1, 31)),
        (Visit, VISIT),
        (Visit, Visit(VISIT.at, "2027-01-31")),
        (Visit | None, None),
        (list[Thing | Named], [Thing("x"), Named("y", 1)]),
        (Sequence[Thing | Named], [Named("y", 1)]),
        (dict[str, Named | Thing], {"a": Thing("x"), "b": Named("y", 1)}),
        pytest.param(set[date | str], {"a", date(2027, 1, 31)}, id="a set"),
        (Thing | Named, Named("y", 1)),
        (tuple[Named | Thing, ...], (Thing("x"), Named("y", 1))),
        (tuple[Thing | Named, int], (Named("y", 1), 2)),
        (str | list[Thing | Named], "x"),
        (Named | Thing | Visit, VISIT),
    ],
    ids=str,
)
def test_unions_that_are_hard_to_tell_apart_arrive_as_they_were_sent(kind: Any, value: Any) -> None:
    async def work(ctx: Any, value: Any) -> None: ...

    work.__annotations__["value"] = kind
    assert Signature(work).unpack(*Signature(work).pack((value,), {})) == ((value,), {})


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        (Visit, {"at": "canary", "day": "x"}, "value.at"),
        (Visit, {"day": "x"}, "'at'"),
        (Visit, 5, "Expected `object`, got `int`"),
        (list[Thing | Named], [{"name": "x"}, {"name": 1}], r"value\[1\]"),
        (dict[str, Thing | Named], {"canary": {}}, "value"),
        (list[Thing | Named], "canary", "Expected `array`, got `str`"),
        (dict[str, Thing | Named], ["canary"], "Expected `object`, got `list`"),
        (tuple[Thing | Named, int], ({"name": "x"},), "Expected `array` of length 2, got 1"),
    ],
    ids=str,
)
def test_what_fits_no_part_of_them_is_refused_by_its_place(kind: Any, value: Any, named: str) -> None:
    async def work(ctx: Any, value: Any) -> None: ...

    work.__annotations__["value"] = kind
    with pytest.raises(ValueError, match=named) as refusal:
        Signature(work).pack((value,), {})
    assert "canary" not in str(refusal.value)


@dataclass
class Left:
    below: Left | Right | None = None
    n: int = 0


@dataclass
class Right:
    below: Left | Right | None = None
    n: int = 0
    m: int = 0


@pytest.mark.parametrize("leaf", [1, "canary"])
def test_a_deep_tree_of_unions_is_put_together_in_no_time(leaf: Any) -> None:
    """Each level can be either; so without care there are 2^50 ways."""

    async def work(ctx: Any, value: Left | Right) -> None: ...

    tree: dict[str, Any] = {"below": None, "n": leaf}
    for level in range(50):
        tree = {"below": tree, "n": 0} if level % 2 else {"below": tree, "n": 0, "m": 1}
    signature = Signature(work)
    if leaf != 1:
        with pytest.raises(ValueError, match="Expected `int`, got `str`"):
            signature.unpack((tree,), {})
        return
    (made,), _ = signature.unpack((tree,), {})
    for level in reversed(range(50)):
        assert type(made) is (Left if level % 2 else Right)
        made = made.below
    assert made == Left(None, 1)


def test_what_is_not_annotated_is_passed_as_it_is() -> None:
    args = ({"a": [1, (2,)]}, Ellipsis, None)
    assert Signature(takes_anything).pack(args, {}) == (args, {})
    assert Signature(takes_anything).unpack(args, {}) == (args, {})


def test_annotations_that_only_a_type_checker_knows_are_not_checked() -> None:
    signature = Signature(haunted)
    ghost = {"boo": 1}
    assert signature.pack((ghost,), {}) == ((ghost,), {})
    assert signature.unpack((ghost, 3), {}) == ((ghost, 3), {})
    assert signature.unpack_result(ghost) == ghost
    with pytest.raises(TypeError):
        signature.pack((), {})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Collection[int], [1]),
        (Sequence[int], [1]),
        (Mapping[str, int], {"a": 1}),
        (NewType("UserId", int), 1),
        (TypeVar("T"), "anything"),
        (Annotated[int, "positive"], 1),
        (str | bytes, b"raw"),
        (int | None, None),
        (set[int], {1}),
        (complex, 1j),
        (Iterable[int], [1]),
        (OrderedDict, OrderedDict(a=1)),
        (Point | Thing, Thing("x")),
    ],
    ids=str,
)
def test_every_ordinary_annotation_lets_its_values_through(kind: Any, value: Any) -> None:
    async def work(ctx: Any, value: Any) -> None: ...

    work.__annotations__["value"] = kind
    signature = Signature(work)
    assert signature.unpack(*signature.pack((value,), {})) == ((value,), {})


def test_a_thousand_arguments_are_checked_like_one() -> None:
    args, _ = Signature(takes_points).unpack(tuple({"x": n} for n in range(1000)), {})
    assert args[0] == Point(0)


def test_packing_leaves_the_callers_objects_alone() -> None:
    path = Path("p", [Point(1)])
    Signature(takes_path).pack((path,), {})
    assert path == Path("p", [Point(1)])


def test_a_signature_is_shown_as_a_producer_sees_it() -> None:
    assert "ctx" not in str(Signature(takes_keywords))
    assert "loud" in str(Signature(takes_keywords))
    assert str(Signature(takes_maybe)).endswith("-> None")


@given(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8")), st.lists(st.integers(-9, 9)))
def test_every_dataclass_arrives_as_it_was_sent(x: int, name: str, numbers: list[int]) -> None:
    path = Path(name, [Point(number) for number in numbers], Point(x))
    assert there_and_back(takes_path, path) == ((path,), {})


# Results.


@pytest.mark.parametrize(
    ("function", "value", "packed"),
    [
        (takes_path, NESTED, {"name": "p", "points": [{"x": 1, "y": 0}, {"x": 2, "y": 3}], "centre": {"x": 4, "y": 0}}),
        (takes_order, Order(1), {"number": 1, "paid": False}),
        (takes_card, [{"question": "q", "answer": "a"}], [{"question": "q", "answer": "a"}]),
        (takes_model, Model("m", 1), {"name": "m", "count": 1}),
        (late, Later("x"), {"name": "x"}),
        (takes_nothing, None, None),
    ],
)
def test_a_result_arrives_as_it_was_returned(function: Function, value: Any, packed: Any) -> None:
    signature = Signature(function)
    assert signature.pack_result(value) == packed
    assert_plain(signature.pack_result(value))
    assert signature.unpack_result(packed) == value


@pytest.mark.parametrize("value", [None, True, 7, 0.5, "text", b"raw", [1, 2], {"a": 1}])
def test_a_plain_result_is_kept_as_it_is(value: Any) -> None:
    signature = Signature(takes_anything)
    assert signature.pack_result(value) == value
    assert signature.unpack_result(value) == value


def test_a_result_that_nobody_can_take_apart_is_left_to_the_codec() -> None:
    value = object()
    assert Signature(takes_anything).pack_result(value) is value


class Unwilling(Model):
    def model_dump(self) -> dict[str, Any]:
        raise ValueError("a circular reference")


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [endless(), Unwilling("m", 1)], ids=["endless", "unwilling"])
def test_a_result_whose_taking_apart_fails_makes_no_failure_of_a_success(value: Any) -> None:
    assert Signature(takes_anything).pack_result(value) is value


def test_a_result_of_another_kind_than_announced_is_refused() -> None:
    with pytest.raises(ValueError, match="number"):
        Signature(takes_order).unpack_result({"number": "one"})


# JSON and functions.


def test_json_is_read_as_the_kind_that_is_asked_for() -> None:
    assert from_json(to_json(Point(1, 2)), Point) == Point(1, 2)
    with pytest.raises(ValueError, match=r"\$\.x"):
        from_json(b'{"x": "1"}', Point)
    with pytest.raises(ValueError, match="truncated"):
        from_json(b"{", Point)


def test_a_digest_is_as_documented_and_the_same_everywhere() -> None:
    by_hand = hashlib.sha256(b'{"day":"today","user_id":7}').hexdigest()[:32]
    assert digest({"user_id": 7, "day": "today"}) == digest({"day": "today", "user_id": 7}) == by_hand
    nested = {"a": [1, {"y": 2, "x": (3, None)}], "b": b"\x00", "c": datetime(2027, 1, 31, tzinfo=UTC), "d": {1: 2}}
    text = b'{"a":[1,{"x":[3,null],"y":2}],"b":"AA==","c":"2027-01-31T00:00:00Z","d":{"1":2}}'
    assert digest(nested) == hashlib.sha256(text).hexdigest()[:32]
    assert len({digest({"a": value}) for value in (1, 1.0, "1", True, None, [1], "\ud800")}) == 7
    members = hashlib.sha256(b'{"a":["b","c","d","e","x"]}').hexdigest()[:32]
    assert digest({"a": {"x", "e", "d", "c", "b"}}) == members, "each process has an order of its own"
    assert digest({"a": Model("x", 1)}) == digest({"a": {"count": 1, "name": "x"}}), "a default, say"
    with pytest.raises(TypeError):
        digest({"a": object()})


def test_what_can_be_awaited_is_known() -> None:
    class Callable_:
        async def __call__(self, ctx: Any) -> None: ...

    class Plain:
        def __call__(self, ctx: Any) -> None: ...

    async def generator(ctx: Any) -> Any:
        yield 1

    assert is_async(takes_nothing)
    assert is_async(Callable_())
    assert not is_async(Plain())
    assert not is_async(lambda ctx: None)
    assert not is_async(generator)
    assert not is_async(print)
