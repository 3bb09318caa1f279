"""What a worker says of its own life: in its log, and in its heartbeats."""

import os
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from runtime import __version__
from runtime.adapters import process
from runtime.adapters.redis.connection import shown
from runtime.adapters.redis.heartbeats import Heartbeat, Served
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.tasks import what_they_do
from runtime.core.lifecycle import State
from runtime.core.policy import describe
from runtime.core.span import spell
from runtime.core.text import one_line
from runtime.engine.actor import Actor
from runtime.groups import Group
from runtime.health import Health
from runtime.registry import Handlers
from runtime.settings import Settings

if TYPE_CHECKING:  # most workers have none
    from runtime.core.schedule import Move, Schedule

MOST_NAMED = 10
"""A line names so many occurrences and jobs."""
LAST_SENT = 3
"""A line names so many of those who have sent anything."""


class Bulletins:
    """Reads the worker's parts; the events are those of the user documents."""

    def __init__(
        self,
        log: Any,
        settings: Settings,
        groups: Sequence[Group],
        handlers: Handlers,
        actors: Sequence[Actor],
        health: Health,
        source: RedisSource,
    ) -> None:
        self._log = log
        self._settings = settings
        self._groups = groups
        self._handlers = handlers
        self._actors = actors
        self._health = health
        self._source = source

    def boot(self, url: str) -> None:
        """What was found at the start."""
        queues = [queue for group in self._groups for queue in group.queues]
        slots = sum(group.slots for group in self._groups)
        settings = self._settings
        self._log.info(
            f"Worker started: {', '.join(queues)}. Concurrency: {slots} jobs in parallel",
            event_name="WORKER_BOOT",
            data={
                "worker_name": settings.worker_id,
                "version": settings.version,
                "commit": settings.commit,
                "runtime": __version__,
                "python": ".".join(map(str, sys.version_info[:3])),
                "queues": queues,
                "concurrency": slots,
                "handlers": sorted(self._handlers),
                "redis": shown(url),
                "redis_status": self._source.away or "ok",
                "embedded": settings.redis_url is None,
                "boot_ms": process.age_ms(),
                "timeout_s": settings.timeout_s,
                "lease_s": settings.lease_s,
            },
        )

    def draining(self, why: str, grace_s: float) -> None:
        self._log.info(
            f"{why}: no new jobs; {self._health.running} running, given back after {spell(grace_s)}",
            event_name="WORKER_DRAINING",
        )

    def evicts(self, policy: str) -> None:
        self._log.warning(
            f"Redis may delete jobs: its eviction policy is {policy}; it is to be noeviction", event_name="REDIS_EVICTS"
        )

    def state(self, state: State, why: str) -> None:
        """One line at each change that is not part of its start or its end, and when something else holds it awake."""
        sent = {entry.by: round(entry.age_s, 3) for entry in self._health.sent[:LAST_SENT]}
        told = ", ".join(f"{by} {spell(age_s)} ago" for by, age_s in sent.items())
        self._log.info(
            f"Worker is {state}: {why}; sent last: {told}",
            event_name=f"WORKER_{state.upper()}",
            data={"state": state, "reason": why, "sent_ago_s": sent},
        )

    def fired(self, schedule: "Schedule", move: "Move", added: Sequence[bool], late_ms: int) -> None:
        """A schedule was due: which occurrences have a job now, and how long ago the first of all that were due was."""
        first, fires = move.first_ms or 0, move.fires
        about = {
            "schedule": schedule.name,
            "queue": schedule.queue,
            "scheduled_for": [_moment(one) for one in fires[-MOST_NAMED:]],
            "jobs": [schedule.id_of(one) for one, new in zip(fires, added, strict=True) if new][-MOST_NAMED:],
            "late_ms": late_ms,
        }
        name = one_line(schedule.name)
        if not fires:
            text = f"Schedule {name}: what was due {spell(late_ms / 1000)} ago is skipped"
            self._log.warning(text, event_name="SCHEDULE_SKIPPED", **about)
            return
        text = f"Schedule {name} fired: " + (f"{sum(added)} jobs" if len(fires) > 1 else _moment(fires[0]))
        if not all(added):
            text += (
                "; somebody had enqueued it already" if len(fires) == 1 else "; the others had been enqueued already"
            )
        self._log.info(text, event_name="SCHEDULE_FIRED", **about)
        if first != fires[0]:
            since = f"from {_moment(first)} to before {_moment(fires[0])}"
            self._log.warning(
                f"Schedule {name}: nobody was there to fire it {since}", event_name="SCHEDULE_MISSED", **about
            )

    def unsettled(self) -> None:
        """Nothing, if all is settled."""
        unsettled = sum(len(actor.unsettled) for actor in self._actors)
        if unsettled:
            self._log.error(
                f"{unsettled} outcomes could not be recorded; these jobs run again when their leases lapse",
                event_name="OUTCOMES_LOST",
            )

    def crash(self, error: Exception) -> None:
        failure = describe(error)
        self._log.error(
            f"Worker crashed: {failure.error}: {failure.text}",
            event_name="WORKER_CRASH",
            data={"error": failure.text, "error_type": failure.error},
            exc_info=error,
        )

    def shutdown(self, why: str) -> None:
        statistics = self._health.statistics()
        self._log.info("WORKER STATISTICS", event_name="WORKER_STATISTICS", **statistics)
        reason = "SIGTERM (Deployment/Scale-down)" if why == "SIGTERM" else why
        self._log.info(
            f"Worker stopped: {reason}", event_name="WORKER_SHUTDOWN", data={"reason": reason, "stats": statistics}
        )

    def tasks(self) -> None:
        """Where every task waits, as one log line."""
        claims = {claim.token: claim for actor in self._actors for claim in actor.slots.claims}
        tasks = [
            {"at": where, **({"job_id": claims[token].id} if token in claims else {})}
            for token, where in what_they_do()
        ]
        self._log.info(f"{len(tasks)} tasks", event_name="TASK_DUMP", data={"tasks": tasks})

    def heartbeat(self) -> Heartbeat:
        """What is written to Redis every half minute. Not before a claim was answered: it is stamped by its clock."""
        counts, holds = self._health.statistics(), self._health.holds
        now, now_ms = time.monotonic(), self._source.server_ms()
        return Heartbeat(
            worker_id=self._settings.worker_id,
            incarnation=self._source.incarnation,
            version=self._settings.version,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=now_ms - (process.age_ms() or 0),
            at_ms=now_ms,
            state=self._health.state,
            awake_because=tuple(hold.reason.text for hold in holds),
            held_since_ms=tuple(now_ms - round(1000 * (now - hold.since)) for hold in holds),
            sent_ms={entry.by: now_ms - round(1000 * entry.age_s) for entry in self._health.sent},
            next_due_ms=self._next_due_ms(),
            groups=tuple(Served(group.queues, group.slots) for group in self._groups),
            handlers=tuple(sorted(self._handlers)),
            running=self._health.running,
            statistics={
                **{name: counts[name] for name in ("processed", "succeeded", "failed", "retried")},
                "peak": counts["peakConcurrency"],
            },
            redis=self._source.away or "ok",
            rss_bytes=process.rss_bytes(),
            pools=tuple(self._health.pools()),
        )

    def _next_due_ms(self) -> int | None:
        in_s = self._health.next_due_in_s
        if self._health.state != "quiet" or in_s is None:
            return None
        return self._source.server_ms() + round(1000 * max(in_s, 0.0))


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
