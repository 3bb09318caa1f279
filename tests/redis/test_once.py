"""once.lua: the steps of a job, written only by who holds it."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, RedisError

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import Leased
from tests.redis.store import Store, back


def begin(store: Store, job: Leased, step: str = "pay") -> tuple[str, bytes | None]:
    return store.run(scripts.begin_step(store.scripts, job.id.decode(), job.token, step))


def finish(store: Store, job: Leased, value: bytes, step: str = "pay") -> str:
    return store.run(scripts.finish_step(store.scripts, job.id.decode(), job.token, step, value))


def test_a_step_is_new_then_begun_then_done_with_its_value(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    assert begin(store, job) == ("new", None)
    assert begin(store, job) == ("begun", None)
    assert finish(store, job, b"\x00value") == "done"
    assert begin(store, job) == ("done", b"\x00value")
    assert begin(store, job, "another") == ("new", None)
    assert 29 * 86400 < store.redis.ttl(keys.ONCE + "a") <= keys.ONCE_S


def test_an_empty_value_is_a_value(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    finish(store, job, b"")
    assert begin(store, job) == ("done", b"")


def test_finishing_twice_is_finishing_once(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    assert [finish(store, job, b"7"), finish(store, job, b"7")] == ["done", "done"]
    assert begin(store, job) == ("done", b"7")


def test_the_next_attempt_finds_the_steps_of_the_last_one(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    begin(store, job, "begun")
    finish(store, job, b"7", "done")
    worker.settle(back(job))
    job = store.worker("b-2").one("a")
    assert begin(store, job, "begun") == ("begun", None)
    assert begin(store, job, "done") == ("done", b"7")


def test_only_the_claim_that_began_a_step_may_have_lost_the_reply(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    begin(store, job)
    assert store.run(scripts.begin_step(store.scripts, "a", job.token, "pay", again=True)) == ("new", None)
    worker.settle(back(job))
    later = store.worker("b-2").one("a")
    assert store.run(scripts.begin_step(store.scripts, "a", later.token, "pay", again=True)) == ("begun", None)


def test_a_stale_token_can_neither_begin_nor_finish_a_step(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    store.worker("b-2").take("a")
    assert begin(store, job) == ("lost", None)
    assert finish(store, job, b"7") == "lost"
    assert not store.redis.exists(keys.ONCE + "a")


def test_while_the_lease_has_lapsed_nothing_is_written_and_nothing_is_lost(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    assert begin(store, job) == ("lapsed", None)
    assert finish(store, job, b"7") == "lapsed"
    assert not store.redis.exists(keys.ONCE + "a")
    worker.lease_ms = 5000
    assert worker.keeps(job)
    assert begin(store, job) == ("new", None)


def test_r19_steps_of_a_wrong_type_are_an_error_and_not_overwritten(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    store.spoil(keys.ONCE + "a")
    with pytest.raises(RedisError, match="WRONGTYPE"):
        begin(store, job)
    with pytest.raises(RedisError, match="WRONGTYPE"):
        finish(store, job, b"7")
    assert store.is_spoiled(keys.ONCE + "a")


def test_r19_without_memory_a_step_does_not_begin(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        begin(store, job)
    assert begin(store, job) == ("new", None)
