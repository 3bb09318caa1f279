"""What a queue holds for workers that sleep: due or not, when next, and whether anybody is awake."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.adapters.redis import keys, scripts
from runtime.core.alarm import Need
from tests.redis.store import BAND_MS, Store


def need(store: Store) -> Need:
    (its,) = store.run(scripts.needs(store.scripts, [store.queue]))
    return its


@contextmanager
def awake(store: Store) -> Iterator[None]:
    """Somebody is, as the server sees it."""
    with store.raw.pubsub() as here:
        here.subscribe(keys.here(store.queue))
        assert here.get_message(timeout=5)
        yield


def test_an_empty_queue_holds_nothing(store: Store) -> None:
    assert need(store) == Need(store.queue, due=False, awake=0, next_in_s=None)


def test_a_job_that_is_due_calls_unless_somebody_is_awake(store: Store) -> None:
    store.enqueue("a")
    assert need(store) == Need(store.queue, due=True, awake=0, next_in_s=None)
    assert need(store).calls
    with awake(store):
        assert need(store) == Need(store.queue, due=True, awake=1, next_in_s=None)
        assert not need(store).calls
    while need(store).awake:
        time.sleep(0.01)
    assert need(store).calls


def test_a_deferred_job_is_due_when_it_is(store: Store) -> None:
    store.enqueue("a", delay_ms=1000, priority=7)
    its = need(store)
    assert not its.due
    assert its.next_in_s is not None
    assert 0 < its.next_in_s < 1.01
    time.sleep(its.next_in_s + 0.001)  # its score has a fraction of a ms, for its priority, and the clock here has none
    assert need(store).due


def test_a_priority_is_due_however_low_its_score(store: Store) -> None:
    store.waits_at("a", store.now_ms() - 1000 * BAND_MS + 1000 / 1024)
    assert need(store).due


def test_what_a_worker_of_ours_holds_is_due_when_its_lease_lapses(store: Store) -> None:
    store.enqueue("a")
    store.worker(lease_ms=1000).claim()
    its = need(store)
    assert (its.due, its.awake) == (False, 0)
    assert its.next_in_s is not None
    assert 0 < its.next_in_s <= 1.002
    time.sleep(its.next_in_s + 0.005)
    assert need(store).due


def test_what_a_stock_worker_holds_is_not_due_until_its_lease_lapses(store: Store) -> None:
    store.enqueue("a")
    store.raw.set(keys.IN_PROGRESS + "a", "1", px=1000)
    assert not need(store).due
    while store.raw.exists(keys.IN_PROGRESS + "a"):
        time.sleep(0.01)
    assert need(store).due


def test_what_lies_behind_jobs_of_stock_workers_is_found(store: Store) -> None:
    for job_id in store.backlog(600):
        store.raw.set(keys.IN_PROGRESS + job_id, "1", px=60_000)
    assert not need(store).due
    store.enqueue("z")
    assert need(store).due


def test_what_waits_for_a_worker_that_knows_its_handler_calls_nobody(store: Store) -> None:
    store.enqueue("a")
    store.raw.hset(keys.unknown(store.queue), "a", "work")
    assert need(store).due, "never started: what is noted there is of an earlier job of the id"
    store.raw.set(keys.RETRY + "a", 0, ex=60)
    assert not need(store).due
    store.raw.set(keys.RETRY + "b", 1, ex=60)
    store.enqueue("b")
    assert need(store).due


def test_a_queue_of_a_wrong_type_is_none_and_hides_no_other(store: Store) -> None:
    store.enqueue("a")
    store.spoil("odd")
    odd, its = store.run(scripts.needs(store.scripts, ["odd", store.queue]))
    assert not odd.due
    assert its.due


def test_where_nobody_can_say_what_waits_for_its_handler_nothing_does(store: Store) -> None:
    store.enqueue("a")
    store.raw.set(keys.RETRY + "a", 1, ex=60)
    store.spoil(keys.unknown(store.queue))
    assert need(store).due


def test_behind_a_thousand_that_are_held_somebody_has_to_look(store: Store) -> None:
    for job_id in store.backlog(1000):
        store.raw.set(keys.IN_PROGRESS + job_id, "1", px=60_000)
    assert need(store).due


def test_the_next_is_told_beside_what_is_due(store: Store) -> None:
    store.enqueue("a")
    store.enqueue("b", delay_ms=60_000)
    its = need(store)
    assert its.due
    assert its.next_in_s is not None
    assert 50 < its.next_in_s <= 60


def test_it_is_one_call_of_few_commands(store: Store) -> None:
    store.enqueue("a")
    need(store)
    store.redis.config_resetstat()
    need(store)
    stats = store.redis.info("commandstats")
    ours = {
        name: stat["calls"] for name, stat in stats.items() if name not in ("cmdstat_info", "cmdstat_config|resetstat")
    }
    assert sum(ours.values()) == 8, ours
