"""What becomes of this worker as things grow: the queue, the jobs it has run, the workers beside it, those that idle.

Only ours; each part says what it found in a few lines. It takes some minutes, and 0.5 GB for a million jobs.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from arq.jobs import serialize_job

from runtime import connect, enqueue_all
from runtime.adapters.redis import keys
from runtime.adapters.redis.scripts import script
from tests.benchmarks import ours
from tests.benchmarks.contenders import RUNTIME
from tests.benchmarks.counting import cpu_s, memory_mb
from tests.benchmarks.floor import QUEUE
from tests.benchmarks.measures import quantile
from tests.benchmarks.stage import Failed, Stage, stage
from tests.processes import wait_until

QUEUED = 1_000_000
DEFERRED = 100_000
ELSEWHERE = 1000
CLAIMED = 20_000
RUN = 200_000
SHARED = 20_000
WORKERS = (1, 2, 4, 8)
IDLE = 50
LONE = 10
QUIET_S = 20.0

# ARGV: how many, the number of the first, when it is due, a body. As arq's client would, but a million in seconds.
_FILL = """
for number = ARGV[2], ARGV[2] + ARGV[1] - 1 do
  local id = string.format('q%07d', number)
  redis.call('SET', 'arq:job:' .. id, ARGV[4], 'PX', 86400000)
  redis.call('ZADD', KEYS[1], ARGV[3] + number / 1000, id)
end
return ARGV[1]
"""
_FILL_AT_ONCE = 10_000


def lines(scale: float) -> Iterator[str]:
    """What was found, as it is found. `scale` is of all the numbers here, for a short run."""

    def scaled(number: int) -> int:
        return max(round(number * scale), 10)

    yield from _crowded(scaled(QUEUED), scaled(DEFERRED), min(scaled(ELSEWHERE), 1000), scaled(CLAIMED))
    yield from _remembered(scaled(RUN))
    yield from _shared(scaled(SHARED))
    yield from _woken(min(scaled(IDLE), IDLE))


def _crowded(queued: int, deferred: int, elsewhere: int, claimed: int) -> Iterator[str]:
    with stage(RUNTIME) as on:
        yield _claims(on, claimed, "claims, nothing else in the queue")
    with stage(RUNTIME) as on, ExitStack() as stack:
        others = Stage(
            replace(RUNTIME, settings={**RUNTIME.settings, "WORKER_CONCURRENCY": str(elsewhere)}),
            on.server,
            on.url,
            on.probe,
            {},
        )
        others.produce("bulk", elsewhere, "nap", 3600)
        _, marks = stack.enter_context(others.worker(elsewhere))
        marks.next()
        marks.next()
        asyncio.run(_defer(on.url, deferred))
        _fill(on, queued)
        there = on.probe.ask("ZCARD", QUEUE)
        yield _claims(
            on, claimed, f"claims, {there:,} in the queue: {deferred:,} deferred, {elsewhere:,} run elsewhere"
        )


def _claims(on: Stage, count: int, what: str) -> str:
    """The server's own times of the claims of one worker that runs so many jobs."""
    on.probe.ask("CONFIG", "SET", "slowlog-max-len", "1000000")
    on.produce("bulk", count, "noop", 1)
    on.probe.ask("SLOWLOG", "RESET")
    on.probe.ask("CONFIG", "SET", "slowlog-log-slower-than", "0")
    with on.worker(count) as (_, marks):
        first = marks.next()
        took_s = marks.next() - first
        on.probe.ask("CONFIG", "SET", "slowlog-log-slower-than", "-1")
    sha = script("claim").sha.encode()
    times_ms = [entry[2] / 1000 for entry in on.probe.ask("SLOWLOG", "GET", "-1") if entry[3][1:2] == [sha]]
    if not times_ms:
        raise Failed("there are no claims in the server's log")
    shown = ", ".join(f"p{100 * part:g} {quantile(times_ms, part):.2f}" for part in (0.5, 0.99, 1))
    return f"{what}: ms {shown} of {len(times_ms)}; {count / took_s:,.0f} jobs/s"


