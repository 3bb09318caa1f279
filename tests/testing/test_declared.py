"""What else modules declare, in tests: lifespans, middleware, schedules, unique ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from runtime import Context, cron, every, handler, lifespan, middleware
from runtime.testing import Harness
from runtime.testing.declared import Given


@dataclass
class State:
    """What the handlers share."""

    open: bool = True
    seen: list[Any] = field(default_factory=list)


_states: list[State] = []


@lifespan
async def resources() -> AsyncIterator[State]:
    state = State()
    _states.append(state)
    yield state
    state.open = False


@middleware
async def noting(ctx: Context[State], call_next: Any) -> Any:
    ctx.state.seen.append(f"before {ctx.handler}")
    return await call_next()


@handler
async def sees(ctx: Context[State]) -> bool:
    return ctx.state.open


@handler
def in_a_thread(ctx: Context[State], number: int) -> int:
    ctx.state.seen.append(number)
    return number


@handler
async def tells(ctx: Context[State]) -> str | None:
    await ctx.progress(1, 2, "half")
    with ctx.shield("1s"):
        return ctx.cancel_reason


@handler(unique_for="1h")
async def once_an_hour(ctx: Context[State], number: int) -> None: ...


@every("60s")
async def minutely(ctx: Context[State]) -> None:
    ctx.state.seen.append(ctx.scheduled_for)


@every("1s")
async def each_second(ctx: Context[State]) -> None:
    await asyncio.sleep(1.2)


@cron("0 3 * * *", tz="America/Sao_Paulo")
async def nightly(ctx: Context[State]) -> None:
    ctx.state.seen.append(ctx.scheduled_for)


@pytest.fixture
def rt_handlers() -> Sequence[Given]:
    return [sees, resources]


class TestState:
    async def test_a_test_has_a_lifespan_of_its_own(self, rt: Harness) -> None:
        assert rt.state is _states[-1]
        job = await sees.enqueue()
        await rt.drain()
        assert await job.result() is True

    async def test_and_so_has_the_next_one(self, rt: Harness) -> None:
        assert not any(state.open for state in _states if state is not rt.state)


class TestGiven:
    @pytest.fixture
    def rt_state(self) -> State:
        return State(open=False)

    @pytest.fixture
    def rt_handlers(self) -> Sequence[Given]:
        return [sees, in_a_thread, tells, resources, noting, once_an_hour]

    async def test_a_state_that_is_given_is_used_instead(self, rt: Harness, rt_state: State) -> None:
        job = await sees.enqueue()
        await rt.drain()
        assert await job.result() is False
        assert rt.state is rt_state
        assert rt_state.seen == ["before sees"]

    async def test_a_handler_may_run_in_a_thread(self, rt: Harness, rt_state: State) -> None:
        job = await in_a_thread.enqueue(7)
        await rt.drain()
        assert await job.result() == 7
        assert await in_a_thread(rt.context(), 8) == 8
        assert rt_state.seen == ["before in_a_thread", 7, 8]

    async def test_a_context_without_a_job_has_everything(self, rt: Harness) -> None:
        assert await tells(rt.context()) is None
        assert await sees(rt.context()) is False

    async def test_an_id_is_free_again_when_its_time_is_over(self, rt: Harness) -> None:
        first = await once_an_hour.enqueue(1)
        await rt.drain()
        assert not (await once_an_hour.enqueue(1)).created
        await rt.advance("59m")
        assert not (await once_an_hour.enqueue(1)).created
        await rt.advance("1m")
        again = await once_an_hour.enqueue(1)
        assert (again.created, again.id) == (True, first.id)


class TestSchedules:
    @pytest.fixture
    def rt_state(self) -> State:
        return State()

    @pytest.fixture
    def rt_handlers(self) -> Sequence[Given]:
        return [minutely]

    async def test_every_occurrence_is_run_at_its_time(self, rt: Harness, rt_state: State) -> None:
        await rt.drain()
        before = list(rt_state.seen)
        await rt.advance("10m")
        moments = rt_state.seen[len(before) :]
        assert len(moments) == 10
        assert {later - moment for moment, later in pairwise(moments)} == {timedelta(minutes=1)}
        assert all(moment.second == 0 for moment in moments)


class TestCron:
    @pytest.fixture
    def rt_state(self) -> State:
        return State()

    @pytest.fixture
    def rt_handlers(self) -> Sequence[Given]:
        return [nightly]

    async def test_a_time_of_the_day_is_that_of_the_tests_day(self, rt: Harness, rt_state: State) -> None:
        await rt.drain()
        for _ in range(6):
            await rt.advance("12h")
        assert len(rt_state.seen) == 3
        assert all(moment.astimezone(UTC).hour in (5, 6) and moment.minute == 0 for moment in rt_state.seen)
        first, second, third = rt_state.seen
        assert third - second == second - first == timedelta(days=1)
        assert first > datetime.now(UTC) - timedelta(minutes=1)


class TestSlow:
    @pytest.fixture
    def rt_handlers(self) -> Sequence[Given]:
        return [each_second]

    async def test_a_schedule_that_is_quicker_than_its_handler_keeps_no_test(self, rt: Harness) -> None:
        job = await each_second.enqueue()
        await rt.drain("15s")  # while one runs the next occurrence comes due
        await rt.drain("15s")
        assert await job.status() == "completed"
