"""Claims jobs for the slots: never more than are free, never sooner than something is known to be due."""

import math
from collections.abc import Callable, Sequence

import anyio

from runtime.core.job import Call
from runtime.core.look import look_every_s
from runtime.engine.slots import Slots
from runtime.ports import Away, Journal, Source

MOST_AT_ONCE = 100
"""Most jobs in one claim: the server serves nobody else meanwhile."""
LEAST_WAIT_S = 0.05
"""After a claim that found nothing although something is due: others were quicker, or a clock is at its edge."""
LOST_RETRY_S = (0.1, 2.0)


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
    ) -> None:
        self._queues = list(queues)
        self._slots = slots
        self._source = source
        self._journal = journal
        self._lease_s = lease_s
        self._backlog = backlog
        self._due_at = dict.fromkeys(queues, -math.inf)
        self._foreign_at = 0.0
        self._look_at = 0.0
        self._rest = anyio.CancelScope()
        self._draining = False
        self.turn_at: float | None = None
        """When the last turn was completed, monotonic; None before the first. Liveness is progress."""

    def drain(self) -> None:
        """Claim no more; `run` returns soon."""
        self._draining = True
        self._rest.cancel()

    async def run(self) -> None:
        """Claim until drained."""
        self._foreign_at = anyio.current_time()
        while not self._draining:
            try:
                await self._turn()
            except Away as cause:
                await self._ride_out(cause)

    async def _turn(self) -> None:
        with anyio.CancelScope() as self._rest:
            if self._draining:
                return
            await self._room()
            for queue in self._due():
                await self._claim(queue)
            self.turn_at = anyio.current_time()
            if self._slots.free and not self._due():
                await self._idle()

    async def _room(self) -> None:
        # Outcomes that the store has not taken yet are held jobs too: their number is bounded like the slots'.
        while not self._slots.free or self._backlog() > max(self._slots.size, MOST_AT_ONCE):
            await self._slots.changed()

    def _due(self) -> list[str]:
        now = anyio.current_time()
        return [queue for queue in self._queues if self._due_at[queue] <= now]

    async def _claim(self, queue: str) -> None:
        room = min(self._slots.free, MOST_AT_ONCE)
        if not room or self._draining:
            return
        # Taken in turn: the queue that is asked now is asked last next time, also if its claim fails.
        self._queues.remove(queue)
        self._queues.append(queue)
        with anyio.CancelScope(shield=True):  # jobs whose claim is not heard of would wait for their lease to lapse
            pulled = await self._source.claim(queue, room)
        self._slots.start(pulled.claims)
        now = anyio.current_time()
        if any(isinstance(claim.call, Call) and claim.call.foreign for claim in pulled.claims):
            self._foreign_at = now
        self._due_at[queue] = now + self._next_s(pulled.more, bool(pulled.claims), pulled.due_in_s)
        self._look_at = now + self._look_s(now)

    @staticmethod
    def _next_s(more: bool, found: bool, due_in_s: float | None) -> float:
        if more:
            return 0.0 if found else LEAST_WAIT_S
        return math.inf if due_in_s is None else max(due_in_s, LEAST_WAIT_S)

    async def _idle(self) -> None:
        """Wait for an announcement, for the next due time, or until it is time to look."""
        now = anyio.current_time()
        until = min(self._look_at, *self._due_at.values())
        announced = await self._source.wait(self._queues, max(until - now, LEAST_WAIT_S))
        now = anyio.current_time()
        if announced is not None:
            self._due_at[announced] = now
        elif now >= self._look_at:
            self._look_at = now + self._look_s(now)
            for queue in self._queues:
                due_in_s = await self._source.due_in(queue)
                self._due_at[queue] = math.inf if due_in_s is None else now + due_in_s

    def _look_s(self, now: float) -> float:
        return look_every_s(now - self._foreign_at, self._lease_s)

    async def _ride_out(self, cause: Away) -> None:
        """Wait until the store answers. After an outage that leases may not have outlived, owners go first."""
        lost_at = self.turn_at or anyio.current_time()
        delay_s, most_s = LOST_RETRY_S
        with anyio.CancelScope() as self._rest:
            while not self._draining:
                self._journal.weather(str(cause))
                await anyio.sleep(delay_s)
                delay_s = min(2 * delay_s, most_s)
                try:
                    await self._source.ping()
                    break
                except Away as still:
                    cause = still
            if anyio.current_time() - lost_at > self._lease_s / 2:
                # Their keepers extend within a quarter of a lease; whoever claims before that runs their jobs twice.
                await anyio.sleep(self._lease_s / 4)
        self._due_at = dict.fromkeys(self._queues, -math.inf)
