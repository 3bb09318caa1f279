"""What redis-py can do at least cost: bare loops, no worker. No retries, no leases to extend, nothing survives trouble.

Two of them speak arq's format, by the hundred: `pipeline` claims by a script and settles by a pipeline, `one-call`
settles a hundred and claims the next in one script. `list` pops from a list: how soon a blocked reader can have a job.
"""

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from arq.jobs import deserialize_job_raw, serialize_job, serialize_result
from redis.asyncio import Redis

from tests.benchmarks import jobs

AT_ONCE = 100
LEASE_MS = 10_000
KEEP_MS = 3_600_000
QUEUE = "arq:queue"
LIST = "floor:queue"
FUNCTIONS: Mapping[str, Callable[..., Awaitable[object]]] = {"noop": jobs.noop, "nap": jobs.nap, "marked": jobs.marked}

_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if redis.call('SET', 'arq:in-progress:' .. id, '1', 'NX', 'PX', ARGV[2]) then
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = redis.call('GET', 'arq:job:' .. id)
  end
end
return claimed
"""
# ARGV: room, lease, how long results are kept; then id and result of each job to settle.
_SETTLE_AND_CLAIM = f"""
for at = 4, #ARGV, 2 do
  local id = ARGV[at]
  redis.call('PSETEX', 'arq:result:' .. id, ARGV[3], ARGV[at + 1])
  redis.call('DEL', 'arq:job:' .. id, 'arq:in-progress:' .. id)
  redis.call('ZREM', KEYS[1], id)
end
{_CLAIM}"""

Done = Sequence[tuple[str, bytes]]
"""Ids and results."""


async def serve(kind: str, url: str) -> None:
    redis = Redis.from_url(url)
    if kind == "list":
        await _serve_list(redis)
    elif kind == "pipeline":
        claim = redis.register_script(_CLAIM)
        while True:
            claimed = await claim(keys=[QUEUE], args=[AT_ONCE, LEASE_MS])
            await _settle(redis, await _run(claimed))
    else:
        both = redis.register_script(_SETTLE_AND_CLAIM)
        done: Done = ()
        while True:
            settled = [part for job in done for part in job]
            done = await _run(await both(keys=[QUEUE], args=[AT_ONCE, LEASE_MS, KEEP_MS, *settled]))


async def _run(claimed: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """All of them, to the last: those that wait together, the others one after the other."""
    if not claimed:
        await asyncio.sleep(0.01)
    pairs = [(claimed[at].decode(), deserialize_job_raw(claimed[at + 1])) for at in range(0, len(claimed), 2)]
    started = time.time_ns() // 1_000_000
    naps = [jobs.nap(None, *args) for _, (name, args, *_) in pairs if name == "nap"]
    await asyncio.gather(*naps)
    done = []
    for job_id, (name, args, kwargs, tries, enqueued) in pairs:
        value = None if name == "nap" else await FUNCTIONS[name](None, *args, **kwargs)
        ended = time.time_ns() // 1_000_000
        result = serialize_result(
            name, args, kwargs, tries or 1, enqueued, True, value, started, ended, "", QUEUE, job_id
        )
        done.append((job_id, result or b""))
    return done


async def _settle(redis: Any, done: Done) -> None:
    if not done:
        return
    async with redis.pipeline(transaction=False) as pipe:
        for job_id, result in done:
            pipe.psetex(f"arq:result:{job_id}", KEEP_MS, result)
        pipe.zrem(QUEUE, *(job_id for job_id, _ in done))
        pipe.delete(*(key + job_id for job_id, _ in done for key in ("arq:job:", "arq:in-progress:")))
        await pipe.execute()


async def _serve_list(redis: Any) -> None:
    while True:
        _, bodies = await redis.blmpop(0, 1, LIST, direction="LEFT", count=AT_ONCE)
        async with redis.pipeline(transaction=False) as pipe:
            for body in bodies:
                job_id, name, args = pickle.loads(body)
                value = pickle.dumps(await FUNCTIONS[name](None, *args))
                pipe.psetex(f"floor:result:{job_id}", KEEP_MS, value)
                pipe.rpush(f"floor:answer:{job_id}", value).pexpire(f"floor:answer:{job_id}", KEEP_MS)
            await pipe.execute()


class Producer:
    """Writes what the loops read, in one round trip for as many jobs as it is given."""

    def __init__(self, redis: Any, kind: str) -> None:
        self._redis = redis
        self._write = self._write_to_list if kind == "list" else self._write_to_queue

    async def add(self, name: str, calls: Sequence[Sequence[object]]) -> str:
        """The id of the last."""
        job_id = ""
        async with self._redis.pipeline(transaction=False) as pipe:
            for args in calls:
                job_id = uuid4().hex
                self._write(pipe, job_id, name, args)
            await pipe.execute()
        return job_id

    def _write_to_queue(self, pipe: Any, job_id: str, name: str, args: Sequence[object]) -> None:
        now_ms = time.time_ns() // 1_000_000
        pipe.psetex(f"arq:job:{job_id}", 86_400_000, serialize_job(name, tuple(args), {}, None, now_ms))
        pipe.zadd(QUEUE, {job_id: now_ms})

    def _write_to_list(self, pipe: Any, job_id: str, name: str, args: Sequence[object]) -> None:
        pipe.rpush(LIST, pickle.dumps((job_id, name, args)))

    async def answer(self, job_id: str) -> None:
        """Wait for the result of a job of the list."""
        await self._redis.blpop(f"floor:answer:{job_id}")
