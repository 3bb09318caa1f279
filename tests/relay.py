"""A relay between workers and a server: it cuts connections, swallows what goes over them, and puts words in the
server's mouth that nobody can make it say.

It runs in a thread of its own. It knows as much of the protocol as it takes to see commands; replies pass unread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

Command = Sequence[bytes]
SAY = b"return redis.error_reply(ARGV[1])"
"""Sent instead of a command: so the error comes in its turn, whatever replies are still on their way."""


class Relay:
    """Listens on a loopback address for the server behind the unix socket `path`, which may come and go."""

    def __init__(self, path: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._path = path
        self._host = host
        self._port = port
        self._links: set[_Link] = set()
        self._swallows = False
        self._error = b""
        self._concerned: Callable[[Command], bool] = lambda command: False
        self._held: Held | None = None
        self._cut_off: CutOff | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def lead_to(self, path: str) -> None:
        """New connections go to this server; those that are there stay where they are, as behind a name or a proxy."""
        self._path = path

    def cut(self) -> None:
        """Reset every connection."""
        self._do(self._cut())

    def finish(self) -> None:
        """Of each connection that is there, end the way to the client (FIN): what it sends is still read."""
        self._do(self._finish())

    def swallow(self) -> None:
        """From now on nothing comes through, in either direction; new connections are accepted all the same."""
        self._do(self._set(swallows=True, old=True))

    def strand(self) -> None:
        """The connections that are there are dead, and nobody is told; new ones work."""
        self._do(self._set(swallows=True, old=True))
        self._do(self._set(swallows=False, old=False))

    def let_through(self) -> None:
        """End of all that; what was held comes late."""
        self._do(self._set(swallows=False, old=True))

    def answer(self, error: str, concerned: Callable[[Command], bool] = lambda command: True) -> None:
        """Answer with this error every command that is `concerned`; with no error, none any more."""
        self._error, self._concerned = error.encode(), concerned if error else lambda command: False

    def hold(self, concerned: Callable[[Command], bool], *, reply: bool = False) -> Held:
        """Stop the next command that is `concerned`, or the reply to it, until it is let go; nothing else waits."""
        self._held = Held(self._loop, concerned, reply)
        return self._held

    def cut_reply(self, concerned: Callable[[Command], bool], *, after: int = 0, number: int = 1) -> CutOff:
        """The reply to the `number`-th command from now on that is `concerned` ends after so many bytes, with a reset.

        The server has done what was asked. Replies to what was sent before it, on the same connection, count too.
        """
        self._cut_off = CutOff(concerned, after, number)
        return self._cut_off

    def cuts(self, command: Command) -> CutOff | None:
        """What cuts the reply to this command off."""
        if self._cut_off is None or not self._cut_off.concerned(command):
            return None
        self._cut_off.number -= 1
        if self._cut_off.number:
            return None
        cut_off, self._cut_off = self._cut_off, None
        return cut_off

    def held(self, command: Command) -> Held | None:
        """What holds this command, or its reply: only the first one."""
        if self._held is None or not self._held.concerned(command):
            return None
        held, self._held = self._held, None
        return held

    def said_instead(self, command: Command) -> Command:
        return (b"EVAL", SAY, b"0", self._error) if self._concerned(command) else command

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _cut(self) -> None:
        for link in self._links:
            link.cut()

    async def _finish(self) -> None:
        for link in self._links:
            link.finish()

    async def _set(self, *, swallows: bool, old: bool) -> None:
        self._swallows = swallows
        for link in self._links if old else ():
            link.set(swallows=swallows)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        link.set(swallows=self._swallows)
        self._links.add(link)
        try:
            await link.run(self._path)
        except asyncio.CancelledError:
            pass  # the relay ends; asyncio's own callback would complain of it
        finally:
            self._links.discard(link)


class Held:
    """One command that does not reach the server, or one reply that does not reach the client, before `let_go`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, concerned: Callable[[Command], bool], reply: bool) -> None:
        self.concerned = concerned
        self.reply = reply
        self.there = threading.Event()
        """Set when it is held."""
        self._loop = loop
        self._goes_on = asyncio.Event()

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._goes_on.set)

    async def stop(self) -> None:
        self.there.set()
        await self._goes_on.wait()


@dataclass
class CutOff:
    """One reply that is cut short."""

    concerned: Callable[[Command], bool]
    after: int
    number: int
    done: threading.Event = field(default_factory=threading.Event)
    """Set when it is."""


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._relay = relay
        self._reader = reader
        self._writer = writer
        self._open = asyncio.Event()
        self._held: Held | None = None
        self._cut_off: CutOff | None = None

    def set(self, *, swallows: bool) -> None:
        if swallows:
            self._open.clear()
        else:
            self._open.set()

    def cut(self) -> None:
        self._writer.transport.abort()
        self._open.set()

    def finish(self) -> None:
        with suppress(OSError):
            self._writer.write_eof()

    async def run(self, path: str) -> None:
        server: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            reader, server = await asyncio.open_unix_connection(path)
            ways = [asyncio.ensure_future(way) for way in (self._there(server), self._back(reader))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the server is not there
        finally:
            for writer in (self._writer, server):
                if writer is not None:
                    writer.transport.abort()

    async def _there(self, server: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while command := await self._command():
                held = self._relay.held(command)
                if held is not None and not held.reply:
                    await held.stop()
                elif held is not None:
                    self._held = held
                self._cut_off = self._relay.cuts(command) or self._cut_off
                command = self._relay.said_instead(command)
                await self._open.wait()
                server.write(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in command))
                await server.drain()

    async def _command(self) -> Command:
        """The next one; at the end of the connection none, but not before anything comes through: nor does its end."""
        try:
            count = int((await self._reader.readuntil(b"\r\n"))[1:])
        except asyncio.IncompleteReadError:
            await self._open.wait()
            return []
        words = []
        for _ in range(count):
            size = int((await self._reader.readuntil(b"\r\n"))[1:])
            words.append((await self._reader.readexactly(size + 2))[:-2])
        return words

    async def _back(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, RuntimeError):  # the second: its way was ended
            while data := await reader.read(65536):
                await self._open.wait()
                if self._held is not None:
                    held, self._held = self._held, None
                    await held.stop()
                if self._cut_off is not None:
                    data, whole = data[: self._cut_off.after], len(data)
                    self._cut_off.after -= whole
                self._writer.write(data)
                await self._writer.drain()
                if self._cut_off is not None and self._cut_off.after <= 0:
                    self._cut_off.done.set()
                    self.cut()
                    return
