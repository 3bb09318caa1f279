"""The composition root: builds the adapters, starts the tree, owns the signals. The only module that knows everyone.

serve
  ├─ supervisor ─ actor (one per group of queues) ─ puller, slots, settler
  ├─ lease keeper, watchdog (threads)
  ├─ pools ─ a task for each item
  ├─ lifetime: the state of the handlers, opened before the first claim
  ├─ permits: those that were handed on to this worker, and those to give back
  ├─ retinue, after the first look for jobs: governor, heartbeats, HTTP server and others
  └─ signals:  first: drain until the grace is over · second: give back now · third: end now
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskGroup

from runtime.adapters import forks, threads
from runtime.adapters.egress import Egress
from runtime.adapters.http.sessions import AiohttpSessions
from runtime.adapters.loop import loop_factory
from runtime.adapters.redis import codecs
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.connection import lent
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.ledger import RedisLedger
from runtime.adapters.redis.permits import RedisPermits
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.redis.weather import Weather
from runtime.adapters.root import RootTask
from runtime.adapters.runner import AsyncioRunner
from runtime.adapters.telemetry import logs, traces
from runtime.apis import Apis
from runtime.client import Client, use
from runtime.core import lifespan
from runtime.core.errors import SettingsInvalid
from runtime.core.policy import describe
from runtime.core.redaction import Redactor
from runtime.engine.actor import Actor
from runtime.engine.lifetime import OBEY_S, Lifetime
from runtime.engine.middleware import within
from runtime.engine.pools import LAST_CLOSE_S, Pools
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor, bug_of
from runtime.groups import Group
from runtime.ports import Away, Ports
from runtime.registry import UNEQUIPPED, Equipment, Handlers
from runtime.settings import Settings
from runtime.standstill import Standstills

if TYPE_CHECKING:
    from runtime.adapters.redis.board import RedisBoard
    from runtime.retinue import Retinue

FIRST_LOOK_S = 0.3
"""The retinue waits for so long to hear what came of the first look for jobs."""
LET_GO_S = max(LAST_CLOSE_S, lifespan.CLOSE_S) + OBEY_S
"""How long is waited for the items of pools and a lifespan to close: what still goes on then does not obey."""
CLOSE_S = 5.0
"""How long connections may take to close."""
LEAVE_S = 1.0
"""How long the interpreter may take to end after that."""
SIGNALS_EVERY_S = 1.0
"""So often the worker sees to it that it is still the one who hears them."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DUMP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


class Guest(Protocol):
    """An application of another make that is served as it is: its functions are the handlers, and it has a lifespan."""

    @property
    def serializer(self) -> Serializer: ...

    def source(self, *args: Any, **options: Any) -> RedisSource:
        """A `RedisSource` of these arguments."""
        ...

    def attach(
        self, url: str, statistics: Statistics, log: logs.Log, call: Callable[[], None], drain: Callable[[], None]
    ) -> None:
        """Told before its lifespan opens. It is to `call` when it enqueues something, and may `drain` the worker."""


def serve(
    settings: Settings,
    url: str,
    handlers: Handlers,
    served: Sequence[Group],
    equipment: Equipment = UNEQUIPPED,
    guest: Guest | None = None,
) -> int:
    """Run a worker until it is told to stop; the exit code. Raises `SettingsInvalid` for a port that is taken.

    A Redis that cannot be reached is weather: the worker waits, says so, and goes on.
    """
    redact = Redactor(settings.secrets)
    log = logs.configure(settings.log_level, settings.log_format, settings.worker_id, redact=redact)
    for warning in settings.warnings:
        log.warning(warning, event_name="SETTING_WARNING")
    loop = loop_factory(settings.loop)
    listener = _listener(settings, guest, log)
    worker = Worker(settings, url, handlers, served, equipment, log, listener, redact, guest)
    with asyncio.Runner(loop_factory=loop) as runner:
        code = _run_to_its_end(runner.get_loop(), worker, log)
        logs.close()
        if worker.leaves_runs_behind:
            os._exit(code)  # their jobs may be running elsewhere by now
        # What else a handler left behind, a task that will not end or a thread that blocks, must not keep the process.
        end = threading.Timer(LEAVE_S, os._exit, [code])
        end.daemon = True
        end.start()
    return code


