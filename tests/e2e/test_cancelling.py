"""A cancel is acted on at once, whatever its job is doing; the handler can read why; and how far it was is seen.

The lease is so long that no beat of the keeper comes in time to be what has helped.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import Client, Job, JobCancelled, JobFailed, Progress, Request
from runtime.adapters.redis import keys
from tests.e2e import cancelled
from tests.e2e.cancelled import QUEUE, WITNESS
from tests.e2e.test_documents import port_of
from tests.http.asking import TOKEN, Site
from tests.processes import Worker, command, wait_until

SOON_S = 3.0
"""At once, on a machine that is busy with other things. It takes 10 ms."""
LEASE = "60s"


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    path = tmp_path / "witness"
    path.touch()
    return path


def serving(redis: str, witness: Path, **settings: Any) -> Worker:
    settings = {"WORKER_CONCURRENCY": 8, "RUNTIME_LEASE": LEASE, WITNESS: witness, **settings}
    return Worker("tests.e2e.cancelled", redis=redis, arguments=("-Q", QUEUE), **settings)


class Desk:
    def __init__(self, client: Client, witness: Path) -> None:
        self.client = client
        self._witness = witness

    async def add(self, request: Request[Any]) -> Job[Any]:
        (job,) = await self.client.send([request])
        return job

    def noted(self) -> list[str]:
        return self._witness.read_text().splitlines()

    async def until(self, fact: Callable[[], Awaitable[Any] | Any], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while True:
            found = fact()
            if await found if isinstance(found, Awaitable) else found:
                return
            assert time.monotonic() < end, f"it did not come about; {self.noted()}"
            await asyncio.sleep(0.01)

    async def began(self, request: Request[Any]) -> Job[Any]:
        count = len(self.noted())
        job = await self.add(request)
        await self.until(lambda: f"{request.handler} began" in self.noted()[count:])
        return job

    async def is_(self, job: Job[Any], status: str) -> None:
        async def fact() -> bool:
            return await job.status() == status

        await self.until(fact)

    async def cancels(self, job: Job[Any], said: str) -> float:
        """How long it took until who waits for its result knew of its end."""
        began = time.monotonic()
        assert await job.cancel() == said
        with pytest.raises(JobCancelled):
            await job.result("20s")
        assert await job.status() == "cancelled"
        return time.monotonic() - began


def play(url: str, witness: Path, test: Callable[[Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        client = Client(url)
        try:
            await test(Desk(client, witness))
        finally:
            await client.close()

    asyncio.run(run())


@pytest.fixture
def worker(redis_url: str, witness: Path) -> Any:
    with serving(redis_url, witness).up() as worker:
        wait_until(lambda: counted(redis_url) == 1, what="it is within call")
        yield worker


def counted(url: str) -> int:
    from redis import Redis

    with Redis.from_url(url) as redis:
        return int(redis.execute_command("PUBSUB", "NUMSUB", keys.here(QUEUE))[1])


# -- at once


def test_a_job_that_runs_is_cancelled_at_once_and_told_why(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        for _ in range(5):
            job = await desk.began(cancelled.runs.request())
            assert await desk.cancels(job, "asked") < SOON_S
        assert desk.noted() == 5 * ["runs began", "runs user", "runs finally user"]

    play(redis_url, witness, test)


def test_a_job_that_has_only_just_been_claimed_is_cancelled_at_once(
    redis_url: str, witness: Path, worker: Worker
) -> None:
    """The word that it is to stop may reach the worker before the claim's answer does."""

    async def test(desk: Desk) -> None:
        for _ in range(30):
            job = await desk.add(cancelled.runs.request())
            while (said := await job.status()) != "active":
                assert said == "waiting"
            began = time.monotonic()
            assert await job.cancel() == "asked"
            with pytest.raises(JobCancelled):
                await job.result("20s")
            assert time.monotonic() - began < SOON_S

    play(redis_url, witness, test)


