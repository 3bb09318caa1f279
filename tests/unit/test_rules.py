"""Rules of limits: as they are declared, and as operators change them."""

from __future__ import annotations

import pytest

from runtime.core.limits import Bucket, Rule, changed, parse_rate

HUNDRED_THOUSAND_A_SECOND = Bucket("openai", "100000/s").rule


@pytest.mark.parametrize(
    ("rate", "burst", "becomes"),
    [
        ("60/m", None, "1/s, burst 10"),
        (None, 3, "500/m, burst 3"),
        ("10/30s", 1, "20/m, burst 1"),
        ("7/d", 7, "7/d, burst 7"),
    ],
)
def test_what_is_not_given_stays_as_it_was(rate: str | None, burst: int | None, becomes: str) -> None:
    its = Bucket("openai.requests", "500/m", burst=10).rule
    assert str(changed(its, (rate and parse_rate(rate)) or None, burst)) == becomes


def test_of_a_rate_with_a_period_below_a_millisecond_the_burst_can_be_changed() -> None:
    assert HUNDRED_THOUSAND_A_SECOND.period_us < 1000
    assert changed(HUNDRED_THOUSAND_A_SECOND, None, 5) == Rule(1, 10, 5)


@pytest.mark.parametrize(
    ("rate", "burst", "why"),
    [
        ("0/m", None, "the rate is 0, and must be a whole number from 1"),
        ("5/0s", None, "its period is 0 ms, and must be from a millisecond to a year"),
        (None, 0, "burst is 0, and must be a whole number from 1"),
        (None, -3, "burst is -3, and must be a whole number from 1"),
        (None, 10**15, "cannot be counted exactly"),
        ("999999999999999/7d", 1, "cannot be counted exactly"),
    ],
)
def test_a_change_is_held_to_the_rules_of_a_declaration(rate: str | None, burst: int | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        changed(Rule(1, 1_000_000, 1), (rate and parse_rate(rate)) or None, burst)
