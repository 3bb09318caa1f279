"""A worker: everything of one that matters to its jobs, as `app.py` puts it together, in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.schedules import RedisSchedules
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.redis.weather import Weather
from runtime.adapters.runner import AsyncioRunner
from runtime.core.job import Call, Claim, Settlement, Verdict
from runtime.core.schedule import Move, Schedule
from runtime.engine.actor import Actor
from runtime.engine.scheduler import Scheduler
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor
from runtime.ports import Away, Ports
from tests.simulation.clock import Clock, Loop, Strand
from tests.simulation.jobs import TIMEOUT_S, Ending, entries

LEASE_S = 10.0
URL = "redis://simulated"
AT_ONCE_S = 0.01
"""A timeout strikes within so long, where the loop is not blocked."""


class Bug(Exception):
    """Nobody's plan."""


class Observer(Protocol):
    """Told of what workers do."""

    def begun(self, worker: Worker, job_id: str, token: str) -> int: ...

    def ended(self, worker: Worker, token: str, how: Ending) -> None: ...

    def heard(self, token: str) -> None: ...

    def told(self, worker: Worker, token: str, verdict: Verdict) -> None: ...

    def crashed(self, worker: Worker) -> None: ...

    def broken(self, worker: Worker, what: str) -> None:
        """Something that must never be."""

    def trouble(self, what: str) -> None:
        """Something that may cost a lease."""

    def said(self, what: str) -> None: ...


