"""The ear: hears the server tell that a job was written, whoever wrote it, where it tells of such things.

Those are its keyspace notifications of strings: `K$` in its `notify-keyspace-events`, which is empty by default and is
never changed from here. Whether it tells is not asked, which hosted servers refuse, but tried, each minute.
"""

import os
import secrets
import time
from contextlib import suppress
from typing import Any

import anyio

from runtime.adapters.egress import Row
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import away_when_lost, connect, lent, next_message
from runtime.ports import Away

LISTEN_AGAIN_S = 5.0
PROVE_S = 60.0
PROOF_S = 1.0
"""How long news may take to arrive."""
FLOOD = 100
"""So many news within a second are more than anybody can follow: then the ear is closed for `LISTEN_AGAIN_S`."""


class Ear:
    """One connection that listens; `redis` writes a key now and then, to hear of it. `row` is of what is sent."""

    def __init__(self, url: str, redis: Any, row: Row | None = None) -> None:
        self._url = url
        self._row = row or Row()
        self._redis = lent(redis, self._row)
        self._proof = keys.trial(f"{os.getpid():x}-{secrets.token_hex(6)}")
        self._open = False
        self._changed_at = time.monotonic()
        self._asked_at = self._proved_at = float("-inf")
        self._count = 0
        self._counted = anyio.Event()
        self._second = (0, 0)
        """The running second, and how many news came in it."""

    @property
    def hears(self) -> bool:
        """The server tells of what is written, or did a minute ago."""
        return self._open and time.monotonic() - self._proved_at < PROVE_S + LISTEN_AGAIN_S + PROOF_S

    @property
    def settling(self) -> bool:
        """Whether it hears will show."""
        known_after_s = PROOF_S if self._open else LISTEN_AGAIN_S + PROOF_S
        return time.monotonic() - max(self._asked_at, self._changed_at) < known_after_s

    async def news(self, after: int) -> int:
        """How much news there was, once that is more than `after`. That the ear was opened or closed counts too: what
        was written before that is not told of. May be cancelled."""
        while self._count <= after:
            await self._counted.wait()
        return self._count

    async def run(self) -> None:
        """Listen until cancelled, over connections of its own, one after the other. Weather is not told of here."""
        redis = connect(self._url, connections=1, row=self._row)
        try:
            while True:
                try:
                    with suppress(Away), away_when_lost("listen"):
                        await self._listen(redis)
                finally:
                    self._open, self._changed_at = False, time.monotonic()
                    self._tell()
                await anyio.sleep(LISTEN_AGAIN_S)
        finally:
            with anyio.CancelScope(shield=True):
                await redis.aclose()

    async def _listen(self, redis: Any) -> None:
        """Return when it is too much."""
        self._second = (0, 0)
        about = f"__keyspace@{redis.get_connection_kwargs().get('db') or 0}__:"
        async with redis.pubsub() as channel:
            await channel.psubscribe(f"{about}{keys.JOB}*")
            await channel.subscribe(f"{about}{self._proof}")
            while not self._flooded():
                prove_in_s = PROVE_S - (time.monotonic() - self._asked_at) if self._open else PROVE_S
                if prove_in_s <= 0:
                    self._asked_at = time.monotonic()
                    await self._redis.set(self._proof, "", px=1000)
                    continue
                message = await next_message(channel, prove_in_s)
                if message is not None:
                    self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        match message["type"], message["data"]:
            case "subscribe", _:  # the second of the two
                self._open, self._asked_at, self._proved_at = True, float("-inf"), float("-inf")
                self._tell()
            case "message", b"set":
                self._proved_at = time.monotonic()
            case "pmessage", data:
                second, count = self._second
                now = int(time.monotonic())
                self._second = (now, count + 1 if second == now else 1)
                if data == b"set":
                    self._tell()
            case _:
                pass

    def _flooded(self) -> bool:
        return self._second[1] > FLOOD

    def _tell(self) -> None:
        self._count += 1
        counted, self._counted = self._counted, anyio.Event()
        counted.set()
