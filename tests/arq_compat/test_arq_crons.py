"""arq's cron jobs: the same occurrences and ids as arq's, each once, beside whoever else has them."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq import cron
from arq.connections import ArqRedis
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.arq import crons
from tests.arq_compat.test_arq_mode import Make, do
from tests.processes import command, wait_until

SECONDS = 6
"""So many occurrences are waited for."""
NAME = "cron:every_second"


async def task(ctx: Any) -> None: ...


def occurrences(make: Make) -> Counter[str]:
    """How often each was run."""
    return Counter(line.split()[1] for line in make.noted() if line.startswith("cron "))


def assert_each_once(make: Make) -> None:
    ran = occurrences(make)
    assert set(ran.values()) == {1}, ran
    moments = sorted(int(job_id.removeprefix(f"{NAME}:")) for job_id in ran)
    assert moments == list(range(moments[0], moments[-1] + 1, 1000)), "none was missed"


@pytest.mark.parametrize("company", [("arq",), ("runtime",), ("runtime", "runtime", "runtime"), ("arq", "runtime")])
def test_each_occurrence_is_run_once(tcp_url: str, tmp_path: Path, company: tuple[str, ...]) -> None:
    makes = [Make(kind, tcp_url, tmp_path) for kind in company]
    for one in makes:
        one.settings["RUNTIME_TEST_NOTES"] = makes[0].notes
    with ExitStack() as stack:
        for one in makes:
            stack.enter_context(one.start("Crons"))
        wait_until(lambda: len(occurrences(makes[0])) >= SECONDS, 60.0)
    assert_each_once(makes[0])
    startups = [line for line in makes[0].noted() if line.startswith("startup ")]
    assert startups == ["startup cron:at_startup"] * len(company), "one for each worker, as its id is of that moment"
    each = Counter(line for line in makes[0].noted() if line.startswith("each "))
    assert max(each.values()) == len(company), "what is not unique is run by each worker"


def test_g11_what_was_run_is_not_enqueued_again_by_a_clock_that_is_behind(tcp_url: str, tmp_path: Path) -> None:
    make = Make("runtime", tcp_url, tmp_path)
    with make.start("Crons"):
        wait_until(lambda: len(occurrences(make)) >= 2, 60.0)
        first = min(occurrences(make))

        async def again(pool: ArqRedis) -> bool:
            return await pool.enqueue_job(NAME, _job_id=first) is not None

        time.sleep(1)
        assert not do(make, again)
    assert_each_once(make)


# The times


@settings(max_examples=30, deadline=None)
@given(
    moment=st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)),
    fields=st.fixed_dictionaries(
        {
            "month": st.sampled_from([None, 2, {3, 10}]),
            "day": st.sampled_from([None, 1, 29]),
            "weekday": st.sampled_from([None, "mon", {0, 6}]),
            "hour": st.sampled_from([None, 2, {0, 12}]),
            "minute": st.sampled_from([None, 0, {0, 30}]),
            "second": st.sampled_from([0, {0, 30}]),
            "microsecond": st.sampled_from([0, 123_456, 999_999]),
        }
    ),
)
def test_the_times_are_arqs_and_none_is_left_out(moment: datetime, fields: dict[str, Any]) -> None:
    job = cron(task, **fields)
    table = crons.times(job, UTC)
    moment_ms = round(moment.replace(tzinfo=UTC).timestamp() * 1000)
    found = table.after(moment_ms)
    assert found > moment_ms
    assert table.after(found - 1) == found
    job.calculate_next(moment.replace(tzinfo=UTC) - timedelta(seconds=1))
    assert job.next_run is not None
    if round(job.next_run.timestamp() * 1000) > moment_ms:
        assert found == round(job.next_run.timestamp() * 1000)
    job.calculate_next(job.next_run)
    assert found <= round(job.next_run.timestamp() * 1000)


def test_a_timetable_is_told_in_words() -> None:
    job = cron(task, weekday="mon", hour={9, 17}, minute=set(range(60)), microsecond=0)
    assert crons.times(job, UTC).text == "arq weekday=mon hour=9,17 minute=0-59 second=0 microsecond=0 UTC"


def test_operators_see_cron_jobs_and_pause_them(tcp_url: str, tmp_path: Path) -> None:
    make = Make("runtime", tcp_url, tmp_path)
    with make.start("Crons"):
        wait_until(lambda: occurrences(make), 60.0)
        assert NAME in command("schedule", "list", REDIS_URL=tcp_url).stdout
        assert command("schedule", "pause", NAME, REDIS_URL=tcp_url).returncode == 0
        time.sleep(1.5)
        before = len(occurrences(make))
        time.sleep(2)
        assert len(occurrences(make)) == before


def changes(zone: str) -> list[datetime]:
    """The days of 2026 on which the clocks are set."""
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(365)]
    offsets = [day.astimezone(ZoneInfo(zone)).utcoffset() for day in days]
    return [day for day, before, after in zip(days, offsets, offsets[1:], strict=False) if before != after]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_times_grow_through_summer_time(zone: str) -> None:
    table = crons.times(cron(task, minute={0, 30}, microsecond=0), ZoneInfo(zone))
    assert len(changes(zone)) == 2
    gaps: Counter[int] = Counter()
    for day in changes(zone):
        moment_ms = round(day.timestamp() * 1000)
        end_ms = moment_ms + 2 * 86_400_000
        while moment_ms < end_ms:
            later_ms = table.after(moment_ms)
            gaps[(later_ms - moment_ms) // 60_000] += 1
            moment_ms = later_ms
    assert set(gaps) <= {30, 60, 90}, gaps
    assert gaps[30] > 150


def test_times_in_the_repeated_hour_are_found_as_quickly() -> None:
    table = crons.times(cron(task, second=set(range(60)), microsecond=0), ZoneInfo("Europe/Berlin"))
    repeated_ms = round(datetime(2026, 10, 25, 1, 0, tzinfo=UTC).timestamp() * 1000)
    began = time.monotonic()
    assert [table.after(repeated_ms + n) for n in range(100)] == [repeated_ms + 3_600_000] * 100
    assert time.monotonic() - began < 2
