"""The two that are tried: `runtime serve`, and arq's own worker over the same handlers and the same ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib import metadata
from typing import Any, Literal, Protocol

from redis import Redis

from runtime import Request
from runtime.adapters.redis import keys
from runtime.core.span import seconds
from runtime.core.spec import DEFAULT_QUEUE
from tests.campaign.canaries import PLANTED
from tests.faults import campaign, jobs
from tests.faults.ledger import Found, Ledger, count_by
from tests.processes import Worker, enqueue

SubjectName = Literal["runtime", "arq"]


class Subject(Protocol):
    """What a scenario needs of a job system."""

    name: SubjectName

    def version(self) -> str: ...

    def worker(self, redis: str, ledger: Ledger, **settings: Any) -> Worker: ...

    def enqueue(self, url: str, *requests: Request[Any]) -> list[str]: ...

    def ended(self, url: str) -> int: ...

    def look(self, url: str, workers: Iterable[Worker]) -> Found: ...


class Ours:
    name: SubjectName = "runtime"

    def version(self) -> str:
        return f"runtime {metadata.version('runtime-worker')}"

    def worker(self, redis: str, ledger: Ledger, **settings: Any) -> Worker:
        return campaign.worker(redis, ledger, **{**PLANTED, **settings})

    def enqueue(self, url: str, *requests: Request[Any]) -> list[str]:
        return enqueue(url, *requests)

    def ended(self, url: str) -> int:
        return campaign.ended(url)

    def look(self, url: str, workers: Iterable[Worker]) -> Found:
        return campaign.look(url, workers)


class StockWorker(Worker):
    """arq's worker as a process; its log says the same in the same words as ours (`tests.campaign.stock`)."""

    program = ("tests.campaign.stock",)


class Stock:
    """arq at its defaults: it polls every 0.5 s, and a job's timeout is 300 s."""

    name: SubjectName = "arq"

    def version(self) -> str:
        return f"arq {metadata.version('arq')}"

    def worker(
        self,
        redis: str,
        ledger: Ledger,
        *,
        modules: Sequence[str] = (campaign.MODULE,),
        slots: int = 5,
        lease: str = "",
        **settings: Any,
    ) -> Worker:
        settings = {**PLANTED, **settings, jobs.LEDGER: ledger.path}
        return StockWorker(*modules, redis=redis, WORKER_CONCURRENCY=slots, **settings)

    def enqueue(self, url: str, *requests: Request[Any]) -> list[str]:
        return asyncio.run(_enqueue(url, requests))

    def ended(self, url: str) -> int:
        return len(campaign.results(url))

    def look(self, url: str, workers: Iterable[Worker]) -> Found:
        told = [line for worker in workers for line in worker.lines()]
        kept = campaign.results(url)
        return Found(
            results={job: result.ok for job, result in kept.items()},
            values={job: result.value for job, result in kept.items() if result.ok},
            completed=None,
            told_completed=count_by(line["job_id"] for line in told if line.get("event") == "JOB_COMPLETED"),
            waiting=campaign.queued(url),
            left=_left(url),
            at=time.monotonic(),
        )


async def _enqueue(url: str, requests: Iterable[Request[Any]]) -> list[str]:
    from arq import create_pool
    from arq.connections import RedisSettings

    pool = await create_pool(RedisSettings.from_dsn(url))
    try:
        ids = []
        for request in requests:
            key, delay = request.options.get("key"), request.options.get("delay")
            job = await pool.enqueue_job(
                request.handler,
                *request.args,
                _job_id=f"{request.handler}:{key}" if key else None,
                _queue_name=request.queue,
                _defer_by=timedelta(seconds=seconds(delay)) if delay else None,
                **request.kwargs,
            )
            ids.append(f"{request.handler}:{key}" if job is None else job.job_id)  # None: it is there already
        return ids
    finally:
        await pool.aclose()


def _left(url: str) -> list[str]:
    with Redis.from_url(url, decode_responses=True) as redis:
        patterns = [f"{prefix}*" for prefix in (keys.JOB, keys.IN_PROGRESS, keys.RETRY)]
        left = [str(key) for pattern in patterns for key in redis.scan_iter(pattern, count=1000)]
        return left + [DEFAULT_QUEUE] * int(redis.exists(DEFAULT_QUEUE))


SUBJECTS: dict[SubjectName, Subject] = {"runtime": Ours(), "arq": Stock()}
