"""The Lua scripts, each behind one typed function: callers never see a position in a list."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import field
from functools import cache
from pkgutil import get_data
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import NoPermissionError, NoScriptError

from runtime.adapters.redis import keys
from runtime.core.quota import Counted
from runtime.core.values import frozen

if TYPE_CHECKING:
    from runtime.core.alarm import Need
    from runtime.core.lifecycle import Due
    from runtime.core.schedule import Move, Schedule, Standing


class Script:
    """One script of `lua/`, with the part before it that it shares with others."""

    def __init__(self, name: str, shared: str) -> None:
        self.source = _text(shared) + _text(name)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    async def __call__(self, redis: Any, names: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        try:
            return await redis.execute_command(*self.command(names, args))
        except NoScriptError:  # a new server, a failover, or a SCRIPT FLUSH
            return await redis.execute_command("EVAL", self.source, len(names), *names, *args)

    def command(self, names: Sequence[str | bytes], args: Sequence[Any]) -> tuple[Any, ...]:
        """To be sent where a server that does not know the script may say so."""
        return ("EVALSHA", self.sha, len(names), *names, *args)

    def blocking(self, redis: Any, names: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        try:
            return redis.execute_command(*self.command(names, args))
        except NoScriptError:
            return redis.execute_command("EVAL", self.source, len(names), *names, *args)


def _text(name: str) -> bytes:
    # importlib.resources would take a millisecond to find the folder.
    text = get_data("runtime.adapters.redis", f"lua/{name}.lua")
    assert text is not None
    return text


@cache
def script(name: str, shared: str = "common") -> Script:
    """The script of this name, read when first used."""
    return Script(name, shared)


@frozen
class NewJob:
    """A job to add. `due_ms` is a moment, else it is due in `delay_ms`; `fresh`: nobody can know its id yet."""

    id: str
    body: bytes = field(repr=False)
    keep_ms: int
    delay_ms: int = 0
    due_ms: int | None = None
    priority: int = 0
    fresh: bool = False
    unique_ms: int = 0
    """For so long from now no other job gets its id, whatever becomes of it."""
    counted: Counted | None = None


@frozen
class Enqueued:
    """What became of the jobs of one call."""

    added: list[bool]
    """For each; False: its id is taken."""
    awake: int | None = None
    """How many workers of the queue there are to see them, once all was written; None where it was not asked.

    -1: none, and none is to be woken: the queue is paused until somebody resumes it.
    """
    unseen: bool = False
    """There are some, but a job that has been due for 5 s lies there unseen: they are busy, or have vanished."""


async def enqueue(
    redis: Any, queue: str, jobs: Sequence[NewJob], *, again: bool = False, ask: bool = False
) -> Enqueued:
    """Add `jobs` to `queue`. `again`: the reply was lost. `ask`: who is awake, which costs a command, or two.

    Raises `QuotaExceeded` where a quota does not allow all that would count for it; then nothing was written.
    """
    names = [queue, keys.later(queue), keys.mark(queue), keys.ABORT, keys.paused(queue)]
    quotas = list(dict.fromkeys(job.counted for job in jobs if job.counted is not None))
    numbers = {counted: number for number, counted in enumerate(quotas, 1)}
    args: list[Any] = ["again" if again else "", len(quotas), keys.here(queue) if ask else ""]
    for counted in quotas:
        allowance = counted.allowance
        args += ["" if limit is None else limit for limit in (allowance.hourly, allowance.pending)]
    for job in jobs:
        names += [keys.JOB + job.id, keys.RESULT + job.id]
        when = job.delay_ms if job.due_ms is None else f"@{job.due_ms}"
        number = "" if job.counted is None else numbers[job.counted]
        args += [job.id, job.body, job.keep_ms, when, job.priority, "fresh" if job.fresh else "", number, job.unique_ms]
    names += [keys.quota(counted.quota, counted.user) for counted in quotas]
    reply = await script("enqueue")(redis, names, args)
    if reply and reply[0] == b"over":
        _, number, which, used, wanted, wait_ms = reply
        raise quotas[int(number) - 1].exceeded(which.decode(), used=used, wanted=wanted, wait_s=wait_ms / 1000)
    added = [flag == 1 for flag in reply[: len(jobs)]]
    return Enqueued(added, reply[-2], unseen=reply[-1] == 1) if ask else Enqueued(added)


async def awake(redis: Any, queue: str) -> int:
    """How many workers of `queue` are awake; 0 if the server does not let us ask."""
    try:
        ((_, count),) = await redis.pubsub_numsub(keys.here(queue))
    except NoPermissionError:
        return 0
    return int(count)


@frozen
class Leased:
    """A job as `claim.lua` hands it out. `kind` is `string`, or why it has no body: its key's type, or `oversized`."""

    id: bytes
    token: str
    place: str
    starts: int
    body: bytes | None = field(repr=False)
    own: bytes | None
    abort_ms: int | None
    kind: str


