"""When occurrences are, and what is done about those that are due."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime import Concurrency, Context, HandlerInvalid, cron, every, handler
from runtime.adapters.cron import Cron, read
from runtime.adapters.cron import every as spans
from runtime.core.schedule import (
    FORGOTTEN_MS,
    GRACE_MS,
    MOST_MISSED,
    SET_BACK_MS,
    TAKEN_OVER_MS,
    Declared,
    Every,
    Misfire,
    Move,
    Schedule,
    Standing,
    Timetable,
    decide,
    declared,
    occurrences,
)
from runtime.registry import schedules

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
HOWE = "Australia/Lord_Howe"
NOON = 1_795_000_000_000 // DAY * DAY + 12 * HOUR
HOURLY = Schedule("report", "q", Every(HOUR))


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def after(expression: str, zone: str, moment: str, count: int = 1) -> list[str]:
    """The occurrences after a moment, as clocks of the zone show them."""
    found = itertools.islice(occurrences(Cron(expression, zone), ms(moment)), count)
    return [datetime.fromtimestamp(one / 1000, ZoneInfo(zone)).isoformat(timespec="minutes") for one in found]


# Summer time.


@pytest.mark.parametrize(
    ("expression", "zone", "moment", "found"),
    [
        # Spring leaves 02:00 to 03:00 out.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00Z", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:20Z", ["2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00"]),
        ("0 * * * *", "America/New_York", "2026-03-08T06:30Z", ["2026-03-08T03:00-04:00", "2026-03-08T04:00-04:00"]),
        # Half an hour of it, at Lord Howe.
        ("15 2 * * *", HOWE, "2026-10-03T00:00Z", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
        # Autumn has 02:00 to 03:00 twice.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:15Z", ["2026-10-26T02:30+01:00", "2026-10-27T02:30+01:00"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00Z", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-25T00:30Z", ["2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:10Z", ["2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00"]),
        ("45 1 * * *", HOWE, "2026-04-04T00:00Z", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
        # A zone without it; a leap day; the last Friday.
        ("0 3 * * *", "America/Sao_Paulo", "2026-11-22T12:00Z", ["2026-11-23T03:00-03:00", "2026-11-24T03:00-03:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00Z", ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00"]),
        ("0 18 * * 5L", "UTC", "2026-11-01T00:00Z", ["2026-11-27T18:00+00:00", "2026-12-25T18:00+00:00"]),
    ],
)  # fmt: skip
def test_occurrences_are_as_people_expect_them(expression: str, zone: str, moment: str, found: list[str]) -> None:
    assert after(expression, zone, moment, 2) == found


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata")
EXPRESSIONS = (
    *("* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 0 * * *", "5 4 * * SUN#1"),
    *("0 9-17/2 1,15 * *", "*/20 2 * * *", "0 30 2 * * *", "*/15 * * * * *", "59 23 L * *"),
)
CHANGES = [ms(day) for day in ("2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-03-08T07:00Z", "2026-11-01T06:00Z")]
CHANGES += [ms(day) for day in ("2026-04-04T15:00Z", "2026-10-03T15:30Z")]
MOMENTS = st.one_of(
    st.integers(ms("2026-01-01T00:00Z"), ms("2030-01-01T00:00Z")),
    st.builds(lambda change, by: change + by, st.sampled_from(CHANGES), st.integers(-3 * HOUR, 3 * HOUR)),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS, st.integers(0, 4 * HOUR))
@example("30 2 * * *", "Europe/Berlin", ms("2026-10-25T00:31Z"), 30 * MINUTE)
def test_what_is_next_is_later_and_the_same_for_whoever_asks_before_it(
    expression: str, zone: str, moment: int, later: int
) -> None:
    table = Cron(expression, zone)
    found, found_later = table.after(moment), table.after(moment + later)
    assert moment < found <= found_later
    assert found_later == found or moment + later >= found
    assert table.after(found - 1) == found


@given(st.integers(1, 10**6), st.integers(0, 2**45))
def test_every_is_the_multiples_of_its_span(seconds: int, moment: int) -> None:
    found = Every(seconds * 1000).after(moment)
    assert moment < found <= moment + seconds * 1000
    assert found % (seconds * 1000) == 0


@pytest.mark.parametrize(
    "table", [Cron("0 3 * * MON-FRI", "America/Sao_Paulo"), Every(5_400_000), Cron("* * * * *", "UTC")]
)
def test_a_timetable_is_read_from_its_text(table: Timetable) -> None:
    again = read(table.text)
    assert again is not None
    assert [*itertools.islice(occurrences(again, NOON), 50)] == [*itertools.islice(occurrences(table, NOON), 50)]


@pytest.mark.parametrize("text", ["", "every", "every day", "every 0s", "cron: 5", "0 3 * * * Mars/Base", "* * * UTC"])
def test_what_is_no_timetable_is_none(text: str) -> None:
    assert read(text) is None


# What is done.


def stands(next_ms: int | None, schedule: Schedule = HOURLY) -> Standing:
    return Standing(next_ms, schedule.declaration)


def moves(schedule: Schedule, standing: Standing, now: int, *, begins: bool = False) -> Move:
    move = decide(schedule, standing, now, begins=begins)
    assert move is not None
    assert move.standing == standing
    return move


def test_one_that_is_new_begins_with_its_next_occurrence() -> None:
    for begins in (True, False):
        move = moves(HOURLY, Standing(), NOON + 1, begins=begins)
        assert (move.next_ms, move.fires) == (NOON + HOUR, ())


def test_nothing_is_done_before_it_is_due() -> None:
    assert decide(HOURLY, stands(NOON), NOON - 1, begins=False) is None
    assert decide(HOURLY, stands(NOON), NOON - 1, begins=True) is None


def test_what_is_due_is_fired_and_the_next_one_is_noted() -> None:
    for late in (0, 1, HOUR - 1):
        move = moves(HOURLY, stands(NOON), NOON + late)
        assert (move.fires, move.next_ms, move.first_ms) == ([NOON], NOON + HOUR, NOON)


@pytest.mark.parametrize(
    ("misfire", "fires"),
    [("latest", [4]), ("skip", []), ("all", [0, 1, 2, 3, 4])],
)
def test_what_was_missed_is_caught_up_as_the_schedule_says(misfire: Misfire, fires: list[int]) -> None:
    schedule = replace(HOURLY, misfire=misfire)
    move = moves(schedule, stands(NOON, schedule), NOON + 4 * HOUR + 2 * GRACE_MS)
    assert move.fires == [NOON + hour * HOUR for hour in fires]
    assert (move.next_ms, move.first_ms) == (NOON + 5 * HOUR, NOON)


def test_skip_forgives_a_minute() -> None:
    schedule = replace(HOURLY, misfire="skip")
    assert moves(schedule, stands(NOON, schedule), NOON + GRACE_MS).fires == [NOON]
    assert moves(schedule, stands(NOON, schedule), NOON + GRACE_MS + 1).fires == []
    assert moves(schedule, stands(NOON, schedule), NOON + 3 * HOUR + 1000).fires == [NOON + 3 * HOUR]


@pytest.mark.parametrize("table", [Every(MINUTE), Cron("* * * * *", "UTC")])
def test_all_has_a_bound_beyond_which_the_oldest_are_given_up(table: Timetable) -> None:
    schedule = Schedule("tick", "q", table, "all")
    move = moves(schedule, stands(NOON, schedule), NOON + 365 * DAY)
    assert len(move.fires) == MOST_MISSED
    assert list(move.fires) == list(range(move.fires[0], NOON + 365 * DAY + 1, MINUTE))
    assert move.first_ms == NOON
    assert moves(schedule, stands(NOON, schedule), NOON + (MOST_MISSED - 1) * MINUTE).fires[0] == NOON


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS, st.integers(0, 40 * HOUR))
def test_the_missed_ones_are_all_there_are(expression: str, zone: str, begin: int, away: int) -> None:
    table = Cron(expression, zone)
    first = table.after(begin)
    now = first + away
    missed = list(itertools.takewhile(lambda one: one <= now, occurrences(table, begin)))[-MOST_MISSED:]
    for misfire, fires in (("all", missed), ("latest", missed[-1:])):
        schedule = Schedule("it", "q", table, misfire)  # type: ignore[arg-type]
        assert moves(schedule, stands(first, schedule), now).fires == fires


def test_a_changed_timetable_goes_on_from_now_without_firing_what_it_never_announced() -> None:
    daily = replace(HOURLY, timetable=Every(DAY))
    for old in (NOON, NOON + HOUR, NOON - 7 * HOUR):
        move = moves(daily, stands(old), NOON + 10 * MINUTE, begins=True)
        assert (move.fires, move.next_ms) == ((), NOON + 12 * HOUR)


def test_an_occurrence_that_both_timetables_have_is_not_lost_by_a_deploy() -> None:
    often = replace(HOURLY, timetable=Every(MINUTE))
    move = moves(often, stands(NOON), NOON + 10, begins=True)
    assert (move.fires, move.next_ms) == ((), NOON), "then it is due"
    ahead = moves(often, stands(NOON + HOUR), NOON + 10, begins=True)
    assert ahead.next_ms == NOON + MINUTE


def test_of_two_versions_the_one_that_began_last_fires_until_it_is_gone() -> None:
    old, new = HOURLY, replace(HOURLY, timetable=Every(2 * HOUR))
    by_new = stands(NOON, new)
    assert decide(old, by_new, NOON + 1000, begins=False) is None
    assert decide(old, by_new, NOON + TAKEN_OVER_MS, begins=False) is None
    move = moves(old, by_new, NOON + TAKEN_OVER_MS + 1)
    assert (move.fires, move.next_ms) == ((), NOON)
    assert moves(new, stands(NOON, old), NOON - 1, begins=True).next_ms == NOON


def test_a_declaration_is_more_than_its_timetable() -> None:
    for other in (replace(HOURLY, misfire="all"), replace(HOURLY, priority=7)):
        assert decide(other, stands(NOON), NOON, begins=False) is None
        assert moves(other, stands(NOON + HOUR), NOON, begins=True).next_ms == NOON + HOUR
    assert declared(replace(HOURLY, misfire="all", priority=7).declaration) == Declared("all", 7, "every 1 h")
    for odd in ("", "latest", "latest|x|y", "never|0|every 1 h", "latest|0|"):
        assert declared(odd) is None


def test_one_that_is_paused_stays_so_and_its_new_declaration_is_told() -> None:
    paused = Standing(None, HOURLY.declaration, paused=True)
    for begins in (True, False):
        assert decide(HOURLY, paused, NOON, begins=begins) is None
    changed = replace(HOURLY, priority=5)
    move = moves(changed, paused, NOON, begins=True)
    assert (move.next_ms, move.fires) == (None, ())


def test_one_that_was_resumed_without_its_timetable_goes_on() -> None:
    move = moves(HOURLY, stands(NOON + 5), NOON + 10 * MINUTE)
    assert (move.fires, move.next_ms, move.first_ms) == ((), NOON + HOUR, None)


def test_a_server_whose_clock_was_set_back_is_not_waited_for_a_year() -> None:
    assert decide(HOURLY, stands(NOON + HOUR + SET_BACK_MS), NOON, begins=True) is None
    assert moves(HOURLY, stands(NOON + 365 * DAY), NOON, begins=True).next_ms == NOON + HOUR
    assert decide(HOURLY, stands(NOON + 365 * DAY), NOON, begins=False) is None, "nothing is reckoned at each look"


def test_the_ids_are_those_of_arq() -> None:
    assert HOURLY.id_of(NOON) == f"report:{NOON}"
    assert replace(HOURLY, job_id="one").id_of(NOON) == "one"
    assert FORGOTTEN_MS > DAY


# Declarations.


@cron("0 3 * * *", tz="America/Sao_Paulo", queue="nightly", misfire="all", priority=5, timeout="2m")
async def cleanup(ctx: Context) -> int:
    return 7


@every("90s", limit=Concurrency("beats", 1))
async def beat(ctx: Context, loud: bool = False) -> None:
    pass


@handler
async def plain(ctx: Context) -> None:
    pass


def test_a_declaration_is_a_handler_with_a_timetable() -> None:
    spec = cleanup.spec
    assert (spec.name, spec.queue, spec.priority, spec.timeout_s) == ("cleanup", "nightly", 5, 120)
    assert cleanup.request().args == ()
    assert str(spec.timetable and spec.timetable.text) == "0 3 * * * America/Sao_Paulo"
    assert beat.spec.timetable == Every(90_000)
    declared = {one.name: one for one in (cleanup, beat, plain)}
    assert schedules(declared, ["nightly"]) == [Schedule("cleanup", "nightly", spec.timetable, "all", 5)]  # type: ignore[arg-type]
    assert [one.name for one in schedules(declared, ["nightly", "arq:queue"])] == ["cleanup", "beat"]
    assert schedules(declared, ["elsewhere"]) == []


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: cron("0 3 * *"), "five fields"),
        (lambda: cron("0 25 * * *"), "bad hour"),
        (lambda: cron("0 0 31 2 *"), "bad day-of-month"),
        (lambda: cron("0 0 */31 * MON#5"), "never comes about"),
        (lambda: cron("0 30 2 * 3 7L", tz="Europe/Berlin"), "never comes about"),  # spring leaves it out
        (lambda: cron(3), "no cron expression"),  # type: ignore[arg-type]
        (lambda: cron("0 3 * * *", tz="Mars/Base"), "pip install tzdata"),
        (lambda: cron("0 3 * * *", tz="../../etc/passwd"), "no time zone"),
        (lambda: cron("0 3 * * *", misfire="never"), "latest, skip, all"),  # type: ignore[arg-type]
        (lambda: every("0s"), "whole number of seconds"),
        (lambda: every("1500ms"), "whole number of seconds"),
        (lambda: every("soon"), "not a length of time"),
        (lambda: every("20000d"), "whole number of seconds"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(declare: Any, says: str) -> None:
    with pytest.raises(HandlerInvalid, match=says):
        declare()


def test_a_handler_that_needs_arguments_has_nobody_to_give_them() -> None:
    async def mail(ctx: Context, to: str) -> None:
        pass

    with pytest.raises(HandlerInvalid, match="nobody gives it 'to'"):
        every("60s")(mail)  # type: ignore[arg-type]


def test_options_that_would_do_nothing_are_refused() -> None:
    for option in ("unique_for", "quota", "timezone"):
        options: dict[str, Any] = {option: None}
        with pytest.raises(HandlerInvalid, match=f"'{option}' is nothing"):
            every("60s", **options)
        with pytest.raises(HandlerInvalid, match=f"'{option}' is nothing"):
            cron("0 3 * * *", **options)


def test_one_decorator_does_not_swallow_another() -> None:
    again: Any = every("60s")
    for decorate in (handler, handler(timeout="5s"), again, cron("0 3 * * *")):
        with pytest.raises(HandlerInvalid, match=r"'beat' at .* is a handler already"):
            decorate(beat)


def test_spans_are_as_elsewhere() -> None:
    assert spans("1h30m") == spans(5400) == Every(5_400_000)
    assert Every(5_400_000).text == "every 1 h 30 m"
    assert datetime.fromtimestamp(Every(7 * DAY).after(NOON) / 1000, UTC).weekday() == 3, "a Thursday"


def test_a_worker_without_schedules_does_not_import_them() -> None:
    script = "import sys, runtime.app; print([name for name in sys.modules if 'schedul' in name or 'cron' in name])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
