"""The rows: who is measured in what way, which figures are shown, and what §11 of the design wants of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.contenders import (
    ARQ_BEST,
    ARQ_DEFAULT,
    BULLMQ,
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
from tests.benchmarks.measures import NAP_S, NAPS, NOOPS, Measure, awaited, drained, enqueued, idled, one_by_one


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
    measure: Measure
    columns: Sequence[Column]
    against: Sequence[Contender] = ()
    """Ratios of the first column to these."""
    bars: Sequence[Bar] = ()
    rounds: int | None = None
    """At most; fewer where the figures are exact whatever the noise."""


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
