"""What an arq application has as long as its worker lives, where arq and we differ or arq has no such thing."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.worker import JobExecutionFailed
from redis import Redis

from tests.arq_compat import documented
from tests.arq_compat.test_arq_mode import SOON_S, Make, do, enqueue, outcome
from tests.e2e.test_sleep import Sleeper
from tests.processes import Worker, command, wait_until

DEFECTIVE = "tests.arq_compat.defective"


@pytest.fixture
def make(tcp_url: str, tmp_path: Path) -> Make:
    return Make("runtime", tcp_url, tmp_path, DEFECTIVE)


@contextmanager
def served(make: Make, name: str, *arguments: str, **settings: Any) -> Iterator[Worker]:
    words = ["--arq", f"{DEFECTIVE}.{name}", *arguments]
    with Worker(arguments=words, **{**make.settings, **settings}) as worker:
        yield worker


def test_a_startup_that_fails_ends_the_worker_and_no_job_is_touched(make: Make) -> None:
    enqueue(make, ("task", (), {"_job_id": "one"}))
    with served(make, "Lived", RUNTIME_TEST_START="fail") as worker:
        assert worker.start().wait() == 1
        (failed,) = worker.events("HOOK_FAILED")
        assert (failed["hook"], failed["error_type"]) == ("on_startup", "ValueError")
        (crash,) = worker.events("WORKER_CRASH")
        assert "no database" in crash["exception"]
    assert make.noted() == ["startup", "shutdown"]
    with served(make, "Lived") as worker:
        worker.up()
        wait_until(lambda: "run one 1" in make.noted(), SOON_S)


def test_a_startup_is_cut_short_by_a_signal(make: Make) -> None:
    with served(make, "Lived", RUNTIME_TEST_START="wait") as worker:
        worker.start()
        wait_until(lambda: make.noted() == ["startup"], SOON_S)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10
    assert make.noted() == ["startup", "shutdown"]


def test_what_a_job_enqueues_is_taken_at_once(make: Make) -> None:
    """Not when an idle worker looks next: on a server that tells of nothing, that is half a second for each."""
    with Redis.from_url(make.url) as redis:
        redis.config_set("notify-keyspace-events", "")
    with served(make, "Lived") as worker:
        worker.up()
        enqueue(make, ("chain", (10,), {"_job_id": "chain 10"}))
        wait_until(lambda: "run chain 10 1" in make.noted(), SOON_S)
        began = time.monotonic()
        wait_until(lambda: "run chain 0 1" in make.noted(), SOON_S)
        assert time.monotonic() - began < 2.5


def test_an_application_that_says_nothing_has_the_environments_redis(make: Make) -> None:
    with served(make, "Silent", REDIS_URL=make.url, WORKER_CONCURRENCY=4) as worker:
        (boot,) = worker.up().events("WORKER_BOOT")
        assert boot["data"]["concurrency"] == 4
        enqueue(make, ("task", (), {"_job_id": "one"}))
        wait_until(lambda: "run one 1" in make.noted(), SOON_S)
    with served(make, "Lived", "-c", "5", REDIS_URL="redis://127.0.0.1:1", WORKER_CONCURRENCY=4) as worker:
        (boot,) = worker.up().events("WORKER_BOOT")
        assert boot["data"]["concurrency"] == 5
        assert boot["data"]["redis"] == f"{make.url}/0"


def test_a_burst_of_so_many_jobs_leaves_the_others(make: Make) -> None:
    enqueue(make, *(("task", (), {"_job_id": f"job {n}"}) for n in range(20)))
    assert make.burst("Burst").returncode == 0
    assert len(make.noted()) == 7
    with Redis.from_url(make.url) as redis:
        assert redis.zcard("arq:queue") == 13
        assert not list(redis.scan_iter("arq:in-progress:*"))


def test_a_burst_leaves_jobs_of_functions_that_it_lacks(make: Make) -> None:
    enqueue(make, ("again", (), {"_job_id": "known"}), ("task", (), {"_job_id": "new"}))
    assert make.burst("Old").returncode == 0
    assert outcome(make, "known")[1] == JobExecutionFailed("max 5 retries exceeded")
    assert make.burst("Usual").returncode == 0
    assert outcome(make, "new") == (True, 42, 1)


def test_an_abort_does_not_wait_for_the_next_extension_of_a_lease(make: Make) -> None:
    async def play(pool: ArqRedis) -> None:
        for name in ("one", "two"):
            job = await pool.enqueue_job("long", _job_id=name)
            assert job is not None
            await asyncio.to_thread(wait_until, lambda name=name: f"run {name} 1" in make.noted(), SOON_S)
            assert await job.abort(timeout=10, poll_delay=0.02)

    with served(make, "Usual", RUNTIME_LEASE="120s") as worker:
        worker.up()
        do(make, play)


def test_the_log_says_where_a_function_failed(make: Make) -> None:
    with Worker(arguments=["--arq", "tests.arq_compat.documented.Jobs"], **make.settings) as worker:
        worker.up()
        enqueue(make, ("fails", ("builtin",), {"_job_id": "one"}))
        (dead,) = worker.wait_for("JOB_DEAD")
    assert "documented.py" in dead["traceback"]
    assert "a text" in dead["message"]


def test_a_class_that_is_not_vouched_for_is_named(make: Make) -> None:
    item = documented.Item("a", [])
    enqueue(make, ("task", (item,), {"_job_id": "one"}))
    assert make.burst("Usual").returncode == 0
    told = str(outcome(make, "one")[1])
    assert "tests.arq_compat.documented.Item" in told
    assert "runtime_types" in told


def test_a_worker_that_sleeps_shuts_the_application_and_starts_it_again(make: Make) -> None:
    words = ["--arq", f"{DEFECTIVE}.Lived"]
    sleeper = Sleeper(make.url)
    settings: dict[str, Any] = {**make.settings, "RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_SLEEP_AFTER": "5s"}
    sleeper.worker = Worker(arguments=words, **settings)
    with sleeper.worker as worker:
        worker.up()
        assert sleeper.sockets()
        sleeper.until_quiet()
        wait_until(lambda: not sleeper.sockets(), SOON_S)
        assert make.noted() == ["startup", "shutdown"]
        enqueue(make, ("task", (), {"_job_id": "one"}))
        sleeper.ask("/wake", "POST")
        wait_until(lambda: make.noted()[2:] == ["startup", "run one 1"], SOON_S)
        assert worker.stop() == 0
    assert make.noted()[4:] == ["shutdown"]


def test_a_result_of_a_type_of_its_own_is_no_riddle_to_who_lacks_it(make: Make) -> None:
    enqueue(make, ("item", ("a",), {"_job_id": "one"}))
    Make("runtime", make.url, make.notes.parent).burst("Jobs")
    done = command("job", "one", REDIS_URL=make.url)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["status"], shown["error"]["type"]) == ("completed", "unreadable")


def test_a_timeout_is_told_and_final(make: Make) -> None:
    with served(make, "Lived") as worker:
        worker.up()
        enqueue(make, ("short", (), {"_job_id": "one"}))
        worker.wait_for("JOB_DEAD")
        wait_until(lambda: do(make, lambda pool: pool.exists("arq:result:one")), SOON_S)
        success, error, job_try = outcome(make, "one")
        assert (success, type(error), job_try) == (False, TimeoutError, 1)
        assert str(error) == "it ran longer than its timeout of 500 ms"
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
