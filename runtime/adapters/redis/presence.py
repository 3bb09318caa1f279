"""Being counted among the workers that are awake, and within call: a live subscription to a channel of each queue, and
to one of this worker alone.

A key with a TTL would go on saying so after a SIGKILL; a subscription ends with its connection. On the queues' channels
nothing is published; on the worker's own, the tokens of runs that somebody wants to stop (`cancel.lua`). What is said
there while it is not connected, the keeper finds with its next beat.
"""

from collections.abc import Callable, Sequence
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
    """One connection for all. `run` keeps it, through any weather, for as long as it is wanted.

    `stop` is called with the token of a run that somebody wants to stop. Anybody may have said so: look it up.
    """

    def __init__(
        self, url: str, queues: Sequence[str], incarnation: str, stop: Callable[[str], None], row: Row | None = None
    ) -> None:
        self._redis = connect(url, connections=1, row=row)
        self._counting = [keys.here(queue) for queue in queues]
        self._own = keys.stop(incarnation)
        self._stop = stop
        self._retired = False
        self._subscription: Any = None
        self._staying = anyio.CancelScope()
        self._wanted = anyio.Event()
        self._wanted.set()
        self._gone = anyio.Event()
        self._gone.set()
        self.counted = anyio.Event()
        """Set while the server counts us."""

    async def run(self) -> None:
        """Until cancelled."""
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
            if self._wanted.is_set() and not self._staying.cancelled_caught:
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, most_s)

    async def _stay(self) -> None:
        """Return when unsubscribed; raises when the connection ends."""
        subscription = self._subscription = self._redis.pubsub()
        counting = () if self._retired else self._counting
        await subscription.subscribe(*counting, self._own)
        confirmed = 0
        while subscription.subscribed:
            message = await next_message(subscription, SILENCE_S)
            match message:
                case {"type": "subscribe"}:
                    confirmed += 1
                    if counting and confirmed > len(counting):
                        self.counted.set()
                case {"type": "message", "data": bytes(token)}:
                    self._stop(token.decode("utf-8", "replace"))
                case _:
                    pass

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
        """Be counted no longer, for good, as soon as the server sees the connection end: this worker is to stop.

        It stays within call, over another connection: what it still runs may have to be stopped.
        """
        self._retired = True
        self._staying.cancel()

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
