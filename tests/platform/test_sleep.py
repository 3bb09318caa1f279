"""The headline, end to end: a worker that idles falls silent, the platform ends it, and whoever has a job wakes it.

RUNTIME_TEST_SLEEP=all adds jobs that come just as it falls silent, or is ended.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from arq.connections import RedisSettings, create_pool
from redis import Redis

from runtime import Client
from tests.platform.edge import First
from tests.platform.jobs import QUEUE, work
from tests.platform.network import Network
from tests.platform.service import Service
from tests.platform.sleeping import IDLE_S, SLEEP_AFTER_S, post, reachable, sleeping
from tests.platform.sockets import Sockets
from tests.processes import Worker, command, wait_until
from tests.servers import Server

WOKEN_S = 45.0
"""A start on a busy machine, and the 3 s for which the edge may know of no such application."""

RUNS = 8


def needs(command: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(f"runtime.cli.{command}") is not None
    return pytest.mark.skipif(not there, reason=f"there is no `runtime {command}` yet")


class Sentinel(Worker):
    program = ("runtime", "sentinel")


@dataclass(frozen=True)
class Sleeper:
    """A worker on the platform, and its Redis as one sees it from here."""

    service: Service
    redis_url: str

    def asleep(self) -> None:
        """Wait until it is, for once more."""
        self.service.wait_for("asleep", len(self.service.moments("started")))
        assert not self.service.worker.running
        assert self.service.worker.events("WORKER_QUIET"), "it fell silent, and then was ended"

    def done(self, job_id: str, timeout_s: float = WOKEN_S) -> float:
        """When this job was done, by the monotonic clock."""
        wait_until(lambda: self.service.worker.events("JOB_COMPLETED", job_id=job_id), timeout_s, f"{job_id} is done")
        return time.monotonic()

    def tell(self, story: str, began: float, done: float) -> None:
        """The figures, for who runs this with -s."""
        woken, listens = (self.service.moments(what)[-1].at for what in ("woken", "listens"))
        print(
            f"\n{story}: rung {1000 * (woken - began):.0f} ms after the enqueue,"
            f" listening after {1000 * (listens - began):.0f} ms, job done after {1000 * (done - began):.0f} ms"
        )


@contextmanager
def sleeper(network: Network | Sockets, events: str = "", **options: Any) -> Iterator[Sleeper]:
    """`events` are the keyspace notifications of its server."""
    with Server() as server, Redis.from_url(server.url) as redis:
        redis.config_set("notify-keyspace-events", events)
        worker = sleeping(network, reachable(server, network))
        with Service(worker, network, idle_s=IDLE_S, **options) as service:
            service.wait_for("listens")
            yield Sleeper(service, server.tcp_url)


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


def ask_for(url: str, number: int) -> tuple[float, list[int]]:
    """Enqueue with our client, and wait for the result; the seconds that the enqueue itself has taken."""

    async def ask() -> tuple[float, list[int]]:
        client = Client(url)
        try:
            await client.status("no-such-job", QUEUE)  # connects
            began = time.monotonic()
            (job,) = await client.send([work.request(number)])
            enqueued_s = time.monotonic() - began
            return enqueued_s, await job.result(f"{WOKEN_S:g}s")
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("address", "first", "ended_by"),
    [
        ("public_url", First.HELD, signal.SIGKILL),
        ("public_url", First.NOT_FOUND, signal.SIGKILL),
        ("public_url", First.BAD_GATEWAY, signal.SIGKILL),
        ("private_url", First.HELD, signal.SIGTERM),
    ],
    ids=["held", "not-found", "bad-gateway", "refused"],
)
def test_our_client_wakes_a_worker_that_was_put_to_sleep(
    network: Network | Sockets, monkeypatch: pytest.MonkeyPatch, address: str, first: First, ended_by: signal.Signals
) -> None:
    if isinstance(network, Sockets) and address == "private_url":
        pytest.skip("only what has a network of its own is woken by its private address")
    with sleeper(network, first=first, ended_by=ended_by) as slept:
        slept.asleep()
        monkeypatch.setenv("RUNTIME_WAKE_URL", f"{getattr(slept.service, address)}/wake")
        began = time.monotonic()
        enqueued_s, (number, pid) = ask_for(slept.redis_url, 7)
        slept.tell(f"our client, {address} {first.value}", began, time.monotonic())
        assert enqueued_s < 0.5, "the caller does not wait for the worker"
        assert (number, pid) == (7, slept.service.worker.pid)
        assert len(slept.service.moments("started")) == 2


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_SLEEP") != "all", reason="minutes: for `all`")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("change", ["quiet", "asleep"])
def test_no_job_is_lost_whenever_it_comes_beside_a_change(
    network: Network | Sockets, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Many jobs, each within half a second of its falling quiet, or of its end by the platform."""
    with sleeper(network) as slept:
        slept.asleep()
        monkeypatch.setenv("RUNTIME_WAKE_URL", f"{slept.service.public_url}/wake")
        for run in range(RUNS):
            _, (number, _) = ask_for(slept.redis_url, run)
            assert number == run
            quiets = len(slept.service.worker.events("WORKER_QUIET"))
            beside_s = random.uniform(-0.3, 0.5)
            if change == "quiet":
                time.sleep(SLEEP_AFTER_S + beside_s)
            else:
                slept.service.worker.wait_for("WORKER_QUIET", quiets + 1)
                time.sleep(IDLE_S + beside_s)
            began = time.monotonic()
            _, (number, _) = ask_for(slept.redis_url, -run)
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