@pytest.mark.parametrize("waits", [cancelled.needs_a_permit, cancelled.needs_a_token])
def test_a_job_that_waits_for_the_limit_of_its_handler_is_cancelled_at_once(
    redis_url: str, witness: Path, worker: Worker, waits: Any
) -> None:
    async def test(desk: Desk) -> None:
        first = await desk.began(waits.request())
        second = await desk.add(waits.request())

        async def in_line() -> bool:
            waiting: Any = await desk.client.ask(lambda redis: redis.exists("rt:{limit}:waiting:alone"))
            return bool(waiting) or await second.status() == "deferred"

        await desk.until(in_line)
        held = await second.status() == "active"
        assert held is (waits is cancelled.needs_a_permit), "for a token that comes in an hour it is snoozed"
        assert await desk.cancels(second, "asked" if held else "cancelled") < SOON_S
        assert await desk.cancels(first, "asked") < SOON_S
        assert desk.noted().count(f"{waits.spec.name} began") == 1

    play(redis_url, witness, test)


def test_a_job_that_waits_within_its_run_is_cancelled_at_once(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        limited = await desk.began(cancelled.waits_for_a_token.request())
        uses = await desk.began(cancelled.uses_the_pool.request())
        await desk.until(lambda: "uses_the_pool has it" in desk.noted())
        waits = await desk.began(cancelled.uses_the_pool.request())
        for job in (limited, waits, uses):
            assert await desk.cancels(job, "asked") < SOON_S
        assert desk.noted().count("uses_the_pool has it") == 1
        assert desk.noted().count("uses_the_pool user") == 2
        assert "waits_for_a_token user" in desk.noted()

    play(redis_url, witness, test)


def test_a_job_that_is_put_off_is_cancelled_at_once(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        snoozed = await desk.began(cancelled.snoozes.request())
        retried = await desk.began(cancelled.is_tried_again.request())
        deferred = await desk.add(cancelled.runs.options(delay="10m").request())
        unknown = await desk.client.enqueue("nobody_knows_it", options={"queue": QUEUE})
        for job in (snoozed, retried, deferred, unknown):
            await desk.is_(job, "deferred")
            assert await desk.cancels(job, "cancelled") < SOON_S

    play(redis_url, witness, test)


def test_a_job_that_waits_for_a_worker_is_cancelled_at_once(redis_url: str, witness: Path) -> None:
    async def test(desk: Desk) -> None:
        assert await desk.cancels(await desk.add(cancelled.runs.request()), "cancelled") < SOON_S

    play(redis_url, witness, test)


def test_of_a_dead_letter_there_is_nothing_to_cancel(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.began(cancelled.dies.request())
        await desk.is_(job, "dead")
        assert await job.cancel() == "gone"
        assert await job.status() == "dead"
        done = await asyncio.to_thread(command, "job", job.id, "-Q", QUEUE, "--cancel", REDIS_URL=redis_url)
        assert (done.returncode, done.stdout) == (1, f"{job.id}: it has ended, there is nothing to cancel: dead\n")

    play(redis_url, witness, test)


def test_a_handler_that_returns_all_the_same_has_done_its_work(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.began(cancelled.has_done_its_work.request())
        began = time.monotonic()
        assert await job.cancel() == "asked"
        assert await job.result("20s") == "done"
        assert time.monotonic() - began < SOON_S
        assert desk.noted()[1:] == ["has_done_its_work user"]

    play(redis_url, witness, test)


def test_a_handler_that_swallows_every_cancel_is_told_at_once_and_given_up_after_10_s(
    redis_url: str, witness: Path, worker: Worker
) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.began(cancelled.never_stops.request())
        began = time.monotonic()
        assert await job.cancel() == "asked"
        await desk.until(lambda: "never_stops user" in desk.noted())
        assert time.monotonic() - began < SOON_S
        with pytest.raises(JobFailed, match="swallows"):
            await job.result("30s")
        assert time.monotonic() - began < 10 + SOON_S
        assert await job.status() == "dead"

    play(redis_url, witness, test)


def test_a_worker_that_drains_still_cancels_at_once(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.began(cancelled.runs.request())
        other = await desk.began(cancelled.runs.request())
        worker.send(signal.SIGTERM)
        await desk.until(lambda: counted(redis_url) == 0)

        async def within_call() -> bool:
            channels: Any = await desk.client.ask(lambda redis: redis.pubsub_channels("rt:stop:*"))
            return bool(channels)

        await desk.until(within_call)
        for one in (job, other):
            assert await desk.cancels(one, "asked") < SOON_S

    play(redis_url, witness, test)
    assert worker.wait() == 0


# -- why


def test_a_handler_can_read_why_it_is_cancelled(redis_url: str, witness: Path, worker: Worker) -> None:
    async def test(desk: Desk) -> None:
        late = await desk.began(cancelled.takes_too_long.request())
        with pytest.raises(JobFailed):
            await late.result("20s")
        assert desk.noted()[-2:] == ["takes_too_long timeout", "takes_too_long finally timeout"]

        stopped = await desk.began(cancelled.runs.request())
        worker.send(signal.SIGTERM)
        await asyncio.to_thread(worker.wait_for, "WORKER_DRAINING")
        worker.send(signal.SIGTERM)
        await asyncio.to_thread(worker.wait)
        assert await stopped.status() == "waiting", "it has its place again"
        assert desk.noted()[-2:] == ["runs shutdown", "runs finally shutdown"]

    play(redis_url, witness, test)


def test_a_run_whose_lease_is_lost_reads_that(redis_url: str, witness: Path) -> None:
    async def test(desk: Desk) -> None:
        lost = await desk.began(cancelled.runs.request())
        await desk.client.ask(lambda redis: redis.set(keys.IN_PROGRESS + lost.id, "somebody-else", px=600_000))
        await desk.until(lambda: "runs finally lost lease" in desk.noted())
        assert "runs lost lease" in desk.noted()

    with serving(redis_url, witness, RUNTIME_LEASE="2s").up():
        play(redis_url, witness, test)


# -- how far


def test_how_far_a_job_is_shows_while_it_runs(redis_url: str, witness: Path) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.began(cancelled.tells.request(3000))

        async def at_the_last() -> bool:
            progress = await job.progress()
            return progress is not None and progress.done == 3000

        await desk.until(at_the_last)
        progress = await job.progress()
        assert isinstance(progress, Progress)
        assert (progress.done, progress.total) == (3000, 3000)
        assert progress.note.startswith("page 3000 for ")
        assert "abcdefghijklmnop" not in progress.note
        assert abs(progress.at.timestamp() - time.time()) < 60

        shown = json.loads((await asyncio.to_thread(command, "job", job.id, "-Q", QUEUE, REDIS_URL=redis_url)).stdout)
        expected = {"done": 3000, "total": 3000, "note": progress.note}
        assert {name: shown["progress"][name] for name in expected} == expected
        found = (await asyncio.to_thread(Site(port_of(site)).ask, "GET", f"/jobs/{job.id}")).json
        assert found["progress"] == shown["progress"]
        assert await desk.cancels(job, "asked") < SOON_S
        assert await job.progress() is None

    with serving(redis_url, witness, RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN).up() as site:
        play(redis_url, witness, test)


def test_who_follows_a_job_sees_each_of_its_states_and_how_far_it_is(
    redis_url: str, witness: Path, worker: Worker
) -> None:
    async def test(desk: Desk) -> None:
        job = await desk.add(cancelled.tells.request(10))
        seen: list[str] = []
        async for event in job.events("60s"):
            seen.append(f"{event.status} {event.progress.done if event.progress else ''}")
            if seen[-1] == "active 10":
                await job.cancel()
        assert seen[-2:] == ["active 10", "cancelled "]
        assert {one.split()[0] for one in seen} <= {"waiting", "active", "cancelled"}

    play(redis_url, witness, test)
