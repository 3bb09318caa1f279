"""One actor's bug is not another's, and no bug is the end of an actor."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
import trio

from runtime.core.job import Done, Released
from runtime.engine.actor import Actor
from runtime.engine.context import Context
from runtime.engine.supervisor import CALM_S, RESTART_S, Supervisor
from runtime.ports import Pulled
from tests.engine.world import CancelOnce, World

HOUR_S = 3600.0


class Broken(Exception):
    """A bug of ours."""


def break_claims(world: World, queue: str, *, times: int = 1_000_000) -> list[float]:
    """Let that many claims of a queue raise what nobody expects; the times of those that did."""
    broken: list[float] = []
    claim = world.store.claim

    ill = queue

    async def claim_or_break(queue: str, room: int) -> Pulled:
        if queue == ill and len(broken) < times:
            broken.append(world.now)
            raise Broken(f"no. {len(broken)}")
        return await claim(queue, room)

    world.store.claim = claim_or_break  # type: ignore[method-assign]
    return broken


def supervisor(world: World, *queues: str) -> tuple[Supervisor, list[tuple[str, float]]]:
    """One that keeps an actor per queue; and every actor that it made, with the time."""
    made: list[tuple[str, float]] = []

    def make(queue: str) -> Actor:
        made.append((queue, world.now))
        return world.actor(queue)

    return Supervisor([lambda queue=queue: make(queue) for queue in queues], world.diary), made  # type: ignore[misc]


async def test_a_supervisor_returns_when_every_actor_has_drained(world: World) -> None:
    world.handle_taking(100)
    rows = [world.store.add(queue=queue) for queue in ("a", "b")]
    serving = world.serve(supervisor(world, "a", "b")[0])
    await world.at(50)
    serving.drain()
    assert await serving.end() == 100
    assert [row.outcome for row in rows] == [Done(row.id) for row in rows]
    assert world.diary.crashes == []


async def test_a_hurried_supervisor_gives_everything_back(world: World) -> None:
    world.handle_taking(HOUR_S)
    rows = [world.store.add(queue=queue) for queue in ("a", "b")]
    serving = world.serve(supervisor(world, "a", "b")[0])
    await world.at(50)
    serving.hurry()
    assert await serving.end() == 50
    assert [world.store.outcomes(row.id) for row in rows] == [[Released("shutdown")]] * 2


async def test_an_actor_that_dies_of_a_bug_is_started_again_alone(world: World) -> None:
    world.handle_taking(100)
    there = world.store.add(queue="well")
    broken = break_claims(world, "ill", times=1)
    supervised, made = supervisor(world, "ill", "well")
    world.serve(supervised)
    ill = world.store.add(queue="ill")
    await world.until(lambda: ill.outcome)
    await world.until(lambda: there.outcome)
    assert broken == [0]
    assert [queue for queue, _ in made] == ["ill", "well", "ill"]
    assert there.starts_at == [0]
    assert len(world.store.outcomes(there.id)) == 1
    [(when, actor, error, restart_in_s)] = world.diary.crashes
    assert (when, actor, restart_in_s) == (0, "ill", RESTART_S[0])
    assert "no. 1" in repr(error)


async def test_the_jobs_of_an_actor_that_dies_are_given_back_and_run_by_the_next(world: World) -> None:
    world.handle_taking(100)
    row = world.store.add(queue="ill")
    world.serve(supervisor(world, "ill")[0])
    await world.at(5)
    break_claims(world, "ill", times=1)
    world.store.add(queue="ill")
    await world.until(lambda: row.outcome)
    assert world.store.outcomes(row.id) == [Released("shutdown"), Done(row.id)]
    assert row.starts_at[0] == 0
    assert 5 < row.starts_at[1] <= 5 + RESTART_S[0]
    assert row.starts == 1
    await world.rest()
    assert world.keeper.held == {}


async def test_an_actor_that_keeps_dying_is_started_after_growing_pauses(world: World) -> None:
    break_claims(world, "ill")
    supervised, made = supervisor(world, "ill")
    world.serve(supervised)
    await world.at(60)
    told = [restart_in_s for _, _, _, restart_in_s in world.diary.crashes]
    assert told[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(told[6:]) == {5.0}
    times = [when for _, when in made]
    pauses = [second - first for first, second in pairwise(times)]
    assert all(0.5 * most <= pause <= most for most, pause in zip(told, pauses, strict=False))
    assert len(set(pauses)) > len(pauses) / 2  # not all workers at the same moments


async def test_an_actor_that_has_run_for_a_while_is_trusted_again(world: World) -> None:
    break_claims(world, "ill", times=5)
    world.serve(supervisor(world, "ill")[0])
    await world.at(100 + CALM_S)
    world.store.bugs["claim"] = Broken("much later")
    world.store.add(queue="ill")
    await world.rest()
    assert [restart_in_s for _, _, _, restart_in_s in world.diary.crashes] == [0.1, 0.2, 0.4, 0.8, 1.6, 0.1]


async def test_a_supervisor_that_is_drained_does_not_start_a_dying_actor_again(world: World) -> None:
    break_claims(world, "ill", times=100)
    supervised, made = supervisor(world, "ill", "well")
    serving = world.serve(supervised)
    await world.at(20)
    before = len(made)
    serving.drain()
    await serving.end()
    assert world.now <= 20 + RESTART_S[1]
    assert len(made) == before


async def test_a_bug_that_shows_only_while_draining_is_the_end_of_that_actor(world: World) -> None:
    world.handle_taking(100)
    world.store.add(queue="ill")
    supervised, made = supervisor(world, "ill")
    serving = world.serve(supervised)
    await world.at(10)
    serving.drain()
    world.store.bugs["settle"] = Broken("at the end")
    assert await serving.end() == 100
    assert len(made) == 1
    assert len(world.diary.crashes) == 1


@pytest.mark.parametrize("stop", ["drain", "hurry"])
async def test_a_supervisor_that_is_stopped_before_it_runs_serves_nothing(world: World, stop: str) -> None:
    row = world.store.add(queue="q")
    supervised, _ = supervisor(world, "q")
    getattr(supervised, stop)()
    serving = world.serve(supervised)
    await world.at(HOUR_S)
    assert serving.over
    assert row.starts_at == []


async def test_lost_redis_is_weather_and_crashes_nobody(world: World) -> None:
    world.handle_taking(10)
    supervised, made = supervisor(world, "a", "b")
    serving = world.serve(supervised)
    rows = [world.store.add(queue=queue) for queue in ("a", "b")]
    for second in range(5, 500, 50):
        await world.at(second)
        world.store.go_away()
        rows += [world.store.add(queue=queue) for queue in ("a", "b")]
        await world.at(second + 25)
        world.store.come_back()
    await world.until(lambda: all(row.outcome for row in rows))
    assert len(made) == 2
    assert world.diary.crashes == []
    assert not serving.over
    assert all(len(world.store.outcomes(row.id)) == 1 for row in rows)


async def test_a_job_whose_run_would_not_end_is_not_run_beside_itself_by_the_next_actor(world: World) -> None:
    running: list[float] = []

    async def work(ctx: Context) -> None:
        running.append(world.now)
        while True:
            with suppress(CancelOnce):
                await trio.sleep_forever()

    world.handle(work)
    world.store.add(queue="ill")
    supervised, made = supervisor(world, "ill")
    world.serve(supervised)
    await world.at(5)
    break_claims(world, "ill", times=1)
    world.store.add("nobody", queue="ill")
    await world.at(60)
    assert len(made) == 2
    assert running == [0]
