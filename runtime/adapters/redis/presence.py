"""Being counted among the workers that are awake: a live subscription to a channel of each queue.

A key with a TTL would go on saying so after a SIGKILL; a subscription ends with its connection. Nothing is published.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio

from runtime.adapters.egress import Row
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import TROUBLE, away_when_lost, connect, next_message
from runtime.ports import Away

CONFIRM_S = 4.0
"""How long the server may take to confirm that the subscription is over."""
RETRY_S = (0.2, 5.0)
SILENCE_S = 60.0
"""One read of a connection on which nothing comes. Without a time of its own it would take the connection's for a
reply, and be over after that; that the other end is gone is the kernel's to find out."""


class Presence:
    """One connection for all queues. `run` keeps it, through any weather, for as long as it is wanted."""

    def __init__(self, url: str, queues: Sequence[str], row: Row | None = None) -> None:
        self._redis = connect(url, connections=1, row=row)
        self._channels = [keys.here(queue) for queue in queues]
        self._subscription: Any = None
        self._serving = anyio.CancelScope()
        self._staying = anyio.CancelScope()
        self._wanted = anyio.Event()
        self._wanted.set()
        self._gone = anyio.Event()
        self._gone.set()
        self.counted = anyio.Event()
        """Set while the server counts us."""

    async def run(self) -> None:
        """Until cancelled, or retired."""
        with self._serving:
            await self._be_counted()

    async def _be_counted(self) -> None:
        retry_s, most_s = RETRY_S
        while True:
            while not self._wanted.is_set():  # after a wait, too: who appears may leave in the same turn
                await self._wanted.wait()
            self._gone = anyio.Event()
            try:
                with suppress(*TROUBLE), anyio.CancelScope() as self._staying:
                    await self._stay()
                    retry_s = RETRY_S[0]
            finally:
                self.counted = anyio.Event()
                await self._drop()
                self._gone.set()
            if self._wanted.is_set():
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, most_s)

    async def _stay(self) -> None:
        """Return when unsubscribed; raises when the connection ends."""
        subscription = self._subscription = self._redis.pubsub()
        await subscription.subscribe(*self._channels)
        confirmed = 0
        while subscription.subscribed:
            # Nothing comes but confirmations, and the end of the connection.
            message = await next_message(subscription, SILENCE_S)
            confirmed += message is not None and message["type"] == "subscribe"
            if confirmed == len(self._channels):
                self.counted.set()

    def appear(self) -> None:
        """Be counted again, soon."""
        self._wanted.set()

    def renew(self) -> None:
        """Be counted over a new connection: the one that is there may lead to a server that is the primary no more."""
        self._staying.cancel()

    async def leave(self) -> None:
        """Be counted no longer; returns when the server has confirmed it. Raises `Away` where it does not."""
        self._wanted = anyio.Event()
        with away_when_lost("leave"), anyio.move_on_after(CONFIRM_S):
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            await self._gone.wait()
            return
        raise Away("no answer in time", "leave")

    def retire(self) -> None:
        """Be counted no longer, for good, as soon as the server sees the connection end: this worker is to stop."""
        self._serving.cancel()

    async def close(self) -> None:
        await self._redis.aclose()

    async def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        with anyio.CancelScope(shield=True):
            if subscription is not None:
                with suppress(*TROUBLE):
                    await subscription.aclose()
            with suppress(*TROUBLE):
                await self._redis.connection_pool.disconnect()
