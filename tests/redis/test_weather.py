"""What is known of Redis, from what its callers were answered."""

from __future__ import annotations

import asyncio
import time

import pytest

from runtime import Client
from runtime.adapters.redis import keys
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.redis.weather import Weather
from runtime.ports import Away
from tests.redis.store import no_claim
from tests.servers import Server

LOST = Away("connection refused", "look")
REFUSED = Away("the server is out of memory (OOM)", "claim", refused=True)


def made() -> tuple[Weather, list[float]]:
    backs: list[float] = []
    weather = Weather(backs.append)
    weather.answered("claim", "q")
    assert weather.away is None
    assert backs == []  # it was not asked yet, which is no being away
    return weather, backs


def cause(weather: Weather) -> str | None:
    return weather.away


@pytest.mark.parametrize("what", ["claim", "settle", "wait", "look", "ping", "extend"])
def test_any_answer_gets_over_a_loss(what: str) -> None:
    weather, backs = made()
    weather.failed("look", LOST, "q")
    assert cause(weather) == "look: connection refused"
    weather.answered(what, "q")
    assert cause(weather) is None
    assert len(backs) == 1


@pytest.mark.parametrize(("what", "queue"), [("ping", ""), ("look", "q"), ("settle", "q"), ("claim", "other")])
def test_a_refusal_is_got_over_by_what_was_refused_and_by_nothing_else(what: str, queue: str) -> None:
    weather, backs = made()
    weather.failed("claim", REFUSED, "q")
    weather.answered(what, queue)
    assert cause(weather) == "claim: the server is out of memory (OOM)"
    assert backs == []
    weather.answered("claim", "q")
    assert cause(weather) is None
    assert len(backs) == 1


def test_a_refused_wait_is_got_over_in_whatever_order_the_queues_are_named(redis_url: str) -> None:
    """A puller names first the queue that it has not asked for longest."""

    async def wait_twice() -> str | None:
        source = RedisSource(redis_url, lease_s=10.0)
        try:
            await source.redis.rpush(keys.mark("a"), "spoiled")
            with pytest.raises(Away):
                await source.wait(["a", "b"], 0.05, 0, no_claim)
            await source.redis.delete(keys.mark("a"))
            await source.wait(["b", "a"], 0.05, 0, no_claim)
            return source.away
        finally:
            await source.close()

    assert asyncio.run(wait_twice()) is None


def test_the_latest_trouble_is_told_and_it_is_over_when_all_is() -> None:
    weather, backs = made()
    weather.failed("claim", REFUSED, "q")
    weather.failed("settle", Away("x", "settle", refused=True), "q")
    weather.failed("claim", LOST, "q")
    assert cause(weather) == "look: connection refused"
    weather.answered("look", "q")
    assert cause(weather) == "settle: x"
    weather.answered("settle", "q")
    assert backs == []
    weather.answered("claim", "q")
    assert len(backs) == 1


def test_a_look_is_no_evidence_that_redis_works_for_us() -> None:
    """Nor a claim that finds nothing, nor a settlement: out of memory, a server does all three."""
    weather = Weather()
    for what in ("look", "claim", "settle", "extend"):
        weather.answered(what, "q")
        assert not weather.fresh
    weather.answered("ping")
    assert weather.fresh


def test_a_claim_that_brings_jobs_is(redis_url: str) -> None:
    async def claim() -> tuple[bool, bool]:
        weather = Weather()
        source = RedisSource(redis_url, lease_s=10, weather=weather)
        await source.claim("q", 1)
        nothing = weather.fresh
        client = Client(redis_url)
        await client.enqueue("work", options={"queue": "q"})
        await source.claim("q", 1)
        await client.close()
        await source.close()
        return nothing, weather.fresh

    assert asyncio.run(claim()) == (False, True)


@pytest.mark.parametrize("trouble", [LOST, Away("the server is a replica (READONLY)", "ping", refused=True)])
def test_who_waits_learns_of_what_others_found_out(redis_url: str, trouble: Away) -> None:
    async def main() -> None:
        weather = Weather()
        source = RedisSource(redis_url, lease_s=10, weather=weather, waiters=2)
        try:
            waits = [asyncio.ensure_future(source.wait([queue], 15, 0, no_claim)) for queue in ("a", "b")]
            await asyncio.sleep(0.3)
            weather.failed("ping", trouble)
            for wait in waits:
                with pytest.raises(Away, match=rf"^wait: {trouble.cause.split()[0]}"):
                    await asyncio.wait_for(wait, 5)
            # It was not the wait that was refused.
            await source.ping()
            assert source.away is None
        finally:
            await source.close()

    asyncio.run(main())


def test_many_who_ask_at_once_are_one_question_that_takes_a_second(server: Server, redis_url: str) -> None:
    async def main() -> None:
        source = RedisSource(redis_url, lease_s=10)
        try:
            server.pause()
            began = time.monotonic()
            await asyncio.gather(*(source.probe() for _ in range(20)))
            assert 0.9 < time.monotonic() - began < 1.9
            assert source.away == "ping: no answer in time"
            began = time.monotonic()
            await source.probe()  # asked just now
            assert time.monotonic() - began < 0.5
        finally:
            server.resume()
            await source.close()

    asyncio.run(main())


def test_an_event_loop_that_was_blocked_is_no_fault_of_redis(redis_url: str) -> None:
    async def wait_and_block() -> tuple[str | None, str | None]:
        source = RedisSource(redis_url, lease_s=10)
        waiting = asyncio.ensure_future(source.wait(["q"], 0.5, 0, no_claim))
        await asyncio.sleep(0.1)
        time.sleep(5)  # longer than the wait, and whatever an answer may take beyond it
        try:
            return await waiting, source.away
        finally:
            await source.close()

    assert asyncio.run(wait_and_block()) == (None, None)
