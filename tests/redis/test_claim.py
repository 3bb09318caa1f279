"""claim.lua: who gets which job, and where a job goes whose lease has lapsed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from arq.jobs import ResultNotFound
from arq.worker import Retry
from redis.exceptions import OutOfMemoryError

from runtime.adapters.redis import keys
from runtime.adapters.redis.scripts import Leased
from tests.redis.store import BAND_MS, DAY_MS, LEASE_MS, Stock, Store, again, back, body, dead, done, names

# -- the happy path


def test_l1_a_claim_gives_the_job_and_marks_it_as_held(store: Store) -> None:
    store.enqueue("a")
    place = store.score("a")
    reply = store.worker().claim()

    (job,) = reply.jobs
    assert (job.id, job.body, job.kind, job.starts, job.own, job.abort_ms) == (b"a", body(), "string", 1, None, None)
    assert float(job.place) == place
    assert store.owner("a") == job.token
    assert LEASE_MS - 1000 < store.raw.pttl(keys.IN_PROGRESS + "a") <= LEASE_MS
    assert store.redis.get(keys.RETRY + "a") == "1"
    assert store.redis.ttl(keys.RETRY + "a") > 88_000
    assert store.redis.zrange(store.later, 0, -1) == [f"{job.token}|{job.place}|a"]
    assert not reply.more
    assert reply.due_in_ms is None


def test_the_score_of_a_leased_job_is_the_end_of_its_lease(store: Store) -> None:
    store.enqueue("a", priority=12)
    reply = store.worker().claim()
    assert store.score("a") == reply.now_ms + LEASE_MS + 1 + 12 / 1024
    assert store.redis.zscore(store.later, store.redis.zrange(store.later, 0, 0)[0]) == store.score("a")


def test_an_empty_queue_gives_nothing_and_writes_nothing(store: Store) -> None:
    reply = store.worker().claim(10)
    assert (reply.jobs, reply.more, reply.due_in_ms, reply.others) == ([], False, None, 0)
    assert store.redis.keys("*") == []


def test_a_job_that_is_not_due_is_left_and_its_time_told(store: Store) -> None:
    store.enqueue("a", delay_ms=5000)
    reply = store.worker().claim()
    assert reply.jobs == []
    assert reply.due_in_ms is not None
    assert 4000 < reply.due_in_ms <= 5000


def test_never_more_than_there_is_room_for_and_the_rest_is_announced(store: Store) -> None:
    store.enqueue("a", "b", "c")
    store.redis.delete(store.mark)
    worker = store.worker()
    reply = worker.claim(2)
    assert names(reply.jobs) == ["a", "b"]
    assert reply.more
    assert store.redis.exists(store.mark)
    store.redis.delete(store.mark)
    reply = worker.claim(2)
    assert names(reply.jobs) == ["c"]
    assert not reply.more
    assert not store.redis.exists(store.mark)


def test_a_job_is_claimed_once_while_its_lease_lives(store: Store) -> None:
    store.enqueue("a")
    job = store.worker("a-1").one("a")
    assert store.worker("b-2").claim(5).jobs == []
    assert store.worker("a-1").claim(5).jobs == []
    assert store.starts("a") == 1
    assert store.owner("a") == job.token


def test_claims_that_go_on_from_where_the_last_one_stopped_keep_the_order(store: Store) -> None:
    ids = store.backlog(60)
    worker = store.worker()
    offset, got = 0, list[str]()
    while len(got) < len(ids):
        reply = worker.claim(7, offset=offset)
        offset = reply.offset
        got += names(reply.jobs)
    assert got == ids


# -- R1: a lapsed job


def test_r1_a_lapsed_job_gets_its_place_back_in_front_of_a_backlog(store: Store) -> None:
    store.waits_at("first", round(store.now_ms()) - 120_000)
    place = store.score("first")
    job = store.worker("dead-1", lease_ms=1).one("first")
    store.backlog(500)
    store.lapse(job)
    retaken = store.worker("b-2").one("first")
    assert float(retaken.place) == place
    assert retaken.starts == 2
    assert retaken.own == b"1|"
    assert store.redis.zcard(store.later) == 1


def test_r1_a_job_that_was_extended_before_its_worker_died_gets_its_place_back(store: Store) -> None:
    store.enqueue("a", priority=3)
    place = store.score("a")
    worker = store.worker("dead-1", lease_ms=1)
    job = worker.one("a")
    worker.lease_ms = 5000
    store.redis.set(keys.IN_PROGRESS + "a", job.token)  # so that it cannot lapse between the two calls
    assert worker.keeps(job)
    worker.lease_ms = 1
    assert worker.keeps(job)
    store.lapse(job)
    retaken = store.worker("b-2").one("a")
    assert float(retaken.place) == place


def test_r1_a_lapsed_job_with_nobody_waiting_is_found_too(store: Store) -> None:
    store.enqueue("a")
    place = store.score("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.lapse(job)
    retaken = store.worker("b-2").one("a")
    assert float(retaken.place) == place
    assert retaken.own == b"1|"


def test_l11_the_second_crash_waits_ten_seconds_and_the_third_is_taken_at_once(store: Store) -> None:
    store.enqueue("a", priority=4)
    killer = store.worker("dead-1", lease_ms=1)
    store.lapse(killer.one("a"))
    job = store.worker("dead-2", lease_ms=1).one("a")
    store.lapse(job)

    reply = store.worker("b-2").claim()
    assert reply.jobs == []
    assert reply.due_in_ms is not None
    assert 9000 < reply.due_in_ms <= 10_001
    assert store.own("a") == "2|"
    ((entry, when),) = store.redis.zrange(store.later, 0, -1, withscores=True)
    assert entry.startswith("|")  # its priority counts again from then on
    assert when == store.score("a")

    store.redis.zadd(store.queue, {"a": store.now_ms() - 1})  # the ten seconds are over
    job = store.worker("dead-3", lease_ms=1).one("a")
    store.lapse(job)
    job = store.worker("b-2").one("a")
    assert job.own == b"3|"
    assert job.starts == 4


def test_i10_a_worker_that_dies_after_it_was_told_to_stop_has_not_crashed(store: Store) -> None:
    store.waits_at("a", round(store.now_ms()) - 120_000)
    place = store.score("a")
    for deploy in range(4):
        worker = store.worker(f"dead-{deploy}", lease_ms=1)
        job = worker.one("a")
        assert (job.starts, job.own, float(job.place)) == (1, None, place)
        store.redis.set(keys.retired(f"dead-{deploy}"), "", ex=60)
        store.lapse(job)
    another = store.worker("dead-9", lease_ms=1).one("a")
    store.lapse(another)  # which was not
    assert store.worker("b-2").one("a").own == b"1|"


def test_i10_what_it_remembers_of_earlier_crashes_and_attempts_stays(store: Store) -> None:
    store.enqueue("a", "b")
    for name in ("crashed-1", "retired-1"):
        store.lapse(*store.worker(name, lease_ms=1).claim(2).jobs)
    store.redis.set(keys.retired("retired-1"), "", ex=60)
    retaken = store.worker("b-2").claim(2).jobs
    assert [(job.starts, job.own) for job in retaken] == [(2, b"1|")] * 2


def test_i10_r5_who_is_thawed_after_that_is_no_owner_although_the_job_has_as_many_starts_as_his(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("zombie-1", lease_ms=1)
    his = zombie.one("a")
    store.redis.set(keys.retired("zombie-1"), "", ex=60)
    store.lapse(his)
    heir = store.worker("b-2", lease_ms=1)
    job = heir.one("a")
    assert job.starts == his.starts
    store.lapse(job)
    assert not zombie.keeps(his)
    assert zombie.settle(done(his)).verdicts == "0"
    assert heir.settle(done(job, b"the heir's")).verdicts == "1"
    assert zombie.settle(done(his)).verdicts == "0"
    assert store.redis.get(keys.RESULT + "a") == "the heir's"


def test_i10_of_each_worker_that_has_died_it_is_known(store: Store) -> None:
    store.enqueue("a", "b", "c")
    store.lapse(*[store.worker(name, lease_ms=1000).one(name) for name in ("a", "b", "c")])
    store.redis.set(keys.retired("b"), "", ex=60)
    found = {job.id: job.own for job in store.worker("d-2").claim(3).jobs}
    assert found == {b"a": b"1|", b"b": None, b"c": b"1|"}


@pytest.mark.parametrize("left", ["nothing", "no number", "a list"])
def test_i10_r19_starts_that_are_lost_or_spoiled_stop_no_claim(store: Store, left: str) -> None:
    store.enqueue("a")
    store.lapse(store.worker("dead-1", lease_ms=1).one("a"))
    store.redis.set(keys.retired("dead-1"), "", ex=60)
    store.redis.delete(keys.RETRY + "a")
    if left == "no number":
        store.redis.set(keys.RETRY + "a", "many", ex=60)
    elif left == "a list":
        store.spoil(keys.RETRY + "a")
    (job,) = store.worker("b-2").claim().jobs
    assert job.starts == 1


def test_i10_starts_that_are_given_back_expire(store: Store) -> None:
    ids = ["a", "b"]
    store.enqueue(*ids)
    store.lapse(*store.worker("dead-1", lease_ms=1).claim(2).jobs)
    store.redis.set(keys.retired("dead-1"), "", ex=60)
    (taken,) = store.worker("b-2").claim(1).jobs
    (left,) = {*ids} - {*names([taken])}
    assert store.redis.get(keys.RETRY + left) == "0"
    assert store.redis.ttl(keys.RETRY + left) > 88_000


def test_r1_a_crash_keeps_the_jobs_history(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker("dead-1", lease_ms=1)
    first = store.worker("a-1")
    first.settle(again(first.one("a"), own=b'0|{"errors": ["x|y"]}'))
    store.until_due("a")
    store.lapse(worker.one("a"))
    job = store.worker("b-2").one("a")
    assert job.own == b'1|{"errors": ["x|y"]}'


@pytest.mark.parametrize("own", ["garbage", "", "many|x"])
def test_r1_a_crash_is_counted_beside_an_own_that_cannot_be_read(store: Store, own: str) -> None:
    store.enqueue("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.redis.set(keys.OWN + "a", own, ex=60)
    store.lapse(job)
    assert store.worker("b-2").one("a").own == b"1|"


def test_r12_entries_that_are_none_or_of_nobody_are_swept_however_many(store: Store) -> None:
    store.raw.zadd(store.later, {f"1:dead-1:1|5|gone-{n}": 1 for n in range(9000)})
    store.raw.zadd(store.later, {"nonsense": 5})
    store.waits_at("", 5)
    store.waits_at("a", 6)
    worker, got = store.worker(), list[str]()
    while len(got) < 2:
        got += names(worker.claim(1).jobs)
    assert got == ["", "a"]
    assert all(entry.startswith("17") for entry in store.redis.zrange(store.later, 0, -1))


def test_r1_a_lapsed_job_that_stock_has_finished_leaks_nothing(store: Store) -> None:
    store.enqueue("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.lapse(job)
    stock = Stock(store)
    assert stock.claims("a")
    stock.finishes()
    store.backlog(2)
    store.worker("b-2").claim(1)
    assert all("old" in entry for entry in store.redis.zrange(store.later, 0, -1))
    assert store.own("a") is None


def test_r1_an_entry_whose_lease_still_lives_is_left_alone(store: Store) -> None:
    # Its time in `later` is over and its key is not: an extension could write only one of them.
    store.enqueue("a")
    job = store.worker("a-1").one("a")
    entry = f"{job.token}|{job.place}|a"
    for index, member in ((store.later, entry), (store.queue, "a")):
        store.redis.zadd(index, {member: store.now_ms() - 5})
    store.backlog(3)
    store.worker("b-2").claim(1)
    assert store.redis.zscore(store.later, entry) is not None
    assert store.owner("a") == job.token
    assert store.own("a") is None


def test_r1_more_lapsed_jobs_than_one_claim_gives_back_all_come_back_in_order(store: Store) -> None:
    ids = store.backlog(700)
    worker = store.worker("dead-1", lease_ms=1000)
    jobs = [job for _ in range(7) for job in worker.claim(100).jobs]
    store.lapse(*jobs[-3:])
    heir, got = store.worker("b-2"), list[Leased]()
    while len(got) < 700:
        reply = heir.claim(1000)
        assert reply.more or len(got) + len(reply.jobs) == 700
        got += reply.jobs
    assert names(got) == ids
    assert {job.own for job in got} == {b"1|"}


def test_design_the_attempts_of_a_job_survive_its_worker(store: Store) -> None:
    store.enqueue("a")
    for n in (1, 2):
        job = store.worker(f"dead-{n}", lease_ms=1).one("a")
        assert job.starts == n
        store.lapse(job)


def test_what_an_earlier_job_of_the_id_left_behind_is_not_the_new_ones(store: Store) -> None:
    # Stock arq finishes a job of ours that was retried: it knows arq's keys, and deletes those.
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), own=b'2|{"unknown_since_ms": 1}'))
    store.until_due("a")
    stock = Stock(store)
    assert stock.claims("a")
    stock.finishes()
    store.redis.delete(keys.RESULT + "a")

    store.enqueue("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    assert job.own is None
    store.lapse(job)
    job = worker.one("a")
    assert job.own == b"1|"


def test_what_a_snoozed_job_remembers_is_still_its_own(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), keep=0, own=b'0|{"snoozed_since_ms": 1}'))
    store.until_due("a")
    job = worker.one("a")
    assert (job.starts, job.own) == (1, b'0|{"snoozed_since_ms": 1}')
    worker.settle(back(job))
    job = worker.one("a")
    assert (job.starts, job.own) == (1, b'0|{"snoozed_since_ms": 1}')


# -- R2, R3, R4: beside stock arq


def test_r2_a_job_that_stock_holds_is_neither_claimed_nor_moved(store: Store) -> None:
    store.enqueue("a", priority=5)
    stock = Stock(store, ends=Retry(defer=1))
    assert stock.claims("a")
    score = store.score("a")
    reply = store.worker().claim(5)
    assert (reply.jobs, reply.others) == ([], 1)
    assert store.score("a") == score
    stock.finishes()
    assert 0 < store.score("a") - store.now_ms() <= 1000
    assert store.score("a") % 1 * 1024 == 5


def test_r2_a_lapsed_job_that_stock_has_taken_is_not_given_its_place_back(store: Store) -> None:
    store.enqueue("a", priority=5)
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.lapse(job)
    stock = Stock(store, ends=Retry(defer=1))
    assert stock.claims("a")
    score = store.score("a")
    store.backlog(2)
    store.worker("b-2").claim(1)
    assert store.score("a") == score
    stock.finishes()
    assert store.score("a") - store.now_ms() <= 1000


def test_r2_stock_skips_a_job_that_we_hold(store: Store) -> None:
    store.enqueue("a")
    store.worker().take("a")
    assert not Stock(store).claims("a")


def test_r2_a_job_that_stock_put_off_meanwhile_is_not_brought_forward(store: Store) -> None:
    store.enqueue("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.lapse(job)
    stock = Stock(store, ends=Retry(defer=60))
    assert stock.claims("a")
    stock.finishes()
    score = store.score("a")
    store.backlog(2)
    store.worker("b-2").claim(1)
    assert store.score("a") == score
    assert store.own("a") is None


def test_r2_a_stock_worker_that_comes_late_with_a_retry_does_not_put_off_our_job_for_years(store: Store) -> None:
    store.enqueue("a", priority=5)
    stock = Stock(store, ends=Retry(defer=1))
    assert stock.claims("a")
    store.redis.delete(keys.IN_PROGRESS + "a")  # it stood still for longer than its lease
    job = store.worker("b-2").one("a")
    stock.finishes()
    assert store.worker("b-2").keeps(job)
    assert store.score("a") < store.now_ms() + DAY_MS


def test_r2_nor_one_whose_worker_has_died_since(store: Store) -> None:
    store.enqueue("a", priority=5)
    place = store.score("a")
    stock = Stock(store, ends=Retry(defer=1))
    assert stock.claims("a")
    store.redis.delete(keys.IN_PROGRESS + "a")
    store.enqueue("b")
    jobs = store.worker("b-2", lease_ms=30).claim(2).jobs
    stock.finishes()
    assert store.score("a") > store.now_ms() + DAY_MS
    store.lapse(*(job for job in jobs if job.id == b"b"))
    reply = store.worker("c-3").claim(5)
    assert {job.id: (float(job.place), job.own) for job in reply.jobs}[b"a"] == (place, b"1|")


def test_r3_a_flagged_job_is_claimed_with_its_flag(store: Store) -> None:
    store.enqueue("a", "b")
    flagged_at = int(store.now_ms())
    store.redis.zadd(keys.ABORT, {"b": flagged_at})
    jobs = store.worker().claim(2).jobs
    assert [job.abort_ms for job in jobs] == [None, flagged_at]


def test_r3_a_flag_that_is_no_moment_does_no_harm(store: Store) -> None:
    store.enqueue("a")
    store.redis.zadd(keys.ABORT, {"a": "inf"})
    job = store.worker().one("a")
    assert job.abort_ms is not None


def test_a_job_that_stock_arq_is_about_to_abort_is_not_run_before_its_flag_is_there(store: Store) -> None:
    store.enqueue("a", delay_ms=60_000)
    store.redis.zadd(store.queue, {"a": 1})  # its abort's first step; the flag is the second
    reply = store.worker().claim()
    assert reply.jobs == []
    assert reply.due_in_ms is not None
    assert 0 < reply.due_in_ms <= 1000
    assert store.now_ms() < store.score("a") <= store.now_ms() + 1001  # rounded up


def test_nor_for_ever_if_the_flag_does_not_come(store: Store) -> None:
    store.enqueue("a", delay_ms=60_000)
    store.redis.zadd(store.queue, {"a": 1})
    store.worker().claim()
    store.until_due("a")
    assert names(store.worker("b-2").claim().jobs) == ["a"]


def test_r4_an_abort_that_came_too_late_leaves_the_result_alone(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(done(worker.one("a"), result=b"GOOD"))
    # What stock's Job.abort() writes when it looked at the job before it was settled.
    store.redis.zadd(store.queue, {"a": 1})
    store.redis.zadd(keys.ABORT, {"a": store.now_ms()})
    store.redis.set(keys.RETRY + "a", 1, ex=60)
    store.redis.set(keys.OWN + "a", "1|", ex=60)

    reply = worker.claim(5)
    assert (reply.jobs, store.queued()) == ([], [])
    assert store.redis.get(keys.RESULT + "a") == "GOOD"
    assert not store.redis.exists(keys.ABORT, keys.RETRY + "a", keys.OWN + "a", keys.IN_PROGRESS + "a")


def test_r4_an_abort_that_came_too_late_makes_no_letter_of_a_job_that_kept_no_result(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(done(worker.one("a"), result=b"", result_ms=0))
    store.redis.zadd(store.queue, {"a": 1})
    store.redis.zadd(keys.ABORT, {"a": store.now_ms()})
    assert (worker.claim(5).jobs, store.queued()) == ([], [])
    assert not store.redis.exists(keys.ABORT)


def test_r4_r19_flags_of_a_wrong_type_do_not_stop_it(store: Store) -> None:
    store.redis.set(keys.RESULT + "a", "GOOD", ex=60)
    store.redis.zadd(store.queue, {"a": 1})
    store.spoil(keys.ABORT)
    assert store.worker().claim().jobs == []
    assert store.queued() == []


def test_r4_a_job_whose_body_has_expired_is_given_out_though_it_was_to_be_aborted(store: Store) -> None:
    store.redis.zadd(store.queue, {"a": 5})
    store.redis.zadd(keys.ABORT, {"a": 5})
    assert store.worker().one("a").kind == "none"


def test_r4_r19_so_it_is_where_nobody_can_tell(store: Store) -> None:
    store.redis.zadd(store.queue, {"a": 1})
    store.spoil(keys.ABORT)
    assert store.worker().one("a").kind == "none"


def test_r4_ids_behind_one_that_is_settled_are_not_passed_over(store: Store) -> None:
    for n in range(3):
        store.redis.set(f"{keys.RESULT}gone-{n}", "GOOD", ex=60)
        store.redis.zadd(store.queue, {f"gone-{n}": 1})
    ids = store.backlog(600)
    worker, got, offset = store.worker(), list[str](), 0
    while len(got) < 600:
        reply = worker.claim(100, offset=offset)
        offset = reply.offset
        got += names(reply.jobs)
    assert got == ids


def test_a_job_whose_body_is_missing_is_given_out_as_such(store: Store) -> None:
    store.redis.zadd(store.queue, {"a": 1})
    job = store.worker().one("a")
    assert (job.body, job.kind) == (None, "none")


# -- R6, R7: priorities


def test_r6_the_priority_survives_claims_lapses_and_retries(store: Store) -> None:
    store.enqueue("a", priority=999)
    place = store.score("a")
    job = store.worker("dead-1", lease_ms=1).one("a")
    assert store.score("a") % 1 * 1024 == 999
    store.lapse(job)
    worker = store.worker("b-2")
    job = worker.one("a")
    assert float(job.place) == place
    worker.settle(again(job, 1))
    assert store.score("a") % 1 * 1024 == 999
    store.until_due("a")
    store.backlog(5)
    job = worker.one("a")
    assert float(job.place) % 1 * 1024 == 999
    assert float(job.place) < -6e12


def test_r7_a_deferred_job_with_a_priority_passes_a_backlog_when_it_is_due(store: Store) -> None:
    store.backlog(300)
    worker = store.worker()
    store.enqueue("a", delay_ms=300, priority=2)
    assert names(worker.claim(1).jobs) == ["old-00000"]
    store.until_due("a")
    job = worker.one("a")
    assert float(job.place) < store.now_ms() - BAND_MS
    assert not any("|a" in entry and entry.startswith("|") for entry in store.redis.zrange(store.later, 0, -1))
    assert job.own is None


def test_r7_a_job_claimed_before_its_promotion_has_its_priority_when_it_is_given_back(store: Store) -> None:
    store.enqueue("a", delay_ms=1, priority=2)
    store.until_due("a")
    worker = store.worker()
    (job,) = worker.claim(10).jobs  # the only one: nothing to promote it past
    assert float(job.place) % 1 * 1024 == 2
    store.backlog(300)
    assert names(store.worker("b-2").claim(1).jobs) == ["old-00000"]
    assert not any(entry.startswith("|") for entry in store.redis.zrange(store.later, 0, -1))
    worker.settle(back(job))
    worker.take("a")


def test_r7_a_promotion_is_no_crash(store: Store) -> None:
    store.enqueue("a", priority=2)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1))
    store.until_due("a")
    store.backlog(300)
    assert worker.one("a").own == b"0|{}"


def test_r7_a_deferred_job_that_stock_runs_is_not_promoted(store: Store) -> None:
    store.enqueue("a", delay_ms=1, priority=2)
    store.until_due("a")
    assert Stock(store).claims("a")
    score = store.score("a")
    store.backlog(3)
    store.worker().claim(1)
    assert store.score("a") == score
    assert not any(entry.startswith("|") for entry in store.redis.zrange(store.later, 0, -1))


# -- R10, R13: numbers


def test_r10_what_is_due_within_the_present_ms_is_due(store: Store) -> None:
    due = store.now_ms() + 20
    store.waits_at("a", due)
    worker = store.worker()
    while not (reply := worker.claim()).jobs:
        assert reply.due_in_ms is not None
        assert reply.due_in_ms > 0
        assert reply.now_ms < due
    assert reply.now_ms >= due


def test_r10_what_is_due_to_the_ms_is_taken(store: Store) -> None:
    first = round(store.now_ms()) + 20
    scores = {f"a{n:03}": first + n for n in range(100)}
    for job_id, score in scores.items():
        store.waits_at(job_id, score)
    worker, got = store.worker(), set[str]()
    while len(got) < 100:
        reply = worker.claim(200)
        got.update(names(reply.jobs))
        assert got == {job_id for job_id, score in scores.items() if score <= reply.now_ms}
        assert reply.due_in_ms is None or reply.due_in_ms > 0


def test_r13_tokens_of_one_claim_differ_and_carry_the_servers_microseconds(store: Store) -> None:
    ids = store.backlog(100)
    before = store.now_ms() * 1000
    jobs = store.worker("a-1").claim(100).jobs
    after = store.now_ms() * 1000
    assert before >= 1.79e15
    fences = [int(job.token.split(":")[0]) for job in jobs]
    assert len(set(fences)) == len(ids) == 100
    assert fences == sorted(fences)
    assert before <= fences[0] <= fences[-1] <= after + 101
    assert [store.owner(job_id) for job_id in ids] == [job.token for job in jobs]


def test_r13_l13_a_later_claim_has_a_greater_fence(store: Store) -> None:
    store.enqueue("a")
    fences = []
    for n in range(5):
        job = store.worker(f"w-{n}").one("a")
        fences.append(int(job.token.split(":")[0]))
        store.worker(f"w-{n}").settle(back(job))
    assert fences == sorted(set(fences))


def test_r13_places_keep_every_bit(store: Store) -> None:
    for p in (1, 333, 1000):
        place = 1_795_000_000_123 - p * BAND_MS + p / 1024
        store.waits_at(f"p{p}", place)
    jobs = store.worker().claim(3).jobs
    assert {job.id.decode(): float(job.place) for job in jobs} == {
        f"p{p}": 1_795_000_000_123 - p * BAND_MS + p / 1024 for p in (1, 333, 1000)
    }


def test_a_score_without_end_is_a_place_like_any_other(store: Store) -> None:
    store.waits_at("a", float("-inf"))
    store.waits_at("b", 2)
    store.waits_at("c", float("inf"))
    reply = store.worker().claim(5)
    assert names(reply.jobs) == ["a", "b"]
    assert store.now_ms() < store.score("a") < store.now_ms() + 2 * LEASE_MS


# -- R11, R12: much at once


def held_by_stock(store: Store, count: int) -> None:
    ids = store.backlog(count, before_ms=90_000, prefix="held")
    with store.raw.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.set(keys.IN_PROGRESS + job_id, b"1", px=310_000)
        pipe.execute()


def test_r11_l3_a_claim_pages_past_ids_that_others_hold(store: Store) -> None:
    held_by_stock(store, 600)
    store.backlog(3)
    reply = store.worker().claim(2)
    assert names(reply.jobs) == ["old-00000", "old-00001"]
    assert reply.others == 600


def test_r11_a_claim_sees_a_bounded_number_and_the_next_one_goes_on_from_there(store: Store) -> None:
    held_by_stock(store, 2500)
    store.backlog(3)
    worker, offsets, jobs = store.worker(), [0], list[str]()
    while not jobs:
        reply = worker.claim(2, offset=offsets[-1])
        assert reply.more
        assert reply.offset - offsets[-1] <= 1250 or reply.jobs
        offsets.append(reply.offset)
        jobs = names(reply.jobs)
    assert jobs == ["old-00000", "old-00001"]
    assert len(offsets) == 4
    reply = worker.claim(2, offset=offsets[-1])
    assert names(reply.jobs) == ["old-00002"]


def test_r11_a_claim_from_behind_ids_of_others_says_that_they_are_there(store: Store) -> None:
    # They may be given back by somebody who tells nobody: the worker is to look again soon, and from the head.
    held_by_stock(store, 1200)
    worker = store.worker()
    first = worker.claim(1)
    second = worker.claim(1, offset=first.offset)
    assert (second.jobs, second.more, second.offset) == ([], False, 0)
    assert second.others == 1200


def test_r12_a_thousand_jobs_are_claimed_extended_and_settled_in_single_calls(store: Store) -> None:
    ids = store.backlog(1000)
    worker = store.worker()
    jobs = worker.claim(1000).jobs
    assert names(jobs) == ids
    assert [kept.ours for kept in worker.extend(*jobs)] == [True] * 1000
    assert worker.settle(*map(done, jobs)).verdicts == "1" * 1000
    assert store.queued() == []
    assert not store.redis.exists(store.later)


def test_r15_a_body_that_is_too_large_is_not_handed_out_but_kept(store: Store) -> None:
    store.enqueue("a", "b")
    store.raw.set(keys.JOB + "a", b"x" * (8 * 2**20 + 1), px=DAY_MS)
    worker = store.worker()
    a, b = worker.take("a", "b")
    assert (a.kind, a.body) == ("oversized", None)
    assert (b.kind, b.body) == ("string", body())
    assert worker.claim(2, again=True).jobs == [a, b]
    assert worker.settle(dead(a), done(b)).verdicts == "11"
    assert store.raw.strlen(keys.LETTER + "a:original") == 8 * 2**20 + 1


def test_r15_a_claim_hands_out_a_bounded_number_of_bytes(store: Store) -> None:
    ids = store.backlog(10)
    for job_id in ids:
        store.raw.set(keys.JOB + job_id, b"x" * 3 * 2**20, px=DAY_MS)
    worker, got, offset = store.worker(), list[str](), 0
    while len(got) < len(ids):
        reply = worker.claim(10, offset=offset)
        offset = reply.offset
        assert 0 < len(reply.jobs) <= 3
        got += names(reply.jobs)
    assert got == ids


# -- R14, R19, L4: keys of wrong types


def test_r14_l4_a_body_of_a_wrong_type_is_told_and_the_others_run(store: Store) -> None:
    store.enqueue("a", "b", "c")
    store.spoil(keys.JOB + "b")
    jobs = store.worker().claim(3).jobs
    assert [(job.id, job.kind, job.body is None) for job in jobs] == [
        (b"a", "string", False),
        (b"b", "list", True),
        (b"c", "string", False),
    ]
    assert store.is_spoiled(keys.JOB + "b")


def test_r14_a_body_of_a_wrong_type_is_told_also_where_there_is_a_result(store: Store) -> None:
    store.enqueue("a")
    store.spoil(keys.JOB + "a")
    store.redis.set(keys.RESULT + "a", "old", ex=60)
    assert store.worker().one("a").kind == "list"


def test_r14_a_body_of_a_wrong_type_becomes_a_letter_as_it_is(store: Store) -> None:
    store.enqueue("a")
    store.spoil(keys.JOB + "a")
    worker = store.worker()
    assert worker.settle(dead(worker.one("a"))).verdicts == "1"
    original = keys.LETTER + "a:original"
    assert store.redis.lrange(original, 0, -1) == ["spoiled"]
    assert store.redis.ttl(original) > 29 * 86400
    assert not store.redis.exists(keys.JOB + "a")


@pytest.mark.parametrize("prefix", [keys.RETRY, keys.OWN, keys.RESULT])
def test_r19_l4_a_key_of_a_wrong_type_beside_one_job_does_not_stop_a_claim(store: Store, prefix: str) -> None:
    store.enqueue("a", "b")
    store.spoil(prefix + "a")
    reply = store.worker().claim(2)
    assert names(reply.jobs) == ["a", "b"]
    assert [job.starts for job in reply.jobs] == [1, 1]


@pytest.mark.parametrize("key", [keys.ABORT, "rt:arq:queue:mark", "rt:arq:queue:later"])
def test_r19_an_index_of_a_wrong_type_does_not_stop_a_claim_and_is_reported(store: Store, key: str) -> None:
    store.enqueue("a", "b")
    store.spoil(key)
    worker = store.worker()
    reply = worker.claim(1)
    assert names(reply.jobs) == ["a"]
    assert any("WRONGTYPE" in text and text.endswith(f"\n{key}") for text in reply.trouble)
    assert worker.keeps(reply.jobs[0])
    assert worker.settle(done(reply.jobs[0])).verdicts == "1"
    assert store.is_spoiled(key)


def test_r19_a_lapsed_job_beside_spoiled_keys_comes_back(store: Store) -> None:
    store.enqueue("a", "b")
    store.lapse(*store.worker("dead-1", lease_ms=1).take("a", "b"))
    store.spoil(keys.OWN + "a")
    assert sorted(names(store.worker("b-2").claim(5).jobs)) == ["a", "b"]


def test_r19_a_claim_without_memory_is_refused_and_changes_nothing(store: Store) -> None:
    store.enqueue("a", "b")
    job = store.worker("dead-1", lease_ms=1).one("a")
    store.lapse(job)
    entries, scores = store.redis.zrange(store.later, 0, -1), store.redis.zrange(store.queue, 0, -1, withscores=True)
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        store.worker("b-2").claim(2)
    assert store.redis.zrange(store.later, 0, -1) == entries
    assert store.redis.zrange(store.queue, 0, -1, withscores=True) == scores
    assert (store.owner("a"), store.owner("b"), store.own("a")) == (None, None, None)
    jobs = store.worker("b-2").claim(2).jobs
    assert [(job.id, job.own) for job in jobs] == [(b"a", b"1|"), (b"b", None)]


# -- R21, L2: our own


def test_r21_a_claim_that_is_sent_again_gives_the_same_jobs_with_fresh_leases(store: Store) -> None:
    store.enqueue("a", "b", "c", priority=8)
    store.redis.zadd(keys.ABORT, {"b": 5})
    worker = store.worker(lease_ms=2000)
    lost = worker.claim(2)
    assert names(lost.jobs) == ["a", "b"]
    worker.lease_ms = LEASE_MS
    reply = worker.claim(2, again=True)
    assert reply.jobs == lost.jobs
    assert reply.more
    for job in reply.jobs:
        name = job.id.decode()
        assert store.raw.pttl(keys.IN_PROGRESS + name) > 5000
        assert store.score(name) == reply.now_ms + LEASE_MS + 1 + 8 / 1024
        assert store.redis.zscore(store.later, f"{job.token}|{job.place}|{name}") == store.score(name)
    assert worker.settle(*map(done, reply.jobs)).verdicts == "11"
    assert store.redis.zcard(store.later) == 0


def test_r21_the_lost_claim_is_found_among_many_leases(store: Store) -> None:
    store.backlog(1300)
    other = store.worker("b-2")
    for _ in range(13):
        other.claim(100)
    store.enqueue("a", "b")
    worker = store.worker()
    lost = worker.claim(1)
    assert worker.claim(1, again=True).jobs == lost.jobs


def test_r21_a_claim_that_is_sent_again_takes_no_further_jobs(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    lost = worker.claim(5)
    store.enqueue("b")
    reply = worker.claim(5, again=True)
    assert (reply.jobs, reply.more) == (lost.jobs, True)


def test_r21_a_claim_that_never_arrived_is_made_when_sent_again(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.claims += 1
    assert names(worker.claim(again=True).jobs) == ["a"]


def test_r21_a_claim_that_is_sent_again_gives_no_other_claims_jobs(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker, other = store.worker("a-1"), store.worker("b-2")
    worker.take("a")
    other.claims += 1
    other.take("b")
    worker.claims += 1
    assert names(worker.claim(again=True).jobs) == ["c"]


def test_r21_a_claim_that_is_sent_again_knows_its_number_to_the_end(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.claims = 11
    worker.take("a")
    store.enqueue("b")
    worker.claims = 1
    assert names(worker.claim(5, again=True).jobs) == ["b"]


def test_r21_a_claim_that_is_sent_again_puts_nothing_into_the_queue(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    lost = worker.claim()
    store.redis.zrem(store.queue, "a")
    store.redis.delete(keys.RETRY + "a")
    assert worker.claim(again=True).jobs == lost.jobs
    assert store.queued() == []


def test_r21_r19_a_later_of_a_wrong_type_does_not_stop_a_claim_that_is_sent_again(store: Store) -> None:
    store.enqueue("a")
    store.spoil(store.later)
    worker = store.worker()
    worker.claims += 1
    assert names(worker.claim(again=True).jobs) == ["a"]


def test_r21_a_claim_that_is_sent_again_too_late_leaves_what_another_has_taken(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker("a-1")
    job = worker.one("a")
    store.redis.set(keys.IN_PROGRESS + "a", "1")  # a stock worker was faster, and our entry is not swept yet
    assert worker.claim(again=True).jobs == []
    assert store.owner("a") == "1"
    store.redis.delete(keys.IN_PROGRESS + "a")
    assert job.token


def test_l2_a_worker_never_claims_what_it_still_runs_itself(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker("a-1", lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    store.backlog(3)
    score = store.score("a")
    reply = worker.claim(10)
    assert names(reply.jobs) == ["old-00000", "old-00001", "old-00002"]
    assert reply.lapsed == [job.token]
    assert store.score("a") == score
    assert worker.keeps(job)


def test_r21_a_lapsed_job_that_this_worker_never_heard_of_goes_back_as_it_was(store: Store) -> None:
    # The reply was lost for longer than a lease: no crash. The start counts, as for any job that is handed out.
    store.enqueue("a", priority=6)
    place = store.score("a")
    worker = store.worker("a-1", lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    reply = worker.claim()
    assert (reply.jobs, reply.lapsed) == ([], [job.token])
    worker.lease_ms = LEASE_MS
    (job,) = worker.claim(disowned=reply.lapsed).jobs
    assert (float(job.place), job.starts, job.own) == (place, 2, None)


def test_a_job_given_back_by_another_incarnation_on_the_same_host_is_a_crash(store: Store) -> None:
    store.enqueue("a")
    store.lapse(store.worker("a-1", lease_ms=1).one("a"))
    job = store.worker("a-10").one("a")
    assert job.own == b"1|"


def test_ids_and_queues_of_any_text_are_claimed_and_given_back(redis_url: str) -> None:
    for queue in ("a queue", "später|:{x}"):
        with Store(redis_url, queue) as store:
            ids = ["a|b|c", "ü ü", "line\nbreak", "x" * 500, "1795000000000"]
            store.enqueue(*ids, priority=1)
            worker = store.worker("dead-1", lease_ms=1)
            store.lapse(*worker.claim(10).jobs)
            heir = store.worker("b-2")
            jobs = heir.claim(10).jobs
            assert sorted(names(jobs)) == sorted(ids)
            assert {job.own for job in jobs} == {b"1|"}
            assert heir.settle(*map(done, jobs)).verdicts == "11111"
            store.redis.flushdb()


def test_l6_a_lease_of_an_earlier_job_of_the_id_does_not_move_the_new_one(store: Store) -> None:
    store.enqueue("a")
    job = store.worker("zombie-1", lease_ms=1).one("a")
    store.lapse(job)
    stock = Stock(store)
    assert stock.claims("a")
    stock.finishes()
    store.redis.delete(keys.RESULT + "a")
    store.enqueue("a", delay_ms=DAY_MS)
    due = store.score("a")
    store.backlog(2)
    store.worker("b-2").claim(1)
    assert store.score("a") == due


def test_the_result_of_a_stock_abort_of_a_waiting_job_is_a_flagged_claim(store: Store) -> None:
    store.enqueue("a", delay_ms=60_000, priority=3)

    async def abort() -> None:
        with suppress(TimeoutError, ResultNotFound):
            await store.job("a").abort(timeout=0, poll_delay=0.001)

    store.run(abort())
    job = store.worker().one("a")
    assert job.abort_ms is not None
    assert float(job.place) == 1


# -- claims that are read late


def test_b1_a_claim_that_nobody_waits_for_any_more_takes_nothing_and_says_that_there_is_more(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    late = worker.claim(until_ms=round(store.now_ms()) - 1)
    assert (names(late.jobs), late.more) == ([], True)
    assert names(worker.claim(again=True, until_ms=round(store.now_ms()) + 5000).jobs) == ["a"]


def test_b1_a_claim_for_new_jobs_leaves_those_of_lapsed_leases_to_others(store: Store) -> None:
    store.enqueue("a")
    store.lapse(store.worker(lease_ms=1).one("a"))
    other = store.worker("another")
    seen = other.claim(2, only_new=True)
    assert (names(seen.jobs), seen.more) == ([], True)
    assert not store.redis.exists(keys.OWN + "a")  # no crash is counted
    assert names(other.claim(2).jobs) == ["a"]


def test_a_claim_for_new_jobs_takes_them_beside_those_that_others_hold(store: Store) -> None:
    store.enqueue("a", "b")
    assert Stock(store).claims("a")
    assert names(store.worker().claim(2, only_new=True).jobs) == ["b"]
