"""Says what must not have happened. It knows what was acknowledged, what ran and what the server accepted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.core.schedule import Schedule
from tests.redis.model import Claimed, Fire, Handed, Held, Model, Outcome
from tests.simulation.clock import Clock
from tests.simulation.jobs import ATTEMPTS, Ending

CALM_AFTER_S = 12.0
"""So long after the last trouble nothing of it is left: no request on its way, nobody who waits for a lost reply, or
lets owners go first."""
UNSEEN_S = 2.0
"""A job that is due is claimed within so long where there is a free slot: an idle worker looks a second after the end
of a lease at the latest (`look.OF_A_LEASE`), and this is the second more of I5."""
RECLAIMED_S = 12.0
"""The same for a job that a worker has put off and was killed then: nobody else need have heard when it is due."""
STOPPED_S = 0.5
"""Within so long a run has ended that somebody wants to stop, where nothing is in the way: its worker is told."""
SHARP_S = 0.002


@dataclass
class Tenure:
    """A claim on a job, from the server's answer to its end."""

    job_id: str
    queue: str
    worker: str
    at: float
    until: float
    """The end of its lease."""
    granted_at: float
    number: int
    """Of the claim."""
    late: bool
    """That claim came to the server again, or after a later one: nobody has to ask for it."""
    heard: bool = False
    """Its worker knows of it."""
    ran: bool = False
    ending: Ending | None = None
    settled: Outcome | None = None
    settled_by: tuple[str, int] | None = None

    @property
    def burns_a_try(self) -> bool:
        """It failed, or lapsed. Being stopped, snoozed or never run is neither."""
        if self.settled is None or self.ending == "failed":
            return True
        return self.ending == "overdue" and self.settled.what != "back"


@dataclass
class Job:
    id: str
    runs: int = 0
    ends: int = 0
    unique_until: float = -math.inf
    """Until then no other gets its id."""
    tenures: list[Tenure] = field(default_factory=list)


class Judge:
    """The ledger. Every breach is kept, with its time; a history goes on after it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.jobs: dict[str, Job] = {}
        self.breaches: list[str] = []
        self.running: dict[str, set[str]] = {}
        """Tokens of the runs of each worker."""
        self.troubled_until = 0.0
        self._tenures: dict[str, Tenure] = {}
        self._killed = set[str]()
        self._last_claims: dict[tuple[str, str], int] = {}
        self._unseen_since: dict[str, float] = {}
        self._paused_until: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        """When somebody wanted runs to stop that have nothing in their way."""
        self.lapses = self.runs = self.slowest = self.slowest_recovery = 0.0

    def breach(self, what: str) -> None:
        self.breaches.append(f"{self._clock.now:.3f}: {what}")

    def troubled(self, until: float) -> None:
        """From now until then leases may lapse without anybody's fault."""
        self.troubled_until = max(self.troubled_until, until, self._clock.now)

    # -- producers

    def acked(self, job_id: str, unique_s: float = 0.0) -> None:
        if (last := self.jobs.get(job_id)) is not None and not last.ends:
            self.breach(f"I1: {job_id} is added while a job of this id is there")
        self.jobs[job_id] = Job(job_id, unique_until=self._clock.now + unique_s)

    def offered(self, job_id: str, unique_s: float, *, added: bool) -> None:
        """Somebody wants a job of an id that may have been used before."""
        last = self.jobs.get(job_id)
        left_s = 0.0 if last is None else last.unique_until - self._clock.now
        if added and left_s > SHARP_S:
            self.breach(f"I2: {job_id} is taken over, and is unique for {left_s:.3f} s yet")
        if not added and unique_s and left_s < -SHARP_S and (last is None or last.ends):
            self.breach(f"I1: {job_id} is refused, and nobody has it")
        if added:
            self.acked(job_id, unique_s)

    def ended_by_client(self, job_id: str) -> None:
        self.jobs[job_id].ends += 1
        self.jobs[job_id].unique_until = -math.inf

    def asked_to_stop(self, job_id: str) -> None:
        self._asked_at[job_id] = self._clock.now

    def paused(self, queue: str, until: float) -> None:
        self._paused_until[queue] = until

    def is_paused(self, queue: str) -> bool:
        return self._clock.now < self._paused_until.get(queue, -math.inf)

    def fired(self, schedule: Schedule, fire: Fire, added: Sequence[bool]) -> None:
        """I18: each occurrence once, and, by workers that agree on the schedule, none is left out."""
        for (job_id, _), is_new in zip(fire.jobs, added, strict=True):
            if not is_new or job_id in self.jobs:
                self.breach(f"I18: {job_id} is fired twice")
            self.acked(job_id)
        known_ms = fire.known.next_ms
        if fire.known.said == fire.said and known_ms is not None and fire.next_ms is not None:
            due = [
                schedule.id_of(moment_ms) for moment_ms in _occurrences(schedule, round(known_ms), round(fire.next_ms))
            ]
            wanted = due if schedule.misfire == "all" else due[-1:]
            if [job_id for job_id, _ in fire.jobs] != wanted:
                self.breach(f"I18: {[job_id for job_id, _ in fire.jobs]} are fired of {due}")

    # -- the server

    def claimed(self, queue: str, worker: str, number: int, claimed: Claimed, lease_until: float) -> None:
        last = self._last_claims.get((queue, worker), 0)
        self._last_claims[queue, worker] = max(last, number)
        if number > last:
            self._check_heard(queue, worker)
        late = number < last or (number == last and not any(job.token in self._tenures for job in claimed.jobs))
        for handed in claimed.jobs:
            tenure = self._tenures.get(handed.token)
            if tenure is None and self.is_paused(queue):
                self.breach(f"{handed.id} is claimed from a queue that is paused")
            if tenure is None:
                self._begin(handed, Tenure(
                    handed.id, queue, worker, self._clock.now, lease_until, self._clock.now, number, late
                ))  # fmt: skip
            else:  # again
                tenure.until, tenure.granted_at = lease_until, self._clock.now
                self._check_fence(handed, "claimed again")

    def _check_heard(self, queue: str, worker: str) -> None:
        for tenure in self._tenures.values():
            if (tenure.queue, tenure.worker, tenure.heard, tenure.late) == (queue, worker, False, False):
                tenure.heard = True
                if tenure.until > self._clock.now:
                    self.breach(f"I3: {worker} claims anew, and was never told of its claim on {tenure.job_id}")

    def _begin(self, handed: Handed, tenure: Tenure) -> None:
        job = self.jobs[handed.id]
        if job.ends:
            self.breach(f"I2: {job.id} is claimed after its end")
        if job.tenures:
            self._check_predecessor(job, job.tenures[-1])
        tries = sum(tenure.burns_a_try for tenure in job.tenures)
        if handed.starts != tries + 1:
            self.breach(f"I10: {job.id} begins attempt {handed.starts}, not {tries + 1}")
        job.tenures.append(tenure)
        self._tenures[handed.token] = tenure

    def _check_predecessor(self, job: Job, last: Tenure) -> None:
        if last.settled is not None:
            return
        self.lapses += 1
        if self._clock.now > self.troubled_until + CALM_AFTER_S:
            self.slowest_recovery = max(self.slowest_recovery, self._clock.now - last.until)
        if self._clock.now < last.until - SHARP_S:
            self.breach(f"I3: {job.id} is claimed while {last.worker} has a lease on it until {last.until:.3f}")
        if last.granted_at > self.troubled_until + CALM_AFTER_S and last.worker not in self._killed:
            self.breach(f"I3: the lease of {last.worker} on {job.id} lapsed without a cause")

    def extended(self, held: Held, lease_until: float) -> None:
        if self._check_fence(held, "extended"):
            tenure = self._tenures[held.token]
            tenure.until, tenure.granted_at = lease_until, self._clock.now

    def settled(self, outcome: Outcome, by: tuple[str, int]) -> None:
        held = outcome.held
        tenure = self._tenures[held.token]
        if tenure.settled is not None:
            if tenure.settled_by != by:
                self.breach(f"I2: {held.id} is settled twice under one claim")
            return
        self._check_fence(held, "settled")
        tenure.settled, tenure.settled_by = outcome, by
        if outcome.what == "end":
            self._end(self.jobs[held.id], outcome)

    def _end(self, job: Job, outcome: Outcome) -> None:
        job.ends += 1
        if "x" in outcome.flags:
            job.unique_until = -math.inf
        if job.ends > 1:
            self.breach(f"I2: {job.id} has ended twice")
        tries = sum(tenure.burns_a_try for tenure in job.tenures)
        lapses = sum(tenure.settled is None for tenure in job.tenures)
        if '"crashed"' in outcome.letter and lapses < 3:
            self.breach(f"I10: {job.id} is dead of crashes after {lapses}")
        if '"exhausted"' in outcome.letter and tries < ATTEMPTS:
            self.breach(f"I10: {job.id} is exhausted after {tries} attempts")

    def _check_fence(self, held: Held, what: str) -> bool:
        last = next(reversed(self.jobs[held.id].tenures), None)
        if last is None or last is not self._tenures[held.token]:
            self.breach(f"I4: {held.id} is {what} under a claim that is not its last")
            return False
        if last.settled is not None:
            self.breach(f"I4: {held.id} is {what} under a claim that was settled")
        return True

    # -- workers

    def heard(self, token: str) -> None:
        """Its worker has the claim."""
        self._tenures[token].heard = True

    def told(self, worker: str, token: str, *, settled: bool) -> None:
        """A worker has the server's verdict."""
        if settled != (self._tenures[token].settled is not None):
            job_id, said = self._tenures[token].job_id, "settled" if settled else "refused"
            self.breach(f"I2: {worker} takes its outcome of {job_id} for {said}")

    def begun(self, worker: str, size: int, job_id: str, token: str) -> int:
        """How many runs of the job there were before."""
        job, tenure = self.jobs[job_id], self._tenures[token]
        if tenure.ran:
            self.breach(f"I3: {job_id} runs twice under one claim")
        tenure.ran = True
        running = self.running.setdefault(worker, set())
        running.add(token)
        if len(running) > size:
            self.breach(f"I6: {worker} runs {len(running)} jobs in {size} slots")
        job.runs += 1
        self.runs += 1
        return job.runs - 1

    def ended(self, worker: str, token: str, how: Ending) -> None:
        self.running.get(worker, set()).discard(token)
        self._tenures[token].ending = how

    def running_of(self, worker: str) -> list[str]:
        """The jobs that this one runs."""
        return sorted(self._tenures[token].job_id for token in self.running.get(worker, ()))

    def killed(self, worker: str) -> None:
        """In calm times: only its own leases may lapse for that."""
        self._killed.add(worker)

    def crashed(self, worker: str) -> None:
        """Its actor died. The next one does not know of runs that would not stop, and has slots for as many jobs."""
        self.running.pop(worker, None)
        for tenure in self._tenures.values():
            tenure.heard |= tenure.worker == worker

    # -- while it goes on, and at its end

    @property
    def calm(self) -> bool:
        """What was wrong has left nothing behind."""
        return self._clock.now > self.troubled_until + CALM_AFTER_S

    def look(self, models: Mapping[str, Model], now_ms: int, *, free: bool, punctual: bool) -> None:
        """I5: nothing that is due stays unseen. To be called often.

        `free`: somebody has a slot for it; `punctual`: somebody sees to the schedules, as all others would.
        """
        due = set[str]()
        for queue, model in models.items() if self.calm else ():
            if free and not self.is_paused(queue):
                due |= {
                    job_id for job_id, at in model.queue.items() if at <= now_ms and not _leased(model, job_id, now_ms)
                }
            if punctual:
                due |= {f"schedule {name}" for name, plan in model.plans.items() if (plan.next_ms or now_ms) < now_ms}
        self._unseen_since = {job_id: self._unseen_since.get(job_id, self._clock.now) for job_id in due}
        for job_id, since in self._unseen_since.items():
            self.slowest = max(self.slowest, self._clock.now - since)
            if self._clock.now - since > (RECLAIMED_S if self._put_off_by_the_dead(job_id) else UNSEEN_S):
                self.breach(f"I5: {job_id} has been due since {since:.3f}, and somebody has time for it")
        for job_id, at in list(self._asked_at.items()):
            if self.jobs[job_id].ends or not self.calm:
                del self._asked_at[job_id]
            elif self._clock.now - at > STOPPED_S:
                self.breach(f"{job_id} was to stop at {at:.3f}, and runs")

    def _put_off_by_the_dead(self, job_id: str) -> bool:
        job = self.jobs.get(job_id)
        last = job.tenures[-1] if job and job.tenures else None
        return last is not None and last.settled is not None and last.worker in self._killed

    def close(self, models: Sequence[Model]) -> None:
        """All should have ended."""
        for job in self.jobs.values():
            if job.ends != 1:
                queued = any(job.id in model.queue for model in models)
                self.breach(f"I1: {job.id} has ended {job.ends} times, and is {'still' if queued else 'not'} queued")
        for model in models:
            left = {
                *model.queue,
                *(key for kept in (model.bodies, model.starts, model.own) for key, *_ in kept.items()),
            }
            if left:
                self.breach(f"I7: of {', '.join(sorted(left))} something is left")


def _occurrences(schedule: Schedule, first_ms: int, end_ms: int) -> Iterator[int]:
    moment_ms = schedule.timetable.after(first_ms - 1)
    while moment_ms < end_ms:
        yield moment_ms
        moment_ms = schedule.timetable.after(moment_ms)


def _leased(model: Model, job_id: str, now_ms: int) -> bool:
    return job_id in model.leases and now_ms <= model.leases.until(job_id)
