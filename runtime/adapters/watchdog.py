"""Sees from a thread of its own that the event loop stands still, because a handler blocks it."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from runtime.adapters.runner import token_of
from runtime.core.values import frozen

TICK_S = 0.5
TELL_S = 1.0
"""A loop that has been silent for this long is told of."""
FRAMES = 25


@frozen
class Standstill:
    """What the event loop does instead of going on."""

    for_s: float
    token: str | None
    """The run that is to blame; None where it cannot be told."""
    where: str
    """File, line and function."""
    stack: str
    """The innermost calls, without their variables."""


class Watchdog:
    """Calls, in its own thread, `told` once a standstill has lasted for a second, `over` when the loop goes on, and
    `stuck` once it has lasted for `limit_s`.

    A process that is stopped and goes on later (SIGSTOP, a frozen container) has not stood still: only time counts in
    which this thread could run. A handler that holds the interpreter's lock keeps this thread from running too; then
    its leases lapse, and other workers take over.
    """

    def __init__(
        self,
        limit_s: float,
        told: Callable[[Standstill], None],
        over: Callable[[float], None],
        stuck: Callable[[Standstill], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._limit_s = limit_s
        self._told = told
        self._over = over
        self._stuck = stuck
        self._answered = True
        self._below = 0
        """How many calls are the event loop's own."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on; a second time changes nothing."""
        if not self._thread.ident and not self._closing.is_set():
            self._loop.call_soon(self._answer)
            self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._closing.set()

    def _run(self) -> None:
        silent_s, told = 0.0, False
        before = time.monotonic()
        while not self._closing.wait(TICK_S):
            now = time.monotonic()
            if self._answered:
                if told:
                    self._over(silent_s)
                silent_s, told = 0.0, False
                if not self._ask():
                    return
            else:
                silent_s += min(now - before, 2 * TICK_S)
                if silent_s >= self._limit_s:
                    self._stuck(self._look(silent_s))
                    return
                if silent_s >= TELL_S and not told:
                    told = True
                    self._told(self._look(silent_s))
            before = now

    def _ask(self) -> bool:
        self._answered = False
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _answer(self) -> None:
        self._answered = True
        self._below = _frames(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # it is documented

    def _look(self, for_s: float) -> Standstill:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]  # it is documented
        # What the event loop has called, and what that has; its innermost part.
        calls = traceback.extract_stack(frame)[self._below :][-FRAMES:] if frame else []
        last = calls[-1] if calls else None
        where = f"{last.filename}:{last.lineno} in {last.name}" if last else "unknown"
        return Standstill(for_s, token_of(task) if task else None, where, "".join(traceback.format_list(calls)))


def _frames(frame: FrameType | None) -> int:
    """How many there are, up to this one."""
    count = 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count
