"""A process of takers: each takes a token, notes its grant, and calls the stand-in with it, again and again.

usage: python -m tests.limits.taker REDIS STANDIN FOLDER RATE BURST TAKERS

It says "ready", begins at the first line of its standard input, and stops when that ends, so also with its parent.
A refusal by the stand-in closes the bucket for as long as it says.
"""

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import aiohttp

from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.connection import connect
from runtime.core.errors import Limited
from runtime.core.limits import Bucket, Costs
from runtime.ports import Limits
from tests.limits.judge import Use, Witness
from tests.limits.taking import limiter

PATIENCE_S = 30.0
_numbers = itertools.count(1)


Note = Callable[[Use], None]


async def take_for_ever(limits: Limits, costs: Costs, session: aiohttp.ClientSession, note: Note) -> None:
    mine = limiter(limits)
    while True:
        try:
            grant = await mine.acquire(costs, PATIENCE_S)
        except Limited as limited:
            await asyncio.sleep(limited.delay_s)
            continue
        caller = f"{os.getpid()}.{next(_numbers)}"
        note(Use(grant.at_us, sum(costs.values()), caller))
        async with session.get("/things/a", headers={"X-Caller": caller}) as answer:
            if answer.status == 429:
                await mine.say(limits.close(costs, float(answer.headers["Retry-After"])))


async def main(redis: str, standin: str, folder: str, rate: str, burst: str, takers: str) -> None:
    client = connect(redis)
    limits, costs = RedisLimits(client), {Bucket("campaign", rate, int(burst)): 1}
    stop = asyncio.Event()
    async with client, aiohttp.ClientSession(standin) as session:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        loop = asyncio.get_running_loop()
        threading.Thread(target=_wait_for_eof, args=(loop, stop), daemon=True).start()
        note = Witness(Path(folder)).pen()
        tasks = [asyncio.create_task(take_for_ever(limits, costs, session, note)) for _ in range(int(takers))]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in [*tasks, stopped]:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
