"""What the fault tests share: workers over the ledger's handlers, and the look at Redis when all is quiet."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis

from runtime.adapters.redis import keys, wire
from runtime.adapters.redis.pickles.values import Undecodable
from runtime.core.spec import DEFAULT_QUEUE
from tests.faults import jobs
from tests.faults.ledger import Found, Ledger, Letter, count_by
from tests.processes import Worker

MODULE = "tests.faults.jobs"


def worker(
    redis: str | None,
    ledger: Ledger,
    *,
    modules: Sequence[str] = (MODULE,),
    slots: int = 5,
    lease: str = "10s",
    **settings: Any,
) -> Worker:
    """A worker over the handlers of `jobs`; `settings` are its environment, and what `Worker` takes."""
    settings[jobs.LEDGER] = ledger.path
    return Worker(
        *modules,
        redis=redis,
        WORKER_CONCURRENCY=slots,
        RUNTIME_LEASE=lease,
        **settings,
    )


def attempts_kept(url: str) -> dict[str, int]:
    """By job: the starts that Redis remembers against it, where there are any."""
    with Redis.from_url(url, decode_responses=True) as redis:
        kept = {key.removeprefix(keys.RETRY): int(redis.get(key) or 0) for key in redis.scan_iter(keys.RETRY + "*")}
    return {job: starts for job, starts in kept.items() if starts}


def stranded(url: str) -> list[str]:
    """Jobs that somebody holds, or once held and never let go."""
    with Redis.from_url(url, decode_responses=True) as redis:
        held = [*redis.scan_iter(keys.IN_PROGRESS + "*")]
        return held + [str(entry) for entry in redis.zrange(keys.later(DEFAULT_QUEUE), 0, -1)]


def waiting(url: str) -> int:
    with Redis.from_url(url) as redis:
        return int(redis.zcard(DEFAULT_QUEUE))


def queued(url: str) -> set[str]:
    """Jobs that are in the queue, and have their body."""
    with Redis.from_url(url, decode_responses=True) as redis:
        return {str(job) for job in redis.zrange(DEFAULT_QUEUE, 0, -1) if redis.exists(keys.JOB + str(job))}


def ended(url: str) -> int:
    """Jobs that ended, well or not, by the queue's counters."""
    return sum(_counters(url).values())


def results(url: str) -> dict[str, wire.Result]:
    with Redis.from_url(url) as redis:
        names = [*redis.scan_iter(keys.RESULT + "*", count=1000)]
        found = redis.mget(names) if names else []
    return {name.decode().removeprefix(keys.RESULT): _read(data) for name, data in zip(names, found, strict=True)}


def _read(data: bytes) -> wire.Result:
    try:
        return wire.decode_result(data)
    except Undecodable as refusal:  # stock arq keeps what our reader does not take
        return wire.Result(
            ok=pickle.loads(data)["s"], value=None, error=None, text=refusal.reason,
            handler="", attempt=0, started_ms=0, finished_ms=0,
        )  # fmt: skip


def letters(url: str) -> dict[str, dict[str, Any]]:
    with Redis.from_url(url) as redis:
        found = redis.scan_iter(keys.LETTER + "*", count=1000)
        names = [name for name in found if not name.endswith(b":original")]  # a body that could not be read
        return {
            name.decode().removeprefix(keys.LETTER): json.loads(redis.hget(name, "letter") or b"{}") for name in names
        }


def look(url: str, workers: Iterable[Worker]) -> Found:
    """Everything the judge wants to know, once nothing runs any more."""
    told = [line for worker in workers for line in worker.lines()]

    def count(event: str) -> dict[str, int]:
        return count_by(line["job_id"] for line in told if line.get("event") == event)

    counters = _counters(url)
    kept = results(url)
    return Found(
        results={job: result.ok for job, result in kept.items()},
        values={job: result.value for job, result in kept.items() if result.ok},
        letters={job: Letter(letter["reason"], letter["crashes"]) for job, letter in letters(url).items()},
        completed=counters.get("completed", 0),
        failed=counters.get("failed", 0),
        told_completed=count("JOB_COMPLETED"),
        told_started=count("JOB_STARTED"),
        refused=count("JOB_REFUSED"),
        waiting=queued(url),
        left=_left(url),
        at=time.monotonic(),
    )


def _left(url: str) -> list[str]:
    """Keys that only a job which is not over needs."""
    patterns = [prefix + "*" for prefix in (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.ONCE)]
    with Redis.from_url(url, decode_responses=True) as redis:
        left = [str(key) for pattern in patterns for key in redis.scan_iter(pattern, count=1000)]
        sets = (DEFAULT_QUEUE, keys.later(DEFAULT_QUEUE), keys.unknown(DEFAULT_QUEUE))
        return left + [name for name in sets if redis.exists(name)]


def _counters(url: str) -> dict[str, int]:
    with Redis.from_url(url, decode_responses=True) as redis:
        counters: dict[str, str] = redis.hgetall(keys.count(DEFAULT_QUEUE))
        return {name: int(value) for name, value in counters.items()}
