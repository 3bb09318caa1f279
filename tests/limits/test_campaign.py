"""Processes that all want tokens of one bucket, and what may happen to them: no stretch is over what is promised.

The grants are judged by the server's clock, exactly; the arrivals by the stand-in's, which enforces the limit itself.
`make limits` runs all of it, with eight processes for twenty seconds each; `make test` a short form of some.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.limits.campaign import CLOSE_S, TOLERANCE_S, S, Seen, course, crew
from tests.limits.judge import excess, quiet_us, utilisation
from tests.servers import Server

WHOLE = os.environ.get("RUNTIME_TEST_LIMITS") == "all"
only_in_the_whole = pytest.mark.skipif(not WHOLE, reason="make limits")
LEAST_USED = 0.95
REFUSED_FOR_S = 2
EARLY_US = 250_000
"""Grants may be given so long before their time (`take.lua`): a store that forgets forgets those too."""


def assert_kept(seen: Seen) -> None:
    print(f"\n{seen}")
    assert seen.over <= 0, "more was granted than flowed in"
    assert seen.delay_us(0.0) >= -CLOSE_S * S, "a request came before its grant"


def test_in_calm_all_is_used_and_nothing_is_refused(redis_url: str, tmp_path: Path) -> None:
    with crew(redis_url, tmp_path, course()) as at_work:
        seen = at_work.finish()
    assert_kept(seen)
    assert seen.refused == 0
    assert seen.arrivals_over() <= 0
    assert seen.used >= LEAST_USED
    assert seen.delay_us(0.5) <= CLOSE_S * S


def test_killed_takers_cost_no_more_than_what_they_held(redis_url: str, tmp_path: Path) -> None:
    with crew(redis_url, tmp_path, course()) as at_work:
        kills = 0
        while (at_s := 2.0 * (kills + 1)) < at_work.course.length_s:
            at_work.work_until(at_s)
            at_work.takers[kills % len(at_work.takers)].replace()
            kills += 1
        seen = at_work.finish()
    assert kills >= 3
    assert_kept(seen)
    assert seen.refused == 0
    assert seen.used >= LEAST_USED


def test_a_storm_of_refusals_stops_all_and_is_released_one_by_one(redis_url: str, tmp_path: Path) -> None:
    """The provider refuses for some seconds, each time for two: one comes then, and the others after it."""
    storm_s = 5.0 if WHOLE else 1.5
    with crew(redis_url, tmp_path, course()) as at_work:
        at_work.work_until(2)
        at_work.web.fault({"status": 429, "times": None, "retry_after": REFUSED_FOR_S})
        at_work.work_until(2 + storm_s)
        at_work.web.mend()
        seen = at_work.finish()
    assert_kept(seen)
    tolerance_us = round(TOLERANCE_S * S)
    refusals = [use.at_us for use in seen.arrivals if use.status == 429]
    rounds = round(storm_s // REFUSED_FOR_S) + 1
    print(f"{len(refusals)} refusals, the last {(refusals[-1] - refusals[0]) / 1000:.0f} ms after the first")
    # Those on their way when it begins, and after each release who comes before its first refusal is known.
    assert len(refusals) <= rounds * (1 + seen.course.allowed.in_time(tolerance_us))
    for at_us in (refusals[0], refusals[-1]):
        stop_us = at_us + REFUSED_FOR_S * S
        assert quiet_us(seen.arrivals, at_us, stop_us) >= REFUSED_FOR_S * S - tolerance_us, "not all have stopped"
        released = [use for use in seen.arrivals if use.at_us >= stop_us]
        assert released
        assert excess(released[:50], replace(seen.course.allowed, burst=1), tolerance_us) <= 0, "a stampede"


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "data"
    folder.mkdir()
    with Server(folder) as server:
        yield server


@only_in_the_whole
def test_a_killed_store_that_keeps_its_data_grants_nothing_twice(durable: Server, tmp_path: Path) -> None:
    with crew(durable.tcp_url, tmp_path, course()) as at_work:
        for at_s in (6.0, 12.0):
            at_work.work_until(at_s)
            durable.kill()
            durable.start()
        seen = at_work.finish()
    assert_kept(seen)
    assert seen.refused == 0
    assert seen.used >= LEAST_USED


@only_in_the_whole
def test_a_store_that_forgets_grants_one_burst_more(server: Server, redis_url: str, tmp_path: Path) -> None:
    """What was used is forgotten, so the bucket is full again: a burst for each time, and what was granted ahead."""
    at_s = 10.0
    with crew(redis_url, tmp_path, course()) as at_work:
        at_work.work_until(at_s)
        server.kill()
        server.start()
        seen = at_work.finish()
    print(f"\n{seen}")
    more = seen.course.burst + seen.course.allowed.in_time(EARLY_US)
    assert seen.over <= more
    restarted_us = seen.began_us + round(at_s * S)
    before = [use for use in seen.grants if use.at_us < restarted_us]
    after = [use for use in seen.grants if use.at_us > restarted_us + S]
    for part in (before, after):
        assert excess(part, seen.course.allowed) <= 0


@only_in_the_whole
def test_a_taker_that_stands_still_holds_nobody_up(redis_url: str, tmp_path: Path) -> None:
    """For three seconds. What it was granted before comes after them; the rest it asks for anew."""
    with crew(redis_url, tmp_path, course()) as at_work:
        at_work.work_until(5)
        at_work.takers[0].send(signal.SIGSTOP)
        at_work.work_until(8)
        at_work.takers[0].send(signal.SIGCONT)
        seen = at_work.finish()
    assert_kept(seen)
    meanwhile = (seen.began_us + 6_500_000, seen.began_us + 8 * S)
    assert utilisation(seen.grants, seen.course.allowed, *meanwhile) >= LEAST_USED
    assert seen.used >= LEAST_USED
    assert seen.refused <= seen.course.takers
    # Who stood still between its grant and its request sends it late; of each taker there can be one.
    assert seen.arrivals_over() <= seen.course.takers
