"""The way to the server and back: it takes its time, and much can go wrong on it. And both kinds of clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import redis

from tests.simulation.clock import Agenda, Clock, Threads
from tests.simulation.server import Command, Server, Waiter

QUICK_S = (0.0002, 0.01)
SLOW_S = (0.05, 7.0)


@dataclass
class Manners:
    """How often, of all requests, which trouble befalls one."""

    slow: float = 0.0
    """Request and reply may take seconds, each."""
    lost_request: float = 0.0
    lost_reply: float = 0.0
    twice: float = 0.0
    """Delivered again, up to 3 s later; nobody hears the second reply."""


GOOD = Manners()
Way = Literal["open", "silent", "refusing"]


class Request:
    def __init__(self, client: str, commands: Sequence[Command], answered: Callable[[Any], None]) -> None:
        self.client = client
        self.commands = commands
        self.answered: Callable[[Any], None] | None = answered
        """None: nobody waits for the reply any longer."""
        self.waiter: Waiter | None = None


class Network:
    """`said` is told of every trouble; `rng` decides on it."""

    def __init__(self, clock: Clock, agenda: Agenda, server: Server, rng: Random, said: Callable[[str], None]) -> None:
        self._clock = clock
        self._agenda = agenda
        self._server = server
        self._rng = rng
        self._said = said
        self._open: dict[Request, None] = {}
        self.manners = GOOD
        self.way: Way = "open"
        self.cut_off: set[str] = set()
        """Clients whose packets go nowhere."""

    def send(self, client: str, commands: Sequence[Command], answered: Callable[[Any], None]) -> Request:
        """`answered` is called with the replies, or with an exception, or never."""
        request = Request(client, commands, answered)
        self._open[request] = None
        if self._happens(self.manners.lost_request):
            self._trouble("a request is lost", request)
        else:
            self._agenda.after(self._length_s(), lambda: self._arrive(request))
        return request

    def publish(self, client: str, hear: Callable[[], None]) -> None:
        """Say something to who may be subscribed; nobody knows whether it is heard."""
        if self._reaches(client) and not self._happens(self.manners.lost_reply):
            self._agenda.after(self._length_s(), hear)

    def hang_up(self, request: Request) -> None:
        """Who has sent it waits no longer. It may have gone out, and be done all the same."""
        request.answered = None
        self._open.pop(request, None)
        if request.waiter is not None and self._reaches(request.client):
            waiter = request.waiter
            self._agenda.after(self._length_s(), lambda: self._server.forget(waiter))
        if self._rng.random() < 0.5:
            request.commands = ()

    def reset(self, client: str | None = None) -> None:
        """Cut the connections of one, or of all."""
        for request in [request for request in self._open if client in (None, request.client)]:
            answered = request.answered
            self.hang_up(request)
            if answered is not None:
                answered(redis.ConnectionError("Connection closed by server."))

    def _arrive(self, request: Request) -> None:
        if not request.commands:
            return
        if self.way == "refusing":
            self._reply(request, ConnectionRefusedError("Connection refused"))
        elif self._reaches(request.client):
            request.waiter = self._server.handle(request.commands, lambda replies: self._leave(request, replies))
            if request.waiter is None and self._happens(self.manners.twice):
                self._trouble("a request comes twice", request)
                commands = request.commands
                self._agenda.after(self._rng.uniform(0.0, 3.0), lambda: self._server.handle(commands, _nobody))

    def _leave(self, request: Request, replies: list[Any]) -> None:
        if not self._reaches(request.client):
            return
        if self._happens(self.manners.lost_reply):
            self._trouble("a reply is lost", request)
            if self._rng.random() < 0.5:
                self._reply(request, redis.ConnectionError("Connection closed by server."))
        else:
            self._reply(request, replies)

    def _reply(self, request: Request, reply: Any) -> None:
        def hear() -> None:
            self._open.pop(request, None)
            if request.answered is not None:
                request.answered(reply)

        self._agenda.after(self._length_s(), hear)

    def _reaches(self, client: str) -> bool:
        return self.way == "open" and client not in self.cut_off

    def _length_s(self) -> float:
        slow = self._happens(self.manners.slow)
        if slow:
            self._said("something is slow")
        return self._rng.uniform(*(SLOW_S if slow else QUICK_S))

    def _happens(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _trouble(self, what: str, request: Request) -> None:
        self._said(f"{what}: {request.client} {named(request.commands)}")


def _nobody(replies: list[Any]) -> None:
    pass


def named(commands: Sequence[Command]) -> str:
    return " + ".join(str(command[0]) for command in commands)


class Client:
    """What a worker's event loop has instead of redis-py's client."""

    def __init__(self, network: Network, name: str, reply_s: float | None) -> None:
        self._network = network
        self._name = name
        self._reply_s = reply_s
        self.connection_pool = self
        self.dead = False
        """The worker was killed: nothing is sent."""

    async def ask(self, *commands: Command) -> Any:
        """As `connection.exchange`."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[Any] = loop.create_future()

        def take(reply: Any) -> None:
            if not heard.done():
                heard.set_result(reply)

        def hear(reply: Any) -> None:
            loop.call_soon_threadsafe(take, reply)

        if self.dead:
            await heard
        request = self._network.send(self._name, commands, hear)
        try:
            async with asyncio.timeout(self._reply_s):
                reply = await heard
        except TimeoutError:
            self._network.hang_up(request)
            raise redis.TimeoutError("Timeout reading") from None
        except BaseException:
            self._network.hang_up(request)
            raise
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def execute_command(self, *command: Any) -> Any:
        (reply,) = await self.ask(command)
        return reply

    async def exists(self, name: str) -> Any:
        return await self.execute_command("EXISTS", name)

    async def time(self) -> Any:
        return await self.execute_command("TIME")

    async def zrangebyscore(self, name: str, least: str, most: int) -> Any:
        return await self.execute_command("ZRANGEBYSCORE", name, least, most)

    async def info(self, section: str) -> Any:
        return await self.execute_command("INFO", section)

    async def aclose(self) -> None:
        pass


class BlockingClient:
    """The same for the keeper's thread."""

    def __init__(self, network: Network, clock: Clock, threads: Threads, name: str, reply_s: float) -> None:
        self._network = network
        self._clock = clock
        self._threads = threads
        self._name = name
        self._reply_s = reply_s
        self.connection_pool = self

    def execute_command(self, *command: Any) -> Any:
        strand, heard = self._threads.strand, list[Any]()
        assert strand is not None

        def hear(reply: Any) -> None:
            heard.append(reply)
            strand.stir(self)

        request = self._network.send(self._name, [command], hear)
        strand.rest(self._clock.now + self._reply_s, self)
        if not heard:
            self._network.hang_up(request)
            raise redis.TimeoutError("Timeout reading")
        if isinstance(heard[0], BaseException):
            raise heard[0]
        return heard[0][0]

    def disconnect(self) -> None:
        pass

    def close(self) -> None:
        pass
