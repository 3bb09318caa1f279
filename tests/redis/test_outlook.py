"""outlook.lua: what a worker sees when it looks into its queues for the last time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runtime.adapters.redis import keys, scripts
from runtime.core.schedule import Every, Schedule
from tests.redis.store import DAY_MS, Store, again
from tests.redis.test_need import need


def outlook(
    store: Store, *knows: str, queues: tuple[str, ...] = (), fires: Sequence[Schedule] | None = None
) -> float | None:
    """Seconds until something is due, for a worker of these handlers; each has a schedule in the first queue."""
    queues = queues or (store.queue,)
    if fires is None:
        fires = [Schedule(name, queues[0], Every(3_600_000)) for name in knows]
    due = store.run(scripts.outlook(store.scripts, queues, knows, fires))
    return None if due is None else due.in_s


def is_due(store: Store, *knows: str, queues: tuple[str, ...] = ()) -> bool:
    first_s = outlook(store, *knows, queues=queues)
    return first_s is not None and first_s <= 0


def left_waiting(store: Store, job_id: str, handler: str = "new_one", delay_ms: int = 60_000) -> None:
    """A worker takes the job, does not know its handler, and gives it back."""
    worker = store.worker(f"{job_id}-1")
    worker.settle(again(worker.one(job_id), delay_ms, keep=0, letter=handler.encode(), flags="n"))


def test_an_empty_queue_holds_nothing(store: Store) -> None:
    assert outlook(store) is None
    assert outlook(store, "work") is None


def test_the_first_job_of_all_queues_counts(store: Store) -> None:
    store.enqueue("a", delay_ms=60_000)
    with Store(store.url, "other") as other:
        other.enqueue("b", delay_ms=30_000)
        assert outlook(store) == pytest.approx(60, abs=1)
        assert outlook(store, queues=("other", store.queue)) == pytest.approx(30, abs=1)
        other.enqueue("c")
        assert is_due(store, queues=("other", store.queue))


def test_a_lease_counts_until_its_end_and_what_a_stock_worker_holds_is_due(store: Store) -> None:
    store.enqueue("a")
    store.worker(lease_ms=20_000).claim()
    assert outlook(store) == pytest.approx(20, abs=1)
    store.enqueue("b")
    store.raw.set(keys.IN_PROGRESS + "b", "1", px=1000)
    assert is_due(store)


def test_a_job_of_a_handler_that_it_does_not_know_does_not_keep_a_worker_awake(store: Store) -> None:
    store.enqueue("a")
    left_waiting(store, "a")
    assert outlook(store) is None
    assert outlook(store, "work", "another") is None
    store.enqueue("z", delay_ms=90_000)
    assert outlook(store, "work") == pytest.approx(90, abs=1), "what lies behind it counts"


def test_nor_when_its_delay_is_over_and_nobody_is_woken_for_it_either(store: Store) -> None:
    store.enqueue("a")
    left_waiting(store, "a", delay_ms=1)
    store.until_due("a")
    assert outlook(store, "work") is None
    assert not need(store).due


def test_a_worker_that_knows_the_handler_does_not_go_quiet_on_it(store: Store) -> None:
    store.enqueue("a")
    left_waiting(store, "a")
    assert outlook(store, "work", "new_one") == pytest.approx(60, abs=1)


def test_who_holds_it_may_die(store: Store) -> None:
    store.enqueue("a")
    left_waiting(store, "a", delay_ms=1)
    store.until_due("a")
    store.worker("b-1", lease_ms=20_000).one("a")
    assert outlook(store) == pytest.approx(20, abs=1)


def test_a_later_job_of_the_id_counts(store: Store) -> None:
    store.raw.hset(keys.unknown(store.queue), "a", "new_one")
    store.enqueue("a")
    assert is_due(store)


def test_what_lies_behind_many_that_wait_is_found_and_behind_a_thousand_somebody_has_to_look(store: Store) -> None:
    def wait(ids: list[str]) -> None:
        with store.raw.pipeline() as pipe:
            pipe.hset(keys.unknown(store.queue), mapping=dict.fromkeys(ids, "new_one"))
            for job_id in ids:
                pipe.set(keys.RETRY + job_id, 0, ex=600)
            pipe.execute()

    wait(store.backlog(600))
    assert outlook(store) is None
    store.enqueue("z", delay_ms=60_000)
    assert outlook(store) == pytest.approx(60, abs=1)
    wait(store.backlog(500, prefix="more"))
    assert is_due(store)


def test_keys_of_a_wrong_type_hide_nothing(store: Store) -> None:
    store.enqueue("a")
    left_waiting(store, "a")
    store.spoil(keys.unknown(store.queue))
    store.spoil("odd")
    assert outlook(store, queues=("odd", store.queue)) == pytest.approx(60, abs=1)


def test_what_waits_while_all_sleep_is_not_lost(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="a", _queue_name=store.queue))
    for _ in range(2):
        left_waiting(store, "a", delay_ms=1)
        store.until_due("a")
    starts_ms, body_ms = store.raw.pttl(keys.RETRY + "a"), store.raw.pttl(keys.JOB + "a")
    assert body_ms - starts_ms == pytest.approx(2 * DAY_MS, abs=60_000), "arq's own body would be gone after a day"
    store.raw.delete(keys.RETRY + "a", keys.OWN + "a")  # as they have expired
    assert need(store).calls, "then somebody is rung"
    assert is_due(store, "work")
    assert store.worker("late-1").one("a").body
