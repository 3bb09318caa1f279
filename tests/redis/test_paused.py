"""A queue that is paused: nobody takes a job, nobody is woken for one, nobody stays awake for one."""

from __future__ import annotations

import asyncio

import pytest

from runtime.adapters.redis import keys, queues, scripts
from runtime.adapters.redis.queues import Pause
from runtime.adapters.redis.scripts import NewJob
from tests.redis.store import DAY_MS, Store, again, body, done
from tests.redis.test_need import need
from tests.redis.test_outlook import outlook
from tests.redis.test_source import Bench
from tests.redis.test_wait import OTHER, QUEUE, THIRD, Waiter, enqueue, run


def pause(store: Store, for_s: float | None = None, *, reason: str = "because") -> None:
    store.run(queues.pause(store.scripts, store.queue, reason, for_s, 1_800_000_000_000))


def resume(store: Store) -> tuple[bool, int]:
    return store.run(queues.resume(store.scripts, store.queue))


def paused(store: Store) -> Pause | None:
    (found,) = store.run(queues.pauses(store.scripts, [store.queue]))
    return found


# -- the claim


def test_nothing_is_claimed_until_somebody_resumes_it(store: Store) -> None:
    store.enqueue("a", "b")
    pause(store)
    reply = store.worker().claim(10)
    assert (list(reply.jobs), reply.more, reply.due_in_ms, reply.paused) == ([], False, None, True)
    assert store.queued() == ["a", "b"]
    assert resume(store) == (True, 2)
    assert [job.id for job in store.worker().claim(10).jobs] == [b"a", b"b"]


def test_a_pause_with_an_end_says_when_it_is_and_is_over_then(store: Store) -> None:
    store.enqueue("a")
    pause(store, 0.3)
    reply = store.worker().claim()
    assert reply.paused
    assert reply.due_in_ms is not None
    assert 0 < reply.due_in_ms <= 300
    store.until(lambda: not store.redis.exists(keys.paused(store.queue)))
    assert not store.worker().claim(0).paused
    assert len(store.worker().claim().jobs) == 1


def test_where_nothing_is_due_a_pause_is_not_asked_for(store: Store) -> None:
    store.enqueue("a", delay_ms=60_000)
    pause(store)
    reply = store.worker().claim()
    assert not reply.paused
    assert reply.due_in_ms == pytest.approx(60_000, abs=1000)


