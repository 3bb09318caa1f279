"""From the start of a worker's process to its first job's effect, and its memory once it is idle: ours beside arq's.

A job waits in the queue before the process starts; arq's client has put it there, for everybody. It writes the moment
into a file, and that counts; then, where its result is in Redis. The workers start in turn, on one server. Memory is
read when a worker has been idle for 5 s after that, with the HTTP server of ours up.

Run it with `--python` of an environment as users have it (`make run` builds one): what is merely installed beside a
worker counts too.
"""

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from arq.connections import RedisSettings, create_pool

from tests.processes import ROOT, environment, wait_until
from tests.servers import Server

IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    command: Sequence[str]
    up: str
    """What its output says once everything of it is there."""
    configuration: str


CONTENDERS = [
    Contender(
        "runtime",
        ("-m", "runtime", "serve", "handlers", "tests.benchmarks.first.ours"),
        "HTTP_LISTENING",
        "its defaults, HTTP on, results kept, the shipped handlers loaded with it",
    ),
    Contender("arq", ("-m", "arq", "tests.benchmarks.first.arqs.WorkerSettings"), "", "its command, its defaults"),
    Contender("arq:bare", ("-m", "tests.benchmarks.first.arqs"), "", "run_worker() in a script, its defaults, no logs"),
]


@dataclass(frozen=True, slots=True)
class Start:
    effect_ms: float
    result_ms: float
    memory: dict[str, float]
    """MB by kind; empty where it was not waited for."""


def start(contender: Contender, python: str, server: Server, *, weigh: bool) -> Start:
    """One worker, from its start to its end."""
    server.flush()
    with tempfile.TemporaryDirectory() as folder, redis.Redis.from_url(server.url) as probe:
        effect, out = Path(folder, "effect"), Path(folder, "out")
        result = f"arq:result:{_enqueue(server.tcp_url, str(effect))}"
        # A port of its own choosing: others may be at work on this machine.
        env = environment(REDIS_URL=server.tcp_url, PORT=0)
        began = time.monotonic()
        with out.open("wb") as output:
            process = subprocess.Popen(
                [python, *contender.command], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: probe.exists(result) or _alive(process, out), what=f"the result of {contender.name}")
            ended = time.monotonic()
            memory: dict[str, float] = {}
            if weigh:
                wait_until(lambda: contender.up in out.read_text(), what=contender.up)
                time.sleep(IDLE_S)
                memory = _memory(process.pid)
        finally:
            process.terminate()
            process.wait()
        return Start(1000 * (float(effect.read_text()) - began), 1000 * (ended - began), memory)


def _enqueue(url: str, effect: str) -> str:
    async def enqueue() -> str:
        pool = await create_pool(RedisSettings.from_dsn(url))
        job = await pool.enqueue_job("mark", effect)
        await pool.aclose()
        assert job is not None
        return job.job_id

    return asyncio.run(enqueue())


def _alive(process: subprocess.Popen[bytes], out: Path) -> bool:
    assert process.poll() is None, out.read_text()
    return False


def _memory(pid: int) -> dict[str, float]:
    """MB: all that it has in memory, its share of it, and what it has for itself."""
    kb = {
        name: int(size)
        for name, size in re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    }
    return {
        "RSS": kb["Rss"] / 1024,
        "PSS": kb["Pss"] / 1024,
        "USS": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="that of the environment to measure in")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--weighed", type=int, default=3, help="rounds in which memory is read, too")
    args = parser.parse_args()
    starts: dict[str, list[Start]] = {one.name: [] for one in CONTENDERS}
    with Server() as server:
        for one in CONTENDERS:  # as with any second start: files are in memory, modules compiled
            start(one, args.python, server, weigh=False)
        for number in range(args.rounds):
            for one in CONTENDERS:  # in turn, so that the machine's moods meet all alike
                starts[one.name].append(start(one, args.python, server, weigh=number < args.weighed))
    report(starts)
    return 0


def report(starts: dict[str, list[Start]]) -> None:
    print(
        f"{'':10} | start to effect, ms: min, median, max | x arq: min, median | to result: median | MB: RSS, PSS, USS"
    )
    effects = {name: [each.effect_ms for each in those] for name, those in starts.items()}
    for name, those in starts.items():
        ratios = [of(effects[name]) / of(effects["arq"]) for of in (min, statistics.median)]
        weights = [each.memory for each in those if each.memory]
        memory = [statistics.median(each[kind] for each in weights) for kind in weights[0]] if weights else []
        cells = (
            _cell(effects[name], min, statistics.median, max),
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            _cell([each.result_ms for each in those], statistics.median),
            ", ".join(f"{mb:.1f}" for mb in memory),
        )
        print(f"{name:10} | " + " | ".join(cells))
    for one in CONTENDERS:
        print(f"{one.name}: {one.configuration}")


def _cell(times_ms: Sequence[float], *kinds: Callable[[Sequence[float]], float]) -> str:
    return ", ".join(f"{of(times_ms):.0f}" for of in kinds)


if __name__ == "__main__":
    sys.exit(main())
