"""The state that handlers share: opened before the first of them runs, closed after the last; in a task of its own.

A span, from its opening on:   opening → open → leaving → gone
"""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from runtime.core.errors import LifespanFailed
from runtime.core.lifespan import CLOSE_S, OPEN_S, Lifespan, no_state
from runtime.core.policy import describe
from runtime.core.values import record

OBEY_S = 1.0
"""How long it may take to heed that its time is over."""


@record
class _Span:
    """The state from one opening to its closing."""

    stage: Literal["opening", "open", "leaving"] = "opening"
    value: Any = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Around all of it: leaving it before those that the lifespan has opened inside it would break them."""
    opened: anyio.Event = field(default_factory=anyio.Event)
    """Set: it is open, or will never be."""
    left: anyio.Event = field(default_factory=anyio.Event)
    gone: anyio.Event = field(default_factory=anyio.Event)


class Lifetime:
    """Opens and closes a lifespan, again and again. Its code runs in the task of `run`, from opening to closing.

    `failed` is told of one that could not be opened or ended by itself: nothing can be run then. `warn` is told of
    trouble in closing.
    """

    def __init__(
        self,
        lifespan: Lifespan[Any] | None,
        failed: Callable[[LifespanFailed], object],
        warn: Callable[[str], object],
    ) -> None:
        self._lifespan = lifespan
        self._open_s = OPEN_S if lifespan is None else lifespan.open_s
        self.close_s = CLOSE_S if lifespan is None else lifespan.close_s
        self._failed = failed
        self._warn = warn
        self._span: _Span | None = None
        self._next: _Span | None = None
        """Asked for, and not begun: one at a time. Whatever does not end keeps the next from beginning."""
        self._asked = anyio.Event()
        self._over = False

    async def run(self) -> None:
        """Until `end`. Call it once."""
        while not self._over:
            await self._asked.wait()
            self._asked = anyio.Event()
            span, self._next = self._next, None
            if span is not None:
                await self._live(span)

    async def open(self) -> None:
        """Return when it is open, or has failed to open. May be cancelled, and called again."""
        if self._lifespan is None:
            return
        span = self._span
        if span is None:
            span = self._span = self._next = _Span()
            self._asked.set()
        with anyio.move_on_after(self._open_s + self.close_s + OBEY_S):
            await span.opened.wait()
            return
        self._failed(self._failure("was not opened in time"))

    async def close(self) -> None:
        """Return when it is closed, or its time to close is over."""
        span, self._span = self._span, None
        if span is None:
            return
        self._leave(span)
        with anyio.move_on_after(self.close_s + OBEY_S):
            await span.gone.wait()

    def give_up(self) -> None:
        """Nobody waits for it any longer: if it is not open yet, it need not be, and `open` returns at once."""
        if self._span is not None and self._span.stage == "opening":
            self._leave(self._span)
            self._span.opened.set()  # it may be in a thread, which heeds nothing

    def end(self) -> None:
        """Close it for good, soon."""
        span, self._span = self._span, None
        if span is not None:
            self._leave(span)
        self._over = True
        self._asked.set()

    def state(self) -> Any:
        """What it has yielded. Raises `LifespanMissing` where there is none."""
        if self._span is None or self._span.stage == "opening":
            no_state()
        return self._span.value

    def _leave(self, span: _Span) -> None:
        span.left.set()
        if span.stage == "opening":
            span.scope.cancel()

    async def _live(self, span: _Span) -> None:
        try:
            error = await self._course(span)
        finally:
            span.opened.set()
            span.gone.set()
        if error is None:
            return
        if span.left.is_set():
            failure = describe(error)
            self._warn(f"{self._lifespan} could not be closed: {failure.error}: {failure.text}")
        else:
            what = "could not be opened" if span.stage == "opening" else "ended by itself"
            self._failed(self._failure(what, error))

    async def _course(self, span: _Span) -> BaseException | None:
        """From opening to closing; what went wrong."""
        assert self._lifespan is not None
        span.scope.deadline = anyio.current_time() + self._open_s
        try:
            with span.scope:
                async with self._lifespan.opened() as span.value:
                    await checkpoint_if_cancelled()  # it may have swallowed that its time was over
                    span.stage, span.scope.deadline = "open", math.inf
                    span.opened.set()
                    try:
                        await span.left.wait()
                    finally:  # also where a task group of its own ends it
                        span.stage, span.scope.deadline = "leaving", anyio.current_time() + self.close_s
        except BaseException as error:  # a SystemExit that left the task would end the event loop
            return error
        if span.scope.cancelled_caught and not (span.left.is_set() and span.stage == "opening"):
            return TimeoutError(f"it took longer than {self._open_s if span.stage == 'opening' else self.close_s:g} s")
        return None if span.left.is_set() else RuntimeError("it came to its end")

    def _failure(self, what: str, error: BaseException | None = None) -> LifespanFailed:
        cause = None if error is None else describe(error)
        failure = LifespanFailed(
            f"{self._lifespan} {what}", cause=None if cause is None else f"{cause.error}: {cause.text}"
        )
        failure.__cause__ = error
        return failure
