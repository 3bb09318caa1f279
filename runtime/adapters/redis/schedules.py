"""The schedules in Redis, where all workers see them: `ports.Schedules`, and what operators do with them."""

from collections.abc import Sequence
from typing import Any

from runtime.adapters.redis import keys, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.connection import away_when_lost
from runtime.core.schedule import FORGOTTEN_MS, Declared, Move, Schedule, Standing, declared
from runtime.core.values import frozen


class RedisSchedules:
    """Those of one worker."""

    def __init__(self, redis: Any, serializer: Serializer | None = None) -> None:
        self._redis = redis
        self._serializer = serializer

    async def look(self, schedules: Sequence[Schedule]) -> tuple[int, Sequence[Standing]]:
        now_ms, found = 0, dict[tuple[str, str], Standing]()
        with away_when_lost("schedule"):
            for queue, names in _by_queue(schedules).items():
                now_ms, standings = await scripts.agenda(self._redis, queue, names)
                found |= {(queue, name): standing for name, standing in zip(names, standings, strict=True)}
        return now_ms, [found[one.queue, one.name] for one in schedules]

    async def fire(self, schedule: Schedule, move: Move) -> Sequence[bool] | None:
        jobs = [(schedule.id_of(moment_ms), self._body(schedule, moment_ms)) for moment_ms in move.fires]
        with away_when_lost("schedule"):
            return await scripts.fire(self._redis, schedule, move, jobs, keep_ms=1000 * keys.BODY_S)

    async def forget(self, schedules: Sequence[Schedule]) -> None:
        with away_when_lost("schedule"):
            for queue, names in _by_queue(schedules).items():
                now = await self._redis.time()
                due_ms = 1000 * int(now[0]) - FORGOTTEN_MS
                old = await self._redis.zrangebyscore(keys.schedule(queue), "-inf", due_ms)
                for name in {one.decode("utf-8", "replace") for one in old} - set(names):
                    await _forget(self._redis, queue, name)

    def _body(self, schedule: Schedule, moment_ms: int) -> bytes:
        return wire.encode_call(
            schedule.name,
            (),
            {},
            expires_ms=None,
            priority=schedule.priority,
            scheduled_ms=moment_ms,
            serializer=self._serializer,
        )


def _by_queue(schedules: Sequence[Schedule]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for one in schedules:
        names.setdefault(one.queue, []).append(one.name)
    return names


async def _forget(redis: Any, queue: str, name: str) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zrem(keys.schedule(queue), name)
        pipe.hdel(keys.timetable(queue), *(f"{what}|{name}" for what in ("said", "fired", "paused")))
        await pipe.execute()


@frozen
class Listed:
    """A schedule, for people."""

    queue: str
    name: str
    declared: Declared | None
    """None: what is noted is nothing that we have written."""
    next_ms: int | None
    """None: it is paused."""
    fired_ms: int | None
    """The last occurrence that was fired."""
    paused: str | None
    """Why it is paused; None: it is not."""


async def listed(redis: Any, queue: str) -> tuple[int, list[Listed]]:
    """The server's clock in ms, and all schedules of a queue, the next first."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.zrange(keys.schedule(queue), 0, -1, withscores=True)
        pipe.hgetall(keys.timetable(queue))
        now, nexts, told = await pipe.execute()
    facts = {_text(field): _text(value) for field, value in told.items()}
    return int(now[0]) * 1000 + int(now[1]) // 1000, [_listed(queue, _text(name), at, facts) for name, at in nexts]


def _listed(queue: str, name: str, at: float, facts: dict[str, str]) -> Listed:
    fired = facts.get(f"fired|{name}", "")
    paused = at == float("inf")
    return Listed(
        queue,
        name,
        declared(facts.get(f"said|{name}", "")),
        None if paused else round(at),
        int(fired) if fired.isdecimal() else None,
        facts.get(f"paused|{name}", "") if paused else None,
    )


async def pause(redis: Any, queue: str, name: str, reason: str) -> None:
    """Fire it no more, from now on, by any worker. What it has fired is not touched."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd(keys.schedule(queue), {name: "inf"}, xx=True)
        pipe.hset(keys.timetable(queue), f"paused|{name}", reason)
        await pipe.execute()


async def resume(redis: Any, queue: str, name: str, next_ms: int) -> None:
    """Fire it again, from this occurrence on."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd(keys.schedule(queue), {name: next_ms}, xx=True)
        pipe.hdel(keys.timetable(queue), f"paused|{name}")
        await pipe.execute()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
