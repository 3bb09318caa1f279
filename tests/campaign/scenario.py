"""What a scenario is, what it is given, and what it finds."""

from __future__ import annotations

import random
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Never, TypeVar

from runtime import Request
from tests.campaign.canaries import leaks
from tests.campaign.invariants import INVARIANTS
from tests.campaign.subjects import SUBJECTS, Subject, SubjectName
from tests.faults.ledger import Breach, Ledger, Terms, judge
from tests.processes import Worker
from tests.servers import Server

T = TypeVar("T")
C = TypeVar("C")

Figures = Mapping[str, float | str]


@dataclass(frozen=True)
class Held:
    """Nothing was broken."""

    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    breaches: Sequence[Breach]
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class NotRun:
    why: str


@dataclass(frozen=True)
class NoSuchThing:
    """There is nothing that could break."""

    why: str


Verdict = Held | Broken | NotRun | NoSuchThing


@dataclass(frozen=True)
class Need:
    """Something that not every machine has."""

    name: str
    missing: Callable[[], str]
    """Why it is not there, or nothing."""


@dataclass(frozen=True)
class Scenario:
    id: str
    does: str
    holds: str
    judges: Sequence[str]
    """The invariants that it may find broken."""
    run: Callable[[Stage], Verdict]
    quick: bool = True
    seeds: int = 1
    """How many are taken in full, where chance plays a part."""
    deadline_s: float = 60.0
    needs: Sequence[Need] = ()
    not_for: Mapping[SubjectName, str] = field(default_factory=dict)
    """Why it means nothing for a subject."""

    def __post_init__(self) -> None:
        unknown = set(self.judges) - set(INVARIANTS)
        assert not unknown, f"{self.id} judges {sorted(unknown)}, which nobody has stated"


class DeadlinePassed(Exception):
    """A scenario takes longer than it may."""


class Stage:
    """One run of a scenario against one subject: a server, workers and a ledger of its own, gone at the end."""

    def __init__(self, subject: Subject, *, seed: int = 1, full: bool = False) -> None:
        self.subject = subject
        self.seed = seed
        self.full = full
        self.chance = random.Random(seed)
        self.workers: list[Worker] = []
        self._stack = ExitStack()

    @property
    def ours(self) -> bool:
        return self.subject.name == "runtime"

    @cached_property
    def folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rt-")))

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger")

    @cached_property
    def server(self) -> Server:
        """A throw-away one, on a random port. Set another one for other options."""
        return self.enter(Server())

    @property
    def url(self) -> str:
        return self.server.url

    def enter(self, thing: AbstractContextManager[T]) -> T:
        """Use this context manager until the end."""
        return self._stack.enter_context(thing)

    def worker(self, redis: str | None = None, **settings: Any) -> Worker:
        """One of the subject's, not started; `settings` as `tests.faults.campaign.worker` has them."""
        worker = self.subject.worker(redis or self.url, self.ledger, **settings)
        self.workers.append(worker)
        return self._stack.enter_context(worker)

    def acked(self, *requests: Request[Any]) -> list[str]:
        """Enqueue these jobs through the subject's own client; their ids, which are in the ledger."""
        ids = self.subject.enqueue(self.url, *requests)
        for job in ids:
            self.ledger.note("acked", job)
        return ids

    def ended(self) -> int:
        """How many jobs have ended, well or not."""
        return self.subject.ended(self.url)

    def tell(self, worker: Worker) -> None:
        """SIGTERM, to one that may be killed before it has stopped."""
        self.ledger.note("told", pid=worker.pid)
        worker.send(signal.SIGTERM)

    def kill(self, worker: Worker) -> None:
        """SIGKILL."""
        self.ledger.note("killed", pid=worker.pid)
        worker.kill()

    def judged(self, terms: Terms, *others: Breach, **figures: float | str) -> Verdict:
        """What the ledger, Redis and the logs say, and what the scenario has found itself."""
        found = self.subject.look(self.url, self.workers)
        breaches = [*judge(self.ledger.lines(), found, terms), *others, *self.tracebacks()]
        return Broken(breaches, figures) if breaches else Held(figures)

    def concluded(self, verdict: Verdict) -> Verdict:
        """With the secrets that its workers have let out, which no scenario asks for and all look for."""
        said = (worker.output() + worker.errors() for worker in self.workers)
        leaked = [leak for text in said for leak in leaks("a worker's output", text)]
        if not leaked or not isinstance(verdict, Held | Broken):
            return verdict
        return Broken([*(verdict.breaches if isinstance(verdict, Broken) else ()), *leaked], verdict.figures)

    def tracebacks(self) -> Iterator[Breach]:
        """What ours should not have said on stderr."""
        for worker in self.workers:
            if self.ours and "Traceback" in (errors := worker.errors()):
                yield Breach("I9", f"a traceback on stderr: {errors.strip().splitlines()[-1]}")

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def perform(scenario: Scenario, subject: SubjectName, *, seed: int = 1, full: bool = False) -> Verdict:
    """Run it to its verdict. A wait in vain and a deadline that passes are breaches."""
    if subject in scenario.not_for:
        return NoSuchThing(scenario.not_for[subject])
    for need in scenario.needs:
        if why := need.missing():
            return NotRun(f"needs {need.name}: {why}")
    try:
        with _deadline(scenario.deadline_s), Stage(SUBJECTS[subject], seed=seed, full=full) as stage:
            return stage.concluded(scenario.run(stage))
    except AssertionError as failure:
        return in_vain(failure)
    except DeadlinePassed:
        return Broken([Breach("procedure", f"not over after {scenario.deadline_s:g} s")])
    except Exception as error:  # the others are to be run all the same
        return Broken([Breach("procedure", f"{type(error).__name__}: {error}")])


def in_stages(stage: Stage, cases: Iterable[C], run: Callable[[Stage, C], Verdict], abreast: int = 4) -> list[Verdict]:
    """Each case on a stage of its own, a few at a time; for what is mostly waiting."""

    def one(case: C) -> Verdict:
        with Stage(stage.subject, seed=stage.seed, full=stage.full) as own:
            try:
                return own.concluded(run(own, case))
            except AssertionError as failure:
                return in_vain(failure)

    with ThreadPoolExecutor(abreast) as pool:
        return list(pool.map(one, cases))


def in_vain(failure: AssertionError) -> Broken:
    """What was waited for has not come."""
    return Broken([Breach("procedure", (str(failure) or repr(failure)).splitlines()[0])])


def merged(cases: Iterable[object], verdicts: Iterable[Verdict], **figures: float | str) -> Verdict:
    """One verdict of several cases, each breach with the name of its case."""
    breaches = [
        Breach(breach.invariant, f"{case}: {breach.sentence}")
        for case, verdict in zip(cases, verdicts, strict=True)
        if isinstance(verdict, Broken)
        for breach in verdict.breaches
    ]
    return Broken(breaches, figures) if breaches else Held(figures)


def figure(verdicts: Iterable[Verdict], name: str) -> list[float]:
    """This figure of all that have it."""
    found = (verdict.figures.get(name) for verdict in verdicts if isinstance(verdict, Held | Broken))
    return [value for value in found if isinstance(value, int | float)]


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def passed(number: int, frame: FrameType | None) -> Never:
        raise DeadlinePassed

    before = signal.signal(signal.SIGALRM, passed)
    rest_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, rest_s)  # pytest's own
