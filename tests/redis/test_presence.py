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
from tests.processes import until as facts
from tests.servers import Server

QUEUES = ("q", "r")
INCARNATION = "a-1"
TOKEN = f"1795000000123457:{INCARNATION}:7"


def present(
    url: str, test: Callable[[Presence, asyncio.Task[None]], Awaitable[None]], told: list[str] | None = None
) -> None:
    """`told` is given the runs that are to stop."""
    told = [] if told is None else told

    async def run() -> None:
        presence = Presence(url, QUEUES, INCARNATION, told.append)
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


async def call_out(url: str, token: str = TOKEN) -> int:
    """Say that the run of this token is to stop; how many have heard it."""
    async with Redis.from_url(url) as redis:
        return int(await redis.publish(keys.stop(INCARNATION), token))


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
        await until(redis_url, [0, 0])
        async with asyncio.timeout(1):
            await presence.leave()
        presence.appear()
        await asyncio.sleep(0.2)
        assert await counted(redis_url) == [0, 0]

    present(redis_url, test)


def test_it_tells_of_the_runs_that_are_to_stop_and_of_nothing_after_it_has_left(redis_url: str) -> None:
    told: list[str] = []

    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        assert await call_out(redis_url) == 1
        assert await call_out(redis_url, "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")) == 1
        await facts(lambda: len(told) == 2)
        assert told[0] == TOKEN
        await presence.leave()
        assert await call_out(redis_url) == 0

    present(redis_url, test, told)


def test_retired_it_is_still_told_of_the_runs_that_are_to_stop(redis_url: str) -> None:
    told: list[str] = []

    async def test(presence: Presence, running: asyncio.Task[None]) -> None:
        presence.retire()
        async with asyncio.timeout(15):
            while not await call_out(redis_url):
                await asyncio.sleep(0.01)
        await facts(lambda: told == [TOKEN])
        assert await counted(redis_url) == [0, 0]
        assert not presence.counted.is_set()

    present(redis_url, test, told)
