"""Looks for jobs that nobody announces, while the puller listens for those that somebody does."""

import math
from collections.abc import Awaitable, Callable, Sequence

import anyio

from runtime.core.look import look_every_s
from runtime.core.values import record
from runtime.ports import Away, Source

GATHER_S = 0.005
"""From the news that a job was written to the look for it: one that is announced is somebody else's by then."""
USELESS_NEWS_S = 0.1
"""News that led to no job are followed no sooner than this after the look; each time, that doubles."""


@record
class Queue:
    """What is known of a queue. All times are monotonic."""

    name: str
    due_at: float = -math.inf
    """Something is due then."""
    look_at: float = -math.inf
    """To be looked at then, for jobs that nobody announces."""
    asked_at: float = -math.inf
    """The last claim."""
    foreign_at: float = -math.inf
    """When the last job of a producer that announces nothing was found."""


class Lookout:
    """Run it beside the puller: it keeps `look_at` and `due_at` of the `queues` while one listens."""

    def __init__(self, queues: Sequence[Queue], source: Source, lease_s: float) -> None:
        self._queues = queues
        self._source = source
        self._lease_s = lease_s
        self._started_at = anyio.current_time()
        self._wanted = anyio.Event()
        self._resting = anyio.Event()
        self._resting.set()
        self._step = anyio.CancelScope()
        self._pause = anyio.CancelScope()
        self._until = math.inf
        self._lost: Away | None = None
        self._heard = 0
        self._follow_at = -math.inf
        """News are followed no sooner."""
        self._useless_s = USELESS_NEWS_S
        self._following = False
        """The next look is on the account of news."""
        self.looked_at = -math.inf

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._resting.set()
                await self._wanted.wait()
                self._resting = anyio.Event()
                with anyio.CancelScope() as self._step:
                    await self._look_out()
        finally:
            self._resting.set()

    async def beside(self, listen: Callable[[], Awaitable[None]]) -> None:
        """Await `listen`, which is roused as soon as something is due. Raises `Away` also where a look does."""
        self._lost = None
        self._wanted.set()
        if self._next_at() < self._until:
            self._pause.cancel()
        try:
            await listen()
        finally:
            self._cease()
        if self._lost is not None:
            raise self._lost

    async def rest(self) -> None:
        """Return when no look is under way; with the next call of `beside` it goes on."""
        self._step.cancel()
        await self._resting.wait()

    def expect(self, name: str, in_s: float) -> None:
        """Something of the queue of this name will be due then, or sooner."""
        for queue in self._queues:
            if queue.name == name:
                queue.due_at = min(queue.due_at, anyio.current_time() + in_s)
        self._pause.cancel()

    def asked(self, queue: Queue, *, foreign: bool) -> None:
        """A claim was answered; whether there was a job that nobody had announced."""
        now = queue.asked_at = anyio.current_time()
        if foreign:
            queue.foreign_at = now
            self._follow_at, self._useless_s = -math.inf, USELESS_NEWS_S
        queue.look_at = now + self._look_every_s(queue, now)

    def _cease(self) -> None:
        if self._wanted.is_set():  # else somebody may wait for this very event
            self._wanted = anyio.Event()

    def _next_at(self) -> float:
        return min(min(queue.due_at, queue.look_at) for queue in self._queues)

    async def _look_out(self) -> None:
        self._until = self._next_at()
        with anyio.CancelScope(deadline=self._until) as self._pause:
            self._heard = await self._source.news(self._heard)
        if not self._pause.cancelled_caught:
            self._follow_news()
        elif self._wanted.is_set():  # somebody listens still
            try:
                await self._look()
            except Away as cause:
                self._lost = cause
        if self._lost or self._next_due_at() <= anyio.current_time():
            self._source.rouse([queue.name for queue in self._queues])
            self._cease()

    def _next_due_at(self) -> float:
        return min(queue.due_at for queue in self._queues)

    def _follow_news(self) -> None:
        at = max(anyio.current_time() + GATHER_S, self._follow_at)
        for queue in self._queues:
            self._following |= at <= queue.look_at
            queue.look_at = min(queue.look_at, at)

    async def _look(self) -> None:
        """At the queues for which it is time. What was due may be a lease that has been extended since."""
        now = anyio.current_time()
        for queue in self._queues:
            if min(queue.look_at, queue.due_at) <= now:
                queue.look_at = now + self._look_every_s(queue, now)
                known = (queue.asked_at, queue.due_at)
                due_in_s = await self._source.due_in(queue.name)
                now = self.looked_at = anyio.current_time()
                if known == (queue.asked_at, queue.due_at):  # else more is known than the look could see
                    queue.due_at = math.inf if due_in_s is None else now + due_in_s
        following, self._following = self._following, False
        if following and self._next_due_at() > now:
            self._follow_at = now + self._useless_s
            self._useless_s = min(2 * self._useless_s, self._look_every_s(self._queues[0], now))

    def _look_every_s(self, queue: Queue, now: float) -> float:
        since_start_s = now - self._started_at
        hears, most_s = self._source.hears, self._source.look_s
        return look_every_s(now - queue.foreign_at, since_start_s, self._lease_s, hears=hears, most_s=most_s)
