"""The state that handlers share: when it is opened and closed, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
import trio

from runtime.core.errors import LifespanFailed, LifespanMissing
from runtime.core.job import Dead, Done
from runtime.core.lifespan import CLOSE_S, OPEN_S, Lifespan
from runtime.engine.context import Context
from runtime.engine.lifetime import OBEY_S, Lifetime
from tests.engine.world import World, seconds_in

HOUR_S = 3600.0
Step = Callable[[], Awaitable[object]]


async def nothing() -> None: ...


class Stage:
    """A lifetime in its task, and what is seen of it."""

    def __init__(self, world: World, opening: Step = nothing, closing: Step = nothing) -> None:
        self.seen: list[tuple[str, float]] = []
        self.failures: list[LifespanFailed] = []
        self.warnings: list[str] = []
        self.over = trio.Event()

        async def resources() -> AsyncIterator[str]:
            await opening()
            self.note("opened")
            async with anyio.create_task_group():  # to be left by the task that entered it
                try:
                    yield f"state {len(self.seen)}"
                finally:
                    await closing()
            self.note("closed")

        self.lifetime = Lifetime(Lifespan(resources), self.failures.append, self.warnings.append)
        world.nursery.start_soon(self._run)

    def note(self, what: str) -> None:
        self.seen.append((what, seconds_in()))

    async def _run(self) -> None:
        await self.lifetime.run()
        self.over.set()

    async def end(self) -> None:
        self.lifetime.end()
        await self.over.wait()


def sleeping(length_s: float) -> Step:
    return lambda: trio.sleep(length_s)


async def test_it_is_open_once_open_returns_and_closed_once_close_does(world: World) -> None:
    stage = Stage(world, sleeping(3), sleeping(2))
    await stage.lifetime.open()
    assert stage.lifetime.state() == "state 1"
    await stage.lifetime.open()
    await world.at(10)
    await stage.lifetime.close()
    assert stage.seen == [("opened", 3), ("closed", 12)]
    await stage.end()


async def test_it_is_opened_anew_after_it_was_closed(world: World) -> None:
    stage = Stage(world)
    for number in (1, 3, 5):
        await stage.lifetime.open()
        assert stage.lifetime.state() == f"state {number}"
        await stage.lifetime.close()
        with pytest.raises(LifespanMissing):
            stage.lifetime.state()
    await stage.lifetime.close()
    await stage.end()
    assert stage.failures == []


async def test_the_end_closes_what_is_open(world: World) -> None:
    stage = Stage(world, closing=sleeping(2))
    await stage.lifetime.open()
    await stage.end()
    assert stage.seen == [("opened", 0), ("closed", 2)]
    assert stage.warnings == []


async def test_an_error_while_opening_is_told_with_its_place(world: World) -> None:
    async def fail() -> None:
        raise ConnectionRefusedError("no database")

    stage = Stage(world, fail)
    await stage.lifetime.open()
    (failure,) = stage.failures
    assert str(failure).startswith(f"the lifespan 'resources' at {__file__}:")
    assert str(failure).endswith("could not be opened; ConnectionRefusedError: no database")
    assert isinstance(failure.__cause__, ConnectionRefusedError)
    await stage.end()


async def test_an_exit_while_opening_is_a_failure_like_any_other(world: World) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    stage = Stage(world, leave)
    await stage.lifetime.open()
    assert [str(failure).endswith("could not be opened; SystemExit: 3") for failure in stage.failures] == [True]
    await stage.end()


async def test_opening_has_a_deadline(world: World) -> None:
    stage = Stage(world, sleeping(HOUR_S))
    await stage.lifetime.open()
    assert seconds_in() == OPEN_S
    assert [str(failure).endswith("TimeoutError: it took longer than 60 s") for failure in stage.failures] == [True]
    await stage.end()


async def test_closing_has_a_deadline_and_what_was_not_closed_is_told(world: World) -> None:
    stage = Stage(world, closing=sleeping(HOUR_S))
    await stage.lifetime.open()
    await stage.lifetime.close()
    assert seconds_in() == CLOSE_S
    (warning,) = stage.warnings
    assert warning.endswith("could not be closed: TimeoutError: it took longer than 5 s")
    await stage.lifetime.open()
    assert stage.lifetime.state() == "state 2"
    await stage.end()


async def test_who_waits_for_a_closing_that_does_not_obey_waits_no_longer_than_so(world: World) -> None:
    async def deaf() -> None:
        with anyio.CancelScope(shield=True):
            await trio.sleep(100)

    stage = Stage(world, closing=deaf)
    await stage.lifetime.open()
    await stage.lifetime.close()
    assert seconds_in() == CLOSE_S + OBEY_S
    await stage.lifetime.open()  # when the old one has ended
    assert seconds_in() >= OPEN_S
    assert [str(failure).endswith("was not opened in time") for failure in stage.failures] == [True]
    await stage.end()


async def test_one_that_ends_by_itself_is_told(world: World) -> None:
    failures: list[LifespanFailed] = []

    async def fail() -> None:
        await trio.sleep(30)
        raise ValueError("the poller is broken")

    async def resources() -> AsyncIterator[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            yield "state"

    lifetime = Lifetime(Lifespan(resources), failures.append, lambda text: None)
    world.nursery.start_soon(lifetime.run)
    await lifetime.open()
    assert lifetime.state() == "state"
    await world.at(31)
    (failure,) = failures
    assert "ended by itself" in str(failure)
    lifetime.end()


async def test_opening_is_given_up_when_nobody_waits_for_it_any_longer(world: World) -> None:
    stage = Stage(world, sleeping(30))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.lifetime.open)
        await world.at(5)
        stage.lifetime.give_up()
    assert seconds_in() == 5
    await stage.end()
    assert (stage.seen, stage.failures, stage.warnings) == ([], [], [])


async def test_one_that_does_not_heed_it_is_not_waited_for_either(world: World) -> None:
    async def deaf() -> None:
        with anyio.CancelScope(shield=True):
            await trio.sleep(30)

    stage = Stage(world, deaf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.lifetime.open)
        await world.at(5)
        stage.lifetime.give_up()
    assert seconds_in() == 5
    with pytest.raises(LifespanMissing):
        stage.lifetime.state()
    await stage.end()


async def test_without_a_lifespan_there_is_nothing_to_wait_for(world: World) -> None:
    failures: list[LifespanFailed] = []
    lifetime = Lifetime(None, failures.append, lambda text: None)
    await lifetime.open()
    await lifetime.close()
    with pytest.raises(LifespanMissing, match=r"no lifespan is declared.*@lifespan"):
        lifetime.state()
    lifetime.end()
    await lifetime.run()
    assert failures == []


async def test_handlers_have_the_state(world: World) -> None:
    async def work(ctx: Context[str]) -> str:
        return ctx.state

    stage = Stage(world)
    await stage.lifetime.open()
    world.handle(work)
    row = world.store.add()
    world.serve(world.actor(state=stage.lifetime.state))
    await world.until(lambda: row.outcome)
    assert row.outcome == Done("state 1")
    await stage.end()


async def test_a_handler_that_asks_for_a_state_that_there_is_not_fails_for_good(world: World) -> None:
    async def work(ctx: Context[str]) -> str:
        return ctx.state

    world.handle(work)
    row = world.store.add()
    world.serve(world.actor())
    await world.until(lambda: row.outcome)
    assert isinstance(row.outcome, Dead)
    assert (row.outcome.reason, row.outcome.failure.error) == ("permanent", "runtime.LifespanMissing")
