"""The producer's side: enqueue jobs, and follow them by their handles."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from runtime import settings
from runtime.adapters.doorbell import Complaints, Doorbell, Ring
from runtime.adapters.egress import Egress
from runtime.adapters.redis import buckets, codecs, keys, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.connection import TROUBLE, away_of, concerns_the_server, shown
from runtime.adapters.redis.connection import connect as open_redis
from runtime.adapters.redis.replies import Replies, Wait
from runtime.adapters.telemetry import traces
from runtime.core.errors import (
    JobCancelled,
    JobFailed,
    PayloadInvalid,
    RedisRefused,
    RedisUnreachable,
    ResultUnknown,
    SettingsInvalid,
    WaitTimedOut,
)
from runtime.core.limits import Bucket
from runtime.core.quota import Counted
from runtime.core.request import Options, Request, check_name, check_options, check_pause
from runtime.core.span import Span, seconds
from runtime.core.spec import DEFAULT_QUEUE
from runtime.core.values import frozen

if TYPE_CHECKING:
    from runtime.adapters import embedded
    from runtime.core.progress import Progress

R = TypeVar("R")
T = TypeVar("T")

Status = Literal["waiting", "deferred", "active", "completed", "failed", "dead", "cancelled", "unknown"]

Cancel = Literal["cancelled", "asked", "gone"]

LIVE: Sequence[Status] = ("waiting", "deferred", "active")
"""With any other the job has ended, or is not known."""
LOOK_S = 1.0
"""From one look of `events` to the next, if it is told of nothing."""
TRIES = 3
TRY_AGAIN_S = 0.2
BULK = 100
BODIES = 3
"""How many bodies in turn an id is tried to be cancelled with."""
RESULT_MS = 3_600_000
NO_BELLS: Mapping[str, Callable[[], None]] = {}
DOUBT_S = 30.0
"""How long workers that seem to be awake are left alone after the doorbell was rung for a job they do not see."""


@frozen
class JobEvent:
    """Where a job is, and while it runs, how far."""

    status: Status
    progress: Progress | None


class Job(Generic[R]):
    """A handle on a job: enough to follow it, wherever it runs."""

    def __init__(
        self,
        client: Client,
        job_id: str,
        queue: str,
        *,
        created: bool,
        read: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.id = job_id
        self.queue = queue
        self.created = created
        """False: the id was taken, and this is the job that has it; or has had it, and was to be unique for longer."""
        self._client = client
        self._read = read

    async def status(self) -> Status:
        """Where the job is now. Raises `RedisUnreachable` and `RedisRefused`."""
        return await self._client.status(self.id, self.queue)

    async def result(self, timeout: Span | None = None) -> R:
        """What the handler returned, waiting for it if need be. Its end is told by workers of this package, over one
        connection for all who wait; that of a job that a stock worker runs is found by looking, twice a second at last.

        Raises `JobFailed` or `JobCancelled` as the job ended, `ResultUnknown` if there is no such job or result,
        `WaitTimedOut` after `timeout`, `RedisUnreachable`. Cancelling it leaves the job alone.
        """
        found = await self._client.result(self.id, self.queue, None if timeout is None else seconds(timeout))
        if not found.ok:
            kind = JobCancelled if found.cancelled else JobFailed
            raise kind(self.id, found.error or "error", found.text)
        value: R = self._read(found.value)
        return value

    async def progress(self) -> Progress | None:
        """How far it is; see `Client.progress`."""
        return await self._client.progress(self.id)

    def events(self, timeout: Span | None = None) -> AsyncGenerator[JobEvent]:
        """Where it is and how far, now and at each change, to its end; see `Client.events`."""
        return self._client.events(self.id, self.queue, None if timeout is None else seconds(timeout))

    async def cancel(self) -> Cancel:
        """Stop the job; see `Client.cancel`."""
        return await self._client.cancel(self.id, self.queue)

    def __repr__(self) -> str:
        return f"<Job {self.id} of queue {self.queue}>"


class Client:
    """A connection to the queues. Use it in one event loop; close it, or use `connect`.

    It writes and reads with `serializer`; without one, with that of `RUNTIME_SERIALIZER`, which raises
    `SettingsInvalid` if it cannot be imported.

    Who enqueues also wakes: where no worker is awake for the queue (Redis says so as it answers) the doorbell is rung
    at each of `wake_urls` (None: those of `RUNTIME_WAKE_URL`) in the background, until it is answered, or for a minute.
    That neither delays nor fails the enqueue. Of queues that this process serves itself, the `bells` are rung instead.
    """

    def __init__(
        self,
        url: str,
        *,
        serializer: Serializer | None = None,
        wake_urls: Sequence[str] | None = None,
        bells: Mapping[str, Callable[[], None]] = NO_BELLS,
        egress: Egress | None = None,
    ) -> None:
        egress = egress or Egress()
        self.url = url
        self._serializer = serializer or codecs.named(settings.serializer())
        self._wake_urls = settings.wake_urls() if wake_urls is None else wake_urls
        self._bells = bells
        self._doorbell = Doorbell(self._wake_urls, Complaints(), egress.of("doorbell"))
        self._doubted_at = -DOUBT_S
        self._redis = open_redis(url, row=egress.of("client"))
        self._replies = Replies(url, egress.of("client"))

    async def close(self) -> None:
        """Close the connections. While the doorbell rings: once it is answered, or after 2 s; by then it has rung."""
        try:
            await self._replies.close()
            await self._doorbell.close()
        finally:
            await self._redis.aclose()

    async def wake(self, queue: str) -> None:
        """Ring the doorbell if no worker is awake for `queue`; for who has put jobs there other than by `enqueue`.

        Raises `RedisUnreachable`.
        """
        if not self._asks(queue) or not await self.ask(lambda redis: scripts.awake(redis, queue)):
            self._ring(queue)

    @property
    def ringing(self) -> bool:
        """A worker is being woken, and has not answered yet."""
        return self._doorbell.rings

    async def rung(self) -> Sequence[Ring]:
        """How waking has ended for each address, once it has: a minute at most. Empty: nobody had to be woken."""
        return await self._doorbell.rung()

    async def disconnect(self) -> None:
        """Close its connections, and give up ringing as `close` does; what is asked next opens new ones."""
        await self._replies.close()
        await self._doorbell.close()
        await self._redis.connection_pool.disconnect()

    async def enqueue(
        self,
        handler: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        job_id: str | None = None,
        options: Options | None = None,
    ) -> Job[Any]:
        """Add a job for a handler known only by name, with plain arguments that nobody checks before the worker.

        It counts for no quota: those are in declarations. `job_id` is the id as it is (`key` would be prefixed). The
        option `unique_for` without a key goes by the arguments that are given, as they are; `Handler.enqueue` names
        them all. Raises as `Handler.enqueue` does.
        """
        options = options or {}
        check_options(options)
        if job_id is not None:
            check_name("job_id", job_id)
        elif seconds(options.get("unique_for", 0)) and "key" not in options:
            options = {**options, "key": _digest(handler, args, kwargs or {})}
        queue, priority = options.get("queue", DEFAULT_QUEUE), options.get("priority", 0)
        request = Request(handler, queue, priority, tuple(args), dict(kwargs or {}), options, lambda value: value)
        with traces.enqueueing(self.url) as spans:
            new = _new_job(request, job_id, spans, self._serializer)
            (added,) = await self._add(queue, [new])
            spans.end(new.id, created=added)
        return Job(self, new.id, queue, created=added)

    async def send(self, requests: Sequence[Request[R]]) -> list[Job[R]]:
        """Add many jobs, a hundred in a round trip; all are checked before the first is written.

        Raises as `Handler.enqueue` does. `QuotaExceeded` means that nothing was written of the round trip it concerns;
        what went before it was, queue by queue. Up to a hundred of one queue are one round trip. Of more, those that
        count for one user are together where they stand together. With keys, sending all again finds what was written.
        """
        jobs: dict[int, Job[R]] = {}
        with traces.enqueueing(self.url) as spans:
            new = [_new_job(request, None, spans, self._serializer) for request in requests]
            for queue, places in _by_queue(requests).items():
                for part in _parts(places, requests):
                    added = await self._add(queue, [new[place] for place in part])
                    for place, created in zip(part, added, strict=True):
                        spans.end(new[place].id, created=created)
                        read = requests[place].read
                        jobs[place] = Job(self, new[place].id, queue, created=created, read=read)
        return [jobs[place] for place in range(len(requests))]

    def job(self, job_id: str, queue: str = DEFAULT_QUEUE) -> Job[Any]:
        """A handle on a job by its id; whether it exists shows when it is asked."""
        return Job(self, job_id, queue, created=False)

    async def _add(self, queue: str, new: Sequence[scripts.NewJob]) -> list[bool]:
        asks = self._asks(queue)

        async def ask(again: bool) -> scripts.Enqueued:
            return await scripts.enqueue(self._redis, queue, new, again=again, ask=asks)

        try:
            enqueued = await self._try("enqueue", ask)
        except asyncio.CancelledError:
            self._ring(queue)  # the jobs may have been written
            raise
        if not asks or enqueued.awake == 0 or (enqueued.unseen and self._doubts()):
            self._ring(queue)
        return enqueued.added

    def _asks(self, queue: str) -> bool:
        return bool(self._wake_urls) and queue not in self._bells

    def _ring(self, queue: str) -> None:
        self._bells.get(queue, self._doorbell.ring)()

    def _doubts(self) -> bool:
        """Whether to disturb workers that may just be busy."""
        now = time.monotonic()
        if now < self._doubted_at + DOUBT_S:
            return False
        self._doubted_at = now
        return True

    async def _try(self, what: str, ask: Callable[[bool], Awaitable[T]]) -> T:
        """The answer to `ask`, which is told whether it was asked before and its reply lost."""
        for tried in range(TRIES):
            try:
                return await ask(tried > 0)
            except TROUBLE as error:
                if tried == TRIES - 1 or not concerns_the_server(error):
                    raise self._problem(what, error) from None
                await asyncio.sleep(TRY_AGAIN_S)
        raise AssertionError("unreachable")

    async def status(self, job_id: str, queue: str) -> Status:
        """Where a job is. Raises `RedisUnreachable` and `RedisRefused`."""
        return (await self.find(job_id, [queue]))[1]

    async def find(self, job_id: str, queues: Sequence[str]) -> tuple[str, Status]:
        """The first of `queues` in which a job waits or runs; else the last, for results and letters have no queue.

        Raises `RedisUnreachable` and `RedisRefused`.
        """
        result, running, letter, now, *scores = await self._read(
            ["GET", keys.of(keys.RESULT, job_id)],
            ["EXISTS", keys.of(keys.IN_PROGRESS, job_id)],
            ["EXISTS", keys.of(keys.LETTER, job_id)],
            ["TIME"],
            *(["ZSCORE", queue, keys.id_bytes(job_id)] for queue in queues),
        )
        for queue, score in zip(queues, scores, strict=True):
            if score is not None:
                now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
                return queue, "active" if running else "deferred" if float(score) > now_ms + 1 else "waiting"
        return queues[-1], self._ending(result, has_letter=bool(letter))

    def _ending(self, result: bytes | None, *, has_letter: bool) -> Status:
        """The letter of a job may be of an earlier one of its id, whose result is gone."""
        if result is None:
            return "dead" if has_letter else "unknown"
        try:
            found = wire.decode_result(result, self._serializer)
        except codecs.Undecodable:
            return "dead" if has_letter else "completed"
        if found.ok:
            return "completed"
        return "cancelled" if found.cancelled else "dead" if has_letter else "failed"

    async def progress(self, job_id: str) -> Progress | None:
        """How far a job is, as its handler has told (`ctx.progress`). None unless it runs now, and has told something.

        Each run begins with nothing told. Raises `RedisUnreachable` and `RedisRefused`.
        """
        from runtime.adapters.redis import board  # for those alone who ask

        written, holder = await self._read(
            ["GET", keys.of(keys.PROGRESS, job_id)], ["GET", keys.of(keys.IN_PROGRESS, job_id)]
        )
        return board.read(written, holder)

    async def events(
        self, job_id: str, queue: str = DEFAULT_QUEUE, timeout_s: float | None = None
    ) -> AsyncGenerator[JobEvent]:
        """Where a job is and how far: at once, then whenever that has changed. The last one tells its end, or that it
        is unknown.

        Workers of this package tell of ends and of progress; of other changes, and of those of a stock worker, a look
        tells, once a second. What comes and goes between two looks is not told. Raises `WaitTimedOut` after
        `timeout_s`, `RedisUnreachable` and `RedisRefused`.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        known = None
        with self._replies.wait(job_id, progress=True) as wait:
            while True:
                found = await self._follow(job_id, queue, wait.name)
                event = await self._event(job_id, queue)
                if event != known:
                    known = event
                    yield event
                if event.status not in LIVE:
                    return
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise _timed_out(job_id, timeout_s, event.status, "has not ended")
                await wait.pause(min(left_s, LOOK_S), noted=found.state == "noted")

    async def _event(self, job_id: str, queue: str) -> JobEvent:
        status = await self.status(job_id, queue)
        return JobEvent(status, await self.progress(job_id) if status == "active" else None)

    async def cancel(self, job_id: str, queue: str = DEFAULT_QUEUE) -> Cancel:
        """Stop a job, whatever state it is in.

        `cancelled`: nobody held it (it was waiting, deferred, retrying or snoozed), and it has left the queue; its
        result, kept for an hour, is `JobCancelled`, and it counts as failed. `asked`: a worker holds it, and is told to
        cancel its run at once; one that does not hear it finds out within a quarter of its lease (2.5 s). A stock arq
        worker with `allow_abort_jobs` finds out at its next poll (0.5 s), another one never. A handler that returns all
        the same has done its work: how the job ended, its result says. `gone`: `queue` has no such job to be stopped:
        it has ended, also as a dead letter, or never was; nothing was written, and a later job of the id runs. Safe to
        call again. Raises `RedisUnreachable` and `RedisRefused`.
        """
        body = result = b""
        for _ in range(BODIES):
            reply = await self._cancel(queue, job_id, body, result)
            if reply.said != "changed":
                return reply.said
            body = reply.body
            result = wire.encode_cancelled(job_id, queue, body, reply.starts, self._serializer)
        return "gone"  # the job that had the id ended meanwhile, and so did others after it

    async def _cancel(self, queue: str, job_id: str, body: bytes, result: bytes) -> scripts.CancelReply:
        async def ask(again: bool) -> scripts.CancelReply:
            return await scripts.cancel(self._redis, queue, job_id, body=body, result=result, result_ms=RESULT_MS)

        return await self._try("cancel", ask)

    async def pause(self, queue: str = DEFAULT_QUEUE, *, reason: str = "", length: Span | None = None) -> None:
        """Let no job of `queue` be started by our workers, for `length` (None: until `resume`), at once.

        What runs goes on; jobs can be added; nobody is woken for them, or stays awake, but for its end. Another pause
        of the queue is replaced. Everybody may read `reason`: it is kept without the secrets of this environment. Stock
        arq workers do not heed it. Raises `OptionInvalid`, `RedisUnreachable` and `RedisRefused`.
        """
        from runtime.adapters.redis import queues
        from runtime.core.redaction import Redactor

        check_pause(queue, reason, length)
        reason = Redactor(settings.secrets()).text(reason)
        length_s = None if length is None else seconds(length)
        if await self.ask(lambda redis: queues.pause(redis, queue, reason, length_s, wire.now_ms())):
            await self.wake(queue)

    async def resume(self, queue: str = DEFAULT_QUEUE) -> bool:
        """End a pause of `queue`, and wake whoever is to go on with it; whether it was paused. Safe to call again.

        Raises `RedisUnreachable` and `RedisRefused`.
        """
        from runtime.adapters.redis import queues

        was, there = await self.ask(lambda redis: queues.resume(redis, queue))
        if there:
            await self.wake(queue)
        return was

    async def purge(self, queue: str, told: Callable[[int], object] = lambda gone: None) -> tuple[int, int]:
        """Remove every job of `queue` that nobody runs, a hundred in a round trip: how many have gone, and how many run
        and stay. `told` is called after each round trip with how many have gone so far.

        Who waits for the end of one meets `JobCancelled`, by a result that is kept for a minute; nothing else is left,
        and ids are free at once. Jobs that are added, or given back, while it lasts may stay. Raises `RedisUnreachable`
        and `RedisRefused`.
        """
        from runtime.adapters.redis import queues

        purged = await self.ask(lambda redis: queues.purge(redis, queue, self._serializer, told))
        return purged.gone, purged.held

    async def result(self, job_id: str, queue: str, timeout_s: float | None) -> wire.Result:
        """A job's result, waiting for it. Raises as `Job.result` does, except for how the job ended."""
        with self._replies.wait(job_id) as wait:
            return wire.decode_result(await self._ended(job_id, queue, timeout_s, wait), self._serializer)

    async def _ended(self, job_id: str, queue: str, timeout_s: float | None, wait: Wait) -> bytes:
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        missing = False
        while not wait.result:
            found = await self._follow(job_id, queue, wait.name)
            left_s = until - time.monotonic()
            if found.state == "ended":
                wait.ended()
                return found.result
            if found.state == "gone":
                if missing:
                    raise ResultUnknown(job_id)
                missing = True  # once more: it may have been settled between the two questions
                continue
            missing = False
            if left_s <= 0:
                raise _timed_out(job_id, timeout_s, await self.status(job_id, queue), "has no result")
            await wait.pause(left_s, noted=found.state == "noted")
        return wait.result

    async def _follow(self, job_id: str, queue: str, name: str) -> scripts.Followed:
        """The result of a job, or what there is instead; with a `name`, it will be told of."""
        if name:
            found = await self.ask(lambda redis: scripts.follow(redis, queue, job_id, name))
            if found is not None:
                return found
        result, body, score = await self._read(
            ["GET", keys.of(keys.RESULT, job_id)],
            ["EXISTS", keys.of(keys.JOB, job_id)],
            ["ZSCORE", queue, keys.id_bytes(job_id)],
        )
        if result is not None:
            return scripts.Followed("ended", result)
        return scripts.Followed("gone" if score is None and not body else "there")

    async def _read(self, *commands: list[Any]) -> list[Any]:
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = await pipe.execute()
                return answers
        except TROUBLE as error:
            raise self._problem("read", error) from None

    async def ask(self, use: Callable[[Any], Awaitable[R]]) -> R:
        """Let `use` work with this client's connection. Raises `RedisUnreachable` and `RedisRefused`."""
        try:
            return await use(self._redis)
        except TROUBLE as error:
            raise self._problem("look", error) from None

    async def available(self, bucket: Bucket) -> int:
        """The tokens of `bucket` that are there now; below zero if others wait for some. Raises `RedisUnreachable`."""
        levels, _ = await self.ask(lambda redis: buckets.look(redis, [bucket]))
        return math.floor(levels[0].tokens)

    def _problem(self, what: str, error: Exception) -> RedisUnreachable | RedisRefused:
        away = away_of(error, what)
        cause = str(away)
        if concerns_the_server(error):
            return unworkable(self.url, cause, answers=away.refused)
        if "WRONGTYPE" in cause:
            message = "a key of the queue, the job or its quota is of a wrong type"
            return RedisRefused(message, cause=cause, hint="see what is wrong with: runtime inspect job ID")
        return RedisRefused("Redis refused what it was asked", cause=cause, hint=_fix(self.url, cause))


