"""A real worker on the platform, and what the stories of its sleep have in common."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit

from redis import Redis

from runtime import Client
from runtime.core.errors import WaitTimedOut
from tests.platform.edge import First
from tests.platform.jobs import QUEUE, work
from tests.platform.network import Network, NoNetwork
from tests.platform.service import Service
from tests.platform.sockets import Sockets
from tests.processes import Worker, wait_until
from tests.servers import Server

TOKEN = "t0ken-of-the-sleep-tests-0123456789abcdef"
SLEEP_AFTER_S = 5.0
"""The least that may be set."""
IDLE_S = SLEEP_AFTER_S + 2
"""The platform's. As in earnest it is longer than the worker's, or a worker that is awake and frugal would be ended."""

WOKEN_S = 45.0
"""A start on a busy machine, and the 3 s for which the edge may know of no such application."""


def sleeping(network: Network | Sockets, redis_url: str, **more: Any) -> Worker:
    return Worker(
        "tests.platform.jobs",
        inside=network.enter(),
        redis=redis_url,
        RUNTIME_HTTP="on",
        PORT=network.port,
        RUNTIME_TOKEN=TOKEN,
        RUNTIME_SLEEP_AFTER=f"{SLEEP_AFTER_S:g}s",
        WORKER_ID="sleeper",
        **more,
    )


def reachable(server: Server, network: Network | Sockets, keepalive_s: int | None = None) -> str:
    """The server itself at this side of the wire, so that what it says to a silent socket counts too."""
    with Redis.from_url(server.url) as redis:
        redis.config_set("protected-mode", "no")
        redis.config_set("bind", " ".join({"127.0.0.1", network.outside}))
        if keepalive_s is not None:
            redis.config_set("tcp-keepalive", keepalive_s)
    return f"redis://{network.outside}:{urlsplit(server.tcp_url).port}"


def post(url: str, body: object = None) -> Any:
    """As a client of any language does: again for half a minute while nobody is there."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    def ask() -> Any:
        try:
            request = urllib.request.Request(url, data, headers, method="POST")
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 202
                return (answer.read(),)
        except HTTPError as refused:
            refused.close()
            if refused.code not in (404, 502):
                raise
        except OSError:
            pass
        return None

    return wait_until(ask)[0]


def some_network() -> Network | Sockets:
    """A network for one worker, or else a look at its sockets. RUNTIME_TEST_NETWORK=sockets looks in any case."""
    if os.environ.get("RUNTIME_TEST_NETWORK") == "sockets":
        return Sockets()
    try:
        return own_network()
    except NoNetwork:
        return Sockets()


def own_network() -> Network:
    """Raises `NoNetwork`."""
    made = Network()
    made.up()
    return made


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


def ask_for(url: str, number: int, bell: str) -> tuple[float, list[int]]:
    """Enqueue with our client, which rings there, and wait for the result; the seconds that the enqueue has taken."""

    async def ask() -> tuple[float, list[int]]:
        client = Client(url, wake_urls=[bell])
        try:
            await client.status("no-such-job", QUEUE)  # connects
            began = time.monotonic()
            (job,) = await client.send([work.request(number)])
            enqueued_s = time.monotonic() - began
            return enqueued_s, await job.result(f"{WOKEN_S:g}s")
        finally:
            await client.close()

    return asyncio.run(ask())


Address = Literal["public_url", "private_url"]


def woken(network: Network | Sockets, address: Address, first: First, ended_by: signal.Signals) -> float:
    """A worker that is put to sleep, and woken by our client: seconds from its enqueue to its result."""
    with sleeper(network, first=first, ended_by=ended_by) as slept:
        slept.asleep()
        began = time.monotonic()
        try:
            enqueued_s, (number, pid) = ask_for(slept.redis_url, 7, f"{getattr(slept.service, address)}/wake")
        except WaitTimedOut as late:
            raise AssertionError(late.message) from None
        took_s = time.monotonic() - began
        slept.tell(f"our client, {address} {first.value}", began, time.monotonic())
        assert enqueued_s < 0.5, "the caller waited for the worker"
        assert (number, pid) == (7, slept.service.worker.pid), "it was not done by the worker that was woken"
        assert len(slept.service.moments("started")) == 2, "it was not started once"
        return took_s
