"""Hearing what the server tells of jobs that anybody writes, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
from arq.connections import RedisSettings, create_pool
from redis.asyncio import Redis

from runtime.adapters.redis import ear as module
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.ear import FLOOD, LISTEN_AGAIN_S, Ear
from tests.servers import Server


@pytest.fixture
def own() -> Iterator[Server]:
    with Server() as server:
        yield server


def hearing(url: str, test: Callable[[Ear, Redis], Awaitable[None]], events: str | None = "K$") -> None:
    async def run() -> None:
        redis = connect(url)
        if events is not None:
            await redis.config_set("notify-keyspace-events", events)
        ear = Ear(url, redis)
        running = asyncio.create_task(ear.run())
        try:
            async with asyncio.timeout(40):
                await test(ear, redis)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert not ear.hears
            await redis.aclose()

    asyncio.run(run())


async def until_it_hears(ear: Ear) -> None:
    while not ear.hears:
        await asyncio.sleep(0.01)


def test_a_job_of_stock_arq_is_news_at_once(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        await until_it_hears(ear)
        pool = await create_pool(RedisSettings.from_dsn(own.tcp_url))
        known = await ear.news(0)
        for _ in range(10):
            await pool.enqueue_job("work")
            async with asyncio.timeout(1):
                known = await ear.news(known)
        await pool.aclose()

    hearing(own.url, test)


def test_who_begins_to_listen_is_told_to_look_at_what_was_there(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        assert await ear.news(0) > 0

    hearing(own.url, test)


def test_what_is_written_to_other_keys_is_no_news(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        await until_it_hears(ear)
        known = await ear.news(0)
        for n in range(10):
            await redis.set(f"cache:{n}", "x")
        await redis.set("arq:job:a", "x")
        assert await ear.news(known) == known + 1

    hearing(own.url, test)


def test_a_server_that_tells_nothing_is_found_out(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        await ear.news(0)
        await asyncio.sleep(0.5)
        assert not ear.hears

    hearing(own.url, test, events="")


def test_a_user_who_may_not_listen_is_no_trouble(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        await ear.news(0)
        await asyncio.sleep(LISTEN_AGAIN_S + 0.5)
        assert not ear.hears

    with_acl = own.tcp_url.replace("redis://", "redis://deaf:secret@")

    async def forbid() -> None:
        async with Redis.from_url(own.url) as redis:
            await redis.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "resetchannels", "+@all")

    asyncio.run(forbid())
    hearing(with_acl, test, events=None)


def test_more_news_than_anybody_can_follow_close_the_ear_for_a_while(own: Server) -> None:
    async def test(ear: Ear, redis: Redis) -> None:
        await until_it_hears(ear)
        async with redis.pipeline(transaction=False) as pipe:
            for n in range(10 * FLOOD):
                pipe.set(f"arq:job:{n}", "x")
            await pipe.execute()
        async with asyncio.timeout(1):
            while ear.hears:
                await asyncio.sleep(0.01)
        known = await ear.news(0)
        assert known < 2 * FLOOD
        await until_it_hears(ear)
        assert await ear.news(known) > known

    hearing(own.url, test)


def test_it_hears_again_after_a_restart_of_the_server(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTEN_AGAIN_S", 0.2)

    async def test(ear: Ear, redis: Redis) -> None:
        await until_it_hears(ear)
        await asyncio.to_thread(own.restart)
        while ear.hears:
            await asyncio.sleep(0.01)
        with suppress(Exception):
            await redis.ping()
        await redis.config_set("notify-keyspace-events", "K$")
        await until_it_hears(ear)

    hearing(own.tcp_url, test)
