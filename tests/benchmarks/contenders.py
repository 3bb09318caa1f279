"""Who is measured, as data: its worker, its producer, and what is said of its configuration."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tests.benchmarks import guests
from tests.benchmarks.counting import Probe
from tests.benchmarks.floor import LIST, QUEUE

LEASE_S = 10.0
CONCURRENCY = 100
SAMPLED = 0.1
_PYTHON = (sys.executable, "-m")
_BULLMQ = ("node", str(Path(__file__).with_name("bullmq.cjs")))


@dataclass(frozen=True, slots=True)
class Family:
    """What contenders have in common whose jobs are in the same keys."""

    left: Callable[[Probe], int]
    """Jobs that are not settled yet."""
    kept: Callable[[Probe], int]
    """Results that are kept."""


def _kept_by_arq(probe: Probe) -> int:
    return int(probe.ask("EVAL", "return #redis.call('KEYS', 'arq:result:*')", "0"))


ARQ = Family(lambda probe: int(probe.ask("ZCARD", QUEUE)), _kept_by_arq)
BULL = Family(
    lambda probe: sum(int(probe.ask("LLEN", f"bull:bench:{name}")) for name in ("wait", "active")),
    lambda probe: int(probe.ask("ZCARD", "bull:bench:completed")),
)
A_LIST = Family(lambda probe: int(probe.ask("LLEN", LIST)), lambda probe: 0)


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    worker: Sequence[str]
    """Its command line, after which the server's address stands, before these options."""
    options: Sequence[str]
    producer: Sequence[str]
    configuration: str
    producer_options: Sequence[str] = ()
    family: Family = ARQ
    loop: Literal["asyncio", "uvloop", "libuv"] = "asyncio"
    settings: Mapping[str, str] = field(default_factory=dict)
    events: str = ""
    """The server's `notify-keyspace-events`."""
    traced: bool = False
    share: float = 1.0
    """Of the jobs of a row: who is slow gets fewer, who is fast gets more."""
    extends_s: float | None = None
    """So often the leases of running jobs are extended."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be run here; None if it can."""
        if self.family is BULL:
            return guests.bullmq()
        return guests.uvloop() if self.loop == "uvloop" else None

    def work(self, url: str) -> list[str]:
        return [*self.worker, url, *self.options]

    def produce(self, url: str, *action: object) -> list[str]:
        return [*self.producer, url, *self.producer_options, *map(str, action)]


def _runtime(
    name: str,
    configuration: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    producer_options: Sequence[str] = ("runtime", ""),
    **more: Any,
) -> Contender:
    return Contender(
        name,
        (*_PYTHON, "tests.benchmarks.workers"),
        ("runtime",),
        (*_PYTHON, "tests.benchmarks.clients"),
        configuration,
        producer_options,
        settings={"WORKER_CONCURRENCY": str(CONCURRENCY), "LOG_LEVEL": "warn", "RUNTIME_HTTP": "off", **settings},
        extends_s=LEASE_S / 4,
        **more,
    )


def _arq(name: str, max_jobs: int, poll_s: float, configuration: str, **more: Any) -> Contender:
    return Contender(
        name,
        (*_PYTHON, "tests.benchmarks.workers"),
        ("arq", str(max_jobs), str(poll_s)),
        (*_PYTHON, "tests.benchmarks.clients"),
        configuration,
        ("arq", str(poll_s)),
        **more,
    )


def _floor(kind: str, configuration: str, **more: Any) -> Contender:
    return Contender(
        f"floor:{kind}",
        (*_PYTHON, "tests.benchmarks.workers"),
        ("floor", kind),
        (*_PYTHON, "tests.benchmarks.clients"),
        configuration,
        ("floor", kind),
        loop="uvloop",
        share=2.0,
        **more,
    )


_FULL = {"LOG_LEVEL": "info", "RUNTIME_HTTP": "on", "PORT": "0"}

RUNTIME = _runtime("runtime", "concurrency 100, logs at warning, HTTP off, lease 10 s, else its defaults")
RUNTIME_UVLOOP = _runtime("runtime:uvloop", "the same on uvloop", loop="uvloop")
RUNTIME_INFO = _runtime(
    "runtime:info", "concurrency 100, else its defaults: info logs to a pipe, HTTP on", settings=_FULL
)
RUNTIME_TRACED = _runtime(
    "runtime:traced",
    f"the same, and tracing on: a sampler of {SAMPLED:.0%}, exported to a collector",
    settings=_FULL | {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(SAMPLED)},
    traced=True,
)
RUNTIME_EVENTS = _runtime(
    "runtime<arq:events",
    "as runtime, jobs come from arq's client, and the server tells of them (notify-keyspace-events K$)",
    producer_options=("arq", "0.01"),
    events="K$",
)
ARQ_DEFAULT = _arq("arq", 10, 0.5, "its defaults: max_jobs 10, poll_delay 0.5 s", share=0.1)
ARQ_BEST = _arq(
    "arq:best",
    CONCURRENCY,
    0.01,
    "max_jobs 100, poll_delay 10 ms, results polled every 10 ms",
    loop="uvloop",
    share=0.4,
)
BULLMQ = Contender(
    "bullmq",
    _BULLMQ,
    ("worker", str(CONCURRENCY)),
    _BULLMQ,
    "concurrency 100, jobs and results kept",
    ("client",),
    BULL,
    "libuv",
    extends_s=15.0,
)
FLOOR_PIPELINE = _floor(
    "pipeline", "arq's keys; for 100 jobs, a claim script and a settle pipeline; no tasks for no-ops"
)
FLOOR_ONE_CALL = _floor("one-call", "arq's keys; for 100 jobs, one script that settles them and claims the next")
FLOOR_LIST = _floor("list", "BLMPOP, then a pipeline of results and answers; loses jobs in a crash", family=A_LIST)
