"""Lengths of time as people write and read them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.span import Span, seconds, spell

UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("written", "length_s"),
    [
        ("500ms", 0.5),
        ("15s", 15),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 7d ", 604800),
        ("1.5h", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("0s", 0),
        ("0", 0),
        ("90", 90),
        ("0.25", 0.25),
        (90, 90),
        (0.25, 0.25),
        (0, 0),
        (timedelta(minutes=2), 120),
        (timedelta(0), 0),
    ],
)
def test_a_length_of_time_is_read_as_it_is_meant(written: Span, length_s: float) -> None:
    assert seconds(written) == pytest.approx(length_s)


@pytest.mark.parametrize(
    "written", ["", " ", "5 minutes", "m", "5x", "-5s", "5s-", "1e3", "1:30", "5m!", "s5", "inf", "nan"]
)
def test_a_text_that_is_no_length_of_time_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValueError, match="is not a length of time: write for example"):
        seconds(written)


@pytest.mark.parametrize("written", [-1, -0.001, math.inf, -math.inf, math.nan, timedelta(seconds=-1), "9" * 400])
def test_a_length_of_time_is_finite_and_not_negative(written: Span) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        seconds(written)


@pytest.mark.parametrize("written", [None, True, False, [], b"5s", 1j, object()])
def test_anything_else_is_of_the_wrong_type(written: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(written).__name__}"):
        seconds(written)  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(sorted(UNITS_S)), st.integers(0, 10**6), min_size=1))
def test_parts_add_up(parts: dict[str, int]) -> None:
    written = "".join(f"{number}{unit}" for unit, number in parts.items())
    assert seconds(written) == pytest.approx(sum(number * UNITS_S[unit] for unit, number in parts.items()))


@given(st.text(max_size=20))
def test_no_text_is_read_as_anything_but_a_length_of_time(text: str) -> None:
    try:
        length_s = seconds(text)
    except ValueError:
        return
    assert 0 <= length_s < math.inf


@pytest.mark.parametrize(
    ("length_s", "said"),
    [
        (0, "0 ms"),
        (0.3, "300 ms"),
        (0.9996, "1 s"),
        (45, "45 s"),
        (59.9, "59.9 s"),
        (60, "1 m"),
        (90, "1 m 30 s"),
        (5400, "1 h 30 m"),
        (86400, "1 d"),
        (93784.4, "1 d 2 h 3 m 4 s"),
    ],
)
def test_a_length_of_time_is_said_as_a_person_would(length_s: float, said: str) -> None:
    assert spell(length_s) == said


@given(st.integers(60, 10**8))
def test_what_is_said_can_be_read_again(whole_s: int) -> None:
    assert seconds(spell(whole_s)) == whole_s


@given(st.floats(0, 10**8))
def test_something_is_said_of_every_length(length_s: float) -> None:
    assert spell(length_s)