class Worker:
    """One process, from its start to its death. It is also its own `ports.Journal`, and the floor of its jobs."""

    def __init__(
        self, clock: Clock, name: str, queues: Sequence[str], size: int, observer: Observer, *, patience_s: float,
        schedules: Sequence[Schedule] = (),
    ) -> None:  # fmt: skip
        self._clock = clock
        self._observer = observer
        self._patience_s = patience_s
        self._schedules = schedules
        self.name = name
        self.queues = queues
        self.size = size
        self.loop = Loop(clock, lambda context: observer.broken(self, f"in its event loop: {context}"))
        self.strand: Strand | None = None
        self.keeper: LeaseKeeper | None = None
        self.clients: list[Any] = []
        self.supervisor: Supervisor | None = None
        self.alive = True
        """Neither killed nor ended."""
        self.stopped = False
        """No turn is taken."""
        self.draining = False
        self.replaced = False
        """Another one has been started in its stead, or will be."""
        self.quiet = False
        """It is told to claim nothing."""
        self.bug_in: int | None = None
        """After so many further runs one begins with a bug of ours."""
        self._due_at: dict[str, float] = {}
        """When each run reaches its timeout."""
        self._busy_until = -math.inf
        self._asides: list[asyncio.Task[None]] = []
        self._main = self.loop.create_task(self._run())

    # -- its life

    async def _run(self) -> None:
        self._weather = Weather()
        keeper = self.keeper = LeaseKeeper(URL, LEASE_S, self._hear_keeper)
        source = RedisSource(URL, lease_s=LEASE_S, keeper=keeper, weather=self._weather, waiters=1)
        source.incarnation = self.name
        nothing = cast(Any, None)
        ports = Ports(
            source, keeper, AsyncioRunner(), nothing, nothing, nothing, self, nothing, nothing, nothing, nothing
        )  # fmt: skip
        statistics = Statistics()

        def actor() -> Actor:
            return Actor(
                self.queues, self.size, entries(self, self.queues[0]), ports, statistics,
                lease_s=LEASE_S, timeout_s=300.0,
            )  # fmt: skip

        self.supervisor = Supervisor([actor], cast(Any, self))
        if self.draining:
            return
        keeper.start()
        firing = self.loop.create_task(self._fire(source))
        await self.supervisor.run()
        firing.cancel()
        if self.supervisor.failure is not None and self.alive:
            self._observer.broken(self, f"its supervisor gave up: {self.supervisor.failure!r}")
        keeper.close()
        if self.alive:
            self._observer.said(f"{self.name} has ended")
        self.alive = False

    async def _fire(self, source: RedisSource) -> None:
        if self._schedules:
            scheduler = Scheduler(self._schedules, RedisSchedules(source.redis), self._told_of_firing)
            try:
                await scheduler.run()
            except Exception as error:
                self._observer.broken(self, f"its scheduler died: {error!r}")

    def _told_of_firing(self, schedule: Schedule, move: Move, added: Sequence[bool], late_ms: int) -> None:
        if self.alive:
            self._observer.said(f"{self.name} has fired {schedule.name} for {[*move.fires]}, {late_ms} ms late")

    def call_off(self, token: str) -> None:
        """As `Presence` does when it is told that a run is to stop."""
        if self.keeper is not None and not self.stopped:
            self.keeper.look(token)

    def _hear_keeper(self, away: Away | None) -> None:
        if away is None:
            self._weather.answered("extend")
        else:
            self._weather.failed("extend", away)

    def drain(self) -> None:
        """As the first signal does; after its patience it hurries."""
        self.draining = True
        self._asides.append(self.loop.create_task(self._drain()))

    async def _drain(self) -> None:
        if self.supervisor is not None:
            self.supervisor.drain()
            await asyncio.sleep(self._patience_s)
            self.supervisor.hurry()

    def rest(self, length_s: float) -> None:
        """As the governor does before it goes quiet, and as it wakes."""
        if self.supervisor is not None and not self.quiet and not self.draining:
            self.quiet = True
            self._asides.append(self.loop.create_task(self._rest(self.supervisor, length_s)))

    async def _rest(self, supervisor: Supervisor, length_s: float) -> None:
        await supervisor.pause()
        await asyncio.sleep(length_s)
        supervisor.resume()
        self.quiet = False

    def kill(self) -> None:
        """It takes no turn from now on, and nothing that it does at the end of the history leaves it."""
        self.alive = False
        self.stopped = True
        for client in self.clients:
            client.dead = True

    def go_on(self, after_s: float, *, clock_stood: bool) -> None:
        """After it was stopped for so long, unless it was killed meanwhile."""
        if not self.alive:
            return
        self.stopped = False
        if clock_stood:
            self.loop.behind_s += after_s
            if self.strand is not None:
                self.strand.wake_at += after_s

    def end(self) -> None:
        """At the end of the history: leave nothing behind in this process."""
        self.kill()
        self.stopped = False
        if self.strand is not None:
            self.strand.end()
        tasks = asyncio.all_tasks(self.loop)
        while tasks:
            for task in tasks:
                task.cancel()
            for _ in range(20):
                self._clock.now = max(self._clock.now, min(self.loop.next_at(), self._clock.now + 60.0))
                self.loop.step()
            tasks = asyncio.all_tasks(self.loop)
        self.loop.close()

    # -- its turns

    def next_at(self) -> float:
        return math.inf if self.stopped else max(self.loop.next_at(), self._busy_until)

    def step(self) -> None:
        self.loop.step()

    def strand_at(self) -> float:
        return math.inf if self.stopped or self.strand is None else self.strand.next_at()

    @property
    def punctual(self) -> bool:
        """It sees to its schedules."""
        return bool(self._schedules) and not (self.loop.behind_s or self.stopped or self.draining or not self.alive)

    @property
    def free(self) -> int:
        """Slots that wait for a job. One whose clock stood takes what is due for not due yet, until its next claim."""
        if self.loop.behind_s:
            return 0
        if self.stopped or not self.alive or self.draining or self.quiet or self.supervisor is None:
            return 0
        return sum(actor.slots.free for actor in self.supervisor.actors)

    # -- its jobs

    def begun(self, job_id: str, token: str) -> int:
        return self._observer.begun(self, job_id, token)

    def over(self, token: str, how: Ending) -> None:
        if self.alive:
            late_s = self.loop.time() - self._due_at[token]
            if how == "cancelled" and late_s >= 0:
                how = "failed" if late_s < AT_ONCE_S else "overdue"
            self._observer.ended(self, token, how)

    def block(self, length_s: float) -> None:
        if self.alive:
            self._observer.trouble(f"{self.name} is blocked for {length_s} s")
            self._busy_until = self._clock.now + length_s

    # -- `ports.Journal`

    @contextmanager
    def within(self, claim: Claim, part: str | None = None) -> Generator[None]:
        yield

    def started(self, claim: Claim, running: int) -> None:
        assert isinstance(claim.call, Call)
        self._heard(claim)
        self._due_at[claim.token] = self.loop.time() + TIMEOUT_S[claim.call.handler]
        if self.bug_in is not None and self.alive:
            self.bug_in -= 1
            if self.bug_in < 0:
                self.bug_in = None
                self._observer.trouble(f"{self.name} has a bug as {claim.id} starts")
                raise Bug

    def _heard(self, claim: Claim) -> None:
        if self.alive:
            self._observer.heard(claim.token)

    def ended(self, settlement: Settlement, running: int) -> None:
        self._heard(settlement.claim)

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        if self.alive:
            self._observer.told(self, settlement.claim.token, verdict)

    def lost(self, claim: Claim) -> None:
        if self.alive:
            self._observer.said(f"{self.name} has lost {claim.id}")

    def stuck(self, claim: Claim) -> None:
        if self.alive:
            self._observer.said(f"{self.name}: {claim.id} does not stop")

    def weather(self, away: Away) -> None:
        if self.alive:
            self._observer.said(f"{self.name}: {away}")

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        if self.alive:
            self._observer.crashed(self)
            if not isinstance(error, Bug):
                self._observer.broken(self, f"its actor died: {error!r}")
