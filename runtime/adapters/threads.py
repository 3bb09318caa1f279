"""Runs handlers that are no `async def` in threads: never more than the worker has slots, none of them ever abandoned.
One that calls another such handler (`anyio.from_thread.run`) waits for it, and lends it its place meanwhile.

A thread cannot be cancelled. Whoever is cancelled while he waits for one waits on, as its job is not to run again
meanwhile; what the thread made is his all the same. Only what the thread itself waits for in the event loop
(`anyio.from_thread.run`) is cancelled, and `anyio.from_thread.check_cancelled` raises from then on.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import field
from typing import Any, Generic, TypeVar, cast

import anyio

from runtime.adapters import forks
from runtime.core.values import record

T = TypeVar("T")

UNTOLD = 10
"""As many threads where no worker says otherwise: in tests that call such handlers."""


class _Bound:
    """So many threads at most, of one process."""

    def __init__(self) -> None:
        self._most = UNTOLD
        self._limiter: anyio.CapacityLimiter | None = None

    def set(self, most: int) -> None:
        self._most, self._limiter = most, None

    @property
    def limiter(self) -> anyio.CapacityLimiter:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._most)
        return self._limiter


_bound = _Bound()
_lent: ContextVar[anyio.CapacityLimiter | None] = ContextVar("the place of the thread that asks", default=None)


def allow(most: int) -> None:
    """This process may run so many handlers in threads at once; more of them wait."""
    _bound.set(most)


@record
class _Work(Generic[T]):
    """A call, and what came of it."""

    call: Callable[[], T]
    ended: bool = False
    value: T | None = None
    error: BaseException | None = None
    place: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    pid: int = field(default_factory=os.getpid)

    def do(self) -> None:
        _lent.set(self.place)
        try:
            self.value = self.call()
        except BaseException as error:  # a SystemExit would end the thread, and anyio's worker with it
            self.error = error
        if os.getpid() != self.pid:
            forks.leave()
        self.ended = True


async def in_thread(call: Callable[[], T]) -> T:
    """What `call()` gives, or its exception; in a thread with a copy of this context.

    Cancelling: before the thread has begun it is as usual. After that it is heeded once the call has ended, and only if
    that was because of it: a call that comes to its end has done its work.
    """
    work = _Work(call)
    scope = anyio.CancelScope()
    task = asyncio.create_task(_run(work, scope))
    cancelled: BaseException | None = None
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError as error:
        cancelled = error
        scope.cancel()
        with anyio.CancelScope(shield=True):  # from cancel scopes around it, which would cancel again and again
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
    task.result()
    if cancelled is not None and (not work.ended or isinstance(work.error, _CANCELLED)):
        raise cancelled
    if work.error is not None:
        raise work.error
    return cast("T", work.value)  # it has ended, without an error


_CANCELLED = (asyncio.CancelledError, futures.CancelledError)


async def _run(work: _Work[Any], scope: anyio.CancelScope) -> None:
    from anyio import to_thread  # a worker without such handlers has no use for it

    with scope:
        await to_thread.run_sync(work.do, limiter=_lent.get() or _bound.limiter)
