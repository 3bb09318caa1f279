"""Settles outcomes by the batch: while one call is in flight, the next batch gathers."""

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from runtime.core.job import Settlement, Verdict
from runtime.ports import Away, Journal, Source

BATCH = 100
"""Most outcomes in one call: the server serves nobody else meanwhile."""
RETRY_S = (0.1, 1.0)
"""From one attempt to the next while the store is away."""


class Settler:
    """A queue of outcomes and the loop that empties it. An outcome is kept until the store has answered for it."""

    def __init__(self, source: Source, journal: Journal, settled: Callable[[Settlement, Verdict], None]) -> None:
        self._source = source
        self._journal = journal
        self._settled = settled
        self._waiting: deque[Settlement] = deque()
        self._in_flight: Sequence[Settlement] = ()
        self._some = anyio.Event()
        self._closed = False
        self.finished = anyio.Event()
        """Set when closed and all is settled."""

    @property
    def backlog(self) -> int:
        """Outcomes the store has not answered for."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def unsettled(self) -> list[Settlement]:
        """These outcomes, in their order."""
        return [*self._in_flight, *self._waiting]

    def put(self, settlement: Settlement) -> None:
        self._waiting.append(settlement)
        self._some.set()

    def close(self) -> None:
        """Nothing more will be put; `run` ends when all is settled."""
        self._closed = True
        self._some.set()

    async def run(self) -> None:
        """Settle until closed and empty. Cancelling it keeps what is not settled, for another `run`."""
        while self.backlog or not self._closed:
            if not self.backlog:
                self._some = anyio.Event()
                await self._some.wait()
                continue
            # A batch that was cut short by a cancellation is the first to be sent again, unchanged: it settles once.
            self._in_flight = self._in_flight or self._next_batch()
            verdicts = await self._send(self._in_flight)
            batch, self._in_flight = self._in_flight, ()
            for settlement, verdict in zip(batch, verdicts, strict=True):
                self._settled(settlement, verdict)
        self.finished.set()

    def _next_batch(self) -> Sequence[Settlement]:
        """The oldest outcomes of the queue whose turn it is, in their order; the others keep theirs."""
        queue = self._waiting[0].claim.queue
        batch: list[Settlement] = []
        others: list[Settlement] = []
        while self._waiting and len(batch) < BATCH:
            settlement = self._waiting.popleft()
            (batch if settlement.claim.queue == queue else others).append(settlement)
        self._waiting.extendleft(reversed(others))
        return batch

    async def _send(self, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        delay_s, most_s = RETRY_S
        while True:
            asked_at = anyio.current_time()
            try:
                return await self._source.settle(batch[0].claim.queue, batch)
            except Away as cause:
                self._journal.weather(cause)
                await anyio.sleep_until(asked_at + delay_s)
                delay_s = min(2 * delay_s, most_s)
