"""No lost wake-up: a job that comes at each step of going quiet, with the steps held still in the worker's connection.

The worker says that it leaves, and then looks; the producer writes, and then counts. Whoever comes second sees the
other: before the look is taken the look finds the job, whether or not anybody rings; after that nobody is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from runtime import Client
from runtime.adapters.redis import keys, scripts
from tests.e2e.waking import Door
from tests.platform.jobs import sign
from tests.platform.restless import Restless
from tests.platform.sleeping import post
from tests.processes import wait_until
from tests.relay import Command, Relay
from tests.servers import Server

STARTED_S = 2.0
SLOW_S = 10.0
"""For a machine that is busy with other things."""


@dataclass(frozen=True)
class Step:
    """Where it is held: before the server sees it, or before the worker hears of it."""

    what: Literal["leaving", "look", "farewell"]
    reply: bool
    counted: bool
    """The server still counts the worker then, so that nobody rings."""
    found: bool
    """The look is yet to come."""

    def concerned(self, command: Command) -> bool:
        match self.what:
            case "leaving":
                return command[0] == b"UNSUBSCRIBE"
            case "look":
                return command[1:2] in ([scripts.script("outlook").sha.encode()], [scripts.script("outlook").source])
            case "farewell":
                return command[:2] == [b"HSET", keys.WORKERS.encode()] and b'"quiet"' in command[-1]

    def __str__(self) -> str:
        return f"{self.what}-{'answered' if self.reply else 'sent'}"


STEPS = [
    Step("leaving", reply=False, counted=True, found=True),
    Step("leaving", reply=True, counted=False, found=True),
    Step("look", reply=False, counted=False, found=True),
    Step("look", reply=True, counted=False, found=False),
    Step("farewell", reply=False, counted=False, found=False),
    Step("farewell", reply=True, counted=False, found=False),
]


@dataclass(frozen=True)
class Scene:
    """A worker behind a relay; a port in its place, which only remembers rings; and what the job leaves."""

    server: Server
    relay: Relay
    worker: Restless
    door: Door
    book: Path

    def produce(self) -> None:
        """Enqueue one job, and ring if nobody is awake."""

        async def add() -> None:
            client = Client(self.server.url, wake_urls=[self.door.url])
            try:
                await client.send([sign.request(str(self.book), "job")])
            finally:
                await client.close()

        asyncio.run(add())

    def signed(self) -> list[float]:
        return [float(line.split()[1]) for line in self.book.read_text().splitlines()] if self.book.exists() else []

    def ring(self) -> None:
        (listening,) = self.worker.wait_for("HTTP_LISTENING")
        post(f"http://127.0.0.1:{listening['message'].split()[-1]}/wake")


@pytest.fixture
def scene(server: Server, redis_url: str, tmp_path: Path) -> Iterator[Scene]:
    with (
        Relay(redis_url.removeprefix("unix://")) as relay,
        Restless("tests.platform.jobs", redis=relay.url, RUNTIME_HTTP="on", PORT=0, WORKER_ID="restless") as worker,
        Door() as door,
    ):
        yield Scene(server, relay, worker, door, tmp_path / "book")


@pytest.mark.parametrize("bell", ["at-once", "late"])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_job_that_comes_at_this_step_is_done(scene: Scene, step: Step, bell: str) -> None:
    held = scene.relay.hold(step.concerned, reply=step.reply)
    scene.worker.up()
    assert held.there.wait(SLOW_S)
    scene.produce()
    assert len(scene.door.rung_at) == (0 if step.counted else 1)
    if step.found:
        began = time.time()
        held.let_go()  # and nobody rings
    else:
        if bell == "at-once":
            scene.ring()
        held.let_go()
        if bell == "late":
            scene.worker.wait_for("WORKER_QUIET")
            time.sleep(0.3)
            assert not scene.signed(), "it can know of it from nobody"
            scene.ring()
        began = time.time()
    wait_until(scene.signed, SLOW_S, "the job is done")
    scene.worker.wait_for("WORKER_QUIET", 1 if step.found or bell == "at-once" else 2)
    assert len(scene.signed()) == 1
    assert scene.signed()[0] - began < STARTED_S
