"""Claims jobs for the slots: never more than are free, never sooner than something is known to be due."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from runtime.core.job import Call
from runtime.core.look import look_every_s
from runtime.engine.drought import Drought
from runtime.engine.slots import Slots
from runtime.ports import Away, Journal, Pulled, Source

MOST_AT_ONCE = 100
"""Most jobs in one claim: the server serves nobody else meanwhile."""
LEAST_WAIT_S = 0.05
"""After a claim that found nothing although something is due: others were quicker, or a clock is at its edge."""
GATHER_S = 0.005
"""From the news that a job was written to the look for it: one that is announced is somebody else's by then."""
USELESS_NEWS_S = 0.1
"""News that led to no job are followed no sooner than this after the look; each time, that doubles."""
UNHEARD_S = 0.25
"""While a backlog elsewhere keeps the puller from listening to announcements, a queue is asked this often."""
LOST_RETRY_S = (0.1, 1.0)
"""From one attempt to the next while the store is away: work is to go on within 5 s of its coming back, and of these
owners may need half."""
FIRST_CLAIM_S = 0.3
"""How long the very first claim is waited for when the worker is told to stop meanwhile: the store may not be there."""


@dataclass(slots=True, eq=False)
class _Queue:
    """What is known of a queue. All times are monotonic."""

    name: str
    due_at: float = -math.inf
    """Something is due then."""
    look_at: float = -math.inf
    """To be looked at then, for jobs that nobody announces."""
    asked_at: float = -math.inf
    foreign_at: float = -math.inf
    """When the last such job was found."""


@dataclass(slots=True)
class _News:
    """What the store tells of jobs that anybody writes: also of those that are announced to somebody. Monotonic."""

    heard: int = 0
    look_at: float = -math.inf
    """They are followed no sooner."""
    useless_s: float = USELESS_NEWS_S
    followed: bool = False
    """The next look is on their account."""

    def useless(self, now: float, most_s: float) -> None:
        self.look_at = now + self.useless_s
        self.useless_s = min(2 * self.useless_s, most_s)

    def useful(self) -> None:
        self.look_at, self.useless_s = -math.inf, USELESS_NEWS_S


