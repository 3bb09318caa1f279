"""One actor's bug is not another's, and no bug is the end of an actor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trio

from runtime.core.job import Done, Released
from runtime.engine.actor import Actor
from runtime.engine.context import Context
from runtime.engine.supervisor import CALM_S, INTENSITY, RESTART_S, Supervisor
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
    assert told == [0.1, 0.2, 0.4, 0.8, 1.6]
    times = [when for _, when in made]
    pauses = [second - first for first, second in pairwise(times)]
    assert all(0.5 * most <= pause <= most for most, pause in zip(told, pauses, strict=False))
    assert len(set(pauses)) > len(pauses) / 2  # not all workers at the same moments


async def test_crashes_that_are_far_apart_are_waited_for_ever_longer_up_to_5_s(world: World) -> None:
    world.store.claim = crash_after(world, 7)  # type: ignore[assignment]
    supervised, _ = supervisor(world, "ill")
    serving = world.serve(supervised)
    await world.at(300)
    serving.drain()
    await serving.end()
    told = [restart_in_s for _, _, _, restart_in_s in world.diary.crashes]
    assert told[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(told[6:]) == {5.0}
    assert supervised.failure is None


def crash_after(world: World, length_s: float) -> Callable[[str, int], Coroutine[Any, Any, Pulled]]:
    """A claim that crashes, but takes so long for it."""

    async def claim(queue: str, room: int) -> Pulled:
        await trio.sleep(length_s)
        raise Broken("slowly")

    return claim


async def test_one_crash_too_many_gives_everything_back_and_ends_the_supervisor(world: World) -> None:
    world.handle_taking(HOUR_S)
    running = world.store.add(queue="well")
    broken = break_claims(world, "ill")
    supervised, _ = supervisor(world, "ill", "well")
    serving = world.serve(supervised)
    ended_at = await serving.end()
    assert len(broken) == INTENSITY + 1
    assert ended_at < 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 0.1
    assert isinstance(supervised.failure, Broken)
    assert str(supervised.failure) == "no. 6"
    assert world.store.outcomes(running.id) == [Released("shutdown")]
    assert world.keeper.held == {}


async def test_the_crashes_of_all_actors_count_together(world: World) -> None:
    times = {"a": 3, "b": 3}
    claim = world.store.claim

    async def break_both(queue: str, room: int) -> Pulled:
        if times[queue]:
            times[queue] -= 1
            raise Broken(queue)
        return await claim(queue, room)

    world.store.claim = break_both  # type: ignore[method-assign]
    supervised, _ = supervisor(world, "a", "b")
    await world.serve(supervised).end()
    assert supervised.failure is not None


async def test_as_many_crashes_as_are_allowed_are_no_end(world: World) -> None:
    break_claims(world, "ill", times=INTENSITY)
    supervised, _ = supervisor(world, "ill")
    world.serve(supervised)
    row = world.store.add(queue="ill")
    world.handle_taking(0)
    await world.until(lambda: row.outcome)
    assert supervised.failure is None


async def test_a_supervisor_runs_once(world: World) -> None:
    supervised, _ = supervisor(world, "a")
    serving = world.serve(supervised)
    await world.at(1)
    with pytest.raises(RuntimeError, match="runs once"):
        await supervised.run()
    serving.drain()
    await serving.end()
    with pytest.raises(RuntimeError, match="runs once"):
        await supervised.run()


@pytest.mark.parametrize("stop", ["drain", "hurry"])
async def test_a_supervisor_is_stopped_at_any_moment_and_as_often_as_anybody_likes(world: World, stop: str) -> None:
    """Also while its actors are being started, and after its end."""
    for after_s in (0.0, 0.001, 0.05, 0.3, 1.0):
        world.handle_taking(0.01)
        supervised, _ = supervisor(world, "a", "b")
        rows = [world.store.add(queue=queue) for queue in ("a", "b")]
        serving = world.serve(supervised)
        if after_s:
            await trio.sleep(after_s)
        for _ in range(3):
            getattr(supervised, stop)()
        ended = await serving.end()
        getattr(supervised, stop)()
        assert ended <= world.now
        assert all(world.store.outcomes(row.id)[-1:] in ([], [Done(row.id)], [Released("shutdown")]) for row in rows)
        assert world.keeper.held == {}


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
