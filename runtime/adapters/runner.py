"""Runs handler calls as asyncio tasks, with the cancelling that asyncio's users know: once, not again and again.

(anyio's cancel scopes cancel every await until the scope is left, so that a `finally` that awaits would be cut short.)
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from runtime.core.policy import Ended, Stop
from runtime.core.span import spell

STUCK_S = 10.0
"""So long after it was asked to stop, and asked again in the middle of it, a run is called stuck."""
_NAME = "run "
_token: ContextVar[str] = ContextVar("token of the run")


class AsyncioRunner:
    """`ports.Runner` in production."""

    def start(
        self,
        token: str,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        *,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> "AsyncioRun":
        return AsyncioRun(token, call, timeout_s, ended, stuck, before)


def token_of(task: "asyncio.Task[Any]") -> str | None:
    """The token of the run that `task` belongs to: its own, or (from Python 3.12 on) one that started it."""
    name, get_context = task.get_name(), getattr(task, "get_context", None)
    if name.startswith(_NAME):
        return name.removeprefix(_NAME)
    return get_context().get(_token) if get_context else None


class AsyncioRun:
    """One call in a task of its own, under its deadline."""

    def __init__(
        self,
        token: str,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._ended: Callable[[Ended], None] | None = ended
        self._stuck = stuck
        self._stop: Stop | None = None
        self._token = token
        self._task = self._loop.create_task(self._guard(call, before), name=_NAME + token)
        self._timer = self._loop.call_later(timeout_s, self.stop, "timeout")
        if before is not None:
            self._timer.cancel()

    def stop(self, why: Stop) -> None:
        if self._ended is None:
            return
        if self._stop is None:
            self._stop = why
            self._timer.cancel()
            self._timer = self._loop.call_later(STUCK_S / 2, self._insist)
            # A task that is cancelled before its first step never enters its coroutine.
            self._task.add_done_callback(lambda _: self._end(None, asyncio.CancelledError()))
        self._task.cancel()

    def allow(self, more_s: float) -> None:
        if self._stop is not None or self._timer.cancelled():
            return
        self._timer.cancel()
        self._timer = self._loop.call_at(self._timer.when() + more_s, self.stop, "timeout")

    def _insist(self) -> None:
        self._task.cancel()
        self._timer = self._loop.call_later(STUCK_S / 2, self._stuck)

    async def _guard(
        self, call: Callable[[], Awaitable[object]], before: Callable[[], Awaitable[object]] | None
    ) -> None:
        # Every exception is an outcome: a SystemExit that left the task would end the event loop.
        _token.set(self._token)
        try:
            if before is not None:
                await before()
                if self._stop is None:
                    self._timer = self._loop.call_later(self._timeout_s, self.stop, "timeout")
            value = await call()
        except BaseException as error:
            self._end(None, error)
        else:
            self._end(value, None)

    def _end(self, value: object, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        self._timer.cancel()
        if self._stop == "timeout" and isinstance(error, asyncio.CancelledError):
            error = TimeoutError(f"it ran longer than its timeout of {spell(self._timeout_s)}")
        ended(Ended(value, error, self._stop))
