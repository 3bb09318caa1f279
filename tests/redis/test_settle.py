"""settle.lua: an outcome is recorded once, and only by who holds the job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arq.jobs import JobStatus, serialize_result

from runtime.adapters.redis import keys
from tests.redis.store import BAND_MS, DAY_MS, Stock, Store, again, back, body, dead, done

# -- the happy path


def test_l8_a_done_job_leaves_its_result_and_nothing_else(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    assert worker.settle(done(job, b"42", result_ms=60_000)).verdicts == "1"
    assert store.redis.get(keys.RESULT + "a") == "42"
    assert 59_000 < store.raw.pttl(keys.RESULT + "a") <= 60_000
    assert sorted(store.redis.keys("*")) == sorted(
        [keys.RESULT + "a", store.mark, keys.count(store.queue), keys.batch(store.queue, "a-1")]
    )
    assert store.redis.hgetall(keys.count(store.queue)) == {"completed": "1"}


def test_l8_what_a_job_remembered_ends_with_it(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1))
    store.until_due("a")
    worker.settle(done(worker.one("a")))
    assert not store.redis.exists(keys.OWN + "a", keys.RETRY + "a", keys.JOB + "a", store.later)


def test_stock_arq_reads_our_result(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    assert store.run(store.job("a").status()) == JobStatus.in_progress
    result = serialize_result("work", (), {}, 1, 0, True, "GOOD", 1, 2, "a", store.queue, "a")
    assert result is not None
    worker.settle(done(job, result))
    assert store.run(store.job("a").status()) == JobStatus.complete
    assert store.run(store.job("a").result()) == "GOOD"


def test_a_job_that_keeps_no_result_leaves_none(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    assert worker.settle(done(worker.one("a"), result=b"", result_ms=0)).trouble == []
    assert not store.redis.exists(keys.RESULT + "a")


def test_a_result_that_is_kept_for_ever_does_not_expire(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    assert worker.settle(replace(done(worker.one("a"), b"42"), result_ms=None)).trouble == []
    assert store.raw.pttl(keys.RESULT + "a") == -1
    assert store.redis.getdel(keys.RESULT + "a") == "42"


def test_many_kinds_of_outcomes_settle_in_one_call(store: Store) -> None:
    store.enqueue("done", "dead", "again", "back", "lost")
    worker = store.worker()
    jobs = worker.take("done", "dead", "again", "back", "lost")
    place = store.redis.set(keys.IN_PROGRESS + "lost", "1", ex=60) and jobs[3].place
    batch = (done(jobs[0]), dead(jobs[1]), again(jobs[2], 5000), back(jobs[3]), done(jobs[4]))
    assert worker.settle(*batch).verdicts == "11110"
    assert store.queued()[0] == "back"
    assert store.score("back") == float(place)
    assert store.redis.zscore(keys.dead(store.queue), "dead") is not None
    assert store.redis.hgetall(keys.count(store.queue)) == {"completed": "1", "failed": "1"}


# -- who may settle


def test_r5_a_stale_token_settles_nothing(store: Store) -> None:
    store.enqueue("a")
    old, new = store.worker("a-1", lease_ms=1), store.worker("b-2")
    job = old.one("a")
    store.lapse(job)
    taken = new.one("a")
    reply = old.settle(done(job, b"zombie"))
    assert (reply.verdicts, reply.trouble) == ("0", [])
    assert old.settle(dead(job)).verdicts == "0"
    assert old.settle(again(job)).verdicts == "0"
    assert old.settle(back(job)).verdicts == "0"
    assert store.owner("a") == taken.token
    assert not store.redis.exists(keys.RESULT + "a", keys.LETTER + "a", keys.count(store.queue))
    assert new.settle(done(taken, b"owner")).verdicts == "1"
    assert store.redis.get(keys.RESULT + "a") == "owner"


def test_r19_r20_a_stale_token_beside_a_batch_of_a_wrong_type_is_refused(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    store.redis.set(keys.IN_PROGRESS + "a", "1", ex=60)
    store.spoil(keys.batch(store.queue, "a-1"))
    assert worker.settle(done(job)).verdicts == "0"


def test_r5_a_stale_token_is_not_asked_for_a_body(store: Store) -> None:
    store.enqueue("a")
    old = store.worker("a-1", lease_ms=1)
    job = old.one("a")
    store.lapse(job)
    store.worker("b-2").take("a")
    store.redis.delete(keys.JOB + "a")
    assert old.settle(again(job)).verdicts == "0"


def test_l5_a_lapsed_job_that_nobody_touched_may_still_be_settled(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker(lease_ms=1)
    job = worker.one("a")
    store.lapse(job)
    assert worker.settle(done(job)).verdicts == "1"
    assert store.queued() == []
    assert not store.redis.exists(store.later, keys.JOB + "a")


def test_r5_a_lapsed_job_that_has_its_place_back_is_not_settled_by_its_old_owner(store: Store) -> None:
    store.enqueue("a")
    old, other = store.worker("a-1", lease_ms=1), store.worker("b-2")
    job = old.one("a")
    store.lapse(job)
    other.settle(back(other.one("a")))
    assert old.settle(done(job)).verdicts == "0"
    assert store.queued() == ["a"]


def test_r5_l6_a_zombie_does_not_settle_a_later_job_of_its_id(store: Store) -> None:
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

    assert zombie.settle(done(job)).verdicts == "0"
    assert store.queued() == ["a"]
    assert store.redis.exists(keys.JOB + "a")


def test_r5_a_lapsed_job_that_stock_started_and_let_go_is_not_settled(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    stock = Stock(store)
    assert stock.claims("a")
    stock.is_stopped()
    assert zombie.settle(done(job)).verdicts == "0"
    assert store.queued() == ["a"]


@pytest.mark.parametrize("priority", [0, 5])
def test_r5_a_lapsed_job_that_was_put_off_meanwhile_is_not_settled(store: Store, priority: int) -> None:
    store.enqueue("a", priority=priority)
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    store.redis.zincrby(store.queue, 60_000, "a")
    assert zombie.settle(done(job)).verdicts == "0"
    assert store.queued() == ["a"]


def test_r5_a_job_that_stock_finished_is_not_settled_over_its_result(store: Store) -> None:
    store.enqueue("a")
    zombie = store.worker("a-1", lease_ms=1)
    job = zombie.one("a")
    store.lapse(job)
    stock = Stock(store)
    assert stock.claims("a")
    stock.finishes()
    result = store.raw.get(keys.RESULT + "a")
    assert zombie.settle(done(job, b"zombie")).verdicts == "0"
    assert store.raw.get(keys.RESULT + "a") == result


# -- R20: a lost reply


def test_r20_l8_a_batch_that_is_sent_again_gets_the_first_answer_and_counts_once(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker = store.worker()
    a, b, c = worker.take("a", "b", "c")
    store.redis.set(keys.IN_PROGRESS + "b", "1", ex=60)
    batch = (done(a), done(b), dead(c))
    assert worker.settle(*batch).verdicts == "101"
    before = {key: store.raw.dump(key) for key in store.redis.keys("*")}
    assert worker.settle(*batch, again=True).verdicts == "101"
    assert {key: store.raw.dump(key) for key in store.redis.keys("*")} == before


def test_r20_a_retry_that_is_sent_again_does_not_move_a_second_time(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    batch = (again(worker.one("a"), 5000),)
    assert worker.settle(*batch).verdicts == "1"
    score = store.score("a")
    assert worker.settle(*batch, again=True).verdicts == "1"
    assert store.score("a") == score


def test_r20_a_retry_sent_again_after_the_job_was_claimed_anew_leaves_that_claim_alone(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    batch = (back(worker.one("a")),)
    assert worker.settle(*batch).verdicts == "1"
    taken = worker.one("a")
    assert worker.settle(*batch, again=True).verdicts == "1"
    assert store.owner("a") == taken.token
    assert worker.keeps(taken)


def test_r20_another_batch_or_another_worker_does_not_get_that_answer(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker("a-1")
    a, b = worker.take("a", "b")
    assert worker.settle(done(a)).verdicts == "1"
    assert worker.settle(done(a)).verdicts == "0"
    other = store.worker("b-2")
    other.batches = 1
    assert other.settle(done(a), again=True).verdicts == "0"
    assert worker.settle(done(b)).verdicts == "1"
    assert worker.settle(done(b), done(a), again=True).verdicts == "00"


def test_r20_one_key_for_each_worker_remembers_and_it_expires(store: Store) -> None:
    store.enqueue(*(f"a{n}" for n in range(5)))
    worker = store.worker()
    for job in worker.claim(5).jobs:
        worker.settle(done(job))
    assert len(store.redis.keys("rt:w:*")) == 1
    assert 0 < store.redis.ttl(keys.batch(store.queue, "a-1")) <= 600


# -- L10, R6, R9: jobs that run again


def test_l10_a_job_given_back_has_its_place_and_its_attempt(store: Store) -> None:
    store.enqueue("a", priority=9)
    store.enqueue("b", priority=9)
    place = store.score("a")
    worker = store.worker()
    job = worker.one("a")
    store.redis.delete(store.mark)
    assert worker.settle(back(job)).verdicts == "1"
    assert store.score("a") == place
    assert store.owner("a") is None
    assert store.starts("a") == 0
    assert store.redis.exists(store.mark)
    assert not store.redis.exists(store.later)
    assert store.raw.get(keys.JOB + "a") == body()
    job = store.worker("b-2").one("a")
    assert job.starts == 1


def test_r2_a_job_given_back_that_is_not_queued_stays_out(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    store.redis.zrem(store.queue, "a")
    assert worker.settle(back(job)).verdicts == "1"
    assert store.queued() == []


def test_starts_are_never_less_than_none(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), keep=-1))
    assert store.redis.get(keys.RETRY + "a") == "0"


def test_r25_only_a_job_that_runs_again_is_announced(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    ended, retried = worker.take("a", "b")
    store.redis.delete(store.mark)
    worker.settle(done(ended))
    assert not store.redis.exists(store.mark)
    worker.settle(again(retried, 5000))
    assert store.redis.exists(store.mark)


def test_l10_a_retry_is_due_by_the_servers_clock_with_its_attempts_and_history(store: Store) -> None:
    store.enqueue("a", priority=5)
    worker = store.worker()
    job = worker.one("a")
    before = store.now_ms()
    worker.settle(again(job, 5000, own=b'0|{"errors": []}'))
    assert before + 5000 <= store.score("a") <= store.now_ms() + 5001
    assert store.score("a") % 1 * 1024 == 5
    assert store.redis.zrange(store.later, 0, -1, withscores=True) == [
        (f"|{store.score('a') - 5 * BAND_MS:.17g}|a", store.score("a"))
    ]
    assert store.starts("a") == 1
    assert store.own("a") == '0|{"errors": []}'


def test_l10_the_attempts_of_a_job_that_waits_longer_than_arq_counts_them_are_kept(store: Store) -> None:
    store.enqueue("a", keep_ms=90 * DAY_MS)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 30 * DAY_MS))
    assert store.redis.ttl(keys.RETRY + "a") > 30 * 86400
    assert store.redis.ttl(keys.OWN + "a") > 30 * 86400


def test_r9_a_job_of_an_unknown_handler_is_put_off_and_shown(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1000, keep=0, letter=b"nobody_knows", flags="n"))
    assert store.redis.hgetall(keys.unknown(store.queue)) == {"a": "nobody_knows"}
    assert store.score("a") > store.now_ms()
    assert store.starts("a") == 0
    assert worker.claim(5).jobs == []


def test_r9_a_job_is_shown_by_its_own_handler_not_by_that_of_an_earlier_job_of_the_id(store: Store) -> None:
    store.enqueue("a")
    store.redis.hset(keys.unknown(store.queue), "a", "old_one")
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1000, letter=b"new_one", flags="n"))
    assert store.redis.hgetall(keys.unknown(store.queue)) == {"a": "new_one"}


@pytest.mark.parametrize("ends", [True, False])
def test_r9_a_job_that_is_known_at_last_is_shown_no_longer(store: Store, ends: bool) -> None:
    store.enqueue("a", "b")
    store.redis.hset(keys.unknown(store.queue), mapping={"a": "x", "b": "x"})
    worker = store.worker()
    job = worker.one("a")
    other = worker.one("b")
    worker.settle(done(job, flags="cu") if ends else again(job, flags="u"), again(other, 1000))
    assert store.redis.hgetall(keys.unknown(store.queue)) == {"b": "x"}


def test_r3_a_flag_is_cleared_only_where_asked(store: Store) -> None:
    store.enqueue("a", "b")
    store.redis.zadd(keys.ABORT, {"a": store.now_ms(), "b": store.now_ms()})
    worker = store.worker()
    a, b = worker.take("a", "b")
    worker.settle(done(a, flags="fa"), done(b))
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["b"]


def test_flags_that_nobody_has_obeyed_for_8_days_go_along_with_one_that_is_cleared(store: Store) -> None:
    store.enqueue("a")
    now = store.now_ms()
    store.redis.zadd(keys.ABORT, {"a": now, "old": now - 9 * DAY_MS, "young": now - 7 * DAY_MS})
    worker = store.worker()
    worker.settle(done(worker.one("a"), flags="fa"))
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["young"]


def test_the_steps_of_a_job_are_forgotten_when_it_is_done_and_kept_when_it_died(store: Store) -> None:
    store.enqueue("done", "dead")
    worker = store.worker()
    ended, died = worker.take("done", "dead")
    for job_id in ("done", "dead"):
        store.redis.hset(keys.ONCE + job_id, "1:pay", "d7")
        store.redis.expire(keys.ONCE + job_id, 60)
    worker.settle(done(ended), dead(died))
    assert not store.redis.exists(keys.ONCE + "done")
    assert store.redis.exists(keys.ONCE + "dead")


# -- R22: how long a body lives


def test_r22_the_body_of_a_stock_job_outlives_a_retry_past_its_day(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="a"))
    worker = store.worker()
    worker.settle(again(worker.one("a"), 3 * DAY_MS))
    assert abs(store.raw.pttl(keys.JOB + "a") - 4 * DAY_MS) < 5000


def test_r22_so_it_does_with_a_priority(store: Store) -> None:
    store.enqueue("a", priority=5, keep_ms=DAY_MS)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 3 * DAY_MS))
    assert abs(store.raw.pttl(keys.JOB + "a") - 4 * DAY_MS) < 5000


def test_r22_so_it_does_at_the_second_retry(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="a"))
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1))
    store.until_due("a")
    worker.settle(again(worker.one("a"), 3 * DAY_MS))
    assert abs(store.raw.pttl(keys.JOB + "a") - 4 * DAY_MS) < 5000


def test_r22_a_body_that_was_given_an_expiry_keeps_it(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="a", _expires=3600))
    worker = store.worker()
    worker.settle(again(worker.one("a"), 3 * DAY_MS))
    assert store.raw.pttl(keys.JOB + "a") <= 3_600_000


def test_r22_the_body_of_a_job_whose_handler_is_unknown_outlives_the_memory_of_its_starts(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="a"))
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1000, letter=b"new_one", flags="n"))
    assert store.raw.pttl(keys.JOB + "a") - store.raw.pttl(keys.RETRY + "a") > 1.9 * DAY_MS


def test_r22_a_body_that_lives_longer_anyway_is_not_cut(store: Store) -> None:
    store.enqueue("a", keep_ms=90 * DAY_MS)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 1000))
    assert store.raw.pttl(keys.JOB + "a") > 89 * DAY_MS


def test_r22_a_retry_whose_body_has_expired_is_asked_for_it_and_takes_it(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    a, b = worker.take("a", "b")
    store.redis.delete(keys.JOB + "a")
    assert worker.settle(again(a, 5000), done(b)).verdicts == "21"
    assert store.owner("a") == a.token
    assert worker.keeps(a)
    assert worker.settle(again(a, 5000, body=body())).verdicts == "1"
    assert store.raw.get(keys.JOB + "a") == body()
    assert abs(store.raw.pttl(keys.JOB + "a") - DAY_MS - 5000) < 1000
    assert store.owner("a") is None


def test_r22_a_body_that_is_sent_along_does_not_take_the_place_of_one_that_is_there(store: Store) -> None:
    store.enqueue("a", keep_ms=90 * DAY_MS)
    worker = store.worker()
    worker.settle(again(worker.one("a"), 5000, body=body("sent along")))
    assert store.raw.get(keys.JOB + "a") == body()
    assert store.raw.pttl(keys.JOB + "a") > 89 * DAY_MS


def test_r22_an_end_needs_no_body(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    store.redis.delete(keys.JOB + "a")
    assert worker.settle(done(job)).verdicts == "1"


# -- dead letters


def test_l11_a_dead_job_keeps_its_body_and_reason_and_leaves_the_queue(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    before = store.now_ms()
    assert worker.settle(dead(job, b'{"reason": "crashed"}')).verdicts == "1"
    assert store.raw.hgetall(keys.LETTER + "a") == {b"letter": b'{"reason": "crashed"}', b"body": body()}
    assert 29 * 86400 < store.redis.ttl(keys.LETTER + "a") <= 30 * 86400
    assert before <= store.redis.zscore(keys.dead(store.queue), "a") <= store.now_ms() + 1
    assert store.redis.get(keys.RESULT + "a") == "failure"
    assert store.queued() == []
    assert not store.redis.exists(keys.JOB + "a", keys.RETRY + "a", store.later, keys.LETTER + "a:original")
    assert store.redis.hgetall(keys.count(store.queue)) == {"failed": "1"}


@pytest.mark.parametrize("there", ["as it was", "gone", "spoiled"])
def test_l11_a_body_that_is_not_sent_along_goes_into_the_letter_from_where_it_is(store: Store, there: str) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    a, b = worker.take("a", "b")
    if there != "as it was":
        store.redis.delete(keys.JOB + "a")
    if there == "spoiled":
        store.spoil(keys.JOB + "a")
    large = replace(dead(a), body=b"", flags="fb")
    assert worker.settle(large, done(b)).verdicts == "11"
    assert store.raw.hget(keys.LETTER + "a", "body") == (body() if there == "as it was" else b"")
    assert not store.redis.exists(keys.JOB + "a")
    assert store.redis.exists(keys.LETTER + "a:original") == (there == "spoiled")


def test_l11_a_job_without_a_body_becomes_a_letter_that_says_so(store: Store) -> None:
    store.redis.zadd(store.queue, {"a": 1})
    worker = store.worker()
    assert worker.settle(dead(worker.one("a"))).trouble == []
    assert store.redis.hget(keys.LETTER + "a", "body") == ""
    assert not store.redis.exists(keys.LETTER + "a:original")


def test_l11_the_oldest_letters_make_room_and_are_named(store: Store) -> None:
    worker = store.worker()
    for n in range(5):
        store.enqueue(f"a{n}")
        store.until_due(f"a{n}")
        reply = worker.settle(dead(worker.one(f"a{n}")), letters_kept=3)
        assert reply.dropped == ([f"a{n - 3}"] if n >= 3 else [])
    assert store.redis.zrange(keys.dead(store.queue), 0, -1) == ["a2", "a3", "a4"]
    assert sorted(store.redis.keys(keys.LETTER + "*")) == [keys.LETTER + f"a{n}" for n in (2, 3, 4)]


def test_l11_a_letter_that_makes_room_takes_its_body_of_a_wrong_type_along(store: Store) -> None:
    worker = store.worker()
    store.enqueue("a")
    store.spoil(keys.JOB + "a")
    worker.settle(dead(worker.one("a")))
    assert store.redis.exists(keys.LETTER + "a:original")
    store.enqueue("b")
    assert worker.settle(dead(worker.one("b")), letters_kept=1).dropped == ["a"]
    assert not store.redis.exists(keys.LETTER + "a", keys.LETTER + "a:original")


def test_r12_l11_a_bounded_number_of_letters_makes_room_in_one_call(store: Store) -> None:
    store.raw.zadd(keys.dead(store.queue), {f"old-{n}": store.now_ms() - 1000 for n in range(700)})
    store.enqueue("a")
    worker = store.worker()
    assert len(worker.settle(dead(worker.one("a")), letters_kept=1).dropped) == 500


def test_l11_the_index_forgets_letters_that_have_expired(store: Store) -> None:
    store.enqueue("a")
    store.redis.zadd(keys.dead(store.queue), {"gone": store.now_ms() - 31 * DAY_MS})
    worker = store.worker()
    worker.settle(dead(worker.one("a")))
    assert store.redis.zrange(keys.dead(store.queue), 0, -1) == ["a"]


# -- R19: trouble half way

PER_JOB = [keys.JOB, keys.RETRY, keys.RESULT, keys.OWN, keys.ONCE, keys.LETTER]
INDEXES = [
    "rt:arq:queue:later", "rt:arq:queue:mark", "rt:arq:queue:dead", "rt:arq:queue:unknown", "rt:arq:queue:count",
    keys.ABORT, "arq:queue", keys.batch("arq:queue", "a-1"),
]  # fmt: skip


@pytest.mark.parametrize("key", [*(prefix + "bad" for prefix in PER_JOB), *INDEXES])
@pytest.mark.parametrize("kind", ["done", "dead", "again", "back"])
def test_r19_l4_no_key_of_a_wrong_type_costs_a_job_of_the_batch_its_outcome(store: Store, key: str, kind: str) -> None:
    store.enqueue("good", "bad")
    worker = store.worker()
    good, bad = worker.take("good", "bad")
    store.redis.hset(keys.unknown(store.queue), "bad", "x")
    store.spoil(key)
    outcome = {
        "done": done(bad, flags="cau"), "dead": dead(bad, flags="fau"),
        "again": again(bad, 5000, letter=b"x", flags="n"), "back": back(bad, flags="au"),
    }[kind]  # fmt: skip
    reply = worker.settle(outcome, done(good, b"GOOD"))
    assert reply.verdicts == "11"
    assert store.redis.get(keys.RESULT + "good") == "GOOD"
    assert not store.redis.exists(keys.IN_PROGRESS + "good", keys.IN_PROGRESS + "bad", keys.JOB + "good")
    if kind == "dead" and key != keys.JOB + "bad":
        assert store.raw.hget(keys.LETTER + "bad", "body") == body()
    if key != store.queue:
        assert store.queued() == (["bad"] if kind in ("again", "back") else [])


@pytest.mark.parametrize("key", [keys.RETRY + "lapsed", "rt:arq:queue:later", "arq:queue"])
def test_r19_a_lapsed_job_beside_a_spoiled_key_is_refused_and_the_others_settle(store: Store, key: str) -> None:
    worker = store.worker("b-2")
    store.enqueue("live")
    live = worker.one("live")
    store.enqueue("lapsed")
    lapsed = store.worker("a-1", lease_ms=1).one("lapsed")
    store.lapse(lapsed)
    store.spoil(key)
    assert worker.settle(done(lapsed), done(live)).verdicts == "01"


def test_r19_trouble_is_reported(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    store.spoil(keys.count(store.queue))
    reply = worker.settle(done(job))
    assert reply.verdicts == "1"
    assert any("WRONGTYPE" in text for text in reply.trouble)


@pytest.mark.parametrize("kind", ["done", "dead", "again", "back"])
def test_r19_a_server_out_of_memory_still_lets_jobs_end(store: Store, kind: str) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    outcome = {"done": done(job), "dead": dead(job), "again": again(job, 5000), "back": back(job)}[kind]
    with store.out_of_memory():
        reply = worker.settle(outcome)
        assert (reply.verdicts, reply.trouble) == ("1", [])
        assert worker.settle(outcome, again=True).verdicts == "1"
    assert store.owner("a") is None
    if kind in ("again", "back"):
        assert store.queued() == ["a"]
        assert store.redis.exists(keys.JOB + "a")
    else:
        assert store.redis.get(keys.RESULT + "a") in ("result", "failure")


def test_r19_a_time_that_redis_cannot_take_costs_no_job_of_the_batch(store: Store) -> None:
    store.enqueue("good", "long", "late")
    worker = store.worker()
    good, long, late = worker.take("good", "long", "late")
    reply = worker.settle(done(long, result_ms=10**22), again(late, 10**22, body=body()), done(good, b"GOOD"))
    assert reply.verdicts == "111"
    assert reply.trouble
    assert store.redis.get(keys.RESULT + "good") == "GOOD"
    assert store.queued() == ["late"]
    assert store.redis.exists(keys.JOB + "late")


def test_r19_nor_does_one_that_a_body_cannot_take(store: Store) -> None:
    for job_id in ("arqs", "gone", "good"):
        store.run(store.arq.enqueue_job("work", _job_id=job_id))
    worker = store.worker()
    arqs, gone, good = worker.take("arqs", "gone", "good")
    store.redis.delete(keys.JOB + "gone")
    reply = worker.settle(again(arqs, 10**22), again(gone, 10**22, body=body()), done(good, b"GOOD"))
    assert (reply.verdicts, bool(reply.trouble)) == ("111", True)
    assert store.redis.get(keys.RESULT + "good") == "GOOD"


def test_r12_a_thousand_outcomes_of_any_kind_settle_in_one_call(store: Store) -> None:
    store.backlog(1000)
    worker = store.worker()
    jobs = worker.claim(1000).jobs
    kinds = (done, dead, lambda job: again(job, 5000), back)
    assert worker.settle(*(kinds[n % 4](job) for n, job in enumerate(jobs))).verdicts == "1" * 1000
    assert store.redis.zcard(store.queue) == 500
    assert store.redis.zcard(keys.dead(store.queue)) == 250