def _listener(settings: Settings, guest: Guest | None, log: logs.Log) -> socket.socket | None:
    """None without HTTP. A guest has asked for no port: where the usual one is taken, any will do for it."""
    if not settings.http:
        return None
    try:
        return listen(settings.port)
    except SettingsInvalid as problem:
        if guest is None or settings.port_said:
            raise
        listener = listen(0)
        log.warning(
            f"{problem.message}: HTTP is on port {listener.getsockname()[1]}; {problem.hint}",
            event_name="SETTING_WARNING",
        )
        return listener


def _run_to_its_end(loop: asyncio.AbstractEventLoop, worker: "Worker", log: Any) -> int:
    """Run it, whatever tasks that handlers have started do: asyncio lets their SystemExit end the event loop."""
    task = RootTask(worker.run(), loop=loop, cancelled_by=worker.cancelled_by)
    while True:
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:  # by no run: see `RootTask`
            log.error(
                "Worker crashed: a lifespan, a pool or what they have started has cancelled its tasks",
                event_name="WORKER_CRASH",
                data={"error": "its tasks were cancelled", "error_type": "Cancelled"},
            )
            return 1
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            if task.done():
                raise
            log.error(
                f"A task or callback that a handler started tried to end the process: {describe(error).error}",
                event_name="EXIT_REFUSED",
            )


