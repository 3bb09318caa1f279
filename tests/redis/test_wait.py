"""A wait and the claim behind it: one question, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import NewJob
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.redis.weather import Weather
from runtime.core.job import Done
from runtime.ports import Away, Pulled
from tests.processes import until
from tests.redis.store import DAY_MS, body
from tests.redis.test_source import Bench, bench, ends
from tests.relay import Relay
from tests.servers import Server

OTHER = "other:queue"
THIRD = "third:queue"
QUEUE = "arq:queue"


class Waiter:
    """One `wait` after another, over all three queues, each of which was claimed from."""

    def __init__(self, it: Bench, source: RedisSource | None = None) -> None:
        self.source = source or it.source
        self.pulled: list[Pulled] = []
        self._raw = it.raw

    async def __call__(self, room: int = 10, timeout_s: float = 10.0) -> str | None:
        return await self.source.wait([OTHER, THIRD, QUEUE], timeout_s, room, self.pulled.append)

    async def begin(self, room: int = 10) -> asyncio.Task[str | None]:
        """A wait that the server holds."""
        await self.first_claims()
        waiting = asyncio.create_task(self(room))
        await until(lambda: self._raw.info("clients")["blocked_clients"], 5)
        return waiting

    async def first_claims(self) -> None:
        for queue in (OTHER, THIRD, QUEUE):
            await self.source.claim(queue, 1)

    @property
    def jobs(self) -> list[str]:
        return [claim.id for pulled in self.pulled for claim in pulled.claims]


async def enqueue(it: Bench, queue: str, *ids: str) -> None:
    assert all((await scripts.enqueue(it.source.redis, queue, [NewJob(one, body(one), DAY_MS) for one in ids])).added)


def run(url: str, main: Callable[[Bench, Waiter], Awaitable[None]]) -> None:
    async def with_bench() -> None:
        async with bench(url) as it:
            await main(it, Waiter(it))

    asyncio.run(with_bench())


@pytest.mark.parametrize("queue", [OTHER, THIRD, QUEUE])
def test_what_is_announced_comes_with_the_wait(redis_url: str, queue: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin(room=2)
        before = it.raw.info("stats")["total_reads_processed"]
        await enqueue(it, queue, "a", "b", "c")
        assert await waiting is None
        assert it.raw.info("stats")["total_reads_processed"] - before <= 3  # these two looks, and the enqueue
        (pulled,) = waiter.pulled
        assert (pulled.queue, waiter.jobs, pulled.more) == (queue, ["a", "b"], True)
        assert await it.source.settle(queue, [ends(claim, Done(1)) for claim in pulled.claims]) == ["settled"] * 2
        assert await waiter() is None  # there is one more, and the claim has said so
        assert waiter.jobs == ["a", "b", "c"]

    run(redis_url, main)


def test_where_two_queues_have_jobs_the_one_that_was_not_claimed_from_is_named(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        it.raw.delete(keys.mark(OTHER))
        await enqueue(it, OTHER, "a")
        it.raw.delete(keys.mark(OTHER))
        await enqueue(it, QUEUE, "b")
        assert await waiter() == QUEUE
        assert waiter.jobs == ["a"]

    run(redis_url, main)


def test_a_queue_whose_jobs_are_not_due_is_passed_over(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        job = NewJob("later", body("later"), DAY_MS, delay_ms=60_000)
        await scripts.enqueue(it.source.redis, OTHER, [job])
        await enqueue(it, THIRD, "a")
        await waiter()
        assert waiter.jobs == ["a"]

    run(redis_url, main)


def test_a_queue_of_a_wrong_type_keeps_nothing_from_the_others(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        it.raw.set(OTHER, "no queue")
        await enqueue(it, QUEUE, "a")
        assert await waiter() is None
        assert waiter.jobs == ["a"]

    run(redis_url, main)


def test_when_the_time_is_over_it_has_looked(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        it.puts("silent", body("silent"))
        assert await waiter(timeout_s=0.05) is None
        assert waiter.jobs == ["silent"]

    run(redis_url, main)


def test_without_room_nothing_is_claimed(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin(room=0)
        await enqueue(it, QUEUE, "a")
        assert await waiting == QUEUE
        assert waiter.pulled == []

    run(redis_url, main)


def test_roused_it_ends_at_once_and_leaves_nothing(redis_url: str, assert_keys_bounded: Callable[..., None]) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        it.source.rouse([QUEUE, OTHER, THIRD])  # nobody waits
        waiting = await waiter.begin()
        began = time.monotonic()
        for _ in range(3):
            it.source.rouse([QUEUE, OTHER, THIRD])
        assert await waiting is None
        assert time.monotonic() - began < 0.5
        assert [pulled.claims for pulled in waiter.pulled] == [[]]
        assert it.raw.keys("rt:rouse:*") == []
        assert it.raw.info("clients")["connected_clients"] <= 4  # none had to be given up

    run(redis_url, main)


def test_roused_before_it_is_on_its_way_it_ends_too(redis_url: str, assert_keys_bounded: Callable[..., None]) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        it.raw.delete(keys.mark(QUEUE), keys.mark(OTHER))
        waiting = asyncio.create_task(waiter())
        await asyncio.sleep(0)
        it.source.rouse([OTHER, THIRD, QUEUE])
        async with asyncio.timeout(1):
            assert await waiting is None
        assert_keys_bounded(redis_url)

    run(redis_url, main)


def test_roused_while_the_server_hangs_it_is_given_up_after_a_second(server: Server, redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin()
        server.pause()
        try:
            it.source.rouse([OTHER, THIRD, QUEUE])
            began = time.monotonic()
            assert await waiting is None
            assert it.source.away is None  # what is wrong, the next question will tell
            assert 0.5 < time.monotonic() - began < 3
        finally:
            server.resume()
        await enqueue(it, QUEUE, "a")
        assert [claim.id for claim in (await it.source.claim(QUEUE, 1)).claims] == ["a"]

    run(redis_url, main)


@pytest.mark.parametrize("turns", range(6))
def test_roused_while_it_is_being_given_up_it_is_weather_like_any_other(redis_url: str, turns: int) -> None:
    """However many turns of the event loop lie between the two."""

    async def main(it: Bench, waiter: Waiter) -> None:
        weather = Weather()
        waiter.source = RedisSource(redis_url, lease_s=10, weather=weather)
        try:
            waiting = await waiter.begin()
            weather.failed("claim", Away("connection refused"))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter.source.rouse([OTHER, THIRD, QUEUE])
            ended = (await asyncio.gather(waiting, return_exceptions=True))[0]
            assert ended is None or isinstance(ended, Away)  # roused before that, it may be answered in time
        finally:
            await waiter.source.close()

    run(redis_url, main)


@pytest.mark.parametrize("how", ["cancelled", "silence"])
def test_what_it_claimed_when_its_answer_is_lost_comes_with_the_next_claim(
    server: Server, redis_url: str, how: str
) -> None:
    """It was made once, and none other is made before that one is asked for again; also without room."""

    async def main(it: Bench, waiter: Waiter) -> None:
        with Relay(server.url.removeprefix("unix://")) as relay:
            source = RedisSource(relay.url, lease_s=10)
            waiter.source = source
            try:
                held = relay.hold(_waits_and_claims, reply=True)
                waiting = await waiter.begin()
                await enqueue(it, QUEUE, "a")
                await until(lambda: it.raw.exists(keys.IN_PROGRESS + "a"), 5)
                if how == "cancelled":
                    waiting.cancel()
                else:
                    relay.strand()
                    source.rouse([OTHER, THIRD, QUEUE])
                (ended,) = await asyncio.gather(waiting, return_exceptions=True)
                assert isinstance(ended, asyncio.CancelledError) if how == "cancelled" else ended is None
                held.let_go()
                assert await waiter(timeout_s=0.01) is None
                assert waiter.pulled == []  # not before it was asked for again
                (claim,) = (await source.claim(QUEUE, 0)).claims
                assert (claim.id, claim.starts) == ("a", 1)
                assert (await source.claim(QUEUE, 1)).claims == []
            finally:
                await source.close()

    run(redis_url, main)


def test_a_lease_that_this_worker_has_lost_unknowingly_is_no_matter_for_a_wait(redis_url: str) -> None:
    """It says that there is more, and leaves it to a claim by itself."""

    async def main(it: Bench, waiter: Waiter) -> None:
        await enqueue(it, QUEUE, "a")
        await waiter.first_claims()  # and nobody keeps its lease
        await asyncio.sleep(0.06)
        assert await waiter(timeout_s=0.01) is None
        (pulled,) = waiter.pulled
        assert pulled.more
        assert waiter.jobs == []
        await waiter(timeout_s=0.01)
        assert waiter.pulled == [pulled]
        assert (await it.source.claim(QUEUE, 1)).more
        await waiter(timeout_s=0.01)
        assert waiter.pulled == [pulled]  # that it is nobody's is also said by a claim
        assert [claim.id for claim in (await it.source.claim(QUEUE, 1)).claims] == ["a"]

    async def with_bench() -> None:
        async with bench(redis_url, lease_s=0.05) as it:
            await main(it, Waiter(it))

    asyncio.run(with_bench())


def test_a_wait_whose_connection_the_server_thinks_alive_claims_nothing_for_nobody(
    server: Server, redis_url: str
) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        with Relay(server.url.removeprefix("unix://")) as relay:
            waiter.source = source = RedisSource(relay.url, lease_s=10)
            try:
                waiting = await waiter.begin()
                relay.strand()
                source.rouse([OTHER, THIRD, QUEUE])
                assert await waiting is None
                assert it.raw.info("clients")["blocked_clients"] == 1
                assert (await source.claim(QUEUE, 0)).claims == []
                assert it.raw.info("clients")["blocked_clients"] == 0
                await enqueue(it, QUEUE, "a")
                assert [claim.id for claim in (await source.claim(QUEUE, 1)).claims] == ["a"]
            finally:
                await source.close()

    run(redis_url, main)


@pytest.mark.parametrize(("lease_s", "handed"), [(10.0, ["a"]), (1.0, [])])
def test_after_an_answer_that_was_read_late_the_server_does_not_choose_the_moment(
    server: Server, redis_url: str, lease_s: float, handed: list[str]
) -> None:
    """Who stood still is not to be given what others would begin at once; nor what others may have by now."""

    async def main(it: Bench, waiter: Waiter) -> None:
        with Relay(server.url.removeprefix("unix://")) as relay:
            waiter.source = source = RedisSource(relay.url, lease_s=lease_s)
            try:
                held = relay.hold(_waits_and_claims, reply=True)
                waiting = await waiter.begin()
                await enqueue(it, QUEUE, "a")
                await asyncio.sleep(0.6)
                held.let_go()
                assert await waiting == (None if handed else QUEUE)
                assert waiter.jobs == handed
                again = [claim.id for claim in (await source.claim(QUEUE, 1)).claims]
                assert handed + again == ["a"]
                for queue in (OTHER, THIRD):
                    await source.claim(queue, 1)
                await enqueue(it, OTHER, "b")
                assert await waiter() == OTHER
                assert waiter.jobs == handed
            finally:
                await source.close()

    run(redis_url, main)


def test_a_wait_that_is_just_ending_may_be_roused(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin()
        (wait,) = it.source._waits.values()
        assert wait.limit is not None
        wait.limit.end(Away("lost"))
        await asyncio.sleep(0)  # it is on its way out
        it.source.rouse([OTHER, THIRD, QUEUE])
        assert await waiting is None

    run(redis_url, main)


def _waits_and_claims(command: Sequence[bytes]) -> bool:
    return command[0] == b"EVALSHA" and command[2] == b"15"


def test_a_server_that_has_forgotten_the_script_is_asked_again(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin()
        it.raw.script_flush()
        await enqueue(it, QUEUE, "a")
        assert await waiting == QUEUE
        assert [claim.id for claim in (await it.source.claim(QUEUE, 1)).claims] == ["a"]

    run(redis_url, main)


def test_a_refused_claim_is_away_and_what_was_announced_is_not_forgotten(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        waiting = await waiter.begin()
        before = it.raw.config_get("maxmemory")["maxmemory"]
        await enqueue_then_fill(it)
        try:
            with pytest.raises(Away, match="out of memory"):
                await waiting
            assert it.source.away
        finally:
            it.raw.config_set("maxmemory", before)
        assert [claim.id for claim in (await it.source.claim(QUEUE, 1)).claims] == ["a"]
        await waiter.first_claims()
        assert it.source.away is None

    run(redis_url, main)


async def enqueue_then_fill(it: Bench) -> None:
    """A job is announced at the moment from which the server takes nothing more."""
    pipe: Any = it.raw.pipeline(transaction=True)
    pipe.set(keys.JOB + "a", body("a"), px=DAY_MS)
    pipe.zadd(QUEUE, {"a": time.time_ns() // 1_000_000})
    pipe.zadd(keys.mark(QUEUE), {"0": 0})
    pipe.config_set("maxmemory", 1)
    pipe.execute()
