"""The egress ledger: each thing that is sent is in the row of who has sent it, and in no other."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any, cast

import anyio
import pytest

from runtime.adapters import process
from runtime.adapters.egress import MOST_APIS, SENDERS, Egress
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.connection import lent
from runtime.adapters.redis.heartbeats import Heartbeats
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.permits import RedisPermits
from runtime.adapters.redis.presence import Presence
from runtime.adapters.redis.source import RedisSource
from runtime.client import Client
from runtime.core.limits import Bucket, Concurrency
from tests.doorstep import Doorstep
from tests.redis.store import Store, no_claim
from tests.redis.test_heartbeats import BEAT

LEASE_S = 0.4
BUCKET = Bucket("api", "100/s", 100)


class Parts:
    """What a worker has that sends, put together as in `app.py`."""

    def __init__(self, store: Store, bell: str, url: str = "") -> None:
        url, egress = url or store.url, Egress()
        self.store = store
        self.egress = egress
        self.keeper = LeaseKeeper(url, LEASE_S, lambda away: None, egress.of("leases"))
        self.source = RedisSource(url, lease_s=LEASE_S, keeper=self.keeper, egress=egress)
        self.limits = RedisLimits(lent(self.source.redis, egress.of("limits")))
        permits = egress.of("permits")
        self.permits = RedisPermits(
            url, lent(self.source.redis, permits), self.source.incarnation, lambda text, key: None, permits
        )
        self.beats = Heartbeats(
            lent(self.source.redis, egress.of("heartbeat")), self.source.incarnation, lambda: BEAT, self._nothing
        )
        self.client = Client(url, wake_urls=[bell], egress=egress)

    async def _nothing(self) -> None: ...

    def sends(self) -> dict[str, int]:
        return {entry.by: entry.sends for entry in self.egress.entries()}

    async def close(self) -> None:
        self.keeper.close()
        await self.client.close()
        await self.permits.close()
        await self.source.close()


async def claims(parts: Parts) -> None:
    await parts.source.claim(parts.store.queue, 1)


async def waits(parts: Parts) -> None:
    await parts.source.wait([parts.store.queue], 0.05, 0, no_claim)


async def looks(parts: Parts) -> None:
    await parts.source.due_in(parts.store.queue)


async def listens(parts: Parts) -> None:
    with anyio.move_on_after(0.1):
        await parts.source.listen()


async def beats(parts: Parts) -> None:
    await parts.beats.beat()


async def is_counted(parts: Parts) -> None:
    presence = Presence(parts.store.url, [parts.store.queue], "a-1", lambda token: None, parts.egress.of("presence"))
    async with anyio.create_task_group() as group:
        group.start_soon(presence.run)
        await presence.counted.wait()
        await presence.leave()
        group.cancel_scope.cancel()
    await presence.close()


async def takes_tokens(parts: Parts) -> None:
    await parts.limits.take({BUCKET: 1}, 1.0)


async def enqueues(parts: Parts) -> None:
    await parts.client.enqueue("work")


async def rings(parts: Parts) -> None:
    parts.client._doorbell.ring()
    await parts.client.rung()


@pytest.mark.parametrize(
    ("does", "by"),
    [
        (claims, "jobs"),
        (waits, "waiting"),
        (looks, "waiting"),
        (listens, "ear"),
        (beats, "heartbeat"),
        (is_counted, "presence"),
        (takes_tokens, "limits"),
        (rings, "doorbell"),
    ],
)
def test_what_is_sent_is_entered_for_who_has_sent_it_and_for_nobody_else(
    store: Store, does: Callable[[Parts], Awaitable[None]], by: str
) -> None:
    async def live() -> None:
        with Doorstep(202) as step:
            parts = Parts(store, step.url)
            try:
                await claims(parts)  # connects
                await does(parts)  # has its script loaded
                before = parts.sends()
                await does(parts)
                after = parts.sends()
                assert [name for name in after if after[name] != before.get(name)] == [by]
                assert parts.egress.entries()[0].by == by
            finally:
                await parts.close()

    store.run(live())


def test_a_job_that_is_held_moves_the_row_of_leases_while_it_is(store: Store) -> None:
    async def live() -> None:
        parts = Parts(store, "http://127.0.0.1:1/wake")
        try:
            parts.keeper.start()
            await enqueues(parts)
            assert set(parts.sends()) >= {"client"}
            assert "leases" not in parts.sends()
            (claim,) = (await parts.source.claim(store.queue, 1)).claims
            parts.keeper.hold([claim], lambda token, notice: None)
            permit = await parts.permits.acquire(Concurrency("one", 1), claim, 1.0, nullcontext())
            assert parts.sends()["permits"] > 0
            parts.permits.release(cast(Any, permit))
            await asyncio.sleep(2 * LEASE_S)
            held = parts.sends()
            assert held["leases"] >= 3
            parts.keeper.drop([claim.token])
            await asyncio.sleep(LEASE_S / 2)
            dropped = parts.sends()["leases"]
            await asyncio.sleep(2 * LEASE_S)
            assert parts.sends()["leases"] == dropped
        finally:
            await parts.close()

    store.run(live())


def test_without_heartbeats_their_row_stands_still_whatever_else_goes_on(store: Store) -> None:
    async def live() -> None:
        parts = Parts(store, "http://127.0.0.1:1/wake")
        try:
            beating = asyncio.create_task(parts.beats.run())
            await asyncio.sleep(0.1)
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            before = parts.sends()
            assert before["heartbeat"] == 2, "one, and a look for dead ones"
            for _ in range(5):  # over the same connections
                await claims(parts)
                await takes_tokens(parts)
            after = parts.sends()
            assert after["heartbeat"] == before["heartbeat"]
            assert after["jobs"] >= before.get("jobs", 0) + 5
        finally:
            await parts.close()

    store.run(live())


def test_a_connection_that_is_opened_anew_is_not_put_down_to_who_had_it_last(store: Store) -> None:
    async def live() -> None:
        # With another database than the first, a connection has to begin with something.
        parts = Parts(store, "http://127.0.0.1:1/wake", f"{store.url}?db=1")
        try:
            await claims(parts)
            await beats(parts)
            await parts.source.disconnect()
            before = parts.sends()
            await claims(parts)
            after = parts.sends()
            assert after.pop("jobs") > before.pop("jobs") + 1, "SELECT, and the claim"
            assert after == before
        finally:
            await parts.close()

    store.run(live())


def test_the_end_of_a_connection_is_entered_too_and_no_end_of_none(store: Store) -> None:
    async def live() -> None:
        parts = Parts(store, "http://127.0.0.1:1/wake")
        try:
            await claims(parts)
            await asyncio.sleep(0.2)
            sends = parts.sends()
            await parts.source.disconnect()
            (jobs,) = parts.egress.entries()
            assert jobs.age_s < 0.1
            await asyncio.sleep(0.2)
            await parts.source.disconnect()
            parts.keeper.disconnect()
            (jobs,) = parts.egress.entries()
            assert jobs.age_s > 0.15
            assert parts.sends() == sends
        finally:
            await parts.close()

    store.run(live())


def test_the_ledger_stays_small_whatever_names_handlers_give() -> None:
    egress = Egress()
    for number in range(1000):
        egress.of_api(f"api-{number}").sent()
    entries = egress.entries()
    assert len(entries) == MOST_APIS + 1
    assert {entry.by: entry.sends for entry in entries}["ctx.http others"] == 1000 - MOST_APIS
    assert egress.of_api("api-0") is egress.of_api("api-0")
    assert len(SENDERS) + MOST_APIS < 100


def test_who_has_sent_nothing_is_not_listed_and_the_last_comes_first() -> None:
    egress = Egress()
    assert egress.entries() == []
    egress.of("jobs").sent()
    time.sleep(0.01)
    egress.of("traces").stirred()
    assert [(entry.by, entry.sends) for entry in egress.entries()] == [("traces", 0), ("jobs", 1)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_system_tells_whom_this_process_is_connected_to(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as ours:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert name not in (process.connected_to() or {})
        ours.connect((host, port))
        came, _ = listener.accept()
        with came:
            found = process.connected_to()
            assert found is not None
            # The other end is this process too, and that one came in.
            assert (found[name], found[f":{port}"]) == (1, 1)
