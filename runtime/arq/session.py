"""What an arq application has as long as its worker lives: ctx, its ArqRedis, the hooks, the health key, burst mode."""

import contextvars
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from anyio.abc import TaskGroup
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.cron import CronJob
from arq.jobs import Job
from redis.exceptions import RedisError

from runtime.adapters.redis import keys
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.telemetry.logs import Log
from runtime.arq import crons
from runtime.arq.application import MOST_JOBS, Application
from runtime.arq.functions import ArqFunction
from runtime.core.job import Settlement, Verdict
from runtime.core.lifespan import Lifespan
from runtime.core.policy import describe
from runtime.engine.statistics import Statistics
from runtime.ports import Pulled
from runtime.registry import Equipment, Handlers

OPEN_S = 600.0
"""How long on_startup may take, for which arq has no limit."""
HOOKS_S = 30.0
"""How long on_shutdown may take, together with the last after_job_end."""
LEAVE_S = 2.0
AGAIN_S = 1.0
"""From one attempt to the next while Redis is away."""
CLOCK_S = 10.0
"""The longest sleep until a moment of the wall clock, which may be set meanwhile."""
LEAST_HEALTH_S = 0.5
"""No sooner than after so long the health key is written again: arq looks at it once in a turn of its loop."""
LEAST_LOOK_S = 0.05
"""However short poll_delay is."""
LOOK_S = 0.1
"""In burst mode, how often is looked whether the queue is empty."""
ABORTS_S = 0.25
"""While jobs run, how often is looked whether arq's client has asked to abort one: arq looks every 0.5 s."""
MOST_AFTERWARDS = 100
"""So many after_job_end go on at once; then no job begins, as arq keeps the slot of each."""
MOST_RUNS = 10_000
"""So many runs are remembered for after_job_end. There are more only where leases were lost: those never come to it."""
_UNSET: Any = object()
_AWAY = (RedisError, OSError, TimeoutError)


