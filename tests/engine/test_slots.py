"""What becomes of a claimed job: run or not, and with which outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from runtime.core.errors import Invalid, LeaseLost, Permanent, RetryLater, Snooze, Transient
from runtime.core.job import (
    Cancelled,
    Dead,
    Done,
    ErrorRecord,
    Failure,
    History,
    Outcome,
    Released,
    Retried,
    Settlement,
    Snoozed,
)
from runtime.core.policy import SUSPECT_DELAY_S
from runtime.core.retry import Retry
from runtime.engine.context import Checked, Context
from tests.engine.world import EPOCH_MS, STUCK_S, CancelOnce, Row, World

HOUR_S = 3600.0


async def ended(world: World, row: Row) -> Outcome:
    """Serve until the job has an outcome in the store; the first it had."""
    if not world.diary.starts and not world.diary.ends:
        world.serve(world.actor())
    await world.until(lambda: world.store.outcomes(row.id))
    return world.store.outcomes(row.id)[0]


def settlement_of(world: World, row: Row) -> Settlement:
    return next(s for s, _ in world.store.settlements if s.claim.id == row.id)


def raising(error: BaseException) -> Callable[..., Awaitable[object]]:
    async def work(ctx: Context, *args: object) -> object:
        raise error

    return work


# Outcomes.


async def test_a_job_whose_handler_returns_is_done(world: World) -> None:
    async def work(ctx: Context, number: int) -> int:
        return 2 * number

    world.handle(work)
    assert await ended(world, world.store.add("work", 21)) == Done(42)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), Retried),
        (Transient("busy"), Retried),
        (RetryLater(90), Retried),
        (Snooze(90), Snoozed),
        (Permanent("never"), Dead),
        (Invalid("bad"), Dead),
        (SystemExit(3), Retried),
        (KeyboardInterrupt(), Retried),
        (GeneratorExit(), Retried),
        (CancelOnce(), Retried),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_what_a_handler_raises_makes_the_outcome_and_never_ends_the_actor(
    world: World, error: BaseException, expected: type[Outcome]
) -> None:
    world.handle(raising(error))
    world.handle_taking(1, name="next")
    assert isinstance(await ended(world, world.store.add()), expected)
    await ended(world, world.store.add("next"))
    assert world.diary.crashes == []


async def test_a_retried_job_runs_again_after_the_delay_that_it_asked_for(world: World) -> None:
    world.handle(raising(RetryLater("1h")), retry=Retry(3))
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert row.starts_at == [0, HOUR_S, 2 * HOUR_S]
    assert isinstance(row.outcome, Dead)
    assert row.outcome.reason == "exhausted"
    assert len(row.history.errors) == 3


async def test_hour_long_backoffs_cost_no_time_and_grow(world: World) -> None:
    world.handle(raising(ValueError("no")), retry=Retry(6, base="1h", max="3h"))
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert len(row.starts_at) == 6
    delays = [o.delay_s for o in world.store.outcomes(row.id) if isinstance(o, Retried)]
    assert all(0 <= delay <= min(3, 2**n) * HOUR_S for n, delay in enumerate(delays))
    assert len(set(delays)) == 5


async def test_a_snoozed_job_runs_again_without_using_an_attempt(world: World) -> None:
    seen: list[int] = []

    async def work(ctx: Context) -> None:
        seen.append(ctx.attempt)
        if len(seen) < 5:
            raise Snooze("10m")

    world.handle(work, retry=Retry(1))
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert row.starts_at == [0, 600, 1200, 1800, 2400]
    assert row.outcome == Done(None)
    assert seen == [1] * 5


async def test_a_job_that_runs_longer_than_the_workers_timeout_is_retried(world: World) -> None:
    world.handle_taking(1000)
    row = world.store.add()
    world.serve(world.actor(timeout_s=60))
    await world.until(lambda: world.store.outcomes(row.id))
    [outcome] = world.store.outcomes(row.id)
    assert isinstance(outcome, Retried)
    assert outcome.failure.error == "TimeoutError"
    assert world.now == 60


async def test_a_handlers_own_timeout_goes_before_the_workers(world: World) -> None:
    async def work(ctx: Context) -> None:
        await trio.sleep(1000)

    world.handle(work, timeout_s=7)
    assert isinstance(await ended(world, world.store.add()), Retried)
    assert world.now == 7


# Without a run.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"unreadable": "a list"}, Dead("undecodable", Failure("Undecodable", "a list", "validation"))),
        ({"abort": True}, Cancelled()),
        ({"history": History(crashes=3)}, "crashed"),
        ({"expires_s": -1.0}, "expired"),
        ({"job_try": 9}, "exhausted"),
    ],
    ids=["undecodable", "aborted", "crashed", "expired", "exhausted"],
)  # fmt: skip
async def test_a_job_that_is_not_to_be_run_gets_its_outcome_and_takes_no_slot(
    world: World, options: dict[str, Any], expected: Outcome | str
) -> None:
    world.handle_taking(1)
    row = world.store.add(**options)
    outcome = await ended(world, row)
    assert outcome == expected or (isinstance(outcome, Dead) and outcome.reason == expected)
    assert world.ran == []
    assert world.diary.starts == []
    assert world.statistics.peak == 0
    assert world.keeper.held == {}


async def test_a_job_for_an_unknown_handler_waits_ever_longer_and_is_dead_after_a_day(world: World) -> None:
    row = world.store.add("nobody")
    world.serve(world.actor(lease_s=300))
    await world.until(lambda: row.outcome)
    outcomes = world.store.outcomes(row.id)
    delays = [o.delay_s for o in outcomes if isinstance(o, Released)]
    assert delays[:10] == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(delays[10:]) == {300}
    assert isinstance(row.outcome, Dead)
    assert row.outcome.reason == "unknown-handler"
    assert 24 * HOUR_S <= world.now <= 24 * HOUR_S + 300
    assert row.starts == 1


async def test_jobs_that_are_not_run_do_not_keep_others_from_running(world: World) -> None:
    world.handle_taking(1)
    for _ in range(30):
        world.store.add("nobody")
    row = world.store.add()
    world.serve(world.actor(size=1))
    await world.until(lambda: row.outcome)
    assert world.now < 5


# What a handler sees.


async def test_a_handler_sees_its_job(world: World) -> None:
    seen: dict[str, Any] = {}

    async def work(ctx: Context) -> None:
        seen.update(
            ctx, queue=ctx.queue, handler=ctx.handler, attempt=ctx.attempt, crashes=ctx.crashes, shown=repr(ctx)
        )
        seen["at"] = ctx.enqueued_at
        assert len(ctx) == 4
        with pytest.raises(KeyError):
            ctx["redis"]

    world.handle(work)
    row = world.store.add(history=History(crashes=1), job_try=2)
    assert await ended(world, row) == Done(None)
    moment = datetime.fromtimestamp(EPOCH_MS / 1000, UTC)
    assert seen == {
        "job_id": row.id,
        "job_try": 2,
        "enqueue_time": moment,
        "score": 1_000_000,
        "queue": "q",
        "handler": "work",
        "attempt": 2,
        "crashes": 1,
        "shown": f"<Context work job={row.id} attempt=2>",
        "at": moment,
    }


async def test_a_step_that_an_earlier_attempt_finished_is_not_taken_again(world: World) -> None:
    taken: list[str] = []

    async def pay(what: str) -> str:
        taken.append(what)
        return f"paid {what}"

    async def work(ctx: Context) -> str:
        receipt = await ctx.once("pay", pay, "rent")
        if ctx.attempt == 1:
            raise RetryLater(1)
        return receipt

    world.handle(work)
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert row.outcome == Done("paid rent")
    assert taken == ["rent"]


@pytest.mark.parametrize(("there", "takes"), [("found", 1), (None, 2)])
async def test_a_step_of_which_nobody_knows_whether_it_was_taken_is_looked_up_first(
    world: World, there: str | None, takes: int
) -> None:
    taken: list[str] = []

    async def pay(what: str) -> str:
        taken.append(what)
        if len(taken) == 1:
            raise ConnectionError("the answer was lost")
        return "taken again"

    async def look(what: str) -> str | None:
        assert what == "rent"
        return there

    async def work(ctx: Context) -> str:
        return await ctx.once("pay", Checked(pay, check=look), "rent")

    world.handle(work)
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert row.outcome == Done(there or "taken again")
    assert len(taken) == takes


async def test_a_plain_step_of_which_nobody_knows_whether_it_was_taken_is_taken_again(world: World) -> None:
    taken: list[str] = []

    async def pay() -> str:
        taken.append("rent")
        if len(taken) == 1:
            raise ConnectionError("the answer was lost")
        return "paid"

    async def work(ctx: Context) -> str:
        return await ctx.once("pay", pay)

    world.handle(work)
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert row.outcome == Done("paid")
    assert len(taken) == 2


# Notices.


async def test_a_run_whose_lease_is_lost_is_cancelled_and_nothing_is_settled(world: World) -> None:
    world.handle_taking(1000)
    row = world.store.add()
    actor = world.actor(size=1)
    world.serve(actor)
    await world.at(5)
    world.store.take_from(row)
    world.keeper.notify(row, "lost")
    await world.at(6)
    assert actor.slots.free == 1
    assert world.diary.losses == [row.id]
    await world.at(HOUR_S)
    assert world.store.settlements == []
    assert world.diary.ends == []
    assert world.keeper.held == {}


async def test_a_run_that_learns_from_the_store_that_its_lease_is_lost_settles_nothing(world: World) -> None:
    world.handle(raising(LeaseLost("another has it")))
    row = world.store.add()
    actor = world.actor(size=1)
    world.serve(actor)
    await world.at(HOUR_S)
    assert row.starts_at == [0]
    assert world.store.settlements == []
    assert world.keeper.held == {}
    assert actor.slots.free == 1


async def test_a_run_that_returns_although_its_lease_is_lost_settles_nothing(world: World) -> None:
    async def work(ctx: Context) -> str:
        with suppress(CancelOnce):
            await trio.sleep(1000)
        return "made"

    world.handle(work)
    row = world.store.add()
    world.serve(world.actor())
    await world.at(5)
    world.keeper.notify(row, "lost")
    await world.at(HOUR_S)
    assert world.store.settlements == []


async def test_a_job_that_is_aborted_while_it_runs_is_cancelled(world: World) -> None:
    world.handle_taking(1000)
    row = world.store.add()
    world.serve(world.actor())
    await world.at(5)
    world.keeper.notify(row, "abort")
    await world.rest()
    assert world.store.outcomes(row.id) == [Cancelled()]
    assert world.statistics.failed == 1


async def test_a_job_that_returns_in_spite_of_its_abort_is_done(world: World) -> None:
    async def work(ctx: Context) -> str:
        try:
            await trio.sleep(1000)
        except CancelOnce:
            await trio.sleep(1)
        return "made"

    world.handle(work)
    row = world.store.add()
    world.serve(world.actor())
    await world.at(5)
    world.keeper.notify(row, "abort")
    await world.at(7)
    assert world.store.outcomes(row.id) == [Done("made")]
    assert world.store.settlements[0][0].claim.abort_ms is not None, "its flag goes with it"


@pytest.mark.parametrize(
    ("how", "why"), [("abort", "user"), ("timeout", "timeout"), ("shutdown", "shutdown"), ("lost", "lost lease")]
)
async def test_a_handler_can_read_why_it_is_cancelled(world: World, how: str, why: str) -> None:
    read: list[str | None] = []

    async def work(ctx: Context) -> None:
        read.append(ctx.cancel_reason)
        try:
            await trio.sleep(1000)
        except CancelOnce:
            read.append(ctx.cancel_reason)
            raise
        finally:
            await trio.sleep(0.5)
            read.append(ctx.cancel_reason)

    world.handle(work, timeout_s=10, retry=Retry(1))
    row = world.store.add()
    actor = world.actor()
    served = world.serve(actor)
    await world.at(5)
    if how == "shutdown":
        served.hurry()
    elif how != "timeout":
        world.keeper.notify(row, "abort" if how == "abort" else "lost")
    await world.at(20)
    assert read == [None, why, why]


async def test_the_first_reason_to_cancel_stands(world: World) -> None:
    read: list[str | None] = []

    async def work(ctx: Context) -> None:
        with suppress(CancelOnce):
            await trio.sleep(1000)
        read.append(ctx.cancel_reason)
        with suppress(CancelOnce):
            await trio.sleep(1000)
        read.append(ctx.cancel_reason)

    world.handle(work, timeout_s=10)
    row = world.store.add()
    world.serve(world.actor())
    await world.at(11)
    world.keeper.notify(row, "abort")
    await world.at(12)
    assert read == ["timeout", "timeout"]


@pytest.mark.parametrize("first", ["timeout", "shutdown"])
async def test_a_job_that_is_aborted_while_it_stops_for_another_reason_does_not_run_again(
    world: World, first: str
) -> None:
    async def work(ctx: Context) -> None:
        try:
            await trio.sleep(1000)
        finally:
            with suppress(CancelOnce):
                await trio.sleep(1000)

    world.handle(work, timeout_s=10)
    row = world.store.add()
    served = world.serve(world.actor())
    await world.at(9)
    if first == "shutdown":
        served.hurry()
    await world.at(10.5)
    world.keeper.notify(row, "abort")
    await world.at(11)
    assert world.store.outcomes(row.id) == [Cancelled()]


async def test_a_handler_that_cancels_something_of_its_own_has_no_reason(world: World) -> None:
    read: list[str | None] = []

    async def work(ctx: Context) -> None:
        with trio.move_on_after(1):
            await trio.sleep(1000)
        read.append(ctx.cancel_reason)

    world.handle(work)
    row = world.store.add()
    assert isinstance(await ended(world, row), Done)
    assert read == [None]


async def test_progress_goes_to_the_board_and_lets_others_run(world: World) -> None:
    async def work(ctx: Context) -> None:
        await ctx.progress(1)
        while not others:
            await ctx.progress(1)
        await ctx.progress(2, 2, "rendering")

    others: list[str] = []

    async def other(ctx: Context) -> None:
        others.append("ran")

    world.handle(work)
    world.handle(other, name="other")
    row = world.store.add()
    world.store.add("other")
    assert isinstance(await ended(world, row), Done)
    first, *_, last = world.board.told
    assert [first, last] == [(row.id, 1, None, ""), (row.id, 2, 2, "rendering")]


async def test_progress_that_cannot_be_shown_fails_for_good_and_is_not_shown(world: World) -> None:
    async def work(ctx: Context) -> None:
        await ctx.progress(-1)

    world.handle(work)
    row = world.store.add()
    outcome = await ended(world, row)
    assert isinstance(outcome, Dead)
    assert (outcome.reason, outcome.failure.error) == ("permanent", "runtime.ProgressInvalid")
    assert world.board.told == []


async def test_a_notice_for_a_job_that_has_ended_is_ignored(world: World) -> None:
    world.handle_taking(1)
    row = world.store.add()
    world.store.slow_s["settle"] = 10
    world.serve(world.actor())
    await world.at(5)
    world.keeper.notify(row, "abort")
    world.keeper.notify(row, "lost")
    await world.at(20)
    assert world.store.outcomes(row.id) == [Done(row.id)]
    assert world.diary.losses == []


# Runs that do not stop.


class Stubborn:
    """A handler that swallows every cancel until it is let go."""

    def __init__(self, world: World) -> None:
        self.let_go = trio.Event()
        world.handle(self.work, name="stubborn")

    async def work(self, ctx: Context) -> str:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except CancelOnce:
                continue
        return "late"


async def test_a_run_that_does_not_stop_makes_a_dead_letter_and_its_slot_is_lost_until_it_ends(world: World) -> None:
    stubborn = Stubborn(world)
    world.handle_taking(1)
    row = world.store.add("stubborn")
    actor = world.actor(size=2, timeout_s=60)
    world.serve(actor)
    await world.until(lambda: row.outcome)
    assert world.now == 60 + STUCK_S
    assert isinstance(row.outcome, Dead)
    assert row.outcome.reason == "stuck"
    assert world.diary.stuck_ids == [row.id]
    assert (actor.slots.free, actor.slots.stuck) == (1, 1)
    assert world.keeper.held == {}

    others = [world.store.add() for _ in range(4)]
    await world.until(lambda: all(other.outcome for other in others))
    assert {when for _, when in world.ran} == {70, 71, 72, 73}

    stubborn.let_go.set()
    await world.rest()
    assert (actor.slots.free, actor.slots.stuck) == (2, 0)
    assert len(world.store.outcomes(row.id)) == 1
    assert world.statistics.running == 0


async def test_a_worker_whose_slots_are_all_lost_goes_on_when_one_comes_back(world: World) -> None:
    stubborn = Stubborn(world)
    world.handle_taking(1)
    world.store.add("stubborn")
    waiting = world.store.add()
    world.serve(world.actor(size=1, timeout_s=60))
    await world.at(HOUR_S)
    assert waiting.starts_at == []
    stubborn.let_go.set()
    await world.until(lambda: waiting.outcome)
    assert waiting.starts_at == [HOUR_S]


async def test_a_stuck_run_whose_lease_was_lost_settles_nothing(world: World) -> None:
    Stubborn(world)
    row = world.store.add("stubborn")
    actor = world.actor(size=2)
    world.serve(actor)
    await world.at(5)
    world.store.take_from(row)
    world.keeper.notify(row, "lost")
    await world.at(HOUR_S)
    assert world.store.settlements == []
    assert actor.slots.stuck == 1


# A journal with a bug of ours: what is told is lost, but no job.


def break_journal(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def told(*_: object) -> None:
        raise RuntimeError("of ours")

    monkeypatch.setattr(world.diary, name, told)


async def test_an_outcome_that_cannot_be_told_is_settled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    break_journal(world, monkeypatch, "ended")
    row = world.store.add("nobody-knows-it")
    with pytest.raises(ExceptionGroup):
        await world.actor().run()
    assert isinstance(world.store.outcomes(row.id)[0], Released)
    assert world.keeper.held == {}


async def test_a_lost_lease_that_cannot_be_told_stops_its_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    break_journal(world, monkeypatch, "lost")
    world.handle_taking(HOUR_S)
    row = world.store.add()
    actor = world.actor()
    world.serve(actor)
    await world.at(5)
    world.store.take_from(row)
    with suppress(RuntimeError):
        world.keeper.notify(row, "lost")
    await world.at(6)
    assert actor.slots.claims == []


async def test_a_run_whose_begin_cannot_be_told_is_left_to_lapse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never began: it is not to be taken for one that does not stop."""
    break_journal(world, monkeypatch, "started")
    world.handle_taking(1)
    row = world.store.add()
    actor = world.actor()
    with pytest.raises(ExceptionGroup):
        await actor.run()
    assert (actor.slots.free, actor.slots.stuck, world.keeper.held) == (3, 0, {})
    assert row.outcome is None
    assert world.statistics.running == 0


