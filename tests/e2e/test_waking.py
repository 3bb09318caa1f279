"""Commands and workers that enqueue wake who sleeps, and say so."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime.adapters.redis import keys
from runtime.client import Client
from tests.doorstep import Doorstep
from tests.e2e.chained import HERE, begin, begin_again
from tests.e2e.test_sleep import Sleeper
from tests.processes import Worker, command, enqueue, wait_until
from tests.redis.store import Store, dead

MODULE = "tests.e2e.jobs"
RINGING = "no worker seems to be awake: ringing the doorbell"


@pytest.fixture
def store(redis_url: str) -> Store:
    return Store(redis_url)


def test_runtime_enqueue_rings_and_says_so(redis_url: str) -> None:
    with Doorstep(404, 202) as step:
        done = command("enqueue", "-m", MODULE, "add", "[1, 2]", REDIS_URL=redis_url, RUNTIME_WAKE_URL=step.url)
    assert done.returncode == 0
    assert len(done.stdout.split()) == 1
    assert done.stderr.splitlines() == [RINGING, f"{step.url} answered"]
    assert len(step.visits) == 2


def test_runtime_enqueue_says_who_was_not_woken_and_has_added_the_job(redis_url: str) -> None:
    with Doorstep(401) as step:
        done = command("enqueue", "-m", MODULE, "add", "[1, 2]", REDIS_URL=redis_url, RUNTIME_WAKE_URL=step.url)
    assert done.returncode == 0
    assert len(done.stdout.split()) == 1
    assert done.stderr.splitlines() == [RINGING, f"Nobody was woken by POST {step.url}: status 401"]


def test_runtime_enqueue_wait_waits_for_the_worker_that_it_wakes(redis_url: str) -> None:
    arguments = ("enqueue", "-m", MODULE, "add", "[1, 2]", "--wait")
    with Doorstep(404, 404, 202) as step, Worker(MODULE, redis=redis_url) as worker, ThreadPoolExecutor() as threads:
        asking = threads.submit(command, *arguments, REDIS_URL=redis_url, RUNTIME_WAKE_URL=step.url)
        wait_until(lambda: step.visits or asking.done())
        worker.up()
        done = asking.result()
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert RINGING in done.stderr


def test_runtime_enqueue_says_nothing_where_a_worker_is_awake(store: Store) -> None:
    with store, Doorstep(202) as step, store.awake():
        done = command("enqueue", "-m", MODULE, "add", "[1, 2]", REDIS_URL=store.url, RUNTIME_WAKE_URL=step.url)
        assert done.returncode == 0
        assert done.stderr == ""
        assert step.visits == []


def test_runtime_dlq_replay_rings_for_what_it_put_back(store: Store) -> None:
    with store, Doorstep(202) as step:
        settings: dict[str, Any] = {"REDIS_URL": store.url, "RUNTIME_WAKE_URL": step.url}
        missing = command("dlq", "replay", "a", **settings)
        assert missing.returncode == 1
        assert step.visits == []
        for job_id in ("a", "b"):
            store.enqueue(job_id)
            worker = store.worker()
            letter = b'{"id": "%b", "queue": "arq:queue", "place": "0"}' % job_id.encode()
            worker.settle(dead(worker.one(job_id), letter))
        done = command("dlq", "replay", "a", "b", **settings)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines() == [RINGING, f"{step.url} answered"]
        assert len(step.visits) == 1
        assert sorted(store.queued()) == ["a", "b"]
        assert store.raw.exists(keys.JOB + "a")


def test_a_worker_rings_for_others_and_never_for_itself(redis_url: str) -> None:
    with (
        Doorstep(202) as step,
        Worker("tests.e2e.chained", redis=redis_url, arguments=("-Q", HERE), RUNTIME_WAKE_URL=step.url).up() as worker,
    ):
        (job,) = enqueue(redis_url, begin_again.request())
        worker.wait_for("JOB_COMPLETED", job_id=job)
        time.sleep(0.5)
        assert step.visits == []
        (job,) = enqueue(redis_url, begin.request())
        worker.wait_for("JOB_COMPLETED", job_id=job)
        worker.wait_for("JOB_COMPLETED", count=3)
        assert worker.stop() == 0
        assert len(step.visits) == 1


def test_a_worker_that_is_quiet_is_woken_by_an_enqueue_and_by_nothing_while_it_is_awake(tcp_url: str) -> None:
    sleeper = Sleeper(tcp_url)
    with sleeper.worker as worker:
        worker.up()
        url = f"http://127.0.0.1:{sleeper.port}/wake"

        async def produce() -> list[float]:
            client = Client(tcp_url, wake_urls=[url])
            took_s = []
            try:
                for asleep in (True, False):
                    began = time.monotonic()
                    job = await client.enqueue("add", [1, 2])
                    assert client.ringing is asleep
                    assert await job.result("20s") == 3
                    took_s.append(time.monotonic() - began)
            finally:
                await client.close()
            return took_s

        sleeper.until_quiet()
        asleep_s, awake_s = asyncio.run(produce())
        print(f"enqueue to result: {1000 * asleep_s:.0f} ms from quiet, {1000 * awake_s:.0f} ms awake")
        assert asleep_s < 3
