"""`make bench`: this worker and stock arq on the same machine, in one run, in turn; ratios count, absolutes do not.

Row W1: jobs that do nothing, results kept, waiting before the worker starts; one worker process, concurrency 100.
Every contender has a server of its own and its own client's jobs. What a job costs the server is counted by the server
itself (`INFO commandstats`: the commands inside scripts are counted too).
"""

import argparse
import asyncio
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from tests.servers import Server

LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    worker: Sequence[str]
    """The worker's command line; the server's URL is added."""
    fill: Callable[[str, int], None]
    configuration: str


def fill_with_arq(url: str, count: int) -> None:
    from arq.connections import RedisSettings, create_pool

    async def fill() -> None:
        pool = await create_pool(RedisSettings.from_dsn(url))
        for at in range(0, count, 500):
            await asyncio.gather(*(pool.enqueue_job("noop", at + n) for n in range(min(500, count - at))))
        await pool.aclose()

    asyncio.run(fill())


def fill_with_runtime(url: str, count: int) -> None:
    from runtime import connect, enqueue_all
    from tests.benchmarks.workers import noop

    async def fill() -> None:
        async with connect(url):
            await enqueue_all([noop.request(n) for n in range(count)])

    asyncio.run(fill())


def worker(kind: str, *args: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.workers", kind, *args]


CONTENDERS = [
    Contender("runtime", worker("runtime"), fill_with_runtime, "concurrency 100, logs at warning, lease 10 s"),
    Contender("arq", worker("arq", "10", "0.5"), fill_with_arq, "its defaults: max_jobs 10, poll_delay 0.5"),
    Contender("arq:c100", worker("arq", "100", "0.5"), fill_with_arq, "max_jobs 100, poll_delay 0.5"),
    Contender("arq:c100-poll10ms", worker("arq", "100", "0.01"), fill_with_arq, "max_jobs 100, poll_delay 0.01"),
]


@dataclass(frozen=True, slots=True)
class Round:
    jobs_per_s: float
    commands: float
    reads: float
    redis_us: float
    worker_us: float


def measure(contender: Contender, jobs: int) -> Round:
    """One round: fill, start the worker, wait for the queue to be empty."""
    with Server() as server:
        contender.fill(server.tcp_url, jobs)
        probe = redis.Redis.from_url(server.url)
        assert probe.zcard("arq:queue") == jobs
        before = _counts(probe)
        process = subprocess.Popen([*contender.worker, server.tcp_url], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            first = float(process.stdout.readline())
            probes = 0
            until = time.monotonic() + LIMIT_S
            while probe.zcard("arq:queue"):
                probes += 1
                assert time.monotonic() < until, f"{contender.name} did not finish"
                time.sleep(0.005)
            took_s = time.monotonic() - first
            after = _counts(probe)
            process.terminate()
            worker_s = float(process.stdout.readline())
        finally:
            process.terminate()
            process.wait()
        results = sum(1 for _ in probe.scan_iter("arq:result:*", count=5000))
        assert results == jobs, f"{contender.name}: {results} results of {jobs}"
        probe.close()
    commands, reads, cpu_s = (new - old for new, old in zip(after, before, strict=True))
    return Round(
        jobs / took_s, (commands - probes) / jobs, (reads - probes) / jobs, cpu_s / jobs * 1e6, worker_s / jobs * 1e6
    )


def _counts(probe: "redis.Redis") -> tuple[float, float, float]:
    """Commands (those inside scripts too), socket reads, and the server's CPU seconds so far."""
    info: Any = probe.info("everything")
    return (
        info["total_commands_processed"],
        info["total_reads_processed"],
        info["used_cpu_user"] + info["used_cpu_sys"],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs a round; arq at its defaults gets a tenth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="contenders by name")
    args = parser.parse_args()
    chosen = [one for one in CONTENDERS if args.only is None or one.name in args.only]
    rounds: dict[str, list[Round]] = {one.name: [] for one in chosen}
    for number in range(args.rounds):
        for one in chosen:  # in turn, so that the machine's moods meet all alike
            rounds[one.name].append(measure(one, max(1000, args.jobs // 10) if one.name == "arq" else args.jobs))
            print(f"round {number + 1} {one.name}: {rounds[one.name][-1].jobs_per_s:,.0f} jobs/s", file=sys.stderr)
    report(chosen, rounds)
    return 0


def report(chosen: Sequence[Contender], rounds: dict[str, list[Round]]) -> None:
    print(
        f"\nW1 no-op jobs, results kept, one worker process. Python {platform.python_version()}, server {_server()}\n"
    )
    header = ("contender", "jobs/s min/median/max", "x best arq", "commands/job", "reads/job", "redis µs", "worker µs")
    print(" | ".join(header))
    best = max((_median(rounds[one.name], "jobs_per_s") for one in chosen if one.name.startswith("arq")), default=0.0)
    for one in chosen:
        speeds = [each.jobs_per_s for each in rounds[one.name]]
        middle = statistics.median(speeds)
        cells = [
            one.name,
            f"{min(speeds):,.0f} / {middle:,.0f} / {max(speeds):,.0f}",
            f"{middle / best:.2f}" if best else "-",
            *(f"{_median(rounds[one.name], name):.2f}" for name in ("commands", "reads")),
            *(f"{_median(rounds[one.name], name):.0f}" for name in ("redis_us", "worker_us")),
        ]
        print(" | ".join(cells))
    print()
    for one in chosen:
        print(f"{one.name}: {one.configuration}")
    print("commands and reads are the worker's; enqueueing is not in them")


def _median(rounds: Sequence[Round], name: str) -> float:
    middle: float = statistics.median(getattr(each, name) for each in rounds)
    return middle


def _server() -> str:
    with Server() as server:
        probe = redis.Redis.from_url(server.url)
        info: Any = probe.info("server")
        probe.close()
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"


if __name__ == "__main__":
    sys.exit(main())
