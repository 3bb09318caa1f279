"""forward.lua: jobs of a handler that is known at last need not wait out their delay."""

from __future__ import annotations

import pytest

from runtime.adapters.redis import keys, scripts
from tests.redis.store import BAND_MS, Stock, Store, again, done


def put_off(store: Store, *ids: str, priority: int = 0) -> None:
    """Jobs whose handler no worker knew."""
    store.enqueue(*ids, priority=priority)
    worker = store.worker()
    jobs = worker.take(*ids)
    worker.settle(*(again(job, 60_000, keep=0, letter=b"new_one", flags="n") for job in jobs))
    store.redis.delete(store.mark)


def forward(store: Store, *ids: str) -> int:
    return store.run(scripts.forward(store.scripts, store.queue, ids))


def test_r9_they_are_due_at_once_and_shown_no_longer(store: Store) -> None:
    put_off(store, "a", "b")
    assert forward(store, "a") == 1
    assert store.redis.hgetall(keys.unknown(store.queue)) == {"b": "new_one"}
    assert store.redis.exists(store.mark)
    job = store.worker("b-2").one("a")
    assert job.starts == 1


def test_r9_they_keep_their_priority(store: Store) -> None:
    put_off(store, "a", priority=5)
    forward(store, "a")
    assert store.score("a") % 1 * 1024 == 5
    assert store.score("a") < store.now_ms() - 4 * BAND_MS


def test_r9_a_second_call_moves_nothing(store: Store) -> None:
    put_off(store, "a")
    forward(store, "a")
    job = store.worker("b-2").one("a")
    score = store.score("a")
    store.redis.delete(store.mark)
    assert forward(store, "a") == 0
    assert store.score("a") == score
    assert store.owner("a") == job.token
    assert not store.redis.exists(store.mark)


def test_r2_a_job_that_somebody_holds_is_left_alone(store: Store) -> None:
    put_off(store, "a")
    store.redis.zadd(store.queue, {"a": store.now_ms() - 1})
    assert Stock(store).claims("a")
    score = store.score("a")
    assert forward(store, "a") == 0
    assert store.score("a") == score
    assert store.redis.hgetall(keys.unknown(store.queue)) == {"a": "new_one"}


def test_an_id_that_is_not_queued_is_forgotten(store: Store) -> None:
    put_off(store, "a")
    store.redis.zrem(store.queue, "a")
    assert forward(store, "a") == 0
    assert store.queued() == []
    assert not store.redis.exists(keys.unknown(store.queue))


def test_a_later_job_of_the_id_that_is_meant_to_wait_waits(store: Store) -> None:
    put_off(store, "a")
    store.redis.zadd(store.queue, {"a": store.now_ms() - 1})
    stock = Stock(store)
    assert stock.claims("a")
    stock.finishes()
    store.redis.delete(keys.RESULT + "a")
    store.enqueue("a", delay_ms=3_600_000)
    assert forward(store, "a") == 0
    assert store.score("a") > store.now_ms() + 3_000_000
    assert not store.redis.exists(keys.unknown(store.queue))


def test_r12_a_thousand_are_brought_forward_in_one_call(store: Store) -> None:
    ids = [f"a{n:04}" for n in range(1000)]
    put_off(store, *ids)
    assert forward(store, *ids) == 1000
    assert store.redis.zcount(store.queue, "-inf", store.now_ms() + 1) == 1000


@pytest.mark.parametrize("key", ["rt:arq:queue:mark", keys.OWN + "a"])
def test_r19_a_key_of_a_wrong_type_beside_it_does_not_stop_it(store: Store, key: str) -> None:
    put_off(store, "a")
    store.spoil(key)
    assert forward(store, "a") == 1
    worker = store.worker("b-2")
    assert worker.settle(done(worker.one("a"))).verdicts == "1"
