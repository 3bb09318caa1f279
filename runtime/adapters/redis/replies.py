"""Being told that jobs have ended: one subscription for all in this process who wait for results.

Who waits leaves the name of its process with the job (`follow.lua`); the script that ends the job publishes its id on
the channel of that name, and the result if it is short. So nobody has to know at the enqueue that somebody will wait, a
job found by its id is as good as one's own, and one that nobody waits for costs nothing.

Nobody relies on being told. Stock arq workers tell nobody, a server may let nobody subscribe or publish, and what was
said while a connection was lost is not said again. Who waits looks, too: seldom, once it has been told of something.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from runtime.adapters.egress import Row
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import TROUBLE, connect, next_message
from runtime.core.values import frozen

IDLE_S = 60.0
"""The connection is kept for so long when nobody waits any more."""
RETRY_S = (1.0, 60.0)
DOUBT_S = 60.0
"""So long after the end of a job that nobody has told of, looks are as frequent as if nobody ever did."""


@frozen
class Pauses:
    """Between looks: the first, how they grow, the longest."""

    first_s: float
    growth: float
    most_s: float


SELDOM = Pauses(1.0, 2.0, 5.0)
OFTEN = Pauses(0.01, 1.5, 0.5)


class Wait:
    """Somebody who waits for the end of one job, or for news of its progress, too."""

    def __init__(self, replies: "Replies", *, progress: bool) -> None:
        self.progress = progress
        self.result = b""
        """As it was told of. Empty: only a look will show."""
        self._replies = replies
        self._news = asyncio.Event()
        self._pause_s = 0.0
        self._noted = self._told = False

    @property
    def name(self) -> str:
        """What to leave with the job at the next look; empty while nothing can be heard."""
        return self._replies.name if self._replies.hears else ""

    async def pause(self, left_s: float, *, noted: bool) -> None:
        """Return when it is time to look again, after `left_s` at the latest; may be cancelled.

        `noted`: the name was left with the job at the last look.
        """
        self._noted = noted
        self._replies.listen()
        pauses = SELDOM if noted and self._replies.reliable else OFTEN
        self._pause_s = min(max(pauses.first_s, pauses.growth * self._pause_s), pauses.most_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._pause_s, left_s)):
                await self._news.wait()
        self._news.clear()

    def stir(self) -> None:
        """There is something to look for."""
        self._news.set()

    def ended(self) -> None:
        """A look has found the end."""
        if self._noted and not self._told:
            self._replies.missed()

    def tell(self, result: bytes) -> None:
        self._told, self.result = True, result
        self._news.set()

    def look_again(self) -> None:
        """Whether anything is heard has changed: what was noted, or told meanwhile, counts no longer."""
        self._noted = False
        self._news.set()


class Replies:
    """In one event loop. The connection is opened by the first who has to wait, and entered in `row`. Close it."""

    def __init__(self, url: str, row: Row | None = None) -> None:
        self.name = secrets.token_hex(8)
        self.hears = False
        self._url = url
        self._row = row or Row()
        self._waits: dict[bytes, set[Wait]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._relied_on_from = math.inf

    @property
    def reliable(self) -> bool:
        """Ends of jobs are told here, as far as is known."""
        return time.monotonic() >= self._relied_on_from

    @contextmanager
    def wait(self, job_id: str, *, progress: bool = False) -> Generator[Wait]:
        wait, raw = Wait(self, progress=progress), keys.id_bytes(job_id)
        self._waits.setdefault(raw, set()).add(wait)
        try:
            yield wait
        finally:
            self._waits[raw].discard(wait)
            if not self._waits[raw]:
                del self._waits[raw]

    def listen(self) -> None:
        """See to it that a connection is opened, and opened again while somebody waits."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._run())

    def missed(self) -> None:
        """A job has ended, and nobody was told: a stock worker has run it, perhaps."""
        self._relied_on_from = time.monotonic() + DOUBT_S

    async def close(self) -> None:
        """Close the connection. Who waits goes on, by looking; who comes then opens another."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])

    async def _run(self) -> None:
        redis = connect(self._url, connections=1, row=self._row)
        retry_s, most_s = RETRY_S
        try:
            while True:
                try:
                    with suppress(*TROUBLE):
                        await self._listen(redis)
                        return
                finally:
                    retry_s = RETRY_S[0] if self.hears else retry_s
                    self._change(hears=False)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, most_s)
                if not self._waits:
                    return
        finally:
            await redis.aclose()

    async def _listen(self, redis: Any) -> None:
        """Return when nobody has waited for a while."""
        async with redis.pubsub() as channel:
            await channel.subscribe(keys.reply(self.name))
            while True:
                message = await next_message(channel, IDLE_S)
                if message is None and not self._waits:
                    return
                if message is not None and message["type"] == "subscribe":
                    self._change(hears=True)
                if message is not None and message["type"] == "message":
                    self._tell(message["data"])

    def _tell(self, said: bytes) -> None:
        length, _, rest = said.partition(b":")
        if length.startswith(b"p"):  # of progress; then there is nothing but the id
            for wait in self._waits.get(rest, ()):
                if wait.progress:
                    wait.stir()
            return
        size = int(length[:9]) if length.isdigit() else len(rest)
        if self._relied_on_from == math.inf:
            self._relied_on_from = time.monotonic()
        for wait in self._waits.get(rest[:size], ()):
            wait.tell(rest[size:])

    def _change(self, *, hears: bool) -> None:
        if hears is not self.hears:
            self.hears = hears
            for waits in self._waits.values():
                for wait in waits:
                    wait.look_again()
