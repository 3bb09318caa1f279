"""One set of cases for each `ports.Runner`: production's, on asyncio, and the one that the engine's tests use, on Trio.

Both run on a clock that jumps.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import anyio
import pytest
import trio
from trio.testing import MockClock

from runtime.adapters import runner as asyncio_runner
from runtime.adapters.runner import AsyncioRunner
from runtime.core.policy import Ended
from runtime.ports import SHIELD_MOST_S, Run, Runner
from tests.engine import world
from tests.engine.world import CancelOnce, TrioRunner

STUCK_S = 10.0
Call = Callable[[], Awaitable[object]]


class Lab(Protocol):
    """An event loop with a clock that jumps, and the runner for it."""

    @property
    def cancelled(self) -> type[BaseException]:
        """What a run meets when it is asked to stop."""

    def run(self, test: Callable[[Bench], Awaitable[None]]) -> None: ...


@dataclass
class Bench:
    runner: Runner
    now: Callable[[], float]

    def start(self, call: Call, timeout_s: float = 3600.0) -> Probe:
        return Probe(self, call, timeout_s)


class Probe:
    """A run and what became of it."""

    def __init__(self, bench: Bench, call: Call, timeout_s: float) -> None:
        self._now = bench.now
        self._began = bench.now()
        self._over = anyio.Event()
        self.ends: list[tuple[float, Ended]] = []
        self.stuck_at: list[float] = []
        self.run: Run = bench.runner.start(
            "token", call, timeout_s, self._ended, lambda: self.stuck_at.append(self.age)
        )

    @property
    def age(self) -> float:
        return round(self._now() - self._began, 6)

    def _ended(self, ended: Ended) -> None:
        self.ends.append((self.age, ended))
        self._over.set()

    async def end(self) -> Ended:
        """How it ended; a second end, if there is one, has come by then."""
        await self._over.wait()
        await anyio.sleep(2 * STUCK_S)
        [(_, ended)] = self.ends
        return ended

    @property
    def ended_at(self) -> float:
        return self.ends[0][0]


class TrioLab:
    cancelled: ClassVar[type[BaseException]] = CancelOnce

    def run(self, test: Callable[[Bench], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.fail_after(86400):
                async with trio.open_nursery() as nursery:
                    await test(Bench(TrioRunner(nursery), trio.current_time))
                    nursery.cancel_scope.cancel()

        trio.run(main, clock=MockClock(autojump_threshold=0))


class AsyncioLab:
    cancelled: ClassVar[type[BaseException]] = asyncio.CancelledError

    def run(self, test: Callable[[Bench], Awaitable[None]]) -> None:
        loop = JumpingLoop()
        complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))

        async def main() -> None:
            async with asyncio.timeout(86400):
                await test(Bench(AsyncioRunner(), loop.time))

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())
        assert complaints == []


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only where everybody waits, and then at once."""

    def __init__(self) -> None:
        self.jumped_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.jumped_s


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everybody waits for everybody")
        if not ready and timeout:
            self._loop.jumped_s += timeout
        return ready


@pytest.fixture(params=[TrioLab, AsyncioLab], ids=["trio", "asyncio"])
def lab(request: pytest.FixtureRequest) -> Lab:
    made: Lab = request.param()
    return made


def test_both_runners_mean_the_same_by_stuck() -> None:
    assert world.STUCK_S == asyncio_runner.STUCK_S == STUCK_S


def test_a_deadline_is_put_off_until_the_run_was_asked_to_stop(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        probe = bench.start(lambda: anyio.sleep(100), timeout_s=3)
        await anyio.sleep(2)
        probe.run.allow(4)
        probe.run.allow(2.5)
        await anyio.sleep(7.4)
        assert probe.ends == []
        ended = await probe.end()
        assert (probe.ended_at, ended.stop) == (9.5, "timeout")
        assert isinstance(ended.error, TimeoutError)
        probe.run.allow(5)

    lab.run(test)


def test_what_a_run_returns_is_its_end(lab: Lab) -> None:
    async def work() -> str:
        await anyio.sleep(5)
        return "made"

    async def test(bench: Bench) -> None:
        probe = bench.start(work)
        assert await probe.end() == Ended("made")
        assert probe.ended_at == 5

    lab.run(test)


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, TimeoutError]
)
@pytest.mark.parametrize("after_s", [None, 1])
def test_whatever_a_run_raises_is_its_end_and_nobody_elses(
    lab: Lab, kind: type[BaseException], after_s: float | None
) -> None:
    error = kind("boom")

    async def work() -> None:
        if after_s is not None:
            await anyio.sleep(after_s)
        raise error

    async def test(bench: Bench) -> None:
        bystander = bench.start(lambda: anyio.sleep(100))
        ended = await bench.start(work).end()
        assert ended.error is error
        assert ended.stop is None
        assert (await bystander.end()).error is None

    lab.run(test)


