"""cancel.lua: a job that nobody holds leaves the queue at once, one that is held gets a flag; else nothing happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from arq.jobs import JobStatus

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import CancelReply
from runtime.client import Cancel, Client
from tests.redis.store import DAY_MS, Stock, Store, again, body, done


def cancel(store: Store, job_id: str) -> Cancel:
    async def ask() -> Cancel:
        client = Client(store.url)
        try:
            return await client.cancel(job_id, store.queue)
        finally:
            await client.close()

    return store.run(ask())


def call(store: Store, job_id: str, seen: bytes = b"", result: bytes = b"") -> CancelReply:
    return store.run(
        scripts.cancel(store.scripts, store.queue, job_id, body=seen, result=result, result_ms=1000 if result else 0)
    )


def everything(store: Store) -> dict[str, object]:
    return {key: store.raw.dump(key) for key in store.raw.scan_iter(count=1000)}


def is_over(store: Store, job_id: str) -> None:
    """Its result is all that is left of it."""
    prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.LETTER)
    assert not [prefix for prefix in prefixes if store.redis.exists(prefix + job_id)]
    for zset in (store.queue, store.later, keys.ABORT):
        assert not [entry for entry in store.redis.zrange(zset, 0, -1) if entry.split("|")[-1] == job_id], zset
    assert not store.redis.hexists(keys.unknown(store.queue), job_id)
    assert store.redis.hgetall(keys.count(store.queue)) == {"failed": "1"}


# -- nobody holds it


@pytest.mark.parametrize("options", [{}, {"delay_ms": 60_000}, {"delay_ms": 60_000, "priority": 7}, {"priority": 7}])
def test_a_job_that_was_never_started_is_over_at_once(store: Store, options: dict[str, Any]) -> None:
    store.enqueue("a", **options)
    store.enqueue("b")
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")
    assert store.queued() == ["b"]
    assert store.run(store.job("a").status()) is JobStatus.complete
    assert 3_590_000 < store.raw.pttl(keys.RESULT + "a") <= 3_600_000


@pytest.mark.parametrize("priority", [0, 7])
def test_a_job_that_waits_for_another_attempt_is_over_at_once(store: Store, priority: int) -> None:
    store.enqueue("a", priority=priority)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 60_000, own=b"1|{}"))
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")
    info = store.run(store.job("a").result_info())
    assert info is not None
    assert info.job_try == 1


def test_a_job_whose_handler_nobody_knows_is_over_at_once(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), 60_000, keep=0, letter=b"new_one", flags="n"))
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")


def test_a_job_whose_lease_has_lapsed_is_over_and_its_late_worker_settles_nothing(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker(lease_ms=1)
    job, other = worker.take("a", "b")
    store.lapse(job, other)
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")
    assert not worker.keeps(job)
    assert worker.settle(done(job, b"zombie")).verdicts == "0"
    assert store.raw.get(keys.RESULT + "a") != b"zombie"
    assert worker.keeps(other)


def test_a_body_that_cannot_be_read_is_cancelled_like_any_other(store: Store) -> None:
    store.waits_at("a", store.now_ms())
    store.raw.set(keys.JOB + "a", b"no pickle", px=60_000)
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")


def test_an_empty_body_and_odd_starts_leave_a_result_too(store: Store) -> None:
    store.waits_at("a", store.now_ms() - 1000)
    store.raw.set(keys.JOB + "a", b"", px=DAY_MS)
    store.raw.set(keys.RETRY + "a", "many")
    assert cancel(store, "a") == "cancelled"
    is_over(store, "a")
    assert store.run(store.job("a").result_info()) is not None


def test_a_job_is_cancelled_only_with_the_body_its_result_was_made_of(store: Store) -> None:
    store.enqueue("a", text="second")
    before = everything(store)
    assert call(store, "a", body("first"), b"result of the first") == CancelReply("changed", body("second"), 0)
    assert everything(store) == before
    assert call(store, "a", body("second"), b"result") == CancelReply("cancelled")


def test_a_call_whose_reply_was_lost_is_told_the_same_again(store: Store) -> None:
    store.enqueue("a")
    assert call(store, "a", body(), b"result").said == "cancelled"
    assert call(store, "a", body(), b"result").said == "cancelled"
    assert store.redis.hgetall(keys.count(store.queue)) == {"failed": "1"}
    assert cancel(store, "a") == "gone", "by another call"


def test_another_result_of_a_job_that_is_gone_is_not_that_of_this_call(store: Store) -> None:
    store.redis.set(keys.RESULT + "a", "of another", ex=60)
    assert call(store, "a", body(), b"result").said == "gone"
    store.spoil(keys.RESULT + "a")
    assert call(store, "a", body(), b"result").said == "gone"


def test_a_flag_that_nobody_has_seen_goes_with_the_job(store: Store) -> None:
    store.enqueue("a")
    store.redis.zadd(keys.ABORT, {"a": 5})
    assert call(store, "a", body(), b"result").said == "cancelled"
    is_over(store, "a")


INDEXES = ["rt:arq:queue:later", "rt:arq:queue:unknown", "rt:arq:queue:count", keys.ABORT, keys.RETRY + "a"]


@pytest.mark.parametrize("key", INDEXES)
def test_r19_a_key_of_a_wrong_type_does_not_stop_it(store: Store, key: str) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), 60_000))
    store.spoil(key)
    assert call(store, "a", body(), b"result").said == "cancelled"
    assert (store.queued(), store.raw.get(keys.RESULT + "a")) == ([], b"result")
    if key.startswith("rt:arq:queue"):
        assert store.is_spoiled(key)


# -- somebody holds it


def test_a_job_that_we_hold_is_flagged_and_its_score_left_alone(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    score = store.score("a")
    assert cancel(store, "a") == "asked"
    assert store.score("a") == score
    (answer,) = worker.extend(job)
    assert answer.ours
    assert answer.abort_ms is not None
    assert abs(answer.abort_ms - store.now_ms()) < 5000
    assert worker.settle(done(job, flags="fa")).verdicts == "1"
    is_over(store, "a")


def test_the_worker_that_holds_it_is_told_the_token_of_its_lease(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker("4d2-0123456789ab")
    job, _ = worker.take("a", "b")
    with heard(store, keys.stop("4d2-0123456789ab")) as said:
        assert cancel(store, "a") == "asked"
        assert said() == [job.token.encode()]


@pytest.mark.parametrize("holder", ["1", "", "12:x", ":x:1", "1::1", "1:a:b:1", "list"])
def test_who_is_none_of_our_workers_is_not_told_and_yet_the_job_is_flagged(store: Store, holder: str) -> None:
    store.enqueue("a")
    if holder == "list":
        store.spoil(keys.IN_PROGRESS + "a")
    else:
        store.redis.set(keys.IN_PROGRESS + "a", holder, px=60_000)
    with heard(store, "rt:stop:*") as said:
        assert cancel(store, "a") == "asked"
        assert said() == []
    assert store.redis.zscore(keys.ABORT, "a") is not None


def test_where_nothing_may_be_published_the_flag_is_all_there_is(store: Store) -> None:
    store.enqueue("a")
    store.worker().one("a")
    store.redis.execute_command("ACL", "SETUSER", "default", "-publish")
    try:
        assert cancel(store, "a") == "asked"
    finally:
        store.redis.execute_command("ACL", "SETUSER", "default", "+@all")
    assert store.redis.zscore(keys.ABORT, "a") is not None


@contextmanager
def heard(store: Store, channel: str) -> Iterator[Callable[[], list[bytes]]]:
    """What has been published on it, once all that was asked for before is done."""
    with store.raw.pubsub() as pubsub:
        pubsub.psubscribe(channel)
        assert pubsub.get_message(timeout=10)["type"] == "psubscribe"

        def said() -> list[bytes]:
            store.raw.publish(channel.replace("*", "end"), b"end")
            found: list[bytes] = []
            while (message := pubsub.get_message(timeout=10)) and message["data"] != b"end":
                found.append(message["data"])
            return found

        yield said


def test_r2_a_job_that_stock_holds_is_flagged_and_its_score_left_alone(store: Store) -> None:
    store.enqueue("a")
    stock = Stock(store)
    assert stock.claims("a")
    score = store.score("a")
    assert cancel(store, "a") == "asked"
    assert store.score("a") == score
    stock.finishes()
    assert not store.redis.exists(keys.ABORT)


def test_a_stock_worker_that_is_about_to_claim_a_cancelled_job_gives_up(store: Store) -> None:
    """Between its look at the queue and its EXEC; else it would write 'job expired' over the result."""
    store.enqueue("a")

    async def race() -> bool:
        async with store.arq.pipeline(transaction=True) as pipe:
            await pipe.watch(keys.IN_PROGRESS + "a")
            assert not await pipe.exists(keys.IN_PROGRESS + "a")
            assert await pipe.zscore(store.queue, "a")
            reply = await scripts.cancel(store.scripts, store.queue, "a", body=body(), result=b"result", result_ms=1000)
            assert reply.said == "cancelled"
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.psetex(keys.IN_PROGRESS + "a", 1000, b"1")
            try:
                await pipe.execute()
            except Exception as error:
                return type(error).__name__ == "WatchError"
            return False

    assert store.run(race())
    assert not store.redis.exists(keys.IN_PROGRESS + "a")


# -- neither


def _never(store: Store) -> None:
    pass


def _of_another_queue(store: Store) -> None:
    store.waits_at("a", store.now_ms())
    store.redis.rename(store.queue, "another")


def _ended(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(done(worker.one("a")))


def _body_expired(store: Store) -> None:
    store.enqueue("a")
    store.redis.delete(keys.JOB + "a")


def _body_of_a_wrong_type(store: Store) -> None:
    store.enqueue("a")
    store.spoil(keys.JOB + "a")


def _cron_of_stock_arq(store: Store) -> None:
    """It has ended, and is kept from running again."""
    store.redis.set(keys.IN_PROGRESS + "a", "1", px=60_000)


@pytest.mark.parametrize(
    "make", [_never, _of_another_queue, _ended, _body_expired, _body_of_a_wrong_type, _cron_of_stock_arq]
)
def test_g9_where_there_is_nothing_to_cancel_nothing_is_written(store: Store, make: object) -> None:
    assert callable(make)
    make(store)
    before = everything(store)
    assert cancel(store, "a") == "gone"
    assert everything(store) == before


# -- trouble


@pytest.mark.parametrize(
    "key",
    [
        "rt:arq:queue:later", keys.ABORT, "rt:arq:queue:count", "rt:arq:queue:unknown",
        keys.RETRY + "a", keys.OWN + "a", keys.RESULT + "a",
    ],
)  # fmt: skip
def test_r19_a_key_of_a_wrong_type_beside_it_does_not_stop_it(store: Store, key: str) -> None:
    store.enqueue("a", priority=3, delay_ms=60_000)
    store.spoil(key)
    assert cancel(store, "a") == "cancelled"
    assert store.queued() == []
    assert not store.redis.exists(keys.JOB + "a")


def test_r19_it_works_while_the_server_is_out_of_memory(store: Store) -> None:
    store.enqueue("a")
    with store.out_of_memory():
        assert cancel(store, "a") == "cancelled"
    is_over(store, "a")
    assert store.run(store.job("a").status()) is JobStatus.complete


# -- flags that nobody has obeyed


def test_an_enqueue_of_ours_forgets_a_flag_for_an_earlier_job_of_the_id(store: Store) -> None:
    store.redis.zadd(keys.ABORT, {"a": store.now_ms(), "other": store.now_ms()})
    store.enqueue("a")
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["other"]
    store.redis.zadd(keys.ABORT, {"a": store.now_ms()})
    assert store.enqueue("a") == [False]
    assert store.redis.zscore(keys.ABORT, "a") is not None, "the job that has the id is to be aborted"


def test_an_aborted_job_is_cancelled_also_if_no_worker_was_awake_for_days(store: Store) -> None:
    three_days_ago = store.now_ms() - 3 * DAY_MS
    store.waits_at("a", 1)  # where stock arq's abort puts a deferred job
    store.redis.zadd(keys.ABORT, {"a": three_days_ago})
    _start(store)
    assert store.worker().one("a").abort_ms == round(three_days_ago)


def test_flags_older_than_8_days_are_forgotten_when_another_is_obeyed_and_when_a_worker_starts(
    store: Store,
) -> None:
    long = 8 * DAY_MS
    for forget in (_settle_an_aborted_job, _start):
        now = store.now_ms()
        store.redis.zadd(keys.ABORT, {"old": now - long - 60_000, "young": now - long + 60_000, "ahead": now + long})
        forget(store)
        assert store.redis.zrange(keys.ABORT, 0, -1) == ["young", "ahead"]


def _settle_an_aborted_job(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(done(worker.one("a"), flags="fa"))


def _start(store: Store) -> None:
    store.run(scripts.forward(store.scripts, store.queue, []))
