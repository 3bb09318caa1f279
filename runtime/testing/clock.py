"""The clock of buckets and breakers in a test: it stands still, but for `advance`.

So a test can say to the token what is left. Nobody waits in a slot for tokens then, as none would come: what a worker
would wait for, it is snoozed for, which a limit may do to a job in production, too.
"""

from __future__ import annotations

import hashlib
import pkgutil
import time
from contextlib import AbstractContextManager
from functools import cache
from typing import Any
from unittest.mock import patch

from runtime.adapters.redis import buckets
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.scripts import Script
from runtime.core.errors import Limited
from runtime.core.limits import Answer, Costs, Refused

KEY = "rt:testing:clock"


class Clock:
    """Begins at the server's time. One for each test."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._now_us = 0
        self._ahead_ms = 0
        self._promises: list[tuple[float, int]] = []
        """Who was told to come back, when he will by everybody else's clock, and what this one is to show then."""

    async def start(self) -> None:
        seconds, micros = await self._redis.time()
        await self._show(seconds * 1_000_000 + micros)

    async def advance(self, by_ms: int) -> None:
        """Everything else has been made older by so much."""
        self._ahead_ms += by_ms
        await self._show(self._now_us + 1000 * by_ms)

    def ahead_ms(self) -> int:
        """How much the test has advanced."""
        return self._ahead_ms

    def promise(self, wait_s: float) -> None:
        """Somebody comes back in so long."""
        self._promises.append((self._elsewhere() + wait_s, self._now_us + round(wait_s * 1e6)))

    async def keep_promises(self) -> None:
        """For who comes back in time, enough time has gone by."""
        now = self._elsewhere()
        kept = [shown for at, shown in self._promises if at <= now]
        self._promises = [(at, shown) for at, shown in self._promises if at > now]
        if kept and max(kept) > self._now_us:
            await self._show(max(kept))

    def _elsewhere(self) -> float:
        return time.monotonic() + self._ahead_ms / 1000

    async def _show(self, now_us: int) -> None:
        self._now_us = now_us
        await self._redis.set(KEY, now_us)


class StillLimits(RedisLimits):
    """Buckets and breakers by the clock that stands still."""

    def __init__(self, redis: Any, clock: Clock) -> None:
        super().__init__(redis)
        self._clock = clock

    async def take(self, costs: Costs, patience_s: float, *, held: str = "", breaker: str | None = None) -> Answer:
        """Raises `Limited` for what has to be waited for, which is no reason to leave the other jobs unclaimed."""
        await self._clock.keep_promises()
        answer = await super().take(costs, 0.0, held=held, breaker=breaker)
        if isinstance(answer, Refused):
            self._clock.promise(answer.wait_s)
            raise Limited(answer.by, answer.wait_s)
        return answer


def stilled() -> AbstractContextManager[object]:
    """In this process the scripts of buckets and breakers go by the clock that stands still, for the block."""
    return patch.object(buckets, "script", _script)


@cache
def _script(name: str, shared: str) -> Script:
    return _Still(name, shared)


class _Still(Script):
    def __init__(self, name: str, shared: str) -> None:
        super().__init__(name, shared)
        text = pkgutil.get_data("runtime.testing", "still.lua")
        assert text is not None
        self.source = text + self.source
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
