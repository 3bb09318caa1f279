"""`runtime sentinel` as a process, and inside an asyncio service: real servers, producers of stock arq, a real port."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import runtime
from runtime.adapters.payload import to_json
from runtime.adapters.redis import keys
from runtime.adapters.redis.heartbeats import LIVE_S
from runtime.adapters.sentinel import BUSY_S
from runtime.core.alarm import SLOW_LOOK_S
from tests.e2e.jobs import generate
from tests.e2e.waking import Door, enqueue_by_arq, somebody_awake
from tests.processes import Worker, enqueue
from tests.redis.test_heartbeats import BEAT
from tests.servers import Server

ANNOUNCED_S = 2.0
"""A second, on a machine that is busy with other things."""
LOOKED_S = SLOW_LOOK_S + ANNOUNCED_S


@pytest.fixture
def own() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as door:
        yield door


@contextmanager
def redis_of(server: Server) -> Iterator[Any]:
    with Redis.from_url(server.url, decode_responses=True) as redis:
        yield redis


@contextmanager
def watching(
    server: Server, door: Door, *, announced: bool, arguments: tuple[str, ...] = ("-Q", "arq:queue")
) -> Iterator[Worker]:
    """A sentinel that has found out whether this server announces new jobs."""
    with redis_of(server) as redis:
        redis.config_set("notify-keyspace-events", "K$" if announced else "")
    with Worker(command="sentinel", arguments=arguments, redis=server.tcp_url, RUNTIME_WAKE_URL=door.url) as sentinel:
        sentinel.start().wait_for("SENTINEL_HEARING", announced=announced)
        yield sentinel


@pytest.mark.parametrize(("announced", "within_s"), [(True, ANNOUNCED_S), (False, LOOKED_S)], ids=["events", "looks"])
def test_a_job_of_stock_arq_is_rung_for(own: Server, door: Door, announced: bool, within_s: float) -> None:
    with watching(own, door, announced=announced) as sentinel:
        for n in range(3):
            at = enqueue_by_arq(own.url)
            after_s = door.rung_after(at)
            assert after_s < within_s
            assert len(door.rung_at) == n + 1
            sentinel.wait_for("SENTINEL_RANG", n + 1, queues=["arq:queue"], wake_url=door.url)
            with redis_of(own) as redis:
                redis.delete("arq:queue")  # as if a worker had come
            time.sleep(SLOW_LOOK_S + 1)
        assert sentinel.stop() == 0
        assert sentinel.events("SENTINEL_SHUTDOWN")
        assert not sentinel.errors()


@pytest.mark.parametrize("announced", [True, False], ids=["events", "looks"])
def test_a_deferred_job_is_rung_for_when_it_is_due_and_not_before(own: Server, door: Door, announced: bool) -> None:
    with watching(own, door, announced=announced):
        at = enqueue_by_arq(own.url, _defer_by=SLOW_LOOK_S + 3)
        after_s = door.rung_after(at)
        assert SLOW_LOOK_S + 2.9 < after_s < SLOW_LOOK_S + 3 + ANNOUNCED_S


@pytest.mark.parametrize("announced", [True, False], ids=["events", "looks"])
def test_who_is_awake_is_left_alone_until_he_is_gone(own: Server, door: Door, announced: bool) -> None:
    with watching(own, door, announced=announced):
        with somebody_awake(own.url):
            enqueue_by_arq(own.url)
            time.sleep(SLOW_LOOK_S + 2)
            enqueue_by_arq(own.url)
            time.sleep(1)
            assert not door.rung_at
        left_at = time.time()
        after_s = door.rung_after(left_at)
        assert after_s < LOOKED_S, "the jobs are still there"


def test_a_killed_workers_job_is_rung_for_when_its_lease_lapses(own: Server, door: Door) -> None:
    with (
        watching(own, door, announced=True, arguments=("-Q", "ai-jobs")),
        Worker("tests.e2e.jobs", redis=own.url, RUNTIME_LEASE="3s").up() as worker,
    ):
        enqueue(own.url, generate.request(60.0))
        worker.wait_for("JOB_STARTED")
        door.rung_at.clear()  # while it booted nobody was awake yet
        time.sleep(4)
        assert not door.rung_at
        worker.kill()
        with redis_of(own) as redis:
            (_, due_ms), *_ = redis.zrange("ai-jobs", 0, 0, withscores=True)
        late_s = door.rung_after(0) - due_ms / 1000
        assert -0.01 < late_s < ANNOUNCED_S


@pytest.mark.parametrize("announced", [True, False], ids=["events", "looks"])
def test_a_worker_that_sleeps_is_woken_for_a_job_of_stock_arq(own: Server, announced: bool) -> None:
    with (
        Worker("tests.e2e.jobs", redis=own.url, RUNTIME_HTTP="on", PORT=0, RUNTIME_SLEEP_AFTER="5s").up() as worker,
        redis_of(own) as redis,
    ):
        redis.config_set("notify-keyspace-events", "K$" if announced else "")
        (listening,) = worker.wait_for("HTTP_LISTENING")
        address = f"http://127.0.0.1:{listening['message'].split()[-1]}/wake"
        with Worker(
            command="sentinel", arguments=("-Q", "arq:queue"), redis=own.url, RUNTIME_WAKE_URL=address
        ).start() as sentinel:
            sentinel.wait_for("SENTINEL_HEARING", announced=announced)
            for n in range(1, 3):
                worker.wait_for("WORKER_QUIET", n)
                at = enqueue_by_arq(own.url)
                worker.wait_for("JOB_COMPLETED", n)
                took_s = time.time() - at
                assert took_s < (ANNOUNCED_S if announced else LOOKED_S) + 1
                rung = sentinel.wait_for("SENTINEL_RANG", n)
                assert len(rung) == n


def test_who_is_still_counted_though_his_host_has_vanished_does_not_keep_it_from_ringing(
    own: Server, door: Door
) -> None:
    with watching(own, door, announced=True), somebody_awake(own.url, beat_ago_s=LIVE_S - 3):
        at = enqueue_by_arq(own.url)
        after_s = door.rung_after(at)
        assert 2.5 < after_s < 3 + LOOKED_S


def test_who_came_and_is_gone_again_is_rung_for_again_at_once(own: Server, door: Door) -> None:
    with watching(own, door, announced=True), redis_of(own) as redis:
        for n in range(1, 4):
            at = enqueue_by_arq(own.url)
            assert door.rung_after(at) < ANNOUNCED_S
            assert len(door.rung_at) == n
            with somebody_awake(own.url):
                redis.delete("arq:queue")
                time.sleep(2 * BUSY_S)
            time.sleep(0.1)


def test_a_ring_that_nobody_answers_is_told_once(own: Server) -> None:
    with Door(status=403) as door, watching(own, door, announced=True) as sentinel:
        enqueue_by_arq(own.url)
        (told,) = sentinel.wait_for("SENTINEL_UNANSWERED", wake_url=door.url)
        assert "status 403" in told["message"]
        assert (sentinel.output() + sentinel.errors()).count("status 403") == 1


def test_a_restart_of_redis_is_weather(door: Door, tmp_path: Path) -> None:
    with Server(data=tmp_path) as own, watching(own, door, announced=True) as sentinel:
        own.stop()
        sentinel.wait_for("REDIS_AWAY")
        own.start()
        sentinel.wait_for("REDIS_BACK")
        sentinel.wait_for("SENTINEL_HEARING", announced=False)  # what was configured at run time is gone
        at = enqueue_by_arq(own.url)
        after_s = door.rung_after(at)
        assert after_s < LOOKED_S
        assert sentinel.stop() == 0


def test_a_job_written_while_the_sentinel_was_cut_off_is_found(own: Server, door: Door) -> None:
    with watching(own, door, announced=True), redis_of(own) as redis:
        with redis.pipeline(transaction=True) as pipe:
            pipe.client_kill_filter(_type="pubsub", skipme=True)
            pipe.set("arq:job:unheard", b"")
            pipe.zadd("arq:queue", {"unheard": 1.0})
            pipe.execute()
        at = time.time()
        after_s = door.rung_after(at)
        assert after_s < LOOKED_S


def test_the_queues_of_workers_that_sleep_are_watched(own: Server, door: Door) -> None:
    with redis_of(own) as redis:
        redis.hset(keys.WORKERS, "a-1", to_json(BEAT).decode())
        redis.config_set("notify-keyspace-events", "K$")

    async def serve() -> float:
        async with runtime.sentinel(redis_url=own.url, wake_urls=[door.url]):
            await asyncio.sleep(1)
            at = await asyncio.to_thread(enqueue_by_arq, own.url, "exports")
            return await asyncio.to_thread(door.rung_after, at)

    assert asyncio.run(serve()) < ANNOUNCED_S


def test_it_lives_and_ends_with_the_block_of_a_service(
    own: Server, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="runtime.sentinel")

    async def serve() -> None:
        async with runtime.sentinel("arq:queue", redis_url=own.url, wake_urls=[door.url]):
            await asyncio.to_thread(enqueue_by_arq, own.url)
            await asyncio.to_thread(door.rung_after, 0)
            raise KeyError("of the service")

    async def service() -> None:
        with pytest.raises(KeyError, match="of the service"):
            await serve()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with redis_of(own) as redis:
            assert len(redis.client_list()) == 1

    asyncio.run(service())
    events = [record.__dict__.get("event") for record in caplog.records]
    assert (events[0], events[-1]) == ("SENTINEL_BOOT", "SENTINEL_SHUTDOWN")


def test_a_service_without_an_address_to_ring_at_is_told_so(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_WAKE_URL", raising=False)

    async def serve() -> None:
        async with runtime.sentinel(redis_url=own.url):
            raise AssertionError

    with pytest.raises(runtime.SettingsInvalid, match="nobody to ring"):
        asyncio.run(serve())


def test_at_rest_it_sends_two_commands_a_look(own: Server, door: Door) -> None:
    with watching(own, door, announced=False), redis_of(own) as redis:
        redis.config_resetstat()
        began = time.monotonic()
        time.sleep(2.5 * SLOW_LOOK_S)
        stats = redis.info("commandstats")
        looks = int((time.monotonic() - began) / SLOW_LOOK_S) + 1
        ours = {
            name: stat["calls"]
            for name, stat in stats.items()
            if name not in ("cmdstat_info", "cmdstat_config|resetstat")
        }
        assert set(ours) == {"cmdstat_time", "cmdstat_zrange"}
        assert 4 <= sum(ours.values()) <= 2 * looks


def test_sigterm_ends_it_while_redis_is_away(door: Door) -> None:
    with Worker(
        command="sentinel", arguments=("-Q", "q"), redis="redis://127.0.0.1:1/0", RUNTIME_WAKE_URL=door.url
    ).start() as sentinel:
        sentinel.wait_for("REDIS_AWAY")
        sentinel.send(signal.SIGTERM)
        assert sentinel.wait() == 0
        assert not sentinel.errors()