class Session:
    """An application in one worker. It is told of that by `attach`, before its lifespan is opened."""

    def __init__(self, application: Application, *, burst: bool) -> None:
        self._application = application
        self._burst = burst or application.burst
        self._left = application.max_burst_jobs if self._burst and application.max_burst_jobs >= 0 else None
        """How many runs may still begin, in a burst of so many."""
        self.serializer = application.serializer
        self.environment = application.environment
        asked_s = application.poll_delay_s
        self.look_s = math.inf if asked_s is None else max(asked_s, LEAST_LOOK_S)
        self.handlers: Handlers = {
            name: ArqFunction(function, application, self) for name, function in application.functions.items()
        }
        self.ctx = application.ctx
        self._runs: dict[tuple[str, int], tuple[dict[Any, Any], contextvars.Context]] = {}
        """The ctx of each run until its outcome is stored, by job and attempt; and its context variables."""
        self._set_at_startup: Sequence[tuple[contextvars.ContextVar[Any], Any, Any]] = ()
        """The context variables that on_startup has changed: what they held before, and do now."""
        self._has_begun = False
        self._afterwards: TaskGroup | None = None
        self._going_on = 0
        self._one_ended = anyio.Event()
        self.equipment = Equipment((), self._lifespan(), ())
        self._health = b""

    # Runs

    async def enter(self, of_job: Mapping[str, Any]) -> dict[Any, Any]:
        """The ctx of a run that begins."""
        while self._going_on >= MOST_AFTERWARDS:
            self._one_ended = anyio.Event()
            await self._one_ended.wait()
        for variable, before, now in self._set_at_startup:
            if variable.get(_UNSET) is before:
                variable.set(now)
        ctx = {**self.ctx, **of_job}
        if self.has("after_job_end"):
            self._runs[of_job["job_id"], of_job["job_try"]] = ctx, contextvars.copy_context()
            if len(self._runs) > MOST_RUNS:
                del self._runs[next(iter(self._runs))]
        return ctx

    def leave(self, job_id: str, job_try: int) -> None:
        """A run is over but for its outcome. To be called in its task: after_job_end sees what it has set there."""
        run = job_id, job_try
        if run in self._runs:
            self._runs[run] = self._runs[run][0], contextvars.copy_context()

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        """The outcome of a run is stored; or refused, as another worker has the job, where its end is told then."""
        claim = settlement.claim
        run = self._runs.pop((claim.id, claim.attempt), None)
        if run is not None and verdict == "settled" and self._afterwards is not None:
            self._going_on += 1
            ctx, context = run
            context.run(self._afterwards.start_soon, self._after, ctx)

    async def _after(self, ctx: dict[Any, Any]) -> None:
        try:
            await self.try_hook("after_job_end", ctx)
        finally:
            self._going_on -= 1
            self._one_ended.set()

    def has(self, name: str) -> bool:
        """Whether there is a hook of this name."""
        return name in self._application.hooks

    async def hook(self, name: str, ctx: dict[Any, Any]) -> None:
        """Call it, if there is one. What it raises is told, and raised."""
        call = self._application.hooks.get(name)
        if call is None:
            return
        try:
            await call(ctx)
        except BaseException as error:
            self._tell(name, error)
            raise

    async def try_hook(self, name: str, ctx: dict[Any, Any]) -> None:
        """The same, and what it raises is told and no more: what it comes after stands."""
        with suppress(BaseException):  # also that it is cancelled: a timeout that comes now is too late to be the run's
            await self.hook(name, ctx)

    def _tell(self, name: str, error: BaseException) -> None:
        failure = describe(error)
        self._log.error(
            f"The hook {name} failed: {failure.error}: {failure.text}",
            event_name="HOOK_FAILED",
            hook=name,
            error_type=failure.error,
            exc_info=error,
        )

    # From before the first claim to the end of the last run, and again after each sleep

    def attach(
        self, url: str, statistics: Statistics, log: Log, call: Callable[[], None], drain: Callable[[], None]
    ) -> None:
        """`url` is where Redis is, unless the application has said how to connect. `call` is called where this process
        enqueues something by `ctx["redis"]`, `drain` when a burst is over."""
        self._url, self._statistics, self._log, self._call, self._drain = url, statistics, log, call, drain
        wanted = self._application.max_jobs
        if wanted is not None and wanted > MOST_JOBS:
            log.warning(f"max_jobs is {wanted}: no more than {MOST_JOBS} are run at once", event_name="SETTING_WARNING")

    def _lifespan(self) -> Lifespan[None]:
        async def application() -> AsyncGenerator[None]:
            async with self._opened():
                yield

        lifespan = Lifespan(application, open_s=OPEN_S, close_s=HOOKS_S)
        lifespan.name, lifespan.where = "on_startup", self._application.name
        return lifespan

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None]:
        redis = self.ctx["redis"] = await self._connect()
        try:
            await self._start_up()
            await self._run_at_startup(redis)
            async with anyio.create_task_group() as beside:
                for cron in self._crons:
                    if not cron.unique and cron.job_id is None:
                        beside.start_soon(self._enqueue_for_itself, redis, cron)
                beside.start_soon(self._tell_health, redis)
                if self._application.allow_abort_jobs:
                    beside.start_soon(self._look_for_aborts, redis)
                if self._burst:
                    beside.start_soon(self._end_burst, redis)
                async with anyio.create_task_group() as self._afterwards:
                    yield
                beside.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(HOOKS_S, shield=True):
                await self.try_hook("on_shutdown", self.ctx)  # as by arq also where on_startup has failed
            with anyio.move_on_after(LEAVE_S, shield=True), suppress(*_AWAY):
                await self._leave(redis)

    async def _start_up(self) -> None:
        """Runs begin in tasks of their own, and not, as with arq, in the context that on_startup has left."""
        before = contextvars.copy_context()
        await self.hook("on_startup", self.ctx)
        self._set_at_startup = [
            (variable, before.get(variable, _UNSET), now)
            for variable, now in contextvars.copy_context().items()
            if before.get(variable, _UNSET) is not now
        ]

    async def _connect(self) -> ArqRedis:
        """An ArqRedis as arq makes it, once Redis is there."""
        its = self._application
        if its.redis_pool is not None:
            return its.redis_pool
        while True:
            try:
                pool = await create_pool(its.redis_settings or settings_of(self._url))
            except _AWAY:  # arq has told, by its own log
                await anyio.sleep(AGAIN_S)
                continue
            return _Calling(
                pool.connection_pool,
                self._call,
                job_serializer=its.job_serializer,
                job_deserializer=its.job_deserializer,
                default_queue_name=its.queue,
                expires_extra_ms=its.expires_extra_ms,
            )

    # Cron jobs that are not for the scheduler, which fires each occurrence once for all workers

    @property
    def _crons(self) -> list[CronJob]:
        return [one for one in self._application.functions.values() if isinstance(one, CronJob)]

    async def _run_at_startup(self, redis: ArqRedis) -> None:
        if self._has_begun:  # it was asleep
            return
        self._has_begun = True
        now_ms = round(time.time() * 1000)
        for cron in self._crons:
            if cron.run_at_startup:
                job_id = cron.job_id or (f"{cron.name}:{now_ms}" if cron.unique else None)
                with suppress(*_AWAY):
                    await redis.enqueue_job(cron.name, _job_id=job_id, _queue_name=self._application.queue)

    async def _enqueue_for_itself(self, redis: ArqRedis, cron: CronJob) -> None:
        """Each worker of an application runs its own, at the times by its own clock, as with arq."""
        table = crons.times(cron, self._application.timezone)
        while True:
            due_ms = table.after(round(time.time() * 1000))
            while (left_s := due_ms / 1000 - time.time()) > 0:
                await anyio.sleep(min(left_s, CLOCK_S))
            with suppress(*_AWAY):
                await redis.enqueue_job(cron.name, _queue_name=self._application.queue)

    async def _leave(self, redis: ArqRedis) -> None:
        key = self._application.health_check_key
        if self._health and await redis.get(key) == self._health:  # else another worker tells of itself there
            await redis.delete(key)
        if self._application.redis_pool is None:
            await redis.aclose(close_connection_pool=True)

    async def _tell_health(self, redis: ArqRedis) -> None:
        """Write what `arq --check` reads."""
        every_s, statistics = max(self._application.health_check_interval_s, LEAST_HEALTH_S), self._statistics
        while True:
            try:
                queued = await redis.zcard(self._application.queue)
                self._health = (
                    f"{datetime.now():%b-%d %H:%M:%S} j_complete={statistics.succeeded} j_failed={statistics.failed} "
                    f"j_retried={statistics.retried} j_ongoing={statistics.running} queued={queued}"
                ).encode()
                await redis.set(self._application.health_check_key, self._health, px=round(1000 * (every_s + 1)))
            except _AWAY:
                await anyio.sleep(AGAIN_S)
            else:
                await anyio.sleep(every_s)

    async def _look_for_aborts(self, redis: Any) -> None:
        """arq's client leaves a flag, and tells nobody."""
        ask = redis.execute_command
        while True:
            await anyio.sleep(ABORTS_S)
            claims = self._keeper.claims()
            if not claims:
                continue
            with suppress(*_AWAY):
                flags = await ask("ZMSCORE", keys.ABORT, *(keys.id_bytes(one.id) for one in claims))
                for claim, flag in zip(claims, flags, strict=True):
                    if flag not in (None, claim.abort_ms):
                        self._keeper.look(claim.token)

    # Burst

    async def _end_burst(self, redis: Any) -> None:
        """When nothing is left but what other workers know: jobs that run or are deferred are still in the queue."""
        ask = redis.execute_command
        while self._left != 0:
            await anyio.sleep(LOOK_S)
            with suppress(*_AWAY):
                waiting = await ask("HVALS", keys.unknown(self._application.queue))
                others = sum(name.decode("utf-8", "replace") not in self.handlers for name in waiting)
                if await redis.zcard(self._application.queue) <= others:
                    break
        self._drain()

    def grant(self, room: int) -> int:
        """How much of `room` a claim may have; what it does not use is to be given back."""
        if self._left is None:
            return room
        granted = min(room, self._left)
        self._left -= granted
        return granted

    def give_back(self, room: int) -> None:
        if self._left is not None:
            self._left += room

    def source(self, *args: Any, keeper: LeaseKeeper, **options: Any) -> RedisSource:
        """The queue, as this session follows it."""
        self._keeper = keeper
        return _Followed(self, *args, keeper=keeper, **options)


