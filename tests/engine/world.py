"""A worker's surroundings in memory, on Trio's clock: the store, the keeper, the ledger, the journal and the runner.

Nothing here sleeps for real: where everybody waits, the clock jumps to whatever is due next, so that an hour of
backoff takes no time, and what is to happen after 2.5 s happens after 2.5 s exactly.
"""

from __future__ import annotations

import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import trio

from runtime.core.job import (
    NEW,
    Call,
    Cancelled,
    Claim,
    Dead,
    Done,
    History,
    Outcome,
    Released,
    Retried,
    Settlement,
    Snoozed,
    Unreadable,
    Verdict,
)
from runtime.core.lifespan import no_state
from runtime.core.limits import (
    Answer,
    Bucket,
    Concurrency,
    Costs,
    Granted,
    Keyed,
    Permit,
    Refused,
    Reserved,
    one_each,
)
from runtime.core.policy import Ended, Stop, attempt_after
from runtime.core.retry import Retry
from runtime.core.spec import Spec
from runtime.engine.actor import Actor
from runtime.engine.context import Context
from runtime.engine.pools import Pools
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor
from runtime.ports import SHIELD_MOST_S, Api, Away, Entry, Notice, Ports, Pulled, Step

EPOCH_S = 1000.0
"""Where the clock of a test starts. Not at 0, as no clock outside of tests does."""
EPOCH_MS = 1_800_000_000_000
"""The server's clock at that moment."""
STUCK_S = 10.0
LEASE_S = 10.0


def now_ms() -> int:
    """The server's clock."""
    return EPOCH_MS + round((trio.current_time() - EPOCH_S) * 1000)


def seconds_in() -> float:
    """Seconds since the test began."""
    return round(trio.current_time() - EPOCH_S, 6)


# ── the runner ───────────────────────────────────────────────────────────────────────────────────────────────────────


class CancelOnce(BaseException):
    """What a run meets when it is asked to stop: once each time, unlike Trio's own cancelling."""


