"""Stock arq's `Job.abort` and our `Job.cancel`, of jobs of our workers in every state; and the ids are not poisoned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus

from runtime import Client, JobCancelled
from runtime.adapters.redis import keys
from tests.arq_compat import test_interop
from tests.arq_compat.test_interop import stock_worker
from tests.processes import Worker, command

ID = "the-id"
QUEUE = "arq:queue"
SOON_S = 20.0
LEASE_S = 2
BEAT_S = LEASE_S / 4
POLL_S = 0.5
"""Of stock arq's worker, when it looks for flags."""
PATIENCE_S = 3.0
"""With a machine that is busy with other things."""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


def our_worker(url: str, notes: Path) -> AbstractContextManager[Worker]:
    return test_interop.our_worker(url, notes, RUNTIME_LEASE=f"{LEASE_S}s")


class Desk:
    """Both clients of one queue, and what its workers have noted."""

    def __init__(self, arq: ArqRedis, ours: Client, notes: Path) -> None:
        self.arq = arq
        self.ours = ours
        self._notes = notes

    def runs(self) -> int:
        return len(self._notes.read_text().splitlines())

    async def until(self, fact: Callable[[], Any]) -> None:
        end = time.monotonic() + SOON_S
        while not await fact():
            assert time.monotonic() < end, "it did not come about"
            await asyncio.sleep(0.02)

    async def enqueue(self, how: str = "", **options: Any) -> Job:
        job = await self.arq.enqueue_job("act", how, _job_id=ID, **options)
        assert job is not None, "the id is taken"
        return job

    async def until_run(self, count: int = 1) -> None:
        async def ran() -> bool:
            return self.runs() >= count

        await self.until(ran)

    async def until_put_off(self) -> None:
        """Until it has run, and waits for another time."""
        await self.until_run()

        async def deferred() -> bool:
            return await self.ours.status(ID, QUEUE) == "deferred"

        await self.until(deferred)

    async def abort(self, timeout: float | None = SOON_S) -> bool:
        return await Job(ID, self.arq).abort(timeout=timeout, poll_delay=0.02)

    async def is_cancelled(self) -> None:
        """To stock arq and to us; and nothing else is left of it, to be taken for a later job's."""
        with pytest.raises(asyncio.CancelledError):
            await Job(ID, self.arq).result(timeout=SOON_S, poll_delay=0.02)
        info = await Job(ID, self.arq).result_info()
        assert info is not None
        assert (info.success, info.function, info.queue_name, info.job_id) == (False, "act", QUEUE, ID)
        with pytest.raises(JobCancelled):
            await self.ours.job(ID).result("20s")
        assert await self.ours.status(ID, QUEUE) == "cancelled"
        prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.LETTER)
        assert not await self.arq.exists(*(prefix + ID for prefix in prefixes))
        assert await self.arq.zscore(QUEUE, ID) is None
        assert await self.arq.zscore(keys.ABORT, ID) is None

    async def runs_again(self) -> None:
        """Once its result is gone, a new job of the id is like any other."""
        await self.arq.delete(keys.RESULT + ID)
        before = self.runs()
        job = await self.enqueue()
        assert await job.result(timeout=SOON_S, poll_delay=0.02) == "ran"
        assert self.runs() == before + 1


@asynccontextmanager
async def desk(url: str, notes: Path) -> AsyncIterator[Desk]:
    pool = await create_pool(RedisSettings.from_dsn(url))
    ours = Client(url)
    try:
        yield Desk(pool, ours, notes)
    finally:
        await ours.close()
        await pool.aclose()
        await pool.connection_pool.disconnect()


# How a job gets into each state. A worker runs; it is stopped for those who wait to be claimed.


async def _deferred(it: Desk) -> None:
    await it.enqueue(_defer_by=3600)


async def _running(it: Desk) -> None:
    await it.enqueue("sleep")
    await it.until_run()


async def _retrying(it: Desk) -> None:
    await it.enqueue("retry")
    await it.until_put_off()


async def _snoozed(it: Desk) -> None:
    await it.enqueue("snooze")
    await it.until_put_off()


STATES = [_deferred, _running, _retrying, _snoozed]


@pytest.mark.parametrize("state", STATES)
def test_stock_arq_aborts_a_job_of_ours(tcp_url: str, notes: Path, state: Any) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await state(it)
            runs = it.runs()
            began = time.monotonic()
            assert await it.abort() is True
            assert time.monotonic() - began < BEAT_S + PATIENCE_S, "its keeper sees the flag at its next beat"
            await it.is_cancelled()
            assert it.runs() == runs
            await it.runs_again()

    with our_worker(tcp_url, notes):
        asyncio.run(play())


@pytest.mark.parametrize("state", STATES)
def test_our_client_cancels_a_job_of_ours(tcp_url: str, notes: Path, state: Any) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await state(it)
            runs = it.runs()
            said = await it.ours.job(ID).cancel()
            assert said == ("asked" if state is _running else "cancelled")
            await it.is_cancelled()
            assert it.runs() == runs
            assert await it.ours.job(ID).cancel() == "gone"
            await it.runs_again()

    with our_worker(tcp_url, notes):
        asyncio.run(play())