class _Followed(RedisSource):
    """Tells a session what is claimed and settled."""

    def __init__(self, session: Session, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._session = session

    @property
    def look_s(self) -> float:
        return self._session.look_s

    async def claim(self, queue: str, room: int) -> Pulled:
        granted, used = self._session.grant(room), 0
        try:
            pulled = await super().claim(queue, granted)
            used = len(pulled.claims)
        finally:
            self._session.give_back(granted - used)
        return pulled

    async def wait(
        self, queues: Sequence[str], timeout_s: float, room: int, take: Callable[[Pulled], None]
    ) -> str | None:
        granted, used = self._session.grant(room), 0

        def count(pulled: Pulled) -> None:
            nonlocal used
            used = len(pulled.claims)
            take(pulled)

        try:
            return await super().wait(queues, timeout_s, granted, count)
        finally:
            self._session.give_back(granted - used)

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        verdicts = await super().settle(queue, batch)
        for settlement, verdict in zip(batch, verdicts, strict=True):
            self._session.settled(settlement, verdict)
        return verdicts


class _Calling(ArqRedis):
    """An ArqRedis whose jobs this process need not find by looking."""

    def __init__(self, pool: Any, call: Callable[[], None], **options: Any) -> None:
        super().__init__(pool, **options)
        self._call = call

    async def enqueue_job(
        self, function: str, *args: Any, _defer_until: datetime | None = None, **options: Any
    ) -> Job | None:
        if _defer_until is not None and _defer_until.timestamp() < time.time():
            _defer_until = None  # arq would write a body that has expired, if it is a day ago, and an id without one
        job = await super().enqueue_job(function, *args, _defer_until=_defer_until, **options)
        self._call()
        return job


def settings_of(url: str) -> RedisSettings:
    """A URL of ours as arq connects by it."""
    settings, parts = RedisSettings.from_dsn(url), urlsplit(url)
    settings.password = None if settings.password is None else unquote(settings.password)
    settings.username = None if not settings.username else unquote(settings.username)
    settings.ssl_check_hostname = True
    for name, value in parse_qsl(parts.query):
        if name == "ssl_cert_reqs":
            settings.ssl_cert_reqs, settings.ssl_check_hostname = value, value != "none"
        elif name.startswith("ssl_"):
            setattr(settings, name, value)
    return settings
