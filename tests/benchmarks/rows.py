"""The rows: how a contender is measured, which figures come of it, and what §11 of the design wants of them."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.contenders import (
    ARQ_BEST,
    ARQ_DEFAULT,
    BULLMQ,
    CONCURRENCY,
    FLOOR_LIST,
    FLOOR_ONE_CALL,
    FLOOR_PIPELINE,
    RUNTIME,
    RUNTIME_EVENTS,
    RUNTIME_INFO,
    RUNTIME_TRACED,
    RUNTIME_UVLOOP,
    Contender,
)
from tests.benchmarks.counting import Counts, Probe, cpu_s
from tests.benchmarks.stage import Failed, Stage, stage

NOOPS = 10_000
NAPS = 3000
NAP_S = 0.05
SINGLES = 2000
PICKUPS = 20
ROUND_TRIPS = 6
BACKGROUND_S = 1.5
SETTLE_S = 35.0
WINDOW_S = 60.0
HELD = (1, 20)

Figures = dict[str, list[float]]
"""Of one round, by name: mostly one each, or the samples."""


@dataclass(frozen=True, slots=True)
class Column:
    figure: str
    title: str
    spread: bool = False
    """Minimum, median and maximum; else the median."""
    digits: int = 0
    quantile: float = 0.5
    """Of the samples: the median of each round's, or, if it is another, one of all rounds' together."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of §11: `figure` of `who` is `at` so much, times that of `than` if there is one."""

    who: Contender
    figure: str
    at: Literal["least", "most"]
    much: float
    than: Contender | None = None
    than_figure: str = ""
    quantile: float = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    contenders: Sequence[Contender]
    measure: Callable[[Sequence[Contender], float], Iterator[tuple[Contender, Figures | str]]]
    """Of each contender, in turn, what one round gave, or why it gave nothing. The number scales the jobs."""
    columns: Sequence[Column]
    against: Sequence[Contender] = ()
    """Ratios of the first column to these."""
    bars: Sequence[Bar] = ()
    rounds: int | None = None
    """At most; fewer where the figures are exact whatever the noise."""


def one_by_one(
    measure: Callable[[Contender, float], Figures],
) -> Callable[[Sequence[Contender], float], Iterator[tuple[Contender, Figures | str]]]:
    """Contenders are measured one after the other: none disturbs another."""

    def each(contenders: Sequence[Contender], scale: float) -> Iterator[tuple[Contender, Figures | str]]:
        for contender in contenders:
            try:
                yield contender, measure(contender, scale * contender.share)
            except Failed as error:
                yield contender, str(error)

    return each


def drained(
    job: Literal["noop", "nap"], most: int, argument: float, delay_ms: float = 0
) -> Callable[[Contender, float], Figures]:
    """Jobs wait, then a worker starts: from its first job until the last one is settled."""

    def measure(contender: Contender, scale: float) -> Figures:
        jobs = max(round(most * scale), CONCURRENCY)
        with stage(contender, delay_ms) as on:
            begun = on.probe.counts()
            (bulk,) = on.produce("bulk", jobs, job, argument)
            filled = on.probe.counts()
            with on.worker(jobs) as (pid, marks):
                first, cpu = marks.next(), cpu_s(pid)
                marks.next()
                took_s = on.wait_until_drained() - first
                used = on.probe.counts() - filled
                cpu = cpu_s(pid) - cpu
            kept = on.contender.family.kept(on.probe)
            if kept != jobs:
                raise Failed(f"{kept} results are kept of {jobs}")
        return _per_job(used, jobs) | {
            "jobs_per_s": [jobs / took_s],
            "efficiency": [100 * jobs * argument / CONCURRENCY / took_s],
            "worker_us": [cpu / jobs * 1e6],
            "all_commands": [((filled - begun).commands + used.commands) / jobs],
            "bulk": [bulk],
        }

    return measure


