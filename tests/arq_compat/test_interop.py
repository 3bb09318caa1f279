"""Stock arq on one side of the queue, ours on the other; and both on the same side."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus
from arq.worker import JobExecutionFailed

from runtime import Client, JobFailed, handler
from tests.arq_compat.applications import double
from tests.processes import Worker, enqueue, wait_until

T = TypeVar("T")


def with_arq(url: str, work: Callable[[ArqRedis], Awaitable[T]]) -> T:
    """Run `work` with a client of stock arq."""

    async def session() -> T:
        pool = await create_pool(RedisSettings.from_dsn(url))
        try:
            return await work(pool)
        finally:
            await pool.aclose()
            await pool.connection_pool.disconnect()

    return asyncio.run(session())


@contextmanager
def our_worker(url: str, notes: Path, **settings: Any) -> Iterator[Worker]:
    settings = {"RUNTIME_TEST_NOTES": notes, "WORKER_CONCURRENCY": 5, **settings}
    with Worker("tests.arq_compat.applications", redis=url, **settings) as worker:
        yield worker.up()


@contextmanager
def stock_worker(url: str, notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.arq_compat.applications", url, str(notes), "10"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_job_of_stock_arq_is_run_by_us_and_read_by_stock_arq(tcp_url: str, tmp_path: Path) -> None:
    async def produce(pool: ArqRedis) -> None:
        job = await pool.enqueue_job(
            "shapes", 1, "é", [None, {"a": 2.5}], when=datetime(2026, 1, 2, tzinfo=UTC), b=b"\0"
        )
        assert job is not None
        found = await job.result(timeout=20, poll_delay=0.02)
        assert found["args"] == [1, "é", [None, {"a": 2.5}]]
        assert found["kwargs"] == {"when": datetime(2026, 1, 2, tzinfo=UTC), "b": b"\0"}
        assert found["try"] == 1
        assert abs((found["at"] - datetime.now(UTC)).total_seconds()) < 60
        assert await job.status() is JobStatus.complete
        info = await job.result_info()
        assert info is not None
        assert (info.function, info.success, info.job_try, info.queue_name) == ("shapes", True, 1, "arq:queue")
        assert info.args == (1, "é", [None, {"a": 2.5}])
        assert info.enqueue_time <= info.finish_time
        assert [one.job_id for one in await pool.all_job_results()] == [job.job_id]

    with our_worker(tcp_url, tmp_path / "notes"):
        with_arq(tcp_url, produce)


def test_stock_arq_sees_our_jobs_wait_run_and_end(tcp_url: str, tmp_path: Path) -> None:
    (job_id,) = enqueue(tcp_url, double.request(4))
    (later,) = enqueue(tcp_url, double.options(delay="1h").request(4))

    async def look(pool: ArqRedis) -> list[JobStatus]:
        info = await Job(job_id, pool).info()
        assert info is not None
        assert (info.function, info.args) == ("double", (4,))
        assert {one.job_id for one in await pool.queued_jobs()} == {job_id, later}
        assert await pool.enqueue_job("double", 5, _job_id=job_id) is None, "the id is taken"
        return [await Job(one, pool).status() for one in (job_id, later)]

    assert with_arq(tcp_url, look) == [JobStatus.queued, JobStatus.deferred]
    with our_worker(tcp_url, tmp_path / "notes"):
        assert with_arq(tcp_url, lambda pool: Job(job_id, pool).result(timeout=20, poll_delay=0.02)) == 8


def test_failures_raise_in_stock_arq_what_it_can_read(tcp_url: str, tmp_path: Path) -> None:
    async def produce(pool: ArqRedis) -> None:
        for kind, error, text in (
            ("builtin", ValueError, "^a text$"),
            ("own", JobExecutionFailed, "Odd: one and two$"),
        ):
            job = await pool.enqueue_job("fail", kind)
            assert job is not None
            with pytest.raises(error, match=text):
                await job.result(timeout=20, poll_delay=0.02)
            info = await job.result_info()
            assert info is not None
            assert not info.success
        unknown = await pool.enqueue_job("double", "not a number")
        assert unknown is not None
        with pytest.raises(JobExecutionFailed, match=r"runtime\.Invalid: argument 'n'"):
            await unknown.result(timeout=20, poll_delay=0.02)

    with our_worker(tcp_url, tmp_path / "notes"):
        with_arq(tcp_url, produce)


def test_arqs_retry_and_deferral_are_kept(tcp_url: str, tmp_path: Path) -> None:
    async def produce(pool: ArqRedis) -> None:
        again = await pool.enqueue_job("retry_as_arq")
        later = await pool.enqueue_job("double", 3, _defer_by=1.5)
        third = await pool.enqueue_job("shapes", _job_try=3)
        assert again is not None
        assert later is not None
        assert third is not None
        assert await again.result(timeout=20, poll_delay=0.02) == 3
        assert await later.result(timeout=20, poll_delay=0.02) == 6
        info = await later.result_info()
        assert info is not None
        assert (info.start_time - info.enqueue_time).total_seconds() >= 1.4
        assert (await third.result(timeout=20, poll_delay=0.02))["try"] == 3

    with our_worker(tcp_url, tmp_path / "notes"):
        with_arq(tcp_url, produce)


def test_our_client_is_served_by_a_stock_worker(tcp_url: str, tmp_path: Path) -> None:
    @handler
    async def when(ctx: object, at: datetime) -> datetime:
        raise AssertionError("run by the stock worker")

    async def produce() -> None:
        client = Client(tcp_url)
        try:
            (number,) = await client.send([double.request(21)])
            (moment,) = await client.send([when.request(datetime(2026, 1, 2, 3, tzinfo=UTC))])
            wrong = await client.enqueue("double", ["two", 3])
            assert await number.result("20s") == 42
            assert await moment.result("20s") == datetime(2026, 1, 2, 3, tzinfo=UTC)
            with pytest.raises(JobFailed) as failure:
                await wrong.result("20s")
            assert failure.value.error == "TypeError"
            assert [await job.status() for job in (number, wrong)] == ["completed", "failed"]
        finally:
            await client.close()

    with stock_worker(tcp_url, tmp_path / "notes"):
        asyncio.run(produce())


def test_mixed_workers_on_one_queue_run_every_job_once(tcp_url: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    count = 1000

    async def produce(pool: ArqRedis) -> list[str]:
        jobs = [await pool.enqueue_job("double", n) for n in range(count // 2)]
        return [job.job_id for job in jobs if job is not None]

    with stock_worker(tcp_url, notes), our_worker(tcp_url, notes):
        ids = with_arq(tcp_url, produce) + enqueue(tcp_url, *(double.request(n) for n in range(count // 2)))
        wait_until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= count)
        assert sorted(with_arq(tcp_url, lambda pool: gather_results(pool, ids))) == sorted(
            2 * n for n in range(count // 2) for _ in range(2)
        )
    runs = [line.split() for line in notes.read_text().splitlines()]
    assert Counter(job_id for job_id, _ in runs) == Counter(ids), "every job once"
    by_whom = Counter(who for _, who in runs)
    assert set(by_whom) == {"ours", "stock"}, by_whom


async def gather_results(pool: ArqRedis, ids: list[str]) -> list[Any]:
    return [await Job(job_id, pool).result(timeout=20, poll_delay=0.05) for job_id in ids]
