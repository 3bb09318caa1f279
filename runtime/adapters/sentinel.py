"""The sentinel: watches queues for workers that sleep, and rings the doorbell where a job is due and nobody is awake.

Two connections to Redis: one listens (`ear`), one looks. A look is three commands for a queue at rest: every 60 s if
the server announces new jobs, else every 5 s; and when the first job of a queue comes due, or a schedule.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import anyio
from redis.exceptions import ResponseError

from runtime.adapters.doorbell import Doorbell
from runtime.adapters.redis import heartbeats, keys
from runtime.adapters.redis.connection import away_when_lost, concerns_the_server, connect, shown
from runtime.adapters.redis.ear import Ear
from runtime.adapters.redis.needs import needs as needs_of
from runtime.adapters.redis.weather import Weather
from runtime.adapters.telemetry.logs import LogJournal
from runtime.core.alarm import NOBODYS_S, SAFE_LOOK_S, SLOW_LOOK_S, Calls, Need, next_look_s
from runtime.core.span import spell
from runtime.core.text import one_line
from runtime.ports import Away

GATHER_S = 0.03
"""Between an announcement and the look: a producer may write the body first, and the queue after that."""
BUSY_S = 0.5
"""Between two looks while somebody is awake, however much is announced: it is there to take it."""
AWAY_S = 1.0
"""Between two looks while Redis is away."""


class Sentinel:
    """Rings at `wake_urls` for `queues`; for none: for all queues that workers have said they serve.

    `log` takes structlog's calls.
    """

    def __init__(self, url: str, queues: Sequence[str], wake_urls: Sequence[str], log: Any) -> None:
        self._url = url
        self._queues = set(queues)
        self._asks_for_queues = not queues
        self._asked_at = -math.inf
        self._wake_urls = wake_urls
        self._log = log
        self._journal = LogJournal(log, "info")
        self._weather = Weather(self._journal.back)
        self._calls = Calls()
        self._news = 0
        self._told_hears: bool | None = None

    async def run(self) -> None:
        """Watch until cancelled. A Redis that is away is weather, and so is a worker that does not answer."""
        self._redis = connect(self._url, connections=1)
        self._ear = Ear(self._url, self._redis)
        self._doorbell = Doorbell(self._wake_urls)
        self._log.info(
            f"Sentinel started: {', '.join(sorted(self._queues)) or 'the queues of all workers'}",
            event_name="SENTINEL_BOOT",
            queues=sorted(self._queues),
            redis=shown(self._url),
            wake_urls=list(self._wake_urls),
        )
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._ear.run)
                await self._watch()
        finally:
            with anyio.CancelScope(shield=True):
                await self._doorbell.close()
                await self._redis.aclose()
            self._log.info("Sentinel stopped", event_name="SENTINEL_SHUTDOWN")

    async def _watch(self) -> None:
        while True:
            looked_at = anyio.current_time()
            try:
                needs = await self._look()
            except Away as away:
                self._weather.failed("look", away)
                self._journal.weather(away)
                await anyio.sleep(AWAY_S)
                continue
            self._weather.answered("look")
            self._tell_of_hearing()
            queues = self._calls.answer(needs, time.monotonic())
            if queues:
                await self._ring(queues)
                await anyio.sleep(BUSY_S)
                continue  # who has come may soon be gone again: that the ring was of use is seen only while he is there
            if any(need.awake for need in needs):
                await anyio.sleep(BUSY_S)
            with anyio.move_on_at(looked_at + next_look_s(needs, hears=self._ear.hears)):
                self._news = await self._ear.news(self._news)
                await anyio.sleep(GATHER_S)

    async def _look(self) -> Sequence[Need]:
        """The script only where something is due. Raises `Away`."""
        with away_when_lost("look"):
            await self._ask_for_queues()
            queues = sorted(self._queues)
            needs = await self._heads(queues)
            if any(need.due for need in needs):
                needs = await needs_of(self._redis, queues)
            return needs

    async def _heads(self, queues: Sequence[str]) -> Sequence[Need]:
        """Whether the first job of each queue is due, or a schedule. A job may be held, and nobody was asked who is
        awake."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for queue in queues:
                pipe.zrange(queue, 0, 0, withscores=True)
                pipe.zrange(keys.schedule(queue), 0, -1, withscores=True)
            now, *replies = await pipe.execute(raise_on_error=False)
        for reply in (now, *replies):
            if isinstance(reply, Exception) and concerns_the_server(reply):
                raise reply
        if isinstance(now, ResponseError):
            raise now
        now_ms = now[0] * 1000 + now[1] / 1000
        return [
            _of_heads(queue, head, scheduled, now_ms)
            for queue, head, scheduled in zip(queues, replies[::2], replies[1::2], strict=True)
        ]

    async def _ask_for_queues(self) -> None:
        if self._asks_for_queues and time.monotonic() - self._asked_at >= SAFE_LOOK_S:
            self._queues |= await heartbeats.queues_served(self._redis)  # one that has left may have left jobs behind
            self._asked_at = time.monotonic()

    async def _ring(self, queues: Sequence[str]) -> None:
        began = time.monotonic()
        self._doorbell.ring()
        names = ", ".join(map(one_line, queues))
        for ring in await self._doorbell.rung():
            took_s = time.monotonic() - began
            about = {"queues": list(queues), "wake_url": ring.url, "duration_ms": round(1000 * took_s)}
            if ring.answered:
                self._log.info(
                    f"Doorbell answered after {spell(took_s)}: jobs of {names} are due, and nobody was awake",
                    event_name="SENTINEL_RANG",
                    **about,
                )
            else:
                self._log.warning(
                    f"Doorbell not answered: {one_line(ring.said)}. Jobs of {names} are due, and nobody is awake",
                    event_name="SENTINEL_UNANSWERED",
                    **about,
                )

    def _tell_of_hearing(self) -> None:
        hears = self._ear.hears
        if hears == self._told_hears or (not hears and self._ear.settling):
            return
        self._told_hears = hears
        text = (
            f"The server announces new jobs; a look every {spell(SAFE_LOOK_S)} beside that"
            if hears
            else f"The server does not announce new jobs (its notify-keyspace-events lacks K$): "
            f"a look every {spell(SLOW_LOOK_S)}"
        )
        self._log.info(text, event_name="SENTINEL_HEARING", announced=hears)


def _of_heads(queue: str, head: Any, scheduled: Any, now_ms: float) -> Need:
    in_s = [in_s for in_s in _times(scheduled, now_ms) if -NOBODYS_S <= in_s < math.inf] + _times(head, now_ms)
    return Need(
        queue, due=any(one <= 0 for one in in_s), awake=0, next_in_s=min((one for one in in_s if one > 0), default=None)
    )


def _times(reply: Any, now_ms: float) -> list[float]:
    """The seconds until each of these is due. A key of another type holds nothing."""
    return [] if isinstance(reply, Exception) else [(float(at) - now_ms) / 1000 for _, at in reply]
