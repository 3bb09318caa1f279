"""The limiters of the benchmark: a process with some takers that all want the next token of one shared limit.

usage: python -m tests.benchmarks.limiters NAME URL RATE BURST TAKERS SECONDS

It says "ready", begins at the first line of its standard input, and tells at the end when each token was given, in
microseconds: by the clock of this process, when the taker could go on, and ours by the server's clock too.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

Take = Callable[[], Awaitable[int | None]]
"""Comes back when a token may be used; gives when that was by the server's clock, where it is known."""

PATIENCE_S = 60.0
KEY = "bench"


async def runtime(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
    from runtime.adapters.redis.buckets import RedisLimits
    from runtime.adapters.redis.connection import connect
    from runtime.core.limits import Bucket
    from tests.limits.taking import limiter

    client = connect(url)
    stack.push_async_callback(client.aclose)
    mine, costs = limiter(RedisLimits(client)), {Bucket(KEY, f"{rate}/s", burst): 1}

    async def take() -> int:
        return (await mine.acquire(costs, PATIENCE_S)).at_us

    return take


async def limits_moving_window(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    storage = RedisStorage(f"async+{url}", implementation="redispy")
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(rate)

    async def take() -> None:
        while not await limiter.hit(item, KEY):
            # It does not wait by itself; this is what it tells about when to come again.
            window = await limiter.get_window_stats(item, KEY)
            await asyncio.sleep(max(0.001, window.reset_time - time.time()))

    return take


def throttled(algorithm: str) -> Callable[..., Awaitable[Take]]:
    async def make(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
        from throttled.asyncio import RedisStore, Throttled, rate_limiter

        quota = rate_limiter.per_sec(rate, burst=burst)
        limiter = Throttled(key=KEY, using=algorithm, quota=quota, store=RedisStore(server=url), timeout=PATIENCE_S)

        async def take() -> None:
            while (await limiter.limit()).limited:
                pass

        return take

    return make


async def pyrate_log(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
    import redis.asyncio
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket

    client: Any = redis.asyncio.Redis.from_url(url)
    stack.push_async_callback(client.aclose)
    bucket: Any = RedisBucket.init([Rate(rate, Duration.SECOND)], client, KEY)
    return _pyrate(Limiter(await bucket))


async def pyrate_token_bucket(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
    import redis.asyncio
    from pyrate_limiter import Duration, Limiter, Rate, RedisStateStore, StateBucket, TokenBucket

    client: Any = redis.asyncio.Redis.from_url(url)
    stack.push_async_callback(client.aclose)
    rates = [Rate(rate, Duration.SECOND, burst=burst)]
    return _pyrate(Limiter(StateBucket(rates, TokenBucket(), RedisStateStore(client, KEY))))


def _pyrate(limiter: Any) -> Take:
    async def take() -> None:
        while not await limiter.try_acquire_async(KEY):
            pass

    return take


async def aiolimiter(url: str, rate: int, burst: int, stack: AsyncExitStack) -> Take:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(burst, burst / rate)

    async def take() -> None:
        await limiter.acquire()

    return take


MAKERS: dict[str, Callable[..., Awaitable[Take]]] = {
    "runtime": runtime,
    "limits": limits_moving_window,
    "throttled:token_bucket": throttled("token_bucket"),
    "throttled:gcra": throttled("gcra"),
    "pyrate:log": pyrate_log,
    "pyrate:token_bucket": pyrate_token_bucket,
    "aiolimiter": aiolimiter,
}


async def measure(name: str, url: str, rate: int, burst: int, takers: int, length_s: float) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        take = await MAKERS[name](url, rate, burst, stack)
        await take()  # scripts are loaded, connections open
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + length_s
        went, by_server = [], []

        async def taker() -> None:
            while time.monotonic() < until:
                at_us = await take()
                if time.monotonic() >= until:
                    return
                went.append(time.time_ns() // 1000)
                if at_us is not None:
                    by_server.append(at_us)

        began = time.monotonic()
        tasks = [asyncio.create_task(taker()) for _ in range(takers)]
        await asyncio.wait(tasks, timeout=length_s + 0.5)  # who still waits then gets nothing in time
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return {"went": went, "by_server": by_server, "took_s": min(time.monotonic() - began, length_s)}


if __name__ == "__main__":
    name, url, rate, burst, takers, length_s = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(name, url, int(rate), int(burst), int(takers), float(length_s)))))
