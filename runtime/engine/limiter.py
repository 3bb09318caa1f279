"""Takes tokens and permits for a job: a short wait is spent in its slot, for a long one the job is snoozed."""

import math
import random
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

import anyio

from runtime.core.errors import Limited, LimitInvalid
from runtime.core.job import Claim
from runtime.core.limits import Bucket, Concurrency, Costs, Granted, Keyed, Permit, Refused, Reserved, Wanted
from runtime.core.values import frozen
from runtime.engine.drought import Drought
from runtime.ports import Away, Ports

PATIENCE_S = 10.0
"""How long a wait in a slot may take, unless the handler says otherwise."""
AWAY_RETRY_S = (0.1, 1.0)
"""From one attempt to the next while the store is away."""
SAY_S = 2.0
"""How long giving back and correcting may take. What does not get through leaves the bucket too low for a while."""
LOOK_AGAIN_S = 1.0
"""Who waits for longer by an estimate looks half-way whether it has come sooner."""
JITTER_S = 1.0
"""Who waits for a breaker comes back within so long after it."""


@frozen
class Taken:
    """What was got of all that was wanted."""

    permits: Sequence[Permit]
    granted: Granted | None


class Limiter:
    """The limits as one run of a job uses them."""

    def __init__(
        self, claim: Claim, handler: str, ports: Ports, drought: Drought, allow: Callable[[float], None]
    ) -> None:
        self._claim = claim
        self._handler = handler
        self._limits = ports.limits
        self._permits = ports.permits
        self._journal = ports.journal
        self._drought = drought
        self._allow = allow
        """Puts the run's deadline off."""
        self._excused_until = -math.inf
        self._held: list[Permit] = []
        self.waited_s = 0.0
        """Spent in waiting so far, for all limits together."""

    async def take(self, what: Wanted, patience_s: float = PATIENCE_S) -> Taken:
        """Return when all of it is there: permits first, as tokens cannot be kept for later. Else nothing is held.

        Raises as `acquire` does, and `LimitInvalid` for a permit that the job holds already.
        """
        permits: list[Permit] = []
        try:
            for limit in what.permits:
                permit, waited_s = await self._permit(limit, patience_s)
                permits.append(permit)
                self._held.append(permit)
                patience_s -= waited_s
            granted = await self.acquire(what.costs, patience_s) if what.costs else None
        except BaseException:
            self.release(permits)
            raise
        self._drought.over(self._handler)
        return Taken(permits, granted)

    async def _permit(self, limit: Concurrency, patience_s: float) -> tuple[Permit, float]:
        """A permit, and for how long it was waited. While the store is away, wait: that is no matter of patience."""
        retry_s, most_s = AWAY_RETRY_S
        while True:
            asked = anyio.current_time()
            try:
                answer = await self._permits.acquire(limit, self._claim, patience_s, self._waiting(limit.label))
            except Away as cause:
                self._journal.weather(cause)
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, most_s)
                continue
            if isinstance(answer, Refused):
                raise self._limited(answer, [limit])
            return answer, anyio.current_time() - asked

    def release(self, permits: Sequence[Permit]) -> None:
        """Give these back."""
        for permit in permits:
            if permit in self._held:
                self._held.remove(permit)
                self._permits.release(permit)

    def end(self) -> None:
        """The run has ended: give back every permit that it still has."""
        self.release(list(self._held))

    async def acquire(self, costs: Costs, patience_s: float = PATIENCE_S, breaker: str | None = None) -> Granted:
        """Return when the tokens may be used. While the store is away, wait: that is no matter of patience.

        Raises `Limited` where it would take longer than `patience_s`, or the breaker is open. Cancelled, it gives back
        what it has reserved.
        """
        with ExitStack() as waiting:
            return await self._acquire(costs, patience_s, breaker, waiting)

    async def _acquire(self, costs: Costs, patience_s: float, breaker: str | None, waiting: ExitStack) -> Granted:
        until = anyio.current_time() + patience_s
        held = ""
        retry_s, most_s = AWAY_RETRY_S
        while True:
            asked = anyio.current_time()
            try:
                answer = await self._limits.take(costs, max(0.0, until - asked), held=held, breaker=breaker)
            except Away as cause:
                self._journal.weather(cause)
                self._excuse(asked, anyio.current_time() + retry_s)
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, most_s)
                until += anyio.current_time() - asked
                continue
            match answer:
                case Refused():
                    raise self._limited(answer, costs)
                case Granted():
                    self._drought.over(self._handler)
                    if answer.rest_s:
                        there = (asked + anyio.current_time()) / 2
                        await self._sleep_until(there + answer.rest_s, costs, answer.id, breaker)
                    return answer
                case Reserved():
                    if not held:
                        waiting.enter_context(self._waiting(answer.by))
                    held = answer.id
                    # Asked as late after now as it is to wait, it arrives at the server at its time.
                    await self._sleep_until(asked + _look_in_s(answer.wait_s, costs), costs, held, breaker)

    def _limited(self, refused: Refused, asked: Iterable[Keyed]) -> Limited:
        if not any(limit.key is not None and limit.label == refused.by for limit in asked):
            self._drought.refused(self._handler, refused.wait_s)
        jitter_s = random.uniform(0, JITTER_S) if refused.why == "open" else 0.0
        return Limited(refused.by, refused.wait_s + jitter_s)

    async def _sleep_until(self, until: float, costs: Costs, held: str, breaker: str | None) -> None:
        self._excuse(anyio.current_time(), until)
        try:
            await anyio.sleep_until(until)
        except BaseException:
            await self.say(self._limits.leave(costs, held, breaker))
            raise

    @contextmanager
    def _waiting(self, by: str) -> Generator[None]:
        began = anyio.current_time()
        try:
            with self._journal.within(self._claim, f"limit {by}"):
                yield
        finally:
            self.waited_s += anyio.current_time() - began

    def _excuse(self, since: float, until: float) -> None:
        """This wait is no part of the timeout: waiting uses up no attempt. Waits at the same time count once."""
        since = max(since, self._excused_until)
        if until > since:
            self._allow(until - since)
            self._excused_until = until

    @contextmanager
    def untimed(self, most_s: float) -> Generator[None]:
        """A block whose time does not count towards the run's timeout, up to `most_s` seconds of it."""
        began = anyio.current_time()
        self._allow(most_s)
        try:
            yield
        finally:
            self._allow(min(anyio.current_time() - began - most_s, 0.0))

    async def settle(self, more: Mapping[Bucket, int], granted: Granted) -> None:
        """Correct what was taken. Sent once: it must not count twice."""
        if any(more.values()):
            await self.say(self._limits.settle(more, granted.at_us))

    async def say(self, what: Awaitable[object]) -> None:
        """Tell the store, if it is there: a call that is paid for does not fail for this."""
        with anyio.move_on_after(SAY_S, shield=True), suppress(Away):
            await what


