"""Every option of stock arq's `enqueue_job` at our worker, ours at a stock worker, and what each side's handles say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus
from arq.worker import JobExecutionFailed

from runtime import Client, JobFailed, OptionInvalid, ResultUnknown
from runtime.adapters.redis import keys
from tests.arq_compat.applications import act, double
from tests.arq_compat.test_interop import our_worker, stock_worker

QUEUE = "arq:queue"
SOON_S = 20.0


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[tuple[ArqRedis, Client]]:
    pool = await create_pool(RedisSettings.from_dsn(url))
    client = Client(url)
    try:
        yield pool, client
    finally:
        await client.close()
        await pool.aclose()
        await pool.connection_pool.disconnect()


def play(url: str, work: Callable[[ArqRedis, Client], Awaitable[None]]) -> None:
    async def session() -> None:
        async with clients(url) as (pool, client):
            await work(pool, client)

    asyncio.run(session())


async def until(fact: Callable[[], Awaitable[object]]) -> None:
    end = time.monotonic() + SOON_S
    while not await fact():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.02)


async def ended(job: Job) -> Any:
    return await job.result(timeout=SOON_S, poll_delay=0.02)


async def waited_s(job: Job) -> float:
    """From its enqueue to its start."""
    info = await job.result_info()
    assert info is not None
    return (info.start_time - info.enqueue_time).total_seconds()


# Stock arq's client, our worker.


@pytest.mark.parametrize(
    ("options", "least_s"),
    [
        ({"_defer_by": 1}, 1),
        ({"_defer_by": timedelta(seconds=1)}, 1),
        ({"_defer_by": 0}, 0),
        ({"_defer_by": -3600}, 0),
        ({"_expires": 60}, 0),
        ({"_expires": timedelta(minutes=1), "_defer_by": 1}, 1),
        ({"_job_id": "named"}, 0),
        ({"_job_try": 1}, 0),
        ({"_job_try": 0}, 0),
    ],
    ids=str,
)
def test_stock_options_are_kept(tcp_url: str, tmp_path: Path, options: dict[str, Any], least_s: float) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        job = await pool.enqueue_job("double", 4, **options)
        assert job is not None
        assert await ended(job) == 8
        waited = await waited_s(job)
        assert least_s - 0.05 <= waited < least_s + 10
        if "_job_id" in options:
            assert job.job_id == "named"
            assert await pool.enqueue_job("double", 4, _job_id="named") is None, "its result is kept"

    with our_worker(tcp_url, tmp_path / "notes"):
        play(tcp_url, work)


@pytest.mark.parametrize("zone", [UTC, None], ids=["aware", "naive"])
@pytest.mark.parametrize("in_s", [1, -3600])
def test_stock_defer_until_is_kept(tcp_url: str, tmp_path: Path, zone: Any, in_s: float) -> None:
    """A naive one is local time to stock arq (`to_unix_ms`), at both ends."""

    async def work(pool: ArqRedis, client: Client) -> None:
        at = datetime.now(zone) + timedelta(seconds=in_s)
        job = await pool.enqueue_job("double", 4, _defer_until=at)
        assert job is not None
        score = await pool.zscore(QUEUE, job.job_id)
        assert await ended(job) == 8
        info = await job.result_info()
        assert info is not None
        if score is not None and in_s > 0:
            assert info.start_time.timestamp() * 1000 >= score - 5

    with our_worker(tcp_url, tmp_path / "notes"):
        play(tcp_url, work)


def test_g12_a22_a_stock_job_deferred_to_more_than_a_day_ago_is_a_letter_that_says_so(
    tcp_url: str, tmp_path: Path
) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        odd: dict[str, dict[str, Any]] = {
            "epoch": {"_defer_until": datetime(1970, 1, 2, tzinfo=UTC)},
            "expired": {"_expires": -1},
        }
        for name, options in odd.items():
            with pytest.raises(Exception, match="invalid expire"):
                await pool.enqueue_job("double", 4, _job_id=name, **options)
            assert await pool.zscore(QUEUE, name) is not None, "stock arq has left the id without a body"

            async def buried(name: str = name) -> bool:
                return await client.status(name, QUEUE) == "dead"

            await until(buried)
            with pytest.raises(JobExecutionFailed, match="the body is missing"):
                await ended(Job(name, pool))
        good = await pool.enqueue_job("double", 4)
        assert good is not None
        assert await ended(good) == 8

    with our_worker(tcp_url, tmp_path / "notes"):
        play(tcp_url, work)


def test_a_stock_job_that_expires_before_it_is_claimed_is_not_run(tcp_url: str, tmp_path: Path) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        job = await pool.enqueue_job("double", 4, _expires=0.05)
        assert job is not None
        await asyncio.sleep(0.2)
        with (
            our_worker(tcp_url, tmp_path / "notes"),
            pytest.raises(JobExecutionFailed, match="the body is missing: it expired"),
        ):
            await ended(job)
        assert not (tmp_path / "notes").exists()

    play(tcp_url, work)


@pytest.mark.parametrize("job_try", [2, 3, 4, 100])
def test_stock_job_try_counts_from_there(tcp_url: str, tmp_path: Path, job_try: int) -> None:
    """The handler has three attempts, as a handler has that says nothing."""

    async def work(pool: ArqRedis, client: Client) -> None:
        job = await pool.enqueue_job("shapes", _job_try=job_try)
        assert job is not None
        if job_try <= 3:
            assert (await ended(job))["try"] == job_try
        else:
            with pytest.raises(JobExecutionFailed, match=f"Exhausted: started {job_try} times"):
                await ended(job)
            assert await client.status(job.job_id, QUEUE) == "dead"
        info = await job.result_info()
        assert info is not None
        assert info.job_try == job_try

    with our_worker(tcp_url, tmp_path / "notes"):
        play(tcp_url, work)


def test_stock_handles_say_what_a_job_of_our_worker_does_in_every_state(tcp_url: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"

    async def work(pool: ArqRedis, client: Client) -> None:
        async def is_now(job: Job, status: JobStatus, how: str, *, due: bool) -> None:
            async def reached() -> bool:
                return await job.status() is status

            await until(reached)
            info = await job.info()
            assert info is not None
            assert (info.function, info.args, info.kwargs) == ("act", (how,), {})
            assert await job.result_info() is None
            assert info.score is not None
            assert (info.score <= time.time() * 1000 + 1000) is due
            assert job.job_id in {one.job_id for one in await pool.queued_jobs()}
            assert await pool.all_job_results() == []

        async def add(how: str, **options: Any) -> Job:
            job = await pool.enqueue_job("act", how, **options)
            assert job is not None
            return job

        missing = Job("never", pool)
        assert (await missing.status(), await missing.info()) == (JobStatus.not_found, None)
        waiting = await add("sleep")
        await is_now(waiting, JobStatus.queued, "sleep", due=True)
        deferred = await add("sleep", _defer_by=3600)
        await is_now(deferred, JobStatus.deferred, "sleep", due=False)
        with our_worker(tcp_url, notes):
            await is_now(waiting, JobStatus.in_progress, "sleep", due=False)
            for how in ("retry", "snooze"):
                await is_now(await add(how), JobStatus.deferred, how, due=False)
            job = await add("at once")
            assert await ended(job) == "ran"
            assert await job.status() is JobStatus.complete
            info = await job.info()
            result = await job.result_info()
            assert info is not None
            assert result is not None
            assert (info.score, result.result, result.args, result.job_try) == (None, "ran", ("at once",), 1)
            assert [one.job_id for one in await pool.all_job_results()] == [job.job_id]
            assert job.job_id not in {one.job_id for one in await pool.queued_jobs()}

    play(tcp_url, work)


# Our client, a stock worker.


def test_our_options_are_kept_by_a_stock_worker(tcp_url: str, tmp_path: Path) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        later = await client.enqueue("double", [1], options={"delay": "1s"})
        at = datetime.now(UTC) + timedelta(seconds=1)
        (moment,) = await client.send([double.options(at=at).request(2)])
        (keyed,) = await client.send([double.options(key="k", priority=9, expires="1m").request(3)])
        assert keyed.id == "double:k"
        assert [await job.result("20s") for job in (later, moment, keyed)] == [2, 4, 6]
        for job in (later, moment):
            info = await Job(job.id, pool).result_info()
            assert info is not None
            assert info.start_time >= at - timedelta(seconds=0.05)
        (again,) = await client.send([double.options(key="k").request(4)])
        assert (again.created, await again.result("20s")) == (False, 6)

    with stock_worker(tcp_url, tmp_path / "notes"):
        play(tcp_url, work)


def test_our_handles_say_what_a_job_of_a_stock_worker_does_in_every_state(tcp_url: str, tmp_path: Path) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        never = client.job("never")
        assert await never.status() == "unknown"
        with pytest.raises(ResultUnknown):
            await never.result("5s")
        (later,) = await client.send([act.options(delay="1h").request("at once")])
        waiting = await client.enqueue("act", ["sleep"])
        assert [await job.status() for job in (later, waiting)] == ["deferred", "waiting"]
        with stock_worker(tcp_url, tmp_path / "notes"):

            async def runs() -> bool:
                return await waiting.status() == "active"

            await until(runs)
            assert await waiting.cancel() == "asked"
            for job, error, status in (
                (waiting, "asyncio.exceptions.CancelledError", "cancelled"),
                (await client.enqueue("double", ["two", 3]), "TypeError", "failed"),
                (await client.enqueue("nobody_knows"), "arq.worker.JobExecutionFailed", "failed"),
            ):
                with pytest.raises(JobFailed) as failure:
                    await job.result("20s")
                assert (failure.value.error, await job.status()) == (error, status)
            done = await client.enqueue("double", [4])
            assert (await done.result("20s"), await done.status()) == (8, "completed")

    play(tcp_url, work)


@pytest.mark.parametrize("job_id", ["", "half \ud800", "x" * 100_000], ids=["empty", "no Unicode", "long"])
def test_k4_4_our_client_refuses_ids_that_would_trouble_others(tcp_url: str, job_id: str) -> None:
    async def work(pool: ArqRedis, client: Client) -> None:
        with pytest.raises(OptionInvalid):
            await client.enqueue("double", [1], job_id=job_id)
        assert not await pool.exists(QUEUE, keys.mark(QUEUE))

    play(tcp_url, work)
