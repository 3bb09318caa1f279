"""Hand-over: one worker that goes quiet again and again, and jobs that come at a chosen millisecond of that.

What the worker has sent is read from its server (MONITOR), in the order in which the server has done it. When a job has
run says the book that it signs. Nothing is asked of the worker itself. Times are of the wall clock of this machine.
"""

from __future__ import annotations

import asyncio
import math
import re
import signal
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from arq.connections import ArqRedis
from redis import Redis
from redis.asyncio import ConnectionPool

from runtime import Client
from runtime.adapters.doorbell import Doorbell
from runtime.adapters.redis import keys, scripts
from tests.platform.jobs import QUEUE
from tests.platform.restless import Restless
from tests.processes import Worker, command
from tests.servers import Server, free_port

What = Literal["here", "left", "looked", "farewell", "added"]
Phase = Literal["counted", "left, not looked", "looked, not closed", "closing", "quiet", "killed"]
CLOSING_S = 0.05
"""How long after its last heartbeat a worker may take to close everything."""
STARTED_S = 2.0
LOST_S = 8.0
"""A job that has not started by then never will: nobody looks any more."""
SLOW_S = 30.0
SEEN_S = 0.05
"""How long the server may go on counting a worker that was killed."""
WARM = 2
"""How often it is watched before: to know how long it stays."""

_ADDED = re.compile(rb'"(?:ZADD|zadd)" "%s" "[^"]*" "([^"]+)"\r' % QUEUE.encode())


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server has done."""

    at: float
    what: What
    job_id: str = ""


class Watch:
    """What the server does, as it does it."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._news = asyncio.Event()
        self._look = scripts.script("outlook").sha.encode()

    @asynccontextmanager
    async def of(self, server: Server) -> AsyncIterator[None]:
        reader, writer = await asyncio.open_unix_connection(server.url.removeprefix("unix://"), limit=2**22)
        # The look goes by its hash from the first time, so that it is told from what else is written.
        for line in (b"SCRIPT LOAD", scripts.script("outlook").source), (b"MONITOR",):
            words = [*line[0].split(), *line[1:]]
            writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))
        reading = asyncio.create_task(self._read(reader))
        try:
            yield
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await reading

    async def _read(self, reader: StreamReader) -> None:
        while line := await reader.readline():
            seen = self._of(line)
            if seen is not None:
                self._seen.append(seen)
                self._news.set()
                self._news = asyncio.Event()

    def _of(self, line: bytes) -> Seen | None:
        if not line.startswith(b"+1"):
            return None
        at = float(line[1:].split(b" ", 1)[0])
        if added := _ADDED.search(line):
            return Seen(at, "added", added[1].decode())
        if b' lua] "' in line:
            return None
        if b'] "SUBSCRIBE" "%s"' % keys.here(QUEUE).encode() in line:
            return Seen(at, "here")
        if b'] "UNSUBSCRIBE"' in line:
            return Seen(at, "left")
        if self._look in line:
            return Seen(at, "looked")
        if b'] "HSET" "%s"' % keys.WORKERS.encode() in line and b'\\"quiet\\"' in line:
            return Seen(at, "farewell")
        return None

    async def next(self, what: What, after: float, job_id: str = "", within_s: float = SLOW_S) -> float:
        """When this was done for the first time after that moment, once it was."""
        async with asyncio.timeout(within_s):
            while True:
                news = self._news
                for seen in self._seen:
                    if seen.what == what and seen.at > after and seen.job_id in ("", job_id):
                        return seen.at
                await news.wait()

    def last(self, what: What) -> float:
        """When this was done last; 0 if never."""
        return max((seen.at for seen in self._seen if seen.what == what), default=0.0)

    def last_before(self, moment: float, what: What) -> float:
        return max((seen.at for seen in self._seen if seen.what == what and seen.at < moment), default=0.0)

    def phase_at(self, at: float) -> Phase:
        """What the worker had done by then of going quiet; nobody counts on one that was never here."""
        done: dict[What, float] = {seen.what: seen.at for seen in self._seen if seen.at < at and seen.what != "added"}
        here = done.get("here", 0.0)
        if done.get("left", 0.0) < here:
            return "counted"
        if done.get("looked", 0.0) < here:
            return "left, not looked"
        if done.get("farewell", 0.0) < here:
            return "looked, not closed"
        return "closing" if at < done.get("farewell", 0.0) + CLOSING_S else "quiet"


