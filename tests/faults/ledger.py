"""The witness of the fault tests. It is outside Redis, because Redis and what we keep in it are what is tried.

Handlers append `start`, and `end`, `failed` or `cancelled`; producers `acked`, killers `killed`, and `told` where they
have told the worker to stop before that, and whoever stops a process for longer than a lease `lapsed`: one line each,
O_APPEND, so that a SIGKILL cuts nothing short. The judge is a pure function of these lines and of what was found when
all was quiet. What it finds broken carries the number of the invariant (`tests/campaign/invariants.py`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Literal

What = Literal["acked", "start", "end", "failed", "cancelled", "killed", "lapsed", "told"]
_OVER = ("end", "failed", "cancelled")

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
        ended = {line.job for line in mine if line.what in _OVER}
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
    values: Mapping[str, object] = field(default_factory=dict)
    """By job that went well: its result. Where that is a number of a process, it is the one that ran the job."""
    letters: Mapping[str, Letter] = field(default_factory=dict)
    completed: int | None = 0
    failed: int = 0
    """The queue's counters: settlements that were accepted. None where nobody counts."""
    told_completed: Mapping[str, int] = field(default_factory=dict)
    """By job: how often a worker said JOB_COMPLETED, which it does before it settles."""
    told_started: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    waiting: Collection[str] = ()
    """Jobs that are still queued, with their bodies."""
    left: Sequence[str] = ()
    """Keys of jobs that are still there."""
    at: float = math.inf
    """When it was looked, by the clock of the ledger."""


@dataclass(frozen=True)
class Terms:
    """What is promised besides what always is."""

    reclaim_s: float = math.inf
    """How long after its worker's death a job may take to start again, where it was the job's first crash."""
    slots: int | None = None
    """How many jobs a process may run at once."""
    letters: Mapping[str, str] = field(default_factory=dict)
    """By job that is to fail for good: why it is to be a dead letter, where there are such."""


PLAIN = Terms()