@frozen
class ClaimReply:
    queue: str
    now_ms: int
    more: bool
    due_in_ms: float | None
    offset: int
    others: int
    """Ids seen that somebody else holds."""
    jobs: Sequence[Leased]
    lapsed: Sequence[str]
    """Tokens of this worker whose lease has lapsed."""
    trouble: Sequence[str]
    paused: bool
    """Something is due that nobody may take; `due_in_ms` is then the end of the pause."""


@frozen
class Claiming:
    """Lease up to `room` due jobs of the first of `queues` in which something is due, or else of the last; none of a
    queue that is paused.

    `again`: the claim of this `seq` was made before and its reply was lost. `only_new`: leave what has been started,
    and say that there is more: read late, as after a stop of the server, it would take jobs from owners on their way.
    """

    queues: Sequence[str]
    room: int
    lease_ms: int
    incarnation: str
    seq: int
    again: bool = False
    only_new: bool = False
    offset: int = 0
    disowned: Sequence[str] = ()
    until_ms: int = 0
    """By the server's clock: read later, it takes nothing, and says that there is more. 0: whenever it is read."""

    async def __call__(self, redis: Any) -> ClaimReply:
        return self.read(await script("claim")(redis, *self._said()))

    def command(self) -> tuple[Any, ...]:
        """It as one command, to be sent behind another; `read` reads its reply."""
        return script("claim").command(*self._said())

    def _said(self) -> tuple[Sequence[str | bytes], Sequence[Any]]:
        names = [
            name
            for queue in self.queues
            for name in (queue, keys.later(queue), keys.mark(queue), keys.ABORT, keys.paused(queue))
        ]
        kind = "again" if self.again else "new" if self.only_new else ""
        how = (self.room, self.lease_ms, self.incarnation, self.seq, kind, self.offset, self.until_ms)
        return names, [*how, *self.disowned]

    def read(self, reply: Any) -> ClaimReply:
        now, more, due_in, go_on, others, flat, lapsed, trouble, which, paused = reply
        jobs = [
            Leased(
                id=flat[a],
                token=flat[a + 1].decode(),
                place=flat[a + 2].decode(),
                starts=flat[a + 3],
                body=flat[a + 4],
                own=flat[a + 5],
                abort_ms=_moment(flat[a + 6]),
                kind=flat[a + 7].decode(),
            )
            for a in range(0, len(flat), 8)
        ]
        wait = float(due_in)
        return ClaimReply(
            queue=self.queues[int(which)],
            now_ms=int(now),
            more=more == 1,
            due_in_ms=None if wait < 0 else wait,
            offset=go_on,
            others=others,
            jobs=jobs,
            lapsed=[token.decode() for token in lapsed],
            trouble=_texts(trouble),
            paused=paused == 1,
        )


@frozen
class Lease:
    """A lease to extend."""

    id: str | bytes
    token: str
    place: str
    starts: int
    renew: bool = False
    """Also keep the job's body from expiring while it runs."""


@frozen
class Extended:
    ours: bool
    abort_ms: int | None


