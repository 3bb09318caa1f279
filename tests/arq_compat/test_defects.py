"""arq's defects, one by one: the same is done to arq's worker and to `runtime serve --arq`, with one application.

Numbers as in docs/arq.md, which has a row for each.
"""

from __future__ import annotations

import pickle
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job
from arq.worker import JobExecutionFailed
from redis import Redis

from tests.arq_compat.test_arq_mode import SOON_S, Make, Process, do, enqueue, outcome, ttl_s
from tests.processes import ROOT, wait_until
from tests.servers import Server

DEFECTIVE = "tests.arq_compat.defective"
WHILE_S = 3.0
"""So long is waited for what is not to happen."""


@pytest.fixture(params=["arq", "runtime"])
def make(request: pytest.FixtureRequest, tcp_url: str, tmp_path: Path) -> Make:
    return Make(request.param, tcp_url, tmp_path, DEFECTIVE)


@contextmanager
def redis_of(make: Make) -> Iterator[Any]:
    with Redis.from_url(make.url) as redis:
        yield redis


def ours(make: Make) -> bool:
    return make.kind == "runtime"


def ended(make: Make, worker: Process, *job_ids: str) -> bool:
    """Whether these jobs have a result within a time that is long enough, or the worker is gone."""
    with redis_of(make) as redis:
        keys = [f"arq:result:{job_id}" for job_id in job_ids]
        wait_until(lambda: redis.exists(*keys) == len(keys) or worker.ended, SOON_S)
        return int(redis.exists(*keys)) == len(keys)


def runs(make: Make, job_id: str) -> int:
    return sum(line.split()[:2] == ["run", job_id] for line in make.noted())


def body(function: str) -> bytes:
    return pickle.dumps({"t": None, "f": function, "a": (), "k": {}, "et": round(time.time() * 1000)})


def others_hold(redis: Any, count: int) -> None:
    """So many jobs stand at the head of the queue, and somebody else runs them."""
    for n in range(count):
        redis.set(f"arq:in-progress:held {n}", b"1", px=60_000)
        redis.set(f"arq:job:held {n}", body("task"))
        redis.zadd("arq:queue", {f"held {n}": 1000 + n})


def test_g2_an_id_is_taken_for_arqs_client_while_a_result_is_kept(make: Make) -> None:
    """That is the client's rule, and the same for both; `keep_result=0` frees it at once."""
    enqueue(make, ("task", (), {"_job_id": "one"}))
    make.burst("Usual")

    async def again(pool: ArqRedis) -> bool:
        return await pool.enqueue_job("task", _job_id="one") is not None

    assert not do(make, again)
    with redis_of(make) as redis:
        redis.delete("arq:result:one")
    assert do(make, again)


def test_g4_jobs_that_others_hold_hide_no_others(make: Make) -> None:
    with redis_of(make) as redis:
        others_hold(redis, 150)
    enqueue(make, ("task", (), {"_job_id": "free"}))
    with make.start("Usual") as worker:
        if ours(make):
            assert ended(make, worker, "free")
        else:
            time.sleep(WHILE_S)
            assert runs(make, "free") == 0


def test_g5_jobs_that_others_hold_are_not_asked_for_again_and_again(make: Make) -> None:
    with redis_of(make) as redis:
        others_hold(redis, 50)
        enqueue(make, ("task", (), {"_job_id": "free"}))
        with make.start("Usual") as worker:
            assert ended(make, worker, "free")
            redis.config_resetstat()
            time.sleep(WHILE_S)
            counted = redis.info("commandstats")
            commands = sum(row["calls"] for name, row in counted.items() if name != "cmdstat_info")
    assert commands < 1000 if ours(make) else commands > 1000, commands


def test_g6_results_kept_for_ever_do_not_end_the_worker(make: Make) -> None:
    enqueue(make, ("again", (), {"_job_id": "one"}))
    with make.start("ForEver") as worker:
        assert ended(make, worker, "one") == ours(make)
        assert worker.ended != ours(make)
    if ours(make):
        assert outcome(make, "one") == (False, JobExecutionFailed("max 1 retries exceeded"), 2)


