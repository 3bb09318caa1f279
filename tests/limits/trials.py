"""Processes that all want tokens of one bucket, and what may happen to them: no stretch is over what is promised.

The grants are judged by the server's clock, exactly; the arrivals by the stand-in's, which enforces the limit itself.
K5.5 of the campaign makes these trials. Each asserts what must be, and gives what was seen.
"""

import signal
from dataclasses import replace
from pathlib import Path

from tests.limits.campaign import CLOSE_S, TOLERANCE_S, WHOLE, Course, S, Seen, crew
from tests.limits.judge import excess, quiet_us, utilisation
from tests.servers import Server

LEAST_USED = 0.95
REFUSED_FOR_S = 2
EARLY_US = 250_000
"""Grants may be given so long before their time (`take.lua`): a store that forgets forgets those too."""


def assert_kept(seen: Seen) -> None:
    assert seen.over <= 0, "more was granted than flowed in"
    assert seen.delay_us(0.0) >= -CLOSE_S * S, "a request came before its grant"


def in_calm_all_is_used_and_nothing_is_refused(server: Server, folder: Path, course: Course) -> Seen:
    with crew(server.tcp_url, folder, course) as at_work:
        seen = at_work.finish()
    assert_kept(seen)
    assert seen.refused == 0, f"{seen.refused} requests were refused"
    assert seen.arrivals_over() <= 0, f"{seen.arrivals_over():+.2f} too many have arrived"
    assert seen.used >= LEAST_USED, f"used: {seen.used:.1%}"
    assert seen.delay_us(0.5) <= CLOSE_S * S, f"half of them came later than {CLOSE_S:g} s after their grant"
    return seen


def killed_takers_cost_no_more_than_what_they_held(server: Server, folder: Path, course: Course) -> Seen:
    with crew(server.tcp_url, folder, course) as at_work:
        kills = 0
        while (at_s := 2.0 * (kills + 1)) < at_work.course.length_s:
            at_work.work_until(at_s)
            at_work.takers[kills % len(at_work.takers)].replace()
            kills += 1
        seen = at_work.finish()
    assert kills >= 3, "too few were killed"
    assert_kept(seen)
    assert seen.refused == 0, f"{seen.refused} requests were refused"
    assert seen.used >= LEAST_USED, f"used: {seen.used:.1%}"
    return seen


def a_storm_of_refusals_stops_all_and_is_released_one_by_one(server: Server, folder: Path, course: Course) -> Seen:
    """The provider refuses for some seconds, each time for two: one comes then, and the others after it."""
    storm_s = 5.0 if course == WHOLE else 1.5
    with crew(server.tcp_url, folder, course) as at_work:
        at_work.work_until(2)
        at_work.web.fault({"status": 429, "times": None, "retry_after": REFUSED_FOR_S})
        at_work.work_until(2 + storm_s)
        at_work.web.mend()
        seen = at_work.finish()
    assert_kept(seen)
    tolerance_us = round(TOLERANCE_S * S)
    refusals = [use.at_us for use in seen.arrivals if use.status == 429]
    rounds = round(storm_s // REFUSED_FOR_S) + 1
    # Those on their way when it begins, and after each release who comes before its first refusal is known.
    most = rounds * (1 + seen.course.allowed.in_time(tolerance_us))
    assert len(refusals) <= most, f"{len(refusals)} refusals, and not {most:g}"
    for at_us in (refusals[0], refusals[-1]):
        stop_us = at_us + REFUSED_FOR_S * S
        assert quiet_us(seen.arrivals, at_us, stop_us) >= REFUSED_FOR_S * S - tolerance_us, "not all have stopped"
        released = [use for use in seen.arrivals if use.at_us >= stop_us]
        assert released, "nobody was let go"
        assert excess(released[:50], replace(seen.course.allowed, burst=1), tolerance_us) <= 0, "a stampede"
    return seen


def a_killed_store_that_keeps_its_data_grants_nothing_twice(server: Server, folder: Path, course: Course) -> Seen:
    with crew(server.tcp_url, folder, course) as at_work:
        for at_s in (6.0, 12.0):
            at_work.work_until(at_s)
            server.kill()
            server.start()
        seen = at_work.finish()
    assert_kept(seen)
    assert seen.refused == 0, f"{seen.refused} requests were refused"
    assert seen.used >= LEAST_USED, f"used: {seen.used:.1%}"
    return seen


def a_store_that_forgets_grants_one_burst_more(server: Server, folder: Path, course: Course) -> Seen:
    """What was used is forgotten, so the bucket is full again: a burst for each time, and what was granted ahead."""
    at_s = 10.0
    with crew(server.tcp_url, folder, course) as at_work:
        at_work.work_until(at_s)
        server.kill()
        server.start()
        seen = at_work.finish()
    more = seen.course.burst + seen.course.allowed.in_time(EARLY_US)
    assert seen.over <= more, f"{seen.over:+.2f} more than flowed in"
    restarted_us = seen.began_us + round(at_s * S)
    before = [use for use in seen.grants if use.at_us < restarted_us]
    after = [use for use in seen.grants if use.at_us > restarted_us + S]
    for part in (before, after):
        assert excess(part, seen.course.allowed) <= 0, "more was granted than flowed in, before the restart or after it"
    return seen


def a_taker_that_stands_still_holds_nobody_up(server: Server, folder: Path, course: Course) -> Seen:
    """For three seconds. What it was granted before comes after them; the rest it asks for anew."""
    with crew(server.tcp_url, folder, course) as at_work:
        at_work.work_until(5)
        at_work.takers[0].send(signal.SIGSTOP)
        at_work.work_until(8)
        at_work.takers[0].send(signal.SIGCONT)
        seen = at_work.finish()
    assert_kept(seen)
    meanwhile = (seen.began_us + 6_500_000, seen.began_us + 8 * S)
    assert utilisation(seen.grants, seen.course.allowed, *meanwhile) >= LEAST_USED, "the others were held up"
    assert seen.used >= LEAST_USED, f"used: {seen.used:.1%}"
    assert seen.refused <= seen.course.takers, f"{seen.refused} requests were refused"
    # Who stood still between its grant and its request sends it late; of each taker there can be one.
    assert seen.arrivals_over() <= seen.course.takers, f"{seen.arrivals_over():+.2f} too many have arrived"
    return seen
