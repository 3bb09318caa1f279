"""How a contender is measured: what one round of it gives, by the name of the figure."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.contenders import CONCURRENCY, Contender
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

Measure = Callable[[Sequence[Contender], float], Iterator[tuple[Contender, Figures | str]]]
"""Of each contender, in turn, what one round gave, or why it gave nothing. The number scales the jobs."""


def one_by_one(
    measure: Callable[[Contender, float], Figures],
) -> Measure:
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
