"""One queue on a real server as its clients, our workers and stock arq see it. Each call is one call of a script.

Leases are lost by letting them run out: `worker(lease_ms=1)` and `lapse()`; nobody's clock is turned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Self, TypeVar

from arq.connections import ArqRedis
from arq.jobs import Job
from arq.worker import Worker as ArqWorker
from arq.worker import func
from redis import Redis
from redis.asyncio import ConnectionPool

from runtime.adapters.redis import keys, scripts, wire
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.scripts import ClaimReply, Enqueued, Extended, Lease, Leased, NewJob, SettleReply, Settling
from runtime.ports import Pulled

T = TypeVar("T")
DAY_MS = 86_400_000
BAND_MS = 2**33
"""What one step of priority is worth in a score."""
LEASE_MS = 10_000


def body(text: str = "") -> bytes:
    """A body that stock arq reads; one with another `text` is another body."""
    return _body(text)


@cache
def _body(text: str) -> bytes:
    return wire.encode_call("work", (text,), {}, expires_ms=None, priority=0)


def no_claim(pulled: Pulled) -> None:
    """For a `wait` that is given no room."""
    raise AssertionError(pulled)


class Store:
    """`redis` is for looking at what the scripts have left; `arq` is stock arq's own client."""

    def __init__(self, url: str, queue: str = "arq:queue") -> None:
        self.url = url
        self.queue = queue
        self.later, self.mark = keys.later(queue), keys.mark(queue)
        self.redis: Any = Redis.from_url(url, decode_responses=True)
        self.raw: Any = Redis.from_url(url)
        self.spoiled: list[str] = []
        self._runner = asyncio.Runner()
        self.scripts = connect(url)
        self.arq = ArqRedis(ConnectionPool.from_url(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._runner.close()
        self.redis.close()
        self.raw.close()

    async def _close(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}  # what stock arq still runs
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.scripts.aclose()
        await self.arq.aclose(close_connection_pool=True)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def enqueue(self, *ids: str, text: str = "", again: bool = False, **options: Any) -> list[bool]:
        jobs = [NewJob(job_id, body(text), **{"keep_ms": DAY_MS, **options}) for job_id in ids]
        return self.run(scripts.enqueue(self.scripts, self.queue, jobs, again=again)).added

    def asks(self, *ids: str, **options: Any) -> Enqueued:
        """Add these jobs, and ask who is awake."""
        jobs = [NewJob(job_id, body(), **{"keep_ms": DAY_MS, **options}) for job_id in ids]
        return self.run(scripts.enqueue(self.scripts, self.queue, jobs, ask=True))

    def worker(self, incarnation: str = "a-1", *, lease_ms: int = LEASE_MS) -> Worker:
        return Worker(self, incarnation, lease_ms)

    def now_ms(self) -> float:
        seconds, micros = self.redis.time()
        return float(seconds * 1000 + micros / 1000)

    def is_after(self, moment_ms: float) -> bool:
        return self.now_ms() > moment_ms

    def score(self, job_id: str) -> float:
        score = self.redis.zscore(self.queue, job_id)
        assert score is not None, f"{job_id} is not in the queue"
        return float(score)

    def queued(self) -> list[str]:
        """All ids, in the queue's order."""
        return list(self.redis.zrange(self.queue, 0, -1))

    def owner(self, job_id: str) -> str | None:
        owner: str | None = self.redis.get(keys.IN_PROGRESS + job_id)
        return owner

    def starts(self, job_id: str) -> int:
        return int(self.redis.get(keys.RETRY + job_id) or 0)

    def own(self, job_id: str) -> str | None:
        own: str | None = self.redis.get(keys.OWN + job_id)
        return own

    def waits_at(self, job_id: str, score: float) -> None:
        """Put a job there as a stock producer would: body, and score."""
        self.raw.set(keys.JOB + job_id, body(), px=DAY_MS)
        self.raw.zadd(self.queue, {job_id: score})

    def backlog(self, count: int, *, before_ms: float = 60_000, prefix: str = "old") -> list[str]:
        """So many jobs that have waited since before everything else, oldest first."""
        ids = [f"{prefix}-{n:05}" for n in range(count)]
        since = self.now_ms() - before_ms
        with self.raw.pipeline(transaction=False) as pipe:
            pipe.zadd(self.queue, dict.fromkeys(ids, round(since)))
            for job_id in ids:
                pipe.set(keys.JOB + job_id, body(), px=DAY_MS)
            pipe.execute()
        return ids

    @contextmanager
    def awake(self, queue: str | None = None) -> Iterator[None]:
        """A worker is awake for this queue, as Redis sees it."""
        with self.raw.pubsub() as here:
            here.subscribe(keys.here(queue or self.queue))
            assert here.get_message(timeout=10)["type"] == "subscribe"
            yield
            here.unsubscribe()
            assert here.get_message(timeout=10)["type"] == "unsubscribe"

    def ages(self, job_id: str, by_ms: float) -> None:
        """As if a job that is due had come so much earlier."""
        self.raw.zincrby(self.queue, -by_ms, job_id)

    def spoil(self, key: str) -> None:
        """Replace a key by one of a type that no script expects there."""
        self.raw.delete(key)
        self.raw.rpush(key, "spoiled")
        self.spoiled.append(key)

    def is_spoiled(self, key: str) -> bool:
        return bool(self.raw.type(key) == b"list")

    @contextmanager
    def out_of_memory(self) -> Iterator[None]:
        self.raw.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.raw.config_set("maxmemory", 0)

    def until(self, fact: Callable[[], object]) -> None:
        """Let the loop run, and with it what stock arq does, until `fact` holds."""

        async def wait() -> None:
            end = time.monotonic() + 10
            while not fact():
                assert time.monotonic() < end, "it did not come about"
                await asyncio.sleep(0.001)

        self.run(wait())

    def lapse(self, *jobs: Leased) -> None:
        """Return when the leases of these have run out, and their ids are due again."""
        for job_id in names(jobs):
            self.until(partial(self._has_lapsed, job_id))

    def _has_lapsed(self, job_id: str) -> bool:
        return self.owner(job_id) is None and self.score(job_id) <= self.now_ms()

    def until_due(self, job_id: str) -> None:
        self.until(lambda: self.score(job_id) <= self.now_ms())

    def job(self, job_id: str) -> Job:
        """Stock arq's handle."""
        return Job(job_id, self.arq, _queue_name=self.queue)


class Worker:
    """The scripts as one worker calls them."""

    def __init__(self, store: Store, incarnation: str, lease_ms: int) -> None:
        self.store = store
        self.incarnation = incarnation
        self.lease_ms = lease_ms
        self.claims = 0
        self.batches = 0

    def claim(self, room: int = 1, *, again: bool = False, **more: Any) -> ClaimReply:
        self.claims += not again
        return self.store.run(
            scripts.Claiming(
                [self.store.queue],
                room=room,
                lease_ms=self.lease_ms,
                incarnation=self.incarnation,
                seq=self.claims,
                again=again,
                **more,
            )(self.store.scripts)
        )

    def take(self, *ids: str) -> list[Leased]:
        """Claim as many; these must be what it gets, whatever their order."""
        jobs = {job.id.decode(): job for job in self.claim(len(ids)).jobs}
        assert jobs.keys() == set(ids)
        return [jobs[job_id] for job_id in ids]

    def one(self, job_id: str) -> Leased:
        return self.take(job_id)[0]

    def extend(self, *jobs: Leased, renew: bool = False) -> list[Extended]:
        leases = [Lease(job.id, job.token, job.place, job.starts, renew) for job in jobs]
        return scripts.extend(self.store.raw, self.store.queue, leases, lease_ms=self.lease_ms)

    def keeps(self, job: Leased) -> bool:
        return self.extend(job)[0].ours

    def settle(self, *batch: Settling, again: bool = False, **limits: int) -> SettleReply:
        self.batches += not again
        return self.store.run(
            scripts.settle(
                self.store.scripts,
                self.store.queue,
                batch,
                incarnation=self.incarnation,
                seq=self.batches,
                **limits,
            )
        )


class Stock:
    """An unmodified arq worker that claims what it is told to. It moves while the store's loop runs."""

    def __init__(self, store: Store, *, ends: object = "stock") -> None:
        self._store = store
        self.ends = ends
        self._entered: set[str] = set()
        self._gate = asyncio.Event()
        self._worker = store.run(self._make())

    async def _make(self) -> ArqWorker:
        return ArqWorker(
            functions=[func(self._work, name="work")],
            redis_pool=self._store.arq,
            queue_name=self._store.queue,
            handle_signals=False,
            allow_abort_jobs=True,
        )

    async def _work(self, ctx: dict[Any, Any], *_: object) -> object:
        self._entered.add(ctx["job_id"])
        await self._gate.wait()
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends

    def claims(self, job_id: str) -> bool:
        """Try to; whether it runs now."""
        self._store.run(self._worker.start_jobs([job_id.encode()]))
        if job_id not in self._worker.tasks:
            return False
        self._store.until(lambda: job_id in self._entered or self._worker.tasks[job_id].done())
        return job_id in self._entered

    def finishes(self) -> None:
        """Let its jobs come to their end."""
        self._gate.set()
        self._store.until(lambda: all(task.done() for task in self._worker.tasks.values()))

    def is_stopped(self) -> None:
        """As at a deploy: what runs is cancelled and given back."""
        for task in self._worker.job_tasks.values():
            task.cancel()
        self._store.until(lambda: all(task.done() for task in self._worker.tasks.values()))


def names(jobs: Sequence[Leased]) -> list[str]:
    return [job.id.decode() for job in jobs]


def done(job: Leased, result: bytes = b"result", *, result_ms: int = 60_000, flags: str = "c") -> Settling:
    return Settling(job.id, job.token, job.place, job.starts, "end", result=result, result_ms=result_ms, flags=flags)


def dead(job: Leased, letter: bytes = b'{"reason": "exhausted"}', *, flags: str = "f") -> Settling:
    return Settling(
        job.id, job.token, job.place, job.starts, "end",
        result=b"failure", result_ms=60_000, letter=letter, body=job.body or b"", flags=flags,
    )  # fmt: skip


def again(job: Leased, delay_ms: int = 0, *, keep: int | None = None, own: bytes = b"0|{}", **more: Any) -> Settling:
    starts = job.starts if keep is None else keep
    return Settling(
        job.id, job.token, job.place, job.starts, "again", keep_starts=starts, delay_ms=delay_ms, own=own, **more
    )


def back(job: Leased, **more: Any) -> Settling:
    return Settling(job.id, job.token, job.place, job.starts, "back", keep_starts=job.starts - 1, **more)
