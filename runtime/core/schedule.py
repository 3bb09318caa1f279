"""When a schedule's occurrences are, which of those that were missed are still fired, and what the store is told.

The store keeps one moment for each schedule, its *next* occurrence: all before it has been fired, or given up. Whoever
fires moves it on in the same script, so that each occurrence is fired once, by however many workers and versions.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, Protocol, get_args

from runtime.core.span import spell
from runtime.core.values import frozen

Misfire = Literal["latest", "skip", "all"]
"""What becomes of occurrences that nobody was there to fire: the last one is fired however late it is (`latest`), or if
it is not older than a minute (`skip`); or every one is (`all`)."""
MISFIRES = get_args(Misfire)

GRACE_MS = 60_000
"""`skip`: an occurrence is not fired so long after its time."""
MOST_MISSED = 1000
"""`all`: as many are fired at once; older ones are given up, and that is told."""
TAKEN_OVER_MS = 60_000
"""An occurrence that is so late is nobody's whose declaration the store has: a worker with another takes it over."""
SET_BACK_MS = 3_600_000
"""A next occurrence so far beyond the one that a calendar has next was noted before the server's clock was set back."""
FORGOTTEN_MS = 30 * 86_400_000
"""What has been due for so long, and no worker knows, is a schedule no more."""


class Timetable(Protocol):
    """Moments, in ms since the epoch."""

    @property
    def text(self) -> str:
        """As people write it; it is what tells two timetables apart."""
        ...

    def after(self, moment_ms: int) -> int:
        """The first occurrence after this moment: later than it, and for a later moment never an earlier one."""
        ...


@frozen
class Every:
    """The multiples of a span since 1970: all workers agree on them, whenever they were started."""

    span_ms: int

    @property
    def text(self) -> str:
        return f"every {spell(self.span_ms / 1000)}"

    def after(self, moment_ms: int) -> int:
        return (moment_ms // self.span_ms + 1) * self.span_ms


@frozen
class Schedule:
    """A handler's jobs that nobody enqueues: one at each occurrence."""

    name: str
    """Its handler's name on the wire."""
    queue: str
    timetable: Timetable
    misfire: Misfire = "latest"
    priority: int = 0
    job_id: str | None = None
    """The id of all its jobs, where they share one: while one waits or runs, or has a result, there is no other."""

    def id_of(self, occurrence_ms: int) -> str:
        """The id of an occurrence's job, as arq has it: whoever fires the same one finds it taken."""
        return self.job_id or f"{self.name}:{occurrence_ms}"

    @property
    def declaration(self) -> str:
        """How it is declared, as the store is told. See `declared`."""
        return f"{self.misfire}|{self.priority}|{self.timetable.text}"


@frozen
class Declared:
    """A schedule as the store knows it: enough for those who have not its handler."""

    misfire: str
    priority: int
    timetable: str


def declared(declaration: str) -> Declared | None:
    """What a declaration says; None: nothing that we have written."""
    misfire, _, rest = declaration.partition("|")
    priority, _, timetable = rest.partition("|")
    if misfire not in MISFIRES or not priority.isdecimal() or not timetable:
        return None
    return Declared(misfire, int(priority), timetable)


@frozen
class Standing:
    """What the store knows of a schedule."""

    next_ms: int | None = None
    """None: nobody has told of it, or it is paused."""
    declaration: str | None = None
    paused: bool = False


@frozen
class Move:
    """What the store is told, if all still stands as it did: these occurrences are fired, and `next_ms` is the next."""

    standing: Standing
    next_ms: int | None
    """None: as it is."""
    fires: Sequence[int] = ()
    first_ms: int | None = None
    """The first one that was due."""


def decide(schedule: Schedule, standing: Standing, now_ms: int, *, begins: bool) -> Move | None:
    """What is to be done about a schedule now; None: nothing. `now_ms` is the store's clock.

    `begins`: this worker has not told of it yet. Of two versions that declare it differently, the one that began last
    is right, for as long as somebody of it is there to fire.
    """
    table, next_ms = schedule.timetable, standing.next_ms
    late_ms = now_ms - next_ms if next_ms is not None else 0
    ours = standing.declaration == schedule.declaration
    if not (ours or standing.declaration is None or begins or late_ms > TAKEN_OVER_MS):
        return None
    if standing.paused:
        return None if ours else Move(standing, None)
    if next_ms is None or not ours:
        keeps = next_ms is not None and late_ms >= 0 and _has(table, next_ms)
        return Move(standing, next_ms if keeps else table.after(now_ms))
    if late_ms >= 0:
        return _fire(schedule, standing, next_ms, now_ms)
    following = table.after(now_ms) if begins else next_ms
    return Move(standing, following) if next_ms - following > SET_BACK_MS else None


def _fire(schedule: Schedule, standing: Standing, next_ms: int, now_ms: int) -> Move:
    table = schedule.timetable
    following = table.after(now_ms)
    first = next_ms if _has(table, next_ms) else table.after(next_ms)
    if first > now_ms:
        return Move(standing, following)
    most = MOST_MISSED if schedule.misfire == "all" else 1
    fires = list(islice(_backwards(table, first, now_ms), most))[::-1]
    if schedule.misfire == "skip" and now_ms - fires[-1] > GRACE_MS:
        fires = []
    return Move(standing, following, fires, first)


def _has(table: Timetable, moment_ms: int) -> bool:
    return table.after(moment_ms - 1) == moment_ms


def _backwards(table: Timetable, first_ms: int, until_ms: int) -> Iterator[int]:
    """The occurrences from `until_ms` back to `first_ms`, which is one of them."""
    before_ms, reach_ms = until_ms + 1, 1000
    while before_ms > first_ms:
        last_ms = _last_before(table, before_ms, reach_ms)
        yield last_ms
        before_ms, reach_ms = last_ms, before_ms - last_ms  # they tend to be as far from each other


def _last_before(table: Timetable, before_ms: int, reach_ms: int) -> int:
    """The last occurrence before a moment, of which there is one. First it is looked for no further back than so."""
    while (last_ms := table.after(before_ms - reach_ms - 1)) >= before_ms:
        reach_ms *= 2
    end_ms = before_ms
    while (later_ms := table.after(last_ms)) < before_ms:
        last_ms, middle_ms = later_ms, (later_ms + end_ms) // 2
        found_ms = table.after(middle_ms)
        if found_ms < before_ms:
            last_ms = found_ms
        else:
            end_ms = middle_ms
    return last_ms


def occurrences(table: Timetable, moment_ms: int) -> Iterator[int]:
    """Those after a moment, the first first."""
    while True:
        moment_ms = table.after(moment_ms)
        yield moment_ms