def _look_in_s(wait_s: float, costs: Costs) -> float:
    """When to ask again. Costs by weight are estimates: what others give back of theirs may bring this one forward."""
    estimated = any(cost > 1 for cost in costs.values())
    return wait_s / 2 if estimated and wait_s > LOOK_AGAIN_S else wait_s


class Grant:
    """Tokens that were taken for the block of `ctx.limit`."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.more: Mapping[Bucket, int] = {}
        """What was used beyond what was taken, or (below zero) not used."""
        self._settled = False

    def settle(self, used: Mapping[Bucket, int] | int) -> None:
        """Say what was really used: `{tokens: 731}`, or a number where there is one bucket. Buckets not named keep
        what was taken. Once only; it is sent when the block ends. Raises `LimitInvalid`."""
        if self._settled:
            raise LimitInvalid("a grant is settled once", hint="settle when all of its cost is known")
        if not isinstance(used, Mapping):
            if len(self._costs) != 1:
                raise LimitInvalid("a number is for a limit of one bucket", hint="settle({bucket: used, …})")
            used = dict.fromkeys(self._costs, used)
        for bucket, tokens in used.items():
            if bucket not in self._costs:
                raise LimitInvalid(f"nothing was taken from {bucket!r}", hint="settle the buckets of the limit")
            if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
                raise LimitInvalid(f"{bucket.label}: what was used is a whole number from 0, not {tokens!r:.40}")
        self._settled = True
        self.more = {bucket: tokens - self._costs[bucket] for bucket, tokens in used.items()}


class Limit:
    """What `ctx.limit` gives: entered, it has taken the tokens and permits; left, it gives the permits back."""

    def __init__(self, limiter: Limiter, what: Wanted, patience_s: float) -> None:
        self._limiter = limiter
        self._what = what
        self._patience_s = patience_s

    async def __aenter__(self) -> Grant:
        self._taken = await self._limiter.take(self._what, self._patience_s)
        self._grant = Grant(self._what.costs)
        return self._grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._limiter.release(self._taken.permits)
        if self._taken.granted is not None:
            await self._limiter.settle(self._grant.more, self._taken.granted)