class TrioRunner:
    """`ports.Runner` with the manners of `AsyncioRunner`, on Trio."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(
        self,
        token: str,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        *,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> TrioRun:
        return TrioRun(self._nursery, call, timeout_s, ended, stuck, before)


@dataclass(eq=False)
class TrioShield:
    length_s: float
    until: float = math.inf
    over: trio.CancelScope = field(default_factory=trio.CancelScope)


class TrioRun:
    def __init__(
        self,
        nursery: trio.Nursery,
        call: Callable[[], Awaitable[object]],
        timeout_s: float,
        ended: Callable[[Ended], None],
        stuck: Callable[[], None],
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._ended: Callable[[Ended], None] | None = ended
        self._stuck = stuck
        self._stop: Stop | None = None
        self._task: trio.lowlevel.Task | None = None
        self._must_cancel = False
        self._timer = trio.CancelScope()
        self._deadline: float | None = None
        self._stopped_at = -math.inf
        self._shields: list[TrioShield] = []
        self._held_off = False
        if before is None:
            self._begin()
        nursery.start_soon(self._guard, call, before)

    def _begin(self) -> None:
        self._deadline = trio.current_time() + self._timeout_s
        self._timer = self._after(self._timeout_s, lambda: self.stop("timeout"))

    def allow(self, more_s: float) -> None:
        if self._stop is None and self._deadline is not None:
            self._timer.cancel()
            self._deadline += more_s
            self._timer = self._after(self._deadline - trio.current_time(), lambda: self.stop("timeout"))

    @property
    def stopped(self) -> Stop | None:
        return self._stop

    def stop(self, why: Stop) -> None:
        if self._ended is None:
            return
        if self._stop is None:
            self._stop = why
            self._stopped_at = trio.current_time()
            for shield in self._shields:
                self._bound(shield)
            self._timer.cancel()
            self._timer = self._after(STUCK_S / 2, self._insist)
        self._cancel()

    @property
    def shielded_until(self) -> float:
        return max((shield.until for shield in self._shields), default=-math.inf)

    @contextmanager
    def shield(self, length_s: float) -> Generator[None]:
        shield = TrioShield(length_s)
        self._shields.append(shield)
        if self._stop is not None:
            self._bound(shield)
        try:
            yield
        finally:
            if shield in self._shields:
                self._shields.remove(shield)
                shield.over.cancel()
            if self._held_off:
                self._cancel()

    def _bound(self, shield: TrioShield) -> None:
        now = trio.current_time()
        shield.until = min(now + shield.length_s, self._stopped_at + SHIELD_MOST_S)

        def end() -> None:
            self._shields.remove(shield)
            self._cancel()

        shield.over = self._after(shield.until - now, end)

    def _insist(self) -> None:
        if self._shields:
            self._timer = self._after(self.shielded_until + STUCK_S / 2 - trio.current_time(), self._insist)
            return
        self._cancel()
        self._timer = self._after(STUCK_S / 2, self._stuck)

    def _cancel(self) -> None:
        self._held_off = bool(self._shields)
        if self._held_off:
            return
        # Trio has no public way to interrupt one wait of a task and leave the next alone.
        if self._task is None or self._task._abort_func is None:
            self._must_cancel = True
        else:
            self._task._attempt_abort(_raise_cancel_once)

    async def _guard(
        self, call: Callable[[], Awaitable[object]], before: Callable[[], Awaitable[object]] | None
    ) -> None:
        self._task = trio.lowlevel.current_task()
        try:
            if before is not None:
                await _interruptible(self, _as_coroutine(before))
                if self._stop is None:
                    self._begin()
            value = await _interruptible(self, _as_coroutine(call))
        except trio.Cancelled:  # the test is over
            raise
        except BaseException as error:
            self._end(None, error)
        else:
            self._end(value, None)

    def take_cancel(self) -> bool:
        taken, self._must_cancel = self._must_cancel, False
        return taken

    def take_cancel_at(self, trap: Any) -> bool:
        """Whether a cancel came in the step that has led to this wait, which is then over before it has begun."""
        return (
            self._must_cancel
            and hasattr(trap, "abort_func")
            and trap.abort_func(_raise_cancel_once) is trio.lowlevel.Abort.SUCCEEDED
            and self.take_cancel()
        )

    def _end(self, value: object, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        assert ended is not None
        self._timer.cancel()
        if self._stop == "timeout" and isinstance(error, CancelOnce):
            error = TimeoutError(f"it ran longer than its timeout of {self._timeout_s:g} s")
        ended(Ended(value, error, self._stop))

    def _after(self, delay_s: float, call: Callable[[], None]) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(delay_s)
                call()

        self._nursery.start_soon(wait)
        return scope


def _raise_cancel_once() -> NoReturn:
    raise CancelOnce


async def _as_coroutine(call: Callable[[], Awaitable[object]]) -> object:
    return await call()


@types.coroutine
def _interruptible(run: TrioRun, inner: Coroutine[Any, Any, object]) -> Generator[Any, Any, object]:
    """Take every step of `inner`, and put a cancel that came while it was not waiting in front of its next one."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        if run.take_cancel():
            error = CancelOnce()
        try:
            trap = inner.send(answer) if error is None else inner.throw(error)
        except StopIteration as end:
            return end.value
        answer, error = None, None
        if run.take_cancel_at(trap):
            error = CancelOnce()
            continue
        try:
            answer = yield trap
        except BaseException as raised:
            error = raised


