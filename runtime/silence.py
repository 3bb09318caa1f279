"""How a worker falls silent: every connection closed, everything stopped that sends. `ports.Stillness`."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from runtime.adapters.http.sessions import AiohttpSessions
from runtime.adapters.redis.connection import TROUBLE
from runtime.adapters.redis.heartbeats import Heartbeats
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.permits import RedisPermits
from runtime.adapters.redis.presence import Presence
from runtime.adapters.redis.source import RedisSource
from runtime.client import Client
from runtime.core.lifecycle import Due
from runtime.engine.lifetime import Lifetime
from runtime.engine.pools import Pools
from runtime.ports import Away

if TYPE_CHECKING:
    from runtime.core.schedule import Schedule

FAREWELL_S = 3.0
"""How long the last heartbeat, and the last spans, may take."""
COUNTED_S = 2.0
"""How long a worker that was called waits to be counted among those awake; then it claims, and others ring in vain."""


class Silence:
    """Knows everything of this process that has a connection."""

    def __init__(
        self,
        queues: Sequence[str],
        handlers: Collection[str],
        schedules: "Sequence[Schedule]",
        source: RedisSource,
        presence: Presence,
        keeper: LeaseKeeper,
        permits: RedisPermits,
        client: Client,
        heartbeats: Heartbeats,
        sessions: AiohttpSessions,
        pools: Pools,
        lifetime: Lifetime,
        flush_traces: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._queues = queues
        self._handlers = handlers
        self._schedules = schedules
        self._source = source
        self._presence = presence
        self._keeper = keeper
        self._permits = permits
        self._client = client
        self._heartbeats = heartbeats
        self._sessions = sessions
        self._pools = pools
        self._lifetime = lifetime
        self._flush_traces = flush_traces
        self._utterances: dict[anyio.CancelScope, anyio.Event] = {}
        """What goes on while it speaks, and when each has ended."""
        self._speaking = anyio.Event()
        self._speaking.set()

    async def leave(self) -> None:
        await self._presence.leave()

    async def due_in(self) -> Due | None:
        return await self._source.outlook(self._queues, self._handlers, self._schedules)

    async def fall_silent(self) -> None:
        self._speaking = anyio.Event()
        self._pools.close_idle()
        await self._lifetime.close()
        for scope, ended in list(self._utterances.items()):
            scope.cancel()
            await ended.wait()
        await self._say_farewell()
        if self._flush_traces is not None:
            await self._flush_traces()
        self._keeper.disconnect()
        for close in (
            self._sessions.close,
            self._permits.disconnect,
            self._client.disconnect,
            self._source.disconnect,
        ):
            with suppress(*TROUBLE):  # the other end may not answer; ours is closed all the same
                await close()

    async def _say_farewell(self) -> None:
        with anyio.move_on_after(FAREWELL_S):
            await self._heartbeats.farewell()
            return
        raise Away("no answer in time", "heartbeat")

    async def speak(self) -> None:
        self._speaking.set()
        self._presence.appear()
        await self._lifetime.open()
        with anyio.move_on_after(COUNTED_S):
            await self._presence.counted.wait()

    async def while_speaking(self, part: Callable[[], Awaitable[object]]) -> None:
        """Do `part`, which sends by itself, but not while silent. Until cancelled."""
        while True:
            while not self._speaking.is_set():  # a wait that is over may have been for an earlier time
                await self._speaking.wait()
            ended = anyio.Event()
            with anyio.CancelScope() as scope:
                self._utterances[scope] = ended
                try:
                    await part()
                finally:
                    del self._utterances[scope]
                    ended.set()
