"""Runs handler calls as asyncio tasks, with the cancelling that asyncio's users know: once, not again and again.

(anyio's cancel scopes cancel every await until the scope is left, so that a `finally` that awaits would be cut short.)
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field
from typing import Any

import anyio

from runtime.adapters import forks
from runtime.core.policy import Ended, Stop
from runtime.core.span import spell
from runtime.core.values import record
from runtime.ports import SHIELD_MOST_S

STUCK_S = 10.0
"""So long after it was asked to stop, or its shields were over, and asked again in the middle of it, a run is called
stuck."""
_NAME = "run "
_token: ContextVar[str] = ContextVar("token of the run")


class _Deadlines:
    """When runs are to be stopped. Most end long before that: a timer for each would be a tenth of a job's cost.

    Runs with the same timeout come due in the order in which they began, so for each timeout there is one timer, for
    the first that has not ended. In one event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._runs: dict[float, dict[AsyncioRun, float]] = {}

    def add(self, run: "AsyncioRun", timeout_s: float) -> None:
        due_at = self._loop.time() + timeout_s
        runs = self._runs.get(timeout_s)
        if runs is None:
            runs = self._runs[timeout_s] = {}
            self._loop.call_at(due_at, self._ring, timeout_s)
        runs[run] = due_at

    def take(self, run: "AsyncioRun", timeout_s: float) -> float | None:
        """No longer watch this run; when it would have been due, if it still was watched."""
        runs = self._runs.get(timeout_s)
        return None if runs is None else runs.pop(run, None)

    def _ring(self, timeout_s: float) -> None:
        runs = self._runs[timeout_s]
        while runs:
            run, due_at = next(iter(runs.items()))
            if due_at > self._loop.time():
                self._loop.call_at(due_at, self._ring, timeout_s)
                return
            del runs[run]
            run.stop("timeout")
        del self._runs[timeout_s]


class AsyncioRunner:
    """`ports.Runner` in production, in one event loop."""

    def __init__(self) -> None:
        self._deadlines: _Deadlines | None = None

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
        if self._deadlines is None:
            self._deadlines = _Deadlines()
            forks.keep_out(asyncio.get_running_loop())
        return AsyncioRun(token, call, timeout_s, ended, stuck, before, self._deadlines)


def token_of(task: "asyncio.Task[Any]") -> str | None:
    """The token of the run that `task` belongs to: its own, or (from Python 3.12 on) one that started it."""
    name, get_context = task.get_name(), getattr(task, "get_context", None)
    if name.startswith(_NAME):
        return name.removeprefix(_NAME)
    return get_context().get(_token) if get_context else None


def running_here() -> str | None:
    """The token of the run that calls this, in whichever of its tasks, callbacks or (`asyncio.to_thread`) threads."""
    return _token.get(None)


@record
class _Shield:
    """A block in which a run is not cancelled."""

    length_s: float
    until: float = math.inf
    """Known once the run is asked to stop."""
    over: asyncio.TimerHandle | None = None
    scope: anyio.CancelScope = field(default_factory=lambda: anyio.CancelScope(shield=True))
    """Keeps off what reaches the block through task groups that the handler has opened."""


class AsyncioRun:
    """One call in a task of its own, under its deadline."""

    _stopped_at = -math.inf
    _shields: tuple[_Shield, ...] = ()
    _held_off = False
    """A cancel waits for the end of the shields."""

    def __init__(
        self,
        token: str,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        before: Callable[[], Awaitable[object]] | None,
        deadlines: _Deadlines,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadlines = deadlines
        self._timer: asyncio.TimerHandle | None = None
        """Where it has one of its own: its deadline was put off, or it was asked to stop."""
        self._ended: Callable[[Ended], None] | None = ended
        self._stuck = stuck
        self._stop: Stop | None = None
        self._token = token
        self._task = self._loop.create_task(self._guard(call, before), name=_NAME + token)
        if before is None:
            deadlines.add(self, timeout_s)

    @property
    def stopped(self) -> Stop | None:
        return self._stop

    def stop(self, why: Stop) -> None:
        if self._ended is None:
            return
        if self._stop is None:
            self._stop = why
            self._stopped_at = self._loop.time()
            self._no_deadline()
            for shield in self._shields:
                self._bound(shield)
            self._timer = self._loop.call_later(STUCK_S / 2, self._insist)
            # A task that is cancelled before its first step never enters its coroutine.
            self._task.add_done_callback(lambda _: self._end(None, asyncio.CancelledError()))
        self._cancel()

    def _cancel(self) -> None:
        if self._shields:
            self._held_off = True
        else:
            self._held_off = False
            self._task.cancel()

    @property
    def shielded_until(self) -> float:
        return max((shield.until for shield in self._shields), default=-math.inf)

    @contextmanager
    def shield(self, length_s: float) -> Generator[None]:
        if not self._is_here():
            yield
            return
        shield = _Shield(length_s)
        self._shields = (*self._shields, shield)
        if self._stop is not None:
            self._bound(shield)
        try:
            with shield.scope:
                yield
        finally:
            self._leave(shield)
            if self._held_off and self._ended is not None:
                self._cancel()

    def _is_here(self) -> bool:
        """Whether this is the thread of the event loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _bound(self, shield: _Shield) -> None:
        shield.until = min(self._loop.time() + shield.length_s, self._stopped_at + SHIELD_MOST_S)
        shield.over = self._loop.call_at(shield.until, self._is_over, shield)

    def _is_over(self, shield: _Shield) -> None:
        shield.scope.shield = False
        self._leave(shield)
        if self._ended is not None:
            self._cancel()

    def _leave(self, shield: _Shield) -> None:
        self._shields = tuple(other for other in self._shields if other is not shield)
        if shield.over is not None:
            shield.over.cancel()

    def allow(self, more_s: float) -> None:
        if self._stop is None and (due_at := self._no_deadline()) is not None:
            self._timer = self._loop.call_at(due_at + more_s, self.stop, "timeout")

    def _no_deadline(self) -> float | None:
        """From now on; when it would have been."""
        timer, self._timer = self._timer, None
        if timer is None:
            return self._deadlines.take(self, self._timeout_s)
        timer.cancel()
        return timer.when()

    def _insist(self) -> None:
        if self._shields:
            self._timer = self._loop.call_at(self.shielded_until + STUCK_S / 2, self._insist)
            return
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
                    self._deadlines.add(self, self._timeout_s)
            value = await call()
        except BaseException as error:
            self._end(None, error)
        else:
            self._end(value, None)

    def _end(self, value: object, error: BaseException | None) -> None:
        if os.getpid() != self._deadlines.pid:
            forks.leave()
        ended, self._ended = self._ended, None
        if ended is None:
            return
        self._no_deadline()
        if self._stop == "timeout" and isinstance(error, asyncio.CancelledError):
            error = TimeoutError(f"it ran longer than its timeout of {spell(self._timeout_s)}")
        ended(Ended(value, error, self._stop))
