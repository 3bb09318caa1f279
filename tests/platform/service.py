"""A service on a platform that puts it to sleep, as Railway is documented to (in its docs, and in what was seen of it).

Counted is what the service transmits, whatever it is and whoever asked for it; what comes in does not count, its answer
does. After `idle_s` without a byte, sampled every `sample_s`, the process is ended without notice. It is started afresh
by traffic to it: to its public address, where the first requests meet what `first` says, or to its private one, which
refuses until the process listens. Nothing else wakes it: no timer, and nothing that happens in Redis. While a request
is held for it, it is not ended. A process that ends by itself is not restarted, and not woken either.

The platform's own times are 300 s, sampled every 300 s: a service sleeps 5 to 10 minutes after its last byte.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, TypeVar

from tests.platform.edge import First, forward, refuse
from tests.platform.network import Network
from tests.platform.sockets import Sockets
from tests.processes import Worker, wait_until

T = TypeVar("T")
What = Literal["started", "listens", "asleep", "woken", "ended"]
_TICK_S = 0.01
_REST_S = 0.2
"""So long is no packet of the old process's connections on its way any more."""
_REST_AT_MOST_S = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """`at` by the monotonic clock; `sent` are the bytes that the service had transmitted by then."""

    what: What
    at: float
    sent: int


@dataclass(slots=True)
class Silence:
    """How long a count has not moved, as far as its samples show."""

    sent: int
    since: float

    def lasted(self, sent: int, now: float) -> float:
        """Seconds, by this sample."""
        if sent != self.sent:
            self.sent, self.since = sent, now
        return now - self.since


class Service:
    """Runs `worker`, which must be inside `network` and listen on its port, for as long as the block lasts.

    It reaches these ports of our loopback, `reaches`, under the same numbers at `network.outside`.
    """

    def __init__(
        self,
        worker: Worker,
        network: Network | Sockets,
        *,
        idle_s: float = 3.0,
        sample_s: float = 0.1,
        first: First = First.HELD,
        not_found_s: float = 3.0,
        ended_by: signal.Signals = signal.SIGKILL,
        drain_s: float = 10.0,
        reaches: Sequence[int] = (),
    ) -> None:
        self.worker = worker
        self.network = network
        self._port = network.port
        self._idle_s = idle_s
        self._sample_s = sample_s
        self._first = first
        self._not_found_s = not_found_s
        self._ended_by = ended_by
        self._drain_s = drain_s
        self._reaches = reaches
        self._moments: list[Moment] = []
        self._found_at = -math.inf
        self._unvisited = False
        self._held = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="platform", daemon=True)

    @property
    def public_url(self) -> str:
        return f"http://127.0.0.1:{self._public_port}"

    @property
    def private_url(self) -> str:
        return f"http://{self.network.inside}:{self._port}"

    def moments(self, what: What) -> list[Moment]:
        return [moment for moment in list(self._moments) if moment.what == what]

    def wait_for(self, what: What, count: int = 1, timeout_s: float = 60.0) -> Moment:
        """The `count`-th moment of this kind, once it has come."""
        try:
            return wait_until(lambda: self.moments(what)[count - 1 :], timeout_s, f"the service is {what}")[0]
        except AssertionError as late:
            raise AssertionError(f"{late}: {self._moments}\n{self.worker.output()}{self.worker.errors()}") from None

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.worker.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _begin(self) -> None:
        self._traffic, self._listening = asyncio.Event(), asyncio.Event()
        self._public_port = await self._listen(self._accept, "127.0.0.1")
        for port in self._reaches if self.network.outside != "127.0.0.1" else ():
            await self._listen(partial(self._let_out, port), self.network.outside, port)
        self._life = asyncio.create_task(self._live())

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        failed = self._life.done() and self._life.exception()
        for task in (left := [self._life, *self._connections]):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if failed:  # a bug here is not the worker's
            raise failed

    async def _listen(
        self, serve: Callable[[StreamReader, StreamWriter], Coroutine[Any, Any, None]], host: str, port: int = 0
    ) -> int:
        def take(reader: StreamReader, writer: StreamWriter) -> None:
            connection = asyncio.create_task(serve(reader, writer))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(take, host, port)
        self._servers.append(server)
        taken: int = server.sockets[0].getsockname()[1]
        return taken

    async def _live(self) -> None:
        while True:
            self.network.watch(self.worker.start().pid)
            self._note("started")
            if not await self._fall_silent():
                self._note("ended")
                return
            await self._stop()
            self._note("asleep")
            await self._come_in()
            self._unvisited = False
            self._note("woken")

    async def _fall_silent(self) -> bool:
        """Whether it did; else it has ended by itself. Connections that come from now on find it asleep."""
        silence = Silence(self.network.sent(), time.monotonic())
        sample_at = silence.since + self._sample_s
        while self.worker.running:
            await asyncio.sleep(_TICK_S)
            if not self._listening.is_set() and self.network.listens(self._port):
                self._listening.set()
                self._note("listens")
            if (now := time.monotonic()) < sample_at:
                continue
            sample_at = now + self._sample_s
            if silence.lasted(self.network.sent(), now) >= self._idle_s and not self._held:
                self._unvisited = True
                self._listening.clear()
                self._traffic.clear()
                return True
        self._listening.clear()
        return False

    async def _stop(self) -> None:
        if self._ended_by != signal.SIGKILL:
            self.worker.send(self._ended_by)
            until = time.monotonic() + self._drain_s
            while self.worker.running and time.monotonic() < until:
                await asyncio.sleep(_TICK_S)
        if self.worker.running:
            self.worker.send_group(signal.SIGKILL)
        await asyncio.to_thread(self.worker.wait)
        await self._rest()

    async def _rest(self) -> None:
        """What the other ends still say to the connections that are gone is no traffic to the service."""
        silence = Silence(self.network.received(), time.monotonic())
        until = silence.since + _REST_AT_MOST_S
        while (now := time.monotonic()) < until and silence.lasted(self.network.received(), now) < _REST_S:
            await asyncio.sleep(_TICK_S)

    async def _come_in(self) -> None:
        """Return when something comes: at the public address, or from the private network."""
        before = self.network.received()
        while not self._traffic.is_set() and self.network.received() == before:
            await asyncio.sleep(_TICK_S)

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        wakes, self._unvisited = self._unvisited, False
        if wakes:
            self._found_at = time.monotonic() + self._not_found_s
        self._traffic.set()
        try:
            if self._first is First.NOT_FOUND and time.monotonic() < self._found_at:
                await refuse(reader, writer, "404 Not Found")
            elif (self._first is First.BAD_GATEWAY and wakes) or self._life.done():
                await refuse(reader, writer, "502 Bad Gateway")
            else:
                self._held += 1
                try:
                    await self._listening.wait()
                finally:
                    self._held -= 1
                if await forward(reader, writer, self.network.inside, self._port):
                    self.network.answered()
                else:
                    await refuse(reader, writer, "502 Bad Gateway")
        finally:
            writer.close()

    async def _let_out(self, port: int, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await forward(reader, writer, "127.0.0.1", port)
        finally:
            writer.close()

    def _note(self, what: What) -> None:
        self._moments.append(Moment(what, time.monotonic(), self.network.sent()))
