"""What the engine needs from the outside, in the engine's own words. Adapters implement it; tests do too."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from runtime.core.feedback import Feedback
from runtime.core.job import Claim, Settlement, Verdict
from runtime.core.lifespan import no_state
from runtime.core.limits import Answer, Bucket, Concurrency, Costs, Permit, Refused
from runtime.core.policy import Ended, Stop
from runtime.core.pool import Pool
from runtime.core.redaction import BY_SHAPE, Redactor
from runtime.core.values import frozen

if TYPE_CHECKING:  # what is needed later than the first job
    from runtime.core.lifecycle import Due
    from runtime.core.schedule import Move, Schedule, Standing

T = TypeVar("T")


class Away(Exception):
    """The store cannot be reached, or refuses to work. Weather: wait and go on. The text names the cause, no secret.

    `asked` is what it was asked for. `refused`: it is there and answered, but not as asked.
    """

    def __init__(self, cause: str, asked: str = "", *, refused: bool = False) -> None:
        super().__init__(f"{asked}: {cause}" if asked else cause)
        self.cause = cause
        self.refused = refused


@frozen
class Pulled:
    """The answer to one claim."""

    queue: str
    claims: Sequence[Claim]
    more: bool = False
    """Jobs that are due were left in the queue."""
    due_in_s: float | None = None
    """When the next job that is not yet due will be; None where none is known.

    Where jobs are due, and the queue is paused: the end of the pause, None if somebody has to end it.
    """


class Source(Protocol):
    """Where jobs come from and outcomes go. Every call raises `Away` within a bounded time when the store is lost."""

    async def claim(self, queue: str, room: int) -> Pulled:
        """Up to `room` due jobs of `queue`, leased to this worker. Not to be cancelled: a lost answer strands jobs."""
        ...

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        """Record outcomes, one verdict each. After `Away` the same batch may be sent again: it settles once."""
        ...

    async def wait(
        self, queues: Sequence[str], timeout_s: float, room: int, take: Callable[[Pulled], None]
    ) -> str | None:
        """Wait until something is announced, for `timeout_s` at most; then claim, with the same question.

        `take` is given what was claimed, also where that is nothing: up to `room` due jobs of the first of `queues` in
        which something is due, or else what is known of the last. The queue in which something was announced, unless
        it is that one. Nothing is claimed without room, nor where an earlier claim's answer was lost.

        May be cancelled. Where `take` was not called, what may have been claimed comes with the next `claim`.
        """
        ...

    def rouse(self, queues: Sequence[str]) -> None:
        """Let the `wait` for these queues, if one is under way, end as if its time were over: in a second at most."""

    async def announce(self, queue: str) -> None:
        """Wake one idle worker of `queue`."""

    async def due_in(self, queue: str) -> float | None:
        """Seconds until the first job of `queue` is due (0 where one is); None for an empty queue.

        Where the last claim found it paused: until the end of the pause, None if somebody has to end it.
        """
        ...

    @property
    def look_s(self) -> float:
        """How often at least to look for unannounced jobs, where the store does not tell; inf: as seems fit."""
        ...

    @property
    def hears(self) -> bool:
        """The store tells of jobs that anybody writes, to any queue."""
        ...

    async def news(self, after: int) -> int:
        """How often it has told so, once that is more than `after`. May be cancelled."""
        ...

    async def ping(self) -> None:
        """Return when the store answers, and takes what is written to it."""


Notice = Literal["lost", "abort"]

SHIELD_MOST_S = 10.0
"""The longest that a run which was asked to stop may shield itself. What may follow it ends within the time that a
platform is asked for beyond the grace (30 s, in the deploy definitions)."""


class Keeper(Protocol):
    """Extends the leases of held jobs, whatever the handlers do meanwhile."""

    def hold(self, claims: Sequence[Claim], listener: Callable[[str, Notice], None]) -> None:
        """Keep these leases; `listener(token, notice)` is called in the event loop: one is lost, an abort is asked."""

    def drop(self, tokens: Sequence[str]) -> None:
        """Keep these no longer."""


class Run(Protocol):
    """One handler call in progress."""

    @property
    def stopped(self) -> Stop | None:
        """Why it was asked to stop, the first time; None: it was not."""
        ...

    def stop(self, why: Stop) -> None:
        """Ask it to stop, by cancelling it once. Calling it again cancels again; the first reason stands."""

    @property
    def shielded_until(self) -> float:
        """When the shields it is in are over, by the clock of the event loop; -inf where it is in none."""
        ...

    def shield(self, length_s: float) -> AbstractContextManager[None]:
        """In this block it is not cancelled: for so long after it is asked to stop, or after the block's beginning if
        it was asked before, and never longer than `SHIELD_MOST_S` after it was asked. What was held off by then, or by
        the block's end, cancels it then. Without effect in another thread."""
        ...

    def allow(self, more_s: float) -> None:
        """Put its deadline off by so much. Before it has one, and once it was asked to stop, that is without effect."""


