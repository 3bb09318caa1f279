"""What is wrong with handlers, with the queues they are for, and with the limits they declare."""

from collections.abc import Iterator, Sequence

from runtime.core.findings import Finding
from runtime.core.limits import Rule
from runtime.core.span import spell
from runtime.core.values import frozen

LONG_PAUSE_S = 3600.0
"""Who has paused a queue without an end may have forgotten it."""
SLOW_IMPORT_S = 2.0
"""Modules that take longer make each start late, and each waking."""


@frozen
class Declared:
    """A handler."""

    name: str
    queue: str
    timeout_s: float | None = None
    """None: the worker's."""


@frozen
class Mistake:
    """Why a module cannot be had, or what it declares cannot."""

    message: str
    cause: str | None = None
    hint: str | None = None


@frozen
class Project:
    """What the handler modules declare."""

    named: tuple[str, ...]
    chosen: bool = True
    """Somebody has named them; else they are where handlers are by default."""
    modules: int = 0
    """As many were imported."""
    took_s: float = 0.0
    handlers: Sequence[Declared] = ()
    wrong: Sequence[Mistake] = ()
    grace_s: float = 30.0
    timeout_s: float | None = None
    """The worker's, where somebody has set it."""
    other_runtime: str | None = None
    """What `import runtime` gets here, where that is not this package."""


@frozen
class Paused:
    """How a queue is paused. None of since when: whoever paused it did not say."""

    reason: str
    for_s: float | None
    ends: bool
    """By itself."""


@frozen
class Queue:
    """A queue, and who serves it."""

    name: str
    ours: bool
    """Handlers here are for it."""
    awake: int = 0
    asleep: int = 0
    """Live workers, and such as went quiet."""
    stock: bool = False
    """An arq worker has been here lately."""
    waiting: int = 0
    deferred: int = 0
    active: int = 0
    unknown: int = 0
    """Of the deferred: they wait for a worker that knows their handler."""
    paused: Paused | None = None
    trouble: str | None = None
    """Why it could not be counted."""

    @property
    def served(self) -> bool:
        return bool(self.awake or self.asleep or self.stock)

    @property
    def jobs(self) -> int:
        return self.waiting + self.deferred + self.active


@frozen
class Rates:
    """A limit as declared here, and as the fleet has it."""

    name: str
    here: Rule | None
    """None: no handler here has it."""
    told: Rule | None = None
    """As a worker has told it last."""
    set: Rule | None = None
    """As an operator has set it."""
    closed_s: float = 0.0


@frozen
class Breaker:
    """A breaker that is open: an API that is not called for now."""

    name: str
    open_s: float
    reason: str = ""


def verdicts(project: Project) -> Iterator[Finding]:
    yield _import_of_runtime(project)
    yield from _modules(project)
    yield from _timeouts(project)


def _import_of_runtime(project: Project) -> Finding:
    if project.other_runtime is None:
        return Finding("handlers.runtime", "pass", "`import runtime` is this package")
    return Finding(
        "handlers.runtime", "fail", f"`import runtime` gets {project.other_runtime} here",
        "handlers would import it instead of this package, and so would `python -m runtime`",
        "rename it, or uninstall it; this package's distribution is runtime-worker",
    )  # fmt: skip


def _modules(project: Project) -> Iterator[Finding]:
    if not project.modules and not project.handlers and not project.chosen and len(project.wrong) == 1:
        yield Finding(
            "handlers.modules", "warn", f"no handlers here ({project.wrong[0].message})",
            "`runtime serve` would have nothing to run; a producer alone needs none",
            "go to the project's folder, or name the modules: runtime doctor MODULE…",
        )  # fmt: skip
        return
    for mistake in project.wrong:
        yield Finding(
            "handlers.modules", "fail", mistake.message + (f" ({mistake.cause})" if mistake.cause else ""),
            "`runtime serve` refuses to start with it", mistake.hint or "",
        )  # fmt: skip
    seen = f"{_count(len(project.handlers), 'handler')} in {_count(project.modules, 'module')}"
    seen += f", imported in {spell(project.took_s)}"
    if not project.handlers:
        if not project.wrong:
            yield Finding(
                "handlers.found", "fail", f"no handler in {', '.join(project.named)}",
                "`runtime serve` refuses to start", "declare one with @handler, or name another module",
            )  # fmt: skip
        return
    if project.took_s > SLOW_IMPORT_S:
        yield Finding(
            "handlers.found", "warn", seen, "each start, and each waking of a sleeper, takes so much longer",
            "import what is heavy in the handler that needs it: python -X importtime -m runtime handlers",
        )  # fmt: skip
    else:
        yield Finding("handlers.found", "pass", seen)


def _timeouts(project: Project) -> Iterator[Finding]:
    """Only such as somebody has written down: the default is longer than the default of the grace, on purpose."""
    longest = {one.name: one.timeout_s or project.timeout_s for one in project.handlers}
    cut = {name: length_s for name, length_s in longest.items() if length_s and length_s > project.grace_s}
    if cut:
        names = ", ".join(f"{name} {spell(length_s)}" for name, length_s in sorted(cut.items()))
        yield Finding(
            "handlers.grace", "warn", f"may run longer than the grace of {spell(project.grace_s)}: {names}",
            "a deploy cuts such a job off, and it begins anew elsewhere: its effects must bear that",
            "raise GRACEFUL_SHUTDOWN_TIMEOUT_MS, or take its steps with ctx.once",
        )  # fmt: skip
    elif project.handlers:
        yield Finding("handlers.grace", "pass", f"the grace of {spell(project.grace_s)} is as long as any timeout set")


