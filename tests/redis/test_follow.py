"""follow.lua, and how the scripts that end a job tell who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.scripts import Followed
from tests.redis.store import Store, again, back, body, dead, done

ANA, BEA = "a" * 16, "b" * 16
NOTED, THERE, GONE = Followed("noted"), Followed("there"), Followed("gone")


def follow(store: Store, job_id: str, name: str = ANA) -> Followed | None:
    return store.run(scripts.follow(store.scripts, store.queue, job_id, name))


class Heard:
    """What is said on the channels of these names."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    def news(self) -> list[tuple[str, bytes]]:
        """All that was said until now."""
        self._pubsub.ping("end")
        said: list[tuple[str, bytes]] = []
        while (message := self._pubsub.get_message(timeout=10))["type"] != "pong":
            said.append((message["channel"].decode().removeprefix("rt:reply:"), message["data"]))
        return said


@contextmanager
def listening(store: Store, *names: str) -> Iterator[Heard]:
    with store.raw.pubsub() as pubsub:
        for name in names or (ANA,):
            pubsub.subscribe(keys.reply(name))
            assert pubsub.get_message(timeout=10)["type"] == "subscribe"
        yield Heard(pubsub)


# -- following


def test_who_asks_is_noted_while_there_is_no_end(store: Store) -> None:
    store.enqueue("a")
    assert follow(store, "a") == NOTED
    assert store.redis.get(keys.AWAITED + "a") == ANA
    assert 59_000 < store.raw.pttl(keys.AWAITED + "a") <= 60_000
    job = store.worker().one("a")
    assert follow(store, "a") == NOTED
    store.worker().settle(done(job, b"42"))
    assert follow(store, "a") == Followed("ended", b"42")
    assert not store.redis.exists(keys.AWAITED + "a")


def test_where_there_is_no_job_nothing_is_noted(store: Store) -> None:
    assert follow(store, "a") == GONE
    assert store.redis.keys() == []


@pytest.mark.parametrize("missing", ["body", "score"])
def test_half_a_job_is_one(store: Store, missing: str) -> None:
    store.enqueue("a")
    store.raw.delete(keys.JOB + "a") if missing == "body" else store.raw.zrem(store.queue, "a")
    assert follow(store, "a") == NOTED


def test_eight_may_wait_for_a_job_and_each_is_noted_once(store: Store) -> None:
    store.enqueue("a")
    names = [str(n) * 16 for n in range(9)]
    assert [follow(store, "a", name) for name in names] == [NOTED] * 8 + [THERE]
    assert follow(store, "a", names[7]) == NOTED
    assert store.redis.get(keys.AWAITED + "a") == " ".join(names[:8])


def test_looking_again_keeps_the_name_for_longer(store: Store) -> None:
    store.enqueue("a")
    follow(store, "a")
    store.raw.pexpire(keys.AWAITED + "a", 5000)
    assert follow(store, "a") == NOTED
    assert store.raw.pttl(keys.AWAITED + "a") > 5000


