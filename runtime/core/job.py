"""What travels: a call, the claim on it, and the outcome it is settled with.

       enqueue                claim                 settle
call ───────────▶ waiting ───────────▶ claimed ───────────────▶ done | dead | cancelled
                     ▲                     │
                     └── retried, snoozed, released (by the worker), lapsed (by its death)

Their `repr` shows no argument, no body and no result: it may end up in a log.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from runtime.core.errors import Category
from runtime.core.values import frozen

Codec = Literal["pickle", "json", "msgpack", "custom"]
"""How a body or a result is written; `custom` is the user's own serializer."""


@frozen
class Call:
    """What a producer asked for, as read from the body."""

    handler: str
    args: tuple[object, ...] = field(repr=False)
    kwargs: dict[str, object] = field(repr=False)
    enqueued_ms: int
    """When, by the producer's clock."""
    job_try: int | None = None
    """arq's `_job_try`: the attempt to count from."""
    foreign: bool = True
    """Not written by our client: its producer sends no wake-up."""
    expires_ms: int | None = None
    """Not to be started after this moment, by the producer's clock."""
    trace: Mapping[str, str] | None = None
    """The producer's W3C trace context: `traceparent`, and `tracestate` if there is one."""
    codec: Codec = "pickle"
    """How it was written, and how its result is to be."""
    scheduled_ms: int | None = None
    """The occurrence of a schedule that it is for, by the server's clock."""


@frozen
class Unreadable:
    """A body that is no call: missing, of a wrong type, or refused by the loader."""

    reason: str


@frozen
class ErrorRecord:
    """One failed attempt, as kept with the job."""

    attempt: int
    at_ms: int
    error: str
    text: str
    category: Category


@frozen
class History:
    """What a job remembers from one claim to the next."""

    crashes: int = 0
    """Leases that lapsed: the worker died, or was out of reach for longer than its lease."""
    errors: tuple[ErrorRecord, ...] = ()
    snoozed_since_ms: int | None = None
    unknown_since_ms: int | None = None
    snoozes: int = 0
    waits_for: str | None = None
    """The limit or the breaker that it was last snoozed for, where it was one."""
    trace: str | None = None
    """The W3C traceparent of its last run, where runs are traced."""


NEW = History()


@frozen
class Claim:
    """A job that this worker holds under a lease."""

    id: str
    queue: str
    token: str
    """Proof of ownership; every write for this job is fenced by it."""
    place: str
    """The score the job had in the queue, as the server wrote it; given back on release."""
    starts: int
    """The store's count of starts, this one included; crashes count, snoozes and releases do not."""
    attempt: int
    """The same, unless arq's `_job_try` said to count from further on."""
    call: Call | Unreadable
    body: bytes = field(repr=False)
    now_ms: int
    """The server's clock at the claim."""
    history: History = NEW
    abort_ms: int | None = None
    """An abort was asked for, then."""


@frozen
class Failure:
    """An exception as it may be shown: names and text."""

    error: str
    text: str
    category: Category
    builtin: bool = False
    """The type is one of Python's own, so that any reader of the result has it."""
    raised: BaseException | None = field(default=None, repr=False)
    """The object itself, where an application's own codec is to write it for clients that have its type."""


@frozen
class Done:
    """The handler returned."""

    result: object = field(repr=False)


@frozen
class Retried:
    """The attempt failed; there is another one."""

    delay_s: float
    failure: Failure


@frozen
class Snoozed:
    """The handler asked to be run again; the attempt is given back."""

    delay_s: float
    waits_for: str | None = None
    """The limit or the breaker that it waits for, where the handler did not ask for itself."""


@frozen
class Released:
    """Given back as it was, attempt restored: to its old place, or (`delay_s`) for a worker that knows its handler, or
    until no other suspect runs."""

    why: Literal["shutdown", "unknown-handler", "no-slot", "suspect"]
    delay_s: float | None = None


@frozen
class Dead:
    """Not to be tried again: becomes a dead letter with its body and its history."""

    reason: Literal[
        "exhausted", "permanent", "undecodable", "unknown-handler", "expired", "crashed", "gave-up", "stuck"
    ]
    failure: Failure


@frozen
class Cancelled:
    """Somebody aborted it. Ends in failure, but is no dead letter."""


Outcome = Done | Retried | Snoozed | Released | Dead | Cancelled


@frozen
class Settlement:
    """An outcome on its way to the store."""

    claim: Claim
    outcome: Outcome
    started_ms: int
    """By the server's clock, as its claim told it; the other is so much later as it took."""
    finished_ms: int
    history: History = field(default=NEW)
    """What the job is to remember, where it runs again or becomes a letter."""
    keep_result_s: float = 3600.0
    waited_s: float = 0.0
    """How long it waited for limits, of the time it ran."""


Verdict = Literal["settled", "refused"]
"""`refused`: the token is no longer ours; somebody else has the job or it was settled already. Normal, not an error."""
