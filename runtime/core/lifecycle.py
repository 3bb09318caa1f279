"""A worker's life: its states, what leads from one to another, and what keeps it awake.

    starting ──turned──▶ awake ──idle──▶ drowsy ──clear──▶ quiet ──called──▶ waking ──turned──▶ awake
                           ▲                │
                           └─ held, called ─┘                    any ──stop──▶ stopping

Quiet: no open socket, no timer that sends; only the HTTP port listens. Drowsy: nobody counts on this worker any more,
and it looks once more whether there is something to do.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Literal

from runtime.core.span import spell
from runtime.core.text import one_line
from runtime.core.values import frozen

State = Literal["starting", "awake", "drowsy", "quiet", "waking", "stopping"]
Event = Literal["turned", "idle", "clear", "held", "called", "stop"]
"""`turned`: a claim was made. `idle`: nothing has kept it awake for long enough. `clear`, `held`: what the last look
has found. `called`: somebody rang, or asked the job API."""

Kind = Literal["unset", "running", "unsettled", "away", "lately", "due", "came", "broken"]
"""Of what may keep a worker awake."""

TABLE: Mapping[tuple[State, Event], State] = {
    ("starting", "turned"): "awake",
    ("awake", "idle"): "drowsy",
    ("drowsy", "clear"): "quiet",
    ("drowsy", "held"): "awake",
    ("drowsy", "called"): "awake",
    ("quiet", "called"): "waking",
    ("waking", "turned"): "awake",
    ("starting", "stop"): "stopping",
    ("awake", "stop"): "stopping",
    ("drowsy", "stop"): "stopping",
    ("quiet", "stop"): "stopping",
    ("waking", "stop"): "stopping",
}
"""What is not here changes nothing."""


def after(state: State, event: Event) -> State:
    return TABLE.get((state, event), state)


LATELY = "it worked lately"
NO_ALARM = "RUNTIME_ALARM is not set"
"""How reasons begin, and end, that are looked for by others."""


@frozen
class Standing:
    """What may keep a worker awake, as it is now."""

    running: int = 0
    unsettled: int = 0
    """Outcomes that the store has not answered for."""
    away: str | None = None
    """Why Redis does not work for us."""
    quiet_in_s: float = 0.0
    """Until it has been idle for long enough."""


@frozen
class Reason:
    """Why a worker is awake. It is the same reason for as long as it is of the same kind, whatever its figures do."""

    kind: Kind
    text: str


@frozen
class Hold:
    """A reason, and since when it holds, by the monotonic clock."""

    reason: Reason
    since: float


@frozen
class Change:
    """Something that was told: a new state, or while awake a new reason; `at` by the monotonic clock."""

    state: State
    why: str
    at: float


def reasons(standing: Standing) -> list[Reason]:
    """Why it stays awake; none: nothing that it knows of itself."""
    found: list[Reason] = []
    if standing.running:
        found.append(Reason("running", f"{standing.running} jobs run"))
    if standing.unsettled:
        found.append(Reason("unsettled", f"{standing.unsettled} outcomes are not recorded yet"))
    if standing.away is not None:
        found.append(away(standing.away))
    if standing.quiet_in_s > 0 and not found:
        found.append(Reason("lately", f"{LATELY}: quiet in {spell(standing.quiet_in_s)}"))
    return found


def away(cause: str) -> Reason:
    return Reason("away", f"Redis is away ({cause})")


def holding(before: Sequence[Hold], found: Sequence[Reason], now: float) -> list[Hold]:
    """What holds now, since it was found first without a break."""
    since = {hold.reason.kind: hold.since for hold in before}
    return [Hold(reason, since.get(reason.kind, now)) for reason in found]


SETTLED_S = 10.0
"""A reason is told once it has held for so long, and no two within so long: jobs come and go."""


def worth_telling(holds: Sequence[Hold], told: Set[Kind], told_at: float, now: float) -> Sequence[Hold]:
    """What holds it for good, where that is not what was `told` last; empty: nothing new."""
    settled = [hold for hold in holds if now - hold.since >= SETTLED_S]
    news = {hold.reason.kind for hold in settled} != told
    return settled if news and now - told_at >= SETTLED_S else []


@frozen
class Due:
    """The first moment at which something will be due."""

    in_s: float
    """Below zero: it is."""
    schedule: str | None = None
    """Whose occurrence it is; None: a job's, or a lease's end."""


def held_by(due: Due | None, alarm_s: float | None) -> Reason | None:
    """Why what lies in the queues keeps it awake; None: it does not.

    A lease of somebody else's counts, too: it lapses if that worker dies. Only an alarm (somebody outside who looks
    every `alarm_s`, and rings) makes sleeping safe then.
    """
    if due is None:
        return None
    what = "a job, or somebody's lease," if due.schedule is None else f"the schedule {one_line(due.schedule)}"
    if due.in_s <= 0:
        return Reason("came", "a job is due" if due.schedule is None else f"{what} is due")
    when = f"{what} is due in {spell(due.in_s)}"
    if alarm_s is None:
        return Reason("due", f"{when}, and nobody would wake it: {NO_ALARM}")
    return Reason("due", f"{when}, before the alarm is sure to ring") if due.in_s < alarm_s else None