# ── the store ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Row:
    """A job as the store has it."""

    id: str
    queue: str
    call: Call | Unreadable
    due_at: float
    order: int
    starts: int = 0
    job_try: int | None = None
    history: History = NEW
    abort_ms: int | None = None
    token: str | None = None
    outcome: Outcome | None = None
    """How it ended."""
    starts_at: list[float] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        """Nobody holds it, and it has not ended."""
        return self.token is None and self.outcome is None


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of the store."""

    what: str
    queue: str
    size: int
    """The room of a claim, the outcomes of a settle."""
    at: float
    """In seconds since the test began."""


class Store:
    """`ports.Source` and the server behind it. One call of a worker is answered after `slow_s[what]`, or refused."""

    def __init__(self, stir: Callable[[], None]) -> None:
        self._stir = stir
        self.rows: dict[str, Row] = {}
        self.asked: list[Asked] = []
        self.settlements: list[tuple[Settlement, Verdict]] = []
        """What was recorded, in order."""
        self.batches: list[Sequence[Settlement]] = []
        """What was sent, in order; the same batch again if it was sent again."""
        self.marks: dict[str, None] = {}
        self.away: str | None = None
        self.refused: dict[str, str] = {}
        """What is answered with `Away` although the server is there."""
        self.lost_replies: set[str] = set()
        """What is done, and then answered with `Away`, once."""
        self.bugs: dict[str, Exception] = {}
        """What raises an exception that is nobody's plan, once."""
        self.slow_s: dict[str, float] = {}
        self.tells = False
        """It tells of everything that is written."""
        self.looked_for_s = math.inf
        self.written = 0
        self._told = trio.Event()
        self.others_are_quicker = False
        """Claims find that something is due, and get nothing."""
        self.on_ask: Callable[[Asked], None] = lambda asked: None
        self.interrupted: list[str] = []
        """Calls whose answer was not waited for, although ports.py says that it must be."""
        self.paused: dict[str, float] = {}
        """Queues of which nothing is given, and when they end that (`math.inf`: when somebody says so)."""
        self._marked = trio.Event()
        self._waiting: set[frozenset[str]] = set()
        self.unheard = False
        """The answers of waits that claim are lost; the next claim brings what they did."""
        self._claimed_unheard: list[Claim] = []
        self._orders = iter(range(1_000_000))
        self._answered: dict[int, tuple[Sequence[Settlement], Sequence[Verdict]]] = {}

    # What producers do.

    def add(
        self,
        handler: str = "work",
        *args: object,
        id: str | None = None,
        queue: str = "q",
        delay_s: float = 0.0,
        foreign: bool = False,
        announce: bool = True,
        expires_s: float | None = None,
        job_try: int | None = None,
        history: History = NEW,
        abort: bool = False,
        unreadable: str | None = None,
    ) -> Row:
        """Enqueue a job. A `foreign` producer announces nothing."""
        order = next(self._orders)
        expires_ms = None if expires_s is None else now_ms() + round(expires_s * 1000)
        call = Call(handler, args, {}, now_ms(), job_try=job_try, foreign=foreign, expires_ms=expires_ms)
        row = Row(
            id or f"{handler}-{order}",
            queue,
            call if unreadable is None else Unreadable(unreadable),
            trio.current_time() + delay_s,
            order,
            job_try=job_try,
            history=history,
            abort_ms=now_ms() if abort else None,
        )
        self.rows[row.id] = row
        if announce and not foreign:
            self._mark(queue)
        self.written += 1
        self._told.set()
        self._told = trio.Event()
        self._stir()
        return row

    def outcomes(self, job_id: str) -> list[Outcome]:
        """Every outcome recorded for a job."""
        return [settlement.outcome for settlement, verdict in self.settlements if settlement.claim.id == job_id]

    def times(self, what: str, queue: str | None = None) -> list[float]:
        """When the store was asked for that, in seconds since the test began."""
        return [asked.at for asked in self.asked if asked.what == what and queue in (None, asked.queue)]

    # What a worker asks.

    async def claim(self, queue: str, room: int) -> Pulled:
        await self._answer("claim", queue, room)
        if self._claimed_unheard:
            claims, self._claimed_unheard = self._claimed_unheard, []
            return Pulled(queue, claims)
        now = trio.current_time()
        free = sorted(
            (row for row in self.rows.values() if row.queue == queue and row.is_free),
            key=lambda row: (row.due_at, row.order),
        )
        due = [row for row in free if row.due_at <= now]
        later = [row.due_at - now for row in free if row.due_at > now]
        self._stir()
        if due and self._is_paused(queue):
            return Pulled(queue, (), due_in_s=self._pause_left_s(queue))
        if self.others_are_quicker:
            return Pulled(queue, (), more=True)
        claims = [self._lease(row) for row in due[:room]]
        return Pulled(queue, claims, len(due) > room, min(later, default=None))

    def _is_paused(self, queue: str) -> bool:
        return self.paused.get(queue, -math.inf) > trio.current_time()

    def _pause_left_s(self, queue: str) -> float | None:
        return None if self.paused[queue] == math.inf else self.paused[queue] - trio.current_time()

    def resume(self, queue: str) -> None:
        """As `runtime queue resume` does."""
        del self.paused[queue]
        self._mark(queue)

    def _lease(self, row: Row) -> Claim:
        row.starts += 1
        row.token = f"{row.id}/{next(self._orders)}"
        row.starts_at.append(seconds_in())
        return Claim(
            id=row.id,
            queue=row.queue,
            token=row.token,
            place=str(round(row.due_at * 1000)),
            starts=row.starts,
            attempt=max(row.starts, row.job_try or 0),
            call=row.call,
            body=b"body",
            now_ms=now_ms(),
            history=row.history,
            abort_ms=row.abort_ms,
        )

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        assert all(settlement.claim.queue == queue for settlement in batch)
        self.batches.append(batch)
        await self._answer("settle", queue, len(batch))
        if id(batch) in self._answered:  # sent again
            verdicts = self._answered[id(batch)][1]
        else:
            verdicts = [self._record(settlement) for settlement in batch]
            self._answered[id(batch)] = batch, verdicts
        self._stir()
        if "settle" in self.lost_replies:
            self.lost_replies.remove("settle")
            raise Away("settle: the reply was lost")
        return verdicts

    def _record(self, settlement: Settlement) -> Verdict:
        claim, outcome = settlement.claim, settlement.outcome
        row = self.rows[claim.id]
        verdict: Verdict = "settled" if row.token == claim.token else "refused"
        self.settlements.append((settlement, verdict))
        if verdict == "refused":
            return verdict
        row.token = None
        row.history = settlement.history
        now = trio.current_time()
        match outcome:
            case Done() | Dead() | Cancelled():
                row.outcome = outcome
            case Retried(delay_s=delay_s) | Snoozed(delay_s=delay_s):
                row.starts, row.due_at = attempt_after(claim, outcome), now + delay_s
            case Released(delay_s=None):
                row.starts, row.due_at = attempt_after(claim, outcome), float(claim.place) / 1000
            case Released(delay_s=delay_s):
                assert delay_s is not None
                row.starts, row.due_at = attempt_after(claim, outcome), now + delay_s
        return verdict

    async def wait(
        self, queues: Sequence[str], timeout_s: float, room: int, take: Callable[[Pulled], None]
    ) -> str | None:
        self._waiting.add(frozenset(queues))
        try:
            await self._answer("wait", "", room)
            announced = await self._announced(queues, timeout_s)
        finally:
            self._waiting.discard(frozenset(queues))
        if not room:
            return announced
        due = {row.queue for row in self.rows.values() if row.is_free and row.due_at <= trio.current_time()}
        claimed = next((queue for queue in queues if queue in due and not self._is_paused(queue)), queues[-1])
        pulled = await self.claim(claimed, room)
        if self.unheard:
            self._claimed_unheard = list(pulled.claims)
            return None
        take(pulled)
        return None if announced == claimed else announced

    async def _announced(self, queues: Sequence[str], timeout_s: float) -> str | None:
        with trio.move_on_after(timeout_s):
            while frozenset(queues) in self._waiting:
                for queue in queues:
                    if queue in self.marks:
                        del self.marks[queue]
                        return queue
                self._raise_if_away("wait")
                if self._marked.is_set():
                    self._marked = trio.Event()
                await self._marked.wait()
        return None

    def rouse(self, queues: Sequence[str]) -> None:
        self._waiting.discard(frozenset(queues))
        self._marked.set()

    async def announce(self, queue: str) -> None:
        await self._answer("announce", queue, 0)
        self._mark(queue)

    async def due_in(self, queue: str) -> float | None:
        await self._answer("look", queue, 0)
        if self._is_paused(queue):
            return self._pause_left_s(queue)
        dues = [row.due_at for row in self.rows.values() if row.queue == queue and not row.token and not row.outcome]
        return max(0.0, min(dues) - trio.current_time()) if dues else None

    @property
    def look_s(self) -> float:
        return self.looked_for_s

    @property
    def hears(self) -> bool:
        return self.tells

    async def news(self, after: int) -> int:
        while not self.tells or self.written <= after:
            await self._told.wait()
        return self.written

    async def ping(self) -> None:
        await self._answer("ping", "", 0)

    # Faults.

    def go_away(self, why: str = "connection refused") -> None:
        """From now on every call is answered with `Away`; who waits for an announcement learns it at once."""
        self.away = why
        self._marked.set()

    def come_back(self) -> None:
        self.away = None

    def take_from(self, row: Row) -> None:
        """Another worker has the job now."""
        row.token = "another worker"

    async def _answer(self, what: str, queue: str, size: int) -> None:
        self.asked.append(Asked(what, queue, size, seconds_in()))
        self.on_ask(self.asked[-1])
        self._stir()
        try:
            await trio.sleep(self.slow_s.get(what, 0.0))
        except trio.Cancelled:
            self.interrupted.append(what)
            raise
        if what in self.bugs:
            raise self.bugs.pop(what)
        self._raise_if_away(what)

    def _raise_if_away(self, what: str) -> None:
        cause = self.away or self.refused.get(what)
        if cause is not None:
            raise Away(f"{what}: {cause}")

    def _mark(self, queue: str) -> None:
        self.marks[queue] = None
        self._marked.set()


