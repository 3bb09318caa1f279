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
        self._waits: dict[asyncio.Timeout, Away | None] = {}
        """Those under way, and what has ended them."""

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
            if not wait.expired():
                self._waits[wait] = away
                wait.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def waiting(self, longest_s: float) -> AsyncGenerator[asyncio.Timeout]:
        """The block raises `Away` when it takes longer, or when others find out meanwhile that nothing can be done.

        Not when it is the event loop that was late: time is given anew, as the question may not have been sent.
        """
        loop = asyncio.get_running_loop()
        ended: Away | None = None

        def expire(due: float) -> None:
            now = loop.time()
            if now - due > LATE_S:
                loop.call_at(now + longest_s, expire, now + longest_s)
            elif wait in self._waits and not wait.expired():
                wait.reschedule(now)

        timer = loop.call_later(longest_s, expire, loop.time() + longest_s)
        try:
            async with asyncio.timeout(None) as wait:
                self._waits[wait] = None
                try:
                    yield wait
                finally:
                    timer.cancel()
                    ended = self._waits.pop(wait)
        except TimeoutError:
            raise Away(ended.cause if ended else "no answer in time", "wait") from None
