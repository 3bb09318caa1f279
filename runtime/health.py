"""How a worker is: its state, its checks and its statistics, from memory alone."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.adapters import process
from runtime.adapters.egress import Egress, Entry
from runtime.core.lifecycle import Change, Hold, State
from runtime.core.pool import PoolStatistics
from runtime.engine.actor import Actor
from runtime.engine.governor import Governor
from runtime.engine.statistics import Statistics

STALE_TURN_S = 60.0
"""A puller with a free slot and a Redis that answers, whose last turn is older than this, needs a restart."""


class Health:
    """Reads the worker's parts; `away` gives the cause while Redis does not answer.

    `probe` asks it, if what is known is old. It takes no longer than a second, and never raises. `pools` counts.
    `paused` names the queues whose jobs wait for the end of a pause.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        slots: int,
        statistics: Statistics,
        away: Callable[[], str | None],
        probe: Callable[[], Awaitable[None]],
        pools: Callable[[], Sequence[PoolStatistics]],
        governor: Callable[[], Governor],
        egress: Egress,
        paused: Callable[[], Sequence[str]],
    ) -> None:
        self._actors = actors
        self._slots = slots
        self._statistics = statistics
        self._away = away
        self.probe = probe
        self.pools = pools
        self._governor = governor
        self._egress = egress
        self._paused = paused
        self._transmitted = process.transmitted_bytes()
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()

    @property
    def stopping(self) -> bool:
        return self.state == "stopping"

    def live(self) -> bool:
        """False only where a restart would help: a free slot, a Redis that answers, and yet no claim."""
        now = time.monotonic()
        for actor in self._actors:
            # While it was quiet there were no turns.
            since = max(actor.puller.turn_at or self._started, actor.slots.free_since, self._governor().since)
            claims = self.state in ("starting", "awake")
            if actor.slots.free and self._away() is None and claims and now - since > STALE_TURN_S:
                return False
        return True

    def unready(self) -> str | None:
        """Why it takes no jobs, in the words of `document`; None: it does, and Redis answers."""
        if self.stopping:
            return "stopping"
        return self._away() or (None if self.turned() else "starting")

    def turned(self) -> bool:
        """The first claim has been made."""
        return any(actor.puller.turn_at is not None for actor in self._actors)

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return self._statistics.running

    @property
    def state(self) -> State:
        """Where the worker is in its life."""
        return self._governor().state

    @property
    def awake_because(self) -> Sequence[str]:
        """What keeps it from going quiet."""
        return self._governor().why

    @property
    def holds(self) -> Sequence[Hold]:
        """The same, and since when."""
        return self._governor().holds

    @property
    def sent(self) -> Sequence[Entry]:
        """Who has sent anything, the last first."""
        return self._egress.entries()

    @property
    def next_due_in_s(self) -> float | None:
        """As it was found when the worker went quiet."""
        return self._governor().next_due_in_s

    def document(self) -> Mapping[str, Any]:
        """What `/health` answers: the union of what the user documents read."""
        away = self._away()
        free = sum(actor.slots.free for actor in self._actors)
        stuck = sum(actor.slots.stuck for actor in self._actors)
        checks = {
            "redis": {"healthy": away is None, "message": away or "answers"},
            "worker": {
                "healthy": self.live() and not stuck,
                "message": f"{free} of {self._slots} slots free"
                + (f", {stuck} lost to handlers that do not stop" if stuck else "")
                + (f"; paused: {', '.join(paused)}" if (paused := self._paused()) else ""),
            },
        }
        well = all(check["healthy"] for check in checks.values())
        return {
            "status": "healthy" if well else "degraded" if self.live() else "unhealthy",
            "state": self.state,
            "service": "worker",
            "timestamp": datetime.now(UTC).isoformat(),
            "uptime": round((time.monotonic() - self._started) * 1000),
            "redis": "quiet" if self.state == "quiet" else "connected" if away is None else "disconnected",
            "checks": checks,
            "awake_because": self.awake_because,
            "stats": self.statistics(),
            "pools": [asdict(pool) for pool in self.pools()],
        }

    def detail(self) -> Mapping[str, Any]:
        """What `/health` answers besides to whoever has a token: what it sent, what holds it awake, what has changed.

        `transmitted_bytes` is what the system counts since the worker's start, for everything in its network namespace;
        `connections` are those of the whole process, by address. Both are null where there is no /proc.
        """
        now, wall = time.monotonic(), datetime.now(UTC)

        def moment(age_s: float) -> str:
            return (wall - timedelta(seconds=age_s)).isoformat(timespec="milliseconds")

        def changed(change: Change) -> Mapping[str, Any]:
            age_s = now - change.at
            return {"state": change.state, "why": change.why, "at": moment(age_s), "age_s": round(age_s, 3)}

        def sent(entry: Entry) -> Mapping[str, Any]:
            last_at = moment(entry.age_s)
            return {"by": entry.by, "sends": entry.sends, "last_at": last_at, "age_s": round(entry.age_s, 3)}

        def held(hold: Hold) -> Mapping[str, Any]:
            for_s = now - hold.since
            return {"why": hold.reason.text, "since": moment(for_s), "for_s": round(for_s, 3)}

        return {
            "egress": [sent(entry) for entry in self.sent],
            "transmitted_bytes": self._transmitted_since_start(),
            "connections": process.connected_to(),
            "held": [held(hold) for hold in self.holds],
            "history": [changed(change) for change in self._governor().history],
        }

    def _transmitted_since_start(self) -> int | None:
        """What went over an interface that is gone went with it: it is no less for that."""
        before, now = self._transmitted or {}, process.transmitted_bytes()
        return None if now is None else sum(max(0, sent - before.get(name, 0)) for name, sent in now.items())

    def statistics(self) -> dict[str, Any]:
        """The counts of the user documents."""
        counted = self._statistics
        rate = 100 * counted.succeeded / counted.processed if counted.processed else 100.0
        return {
            "processed": counted.processed,
            "succeeded": counted.succeeded,
            "failed": counted.failed,
            "retried": counted.retried,
            "currentlyProcessing": counted.running,
            "peakConcurrency": counted.peak,
            "startTime": self._started_at.isoformat(),
            "successRate": f"{rate:.1f}%",
        }
