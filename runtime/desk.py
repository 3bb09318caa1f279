"""Where requests about jobs are dealt with that come to the worker itself: `adapters.http.jobs.Jobs`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from runtime.adapters.http.jobs import Ending, Order, Receipt
from runtime.adapters.redis import board, keys, letters, pickles, queues, scripts
from runtime.adapters.redis.source import history_of
from runtime.client import LIVE, Client, Status
from runtime.core.errors import ResultUnknown, WaitTimedOut
from runtime.core.span import Span
from runtime.core.text import presentable
from runtime.registry import Handlers, find


class Desk:
    """Knows the handlers and the queues of this worker. Whoever asks it for anything wakes the worker, which is to be
    silent otherwise."""

    def __init__(
        self,
        client: Client,
        handlers: Handlers,
        queues: Sequence[str],
        wake: Callable[[], None],
        call: Callable[[], None],
    ) -> None:
        self._client = client
        self._wake = wake
        self._call = call
        self._handlers = handlers
        self._queues = queues

    async def add(self, order: Order) -> Receipt:
        with self._awake():
            handler = find(self._handlers, order.handler)
            request = handler.options(**order.options).request(*order.args, **order.kwargs)
            (job,) = await self._client.send([request])
            if job.created:
                return Receipt(job.id, "queued", created=True)
            _, status = await self._client.find(job.id, [job.queue, *self._queues])
            return Receipt(job.id, status, created=False)

    async def show(self, job_id: str, queue: str | None) -> Mapping[str, Any]:
        with self._awake():
            place, status = await self._client.find(job_id, self._asked(queue))
            found = {"jobId": job_id, "status": status}
            if status in LIVE:
                return {**found, "queue": place, **await self._standing(job_id, status)}
            if status == "dead":
                return {**found, **await self._letter(job_id)}
            return found if status == "unknown" else {**found, **await self._result(job_id, place)}

    async def cancel(self, job_id: str, queue: str | None) -> tuple[Ending, Status]:
        with self._awake():
            place, status = await self._client.find(job_id, self._asked(queue))
            if status not in LIVE:
                return "gone", status
            ending = await self._client.cancel(job_id, place)
            _, status = await self._client.find(job_id, [place])
            return ending, status

    async def count(self) -> Mapping[str, Mapping[str, Any]]:
        with self._awake():
            return {queue: await self._client.ask(partial(_counts, queue=queue)) for queue in self._queues}

    async def pause(self, queue: str, reason: str, length: Span | None) -> Mapping[str, Any] | None:
        if queue not in self._queues:
            return None
        with self._awake():
            await self._client.pause(queue, reason=reason, length=length)
            return await self._client.ask(partial(_counts, queue=queue))

    async def resume(self, queue: str) -> Mapping[str, Any] | None:
        if queue not in self._queues:
            return None
        with self._awake():
            await self._client.resume(queue)
            return await self._client.ask(partial(_counts, queue=queue))

    @contextmanager
    def _awake(self) -> Generator[None]:
        """Afterwards, too: what was asked may have taken so long that the worker is quiet again, and this not."""
        self._wake()
        try:
            yield
        finally:
            self._call()

    def _asked(self, queue: str | None) -> Sequence[str]:
        return self._queues if queue is None else [queue]

    async def _standing(self, job_id: str, status: Status) -> dict[str, Any]:
        """How often a job was started; how far it is, or the limit for which it was put off."""
        names = [keys.of(prefix, job_id) for prefix in (keys.RETRY, keys.OWN, keys.PROGRESS, keys.IN_PROGRESS)]
        starts, own, written, holder = await self._client.ask(lambda redis: redis.mget(names))
        waits_for = None if status == "active" else history_of(own).waits_for
        progress = board.read(written, holder)
        return {
            "attempt": int(starts) if starts and starts.isdigit() else 0,
            **({"waitsFor": presentable(waits_for)} if waits_for else {}),
            **({"progress": board.shown(progress)} if progress else {}),
        }

    async def _result(self, job_id: str, queue: str) -> dict[str, Any]:
        try:
            result = await self._client.result(job_id, queue, 0.0)
        except (ResultUnknown, WaitTimedOut):
            return {}  # it has expired, or the id has a new job, in this moment
        except pickles.Undecodable as error:
            return {"error": {"type": "unreadable", "message": str(error)}}
        ended = (
            {"result": presentable(result.value)}
            if result.ok
            else {"error": presentable({"type": result.error, "message": result.text})}
        )
        return {
            **ended,
            "handler": presentable(result.handler),
            "attempt": result.attempt,
            "startedAt": _iso(result.started_ms),
            "finishedAt": _iso(result.finished_ms),
        }

    async def _letter(self, job_id: str) -> dict[str, Any]:
        """What a dead letter says, less the arguments."""
        letter = await self._client.ask(lambda redis: letters.find(redis, job_id))
        if letter is None:
            return {}
        return {
            "error": presentable({"type": letter["error"], "message": letter["text"]}),
            "reason": letter["reason"],
            "queue": letter["queue"],
            "handler": letter["handler"],
            "attempt": letter["attempt"],
            "finishedAt": _iso(letter["died_ms"]),
        }


async def _counts(redis: Any, queue: str) -> Mapping[str, Any]:
    census = await scripts.census(redis, queue)
    shown = ("waiting", "active", "completed", "failed", "deferred", "dead", "oldest_age_s")
    (pause,) = await queues.pauses(redis, [queue])
    paused = pause and {"reason": presentable(pause.reason), "left_s": pause.left_s}
    return {**{name: getattr(census, name) for name in shown}, "paused": paused}


def _iso(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds")
