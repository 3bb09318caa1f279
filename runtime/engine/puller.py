"""Claims jobs for the slots: never more than are free, never sooner than something is known to be due."""

import math
from collections.abc import Callable, Sequence

import anyio

from runtime.core.job import Call
from runtime.engine.drought import Drought
from runtime.engine.lookout import Lookout, Queue
from runtime.engine.slots import Slots
from runtime.ports import Away, Journal, Pulled, Source

MOST_AT_ONCE = 50
"""Most jobs in one claim: the server serves nobody else meanwhile. Half of a hundred slots, too: while some jobs run,
the server leases the others."""
FAR_S = 0.008
MOST_FROM_AFAR = 100
"""Most jobs in one claim where the last one took longer than that: then it is the way there that counts."""
LEAST_WAIT_S = 0.05
"""After a claim that found nothing although something is due: others were quicker, or a clock is at its edge."""
LISTEN_S = 180.0
"""The longest wait for an announcement. What is due before is found by the lookout, for a command and not four."""
UNHEARD_S = 0.25
"""While a backlog elsewhere keeps the puller from listening to announcements, a queue is asked this often."""
LOST_RETRY_S = (0.1, 1.0)
"""From one attempt to the next while the store is away: work is to go on within 5 s of its coming back, and of these
owners may need half."""
FIRST_CLAIM_S = 0.3
"""How long the very first claim is waited for when the worker is told to stop meanwhile: the store may not be there."""


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
        self._queues = [Queue(name) for name in queues]
        self._names = list(queues)
        self._lookout = Lookout(tuple(self._queues), source, lease_s)
        self._slots = slots
        self._source = source
        self._journal = journal
        self._lease_s = lease_s
        self._backlog = backlog
        self._drought = drought
        self._heard_at = -math.inf
        self._strays = False
        """The wait that is or was under way may have claimed what we have not heard of."""
        self._retry_s = LOST_RETRY_S[0]
        self._rest = anyio.CancelScope()
        self._most = MOST_AT_ONCE
        self._woken = False
        self._claiming = anyio.CancelScope()
        self._draining = False
        self._paused = False
        self._goes_on = anyio.Event()
        self._resting = anyio.Event()
        self._turn_at: float | None = None

    @property
    def turn_at(self) -> float | None:
        """When the last turn or look was completed, monotonic; None before the first turn. Liveness is progress."""
        return None if self._turn_at is None else max(self._turn_at, self._lookout.looked_at)

    def drain(self) -> None:
        """Claim no more; `run` returns soon."""
        self._draining = True
        self.resume()
        self._stir()
        if self._turn_at is None:
            self._claiming.deadline = min(self._claiming.deadline, anyio.current_time() + FIRST_CLAIM_S)

    async def pause(self) -> None:
        """Claim nothing until `resume`; returns when no claim is on its way and nothing is listened to."""
        self._paused = True
        self._stir()
        await self._resting.wait()
        await self._lookout.rest()

    def resume(self) -> None:
        """Go on, with a look at every queue."""
        self._paused = False
        self._goes_on.set()

    def wake(self) -> None:
        """Look at every queue now, or as soon as there is room. Not while the store is away: owners go first then."""
        self._woken = True
        self._source.rouse(self._names)

    def expect(self, queue: str, in_s: float) -> None:
        """Something of `queue` will be due then, as this worker has said itself."""
        self._lookout.expect(queue, in_s)

    async def run(self) -> None:
        """Claim until drained. Run `look_out` beside it."""
        try:
            while not self._draining:
                if self._paused:
                    await self._stand_still()
                try:
                    await self._turn()
                except Away as cause:
                    await self._ride_out(cause)
            if self._strays:
                await self._collect_strays()
        finally:
            self._resting.set()  # for whoever waits for a pause

    async def _collect_strays(self) -> None:
        """What the last wait may have claimed, which did not end as it should, is given back."""
        with anyio.move_on_after(FIRST_CLAIM_S):
            for name in self._names:
                try:
                    self._take(await self._source.claim(name, 0))
                except Away:
                    return

    async def look_out(self) -> None:
        """Until cancelled."""
        await self._lookout.run()

    def _stir(self) -> None:
        self._rest.cancel()
        self._source.rouse(self._names)

    async def _stand_still(self) -> None:
        self._goes_on = anyio.Event()
        self._resting.set()
        await self._goes_on.wait()
        self._resting = anyio.Event()
        self._forget_due_times()

    async def _turn(self) -> None:
        with anyio.CancelScope() as self._rest:
            if self._stopped:
                return
            await self._room()
            for queue in self._due():
                await self._claim(queue)
            self._turn_at = anyio.current_time()
            await anyio.sleep(0)  # what was just started goes before the question for more
        if self._slots.free and not self._due() and not self._stopped:
            await self._idle()
        self._retry_s = LOST_RETRY_S[0]

    @property
    def _stopped(self) -> bool:
        return self._draining or self._paused

    async def _room(self) -> None:
        # Outcomes that the store has not taken yet are held jobs too: their number is bounded like the slots'.
        while not self._slots.free or self._backlog() > max(self._slots.size, MOST_AT_ONCE):
            await self._slots.changed()

    def _due(self) -> list[Queue]:
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

    async def _claim(self, queue: Queue) -> None:
        room = min(self._slots.free, self._most)
        if not room or self._stopped:
            return
        dry_until = self._drought.until(queue.name)
        if dry_until is not None:
            if dry_until > anyio.current_time():
                queue.due_at = queue.look_at = dry_until
                return
            self._drought.trying(queue.name)
            room = 1
        self._goes_last(queue)  # also if its claim fails
        # Jobs whose claim is not heard of would wait for their lease to lapse.
        pulled: Pulled | None = None
        asked_at = anyio.current_time()
        with anyio.CancelScope(shield=True) as self._claiming:
            pulled = await self._source.claim(queue.name, room)
        self._most = MOST_AT_ONCE if anyio.current_time() - asked_at < FAR_S else MOST_FROM_AFAR
        if pulled is not None:  # else cancelled
            self._take(pulled)

    def _goes_last(self, queue: Queue) -> None:
        """Taken in turn: the queue that was asked is asked last next time."""
        self._queues.remove(queue)
        self._queues.append(queue)

    def _take(self, pulled: Pulled) -> None:
        # A claim whose reply was lost brings its jobs again, when another queue may have taken the slots.
        self._strays = False
        free = 0 if self._draining else self._slots.free
        self._slots.start(pulled.claims[:free])
        self._slots.decline(pulled.claims[free:], "shutdown" if self._draining else "no-slot")
        (queue,) = (queue for queue in self._queues if queue.name == pulled.queue)
        self._goes_last(queue)
        self._learn(queue, pulled)

    def _learn(self, queue: Queue, pulled: Pulled) -> None:
        foreign = any(isinstance(claim.call, Call) and claim.call.foreign for claim in pulled.claims)
        self._lookout.asked(queue, foreign=foreign)
        now = queue.asked_at
        if pulled.more:
            queue.due_at = now if pulled.claims else now + LEAST_WAIT_S
        else:
            queue.due_at = math.inf if pulled.due_in_s is None else now + max(pulled.due_in_s, LEAST_WAIT_S)

    async def _idle(self) -> None:
        """Rest until there is something to do, or until woken."""
        soon_s = min(queue.due_at for queue in self._queues) - anyio.current_time()
        if soon_s <= LEAST_WAIT_S:
            await anyio.sleep(soon_s)
        elif not self._woken:
            await self._lookout.beside(self._listen)
        if self._woken:
            self._woken = False
            self._forget_due_times()

    def _forget_due_times(self) -> None:
        for queue in self._queues:
            queue.due_at = -math.inf

    async def _listen(self) -> None:
        """Wait for an announcement, or to be roused, and claim."""
        names = [queue.name for queue in self._queues]  # in their order
        room = self._room_for_any()
        self._strays = room > 0
        announced = await self._source.wait(names, LISTEN_S, room, self._take)
        self._heard_at = anyio.current_time()
        for queue in self._queues:
            if queue.name == announced or self._strays:
                queue.due_at = self._heard_at

    def _room_for_any(self) -> int:
        """Room for jobs of any queue; none while one of them is dry."""
        dry = any(self._drought.until(queue.name) is not None for queue in self._queues)
        return 0 if dry else min(self._slots.free, self._most)

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
            if anyio.current_time() - lost_at > self._lease_s / 2 and not self._stopped:
                # Their keepers extend within a quarter of a lease; whoever claims before that runs their jobs twice.
                await anyio.sleep(self._lease_s / 4)
        self._forget_due_times()