class Runner(Protocol):
    """Runs handler calls, each in a task of its own, with its own context and under its own deadline."""

    def start(
        self,
        token: str,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        *,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> Run:
        """Start `call` soon; `ended` is called once, whatever it returns or raises. `token` says whose run it is.

        `before` is awaited first, in the same task; the deadline counts from its end. What it raises ends the run.
        `stuck` is called if it goes on for long after it was asked to stop; `ended` may still follow.
        """
        ...


class Ledger(Protocol):
    """Remembers the steps a job has taken, across its attempts."""

    async def begin(self, claim: Claim, step: str) -> "Step":
        """Note that `step` begins. Raises `LeaseLost` when the job is no longer ours."""
        ...

    async def finish(self, claim: Claim, step: str, value: object) -> None:
        """Note what `step` gave. Raises `LeaseLost` likewise, `TypeError` for a value that cannot be kept."""


@frozen
class Step:
    """What the ledger knows of a step: `new`, `begun` by an earlier run that never said how it ended, or `done`."""

    state: Literal["new", "begun", "done"]
    value: object = field(default=None, repr=False)


class Sessions(Protocol):
    """HTTP sessions by name, shared by all jobs of the worker."""

    def session(self, name: str, toll: "Toll | None") -> Any:
        """An `aiohttp.ClientSession`, opened when first asked for and closed with the worker; its requests pay `toll`,
        if there is one."""
        ...


class Limits(Protocol):
    """The buckets that all workers share, and the breakers. Every call raises `Away` when the store is lost."""

    async def take(self, costs: Costs, patience_s: float, *, held: str = "", breaker: str | None = None) -> Answer:
        """Take tokens from all buckets or none; or reserve them, for not later than `patience_s`.

        What is `Reserved` is to be asked for again, as `held`, when its time has come (not 50 ms after it, and not
        250 ms before): then it is `Granted`, unless the bucket was closed meanwhile. `breaker`: its name, if there is
        one that must not be open.
        """
        ...

    async def leave(self, costs: Costs, held: str, breaker: str | None = None) -> None:
        """Give back what is reserved."""

    async def settle(self, more: Mapping[Bucket, int], granted_us: int) -> None:
        """Correct what was granted then: by tokens used beyond it, or (below zero) not used."""

    async def lower(self, left: Mapping[Bucket, int]) -> None:
        """Provider says so many are left: a bucket that has more has them no longer."""

    async def close(self, costs: Costs, wait_s: float) -> None:
        """Give nothing for so long, and after that as if the buckets had been empty. What is reserved is void."""

    async def report(self, breaker: str, how: Literal["ok", "failed", "broken"], call: str, reason: str = "") -> bool:
        """Tell a breaker how a call of a provider ended (`Granted.id`); whether it is open now."""
        ...


class Provider(Protocol):
    """What we know of a paid API. Pure functions that never raise, whatever they are given."""

    def estimate(self, request: Mapping[str, Any]) -> Mapping[str, int]:
        """What a call with this JSON body will be counted as when it is admitted, by dimension.

        Always has `requests`, which is 1, and every other dimension that the provider counts, 0 where it does not show.
        """
        ...

    def read(self, status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
        """What an answer says. `headers` in any case; `now_s` is the wall clock, for the dates in them.

        A body that is no JSON, is cut, or is larger than 2 MiB says nothing; then status and headers speak alone.
        """
        ...


@frozen
class Api:
    """A paid API: whose language its answers speak, and the bucket of each dimension that it counts."""

    name: str
    provider: Provider
    buckets: Mapping[str, Bucket]


class Toll(Protocol):
    """What a call of an API goes through."""

    async def pay(self, request: Mapping[str, Any]) -> Any:
        """Return when a call with this JSON body may be made."""
        ...

    async def heed(self, fare: Any, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Learn from its answer; raises where that is no success. `fare` is what `pay` gave."""

    async def lost(self, fare: Any, error: BaseException) -> None:
        """No answer came."""

    def key(self, method: str, url: str, body: str) -> str:
        """What tells this request from any other, and not from its own repetition in this run or a later one."""
        ...

    def failed(self, key: str) -> None:
        """The request with this key had no success."""


class Pools(Protocol):
    """Costly things that the jobs of the worker share, one job at a time each."""

    async def take(self, pool: Pool[T]) -> AbstractContextManager[T]:
        """An item for one block, which is to be entered at once; it may have to be waited for."""
        ...


class Permits(Protocol):
    """Who may run at once, of all workers."""

    async def acquire(
        self, limit: Concurrency, claim: Claim, patience_s: float, waiting: AbstractContextManager[object]
    ) -> Permit | Refused:
        """A permit, waited for in line for not longer than `patience_s`, and within `waiting`. May be cancelled.

        Raises `Away` when the store cannot even be asked (once in line, the wait goes on until it can), `LeaseLost`
        when the job is no longer ours, and `LimitInvalid` for a job that holds one already: it would wait for itself.
        """
        ...

    def release(self, permit: Permit) -> None:
        """Give it back, for the first in line: soon, or when the store is there again. Never raises, never blocks."""


class Board(Protocol):
    """Where is shown how far the jobs are."""

    def show(self, claim: Claim, done: float, total: float | None, note: str) -> None:
        """Show this, within a second, unless it is overtaken by a later word; then that. Gone when the run has ended.

        Never raises, never blocks. The note is shown redacted, and cut.
        """


class Schedules(Protocol):
    """The schedules, as all workers see them. Every call raises `Away` when the store is lost."""

    async def look(self, schedules: "Sequence[Schedule]") -> "tuple[int, Sequence[Standing]]":
        """The store's clock in ms, and how each of these stands."""
        ...

    async def fire(self, schedule: "Schedule", move: "Move") -> Sequence[bool] | None:
        """Make this move: for each occurrence whether a job was added, or its id was taken. None: it does not stand so
        any longer, and nothing was done; after `Away` nobody knows, and a second call does no harm."""
        ...

    async def forget(self, schedules: "Sequence[Schedule]") -> None:
        """Forget what has been due in their queues for 30 days and is none of them."""


class Stillness(Protocol):
    """How a worker falls silent, and speaks again. All but `speak` raise `Away`."""

    async def leave(self) -> None:
        """Be no longer counted among those who are awake: returns when the server has confirmed it."""

    async def due_in(self) -> "Due | None":
        """The first job of its queues, lease on one, or schedule of its handlers to be due, by the server; None: there
        is nothing."""
        ...

    async def fall_silent(self) -> None:
        """Say farewell, close every connection, and stop everything that sends. Raises `Away` if the farewell was not
        heard: whoever is to ring would not know of this worker, so `speak` again."""

    async def speak(self) -> None:
        """Be counted again, and let everything go on. Does not wait for a store that is away."""


class Entry(Protocol):
    """A handler that can be called: how the actor finds and runs it."""

    @property
    def spec(self) -> Any: ...

    async def run(self, context: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """Check the arguments against the signature (raising `Invalid`) and call the function."""
        ...


class Journal(Protocol):
    """Told what happens. Never raises, never blocks."""

    def within(self, claim: Claim, part: str | None = None) -> AbstractContextManager[str | None]:
        """What happens in the block, and in tasks started there, belongs to the claim's run, or to a part of it: a step
        ("once create"), a wait ("limit openai.tokens", "pool chromium").

        Gives what the job is to remember of the run (`History.trace`). The first block of a claim begins its run.
        """
        ...

    def started(self, claim: Claim, running: int) -> None:
        """A run begins; told within its block."""

    def ended(self, settlement: Settlement, running: int) -> None:
        """A run has come to its outcome, or a job to one without a run; the store does not know it yet."""

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        """The store has answered."""

    def lost(self, claim: Claim) -> None:
        """A run goes on (or was cancelled) whose lease somebody else has; it comes to no outcome."""

    def stuck(self, claim: Claim) -> None:
        """A run does not end although it was asked to."""

    def weather(self, away: Away) -> None:
        """The store is away. Told at every attempt; it is the journal's part not to repeat itself."""

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        """An actor died of a bug of ours and will be started again."""


@frozen
class Ports:
    """Everything an actor needs from the outside."""

    source: Source
    keeper: Keeper
    runner: Runner
    ledger: Ledger
    sessions: Sessions
    pools: Pools
    journal: Journal
    limits: Limits
    apis: Callable[[str], Api | None]
    """By name; None for one that is called as it is."""
    permits: Permits
    board: Callable[[], Board]
    """Made when it is first asked for."""
    redact: Redactor = BY_SHAPE
    """What failures say goes through it before anybody else sees it."""
    state: Callable[[], Any] = no_state
    """What the lifespan has yielded; raises `LifespanMissing` where there is none."""