def _timed_out(job_id: str, timeout_s: float | None, status: Status, what: str) -> WaitTimedOut:
    return WaitTimedOut(
        f"job {job_id} {what} after {timeout_s:g} s",
        cause=f"it is {status}",
        hint=f"it goes on; ask again with: runtime job {job_id}",
    )


def unworkable(url: str, cause: str, *, answers: bool) -> RedisUnreachable:
    """The error for a Redis that cannot be reached, or `answers` and will not do what is asked, with the fix."""
    at = shown(url)
    message = f"Redis at {at} cannot be used now" if answers else f"cannot reach Redis at {at}"
    return RedisUnreachable(message, cause=cause, hint=_fix(url, cause))


def _fix(url: str, cause: str) -> str:
    from runtime.core.diagnosis.store import fix_of  # for mishaps alone

    return fix_of(cause, urlsplit(url).hostname or "")


def _by_queue(requests: Sequence[Request[Any]]) -> dict[str, list[int]]:
    """The places of the requests, by the queue they go to."""
    places: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(request.queue, []).append(place)
    return places


def _parts(places: Sequence[int], requests: Sequence[Request[Any]]) -> Iterator[Sequence[int]]:
    """In order, at most a hundred at a time; cut, if that can be, where it does not part what counts for one user."""
    last = {counted: at for at, place in enumerate(places) if (counted := requests[place].counted) is not None}
    start = 0
    while len(places) - start > BULK:
        end = _cut(start, places, requests, last) if last else start + BULK
        yield places[start:end]
        start = end
    yield places[start:]


