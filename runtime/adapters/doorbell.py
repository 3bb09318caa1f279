"""The doorbell: `POST /wake` to workers that sleep, until each has answered.

A request wakes a service that its platform has put to sleep, but the first ones may meet anything: Railway holds them,
refuses the connection, or answers 404 "Application not found", 502 or 503 while it starts the worker.

HTTP is spoken by hand: all that counts is the status of a request without a body, and who enqueues is not to pay the
quarter of a second and the 12 MB that a client library takes. A connection is closed after its answer: one that is left
open would keep a producer awake that may sleep itself.
"""

import asyncio
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Literal
from urllib.parse import urlsplit

from runtime.adapters.egress import Row
from runtime.core.values import frozen

RING_FOR_S = 60.0
"""A worker that has not answered by then will not: something is wrong with it, or with its address."""
ATTEMPT_S = 10.0
PAUSE_S = (0.25, 5.0)
"""Between attempts: the first, and the longest; each is up to a half shorter, by chance."""
EVERY_S = 1.0
"""Between an answer and the next ring."""
CLOSE_S = 2.0
"""How long closing waits for somebody to answer."""
NOT_AWAKE_YET = (404, 502, 503, 504)

_log = logging.getLogger(__name__)


@frozen
class Ring:
    """How ringing at one address has ended."""

    url: str
    answered: bool
    said: str
    """The last answer, or why there was none."""


@frozen
class _Answer:
    """What one request met."""

    what: Literal["awake", "asleep", "refused"]
    said: str


class Complaints:
    """Logs that nobody was woken, once while it stays the same: for who rings and does not wait for the end of it."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __call__(self, ring: Ring) -> None:
        if ring.answered:
            self._last.pop(ring.url, None)
        elif self._last.get(ring.url) != ring.said:
            self._last[ring.url] = ring.said
            _log.warning("Nobody was woken by POST %s: %s", ring.url, ring.said)


class Doorbell:
    """Rings at all `urls`, in tasks of its own, in one event loop. Close it. `tell` is told how each ringing ended.

    Requests are entered in `row`.
    """

    def __init__(
        self, urls: Sequence[str], tell: Callable[[Ring], None] = lambda ring: None, row: Row | None = None
    ) -> None:
        self._bells = [_Bell(url, tell, row or Row()) for url in urls]

    @property
    def rings(self) -> bool:
        """Somebody has rung, and not everybody has answered yet."""
        return any(bell.rings for bell in self._bells)

    def ring(self) -> None:
        """See to it that a request is sent after this call, and again for a minute until one is answered.

        It returns at once and raises nothing. Calls that come together are one: there is one request at a time to an
        address, and after an answer none for a second.
        """
        for bell in self._bells:
            bell.ring()

    async def rung(self) -> Sequence[Ring]:
        """How the ringing has ended that was begun last, once it has: about a minute at most. Empty: nobody rang."""
        await asyncio.gather(*(bell.ended() for bell in self._bells))
        return [bell.last for bell in self._bells if bell.last is not None]

    async def close(self) -> None:
        """Wait for answers, 2 s at most, and give up ringing. By then at least one request was tried for each ring.

        It may be rung again.
        """
        await asyncio.gather(*(bell.close() for bell in self._bells))


class _Bell:
    """The doorbell at one address."""

    def __init__(self, url: str, tell: Callable[[Ring], None], row: Row) -> None:
        self._row = row
        self.last: Ring | None = None
        self._url = url
        self._address = _Address.of(url)
        self._owed = False
        """Somebody has rung, and no request was tried since."""
        self._free_at = 0.0
        self._closing = asyncio.Event()
        self._tell = tell
        self._task: asyncio.Task[None] | None = None

    @property
    def rings(self) -> bool:
        return self._task is not None and not self._task.done()

    def ring(self) -> None:
        self._owed = True
        if not self.rings:
            self._closing.clear()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def ended(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is None:
            return
        self._closing.set()
        try:
            await asyncio.wait([self._task], timeout=CLOSE_S)
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._owed:
                await self._wait_till(self._free_at)
                self.last = await self._ring()
                self._free_at = time.monotonic() + EVERY_S
                self._tell(self.last)
        except asyncio.CancelledError:
            # `asyncio.run` ends so, where nobody has closed the client: what was just enqueued is worth one try.
            if self._owed and not self._closing.is_set():
                await self._try(CLOSE_S)
            raise

    async def _ring(self) -> Ring:
        """Until it is answered, or for a minute."""
        until = time.monotonic() + RING_FOR_S
        pause_s, most_s = PAUSE_S
        while True:
            answer = await self._try(ATTEMPT_S)
            if answer.what != "asleep":
                return Ring(self._url, answer.what == "awake", answer.said)
            wait_s = pause_s * random.uniform(0.5, 1)
            if time.monotonic() + wait_s > until:
                return Ring(self._url, False, f"{answer.said}, and so for {RING_FOR_S:g} s")
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, most_s)

    async def _try(self, within_s: float) -> _Answer:
        """One request."""
        self._owed = False
        self._row.sent()
        try:
            async with asyncio.timeout(within_s):
                status = await self._address.post()
        except asyncio.CancelledError:
            self._owed = True
            raise
        except TimeoutError:
            return _Answer("asleep", f"no answer within {within_s:g} s")
        except ssl.SSLCertVerificationError as error:
            return _Answer("refused", f"its certificate is not valid: {error.verify_message}")
        except (OSError, ValueError, EOFError) as error:
            return _Answer("asleep", str(error) or type(error).__name__)
        finally:
            self._row.stirred()
        if status in NOT_AWAKE_YET:
            return _Answer("asleep", f"status {status}")
        return _Answer("awake" if 200 <= status < 300 else "refused", f"status {status}")

    async def _wait_till(self, moment: float) -> None:
        """Until then, or until this is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(moment - time.monotonic()):
                await self._closing.wait()


@cache
def _trusting() -> ssl.SSLContext:
    """Trusts whom the system trusts."""
    return ssl.create_default_context()


@frozen
class _Address:
    """Where a request goes, taken apart."""

    host: str
    port: int
    tls: bool
    request: bytes

    @classmethod
    def of(cls, url: str) -> "_Address":
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls, head.encode("latin-1", "replace"))

    async def post(self) -> int:
        """The status of the answer. Raises `OSError`, or `EOFError` or `ValueError` for what is no answer."""
        # In a thread: it reads the certificates of all authorities, while the caller has requests to serve.
        context = await asyncio.to_thread(_trusting) if self.tls else None
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        try:
            writer.write(self.request)
            line = await reader.readline()
        finally:
            writer.transport.abort()
        if not line:
            raise EOFError("the connection was closed without an answer")
        match = re.match(rb"HTTP/1\.[01] (\d{3})", line)
        if match is None:
            raise ValueError("the answer is not HTTP")
        return int(match[1])
