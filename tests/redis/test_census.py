"""A queue's jobs are counted by what they wait for, whoever put or holds them."""

from __future__ import annotations

import pytest

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import Census
from tests.redis.store import Store


def census(store: Store) -> Census:
    return store.run(scripts.census(store.scripts, store.queue))


def test_an_empty_queue_has_nothing(store: Store) -> None:
    assert census(store) == Census(0, 0, 0, 0, 0, 0, 0, None)


def test_each_job_is_counted_once(store: Store) -> None:
    store.enqueue("a", "b", "c", "d")
    store.enqueue("e", delay_ms=60_000)
    store.enqueue("f", delay_ms=60_000, priority=5)
    store.worker().claim(2)
    found = census(store)
    assert (found.waiting, found.active, found.deferred) == (2, 2, 2)


def test_what_stock_arq_holds_is_active_though_its_score_is_due(store: Store) -> None:
    store.enqueue("a", "b")
    store.raw.set(keys.IN_PROGRESS + "a", b"1", px=60_000)
    found = census(store)
    assert (found.waiting, found.active) == (1, 1)


def test_a_lapsed_lease_is_waiting_again(store: Store) -> None:
    store.enqueue("a")
    (job,) = store.worker(lease_ms=1).claim().jobs
    store.lapse(job)
    found = census(store)
    assert (found.waiting, found.active) == (1, 0)


@pytest.mark.parametrize("priority", [0, 1, 300, 1000])
def test_the_oldest_is_found_whatever_its_priority(store: Store, priority: int) -> None:
    since = round(store.now_ms()) - 90_000
    store.enqueue("young", "younger", priority=1000 - priority)
    store.waits_at("old", since - priority * 2**33 + priority / 1024)
    age_s = census(store).oldest_age_s
    assert age_s is not None
    assert 90 <= age_s < 95


def test_the_oldest_is_none_that_is_held(store: Store) -> None:
    store.backlog(3, before_ms=60_000)
    store.raw.set(keys.IN_PROGRESS + "old-00000", b"1", px=60_000)
    store.raw.zadd(store.queue, {"old-00000": store.now_ms() - 600_000})
    age_s = census(store).oldest_age_s
    assert age_s is not None
    assert age_s < 65


@pytest.mark.parametrize("score", ["-inf", 0, 1, -1e300])
def test_a_score_that_is_no_moment_has_no_age_and_hides_none(store: Store, score: float | str) -> None:
    store.backlog(1, before_ms=5_000)
    store.waits_at("odd", score)  # type: ignore[arg-type]
    found = census(store)
    assert found.waiting == 2
    assert found.oldest_age_s is not None
    assert 5 <= found.oldest_age_s < 10


def test_keys_of_wrong_types_count_for_nothing(store: Store) -> None:
    store.enqueue("a")
    for key in (store.later, keys.count(store.queue), keys.dead(store.queue), keys.unknown(store.queue)):
        store.spoil(key)
    assert census(store).waiting == 1