# What is told and remembered.


async def test_the_journal_and_the_statistics_follow_a_job(world: World) -> None:
    async def work(ctx: Context, how: str) -> None:
        await trio.sleep(1)
        match how:
            case "fail":
                raise Permanent("never")
            case "retry" if ctx.attempt == 1:
                raise RetryLater(1)

    world.handle(work)
    rows = [world.store.add("work", how, id=how) for how in ("fine", "fail", "retry")]
    world.serve(world.actor(size=3))
    await world.until(lambda: all(row.outcome for row in rows))
    await world.rest()
    assert world.diary.starts == [("fine", 1), ("fail", 2), ("retry", 3), ("retry", 1)]
    assert sorted(running for _, running in world.diary.ends[:3]) == [0, 1, 2]
    assert len(world.diary.verdicts) == 4
    counted = world.statistics
    assert (counted.processed, counted.succeeded, counted.failed, counted.retried) == (3, 2, 1, 1)
    assert (counted.running, counted.peak) == (0, 3)
    assert world.keeper.held == {}


async def test_a_refused_outcome_is_not_counted(world: World) -> None:
    world.handle_taking(1)
    row = world.store.add()
    world.serve(world.actor())
    await world.at(0.5)
    world.store.take_from(row)
    await world.at(2)
    assert [verdict for _, verdict in world.diary.verdicts] == ["refused"]
    assert world.statistics.processed == 0
    assert world.keeper.held == {}


