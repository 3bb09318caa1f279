"""Sees a Redis: asks it, and really tries what a worker needs of it."""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import CONNECTIONS, TROUBLE, cause_of
from runtime.core.diagnosis.store import Saves, Store, Trial
from runtime.core.spec import DEFAULT_QUEUE
from runtime.examination.deadline import unresolved

T = TypeVar("T")
LOOK_S = 4.0
"""As long as all of this may take; what was not seen by then is left open."""
PINGS = 50
PINGS_S = 1.5
PROBE_MS = 1000
"""How long the key lives that is written."""
BLOCK_S = 0.05
HEAR_S = 0.5
"""How long an announcement may take."""
WANTED = 2 * CONNECTIONS + 5
"""The connections of a worker (`app.py`): source and client; one each of bell, ear, presence, keeper, permits."""
_WRITES = "redis.call('SET', KEYS[1], '', 'PX', ARGV[1]) return redis.call('EXISTS', KEYS[2])"


async def see(url: str, redis: Any, *, on_railway: bool) -> Store:
    """What is to be seen of the server at `url`, over `redis`. Raises nothing of the server's."""
    parts = urlsplit(url)
    look = _Look(redis, Store(scheme=parts.scheme, host=parts.hostname or "", on_railway=on_railway))
    if parts.hostname:
        cause = await unresolved(parts.hostname)
        if cause is not None:
            return replace(look.store, lost=cause)
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_S):
            await look.all()
            return look.store
    answered = bool(look.store.pings_ms)
    return look.store if answered else replace(look.store, lost="no answer in time")


class _Look:
    """One look. What is seen is in `store` at once, so that a deadline costs only the rest."""

    def __init__(self, redis: Any, store: Store) -> None:
        self._redis = redis
        self.store = store
        self._probe = keys.trial(f"{os.getpid():x}-{secrets.token_hex(6)}")

    async def all(self) -> None:
        try:
            await self._redis.ping()
        except TROUBLE as error:
            self.store = replace(self.store, lost=cause_of(error))
            return
        await self._ping()
        await self._ask_about_itself()
        self.store = replace(self.store, scripts=await self._try(self._write()))
        self.store = replace(self.store, waits=await self._try(self._block()))
        self.store = replace(self.store, clock_s=await self._if_allowed(self._compare_clocks()))
        self.store = replace(self.store, announces=await self._if_allowed(self._listen()))

    async def _ping(self) -> None:
        until = time.monotonic() + PINGS_S
        times_ms: list[float] = []
        with suppress(*TROUBLE):
            while len(times_ms) < PINGS and time.monotonic() < until:
                began = time.perf_counter()
                await self._redis.ping()
                times_ms.append(1000 * (time.perf_counter() - began))
        self.store = replace(self.store, pings_ms=tuple(times_ms))

    async def _ask_about_itself(self) -> None:
        said: dict[str, Any] = await self._if_allowed(self._redis.info()) or {}
        policy = said.get("maxmemory_policy") or await self._setting("maxmemory-policy")
        most_clients = said.get("maxclients") or await self._setting("maxclients")
        role = said.get("role")
        self.store = replace(
            self.store,
            version=_text(said.get("valkey_version") or said.get("redis_version")),
            product="Valkey" if "valkey_version" in said else "Redis",
            replica=None if role is None else role in ("slave", "replica"),
            policy=_text(policy),
            used_bytes=_number(said.get("used_memory")),
            most_bytes=_number(said.get("maxmemory")),
            saves=await self._saves(said),
            save_failed=any(
                said.get(name) == "err" for name in ("rdb_last_bgsave_status", "aof_last_write_status")
            ),
            clients=_number(said.get("connected_clients")),
            most_clients=_number(most_clients),
            wanted_clients=WANTED,
        )  # fmt: skip

    async def _saves(self, said: dict[str, Any]) -> Saves | None:
        if said.get("aof_enabled") == 1:
            return "log"
        points = await self._setting("save")
        return None if points is None else "snapshots" if points else "nothing"

    async def _setting(self, name: str) -> str | None:
        """One of its configuration; None where it does not let us ask, as hosted servers do not."""
        found: dict[str, str] = await self._if_allowed(self._redis.config_get(name)) or {}
        return found.get(name)

    async def _write(self) -> None:
        await self._redis.eval(_WRITES, 2, self._probe, DEFAULT_QUEUE, PROBE_MS)

    async def _block(self) -> None:
        await self._redis.bzpopmin(keys.mark(self._probe), BLOCK_S)

    async def _compare_clocks(self) -> float:
        before = time.time()
        seconds, microseconds = await self._redis.time()
        return float(seconds + microseconds / 1e6 - (before + time.time()) / 2)

    async def _listen(self) -> bool:
        """Whether it tells of a key that is written: tried, as hosted servers show no configuration."""
        database = self._redis.get_connection_kwargs().get("db") or 0
        async with self._redis.pubsub() as channel:
            await channel.subscribe(f"__keyspace@{database}__:{self._probe}")
            confirmed: dict[str, Any] | None = await channel.get_message(timeout=HEAR_S)
            if confirmed is None:
                return False
            await self._redis.set(self._probe, "", px=PROBE_MS)
            message: dict[str, Any] | None = await channel.get_message(timeout=HEAR_S)
            return message is not None

    async def _try(self, call: Awaitable[object]) -> Trial:
        try:
            await call
        except TROUBLE as error:
            return Trial(cause_of(error))
        return Trial()

    async def _if_allowed(self, call: Awaitable[T]) -> T | None:
        try:
            return await call
        except TROUBLE:
            return None


def _text(value: object) -> str | None:
    return None if value is None else value.decode() if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
