"""agenda.lua and fire.lua: schedules as their workers, stock arq and operators see them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from redis.exceptions import RedisError, ResponseError

from runtime.adapters.redis import keys, schedules, scripts, wire
from runtime.adapters.redis.schedules import RedisSchedules
from runtime.core.job import Call
from runtime.core.schedule import FORGOTTEN_MS, Every, Move, Schedule, Standing, decide
from tests.redis.store import BAND_MS, DAY_MS, Store, body, done
from tests.redis.test_need import need
from tests.redis.test_outlook import outlook
from tests.schedules import Board as Model

HOUR = 3_600_000


class Board:
    """A schedule of a queue, as one worker has it."""

    def __init__(self, store: Store, schedule: Schedule | None = None) -> None:
        self.store = store
        self.schedule = schedule or Schedule("report", store.queue, Every(HOUR))
        self.schedules = RedisSchedules(store.scripts)

    def look(self) -> tuple[int, Standing]:
        now_ms, (standing,) = self.store.run(self.schedules.look([self.schedule]))
        return now_ms, standing

    def stands(self) -> Standing:
        return self.look()[1]

    def fire(self, move: Move) -> Sequence[bool] | None:
        return self.store.run(self.schedules.fire(self.schedule, move))

    def begins(self) -> Standing:
        """It is told of; how it stands then."""
        now_ms, standing = self.look()
        move = decide(self.schedule, standing, now_ms, begins=True)
        if move is not None:
            assert self.fire(move) == []
        return self.stands()

    def is_due(self, ago_ms: int = 0) -> Standing:
        """As if its next occurrence had been so long ago."""
        now_ms, _ = self.look()
        self.store.raw.zadd(keys.schedule(self.schedule.queue), {self.schedule.name: now_ms - ago_ms})
        return self.stands()

    def fires(self, *moments_ms: int, standing: Standing | None = None, to_ms: int | None = None) -> list[bool] | None:
        standing = standing or self.stands()
        next_ms = self.look()[0] + HOUR if to_ms is None else to_ms
        added = self.fire(Move(standing, next_ms, moments_ms, moments_ms[0] if moments_ms else None))
        return None if added is None else list(added)


@pytest.fixture
def board(store: Store) -> Board:
    board = Board(store)
    board.begins()
    return board


def fired(store: Store, name: str = "report") -> int:
    return int(store.redis.hget(keys.timetable(store.queue), f"fired|{name}"))


def test_one_that_nobody_has_told_of_stands_nowhere(store: Store) -> None:
    assert Board(store).stands() == Standing()
    assert Board(store).begins().declaration == "latest|0|every 1 h"
    assert store.queued() == []


def test_the_clock_is_the_servers(board: Board) -> None:
    assert abs(board.look()[0] - board.store.now_ms()) < 1000


def test_what_is_fired_is_a_job_at_once_and_the_next_occurrence_is_noted(board: Board) -> None:
    standing = board.is_due()
    moment = standing.next_ms or 0
    assert board.fires(moment, to_ms=moment + HOUR) == [True]
    assert board.stands() == replace(standing, next_ms=moment + HOUR)
    assert fired(board.store) == moment
    assert board.store.redis.zscore(board.store.mark, "0") == 0, "an idle worker is woken"
    job = board.store.worker().one(f"report:{moment}")
    call = wire.decode_call(job.body or b"")
    assert isinstance(call, Call)
    assert (call.handler, call.args, call.kwargs, call.scheduled_ms, call.foreign) == ("report", (), {}, moment, False)
    assert board.store.raw.pttl(keys.JOB + f"report:{moment}") > 89 * DAY_MS


def test_its_priority_is_that_of_its_jobs(store: Store) -> None:
    board = Board(store, Schedule("report", store.queue, Every(HOUR), priority=3))
    board.begins()
    board.is_due()
    assert board.fires(7) == [True]
    assert store.score("report:7") == pytest.approx(store.now_ms() - 3 * BAND_MS, abs=5000)
    assert store.score("report:7") % 1 == 3 / 1024


def test_whoever_comes_second_does_nothing(board: Board) -> None:
    standing = board.is_due()
    assert board.fires(7, standing=standing) == [True]
    other = Board(board.store)
    before = board.store.redis.zrange(keys.schedule(board.store.queue), 0, -1, withscores=True)
    assert other.fires(7, standing=standing, to_ms=1) is None
    assert other.fires(8, standing=standing, to_ms=1) is None
    assert board.store.queued() == ["report:7"]
    assert board.store.redis.zrange(keys.schedule(board.store.queue), 0, -1, withscores=True) == before


def test_a_call_whose_reply_was_lost_does_no_harm_though_the_job_has_ended(board: Board) -> None:
    standing = board.is_due()
    board.fires(7, standing=standing)
    worker = board.store.worker()
    worker.settle(done(worker.one("report:7"), result_ms=0))
    assert not board.store.redis.exists(keys.RESULT + "report:7")
    assert board.fires(7, standing=standing) is None
    assert board.store.queued() == []


def test_of_many_at_once_one_fires(board: Board) -> None:
    standing = board.is_due()
    move = Move(standing, board.look()[0] + HOUR, (7,), 7)

    async def all_at_once() -> list[Sequence[bool] | None]:
        return await asyncio.gather(*(board.schedules.fire(board.schedule, move) for _ in range(20)))

    replies = board.store.run(all_at_once())
    assert sorted(map(str, replies)) == ["None"] * 19 + ["[True]"]


def test_all_that_were_missed_go_in_one_call(board: Board) -> None:
    board.is_due()
    moments = range(1_795_000_000_000, 1_795_000_001_000)
    assert board.fires(*moments) == [True] * 1000
    assert board.store.queued() == [f"report:{moment}" for moment in moments], "in their order"
    assert fired(board.store) == moments[-1]


def test_a_standing_that_has_changed_is_nobodys_move(board: Board) -> None:
    standing = board.is_due()
    newer = Board(board.store, replace(board.schedule, timetable=Every(2 * HOUR)))
    assert newer.begins().declaration == "latest|0|every 2 h"
    assert board.fires(7, standing=standing) is None
    assert board.fires(7, standing=replace(newer.stands(), declaration=standing.declaration)) is None
    assert newer.fires(7) == [True]


def test_a_job_that_stock_arq_has_enqueued_for_it_is_the_one(board: Board) -> None:
    store = board.store
    standing = board.is_due()
    moment = standing.next_ms or 0
    store.run(store.arq.enqueue_job("report", _job_id=f"report:{moment}", _queue_name=store.queue, _defer_by=60))
    score = store.score(f"report:{moment}")
    assert board.fires(moment, to_ms=moment + HOUR) == [False]
    assert store.score(f"report:{moment}") == score, "deferred as it was"
    assert board.stands().next_ms == moment + HOUR


@pytest.mark.parametrize("what", [keys.RESULT, keys.IN_PROGRESS])
def test_one_that_stock_arq_has_run_or_runs_is_not_run_again(board: Board, what: str) -> None:
    board.is_due()
    board.store.raw.set(f"{what}report:7", "1", px=60_000)
    assert board.fires(7) == [False]
    assert board.store.queued() == []
    assert board.is_due().next_ms


def test_what_we_have_fired_stock_arq_does_not_enqueue_again(board: Board) -> None:
    store = board.store
    board.is_due()
    board.fires(7)

    def enqueues() -> object:
        return store.run(store.arq.enqueue_job("report", _job_id="report:7", _queue_name=store.queue))

    assert enqueues() is None
    worker = store.worker()
    job = worker.one("report:7")
    assert enqueues() is None, "it runs"
    worker.settle(done(job))
    assert enqueues() is None, "it has a result"


def test_an_old_flag_does_not_abort_it(board: Board) -> None:
    board.is_due()
    board.store.raw.zadd(keys.ABORT, {"report:7": 1})
    board.fires(7)
    assert not board.store.raw.exists(keys.ABORT)


def test_it_does_as_its_model(store: Store) -> None:
    """Workers of two versions, an operator, and a schedule that is due or not, in any order."""
    chance = random.Random(8)
    old = Board(store)
    new = Board(store, replace(old.schedule, timetable=Every(2 * HOUR), priority=1))
    model = Model(lambda: 0)
    seen: dict[Board, Standing] = {old: Standing(), new: Standing()}
    done: Counter[str] = Counter()
    for number in range(400):
        board = chance.choice((old, new))
        match chance.randrange(6):
            case 0 | 1:
                seen[board] = board.stands()
                assert seen[board] == model.standings.get("report", Standing())
            case 2 | 3:
                fires = tuple(range(number, number + chance.randrange(3)))
                next_ms = chance.choice((None, 1_795_000_000_000 + number))
                standing = seen[board]
                if standing.next_ms is None and not standing.paused and next_ms is None:
                    continue  # nobody tells of a schedule without a time
                if standing.paused:
                    fires, next_ms = (), None  # nor fires one that is paused
                move = Move(standing, next_ms, fires)
                moved = board.fire(move)
                assert moved == store.run(model.fire(board.schedule, move))
                done["moved" if moved is not None else "refused"] += 1
            case 4:
                pause(board)
                if "report" in model.standings:
                    model.pause("report")
            case _:
                if model.standings.get("report", Standing()).paused:
                    resume(board, number)
                    model.resume("report", number)
    assert set(store.queued()) == set(model.fired)
    assert min(done.values()) > 20


# Paused.


def pause(board: Board, reason: str = "too loud") -> None:
    board.store.run(schedules.pause(board.store.scripts, board.store.queue, "report", reason))


def resume(board: Board, next_ms: int) -> None:
    board.store.run(schedules.resume(board.store.scripts, board.store.queue, "report", next_ms))


def test_one_that_is_paused_is_fired_by_nobody_also_not_by_who_has_just_looked(board: Board) -> None:
    standing = board.is_due()
    pause(board)
    assert board.fires(7, standing=standing) is None
    assert board.stands() == Standing(None, standing.declaration, paused=True)
    assert board.begins().paused
    assert not need(board.store).due
    assert need(board.store).next_in_s is None
    assert outlook(board.store, "report") is None
    (listed,) = board.store.run(schedules.listed(board.store.scripts, board.store.queue))[1]
    assert (listed.name, listed.next_ms, listed.paused) == ("report", None, "too loud")


def test_its_new_declaration_is_taken_note_of(board: Board) -> None:
    pause(board)
    newer = Board(board.store, replace(board.schedule, timetable=Every(2 * HOUR)))
    assert newer.begins() == Standing(None, "latest|0|every 2 h", paused=True)


def test_resumed_it_goes_on(board: Board) -> None:
    pause(board)
    resume(board, 7)
    assert board.stands() == Standing(7, board.schedule.declaration)
    assert board.fires(7) == [True]
    (listed,) = board.store.run(schedules.listed(board.store.scripts, board.store.queue))[1]
    assert (listed.fired_ms, listed.paused) == (7, None)


def test_nobody_pauses_what_does_not_exist(store: Store) -> None:
    store.run(schedules.resume(store.scripts, store.queue, "report", 7))
    assert Board(store).stands() == Standing()


# Who is kept awake, and woken.


def test_it_is_due_for_who_knows_its_handler_and_somebody_is_woken_for_it(board: Board) -> None:
    board.is_due(ago_ms=1000)
    assert (outlook(board.store, "report") or 0) < 0
    assert outlook(board.store, "other") is None
    assert need(board.store).calls
    due = board.store.run(scripts.outlook(board.store.scripts, [board.store.queue], ["report"], [board.schedule]))
    assert due is not None
    assert due.schedule == "report"


def test_it_keeps_nobody_awake_whose_handler_has_lost_it_or_has_it_in_another_queue(board: Board) -> None:
    board.is_due(ago_ms=1000)
    assert outlook(board.store, "report", fires=[]) is None
    elsewhere = replace(board.schedule, queue="elsewhere")
    assert outlook(board.store, "report", queues=(board.store.queue, "elsewhere"), fires=[elsewhere]) is None
    assert outlook(board.store, "report", queues=("elsewhere", board.store.queue), fires=[board.schedule]) is not None


def test_its_next_occurrence_is_looked_forward_to(board: Board) -> None:
    board.is_due(ago_ms=-30_000)
    assert outlook(board.store, "report") == pytest.approx(30, abs=1)
    assert need(board.store).next_in_s == pytest.approx(30, abs=1)
    board.store.enqueue("a", delay_ms=10_000)
    assert need(board.store).next_in_s == pytest.approx(10, abs=1)
    due = board.store.run(scripts.outlook(board.store.scripts, [board.store.queue], ["report"], [board.schedule]))
    assert due is not None
    assert due.schedule is None
    assert due.in_s == pytest.approx(10, abs=1)
    assert not need(board.store).due


def test_one_that_nobody_has_fired_for_a_day_wakes_nobody_any_more(board: Board) -> None:
    board.is_due(ago_ms=DAY_MS - 60_000)
    assert need(board.store).due
    board.is_due(ago_ms=DAY_MS + 60_000)
    assert not need(board.store).due
    other = Board(board.store, replace(board.schedule, name="another"))
    other.begins()
    other.is_due()
    assert need(board.store).due, "it hides no other"


def test_what_nobody_knows_is_forgotten_after_a_month(board: Board) -> None:
    store = board.store
    for name, ago_ms in (
        ("gone", FORGOTTEN_MS + 60_000),
        ("young", FORGOTTEN_MS - 60_000),
        ("report", 2 * FORGOTTEN_MS),
    ):
        one = Board(store, replace(board.schedule, name=name))
        one.begins()
        one.is_due(ago_ms)
    paused = Board(store, replace(board.schedule, name="paused"))
    paused.begins()
    store.run(schedules.pause(store.scripts, store.queue, "paused", ""))
    store.run(board.schedules.forget([board.schedule]))
    assert store.redis.zrange(keys.schedule(store.queue), 0, -1) == ["report", "young", "paused"]
    assert sorted(store.redis.hkeys(keys.timetable(store.queue))) == [
        "paused|paused", "said|paused", "said|report", "said|young",
    ]  # fmt: skip


# Trouble.


def test_R19_without_memory_it_is_not_fired_and_not_lost(board: Board) -> None:  # the rule's name
    standing = board.is_due()
    move = Move(standing, (standing.next_ms or 0) + HOUR, (7,), 7)
    with board.store.out_of_memory(), suppress(RedisError):
        board.store.run(scripts.fire(board.store.scripts, board.schedule, move, [("report:7", body())], keep_ms=1000))
        raise AssertionError("it was written")
    assert board.stands() == standing
    assert board.fires(7) == [True]


def test_R19_a_queue_of_a_wrong_type_leaves_nothing_half_done(board: Board) -> None:  # likewise
    standing = board.is_due()
    board.store.spoil(board.store.queue)
    move = Move(standing, (standing.next_ms or 0) + HOUR, (7,), 7)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        board.store.run(scripts.fire(board.store.scripts, board.schedule, move, [("report:7", body())], keep_ms=1000))
    assert not board.store.raw.exists(keys.JOB + "report:7")
    assert board.stands() == standing


@pytest.mark.parametrize("key", [keys.ABORT, keys.mark("arq:queue")])
def test_R19_what_it_can_do_without_stops_nothing(board: Board, key: str) -> None:  # likewise
    board.is_due()
    board.store.spoil(key)
    assert board.fires(7) == [True]


def test_schedules_of_a_wrong_type_hide_no_job(store: Store) -> None:
    store.spoil(keys.schedule(store.queue))
    assert need(store) == replace(need(store), due=False, next_in_s=None)
    assert outlook(store, "report") is None
    store.enqueue("a", delay_ms=60_000)
    assert outlook(store, "report") == pytest.approx(60, abs=1)
    assert need(store).next_in_s == pytest.approx(60, abs=1)


def test_in_a_queue_that_is_paused_it_waits_like_its_jobs(board: Board) -> None:
    store = board.store
    board.is_due(ago_ms=1000)
    store.raw.set(keys.paused(store.queue), "{}", px=60_000)
    assert not need(store).due
    assert need(store).next_in_s == pytest.approx(60, abs=1)
    assert outlook(store, "report") == pytest.approx(60, abs=1)
    store.raw.set(keys.paused(store.queue), "{}")
    assert need(store).next_in_s is None
    assert outlook(store, "report") is None
    assert board.fires(7) == [True], "who is awake all the same fires it, and the job waits"
    store.raw.delete(keys.paused(store.queue))