def test_r19_without_memory_nothing_is_noted_and_results_are_read(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    worker.settle(done(worker.one("a"), b"42"))
    with store.out_of_memory():
        assert follow(store, "a") == Followed("ended", b"42")
        assert follow(store, "b") == THERE


# -- being told


def test_an_end_is_told_with_its_result_to_who_is_noted(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    jobs = worker.take("a", "b")
    follow(store, "a")
    with listening(store) as heard:
        worker.settle(done(jobs[0], b"42"), done(jobs[1], b"43"))
        assert heard.news() == [(ANA, b"1:a42")]


def test_when_it_is_told_the_result_is_there(store: Store) -> None:
    """Whoever hears of it and looks is served after the script."""
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    follow(store, "a")
    with listening(store) as heard:
        worker.settle(dead(job))
        assert heard.news() == [(ANA, b"1:afailure")]
        assert store.redis.exists(keys.RESULT + "a", keys.LETTER + "a") == 2


@pytest.mark.parametrize(("size", "told"), [(4096, 4096), (4097, 0)])
def test_a_long_result_is_to_be_asked_for(store: Store, size: int, told: int) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    follow(store, "a")
    with listening(store) as heard:
        worker.settle(done(job, b"x" * size))
        assert heard.news() == [(ANA, b"1:a" + b"x" * told)]


def test_all_who_wait_are_told_and_once(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    for name in (ANA, BEA, ANA):
        follow(store, "a", name)
    with listening(store, ANA, BEA) as heard:
        assert worker.settle(done(job, b"42")).verdicts == "1"
        assert worker.settle(done(job, b"42"), again=True).verdicts == "1"
        assert sorted(heard.news()) == [(ANA, b"1:a42"), (BEA, b"1:a42")]


def test_a_job_that_runs_again_has_not_ended(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    jobs = worker.take("a", "b")
    follow(store, "a")
    follow(store, "b")
    with listening(store) as heard:
        worker.settle(again(jobs[0], 60_000), back(jobs[1]))
        assert heard.news() == []
        worker.settle(done(worker.one("b"), b"42"))
        assert heard.news() == [(ANA, b"1:b42")]


def test_r5_what_is_refused_is_told_to_nobody(store: Store) -> None:
    store.enqueue("a", "b")
    old, new = store.worker("a-1", lease_ms=1), store.worker("b-2")
    job, other = old.take("a", "b")
    store.lapse(job, other)
    taken, _ = new.take("a", "b")
    follow(store, "a")
    with listening(store) as heard:
        assert old.settle(done(job, b"zombie")).verdicts == "0"
        assert heard.news() == []
        assert new.settle(done(taken, b"42")).verdicts == "1"
        assert heard.news() == [(ANA, b"1:a42")]


def test_a_cancelled_job_is_told_of(store: Store) -> None:
    store.enqueue("a")
    follow(store, "a")
    with listening(store) as heard:
        reply = store.run(
            scripts.cancel(store.scripts, store.queue, "a", body=body(), result=b"cancelled", result_ms=1000)
        )
        assert reply.said == "cancelled"
        assert heard.news() == [(ANA, b"1:acancelled")]
    assert not store.redis.exists(keys.AWAITED + "a")


def test_who_is_only_asked_to_stop_has_not_ended(store: Store) -> None:
    store.enqueue("a")
    store.worker().one("a")
    follow(store, "a")
    with listening(store) as heard:
        assert store.run(scripts.cancel(store.scripts, store.queue, "a")).said == "asked"
        assert heard.news() == []


def test_an_id_of_any_bytes_is_told_as_it_is(store: Store) -> None:
    job_id = "x:1:\udcff|"
    raw = keys.id_bytes(job_id)
    store.raw.set(keys.of(keys.JOB, job_id), body(), px=60_000)
    store.raw.zadd(store.queue, {raw: 1000})
    worker = store.worker()
    follow(store, job_id)
    with listening(store) as heard:
        worker.settle(done(worker.claim().jobs[0], b"42"))
        assert heard.news() == [(ANA, b"%d:%s42" % (len(raw), raw))]
    store.raw.delete(keys.of(keys.RESULT, job_id))


# -- what others may have written


def test_nothing_is_published_but_under_our_prefix_and_not_to_too_many(store: Store) -> None:
    store.enqueue("a")
    worker = store.worker()
    job = worker.one("a")
    names = [f"{n:016x}" for n in range(100)]
    store.redis.set(keys.AWAITED + "a", "rt:arq:queue:here * " + " ".join(names), px=60_000)
    with store.raw.pubsub() as pubsub:
        pubsub.psubscribe("*")
        assert pubsub.get_message(timeout=10)["type"] == "psubscribe"
        assert worker.settle(done(job, b"42")).trouble == []
        pubsub.ping()
        channels = []
        while (message := pubsub.get_message(timeout=10))["type"] != "pong":
            channels.append(message["channel"].decode())
    assert len(channels) < 20
    assert all(channel.startswith("rt:reply:") for channel in channels)
    assert max(len(channel) for channel in channels) <= len("rt:reply:") + 16


def test_r19_a_name_of_a_wrong_type_costs_nobody(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker = store.worker()
    jobs = worker.take("a", "b")
    for job_id in ("a", "c"):
        store.spoil(keys.AWAITED + job_id)
    follow(store, "b")
    with listening(store) as heard:
        reply = worker.settle(done(jobs[0], b"42"), done(jobs[1], b"43"))
        assert (reply.verdicts, reply.trouble) == ("11", [])
        assert heard.news() == [(ANA, b"1:b43")]
        said = store.run(scripts.cancel(store.scripts, store.queue, "c", body=body(), result=b"x", result_ms=1000))
        assert said.said == "cancelled"


def test_r19_a_name_of_a_wrong_type_is_overwritten(store: Store) -> None:
    store.enqueue("a")
    store.spoil(keys.AWAITED + "a")
    assert follow(store, "a") == NOTED
    assert store.redis.get(keys.AWAITED + "a") == ANA


def test_where_publishing_is_not_allowed_jobs_end_all_the_same_and_without_a_word(store: Store) -> None:
    store.enqueue("a", "b")
    follow(store, "a")
    follow(store, "b")
    worker = store.worker()
    job = worker.one("a")
    store.raw.execute_command("ACL", "SETUSER", "default", "-publish")
    try:
        reply = worker.settle(done(job, b"42"))
        assert (reply.verdicts, reply.trouble) == ("1", [])
        said = store.run(scripts.cancel(store.scripts, store.queue, "b", body=body(), result=b"x", result_ms=1000))
        assert said.said == "cancelled"
    finally:
        store.raw.execute_command("ACL", "SETUSER", "default", "+@all")
