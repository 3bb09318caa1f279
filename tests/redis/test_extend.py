"""extend.lua: a held job stays held, and only by who holds it."""

from __future__ import annotations

import pytest
from arq.jobs import JobStatus
from redis.exceptions import OutOfMemoryError, RedisError

from runtime.adapters.redis import keys
from tests.redis.store import DAY_MS, LEASE_MS, Stock, Store, again, back, done, names


def test_l7_an_extended_lease_lives_on_and_its_score_with_it(store: Store) -> None:
    store.enqueue("a", priority=5)
    worker = store.worker(lease_ms=3000)
    job = worker.one("a")
    worker.lease_ms = LEASE_MS
    before = store.now_ms()
    (answer,) = worker.extend(job)
    assert (answer.ours, answer.abort_ms) == (True, None)
    assert store.raw.pttl(keys.IN_PROGRESS + "a") > LEASE_MS - 1000
    assert before + LEASE_MS <= store.score("a") <= store.now_ms() + LEASE_MS + 3
    assert store.score("a") % 1 * 1024 == 5
    assert store.redis.zrange(store.later, 0, -1, withscores=True) == [(f"{job.token}|{job.place}|a", store.score("a"))]


def test_r10_a_score_is_never_due_while_its_lease_lives(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    ahead_ms = []
    for _ in range(5):
        assert worker.keeps(job)
        ahead_ms.append(store.score("a") - store.raw.execute_command("PEXPIRETIME", keys.IN_PROGRESS + "a"))
    assert max(ahead_ms) == 2  # one for the ms in which it ends, one since times are rounded up


def test_an_extension_may_be_repeated(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    assert all(worker.keeps(job) for _ in range(3))
    assert store.starts("a") == 1
    assert store.redis.zcard(store.later) == 1


def test_l7_a_lapsed_lease_that_nobody_touched_is_taken_again(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    worker.lease_ms = LEASE_MS
    assert worker.keeps(job)
    assert store.owner("a") == job.token
    assert store.raw.pttl(keys.IN_PROGRESS + "a") > LEASE_MS - 1000
    assert store.score("a") > store.now_ms()
    assert store.worker("b-2").claim(5).jobs == []


def test_r17_a_stale_token_is_refused_and_the_new_owner_is_left_alone(store: Store) -> None:
    store.enqueue("a")
    old, new = store.worker("a-1", lease_ms=1), store.worker("b-2")
    job = old.one("a")
    store.lapse(job)
    taken = new.one("a")
    score = store.score("a")
    assert not old.keeps(job)
    assert store.owner("a") == taken.token
    assert store.score("a") == score
    assert new.keeps(taken)


def test_r17_the_same_workers_new_claim_of_an_id_is_not_extended_by_the_old_one(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    worker.settle(back(job))
    taken = worker.one("a")
    worker.lease_ms = 60_000
    assert not worker.keeps(job)
    assert store.raw.pttl(keys.IN_PROGRESS + "a") <= LEASE_MS
    assert store.score("a") <= store.now_ms() + LEASE_MS + 2
    assert worker.keeps(taken)


def test_r17_a_job_that_was_settled_meanwhile_is_not_brought_back(store: Store) -> None:
    store.enqueue("ended", "retried")
    worker = store.worker()
    ended, retried = worker.take("ended", "retried")
    worker.settle(done(ended), again(retried, 60_000))
    score = store.score("retried")
    assert [answer.ours for answer in worker.extend(ended, retried)] == [False, False]
    assert store.queued() == ["retried"]
    assert store.score("retried") == score
    assert (store.owner("ended"), store.owner("retried")) == (None, None)
    assert not store.redis.exists(store.later)


def test_r5_a_lapsed_job_given_its_place_back_is_not_taken_again_by_its_old_owner(store: Store) -> None:
    store.enqueue("a", "b")
    old = store.worker("a-1", lease_ms=1)
    a = old.one("a")
    store.lapse(a)
    other = store.worker("b-2")
    a_again = other.one("a")
    other.settle(back(a_again))
    assert not old.keeps(a)
    assert store.owner("a") is None


def test_r5_l6_a_later_job_of_the_id_that_stock_claimed_and_let_go_is_not_ours(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    first = Stock(store)
    assert first.claims("a")
    first.finishes()
    store.redis.delete(keys.RESULT + "a")
    store.enqueue("a")
    store.until_due("a")
    second = Stock(store)
    assert second.claims("a")
    second.is_stopped()
    assert (store.owner("a"), store.starts("a")) == (None, job.starts)

    score = store.score("a")
    assert not zombie.keeps(job)
    assert store.owner("a") is None
    assert store.score("a") == score


def test_r5_a_lapsed_job_that_stock_started_and_let_go_is_not_ours(store: Store) -> None:
    # In-progress, score and our entry are as we left them; only the count of starts tells.
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    score = store.score("a")
    stock = Stock(store)
    assert stock.claims("a")
    stock.is_stopped()
    assert store.score("a") == score
    assert store.owner("a") is None
    assert not zombie.keeps(job)


def test_r5_a_lapsed_job_that_is_no_longer_queued_is_not_ours(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    store.redis.zrem(store.queue, "a")
    assert not zombie.keeps(job)
    assert store.queued() == []
    assert store.owner("a") is None


def test_r5_a_lapsed_job_of_which_nothing_is_left_but_its_starts_is_not_ours(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    store.redis.delete(store.queue, store.later)
    assert not worker.keeps(job)
    assert worker.settle(done(job)).verdicts == "0"


def test_l7_a_job_that_stock_finished_is_lost_and_stays_out_of_the_queue(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    stock = Stock(store)
    assert stock.claims("a")
    assert not zombie.keeps(job)
    stock.finishes()
    assert not zombie.keeps(job)
    assert store.queued() == []


def test_r3_a_stock_abort_of_a_running_job_is_told_and_the_score_put_back(store: Store) -> None:
    store.enqueue("a", priority=5)
    worker = store.worker()
    job = worker.one("a")

    async def abort() -> None:
        with pytest.raises(TimeoutError):
            await store.job("a").abort(timeout=0, poll_delay=0.001)

    store.run(abort())
    assert store.score("a") == 1
    assert store.run(store.job("a").status()) == JobStatus.in_progress
    other = store.worker("b-2").claim(5)
    assert (other.jobs, other.others) == ([], 1)

    (answer,) = worker.extend(job)
    assert answer.ours
    assert answer.abort_ms is not None
    assert abs(answer.abort_ms - store.now_ms()) < 5000
    assert store.score("a") > store.now_ms()
    assert store.score("a") % 1 * 1024 == 5


def test_r3_an_extension_never_puts_an_id_into_the_queue(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    store.redis.delete(store.queue, store.later)
    assert worker.keeps(job)
    assert store.queued() == []
    assert not store.redis.exists(store.later)


def test_r3_flags_are_told_for_the_right_jobs(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker = store.worker()
    jobs = worker.take("a", "b", "c")
    store.redis.zadd(keys.ABORT, {"b": 1_795_000_000_123, "c": "inf"})
    answers = worker.extend(*jobs)
    assert [answer.abort_ms for answer in answers[:2]] == [None, 1_795_000_000_123]
    assert answers[2].abort_ms is not None


def test_r22_the_body_of_a_long_run_is_kept_from_expiring(store: Store) -> None:
    store.enqueue("short", keep_ms=30 * 60_000)
    store.enqueue("long", keep_ms=2 * DAY_MS)
    worker = store.worker()
    jobs = worker.take("short", "long")
    store.redis.expire(keys.RETRY + "short", 100)
    worker.extend(*jobs)
    assert store.raw.pttl(keys.JOB + "short") <= 30 * 60_000
    worker.extend(*jobs, renew=True)
    assert store.raw.pttl(keys.JOB + "short") > DAY_MS - 1000
    assert DAY_MS < store.raw.pttl(keys.JOB + "long") <= 2 * DAY_MS
    assert store.redis.ttl(keys.RETRY + "short") > 88_000


def test_r22_a_body_without_an_end_is_left_without_one_and_a_missing_one_missing(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    jobs = worker.take("a", "b")
    store.redis.persist(keys.JOB + "a")
    store.redis.delete(keys.JOB + "b")
    assert [answer.ours for answer in worker.extend(*jobs, renew=True)] == [True, True]
    assert store.raw.pttl(keys.JOB + "a") == -1
    assert not store.redis.exists(keys.JOB + "b")
    store.redis.expire(keys.JOB + "a", 10)


def test_r22_the_body_of_a_lost_job_is_left_alone(store: Store) -> None:
    store.enqueue("a", keep_ms=30 * 60_000)
    worker = store.worker()
    job = worker.one("a")
    store.redis.set(keys.IN_PROGRESS + "a", "1", ex=60)
    worker.extend(job, renew=True)
    assert store.raw.pttl(keys.JOB + "a") <= 30 * 60_000


def test_l7_one_lost_job_does_not_touch_the_others_of_the_call(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker = store.worker()
    jobs = worker.take("a", "b", "c")
    store.redis.set(keys.IN_PROGRESS + "b", "1", ex=60)
    assert [answer.ours for answer in worker.extend(*jobs)] == [True, False, True]
    assert store.owner("b") == "1"


@pytest.mark.parametrize("key", [keys.JOB + "a", keys.RETRY + "a", keys.ABORT, "rt:arq:queue:later"])
def test_r19_a_key_of_a_wrong_type_does_not_cost_anybody_a_lease(store: Store, key: str) -> None:
    store.enqueue("a", "b")
    worker = store.worker(lease_ms=3000)
    jobs = worker.take("a", "b")
    store.spoil(key)
    worker.lease_ms = LEASE_MS
    assert [answer.ours for answer in worker.extend(*jobs, renew=True)] == [True, True]
    assert store.raw.pttl(keys.IN_PROGRESS + "b") > LEASE_MS - 1000
    assert store.is_spoiled(key)


@pytest.mark.parametrize("key", [keys.RETRY + "lapsed", "rt:arq:queue:later"])
def test_r19_a_lapsed_job_beside_a_spoiled_key_is_lost_and_the_living_are_not(store: Store, key: str) -> None:
    store.enqueue("live")
    live = store.worker("b-2").one("live")
    store.enqueue("lapsed")
    lapsed = store.worker("a-1", lease_ms=1).one("lapsed")
    store.lapse(lapsed)
    store.spoil(key)
    assert [answer.ours for answer in store.worker("a-1").extend(lapsed, live)] == [False, True]


def test_r19_a_spoiled_lease_of_one_job_does_not_cost_the_others_theirs(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    jobs = worker.take("a", "b")
    store.spoil(keys.IN_PROGRESS + "a")
    worker.lease_ms = 20_000
    assert worker.extend(*jobs)[1].ours
    assert store.raw.pttl(keys.IN_PROGRESS + "b") > LEASE_MS


def test_r19_a_spoiled_queue_does_not_cost_anybody_a_lease_for_as_long_as_it_is_spoiled(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=3000)
    job = worker.one("a")
    store.spoil(store.queue)
    worker.lease_ms = LEASE_MS
    with pytest.raises(RedisError, match="WRONGTYPE"):
        worker.extend(job)
    assert store.raw.pttl(keys.IN_PROGRESS + "a") > LEASE_MS - 1000


def test_r19_leases_live_on_when_the_server_is_out_of_memory(store: Store) -> None:
    store.enqueue("lapsed", "live")
    brief, worker = store.worker("a-1", lease_ms=1), store.worker("a-1", lease_ms=3000)
    lapsed = brief.one("lapsed")
    worker.claims = 1
    live = worker.one("live")
    store.lapse(lapsed)
    worker.lease_ms = LEASE_MS
    with store.out_of_memory():
        assert [answer.ours for answer in worker.extend(lapsed, live)] == [True, True]
    assert store.raw.pttl(keys.IN_PROGRESS + "live") > LEASE_MS - 1000
    assert store.owner("lapsed") == lapsed.token
    assert store.score("live") == store.score("lapsed") > store.now_ms()


def test_r19_a_lapsed_lease_that_cannot_be_taken_again_for_want_of_memory_is_no_lost_one(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        worker.extend(job)
    assert worker.keeps(job)


def test_r12_a_thousand_lapsed_leases_are_taken_again_in_one_call(store: Store) -> None:
    ids = store.backlog(1000)
    worker = store.worker(lease_ms=1)
    jobs = worker.claim(1000).jobs
    assert names(jobs) == ids
    store.lapse(jobs[-1])
    worker.lease_ms = 60_000
    assert all(answer.ours for answer in worker.extend(*jobs))
    assert store.worker("b-2").claim(5).jobs == []
