"""Handlers that are no `async def`: where they run, what they may ask of the event loop, and what cancelling means."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio import from_thread

from runtime import handler
from runtime.adapters import threads
from runtime.adapters.runner import AsyncioRunner
from runtime.adapters.threads import UNTOLD, in_thread
from runtime.core.policy import Ended

mark: ContextVar[str] = ContextVar("mark", default="unmarked")


@pytest.fixture(autouse=True)
def unbound() -> Iterator[None]:
    yield
    threads.allow(UNTOLD)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


class Counted:
    """A call that takes a moment, and counts how many of it are made at once."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        return 21


class Gate:
    """A call that waits in its thread until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.let_go.wait(20)
        return "made"

    async def reached(self) -> None:
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


def test_it_runs_in_another_thread_with_the_context_of_its_caller() -> None:
    async def test() -> None:
        mark.set("carried")
        assert await in_thread(lambda: (mark.get(), threading.get_ident() == here)) == ("carried", False)

    here = threading.get_ident()
    run(test)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_its_exception_is_the_callers(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def test() -> None:
        with pytest.raises(type(error)) as met:
            await in_thread(fail)
        assert met.value is error

    run(test)


def test_one_that_is_cancelled_is_waited_for_and_its_work_counts() -> None:
    async def test() -> None:
        gate = Gate()
        task = asyncio.create_task(in_thread(gate))
        await gate.reached()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        gate.let_go.set()
        assert await task == "made"

    run(test)


def test_a_cancel_scope_around_it_waits_likewise_and_at_rest() -> None:
    async def test() -> None:
        gate = Gate()
        asyncio.get_running_loop().call_later(0.5, gate.let_go.set)
        task = asyncio.current_task()
        assert task is not None
        with anyio.move_on_after(0.1):
            assert await in_thread(gate) == "made"
            assert task.cancelling() <= 2

    run(test)


def test_one_that_has_not_begun_is_cancelled_at_once() -> None:
    async def test() -> None:
        threads.allow(1)
        gate, never = Gate(), Gate()
        first = asyncio.create_task(in_thread(gate))
        await gate.reached()
        second = asyncio.create_task(in_thread(never))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.let_go.set()
        await first
        assert not never.entered.is_set()

    run(test)


def test_there_are_never_more_threads_than_allowed() -> None:
    async def test() -> None:
        threads.allow(3)
        work = Counted()
        await asyncio.gather(*(in_thread(work) for _ in range(12)))
        assert work.most == 3

    run(test)


def test_one_that_calls_another_lends_it_its_place() -> None:
    async def test() -> None:
        threads.allow(1)
        inner = Counted()

        async def both() -> int:
            return sum(await asyncio.gather(in_thread(inner), in_thread(inner)))

        assert await in_thread(lambda: from_thread.run(in_thread, lambda: from_thread.run(both))) == 42
        assert inner.most == 1

    run(test)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_in_it_ends_when_it_comes_back() -> None:
    child = 0

    async def test() -> None:
        nonlocal child
        child = await in_thread(os.fork)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            await asyncio.sleep(0.01)
        child = 0
        assert os.waitstatus_to_exitcode(ended[1]) == 1

    try:
        run(test)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_from_its_thread_what_is_asynchronous_is_called() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * number

    async def test() -> None:
        assert await in_thread(lambda: from_thread.run(double, 21)) == 42

    run(test)


def test_one_that_was_cancelled_learns_it_where_it_asks() -> None:
    async def test() -> None:
        gate = Gate()

        def work() -> None:
            gate()
            from_thread.check_cancelled()
            pytest.fail("it did not learn it")

        task = asyncio.create_task(in_thread(work))
        await gate.reached()
        task.cancel()
        await asyncio.sleep(0.01)
        gate.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


def test_what_it_waits_for_in_the_event_loop_is_cancelled_with_it() -> None:
    async def test() -> None:
        reached = asyncio.Event()

        async def wait() -> None:
            reached.set()
            await asyncio.sleep(20)

        task = asyncio.create_task(in_thread(lambda: from_thread.run(wait)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


# As handlers.


@handler
def double(ctx: Any, number: int) -> int:
    return 2 * number


def test_a_handler_that_is_no_async_def_is_awaited_like_any_other() -> None:
    async def test() -> None:
        assert await double(None, 21) == 42
        assert await double.run(None, (21,), {}) == 42

    run(test)


def test_one_that_gives_something_to_await_is_told_how_to_be_written() -> None:
    async def later() -> None: ...

    @handler
    def wrong(ctx: Any) -> Any:
        return later()

    async def test() -> None:
        with pytest.raises(TypeError, match="async def"):
            await wrong.run(None, (), {})

    run(test)


def test_a_run_that_is_asked_to_stop_ends_with_its_thread() -> None:
    async def test() -> None:
        gate, ends = Gate(), list[Ended]()
        begun = AsyncioRunner().start("token", lambda: in_thread(gate), 0.05, ends.append, lambda: None)
        await asyncio.sleep(0.2)
        begun.stop("shutdown")
        await asyncio.sleep(0.05)
        assert ends == []
        gate.let_go.set()
        while not ends:
            await asyncio.sleep(0.001)
        assert ends == [Ended("made", None, "timeout")]

    run(test)


def test_one_that_heeds_its_timeout_has_timed_out() -> None:
    def work() -> None:
        while True:
            from_thread.check_cancelled()
            time.sleep(0.005)

    async def test() -> None:
        ends = list[Ended]()
        AsyncioRunner().start("token", lambda: in_thread(work), 0.05, ends.append, lambda: None)
        while not ends:
            await asyncio.sleep(0.001)
        assert isinstance(ends[0].error, TimeoutError)

    run(test)


def test_a_shield_is_without_effect_in_a_thread() -> None:
    async def test() -> None:
        ends = list[Ended]()

        def work() -> str:
            with begun.shield(5):
                return "made"

        begun = AsyncioRunner().start("token", lambda: in_thread(work), 5, ends.append, lambda: None)
        while not ends:
            await asyncio.sleep(0.001)
        assert ends == [Ended("made")]

    run(test)
