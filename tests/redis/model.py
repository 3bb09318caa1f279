"""The queue as it is meant to be: what the scripts promise, over dictionaries, at whatever time it is told.

With it its schedules, what operators do with both, and what is said on channels about its jobs.

No Redis and no clock: `now` (ms) is given to every call, so it may be a server's, or a simulation's own. It is the
oracle of `test_model.py`, which holds the real scripts and stock arq to it. Stock arq is in it as well: `stock_*`.

Small on purpose: it looks at the whole queue where a claim looks at pages, and knows no key of a wrong type.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Literal, TypeVar

V = TypeVar("V")

SECOND_MS = 1000
DAY_MS = 86_400 * SECOND_MS
BAND_MS = 2**33
"""One step of priority, in a score."""
REMEMBER_MS = 8 * DAY_MS
LETTERS_MS = 30 * DAY_MS
REVIVED_MS = 90 * DAY_MS
BATCH_MS = 600 * SECOND_MS
CRASH_DELAY_MS = {2: 10_000}
AWAITED_MS = 60 * SECOND_MS
PROGRESS_MS = 600 * SECOND_MS
PURGED_MS = 60 * SECOND_MS
"""How long the result is kept by which those who wait for a purged job learn of its end."""
STEPS_MS = 30 * DAY_MS

ABORTED = 1.0
"""The score that stock arq's abort gives to a job which it takes for deferred."""
STOCK = "1"
"""What stock arq writes into a lease."""
STOCK_RESULT = b"stock"
STOCK_LEASE_MS = 310 * SECOND_MS
STOCK_STARTS_MS = 88_400 * SECOND_MS
STOCK_RESULT_MS = 3600 * SECOND_MS
STOCK_MAX_TRIES = 5


def priority(score: float) -> int:
    """The fraction of a score is its priority, in 1024ths."""
    p = score % 1 * 1024
    return int(p) if p == int(p) else 0


def place(due: float, p: int) -> float:
    return due - p * BAND_MS + p / 1024


class Kept(Generic[V]):
    """Values that are kept until a time."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[V, float]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> V | None:
        return self._kept[key][0] if key in self._kept else None

    def until(self, key: str) -> float:
        return self._kept[key][1]

    def keep(self, key: str, value: V, until: float) -> None:
        self._kept[key] = value, until

    def prolong(self, key: str, until: float) -> None:
        if key in self._kept:
            self._kept[key] = self._kept[key][0], until

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)

    def expire(self, now: float) -> None:
        self._kept = {key: (value, until) for key, (value, until) in self._kept.items() if now <= until}

    def age(self, ms: float) -> None:
        self._kept = {key: (value, until - ms) for key, (value, until) in self._kept.items()}

    def copy(self) -> Kept[V]:
        twin = Kept[V]()
        twin._kept = dict(self._kept)
        return twin

    def items(self) -> list[tuple[str, V, float]]:
        return [(key, value, until) for key, (value, until) in self._kept.items()]


@dataclass(frozen=True)
class Held:
    """What a worker knows of a job that it was handed, and proves itself with."""

    id: str
    token: str
    place: float
    starts: int


@dataclass(frozen=True)
class Handed(Held):
    body: bytes | None
    own: str | None
    abort_ms: float | None


@dataclass(frozen=True)
class Claimed:
    """A claim's answer. `more`: a job that is due was left. `paused`: one is due, and nobody may take it."""

    jobs: Sequence[Handed]
    lapsed: Sequence[str]
    more: bool
    due_in_ms: float | None
    others: int
    paused: bool = False


@dataclass(frozen=True)
class Outcome:
    """As `scripts.Settling`."""

    held: Held
    what: Literal["end", "again", "back"]
    keep_starts: int = 0
    delay_ms: int = 0
    own: str = ""
    result: bytes = b""
    result_ms: int = 0
    letter: str = ""
    body: bytes = b""
    flags: str = ""


@dataclass(frozen=True)
class StockRun:
    """A job that a stock worker runs, and the score it had when it was claimed."""

    id: str
    score: int


@dataclass(frozen=True, order=True)
class Entry:
    """In `later`: at a time, the job gets `place` back. Without a token it was only deferred."""

    token: str
    place: float
    id: str