def listen(port: int) -> socket.socket:
    """A socket that listens on `port`, for IPv6 and IPv4; requests wait in it until the server is up."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise SettingsInvalid(
            f"cannot listen on port {port}",
            cause=os.strerror(error.errno) if error.errno else str(error),
            hint="set PORT to a free one, or RUNTIME_HTTP=off",
        ) from None


class Worker:
    """One worker process, from boot to shutdown."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        handlers: Handlers,
        served: Sequence[Group],
        equipment: Equipment,
        log: Any,
        listener: socket.socket | None,
        redact: Redactor,
        guest: Guest | None,
    ) -> None:
        self._settings = settings
        self._url = url
        self._handlers = handlers
        self._groups = served
        self._entries = within(handlers, equipment.middleware)
        self._buckets = equipment.buckets
        self._lifespan = equipment.lifespan
        self._log = log
        self._listener = listener
        self._redact = redact
        self._guest = guest
        self._journal = logs.LogJournal(log, settings.log_level)
        self._egress = Egress()
        self._traces = self._make_traces()
        self._statistics = Statistics()
        self._signals: asyncio.Queue[int] = asyncio.Queue(maxsize=3)
        self._stop_signals = list(STOP_SIGNALS)
        self._told: list[int] = []
        self._failure: Exception | None = None
        self._serializer = codecs.named(settings.serializer) if guest is None else guest.serializer
        if self._serializer is not None and self._serializer.runs_code:
            log.warning(
                f"RUNTIME_SERIALIZER={self._serializer.name} is trusted: who can write to this Redis can run code here",
                event_name="SERIALIZER_TRUSTED",
            )

    async def run(self) -> int:
        """Until stopped; the exit code."""
        settings = self._settings
        lease_s = settings.lease_s
        self._weather = Weather(self._hear_back)
        egress = self._egress
        self._keeper = LeaseKeeper(self._url, lease_s, self._hear_keeper, egress.of("leases"))
        make_source = RedisSource if self._guest is None else self._guest.source
        self._source = make_source(
            self._url,
            lease_s=lease_s,
            keeper=self._keeper,
            weather=self._weather,
            waiters=len(self._groups),
            on_trouble=self._journal.trouble,
            serializer=self._serializer,
            egress=egress,
        )
        self._sessions = AiohttpSessions(egress)
        self._pools = Pools(lambda text: self._log.warning(text, event_name="POOL_TROUBLE"))
        self._lifetime = Lifetime(
            self._lifespan, self._without_state, lambda text: self._log.warning(text, event_name="LIFESPAN_TROUBLE")
        )
        threads.allow(sum(group.slots for group in self._groups))
        self._client = Client(
            self._url,
            serializer=self._serializer,
            wake_urls=settings.wake_urls,
            bells=dict.fromkeys(self._queues, self._call),
            egress=egress,
        )
        use(self._client)
        ledger = RedisLedger(self._source.redis)
        journal = self._traces or self._journal
        self._limits = RedisLimits(lent(self._source.redis, egress.of("limits")))
        permits = egress.of("permits")
        self._permits = RedisPermits(
            self._url, lent(self._source.redis, permits), self._source.incarnation, self._journal.trouble, permits
        )
        ports = Ports(
            self._source,
            self._keeper,
            AsyncioRunner(),
            ledger,
            self._sessions,
            self._pools,
            journal,
            self._limits,
            Apis(self._buckets).find,
            self._permits,
            lambda: self._board,
            self._redact,
            self._lifetime.state,
        )
        self._supervisor = Supervisor([self._actor_of(group, ports) for group in self._groups], journal)
        self._standstills = Standstills(
            self._supervisor.actors,
            self._url,
            settings.lease_s,
            settings.block_limit_s,
            self._log,
            serializer=self._serializer,
        )
        if self._guest is not None:
            self._guest.attach(self._url, self._statistics, self._log, self._call_here, self._supervisor.drain)
        self._listen_to_signals()
        self._keeper.start()
        self._standstills.watch()
        pooled = asyncio.create_task(self._beside("keeping the pools", self._pools.run))
        lived = asyncio.create_task(self._beside("keeping the state", self._lifetime.run))
        try:
            await self._serve()
        except Exception as error:  # a bug of ours outside of the actors, which have given their jobs back
            self._failure = bug_of(error)
        finally:
            self._pools.close()
            self._lifetime.end()
            await asyncio.wait([pooled, lived], timeout=max(LET_GO_S, self._lifetime.close_s + OBEY_S))
            with anyio.move_on_after(CLOSE_S, shield=True):
                await self._close()
        failure = self._failure or self._supervisor.failure
        bulletins = self._retinue.bulletins
        bulletins.unsettled()
        if failure is not None:
            bulletins.crash(failure)
            return 1
        bulletins.shutdown(signal.Signals(self._told[0]).name if self._told else "done")
        return 0 if len(self._told) < 2 else 128 + self._told[1]

    async def _serve(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._obey_signals, group)
            group.start_soon(self._keep_signals)
            group.start_soon(self._beside, "handing permits on", self._permits.run)
            group.start_soon(self._have_retinue)
            await self._lifetime.open()
            await self._supervisor.run()
            group.cancel_scope.cancel()

    @property
    def _queues(self) -> Sequence[str]:
        return [queue for group in self._groups for queue in group.queues]

    @cached_property
    def _retinue(self) -> "Retinue":
        """Made when it is first needed: after the first look for jobs, or when the worker is told to stop before it."""
        from runtime.retinue import Retinue

        return Retinue(
            self._settings,
            self._url,
            self._handlers,
            self._groups,
            self._buckets,
            self._log,
            self._listener,
            self._egress,
            self._statistics,
            self._weather,
            self._supervisor,
            self._source,
            self._keeper,
            self._limits,
            self._permits,
            self._client,
            self._sessions,
            self._pools,
            self._lifetime,
            self._traces,
            self._serializer,
        )

    @cached_property
    def _board(self) -> "RedisBoard":
        """Made when a handler first tells of its progress."""
        from runtime.adapters.redis.board import RedisBoard

        row = self._egress.of("progress")
        return RedisBoard(lent(self._source.redis, row), self._keeper.holds, self._redact)

    async def _have_retinue(self) -> None:
        with anyio.move_on_after(FIRST_LOOK_S):
            while not (self._weather.failing or any(actor.puller.turn_at for actor in self._supervisor.actors)):
                await anyio.sleep(0.02)
        await self._retinue.run()

    def _call(self) -> None:
        """This process has enqueued something for itself: nobody else rings for it."""
        if "_retinue" in vars(self):  # else it has not looked for jobs yet
            self._retinue.call()

    def _call_here(self) -> None:
        """The same, of what is most likely for this worker."""
        self._call()
        self._supervisor.wake()

    def _without_state(self, failure: Exception) -> None:
        """Handlers cannot run: whatever is held is for another worker."""
        self._failure = self._failure or failure
        self._supervisor.hurry()

    def cancelled_by(self, token: str) -> None:
        """The run of this token cancels all tasks. Does not return."""
        self._standstills.cancelled_by(token)

    async def _beside(self, what: str, part: Callable[[], Awaitable[object]]) -> None:
        await logs.beside(self._log, what, part)

    @property
    def leaves_runs_behind(self) -> bool:
        """Handlers that would not stop still run; their jobs have been given back."""
        return any(actor.slots.stuck for actor in self._supervisor.actors)

    def _actor_of(self, group: Group, ports: Ports) -> Callable[[], Actor]:
        settings = self._settings
        return lambda: Actor(
            group.queues,
            group.slots,
            self._entries,
            ports,
            self._statistics,
            lease_s=settings.lease_s,
            timeout_s=settings.timeout_s,
        )

    def _hear_back(self, away_s: float) -> None:
        self._journal.back(away_s)
        if "_retinue" in vars(self):
            self._retinue.back()

    def _hear_keeper(self, away: Away | None) -> None:
        if away is None:
            self._weather.answered("extend")
        else:
            self._weather.failed("extend", away)
            self._journal.weather(away)

    def _make_traces(self) -> traces.Traces | None:
        """What makes traces, where the environment or a handler module wants them."""
        settings = self._settings
        if not settings.traced and not traces.set_up_by_others():
            return None
        if not traces.installed():
            self._log.warning(
                "Traces are wanted (OTEL_EXPORTER_OTLP_ENDPOINT) but OpenTelemetry is not installed: "
                "pip install 'runtime-worker[otlp]'",
                event_name="SETTING_WARNING",
            )
            return None
        about = {
            "service.name": settings.service or "runtime-worker",
            "service.version": settings.version if settings.version != "unknown" else None,
            "service.instance.id": settings.worker_id,
            "deployment.environment.name": settings.environment,
            "cloud.region": settings.region,
        }
        return traces.Traces(
            self._journal,
            self._handlers,
            url=self._url,
            worker_id=settings.worker_id,
            resource={name: value for name, value in about.items() if value is not None},
            warn=lambda text: self._log.warning(text, event_name="SETTING_WARNING"),
            row=self._egress.of("traces"),
        )

    async def _close(self) -> None:
        self._standstills.close()
        self._keeper.close()
        if "_board" in vars(self):
            await self._beside("showing progress no more", self._board.close)
        await self._retinue.close()
        await self._beside("closing the HTTP sessions", self._sessions.close)
        await self._beside("closing the client", self._client.close)
        await self._beside("giving permits back", self._permits.close)
        await self._beside("closing the connections to Redis", self._source.close)
        if self._traces is not None:
            await self._beside("sending the last spans", self._traces.flush_and_stop)

    def _listen_to_signals(self) -> None:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # which nohup asks for
            self._stop_signals.remove(signal.SIGHUP)
        self._take_stop_signals()
        loop = asyncio.get_running_loop()
        for number in DUMP_SIGNALS:
            loop.add_signal_handler(number, self._dump_tasks)
        forks.leave_signals([*self._stop_signals, *DUMP_SIGNALS])

    def _take_stop_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in self._stop_signals:
            loop.add_signal_handler(number, self._signalled, number)
        self._heard_by = [signal.getsignal(number) for number in self._stop_signals]

    async def _keep_signals(self) -> None:
        """Handlers start libraries that take SIGTERM, and then nobody would hear that the worker is to stop.

        What can be seen of it is told; the loop's callbacks (asyncio's wake-up descriptor, too) are set again unseen.
        """
        while True:
            await anyio.sleep(SIGNALS_EVERY_S)
            taken = [
                number.name
                for number, ours in zip(self._stop_signals, self._heard_by, strict=True)
                if signal.getsignal(number) is not ours
            ]
            self._take_stop_signals()
            if taken:
                self._log.warning(
                    f"A handler or what it uses has taken {', '.join(taken)}; taken back, lest jobs be cut off",
                    event_name="SIGNALS_TAKEN_BACK",
                )

    def _dump_tasks(self) -> None:
        if "_retinue" in vars(self):  # it cannot be made here, in no task
            self._retinue.bulletins.tasks()

    def _signalled(self, number: int) -> None:
        self._told.append(number)
        if len(self._told) > 2:
            logs.close()
            os._exit(128 + number)
        self._signals.put_nowait(number)

    async def _obey_signals(self, beside: TaskGroup) -> None:
        grace_s = self._settings.grace_s
        name = signal.Signals(await self._signals.get()).name
        beside.start_soon(self._beside, "saying that it was told to stop", self._source.retire)
        await anyio.sleep(0)  # that goes first: SIGKILL may follow at once, and a claim or outcomes be on their way
        self._retinue.retire(name, grace_s)
        self._supervisor.drain()
        self._lifetime.give_up()
        with anyio.move_on_after(grace_s):
            await self._signals.get()
        self._supervisor.hurry()