@dataclass(frozen=True, slots=True)
class Breach:
    """An invariant that was broken."""

    invariant: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a job, as the ledger shows it."""

    job: str
    pid: int
    start: float
    end: float | None
    killed: float | None
    """When its process was killed, if that cut it, or its settlement, short."""
    how: What | None
    """What it ended with."""
    lapsed: float | None
    """When its process was stopped for longer than a lease, if that was while it ran."""
    attempt: int
    crashes: int
    told: bool
    """Its process had been told to stop: that it was killed then need not be a crash."""

    @property
    def over(self) -> float | None:
        """When it was certainly over."""
        return self.killed if self.end is None else self.end

    @property
    def repeated(self) -> bool:
        """Whether there was a reason to run the job again."""
        return self.killed is not None or self.lapsed is not None or self.how in ("failed", "cancelled")


def executions(lines: Iterable[Line]) -> dict[str, list[Execution]]:
    """By job, in the order they began."""
    facts = list(lines)
    about: dict[tuple[str, int], list[Line]] = {}
    for line in facts:
        about.setdefault((line.job, line.pid), []).append(line)
    deaths = {line.pid: line.at for line in facts if line.what == "killed"}
    found: dict[str, list[Execution]] = {}
    for line in facts:
        if line.what == "start":
            run = _execution(line, about[line.job, line.pid], deaths.get(line.pid), about.get(("", line.pid), ()))
            found.setdefault(line.job, []).append(run)
    for runs in found.values():
        runs.sort(key=lambda run: run.start)
    return found


def _execution(start: Line, same: Iterable[Line], death: float | None, done_to: Sequence[Line]) -> Execution:
    last = next((line for line in same if line.at >= start.at and line.what in _OVER), None)
    end = None if last is None else last.at
    # A killer notes its kill just before it: what began in between was killed all the same.
    cut = death is not None and (end is None or death - end <= SETTLE_S)
    lapses = (line.at for line in done_to if line.what == "lapsed" and (end is None or line.at <= end))
    return Execution(
        job=start.job,
        pid=start.pid,
        start=start.at,
        end=end,
        killed=max(death, start.at) if cut and death is not None else None,
        how=None if last is None else last.what,
        lapsed=next((at for at in lapses if at >= start.at - SETTLE_S), None),
        attempt=start.attempt,
        crashes=start.crashes,
        told=any(line.what == "told" for line in done_to),
    )


def judge(lines: Iterable[Line], found: Found, terms: Terms = PLAIN) -> list[Breach]:
    """The promises that were broken, each in a sentence; none is what a test wants."""
    facts = list(lines)
    acked = {line.job for line in facts if line.what == "acked"}
    runs = executions(facts)
    left = found.left if not found.waiting else ()
    broken = {
        "I1": _lost(acked, runs, found, terms.letters),
        "I2": _settled_twice(acked, runs, found),
        "I3": _ran_too_often(runs),
        "I4": _overruled(runs, found),
        "I5": chain(_late(runs, found, terms.reclaim_s), _never(facts, runs, found, terms.reclaim_s)),
        "I6": _too_many_at_once(runs, terms.slots),
        "I7": (f"left behind: {key}" for key in left),
        "I10": chain(_burnt(facts, runs), _dead_too_soon(runs, found)),
    }
    return [Breach(invariant, sentence) for invariant, sentences in broken.items() for sentence in sentences]


def _lost(
    acked: set[str], runs: Mapping[str, Sequence[Execution]], found: Found, letters: Mapping[str, str]
) -> Iterable[str]:
    for job in sorted(acked):
        letter, well = found.letters.get(job), found.results.get(job) is True
        if letter is not None:
            if letter.reason != (wanted := letters.get(job, "crashed")):
                why = f"it should be one ({wanted})" if job in letters else "its handler does not fail"
                yield f"{job}: a dead letter ({letter.reason}) although {why}"
            if well:
                yield f"{job}: done and a dead letter"
        elif job in letters and job in found.results:
            if well:  # stock arq has no letters, but a result that says no
                yield f"{job}: done, although its handler fails"
        elif not well and job not in found.waiting:
            yield f"{job}: lost, neither done nor a dead letter"
        elif well and not any(run.how == "end" for run in runs.get(job, ())):
            yield f"{job}: has a result, and no run of it ended"
    for job in sorted((set(found.results) | set(found.letters)) - acked):
        yield f"{job}: was never enqueued"


def _settled_twice(acked: set[str], runs: Mapping[str, Sequence[Execution]], found: Found) -> Iterable[str]:
    well = sum(found.results.values())
    if found.completed is not None and (found.completed, found.failed) != (well, len(found.letters)):
        yield (
            f"{found.completed} settlements accepted as completed and {found.failed} as failed, "
            f"of {well} jobs done and {len(found.letters)} dead letters ({len(acked)} enqueued)"
        )
    for job, told in found.told_completed.items():
        cut = sum(run.killed is not None and run.how == "end" for run in runs.get(job, ()))
        if told - found.refused.get(job, 0) - cut > 1:
            yield f"{job}: completed {told} times, {found.refused.get(job, 0)} of them refused"


def _ran_too_often(runs: Mapping[str, Sequence[Execution]]) -> Iterable[str]:
    for job, these in runs.items():
        reasons = sum(run.repeated for run in these[:-1])  # what befell the last one explains none
        if len(these) > 1 + reasons:
            yield f"{job}: {len(these)} executions, {reasons} reasons to repeat one"
        for before, after in pairwise(these):
            if before.lapsed is None and (before.over is None or after.start < before.over):
                yield f"{job}: ran twice at once"


def _overruled(runs: Mapping[str, Sequence[Execution]], found: Found) -> Iterable[str]:
    for job, value in found.values.items():
        these = runs.get(job, ())
        if isinstance(value, int) and these and these[-1].how == "end" and these[-1].killed is None:
            earlier = {run.pid for run in these[:-1]}
            if value != these[-1].pid and value in earlier:
                yield f"{job}: the result is an earlier run's, of process {value}, not {these[-1].pid}'s"


def _late(runs: Mapping[str, Sequence[Execution]], found: Found, reclaim_s: float) -> Iterable[str]:
    for job, these in runs.items():
        over = job in found.results or job in found.letters
        for before, after in pairwise((*these, None)):
            if before is None or before.killed is None or before.end is not None or (over and after is None):
                continue
            # After more crashes it is left alone for a while. One between a claim and the handler's first line is seen
            # by nobody but the next run.
            if before.crashes or (after is not None and after.crashes > 1):
                continue
            took_s = (found.at if after is None else after.start) - before.killed
            if took_s > reclaim_s:
                again = "not again" if after is None else "again"
                yield f"{job}: {again} {took_s:.1f} s after its worker's death, allowed are {reclaim_s:g} s"


def _never(
    facts: Sequence[Line], runs: Mapping[str, Sequence[Execution]], found: Found, reclaim_s: float
) -> Iterable[str]:
    """Jobs that a worker had with it as it died, before it had begun them, or when it had ended them."""
    last = max((line.at for line in facts if line.what == "killed"), default=math.inf)
    if found.at - last <= reclaim_s:
        return
    for job in found.waiting:
        these = runs.get(job, ())
        if not these or these[-1].end is not None:
            yield f"{job}: still queued {found.at - last:.1f} s after the last death of a worker"


def _too_many_at_once(runs: Mapping[str, Sequence[Execution]], slots: int | None) -> Iterable[str]:
    if slots is None:
        return
    changes: dict[int, list[tuple[float, int]]] = {}
    for run in chain.from_iterable(runs.values()):
        changes.setdefault(run.pid, []).append((run.start, 1))
        if run.over is not None:
            changes[run.pid].append((run.over, -1))
    for pid, moments in changes.items():
        most = max(accumulate(step for _, step in sorted(moments)))
        if most > slots:
            yield f"process {pid} ran {most} jobs at once, it has {slots} slots"


def _burnt(facts: Sequence[Line], runs: Mapping[str, Sequence[Execution]]) -> Iterable[str]:
    """A crash counts; where nobody died or was away, only failures do."""
    harm = [line.at for line in facts if line.what in ("killed", "lapsed")]
    for job, these in runs.items():
        for before, after in pairwise(these):
            crashed = before.killed is not None and before.end is None and not before.told
            if crashed and after.attempt <= before.attempt:
                yield f"{job}: killed, and its next run was told attempt {after.attempt} again"
            if before.killed is not None or any(before.start <= at <= after.start for at in harm):
                continue
            burnt = after.attempt - before.attempt - (before.how == "failed")
            if burnt or after.crashes != before.crashes:
                yield f"{job}: {before.how}, and its next run was told attempt {after.attempt}, {after.crashes} crashes"


def _dead_too_soon(runs: Mapping[str, Sequence[Execution]], found: Found) -> Iterable[str]:
    for job, letter in found.letters.items():
        # A worker that dies after its claim and before its first word about it is seen by nobody. That is rare. One
        # that dies as it makes a dead letter of the job adds a crash to those that made it one.
        seen = max(sum(run.killed is not None for run in runs.get(job, ())), found.told_started.get(job, 0))
        if letter.reason == "crashed" and (letter.crashes < MOST_CRASHES or seen < MOST_CRASHES - 1):
            yield f"{job}: a dead letter of {letter.crashes} crashes, {seen} seen"


def recoveries(lines: Iterable[Line]) -> list[float]:
    """For every job whose worker was killed while it ran, for the first time: the seconds to its next start."""
    found = []
    for these in executions(lines).values():
        for before, after in pairwise(these):
            if before.killed is not None and before.end is None and not before.crashes and after.crashes <= 1:
                found.append(after.start - before.killed)
    return found


def effective_kills(lines: Iterable[Line]) -> int:
    """Kills that hit a process while it ran a job."""
    return len({run.pid for runs in executions(lines).values() for run in runs if run.killed and run.end is None})


def count_by(jobs: Iterable[str]) -> dict[str, int]:
    return dict(Counter(jobs))
