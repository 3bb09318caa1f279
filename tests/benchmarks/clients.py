"""The producers of the benchmark that are written in Python: one does one thing, and prints the figures as JSON.

usage: python -m tests.benchmarks.clients URL runtime|arq|floor OPTION ACTION COUNT NAME [ARG]

ACTION is `one` (jobs per s, one awaited after the other), `bulk` (jobs per s, the best way the library has), `paced`
(the moments before each enqueue, to an idle worker) or `results` (ms from each enqueue to its result).
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from tests.benchmarks.guests import use_loop

BULK = 1000
GATHERED = 100
"""arq has no call for many; so many of its calls run at once."""
PAUSE_S = (0.15, 0.25)
"""Between jobs that find their worker idle; at random, so that nobody's polls are met in step."""
ARGUMENTS = {"noop": int, "nap": float}


class Producer(Protocol):
    async def one(self, name: str, args: Sequence[Any]) -> Any:
        """Add a job; what `result` needs."""

    async def bulk(self, name: str, calls: Sequence[Sequence[Any]]) -> None: ...
    async def result(self, job: Any) -> None: ...


class Ours:
    async def one(self, name: str, args: Sequence[Any]) -> Any:
        from tests.benchmarks import ours

        return await getattr(ours, name).enqueue(*args)

    async def bulk(self, name: str, calls: Sequence[Sequence[Any]]) -> None:
        from runtime import enqueue_all
        from tests.benchmarks import ours

        handler = getattr(ours, name)
        await enqueue_all([handler.request(*args) for args in calls])

    async def result(self, job: Any) -> None:
        await job.result()


class Arq:
    def __init__(self, pool: Any, poll_s: float) -> None:
        self._pool = pool
        self._poll_s = poll_s

    async def one(self, name: str, args: Sequence[Any]) -> Any:
        return await self._pool.enqueue_job(name, *args)

    async def bulk(self, name: str, calls: Sequence[Sequence[Any]]) -> None:
        for at in range(0, len(calls), GATHERED):
            await asyncio.gather(*(self.one(name, args) for args in calls[at : at + GATHERED]))

    async def result(self, job: Any) -> None:
        await job.result(poll_delay=self._poll_s)


class Floor:
    def __init__(self, redis: Any, kind: str) -> None:
        from tests.benchmarks.floor import Producer as Writer

        self._writer = Writer(redis, kind)

    async def one(self, name: str, args: Sequence[Any]) -> Any:
        return await self._writer.add(name, [args])

    async def bulk(self, name: str, calls: Sequence[Sequence[Any]]) -> None:
        await self._writer.add(name, calls)

    async def result(self, job: Any) -> None:
        await self._writer.answer(job)


@asynccontextmanager
async def producer(url: str, kind: str, option: str) -> AsyncIterator[Producer]:
    if kind == "runtime":
        from runtime import connect

        async with connect(url):
            yield Ours()
    elif kind == "arq":
        from arq.connections import RedisSettings, create_pool

        pool = await create_pool(RedisSettings.from_dsn(url))
        yield Arq(pool, float(option))
        await pool.aclose()
    else:
        from redis.asyncio import Redis

        async with Redis.from_url(url) as redis:
            yield Floor(redis, option)


async def act(who: Producer, action: str, count: int, name: str, args: Sequence[Any]) -> list[float]:
    match action:
        case "one" | "bulk":
            await who.one(name, args)  # by now it is connected
            began = time.monotonic()
            await _add(who, action, count - 1, name, args)
            return [(count - 1) / (time.monotonic() - began)]
        case "paced":
            return [await _paced(who, name, args) for _ in range(count)]
        case _:
            return [await _to_the_result(who, name, args) for _ in range(count)]


async def _add(who: Producer, action: str, count: int, name: str, args: Sequence[Any]) -> None:
    if action == "one":
        for _ in range(count):
            await who.one(name, args)
    else:
        for at in range(0, count, BULK):
            await who.bulk(name, [args] * min(BULK, count - at))


async def _paced(who: Producer, name: str, args: Sequence[Any]) -> float:
    began = time.monotonic()
    await who.one(name, args)
    await asyncio.sleep(random.uniform(*PAUSE_S))
    return began


async def _to_the_result(who: Producer, name: str, args: Sequence[Any]) -> float:
    began = time.monotonic()
    await who.result(await who.one(name, args))
    took_s = time.monotonic() - began
    await asyncio.sleep(random.uniform(*PAUSE_S))
    return 1000 * took_s


async def run(url: str, kind: str, option: str, action: str, count: str, name: str, *texts: str) -> None:
    args = [ARGUMENTS[name](text) for text in texts]
    async with producer(url, kind, option) as who:
        print(json.dumps(await act(who, action, int(count), name, args)))


if __name__ == "__main__":
    use_loop()
    asyncio.run(run(*sys.argv[1:]))
