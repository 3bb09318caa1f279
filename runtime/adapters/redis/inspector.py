"""Looks at queues, jobs and workers, and changes nothing. Whatever stands in the store is shown, and breaks nothing.

A key of a wrong type is told as `trouble` beside what could be read. Other refusals of the server, and a server that
does not answer, raise redis-py's errors.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from redis.exceptions import ResponseError

from runtime.adapters.payload import LARGEST, from_json
from runtime.adapters.redis import heartbeats, keys, pickles, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.heartbeats import Heartbeat
from runtime.adapters.redis.source import history_of
from runtime.core.job import Call, ErrorRecord, History
from runtime.core.place import place
from runtime.core.values import frozen

SEEN = 1000
"""As many due jobs, and as many that are not yet due, are looked at in a queue."""
MOST_READ = 256 * 1024
"""Larger bodies are not read for a list; their handlers stay unnamed there."""

State = Literal["waiting", "active", "deferred", "dead", "completed", "failed", "cancelled", "unknown"]


@frozen
class Trouble:
    """Why something could not be read."""

    text: str


@frozen
class Holder:
    """Who has the lease of a job."""

    incarnation: str | None
    """Of one of our workers; None: a stock arq worker."""
    left_s: float | None
    """Until the lease lapses; None where it never does."""


@frozen
class Listed:
    """A job as it is listed."""

    id: str
    queue: str
    state: State
    handler: str | None = None
    """None: its body is missing, too large, or cannot be read."""
    attempt: int = 0
    """How often it was started."""
    priority: int = 0
    due_ms: float | None = None
    """When it was or will be due. Of a job that is held: not known."""
    enqueued_ms: int | None = None
    holder: Holder | None = None
    reason: str | None = None
    """Why it is a dead letter, or what it waits for: `unknown-handler`, or a limit in words."""
    died_ms: int | None = None
    trouble: str | None = None


@frozen
class Letter:
    """A dead letter, but for its body (`wire.letter_of`)."""

    reason: str
    queue: str = ""
    handler: str | None = None
    error: str = ""
    text: str = ""
    category: str = ""
    attempt: int = 0
    crashes: int = 0
    enqueued_ms: int | None = None
    died_ms: int | None = None
    errors: tuple[ErrorRecord, ...] = ()


@frozen
class Sheet:
    """Everything that is known of one job."""

    job: Listed
    now_ms: int
    place: float | None
    """The score it has in its queue, or gets back from the worker that holds it."""
    ahead: int | None
    """Jobs before it in the queue, running ones too."""
    body_bytes: int
    history: History
    steps: Sequence[str]
    """What `once` remembers."""
    abort_ms: float | None
    letter: Letter | None
    result: wire.Result | None
    result_left_s: float | None
    """For how long its result is still kept."""
    unique_left_s: float | None
    """For how long its id is still its own, whatever has become of it; None: it was not to be unique, or no longer."""
    call: Call | None
    trouble: Sequence[str]


async def workers(redis: Any) -> tuple[int, list[Heartbeat]]:
    """The server's clock in ms, and the heartbeats that are kept, the last first."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(keys.WORKERS)
        now, fields = await _answers(pipe)
    return _ms(now), heartbeats.read_all(fields or {})


async def census(redis: Any, queue: str) -> scripts.Census | Trouble:
    """A queue's jobs, counted: one round trip."""
    try:
        return await scripts.census(redis, queue)
    except ResponseError as error:
        return _trouble(error)


async def jobs(redis: Any, queue: str, most: int, serializer: Serializer | None = None) -> list[Listed] | Trouble:
    """Up to `most` jobs of each state: active, waiting in their order, deferred by their times, dead newest first."""
    try:
        now_ms = _ms(await redis.time())
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zrangebyscore(queue, "-inf", now_ms, start=0, num=SEEN, withscores=True)
            pipe.zrangebyscore(queue, f"({now_ms}", "+inf", start=0, num=SEEN, withscores=True)
            pipe.zrevrange(keys.dead(queue), 0, most - 1, withscores=True)
            due, future, dead = await _answers(pipe)
        if due is None or future is None:
            return Trouble("its key is of a wrong type")
        queued = await _leases(redis, [*due, *future])
    except ResponseError as error:
        return _trouble(error)
    chosen: dict[State, list[_Queued]] = {"active": [], "waiting": [], "deferred": []}
    for job in queued:
        state = job.state(now_ms)
        if len(chosen[state]) < most:
            chosen[state].append(job)
    listed = await _describe(redis, queue, chosen, now_ms, serializer)
    return listed + await _letters(redis, queue, dead or [])


