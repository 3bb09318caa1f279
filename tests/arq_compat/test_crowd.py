"""Stock workers and ours on one queue, with many jobs: each runs as often as it should. The witness is not Redis."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job
from redis import Redis

from runtime.adapters.redis import keys
from tests.arq_compat import crowd
from tests.arq_compat.test_interop import with_arq
from tests.faults.ledger import Ledger
from tests.processes import Worker, enqueue, program, wait_until

QUEUE = "arq:queue"
JOBS = 1000
RETRIED = 200
"""So many of them are tried again, once or twice, on whichever side."""


def stock_worker(url: str, ledger: Ledger) -> AbstractContextManager[None]:
    return program(sys.executable, "-m", "tests.arq_compat.crowd", url, ledger.path)


@contextmanager
def our_worker(url: str, ledger: Ledger) -> Iterator[Worker]:
    settings: dict[str, Any] = {crowd.LEDGER: ledger.path, "WORKER_CONCURRENCY": 10, "LOG_LEVEL": "warn"}
    with Worker("tests.arq_compat.crowd", redis=url, **settings) as worker:
        yield worker.start()


def test_three_stock_workers_and_two_of_ours_run_a_thousand_jobs_once(tcp_url: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    retries = [1 + n % 2 if n < RETRIED else 0 for n in range(JOBS)]

    async def produce(pool: ArqRedis) -> list[str]:
        jobs = [await pool.enqueue_job("work", n) for n in retries[::2]]
        return [job.job_id for job in jobs if job is not None]

    async def first(pool: ArqRedis) -> str:
        job = await pool.enqueue_job("work", 0, _job_id="first")
        assert job is not None
        return str(await job.result(timeout=30, poll_delay=0.05))

    async def results(pool: ArqRedis) -> list[str]:
        return [await Job(job_id, pool).result(timeout=30, poll_delay=0.05) for job_id in wanted]

    with ExitStack() as crew:
        for _ in range(3):
            crew.enter_context(stock_worker(tcp_url, ledger))
        assert with_arq(tcp_url, first) == "stock"
        for _ in range(2):
            crew.enter_context(our_worker(tcp_url, ledger))
        wanted = dict(zip(with_arq(tcp_url, produce), retries[::2], strict=True))
        wanted |= dict(
            zip(enqueue(tcp_url, *(crowd.work.request(n) for n in retries[1::2])), retries[1::2], strict=True)
        )
        sides = Counter(with_arq(tcp_url, results))
        with Redis.from_url(tcp_url) as redis:
            assert not redis.exists(QUEUE, keys.later(QUEUE))
            assert not [*redis.scan_iter(keys.JOB + "*"), *redis.scan_iter(keys.IN_PROGRESS + "*")]

    lines = [line for line in ledger.lines() if line.job != "first"]
    starts = Counter(line.job for line in lines if line.what == "start")
    assert starts == {job_id: 1 + times for job_id, times in wanted.items()}
    assert Counter(line.job for line in lines if line.what == "end") == starts
    assert all(sides[side] > 10 for side in ("ours", "stock")), sides  # whoever is quicker has more
    by_attempt: dict[str, list[int]] = {}
    for line in lines:
        if line.what == "start":
            by_attempt.setdefault(line.job, []).append(line.attempt)
    assert all(attempts == list(range(1, len(attempts) + 1)) for attempts in by_attempt.values())


@pytest.mark.parametrize("held", [100, 1000, 3000])
def test_g4_ids_that_a_stock_worker_holds_at_the_head_do_not_keep_us_from_what_is_behind(
    tcp_url: str, tmp_path: Path, held: int
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with Redis.from_url(tcp_url) as redis, our_worker(tcp_url, ledger):
        wait_until(lambda: redis.client_list())
        (first,) = enqueue(tcp_url, crowd.work.request(0))
        wait_until(lambda: ledger.starts(first))
        with redis.pipeline(transaction=False) as pipe:
            for n in range(held):  # as stock arq leaves them while it runs them
                pipe.zadd(QUEUE, {f"held-{n}": 1_700_000_000_000 + n})
                pipe.set(f"{keys.JOB}held-{n}", b"never read by us", px=60_000)
                pipe.set(f"{keys.IN_PROGRESS}held-{n}", b"1", px=60_000)
            pipe.execute()
        began = time.monotonic()
        (ours,) = enqueue(tcp_url, crowd.work.request(0))
        theirs = with_arq(tcp_url, lambda pool: _stock(pool))
        for job_id in (ours, theirs):
            wait_until(lambda job_id=job_id: ledger.starts(job_id))  # type: ignore[misc]
        took_s = time.monotonic() - began
        assert took_s < 5, "a look every second, and a page of a thousand in each"
        wait_until(lambda: redis.zcard(QUEUE) == held, what="no more than those are left")

        # One of them is let go: nobody says so, and it is at the head, before where the last look began.
        redis.set(f"{keys.JOB}held-0", redis.get(keys.JOB + "held-1") or b"", px=60_000)
        redis.delete(f"{keys.IN_PROGRESS}held-0")
        wait_until(lambda: redis.hexists(keys.LETTER + "held-0", "letter"), 10)


async def _stock(pool: ArqRedis) -> str:
    job = await pool.enqueue_job("work", 0)
    assert job is not None
    return job.job_id
