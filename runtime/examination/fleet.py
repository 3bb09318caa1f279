"""Sees who else there is: workers, the queues they serve, and their limits, as Redis has them."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.adapters.redis import buckets, controls, inspector, keys, queues
from runtime.adapters.redis.connection import TROUBLE, cause_of
from runtime.adapters.redis.heartbeats import Heartbeat
from runtime.adapters.redis.inspector import Trouble
from runtime.adapters.redis.queues import Pause
from runtime.core.diagnosis.handlers import Breaker, Paused, Queue, Rates
from runtime.core.diagnosis.platform import Peer
from runtime.core.limits import Bucket

LOOK_S = 3.0
"""As long as all of this may take; what was not seen by then is left out."""
SCANS = 10
SCAN = 1000
"""Keys looked through for queues: as many, so often."""
MOST = 50
"""Of queues that are counted, and of limits that are looked at."""
_STOCK = ":health-check"
"""What arq appends to a queue's name for the key in which its workers say that they live (arq 0.28 `constants.py`)."""


@dataclass(slots=True)
class Fleet:
    """What was seen so far; None: it was not looked at."""

    peers: Sequence[Peer] | None = None
    queues: list[Queue] = field(default_factory=list[Queue])
    limits: Sequence[Rates] = ()
    breakers: Sequence[Breaker] = ()
    trouble: str | None = None
    """Why the rest was not seen."""

    @property
    def deferred(self) -> int | None:
        """Jobs of the handlers here that wait for their time; None: not all queues were seen, and none in those."""
        number = sum(queue.deferred for queue in self.queues if queue.ours)
        return number if number or self.trouble is None else None


async def see(redis: Any, ours: Sequence[str], declared: Sequence[Bucket]) -> Fleet:
    """What is to be seen within the time; `ours` are the queues of the handlers here, `declared` their limits."""
    fleet = Fleet()
    try:
        async with asyncio.timeout(LOOK_S):
            now_ms, beats = await inspector.workers(redis)
            fleet.peers = [_peer(beat, now_ms) for beat in beats]
            fleet.limits, fleet.breakers = await _limits(redis, {bucket.name: bucket for bucket in declared})
            known = {*ours, *(queue for beat in beats for queue in beat.queues if beat.live(now_ms))}
            for name in sorted(known)[:MOST]:
                fleet.queues.append(await _queue(redis, name, name in ours, beats, now_ms))
            for name in sorted(await _found(redis) - known)[:MOST]:
                fleet.queues.append(await _queue(redis, name, False, beats, now_ms))
    except TROUBLE as error:
        fleet.trouble = cause_of(error)
    return fleet


def _peer(beat: Heartbeat, now_ms: float) -> Peer:
    return Peer(
        worker_id=beat.worker_id,
        incarnation=beat.incarnation,
        state=beat.state,
        live=beat.live(now_ms),
        running=beat.running,
        awake_because=beat.awake_because,
        started_ms=beat.started_ms,
        at_ms=beat.at_ms,
        rss_bytes=beat.rss_bytes,
        here=beat.host == socket.gethostname(),
    )


async def _queue(redis: Any, name: str, ours: bool, beats: Sequence[Heartbeat], now_ms: float) -> Queue:
    census = await inspector.census(redis, name)
    theirs = [beat for beat in beats if name in beat.queues]
    (pause,) = await queues.pauses(redis, [name])
    queue = Queue(
        name,
        ours,
        awake=sum(beat.live(now_ms) and beat.state != "quiet" for beat in theirs),
        asleep=sum(beat.state == "quiet" for beat in theirs),
        stock=bool(await redis.exists(name + _STOCK)),
        paused=_paused(pause, now_ms) if pause else None,
    )
    if isinstance(census, Trouble):
        return replace(queue, trouble=census.text)
    return replace(
        queue, waiting=census.waiting, deferred=census.deferred, active=census.active, unknown=census.unknown
    )


def _paused(pause: Pause, now_ms: float) -> Paused:
    for_s = None if pause.since_ms is None else max(0.0, (now_ms - pause.since_ms) / 1000)
    return Paused(pause.reason, for_s, pause.left_s is not None)


async def _found(redis: Any) -> set[str]:
    """Queues by their looks: sorted sets, not ours, whose first member is the id of a job with a body."""
    names: list[bytes] = []
    cursor = 0
    for _ in range(SCANS):
        cursor, some = await redis.scan(cursor, count=SCAN, _type="zset")
        names += [name for name in some if not name.startswith(b"rt:") and name != keys.ABORT.encode()]
        if cursor == 0:
            break
    found: set[str] = set()
    for name in names[:MOST]:
        first: list[bytes] = await redis.zrange(name, 0, 0)
        if first and await redis.exists(keys.JOB.encode() + first[0]):
            with suppress(UnicodeDecodeError):
                found.add(name.decode())
    return found


async def _limits(redis: Any, here: Mapping[str, Bucket]) -> tuple[list[Rates], list[Breaker]]:
    told = await controls.known(redis)
    both = {**told, **here}
    looked = [both[name] for name in sorted(both)[:MOST]]
    apis = sorted({bucket.name.partition(".")[0] for bucket in looked})[:MOST]
    if not looked:
        return [], []
    levels, states = await buckets.look(redis, looked, apis)
    rates = [
        Rates(
            bucket.name,
            here[bucket.name].rule if bucket.name in here else None,
            told[bucket.name].rule if bucket.name in told else None,
            level.rule if level.set else None,
            level.closed_s,
        )
        for bucket, level in zip(looked, levels, strict=True)
    ]
    breakers = [
        Breaker(name, state.opens_in_s, state.reason)
        for name, state in zip(apis, states, strict=True)
        if state.state == "open"
    ]
    return rates, breakers