class Door:
    """The worker's public address. It starts a worker that is not there, as the platform does, and holds the request.

    `answered_at` are the moments at which the worker has answered.
    """

    def __init__(self, worker: Restless, port: int) -> None:
        self.url = ""
        self.answered_at: list[float] = []
        self._worker = worker
        self._port = port
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/wake"
            yield

    def answered_after(self, moment: float) -> float | None:
        """When somebody was answered for the first time after that."""
        return next((at for at in self.answered_at if at > moment), None)

    async def ring(self) -> None:
        """Ring until it is answered."""
        bell = Doorbell([self.url])
        bell.ring()
        (ring,) = await bell.rung()
        assert ring.answered, ring

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):  # as if nobody were there: it rings again
            request = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(SLOW_S):
                answer = await self._pass_on(request)
            if answer:
                self.answered_at.append(time.time())
                writer.write(answer)
        writer.close()

    async def _pass_on(self, request: bytes) -> bytes:
        while True:
            async with self._starting:
                if not self._worker.running:
                    await asyncio.to_thread(self._worker.start)
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                writer.write(request)
                return await reader.read()
            finally:
                writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Run:
    """One job, and what became of it."""

    lane: str
    job_id: str
    phase: Phase
    after_ms: float
    """When the job was in the queue, from when the worker was to leave: less than 0 is before."""
    rung: bool
    """The worker has answered a ring since."""
    started_s: float | None
    """From that answer, or from when it was in the queue if nobody rang; 0: before it; None: never."""
    starts: int
    stranded: bool = False
    """Whoever was counted, or rung, was killed before it could start the job: an alarm found it."""

    @property
    def fault(self) -> str | None:
        if self.started_s is None:
            return f"lost: {self}"
        if self.started_s > STARTED_S:
            return f"late: {self}"
        return None if self.starts == 1 else f"run {self.starts} times: {self}"