@pytest.mark.parametrize("settings", ["Start", "End", "After"])
def test_g7_a_hook_that_fails_costs_its_job_at_most(make: Make, settings: str) -> None:
    enqueue(make, ("task", (), {"_job_id": "broken"}))
    with make.start(settings) as worker:
        if not ours(make):
            assert worker.wait() == 1
            return
        enqueue(make, ("task", (), {"_job_id": "fine"}))
        assert ended(make, worker, "broken", "fine")
    assert outcome(make, "fine") == (True, 42, 1)
    success, value, _ = outcome(make, "broken")
    assert (success, repr(value)) == ((False, "ValueError('a hook')") if settings == "Start" else (True, "42"))


def test_g8_a_server_that_goes_away_does_not_end_the_worker(make: Make, server: Server) -> None:
    with make.start("Usual") as worker:
        enqueue(make, ("task", (), {"_job_id": "before"}))
        assert ended(make, worker, "before")
        server.kill()
        time.sleep(1)
        server.start()
        if not ours(make):
            assert worker.wait() == 1
            return
        enqueue(make, ("task", (), {"_job_id": "after"}))
        assert ended(make, worker, "after")


def test_g9_an_abort_of_no_job_does_not_poison_its_id(make: Make) -> None:
    with redis_of(make) as redis:
        redis.zadd("arq:abort", {"one": time.time() * 1000 - 30_000})
    enqueue(make, ("task", (), {"_job_id": "one"}))
    with make.start("Usual") as worker:
        assert ended(make, worker, "one")
    assert runs(make, "one") == (1 if ours(make) else 0)
    with redis_of(make) as redis:
        assert redis.zscore("arq:abort", "one") is None


def test_g10_who_aborts_a_job_is_told_also_where_no_result_is_kept(make: Make) -> None:
    with make.start("Usual"):
        enqueue(make, ("unkept", (), {"_job_id": "one"}))
        wait_until(lambda: runs(make, "one"), SOON_S)
        assert do(make, lambda pool: Job("one", pool).abort(timeout=SOON_S, poll_delay=0.02)) == ours(make)


def test_g12_a_job_that_was_due_long_ago_is_enqueued(make: Make) -> None:
    """By the application itself. From elsewhere arq's client leaves an id without a body: a letter that says so."""
    enqueue(make, ("enqueues_late", (), {"_job_id": "first"}))
    with make.start("Usual") as worker:
        assert ended(make, worker, "first", "late")
    assert outcome(make, "first")[1] == ("enqueued" if ours(make) else "ResponseError")
    assert outcome(make, "late")[1] == (42 if ours(make) else JobExecutionFailed("job expired"))


def test_g13_a_body_outlives_the_wait_for_its_next_try(make: Make) -> None:
    day_s = 86400
    enqueue(make, ("again", (2 * day_s,), {"_job_id": "one"}))
    with make.start("Usual"), redis_of(make) as redis:

        def deferred() -> bool:
            return bool(runs(make, "one")) and not redis.exists("arq:in-progress:one")

        wait_until(deferred, SOON_S)
        due_s = redis.zscore("arq:queue", "one") / 1000 - time.time()
    assert due_s > day_s
    assert (ttl_s(make, "arq:job:one") > due_s) == ours(make)


def test_g14_a_job_of_a_function_that_a_version_lacks_waits_for_one_that_has_it(make: Make) -> None:
    enqueue(make, ("task", (), {"_job_id": "new"}))
    with make.start("Old") as worker:
        if not ours(make):
            assert ended(make, worker, "new")
            assert outcome(make, "new")[1] == JobExecutionFailed("function 'task' not found")
            return
        time.sleep(WHILE_S)
    with make.start("Usual") as worker:
        assert ended(make, worker, "new")
    assert outcome(make, "new") == (True, 42, 1)


