"""How often, and after how long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.retry import Retry

CHANCES = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10**6), CHANCES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_wait_is_a_part_of_a_doubling_time_and_never_above_its_cap(
    failures: int, chance: float, base_s: float, max_s: float
) -> None:
    delay_s = Retry(3, base=base_s, max=max_s).delay_s(failures, chance)
    assert 0 <= delay_s <= max_s
    assert delay_s <= base_s * 2.0 ** min(failures - 1, 100)


@given(st.integers(1, 50))
def test_the_whole_range_is_used(failures: int) -> None:
    retry = Retry()
    most_s = min(300.0, 2.0**failures)
    assert retry.delay_s(failures, 0.0) == 0
    assert retry.delay_s(failures, 0.5) == most_s / 2
    assert retry.delay_s(failures, 0.999_999) == pytest.approx(most_s, rel=1e-5)


def test_by_default_there_are_three_attempts_and_two_seconds_that_double_to_five_minutes() -> None:
    retry = Retry()
    assert retry.attempts == 3
    assert [retry.delay_s(n, 0.5) * 2 for n in range(1, 10)] == [2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_spans_are_taken_as_people_write_them() -> None:
    retry = Retry(5, base="500ms", max="1h")
    assert (retry.base_s, retry.max_s) == (0.5, 3600)
    assert repr(retry) == "Retry(5, base=0.5, max=3600)"


@pytest.mark.parametrize("attempts", [0, -1, 1.0, "3", None, True])
def test_attempts_are_a_whole_number_from_one(attempts: Any) -> None:
    with pytest.raises(ValueError, match="attempts is a whole number from 1"):
        Retry(attempts)


@pytest.mark.parametrize("options", [{"base": "soon"}, {"max": -1}, {"base": float("inf")}])
def test_a_wait_that_is_no_length_of_time_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="length of time"):
        Retry(**options)


@pytest.mark.parametrize("on", [["ValueError"], "ValueError", [ValueError], ValueError("an instance"), None, int])
def test_what_is_retried_are_exception_classes(on: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Retry(on=on)