class Lane:
    """A worker, its server, and the jobs that come. Used in one event loop."""

    def __init__(self, name: str, server: Server, folder: Path) -> None:
        self.name = name
        self.server = server
        self.book = folder / f"book-{name}"
        self.runs: list[Run] = []
        port = free_port()
        self.worker = Restless(
            "tests.platform.jobs", redis=server.url, RUNTIME_HTTP="on", PORT=port, WORKER_ID=name, RUNTIME_LEASE="3s"
        )
        self.door = Door(self.worker, port)
        self.watch = Watch()
        self._takes_s: deque[float] = deque(maxlen=7)
        """From coming to leaving, the last times."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        with self.worker:
            async with self.watch.of(self.server), self.door.open():
                await asyncio.to_thread(self.worker.up)
                for _ in range(WARM):
                    await self._come()
                    here = self.watch.last("here")
                    self._takes_s.append(await self.watch.next("left", here) - here)
                yield
                await self._settle_down()

    async def _settle_down(self) -> None:
        """A job counts as soon as it has started: its outcome, or a run after a kill, may be on its way still."""
        until = time.monotonic() + SLOW_S
        while _left(self.server) and time.monotonic() < until:
            if not self.worker.running:
                await self.door.ring()
            await asyncio.sleep(0.05)

    async def about_to_leave(self) -> float:
        """When the worker is going to leave, which has come for that."""
        return await self._come() + median(self._takes_s)

    async def _come(self) -> float:
        """When it has come, from being quiet."""
        if not self.worker.running:
            await self.door.ring()
        farewell = await self.watch.next("farewell", self.watch.last("here"))
        await asyncio.sleep(farewell + 2 * CLOSING_S - time.time())
        asked = time.time()
        await self.door.ring()
        # A busy server says when its turn began, which may be before it was asked.
        return await self.watch.next("here", asked - CLOSING_S)

    async def added(self, job_id: str) -> float:
        """When the job was in the queue."""
        at = await self.watch.next("added", 0.0, job_id)
        if self.watch.phase_at(at) in ("looked, not closed", "closing"):
            self._takes_s.append(self.watch.last_before(at, "left") - self.watch.last_before(at, "here"))
        return at

    async def judge(self, job_id: str, leaves: float, killed_at: float | None = None) -> None:
        """Wait until the job has run, and write down how that went."""
        added = await self.added(job_id)
        dead = killed_at is not None and killed_at < added
        phase: Phase = "killed" if dead else self.watch.phase_at(added)
        started = await self.signed(job_id, LOST_S if killed_at is None else STARTED_S + 1)
        since = added
        stranded = started is None and killed_at is not None and killed_at > added - SEEN_S
        if stranded:
            since = time.time()
            started = await self.alarmed(job_id)
        answered = self.door.answered_after(since)
        started_s = None if started is None else max(0.0, started - (answered or since))
        after_ms, rung = 1000 * (added - leaves), answered is not None
        starts = len(self.starts(job_id))
        self.runs.append(Run(self.name, job_id, phase, after_ms, rung, started_s, starts, stranded))
        if started is None:
            await self.door.ring()  # for those that come after it

    async def alarmed(self, job_id: str) -> float | None:
        """When the job has started, with a cron service that looks again and again."""
        until = time.monotonic() + SLOW_S
        while time.monotonic() < until:
            await self.alarm()
            if (started := await self.signed(job_id, 1.0)) is not None:
                return started
        return None

    async def alarm(self) -> None:
        words = ("wake", "--if-due", "-Q", QUEUE)
        done = await asyncio.to_thread(
            partial(command, *words, REDIS_URL=self.server.url, RUNTIME_WAKE_URL=self.door.url)
        )
        assert done.returncode == 0, done.stderr

    def starts(self, job_id: str) -> list[float]:
        lines = self.book.read_text().splitlines() if self.book.exists() else []
        return [float(at) for name, at in map(str.split, lines) if name == job_id]

    async def signed(self, job_id: str, within_s: float) -> float | None:
        """When the job has started first; None: not within that time."""
        until = time.monotonic() + within_s
        while not (starts := self.starts(job_id)):
            if time.monotonic() > until:
                return None
            await asyncio.sleep(0.01)
        return starts[0]


async def until(moment: float) -> None:
    await asyncio.sleep(moment - time.time())


@asynccontextmanager
async def stock_arq(lane: Lane) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    """What adds a job as an unmodified producer does."""
    arq = ArqRedis(ConnectionPool.from_url(lane.server.url))
    try:
        await arq.ping()
        yield lambda job_id: arq.enqueue_job("sign", str(lane.book), job_id, _job_id=job_id, _queue_name=QUEUE)
    finally:
        await arq.aclose(close_connection_pool=True)


@asynccontextmanager
async def our_client(lane: Lane) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """What adds a job as our client does, and rings if need be: returns when that was answered."""
    client = Client(lane.server.url, wake_urls=[lane.door.url])

    async def add(job_id: str) -> None:
        await client.enqueue("sign", [str(lane.book), job_id], job_id=job_id, options={"queue": QUEUE})
        if client.ringing:
            assert [ring.answered for ring in await client.rung()] == [True]

    try:
        await client.status("no-such-job", QUEUE)  # connects
        yield add
    finally:
        await client.close()


async def _sweep(lane: Lane, add: Callable[[str], Awaitable[object]], offsets_ms: Sequence[int]) -> None:
    """A job at each of these moments of going quiet."""
    for n, offset_ms in enumerate(offsets_ms):
        leaves = await lane.about_to_leave()
        await until(leaves + offset_ms / 1000)
        await add(f"job-{n}")
        await lane.judge(f"job-{n}", leaves)


async def client_rings(lane: Lane, offsets_ms: Sequence[int]) -> None:
    async with lane.open(), our_client(lane) as add:
        await _sweep(lane, add, offsets_ms)


async def sentinel_rings(lane: Lane, offsets_ms: Sequence[int]) -> None:
    """For stock arq, on a server that announces new jobs."""
    async with lane.open(), stock_arq(lane) as add:
        watching = Worker(
            *("-Q", QUEUE), command="sentinel", redis=lane.server.url, RUNTIME_WAKE_URL=lane.door.url
        )  # fmt: skip
        with watching as sentinel:
            await asyncio.to_thread(sentinel.start().wait_for, "SENTINEL_HEARING", announced=True)
            await _sweep(lane, add, offsets_ms)


async def alarm_rings(lane: Lane, offsets_ms: Sequence[int]) -> None:
    """For stock arq: a cron service, the first look of which is while the worker goes quiet too."""
    async with lane.open(), stock_arq(lane) as add:
        looks_after_s = await _time_of(lane.alarm())
        for n, offset_ms in enumerate(offsets_ms):
            leaves = await lane.about_to_leave()
            await until(leaves - looks_after_s)
            async with asyncio.TaskGroup() as group:
                group.create_task(lane.alarm())
                await until(leaves + offset_ms / 1000)
                await add(f"job-{n}")
            await lane.alarmed(f"job-{n}")
            await lane.judge(f"job-{n}", leaves)


async def client_rings_who_is_killed(lane: Lane, offsets_ms: Sequence[int]) -> None:
    """The worker is killed while it goes quiet too, and nobody starts it but who rings."""
    async with lane.open(), our_client(lane) as add:
        for n, (offset_ms, kill_ms) in enumerate(zip(offsets_ms, reversed(offsets_ms), strict=True)):
            leaves = await lane.about_to_leave()
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(_kill(lane.worker, leaves + kill_ms / 1000))
                await until(leaves + offset_ms / 1000)
                await add(f"job-{n}")
            await lane.judge(f"job-{n}", leaves, killing.result())


async def _kill(worker: Worker, moment: float) -> float:
    await until(moment)
    pid, killed_at = worker.pid, time.time()
    worker.send(signal.SIGKILL)
    while worker.running and worker.pid == pid:
        await asyncio.sleep(0.001)
    return killed_at


async def _time_of(doing: Awaitable[object]) -> float:
    began = time.monotonic()
    await doing
    return time.monotonic() - began


FROM_MS, TO_MS = -15, 25
"""The window around the moment at which a worker is expected to leave: it takes some 3 ms until all is closed."""


def offsets_ms(first: int, count: int) -> list[int]:
    """Every millisecond of the window in turn, far apart from each other."""
    return [FROM_MS + n * 37 % (TO_MS - FROM_MS) for n in range(first, first + count)]


Producer = Callable[[Lane, Sequence[int]], Coroutine[Any, Any, None]]
Lanes = Mapping[Producer, tuple[int, int]]
"""By how a job comes and the worker is woken: so many workers side by side, and so many jobs for each."""


def swept(lanes: Lanes, folder: Path) -> tuple[list[Run], list[str]]:
    """Jobs at these moments, in all lanes at once; what became of each, and the keys of theirs that were left."""

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for producer, (count, jobs) in lanes.items():
                for n in range(count):
                    server = servers.enter_context(Server())
                    with Redis.from_url(server.url) as redis:
                        redis.config_set("notify-keyspace-events", "K$")
                    lane = Lane(f"{producer.__name__}-{n}", server, folder)
                    opened.append(lane)
                    group.create_task(producer(lane, offsets_ms(n * jobs, jobs)))

    opened: list[Lane] = []
    with ExitStack() as servers:
        try:
            asyncio.run(all_of_them())
        except* TimeoutError:
            raise AssertionError("a worker has neither come nor left in time") from None
        runs = [run for lane in opened for run in lane.runs]
        assert len(runs) == sum(count * jobs for count, jobs in lanes.values())
        return runs, [key for lane in opened for key in _left(lane.server)]


def _left(server: Server) -> list[str]:
    with Redis.from_url(server.url, decode_responses=True) as redis:
        return [name for name in (QUEUE, keys.later(QUEUE)) if redis.zcard(name)]


def table(runs: Sequence[Run]) -> str:
    """How many fell where, and how long the slowest has taken."""
    lines = []
    for phase in get_args(Phase):
        of = [run for run in runs if run.phase == phase]
        if of:
            slowest = max(math.inf if run.started_s is None else run.started_s for run in of)
            rung, stranded = sum(run.rung for run in of), sum(run.stranded for run in of)
            lines.append(f"{phase:20} {len(of):5} jobs, {rung:5} after a ring, slowest {1000 * slowest:6.0f} ms")
            lines[-1] += f", {stranded} left to an alarm" if stranded else ""
    return "\n".join(lines)