def _fill(on: Stage, count: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    body = serialize_job("noop", (1,), {}, None, now_ms)
    for number in range(0, count, _FILL_AT_ONCE):
        on.probe.ask("EVAL", _FILL, "1", QUEUE, str(min(_FILL_AT_ONCE, count - number)), str(number), str(now_ms), body)


async def _defer(url: str, count: int) -> None:
    later = ours.noop.options(delay="1h", priority=5)
    async with connect(url):
        for at in range(0, count, 1000):
            await enqueue_all([later.request(n) for n in range(at, min(at + 1000, count))])


def _remembered(count: int) -> Iterator[str]:
    """Memory of a worker, each time that it has run a tenth more."""
    with stage(RUNTIME) as on:
        on.produce("bulk", count, "noop", 1)
        with on.worker(count) as (pid, marks):
            marks.next()
            found = []
            for tenths in range(9, -1, -1):
                left = count * tenths // 10
                while on.probe.ask("ZCARD", QUEUE) > left:
                    time.sleep(0.05)
                found.append(f"{memory_mb(pid):.1f}")
    yield f"resident MB after each tenth of {count:,} jobs: {', '.join(found)}"


def _shared(count: int) -> Iterator[str]:
    """So many workers on one queue, which all of them find full at once."""
    for workers in WORKERS:
        with stage(RUNTIME) as on, ExitStack() as stack:
            on.produce("bulk", count, "noop", 1)
            on.probe.ask("RENAME", QUEUE, "bench:hidden")
            pids = _awake(on, workers, stack)
            on.probe.ask("RENAME", "bench:hidden", QUEUE)
            before, counts, began = [cpu_s(pid) for pid in pids], on.probe.counts(), time.monotonic()
            on.produce("bulk", 1, "noop", 1)  # it is announced
            took_s = on.wait_until_drained() - began
            used = on.probe.counts() - counts
            spent_s = sum(cpu_s(pid) for pid in pids) - sum(before)
        yield (
            f"{workers} workers, {count:,} jobs: {count / took_s:,.0f} jobs/s; CPU µs a job: "
            f"workers {1e6 * spent_s / count:.0f}, server {1e6 * used.cpu_s / count:.0f}; "
            f"{count / (spent_s + used.cpu_s):,.0f} jobs per core-second; commands a job {used.commands / count:.2f}"
        )


def _awake(on: Stage, workers: int, stack: ExitStack) -> list[int]:
    """Workers that have found nothing to do."""
    pids = [stack.enter_context(on.worker())[0] for _ in range(workers)]
    count = "return redis.call('PUBSUB', 'NUMSUB', ARGV[1])[2]"
    # At least: of exactly 8 subscribers Valkey 9.1.2 says some number that is none of theirs.
    wait_until(lambda: on.probe.ask("EVAL", count, "0", keys.here(QUEUE)) >= workers, 120, "all workers are awake")
    time.sleep(2)
    return pids


def _woken(workers: int) -> Iterator[str]:
    """Jobs that come alone, to one worker and to many."""
    for there in (1, workers):
        with stage(RUNTIME) as on, ExitStack() as stack:
            pids = _awake(on, there, stack)
            time.sleep(QUIET_S)
            before = on.probe.counts()
            time.sleep(QUIET_S)
            idle = on.probe.counts() - before
            cpu, before, began = sum(map(cpu_s, pids)), on.probe.counts(), time.monotonic()
            on.produce("paced", LONE, "marked")
            time.sleep(1)
            used, took_s = on.probe.counts() - before, time.monotonic() - began
            cpu = sum(map(cpu_s, pids)) - cpu
            calls = {name: count for name, count in used.calls.items() if count >= LONE}
        commands = (used.commands - idle.commands / QUIET_S * took_s) / LONE
        yield (
            f"{there} idle workers, one job: {commands:.1f} commands, {1000 * cpu / LONE:.1f} ms CPU of all workers; "
            f"idle {60 * idle.commands / QUIET_S:.0f} commands a minute; of {LONE} jobs: {calls}"
        )
