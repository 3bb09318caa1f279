"""What an idle worker costs, and how soon it takes a job: this worker and stock arq, side by side in one run.

Commands a minute are the server's own count (`INFO commandstats`, the commands inside scripts included), taken over one
minute that begins 35 s after the start. Pickup is from the moment before the enqueue to the handler's first line.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from tests.benchmarks.__main__ import worker
from tests.servers import Server

SETTLE_S = 35.0
WINDOW_S = 60.0
BETWEEN_S = 0.25


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    worker: Sequence[str]
    client: str
    events: str = ""
    """The server's `notify-keyspace-events`."""


CONTENDERS = [
    Contender("runtime", worker("runtime"), "runtime"),
    Contender("runtime, arq's client", worker("runtime"), "arq"),
    Contender("runtime, arq's client, server with events", worker("runtime"), "arq", "K$"),
    Contender("arq", worker("arq", "10", "0.5"), "arq"),
]


@contextlib.contextmanager
def idle(contender: Contender) -> Iterator[tuple[str, Any, subprocess.Popen[str]]]:
    with Server() as server:
        probe = redis.Redis.from_url(server.url)
        probe.config_set("notify-keyspace-events", contender.events)
        process = subprocess.Popen([*contender.worker, server.tcp_url], stdout=subprocess.PIPE, text=True)
        try:
            yield server.tcp_url, probe, process
        finally:
            process.terminate()
            process.wait()
            probe.close()


def commands(probe: Any) -> dict[str, int]:
    """Calls of each command so far; INFO, which asks, is not counted."""
    stats: dict[str, Any] = probe.info("commandstats")
    return {name[8:]: row["calls"] for name, row in stats.items() if name != "cmdstat_info"}


def pickups(contender: Contender, url: str, process: subprocess.Popen[str], count: int) -> list[float]:
    """Milliseconds from before each enqueue to the handler's first line, one job at a time."""
    assert process.stdout is not None
    out = process.stdout

    async def run() -> list[float]:
        async with enqueuer(contender.client, url) as enqueue:
            taken: list[float] = []
            for _ in range(count):
                began = time.monotonic()
                await enqueue()
                started = float(await asyncio.to_thread(out.readline))
                taken.append(1000 * (started - began))
                await asyncio.sleep(BETWEEN_S)
            return taken

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def enqueuer(client: str, url: str) -> Any:
    if client == "arq":
        from arq.connections import RedisSettings, create_pool

        pool = await create_pool(RedisSettings.from_dsn(url))
        try:
            yield lambda: pool.enqueue_job("marked")
        finally:
            await pool.aclose()
    else:
        from runtime import connect
        from tests.benchmarks.workers import marked

        async with connect(url):
            yield marked.enqueue


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.idle", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--no-minute", action="store_true", help="only pickups")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        running = [(one, *stack.enter_context(idle(one))) for one in CONTENDERS]
        if not args.no_minute:
            time.sleep(SETTLE_S)
            before = [commands(probe) for _, _, probe, _ in running]
            time.sleep(WINDOW_S)
            for (one, _, probe, _), old in zip(running, before, strict=True):
                sent = {name: count - old.get(name, 0) for name, count in commands(probe).items()}
                shown = ", ".join(f"{count} {name}" for name, count in sent.items() if count)
                print(f"{one.name}: {sum(sent.values())} commands in an idle minute: {shown}")
        for one, url, _, process in running:
            taken = sorted(pickups(one, url, process, args.jobs))
            p99 = taken[int(0.99 * len(taken))]
            print(
                f"{one.name}: pickup p50 {statistics.median(taken):.2f} ms, p99 {p99:.2f} ms, worst {taken[-1]:.2f} ms"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
