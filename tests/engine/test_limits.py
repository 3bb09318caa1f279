"""Tokens for a job: waited for in its slot, or not; and what that does to the queue."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from runtime.core.errors import LimitInvalid
from runtime.core.job import Cancelled, Dead, Done, Outcome, Released, Retried, Snoozed
from runtime.core.limits import Bucket, Concurrency
from runtime.core.retry import Retry
from runtime.engine.context import Context
from runtime.engine.drought import LONGEST_S
from tests.engine.test_slots import ended, settlement_of
from tests.engine.world import CancelOnce, Row, World

ONE_A_SECOND = Bucket("judit", "1/s", burst=1)
TOKENS = Bucket("openai.tokens", "10/s", burst=50)
EXPORTS = Concurrency("exports", 2)
ALONE = Concurrency("alone", 1)


def outcomes(world: World) -> list[Outcome]:
    return [settlement.outcome for settlement, _ in world.store.settlements]


def unfinished(rows: list[Row]) -> list[Row]:
    """Trio draws lots for who comes first."""
    return [row for row in rows if not row.outcome]


async def test_jobs_wait_in_their_slots_and_run_one_after_the_other(world: World) -> None:
    async def work(ctx: Context) -> None:
        world.ran.append((ctx.job_id, world.now))

    world.handle(work, limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(3)]
    world.serve(world.actor())
    await world.until(lambda: all(row.outcome for row in rows))
    assert [at for _, at in world.ran] == [0, 1, 2]
    last = next(row for row in rows if row.id == world.ran[2][0])
    assert settlement_of(world, last).waited_s == pytest.approx(2)
    assert (last.id, "limit judit") in world.diary.parts


async def test_a_wait_is_no_part_of_the_timeout(world: World) -> None:
    async def work(ctx: Context) -> str:
        await trio.sleep(2)
        return ctx.job_id

    world.handle(work, timeout_s=3.0, limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(3)]
    world.serve(world.actor())
    await world.until(lambda: all(row.outcome for row in rows))
    assert [row.outcome for row in rows] == [Done(row.id) for row in rows]


async def test_a_run_that_waited_is_still_held_to_its_timeout(world: World) -> None:
    async def work(ctx: Context) -> None:
        await trio.sleep_forever()

    world.handle(work, timeout_s=3.0, retry=Retry(1), limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(2)]
    world.serve(world.actor())
    await world.until(lambda: all(row.outcome for row in rows))
    assert all(isinstance(row.outcome, Dead) and "3 s" in row.outcome.failure.text for row in rows)
    assert world.now == pytest.approx(4)


async def test_over_the_patience_the_job_is_snoozed_and_its_attempt_given_back(world: World) -> None:
    async def work(ctx: Context) -> int:
        async with ctx.limit(TOKENS, cost=50, patience="3s"):
            return ctx.attempt

    world.handle(work)
    first, second = world.store.add(), world.store.add()
    world.serve(world.actor())
    await world.until(lambda: first.outcome and second.outcome)
    both = sorted((world.store.outcomes(row.id) for row in (first, second)), key=len)  # Trio draws lots
    assert both == [[Done(1)], [Snoozed(5.0, waits_for="openai.tokens"), Done(1)]]
    assert world.now == pytest.approx(5)


async def test_a_cancelled_wait_gives_back(world: World) -> None:
    async def work(ctx: Context) -> None: ...

    world.handle(work, limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(3)]
    serving = world.serve(world.actor())
    await world.at(0.5)
    aborted, released = unfinished(rows)
    world.keeper.notify(aborted, "abort")
    await world.rest()
    assert len(world.taps.left) == 1
    serving.hurry()
    await serving.end()
    assert len(world.taps.left) == 2
    assert isinstance(world.store.outcomes(aborted.id)[0], Cancelled)
    assert world.store.outcomes(released.id) == [Released("shutdown")]


async def test_giving_back_does_not_hang_on_a_store_that_is_away(world: World) -> None:
    async def work(ctx: Context) -> None: ...

    world.handle(work, limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(2)]
    world.serve(world.actor())
    await world.at(0.5)
    world.taps.away = "connection refused"
    (waiting,) = unfinished(rows)
    world.keeper.notify(waiting, "abort")
    await world.until(lambda: waiting.outcome)
    assert world.now < 5


async def test_takers_wait_while_the_store_is_away_however_long(world: World) -> None:
    async def work(ctx: Context) -> float:
        return world.now

    world.handle(work, limit=(ONE_A_SECOND,))
    world.taps.away = "connection refused"
    row = world.store.add()
    world.serve(world.actor())
    await world.at(60)
    world.taps.away = None
    await world.until(lambda: row.outcome)
    assert world.store.outcomes(row.id) == [Done(pytest.approx(60, abs=1))]
    assert any("connection refused" in text for _, text in world.diary.weathers)


async def test_a_reservation_that_was_voided_is_made_again_within_the_patience(world: World) -> None:
    async def work(ctx: Context) -> float:
        return round(world.now, 3)

    world.handle(work, limit=(ONE_A_SECOND,))
    rows = [world.store.add() for _ in range(2)]
    world.serve(world.actor())
    await world.at(0.5)
    world.taps.void()
    await world.until(lambda: all(row.outcome for row in rows))
    assert {Done(0.0), Done(2.0)} == {row.outcome for row in rows}


# What the puller does about it.


async def test_a_queue_whose_handlers_are_all_dry_is_left_alone(world: World) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(TOKENS, cost=50, patience=0):
            pass

    world.handle(work)
    for _ in range(50):
        world.store.add()
    world.serve(world.actor(size=5))
    await world.at(4.9)
    assert len(world.store.times("claim")) == 1
    assert sum(isinstance(outcome, Snoozed) for outcome in outcomes(world)) == 4
    await world.at(60)
    refused = sum(isinstance(outcome, Snoozed) for outcome in outcomes(world))
    done = sum(isinstance(outcome, Done) for outcome in outcomes(world))
    assert done >= 11
    assert refused <= 5 * done  # one for each slot


async def test_a_breaker_that_is_open_for_long_is_tried_with_one_job_now_and_then(world: World) -> None:
    async def work(ctx: Context) -> None:
        await ctx._limiter.acquire({}, breaker="openai")

    world.handle(work)
    world.taps.open.add("openai")
    rows = [world.store.add() for _ in range(20)]
    world.serve(world.actor(size=5))
    await world.at(3 * LONGEST_S - 1)
    assert 5 <= sum(len(row.starts_at) for row in rows) <= 8


async def test_a_dry_key_holds_up_nobody_else(world: World) -> None:
    async def work(ctx: Context, tenant: str) -> None:
        async with ctx.limit(ONE_A_SECOND[tenant], patience=0):
            pass

    world.handle(work)
    world.store.add("work", "a"), world.store.add("work", "a")
    world.serve(world.actor(size=1))
    await world.at(0.2)
    other = world.store.add("work", "b")
    await world.until(lambda: other.outcome)
    assert world.now < 0.5


async def test_a_dry_handler_beside_another_one_does_not_stop_the_queue(world: World) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(TOKENS, cost=50, patience=0):
            pass

    world.handle(work)
    world.handle_taking(0, name="other")
    world.store.add(), world.store.add()
    world.serve(world.actor(size=1))
    await world.at(0.2)
    row = world.store.add("other")
    await world.until(lambda: row.outcome)
    assert world.now < 0.5


# What a handler says.


async def test_a_grant_is_settled_by_use_once(world: World) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit({ONE_A_SECOND: 1, TOKENS: 20}) as grant:
            grant.settle({TOKENS: 7})
            with pytest.raises(LimitInvalid, match="once"):
                grant.settle({TOKENS: 8})

    world.handle(work)
    await ended(world, world.store.add())
    assert world.taps.settled == [{TOKENS: -13}]
    assert world.diary.crashes == []


async def test_what_is_not_settled_costs_what_was_taken(world: World) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(TOKENS, cost=20):
            raise ValueError("the call failed")

    world.handle(work, retry=Retry(1))
    await ended(world, world.store.add())
    assert world.taps.settled == []


@pytest.mark.parametrize(
    "ask",
    [
        {TOKENS: 51},
        {TOKENS: -1},
        {TOKENS: 1.5},
        {TOKENS: True},
        {"openai": 1},
        {TOKENS: 1, Bucket("openai.tokens", "5/s"): 1},
    ],
    ids=["too much", "negative", "a fraction", "a bool", "a name", "two of one name"],
)
async def test_what_can_never_be_had_is_a_dead_letter_at_once(world: World, ask: dict[Bucket, int]) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(ask):
            raise AssertionError("must not run")

    world.handle(work)
    outcome = await ended(world, world.store.add())
    assert isinstance(outcome, Dead)
    assert outcome.failure.error == "runtime.LimitInvalid"


async def test_a_handler_that_swallows_the_cancellation_of_its_wait_goes_on_without_a_grant(world: World) -> None:
    async def work(ctx: Context) -> str:
        with suppress(CancelOnce):
            async with ctx.limit(ONE_A_SECOND):
                return "granted"
        return "cut short"

    world.handle(work)
    rows = first, second = [world.store.add() for _ in range(2)]
    world.serve(world.actor())
    await world.at(0.5)
    (waiting,) = unfinished(rows)
    world.keeper.notify(waiting, "abort")
    await world.until(lambda: first.outcome and second.outcome)
    assert Done("cut short") in (first.outcome, second.outcome)
    assert not any(isinstance(outcome, Retried) for outcome in outcomes(world))


# Permits.


async def test_so_many_run_at_once_and_each_holds_its_permit_to_its_end(world: World) -> None:
    async def work(ctx: Context) -> float:
        began = world.now
        await trio.sleep(3)
        return began

    world.handle(work, limit=(EXPORTS, TOKENS))
    rows = [world.store.add() for _ in range(5)]
    world.serve(world.actor(size=5))
    await world.until(lambda: all(row.outcome for row in rows))
    began = [outcome.result for outcome in outcomes(world) if isinstance(outcome, Done)]
    assert began == [0, 0, 3, 3, 6]
    assert world.turnstile.held == []
    waited = sorted(settlement_of(world, row).waited_s for row in rows)
    assert waited == pytest.approx([0, 0, 3, 3, 6])
    assert sum(part == "limit exports" for _, part in world.diary.parts) == 3


@pytest.mark.parametrize("how", ["raises", "times out", "is aborted", "is stopped"])
async def test_however_a_run_ends_its_permits_are_given_back(world: World, how: str) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(EXPORTS):
            if how == "raises":
                raise ValueError("it failed")
            await trio.sleep(3600)

    world.handle(work, timeout_s=5.0 if how == "times out" else 7200.0, retry=Retry(1), limit=(ALONE,))
    row = world.store.add()
    serving = world.serve(world.actor())
    await world.at(1)
    if how == "is aborted":
        world.keeper.notify(row, "abort")
    if how == "is stopped":
        serving.hurry()
        await serving.end()
    else:
        await world.until(lambda: row.outcome)
    assert world.turnstile.held == []


async def test_where_there_are_no_tokens_the_permits_are_given_back(world: World) -> None:
    async def work(ctx: Context) -> int:
        if ctx.job_id == first.id:
            async with ctx.limit(TOKENS, cost=50):
                return 0
        async with ctx.limit({ALONE: 1, TOKENS: 50}, patience="1s"):
            assert len(world.turnstile.held) == 1
        return ctx.attempt

    world.handle(work)
    first = world.store.add()
    await ended(world, first)
    second = world.store.add()
    await world.until(lambda: second.outcome)
    *snoozed, done = world.store.outcomes(second.id)
    assert snoozed
    assert all(isinstance(outcome, Snoozed) and outcome.waits_for == "openai.tokens" for outcome in snoozed)
    assert done == Done(1)
    assert world.turnstile.held == []


async def test_the_patience_is_for_all_limits_together(world: World) -> None:
    async def work(ctx: Context, tokens: int) -> None:
        async with ctx.limit({ALONE: 1, TOKENS: tokens}, patience="2s"):
            await trio.sleep(1.8)

    world.handle(work)
    first = world.store.add("work", 30)
    world.serve(world.actor())
    await world.at(0.1)
    second = world.store.add("work", 50)  # has its permit at 1.8 s, and could have its tokens at 3 s
    await world.until(lambda: first.outcome and second.outcome)
    snoozed, done = world.store.outcomes(second.id)
    assert isinstance(snoozed, Snoozed)
    assert snoozed.delay_s == pytest.approx(1.2)
    assert (snoozed.waits_for, done) == ("openai.tokens", Done(None))


async def test_over_the_patience_for_a_permit_the_job_is_snoozed_and_the_queue_left_alone(world: World) -> None:
    async def work(ctx: Context) -> int:
        await trio.sleep(35)
        return ctx.attempt

    world.handle(work, limit=(ALONE,))
    rows = [world.store.add() for _ in range(2)]
    world.serve(world.actor())
    await world.until(lambda: all(row.outcome for row in rows))
    assert {row.outcome for row in rows} == {Done(1)}
    snoozed = [outcome for outcome in outcomes(world) if isinstance(outcome, Snoozed)]
    assert 2 <= len(snoozed) <= 4
    assert {outcome.waits_for for outcome in snoozed} == {"alone"}


async def test_who_asks_for_permits_waits_while_the_store_is_away_however_long(world: World) -> None:
    async def work(ctx: Context) -> None: ...

    world.handle(work, limit=(ALONE,))
    world.turnstile.away = "connection refused"
    row = world.store.add()
    world.serve(world.actor())
    await world.at(60)
    assert row.outcome is None
    world.turnstile.away = None
    await world.until(lambda: row.outcome)
    assert world.store.outcomes(row.id) == [Done(None)]
    assert any("connection refused" in text for _, text in world.diary.weathers)


async def test_permits_are_taken_by_label_whatever_order_they_are_named_in(world: World) -> None:
    """So two jobs that ask for the same ones do not wait for each other."""
    asked: list[list[str]] = []

    async def work(ctx: Context, *order: str) -> None:
        async with ctx.limit({Concurrency(name, 2): 1 for name in order}):
            asked.append([permit.limit.label for permit in world.turnstile.held])

    world.handle(work)
    await ended(world, world.store.add("work", "b", "c", "a"))
    await ended(world, world.store.add("work", "c", "a", "b"))
    assert asked == [["a", "b", "c"]] * 2


async def test_a_permit_costs_one_and_a_number_settles_none(world: World) -> None:
    async def work(ctx: Context) -> None:
        async with ctx.limit(ALONE) as grant:
            with pytest.raises(LimitInvalid, match="one bucket"):
                grant.settle(3)
        with pytest.raises(LimitInvalid, match="2 permits"):
            ctx.limit({ALONE: 2})
        async with ctx.limit({ALONE: 0}):
            assert world.turnstile.held == []

    world.handle(work)
    assert isinstance(await ended(world, world.store.add()), Done)