def _cut(start: int, places: Sequence[int], requests: Sequence[Request[Any]], last: Mapping[Counted, int]) -> int:
    """Where the part that begins at `start` ends. `last`: where whoever counts does so for the last time."""
    cut = reach = start
    for end in range(start + 1, start + BULK + 1):
        counted = requests[places[end - 1]].counted
        reach = reach if counted is None else max(reach, last[counted])
        cut = end if reach < end else cut
    return cut if cut > start else start + BULK


def _new_job(
    request: Request[Any], job_id: str | None, spans: traces.Enqueueing, serializer: Serializer | None
) -> scripts.NewJob:
    """A request as it is written, with the context of its trace. Raises `PayloadInvalid` for what cannot travel."""
    options = request.options
    at, key = options.get("at"), options.get("key")
    delay_s = seconds(options.get("delay", 0))
    expires_s = seconds(options["expires"]) if "expires" in options else None
    if job_id is None and key is not None:
        job_id = f"{request.handler}:{key}"
    fresh = job_id is None
    job_id = job_id or new_id()
    trace = spans.begin(job_id, request.queue, request.handler, request.priority)
    return scripts.NewJob(
        id=job_id,
        body=_encode(request, _expiry_ms(at, delay_s, expires_s), trace, serializer),
        keep_ms=round(1000 * (keys.BODY_S if expires_s is None else expires_s + keys.BODY_AFTER_EXPIRY_S)),
        delay_ms=round(delay_s * 1000),
        due_ms=None if at is None else round(at.timestamp() * 1000),
        priority=request.priority,
        fresh=fresh,
        unique_ms=round(1000 * seconds(options.get("unique_for", 0))),
        counted=request.counted,
    )


