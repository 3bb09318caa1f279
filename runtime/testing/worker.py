"""A worker inside a test's event loop, of the parts that `runtime serve` is made of. It has no HTTP, no heartbeat, and
no signals; it lives as long as the test, or until it is killed; it claims only while it is told to run what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.exceptions import ConnectionError

from runtime.adapters.redis import codecs, keys
from runtime.adapters.redis.board import RedisBoard
from runtime.adapters.redis.connection import REPLY_S, connect_blocking
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.ledger import RedisLedger
from runtime.adapters.redis.permits import RedisPermits
from runtime.adapters.redis.presence import Presence
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.runner import AsyncioRunner
from runtime.apis import Apis
from runtime.core.job import Settlement, Verdict
from runtime.core.redaction import Redactor
from runtime.core.schedule import Move, Schedule
from runtime.engine.actor import Actor
from runtime.engine.scheduler import Scheduler
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor
from runtime.groups import Group
from runtime.ports import Away, Entry, Journal, Pools, Ports, Pulled, Sessions
from runtime.settings import Settings
from runtime.testing.clock import Clock, StillLimits
from runtime.testing.timetable import AgedSchedules

LOOK_S = 0.002
"""How often it is looked whether everything that was due has been run."""
KILLED = "this worker was killed by its test"


class Worker:
    """`run_due` as often as wanted; then `close`, whether it was killed or not."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        entries: Mapping[str, Entry],
        served: Sequence[Group],
        schedules: Sequence[Schedule],
        apis: Apis,
        clock: Clock,
        pools: Pools,
        sessions: Sessions,
        journal: Journal,
        state: Callable[[], Any],
    ) -> None:
        self._url = url
        self._settings = settings
        self._entries = entries
        self._groups = served
        self._keeper = LeaseKeeper(url, settings.lease_s, _nobody)
        serializer = codecs.named(settings.serializer)
        self._source = _Mortal(
            url,
            lease_s=settings.lease_s,
            keeper=self._keeper,
            waiters=max(1, len(served)),
            serializer=serializer,
        )
        redis = self._source.redis
        redact = Redactor(settings.secrets)
        self._board = RedisBoard(redis, self._keeper.holds, redact)
        self._permits = RedisPermits(url, redis, self._source.incarnation)
        self.ports = Ports(
            self._source,
            self._keeper,
            AsyncioRunner(),
            RedisLedger(redis),
            sessions,
            pools,
            journal,
            StillLimits(redis, clock),
            apis.find,
            self._permits,
            board=lambda: self._board,
            redact=redact,
            state=state,
        )
        store = AgedSchedules(redis, serializer, clock.ahead_ms)
        self._scheduler = Scheduler(schedules, store, _nobody_of_schedules) if schedules else None
        self._schedules = schedules
        self._statistics = Statistics()
        self._running: asyncio.Task[None] | None = None
        self._keeper.start()
        self._presence = Presence(url, self._queues, self._source.incarnation, self._keeper.look)
        self._beside = [asyncio.create_task(self._permits.run()), asyncio.create_task(self._presence.run())]

    @property
    def dead(self) -> bool:
        """It was killed."""
        return self._source.dead

    async def due_in_s(self) -> float | None:
        """Seconds until the first job of its queues is due, a lease on one, or a schedule; None: there is nothing."""
        due = await self._source.outlook(self._queues, self._entries, self._schedules)
        return None if due is None else max(0.0, due.in_s)

    async def run_due(self) -> None:
        """Run what is due, and what becomes due by that. Cancelled, it gives back what it runs.

        Returns as soon as the worker is dead. Raises `Away`, and what is wrong with the worker itself.
        """
        try:
            if self._scheduler is not None:
                await self._scheduler.turn()  # once: a schedule that is quicker than its handler would go on for ever
            while await self._jobs_are_due():
                await self._run_once()
        except Away:
            if not self.dead:
                raise

    async def _run_once(self) -> None:
        supervisor = Supervisor([self._actor_of(group) for group in self._groups], self.ports.journal)
        self._running = asyncio.create_task(supervisor.run())
        try:
            await self._until_nothing_is_due(supervisor, self._running)
            supervisor.drain()
            await asyncio.wait([self._running])
        finally:
            self._running.cancel()
            await asyncio.wait([self._running])
        if supervisor.failure is not None:
            raise supervisor.failure

    def lend_lease(self, job_id: str, token: str) -> None:
        """Hold a lease, to the end of the test, on a job that is in no queue."""
        with connect_blocking(self._url, reply_s=REPLY_S) as redis:
            redis.set(keys.of(keys.IN_PROGRESS, job_id), token)

    def kill(self) -> None:
        """Nothing that it does from now on reaches Redis: not what comes of its runs, nor that it has ended."""
        self._source.dead = True
        self._keeper.close()
        self._leave()
        redis = self._source.redis
        redis.connection_pool = _Severed(redis.connection_pool)
        if self._running is not None:
            self._running.cancel()

    async def close(self) -> None:
        """End it in good order, but for what was killed."""
        self._leave()
        await asyncio.wait(self._beside)
        await self._presence.close()
        if not self.dead:
            self._keeper.close()
            await self._board.close()
            await self._permits.close()
        await self._source.close()

    def _leave(self) -> None:
        for task in self._beside:
            task.cancel()

    @property
    def _queues(self) -> list[str]:
        return [queue for group in self._groups for queue in group.queues]

    def _actor_of(self, group: Group) -> Callable[[], Actor]:
        # New for each time: what one has learnt of the times at which something is due is not true after `advance`.
        settings = self._settings
        return lambda: Actor(
            group.queues,
            group.slots,
            self._entries,
            self.ports,
            self._statistics,
            lease_s=settings.lease_s,
            timeout_s=settings.timeout_s,
        )

    async def _until_nothing_is_due(self, supervisor: Supervisor, running: asyncio.Task[None]) -> None:
        while not running.done():
            await asyncio.sleep(LOOK_S)
            actors = supervisor.actors
            looked = actors and all(actor.puller.turn_at is not None for actor in actors)
            busy = any(actor.slots.claims or actor.unsettled for actor in actors)
            if looked and not busy and not await self._jobs_are_due():
                return

    async def _jobs_are_due(self) -> bool:
        due = await self._source.outlook(self._queues, self._entries, ())
        return due is not None and due.in_s <= 0


class _Mortal(RedisSource):
    """Knows when its worker is dead: then nothing is claimed, and no outcome is recorded."""

    dead = False

    async def claim(self, queue: str, room: int) -> Pulled:
        if self.dead:
            raise Away(KILLED)
        return await super().claim(queue, room)

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        return ["refused" for _ in batch] if self.dead else await super().settle(queue, batch)

    async def _spare_leases_after_a_restart(self, queue: str) -> None:
        """A server that has just come up is one that this test run has started."""


class _Severed:
    """In the place of the connections of a worker that is dead."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        raise ConnectionError(KILLED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def _nobody(away: Away | None) -> None:
    """Told of leases that cannot be extended. Whoever waits for them finds out by itself."""


def _nobody_of_schedules(schedule: Schedule, move: Move, added: Sequence[bool], late_ms: int) -> None:
    """Told of what was fired."""