@frozen
class _Queued:
    """An id in a queue, and the lease on it."""

    id: bytes
    score: float
    owner: bytes | None

    def state(self, now_ms: float) -> State:
        if self.owner is not None:
            return "active"
        return "waiting" if self.score <= now_ms else "deferred"


async def _leases(redis: Any, scores: Sequence[tuple[bytes, float]]) -> list[_Queued]:
    if not scores:
        return []
    owners = await redis.mget([keys.IN_PROGRESS.encode() + job_id for job_id, _ in scores])
    return [_Queued(job_id, score, owner) for (job_id, score), owner in zip(scores, owners, strict=True)]


async def _describe(
    redis: Any,
    queue: str,
    chosen: Mapping[State, Sequence[_Queued]],
    now_ms: float,
    serializer: Serializer | None,
) -> list[Listed]:
    all_of_them: list[tuple[State, _Queued]] = [(state, job) for state, some in chosen.items() for job in some]
    if not all_of_them:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for _, job in all_of_them:
            pipe.strlen(keys.JOB.encode() + job.id)
            pipe.get(keys.RETRY.encode() + job.id)
            pipe.pttl(keys.IN_PROGRESS.encode() + job.id)
            pipe.hget(keys.unknown(queue), job.id)
            pipe.get(keys.OWN.encode() + job.id)
        answers = await _answers(pipe)
    facts = [answers[at : at + 5] for at in range(0, len(answers), 5)]
    small = [job.id for (_, job), (size, *_) in zip(all_of_them, facts, strict=True) if 0 < (size or 0) <= MOST_READ]
    bodies = await _bodies(redis, small)
    listed: list[Listed] = []
    for (state, job), (size, starts, left_ms, unknown, own) in zip(all_of_them, facts, strict=True):
        call, trouble = _call(size, bodies.get(job.id), serializer)
        where = place(job.score, now_ms)
        name = unknown.decode("utf-8", "backslashreplace") if unknown else None
        listed.append(
            Listed(
                id=keys.id_text(job.id),
                queue=queue,
                state=state,
                handler=call.handler if call else name,
                attempt=_count(starts),
                priority=where.priority if where else 0,
                due_ms=where.due_ms if where and job.owner is None else None,
                enqueued_ms=call.enqueued_ms if call else None,
                holder=_holder(job.owner, left_ms),
                reason="unknown-handler" if unknown else _waits(state, history_of(own)),
                trouble=trouble,
            )
        )
    return listed


def _waits(state: State, history: History) -> str | None:
    """What a job waits for that was snoozed for it."""
    snoozed = state in ("waiting", "deferred") and history.waits_for is not None
    return f"waits for the limit {history.waits_for}" if snoozed else None


async def _bodies(redis: Any, ids: Sequence[bytes]) -> dict[bytes, bytes | None]:
    if not ids:
        return {}
    return dict(zip(ids, await redis.mget([keys.JOB.encode() + job_id for job_id in ids]), strict=True))


def _call(size: int | None, body: bytes | None, serializer: Serializer | None) -> tuple[Call | None, str | None]:
    """The call in a body, or why there is none to show."""
    if size is None:
        return None, "its body's key is of a wrong type"
    if body is None:
        return None, f"its body has {size} bytes" if size else "its body is missing"
    call = wire.decode_call(body, serializer)
    return (call, None) if isinstance(call, Call) else (None, call.reason)


async def _letters(redis: Any, queue: str, dead: Sequence[tuple[bytes, float]]) -> list[Listed]:
    async with redis.pipeline(transaction=False) as pipe:
        for job_id, _ in dead:
            pipe.hget(keys.LETTER.encode() + job_id, "letter")
        letters = [_letter(data) for data in await _answers(pipe)]
    return [
        Listed(
            id=keys.id_text(job_id),
            queue=queue,
            state="dead",
            handler=letter.handler,
            attempt=letter.attempt,
            enqueued_ms=letter.enqueued_ms,
            reason=letter.reason,
            died_ms=letter.died_ms,
        )
        if letter
        else Listed(keys.id_text(job_id), queue, "dead", trouble="its letter has expired, or cannot be read")
        for (job_id, _), letter in zip(dead, letters, strict=True)
    ]


