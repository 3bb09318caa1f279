"""What the inspector reads: of our jobs, of stock arq's, and of whatever else stands under the keys."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runtime.adapters.payload import to_json
from runtime.adapters.redis import inspector, keys
from runtime.adapters.redis.inspector import Listed, Sheet, Trouble
from tests.redis.store import Stock, Store, again, dead, done


def listed(store: Store, most: int = 50) -> dict[str, Listed]:
    jobs = store.run(inspector.jobs(store.scripts, store.queue, most))
    assert not isinstance(jobs, Trouble), jobs
    return {job.id: job for job in jobs}


def sheet(store: Store, job_id: str, *queues: str) -> Sheet:
    return store.run(inspector.job(store.scripts, job_id, queues or [store.queue]))


def changes(store: Store) -> int:
    return int(store.redis.info("persistence")["rdb_changes_since_last_save"])


def test_jobs_of_every_state_are_listed(store: Store) -> None:
    worker = store.worker("a-1")
    store.enqueue("exhausted")
    worker.settle(dead(worker.one("exhausted"), b'{"reason": "exhausted", "handler": "work", "attempt": 3}'))
    store.enqueue("active")
    worker.one("active")
    store.enqueue("waits", priority=7)
    store.enqueue("deferred", delay_ms=60_000, priority=3)
    before = changes(store)
    jobs = listed(store)
    assert changes(store) == before
    assert {job.id: job.state for job in jobs.values()} == {
        "active": "active",
        "waits": "waiting",
        "deferred": "deferred",
        "exhausted": "dead",
    }
    active, waits, deferred, letter = (jobs[name] for name in ("active", "waits", "deferred", "exhausted"))
    assert (active.handler, active.attempt, active.due_ms) == ("work", 1, None)
    assert active.holder is not None
    assert active.holder.incarnation == "a-1"
    assert 0 < (active.holder.left_s or 0) <= 10
    now_ms = store.now_ms()
    assert (waits.attempt, waits.priority, waits.holder) == (0, 7, None)
    assert now_ms - 60_000 < (waits.due_ms or 0) <= now_ms
    assert deferred.priority == 3
    assert now_ms < (deferred.due_ms or 0) <= now_ms + 60_000
    assert (letter.handler, letter.reason, letter.attempt) == ("work", "exhausted", 3)


def test_so_many_of_each_state_are_listed_the_first_first(store: Store) -> None:
    store.backlog(30)
    assert list(listed(store, most=4)) == [f"old-{n:05}" for n in range(4)]


def test_a_job_that_a_stock_worker_holds_is_told_as_such(store: Store) -> None:
    store.run(store.arq.enqueue_job("work", _job_id="theirs", _queue_name=store.queue))
    stock = Stock(store)
    assert stock.claims("theirs")
    job = listed(store)["theirs"]
    assert (job.state, job.handler) == ("active", "work")
    assert job.holder is not None
    assert job.holder.incarnation is None
    assert (job.holder.left_s or 0) > 60
    holder = sheet(store, "theirs").job.holder
    assert holder is not None
    assert holder.incarnation is None
    stock.finishes()
    after = sheet(store, "theirs")
    assert after.job.state == "completed"
    assert after.result is not None
    assert after.result.finished_ms >= after.result.started_ms


def test_a_sheet_tells_history_place_and_lease(store: Store) -> None:
    store.enqueue("one", priority=5)
    place = store.score("one")
    worker = store.worker("a-1")
    error = {"attempt": 1, "at_ms": 1_700_000_000_000, "error": "ValueError", "text": "no", "category": "transient"}
    own = b"1|" + to_json({"errors": [error]})
    worker.settle(again(worker.one("one"), own=own, keep=1))
    store.until_due("one")
    job = worker.one("one")
    found = sheet(store, "one", "another:queue", store.queue)
    assert found.job.state == "active"
    assert found.job.queue == store.queue
    assert (found.job.attempt, found.job.priority) == (2, 5)
    assert found.place == pytest.approx(float(job.place))
    assert found.place != store.score("one"), "that is the end of its lease"
    assert abs(float(job.place) - place) < 10_000
    assert found.history.crashes == 1
    assert [error.error for error in found.history.errors] == ["ValueError"]
    assert found.body_bytes > 0
    assert found.call is not None
    assert found.trouble == []


def test_a_sheet_of_a_dead_letter_has_its_reason_and_its_body(store: Store) -> None:
    worker = store.worker()
    store.enqueue("gone", text="hello")
    letter = b'{"reason": "crashed", "queue": "arq:queue", "crashes": 3, "errors": [], "died_ms": 1700000000000}'
    worker.settle(dead(worker.one("gone"), letter))
    found = sheet(store, "gone", "another:queue")
    assert (found.job.state, found.job.reason, found.history.crashes) == ("dead", "crashed", 3)
    assert found.call is not None
    assert found.call.args == ("hello",)


def test_of_an_ended_job_its_result_is_known_and_of_no_job_nothing(store: Store) -> None:
    worker = store.worker()
    store.enqueue("odd")
    worker.settle(done(worker.one("odd"), b"no result as arq writes it"))
    found = sheet(store, "odd")
    assert (found.job.state, found.result) == ("completed", None)
    nothing = sheet(store, "nobody")
    assert (nothing.job.state, nothing.job.queue, nothing.place) == ("unknown", "", None)


def test_a_queue_of_a_wrong_type_is_trouble_and_no_more(store: Store) -> None:
    store.spoil(store.queue)
    assert isinstance(store.run(inspector.jobs(store.scripts, store.queue, 5)), Trouble)
    assert isinstance(store.run(inspector.census(store.scripts, store.queue)), Trouble)
    assert sheet(store, "any").job.state == "unknown"


SPOILED: list[Any] = [keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.RESULT, keys.LETTER, keys.ONCE]


@pytest.mark.parametrize("prefix", SPOILED)
def test_a_key_of_a_wrong_type_beside_a_job_breaks_nothing(store: Store, prefix: str) -> None:
    store.enqueue("a", "b")
    if prefix == keys.LETTER:
        store.redis.zadd(keys.dead(store.queue), {"a": 1})
    store.spoil(prefix + "a")
    jobs = listed(store)
    assert jobs["b"].handler == "work"
    found = sheet(store, "a")
    assert found.job.id == "a"
    assert any("wrong type" in text for text in found.trouble)


@pytest.mark.parametrize("key", [keys.later, keys.dead, keys.unknown])
def test_a_side_index_of_a_wrong_type_breaks_nothing(store: Store, key: Any) -> None:
    store.enqueue("a")
    store.worker().one("a")
    store.spoil(key(store.queue))
    assert listed(store)["a"].state == "active"
    assert sheet(store, "a").job.state == "active"


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe\x00", b"\x1b]0;owned\x07", b"a|b|c", b"\n\r\n", b"", "\u202eabc".encode(), b"x" * 100_000]
)
def test_any_id_is_listed_and_looked_up(store: Store, raw: bytes) -> None:
    store.raw.zadd(store.queue, {raw: 1, b"beside": 2})
    store.raw.set(keys.JOB.encode() + raw, b"\x80\x05garbage", ex=60)
    job_id = keys.id_text(raw)
    jobs = listed(store)
    assert set(jobs) == {job_id, "beside"}
    assert jobs[job_id].handler is None
    assert jobs[job_id].trouble
    assert jobs["beside"].trouble == "its body is missing"
    assert sheet(store, job_id).job.state == "waiting"
    store.raw.delete(keys.JOB.encode() + raw)  # the fixture's own look reads names as Unicode


@pytest.mark.parametrize(
    "letter",
    [b"", b"\xff", b"[]", b'{"reason": 7}', b"[" * 100_000, b'{"reason": "x", "attempt": "many"}'],
    ids=range(6),
)
def test_a_letter_that_is_none_is_told_as_such(store: Store, letter: bytes) -> None:
    store.raw.zadd(keys.dead(store.queue), {"odd": math.inf})
    store.raw.hset(keys.LETTER + "odd", mapping={"letter": letter, "body": b"x"})
    store.raw.expire(keys.LETTER + "odd", 60)
    job = listed(store)["odd"]
    assert (job.state, job.reason) == ("dead", None)
    assert job.trouble
    assert sheet(store, "odd").job.id == "odd"


@pytest.mark.parametrize("score", [math.inf, -math.inf, 1e300, -1e300, 0.3])
def test_any_score_is_listed(store: Store, score: float) -> None:
    store.raw.zadd(store.queue, {"odd": score})
    job = listed(store)["odd"]
    assert job.state in ("waiting", "deferred")
    assert job.due_ms is None or math.isfinite(job.due_ms)
    assert sheet(store, "odd").place == score


def test_a_large_body_is_not_read_for_a_list(store: Store) -> None:
    store.raw.set(keys.JOB + "large", b"x" * (inspector.MOST_READ + 1), ex=60)
    store.raw.zadd(store.queue, {"large": 1})
    job = listed(store)["large"]
    assert job.handler is None
    assert str(inspector.MOST_READ + 1) in (job.trouble or "")