def extend(redis: Any, queue: str, leases: Sequence[Lease], *, lease_ms: int) -> list[Extended]:
    """Extend these leases; blocking, for the keeper's thread."""
    args: list[Any] = [lease_ms]
    for lease in leases:
        args += [lease.id, lease.token, lease.place, lease.starts, "renew" if lease.renew else ""]
    reply = script("extend").blocking(redis, [queue, keys.later(queue), keys.ABORT], args)
    return [Extended(reply[a] == 1, _moment(reply[a + 1])) for a in range(0, len(reply), 2)]


@frozen
class Settling:
    """An outcome as `settle.lua` takes it; the fields are described there."""

    id: str | bytes
    token: str
    place: str
    starts: int
    what: Literal["end", "again", "back"]
    keep_starts: int = 0
    delay_ms: int = 0
    own: bytes = field(default=b"", repr=False)
    result: bytes = field(default=b"", repr=False)
    result_ms: int | None = 0
    """None: for ever."""
    letter: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)
    flags: str = ""


@frozen
class SettleReply:
    verdicts: str
    """A digit for each: 1 settled, 0 refused, 2 the body is gone."""
    dropped: Sequence[str]
    """Dead letters that had to make room."""
    trouble: Sequence[str] = field(default=())


async def settle(
    redis: Any,
    queue: str,
    batch: Sequence[Settling],
    *,
    incarnation: str,
    seq: int,
    letters_kept: int = 10_000,
    letters_ms: int = 30 * keys.DAY_S * 1000,
) -> SettleReply:
    """Record outcomes. The same batch under the same `seq` may be sent again: it gets the first answer."""
    args: list[Any] = [seq, letters_kept, letters_ms]
    for one in batch:
        args += [
            one.id, one.token, one.place, one.starts, one.what, one.keep_starts, one.delay_ms,
            one.own, one.result, "" if one.result_ms is None else one.result_ms, one.letter, one.body, one.flags,
        ]  # fmt: skip
    verdicts, dropped, trouble = await script("settle")(
        redis,
        [
            queue,
            keys.later(queue),
            keys.ABORT,
            keys.batch(queue, incarnation),
            keys.count(queue),
            keys.dead(queue),
            keys.unknown(queue),
            keys.mark(queue),
        ],
        args,
    )
    return SettleReply(verdicts.decode(), _texts(dropped), _texts(trouble))


async def begin_step(
    redis: Any, job_id: str, token: str, step: str, *, again: bool = False
) -> tuple[str, bytes | None]:
    """`lost`, `lapsed`, `new`, `begun` or `done`, and the value of a step that is done. `again`: the reply was lost."""
    return await _step(redis, job_id, token, step, "begin-again" if again else "begin", b"")


async def finish_step(redis: Any, job_id: str, token: str, step: str, value: bytes) -> str:
    """`lost`, `lapsed` or `done`."""
    state, _ = await _step(redis, job_id, token, step, "finish", value)
    return state


async def _step(redis: Any, job_id: str, token: str, step: str, what: str, value: bytes) -> tuple[str, bytes | None]:
    state, known = await script("once")(
        redis, [keys.of(keys.IN_PROGRESS, job_id), keys.of(keys.ONCE, job_id)], [token, step, what, value, keys.ONCE_S]
    )
    return state.decode(), known


async def revive(redis: Any, queue: str, job_id: str, *, priority: int) -> str:
    """Put a dead letter's job back: `done`, `gone`, `empty` or `exists`."""
    prefixes = (keys.LETTER, keys.JOB, keys.RESULT, keys.RETRY, keys.OWN)
    names: list[Any] = [queue, keys.mark(queue), keys.dead(queue), *(keys.of(prefix, job_id) for prefix in prefixes)]
    names.append(keys.ABORT)
    reply: bytes = await script("revive")(redis, names, [keys.id_bytes(job_id), keys.BODY_S * 1000, priority])
    return reply.decode()


async def forward(redis: Any, queue: str, ids: Sequence[str | bytes]) -> int:
    """Bring jobs forward whose handler is known now; how many were. Abort flags older than 8 days are forgotten."""
    names = [queue, keys.unknown(queue), keys.mark(queue), keys.ABORT]
    moved: int = await script("forward")(redis, names, list(ids))
    return moved