async def test_a_job_remembers_its_last_ten_errors(world: World) -> None:
    count = 0

    async def work(ctx: Context) -> None:
        nonlocal count
        count += 1
        raise ValueError(f"error {count}")

    world.handle(work, retry=Retry(12))
    row = world.store.add()
    await ended(world, row)
    await world.until(lambda: row.outcome)
    assert [record.text for record in row.history.errors] == [f"error {n}" for n in range(3, 13)]
    assert all(isinstance(record, ErrorRecord) and record.error == "ValueError" for record in row.history.errors)


async def test_a_lease_is_kept_until_the_outcome_is_settled(world: World) -> None:
    world.handle_taking(1)
    world.store.add()
    world.store.slow_s["settle"] = 10
    world.serve(world.actor())
    await world.at(10.5)
    assert len(world.keeper.held) == 1
    await world.at(12)
    assert world.keeper.held == {}


# Jobs that may have killed their workers.


async def test_a_job_that_may_have_killed_its_workers_is_run_beside_no_other_such(world: World) -> None:
    world.handle_taking(30)
    suspects = [world.store.add(history=History(crashes=2)) for _ in range(3)]
    others = [world.store.add(history=History(crashes=1)), world.store.add()]
    world.serve(world.actor(size=5))
    await world.until(lambda: all(row.outcome for row in (*suspects, *others)))
    assert all(isinstance(row.outcome, Done) for row in (*suspects, *others))
    starts = sorted(row.starts_at[-1] for row in suspects)
    assert starts[1] - starts[0] >= 30
    assert starts[2] - starts[1] >= 30
    assert starts[2] <= 2 * (30 + SUSPECT_DELAY_S[1])
    assert {row.starts_at[0] for row in others} == {starts[0]}
    assert [row.starts for row in suspects] == [1, 1, 1]  # being put off costs no attempt


async def test_many_that_may_have_killed_their_workers_do_not_wait_for_each_other_in_step(world: World) -> None:
    world.handle_taking(0.1)
    suspects = [world.store.add(history=History(crashes=2)) for _ in range(40)]
    world.serve(world.actor(size=40))
    await world.until(lambda: all(row.outcome for row in suspects))
    assert max(row.starts_at[-1] for row in suspects) < 15 * SUSPECT_DELAY_S[1] / 2  # in step it would be 39 times that