def test_g15_a_function_that_cancels_itself_has_failed(make: Make) -> None:
    enqueue(make, ("cancels_itself", (), {"_job_id": "one"}))
    with make.start("Usual") as worker:
        assert ended(make, worker, "one")
    assert runs(make, "one") == (1 if ours(make) else 3)
    assert outcome(make, "one")[0] is False


def test_g16_a_failure_is_kept_as_long_as_its_function_says(make: Make) -> None:
    enqueue(make, ("again", (), {"_job_id": "one"}))
    with make.start("Short") as worker:
        assert ended(make, worker, "one")
    assert (ttl_s(make, "arq:result:one") <= 100) == ours(make)


def test_g17_a_timeout_may_be_unlimited(make: Make) -> None:
    enqueue(make, ("task", (), {"_job_id": "one"}))
    with make.start("Unlimited") as worker:
        assert ended(make, worker, "one") == ours(make)


def test_g18_on_shutdown_comes_whatever_has_failed(make: Make) -> None:
    jobs = ["broken", "broken, too"]
    enqueue(make, *(("task", (), {"_job_id": job_id}) for job_id in jobs))
    with make.start("Start") as worker:
        if ours(make):
            assert ended(make, worker, *jobs)
            worker.send(signal.SIGTERM)
        assert worker.wait() == (0 if ours(make) else 1)
    assert ("shutdown" in make.noted()) == ours(make)


def test_g20_a_job_with_the_score_0_is_run(make: Make) -> None:
    with redis_of(make) as redis:
        redis.set("arq:job:one", body("task"))
        redis.zadd("arq:queue", {"one": 0})
    enqueue(make, ("task", (), {"_job_id": "two"}))
    with make.start("Usual") as worker:
        assert ended(make, worker, "two")
        if ours(make):
            assert ended(make, worker, "one")
        else:
            time.sleep(WHILE_S)
            assert runs(make, "one") == 0


def test_a_stop_neither_burns_a_try_nor_cuts_a_job_short(make: Make) -> None:
    """arq cancels at once unless `job_completion_wait` is set, and each stop counts as a try (arq issue 267)."""
    enqueue(make, ("long", (), {"_job_id": "one"}))
    for _ in range(2):
        with make.start("Hasty" if ours(make) else "Usual") as worker:
            before = runs(make, "one")
            wait_until(lambda before=before: runs(make, "one") > before, SOON_S)  # type: ignore[misc]
            worker.send(signal.SIGTERM)
            worker.wait()
    tries = [line.split()[2] for line in make.noted() if line.startswith("run one")]
    assert tries == (["1", "1"] if ours(make) else ["1", "2"])


TESTED = {name[5:].split("_")[0].upper() for name in globals() if re.match(r"test_g\d", name)}


def test_what_is_said_to_show_a_thing_is_there() -> None:
    page, faults = (ROOT / "docs/arq.md").read_text(), (ROOT / "docs/faults.md").read_text()
    rows = re.findall(r"^\| (A\d+) \|.*\| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == [f"A{n}" for n in range(1, 36)], "the last is none of behaviour"
    for name, shown in rows:
        assert shown == "above" or "`" in shown or "faults.md#" in shown, name
        for scenario, anchor in re.findall(r"\[(K[^]]+)\]\(faults\.md#(\w+)\)", shown):
            assert f"[{scenario}](#{anchor})" in faults
        for path in re.findall(r"`(tests/[^`]+)`", shown):
            assert (ROOT / path).exists(), path


def test_each_defect_has_its_row_and_its_test() -> None:
    wanted = {f"G{n}" for n in (2, *range(4, 19), 20)}
    table = (ROOT / "docs/arq.md").read_text()
    assert set(re.findall(r"^\| (G\d+) \|", table, re.MULTILINE)) == wanted
    assert wanted - {"G11"} == TESTED  # that one is about cron jobs: tests/arq_compat/test_arq_crons.py
