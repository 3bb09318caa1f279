"""Heartbeats: one command each, stamped by the server's clock, swept when their workers are long dead."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import anyio
import pytest
from redis.exceptions import RedisError

from runtime.adapters.payload import to_json
from runtime.adapters.redis import heartbeats, inspector, keys
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.heartbeats import (
    BEAT_S,
    LIVE_S,
    MOST,
    SWEEP_S,
    Heartbeat,
    Heartbeats,
    Served,
    outdated,
    read,
)
from runtime.adapters.redis.source import RedisSource
from runtime.core.pool import PoolStatistics
from runtime.ports import Away
from tests.redis.store import Store
from tests.servers import Server

NOW_MS = 1_800_000_000_000
BEAT = Heartbeat(
    worker_id="worker-1",
    incarnation="a-1",
    version="1.0.0",
    host="host",
    pid=7,
    started_ms=NOW_MS - 60_000,
    at_ms=NOW_MS,
    state="awake",
    groups=(Served(("arq:queue", "ai-jobs"), 3), Served(("exports",), 2)),
    handlers=("add",),
    running=1,
    statistics={"processed": 5, "succeeded": 4, "failed": 1, "retried": 2, "peak": 3},
    redis="ok",
    rss_bytes=40_000_000,
    pools=(PoolStatistics("chromium", 3, 2, 1, 0, 7, 4, 0),),
)


def sent(beat: Heartbeat, *, ago_s: float = 0.0) -> bytes:
    return to_json(replace(beat, at_ms=round(NOW_MS - 1000 * ago_s)))


def test_what_is_sent_is_read() -> None:
    assert read(to_json(BEAT)) == BEAT
    assert (BEAT.queues, BEAT.slots) == (("arq:queue", "ai-jobs", "exports"), 5)


def test_a_later_version_may_say_more() -> None:
    assert read(json.dumps({**json.loads(to_json(BEAT)), "mood": ["good"]}).encode()) == BEAT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"7",
        b"{}",
        b"[" * 100_000,
        to_json({**json.loads(to_json(BEAT)), "pid": "seven"}),
        to_json({**json.loads(to_json(BEAT)), "at_ms": -1}),
        json.dumps({**json.loads(to_json(BEAT)), "at_ms": 10**400}).encode(),
        json.dumps({**json.loads(to_json(BEAT)), "pools": [{**asdict(BEAT.pools[0]), "idle": 10**400}]}).encode(),
        json.dumps({**json.loads(to_json(BEAT)), "pools": [{**asdict(BEAT.pools[0]), "opened": -1}]}).encode(),
    ],
    ids=range(10),
)
def test_what_is_no_heartbeat_is_none(data: bytes) -> None:
    assert read(data) is None


def test_a_worker_is_live_for_two_minutes_after_its_last() -> None:
    assert LIVE_S == 120
    assert BEAT.live(NOW_MS + 120_000)
    assert not BEAT.live(NOW_MS + 120_001)
    assert not BEAT.live(NOW_MS - 3_600_000), "nor for ever, where a clock was set back"


def test_what_is_older_than_an_hour_or_no_heartbeat_is_outdated() -> None:
    fields = {b"new": sent(BEAT), b"dead": sent(BEAT, ago_s=3599), b"long dead": sent(BEAT, ago_s=3601), b"odd": b"{"}
    assert SWEEP_S == 3600
    assert outdated(fields, BEAT) == {b"long dead", b"odd"}


def test_of_too_many_the_oldest_are_outdated() -> None:
    fields = {b"%d" % n: sent(BEAT, ago_s=n) for n in range(MOST + 2)}
    assert outdated(fields, BEAT) == {b"%d" % MOST, b"%d" % (MOST + 1)}


class Beating:
    """The heartbeats of one worker, on a real server."""

    def __init__(self, url: str) -> None:
        self.redis = connect(url)
        self.beats = Heartbeats(
            self.redis, "a-1", lambda: replace(BEAT, at_ms=round(time.time() * 1000)), self.send_counts
        )
        self.counts_sent = 0

    async def send_counts(self) -> None:
        self.counts_sent += 1
        raise Away("refused", "limit", refused=True)

    async def __aenter__(self) -> Beating:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.redis.aclose()


@asynccontextmanager
async def beating(it: Beating) -> AsyncIterator[None]:
    """They run for the block, which may take 20 s."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(it.beats.run)
            yield
            group.cancel_scope.cancel()


