"""The judge finds what a bucket that errs would do."""

import os
import random
from pathlib import Path

import pytest

from tests.limits.judge import Allowance, Use, Witness, arrived, delays_us, excess, most_within, quiet_us, utilisation

S = 1_000_000
TEN_A_SECOND = Allowance(10, S, 5)


def spaced(number: int, *, every_us: int, since_us: int = 0) -> list[Use]:
    return [Use(since_us + n * every_us) for n in range(number)]


FULL = [*(Use(0) for _ in range(4)), *spaced(200, every_us=S // 10)]
"""All that the bucket allows: the burst, of which the first spaced one is part, and then the rate."""


def test_all_that_is_allowed_is_no_excess() -> None:
    assert excess(FULL, TEN_A_SECOND) == 0
    assert excess([], TEN_A_SECOND) < 0


@pytest.mark.parametrize("where", [0, 1, 50_001, 3 * S, 19_900_000])
def test_one_use_more_anywhere_is_seen(where: int) -> None:
    assert excess([*FULL, Use(where)], TEN_A_SECOND) > 0


def test_one_that_came_a_microsecond_early_is_seen() -> None:
    early = [use if use.at_us != 7 * S else Use(7 * S - 1) for use in FULL]
    assert excess(early, TEN_A_SECOND) == pytest.approx(1e-5)
    assert excess(early, TEN_A_SECOND, tolerance_us=1) == 0


def test_a_drift_of_a_thousandth_is_seen_in_the_long_run() -> None:
    """No short stretch shows it."""
    fast = [Use(n * 99_900) for n in range(6000)]
    assert excess(fast[:1000], TEN_A_SECOND) < 0
    assert excess(fast, TEN_A_SECOND) > 1


def test_what_costs_more_counts_more() -> None:
    tokens = Allowance(1000, S, 500)
    assert excess([Use(0, 500), Use(S // 2, 500), Use(S, 500)], tokens) == 0
    assert excess([Use(0, 500), Use(S // 2, 500), Use(S, 501)], tokens) == 1


def test_a_second_burst_later_on_is_seen() -> None:
    """As from a bucket whose key expired too early, or that a restart has filled again."""
    assert excess([*FULL, *(Use(10 * S + n) for n in range(5))], TEN_A_SECOND) == pytest.approx(5, abs=0.01)


def test_the_worst_stretch_is_that_of_all_pairs() -> None:
    chance = random.Random(4)
    for _ in range(50):
        uses = sorted(Use(chance.randrange(5 * S), chance.randint(1, 3)) for _ in range(40))
        slow = max(
            sum(use.cost for use in uses[i : j + 1]) - TEN_A_SECOND.in_time(uses[j].at_us - uses[i].at_us)
            for i in range(len(uses))
            for j in range(i, len(uses))
        )
        assert excess(uses, TEN_A_SECOND) == pytest.approx(slow - TEN_A_SECOND.burst)


def test_a_window_is_counted_at_each_phase() -> None:
    assert most_within(spaced(10, every_us=S // 10), S) == 10
    assert most_within(spaced(11, every_us=S // 10), S) == 10, "the first is out when the eleventh comes"
    assert most_within([Use(0), *(Use(900_000, 2), Use(999_999))], S) == 4


def test_use_of_the_middle_counts_nothing_else() -> None:
    uses = [*(Use(0) for _ in range(100)), *spaced(50, every_us=S // 5)]
    assert utilisation(uses, TEN_A_SECOND, 2 * S, 8 * S) == pytest.approx(0.5)


def test_the_longest_quiet_is_found_at_the_edges_too() -> None:
    uses = [Use(3 * S), Use(4 * S)]
    assert quiet_us(uses, 0, 5 * S) == 3 * S
    assert quiet_us(uses, 2 * S, 9 * S) == 5 * S


def test_a_request_that_nobody_granted_is_named() -> None:
    grants = [Use(10, caller="1.1"), Use(20, caller="1.2")]
    assert delays_us(grants, [Use(70, caller="1.2"), Use(15, caller="1.1")]) == [5, 50]
    with pytest.raises(ValueError, match=r"1 requests without a grant: \['1.3'\]"):
        delays_us(grants, [Use(70, caller="1.3")])


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    note = Witness(tmp_path).pen()
    note(Use(2, 3, "a.1"))
    note(Use(1, 1, "a.2"))
    assert Witness(tmp_path).grants() == [Use(1, 1, "a.2"), Use(2, 3, "a.1")]
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}.grants"]


def test_a_log_is_read_as_arrivals() -> None:
    entry = {"time": 1.5, "cost": 7, "caller": None, "status": 429}
    assert arrived([entry]) == [Use(1_500_000, 7, "", 429)]
