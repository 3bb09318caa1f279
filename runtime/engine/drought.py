"""Which handlers were refused tokens: until there are some, their jobs are left in the queue, in their order."""

from collections.abc import Callable, Mapping

import anyio

from runtime.ports import Entry

LONGEST_S = 10.0
"""After so long a queue is tried again with one job: what made it dry may have passed sooner than was said."""
TRIAL_S = 1.0
"""So long the others wait to see what becomes of that one."""


class Drought:
    """Told by the limits, asked by the puller. A job that is claimed and refused costs two dozen commands."""

    def __init__(self, entries: Mapping[str, Entry], on_over: Callable[[], None]) -> None:
        self._on_over = on_over
        self._until: dict[str, float] = {}
        self._handlers: dict[str, list[str]] = {}
        for name, entry in entries.items():
            self._handlers.setdefault(entry.spec.queue, []).append(name)

    def refused(self, handler: str, wait_s: float) -> None:
        """It would have had to wait for so long, as would any other job of this handler."""
        self._until[handler] = anyio.current_time() + min(wait_s, LONGEST_S)

    def over(self, handler: str) -> None:
        """It was given what it asked for."""
        if self._until.pop(handler, None) is not None:
            self._on_over()

    def trying(self, queue: str) -> None:
        """One job of `queue` is claimed to see whether it is over."""
        until = anyio.current_time() + TRIAL_S
        for name in self._handlers[queue]:
            self._until[name] = max(self._until[name], until)

    def until(self, queue: str) -> float | None:
        """Until when no handler of `queue` can do anything, as far as known; it may be past. None if one can."""
        handlers = self._handlers.get(queue, ())
        if not self._until or not handlers or not all(name in self._until for name in handlers):
            return None
        return min(self._until[name] for name in handlers)