def _per_job(used: Counts, jobs: float) -> Figures:
    return {
        "commands": [used.commands / jobs],
        "reads": [used.reads / jobs],
        "bytes_in": [used.bytes_in / jobs],
        "bytes_out": [used.bytes_out / jobs],
        "redis_us": [used.cpu_s / jobs * 1e6],
    }


def enqueued(delay_ms: float = 0) -> Callable[[Contender, float], Figures]:
    """One producer, no worker."""

    def measure(contender: Contender, scale: float) -> Figures:
        singles, bulk = (max(round(most * scale), CONCURRENCY) for most in (SINGLES, NOOPS))
        with stage(contender, delay_ms) as on:
            before = on.probe.counts()
            one = on.produce("one", singles, "noop", 1)
            between = on.probe.counts()
            many = on.produce("bulk", bulk, "noop", 1)
            after = on.probe.counts()
        used = between - before
        return {
            "one": one,
            "bulk": many,
            "one_reads": [used.reads / singles],
            "one_commands": [used.commands / singles],
            "bulk_commands": [(after - between).commands / bulk],
        }

    return measure


def awaited(contender: Contender, scale: float) -> Figures:
    """Jobs come alone to a worker that is awake and idle."""
    pickups, trips = (max(round(most * scale / contender.share), 3) for most in (PICKUPS, ROUND_TRIPS))
    with stage(contender) as on, on.worker() as (_, marks):
        _, *results = on.produce("results", 1 + trips, "noop", 1)  # the first one waits for the worker to be up
        marks.next()
        per_s = _background(on)
        before, at = on.probe.counts(), time.monotonic()
        began = on.produce("paced", pickups, "marked")
        used, took_s = on.probe.counts() - before, time.monotonic() - at
        taken = [1000 * (marks.next() - began_at) for began_at in began]
    return {
        "pickup_ms": taken,
        "result_ms": results,
        "lone_commands": [(used.commands - per_s.commands * took_s) / pickups],
        "lone_reads": [(used.reads - per_s.reads * took_s) / pickups],
        "lone_bytes_in": [(used.bytes_in - per_s.bytes_in * took_s) / pickups],
        "lone_bytes_out": [(used.bytes_out - per_s.bytes_out * took_s) / pickups],
    }


@dataclass(frozen=True, slots=True)
class _Rate:
    """A second, of what goes on by itself."""

    commands: float
    reads: float
    bytes_in: float
    bytes_out: float


def _background(on: Stage) -> _Rate:
    before = on.probe.counts()
    time.sleep(BACKGROUND_S)
    used = on.probe.counts() - before
    return _Rate(*(part / BACKGROUND_S for part in (used.commands, used.reads, used.bytes_in, used.bytes_out)))


def idled(contenders: Sequence[Contender], scale: float) -> Iterator[tuple[Contender, Figures | str]]:
    """All at once, as it takes long and costs nothing: a minute with no job, with one that runs, and with twenty.

    It begins 35 s after the start; a foreign job was run first where the jobs come from arq.
    """
    window_s = max(WINDOW_S * min(scale, 1), 2.0)
    with ExitStack() as stack:
        running: list[tuple[Contender, int, Probe, int]] = []
        for contender in contenders:
            for held in (0, *HELD):
                on = stack.enter_context(stage(contender))
                pid, _ = stack.enter_context(on.worker())
                if held:
                    on.produce("bulk", held, "nap", 600)
                running.append((contender, held, on.probe, pid))
        time.sleep(SETTLE_S * min(scale, 1))
        before = [(probe.counts(), cpu_s(pid)) for _, _, probe, pid in running]
        time.sleep(window_s)
        found: dict[str, Figures] = {contender.name: {} for contender in contenders}
        for (contender, held, probe, pid), (counts, cpu) in zip(running, before, strict=True):
            used = probe.counts() - counts
            a_minute = 60 / window_s
            figures = found[contender.name]
            figures[f"held_{held}"] = [used.commands * a_minute]
            if held and contender.extends_s is not None:
                extensions = 60 / contender.extends_s
                figures[f"extension_{held}"] = [(figures[f"held_{held}"][0] - figures["held_0"][0]) / extensions]
            if not held:
                figures["idle_bytes"] = [(used.bytes_in + used.bytes_out) * a_minute]
                figures["idle_cpu"] = [100 * (cpu_s(pid) - cpu) / window_s]
    for contender in contenders:
        yield contender, found[contender.name]


