"""The sockets of the HTTP port, each under limits, which aiohttp does not set by itself.

A connection is in one of two states. Either its peer waits for us: a request is being served. Or we wait for the peer:
for a request, the rest of one, or until an answer has been taken. We wait for a bounded time; and of more connections
than there may be, the one that has kept us waiting for longest gives way to the new one. So no number of slow or
silent peers keeps anybody out.
"""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from aiohttp import web

from runtime.adapters.egress import Row
from runtime.adapters.http.answers import Refused

MOST = 64
HEAD_S = 5.0
"""From the first byte of a request, or from the connection's beginning, to the end of its headers."""
BODY_S = 10.0
IDLE_S = 15.0
"""From an answer to the next request."""
LINGER_S = 2.0
"""For so long the rest of a body that nobody wants is read, so that its sender gets to see the answer."""
MOST_HEAD = 8 * 1024
MOST_BODY = 64 * 1024
BACKLOG = 1024
"""So many may come at once; they wait in the kernel."""
AT_ONCE = 8
"""So many of them are taken in a turn of the event loop. It takes some turns until what a new one has sent is read; of
those that come in meanwhile there must be fewer than `MOST`, or who sends its request at once gives way unheard."""

_silent = logging.Logger("http", logging.CRITICAL + 1)
"""aiohttp would write a traceback for every request that cannot be parsed."""


class Connections:
    """The open ones. Called for a new one, as `loop.create_server` wants it."""

    def __init__(self, server: web.Server, row: Row) -> None:
        self._server = server
        self.row = row
        """Of what they send."""
        self._open: set[Connection] = set()

    def __call__(self) -> "Connection":
        return Connection(self._server, self)

    def admit(self, new: "Connection") -> bool:
        """Make room for it; False if all are being served."""
        if len(self._open) >= MOST:
            waiting = [each for each in self._open if each.waits_since is not None]
            if not waiting:
                return False
            min(waiting, key=lambda each: each.waits_since or 0.0).drop()
        self._open.add(new)
        return True

    def forget(self, gone: "Connection") -> None:
        self._open.discard(gone)


class Connection(web.RequestHandler):
    """One socket. `waits_since`: we wait for the peer since then, by the loop's clock; None: it waits for us."""

    def __init__(self, server: web.Server, connections: Connections) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=3600.0,  # ours goes first
            lingering_time=LINGER_S,
            logger=_silent,
            access_log=None,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # as aiohttp's own runners pass it
            auto_decompress=False,
        )
        self._connections = connections
        self._wire: asyncio.Transport | None = None
        self._head: bytes | None = b""
        """What has come of a request's head; None after its end."""
        self._timer: asyncio.TimerHandle | None = None
        self.waits_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._connections.row.stirred()
        if not self._connections.admit(self):
            self._wire.abort()
            return
        self.wait(HEAD_S)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.busy()
        self._connections.row.stirred()
        self._connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            if not self._head:
                self.wait(HEAD_S)
            self._head = (self._head + data)[: MOST_HEAD + 4]
            if b"\r\n\r\n" in self._head:
                self._head = None
            elif len(self._head) > MOST_HEAD:
                self._refuse(Refused(431, "head-too-large", f"more than {MOST_HEAD} bytes of headers"))
                return
        super().data_received(data)

    def wait(self, longest_s: float) -> None:
        """From now on we wait for the peer."""
        self.busy()
        loop = asyncio.get_running_loop()
        self.waits_since = loop.time()
        self._timer = loop.call_later(longest_s, self.drop)

    def busy(self) -> None:
        """From now on it waits for us."""
        self.waits_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begins(self) -> None:
        """A request has come, as far as its head."""
        self._head = None
        self.busy()

    def ends(self, *, last: bool) -> None:
        """Its answer is ready to be sent. `last`: no other request follows."""
        self._head = None if last else b""
        self._connections.row.sent()
        self.wait(IDLE_S)

    def drop(self) -> None:
        """Close it now, whatever it is at."""
        self._connections.forget(self)
        if self._wire is not None:
            self._wire.abort()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What aiohttp answers to what is no HTTP; in JSON, and without a traceback in the log."""
        if request.writer.output_size > 0:
            raise ConnectionError  # an answer has begun: as aiohttp does
        self._connections.row.sent()
        response = Refused(status, "bad-request" if status == 400 else "internal", "this cannot be served").answer()
        response.force_close()
        return response

    def _refuse(self, refused: Refused) -> None:
        """Answer what has not become a request."""
        body = cast(bytes, refused.answer().body)
        head = (
            f"HTTP/1.1 {refused.status} {refused.code}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self._wire is not None:
            self._connections.row.sent()
            self._wire.write(head.encode() + body)
        self.force_close()


@web.middleware
async def limited(request: web.Request, handler: Any) -> web.StreamResponse:
    """The outermost middleware: tells the connection who waits for whom."""
    connection = _of(request)
    connection.begins()
    last = True
    try:
        response: web.StreamResponse = await handler(request)
        last = not request.content.is_eof()  # the rest of its body would be taken for the next request's head
        if last:
            response.force_close()
        return response
    finally:
        connection.ends(last=last)


@contextmanager
def waiting(request: web.Request, longest_s: float) -> Generator[None]:
    """The connection may give way to another meanwhile."""
    connection = _of(request)
    connection.wait(2 * longest_s)  # whoever waits here answers in time
    try:
        yield
    finally:
        connection.busy()


async def body_of(request: web.Request, most: int) -> bytes:
    """The body. Raises `Refused` for one of more than `most` bytes, or too slow, or broken."""
    too_large = Refused(413, "body-too-large", f"a body has at most {most} bytes here")
    if (request.content_length or 0) > most:
        raise too_large
    body = bytearray()
    try:
        with waiting(request, BODY_S):
            async with asyncio.timeout(BODY_S):
                async for part in request.content.iter_any():
                    body += part
                    if len(body) > most:
                        raise too_large
    except TimeoutError:
        raise Refused(408, "body-too-slow", f"the body did not come within {BODY_S:g} s") from None
    except web.RequestPayloadError:
        raise Refused(400, "bad-request", "the body is not what its headers say") from None
    return bytes(body)


def _of(request: web.Request) -> Connection:
    return cast(Connection, request.protocol)