# ── the other ports ──────────────────────────────────────────────────────────────────────────────────────────────────


class Leases:
    """`ports.Keeper`: knows what is held, and tells what the test wants to be told."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Claim, Callable[[str, Notice], None]]] = {}

    def hold(self, claims: Sequence[Claim], listener: Callable[[str, Notice], None]) -> None:
        self.held.update({claim.token: (claim, listener) for claim in claims})

    def drop(self, tokens: Sequence[str]) -> None:
        for token in tokens:
            self.held.pop(token, None)

    def notify(self, row: Row, notice: Notice) -> None:
        claim, listener = next(held for held in self.held.values() if held[0].id == row.id)
        if notice == "lost":
            self.drop([claim.token])
        listener(claim.token, notice)


class Steps:
    """`ports.Ledger`."""

    def __init__(self) -> None:
        self.steps: dict[tuple[str, str], Step] = {}

    async def begin(self, claim: Claim, step: str) -> Step:
        known = self.steps.get((claim.id, step), Step("new"))
        if known.state == "new":
            self.steps[claim.id, step] = Step("begun")
        return known

    async def finish(self, claim: Claim, step: str, value: object) -> None:
        self.steps[claim.id, step] = Step("done", value)


class NoSessions:
    def session(self, name: str, toll: object) -> Any:
        raise AssertionError("nobody here calls anybody")


class Taps:
    """`ports.Limits`: buckets that give what they hold, one waiter after the other; no time is lost in asking."""

    def __init__(self) -> None:
        self.away: str | None = None
        self.open: set[str] = set()
        self.takes: list[tuple[str, float]] = []
        """What was granted, and for when."""
        self.left: list[str] = []
        self.settled: list[Mapping[Bucket, int]] = []
        self.told: list[tuple[str, str]] = []
        self.reasons: list[str] = []
        self.watched = False
        """The breaker has counted failures."""
        self.asked: list[tuple[Costs, str | None]] = []
        self.closed: list[tuple[str, float]] = []
        self.lowered: list[Mapping[Bucket, int]] = []
        self._full: dict[str, float] = {}
        self._held: dict[str, float] = {}

    async def take(self, costs: Costs, patience_s: float, *, held: str = "", breaker: str | None = None) -> Answer:
        await trio.lowlevel.checkpoint()
        self._check()
        self.asked.append((costs, breaker))
        now = trio.current_time()
        if breaker in self.open:
            return Refused(60.0, breaker or "", "open")
        if held in self._held and abs(self._held[held] - now) < 0.05:
            del self._held[held]
            return self._grant(costs, held)
        at, latest = now, None
        for bucket, cost in costs.items():
            full = max(self._full.get(bucket.label, 0.0), now) + cost / bucket.rule.rate_s
            first = full - bucket.rule.burst / bucket.rule.rate_s
            at, latest = (first, bucket) if first > at + 1e-9 else (at, latest)
        if at - now > patience_s:
            assert latest is not None
            return Refused(at - now, latest.label, "dry")
        for bucket, cost in costs.items():
            self._full[bucket.label] = max(self._full.get(bucket.label, 0.0), now) + cost / bucket.rule.rate_s
        call = f"r{len(self._held)}.{len(self.takes)}"
        if latest is None:
            return self._grant(costs, call)
        self._held[call] = at
        return Reserved(call, at - now, latest.label)

    def void(self) -> None:
        """Forget what is reserved, as a closure does."""
        self._held.clear()

    def _grant(self, costs: Costs, call: str) -> Granted:
        self.takes += [(bucket.label, seconds_in()) for bucket in costs]
        return Granted(now_ms() * 1000, 0.0, call, watched=self.watched)

    def _check(self) -> None:
        if self.away:
            raise Away(self.away, "limit")

    async def leave(self, costs: Costs, held: str, breaker: str | None = None) -> None:
        self._check()
        self._held.pop(held, None)
        self.left.append(held)

    async def settle(self, more: Mapping[Bucket, int], granted_us: int) -> None:
        self._check()
        self.settled.append(more)

    async def lower(self, left: Mapping[Bucket, int]) -> None:
        self._check()
        self.lowered.append(left)

    async def close(self, costs: Costs, wait_s: float) -> None:
        self._check()
        self.closed += [(bucket.label, wait_s) for bucket in costs]

    async def report(self, breaker: str, how: Literal["ok", "failed", "broken"], call: str, reason: str = "") -> bool:
        self._check()
        self.told.append((breaker, how))
        self.reasons.append(reason)
        if how == "broken":
            self.open.add(breaker)
        return breaker in self.open


class Turnstile:
    """`ports.Permits`: so many at once, first come, first served."""

    def __init__(self) -> None:
        self.away: str | None = None
        self.held: list[Permit] = []
        self._changed = trio.Event()

    async def acquire(
        self, limit: Concurrency, claim: Claim, patience_s: float, waiting: AbstractContextManager[object]
    ) -> Permit | Refused:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Away(self.away, "limit")
        permit = Permit(limit, claim.token, b"")
        if not self._full(limit):
            self.held.append(permit)
            return permit
        with waiting, trio.move_on_after(patience_s):
            while self._full(limit):
                await self._changed.wait()
            self.held.append(permit)
            return permit
        return Refused(2.0, limit.label, "full")

    def _full(self, limit: Concurrency) -> bool:
        return sum(permit.limit.label == limit.label for permit in self.held) >= limit.most

    def release(self, permit: Permit) -> None:
        self.held.remove(permit)
        self._changed.set()
        self._changed = trio.Event()


class Diary:
    """`ports.Journal`: writes everything down."""

    def __init__(self, stir: Callable[[], None]) -> None:
        self._stir = stir
        self.parts: list[tuple[str, str]] = []
        self.starts: list[tuple[str, int]] = []
        self.ends: list[tuple[Settlement, int]] = []
        self.verdicts: list[tuple[Settlement, Verdict]] = []
        self.losses: list[str] = []
        self.stuck_ids: list[str] = []
        self.weathers: list[tuple[float, str]] = []
        self.crashes: list[tuple[float, str, BaseException, float]] = []

    @contextmanager
    def within(self, claim: Claim, part: str | None = None) -> Generator[None]:
        if part is not None:
            self.parts.append((claim.id, part))
        yield

    def started(self, claim: Claim, running: int) -> None:
        self.starts.append((claim.id, running))
        self._stir()

    def ended(self, settlement: Settlement, running: int) -> None:
        self.ends.append((settlement, running))
        self._stir()

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        self.verdicts.append((settlement, verdict))
        self._stir()

    def lost(self, claim: Claim) -> None:
        self.losses.append(claim.id)
        self._stir()

    def stuck(self, claim: Claim) -> None:
        self.stuck_ids.append(claim.id)
        self._stir()

    def weather(self, away: Away) -> None:
        self.weathers.append((seconds_in(), str(away)))
        self._stir()

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        self.crashes.append((seconds_in(), actor, error, restart_in_s))
        self._stir()


Function = Callable[..., Awaitable[object]]


@dataclass(frozen=True)
class Work:
    """`ports.Entry` around a function."""

    spec: Spec
    function: Function

    async def run(self, context: Context, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        return await self.function(context, *args, **kwargs)


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Serving:
    """An actor or a supervisor that runs."""

    def __init__(self, what: Actor | Supervisor) -> None:
        self._what = what
        self._over = trio.Event()
        self.ended_at: float | None = None
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def drain(self) -> None:
        self._what.drain()

    def hurry(self) -> None:
        self._what.hurry()

    async def end(self) -> float:
        """Wait for its end; when that was, in seconds since the test began."""
        await self._over.wait()
        assert self.ended_at is not None
        return self.ended_at

    async def run(self) -> None:
        try:
            await self._what.run()
        except Exception as error:
            self.error = error
        self.ended_at = seconds_in()
        self._over.set()


class Slate:
    """`ports.Board`: all that was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, float | None, str]] = []

    def show(self, claim: Claim, done: float, total: float | None, note: str) -> None:
        self.told.append((claim.id, done, total, note))


