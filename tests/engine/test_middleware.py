"""What stands around the runs of handlers."""

from __future__ import annotations

from typing import Any

import trio

from runtime.core.errors import Permanent, Snooze
from runtime.core.job import Dead, Done, Retried, Snoozed
from runtime.core.middleware import CallNext, Middleware
from runtime.core.retry import Retry
from runtime.engine.context import Context
from runtime.engine.middleware import within
from tests.engine.world import CancelOnce, World

seen: list[str] = []


def noting(name: str, queue: str | None = None) -> Middleware:
    async def note(ctx: Context, call_next: CallNext) -> Any:
        seen.append(f"{name} before {ctx.job_id}")
        try:
            value = await call_next()
        except BaseException as error:
            seen.append(f"{name} met {type(error).__name__}")
            raise
        seen.append(f"{name} saw {value}")
        return value

    return Middleware(note, name, queue)


async def outcome(world: World, *middleware: Middleware, queue: str = "q") -> Any:
    seen.clear()
    world.entries = dict(within(world.entries, middleware))
    row = world.store.add(id="job", queue=queue)
    world.serve(world.actor(queue))
    await world.until(lambda: world.store.outcomes(row.id))
    return world.store.outcomes(row.id)[0]


async def test_the_first_is_the_outermost(world: World) -> None:
    world.handle_taking(1)
    assert await outcome(world, noting("outer"), noting("inner")) == Done("job")
    assert seen == ["outer before job", "inner before job", "inner saw job", "outer saw job"]


async def test_it_sees_exceptions(world: World) -> None:
    async def work(ctx: Context) -> None:
        raise Snooze(5)

    world.handle(work)
    assert await outcome(world, noting("outer")) == Snoozed(5)
    assert seen == ["outer before job", "outer met Snooze"]


async def test_one_of_a_queue_is_for_its_jobs_alone(world: World) -> None:
    world.handle_taking(1)
    assert await outcome(world, noting("all"), noting("ours", "q"), noting("others", "other")) == Done("job")
    assert seen == ["all before job", "ours before job", "ours saw job", "all saw job"]


async def test_it_runs_within_the_timeout(world: World) -> None:
    async def slow(ctx: Context, call_next: CallNext) -> Any:
        await trio.sleep(30)
        return await call_next()

    world.handle(world_never, timeout_s=20, retry=Retry(1))
    ended = await outcome(world, noting("outer"), Middleware(slow, "slow"))
    assert isinstance(ended, Dead)
    assert ended.failure.error == "TimeoutError"
    assert seen == ["outer before job", f"outer met {CancelOnce.__name__}"]
    assert world.now == 20


async def world_never(ctx: Context) -> None:
    raise AssertionError("it is not called")


async def test_what_it_returns_or_raises_takes_the_place_of_the_handlers(world: World) -> None:
    async def other(ctx: Context, call_next: CallNext) -> Any:
        return f"{await call_next()}, twice {await call_next()}"

    world.handle_taking(1)
    assert await outcome(world, Middleware(other, "other")) == Done("job, twice job")


async def test_what_it_raises_goes_by_the_handlers_policy(world: World) -> None:
    async def refuse(ctx: Context, call_next: CallNext) -> Any:
        raise Permanent("not today")

    async def fail(ctx: Context, call_next: CallNext) -> Any:
        raise ValueError("not now")

    world.handle(world_never)
    assert isinstance(await outcome(world, Middleware(refuse, "refuse")), Dead)
    fresh = World()
    fresh.nursery = world.nursery
    fresh.handle(world_never)
    assert isinstance(await outcome(fresh, Middleware(fail, "fail")), Retried)


def test_where_none_is_declared_none_is_in_the_way() -> None:
    entries: dict[str, Any] = {"work": object()}
    assert within(entries, ()) is entries