async def outlook(
    redis: Any, queues: Sequence[str], handlers: Collection[str], schedules: "Sequence[Schedule]"
) -> "Due | None":
    """The first moment at which a job of `queues` is due, a lease on one, or a schedule; None: there is none.

    Jobs that were given back to wait for a worker that knows their handler count only if it is one of `handlers`, and
    schedules only if they are of `schedules`; those of a queue that is paused are due at the end of the pause, if it
    has one.
    """
    from runtime.core.lifecycle import Due  # no job waits for it

    names = [name for queue in queues for name in _of_queue(queue)]
    fired = [word for one in schedules for word in (queues.index(one.queue) + 1, one.name)]
    in_ms, schedule = await script("outlook")(redis, names, [len(handlers), *handlers, *fired])
    return None if in_ms == b"-" else Due(float(in_ms) / 1000, schedule.decode("utf-8", "replace") or None)


def _of_queue(queue: str) -> Sequence[str]:
    """What is looked at of a queue to know what is due next."""
    return queue, keys.unknown(queue), keys.schedule(queue), keys.paused(queue)


async def agenda(redis: Any, queue: str, names: Sequence[str]) -> "tuple[int, list[Standing]]":
    """The server's clock in ms, and how these schedules of `queue` stand."""
    now, nexts, said = await script("agenda")(redis, [keys.schedule(queue), keys.timetable(queue)], names)
    return int(now), [_standing(next_at, text) for next_at, text in zip(nexts, said, strict=True)]


def _standing(next_at: bytes | float | None, said: bytes | None) -> "Standing":
    from runtime.core.schedule import Standing  # most workers have none

    at = None if next_at is None else float(next_at)
    paused = at == math.inf
    declaration = None if said is None else said.decode("utf-8", "replace")
    return Standing(None if at is None or paused else round(at), declaration, paused)


async def fire(
    redis: Any, schedule: "Schedule", move: "Move", jobs: Sequence[tuple[str, bytes]], *, keep_ms: int
) -> list[bool] | None:
    """Move a schedule on, adding these jobs (id, body); whether each was added: not where its id is taken.

    None: it does not stand as `move` has it, and nothing was done.
    """
    queue, known = schedule.queue, move.standing
    names = [queue, keys.mark(queue), keys.ABORT, keys.schedule(queue), keys.timetable(queue)]
    args: list[Any] = [
        schedule.name,
        "inf" if known.paused else "" if known.next_ms is None else known.next_ms,
        known.declaration or "",
        "" if move.next_ms is None else move.next_ms,
        schedule.declaration,
        move.fires[-1] if move.fires else "",
        schedule.priority,
        keep_ms,
    ]
    for job_id, body in jobs:
        names += [keys.JOB + job_id, keys.RESULT + job_id]
        args += [job_id, body]
    reply = await script("fire")(redis, names, args)
    return None if reply == [b"moved"] else [flag == 1 for flag in reply]


@frozen
class CancelReply:
    """`changed`: the job has this body, which is not the one that the call was made for; call again."""

    said: Literal["cancelled", "asked", "gone", "changed"]
    body: bytes = b""
    starts: int = 0


async def cancel(
    redis: Any, queue: str, job_id: str, *, body: bytes = b"", result: bytes = b"", result_ms: int = 0
) -> CancelReply:
    """Cancel a job that nobody holds, leaving `result`, if `body` is still its body; or flag one that is held."""
    prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.RESULT, keys.OWN, keys.AWAITED, keys.UNIQUE)
    names: list[Any] = [queue, keys.later(queue), keys.ABORT, keys.count(queue), keys.unknown(queue)]
    names += [keys.of(prefix, job_id) for prefix in prefixes]
    said, *now = await script("cancel")(redis, names, [keys.id_bytes(job_id), body, result, result_ms])
    return CancelReply(said.decode(), now[0], int(now[1])) if now else CancelReply(said.decode())


@frozen
class PurgeStep:
    gone: int
    held: int
    """Jobs that stay, as somebody holds them."""
    score: str
    """Where the next step begins; empty at the end."""
    passed: int
    """How many jobs of that score it passes over."""


async def purge(redis: Any, queue: str, score: str, passed: int, most: int, result: bytes, result_ms: int) -> PurgeStep:
    """Remove up to `most` jobs from this score on that nobody holds; `result` is left for those who wait for one."""
    names = [queue, keys.later(queue), keys.ABORT, keys.unknown(queue)]
    reply = await script("purge")(redis, names, [score, passed, most, result, result_ms])
    gone, held, go_on, pass_over = reply
    return PurgeStep(gone, held, go_on.decode(), pass_over)


@frozen
class Followed:
    """What is known of a job's end. `noted`: there is none yet, and who asked will be told of it."""

    state: Literal["ended", "gone", "noted", "there"]
    result: bytes = field(default=b"", repr=False)


async def follow(redis: Any, queue: str, job_id: str, name: str) -> Followed | None:
    """The result of a job; if there is none yet, its end will be told on the channel of `name`, for a minute.

    None: the server does not let us, and a look by plain commands is all that is left.
    """
    prefixes = (keys.RESULT, keys.JOB, keys.AWAITED)
    names: list[Any] = [queue, *(keys.of(prefix, job_id) for prefix in prefixes)]
    try:
        state, *result = await script("follow")(redis, names, [keys.id_bytes(job_id), name, 1000 * keys.AWAITED_S])
    except NoPermissionError:
        return None
    return Followed(state.decode(), *result)


@frozen
class Noted:
    """How far a job is, for the board."""

    id: str
    token: str
    said: bytes = field(repr=False)
    """Empty: nothing new; what was noted is to be kept."""


async def progress(redis: Any, jobs: Sequence[Noted]) -> list[bool]:
    """Note how far these jobs are; whether it was, for each: only while the token owns the job, and if there is
    something to keep."""
    prefixes = (keys.IN_PROGRESS, keys.PROGRESS, keys.AWAITED)
    names = [keys.of(prefix, job.id) for job in jobs for prefix in prefixes]
    args: list[Any] = [1000 * keys.PROGRESS_S]
    for job in jobs:
        args += [keys.id_bytes(job.id), job.token, job.said]
    return [noted == 1 for noted in await script("progress")(redis, names, args)]


@frozen
class Census:
    """The jobs of a queue, counted."""

    waiting: int
    active: int
    deferred: int
    """Also those that wait for another attempt, or are snoozed."""
    dead: int
    """Dead letters that are kept."""
    unknown: int
    """Among the deferred: those that wait for a worker that knows their handler."""
    completed: int
    failed: int
    """Ended since the queue exists: well, and not well."""
    oldest_age_s: float | None
    """How long the oldest waiting job has been due."""


async def census(redis: Any, queue: str) -> Census:
    """Count the jobs of `queue`, in one read-only call."""
    names = [queue, keys.later(queue), keys.count(queue), keys.dead(queue), keys.unknown(queue)]
    waiting, active, deferred, dead, unknown, completed, failed, oldest = await script("census")(redis, names, [])
    age_ms = float(oldest)
    return Census(waiting, active, deferred, dead, unknown, completed, failed, None if age_ms < 0 else age_ms / 1000)


async def needs(redis: Any, queues: Sequence[str]) -> "list[Need]":
    """What these queues hold for workers that sleep, in one read-only call to the primary."""
    from runtime.core.alarm import Need  # workers have none of it

    names = [name for queue in queues for name in _of_queue(queue)]
    reply = await script("need")(redis, names, [keys.here(queue) for queue in queues])
    return [
        Need(queue, reply[a] == 1, reply[a + 1], None if float(reply[a + 2]) < 0 else float(reply[a + 2]) / 1000)
        for a, queue in zip(range(0, len(reply), 3), queues, strict=True)
    ]


def _moment(score: bytes | None) -> int | None:
    """A score of `arq:abort`, in ms; anybody may have written it, and written `inf`."""
    return None if score is None else round(min(max(float(score), 0.0), 2.0**53))


def _texts(items: Sequence[bytes]) -> list[str]:
    return [item.decode("utf-8", "backslashreplace") for item in items]
