"""Five hundred histories, always the same ones; `make model` plays others too."""

from __future__ import annotations

import pytest

from tests.simulation.history import play

SEEDS = 500
AT_ONCE = 50


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_whatever_befalls_workers_and_their_connections_no_invariant_breaks(first: int) -> None:
    failed = {seed: told.breaches for seed in range(first, first + AT_ONCE) if (told := play(seed)).breaches}
    assert not failed, "to see what happened: python -m tests.simulation --trace NUMBER"


def test_a_history_is_told_by_its_number_alone() -> None:
    first, other = play(7, trace=True), play(8, trace=True)
    assert play(7, trace=True) == first
    assert other.trace != first.trace
    assert first.jobs
    assert first.runs


def test_histories_have_lapses_in_them_and_jobs_that_come_back_at_once() -> None:
    told = [play(seed) for seed in range(40)]
    assert sum(one.lapses for one in told) > 20
    assert max(one.slowest_s for one in told) < 2.0
