"""What `runtime inspect` asks the store, as documents."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from runtime import settings
from runtime.adapters.redis import bodies, codecs, inspector, queues
from runtime.adapters.redis.bodies import Bodies
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.heartbeats import Heartbeat
from runtime.adapters.redis.inspector import Holder, Letter, Listed, Sheet, Trouble
from runtime.adapters.redis.queues import Pause
from runtime.adapters.redis.wire import Result
from runtime.cli.display import moment
from runtime.core.spec import DEFAULT_QUEUE
from runtime.core.values import frozen

Document = dict[str, Any]
REASONS = 100
"""Of the reasons for which bodies of a queue are refused, so many are told, the commonest first."""


@frozen
class Survey:
    """A look at the store, begun at `now_ms` by its clock."""

    redis: Any
    now_ms: int
    beats: Sequence[Heartbeat]
    names: Sequence[str]
    """The queues looked at."""
    serializer: Serializer | None
    """What bodies and results are read with."""

    async def queues(self) -> list[Document]:
        found: list[Document] = []
        pauses = await queues.pauses(self.redis, self.names)
        for queue, pause in zip(self.names, pauses, strict=True):
            census = await inspector.census(self.redis, queue)
            serve = sum(queue in beat.queues for beat in self.beats if beat.live(self.now_ms))
            counted = {"trouble": census.text} if isinstance(census, Trouble) else asdict(census)
            found.append({"queue": queue, "workers": serve, **counted, "paused": pause and _pause(pause, self.now_ms)})
        return found

    def workers(self) -> list[Document]:
        return [_worker(beat, self.now_ms) for beat in self.beats]

    async def jobs(self, most: int) -> list[Document]:
        found: list[Document] = []
        for queue in self.names:
            jobs = await inspector.jobs(self.redis, queue, most, self.serializer)
            if isinstance(jobs, Trouble):
                found.append({"queue": queue, "jobs": [], "trouble": jobs.text})
            else:
                found.append({"queue": queue, "jobs": [self._listed(job, self.now_ms) for job in jobs]})
        return found

    async def bodies(self) -> list[Document]:
        found: list[Document] = []
        for queue in self.names:
            seen = await bodies.examine(self.redis, queue, self.serializer)
            trouble = {"trouble": seen.text} if isinstance(seen, Trouble) else {}
            found.append({"queue": queue, **_seen(Bodies() if isinstance(seen, Trouble) else seen), **trouble})
        return found

    async def job(self, job_id: str, *, with_args: bool) -> Document:
        sheet = await inspector.job(self.redis, job_id, self.names, self.serializer)
        found = {
            **self._listed(sheet.job, sheet.now_ms),
            "queue": sheet.job.queue or None,
            "crashes": sheet.history.crashes,
            "errors": [{**asdict(error), "at": moment(error.at_ms)} for error in sheet.history.errors],
            "waits_for": sheet.history.waits_for,
            "snoozed_since": moment(sheet.history.snoozed_since_ms),
            "unknown_since": moment(sheet.history.unknown_since_ms),
            "place": sheet.place,
            "ahead": sheet.ahead,
            "body_bytes": sheet.body_bytes,
            "steps": sheet.steps,
            "unique_left_s": sheet.unique_left_s,
            "abort_asked_at": moment(sheet.abort_ms),
            "letter": sheet.letter and _letter(sheet.letter),
            "result": sheet.result and _result(sheet.result, sheet.result_left_s),
            "trouble": sheet.trouble,
        }
        return {**found, **_values(sheet)} if with_args else found

    def _listed(self, job: Listed, now_ms: int) -> Document:
        return {
            "id": job.id,
            "state": job.state,
            "handler": job.handler,
            "attempt": job.attempt,
            "priority": job.priority,
            "enqueued_at": moment(job.enqueued_ms),
            "due_at": moment(job.due_ms),
            "due_in_s": None if job.due_ms is None else (job.due_ms - now_ms) / 1000,
            "held_by": job.holder and self._holder(job.holder),
            "reason": job.reason,
            "died_at": moment(job.died_ms),
            "trouble": job.trouble,
        }

    def _holder(self, holder: Holder) -> Document:
        names = [beat.worker_id for beat in self.beats if beat.incarnation == holder.incarnation]
        return {
            "stock": holder.incarnation is None,
            "worker_id": names[0] if names else None,
            "incarnation": holder.incarnation,
            "left_s": holder.left_s,
        }


async def begin(redis: Any, named: Sequence[str], *, ask_workers: bool, serializer: Serializer | None = None) -> Survey:
    """A survey of the queues that are named, and of those of workers if `ask_workers`.

    Of all that have told of themselves: jobs may wait where the only worker sleeps, or was killed. Without `serializer`
    bodies are read with that of the environment, if it names one.
    """
    now_ms, beats = await inspector.workers(redis)
    names = {*named}
    if ask_workers:
        names.update(queue for beat in beats for queue in beat.queues)
    serializer = serializer or codecs.named(settings.serializer())
    return Survey(redis, now_ms, beats, sorted(names) or [DEFAULT_QUEUE], serializer)


def _pause(pause: Pause, now_ms: int) -> Document:
    ends_ms = None if pause.left_s is None else now_ms + 1000 * pause.left_s
    return {"reason": pause.reason, "since": moment(pause.since_ms), "until": moment(ends_ms), "left_s": pause.left_s}


def _seen(found: Bodies) -> Document:
    return {
        "readable": found.readable,
        "missing": found.missing,
        "refused": found.refused.total(),
        "reasons": [
            {"jobs": count, "reason": refusal.reason, "types": refusal.types, "example": found.examples[refusal]}
            for refusal, count in found.refused.most_common(REASONS)
        ],
    }


def _worker(beat: Heartbeat, now_ms: int) -> Document:
    return {
        "worker_id": beat.worker_id,
        "incarnation": beat.incarnation,
        "live": beat.live(now_ms),
        "age_s": max(beat.age_s(now_ms), 0.0),
        "state": beat.state,
        "version": beat.version,
        "host": beat.host,
        "pid": beat.pid,
        "started_at": moment(beat.started_ms),
        "up_s": max((now_ms if beat.live(now_ms) else beat.at_ms) - beat.started_ms, 0) / 1000,
        "groups": [{"queues": group.queues, "slots": group.slots} for group in beat.groups],
        "slots": beat.slots,
        "running": beat.running,
        "statistics": beat.statistics,
        "rss_bytes": beat.rss_bytes,
        "redis": beat.redis,
        "handlers": beat.handlers,
        "pools": [asdict(pool) for pool in beat.pools],
        "awake_because": beat.awake_because,
        "held": _held(beat),
        "sent": [
            {"by": by, "at": moment(at_ms), "age_s": max(now_ms - at_ms, 0) / 1000}
            for by, at_ms in sorted(beat.sent_ms.items(), key=lambda sent: -sent[1])
        ],
        "next_due_at": moment(beat.next_due_ms),
    }


def _held(beat: Heartbeat) -> list[Document]:
    """What keeps it awake, and for how long it did as it said so: it may be over by now."""
    return [
        {"why": why, "since": moment(since_ms), "for_s": max(beat.at_ms - since_ms, 0) / 1000}
        for why, since_ms in zip(beat.awake_because, beat.held_since_ms, strict=False)
    ]


def _letter(letter: Letter) -> Document:
    return {"reason": letter.reason, "category": letter.category, "error": letter.error, "text": letter.text}


def _result(result: Result, kept_s: float | None) -> Document:
    return {
        "ok": result.ok,
        "error": result.error,
        "text": result.text,
        "started_at": moment(result.started_ms),
        "finished_at": moment(result.finished_ms),
        "took_s": (result.finished_ms - result.started_ms) / 1000,
        "kept_s": kept_s,
    }


def _values(sheet: Sheet) -> Document:
    """What a job was given, and what it gave."""
    call, result = sheet.call, sheet.result
    return {
        "args": call.args if call else None,
        "kwargs": call.kwargs if call else None,
        "value": result.value if result else None,
    }
