"""Pools: never more items than their size, first come first served, and each item opened and closed by one task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
import trio

from runtime.core.errors import HandlerInvalid, Invalid, RetryLater, Snooze
from runtime.core.job import Dead, Released, Snoozed
from runtime.core.pool import Pool
from runtime.core.retry import Retry
from runtime.engine.context import Context
from runtime.engine.pools import CLOSE_S, LAST_CLOSE_S, OPEN_S
from tests.engine.world import Row, World


@dataclass(eq=False)
class Browser:
    """What is pooled here. It knows who opened it and whether it lives."""

    number: int
    makers: Makers
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    closed_at: float | None = None

    async def aclose(self) -> None:
        await self.makers.close(self)


class Makers:
    """Opens browsers, slowly, and with what troubles the test asks for."""

    def __init__(self, world: World, *, open_s: float = 0.0, close_s: float = 0.0) -> None:
        self.world = world
        self.open_s = open_s
        self.close_s = close_s
        self.made: list[Browser] = []
        self.alive = 0
        self.peak = 0
        self.open_errors: list[BaseException] = []
        self.close_errors: list[BaseException] = []

    async def open(self) -> Browser:
        self.alive += 1
        self.peak = max(self.peak, self.alive)
        try:
            await trio.sleep(self.open_s)
            if self.open_errors:
                raise self.open_errors.pop(0)
        except BaseException:
            self.alive -= 1
            raise
        self.made.append(Browser(len(self.made), self))
        return self.made[-1]

    @asynccontextmanager
    async def manage(self) -> AsyncIterator[Browser]:
        browser = await self.open()
        async with anyio.create_task_group():  # to be left by the task that entered it
            yield browser
            await self.close(browser)

    async def close(self, browser: Browser) -> None:
        assert browser.task is trio.lowlevel.current_task(), "closed by another task than opened it"
        assert browser.closed_at is None, "closed twice"
        try:
            await trio.sleep(self.close_s)
            if self.close_errors:
                raise self.close_errors.pop(0)
        finally:
            browser.closed_at = self.world.now
            self.alive -= 1

    @property
    def closed(self) -> list[int]:
        return [browser.number for browser in self.made if browser.closed_at is not None]


Open = Callable[[], Awaitable[Browser]] | Callable[[], AbstractAsyncContextManager[Browser]]


@pytest.fixture(params=["awaitable", "context manager"])
def opening(request: pytest.FixtureRequest) -> Callable[[Makers], Any]:
    """Both kinds of `open`."""
    return lambda makers: makers.open if request.param == "awaitable" else makers.manage


def work_for(world: World, pool: Pool[Browser], length_s: float = 1.0, size: int = 10) -> list[tuple[str, int, float]]:
    """Serve jobs that use the pool for so long, and what their argument raises: (job, browser, since) of each use."""
    uses: list[tuple[str, int, float]] = []

    async def work(ctx: Context, error: BaseException | None = None) -> int:
        async with ctx.use(pool) as browser:
            assert browser.closed_at is None
            uses.append((ctx.job_id, browser.number, world.now))
            await trio.sleep(length_s)
            if error is not None:
                raise error
        return browser.number

    world.handle(work, retry=Retry(1))
    world.serve(world.actor(size=size))
    return uses


def state(world: World) -> Mapping[str, int]:
    (found,) = world.pools.statistics()
    return {
        name: count
        for name in ("in_use", "idle", "waiting", "opened", "recycled", "failed")
        if (count := getattr(found, name))
    }


async def in_turn(world: World, *args: object, count: int = 1) -> list[Row]:
    """Jobs, the first with these arguments. Each begins before the next one is there: Trio runs tasks in any order."""
    rows = []
    for number in range(count):
        rows.append(world.store.add("work", *([] if number else args)))
        await world.rest()
    return rows


def ended(*rows: Row) -> bool:
    return all(row.outcome is not None for row in rows)


async def test_there_are_never_more_than_its_size_also_while_some_are_opened_or_closed(
    world: World, opening: Callable[[Makers], Any]
) -> None:
    makers = Makers(world, open_s=0.7, close_s=0.9)
    uses = work_for(world, Pool("browser", size=3, open=opening(makers), uses=2))
    rows = [world.store.add() for _ in range(20)]
    await world.until(lambda: ended(*rows))
    assert len(uses) == 20
    assert makers.peak == 3
    assert len(makers.made) in (10, 11)


async def test_nothing_is_opened_before_it_is_wanted_nor_more_than_is_wanted(world: World) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=3, open=makers.open), length_s=10)
    await world.at(5)
    assert world.pools.statistics() == []
    world.store.add()
    await world.at(6)
    assert (len(uses), len(makers.made), state(world)) == (1, 1, {"in_use": 1, "opened": 1})
    await world.at(20_000)
    world.store.add()
    await world.at(20_001)
    assert (len(uses), len(makers.made)) == (2, 1)


async def test_first_come_first_served(world: World) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=1, open=makers.open))
    for number in range(6):
        world.store.add(id=f"job-{number}")
        await world.at(number * 0.1)
    assert state(world) == {"in_use": 1, "waiting": 5, "opened": 1}
    await world.at(10)
    assert [(job, at) for job, _, at in uses] == [(f"job-{number}", float(number)) for number in range(6)]


async def test_an_item_is_replaced_after_so_many_uses(world: World, opening: Callable[[Makers], Any]) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=1, open=opening(makers), uses=3))
    rows = [world.store.add() for _ in range(7)]
    await world.until(lambda: ended(*rows))
    await world.rest()
    assert [browser for _, browser, _ in uses] == [0, 0, 0, 1, 1, 1, 2]
    assert makers.closed == [0, 1]
    assert state(world) == {"idle": 1, "opened": 3, "recycled": 2}


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("no"), Invalid("no"), SystemExit(1), Odd("no")], ids=type)
async def test_an_item_is_replaced_after_an_error(
    world: World, opening: Callable[[Makers], Any], error: BaseException
) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=1, open=opening(makers)))
    failing, next_one = await in_turn(world, error, count=2)
    await world.until(lambda: ended(failing, next_one))
    assert isinstance(failing.outcome, Dead)
    assert [browser for _, browser, _ in uses] == [0, 1]
    assert (makers.closed, world.warnings) == ([0], [])


@pytest.mark.parametrize("error", [Snooze("1h"), RetryLater("1h")], ids=type)
async def test_an_item_is_kept_where_the_handler_only_asks_for_another_run(world: World, error: Exception) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=1, open=makers.open))
    asking, next_one = await in_turn(world, error, count=2)
    await world.until(lambda: ended(next_one))
    assert isinstance(world.store.outcomes(asking.id)[0], Snoozed | Dead)
    assert [browser for _, browser, _ in uses] == [0, 0]
    assert makers.closed == []


@pytest.mark.parametrize("how", ["abort", "lost"])
async def test_an_item_is_replaced_after_a_job_was_stopped_in_the_middle_of_it(world: World, how: Any) -> None:
    makers = Makers(world)
    uses = work_for(world, Pool("browser", size=1, open=makers.open), length_s=5)
    first, second = await in_turn(world, count=2)
    await world.at(2)
    world.keeper.notify(first, how)
    await world.until(lambda: ended(second))
    assert [(job, browser, at) for job, browser, at in uses] == [(first.id, 0, 0), (second.id, 1, 2)]
    assert makers.closed == [0]


async def test_a_job_that_is_stopped_while_it_waits_takes_nothing_and_breaks_no_launch(
    world: World, opening: Callable[[Makers], Any]
) -> None:
    makers = Makers(world, open_s=10)
    uses = work_for(world, Pool("browser", size=1, open=opening(makers)))
    first, second = await in_turn(world, count=2)
    await world.at(3)
    world.keeper.notify(first, "abort")
    world.keeper.notify(second, "abort")
    await world.at(4)
    assert state(world) == {}
    await world.at(11)
    assert state(world) == {"idle": 1, "opened": 1}
    third = world.store.add()
    await world.until(lambda: ended(third))
    assert uses == [(third.id, 0, 11)]
    assert len(makers.made) == 1


async def test_an_item_that_is_handed_to_a_job_in_the_moment_it_is_stopped_is_for_the_next(world: World) -> None:
    makers = Makers(world)
    pool = Pool("browser", size=1, open=makers.open)
    uses = work_for(world, pool)
    loan = await world.pools.take(pool)
    first, second = await in_turn(world, count=2)
    with loan:
        pass
    world.keeper.notify(first, "abort")  # it has its item, and did not run since
    await world.until(lambda: ended(first, second))
    assert uses == [(second.id, 0, 0)]
    assert state(world) == {"idle": 1, "opened": 1}


async def test_an_item_that_cannot_be_opened_fails_the_job_that_waited_longest_and_the_next_one_tries_again(
    world: World, opening: Callable[[Makers], Any]
) -> None:
    makers = Makers(world, open_s=1)
    makers.open_errors = [OSError("no chromium here"), OSError("still none")]
    uses = work_for(world, Pool("browser", size=1, open=opening(makers)))
    rows = await in_turn(world, count=3)
    await world.until(lambda: ended(*rows))
    failures = [row.outcome.failure for row in rows if isinstance(row.outcome, Dead)]
    assert [(failure.error, failure.text) for failure in failures] == [
        ("OSError", "no chromium here"),
        ("OSError", "still none"),
    ]
    assert uses == [(rows[2].id, 0, 3)]
    assert state(world) == {"idle": 1, "opened": 1, "failed": 2}
    assert world.warnings == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), Odd("odd")], ids=type)
async def test_what_ends_processes_is_a_failure_like_any_other_when_an_item_is_opened_or_closed(
    world: World, error: BaseException
) -> None:
    makers = Makers(world)
    makers.open_errors = [error]
    makers.close_errors = [error]
    work_for(world, Pool("browser", size=1, open=makers.open, uses=1))
    rows = await in_turn(world, count=3)
    await world.until(lambda: ended(*rows))
    await world.rest()
    assert isinstance(rows[0].outcome, Dead)
    assert rows[0].outcome.failure.text == f"pool browser: an item could not be opened: {type(error).__name__}"
    assert (makers.closed, makers.alive) == ([0, 1], 0)
    assert [warning.split(":")[0] for warning in world.warnings] == ["An item of the pool browser could not be closed"]


async def test_a_launch_that_fails_when_nobody_waits_any_more_is_told(world: World) -> None:
    makers = Makers(world, open_s=5)
    makers.open_errors = [OSError("no chromium here")]
    work_for(world, Pool("browser", size=1, open=makers.open))
    row = world.store.add()
    await world.at(1)
    world.keeper.notify(row, "abort")
    await world.at(6)
    assert world.warnings == ["An item of the pool browser could not be opened: OSError: no chromium here"]


async def test_a_launch_that_hangs_ends_after_a_minute(world: World, opening: Callable[[Makers], Any]) -> None:
    makers = Makers(world, open_s=86400)
    uses = work_for(world, Pool("browser", size=1, open=opening(makers)))
    first, second = await in_turn(world, count=2)
    await world.at(OPEN_S + 1)
    assert isinstance(first.outcome, Dead)
    assert (first.outcome.failure.error, first.outcome.failure.text) == (
        "TimeoutError",
        "pool browser: an item did not open in time",
    )
    makers.open_s = 0.5
    await world.until(lambda: ended(second))
    assert isinstance(second.outcome, Dead)  # its launch had begun when it still hung
    third = world.store.add()
    await world.until(lambda: ended(third))
    assert [job for job, _, _ in uses] == [third.id]
    assert state(world) == {"idle": 1, "opened": 1, "failed": 2}


async def test_a_launch_that_swallows_that_its_time_is_over_is_too_late(world: World) -> None:
    makers = Makers(world)

    async def open() -> Browser:
        with trio.CancelScope(shield=True):
            await trio.sleep(OPEN_S + 30)
            await makers.open()
        return makers.made[0]

    uses = work_for(world, Pool("browser", size=1, open=open))
    row = world.store.add()
    await world.until(lambda: ended(row))
    assert isinstance(row.outcome, Dead)
    assert row.outcome.failure.text == "pool browser: an item did not open in time"
    assert uses == []
    assert makers.alive == 0


async def test_an_item_that_does_not_close_is_let_go_of_and_told(
    world: World, opening: Callable[[Makers], Any]
) -> None:
    makers = Makers(world, close_s=86400)
    uses = work_for(world, Pool("browser", size=1, open=opening(makers), uses=1))
    first, second = await in_turn(world, count=2)
    await world.until(lambda: ended(first, second))
    assert [at for _, _, at in uses] == [0, 1 + CLOSE_S]
    assert world.warnings == [
        "An item of the pool browser could not be closed: TimeoutError: pool browser: an item did not close in time"
    ]
    assert makers.peak == 1


async def test_an_item_whose_closing_fails_costs_no_job(world: World) -> None:
    makers = Makers(world)
    makers.close_errors = [OSError("it was gone")]
    uses = work_for(world, Pool("browser", size=1, open=makers.open, uses=1))
    first, second = await in_turn(world, count=2)
    await world.until(lambda: ended(first, second))
    assert len(uses) == 2
    assert world.warnings == ["An item of the pool browser could not be closed: OSError: it was gone"]


@pytest.mark.parametrize("asked", ["idle", "lent"])
@pytest.mark.parametrize("suppressed", [True, False])
async def test_an_item_that_ends_by_itself_is_replaced_and_told(world: World, asked: str, suppressed: bool) -> None:
    makers = Makers(world, close_s=8)
    dying = trio.Event()

    @asynccontextmanager
    async def manage() -> AsyncIterator[Browser]:
        browser = await makers.open()
        try:
            async with anyio.create_task_group() as group:

                async def die() -> None:
                    await dying.wait()
                    raise OSError("the browser has gone")

                group.start_soon(die)
                yield browser
                group.cancel_scope.cancel()
        except ExceptionGroup:
            if not suppressed:
                raise
        finally:
            with anyio.CancelScope(shield=True):
                await makers.close(browser)

    uses = work_for(world, Pool("browser", size=1, open=manage), length_s=10)
    first = world.store.add()
    dies_at = 5 if asked == "lent" else 15
    await world.at(dies_at)
    dying.set()
    await world.rest()
    dying = trio.Event()
    second = world.store.add()
    await world.until(lambda: ended(first, second))
    assert uses == [(first.id, 0, 0), (second.id, 1, dies_at + 8)]
    assert makers.peak == 1
    (warning,) = world.warnings
    assert warning.startswith("An item of the pool browser ended by itself: ")


async def test_a_stopping_worker_closes_every_item_once_at_the_same_time_in_the_task_that_opened_it(
    world: World, opening: Callable[[Makers], Any]
) -> None:
    makers = Makers(world, close_s=4)
    work_for(world, Pool("browser", size=3, open=opening(makers)))
    rows = [world.store.add() for _ in range(3)]
    await world.until(lambda: ended(*rows))
    assert state(world) == {"idle": 3, "opened": 3}
    began = world.now
    world.pools.close()
    world.pools.close()
    await world.at(began + 4)
    assert (makers.closed, makers.alive) == ([0, 1, 2], 0)
    assert {browser.closed_at for browser in makers.made} == {began + 4}
    assert len({browser.task for browser in makers.made}) == 3
    assert world.warnings == []


async def test_a_stopping_worker_waits_no_longer_than_its_bound_for_items_that_open_close_or_are_held(
    world: World,
) -> None:
    makers = Makers(world, close_s=86400)
    slow = Makers(world, open_s=86400)
    work_for(world, Pool("browser", size=2, open=makers.open), length_s=86400)
    pools = world.pools
    world.store.add()
    waiting: list[str] = []

    async def wait(pool: Pool[Browser]) -> None:
        try:
            await pools.take(pool)
        except RuntimeError as error:
            waiting.append(str(error))

    world.nursery.start_soon(wait, Pool("slow", size=1, open=slow.open))
    await world.at(1)
    pools.close()
    await world.at(2)
    assert waiting == ["pool slow: the worker stops"]
    assert makers.alive + slow.alive == 2
    pools.close()
    await world.at(1 + LAST_CLOSE_S)
    assert makers.alive + slow.alive == 0
    assert sorted(warning.partition(": ")[0] for warning in world.warnings) == [
        "An item of the pool browser could not be closed",
        "An item of the pool slow could not be opened",
    ]
    with pytest.raises(RuntimeError, match="not running"):
        await pools.take(Pool("late", size=1, open=makers.open))


async def test_an_item_that_is_opened_while_the_worker_stops_is_closed_at_once(world: World) -> None:
    makers = Makers(world, open_s=2, close_s=1)
    work_for(world, Pool("browser", size=1, open=makers.open))
    row = world.store.add()
    await world.at(1)
    world.pools.close()
    await world.at(3)
    assert [browser.closed_at for browser in makers.made] == [3]
    assert isinstance(row.outcome, Dead)
    assert world.warnings == []


async def test_a_job_that_asks_for_what_it_holds_itself_is_told_instead_of_waiting_for_ever(world: World) -> None:
    makers = Makers(world)
    pool = Pool("browser", size=2, open=makers.open)
    inner: list[str] = []

    async def work(ctx: Context) -> None:
        async with ctx.use(pool), ctx.use(pool), trio.open_nursery() as nursery:
            nursery.start_soon(ask, ctx)

    async def ask(ctx: Context) -> None:
        with pytest.raises(RuntimeError, match="pool browser: this job holds all 2 itself"):
            async with ctx.use(pool):
                raise AssertionError("there is no third")
        inner.append(ctx.job_id)

    world.handle(work)
    world.serve(world.actor())
    row = world.store.add()
    await world.until(lambda: ended(row))
    assert inner == [row.id]
    assert state(world) == {"idle": 2, "opened": 2}


async def test_the_tasks_of_one_job_may_use_a_pool_side_by_side(world: World) -> None:
    makers = Makers(world)
    pool = Pool("browser", size=2, open=makers.open)

    async def use(ctx: Context) -> None:
        async with ctx.use(pool):
            await trio.sleep(1)
        async with ctx.use(pool):
            await trio.sleep(1)

    async def work(ctx: Context) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(use, ctx)

    world.handle(work, retry=Retry(1))
    world.serve(world.actor())
    row = world.store.add()
    await world.until(lambda: ended(row))
    assert not isinstance(row.outcome, Dead)
    assert world.now == 6


async def test_a_task_that_outlives_the_block_it_was_started_in_may_use_the_pool(world: World) -> None:
    makers = Makers(world)
    pool = Pool("browser", size=1, open=makers.open)
    left = trio.Event()

    async def use(ctx: Context) -> None:
        await left.wait()
        async with ctx.use(pool):
            pass

    async def work(ctx: Context) -> None:
        async with trio.open_nursery() as nursery:
            async with ctx.use(pool):
                nursery.start_soon(use, ctx)
                await world.rest()
            left.set()

    world.handle(work, retry=Retry(1))
    world.serve(world.actor())
    row = world.store.add()
    await world.until(lambda: ended(row))
    assert not isinstance(row.outcome, Dead)


async def test_an_item_knows_nothing_of_the_job_that_asked_for_it_first(world: World) -> None:
    whose = ContextVar("whose", default="nobody's")
    seen: list[str] = []
    makers = Makers(world)

    async def open() -> Browser:
        seen.append(whose.get())
        return await makers.open()

    pool = Pool("browser", size=1, open=open)

    async def work(ctx: Context) -> None:
        whose.set("the job's")
        async with ctx.use(pool):
            pass

    world.handle(work)
    world.serve(world.actor())
    row = world.store.add()
    await world.until(lambda: ended(row))
    assert seen == ["nobody's"]


async def test_two_pools_of_one_name_are_refused(world: World) -> None:
    makers = Makers(world)
    with await world.pools.take(Pool("browser", size=1, open=makers.open)):
        pass
    with pytest.raises(HandlerInvalid, match="two pools are named 'browser'"):
        await world.pools.take(Pool("browser", size=1, open=makers.open))


@dataclass
class Closeable:
    told: list[str]

    def close(self) -> None:
        self.told.append("own")


@pytest.mark.parametrize("close", ["sync", "async", "own", "none"])
async def test_who_closes_an_item(world: World, close: str) -> None:
    told: list[str] = []

    async def open() -> Any:
        return object() if close == "none" else Closeable(told)

    async def close_later(item: Closeable) -> None:
        await trio.sleep(0.1)
        told.append("async")

    closing: Any = {"sync": lambda item: told.append("sync"), "async": close_later}.get(close)
    pool = Pool("thing", size=1, open=open, close=closing, uses=1)
    with await world.pools.take(pool):
        pass
    await world.at(1)
    assert told == ([] if close == "none" else [close])
    assert world.warnings == []


async def test_what_is_both_awaitable_and_a_context_manager_is_entered_unless_there_is_a_close(world: World) -> None:
    told: list[str] = []

    class Both:
        def __await__(self) -> Any:
            told.append("awaited")
            yield from trio.sleep(0).__await__()
            return self

        async def __aenter__(self) -> Both:
            told.append("entered")
            return self

        async def __aexit__(self, *_: object) -> None:
            told.append("left")

    async def use(pool: Pool[Any]) -> list[str]:
        told.clear()
        with await world.pools.take(pool):
            pass
        await world.rest()
        return list(told)

    assert await use(Pool("entered", size=1, open=Both, uses=1)) == ["entered", "left"]
    closing = Pool("closed", size=1, open=Both, close=lambda item: told.append("closed"), uses=1)
    assert await use(closing) == ["awaited", "closed"]


async def test_an_open_that_gives_neither_is_told_as_such(world: World) -> None:
    wrong: Any = object
    with pytest.raises(TypeError, match="pool thing: its open gave object, not an awaitable or an async context"):
        await world.pools.take(Pool("thing", size=1, open=wrong))


async def test_a_job_that_is_stopped_by_shutdown_in_the_middle_of_a_use_is_given_back(world: World) -> None:
    makers = Makers(world)
    pool = Pool("browser", size=1, open=makers.open)

    async def work(ctx: Context) -> None:
        async with ctx.use(pool):
            await trio.sleep(86400)

    world.handle(work)
    serving = world.serve(world.actor())
    using, waiting = await in_turn(world, count=2)
    await world.at(1)
    serving.hurry()
    await serving.end()
    assert [world.store.outcomes(row.id) for row in (using, waiting)] == [[Released("shutdown")]] * 2
    assert state(world) == {"opened": 1, "recycled": 1}
