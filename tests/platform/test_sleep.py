"""The headline, end to end: a worker that idles falls silent, the platform ends it, and whoever has a job wakes it.

RUNTIME_TEST_SLEEP=all adds jobs that come just as it falls silent, or is ended.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import time
from datetime import timedelta

import pytest
from arq.connections import RedisSettings, create_pool

from tests.platform.edge import First
from tests.platform.jobs import QUEUE
from tests.platform.network import Network
from tests.platform.sleeping import IDLE_S, SLEEP_AFTER_S, ask_for, post, sleeper
from tests.platform.sockets import Sockets
from tests.processes import Worker, command

RUNS = 8


def needs(command: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(f"runtime.cli.{command}") is not None
    return pytest.mark.skipif(not there, reason=f"there is no `runtime {command}` yet")


class Sentinel(Worker):
    program = ("runtime", "sentinel")


def enqueue_as_arq(url: str, number: int, defer_s: float = 0.0) -> str:
    async def add() -> str:
        pool = await create_pool(RedisSettings.from_dsn(url))
        try:
            job = await pool.enqueue_job("work", number, _queue_name=QUEUE, _defer_by=timedelta(seconds=defer_s))
            assert job is not None
            return job.job_id
        finally:
            await pool.aclose()

    return asyncio.run(add())


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_SLEEP") != "all", reason="minutes: for `all`")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("change", ["quiet", "asleep"])
def test_no_job_is_lost_whenever_it_comes_beside_a_change(network: Network | Sockets, change: str) -> None:
    """Many jobs, each within half a second of its falling quiet, or of its end by the platform."""
    with sleeper(network) as slept:
        slept.asleep()
        bell = f"{slept.service.public_url}/wake"
        for run in range(RUNS):
            _, (number, _) = ask_for(slept.redis_url, run, bell)
            assert number == run
            quiets = len(slept.service.worker.events("WORKER_QUIET"))
            beside_s = random.uniform(-0.3, 0.5)
            if change == "quiet":
                time.sleep(SLEEP_AFTER_S + beside_s)
            else:
                slept.service.worker.wait_for("WORKER_QUIET", quiets + 1)
                time.sleep(IDLE_S + beside_s)
            began = time.monotonic()
            _, (number, _) = ask_for(slept.redis_url, -run, bell)
            print(f"{change} {1000 * beside_s:+.0f} ms: done after {1000 * (time.monotonic() - began):.0f} ms")
            assert number == -run
            slept.asleep()


@pytest.mark.parametrize("first", First, ids=[first.name.lower() for first in First])
def test_a_job_by_http_is_enqueue_and_doorbell_in_one(network: Network | Sockets, first: First) -> None:
    with sleeper(network, first=first) as slept:
        slept.asleep()
        began = time.monotonic()
        job_id = json.loads(post(f"{slept.service.public_url}/jobs", {"handler": "work", "args": [1]}))["jobId"]
        slept.tell(f"HTTP, {first.value}", began, slept.done(job_id))


@needs("sentinel")
@pytest.mark.parametrize("events", ["", "K$"], ids=["looks", "is-told"])
def test_a_sentinel_wakes_it_for_stock_arq(network: Network | Sockets, events: str) -> None:
    with (
        sleeper(network, events=events) as slept,
        Sentinel(
            *("-Q", QUEUE), redis=slept.redis_url, RUNTIME_WAKE_URL=f"{slept.service.public_url}/wake"
        ).start() as sentinel,
    ):
        slept.asleep()
        assert sentinel.running, sentinel.errors()
        assert len(slept.service.moments("started")) == 1, "nothing is due, so nobody rings"
        began = time.monotonic()
        slept.tell(f"stock arq, a sentinel ({events})", began, slept.done(enqueue_as_arq(slept.redis_url, 2)))


@needs("wake")
def test_an_alarm_wakes_it_for_a_job_that_comes_due_and_not_before(network: Network | Sockets) -> None:
    def alarm() -> None:
        told = command("wake", "--if-due", "-Q", QUEUE, REDIS_URL=slept.redis_url, RUNTIME_WAKE_URL=f"{public}/wake")
        assert told.returncode == 0, told.stderr

    with sleeper(network) as slept:
        public = slept.service.public_url
        slept.asleep()
        due = time.monotonic() + 6
        job_id = enqueue_as_arq(slept.redis_url, 3, defer_s=6)
        alarm()
        assert time.monotonic() < due - 1, "this machine is too slow to tell"
        assert len(slept.service.moments("started")) == 1, "it is not due"
        while not slept.service.moments("woken"):
            time.sleep(0.5)
            alarm()
        slept.tell("an alarm each 0.5 s, from when it is due", due, slept.done(job_id))
