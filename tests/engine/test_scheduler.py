"""The scheduler: several beside each other, in weather, over a year."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest
import trio

from runtime.adapters.cron import Cron
from runtime.core.schedule import Every, Move, Schedule
from runtime.engine.scheduler import AWAY_S, JITTER_S, LOOK_S, Scheduler
from tests.schedules import Board

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
TICK = Schedule("tick", "q", Every(5 * SECOND))
HOURLY = Schedule("hourly", "q", Every(HOUR))


def now_ms() -> int:
    return math.ceil(trio.current_time() * 1000 - 1e-3)


class Fleet:
    """Workers that share a store; what they were told of."""

    def __init__(self, nursery: trio.Nursery, *schedules: Schedule) -> None:
        self.board = Board(now_ms)
        self.schedules = schedules
        self._nursery = nursery
        self.told: list[tuple[str, Sequence[int], Sequence[bool], int]] = []

    def start(self, *schedules: Schedule) -> trio.CancelScope:
        """One more worker; its life."""
        scope = trio.CancelScope()

        async def work() -> None:
            with scope:
                await Scheduler(schedules or self.schedules, self.board, self._tell).run()

        self._nursery.start_soon(work)
        return scope

    def _tell(self, schedule: Schedule, move: Move, added: Sequence[bool], late_ms: int) -> None:
        self.told.append((schedule.name, move.fires, added, late_ms))

    def moments(self, name: str) -> list[int]:
        """When it was fired, and never twice."""
        assert all(count == 1 for count in self.board.fired.values())
        return [int(job_id.partition(":")[2]) for job_id in self.board.fired if job_id.startswith(f"{name}:")]


async def test_three_workers_fire_each_occurrence_once_and_in_time() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, TICK, HOURLY)
        for _ in range(3):
            fleet.start()
        began = now_ms()
        await anyio.sleep(2 * 3600 + 1)
        ticks = fleet.moments("tick")
        assert ticks == list(range(TICK.timetable.after(began), now_ms(), 5 * SECOND))
        assert len(fleet.moments("hourly")) == 2
        assert len(fleet.told) == len(fleet.board.fired), "each is told by one worker"
        assert max(late_ms for *_, late_ms in fleet.told) <= 1000 * JITTER_S + 2
        nursery.cancel_scope.cancel()


async def test_a_worker_looks_when_something_is_due_and_twice_a_minute() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, replace(HOURLY, timetable=Every(DAY)))
        fleet.start()
        await anyio.sleep(3600)
        assert fleet.board.looks == pytest.approx(3600 / LOOK_S, abs=3)
        assert fleet.board.forgotten == 1
        nursery.cancel_scope.cancel()


async def test_what_came_due_while_the_store_was_away_is_caught_up_at_once() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, HOURLY, replace(HOURLY, name="each", misfire="all"))
        fleet.start()
        await anyio.sleep(1)
        fleet.board.away = True
        began = now_ms()
        await anyio.sleep(3 * 3600)
        assert fleet.board.fired == {}
        fleet.board.away = False
        await anyio.sleep(AWAY_S + JITTER_S)
        missed = [began // HOUR * HOUR + n * HOUR for n in (1, 2, 3)]
        assert fleet.moments("hourly") == missed[-1:]
        assert fleet.moments("each") == missed
        assert [late_ms > 2 * HOUR - SECOND for *_, late_ms in fleet.told] == [True, True]
        nursery.cancel_scope.cancel()


async def test_a_lost_reply_is_no_second_firing() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, replace(TICK, misfire="all"))
        fleet.start()
        await anyio.sleep(1)
        for _ in range(200):
            await anyio.sleep(random.uniform(0.5, 7))
            fleet.board.lost_replies += random.randrange(3)
        await anyio.sleep(10)
        ticks = fleet.moments("tick")
        assert ticks == list(range(ticks[0], ticks[-1] + 1, 5 * SECOND))
        nursery.cancel_scope.cancel()


async def test_whoever_dies_when_no_occurrence_is_lost_or_doubled() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, replace(TICK, misfire="all"))
        lives = [fleet.start() for _ in range(3)]
        await anyio.sleep(1)
        for _ in range(300):
            await anyio.sleep(random.uniform(0.0, 20.0))
            lives.pop(random.randrange(len(lives))).cancel()
            if random.random() < 0.2:
                await anyio.sleep(random.uniform(0.0, 60.0))  # fewer of them, at times none
            while len(lives) < random.randrange(3) + 1:
                lives.append(fleet.start())
        await anyio.sleep(30)
        ticks = fleet.moments("tick")
        assert sorted(ticks) == list(range(min(ticks), max(ticks) + 1, 5 * SECOND))
        nursery.cancel_scope.cancel()


async def test_an_old_version_beside_a_new_one_fires_nothing_and_takes_over_when_it_is_gone() -> None:
    newer = replace(TICK, timetable=Every(7 * SECOND))
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, TICK)
        fleet.start()
        await anyio.sleep(60)
        deployed_ms = now_ms()
        new = fleet.start(newer)
        await anyio.sleep(600)
        ended_ms = now_ms()
        new.cancel()
        await anyio.sleep(300)
        ticks = fleet.moments("tick")
        during = [tick for tick in ticks if deployed_ms + 8 * SECOND < tick <= ended_ms]
        assert [tick for tick in during if tick % (7 * SECOND)] == []
        assert len(during) == pytest.approx(590 / 7, abs=2)
        later = [tick for tick in ticks if tick > ended_ms + 100 * SECOND]
        assert later
        assert [tick for tick in later if tick % (5 * SECOND)] == []
        assert len(later) == pytest.approx(40, abs=1)
        nursery.cancel_scope.cancel()


async def test_a_pause_holds_at_once_and_a_resume_is_seen_in_half_a_minute() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, TICK)
        fleet.start()
        await anyio.sleep(60)
        fleet.board.pause("tick")
        before = fleet.moments("tick")
        await anyio.sleep(600)
        assert fleet.moments("tick") == before
        resumed_ms = now_ms()
        fleet.board.resume("tick", TICK.timetable.after(resumed_ms))
        await anyio.sleep(LOOK_S + JITTER_S)
        after = [tick for tick in fleet.moments("tick") if tick not in before]
        assert after[0] > resumed_ms, "what was due meanwhile is not caught up"
        nursery.cancel_scope.cancel()


async def test_a_store_that_has_forgotten_everything_is_told_again() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, TICK)
        for _ in range(2):
            fleet.start()
        await anyio.sleep(60)
        fleet.board.standings.clear()
        lost_ms = now_ms()
        await anyio.sleep(60)
        assert [tick for tick in fleet.moments("tick") if tick > lost_ms + LOOK_S * SECOND]
        nursery.cancel_scope.cancel()


async def test_an_old_version_that_fires_between_look_and_word_of_a_new_one_is_not_obeyed() -> None:
    newer = replace(HOURLY, timetable=Every(7 * SECOND))
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, HOURLY)
        fleet.start()
        await anyio.sleep(1)
        fire, overtaken = fleet.board.fire, list[Schedule]()

        async def old_is_first(schedule: Schedule, move: Move) -> Sequence[bool] | None:
            if schedule is newer and not overtaken:
                overtaken.append(schedule)
                await fire(HOURLY, Move(move.standing, (move.standing.next_ms or 0) + HOUR))
            return await fire(schedule, move)

        fleet.board.fire = old_is_first  # type: ignore[method-assign]
        fleet.start(newer)
        await anyio.sleep(60)
        assert overtaken
        assert len(fleet.moments("hourly")) == pytest.approx(8, abs=1), "every 7 seconds"
        nursery.cancel_scope.cancel()


async def test_a_clock_that_is_set_forward_and_back_stops_no_schedule() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, TICK, HOURLY)
        for _ in range(2):
            fleet.start()
        await anyio.sleep(60)
        fleet.board.now_ms = lambda: now_ms() + 365 * DAY
        await anyio.sleep(60)
        fleet.board.now_ms = now_ms
        before = fleet.moments("tick")
        await anyio.sleep(LOOK_S + 60)
        assert len(fleet.moments("tick")) - len(before) >= 12
        nursery.cancel_scope.cancel()


async def test_one_that_the_store_refuses_stops_no_other() -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, replace(TICK, queue="spoilt", name="odd"), TICK)
        fleet.board.refuses = "spoilt"
        fleet.start()
        await anyio.sleep(61)
        assert len(fleet.moments("tick")) == pytest.approx(11, abs=1)
        assert fleet.moments("odd") == []
        assert fleet.board.looks < 90
        fleet.board.refuses = None
        await anyio.sleep(10)
        assert fleet.moments("odd")
        nursery.cancel_scope.cancel()


# Celery beat's schedules of the fourth user document, over a year, in three replicas that come and go.

OTTO = [
    Schedule("process-pending-transcriptions", "default", Every(MINUTE), "all"),
    Schedule("generate-daily-reports", "default", Cron("0 0 * * *", "UTC"), "all"),
    Schedule("cleanup-old-tasks", "default", Cron("0 * * * *", "UTC"), "all"),
    Schedule("cleanup-ephemeral-sessions", "default", Cron("0 * * * *", "America/Sao_Paulo")),
]
NEW_YEAR = 1_798_761_600_000
"""2027, in UTC."""
YEAR_END = NEW_YEAR + 365 * DAY


async def test_the_schedules_of_document_004_over_a_year() -> None:
    chance = random.Random(4)
    now = NEW_YEAR - 1
    board = Board(lambda: now)
    replicas = [Scheduler(OTTO, board, lambda *_: None) for _ in range(3)]
    for replica in replicas:
        await replica.turn()
    sleeps: list[tuple[int, int]] = []
    while now < YEAR_END:
        began, now = now, now + chance.randrange(1, 15 * MINUTE)
        if chance.random() < 0.001:
            now += chance.randrange(12 * HOUR)  # all asleep, or Redis away, or between two deploys
            sleeps.append((began, now))
        if chance.random() < 0.03:
            replicas[chance.randrange(3)] = Scheduler(OTTO, board, lambda *_: None)
        if chance.random() < 0.1:
            async with trio.open_nursery() as nursery:  # at once
                for replica in replicas:
                    nursery.start_soon(replica.turn)
        else:
            await chance.choice(replicas).turn()
    assert set(board.fired.values()) == {1}
    fired = {schedule.name: set[int]() for schedule in OTTO}
    for job_id in board.fired:
        name, _, moment = job_id.rpartition(":")
        fired[name].add(int(moment))
    every_minute, daily, hourly, latest = ({one for one in moments if one < YEAR_END} for moments in fired.values())
    assert every_minute == set(range(NEW_YEAR, YEAR_END, MINUTE))
    assert daily == set(range(NEW_YEAR, YEAR_END, DAY))
    assert hourly == set(range(NEW_YEAR, YEAR_END, HOUR))
    assert len(sleeps) > 20
    missed = {hour for began, ended in sleeps for hour in hourly if began < hour <= ended and ended - hour >= HOUR}
    assert missed
    assert hourly - latest == missed, "of those that were slept through, the last is caught up"