def test_a_worker_that_idles_sends_two_commands_a_minute_for_it(store: Store) -> None:
    async def cost() -> int:
        async with Beating(store.url) as it:
            await it.beats.beat()
            before = calls()
            for _ in range(10):
                await it.beats.beat()
            return calls() - before

    def calls() -> int:
        stats: dict[str, Any] = store.redis.info("commandstats")
        return sum(stat["calls"] for name, stat in stats.items() if name != "cmdstat_info")

    assert store.run(cost()) * 60 / BEAT_S == 10 * 2


def test_one_is_sent_at_once_then_on_and_on_and_taken_back_at_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.02)

    async def live() -> None:
        async with Beating(store.url) as it:
            for _ in range(2):  # it may be stopped and started again
                async with beating(it):
                    last = 0
                    for _ in range(3):
                        last = await changed(it, last)
            before = it.counts_sent
            assert before >= 1, "with each; that they are not taken stops no heartbeat"
            await it.beats.leave()
            assert it.counts_sent == before + 1
            assert not await it.redis.exists(keys.WORKERS)

    async def changed(it: Beating, than_ms: int) -> int:
        while True:
            _, beats = await inspector.workers(it.redis)
            if beats and beats[0].at_ms != than_ms:
                return beats[0].at_ms
            await asyncio.sleep(0.005)

    store.run(live())


def test_a_worker_that_boots_sweeps(store: Store) -> None:
    now_ms = round(time.time() * 1000)
    fields = {"fresh": to_json(replace(BEAT, at_ms=now_ms - 60_000)), "old": to_json(BEAT), "odd": b"\xff"}
    store.raw.hset(keys.WORKERS, mapping={**fields, "old": to_json(replace(BEAT, at_ms=now_ms - 3_700_000))})

    async def boot() -> None:
        async with Beating(store.url) as it, beating(it):
            while await it.redis.hexists(keys.WORKERS, "odd"):
                await asyncio.sleep(0.005)

    store.run(boot())
    assert set(store.redis.hkeys(keys.WORKERS)) == {"fresh", "a-1"}


def test_a_lost_server_is_weather_and_leaving_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.02)

    async def live(server: Server) -> None:
        async with Beating(server.tcp_url) as it:
            server.stop()
            async with beating(it):
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.start)
                while not await seen(it):
                    await asyncio.sleep(0.01)
            server.stop()
            with anyio.fail_after(10):
                await it.beats.leave()

    async def seen(it: Beating) -> bool:
        try:
            return bool((await inspector.workers(it.redis))[1])
        except RedisError:
            return False

    with Server() as server:
        asyncio.run(live(server))


def test_a_key_of_a_wrong_type_is_weather_too(store: Store) -> None:
    store.spoil(keys.WORKERS)

    async def live() -> None:
        async with Beating(store.url) as it:
            async with beating(it):
                await asyncio.sleep(0.1)
            await it.beats.leave()
            assert (await inspector.workers(it.redis))[1] == []

    store.run(live())
    assert store.is_spoiled(keys.WORKERS)


def test_a_source_knows_the_servers_clock_from_its_last_claim(store: Store) -> None:
    async def claim() -> float:
        source = RedisSource(store.url, lease_s=10)
        try:
            assert not source.claimed.is_set()
            await source.claim(store.queue, 1)
            assert source.claimed.is_set()
            await asyncio.sleep(0.05)
            return source.server_ms() - store.now_ms()
        finally:
            await source.close()

    assert abs(store.run(claim())) < 1000