def quantile(samples: Sequence[float], part: float) -> float:
    """Of a few samples, the one that at least so many are not above."""
    if part == 0.5:
        return statistics.median(samples)
    return sorted(samples)[math.ceil(part * len(samples)) - 1]


_COSTS = (
    Column("worker_us", "worker µs"),
    Column("redis_us", "redis µs"),
    Column("commands", "commands", digits=2),
    Column("all_commands", "with enqueue", digits=2),
    Column("reads", "reads", digits=3),
    Column("bytes_in", "bytes in"),
    Column("bytes_out", "out"),
)
_SPEED = Column("jobs_per_s", "jobs/s", spread=True)
_SINGLES = Column("one", "one by one /s", spread=True)
_BULK = Column("bulk", "bulk /s", spread=True)


def _far(delay_ms: float) -> Sequence[Row]:
    contenders = (RUNTIME, ARQ_BEST, BULLMQ, FLOOR_PIPELINE, FLOOR_ONE_CALL)
    at = f"{delay_ms:g} ms away (each way)"
    # What a job of arq's, alone, waits for: four round trips in turn before the next one's turn comes.
    return (
        Row(
            f"noop-{delay_ms:g}ms",
            f"no-op jobs, the server {at}",
            contenders,
            one_by_one(lambda who, scale: drained("noop", _slow(who, delay_ms), 1, delay_ms)(who, scale)),
            (_SPEED, *_COSTS),
            (ARQ_BEST, BULLMQ, FLOOR_PIPELINE),
            rounds=2,
        ),
        Row(
            f"enqueue-{delay_ms:g}ms",
            f"enqueue, the server {at}",
            (RUNTIME, ARQ_BEST, BULLMQ, FLOOR_PIPELINE),
            one_by_one(lambda who, scale: enqueued(delay_ms)(who, scale * 0.1)),
            (_SINGLES, _BULK),
            (ARQ_BEST,),
            rounds=1,
        ),
    )


def _slow(contender: Contender, delay_ms: float) -> int:
    return NOOPS if contender is not ARQ_BEST else round(1000 / delay_ms)


