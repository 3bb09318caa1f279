"""How an actor stops, and how it dies: what runs ends or is given back, and nothing is held by nobody."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from runtime.core.errors import RetryLater
from runtime.core.job import Claim, Dead, Done, Released, Retried
from runtime.core.retry import Retry
from runtime.engine.actor import LAST_SETTLE_S, STOP_GRACE_S
from runtime.engine.context import Context
from runtime.ports import SHIELD_MOST_S
from tests.engine.world import STUCK_S, CancelOnce, World

HOUR_S = 3600.0


class Stubborn:
    """A handler that swallows every cancel until it is let go."""

    def __init__(self, world: World) -> None:
        self.let_go = trio.Event()
        world.handle(self.work)

    async def work(self, ctx: Context) -> str:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except CancelOnce:
                continue
        return "late"


# Draining.


async def test_drain_lets_running_work_finish_and_then_returns(world: World) -> None:
    world.handle_taking(100)
    rows = [world.store.add() for _ in range(5)]
    serving = world.serve(world.actor(size=3))
    await world.at(10)
    serving.drain()
    assert await serving.end() == 100
    assert [row.outcome for row in rows[:3]] == [Done(row.id) for row in rows[:3]]
    assert [row.starts_at for row in rows[3:]] == [[], []]
    assert world.keeper.held == {}


async def test_nothing_is_claimed_after_drain(world: World) -> None:
    world.handle_taking(100)
    world.store.add()
    serving = world.serve(world.actor(size=3))
    await world.at(10)
    serving.drain()
    await world.at(10.1)
    row = world.store.add()
    await serving.end()
    assert world.store.times("claim") == [0, 0, 10]  # the others found the queue empty
    assert row.starts_at == []


async def test_drain_of_an_idle_actor_returns_at_once(world: World) -> None:
    serving = world.serve(world.actor("a", "b"))
    await world.at(HOUR_S)
    serving.drain()
    assert await serving.end() == HOUR_S


async def test_an_actor_that_is_drained_before_it_runs_claims_nothing(world: World) -> None:
    world.store.add()
    actor = world.actor()
    actor.drain()
    assert await world.serve(actor).end() == 0
    assert world.store.times("claim") == []


@pytest.mark.parametrize("second", ["drain", "hurry"])
async def test_an_actor_may_be_told_to_stop_again_and_after_its_end(world: World, second: str) -> None:
    serving = world.serve(world.actor())
    await world.at(1)
    serving.drain()
    getattr(serving, second)()
    assert await serving.end() == 1
    getattr(serving, second)()
    assert serving.error is None


async def test_outcomes_of_the_last_moment_are_settled_before_drain_returns(world: World) -> None:
    world.handle_taking(10)
    row = world.store.add()
    world.store.slow_s["settle"] = 60
    serving = world.serve(world.actor())
    await world.at(1)
    serving.drain()
    assert await serving.end() == 70
    assert row.outcome == Done(row.id)


async def test_a_job_that_failed_while_draining_is_left_to_other_workers(world: World) -> None:
    async def work(ctx: Context) -> None:
        await trio.sleep(5)
        raise RetryLater(0)

    world.handle(work)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(1)
    serving.drain()
    await serving.end()
    assert row.starts_at == [0]
    assert isinstance(world.store.outcomes(row.id)[0], Retried)


async def test_a_drained_actor_announces_its_queues_to_other_workers(world: World) -> None:
    serving = world.serve(world.actor("a", "b"))
    await world.at(10)
    serving.drain()
    await serving.end()
    assert world.store.times("announce") == [10, 10]
    assert list(world.store.marks) == ["a", "b"]


async def test_an_announcement_that_hangs_does_not_hold_up_the_end(world: World) -> None:
    world.store.slow_s["announce"] = HOUR_S
    serving = world.serve(world.actor())
    await world.at(10)
    serving.drain()
    assert await serving.end() == 10.3


async def test_drain_waits_for_a_store_that_is_away_as_long_as_nobody_hurries_it(world: World) -> None:
    world.handle_taking(10)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)
    world.store.go_away()
    serving.drain()
    await world.at(HOUR_S)
    assert not serving.over
    world.store.come_back()
    await serving.end()
    assert world.store.outcomes(row.id) == [Done(row.id)]


async def test_drain_does_not_wait_for_a_run_whose_job_is_a_dead_letter_already(world: World) -> None:
    Stubborn(world)
    world.store.add()
    serving = world.serve(world.actor(timeout_s=60))
    await world.at(10)
    serving.drain()
    assert await serving.end() == 60 + STUCK_S


async def test_drain_does_not_wait_for_a_stuck_run_whose_lease_was_lost(world: World) -> None:
    Stubborn(world)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)
    world.store.take_from(row)
    world.keeper.notify(row, "lost")
    serving.drain()
    await world.at(5 + STUCK_S + 1)
    assert serving.over


# Hurrying.


async def test_hurry_cancels_what_runs_and_gives_it_back_with_its_attempt(world: World) -> None:
    world.handle_taking(HOUR_S)
    rows = [world.store.add() for _ in range(3)]
    serving = world.serve(world.actor(size=3))
    await world.at(10)
    serving.hurry()
    assert await serving.end() == 10
    for row in rows:
        assert world.store.outcomes(row.id) == [Released("shutdown")]
        assert row.starts == 0
        assert row.due_at == 1000.0
        assert row.history.errors == ()
    assert world.keeper.held == {}
    assert world.statistics.failed == 0


async def test_hurry_after_drain_gives_back_what_is_still_running(world: World) -> None:
    world.handle_taking(HOUR_S, name="long")
    world.handle_taking(20, name="short")
    long, short = world.store.add("long"), world.store.add("short")
    serving = world.serve(world.actor())
    await world.at(10)
    serving.drain()
    await world.at(30)
    serving.hurry()
    assert await serving.end() == 30
    assert world.store.outcomes(short.id) == [Done(short.id)]
    assert world.store.outcomes(long.id) == [Released("shutdown")]


async def test_a_job_that_was_given_back_runs_again_elsewhere_as_if_for_the_first_time(world: World) -> None:
    seen: list[int] = []

    async def work(ctx: Context) -> None:
        seen.append(ctx.attempt)
        await trio.sleep(10)

    world.handle(work)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)
    serving.hurry()
    await serving.end()
    world.serve(world.actor())
    await world.until(lambda: row.outcome)
    assert seen == [1, 1]


async def test_an_actor_that_is_hurried_before_it_runs_claims_nothing(world: World) -> None:
    world.store.add()
    actor = world.actor()
    actor.hurry()
    assert await world.serve(actor).end() == 0
    assert world.store.times("claim") == []


async def test_hurry_in_the_middle_of_a_claim_gives_back_what_it_brings(world: World) -> None:
    world.handle_taking(HOUR_S)
    serving = world.serve(world.actor())
    await world.at(10)
    world.store.slow_s["claim"] = 3
    rows = [world.store.add() for _ in range(3)]
    await world.at(11)
    serving.hurry()
    assert await serving.end() == 13
    assert [world.store.outcomes(row.id) for row in rows] == [[Released("shutdown")]] * 3
    assert "claim" not in world.store.interrupted


async def test_a_cancelled_handler_may_clean_up(world: World) -> None:
    cleaned: list[float] = []

    async def work(ctx: Context) -> None:
        try:
            await trio.sleep(HOUR_S)
        finally:
            await trio.sleep(1)
            cleaned.append(world.now)

    world.handle(work)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(10)
    serving.hurry()
    assert await serving.end() == 11
    assert cleaned == [11]
    assert world.store.outcomes(row.id) == [Released("shutdown")]


async def test_a_handler_that_finishes_although_it_was_cancelled_is_done(world: World) -> None:
    async def work(ctx: Context) -> str:
        try:
            await trio.sleep(HOUR_S)
        except CancelOnce:
            await trio.sleep(1)
        return "made"

    world.handle(work)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(10)
    serving.hurry()
    await serving.end()
    assert world.store.outcomes(row.id) == [Done("made")]


async def test_the_end_waits_for_a_shield_and_no_longer(world: World) -> None:
    cleaned: list[float] = []

    async def work(ctx: Context) -> None:
        try:
            await trio.sleep(HOUR_S)
        finally:
            with ctx.shield("6s"):
                await trio.sleep(5)
            cleaned.append(world.now)

    async def other(ctx: Context) -> None:
        try:
            await trio.sleep(HOUR_S)
        finally:
            with ctx.shield("1h"):
                await trio.sleep(HOUR_S)

    world.handle(work)
    world.handle(other, name="other")
    rows = [world.store.add(), world.store.add("other")]
    serving = world.serve(world.actor())
    await world.at(10)
    serving.hurry()
    assert await serving.end() == 10 + SHIELD_MOST_S
    assert cleaned == [15]
    assert [world.store.outcomes(row.id) for row in rows] == [[Released("shutdown")]] * 2


async def test_who_goes_on_after_its_shield_is_given_back_so_long_after_it(world: World) -> None:
    let_go = trio.Event()

    async def work(ctx: Context) -> None:
        with suppress(CancelOnce):
            await trio.sleep(HOUR_S)
        with suppress(CancelOnce), ctx.shield("5s"):
            await trio.sleep(HOUR_S)
        while not let_go.is_set():
            with suppress(CancelOnce):
                await let_go.wait()

    world.handle(work)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(10)
    serving.hurry()
    assert await serving.end() == 10 + 5 + STOP_GRACE_S
    assert world.store.outcomes(row.id) == [Released("shutdown")]
    let_go.set()


async def test_a_shield_lets_a_job_that_timed_out_clean_up_for_so_long(world: World) -> None:
    ended: list[float] = []

    async def work(ctx: Context) -> None:
        try:
            await trio.sleep(HOUR_S)
        finally:
            try:
                with ctx.shield(8):
                    await trio.sleep(HOUR_S)
            finally:
                ended.append(world.now)

    world.handle(work, timeout_s=20, retry=Retry(1))
    row = world.store.add()
    world.serve(world.actor())
    await world.until(lambda: row.outcome)
    assert ended == [28]
    assert isinstance(row.outcome, Dead)
    assert row.outcome.failure.error == "TimeoutError"


async def test_a_handler_that_swallows_its_cancel_is_given_back_and_does_not_hold_up_the_end(world: World) -> None:
    stubborn = Stubborn(world)
    rows = [world.store.add() for _ in range(3)]
    serving = world.serve(world.actor())
    await world.at(10)
    serving.hurry()
    assert await serving.end() == 10 + STOP_GRACE_S
    assert [world.store.outcomes(row.id) for row in rows] == [[Released("shutdown")]] * 3
    assert [row.starts for row in rows] == [0, 0, 0]
    stubborn.let_go.set()
    await world.rest()
    assert [len(world.store.outcomes(row.id)) for row in rows] == [1, 1, 1]


async def test_a_run_whose_lease_was_lost_is_not_given_back(world: World) -> None:
    Stubborn(world)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(10)
    world.store.take_from(row)
    world.keeper.notify(row, "lost")
    serving.hurry()
    await serving.end()
    assert world.store.settlements == []


async def test_hurry_does_not_wait_for_ever_for_a_store_that_is_away(world: World) -> None:
    world.handle_taking(HOUR_S)
    world.store.add()
    actor = world.actor()
    serving = world.serve(actor)
    await world.at(10)
    world.store.go_away()
    serving.hurry()
    assert await serving.end() <= 10 + 1 + STOP_GRACE_S + LAST_SETTLE_S
    assert len(actor.unsettled) == 1


async def test_hurry_ends_a_drain_that_waits_for_a_store_that_is_away(world: World) -> None:
    world.handle_taking(10)
    world.store.add()
    actor = world.actor()
    serving = world.serve(actor)
    await world.at(5)
    world.store.go_away()
    serving.drain()
    await world.at(100)
    serving.hurry()
    assert await serving.end() == 100 + LAST_SETTLE_S
    assert len(actor.unsettled) == 1


# Dying of a bug.


async def test_a_bug_in_the_claim_gives_back_what_runs_and_ends_the_actor(world: World) -> None:
    world.handle_taking(HOUR_S)
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)
    world.store.bugs["claim"] = RuntimeError("a bug")
    world.store.add()
    await serving.end()
    assert isinstance(serving.error, Exception)
    assert world.store.outcomes(row.id) == [Released("shutdown")]
    assert row.starts == 0
    assert world.keeper.held == {}


async def test_a_bug_while_settling_loses_no_outcome(world: World) -> None:
    world.handle_taking(10)
    rows = [world.store.add() for _ in range(2)]
    world.handle_taking(HOUR_S, name="long")
    long = world.store.add("long")
    serving = world.serve(world.actor())
    world.store.bugs["settle"] = RuntimeError("a bug")
    await serving.end()
    assert isinstance(serving.error, Exception)
    assert [world.store.outcomes(row.id) for row in rows] == [[Done(row.id)] for row in rows]
    assert world.store.outcomes(long.id) == [Released("shutdown")]
    assert world.keeper.held == {}


async def test_an_actor_that_dies_in_the_middle_of_a_claim_gives_back_what_it_brings(world: World) -> None:
    world.handle_taking(10)
    first, second = world.store.add(), world.store.add()
    serving = world.serve(world.actor(size=1))
    await world.at(9)
    world.store.slow_s["claim"] = 5
    world.store.bugs["settle"] = RuntimeError("a bug")
    await serving.end()
    assert world.store.outcomes(first.id) == [Done(first.id)]
    assert world.store.outcomes(second.id) == [Released("shutdown")]
    assert world.keeper.held == {}


async def test_an_actor_that_dies_while_the_store_is_away_leaves_no_lease_that_somebody_keeps(world: World) -> None:
    world.handle_taking(HOUR_S)
    world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)
    world.store.bugs["wait"] = RuntimeError("a bug")
    world.store.add()
    world.store.refused["settle"] = "out of memory"
    await serving.end()
    assert serving.error is not None
    # Nobody runs the job any more, so its lease has to lapse.
    assert world.keeper.held == {}


async def test_an_outcome_that_cannot_be_sent_leaves_no_lease_that_somebody_keeps(world: World) -> None:
    world.handle_taking(10)
    world.store.add()
    serving = world.serve(world.actor())
    await world.at(5)

    async def settle(*_: object) -> None:
        raise TypeError("a result that nobody can encode")

    world.store.settle = settle  # type: ignore[method-assign, assignment]
    await serving.end()
    assert serving.error is not None
    assert world.keeper.held == {}


async def test_a_bug_while_starting_jobs_leaves_no_lease_that_somebody_keeps(world: World) -> None:
    world.handle_taking(HOUR_S)
    rows = [world.store.add() for _ in range(3)]
    started = world.diary.started

    def start_or_break(claim: Claim, running: int) -> None:
        if claim.id == rows[1].id:
            raise RuntimeError("a bug")
        started(claim, running)

    world.diary.started = start_or_break  # type: ignore[method-assign]
    serving = world.serve(world.actor())
    await serving.end()
    assert serving.error is not None
    assert world.store.outcomes(rows[0].id) == [Released("shutdown")]
    assert world.keeper.held == {}


async def test_an_actor_that_is_cancelled_from_outside_gives_back_what_runs(world: World) -> None:
    world.handle_taking(HOUR_S)
    row = world.store.add()
    actor = world.actor()
    scope = trio.CancelScope()
    over = trio.Event()

    async def run() -> None:
        with scope:
            await actor.run()
        over.set()

    world.nursery.start_soon(run)
    await world.at(5)
    world.store.slow_s["settle"] = 1
    scope.cancel()
    await over.wait()
    assert world.store.outcomes(row.id) == [Released("shutdown")]
    assert world.keeper.held == {}
