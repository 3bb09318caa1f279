"""Ids that are unique for a time: `enqueue.lua` with `unique_ms`, and what ends a job by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ResponseError

from runtime.adapters.redis import inspector, keys, scripts, wire
from runtime.adapters.redis.scripts import NewJob
from runtime.client import Client
from runtime.core.job import Cancelled, Claim, Done, Settlement
from runtime.core.quota import Allowance, Counted
from tests.redis.store import DAY_MS, Stock, Store, body, dead, done
from tests.redis.test_cancel import cancel
from tests.redis.test_source import QUEUE, bench, ends

HOUR_MS = 3_600_000


def unique(store: Store, job_id: str = "a", *, ms: int = HOUR_MS, **options: Any) -> bool:
    (added,) = store.enqueue(job_id, unique_ms=ms, **options)
    return added


def over(store: Store, job_id: str = "a") -> None:
    """As if its time were over."""
    assert store.redis.delete(keys.UNIQUE + job_id)


def run_to_its_end(store: Store, job_id: str = "a", **how: Any) -> None:
    worker = store.worker(f"{job_id}-1")
    worker.settle(done(worker.one(job_id), **how))


def test_within_its_time_an_id_is_taken_whatever_became_of_its_job(store: Store) -> None:
    assert unique(store)
    assert 0.99 * HOUR_MS < store.raw.pttl(keys.UNIQUE + "a") <= HOUR_MS
    assert not unique(store), "it waits"
    worker = store.worker()
    job = worker.one("a")
    assert not unique(store), "it runs"
    worker.settle(done(job, result=b"", result_ms=0))
    assert not store.redis.exists(keys.RESULT + "a")
    assert not unique(store), "it has ended, and no result was kept"
    assert store.enqueue("a") == [False], "also for a job that is not to be unique itself"
    assert store.queued() == []


def test_an_id_that_is_still_taken_says_for_how_long(store: Store) -> None:
    def left_s() -> float | None:
        return store.run(inspector.job(store.scripts, "a", [store.queue])).unique_left_s

    assert left_s() is None
    unique(store)
    run_to_its_end(store, result=b"", result_ms=0)
    assert left_s() == pytest.approx(3600, abs=10)
    over(store)
    assert left_s() is None


def test_when_its_time_is_over_the_id_is_free_although_a_result_lies_there(store: Store) -> None:
    unique(store)
    worker = store.worker()
    job = worker.one("a")
    store.redis.hset(keys.ONCE + "a", "step", "done")
    worker.settle(dead(job))
    assert store.redis.exists(keys.ONCE + "a") == 1, "for whoever replays it"
    over(store)
    assert store.enqueue("a") == [False], "a result takes the id of a job that is not unique, as ever"
    assert unique(store)
    assert store.queued() == ["a"]
    assert not store.redis.exists(keys.RESULT + "a", keys.ONCE + "a"), "what was the earlier job's is not this one's"
    assert store.redis.exists(keys.LETTER + "a") == 1, "nothing is deleted unread"


def test_a_job_that_has_not_ended_keeps_its_id_beyond_its_time(store: Store) -> None:
    unique(store, delay_ms=HOUR_MS)
    over(store)
    assert not unique(store), "it waits"
    unique(store, "b")
    worker = store.worker()
    worker.one("b")
    over(store, "b")
    assert not unique(store, "b"), "it runs"
    store.redis.delete(keys.JOB + "b")
    assert not unique(store, "b"), "it runs, and its body has expired"


def test_what_is_refused_changes_nothing(store: Store) -> None:
    unique(store, text="first", delay_ms=5000)
    store.redis.set(keys.RESULT + "a", "x", px=1000)
    over(store)
    assert not unique(store, text="second")
    assert store.raw.get(keys.JOB + "a") == body("first")
    assert store.redis.exists(keys.RESULT + "a") == 1
    assert not store.redis.exists(keys.UNIQUE + "a")


def test_a_job_that_is_cancelled_before_it_runs_frees_its_id(store: Store) -> None:
    unique(store)
    assert cancel(store, "a") == "cancelled"
    assert store.redis.exists(keys.RESULT + "a") == 1
    assert unique(store)


def test_a_job_that_is_cancelled_as_it_runs_frees_its_id(store: Store) -> None:
    unique(store)
    worker = store.worker()
    worker.settle(done(worker.one("a"), flags="fx"))
    assert unique(store)


def test_a_job_that_ends_otherwise_does_not(store: Store) -> None:
    for flags in ("c", "f"):
        unique(store, flags)
        run_to_its_end(store, flags, flags=flags)
        assert not unique(store, flags)


def test_a_dead_letter_is_replayed_within_its_time_and_after_it(store: Store) -> None:
    unique(store)
    for again in (False, True):
        worker = store.worker(f"{again}-1")
        worker.settle(dead(worker.one("a"), b'{"id": "a"}'))
        if again:
            over(store)
        assert store.run(scripts.revive(store.scripts, store.queue, "a", priority=0)) == "done"
        assert not unique(store), "the replayed job has the id"
    run_to_its_end(store)
    assert unique(store)


def test_a_resend_knows_its_own_job_even_when_it_has_ended(store: Store) -> None:
    assert unique(store, text="mine")
    assert unique(store, text="mine", again=True)
    run_to_its_end(store)
    assert unique(store, text="mine", again=True)
    assert not unique(store, text="another", again=True)
    assert not unique(store, text="mine")
    assert store.queued() == []


def test_a_job_without_a_time_leaves_no_trace(store: Store) -> None:
    store.enqueue("a")
    assert not store.redis.exists(keys.UNIQUE + "a")
    store.redis.hset(keys.ONCE + "b", "step", "done")
    store.redis.expire(keys.ONCE + "b", 60)
    store.enqueue("b")
    assert store.redis.exists(keys.ONCE + "b") == 1


def test_what_is_found_counts_for_nobody(store: Store) -> None:
    counted = Counted("quota", "user", None, Allowance(hourly=1))
    assert unique(store, counted=counted)
    run_to_its_end(store, result=b"", result_ms=0)
    assert not unique(store, counted=counted), "and is no reason to refuse"


def test_a_spoiled_queue_leaves_nothing(store: Store) -> None:
    store.spoil(store.queue)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        unique(store)
    assert not store.redis.exists(keys.JOB + "a", keys.UNIQUE + "a")


def test_stock_arq_does_not_heed_it_and_its_job_is_found(store: Store) -> None:
    unique(store)
    run_to_its_end(store, result=b"", result_ms=0)
    stock = store.run(store.arq.enqueue_job("work", _job_id="a"))
    assert stock is not None, "arq knows bodies and results"
    assert not unique(store)
    over(store)
    assert not unique(store), "its job waits"
    worker = Stock(store)
    assert worker.claims("a")
    assert not unique(store), "its job runs"
    worker.finishes()
    assert unique(store), "arq's result is taken away like ours"
    assert store.run(store.job("a").result_info()) is None


def test_a_unique_id_costs_three_commands_more(store: Store) -> None:
    def cost(job_id: str, ms: int) -> int:
        store.redis.config_resetstat()
        store.enqueue(job_id, unique_ms=ms)
        stats = store.redis.info("commandstats")
        aside = ("cmdstat_info", "cmdstat_config|resetstat")
        return sum(stat["calls"] for name, stat in stats.items() if name not in aside)

    unique(store, "warm")
    assert cost("a", HOUR_MS) - cost("b", 0) <= 3


def test_the_letter_of_an_earlier_job_does_not_say_how_this_one_ended(store: Store) -> None:
    async def status() -> str:
        client = Client(store.url)
        try:
            return await client.status("a", store.queue)
        finally:
            await client.close()

    unique(store)
    worker = store.worker()
    job = worker.one("a")
    worker.settle(dead(job, b'{"id": "a"}'))
    assert store.run(status()) == "dead"
    over(store)
    assert unique(store)
    assert store.run(status()) == "waiting"
    now = wire.now_ms()
    claim = Claim("a", store.queue, "", "", 1, 1, wire.decode_call(body()), body(), now)
    worker.settle(done(worker.one("a"), wire.encode_result(Settlement(claim, Done(7), now, now))))
    assert store.run(status()) == "completed"
    assert store.run(inspector.job(store.scripts, "a", [store.queue])).job.state == "completed"


def test_our_worker_says_of_a_cancelled_job_that_it_was(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            new = [NewJob(name, body(), DAY_MS, unique_ms=HOUR_MS) for name in ("a", "b")]
            await scripts.enqueue(it.source.redis, QUEUE, new)
            a, b = await it.claim(2)
            assert await it.settle(ends(a, Cancelled()), ends(b, Done(1))) == ["settled"] * 2
            assert [it.raw.exists(keys.UNIQUE + name) for name in ("a", "b")] == [0, 1]

    asyncio.run(main())
