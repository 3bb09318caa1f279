"""What goes with a worker and no job waits for: imported, made and begun after the first look for jobs.

retinue
  ├─ governor: puts the worker to sleep, and wakes it
  ├─ heartbeats
  ├─ presence: counted among those who are awake, and told at once of runs that are to stop
  ├─ ear: hears the server tell of jobs that anybody writes
  ├─ scheduler, where handlers have schedules
  ├─ what is done once: jobs that waited for this worker, limits that nobody has used yet
  └─ HTTP server
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from runtime import registry
from runtime.adapters.aside import Aside
from runtime.adapters.egress import Egress
from runtime.adapters.http.sessions import AiohttpSessions
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.connection import lent
from runtime.adapters.redis.heartbeats import Heartbeats
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.permits import RedisPermits
from runtime.adapters.redis.presence import Presence
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.redis.weather import Weather
from runtime.adapters.telemetry.logs import Log, LogJournal, beside
from runtime.adapters.telemetry.traces import Traces
from runtime.bulletins import Bulletins
from runtime.client import Client
from runtime.core.limits import Bucket
from runtime.engine.governor import Governor
from runtime.engine.lifetime import Lifetime
from runtime.engine.pools import Pools
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor
from runtime.groups import Group
from runtime.health import Health
from runtime.ports import Away
from runtime.registry import Handlers
from runtime.settings import Settings
from runtime.silence import Silence

if TYPE_CHECKING:
    from runtime.adapters.http.server import HttpServer
    from runtime.desk import Desk

IMPORTS_AFTER_S = 0.3
"""What takes long to import (the HTTP server, a quarter of a second; what handlers log with) waits for the jobs of the
first look, and not longer than this."""
_imports = Aside("import", 1)

AGAIN_S = 60.0
"""After a bug of ours in firing schedules: what is due then is not lost."""


def _http_parts() -> "tuple[type[HttpServer], type[Desk]]":
    """What only the HTTP server needs, and what takes most of its time."""
    from runtime.adapters.http.server import HttpServer
    from runtime.desk import Desk

    return HttpServer, Desk


class Retinue:
    """Made of the worker's other parts. That it is made is told as the worker's boot, before anything else of it."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        handlers: Handlers,
        groups: Sequence[Group],
        buckets: Sequence[Bucket],
        log: Log,
        listener: socket.socket | None,
        egress: Egress,
        statistics: Statistics,
        weather: Weather,
        supervisor: Supervisor,
        source: RedisSource,
        keeper: LeaseKeeper,
        limits: RedisLimits,
        permits: RedisPermits,
        client: Client,
        sessions: AiohttpSessions,
        pools: Pools,
        lifetime: Lifetime,
        traces: Traces | None,
        serializer: Serializer | None,
    ) -> None:
        self._settings = settings
        self._serializer = serializer
        self._handlers = handlers
        self._buckets = buckets
        self._queues = [queue for group in groups for queue in group.queues]
        self._schedules = registry.schedules(handlers, self._queues)
        self._log = log
        self._listener = listener
        self._egress = egress
        self._supervisor = supervisor
        self._source = source
        self._limits = limits
        self._client = client
        self._presence = Presence(url, self._queues, source.incarnation, keeper.look, egress.of("presence"))
        self._health = Health(
            supervisor.actors,
            sum(group.slots for group in groups),
            statistics,
            # What was cut off as it went quiet says nothing of Redis.
            lambda: None if self._governor.state == "quiet" else weather.away,
            self._probe,
            pools.statistics,
            lambda: self._governor,
            egress,
            lambda: source.paused,
        )
        self.bulletins = Bulletins(log, settings, groups, handlers, supervisor.actors, self._health, source)
        self._heartbeats = Heartbeats(
            lent(source.redis, egress.of("heartbeat")),
            source.incarnation,
            self.bulletins.heartbeat,
            limits.send_counts,
        )
        self._silence = Silence(
            self._queues,
            handlers,
            self._schedules,
            source,
            self._presence,
            keeper,
            permits,
            client,
            self._heartbeats,
            sessions,
            pools,
            lifetime,
            traces.flush_and_stop if traces is not None else None,
        )
        self._governor = Governor(
            supervisor,
            self._silence,
            statistics,
            lambda: weather.away,
            sleep_after_s=settings.sleep_after_s,
            alarm_s=settings.alarm_s,
            told=self.bulletins.state,
        )
        self.bulletins.boot(url)

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._beside, "going quiet", self._governor.run)
            group.start_soon(self._beside, "the heartbeat", self._beat)
            group.start_soon(self._follow_the_first_look, group)
            await self._unhurried()
            await _imports(self._log.take_structlog)
            if self._listener is not None:
                await self._serve_http(self._listener)

    def call(self) -> None:
        """This process has enqueued something for itself."""
        self._governor.call()

    def back(self) -> None:
        """Redis is back, and it may be another one: a replica has taken over."""
        self._presence.renew()

    def retire(self, why: str, grace_s: float) -> None:
        """The worker was told to stop, and drains: a producer is to ring for somebody else from now on."""
        self._governor.stop()
        self.bulletins.draining(why, grace_s)
        self._presence.retire()

    async def close(self) -> None:
        """Be known as gone."""
        await self._beside("leaving", self._heartbeats.leave)
        await self._beside("no longer being counted", self._presence.close)

    def _wake(self) -> None:
        """Somebody rang, or asked for something."""
        self._governor.call()
        self._supervisor.wake()

    async def _probe(self) -> None:
        """A worker that is quiet answers from memory."""
        if self._governor.state != "quiet":
            await self._source.probe()

    async def _beside(self, what: str, part: Callable[[], Awaitable[object]]) -> None:
        await beside(self._log, what, part)

    async def _follow_the_first_look(self, group: TaskGroup) -> None:
        """Begin what needs Redis, once it has been there to be looked into."""
        while not self._health.turned():
            await anyio.sleep(0.02)
        group.start_soon(self._beside, "being counted", self._presence.run)
        group.start_soon(self._beside, "listening", self._listen)
        group.start_soon(self._beside, "bringing jobs forward", self._bring_forward)
        group.start_soon(self._beside, "telling of the limits", self._tell_of_limits)
        group.start_soon(self._beside, "looking at what Redis deletes", self._warn_of_eviction)
        if self._schedules:
            group.start_soon(self._fire)

    async def _unhurried(self) -> None:
        """While something is imported all else stands still, 5 ms at a time."""
        with anyio.move_on_after(IMPORTS_AFTER_S):
            while self._health.running:
                await anyio.sleep(0.02)

    async def _bring_forward(self) -> None:
        """Jobs that waited for a worker that knows their handler need wait no longer: this may be the one."""
        for queue in self._queues:
            try:
                moved = await self._source.forward_known(queue, self._handlers.__contains__)
            except Away:
                return  # they come due by themselves
            if moved:
                self._log.info(
                    f"{moved} jobs of {queue} waited for a handler that is known now", event_name="JOBS_FORWARDED"
                )

    async def _tell_of_limits(self) -> None:
        """Operators see the limits that nobody has used yet."""
        with suppress(Away):
            await self._limits.tell_of(self._buckets)

    async def _warn_of_eviction(self) -> None:
        """Jobs that a full server deletes are missed by nobody."""
        with suppress(Away):
            policy = await self._source.eviction_policy()
            if policy not in (None, "noeviction"):
                self.bulletins.evicts(policy)

    async def _beat(self) -> None:
        await self._source.claimed.wait()
        while self._governor.state == "starting":  # the turn of that claim is about to end
            await anyio.sleep(0.02)
        await self._silence.while_speaking(self._heartbeats.run)

    async def _fire(self) -> None:
        from runtime.adapters.redis.schedules import RedisSchedules
        from runtime.engine.scheduler import Scheduler

        store = RedisSchedules(lent(self._source.redis, self._egress.of("schedules")), self._serializer)
        trouble = LogJournal(self._log, self._settings.log_level).trouble
        scheduler = Scheduler(self._schedules, store, self.bulletins.fired, lambda text: trouble(text, ""))
        while True:
            await self._beside("firing schedules", lambda: self._silence.while_speaking(scheduler.run))
            await anyio.sleep(AGAIN_S)

    async def _listen(self) -> None:
        await self._silence.while_speaking(self._source.listen)

    async def _serve_http(self, listener: socket.socket) -> None:
        http_server, desk_of = await _imports(_http_parts)
        desk = desk_of(self._client, self._handlers, self._queues, self._wake, self.call)
        tokens = self._settings.tokens
        row = self._egress.of("answers")
        server = http_server(self._health, self._wake, desk, tokens=tokens, log=self._log, row=row)
        try:
            port = await server.start(listener)
            self._log.info(f"Health check server listening on port {port}", event_name="HTTP_LISTENING")
            if not tokens:
                self._log.info("RUNTIME_TOKEN is not set: there is no /jobs and no /queues", event_name="JOB_API_OFF")
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await server.close()
