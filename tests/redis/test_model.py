"""The scripts, with stock arq beside them, and `model.py` agree after every step of any history; and no job is lost.

`make model` is the longer campaign: other histories at each run (a failing one is printed as a program).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import pytest
from arq.jobs import ResultNotFound, serialize_result
from arq.worker import JobExecutionFailed, Retry
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime.adapters.redis import keys, queues, schedules, scripts
from runtime.adapters.redis.scripts import Leased, NewJob, Noted, Settling
from runtime.core.schedule import Schedule, Standing, decide
from tests.redis import store as stores
from tests.redis.model import (
    DAY_MS,
    LETTERS_MS,
    PURGED_MS,
    STOCK_RESULT,
    Claimed,
    Fire,
    Handed,
    Held,
    Kept,
    Model,
    Outcome,
    Plan,
    StockRun,
)
from tests.redis.store import LEASE_MS, Stock, Store

T = TypeVar("T")
OURS = "settled by "
KEEP_MS = 2 * DAY_MS
RESULT_MS = 3_600_000

# No sum of these comes near a lease, ours or stock's, nor near a day: what real time passes by does not matter.
AGES_MS = (3_100, 11_300, 61_700, 352_000)
DELAYS_MS = (0, 5_700, 40_900)
UNIQUES_MS = (0, 0, 16_500, 102_400)
PAUSES_MS = (None, *DELAYS_MS[1:])
LONG_MS = 90_000_000
"""More than the day that stock arq keeps a body."""
CHIME_MS = 60_000
SHARP_MS = 1000
"""What the server reckons from a little earlier than a script, we do not reckon sharply."""
NAMES = ("a" * 16, "b" * 16)
"""Of those who wait for ends."""

AGE = """
local ms = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local ttl = redis.call('PTTL', key)
  if ttl > ms then
    redis.call('PEXPIRE', key, ttl - ms)
  elseif ttl >= 0 then
    redis.call('DEL', key)
  end
  if redis.call('TYPE', key).ok == 'zset' and not string.find(key, '^rt:.*:mark$') then
    local flat = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      local member = flat[i]
      local place, id = string.match(member, '^|([^|]*)|(.*)$')
      if place and string.find(key, '^rt:.*:later$') then
        redis.call('ZREM', key, member)
        member = string.format('|%.17g|%s', place - ms, id)
      end
      if flat[i + 1] ~= '1' then -- what arq writes to abort a job is no time
        redis.call('ZADD', key, string.format('%.17g', flat[i + 1] - ms), member)
      end
    end
  end