def _digest(handler: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    from runtime.adapters.payload import digest

    try:
        return digest({**{str(place): arg for place, arg in enumerate(args)}, **kwargs})
    except (TypeError, ValueError) as error:
        raise PayloadInvalid(
            f"{handler}: no key can be made of the arguments: {error}", hint="give it one: the option key"
        ) from None


def _expiry_ms(at: datetime | None, delay_s: float, expires_s: float | None) -> int | None:
    if expires_s is None:
        return None
    due_ms = wire.now_ms() + delay_s * 1000 if at is None else at.timestamp() * 1000
    return round(due_ms + expires_s * 1000)


def _encode(
    request: Request[Any], expires_ms: int | None, trace: Mapping[str, str] | None, serializer: Serializer | None
) -> bytes:
    name = request.handler
    try:
        body = wire.encode_call(
            name,
            request.args,
            request.kwargs,
            expires_ms=expires_ms,
            priority=request.priority,
            trace=trace,
            serializer=serializer,
        )
    except TypeError as error:
        raise PayloadInvalid(
            f"{name}: {error}", hint="send plain data: numbers, text, bytes, lists, dicts, dates, UUIDs"
        ) from None
    if len(body) > wire.MAX_BODY:
        raise PayloadInvalid(
            f"{name}: the arguments take {len(body)} bytes, more than {wire.MAX_BODY}",
            hint="store the data elsewhere and send its address",
        )
    return body


_last = 0


def new_id() -> str:
    """32 hex digits that sort in the order they were made in this process, so that jobs of the same ms keep theirs."""
    global _last
    _last = max(_last + 1, time.time_ns() // 1000)
    return f"{_last:016x}{secrets.token_hex(8)}"


def redis_url(config: settings.Settings) -> tuple[str, embedded.Embedded | None]:
    """The Redis of these settings: the one they name, else the embedded server, which runs while it is held.

    Raises `SettingsInvalid` if that cannot start.
    """
    if config.redis_url:
        return config.redis_url, None
    from runtime.adapters import embedded

    try:
        server = embedded.attach(embedded.data_dir(Path.cwd(), config.data_dir))
    except (embedded.EmbeddedUnavailable, embedded.EmbeddedFailed) as error:
        raise SettingsInvalid(
            "no Redis is configured, and the embedded server cannot start", cause=str(error)
        ) from None
    return server.url, server


@asynccontextmanager
async def connect(url: str | None = None, *, serializer: Serializer | None = None) -> AsyncGenerator[Client]:
    """A client for the block, which `Handler.enqueue` uses meanwhile; without `url`, the Redis of the environment, and
    without `serializer` that of the environment, if it names one."""
    found, server = (url, None) if url else await asyncio.to_thread(redis_url, settings.read())
    client = Client(found, serializer=serializer)
    before = _clients.get(asyncio.get_running_loop())
    use(client)
    try:
        yield client
    finally:
        if before is not None:
            use(before)
        else:
            _clients.pop(asyncio.get_running_loop(), None)
        await client.close()
        if server is not None:
            server.close()


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()
_servers: list[embedded.Embedded] = []


def use(client: Client) -> None:
    """Make `client` the one that handlers enqueue with in this event loop."""
    _clients[asyncio.get_running_loop()] = client


async def current() -> Client:
    """The client of this event loop; opened from the settings of the environment when there is none."""
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        url, server = await asyncio.to_thread(redis_url, settings.read())
        if server is not None:
            _servers.append(server)  # held to the end of the process
        client = _clients.setdefault(loop, Client(url))
    return client


async def enqueue_all(requests: Sequence[Request[R]]) -> list[Job[R]]:
    """Add many jobs, a hundred in a round trip; all are checked before the first is written.

    Raises as `Handler.enqueue` does; `Client.send` says what has been written then.
    """
    return await (await current()).send(requests)


__all__ = ["Cancel", "Client", "Job", "JobEvent", "Status", "connect", "current", "enqueue_all", "new_id", "use"]
