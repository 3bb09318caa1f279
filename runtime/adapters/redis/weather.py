"""What is known of whether Redis works for us: remembered from what its callers were answered, never asked here."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runtime.ports import Away

FRESH_S = 3.0
"""An answer is evidence for so long."""


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
        self._waits: set[asyncio.Timeout] = set()

    @property
    def away(self) -> str | None:
        """Why Redis does not work for us; None while it does."""
        trouble = self._lost or next(iter(self._refused.values()), None)
        return None if trouble is None else str(trouble)

    @property
    def refusing(self) -> bool:
        """The server was there and refused something that it has not granted since."""
        return bool(self._refused)

    @property
    def fresh(self) -> bool:
        """Something was answered just now."""
        return time.monotonic() - self._heard_at < FRESH_S

    def answered(self, what: str, queue: str = "") -> None:
        """`what` was done as asked."""
        self._heard_at = time.monotonic()
        self._lost = None
        self.granted(what, queue)

    def granted(self, what: str, queue: str = "") -> None:
        """`what` is not refused, though it may be on its way still."""
        self._refused.pop((what, queue), None)
        self._refused.pop(("ping", ""), None)  # who serves anything would answer a ping
        if what == "claim":
            self._refused.pop(("look", queue), None)  # a claim looks, too
        if self._since is not None and self.away is None:
            away_s, self._since = time.monotonic() - self._since, None
            self._on_back(away_s)

    def failed(self, what: str, away: Away, queue: str = "") -> None:
        """`what` was not done. Once the connection is lost, nobody waits on for an announcement over another one."""
        self._since = time.monotonic() if self._since is None else self._since
        if away.refused:
            self._lost = None
            self._refused[what, queue] = away
            return
        self._lost = away
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())
        self._waits.clear()

    @asynccontextmanager
    async def waiting(self, longest_s: float) -> AsyncIterator[None]:
        """The block raises `Away` when it takes longer, or when meanwhile the connection is found lost elsewhere."""
        try:
            async with asyncio.timeout(longest_s) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            raise self._lost or Away("no answer in time", "wait") from None
