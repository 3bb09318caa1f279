"""Being counted among those who are awake, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Lost

from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import REPLY_S
from runtime.adapters.redis.presence import Presence
from tests.servers import Server

QUEUES = ("q", "r")


def present(url: str, test: Callable[[Presence, asyncio.Task[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        presence = Presence(url, QUEUES)
        running = asyncio.create_task(presence.run())
        async with asyncio.timeout(30):
            await presence.counted.wait()
            await test(presence, running)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await presence.close()

    asyncio.run(run())


async def counted(url: str) -> list[int]:
    async with Redis.from_url(url) as redis:
        return [int(n) for _, n in await redis.pubsub_numsub(*map(keys.here, QUEUES))]


async def until(url: str, expected: list[int]) -> None:
    async with asyncio.timeout(15):
        while True:
            with suppress(Lost, OSError):
                if await counted(url) == expected:
                    return
            await asyncio.sleep(0.05)


def test_who_leaves_is_counted_no_longer_when_it_returns_and_may_come_again(redis_url: str) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        for _ in range(5):
            assert await counted(redis_url) == [1, 1]
            await presence.leave()
            assert await counted(redis_url) == [0, 0]
            presence.appear()
            await presence.counted.wait()

    present(redis_url, test)


def test_who_leaves_in_the_turn_in_which_it_was_to_appear_does_not(redis_url: str) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        await presence.leave()
        presence.appear()
        await presence.leave()
        await asyncio.sleep(0.5)
        assert await counted(redis_url) == [0, 0]
        presence.appear()
        await until(redis_url, [1, 1])

    present(redis_url, test)


def test_it_stays_on_one_connection_for_longer_than_a_reply_may_take(redis_url: str) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        async with Redis.from_url(redis_url) as redis:
            before = {client["id"] for client in await redis.client_list(_type="pubsub")}
            for _ in range(round(10 * (REPLY_S + 1))):
                await asyncio.sleep(0.1)
                assert presence.counted.is_set()
                assert await counted(redis_url) == [1, 1]
            assert {client["id"] for client in await redis.client_list(_type="pubsub")} == before

    present(redis_url, test)


def test_it_is_counted_again_after_a_restart_of_the_server(redis_url: str, server: Server) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        await asyncio.to_thread(server.restart)
        await until(redis_url, [1, 1])
        await presence.counted.wait()
        await presence.leave()
        assert await counted(redis_url) == [0, 0]

    present(redis_url, test)


def test_a_connection_that_will_not_close_does_not_end_it(redis_url: str) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        pool = presence._redis.connection_pool  # what fails in it cannot be had from outside
        disconnect = pool.disconnect

        async def fail() -> None:
            await disconnect()
            raise OSError("no answer to the close")

        pool.disconnect = fail
        await presence.leave()
        presence.appear()
        await until(redis_url, [1, 1])
        assert not running.done()
        pool.disconnect = disconnect

    present(redis_url, test)


def test_retired_it_is_not_counted_any_more_and_who_leaves_then_is_not_kept_waiting(redis_url: str) -> None:
    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        presence.retire()
        await running
        await until(redis_url, [0, 0])
        async with asyncio.timeout(1):
            await presence.leave()
        presence.appear()
        await asyncio.sleep(0.2)
        assert await counted(redis_url) == [0, 0]

    present(redis_url, test)
