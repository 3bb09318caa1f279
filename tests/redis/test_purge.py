"""purge.lua: every job that nobody holds leaves its queue, and leaves nothing; who waits for one learns of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.adapters.redis import keys, queues, scripts
from runtime.adapters.redis.queues import Purged
from runtime.client import Client
from runtime.core.errors import JobCancelled, ResultUnknown
from tests.redis.store import DAY_MS, Stock, Store, again, body
from tests.redis.test_follow import ANA, follow, listening


def purge(store: Store, steps: list[int] | None = None) -> Purged:
    told = (steps if steps is not None else []).append
    return store.run(queues.purge(store.scripts, store.queue, told=told))


def traces(store: Store, job_id: str) -> list[str]:
    """What is left of a job."""
    prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.ONCE, keys.AWAITED, keys.UNIQUE, keys.RESULT)
    left = [prefix for prefix in prefixes if store.redis.exists(prefix + job_id)]
    zsets = (store.queue, store.later, keys.ABORT)
    left += [zset for zset in zsets if any(e.split("|")[-1] == job_id for e in store.redis.zrange(zset, 0, -1))]
    return left + (["unknown"] if store.redis.hexists(keys.unknown(store.queue), job_id) else [])


@pytest.mark.parametrize(
    "options", [{}, {"delay_ms": 60_000}, {"delay_ms": 60_000, "priority": 7}, {"unique_ms": 60_000}]
)
def test_nothing_is_left_of_a_job_that_waits(store: Store, options: dict[str, Any]) -> None:
    store.enqueue("a", **options)
    store.redis.set(keys.AWAITED + "a", "", px=60_000)
    store.redis.zadd(keys.ABORT, {"a": 1, "another": 2})
    assert purge(store) == Purged(1, 0)
    assert traces(store, "a") == [keys.RESULT], "for whoever waits for it"
    store.redis.delete(keys.RESULT + "a")
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["another"]
    assert store.enqueue("a", **options) == [True]


def test_what_was_started_before_goes_too_and_what_runs_stays(store: Store) -> None:
    store.enqueue("retried", "lapsed", "strange")
    worker = store.worker()
    retried, strange = worker.take("retried", "lapsed", "strange")[::2]
    store.redis.hset(keys.ONCE + "retried", "step", "done")
    worker.settle(again(retried, 60_000))
    worker.settle(again(strange, 60_000, keep=0, letter=b"new_one", flags="n"))
    store.redis.delete(keys.IN_PROGRESS + "lapsed")  # whose worker has died
    store.enqueue("held", "z")
    held = worker.one("held")
    assert purge(store) == Purged(4, 1)
    assert [traces(store, gone) for gone in ("retried", "lapsed", "strange", "z")] == [[]] * 4
    assert store.queued() == ["held"]
    assert worker.keeps(held)
    assert store.redis.zcard(store.later) == 1


def test_what_a_stock_worker_runs_stays(store: Store) -> None:
    store.enqueue("a", "b")
    stock = Stock(store)
    assert stock.claims("a")
    assert purge(store) == Purged(1, 1)
    assert store.queued() == ["a"]
    stock.finishes()
    assert store.run(store.job("a").result(timeout=5)) == "stock"


def test_a_stock_worker_that_is_about_to_claim_one_gives_up(store: Store) -> None:
    store.enqueue("a")
    holder = keys.IN_PROGRESS + "a"

    async def look_then_claim() -> object:
        pipe: Any
        async with store.arq.pipeline(transaction=True) as pipe:
            await pipe.watch(holder)
            assert not await pipe.exists(holder)
            assert await pipe.zscore(store.queue, "a")
            await queues.purge(store.scripts, store.queue)
            pipe.multi()
            pipe.psetex(holder, 1000, b"1")
            return await pipe.execute()

    with pytest.raises(Exception, match="Watched"):
        store.run(look_then_claim())
    assert traces(store, "a") == []


def test_it_goes_by_pages_and_passes_over_what_is_held(store: Store) -> None:
    store.enqueue(*[f"a-{n}" for n in range(250)])
    held = store.worker().claim(130).jobs
    store.enqueue(*[f"b-{n}" for n in range(180)], delay_ms=60_000)
    store.backlog(90)
    steps: list[int] = []
    assert purge(store, steps) == Purged(120 + 180 + 90, 130)
    assert len(steps) >= 5
    assert all(later - earlier <= queues.PAGE for earlier, later in zip([0, *steps], steps, strict=False))
    assert sorted(store.queued()) == sorted(job.id.decode() for job in held)


def test_more_than_a_page_of_held_jobs_at_one_score_hides_nothing(store: Store) -> None:
    since = store.now_ms() - 1000
    for n in range(2 * queues.PAGE + 5):
        store.waits_at(f"a-{n:03}", since)
        store.raw.set(f"{keys.IN_PROGRESS}a-{n:03}", "1", px=60_000)
    store.waits_at("b-1", since)
    store.waits_at("z", since + 1)
    assert purge(store) == Purged(2, 2 * queues.PAGE + 5)
    assert purge(store) == Purged(0, 2 * queues.PAGE + 5)


def test_scores_of_others_are_seen_too(store: Store) -> None:
    for n, score in enumerate((float("-inf"), 1, float("inf"))):
        store.waits_at(f"odd-{n}", score)
    assert purge(store) == Purged(3, 0)


def test_who_waits_for_a_job_learns_that_it_was_cancelled(store: Store) -> None:
    async def journey() -> None:
        client = Client(store.url)
        try:
            job = await client.enqueue("work", options={"queue": store.queue})
            waiting = asyncio.create_task(job.result("20s"))
            while not await store.scripts.exists(keys.AWAITED + job.id):
                await asyncio.sleep(0.01)
            another = await client.enqueue("work", options={"queue": store.queue})
            assert await queues.purge(store.scripts, store.queue) == Purged(2, 0)
            with pytest.raises(JobCancelled):
                await asyncio.wait_for(waiting, 5)
            assert await job.status() == "cancelled"
            assert await another.status() == "unknown"
            with pytest.raises(ResultUnknown):
                await another.result("5s")
            assert not await store.scripts.exists(keys.AWAITED + job.id)
            assert 0 < await store.scripts.pttl(keys.RESULT + job.id) <= queues.TOLD_MS
        finally:
            await client.close()

    store.run(journey())
    assert not store.redis.exists(keys.count(store.queue)), "none of them has ended by running"


def test_the_end_is_told_to_who_is_noted(store: Store) -> None:
    store.enqueue("a", "b")
    follow(store, "a")
    with listening(store) as heard:
        store.run(scripts.purge(store.scripts, store.queue, "-inf", 0, 10, b"gone", 1000))
        assert heard.news() == [(ANA, b"1:agone")]


def test_an_empty_queue_is_purged_in_one_step(store: Store) -> None:
    steps: list[int] = []
    assert purge(store, steps) == Purged(0, 0)
    assert steps == [0]


@pytest.mark.parametrize("which", ["later", "abort", "unknown"])
def test_a_key_of_a_wrong_type_stops_nothing(store: Store, which: str) -> None:
    store.enqueue("a")
    store.spoil({"later": store.later, "abort": keys.ABORT, "unknown": keys.unknown(store.queue)}[which])
    assert purge(store) == Purged(1, 0)
    assert store.queued() == []


def test_others_are_left_alone(store: Store) -> None:
    with Store(store.url, "other") as other:
        other.enqueue("theirs", delay_ms=60_000, priority=7)
        store.enqueue("a", delay_ms=60_000, priority=7)
        purge(store)
        assert other.queued() == ["theirs"]
        assert other.redis.zcard(other.later) == 1


def test_entries_of_running_jobs_stay_in_later(store: Store) -> None:
    store.enqueue("a")
    store.worker(lease_ms=60_000).one("a")
    when = store.score("a")
    store.raw.set(keys.JOB + "b", body(), px=DAY_MS)
    store.raw.zadd(store.queue, {"b": when})
    assert store.run(scripts.purge(store.scripts, store.queue, "-inf", 0, 10, b"x", 1000)).gone == 1
    assert [entry.split("|")[-1] for entry in store.redis.zrange(store.later, 0, -1)] == ["a"]