def test_a_call_that_raises_before_it_gives_anything_to_await_ends_likewise(lab: Lab) -> None:
    def work() -> Awaitable[object]:
        raise ValueError("boom")

    async def test(bench: Bench) -> None:
        assert isinstance((await bench.start(work).end()).error, ValueError)

    lab.run(test)


def test_a_run_starts_soon_not_at_once(lab: Lab) -> None:
    begun: list[str] = []

    async def work() -> None:
        begun.append("here")

    async def test(bench: Bench) -> None:
        probe = bench.start(work)
        assert begun == []
        await probe.end()
        assert begun == ["here"]

    lab.run(test)


def test_a_run_that_is_stopped_before_its_first_step_never_takes_it(lab: Lab) -> None:
    begun: list[str] = []

    async def work() -> None:
        begun.append("here")

    async def test(bench: Bench) -> None:
        probe = bench.start(work)
        probe.run.stop("shutdown")
        ended = await probe.end()
        assert begun == []
        assert isinstance(ended.error, lab.cancelled)
        assert ended.stop == "shutdown"

    lab.run(test)


def test_a_stopped_run_is_cancelled_where_it_waits(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        probe = bench.start(lambda: anyio.sleep(1000))
        await anyio.sleep(3)
        probe.run.stop("abort")
        ended = await probe.end()
        assert isinstance(ended.error, lab.cancelled)
        assert ended.stop == "abort"
        assert probe.ended_at == 3

    lab.run(test)


def test_a_run_whose_wait_is_just_over_is_cancelled_at_its_next_step(lab: Lab) -> None:
    seen: list[str] = []

    async def test(bench: Bench) -> None:
        bell = anyio.Event()

        async def work() -> None:
            try:
                await bell.wait()
                seen.append("the wait was over")
            except lab.cancelled:
                seen.append("cancelled")
                raise

        probe = bench.start(work)
        await anyio.sleep(1)
        bell.set()
        probe.run.stop("abort")
        assert isinstance((await probe.end()).error, lab.cancelled)

    lab.run(test)
    assert seen == ["cancelled"]


def test_a_stopped_run_may_wait_while_it_cleans_up(lab: Lab) -> None:
    async def work() -> None:
        try:
            await anyio.sleep(1000)
        finally:
            await anyio.sleep(2)
            await anyio.sleep(2)

    async def test(bench: Bench) -> None:
        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("shutdown")
        assert isinstance((await probe.end()).error, lab.cancelled)
        assert probe.ended_at == 5
        assert probe.stuck_at == []

    lab.run(test)


def test_a_run_that_swallows_its_cancel_and_returns_has_returned(lab: Lab) -> None:
    async def work() -> str:
        try:
            await anyio.sleep(1000)
        except lab.cancelled:
            await anyio.sleep(1)
        return "made all the same"

    async def test(bench: Bench) -> None:
        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("shutdown")
        assert await probe.end() == Ended("made all the same", None, "shutdown")

    lab.run(test)


def test_what_a_stopped_run_raises_instead_is_its_end(lab: Lab) -> None:
    error = ValueError("the clean-up failed")

    async def work() -> None:
        try:
            await anyio.sleep(1000)
        finally:
            raise error

    async def test(bench: Bench) -> None:
        probe = bench.start(work, timeout_s=1)
        ended = await probe.end()
        assert ended.error is error
        assert ended.stop == "timeout"

    lab.run(test)


def test_a_run_that_takes_too_long_times_out(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        probe = bench.start(lambda: anyio.sleep(1000), timeout_s=90)
        ended = await probe.end()
        assert isinstance(ended.error, TimeoutError)
        assert "timeout of" in str(ended.error)
        assert ended.stop == "timeout"
        assert probe.ended_at == 90

    lab.run(test)


def test_a_run_that_ends_in_time_is_left_alone_ever_after(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        probe = bench.start(lambda: anyio.sleep(89), timeout_s=90)
        assert await probe.end() == Ended(None)
        await anyio.sleep(3600)
        assert len(probe.ends) == 1
        assert probe.stuck_at == []

    lab.run(test)


def test_stopping_a_run_that_has_ended_does_nothing(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        probe = bench.start(lambda: anyio.sleep(1))
        await probe.end()
        probe.run.stop("shutdown")
        await anyio.sleep(3600)
        assert [ended.stop for _, ended in probe.ends] == [None]
        assert probe.stuck_at == []

    lab.run(test)


def test_each_stop_cancels_again_and_the_first_reason_stands(lab: Lab) -> None:
    cancels: list[float] = []

    async def test(bench: Bench) -> None:
        async def work() -> None:
            while len(cancels) < 2:
                try:
                    await anyio.sleep(1000)
                except lab.cancelled:
                    cancels.append(probe.age)

        probe = bench.start(work)
        await anyio.sleep(1)
        reasons = [probe.run.stopped]
        probe.run.stop("abort")
        await anyio.sleep(1)
        probe.run.stop("shutdown")
        assert [*reasons, probe.run.stopped] == [None, "abort"]
        assert await probe.end() == Ended(None, None, "abort")

    lab.run(test)
    assert cancels == [1, 2]


def test_a_run_that_does_not_stop_is_asked_again_and_then_called_stuck_once(lab: Lab) -> None:
    cancels: list[float] = []

    async def test(bench: Bench) -> None:
        async def work() -> None:
            for _ in range(2):
                try:
                    await anyio.sleep(1000)
                except lab.cancelled:
                    cancels.append(probe.age)
            await anyio.sleep(10_000)

        probe = bench.start(work)
        await anyio.sleep(100)
        probe.run.stop("abort")
        await anyio.sleep(1000)
        assert probe.stuck_at == [100 + STUCK_S]
        assert probe.ends == []
        assert await probe.end() == Ended(None, None, "abort")
        assert probe.stuck_at == [100 + STUCK_S]

    lab.run(test)
    assert cancels == [100, 100 + STUCK_S / 2]


def test_a_run_that_times_out_and_does_not_stop_is_stuck_too(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        bell = anyio.Event()

        async def work() -> None:
            while not bell.is_set():
                try:
                    await bell.wait()
                except lab.cancelled:
                    continue

        probe = bench.start(work, timeout_s=60)
        await anyio.sleep(600)
        assert probe.stuck_at == [60 + STUCK_S]
        bell.set()
        assert await probe.end() == Ended(None, None, "timeout")

    lab.run(test)


def test_a_run_that_cancels_itself_was_not_asked_to(lab: Lab) -> None:
    async def work() -> None:
        raise lab.cancelled

    async def test(bench: Bench) -> None:
        ended = await bench.start(work).end()
        assert isinstance(ended.error, lab.cancelled)
        assert ended.stop is None

    lab.run(test)


def test_runs_do_not_see_each_others_context(lab: Lab) -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")

    async def work() -> str:
        before = mark.get()
        mark.set("dirty")
        await anyio.sleep(1)
        return before

    async def test(bench: Bench) -> None:
        first, second = bench.start(work), bench.start(work)
        assert (await first.end()).value == "clean"
        assert (await second.end()).value == "clean"
        assert mark.get() == "clean"

    lab.run(test)


# Shields.


async def until_cancelled(lab: Lab, length_s: float = 1000) -> None:
    with suppress(lab.cancelled):
        await anyio.sleep(length_s)


def test_a_shield_holds_off_further_cancels_to_its_end(lab: Lab) -> None:
    seen: list[tuple[str, float]] = []

    async def test(bench: Bench) -> None:
        async def work() -> None:
            await until_cancelled(lab)
            seen.append(("cancelled", probe.age))
            with probe.run.shield(5):
                await anyio.sleep(3)
                seen.append(("cleaned up", probe.age))
            await until_cancelled(lab)
            seen.append(("cancelled", probe.age))

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        await anyio.sleep(1)
        probe.run.stop("shutdown")
        assert await probe.end() == Ended(None, None, "abort")

    lab.run(test)
    assert seen == [("cancelled", 1), ("cleaned up", 4), ("cancelled", 4)]


def test_without_a_further_cancel_nothing_follows_a_shield_that_is_left_in_time(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        async def work() -> str:
            await until_cancelled(lab)
            with probe.run.shield(5):
                await anyio.sleep(1)
            await anyio.sleep(2)
            return "undisturbed"

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        assert (await probe.end()).value == "undisturbed"
        assert probe.ended_at == 4

    lab.run(test)


def test_a_shielded_block_is_cancelled_when_its_time_is_over(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        async def work() -> None:
            await until_cancelled(lab)
            with probe.run.shield(5):
                await anyio.sleep(1000)

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        assert isinstance((await probe.end()).error, lab.cancelled)
        assert probe.ended_at == 6
        assert probe.stuck_at == []

    lab.run(test)


def test_a_shield_that_is_entered_before_counts_from_the_first_cancel(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        async def work() -> None:
            with probe.run.shield(5):
                await anyio.sleep(1000)

        probe = bench.start(work, timeout_s=60)
        ended = await probe.end()
        assert isinstance(ended.error, TimeoutError)
        assert probe.ended_at == 65

    lab.run(test)


def test_a_cancel_that_a_shield_held_off_comes_at_its_end(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        async def work() -> None:
            with probe.run.shield(5):
                await anyio.sleep(3)
            await anyio.sleep(1000)

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        assert isinstance((await probe.end()).error, lab.cancelled)
        assert probe.ended_at == 3

    lab.run(test)


def test_shields_never_last_longer_than_so_long_after_the_run_was_asked_to_stop(lab: Lab) -> None:
    cancels: list[float] = []

    async def test(bench: Bench) -> None:
        async def work() -> None:
            await until_cancelled(lab)
            for _ in range(3):
                with suppress(lab.cancelled), probe.run.shield(3600):
                    await anyio.sleep(6)
                cancels.append(probe.age)

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        assert await probe.end() == Ended(None, None, "abort")

    lab.run(test)
    # The second is cut short, and so is the third at its beginning.
    assert cancels == [7, 1 + SHIELD_MOST_S, 1 + SHIELD_MOST_S]


def test_of_shields_within_each_other_the_longer_one_counts(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        async def work() -> None:
            await until_cancelled(lab)
            with probe.run.shield(6), probe.run.shield(2):
                await anyio.sleep(1000)

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        await probe.end()
        assert probe.ended_at == 7

    lab.run(test)


def test_a_run_that_goes_on_after_its_shields_is_stuck_so_long_after_them(lab: Lab) -> None:
    async def test(bench: Bench) -> None:
        bell = anyio.Event()

        async def work() -> None:
            with suppress(lab.cancelled), probe.run.shield(8):
                await bell.wait()
            while not bell.is_set():
                await until_cancelled(lab, 100)
                if probe.age > 50:
                    break

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        await probe.end()
        assert probe.stuck_at == [1 + 8 + STUCK_S]

    lab.run(test)


@pytest.mark.parametrize(("clean_s", "cleaned", "ended_at"), [(3, [4], 4), (1000, [], 6)])
def test_a_shield_holds_in_a_task_group_of_the_handlers(clean_s: float, cleaned: list[float], ended_at: float) -> None:
    seen: list[float] = []

    async def test(bench: Bench) -> None:
        async def part() -> None:
            try:
                await anyio.sleep(1000)
            finally:
                with probe.run.shield(5):
                    await anyio.sleep(clean_s)
                    seen.append(probe.age)

        async def work() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(part)
                await anyio.sleep(1000)

        probe = bench.start(work)
        await anyio.sleep(1)
        probe.run.stop("abort")
        await anyio.sleep(1)
        probe.run.stop("shutdown")
        assert isinstance((await probe.end()).error, asyncio.CancelledError)
        assert probe.ended_at == ended_at
        assert probe.stuck_at == []

    AsyncioLab().run(test)
    assert seen == cleaned