def queue_verdicts(queues: Sequence[Queue]) -> Iterator[Finding]:
    idle = [queue for queue in queues if queue.ours and not (queue.served or queue.jobs or queue.trouble)]
    if idle:
        names = ", ".join(queue.name for queue in idle)
        yield Finding(
            "handlers.queues", "warn", f"nobody serves {names}; no job is there",
            "jobs that are added wait until somebody does", "runtime serve",
        )  # fmt: skip
    well: list[str] = []
    for queue in (queue for queue in queues if queue not in idle):
        found = _queue(queue)
        if found is None:
            well.append(f"{queue.name} ({_served(queue)})")
        else:
            yield found
        if queue.paused:
            yield from _paused(queue, queue.paused)
        if queue.unknown:
            yield Finding(
                "handlers.unknown", "warn",
                f"{queue.name}: {_count(queue.unknown, 'job')} for handlers that no worker knows",
                "they wait, and are dead letters after 24 hours",
                "runtime inspect jobs names them; deploy their handlers",
            )  # fmt: skip
    if well:
        yield Finding("handlers.queues", "pass", f"served: {', '.join(well)}")


def _queue(queue: Queue) -> Finding | None:
    if queue.trouble is not None:
        return Finding(
            "handlers.queues", "fail", f"{queue.name}: {queue.trouble}", "nobody can claim from it",
            f"redis-cli TYPE {queue.name}: a queue is a zset; rename or delete what is none",
        )  # fmt: skip
    jobs = f"with {_count(queue.jobs, 'job')} in it"
    if not queue.served and queue.ours:
        return Finding(
            "handlers.queues", "warn", f"nobody serves {queue.name}, {jobs}",
            "its jobs wait until somebody does", "runtime serve",
        )  # fmt: skip
    if not queue.served and queue.jobs:
        return Finding(
            "handlers.queues", "warn", f"nobody serves {queue.name}, {jobs}, and no handler here is for it",
            "a producer names a queue that no worker takes from",
            "correct the producer's queue, or start the worker that has its handlers",
        )  # fmt: skip
    if queue.asleep and not queue.awake and queue.waiting and not (queue.stock or queue.paused):
        return Finding(
            "handlers.queues", "warn", f"{queue.name}: {_count(queue.waiting, 'job')} due, and its workers sleep",
            "who added them did not ring, or was not heard",
            "runtime wake; RUNTIME_WAKE_URL in the producer; runtime sentinel for others (docs/sleep.md)",
        )  # fmt: skip
    return None


def _paused(queue: Queue, paused: Paused) -> Iterator[Finding]:
    resume = f"once its reason is gone: runtime queue resume {queue.name}"
    if queue.stock:
        yield Finding(
            "handlers.paused", "warn", f"{queue.name} is paused, and a stock arq worker serves it",
            "it knows of no pause, and goes on taking jobs", "stop that worker",
        )  # fmt: skip
    if not paused.ends and (paused.for_s is None or paused.for_s >= LONG_PAUSE_S):
        since = "" if paused.for_s is None else f" for {spell(paused.for_s)} now"
        why = f": {paused.reason}" if paused.reason else ""
        yield Finding(
            "handlers.paused", "warn", f"{queue.name} is paused{since}, without an end{why}",
            f"{_count(queue.jobs, 'job')} in it, and none is started", resume,
        )  # fmt: skip


def _served(queue: Queue) -> str:
    parts = [f"{queue.awake} awake"] if queue.awake else []
    parts += [f"{queue.asleep} asleep"] if queue.asleep else []
    parts += ["stock arq"] if queue.stock else []
    return ", ".join(parts) or "empty"


def limit_verdicts(limits: Sequence[Rates], breakers: Sequence[Breaker] = ()) -> list[Finding]:
    amiss = [finding for one in limits for finding in _limit(one)]
    amiss += [
        Finding(
            "limits.breaker", "warn",
            f"the breaker of {one.name} is open for another {spell(one.open_s)}: {one.reason}",
            "its jobs are kept back, with their attempts", f"see to the cause, then: runtime limit reset {one.name}",
        )
        for one in breakers
    ]  # fmt: skip
    if amiss or not limits:
        return amiss
    names = "; ".join(f"{one.name} {rule}" for one in limits if (rule := one.here or one.told))
    return [Finding("limits.rates", "pass", names)]


def _limit(one: Rates) -> Iterator[Finding]:
    if one.here and one.told and one.here != one.told:
        yield Finding(
            "limits.rates", "warn", f"{one.name} is {one.here} here, and a worker has told {one.told}",
            "each takes by its own rule: together they exceed what the lower one allows",
            "declare it once for all, and deploy all workers with it",
        )  # fmt: skip
    if one.set:
        declared = one.here or one.told
        yield Finding(
            "limits.set", "warn",
            f"{one.name} is set to {one.set} by an operator" + (f"; declared is {declared}" if declared else ""),
            "what is declared does not count meanwhile", f"once it is no longer wanted: runtime limit reset {one.name}",
        )  # fmt: skip
    if one.closed_s > 0:
        yield Finding(
            "limits.closed", "warn", f"{one.name} is closed for another {spell(one.closed_s)}",
            "its provider has asked for that; jobs that need it wait", f"wait; or: runtime limit reset {one.name}",
        )  # fmt: skip


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
