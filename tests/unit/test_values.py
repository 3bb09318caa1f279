"""Values: what is shared by the classes that cross a boundary."""

from __future__ import annotations

from dataclasses import field, replace

import pytest

from runtime.core.values import frozen, record


@frozen
class Point:
    x: int
    y: int = 0
    note: str = field(default="", repr=False)


@frozen
class Size:
    x: int
    y: int = 0
    note: str = ""


@frozen
class One:
    x: int


@frozen
class Nothing:
    pass


@frozen
class Secret:
    x: int

    def __repr__(self) -> str:
        return "Secret()"


@record
class Seat:
    """One of many."""

    number: int
    taken_by: list[str] = field(default_factory=list)
    row: int = field(init=False)


@frozen
class Positive:
    x: int = 1

    def __post_init__(self) -> None:
        assert self.x > 0


@frozen
class Deep(Point):
    z: int = 7


def test_values_are_equal_where_all_their_fields_are() -> None:
    assert Point(1, 2) == Point(x=1, y=2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2, "a") != Point(1, 2, "b")
    assert One(1) == One(1) != One(2)
    assert Nothing() == Nothing()


def test_values_of_two_classes_are_never_equal() -> None:
    things: list[object] = [Point(1), Size(1), One(1), Nothing(), (1, 0, ""), 1, ()]
    assert [[a == b for b in things] for a in things] == [[a is b for b in things] for a in things]


def test_equal_values_are_one_key() -> None:
    assert len({Point(1, 2), Point(1, 2), Point(1, 3), One(1), One(1), Nothing(), Nothing()}) == 4


def test_a_value_that_holds_a_list_is_no_key() -> None:
    held: object = [1]
    with pytest.raises(TypeError):
        hash(replace(Point(1), x=held))  # type: ignore[arg-type]  # what an annotation does not stop


def test_a_value_shows_its_fields_but_for_those_that_are_not_to_be_shown() -> None:
    assert repr(Point(1, 2, "hidden")) == "Point(x=1, y=2)"
    assert repr(One(1)) == "One(x=1)"
    assert repr(Nothing()) == "Nothing()"
    assert repr(Secret(1)) == "Secret()"


def test_a_value_has_no_other_attributes_and_the_type_checker_holds_it_frozen() -> None:
    point = Point(1, 2)
    with pytest.raises(AttributeError):
        point.z = 3  # type: ignore[attr-defined]
    point.x = 3  # type: ignore[misc]  # refused there; a call for each field at run time would cost every job
    assert replace(point, y=4) == Point(3, 4)
    match point:
        case Point(x, y):
            assert (x, y) == (3, 2)


def test_what_makes_a_value_is_written_with_the_first_one() -> None:
    @frozen
    class Late:
        x: int
        y: int = 0

    before = Late.__init__
    assert (Late(1), Late(x=1, y=0)) == (Late(1, 0), Late(1))
    written = Late.__init__
    assert written is not before
    Late(2)
    assert Late.__init__ is written
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Late()  # type: ignore[call-arg]


def test_values_have_the_fields_of_what_they_inherit_from_and_are_checked() -> None:
    assert repr(Deep(1, z=3)) == "Deep(x=1, y=0, z=3)"
    assert Point(1).note == ""  # each class has its own
    with pytest.raises(AssertionError):
        Positive(0)


def test_a_record_changes_and_equals_itself_alone() -> None:
    seat, other = Seat(1), Seat(1)
    seat.taken_by.append("ana")
    seat.number = 2
    assert (seat.number, seat.taken_by, other.taken_by) == (2, ["ana"], [])
    assert seat != other
    assert len({seat, other}) == 2
    assert not hasattr(seat, "row")
    with pytest.raises(AttributeError):
        seat.z = 3  # type: ignore[attr-defined]
