"""Heartbeats: what each worker says of itself every 30 s while it is awake, and what others make of it."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import field
from typing import Any

import anyio

from runtime.adapters.payload import LARGEST, from_json, to_json
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import away_when_lost
from runtime.core.pool import PoolStatistics
from runtime.core.values import frozen
from runtime.ports import Away

BEAT_S = 30.0
LIVE_S = 120.0
"""A worker is live for so long after its last heartbeat."""
SWEEP_S = 3600.0
"""What a dead worker said is kept for so long, for whoever wants to know what became of it."""
MOST = 1000
"""Heartbeats kept whatever their age: workers that crash as they boot must not fill the store."""
LEAVE_S = 1.0


@frozen
class Served:
    """Queues that share slots."""

    queues: tuple[str, ...]
    slots: int


@frozen
class Heartbeat:
    """What a worker says of itself. No argument, no result, no secret; what a later version adds has a default."""

    worker_id: str
    incarnation: str
    """New with each process; the leases of its jobs carry it."""
    version: str
    host: str
    pid: int
    started_ms: int
    at_ms: int
    """When it was sent, by the server's clock."""
    state: str
    groups: tuple[Served, ...]
    handlers: tuple[str, ...]
    running: int
    statistics: dict[str, int]
    """processed, succeeded, failed, retried, peak."""
    redis: str
    """`ok`, or why Redis did not answer last."""
    rss_bytes: int | None = None
    pools: tuple[PoolStatistics, ...] = ()
    """Those that were used."""
    awake_because: tuple[str, ...] = ()
    """What keeps it from going quiet."""
    held_since_ms: tuple[int, ...] = ()
    """Since when each of these does."""
    sent_ms: Mapping[str, int] = field(default_factory=dict[str, int])
    """When each part of the worker had sent something last, before this."""
    next_due_ms: int | None = None
    """Of a worker that went quiet: when the first job of its queues was to be due, by the server's clock."""

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(queue for group in self.groups for queue in group.queues)

    @property
    def slots(self) -> int:
        return sum(group.slots for group in self.groups)

    def sleeps_beside(self, other: "Heartbeat") -> bool:
        """It went quiet, and what it knew is still of use: `other`, which is awake, does not take its place."""
        replaced = self.worker_id == other.worker_id or set(self.queues) <= set(other.queues)
        return self.state == "quiet" and (not replaced or self.incarnation == other.incarnation)

    def age_s(self, now_ms: float) -> float:
        """Since it was sent; below zero where a clock was set back."""
        return (now_ms - self.at_ms) / 1000

    def live(self, now_ms: float) -> bool:
        return abs(self.age_s(now_ms)) <= LIVE_S


class Heartbeats:
    """Sends those of one worker. `report` is asked for each anew.

    `send_counts` is called after each, and at the end: what was counted since is sent with them. It may raise `Away`.
    """

    def __init__(
        self,
        redis: Any,
        incarnation: str,
        report: Callable[[], Heartbeat],
        send_counts: Callable[[], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._incarnation = incarnation
        self._report = report
        self._send_counts = send_counts
        self._sent = False

    async def run(self) -> None:
        """Send one at once, then every 30 s: one command each, and the counts. Cancel it to stop; it may be run again.

        A Redis that is away is weather, and others tell of it.
        """
        with suppress(Away):
            await self.beat()
            await self._sweep()
        while True:
            await anyio.sleep(BEAT_S)
            with suppress(Away):
                await self.beat()
            with suppress(Away):
                await self._send_counts()

    async def beat(self) -> None:
        """Send one. Raises `Away`."""
        self._sent = True
        with away_when_lost("heartbeat"):
            await self._redis.hset(keys.WORKERS, self._incarnation, to_json(self._report()))

    async def farewell(self) -> None:
        """Send a last one before a silence, and the counts. Raises `Away`."""
        await self.beat()
        await self._send_counts()

    async def leave(self) -> None:
        """Take back what was sent: this worker has stopped in good order. Gives up after a second."""
        with anyio.move_on_after(LEAVE_S), suppress(Away), away_when_lost("heartbeat"):
            if self._sent:
                await self._redis.hdel(keys.WORKERS, self._incarnation)
            await self._send_counts()

    async def _sweep(self) -> None:
        """Delete what workers said that died long ago, and what is no heartbeat."""
        with away_when_lost("heartbeat"):
            fields: dict[bytes, bytes] = await self._redis.hgetall(keys.WORKERS)
            stale = outdated(fields, self._report())
            if stale:
                await self._redis.hdel(keys.WORKERS, *stale)


def outdated(fields: Mapping[bytes, bytes], mine: Heartbeat) -> set[bytes]:
    """The fields to delete: no heartbeat, or too old, or the oldest of too many."""
    recent = sorted(
        (-beat.at_ms, name)
        for name, data in fields.items()
        if (beat := read(data))
        and (beat.sleeps_beside(mine) if beat.state == "quiet" else abs(beat.age_s(mine.at_ms)) <= SWEEP_S)
    )
    return fields.keys() - {name for _, name in recent[:MOST]}


def read(data: bytes) -> Heartbeat | None:
    """A heartbeat; None for what is none: anybody may have written it."""
    try:
        beat = from_json(data, Heartbeat)
    except (ValueError, RecursionError):
        return None
    numbers = [beat.at_ms, beat.started_ms, beat.pid, beat.running, beat.slots, beat.rss_bytes or 0]
    numbers += [*beat.statistics.values(), *beat.held_since_ms, *beat.sent_ms.values()]
    for pool in beat.pools:
        numbers += (pool.size, pool.in_use, pool.idle, pool.waiting, pool.opened, pool.recycled, pool.failed)
    return beat if all(0 <= number < LARGEST for number in numbers) else None


def read_all(fields: Mapping[bytes, bytes]) -> list[Heartbeat]:
    """Those of the hash's fields that are heartbeats, the last first."""
    beats = [beat for data in fields.values() if (beat := read(data))]
    return sorted(beats, key=lambda beat: -beat.at_ms)


async def queues_served(redis: Any) -> set[str]:
    """The queues of all workers that are known, those that sleep among them. One command; raises as redis-py does."""
    fields: dict[bytes, bytes] = await redis.hgetall(keys.WORKERS)
    return {queue for beat in read_all(fields) for queue in beat.queues}


async def queues_awake(redis: Any) -> set[str]:
    """The queues for which a worker is live that does not sleep. Two commands; raises as redis-py does."""
    seconds, micros = await redis.time()
    fields: dict[bytes, bytes] = await redis.hgetall(keys.WORKERS)
    now_ms = seconds * 1000 + micros / 1000
    live = [beat for beat in read_all(fields) if beat.state != "quiet" and beat.live(now_ms)]
    return {queue for beat in live for queue in beat.queues}