def test_what_runs_goes_on_and_what_comes_back_waits(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    a, b = worker.take("a", "b")
    pause(store)
    assert worker.keeps(a)
    assert worker.settle(done(a), again(b)).verdicts == "11"
    assert store.worker("other-1").claim().paused


def test_a_lapsed_job_waits_too(store: Store) -> None:
    store.enqueue("a")
    (job,) = store.worker("gone-1", lease_ms=1).take("a")
    store.lapse(job)
    pause(store)
    assert store.worker().claim().paused
    resume(store)
    (again,) = store.worker().take("a")
    assert again.starts == 2


def test_a_claim_whose_reply_was_lost_brings_its_jobs_all_the_same(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    worker.one("a")
    pause(store)
    reply = worker.claim(again=True)
    assert [job.id for job in reply.jobs] == [b"a"], "they are held, and nobody else may take them"
    assert not reply.paused


def test_the_next_claim_begins_at_the_head(store: Store) -> None:
    store.enqueue("a", "b", "c")
    pause(store)
    reply = store.worker().claim(offset=2)
    assert (reply.offset, reply.others, reply.paused) == (0, 0, True)


def test_by_itself_a_claim_behind_a_wait_finds_nothing_left_over(store: Store) -> None:
    store.enqueue("a")
    (job,) = store.worker("gone-1", lease_ms=1).take("a")
    store.lapse(job)
    pause(store)
    reply = store.worker().claim(only_new=True)
    assert (reply.more, reply.paused) == (False, True)


def test_r19_a_key_of_another_type_pauses_nothing(store: Store) -> None:
    store.enqueue("a")
    store.spoil(keys.paused(store.queue))
    assert outlook(store) is not None
    assert need(store).due
    assert store.asks("b").awake == 0
    assert len(store.worker().claim().jobs) == 1
    assert paused(store) is None


# -- who is woken, who stays awake


def test_nobody_is_to_be_woken_unless_the_pause_ends_by_itself(store: Store) -> None:
    pause(store)
    assert store.asks("a").awake == -1
    pause(store, 60)
    assert store.asks("b").awake == 0
    pause(store)
    with store.awake():
        assert store.asks("c").awake == 1
    resume(store)
    assert store.asks("d").awake == 0


def test_what_lies_in_a_paused_queue_is_not_unseen(store: Store) -> None:
    store.enqueue("a")
    store.ages("a", 6000)
    with store.awake():
        assert store.asks("b").unseen
        pause(store)
        assert not store.asks("c").unseen


def test_a_sleeper_is_not_called_for_it_but_for_the_end(store: Store) -> None:
    store.enqueue("a")
    assert need(store).due
    pause(store)
    assert (need(store).due, need(store).next_in_s) == (False, None)
    pause(store, 60)
    assert not need(store).due
    assert need(store).next_in_s == pytest.approx(60, abs=1)
    store.enqueue("b", delay_ms=90_000)
    assert need(store).next_in_s == pytest.approx(60, abs=1), "one is due already"
    store.run(queues.purge(store.scripts, store.queue))
    assert need(store).next_in_s is None, "of an empty queue the end is nobody's affair"
    store.enqueue("b", delay_ms=90_000)
    assert need(store).next_in_s == pytest.approx(90, abs=1)
    pause(store)
    assert need(store).next_in_s is None


def test_to_its_last_millisecond_its_end_is_told(store: Store) -> None:
    store.enqueue("a")
    for _ in range(30):
        pause(store, 0.003)
        while not (found := need(store)).due:
            assert found.next_in_s is not None


def test_it_is_no_reason_to_stay_awake_but_its_end_is(store: Store) -> None:
    store.enqueue("a")
    pause(store)
    assert outlook(store) is None
    pause(store, 60)
    assert outlook(store) == pytest.approx(60, abs=1)
    store.run(queues.purge(store.scripts, store.queue))
    assert outlook(store) is None
    store.enqueue("b", delay_ms=90_000)
    assert outlook(store) == pytest.approx(90, abs=1)
    with Store(store.url, "other") as other:
        pause(store)
        other.enqueue("c", delay_ms=95_000)
        assert outlook(store, queues=(store.queue, "other")) == pytest.approx(95, abs=1)


# -- what is told of it


def test_it_is_told_why_and_until_when(store: Store) -> None:
    assert paused(store) is None
    pause(store, reason="a bad deploy")
    assert paused(store) == Pause("a bad deploy", 1_800_000_000_000, None)
    pause(store, 60)
    found = paused(store)
    assert found is not None
    assert found.left_s == pytest.approx(60, abs=1)
    assert resume(store) == (True, 0)
    assert resume(store) == (False, 0)
    assert not store.redis.exists(store.mark), "nobody is announced anything"


@pytest.mark.parametrize("value", ["", "x", "[1]", '{"reason": 7}', '{"since_ms": 1e99}'])
def test_what_somebody_else_has_written_pauses_all_the_same(store: Store, value: str) -> None:
    store.redis.set(keys.paused(store.queue), value)
    store.enqueue("a")
    assert paused(store) == Pause("", None, None)
    assert store.worker().claim().paused


# -- a worker's questions


def test_a_paused_queue_is_looked_at_for_one_command_and_its_end_is_found(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        source = it.source
        await enqueue(it, QUEUE, "a")
        await queues.pause(source.redis, QUEUE, "", None, 0)
        pulled = await source.claim(QUEUE, 1)
        assert (pulled.due_in_s, list(pulled.claims), pulled.more) == (None, [], False)
        assert source.paused == [QUEUE]
        it.raw.config_resetstat()
        assert await source.due_in(QUEUE) is None
        stats = it.raw.info("commandstats")
        assert sum(s["calls"] for n, s in stats.items() if n not in ("cmdstat_info", "cmdstat_config|resetstat")) == 1
        await queues.pause(source.redis, QUEUE, "", 60, 0)
        assert await source.due_in(QUEUE) == pytest.approx(60, abs=1)
        it.raw.delete(keys.paused(QUEUE))
        assert await source.due_in(QUEUE) == 0.0
        assert source.paused == []

    run(redis_url, main)


def test_a_wait_for_several_queues_passes_a_paused_one_over(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        await queues.pause(it.source.redis, OTHER, "", None, 0)
        await enqueue(it, OTHER, "held up")
        assert await waiter() == OTHER, "it is asked by itself, and says that it is paused"
        await enqueue(it, THIRD, "a")
        assert await waiter() is None, "the claim behind the wait was of the queue that was announced"
        assert waiter.jobs == ["a"]
        await enqueue(it, QUEUE, "b")
        await waiter()
        assert waiter.jobs == ["a", "b"]

    run(redis_url, main)


def test_a_paused_queue_says_nothing_of_the_next_one(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        await waiter.first_claims()
        await queues.pause(it.source.redis, OTHER, "", None, 0)
        await enqueue(it, OTHER, "held up")
        await waiter()
        assert [pulled.queue for pulled in waiter.pulled] == [QUEUE], "nothing is due there"
        assert it.source.paused == []
        later = NewJob("later", body("later"), DAY_MS, delay_ms=60_000)
        await scripts.enqueue(it.source.redis, QUEUE, [later])
        await waiter()
        assert waiter.pulled[-1].due_in_s == pytest.approx(60, abs=5)

    run(redis_url, main)


def test_a_wait_ends_with_the_resume(redis_url: str) -> None:
    async def main(it: Bench, waiter: Waiter) -> None:
        for queue in (OTHER, THIRD, QUEUE):
            await queues.pause(it.source.redis, queue, "", None, 0)
        await enqueue(it, THIRD, "a")
        assert await it.source.claim(THIRD, 1)
        it.raw.delete(keys.mark(THIRD))
        waiting = await waiter.begin()
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await queues.resume(it.source.redis, THIRD)
        assert await asyncio.wait_for(waiting, 5) is None
        assert waiter.jobs == ["a"]

    run(redis_url, main)