async def job(redis: Any, job_id: str, queues: Sequence[str], serializer: Serializer | None = None) -> Sheet:
    """Everything that is known of a job. It is looked for in `queues`, and in the one that its letter names."""
    found = await _found(redis, job_id)
    letter, result = _letter(found.letter), _result(found.result, serializer)
    spot = await _spot(redis, job_id, [*queues, letter.queue] if letter else queues)
    call, why = _call(found.body_bytes, found.body, serializer) if found.body_bytes else (None, None)
    history = History(letter.crashes, letter.errors) if letter else history_of(found.own)
    return Sheet(
        job=_summary(job_id, found, spot, call, letter, result, history),
        now_ms=found.now_ms,
        place=spot.place if spot else None,
        ahead=spot.ahead if spot else None,
        body_bytes=found.body_bytes,
        history=history,
        steps=[step.decode("utf-8", "backslashreplace") for step in found.steps],
        abort_ms=_finite(found.abort_ms),
        letter=letter,
        result=result,
        result_left_s=max(found.result_left_ms, 0) / 1000 if result else None,
        unique_left_s=found.unique_left_ms / 1000 if found.unique_left_ms > 0 else None,
        call=call,
        trouble=[*found.trouble, *([why] if why else [])],
    )


def _summary(
    job_id: str,
    found: "_Found",
    spot: "_Spot | None",
    call: Call | None,
    letter: Letter | None,
    result: wire.Result | None,
    history: History,
) -> Listed:
    """The job as it would be listed: what its body does not say, its letter does, or its result."""
    ended = letter or result
    where = place(spot.score, found.now_ms) if spot else None
    source = call or ended
    state = _state(found, spot, letter, result)
    return Listed(
        id=job_id,
        queue=spot.queue if spot else letter.queue if letter else "",
        state=state,
        handler=source.handler if source else None,
        attempt=_count(found.starts) or (ended.attempt if ended else 0),
        priority=where.priority if where else 0,
        due_ms=where.due_ms if where and not found.owner else None,
        enqueued_ms=call.enqueued_ms if call else None,
        holder=_holder(found.owner, found.lease_left_ms),
        reason=letter.reason if letter else _waits(state, history),
        died_ms=letter.died_ms if letter else None,
    )


@frozen
class _Found:
    """What the keys of a job hold."""

    now_ms: int
    owner: bytes | None
    lease_left_ms: int | None
    starts: bytes | None
    own: bytes | None
    result: bytes | None
    result_left_ms: int
    unique_left_ms: int
    letter: bytes | None
    steps: Sequence[bytes]
    abort_ms: float | None
    body: bytes | None
    body_bytes: int
    trouble: Sequence[str]


async def _found(redis: Any, job_id: str) -> _Found:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.get(keys.of(keys.IN_PROGRESS, job_id))
        pipe.pttl(keys.of(keys.IN_PROGRESS, job_id))
        pipe.get(keys.of(keys.RETRY, job_id))
        pipe.get(keys.of(keys.OWN, job_id))
        pipe.get(keys.of(keys.RESULT, job_id))
        pipe.pttl(keys.of(keys.RESULT, job_id))
        pipe.hget(keys.of(keys.LETTER, job_id), "letter")
        pipe.hkeys(keys.of(keys.ONCE, job_id))
        pipe.zscore(keys.ABORT, keys.id_bytes(job_id))
        pipe.strlen(keys.of(keys.JOB, job_id))
        pipe.hstrlen(keys.of(keys.LETTER, job_id), "body")
        pipe.pttl(keys.of(keys.UNIQUE, job_id))
        answers = await pipe.execute(raise_on_error=False)
    names = (
        "",
        "lease",
        "",
        "count of starts",
        "history",
        "result",
        "",
        "letter",
        "steps",
        "abort flags",
        "body",
        "",
        "",
    )
    trouble = [
        f"the key of its {name} is of a wrong type"
        for name, answer in zip(names, answers, strict=True)
        if name and isinstance(answer, ResponseError)
    ]
    now, owner, left_ms, starts, own, result, result_ms, letter, steps, abort_ms, size, dead_size, unique_ms = map(
        _read, answers
    )
    body_bytes = size or dead_size or 0
    body = None
    if 0 < body_bytes <= wire.MAX_BODY:
        read = redis.get(keys.of(keys.JOB, job_id)) if size else redis.hget(keys.of(keys.LETTER, job_id), "body")
        body = await read
    return _Found(
        now_ms=_ms(now),
        owner=owner,
        lease_left_ms=left_ms,
        starts=starts,
        own=own,
        result=result,
        result_left_ms=result_ms,
        unique_left_ms=unique_ms,
        letter=letter,
        steps=steps or (),
        abort_ms=abort_ms,
        body=body,
        body_bytes=body_bytes,
        trouble=trouble,
    )