class World:
    """What a test of the engine gets."""

    def __init__(self) -> None:
        self._stirred = trio.Event()
        self.store = Store(self._stir)
        self.keeper = Leases()
        self.ledger = Steps()
        self.diary = Diary(self._stir)
        self.taps = Taps()
        self.apis: dict[str, Api] = {}
        self.warnings: list[str] = []
        self.pools = Pools(self.warnings.append)
        self.turnstile = Turnstile()
        self.board = Slate()
        self.statistics = Statistics()
        self.entries: dict[str, Entry] = {}
        self.nursery: trio.Nursery = None  # type: ignore[assignment]  # set before the test begins
        self.ran: list[tuple[str, float]] = []
        """Every start of the plain handlers below: job and time."""

    @property
    def ports(self) -> Ports:
        runner = TrioRunner(self.nursery)
        return Ports(
            self.store,
            self.keeper,
            runner,
            self.ledger,
            NoSessions(),
            self.pools,
            self.diary,
            self.taps,
            self.apis.get,
            self.turnstile,
            lambda: self.board,
        )

    def handle(
        self,
        function: Function,
        *,
        name: str = "work",
        retry: Retry | None = None,
        timeout_s: float | None = None,
        limit: tuple[Keyed, ...] = (),
    ) -> None:
        self.entries[name] = Work(
            Spec(name, queue="q", timeout_s=timeout_s, retry=retry or Retry(), limit=one_each(limit)), function
        )

    def handle_taking(self, length_s: float, name: str = "work") -> None:
        """A handler that takes so long and returns the job's id."""

        async def take(ctx: Context) -> str:
            self.ran.append((ctx.job_id, self.now))
            await trio.sleep(length_s)
            return ctx.job_id

        self.handle(take, name=name)

    def actor(
        self,
        *queues: str,
        size: int = 3,
        lease_s: float = LEASE_S,
        timeout_s: float = 300.0,
        ports: Ports | None = None,
        state: Callable[[], Any] = no_state,
    ) -> Actor:
        return Actor(
            queues or ("q",),
            size,
            self.entries,
            ports or replace(self.ports, state=state),
            self.statistics,
            lease_s=lease_s,
            timeout_s=timeout_s,
        )

    def serve(self, what: Actor | Supervisor) -> Serving:
        serving = Serving(what)
        self.nursery.start_soon(serving.run)
        return serving

    @property
    def now(self) -> float:
        """Seconds since the test began."""
        return seconds_in()

    async def at(self, second: float) -> None:
        """Wait until so many seconds after the test began, and for what happens in that moment."""
        await trio.sleep_until(EPOCH_S + second)
        await trio.testing.wait_all_tasks_blocked()

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until this is so. Asked again whenever the store or the journal hears something."""
        while not fact():
            self._stirred = trio.Event()
            await self._stirred.wait()

    async def rest(self) -> None:
        """Let everything happen that happens at this moment."""
        await trio.testing.wait_all_tasks_blocked()

    def _stir(self) -> None:
        self._stirred.set()
