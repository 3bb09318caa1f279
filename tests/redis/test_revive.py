"""revive.lua: a dead letter becomes a job again, once."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from runtime.adapters.redis import keys, scripts
from tests.redis.store import BAND_MS, DAY_MS, Store, body, dead


def letter(store: Store, job_id: str = "a") -> None:
    """A dead letter, as a worker leaves it."""
    store.enqueue(job_id)
    worker = store.worker()
    worker.settle(dead(worker.one(job_id)))
    store.redis.delete(store.mark)


def revive(store: Store, job_id: str = "a", priority: int = 0) -> str:
    return store.run(scripts.revive(store.scripts, store.queue, job_id, priority=priority))


def test_l11_a_replayed_job_is_as_new(store: Store) -> None:
    letter(store)
    store.redis.set(keys.OWN + "a", "3|", ex=60)
    store.redis.set(keys.RETRY + "a", "4", ex=60)
    store.redis.zadd(keys.ABORT, {"a": store.now_ms()})
    assert revive(store) == "done"
    assert store.raw.get(keys.JOB + "a") == body()
    assert store.raw.pttl(keys.JOB + "a") > 89 * DAY_MS
    assert store.redis.exists(store.mark)
    assert not store.redis.exists(keys.LETTER + "a", keys.RESULT + "a", keys.dead(store.queue))
    job = store.worker("b-2").one("a")
    assert (job.starts, job.own, job.abort_ms) == (1, None, None)


def test_it_keeps_the_priority_it_is_given(store: Store) -> None:
    letter(store)
    store.enqueue("b")
    revive(store, priority=7)
    assert store.queued() == ["a", "b"]
    assert store.score("a") % 1 * 1024 == 7
    assert store.score("a") < store.now_ms() - 6 * BAND_MS


def test_l16_a_second_replay_changes_nothing(store: Store) -> None:
    letter(store)
    assert revive(store) == "done"
    score = store.score("a")
    assert revive(store) == "gone"
    assert store.score("a") == score
    assert store.redis.exists(keys.JOB + "a")


def test_a_letter_that_has_expired_leaves_the_index(store: Store) -> None:
    letter(store)
    store.redis.delete(keys.LETTER + "a")
    assert revive(store) == "gone"
    assert not store.redis.exists(keys.dead(store.queue))


def test_a_letter_without_a_body_stays(store: Store) -> None:
    store.redis.zadd(store.queue, {"a": 1})
    worker = store.worker()
    worker.settle(dead(worker.one("a")))
    assert revive(store) == "empty"
    assert store.redis.exists(keys.LETTER + "a")
    assert store.queued() == []


def test_an_id_that_has_a_job_again_is_not_overwritten(store: Store) -> None:
    letter(store)
    store.redis.delete(keys.RESULT + "a")
    store.enqueue("a", text="new")
    assert revive(store) == "exists"
    assert store.raw.get(keys.JOB + "a") == body("new")
    assert store.redis.exists(keys.LETTER + "a")


def test_r19_a_queue_of_a_wrong_type_costs_no_letter(store: Store) -> None:
    letter(store)
    store.spoil(store.queue)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        revive(store)
    assert store.raw.hget(keys.LETTER + "a", "body") == body()
    assert not store.redis.exists(keys.JOB + "a")


@pytest.mark.parametrize("key", ["rt:arq:queue:dead", "rt:arq:queue:mark"])
def test_r19_an_index_of_a_wrong_type_does_not_stop_it(store: Store, key: str) -> None:
    letter(store)
    store.spoil(key)
    assert revive(store) == "done"
    assert store.queued() == ["a"]
    assert store.raw.get(keys.JOB + "a") == body()


def test_r19_without_memory_the_letter_stays(store: Store) -> None:
    letter(store)
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        revive(store)
    assert store.redis.exists(keys.LETTER + "a")
    assert not store.redis.exists(keys.JOB + "a")
    assert revive(store) == "done"