def test_a_job_that_waits_for_a_worker_is_aborted_before_it_starts(tcp_url: str, notes: Path) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await it.enqueue("sleep")
            with pytest.raises(asyncio.TimeoutError):
                await it.abort(timeout=0)
            with our_worker(tcp_url, notes):
                await it.is_cancelled()
                assert it.runs() == 0
                await it.runs_again()

    asyncio.run(play())


def test_a_job_that_waits_for_a_worker_is_cancelled_without_one(tcp_url: str, notes: Path) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await it.enqueue()
            assert await it.ours.cancel(ID) == "cancelled"
            await it.is_cancelled()
            with our_worker(tcp_url, notes):
                await it.runs_again()

    asyncio.run(play())


@pytest.mark.parametrize("state", STATES)
def test_a_job_aborted_twice_is_cancelled_once(tcp_url: str, notes: Path, state: Any) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await state(it)
            assert all(await asyncio.gather(it.abort(), it.abort()))
            await it.is_cancelled()
            assert await it.arq.execute_command("HGET", keys.count(QUEUE), "failed") == b"1"  # type: ignore[no-untyped-call]

    with our_worker(tcp_url, notes):
        asyncio.run(play())


@pytest.mark.parametrize("ahead_s", [-10, 10])
@pytest.mark.parametrize("state", STATES)
def test_an_abort_from_another_clock_is_obeyed(
    tcp_url: str, notes: Path, monkeypatch: pytest.MonkeyPatch, state: Any, ahead_s: int
) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await state(it)
            monkeypatch.setattr("arq.jobs.timestamp_ms", lambda: round(1000 * (time.time() + ahead_s)))
            assert await it.abort() is True
            await it.is_cancelled()

    with our_worker(tcp_url, notes):
        asyncio.run(play())


@pytest.mark.parametrize("known", [True, False], ids=["ended", "unknown"])
def test_an_abort_of_no_job_does_not_poison_its_id(tcp_url: str, notes: Path, known: bool) -> None:
    """Stock arq leaves a flag then. It is older than the next job: by 5 s here, or that one is enqueued by us."""

    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            if known:
                await (await it.enqueue()).result(timeout=SOON_S, poll_delay=0.02)
            assert await it.abort() is False
            assert await it.arq.zscore(keys.ABORT, ID) is not None
            await it.arq.delete(keys.RESULT + ID)
            job = await it.ours.enqueue("act", job_id=ID)
            assert await job.result("20s") == "ran"
            assert await it.arq.zscore(keys.ABORT, ID) is None

            await it.arq.zadd(keys.ABORT, {ID: time.time() * 1000 - 6000})
            await it.runs_again()
            assert await it.arq.zscore(keys.ABORT, ID) is None

    with our_worker(tcp_url, notes):
        asyncio.run(play())


def test_a_stale_flag_does_not_stop_a_run_but_a_new_one_does(tcp_url: str, notes: Path) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await it.arq.zadd(keys.ABORT, {ID: time.time() * 1000 - 6000})
            job = await it.enqueue("sleep")
            await it.until_run()
            await asyncio.sleep(2 * LEASE_S)  # its keeper has seen the flag, and more than once
            assert await job.status() is JobStatus.in_progress
            assert await it.abort() is True
            await it.is_cancelled()

    with our_worker(tcp_url, notes):
        asyncio.run(play())


def test_our_client_asks_a_stock_worker_to_stop_a_job(tcp_url: str, notes: Path) -> None:
    async def play() -> None:
        async with desk(tcp_url, notes) as it:
            await it.enqueue("sleep")
            await it.until_run()
            began = time.monotonic()
            assert await it.ours.cancel(ID) == "asked"
            await it.is_cancelled()
            assert time.monotonic() - began < POLL_S + PATIENCE_S

    with stock_worker(tcp_url, notes):
        asyncio.run(play())


def test_the_command_says_what_became_of_it(tcp_url: str, notes: Path) -> None:
    async def enqueue(how: str, **options: Any) -> None:
        async with desk(tcp_url, notes) as it:
            await it.enqueue(how, **options)
            if not options:
                await it.until_run()

    def cancel() -> tuple[int, str]:
        done = command("job", ID, "--cancel", REDIS_URL=tcp_url)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert cancel() == (1, f"{ID}: there is no such job in the queues that are known: it has ended, or never was\n")
    asyncio.run(enqueue("", _defer_by=60))
    assert cancel() == (0, f"{ID}: cancelled; it had not been running\n")
    asyncio.run(_forget(tcp_url, notes))
    with our_worker(tcp_url, notes):
        asyncio.run(enqueue("sleep"))
        assert cancel() == (0, f"{ID}: it is running; its worker has been asked to stop it\n")


async def _forget(url: str, notes: Path) -> None:
    async with desk(url, notes) as it:
        await it.arq.delete(keys.RESULT + ID)
