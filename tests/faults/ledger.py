"""The witness of the fault tests. It is outside Redis, because Redis and what we keep in it are what is tried.

Handlers append `start` and `end`, producers `acked`, killers `killed`: one line each, O_APPEND, so that a SIGKILL cuts
nothing short. The judge is a pure function of these lines and of what was found when all was quiet.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

What = Literal["acked", "start", "end", "cancelled", "killed"]

SETTLE_S = 2.0
"""A kill so soon after a handler's end may have come before its outcome was settled; nobody outside can tell."""
MOST_CRASHES = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One fact, with the monotonic time that all processes of a machine share."""

    what: What
    job: str = ""
    pid: int = 0
    at: float = 0.0
    attempt: int = 0
    crashes: int = 0
    """As the worker told the handler."""


class Ledger:
    """The lines of one test, in a file that every process of it appends to."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def note(self, what: What, job: str = "", *, pid: int = 0, attempt: int = 0, crashes: int = 0) -> None:
        line = Line(what, job, pid or os.getpid(), time.monotonic(), attempt, crashes)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, json.dumps(asdict(line)).encode() + b"\n")
        finally:
            os.close(file)

    def lines(self) -> list[Line]:
        if not self.path.exists():
            return []
        return [Line(**json.loads(line)) for line in self.path.read_text().splitlines()]

    def starts(self, job: str | None = None) -> list[Line]:
        """The executions that have begun, of this job or of all."""
        return [line for line in self.lines() if line.what == "start" and job in (None, line.job)]

    def running(self, pid: int) -> set[str]:
        """The jobs that this process has begun and not ended."""
        mine = [line for line in self.lines() if line.pid == pid]
        ended = {line.job for line in mine if line.what in ("end", "cancelled")}
        return {line.job for line in mine if line.what == "start"} - ended


@dataclass(frozen=True)
class Letter:
    """What a dead letter says."""

    reason: str
    crashes: int


@dataclass(frozen=True)
class Found:
    """What Redis and the workers' logs say once nothing is to be done any more."""

    results: Mapping[str, bool] = field(default_factory=dict)
    """By job: whether it went well."""
    letters: Mapping[str, Letter] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    """The queue's counters: settlements that were accepted."""
    told_completed: Mapping[str, int] = field(default_factory=dict)
    """By job: how often a worker said JOB_COMPLETED, which it does before it settles."""
    told_started: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    left: Sequence[str] = ()
    """Keys of jobs that are still there."""


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a job, as the ledger shows it."""

    job: str
    pid: int
    start: float
    end: float | None
    killed: float | None
    """When its process was killed, if that cut it, or its settlement, short."""

    @property
    def over(self) -> float | None:
        """When it was certainly over."""
        return self.killed if self.end is None else self.end


def executions(lines: Iterable[Line]) -> dict[str, list[Execution]]:
    """By job, in the order they began."""
    facts = list(lines)
    deaths = {line.pid: line.at for line in facts if line.what == "killed"}
    found: dict[str, list[Execution]] = {}
    for line in facts:
        if line.what != "start":
            continue
        same = (other for other in facts if (other.job, other.pid) == (line.job, line.pid) and other.at >= line.at)
        end = next((other.at for other in same if other.what in ("end", "cancelled")), None)
        death = deaths.get(line.pid)
        # A killer notes its kill just before it: what began in between was killed all the same.
        cut = death is not None and (end is None or death - end <= SETTLE_S)
        killed_at = max(death, line.at) if cut and death is not None else None
        found.setdefault(line.job, []).append(Execution(line.job, line.pid, line.at, end, killed_at))
    for runs in found.values():
        runs.sort(key=lambda run: run.start)
    return found


def judge(lines: Iterable[Line], found: Found) -> list[str]:
    """The promises that were broken, each in a sentence; none is what a test wants."""
    facts = list(lines)
    acked = {line.job for line in facts if line.what == "acked"}
    runs = executions(facts)
    return [
        *_lost(acked, runs, found),
        *_settled_twice(acked, runs, found),
        *_ran_too_often(runs),
        *(f"left behind: {key}" for key in found.left),
    ]


def _lost(acked: set[str], runs: Mapping[str, Sequence[Execution]], found: Found) -> Iterable[str]:
    for job in sorted(acked):
        letter, well = found.letters.get(job), found.results.get(job) is True
        if letter is not None:
            # A worker that dies after its claim and before its first word about it is seen by nobody. That is rare.
            seen = max(sum(run.killed is not None for run in runs.get(job, ())), found.told_started.get(job, 0))
            if letter.reason != "crashed":
                yield f"{job}: a dead letter ({letter.reason}) although its handler does not fail"
            elif letter.crashes != MOST_CRASHES or seen < MOST_CRASHES - 1:
                yield f"{job}: a dead letter of {letter.crashes} crashes, {seen} seen"
            if well:
                yield f"{job}: done and a dead letter"
        elif not well:
            yield f"{job}: lost, neither done nor a dead letter"
        elif not any(run.end is not None for run in runs.get(job, ())):
            yield f"{job}: has a result, and no run of it ended"
    for job in sorted((set(found.results) | set(found.letters)) - acked):
        yield f"{job}: was never enqueued"


def _settled_twice(acked: set[str], runs: Mapping[str, Sequence[Execution]], found: Found) -> Iterable[str]:
    well = sum(found.results.values())
    if (found.completed, found.failed) != (well, len(found.letters)):
        yield (
            f"{found.completed} settlements accepted as completed and {found.failed} as failed, "
            f"of {well} jobs done and {len(found.letters)} dead letters ({len(acked)} enqueued)"
        )
    for job, told in found.told_completed.items():
        cut = sum(run.killed is not None and run.end is not None for run in runs.get(job, ()))
        if told - found.refused.get(job, 0) - cut > 1:
            yield f"{job}: completed {told} times, {found.refused.get(job, 0)} of them refused"


def _ran_too_often(runs: Mapping[str, Sequence[Execution]]) -> Iterable[str]:
    for job, these in runs.items():
        crashes = sum(run.killed is not None for run in these[:-1])  # a crash of the last one explains none
        if len(these) > 1 + crashes:
            yield f"{job}: {len(these)} executions, {crashes} crashes"
        for before, after in pairwise(these):
            if before.over is None or after.start < before.over:
                yield f"{job}: ran twice at once"


def recoveries(lines: Iterable[Line]) -> list[float]:
    """For every job whose worker was killed while it ran: the seconds to its next start."""
    found = []
    for these in executions(lines).values():
        for before, after in pairwise(these):
            if before.killed is not None and before.end is None:
                found.append(after.start - before.killed)
    return found


def effective_kills(lines: Iterable[Line]) -> int:
    """Kills that hit a process while it ran a job."""
    return len({run.pid for runs in executions(lines).values() for run in runs if run.killed and run.end is None})


def count_by(jobs: Iterable[str]) -> dict[str, int]:
    return dict(Counter(jobs))
