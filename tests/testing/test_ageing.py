"""Data that is made older is as if it had been written earlier."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.adapters.redis import keys, wire
from runtime.adapters.redis.scripts import Leased
from runtime.core.job import Call
from runtime.testing import ageing
from tests.redis.store import Store, again, body, dead, done

SECOND = 1000
HOUR = 3600 * SECOND

TREATED = {
    "<queue>": "aged",
    "arq:job:<id>": "aged: the expiry in it",
    "arq:in-progress:<id>": "expires",
    "arq:retry:<id>": "expires",
    "arq:result:<id>": "expires",
    "arq:abort": "left",
    "rt:<queue>:later": "aged",
    "rt:<queue>:mark": "no moment",
    "rt:<queue>:unknown": "no moment",
    "rt:<queue>:dead": "aged",
    "rt:<queue>:count": "no moment",
    "rt:<queue>:paused": "expires",
    "rt:<queue>:schedule": "aged",
    "rt:<queue>:timetable": "left",
    "rt:dead:<id>": "expires",
    "rt:own:<id>": "aged",
    "rt:awaited:<id>": "expires",
    "rt:once:<id>": "expires",
    "rt:unique:<id>": "expires",
    "rt:progress:<id>": "expires",
    "rt:w:<incarnation>:<queue>": "expires",
    "rt:workers": "left",
    "rt:retired:<incarnation>": "expires",
    "rt:rouse:<incarnation>:<number>": "expires",
    "rt:try:<incarnation>": "expires",
    "rt:{limit}:bucket:<label>": "clock",
    "rt:{limit}:set:<name>": "expires",
    "rt:{limit}:breaker:<name>": "clock",
    "rt:{limit}:known": "expires",
    "rt:{limit}:count:<name>": "aged",
    "rt:{limit}:quota:<quota>:<user>": "aged",
    "rt:{limit}:held:<label>": "aged",
    "rt:{limit}:waiting:<label>": "left",
    "rt:{limit}:handed:<incarnation>": "expires",
    "rt:{limit}:concurrency": "expires",
}
"""What `advance` does with each key: whoever adds one decides, in `age.lua` or with a reason in `ageing.py`."""


def test_of_every_key_it_is_known_how_it_ages() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", keys.__doc__ or "", re.MULTILINE))
    assert named == TREATED.keys()


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    with Store(redis_url) as store:
        yield store


def age(store: Store, by_ms: int) -> None:
    async def age_all() -> None:
        await ageing.age(store.scripts, by_ms, [store.queue])

    store.run(age_all())


def test_a_deferred_job_comes_due(store: Store) -> None:
    store.enqueue("a", delay_ms=HOUR)
    store.enqueue("b", delay_ms=HOUR, priority=7)
    age(store, HOUR - SECOND)
    assert store.worker().claim(2).jobs == []
    age(store, SECOND)
    assert sorted(job.id for job in store.worker().claim(2).jobs) == [b"a", b"b"]


def test_order_and_priority_are_kept(store: Store) -> None:
    store.enqueue("old", "urgent-old", priority=0)
    store.enqueue("high", priority=205)  # whose score is nearly zero
    age(store, HOUR)
    store.enqueue("new")
    store.enqueue("high-new", priority=205)
    assert store.queued() == ["high", "high-new", "old", "urgent-old", "new"]


def test_a_lease_lapses_and_the_job_gets_its_place_back(store: Store) -> None:
    store.enqueue("a")
    store.worker("w-1").one("a")
    store.enqueue("b")
    age(store, 11 * SECOND)
    store.enqueue("c")
    jobs = store.worker("w-2").claim(3).jobs
    assert [job.id for job in jobs] == [b"a", b"b", b"c"]
    assert store.own("a") is not None
    assert (store.own("a") or "").startswith("1|")  # a crash


def test_what_a_job_remembers_ages(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    worker = store.worker()
    worker.settle(again(job, 5, own=b'2|{"snoozed_since_ms":1700000000000,"unknown_since_ms":1700000000001}'))
    age(store, 1500)
    assert store.own("a") == '2|{"snoozed_since_ms":1699999998500,"unknown_since_ms":1699999998501}'


def test_an_expiry_in_a_body_ages(store: Store) -> None:
    now = wire.now_ms()
    ours = wire.encode_call("work", ("x",), {}, expires_ms=now + HOUR, priority=3)
    store.raw.set(keys.JOB + "ours", ours, px=HOUR)
    store.raw.set(keys.JOB + "endless", body())
    store.raw.set(keys.JOB + "junk", b"\x80junk")
    age(store, 2 * SECOND)
    call = wire.decode_call(store.raw.get(keys.JOB + "ours"))
    before = wire.decode_call(ours)
    assert isinstance(call, Call)
    assert isinstance(before, Call)
    assert call.expires_ms == now + HOUR - 2 * SECOND
    assert (call.args, call.enqueued_ms, call.foreign) == (before.args, before.enqueued_ms, False)
    assert HOUR - 3 * SECOND < store.raw.pttl(keys.JOB + "ours") <= HOUR - 2 * SECOND
    assert store.raw.get(keys.JOB + "endless") == body()
    assert store.raw.get(keys.JOB + "junk") == b"\x80junk"


def test_a_schedule_comes_due_unless_it_is_paused(store: Store) -> None:
    store.raw.zadd(keys.schedule(store.queue), {"daily": 1_700_000_000_000, "paused": math.inf})
    age(store, HOUR)
    assert store.raw.zscore(keys.schedule(store.queue), "daily") == 1_700_000_000_000 - HOUR
    assert store.raw.zscore(keys.schedule(store.queue), "paused") == math.inf


def test_what_expires_does_so_earlier(store: Store) -> None:
    store.raw.set("theirs", 1, px=HOUR)
    store.raw.set(keys.RESULT + "a", 1, px=10 * SECOND)
    store.raw.set("endless", 1)
    age(store, 10 * SECOND)
    assert sorted(store.raw.keys()) == [b"endless", b"theirs"]
    assert store.raw.pttl("theirs") <= HOUR - 10 * SECOND


def test_moments_of_letters_quotas_and_counts_age(store: Store) -> None:
    letters, quota, held = keys.dead(store.queue), keys.quota("exports", "ann"), keys.held("exports")
    for key in (letters, quota):
        store.raw.zadd(key, {"one": 1_700_000_000_000, "two": 1_700_000_000_500})
    store.raw.zadd(held, {"live": 0, "missing": 1_700_000_000_000})
    store.raw.hset(keys.bucket_count("judit"), mapping={"met": 2, "met_ms": 1_700_000_000_000})
    age(store, 500)
    for key in (letters, quota):
        assert store.raw.zrange(key, 0, -1, withscores=True) == [
            (b"one", 1_699_999_999_500),
            (b"two", 1_700_000_000_000),
        ]
    assert store.raw.zrange(held, 0, -1, withscores=True) == [(b"live", 0), (b"missing", 1_699_999_999_500)]
    assert store.raw.hgetall(keys.bucket_count("judit")) == {b"met": b"2", b"met_ms": b"1699999999500"}


def test_a_job_that_stock_arq_aborts_keeps_its_place(store: Store) -> None:
    store.raw.zadd(store.queue, {"aborted": 1})
    age(store, 500)
    assert store.score("aborted") == 1


def test_what_is_somebody_elses_is_left_alone(store: Store) -> None:
    store.raw.zadd("leaderboard", {"ann": 1_700_000_000_000})
    store.raw.zadd(keys.ABORT, {"a": 1_700_000_000_000})
    age(store, SECOND)
    assert store.raw.zscore("leaderboard", "ann") == store.raw.zscore(keys.ABORT, "a") == 1_700_000_000_000


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["enqueue", "defer", "claim", "retry", "finish", "kill"]),
        st.integers(0, 3),
        st.sampled_from([0, 1, 205, 1000]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS, st.integers(0, 20_000), st.integers(0, 20_000))
def test_ageing_twice_is_ageing_once(store: Store, operations: list[tuple[str, int, int]], a: int, b: int) -> None:
    store.raw.flushall()
    worker, taken = store.worker(), list[Leased]()
    for what, number, priority in operations:
        match what:
            case "enqueue" | "defer":
                delay_ms = 10 * SECOND if what == "defer" else 0
                store.enqueue(f"j{number}", priority=priority, delay_ms=delay_ms)
            case "claim":
                taken += worker.claim(1 + number).jobs
            case _ if taken:
                job = taken.pop()
                ends = {"retry": again(job, 100 * number, own=b'1|{"snoozed_since_ms":1700000000000}')}
                worker.settle(ends.get(what) or (done(job) if what == "finish" else dead(job)))
    dumped = {key: (store.raw.dump(key), max(0, store.raw.pttl(key))) for key in store.raw.scan_iter()}
    age(store, a)
    age(store, b)
    twice = contents(store.raw)
    store.raw.flushall()
    for key, (dump, left_ms) in dumped.items():
        store.raw.restore(key, left_ms, dump)
    age(store, a + b)
    once = contents(store.raw)
    edge = {key for key, (_, left_ms) in dumped.items() if left_ms > 0 and abs(left_ms - a - b) < 500}
    assert {key: value for key, (value, _) in once.items() if key not in edge} == {
        key: value for key, (value, _) in twice.items() if key not in edge
    }
    assert all(abs(once[key][1] - twice[key][1]) < 500 for key in once.keys() & twice.keys())


def contents(redis: Any) -> dict[bytes, tuple[Any, int]]:
    """Of each key its value, and how long it lives."""
    read: dict[bytes, Any] = {
        b"string": lambda key: redis.get(key),
        b"hash": lambda key: redis.hgetall(key),
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }
    return {key: (read[redis.type(key)](key), redis.pttl(key)) for key in redis.scan_iter()}