ROWS: Sequence[Row] = (
    Row(
        "noop",
        "1, 7, 10: no-op jobs; per job: CPU, commands (those in scripts too), socket reads, bytes",
        (RUNTIME, RUNTIME_UVLOOP, ARQ_DEFAULT, ARQ_BEST, BULLMQ, FLOOR_PIPELINE, FLOOR_ONE_CALL),
        one_by_one(drained("noop", NOOPS, 1)),
        (_SPEED, *_COSTS),
        (ARQ_BEST, BULLMQ, FLOOR_ONE_CALL),
        (
            Bar(RUNTIME, "jobs_per_s", "least", 1.2, BULLMQ),
            Bar(RUNTIME, "jobs_per_s", "least", 0.5, FLOOR_ONE_CALL),
            Bar(RUNTIME, "all_commands", "most", 10),
            Bar(RUNTIME, "reads", "most", 0.1),
        ),
    ),
    Row(
        "defaults",
        "2: the same with info logs, and with tracing",
        (RUNTIME_INFO, RUNTIME_TRACED, ARQ_BEST),
        one_by_one(drained("noop", NOOPS, 1)),
        (_SPEED, *_COSTS),
        (ARQ_BEST,),
        (
            Bar(RUNTIME_INFO, "jobs_per_s", "least", 3, ARQ_BEST),
            Bar(RUNTIME_TRACED, "jobs_per_s", "least", 3, ARQ_BEST),
        ),
    ),
    Row(
        "naps",
        "3: jobs that wait 50 ms, 100 at once; efficiency: the ideal time in percent of the time it took",
        (RUNTIME, ARQ_BEST, BULLMQ, FLOOR_PIPELINE, FLOOR_ONE_CALL),
        one_by_one(drained("nap", NAPS, NAP_S)),
        (Column("efficiency", "efficiency %", spread=True, digits=1), *_COSTS),
        (ARQ_BEST, FLOOR_PIPELINE, FLOOR_ONE_CALL),
        (Bar(RUNTIME, "efficiency", "least", 0.95, FLOOR_ONE_CALL),),
    ),
    Row(
        "enqueue",
        "4: one producer, no worker",
        (RUNTIME, ARQ_DEFAULT, ARQ_BEST, BULLMQ, FLOOR_PIPELINE),
        one_by_one(enqueued()),
        (
            _SINGLES,
            _BULK,
            Column("one_reads", "reads", digits=2),
            Column("one_commands", "commands", digits=2),
            Column("bulk_commands", "in bulk", digits=2),
        ),
        (ARQ_DEFAULT, ARQ_BEST),
        (
            Bar(RUNTIME, "one", "least", 1.3, ARQ_DEFAULT),
            Bar(RUNTIME, "bulk", "least", 3.5, ARQ_DEFAULT),
            Bar(RUNTIME, "one_reads", "most", 1.01),
        ),
    ),
    Row(
        "awaited",
        "5, 6, 7: jobs that come alone to an idle worker: enqueue to start, enqueue to result; what one costs",
        (RUNTIME, RUNTIME_EVENTS, ARQ_DEFAULT, ARQ_BEST, BULLMQ, FLOOR_LIST),
        one_by_one(awaited),
        (
            Column("pickup_ms", "pickup p50 ms", spread=True, digits=2),
            Column("pickup_ms", "p99 of all", quantile=0.99, digits=1),
            Column("result_ms", "result p50 ms", spread=True, digits=2),
            Column("lone_commands", "commands", digits=1),
            Column("lone_reads", "reads", digits=1),
            Column("lone_bytes_in", "bytes in"),
            Column("lone_bytes_out", "out"),
        ),
        (ARQ_BEST, BULLMQ, FLOOR_LIST),
        (
            Bar(RUNTIME, "pickup_ms", "most", 2.3, FLOOR_LIST),
            Bar(RUNTIME, "pickup_ms", "most", 1, BULLMQ, quantile=0.99),
            Bar(RUNTIME_EVENTS, "pickup_ms", "most", 20),
            Bar(RUNTIME, "result_ms", "most", 2.3, FLOOR_LIST),
            Bar(RUNTIME, "lone_commands", "most", 23),
        ),
    ),
    Row(
        "idle",
        "7, 8: commands a minute of a worker that is idle, that holds 1 job, and 20",
        (RUNTIME, ARQ_DEFAULT, ARQ_BEST, BULLMQ),
        idled,
        (
            Column("held_0", "idle", digits=1),
            Column("idle_bytes", "bytes a minute"),
            Column("idle_cpu", "CPU %", digits=2),
            Column("held_1", "holding 1", digits=1),
            Column("held_20", "holding 20", digits=1),
            Column("extension_1", "per extension of 1", digits=1),
            Column("extension_20", "of 20", digits=1),
        ),
        bars=(
            Bar(RUNTIME, "held_0", "most", 10),
            Bar(RUNTIME, "extension_1", "most", 8),
            Bar(RUNTIME, "extension_20", "most", 46),
        ),
        rounds=1,
    ),
    *_far(1),
    *_far(5),
)

BY_NAME: Mapping[str, Row] = {row.name: row for row in ROWS}
