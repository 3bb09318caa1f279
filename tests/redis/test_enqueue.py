"""enqueue.lua: what a job is when it enters a queue."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from arq.jobs import JobStatus
from arq.worker import Retry
from redis.exceptions import OutOfMemoryError, ResponseError

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import Enqueued
from tests.redis.store import BAND_MS, DAY_MS, Stock, Store, body, dead, done


def test_a_job_enters_with_a_body_that_expires_a_place_and_an_announcement(store: Store) -> None:
    before = store.now_ms()
    assert store.enqueue("a") == [True]

    assert store.raw.get(keys.JOB + "a") == body()
    assert DAY_MS - 1000 < store.raw.pttl(keys.JOB + "a") <= DAY_MS
    assert before <= store.score("a") <= store.now_ms() + 1
    assert store.redis.zrange(store.mark, 0, -1, withscores=True) == [("0", 0.0)]
    assert not store.redis.exists(store.later)


def test_an_id_that_has_a_job_is_refused_and_nothing_changes(store: Store) -> None:
    store.enqueue("a", text="first", delay_ms=5000)
    score = store.score("a")
    assert store.enqueue("a", text="second") == [False]
    assert store.score("a") == score
    assert store.raw.get(keys.JOB + "a") == body("first")


def test_an_id_that_has_a_result_is_refused_as_in_arq(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    worker.settle(done(worker.one("a")))
    assert store.enqueue("a") == [False]
    assert store.queued() == []
    assert store.run(store.arq.enqueue_job("work", _job_id="a")) is None


def test_an_id_whose_job_is_held_is_taken_even_without_a_body(store: Store) -> None:
    # Its body has expired, and its holder is about to say so: it would end the new one along with it.
    store.waits_at("a", store.now_ms() - 1000)
    store.redis.delete(keys.JOB + "a")
    worker = store.worker()
    job = worker.one("a")
    assert store.enqueue("a", text="new") == [False]
    assert worker.settle(dead(job)).verdicts == "1"
    assert not store.redis.exists(keys.JOB + "a", keys.LETTER + "a:original")


def test_many_enter_in_one_call_and_each_has_its_own_answer(store: Store) -> None:
    store.enqueue("b")
    assert store.enqueue("a", "b", "c") == [True, False, True]
    assert sorted(store.queued()) == ["a", "b", "c"]


def test_stock_arq_reads_what_we_enqueue(store: Store) -> None:
    store.enqueue("now")
    store.enqueue("then", delay_ms=60_000, priority=7)
    store.until_due("now")
    assert store.run(store.job("now").status()) == JobStatus.queued
    assert store.run(store.job("then").status()) == JobStatus.deferred
    info = store.run(store.job("now").info())
    assert info is not None
    assert info.function == "work"


def test_a_moment_in_the_past_is_now_however_long_ago(store: Store) -> None:
    before = store.now_ms()
    store.enqueue("a", due_ms=int(before) - 3 * DAY_MS)
    assert store.score("a") >= before
    assert store.raw.pttl(keys.JOB + "a") > DAY_MS - 1000


def test_a_moment_to_come_is_the_score_and_the_body_lives_from_then(store: Store) -> None:
    due = int(store.now_ms()) + 3 * DAY_MS
    store.enqueue("a", due_ms=due)
    assert store.score("a") == due
    assert store.raw.pttl(keys.JOB + "a") > 4 * DAY_MS - 2000


def test_l16_a_server_that_has_forgotten_its_scripts_is_given_them_again(store: Store) -> None:
    store.raw.script_flush()
    assert store.enqueue("a") == [True]
    store.raw.script_flush()
    job = store.worker().one("a")
    store.raw.script_flush()
    assert store.worker().keeps(job)


def test_r6_higher_priorities_come_first_and_first_come_first_within_one(store: Store) -> None:
    for job_id, priority in (("f0", 0), ("d5", 5), ("c1000", 1000), ("b5", 5), ("e1", 1), ("a0", 0), ("g209", 209)):
        before = store.now_ms()
        store.until(partial(store.is_after, before + 2))
        store.enqueue(job_id, priority=priority)
    assert store.queued() == ["c1000", "g209", "d5", "b5", "e1", "f0", "a0"]


def test_r6_the_fraction_of_every_score_is_its_priority_to_the_bit(store: Store) -> None:
    jobs = [scripts.NewJob(f"p{p}", body(), DAY_MS, priority=p) for p in range(1001)]
    store.run(scripts.enqueue(store.scripts, store.queue, jobs))
    scores = dict(store.redis.zrange(store.queue, 0, -1, withscores=True))
    assert {job_id: score % 1 * 1024 for job_id, score in scores.items()} == {f"p{p}": p for p in range(1001)}
    due = scores["p0"]
    assert all(scores[f"p{p}"] == due - p * BAND_MS + p / 1024 for p in range(1001))
    assert 0 not in scores.values()  # stock arq takes a score of 0 for "not queued"


def test_r6_a_real_stock_retry_keeps_the_priority(store: Store) -> None:
    store.enqueue("a", priority=5)
    stock = Stock(store, ends=Retry(defer=1))
    assert stock.claims("a")
    stock.finishes()
    assert store.score("a") % 1 * 1024 == 5
    assert 0 < store.score("a") - store.now_ms() <= 1000


def test_r7_a_deferred_job_with_a_priority_is_noted_for_its_promotion(store: Store) -> None:
    store.enqueue("plain", delay_ms=60_000)
    store.enqueue("first", delay_ms=60_000, priority=3)
    due = store.score("first")
    assert due % 1 * 1024 == 3
    assert due > store.now_ms()
    ((entry, when),) = store.redis.zrange(store.later, 0, -1, withscores=True)
    token, place, job_id = entry.split("|")
    assert (token, job_id, when) == ("", "first", due)
    assert float(place) == due - 3 * BAND_MS


def test_r10_a_job_is_never_due_before_the_servers_clock_says_so(store: Store) -> None:
    for n in range(50):
        before = store.now_ms()
        store.enqueue(f"a{n}")
        assert store.score(f"a{n}") >= before
        assert store.score(f"a{n}").is_integer()


@pytest.mark.parametrize("delay_ms", [0, 5000])
def test_r12_a_thousand_jobs_enter_in_one_call(store: Store, delay_ms: int) -> None:
    assert store.enqueue(*(f"a{n}" for n in range(1000)), delay_ms=delay_ms, priority=9) == [True] * 1000
    assert store.redis.zcard(store.queue) == 1000
    assert store.redis.zcard(store.later) == (1000 if delay_ms else 0)


@pytest.mark.parametrize("fresh", [True, False])
def test_r21_a_resend_finds_its_own_job_and_says_that_it_was_added(store: Store, fresh: bool) -> None:
    store.enqueue("a", fresh=fresh)
    score = store.score("a")
    assert store.enqueue("a", fresh=fresh, again=True) == [True]
    assert store.score("a") == score


def test_r21_a_resend_does_not_take_another_jobs_body_for_its_own(store: Store) -> None:
    store.enqueue("a", text="somebody else's")
    assert store.enqueue("a", text="mine", again=True) == [False]


@pytest.mark.parametrize("fresh", [True, False])
def test_r21_a_resend_after_the_job_is_done_does_not_run_it_again(store: Store, fresh: bool) -> None:
    store.enqueue("a", fresh=fresh)
    worker = store.worker()
    worker.settle(done(worker.one("a")))
    assert store.enqueue("a", fresh=fresh, again=True) == [fresh]
    assert store.queued() == []
    assert not store.redis.exists(keys.JOB + "a")


def test_r21_a_resend_while_the_job_runs_does_not_touch_its_lease(store: Store) -> None:
    store.enqueue("a", fresh=True)
    job = store.worker().one("a")
    score = store.score("a")
    assert store.enqueue("a", fresh=True, again=True) == [True]
    assert store.score("a") == score
    assert store.owner("a") == job.token


def test_r22_the_body_is_kept_from_when_the_job_is_due(store: Store) -> None:
    store.enqueue("a", delay_ms=2 * DAY_MS, keep_ms=7 * DAY_MS)
    assert 9 * DAY_MS - 1000 < store.raw.pttl(keys.JOB + "a") <= 9 * DAY_MS


@pytest.mark.parametrize("delay_ms", [0, 5000])
def test_r19_a_queue_of_a_wrong_type_is_an_error_and_leaves_no_body(store: Store, delay_ms: int) -> None:
    store.spoil(store.queue)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.enqueue("a", "b", delay_ms=delay_ms, priority=1)
    assert not store.redis.exists(keys.JOB + "a", keys.JOB + "b")


def test_a_flag_that_was_for_an_earlier_job_of_the_id_goes_and_that_of_a_job_stays(store: Store) -> None:
    store.redis.zadd(keys.ABORT, {"a": 5, "b": 5})
    store.enqueue("a")
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["b"]
    store.redis.zadd(keys.ABORT, {"a": 5})
    assert store.enqueue("a") == [False]
    assert store.redis.zrange(keys.ABORT, 0, -1) == ["a", "b"]


def test_r19_flags_of_a_wrong_type_do_not_stop_a_job(store: Store) -> None:
    store.spoil(keys.ABORT)
    assert store.enqueue("a") == [True]
    assert store.queued() == ["a"]


@pytest.mark.parametrize("what", ["later", "mark"])
def test_r19_an_index_of_a_wrong_type_does_not_stop_a_job(store: Store, what: str) -> None:
    store.spoil(f"rt:{store.queue}:{what}")
    assert store.enqueue("a", delay_ms=5000, priority=1) == [True]
    assert store.queued() == ["a"]


@pytest.mark.parametrize("prefix", [keys.JOB, keys.RESULT])
def test_r19_an_id_whose_body_or_result_is_of_a_wrong_type_is_taken(store: Store, prefix: str) -> None:
    store.spoil(prefix + "a")
    assert store.enqueue("a") == [False]
    assert store.enqueue("a", again=True) == [False]
    assert store.is_spoiled(prefix + "a")
    assert store.queued() == []


def test_r19_a_server_out_of_memory_refuses_and_keeps_nothing(store: Store) -> None:
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        store.enqueue("a")
    assert not store.redis.keys("*")


def test_r28_who_does_not_ask_is_not_told_who_is_awake(store: Store) -> None:
    job = scripts.NewJob("a", body(), DAY_MS)
    assert store.run(scripts.enqueue(store.scripts, store.queue, [job])) == Enqueued([True])


def test_r28_who_asks_is_told_how_many_are_subscribed_for_the_queue(store: Store) -> None:
    assert store.asks("a") == Enqueued([True], awake=0)
    with store.awake("another"):
        assert store.asks("b") == Enqueued([True], awake=0)
        with store.awake(), store.awake():
            assert store.asks("b", "c") == Enqueued([False, True], awake=2)
            assert store.run(scripts.awake(store.scripts, store.queue)) == 2
    assert store.asks("d") == Enqueued([True], awake=0)


def test_r28_it_is_counted_after_everything_is_written(store: Store) -> None:
    with store.raw.monitor() as monitor:
        store.asks("a", priority=1)
        said: list[str] = []
        while not said or not said[-1].startswith("PUBSUB"):
            said.append(monitor.next_command()["command"])
    writes = [place for place, command in enumerate(said) if command.split()[0] in ("SET", "ZADD")]
    assert len(writes) == 3
    assert max(writes) < len(said) - 1


def test_r28_a_caller_that_may_not_ask_is_told_that_nobody_is_awake(store: Store) -> None:
    store.raw.execute_command("ACL", "SETUSER", "default", "-pubsub")
    try:
        with store.awake():
            assert store.asks("a") == Enqueued([True], awake=0)
            assert store.run(scripts.awake(store.scripts, store.queue)) == 0
    finally:
        store.raw.execute_command("ACL", "SETUSER", "default", "+@all")
    assert store.queued() == ["a"]


@pytest.mark.parametrize("priority", [0, 1, 1000])
def test_r28_a_job_that_was_announced_and_lies_there_for_5_s_is_unseen(store: Store, priority: int) -> None:
    with store.awake():
        store.enqueue("old", priority=priority)
        assert not store.asks("new").unseen
        store.ages("old", 4000)
        assert not store.asks("newer").unseen
        store.ages("old", 1100)
        assert store.asks("newest") == Enqueued([True], awake=1, unseen=True)


def test_r28_a_job_is_not_unseen_if_somebody_took_the_announcement(store: Store) -> None:
    with store.awake():
        store.enqueue("old")
        store.ages("old", 60_000)
        store.raw.delete(store.mark)
        assert not store.asks("new").unseen


def test_r28_a_job_that_is_not_due_is_not_unseen(store: Store) -> None:
    with store.awake():
        for priority in (0, 7):
            store.enqueue(f"later-{priority}", delay_ms=600_000, priority=priority)
            assert not store.asks(f"latest-{priority}", delay_ms=600_000).unseen


def test_r28_of_an_empty_queue_nothing_is_unseen(store: Store) -> None:
    with store.awake():
        store.enqueue("a")
        store.raw.delete(store.queue)
        assert store.asks("a") == Enqueued([False], awake=1)


def test_r19_of_a_queue_of_a_wrong_type_nothing_is_unseen(store: Store) -> None:
    with store.awake():
        store.enqueue("a")
        store.spoil(store.queue)
        assert store.asks("a") == Enqueued([False], awake=1)


def test_r28_nobody_is_awake_says_enough(store: Store) -> None:
    store.enqueue("old")
    store.ages("old", 60_000)
    assert store.asks("new") == Enqueued([True], awake=0)


def test_l16_two_clients_with_one_key_make_one_job(store: Store) -> None:
    async def race() -> list[list[bool]]:
        jobs = [scripts.NewJob("a", body(str(n)), DAY_MS) for n in range(8)]
        calls = (scripts.enqueue(store.scripts, store.queue, [job]) for job in jobs)
        return [enqueued.added for enqueued in await asyncio.gather(*calls)]

    assert sorted(store.run(race())) == [[False]] * 7 + [[True]]