end
"""


def age(redis: Any, ms: int) -> None:
    """Make all data older by `ms`, as if that time had passed: scores and what is left of TTLs.

    The place of a held job stays as it is, since its holder knows the job by it. What is written inside of bodies,
    histories and results is not touched.
    """
    redis.eval(AGE, 0, ms)


LOOK = """
local seen = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, value = redis.call('TYPE', key).ok, false
  if kind == 'string' then
    value = redis.call('GET', key)
  elseif kind == 'zset' then
    value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'hash' then
    value = redis.call('HGETALL', key)
  end
  seen[#seen + 1] = { key, value, redis.call('PEXPIRETIME', key) }
end
return { redis.call('TIME'), seen }
"""


@dataclass
class Seen:
    """Everything on the server, in the model's words."""

    now_ms: float = 0
    values: dict[str, Any] = field(default_factory=dict)
    until: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> Seen:
        (seconds, micros), rows = store.raw.eval(LOOK, 0)
        seen = cls(int(seconds) * 1000 + int(micros) / 1000)
        for raw, value, until in rows:
            key = raw.decode()
            seen.values[key] = _readable(key, value)
            if until >= 0:
                seen.until[key] = until
        return seen


def _readable(key: str, value: Any) -> Any:
    if isinstance(value, list):
        texts = [text.decode("latin-1") for text in value]
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        is_hash = key.endswith((":count", ":unknown", ":timetable")) or key.startswith((keys.LETTER, keys.ONCE))
        return dict(pairs) if is_hash else _scores(pairs)
    if key.startswith(keys.RESULT) and OURS.encode() not in value:
        return STOCK_RESULT
    return json.loads(value)["reason"].encode() if key.endswith(":paused") else value


def _scores(pairs: list[tuple[str, str]]) -> dict[str, float]:
    return {member: float(score) for member, score in pairs}


def as_seen(model: Model, store: Store) -> Seen:
    """What the model says that the server should have."""
    queue, seen = store.queue, Seen()
    kinds: tuple[tuple[str, Kept[Any]], ...] = (
        (keys.JOB, model.bodies), (keys.IN_PROGRESS, model.leases), (keys.RETRY, model.starts),
        (keys.OWN, model.own), (keys.RESULT, model.results), (keys.UNIQUE, model.unique),
        (keys.AWAITED, model.awaited), (keys.PROGRESS, model.progress), (keys.ONCE, model.steps),
        (keys.paused(queue), model.paused),
    )  # fmt: skip
    for prefix, kept in kinds:
        for key, value, until in kept.items():
            seen.values[prefix + key] = value if isinstance(value, bytes | dict) else str(value).encode()
            if until < math.inf:
                seen.until[prefix + key] = until
    for key, nothing, until in model.retired.items():
        seen.values[keys.retired(key)], seen.until[keys.retired(key)] = nothing.encode(), until
    for key, letter, until in model.letters.items():
        seen.values[keys.LETTER + key] = {"letter": letter[0], "body": letter[1].decode("latin-1")}
        seen.until[keys.LETTER + key] = until
    for key, answer, until in model.batches.items():
        name = keys.batch(queue, key)
        seen.values[name], seen.until[name] = f"{answer[0]}:{answer[1]}".encode(), until
    later = {f"{entry.token}|{entry.place:.17g}|{entry.id}": when for entry, when in model.later.items()}
    counts = {"completed": model.completed, "failed": model.failed}
    plans = {name: plan.next_ms for name, plan in model.plans.items() if plan.next_ms is not None}
    told = {
        f"{what}|{name}": text
        for name, plan in model.plans.items()
        for what, text in (("said", plan.said), ("fired", plan.fired), ("paused", plan.paused))
        if text is not None
    }
    for name, content in (
        (queue, model.queue), (keys.later(queue), later), (keys.dead(queue), model.dead), (keys.ABORT, model.aborts),
        (keys.unknown(queue), model.unknown), (keys.count(queue), {k: str(n) for k, n in counts.items() if n}),
        (keys.schedule(queue), plans), (keys.timetable(queue), told),
    ):  # fmt: skip
        if content:
            seen.values[name] = content
    return seen


def result_of(held: Held, queue: str) -> bytes:
    """One that stock arq can read, and that no other claim writes."""
    data = serialize_result("work", (), {}, 1, 0, True, OURS + held.token, 1, 2, "", queue, held.id)
    assert data is not None
    return data


def handed(job: Leased) -> Handed:
    own = None if job.own is None else job.own.decode()
    return Handed(job.id.decode(), job.token, float(job.place), job.starts, job.body, own, job.abort_ms)


def settling(outcome: Outcome) -> Settling:
    held = outcome.held
    return Settling(
        held.id, held.token, f"{held.place:.17g}", held.starts, outcome.what, outcome.keep_starts, outcome.delay_ms,
        outcome.own.encode(), outcome.result, outcome.result_ms, outcome.letter.encode(), outcome.body, outcome.flags,
    )  # fmt: skip


@dataclass
class Actor:
    """One of our workers: what it knows, and what it waits to hear."""

    name: str
    claims: int = 0
    unanswered: bool = False
    held: list[Handed] = field(default_factory=list)
    late: list[Handed] = field(default_factory=list)
    """Settled, or told to be lost: what a zombie would still come with."""
    disowned: list[str] = field(default_factory=list)
    batches: int = 0
    batch: list[Outcome] = field(default_factory=list)
    """The last one sent."""
    batch_unanswered: bool = False

    def some(self, n: int) -> Handed:
        return [*self.held, *self.late][n % (len(self.held) + len(self.late))]

    def lets_go(self, held: Held) -> None:
        gone = [job for job in [*self.held, *self.late] if job.token == held.token]
        self.held = [job for job in self.held if job.token != held.token]
        self.late = [*(job for job in self.late if job.token != held.token), *gone[:1]][-4:]


@dataclass
class Chimes:
    """`schedule.Timetable`: every minute since the history began, however often its data were made older."""

    began_ms: int = 0
    text: str = "chimes"

    def after(self, moment_ms: int) -> int:
        return self.began_ms + (self.number(moment_ms) + 1) * CHIME_MS

    def number(self, moment_ms: int) -> int:
        return (moment_ms - self.began_ms) // CHIME_MS


@dataclass
class Planner:
    """The scheduler of one worker: `Scheduler`, as far as it is not the real `decide`."""

    schedules: Sequence[Schedule]
    told: set[str] = field(default_factory=set)
    """Those of which the store knows from it."""
    unsent: dict[str, tuple[Fire, Callable[[], Any]]] = field(default_factory=dict)
    """What comes late, or may have been lost."""


class Heard:
    """All that is said on channels of ours."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        pubsub.psubscribe("rt:*")
        pubsub.get_message(timeout=10)

    def news(self) -> list[tuple[str, bytes]]:
        """Since the last call, in no order."""
        self._pubsub.ping("end")
        said: list[tuple[str, bytes]] = []
        while (message := self._pubsub.get_message(timeout=10))["type"] != "pong":
            said.append((message["channel"].decode(), message["data"]))
        return sorted(said)


class Ledger:
    """What happened, told without the model: who claimed a job last, and which job of its id that was."""

    def __init__(self) -> None:
        self.jobs = 0
        self.fired: set[str] = set()
        self.alive: dict[str, int] = {}
        """Ids whose job has not come to an end; which job it is."""
        self._holder: dict[str, object] = {}
        self._job_of: dict[str, int | None] = {}
        self._settled: set[str] = set()

    def added(self, job_id: str) -> None:
        self.jobs += 1
        self.alive[job_id] = self.jobs

    def chimed(self, job_id: str) -> None:
        """I13: one job for each occurrence, whatever has become of it."""
        assert job_id not in self.fired, f"{job_id} was fired twice"
        self.fired.add(job_id)
        self.added(job_id)

    def claimed(self, job_id: str, by: object) -> None:
        self._holder[job_id] = by
        if isinstance(by, str):
            self._job_of[by] = self.alive.get(job_id)

    def holds(self, job_id: str, by: object) -> bool:
        """The last claim, of a job that has not ended."""
        return job_id in self.alive and self._holder.get(job_id) is by

    def accepted(self, held: Held) -> None:
        """I4: after a later claim, nothing of an earlier one is; nor is anything of an earlier job of the id."""
        assert self._holder[held.id] == held.token, f"{held} is not the last claim of its job"
        assert self._job_of[held.token] in (None, self.alive.get(held.id)), f"{held} is of an earlier job"

    def settled(self, outcome: Outcome, *, resent: bool) -> None:
        """I2: once for each claim."""
        if outcome.held.token in self._settled:
            assert resent, f"{outcome.held} was settled twice"
            return
        self.accepted(outcome.held)
        self._settled.add(outcome.held.token)
        if outcome.what == "end":
            self.alive.pop(outcome.held.id, None)

    def ended_by_others(self, job_id: str) -> None:
        self.alive.pop(job_id, None)


OF_JOBS = {
    "delays", "priorities", "two rooms", "lost claims", "lost settles", "resends", "zombies", "stock", "stock aborts",
    "stock enqueues", "long times", "letters", "unknown", "batches", "renews", "cancels", "fresh ids",
    "evictions", "deploys",
}  # fmt: skip
OF_SCHEDULES = {"schedules", "late fires", "plans"}
RULES = OF_JOBS | OF_SCHEDULES | {"uniques", "pauses", "purges", "waits", "steps"}
THEMES = {
    "everything": RULES,
    "jobs": OF_JOBS,
    "schedules": {*OF_SCHEDULES, "evictions"},
    "schedules among others": {*OF_SCHEDULES, "zombies", "stock aborts", "stock", "evictions", "two rooms"},
    "ids that come again": {"uniques", "resends", "steps"},
    "ids that come again after any end": {"uniques", "cancels", "letters", "long times", "stock aborts", "evictions"},
    "pauses": {"pauses", "lost claims", "priorities", "delays", "two rooms", "zombies"},
    "cancels": {"cancels", "waits", "uniques", "steps", "priorities", "delays"},
    "purges": {"purges", "waits", "uniques", "steps", "two rooms", "fresh ids"},
    "purges of jobs of all kinds": {"purges", "waits", "priorities", "delays", "stock", "stock aborts", "unknown"},
}
"""What may happen in a history beside the plainest steps."""
numbers = st.integers(0, 7)


class Histories(RuleBasedStateMachine):
    """Any order of what clients, workers and stock arq do, on a few ids that meet again and again.

    Each history has a theme, and is without some kinds of steps (`off`), lest all of them are the same mixture.
    """

    def __init__(self, store: Store, heard: Heard, theme: set[str]) -> None:
        super().__init__()
        self.store, self.heard, self.theme = store, heard, theme
        store.raw.flushall()
        self.model, self.ledger = Model(), Ledger()
        self.seen = Seen()
        self.actors = [Actor("a-1"), Actor("b-2")]
        self.runs: list[tuple[StockRun, Stock]] = []
        self.texts = self.deploys = 0
        self.last_added: tuple[str, bytes, dict[str, Any]] | None = None
        self.bodies_may_be_gone = False

    @initialize(ids=st.sampled_from([1, 1, 1, 2, 2, 4]), off=st.sets(st.sampled_from(sorted(RULES)), max_size=5))
    def begin(self, ids: int, off: set[str]) -> None:
        self.ids = [f"j{n}" for n in range(ids)]
        self.off = off | (RULES - self.theme)
        self.chimes = Chimes(int(self.store.now_ms()) - CHIME_MS // 2)
        kinds: list[tuple[Literal["latest", "skip"], int]] = [("latest", 0), ("skip", 3)]
        self.planners = [
            Planner([
                Schedule("each", self.store.queue, self.chimes, misfire, p),
                Schedule("same", self.store.queue, self.chimes, misfire, p, self.ids[0]),
            ])
            for misfire, p in kinds
        ]  # fmt: skip

    def _id(self, n: int) -> str:
        return self.ids[n % len(self.ids)]

    def _if(self, kind: str, value: T, otherwise: T) -> T:
        return otherwise if kind in self.off else value

    def _do(self, act: Callable[[], T], play: Callable[[Model, float, T], T]) -> T:
        """Do it. At some moment the model gives the same answer, and comes to what is then on the server."""
        self.store.raw.delete(self.store.mark)
        before = math.floor(self.store.now_ms())
        answer = act()
        seen, told = Seen.of(self.store), self.heard.news()
        marked = seen.values.pop(self.store.mark, None) is not None
        for now in range(math.ceil(seen.now_ms), before - 1, -1):
            model = self.model.copy()
            model.marked, model.told = False, []
            played = play(model, now, answer)
            model.expire(seen.now_ms)
            agree = played == answer and model.marked == marked and sorted(model.told) == told
            if agree and not _differences(as_seen(model, self.store), seen):
                self.model, self.seen = model, seen
                return answer
        differences = _differences(as_seen(model, self.store), seen)
        raise AssertionError(
            f"model: {played}, {model.marked}, {model.told}; server: {answer}, {marked}, {told}; {differences}"
        )

    @invariant()
    def no_job_is_lost(self) -> None:
        queued = self.seen.values.get(self.store.queue, {})
        bodies = {key.removeprefix(keys.JOB) for key in self.seen.values if key.startswith(keys.JOB)}
        assert bodies <= queued.keys(), "I1: a job is not in the queue"
        assert self.bodies_may_be_gone or self.ledger.alive.keys() == bodies, (
            "I1: a job is gone, or there is one too many"
        )

    # -- producers

    @rule(
        n=numbers, delay_ms=st.sampled_from(DELAYS_MS), p=st.sampled_from([0, 0, 3, 1000]), fresh=st.booleans(),
        unique_ms=st.sampled_from(UNIQUES_MS),
    )  # fmt: skip
    def enqueue(self, n: int, delay_ms: int, p: int, fresh: bool, unique_ms: int) -> None:
        job_id = self._id(n)
        if fresh := self._if("fresh ids", fresh, False) and len(self.ids) < 6:
            job_id = f"f{self.texts}"
            self.ids.append(job_id)
        options = {
            "delay_ms": self._if("delays", delay_ms, 0),
            "priority": self._if("priorities", p, 0),
            "fresh": fresh,
        }
        self._add(job_id, unique_ms, **options)

    def _add(self, job_id: str, unique_ms: int = 0, **options: Any) -> None:
        self.texts += 1
        options |= {"keep_ms": KEEP_MS, "unique_ms": self._if("uniques", unique_ms, 0)}
        self.last_added = job_id, stores.body(str(self.texts)), options
        self._enqueue(again=False)

    @precondition(lambda self: self.last_added and "resends" not in self.off)
    @rule()
    def enqueue_again(self) -> None:
        self._enqueue(again=True)

    def _enqueue(self, *, again: bool) -> None:
        assert self.last_added is not None
        job_id, body, options = self.last_added
        job = NewJob(job_id, body, **options)
        had_one = keys.JOB + job_id in self.seen.values
        added = self._do(
            lambda: self.store.run(scripts.enqueue(self.store.scripts, self.store.queue, [job], again=again)).added[0],
            lambda model, now, _: model.enqueue(job_id, body, now, again=again, **options),
        )
        if added and not had_one and keys.JOB + job_id in self.seen.values:
            self.ledger.added(job_id)

    @precondition(lambda self: "letters" not in self.off)
    @rule(n=numbers, p=st.sampled_from([0, 3]))
    def revive(self, n: int, p: int) -> None:
        job_id = self._id(n)
        answer = self._do(
            lambda: self.store.run(scripts.revive(self.store.scripts, self.store.queue, job_id, priority=p)),
            lambda model, now, _: model.revive(job_id, p, now),
        )
        if answer == "done":
            self.ledger.added(job_id)

    befalls = st.sets(st.sampled_from(["added", "held", "followed"]))

    def _befall(self, n: int, unique_ms: int, what: set[str]) -> None:
        """Before something happens to a job."""
        if "added" in what:
            self._add(self._id(n), unique_ms)
        if "held" in what:
            self._claim(self.actors[n % 2], self._if("two rooms", 3, 1))
        if "followed" in what and "waits" not in self.off:
            self._follow(self._id(n), NAMES[n % 2])

    @precondition(lambda self: "cancels" not in self.off)
    @rule(n=numbers, unique_ms=st.sampled_from(UNIQUES_MS), before=befalls)
    def cancel(self, n: int, unique_ms: int, before: set[str]) -> None:
        self._befall(n, unique_ms, before)
        job_id = self._id(n)
        result = result_of(Held(job_id, "cancelled", 0, 0), self.store.queue)

        def act() -> str:
            call = partial(scripts.cancel, self.store.scripts, self.store.queue, job_id)
            first = self.store.run(call())
            if first.said != "changed":
                return first.said
            return self.store.run(call(body=first.body, result=result, result_ms=RESULT_MS)).said

        if self._do(act, lambda model, now, _: model.cancel(job_id, result, now, result_ms=RESULT_MS)) == "cancelled":
            self.ledger.ended_by_others(job_id)

    @precondition(lambda self: "waits" not in self.off)
    @rule(n=numbers, name=st.sampled_from(NAMES))
    def follow(self, n: int, name: str) -> None:
        self._follow(self._id(n), name)

    def _follow(self, job_id: str, name: str) -> None:

        def act() -> str:
            followed = self.store.run(scripts.follow(self.store.scripts, self.store.queue, job_id, name))
            assert followed is not None
            return followed.state

        self._do(act, lambda model, now, _: model.follow(job_id, name, now))

    # -- operators

    @precondition(lambda self: "pauses" not in self.off)
    @rule(
        n=numbers, for_ms=st.sampled_from(PAUSES_MS), lost=st.sampled_from(["", "reply"]), lapses=st.booleans(),
    )  # fmt: skip
    def pause(self, n: int, for_ms: int | None, lost: str, lapses: bool) -> None:
        """While somebody holds a job, or waits to hear of it; and somebody wants another."""
        self._claim(self.actors[n % 2], 1, self._if("lost claims", lost, ""))
        self._pause(for_ms)
        if lapses:
            self._time_passes(AGES_MS[1])
        self._claim(self.actors[n // 2 % 2], 1)

    def _pause(self, for_ms: int | None) -> None:
        self.texts += 1
        why, for_s = str(self.texts), None if for_ms is None else for_ms / 1000
        self._do(
            lambda: self.store.run(queues.pause(self.store.scripts, self.store.queue, why, for_s, 1)),
            lambda model, now, _: model.pause(why, now, for_ms=for_ms),
        )

    @precondition(lambda self: keys.paused(self.store.queue) in self.seen.values)
    @rule()
    def resume(self) -> None:
        self._do(
            lambda: self.store.run(queues.resume(self.store.scripts, self.store.queue)),
            lambda model, now, _: model.resume(now),
        )

    @precondition(lambda self: "purges" not in self.off)
    @rule(n=numbers, page=st.sampled_from([1, 2, 100]), unique_ms=st.sampled_from(UNIQUES_MS), before=befalls)
    def purge(self, n: int, page: int, unique_ms: int, before: set[str]) -> None:
        self._befall(n, unique_ms, before)
        result = result_of(Held("", "purged", 0, 0), self.store.queue)
        held = {key for key in self.seen.values if key.startswith(keys.IN_PROGRESS)}
        gone = [
            job_id for job_id in self.seen.values.get(self.store.queue, {}) if keys.IN_PROGRESS + job_id not in held
        ]

        def act() -> tuple[int, int]:
            score, out, stay, passed = "-inf", 0, 0, 0
            while score:
                step = self.store.run(
                    scripts.purge(self.store.scripts, self.store.queue, score, passed, page, result, PURGED_MS)
                )
                out, stay, score, passed = out + step.gone, stay + step.held, step.score, step.passed
            return out, stay

        self._do(act, lambda model, now, _: model.purge(result, now, page=page))
        for job_id in gone:
            self.ledger.ended_by_others(job_id)

    # -- schedules

    @precondition(lambda self: "schedules" not in self.off)
    @rule(
        n=numbers, fate=st.sampled_from(["", "", "", "late", "reply"]), chimes=st.booleans(),
        last=st.sampled_from(["", "", "ended", "held"]),
    )  # fmt: skip
    def fire(self, n: int, fate: str, chimes: bool, last: str) -> None:
        """A worker sees to its schedules; what it then sends may come late, or once more."""
        if chimes:
            self._time_passes(AGES_MS[2])
        if last:
            self._add(self.ids[0])
            self._run(self.actors[n // 2 % 2], "done", []) if last == "ended" else self._claim(
                self.actors[n // 2 % 2], 1
            )
        if last == "held" and "evictions" not in self.off:
            self._evict(self.ids[0])
        planner = self.planners[n % 2]
        for schedule in planner.schedules:
            self._see_to(planner, schedule, self._if("late fires", fate, ""))

    def _see_to(self, planner: Planner, schedule: Schedule, fate: str) -> None:
        now_ms, standing = self._stands(schedule)
        move = decide(schedule, standing, now_ms, begins=schedule.name not in planner.told)
        if move is None:
            planner.told.add(schedule.name)
            return
        ids = [schedule.job_id or f"each{self.chimes.number(moment_ms)}" for moment_ms in move.fires]
        self.texts += 1
        fire = Fire(
            schedule.name, _plan(standing), move.next_ms, schedule.declaration, "".join(map(str, move.fires)),
            [(job_id, stores.body(f"{job_id} {self.texts}")) for job_id in ids], schedule.priority,
        )  # fmt: skip
        call = partial(scripts.fire, self.store.scripts, schedule, move, fire.jobs, keep_ms=KEEP_MS)
        if fate:
            planner.unsent[schedule.name] = fire, call
        if fate in ("", "reply") and self._fire(fire, call) is not None and not fate:
            planner.told.add(schedule.name)
            if not fire.jobs:
                self._see_to(planner, schedule, fate)  # as it is due still

    @precondition(lambda self: any(planner.unsent for planner in self.planners))
    @rule(n=numbers)
    def fire_late(self, n: int) -> None:
        """What was on its way for long, or comes again; its sender may have sent others since."""
        planner = self.planners[n % 2] if self.planners[n % 2].unsent else self.planners[(n + 1) % 2]
        self._fire(*planner.unsent.pop(sorted(planner.unsent)[0]))

    def _stands(self, schedule: Schedule) -> tuple[int, Standing]:
        now_ms = 0

        def act() -> Plan:
            nonlocal now_ms
            now_ms, (standing,) = self.store.run(scripts.agenda(self.store.scripts, self.store.queue, [schedule.name]))
            return _plan(standing)

        plan = self._do(
            act, lambda model, now, _: replace(model.plans.get(schedule.name, Plan()), fired=None, paused=None)
        )
        paused = plan.next_ms == math.inf
        return now_ms, Standing(None if plan.next_ms is None or paused else round(plan.next_ms), plan.said, paused)

    def _fire(self, fire: Fire, call: Callable[[], Any]) -> list[bool] | None:
        added: list[bool] | None = self._do(
            lambda: self.store.run(call()), lambda model, now, _: model.fire(fire, now, keep_ms=KEEP_MS)
        )
        for (job_id, _), is_new in zip(fire.jobs, added or (), strict=bool(added)):
            if is_new and fire.name == "each":
                self.ledger.chimed(job_id)
            elif is_new:
                self.ledger.added(job_id)
        return added

    @precondition(lambda self: "plans" not in self.off and self.model.plans)
    @rule(name=st.sampled_from(["each", "same"]), goes_on=st.booleans())
    def plan(self, name: str, goes_on: bool) -> None:
        next_ms = self.chimes.after(int(self.store.now_ms()))
        if goes_on:
            self._do(
                lambda: self.store.run(schedules.resume(self.store.scripts, self.store.queue, name, next_ms)),
                lambda model, now, _: model.resume_plan(name, next_ms),
            )
        else:
            self._do(
                lambda: self.store.run(schedules.pause(self.store.scripts, self.store.queue, name, "why")),
                lambda model, now, _: model.pause_plan(name, "why"),
            )

    # -- at workers that start

    @precondition(lambda self: "unknown" not in self.off)
    @rule(n=numbers)
    def forward(self, n: int) -> None:
        job_id = self._id(n)
        self._do(
            lambda: self.store.run(scripts.forward(self.store.scripts, self.store.queue, [job_id])),
            lambda model, now, _: int(model.forward(job_id, now)),
        )

    # -- workers

    @rule(n=numbers, room=st.integers(1, 3), lost=st.sampled_from(["", "", "", "request", "reply"]))
    def claim(self, n: int, room: int, lost: str) -> None:
        self._claim(self.actors[n % 2], self._if("two rooms", room, 1), self._if("lost claims", lost, ""))

    def _claim(self, actor: Actor, room: int, lost: str = "") -> None:
        again = actor.unanswered
        actor.claims += not again
        actor.unanswered = bool(lost)
        if lost == "request":
            return
        before = self.seen
        answer = self._do(lambda: self._claim_of(actor, room, again), partial(_played_claim, actor, room, again))
        assert again or not answer.jobs or keys.paused(self.store.queue) not in self.seen.values, "I14: it is paused"
        for job in answer.jobs:
            held = before.values.get(keys.IN_PROGRESS + job.id)
            assert held is None or (again and held.decode() == job.token), "I12: it was held by somebody"
            self.ledger.claimed(job.id, job.token)
        if not lost:
            known = {job.token for job in actor.held}
            actor.disowned = [token for token in answer.lapsed if token not in known]
            actor.held += [job for job in answer.jobs if job.token not in known]

    def _claim_of(self, actor: Actor, room: int, again: bool) -> Claimed:
        reply = self.store.run(
            scripts.Claiming(
                [self.store.queue], room=room, lease_ms=LEASE_MS,
                incarnation=actor.name, seq=actor.claims, again=again, disowned=actor.disowned,
            )(self.store.scripts)
        )  # fmt: skip
        assert not reply.trouble
        jobs = [handed(job) for job in reply.jobs]
        claimed = Claimed(jobs, reply.lapsed, reply.more, reply.due_in_ms, reply.others, reply.paused)
        return _in_order(claimed, again)

    @precondition(lambda self: any(self._hands()))
    @rule(n=numbers, which=numbers, renew=st.booleans())
    def extend(self, n: int, which: int, renew: bool) -> None:
        actor, renew = self._someone(n), self._if("renews", renew, False)
        job = actor.some(which)
        lease = scripts.Lease(job.id, job.token, f"{job.place:.17g}", job.starts, renew)

        def act() -> tuple[bool, float | None]:
            (extended,) = scripts.extend(self.store.raw, self.store.queue, [lease], lease_ms=LEASE_MS)
            return extended.ours, extended.abort_ms

        ours, _ = self._do(act, lambda model, now, _: model.extend(job, now, lease_ms=LEASE_MS, renew=renew))
        if ours:
            self.ledger.accepted(job)
        else:
            actor.lets_go(job)

    @precondition(lambda self: "deploys" not in self.off)
    @rule(n=numbers)
    def deploy(self, n: int) -> None:
        """It is told to stop, and not heard of any more, except as a zombie; another one comes in its stead."""
        actor, name = self.actors[n % 2], self.actors[n % 2].name

        def act() -> None:
            self.store.redis.set(keys.retired(name), "", ex=keys.RETIRED_S)

        self._do(act, lambda model, now, _: model.retire(name, now))
        self.deploys += 1
        self.actors[n % 2] = Actor(f"d-{self.deploys}", late=[*actor.late, *actor.held][-4:])

    def _hands(self) -> list[list[Handed]]:
        return [actor.held if "zombies" in self.off else [*actor.held, *actor.late] for actor in self.actors]

    def _someone(self, n: int) -> Actor:
        """One who has something to come with."""
        first, second = self.actors[n % 2], self.actors[(n + 1) % 2]
        return first if self._hands()[n % 2] else second

    telling = st.sampled_from(["1", "2", "", "begin", "begin-again", "finish"])

    @precondition(lambda self: "steps" not in self.off and any(self._hands()))
    @rule(n=numbers, which=numbers, what=telling)
    def tell(self, n: int, which: int, what: str) -> None:
        self._tell(self._someone(n).some(which), what)

    def _tell(self, job: Handed, what: str) -> None:
        """A run says how far it is, or begins or ends a step."""
        redis = self.store.scripts
        if what.startswith("begin"):
            again = what == "begin-again"
            begin = partial(scripts.begin_step, redis, job.id, job.token, "step", again=again)
            self._do(
                lambda: self.store.run(begin())[0],
                lambda model, now, _: model.step(job, "step", None, now, again=again),
            )
        elif what == "finish":
            self._do(
                lambda: self.store.run(scripts.finish_step(redis, job.id, job.token, "step", b"7")),
                lambda model, now, _: model.step(job, "step", "7", now),
            )
        else:
            noted = Noted(job.id, job.token, what.encode())
            self._do(
                lambda: self.store.run(scripts.progress(redis, [noted]))[0],
                lambda model, now, _: model.note(job, what, now),
            )

    outcomes = st.sampled_from(["done", "silent", "dead", "cancelled", "again", "snooze", "back", "unknown"])

    @precondition(lambda self: any(self._hands()))
    @rule(
        n=numbers, which=numbers, kind=outcomes, other=outcomes, delay_ms=st.sampled_from(DELAYS_MS),
        extra=st.sampled_from(["", "", "a", "u", "au"]), carry=st.booleans(), both=st.booleans(),
        lost=st.sampled_from(["", "", "", "request", "reply"]),
    )  # fmt: skip
    def settle(
        self, n: int, which: int, kind: str, other: str, delay_ms: int, extra: str, carry: bool, both: bool, lost: str
    ) -> None:
        actor = self._someone(n)
        if actor.batch_unanswered:
            return self._send(actor, resent=True)  # nothing goes before it
        job = actor.some(which)
        actor.batch = [self._outcome(job, kind, delay_ms, extra, carry)]
        more = [held for held in actor.held if held.id != job.id]
        if more and both and "batches" not in self.off:
            actor.batch.append(self._outcome(more[0], other, delay_ms, "", carry))
        actor.batches += 1
        lost = self._if("lost settles", lost, "")
        actor.batch_unanswered = bool(lost)
        if lost != "request":
            self._send(actor, resent=False, heard=not lost)
        return None

    @rule(n=numbers, kind=outcomes, unique_ms=st.sampled_from(UNIQUES_MS), said=st.lists(telling, max_size=2))
    def live(self, n: int, kind: str, unique_ms: int, said: list[str]) -> None:
        """A job's whole life, if nothing comes between."""
        self._add(self._id(n), unique_ms)
        self._run(self.actors[n % 2], kind, said)

    @precondition(lambda self: "uniques" not in self.off)
    @rule(n=numbers, kind=outcomes, first_ms=st.sampled_from(UNIQUES_MS), ms=st.sampled_from(UNIQUES_MS))
    def take_over(self, n: int, kind: str, first_ms: int, ms: int) -> None:
        """An id comes again, and the reply to that is lost for long."""
        self._add(self._id(n), first_ms)
        self._run(self.actors[n % 2], kind, ["begin"])
        self._add(self._id(n), ms)
        if "resends" not in self.off:
            self._run(self.actors[n % 2], "done", [])
            self._enqueue(again=True)

    def _run(self, actor: Actor, kind: str, said: Sequence[str]) -> None:
        self._claim(actor, 1)
        if not actor.held or actor.batch_unanswered:
            return
        for what in self._if("steps", said, []):
            self._tell(actor.held[-1], what)
        actor.batches += 1
        actor.batch = [self._outcome(actor.held[-1], kind, 0, "", True)]
        self._send(actor, resent=False)

    @precondition(lambda self: "resends" not in self.off and any(actor.batch for actor in self.actors))
    @rule(n=numbers)
    def settle_again(self, n: int) -> None:
        actor = self.actors[n % 2] if self.actors[n % 2].batch else self.actors[(n + 1) % 2]
        self._send(actor, resent=True)

    def _send(self, actor: Actor, *, resent: bool, heard: bool = True) -> None:
        batch = list(map(settling, actor.batch))

        def act() -> str:
            call = scripts.settle(
                self.store.scripts, self.store.queue, batch, incarnation=actor.name, seq=actor.batches,
                letters_ms=LETTERS_MS,
            )  # fmt: skip
            reply = self.store.run(call)
            assert not reply.trouble
            assert not reply.dropped
            return reply.verdicts

        verdicts = self._do(act, lambda model, now, _: model.settle(actor.name, actor.batches, actor.batch, now))
        for outcome, verdict in zip(actor.batch, verdicts, strict=True):
            if verdict == "1":
                self.ledger.settled(outcome, resent=resent)
            if heard and verdict != "2":
                actor.lets_go(outcome.held)
        actor.batch_unanswered = not heard

    def _outcome(self, job: Handed, kind: str, delay_ms: int, extra: str, carry: bool) -> Outcome:
        crashes = (job.own or "0|").partition("|")[0]
        own, body = f"{crashes}|{kind}", (job.body or b"") if carry else b""
        match kind if kind not in ("dead", "unknown") else self._if({"dead": "letters"}.get(kind, kind), kind, "done"):
            case "done":
                return Outcome(
                    job, "end", result=result_of(job, self.store.queue), result_ms=RESULT_MS, flags="c" + extra
                )
            case "silent":
                return Outcome(job, "end", flags="c" + extra)
            case "cancelled":
                return Outcome(
                    job, "end", result=result_of(job, self.store.queue), result_ms=RESULT_MS, flags="fx" + extra
                )
            case "dead":
                return Outcome(
                    job, "end", result=result_of(job, self.store.queue), result_ms=RESULT_MS,
                    letter="exhausted", body=job.body or b"", flags="f" + extra,
                )  # fmt: skip
            case "again":
                return Outcome(job, "again", job.starts, delay_ms, own, body=body, flags=extra)
            case "snooze":
                return Outcome(job, "again", job.starts - 1, delay_ms, own, body=body, flags=extra)
            case "unknown":
                return Outcome(job, "again", job.starts - 1, delay_ms, own, letter="name", body=body, flags="n")
            case _:
                return Outcome(job, "back", job.starts - 1, body=body, flags=extra)

    # -- stock arq

    @precondition(lambda self: "stock enqueues" not in self.off)
    @rule(n=numbers, delay_ms=st.sampled_from(DELAYS_MS))
    def stock_enqueue(self, n: int, delay_ms: int) -> None:
        job_id, delay_ms = self._id(n), self._if("delays", delay_ms, 0)
        if keys.IN_PROGRESS + job_id in self.seen.values and keys.JOB + job_id not in self.seen.values:
            return  # arq asks for the body only: who holds a job whose body has expired would end the new one with it
        self.texts += 1
        call = partial(self.store.arq.enqueue_job, "work", self.texts, _job_id=job_id)

        def play(model: Model, now: float, added: bool) -> bool:
            body = self.store.raw.get(keys.JOB + job_id) if added else b""
            return model.stock_enqueue(job_id, body, now, delay_ms=delay_ms)

        if self._do(lambda: self.store.run(call(_defer_by=delay_ms / 1000 or None)) is not None, play):
            self.ledger.added(job_id)

    @precondition(lambda self: "stock" not in self.off)
    @rule(n=numbers)
    def stock_claim(self, n: int) -> None:
        job_id = self._id(n)
        stock, run = Stock(self.store), list[StockRun]()
        was_held = keys.IN_PROGRESS + job_id in self.seen.values
        results = self.seen.values.get(keys.RESULT + job_id), self.seen.until.get(keys.RESULT + job_id)

        def play(model: Model, now: float, _: bool) -> bool:
            run[:] = [found] if (found := model.stock_claim(job_id, now)) else []
            return bool(run)

        if self._do(lambda: stock.claims(job_id), play):
            assert not was_held, "I12: stock starts what somebody holds"
            self.ledger.claimed(job_id, stock)
            self.runs.append((run[0], stock))
        elif results != (self.seen.values.get(keys.RESULT + job_id), self.seen.until.get(keys.RESULT + job_id)):
            self.ledger.claimed(job_id, stock)
            self.ledger.ended_by_others(job_id)

    @precondition(lambda self: self.runs)
    @rule(n=numbers, ends=st.sampled_from(["result", "retry", "later", "stop"]))
    def stock_ends(self, n: int, ends: str) -> None:
        run, stock = self.runs.pop(n % len(self.runs))
        if ends == "later" and not self.ledger.holds(run.id, stock):
            ends = "stop"  # arq adds its delay to a score that is not its own any more: see test_claim.py
        self._stock_ends(run, stock, ends)

    def _stock_ends(self, run: StockRun, stock: Stock, ends: str) -> None:
        if ends == "stop":
            self._do(stock.is_stopped, lambda model, now, _: model.stock_retry(run, 0, now))
        elif ends == "result":
            self._do(stock.finishes, lambda model, now, _: model.stock_end(run.id, now))
            self.ledger.ended_by_others(run.id)
        else:
            defer_ms = DELAYS_MS[1] if ends == "later" else 0
            stock.ends = Retry(defer=defer_ms / 1000 or None)
            self._do(stock.finishes, lambda model, now, _: model.stock_retry(run, defer_ms, now))

    @precondition(lambda self: "stock aborts" not in self.off)
    @rule(n=numbers)
    def stock_abort(self, n: int) -> None:
        job_id = self._id(n)

        async def abort() -> None:
            with suppress(TimeoutError, ResultNotFound, JobExecutionFailed):
                await self.store.job(job_id).abort(timeout=0, poll_delay=0.001)

        self._do(lambda: self.store.run(abort()), lambda model, now, _: model.stock_abort(job_id, now))

    # -- time

    @rule(ms=st.sampled_from([*AGES_MS, 11_300, LONG_MS]))
    def time_passes(self, ms: int) -> None:
        if ms == LONG_MS:
            ms = self._if("long times", ms, AGES_MS[0])
        self._time_passes(ms)

    def _time_passes(self, ms: int) -> None:
        self.bodies_may_be_gone |= ms == LONG_MS
        self.chimes.began_ms -= ms
        self._do(lambda: age(self.store.raw, ms), lambda model, now, _: model.age(ms))

    @precondition(lambda self: "evictions" not in self.off)
    @rule(n=numbers)
    def evict(self, n: int) -> None:
        """A body is gone, as where a server that is full deletes what it likes."""
        self._evict(self._id(n))

    def _evict(self, job_id: str) -> None:
        self.bodies_may_be_gone = True
        self._do(lambda: bool(self.store.raw.delete(keys.JOB + job_id)), lambda model, now, _: model.evict(job_id, now))

    # -- at the end

    def teardown(self) -> None:
        if sys.exc_info()[0] is None and self.model.queue:
            self._drain()
        for _, stock in self.runs:
            stock.is_stopped()

    def _drain(self) -> None:
        """I1, I7: everybody leaves; a worker who has time comes to the end of all jobs, and nothing is left of them."""
        while self.runs:
            self._stock_ends(*self.runs.pop(), "stop")
        self.resume()
        heir = Actor("heir-3")
        for _ in range(6):
            self._time_passes(AGES_MS[2])
            self._work_off(heir)
            if not self.model.queue:
                break
        assert not self.model.queue, "I1: a job that is never due"
        self._time_passes(AGES_MS[2])
        for n in range(2):  # what is left in `later` is swept out by a claim that leaves something
            self._add(f"last{n}")
        self._claim(heir, 1)
        self._claim(heir, 1)
        self._settle_all(heir)
        left = [key for key in self.seen.values if not key.startswith(AT_REST)]
        assert not left, "I7"

    def _work_off(self, heir: Actor) -> None:
        while self.model.queue:
            heir.held = []
            self._claim(heir, 3)
            if not heir.held:
                return
            self._settle_all(heir)

    def _settle_all(self, heir: Actor) -> None:
        heir.batches += 1
        heir.batch = [self._outcome(job, "done", 0, "a", True) for job in heir.held]
        self._send(heir, resent=False)


AT_REST = (
    keys.RESULT, keys.LETTER, keys.ABORT, keys.OWN, keys.UNIQUE, keys.AWAITED, keys.PROGRESS, keys.ONCE, "rt:w:",
    keys.retired(""),
    *(f"rt:arq:queue:{name}" for name in ("dead", "count", "unknown", "schedule", "timetable")),
)  # fmt: skip


def _in_order(claimed: Claimed, again: bool) -> Claimed:
    """Of a repeated claim only which jobs it gives is promised."""
    jobs = sorted(claimed.jobs, key=lambda job: job.token) if again else claimed.jobs
    return replace(claimed, jobs=list(jobs), lapsed=sorted(claimed.lapsed))


def _played_claim(actor: Actor, room: int, again: bool, model: Model, now: float, answer: Claimed) -> Claimed:
    fence = int(answer.jobs[0].token.split(":")[0]) - 1 if answer.jobs else 0
    played = model.claim(
        actor.name, actor.claims, room, now, lease_ms=LEASE_MS, fence=fence, again=again, disowned=actor.disowned
    )
    if answer.paused and played.due_in_ms and answer.due_in_ms and abs(played.due_in_ms - answer.due_in_ms) < SHARP_MS:
        played = replace(played, due_in_ms=answer.due_in_ms)
    if answer.more:  # it may say so in vain, and then does not look for what is due next
        model.marked |= bool(answer.jobs)
        played = replace(played, more=True, due_in_ms=answer.due_in_ms)
    return _in_order(played, again)


def _plan(standing: Standing) -> Plan:
    return Plan(math.inf if standing.paused else standing.next_ms, standing.declaration)


def _differences(model: Seen, server: Seen) -> dict[str, tuple[object, object]]:
    names = model.values.keys() | server.values.keys()
    differences = {
        key: (model.values.get(key), server.values.get(key))
        for key in names
        if model.values.get(key) != server.values.get(key)
    }
    for key in model.until.keys() | server.until.keys():
        if abs(model.until.get(key, 0) - server.until.get(key, 0)) > SHARP_MS:
            differences[f"until {key}"] = model.until.get(key), server.until.get(key)
    return differences


@pytest.mark.parametrize("theme", THEMES)
def test_scripts_stock_arq_and_the_model_agree_and_no_job_is_lost(store: Store, theme: str) -> None:
    examples = int(os.environ.get("MODEL_EXAMPLES", 0))
    with store.raw.pubsub() as pubsub:
        heard = Heard(pubsub)
        run_state_machine_as_test(
            lambda: Histories(store, heard, THEMES[theme]),  # type: ignore[arg-type]  # documented as a factory
            settings=settings(
                max_examples=examples // len(THEMES) or 30,
                stateful_step_count=30,
                derandomize=not examples,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )
