"""What is known of whether Redis works for us: remembered from what its callers were answered, never asked here."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from runtime.ports import Away

FRESH_S = 3.0
"""What proves that Redis works for us does so for so long."""
LATE_S = 0.25
"""A timer that is later than this tells of a blocked event loop, not of Redis."""


class Weather:
    """For the event loop's thread. A lost connection is got over by any answer; a refusal only by what it refused.

    A server that is out of memory, a replica, or short of a permission answers PING, and yet no job can be claimed.
    """

    def __init__(self, on_back: Callable[[float], None] = lambda away_s: None) -> None:
        self._on_back = on_back
        self._lost: Away | None = Away("not asked yet")
        self._refused: dict[tuple[str, str], Away] = {}
        self._since: float | None = None
        self._heard_at = float("-inf")
        self._waits: set[Wait] = set()
        """Those under way."""

    @property
    def away(self) -> str | None:
        """Why Redis does not work for us; None while it does."""
        trouble = self._lost or next(reversed(self._refused.values()), None)
        return None if trouble is None else str(trouble)

    @property
    def failing(self) -> bool:
        """Redis was asked, and does not work for us."""
        return self._since is not None

    @property
    def fresh(self) -> bool:
        """It is known that Redis works for us, or did just now."""
        return time.monotonic() - self._heard_at < FRESH_S

    def answered(self, what: str, queue: str = "") -> None:
        """`what` was done as asked."""
        if what == "ping":
            self.proved()
        self._lost = None
        self.granted(what, queue)

    def proved(self) -> None:
        """Something new was written. A server without memory answers every look, a claim that finds nothing, and a
        settlement, which begins by deleting."""
        self._heard_at = time.monotonic()

    def granted(self, what: str, queue: str = "") -> None:
        """`what` is not refused, though it may be on its way still."""
        self._refused.pop((what, queue), None)
        if what == "claim":  # which does all that these do
            self._refused.pop(("look", queue), None)
            self._refused.pop(("ping", ""), None)
        if self._since is not None and self.away is None:
            away_s, self._since = time.monotonic() - self._since, None
            self._on_back(away_s)

    def failed(self, what: str, away: Away, queue: str = "") -> None:
        """`what` was not done. If nothing can be, nobody waits on for an announcement over a connection of its own."""
        self._since = time.monotonic() if self._since is None else self._since
        if away.refused:
            self._lost = None
            self._refused.pop((what, queue), None)
            self._refused[what, queue] = away  # as the latest
        else:
            self._lost = away
        if away.refused and what != "ping":
            return
        for wait in self._waits:
            wait.end(away)

    @asynccontextmanager
    async def waiting(self, longest_s: float) -> AsyncGenerator["Wait"]:
        """The block raises `Away` when it takes longer, or when others find out meanwhile that nothing can be done."""
        wait = Wait(longest_s)
        try:
            async with wait.timeout:
                self._waits.add(wait)
                try:
                    yield wait
                finally:
                    self._waits.discard(wait)
                    wait.is_over()
        except TimeoutError:
            raise Away(wait.cause.cause if wait.cause else "no answer in time", "wait") from None


class Wait:
    """One that is under way."""

    def __init__(self, longest_s: float) -> None:
        self.timeout = asyncio.timeout(None)
        self.cause: Away | None = None
        """What ended it, if it was not its time."""
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self.no_longer_than(longest_s)

    def no_longer_than(self, longest_s: float) -> None:
        """From now. Not when it is the event loop that is late: time is given anew, as what ends it may not be sent."""
        loop = asyncio.get_running_loop()
        due = loop.time() + longest_s
        if self._over or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self._expire, longest_s)

    def _expire(self, longest_s: float) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and asyncio.get_running_loop().time() - timer.when() > LATE_S:
            self.no_longer_than(longest_s)
        else:
            self.end(None)

    def end(self, cause: Away | None) -> None:
        """Now."""
        if not (self._over or self.timeout.expired()):
            self.cause = cause
            self.timeout.reschedule(asyncio.get_running_loop().time())

    def is_over(self) -> None:
        """Nothing ends it any more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
