"""How the use of limits is counted: in memory, sent with the heartbeat, added up over the workers."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.adapters.redis import keys, tally
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.tally import Counts
from runtime.core.limits import Bucket, Granted, Refused, Reserved
from runtime.ports import Away
from tests.redis.store import Store

REQUESTS = Bucket("openai.requests", "60/m", burst=2)
TOKENS = Bucket("openai.tokens", "90000/m")
NAMES = [REQUESTS.name, TOKENS.name, "openai"]


@pytest.fixture
def limits(store: Store) -> RedisLimits:
    return RedisLimits(store.scripts)


def kept(store: Store, *names: str) -> list[Counts]:
    return store.run(tally.read(store.scripts, names or NAMES))


def commands(store: Store) -> int:
    stats: dict[str, Any] = store.redis.info("commandstats")
    return sum(stat["calls"] for name, stat in stats.items() if name != "cmdstat_info")


def test_takes_waits_and_refusals_are_counted_and_sent_together(store: Store, limits: RedisLimits) -> None:
    async def use() -> None:
        for _ in range(2):
            assert isinstance(await limits.take({REQUESTS: 1, TOKENS: 900}, 10), Granted)
        first = await limits.take({REQUESTS: 1, TOKENS: 900}, 10)
        assert isinstance(first, Reserved)
        again = await limits.take({REQUESTS: 1, TOKENS: 900}, 10, held=first.id)  # too early: it has to wait on
        assert isinstance(again, Reserved)
        assert isinstance(await limits.take({REQUESTS: 1}, 0.5), Refused)

    store.run(use())
    assert kept(store) == [Counts()] * 3, "nothing is sent with a take"
    store.run(limits.send_counts())
    requests, tokens, _ = kept(store)
    assert (requests.takes, requests.tokens, requests.waits, requests.refused) == (2, 2, 1, 1)
    assert 1500 < requests.waited_ms <= 2000
    assert (tokens.takes, tokens.tokens, tokens.waits, tokens.refused) == (2, 1800, 0, 0)


def test_what_two_workers_count_is_added_up_and_nothing_twice(store: Store) -> None:
    async def use() -> None:
        for limits in (RedisLimits(store.scripts), RedisLimits(store.scripts)):
            await limits.take({TOKENS: 100}, 10)
            await limits.send_counts()
            await limits.send_counts()

    store.run(use())
    assert kept(store)[1] == Counts(takes=2, tokens=200)


def test_what_was_used_beside_the_estimate_is_counted(store: Store, limits: RedisLimits) -> None:
    async def use() -> None:
        for more in (-300, 120, -1):
            granted = await limits.take({TOKENS: 1000}, 10)
            assert isinstance(granted, Granted)
            await limits.settle({TOKENS: more}, granted.at_us)
        await limits.send_counts()

    store.run(use())
    assert kept(store)[1] == Counts(takes=3, tokens=3000, more=120, less=301)


def test_what_a_breaker_keeps_back_is_counted_under_its_name(store: Store, limits: RedisLimits) -> None:
    async def use() -> None:
        await limits.report("openai", "broken", "call", "insufficient_quota")
        assert isinstance(await limits.take({TOKENS: 1000}, 10, breaker="openai"), Refused)
        await limits.send_counts()

    store.run(use())
    assert kept(store) == [Counts(), Counts(), Counts(kept_back=1)]


def test_a_429_is_seen_at_once(store: Store, limits: RedisLimits) -> None:
    before_ms = store.now_ms()
    store.run(limits.close({REQUESTS: 1, TOKENS: 1}, 5))
    for counts in kept(store)[:2]:
        assert counts.met == 1
        assert counts.met_ms is not None
        assert before_ms - 1 <= counts.met_ms <= store.now_ms()


def test_a_bucket_of_a_key_is_counted_under_the_name_that_all_keys_share(store: Store, limits: RedisLimits) -> None:
    async def use() -> None:
        await limits.take({TOKENS["ana@example.com"]: 5}, 10)
        await limits.close({TOKENS["ana@example.com"]: 5}, 1)
        await limits.send_counts()

    store.run(use())
    assert (kept(store)[1].takes, kept(store)[1].met) == (1, 1)
    counted = [key for key in store.redis.keys("*") if ":count:" in key]
    assert counted == [keys.bucket_count(TOKENS.name)], "a key may be a person's"


def test_a_take_costs_no_more_commands_and_a_worker_that_took_nothing_sends_none(
    store: Store, limits: RedisLimits
) -> None:
    store.run(limits.take({TOKENS: 1}, 10))
    store.run(limits.send_counts())
    before = commands(store)
    store.run(limits.take({TOKENS: 1}, 10))
    assert commands(store) - before == 4, "the script, its clock, what it reads and what it writes"
    store.run(limits.send_counts())
    before = commands(store)
    store.run(limits.send_counts())
    assert commands(store) == before


def test_a_key_of_a_wrong_type_keeps_no_other_from_being_counted(store: Store, limits: RedisLimits) -> None:
    store.spoil(keys.bucket_count(REQUESTS.name))

    async def use() -> None:
        await limits.take({REQUESTS: 1, TOKENS: 7}, 10)
        await limits.close({REQUESTS: 1, TOKENS: 7}, 1)
        await limits.send_counts()

    store.run(use())
    assert [kept(store)[0], kept(store)[1].tokens, kept(store)[1].met] == [Counts(), 7, 1]


def test_what_is_no_count_is_left_out(store: Store) -> None:
    hostile = {"takes": "-1", "tokens": "9" * 5000, "waits": "\x1b[2J", "refused": "7", "met_ms": str(2**60)}
    store.redis.hset(keys.bucket_count("openai"), mapping=hostile)
    store.redis.expire(keys.bucket_count("openai"), 60)
    assert kept(store)[2] == Counts(refused=7)


def test_counts_of_a_lost_server_are_dropped(store: Store) -> None:
    async def use() -> None:
        limits, nobody = RedisLimits(store.scripts), connect("redis://127.0.0.1:1")
        await limits.take({TOKENS: 7}, 10)
        limits._redis = nobody
        with pytest.raises(Away):
            await limits.send_counts()
        limits._redis = store.scripts
        await limits.send_counts()
        await nobody.aclose()

    store.run(use())
    assert kept(store)[1] == Counts()