class Puller:
    """The loop that claims. `queues` are taken in turn."""

    def __init__(
        self,
        queues: Sequence[str],
        slots: Slots,
        source: Source,
        journal: Journal,
        *,
        lease_s: float,
        backlog: Callable[[], int],
        drought: Drought,
    ) -> None:
        self._queues = [_Queue(name) for name in queues]
        self._slots = slots
        self._source = source
        self._journal = journal
        self._lease_s = lease_s
        self._backlog = backlog
        self._drought = drought
        self._heard_at = -math.inf
        self._started_at = 0.0
        self._news = _News()
        self._retry_s = LOST_RETRY_S[0]
        self._rest = anyio.CancelScope()
        self._nap = anyio.CancelScope()
        self._looking = anyio.CancelScope()
        self._claiming = anyio.CancelScope()
        self._draining = False
        self._paused = False
        self._goes_on = anyio.Event()
        self._resting = anyio.Event()
        self.turn_at: float | None = None
        """When the last turn was completed, monotonic; None before the first. Liveness is progress."""

    def drain(self) -> None:
        """Claim no more; `run` returns soon."""
        self._draining = True
        self.resume()
        self._rest.cancel()
        if self.turn_at is None:
            self._claiming.deadline = min(self._claiming.deadline, anyio.current_time() + FIRST_CLAIM_S)

    async def pause(self) -> None:
        """Claim nothing until `resume`; returns when no claim is on its way and nothing is listened to."""
        self._paused = True
        self._rest.cancel()
        await self._resting.wait()

    def resume(self) -> None:
        """Go on, with a look at every queue."""
        self._paused = False
        self._goes_on.set()

    def wake(self) -> None:
        """Look at every queue now, or as soon as there is room. Not while the store is away: owners go first then."""
        self._nap.cancel()

    def expect(self, queue: str, in_s: float) -> None:
        """Something of `queue` will be due then, as this worker has said itself."""
        for known in self._queues:
            if known.name == queue:
                known.due_at = min(known.due_at, anyio.current_time() + in_s)
        self._looking.cancel()

    async def run(self) -> None:
        """Claim until drained."""
        self._started_at = anyio.current_time()
        try:
            while not self._draining:
                if self._paused:
                    await self._stand_still()
                try:
                    await self._turn()
                except Away as cause:
                    await self._ride_out(cause)
        finally:
            self._resting.set()  # for whoever waits for a pause

    async def _stand_still(self) -> None:
        self._goes_on = anyio.Event()
        self._resting.set()
        await self._goes_on.wait()
        self._resting = anyio.Event()
        self._forget_due_times()

    async def _turn(self) -> None:
        with anyio.CancelScope() as self._rest:
            if self._draining or self._paused:
                return
            await self._room()
            for queue in self._due():
                await self._claim(queue)
            self.turn_at = anyio.current_time()
            if self._slots.free and not self._due():
                await self._idle()
            self._retry_s = LOST_RETRY_S[0]

    async def _room(self) -> None:
        # Outcomes that the store has not taken yet are held jobs too: their number is bounded like the slots'.
        while not self._slots.free or self._backlog() > max(self._slots.size, MOST_AT_ONCE):
            await self._slots.changed()

    def _due(self) -> list[_Queue]:
        """The queues to ask now: where something is due, and while there are such, those that were long not heard."""
        now = anyio.current_time()
        if all(queue.due_at > now for queue in self._queues):
            return []
        unheard = now - UNHEARD_S
        return [
            queue
            for queue in self._queues
            if queue.due_at <= now or (queue.asked_at <= unheard and self._heard_at <= unheard)
        ]

    async def _claim(self, queue: _Queue) -> None:
        room = min(self._slots.free, MOST_AT_ONCE)
        if not room or self._draining or self._paused:
            return
        dry_until = self._drought.until(queue.name)
        if dry_until is not None:
            if dry_until > anyio.current_time():
                queue.due_at = queue.look_at = dry_until
                return
            self._drought.trying(queue.name)
            room = 1
        # Taken in turn: the queue that is asked now is asked last next time, also if its claim fails.
        self._queues.remove(queue)
        self._queues.append(queue)
        # Jobs whose claim is not heard of would wait for their lease to lapse.
        pulled: Pulled | None = None
        with anyio.CancelScope(shield=True) as self._claiming:
            pulled = await self._source.claim(queue.name, room)
        if pulled is None:  # cancelled
            return
        # A claim whose reply was lost brings its jobs again, when another queue may have taken the slots.
        free = self._slots.free
        self._slots.start(pulled.claims[:free])
        self._slots.decline(pulled.claims[free:])
        self._learn(queue, pulled)

    def _learn(self, queue: _Queue, pulled: Pulled) -> None:
        now = anyio.current_time()
        if any(isinstance(claim.call, Call) and claim.call.foreign for claim in pulled.claims):
            queue.foreign_at = now
            self._news.useful()
        queue.asked_at = now
        queue.look_at = now + self._look_every_s(queue, now)
        if pulled.more:
            queue.due_at = now if pulled.claims else now + LEAST_WAIT_S
        else:
            queue.due_at = math.inf if pulled.due_in_s is None else now + max(pulled.due_in_s, LEAST_WAIT_S)

    async def _idle(self) -> None:
        """Rest until there is something to do, or until woken."""
        try:
            with self._nap:
                await self._listen()
        finally:
            woken, self._nap = self._nap.cancel_called, anyio.CancelScope()
        if woken:
            self._forget_due_times()

    def _forget_due_times(self) -> None:
        for queue in self._queues:
            queue.due_at = -math.inf

    async def _listen(self) -> None:
        """Wait for an announcement, or for the next due time. Looks for what nobody announces go on beside that."""
        lost: list[Away] = []

        async def part(wait: Callable[[], Awaitable[None]]) -> None:
            try:
                await wait()
            except Away as cause:
                lost.append(cause)
            both.cancel_scope.cancel()

        async with anyio.create_task_group() as both:
            both.start_soon(part, self._look_around)
            await part(self._hear)
        if lost:
            raise lost[0]

    async def _hear(self) -> None:
        until = min(queue.due_at for queue in self._queues)
        names = [queue.name for queue in self._queues]
        heard = False
        try:
            announced = await self._source.wait(names, max(until - anyio.current_time(), LEAST_WAIT_S))
            heard = True
        finally:
            if not heard:  # an announcement may be on its way to nobody
                for queue in self._queues:
                    queue.look_at = -math.inf
        self._heard_at = anyio.current_time()
        for queue in self._queues:
            if queue.name == announced:
                queue.due_at = self._heard_at

    async def _look_around(self) -> None:
        """Look when it is time, or when there are news; return when something is due."""
        while all(queue.due_at > anyio.current_time() for queue in self._queues):
            until = min(min(queue.due_at, queue.look_at) for queue in self._queues)
            with anyio.CancelScope(deadline=until) as self._looking:
                self._news.heard = await self._source.news(self._news.heard)
            if self._looking.cancelled_caught:
                await self._look()
            else:
                self._follow_news()

    def _follow_news(self) -> None:
        at = max(anyio.current_time() + GATHER_S, self._news.look_at)
        for queue in self._queues:
            self._news.followed |= at <= queue.look_at
            queue.look_at = min(queue.look_at, at)

    async def _look(self) -> None:
        """At the queues for which it is time."""
        now = anyio.current_time()
        for queue in self._queues:
            if queue.look_at <= now:
                queue.look_at = now + self._look_every_s(queue, now)
                due_in_s = await self._source.due_in(queue.name)
                now = self.turn_at = anyio.current_time()
                queue.due_at = math.inf if due_in_s is None else now + due_in_s
        followed, self._news.followed = self._news.followed, False
        if followed and all(queue.due_at > now for queue in self._queues):
            self._news.useless(now, self._look_every_s(self._queues[0], now))

    def _look_every_s(self, queue: _Queue, now: float) -> float:
        return look_every_s(now - queue.foreign_at, now - self._started_at, self._lease_s, hears=self._source.hears)

    async def _ride_out(self, cause: Away) -> None:
        """Wait until the store answers. After an outage that leases may not have outlived, owners go first."""
        lost_at = anyio.current_time() if self.turn_at is None else self.turn_at
        with anyio.CancelScope() as self._rest:
            asked_at = anyio.current_time()
            while not self._draining and not self._paused:
                self._journal.weather(cause)
                await anyio.sleep_until(asked_at + self._retry_s)
                self._retry_s = min(2 * self._retry_s, LOST_RETRY_S[1])
                asked_at = anyio.current_time()
                try:
                    await self._source.ping()
                    break
                except Away as still:
                    cause = still
            if anyio.current_time() - lost_at > self._lease_s / 2:
                # Their keepers extend within a quarter of a lease; whoever claims before that runs their jobs twice.
                await anyio.sleep(self._lease_s / 4)
        self._forget_due_times()