@dataclass(frozen=True)
class Plan:
    """A schedule in the store. `next_ms`: of its next occurrence; infinity: it is paused; None: it is nowhere."""

    next_ms: float | None = None
    said: str | None = None
    """Its declaration."""
    fired: str | None = None
    """The last occurrence that was fired."""
    paused: str | None = None
    """Why."""


@dataclass(frozen=True)
class Fire:
    """What a worker wants of a schedule that it knows to stand at `next_ms`, declared as `said`."""

    name: str
    known: Plan
    next_ms: float | None
    """From now on; None: as it is."""
    said: str
    fired: str
    jobs: Sequence[tuple[str, bytes]]
    """Ids and bodies."""
    priority: int = 0


@dataclass
class Model:
    """One queue, with everything that is kept of its jobs."""

    queue: dict[str, float] = field(default_factory=dict)
    later: dict[Entry, float] = field(default_factory=dict)
    bodies: Kept[bytes] = field(default_factory=Kept)
    leases: Kept[str] = field(default_factory=Kept)
    starts: Kept[int] = field(default_factory=Kept)
    own: Kept[str] = field(default_factory=Kept)
    results: Kept[bytes] = field(default_factory=Kept)
    letters: Kept[tuple[str, bytes]] = field(default_factory=Kept)
    batches: Kept[tuple[int, str]] = field(default_factory=Kept)
    retired: Kept[str] = field(default_factory=Kept)
    """Workers that were told to stop."""
    unique: Kept[str] = field(default_factory=Kept)
    """Of whose enqueue an id is, for its time."""
    steps: Kept[dict[str, str]] = field(default_factory=Kept)
    awaited: Kept[str] = field(default_factory=Kept)
    """The names of who waits for an end."""
    progress: Kept[str] = field(default_factory=Kept)
    paused: Kept[str] = field(default_factory=Kept)
    """The queue itself, under no name: why."""
    plans: dict[str, Plan] = field(default_factory=dict)
    told: list[tuple[str, bytes]] = field(default_factory=list)
    """What was said on which channel."""
    dead: dict[str, float] = field(default_factory=dict)
    aborts: dict[str, float] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    marked: bool = False
    """An idle worker would be woken."""

    def copy(self) -> Model:
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Model(**{name: part.copy() if hasattr(part, "copy") else part for name, part in parts.items()})

    # -- time

    def expire(self, now: float) -> None:
        for kept in self._kept():
            kept.expire(now)

    def age(self, ms: float) -> None:
        """What is kept, queued, deferred or scheduled becomes older by `ms`: as if that time had passed.

        Only the place of a held job stays, since its holder knows the job by it.
        """
        for kept in self._kept():
            kept.age(ms)
        for times in (self.queue, self.dead, self.aborts):
            for key in times:
                times[key] -= ms if times[key] != ABORTED else 0
        self.later = {
            entry if entry.token else replace(entry, place=entry.place - ms): when - ms
            for entry, when in self.later.items()
        }
        self.plans = {
            name: plan if plan.next_ms is None else replace(plan, next_ms=plan.next_ms - ms)
            for name, plan in self.plans.items()
        }

    def evict(self, job_id: str, now: float) -> bool:
        """Lose a body. Whether there was one."""
        self.expire(now)
        had = job_id in self.bodies
        self.bodies.drop(job_id)
        return had

    def _kept(self) -> list[Kept[Any]]:
        return [kept for part in fields(self) if isinstance(kept := getattr(self, part.name), Kept)]

    # -- producers

    def enqueue(
        self,
        job_id: str,
        body: bytes,
        now: float,
        *,
        keep_ms: float,
        delay_ms: float = 0,
        priority: int = 0,
        fresh: bool = False,
        again: bool = False,
        unique_ms: float = 0,
    ) -> bool:
        """Add a job, unless its id has a body or a result, is held, or is another's for its time yet.

        With a time of its own (`unique_ms`) it takes over the id of one that has ended. `again`: this call's reply was
        lost.
        """
        self.expire(now)
        self.marked = True
        mark = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        ended = job_id in self.results and not unique_ms
        known = ended or job_id in self.unique or job_id in self.leases
        if job_id in self.bodies or (known and not (fresh and not again)):
            ours = self.bodies.get(job_id) == body or (unique_ms > 0 and self.unique.get(job_id) == mark)
            return again and (fresh or ours)
        self.bodies.keep(job_id, body, now + delay_ms + keep_ms)
        if unique_ms:
            self.unique.keep(job_id, mark, now + unique_ms)
            self.results.drop(job_id)
            self.steps.drop(job_id)
        if delay_ms > 0:
            self._defer(job_id, now + delay_ms, priority)
        else:
            self.queue[job_id] = place(now, priority)
        if not fresh:
            self.aborts.pop(job_id, None)
        return True

    def revive(self, job_id: str, p: int, now: float) -> str:
        """Make a dead letter a job again."""
        self.expire(now)
        letter = self.letters.get(job_id)
        if letter is None:
            self.dead.pop(job_id, None)
            return "gone"
        _, body = letter
        if not body:
            return "empty"
        if job_id in self.bodies:
            return "exists"
        self.bodies.keep(job_id, body, now + REVIVED_MS)
        self.queue[job_id] = place(now, p)
        for kept in (self.letters, self.results, self.starts, self.own):
            kept.drop(job_id)
        self.dead.pop(job_id, None)
        self.aborts.pop(job_id, None)
        self.marked = True
        return "done"

    def cancel(self, job_id: str, result: bytes, now: float, *, result_ms: float) -> str:
        """Take a job out that nobody holds, or ask its holder to stop it."""
        self.expire(now)
        if job_id not in self.queue:
            return "gone"
        if (holder := self.leases.get(job_id)) is not None:
            self.aborts[job_id] = now
            if holder != STOCK:
                self.told.append((f"rt:stop:{holder.split(':')[1]}", holder.encode()))
            return "asked"
        if job_id not in self.bodies:
            return "gone"
        score = self.queue.pop(job_id)
        self.later = {entry: when for entry, when in self.later.items() if entry.id != job_id or when != score}
        for kept in (self.bodies, self.starts, self.own, self.unique):
            kept.drop(job_id)
        self.results.keep(job_id, result, now + result_ms)
        self.aborts.pop(job_id, None)
        self.unknown.pop(job_id, None)
        self.failed += 1
        self._tell(job_id, result)
        return "cancelled"

    def follow(self, job_id: str, name: str, now: float) -> str:
        """Wait for the end of a job, under this name."""
        self.expire(now)
        if job_id in self.results:
            return "ended"
        if job_id not in self.queue and job_id not in self.bodies:
            return "gone"
        names = (self.awaited.get(job_id) or "").split()
        self.awaited.keep(job_id, " ".join([*names, *([] if name in names else [name])]), now + AWAITED_MS)
        return "noted"

    def _tell(self, job_id: str, result: bytes) -> None:
        """Those who wait for this end."""
        for name in (self.awaited.get(job_id) or "").split():
            self.told.append((f"rt:reply:{name}", f"{len(job_id)}:{job_id}".encode() + result))
        self.awaited.drop(job_id)

    # -- operators

    def pause(self, why: str, now: float, *, for_ms: float | None) -> int:
        """Let nothing be claimed. How much waits for its end, if it has one."""
        self.expire(now)
        self.paused.keep("", why, math.inf if for_ms is None else now + for_ms)
        return 0 if for_ms is None else self._announce()

    def resume(self, now: float) -> tuple[bool, int]:
        """Whether it was paused, and how much there is to do."""
        self.expire(now)
        was = "" in self.paused
        self.paused.drop("")
        return was, self._announce()

    def _announce(self) -> int:
        self.marked = self.marked or bool(self.queue)
        return len(self.queue) + sum(plan.next_ms not in (None, math.inf) for plan in self.plans.values())

    def purge(self, result: bytes, now: float, *, page: int = 100) -> tuple[int, int]:
        """Remove what nobody holds; who waits for one of those finds `result`. How many have gone, how many stay."""
        self.expire(now)
        before, ids = len(self.queue), self._in_order()
        for at in range(0, len(ids), page):
            self._purge(ids[at : at + page], result, now)
        return before - len(self.queue), len(self.queue)

    def _purge(self, ids: Sequence[str], result: bytes, now: float) -> None:
        gone = [job_id for job_id in ids if job_id not in self.leases]
        first, last = self.queue[ids[0]], self.queue[ids[-1]]
        self.later = {
            entry: when
            for entry, when in self.later.items()
            if entry.id not in gone or not first <= when <= last  # one beyond is swept out by a claim
        }
        for job_id in gone:
            del self.queue[job_id]
            for kept in (self.bodies, self.starts, self.own, self.steps, self.unique):
                kept.drop(job_id)
            self.aborts.pop(job_id, None)
            self.unknown.pop(job_id, None)
            if job_id in self.awaited:
                self.results.keep(job_id, result, now + PURGED_MS)
            self._tell(job_id, result)

    # -- schedules

    def fire(self, fire: Fire, now: float, *, keep_ms: float) -> list[bool] | None:
        """Move a schedule on, and add its jobs: those whose ids are free. None: it does not stand as is said."""
        self.expire(now)
        plan = self.plans.get(fire.name, Plan())
        if (plan.next_ms, plan.said) != (fire.known.next_ms, fire.known.said):
            return None
        added = [self._fire(job_id, body, fire.priority, now, keep_ms) for job_id, body in fire.jobs]
        self.plans[fire.name] = replace(
            plan,
            next_ms=plan.next_ms if fire.next_ms is None else fire.next_ms,
            said=fire.said,
            fired=fire.fired or plan.fired,
        )
        return added

    def _fire(self, job_id: str, body: bytes, p: int, now: float, keep_ms: float) -> bool:
        if job_id in self.results or job_id in self.leases or job_id in self.bodies:
            return False
        self.bodies.keep(job_id, body, now + keep_ms)
        self.queue[job_id] = place(now, p)
        self.aborts.pop(job_id, None)
        self.marked = True
        return True

    def pause_plan(self, name: str, why: str) -> None:
        plan = self.plans.get(name, Plan())
        self.plans[name] = replace(plan, next_ms=plan.next_ms and math.inf, paused=why)

    def resume_plan(self, name: str, next_ms: float) -> None:
        plan = self.plans.get(name, Plan())
        self.plans[name] = replace(plan, next_ms=plan.next_ms and next_ms, paused=None)

    def _defer(self, job_id: str, due: float, p: int) -> None:
        self.queue[job_id] = due + p / 1024
        if p > 0:
            self.later[Entry("", place(due, p), job_id)] = due + p / 1024

    # -- claim

    def retire(self, incarnation: str, now: float) -> None:
        """This worker was told to stop."""
        self.expire(now)
        self.retired.keep(incarnation, "", now + REMEMBER_MS)

    def claim(
        self,
        incarnation: str,
        seq: int,
        room: int,
        now: float,
        *,
        lease_ms: float,
        fence: int,
        again: bool = False,
        disowned: Sequence[str] = (),
    ) -> Claimed:
        """Lease up to `room` due jobs, the first first. Their tokens carry the numbers after `fence`."""
        self.expire(now)
        repeated = self._claimed_by(f":{incarnation}:{seq}") if again else []
        if repeated:
            self.marked = True
            return Claimed([self._lease(job, now, lease_ms) for job in repeated], [], True, None, 0)

        due, lapsed = self._due(now), list[Entry]()
        if due and "" in self.paused:
            left_ms = self.paused.until("") - now
            return Claimed([], [], False, None if left_ms == math.inf else left_ms, 0, paused=True)
        if len(due) > room or any(job_id in self.starts for job_id in due):
            lapsed = self._sweep(incarnation, disowned, now)
        kept_back = {entry.id for entry in lapsed}
        coming = min((score - now for score in self.queue.values() if score > now), default=None)
        taken, others, more = list[Handed](), 0, False
        for job_id in self._due(now):
            if len(taken) == room:
                more = True
                break
            if job_id in self.leases:
                others += 1
            elif job_id not in kept_back and (job := self._take(job_id, now)):
                taken.append(replace(job, token=f"{fence + 1 + len(taken)}:{incarnation}:{seq}"))
        jobs = [self._lease(job, now, lease_ms) for job in taken]
        self.marked = self.marked or (more and bool(jobs))
        return Claimed(jobs, [entry.token for entry in lapsed], more, coming, others)

    def _due(self, now: float) -> list[str]:
        return [job_id for job_id in self._in_order() if self.queue[job_id] <= now]

    def _in_order(self) -> list[str]:
        return sorted(self.queue, key=lambda job_id: (self.queue[job_id], job_id))

    def _claimed_by(self, end: str) -> list[Handed]:
        return [
            Handed(entry.id, entry.token, entry.place, self.starts.get(entry.id) or 1,
                   self.bodies.get(entry.id), self.own.get(entry.id), None)
            for entry in sorted(self.later)
            if entry.token.endswith(end) and self.leases.get(entry.id) == entry.token
        ]  # fmt: skip

    def _sweep(self, incarnation: str, disowned: Sequence[str], now: float) -> list[Entry]:
        """Give jobs their places back: those that were deferred, and those whose holder is gone. The rest is forgotten.

        What this very worker holds stays as it is, for its keeper to take again; it is returned.
        """
        lapsed = []
        for entry, when in list(self.later.items()):
            if when > now or self.leases.get(entry.id) == entry.token:
                continue
            touched = entry.id in self.leases or self.queue.get(entry.id) != when
            if not touched and entry.token.split(":")[1:2] == [incarnation] and entry.token not in disowned:
                lapsed.append(entry)
                continue
            del self.later[entry]
            if touched:
                continue
            if entry.token and entry.token not in disowned:
                if entry.token.split(":")[1] not in self.retired:
                    self._crashed(entry, now)
                    continue
                self.starts.keep(entry.id, max((self.starts.get(entry.id) or 0) - 1, 0), now + REMEMBER_MS)
            self.queue[entry.id] = entry.place
        return lapsed

    def _crashed(self, entry: Entry, now: float) -> None:
        crashes, _, history = (self.own.get(entry.id) or "0|").partition("|")
        self.own.keep(entry.id, f"{int(crashes) + 1}|{history}", now + REMEMBER_MS)
        delay_ms = CRASH_DELAY_MS.get(int(crashes) + 1, 0)
        if delay_ms:
            self._defer(entry.id, now + delay_ms, priority(entry.place))
        else:
            self.queue[entry.id] = entry.place

    def _take(self, job_id: str, now: float) -> Handed | None:
        body = self.bodies.get(job_id)
        aborted = self.queue[job_id] == ABORTED and job_id in self.aborts
        if body is None and (job_id in self.results or aborted):  # settled, and put back by an abort that came too late
            self._forget(job_id)
            return None
        if job_id not in self.starts:  # what is left is of an earlier job of the id
            self.own.drop(job_id)
        score = self.queue[job_id]
        p = priority(score)
        if p and now - score < BAND_MS:  # not promoted yet
            score = place(score - p / 1024, p)
        return Handed(job_id, "", score, (self.starts.get(job_id) or 0) + 1, body, self.own.get(job_id), None)

    def _forget(self, job_id: str) -> None:
        del self.queue[job_id]
        self.starts.drop(job_id)
        self.own.drop(job_id)
        self.aborts.pop(job_id, None)

    def _lease(self, job: Handed, now: float, lease_ms: float) -> Handed:
        self.leases.keep(job.id, job.token, now + lease_ms)
        self.starts.keep(job.id, job.starts, now + REMEMBER_MS)
        score = now + lease_ms + 1 + priority(job.place) / 1024
        if job.id in self.queue:
            self.queue[job.id] = score
        self.later[Entry(job.token, job.place, job.id)] = score
        return replace(job, abort_ms=self.aborts.get(job.id))

    # -- the holder

    def owns(self, held: Held) -> bool:
        """Its lease lives, or has lapsed and nobody has touched the job since."""
        if held.id in self.leases:
            return self.leases.get(held.id) == held.token
        score = self.queue.get(held.id)
        return (
            score is not None
            and score == self.later.get(Entry(held.token, held.place, held.id))
            and self.starts.get(held.id) == held.starts
        )

    def extend(self, held: Held, now: float, *, lease_ms: float, renew: bool = False) -> tuple[bool, float | None]:
        """Whether it is still the holder's, and the time of an abort flag."""
        self.expire(now)
        ours = self.owns(held)
        if ours:
            self.leases.keep(held.id, held.token, now + lease_ms)
            if renew:
                if held.id in self.bodies and self.bodies.until(held.id) < now + 3600 * SECOND_MS:
                    self.bodies.prolong(held.id, now + DAY_MS)
                self.starts.prolong(held.id, now + REMEMBER_MS)
            score = now + lease_ms + 1 + priority(held.place) / 1024
            if held.id in self.queue:
                self.queue[held.id] = score
            if (entry := Entry(held.token, held.place, held.id)) in self.later:
                self.later[entry] = score
        return ours, self.aborts.get(held.id)

    def settle(self, incarnation: str, seq: int, batch: Sequence[Outcome], now: float) -> str:
        """A digit for each: 1 settled, 0 refused, 2 its body is wanted. A repeated batch gets the first answer."""
        self.expire(now)
        mine = [self.owns(outcome.held) for outcome in batch]
        answered = self.batches.get(incarnation)
        if not all(mine) and answered and answered[0] == seq and len(answered[1]) == len(batch):
            return answered[1]
        verdicts = "".join(self._verdict(outcome, ours) for outcome, ours in zip(batch, mine, strict=True))
        for outcome, verdict in zip(batch, verdicts, strict=True):
            if verdict == "1":
                self._record(outcome, now)
        if any("a" in outcome.flags for outcome, verdict in zip(batch, verdicts, strict=True) if verdict == "1"):
            self._trim_aborts(now)
        if "1" in verdicts:
            self.batches.keep(incarnation, (seq, verdicts), now + BATCH_MS)
        return verdicts

    def _trim_aborts(self, now: float) -> None:
        """One that nobody has obeyed for 8 days was for a job that is no more."""
        self.aborts = {job_id: since for job_id, since in self.aborts.items() if since > now - 8 * DAY_MS}

    def _verdict(self, outcome: Outcome, ours: bool) -> str:
        if not ours:
            return "0"
        needs_body = outcome.what != "end" and outcome.held.id not in self.bodies and not outcome.body
        return "2" if needs_body else "1"

    def _record(self, outcome: Outcome, now: float) -> None:
        job_id = outcome.held.id
        self.leases.drop(job_id)
        self.later.pop(Entry(outcome.held.token, outcome.held.place, job_id), None)
        if "a" in outcome.flags:
            self.aborts.pop(job_id, None)
        if "u" in outcome.flags:
            self.unknown.pop(job_id, None)
        if outcome.what == "end":
            self._end(outcome, now)
        else:
            self._put_back(outcome, now)

    def _end(self, outcome: Outcome, now: float) -> None:
        job_id = outcome.held.id
        for kept in (self.bodies, self.starts, self.own):
            kept.drop(job_id)
        self.queue.pop(job_id, None)
        if "c" in outcome.flags:
            self.steps.drop(job_id)
        if "x" in outcome.flags:
            self.unique.drop(job_id)
        if outcome.result:
            self.results.keep(job_id, outcome.result, now + outcome.result_ms)
        self._tell(job_id, outcome.result)
        self.completed += "c" in outcome.flags
        self.failed += "f" in outcome.flags
        if outcome.letter:
            self.letters.keep(job_id, (outcome.letter, outcome.body), now + LETTERS_MS)
            self.dead[job_id] = now
            self.dead = {key: since for key, since in self.dead.items() if since > now - LETTERS_MS}

    def _put_back(self, outcome: Outcome, now: float) -> None:
        held, job_id = outcome.held, outcome.held.id
        remember_until = now + REMEMBER_MS + -(-outcome.delay_ms // SECOND_MS) * SECOND_MS
        self.starts.keep(job_id, max(outcome.keep_starts, 0), remember_until)
        if outcome.own:
            self.own.keep(job_id, outcome.own, remember_until)
        p = priority(held.place)
        # Nobody need be awake for a job whose handler is unknown.
        until = now + outcome.delay_ms + DAY_MS + ("n" in outcome.flags) * (REMEMBER_MS + DAY_MS)
        if job_id not in self.bodies:
            self.bodies.keep(job_id, outcome.body, until)
        elif abs(self.bodies.until(job_id) - (held.place + p * BAND_MS) - DAY_MS) <= 60_000:  # arq's own expiry
            self.bodies.prolong(job_id, until)
        if outcome.what == "again":
            self._defer(job_id, now + outcome.delay_ms, p)
        elif job_id in self.queue:
            self.queue[job_id] = held.place
        if "n" in outcome.flags:
            self.unknown[job_id] = outcome.letter
        self.marked = True

    def note(self, held: Held, said: str, now: float) -> bool:
        """How far a job is; nothing: what was noted is to be kept."""
        self.expire(now)
        if self.leases.get(held.id) != held.token:
            return False
        if not said:
            self.progress.prolong(held.id, now + PROGRESS_MS)
            return held.id in self.progress
        self.progress.keep(held.id, f"{held.token}|{now:.0f}|{said}", now + PROGRESS_MS)
        for name in (self.awaited.get(held.id) or "").split():
            self.told.append((f"rt:reply:{name}", f"p{len(held.id)}:{held.id}".encode()))
        return True

    def step(self, held: Held, name: str, value: str | None, now: float, *, again: bool = False) -> str:
        """A step of a job begins, or has given a value."""
        self.expire(now)
        if self.leases.get(held.id) != held.token:
            return "lost" if held.id in self.leases else "lapsed"
        known = self.steps.get(held.id) or {}
        if value is None and name in known and not (again and known[name] == f"b{held.token}"):
            return "done" if known[name].startswith("d") else "begun"
        said = f"b{held.token}" if value is None else f"d{value}"
        self.steps.keep(held.id, {**known, name: said}, now + STEPS_MS)
        return "new" if value is None else "done"

    def forward(self, job_id: str, now: float) -> bool:
        """Bring a job forward whose handler is known at last."""
        self.expire(now)
        self._trim_aborts(now)
        if job_id not in self.queue or job_id not in self.starts:
            self.unknown.pop(job_id, None)
        elif job_id not in self.leases:
            self.queue[job_id] = place(now, priority(self.queue[job_id]))
            self.unknown.pop(job_id, None)
            self.marked = True
            return True
        return False

    # -- stock arq

    def stock_enqueue(self, job_id: str, body: bytes, now: float, *, delay_ms: float = 0) -> bool:
        self.expire(now)
        if job_id in self.bodies or job_id in self.results:
            return False
        self.bodies.keep(job_id, body, now + delay_ms + DAY_MS)
        self.queue[job_id] = now + delay_ms
        return True

    def stock_claim(self, job_id: str, now: float) -> StockRun | None:
        """What now runs, if it does: it may be refused, or fail before it starts."""
        self.expire(now)
        score = self.queue.get(job_id)
        if job_id in self.leases or not score or score > now:
            return None
        self.leases.keep(job_id, STOCK, now + STOCK_LEASE_MS)
        starts = (self.starts.get(job_id) or 0) + 1
        self.starts.keep(job_id, starts, now + STOCK_STARTS_MS)
        aborted = self.aborts.pop(job_id, None) is not None
        if job_id not in self.bodies or aborted or starts > STOCK_MAX_TRIES:
            self.stock_end(job_id, now)
            return None
        return StockRun(job_id, int(score))

    def stock_end(self, job_id: str, now: float) -> None:
        """It ends for good; arq does not ask whether the job is still its own."""
        self.expire(now)
        self.results.keep(job_id, STOCK_RESULT, now + STOCK_RESULT_MS)
        for kept in (self.leases, self.starts, self.bodies):
            kept.drop(job_id)
        self.queue.pop(job_id, None)
        self.aborts.pop(job_id, None)

    def stock_retry(self, run: StockRun, defer_ms: float, now: float) -> None:
        """Also when it is cancelled at a stop: then without a delay."""
        self.expire(now)
        self.leases.drop(run.id)
        if defer_ms:
            self.queue[run.id] = self.queue.get(run.id, 0.0) + defer_ms + now - run.score

    def stock_abort(self, job_id: str, now: float) -> None:
        self.expire(now)
        known = job_id in self.bodies or job_id in self.results
        if known and job_id in self.queue and int(self.queue[job_id]) > now:
            self.queue[job_id] = ABORTED  # it takes whatever is not due for deferred
        self.aborts[job_id] = now