@frozen
class _Spot:
    """Where a job stands."""

    queue: str
    score: float
    ahead: int
    place: float


async def _spot(redis: Any, job_id: str, queues: Sequence[str]) -> _Spot | None:
    """The first of `queues` that has the job."""
    raw = keys.id_bytes(job_id)
    async with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.zscore(queue, raw)
            pipe.zrank(queue, raw)
        answers = await _answers(pipe)
    for queue, score, rank in zip(queues, answers[::2], answers[1::2], strict=True):
        if score is not None:
            return _Spot(queue, score, rank or 0, await _place(redis, queue, raw, score))
    return None


async def _place(redis: Any, queue: str, raw: bytes, score: float) -> float:
    """The score that the job gets back: `later` has it under `token|place|id`, with the same score as the queue."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrangebyscore(keys.later(queue), score, score, start=0, num=SEEN)
        (entries,) = await _answers(pipe)
    for entry in entries or ():
        _, was, job_id = (*entry.split(b"|", 2), b"", b"")[:3]
        if job_id == raw:
            try:
                return float(was)
            except ValueError:
                break
    return score


def _state(found: _Found, spot: _Spot | None, letter: Letter | None, result: wire.Result | None) -> State:
    """As `Client.status` says it."""
    if spot:
        return _Queued(b"", spot.score, found.owner).state(found.now_ms)
    if letter and not (result and (result.ok or result.cancelled)):  # else it is of an earlier job of the id
        return "dead"
    if result is None:
        return "unknown" if found.result is None else "completed"
    return "completed" if result.ok else "cancelled" if result.cancelled else "failed"


def _holder(owner: bytes | None, left_ms: int | None) -> Holder | None:
    """Ours hold with a token `fence:incarnation:number`, stock arq with `1`."""
    if owner is None:
        return None
    token = re.fullmatch(rb"\d+:([^:]*):\d+", owner)
    left_s = left_ms / 1000 if left_ms is not None and left_ms >= 0 else None
    return Holder(token[1].decode("utf-8", "backslashreplace") if token else None, left_s)


def _letter(data: bytes | None) -> Letter | None:
    try:
        return None if data is None else from_json(data, Letter)
    except (ValueError, RecursionError):
        return None


def _result(data: bytes | None, serializer: Serializer | None) -> wire.Result | None:
    try:
        result = None if data is None else wire.decode_result(data, serializer)
    except (pickles.Undecodable, ValueError, TypeError, OverflowError):
        return None
    possible = result and all(0 <= ms < LARGEST for ms in (result.started_ms, result.finished_ms))
    return result if possible else None


def _count(starts: bytes | None) -> int:
    return int(starts) if starts and re.fullmatch(rb"\d{1,9}", starts) else 0


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _ms(time: tuple[int, int]) -> int:
    return time[0] * 1000 + math.ceil(time[1] / 1000)


async def _answers(pipe: Any) -> list[Any]:
    """What a pipeline answers, with None for what stands under a key of a wrong type."""
    return [_read(answer) for answer in await pipe.execute(raise_on_error=False)]


def _read(answer: Any) -> Any:
    if isinstance(answer, ResponseError):
        _trouble(answer)
        return None
    return answer


def _trouble(error: ResponseError) -> Trouble:
    """A key of a wrong type. Raises whatever else the server refuses."""
    if str(error).startswith("WRONGTYPE"):
        return Trouble("its key is of a wrong type")
    raise error
