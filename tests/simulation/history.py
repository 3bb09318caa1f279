"""One history: what befalls a few workers and their jobs, all of it drawn from the number of a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from runtime.adapters.redis import keeper, keys, source, weather, wire
from runtime.adapters.redis.connection import REPLY_S
from runtime.core.job import Verdict
from runtime.core.schedule import Every, Misfire, Schedule
from runtime.engine import scheduler, slots, supervisor
from tests.redis.model import DAY_MS, SECOND_MS
from tests.simulation.clock import Agenda, Clock, Strand, Threads
from tests.simulation.jobs import CHIME, Ending, Plan, handler_of, plan_of
from tests.simulation.judge import CALM_AFTER_S, STOPPED_S, Judge
from tests.simulation.network import GOOD, BlockingClient, Client, Manners, Network
from tests.simulation.server import Server
from tests.simulation.worker import LEASE_S, Worker

ROUGH_S = 35.0
"""So long there is trouble."""
LAST_KILL_S = ROUGH_S + CALM_AFTER_S + 3.0
"""Also that of a queue's last pause."""
LONGEST_S = 500.0
LOOK_EVERY_S = 0.1
STEPS = 200_000
"""More than that is a loop that goes on for ever at one moment."""
TROUBLES = (
    "slow", "lost", "twice", "cut", "partition", "away", "restart", "kill", "stop", "bug", "drain", "quiet", "cancel",
    "storm", "pause", "purge",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What came of a history. `runs`, `lapses`: of all jobs; `slowest_s`: the longest that one was due in calm."""

    seed: int
    breaches: list[str]
    trace: list[str]
    jobs: int
    runs: int
    lapses: int
    slowest_s: float
    length_s: float


def play(seed: int, *, trace: bool = False) -> Told:
    return History(seed, trace=trace).play()


class History:
    def __init__(self, seed: int, *, trace: bool) -> None:
        self._seed = seed
        self._trace: list[str] | None = [] if trace else None
        self._rng = rng = random.Random(seed)
        self._clock = Clock()
        self._agenda = Agenda(self._clock)
        self._judge = Judge(self._clock)
        self._queues = ["q", "r"][: rng.choice([1, 1, 2])]
        self._server = Server(self._clock, self._agenda, self._queues, self)
        self._network = Network(self._clock, self._agenda, self._server, rng, self.trouble)
        self._threads = Threads(self._clock, self._adopt)
        self._workers: list[Worker] = []
        self._turn: Worker | None = None
        self._over = False
        count = 0 if rng.random() < 0.05 else rng.randint(1, len(TROUBLES))
        self._troubles = sorted(rng.sample(TROUBLES, count))
        misfires: list[Misfire] = ["latest", "all"]
        queue, chimes = rng.choice(self._queues), rng.random() < 0.4
        self._schedules = [
            Schedule(CHIME, queue, Every(span_ms), rng.choice(misfires))
            for span_ms in rng.sample((3000, 4000, 7000, 20_000), rng.choice([1, 1, 1, 2]) if chimes else 0)
        ]
        """Of one handler, by the versions of workers that there are."""

    def play(self) -> Told:
        with self._surroundings():
            try:
                self._plan()
                self._go_on()
                self._judge.close(list(self._server.models.values()))
            finally:
                for worker in self._workers:
                    with self._turn_of(worker):
                        worker.end()
        judge = self._judge
        return Told(
            self._seed, judge.breaches, self._trace or [], len(judge.jobs), int(judge.runs), int(judge.lapses),
            judge.slowest, self._clock.now,
        )  # fmt: skip

    @contextmanager
    def _surroundings(self) -> Generator[None]:
        """What the product takes from its modules, it takes from the history."""
        chance = random.Random(self._seed)
        with ExitStack() as stack:
            for module in (keeper, source, weather, slots, wire):
                stack.enter_context(patch.object(module, "time", self._clock))
            for module, name, value in (
                (slots, "random", chance),
                (scheduler, "random", chance),
                (supervisor, "random", chance),
                (keeper, "threading", self._threads),
                (keeper, "connect_blocking", self._connect_blocking),
                (source, "connect", self._connect),
                (source, "lent", lambda client, row: client),
                (source, "exchange", lambda client, *commands: client.ask(*commands)),
                (source, "Ear", _Deaf),
            ):
                stack.enter_context(patch.object(module, name, value))
            yield

    def _connect(self, url: str, *, reply_s: float | None = REPLY_S, **options: Any) -> Client:
        assert self._turn is not None
        client = Client(self._network, self._turn.name, reply_s)
        self._turn.clients.append(client)
        return client

    def _connect_blocking(self, url: str, *, reply_s: float, row: Any) -> BlockingClient:
        assert self._turn is not None
        return BlockingClient(self._network, self._clock, self._threads, self._turn.name, reply_s)

    def _adopt(self, strand: Strand) -> None:
        assert self._turn is not None
        self._turn.strand = strand

    # -- whose turn it is

    def _go_on(self) -> None:
        for _ in range(STEPS):
            when, step = self._next()
            if self._over or when > LONGEST_S:
                return
            self._clock.now = max(self._clock.now, when)
            step()
        self._judge.breach(f"{STEPS} steps were not enough")

    def _next(self) -> tuple[float, Callable[[], None]]:
        when, step = self._agenda.next_at(), self._agenda.step
        for worker in self._workers:
            if (at := worker.next_at()) < when:
                when, step = at, lambda worker=worker: self._step(worker)  # type: ignore[misc]
            if (at := worker.strand_at()) < when:
                when, step = at, lambda worker=worker: self._step_strand(worker)  # type: ignore[misc]
        return when, step

    def _step(self, worker: Worker) -> None:
        with self._turn_of(worker):
            worker.step()

    def _step_strand(self, worker: Worker) -> None:
        assert worker.strand is not None
        with self._turn_of(worker):
            self._threads.strand = worker.strand
            worker.strand.step()
            self._threads.strand = None

    @contextmanager
    def _turn_of(self, worker: Worker) -> Generator[None]:
        before, self._turn = self._turn, worker
        self._clock.behind_s = worker.loop.behind_s
        try:
            yield
        finally:
            self._turn = before
            self._clock.behind_s = 0.0 if before is None else before.loop.behind_s

    # -- what is to happen

    def _plan(self) -> None:
        rng, after = self._rng, self._agenda.after
        for n in range(rng.randint(1, 3)):
            after(rng.uniform(0.0, 3.0), lambda n=n: self._start(n, 0))  # type: ignore[misc]
        for n in range(rng.randint(4, 14)):
            after(rng.uniform(0.0, ROUGH_S - 5.0), lambda n=n: self._enqueue(f"j{n}"))  # type: ignore[misc]
        for n in range(rng.choice([0, 0, 8])):
            after(rng.uniform(0.0, ROUGH_S - 5.0), lambda n=n: self._enqueue_unique(f"u{n % 2}"))  # type: ignore[misc]
        self._network.manners = Manners(
            slow=rng.choice([0.02, 0.1]) * ("slow" in self._troubles),
            lost_request=rng.choice([0.01, 0.1]) * ("lost" in self._troubles),
            lost_reply=rng.choice([0.01, 0.1]) * ("lost" in self._troubles),
            twice=rng.choice([0.01, 0.05]) * ("twice" in self._troubles),
        )
        acts: dict[str, Callable[[], None]] = {
            "cut": self._cut, "partition": self._partition, "away": self._away, "restart": self._restart,
            "kill": self._kill, "stop": self._stop, "bug": self._bug, "drain": self._drain, "quiet": self._quiet,
            "cancel": self._cancel, "storm": self._storm, "pause": self._pause, "purge": self._purge,
        }  # fmt: skip
        for name in self._troubles:
            for _ in range(rng.randint(1, 3) if name in acts else 0):
                after(rng.uniform(0.5, ROUGH_S), acts[name])
        after(ROUGH_S, self._calm)
        if "pause" in self._troubles:
            after(LAST_KILL_S - 3.0, lambda: self._pause(rng.choice([2.0, 2.0, 13.0])))
        after(LAST_KILL_S - 2.0, self._crowd)
        if "cancel" in self._troubles:
            after(LAST_KILL_S - 2.0 * STOPPED_S, self._stop_one)
        if rng.random() < 0.5:
            after(LAST_KILL_S, self._last_kill)
        after(LOOK_EVERY_S, self._look)

    def _start(self, place: int, generation: int) -> None:
        rng = self._rng
        queues = list(self._queues)
        rng.shuffle(queues)
        name, size = f"w{place}.{generation}", rng.randint(1, 4)
        schedules = [rng.choice(self._schedules)] if self._schedules else []
        patience_s = rng.choice([0.0, 1.0, 5.0])
        worker = Worker(self._clock, name, queues, size, self, patience_s=patience_s, schedules=schedules)
        self._workers.append(worker)
        self.said(f"{name} starts, {size} slots for {', '.join(queues)}")

    def _restart_of(self, worker: Worker, in_s: float) -> None:
        if worker.replaced:
            return
        worker.replaced = True
        place, generation = worker.name[1:].split(".")
        self._agenda.after(in_s, lambda: self._start(int(place), int(generation) + 1))

    def _enqueue(self, job_id: str) -> None:
        self._add(job_id, plan_of(self._rng), self._rng.choice([0.0, 0.0, 0.0, self._rng.uniform(0.1, 12.0)]))
        self._server.announce()

    def _crowd(self) -> None:
        """In calm times: long jobs, several for one claim, whose leases are not to lapse unless a worker is killed."""
        for n in range(self._rng.randint(0, 4)):
            # None of them deferred: an idle worker that was not told when one is due learns it from its next look only,
            # which may be 11 s away, if the one that was told has no slot for it by then.
            self._add(f"c{n}", [("return", 1.5 * LEASE_S)], 0.0)
        self._server.announce()

    def _add(self, job_id: str, plan: Plan, delay_s: float) -> None:
        rng = self._rng
        queue = rng.choice(self._queues)
        priority = rng.choice([0, 0, 5])
        body = wire.encode_call(handler_of(plan), (plan,), {}, expires_ms=None, priority=priority)
        self._judge.acked(job_id)
        self._server.models[queue].enqueue(
            job_id, body, self._server.now_ms, keep_ms=90 * DAY_MS, delay_ms=round(delay_s * 1000),
            priority=priority, fresh=True,
        )  # fmt: skip
        self.said(f"{job_id} is enqueued to {queue} for in {delay_s:.3f} s, priority {priority}: {plan}")

    def _enqueue_unique(self, job_id: str) -> None:
        """By one of many who want this job."""
        rng, plan = self._rng, plan_of(self._rng)
        queue, unique_s = self._queues[0], rng.choice([0.0, 3.0, 15.0])
        body = wire.encode_call(handler_of(plan), (plan,), {}, expires_ms=None, priority=0)
        added = self._server.models[queue].enqueue(
            job_id, body, self._server.now_ms, keep_ms=90 * DAY_MS, unique_ms=round(unique_s * SECOND_MS)
        )
        self.said(f"{job_id} is {'' if added else 'not '}enqueued to {queue}, unique for {unique_s} s: {plan}")
        self._judge.offered(job_id, unique_s, added=added)
        self._server.announce()

    def _someone(self) -> Worker | None:
        standing = [worker for worker in self._workers if worker.alive and not worker.stopped]
        return self._rng.choice(standing) if standing else None

    def _cut(self) -> None:
        if (worker := self._someone()) is not None:
            self.trouble(f"the connections of {worker.name} are cut")
            self._network.reset(worker.name)

    def _partition(self) -> None:
        if (worker := self._someone()) is not None:
            length_s = self._rng.choice([1.0, 6.0, 14.0])
            self.trouble(f"{worker.name} is cut off for {length_s} s", length_s)
            self._network.cut_off.add(worker.name)
            self._agenda.after(length_s, lambda: self._network.cut_off.discard(worker.name))

    def _away(self) -> None:
        length_s = self._rng.choice([0.5, 4.0, 13.0])
        self.trouble(f"the server is silent for {length_s} s", length_s)
        self._network.way = "silent"
        self._agenda.after(length_s, self._open)

    def _restart(self) -> None:
        length_s = self._rng.choice([0.5, 4.0, 13.0])
        self.trouble(f"the server is down for {length_s} s", length_s)
        self._network.way = "refusing"
        self._server.restart()
        self._network.reset()
        self._agenda.after(length_s, self._open)

    def _open(self) -> None:
        if self._network.way == "refusing":
            self._server.restart()
        self._network.way = "open"

    def _kill(self) -> None:
        if (worker := self._someone()) is not None:
            self._die(worker)
            self._restart_of(worker, self._rng.choice([0.5, 5.0, 20.0]))

    def _die(self, worker: Worker) -> None:
        self.trouble(f"{worker.name} is killed")
        worker.kill()
        self._network.reset(worker.name)

    def _stop(self) -> None:
        if (worker := self._someone()) is not None:
            length_s = self._rng.choice([1.0, 8.0, 2.2 * LEASE_S])
            clock_stood = self._rng.random() < 0.5
            self.trouble(
                f"{worker.name} stands still for {length_s} s{', its clock too' if clock_stood else ''}", length_s
            )
            worker.stopped = True
            self._agenda.after(length_s, lambda: worker.go_on(length_s, clock_stood=clock_stood))

    def _bug(self) -> None:
        if (worker := self._someone()) is not None:
            worker.bug_in = self._rng.randint(0, 3)

    def _drain(self) -> None:
        if (worker := self._someone()) is not None and not worker.draining:
            self.trouble(f"{worker.name} is told to stop")
            with self._turn_of(worker):
                worker.drain()
            self._restart_of(worker, self._rng.choice([0.1, 3.0]))

    def _quiet(self) -> None:
        if (worker := self._someone()) is not None:
            length_s = self._rng.uniform(0.0, 8.0)
            self.trouble(f"{worker.name} rests for {length_s:.3f} s", length_s)
            with self._turn_of(worker):
                worker.rest(length_s)

    def _cancel(self) -> None:
        open_jobs = [job.id for job in self._judge.jobs.values() if not job.ends]
        if open_jobs:
            job_id = self._rng.choice(open_jobs)
            for model in self._server.models.values():
                said = model.cancel(job_id, b"cancelled", self._server.now_ms, result_ms=3_600_000)
                if said == "cancelled":
                    self._judge.ended_by_client(job_id)
                if said != "gone":
                    self.said(f"{job_id} is cancelled by a client: {said}")

                self._server.announce()

    def _stop_one(self) -> None:
        """In calm times: a run that has nothing in its way."""
        running = [
            job_id
            for worker in self._workers
            if worker.alive and not worker.stopped
            for job_id in self._judge.running_of(worker.name)
            if job_id.startswith("c")
        ]
        if running and self._judge.calm:
            job_id = self._rng.choice(running)
            said = [
                m.cancel(job_id, b"", self._server.now_ms, result_ms=SECOND_MS) for m in self._server.models.values()
            ]
            self.said(f"{job_id} is to stop: {said}")
            self._server.announce()
            self._judge.asked_to_stop(job_id)

    def _pause(self, length_s: float | None = None) -> None:
        queue = self._rng.choice(self._queues)
        length_s = length_s or self._rng.choice([1.0, 6.0, 14.0])
        ends = self._rng.random() < 0.5
        self.said(f"{queue} is paused for {length_s} s{'' if ends else ', until it is resumed then'}")
        model, now_ms = self._server.models[queue], self._server.now_ms
        model.pause("", now_ms, for_ms=length_s * SECOND_MS if ends else None)
        self._judge.paused(queue, self._clock.now + length_s)
        self._server.announce()
        if not ends:
            self._agenda.after(length_s, lambda: self._resume(queue))

    def _resume(self, queue: str) -> None:
        self.said(f"{queue} is resumed")
        self._server.models[queue].resume(self._server.now_ms)
        self._judge.paused(queue, self._clock.now)
        self._server.announce()

    def _purge(self) -> None:
        queue = self._rng.choice(self._queues)
        model = self._server.models[queue]
        before = set(model.queue)
        model.purge(b"", self._server.now_ms)
        gone = sorted(before - set(model.queue))
        self.said(f"{queue} is purged of {', '.join(gone)}")
        for job_id in gone:
            self._judge.ended_by_client(job_id)

    def _storm(self) -> None:
        """For some seconds hardly anything gets through."""
        length_s, before = self._rng.uniform(1.0, 6.0), self._network.manners
        self.trouble(f"a storm of {length_s:.3f} s", length_s)
        self._network.manners = Manners(slow=0.2, lost_request=0.3, lost_reply=0.3, twice=0.2)

        def over() -> None:
            self._network.manners = before if self._clock.now < ROUGH_S else GOOD

        self._agenda.after(length_s, over)

    def _calm(self) -> None:
        self.trouble("calm")
        self._network.manners = GOOD
        for worker in self._workers:
            worker.bug_in = None
        if not any(worker.alive for worker in self._workers):
            self._start(9, 0)

    def _last_kill(self) -> None:
        """In calm times: who sees it shows how soon jobs come back."""
        if (worker := self._someone()) is not None:
            self.said(f"{worker.name} is killed")
            worker.kill()
            self._network.reset(worker.name)
            self._judge.killed(worker.name)
            self._restart_of(worker, 0.5 if self._someone() is None else 30.0)

    def _look(self) -> None:
        punctual = len(self._schedules) == 1 and any(worker.punctual for worker in self._workers)
        free = any(worker.free for worker in self._workers)
        self._judge.look(self._server.models, self._server.now_ms, free=free, punctual=punctual)
        done = self._clock.now > LAST_KILL_S + 1.0 and all(job.ends for job in self._judge.jobs.values())
        settled = not any(worker.alive and worker.draining for worker in self._workers)
        self._over = done and settled
        self._agenda.after(LOOK_EVERY_S, self._look)

    # -- what is told

    def said(self, what: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self._clock.now:9.4f}  {what}")

    def trouble(self, what: str, length_s: float = 0.0) -> None:
        self._judge.troubled(self._clock.now + length_s)
        self.said(what)

    def broken(self, worker: Worker, what: str) -> None:
        self._judge.breach(f"{worker.name}: {what}")

    def crashed(self, worker: Worker) -> None:
        self._judge.crashed(worker.name)

    def heard(self, token: str) -> None:
        self._judge.heard(token)

    def told(self, worker: Worker, token: str, verdict: Verdict) -> None:
        self._judge.told(worker.name, token, settled=verdict == "settled")

    def begun(self, worker: Worker, job_id: str, token: str) -> int:
        self.said(f"{worker.name} runs {job_id} under {token}")
        return self._judge.begun(worker.name, worker.size, job_id, token)

    def ended(self, worker: Worker, token: str, how: Ending) -> None:
        self.said(f"{worker.name}: {token} has {how}")
        self._judge.ended(worker.name, token, how)

    def claimed(self, queue: str, worker: str, number: int, claimed: Any, lease_until: float) -> None:
        for job in claimed.jobs:
            self.said(f"server: {worker} claims {job.id}, attempt {job.starts}, under {job.token}")
        if claimed.lapsed:
            self.said(f"server: {worker} is told that it has let lapse {', '.join(claimed.lapsed)}")
        self._judge.claimed(queue, worker, number, claimed, lease_until)

    def extended(self, held: Any, lease_until: float) -> None:
        self.said(f"server: {held.id} is extended to {lease_until:.4f} under {held.token}")
        self._judge.extended(held, lease_until)

    def settled(self, outcome: Any, by: tuple[str, int]) -> None:
        letter = f", letter {outcome.letter[:60]}" if outcome.letter else ""
        self.said(
            f"server: {outcome.held.id} is settled ({outcome.what}{letter}) under {outcome.held.token}, batch {by[1]}"
        )
        self._judge.settled(outcome, by)

    def fired(self, queue: str, fire: Any, added: Sequence[bool]) -> None:
        ids = [job_id for job_id, _ in fire.jobs]
        self.said(f"server: {fire.name} ({fire.said}) moves from {fire.known.next_ms} to {fire.next_ms}, with {ids}")
        (schedule,) = (one for one in self._schedules if one.declaration == fire.said)
        self._judge.fired(schedule, fire, added)

    def published(self, channel: str, said: bytes) -> None:
        for worker in self._workers:
            if worker.alive and channel == keys.stop(worker.name):
                self._network.publish(worker.name, lambda worker=worker: self._call_off(worker, said.decode()))  # type: ignore[misc]

    def _call_off(self, worker: Worker, token: str) -> None:
        with self._turn_of(worker):
            worker.call_off(token)


class _Deaf:
    """An ear for a server that tells of nothing."""

    hears = False

    def __init__(self, *about: object) -> None:
        pass

    async def news(self, after: int) -> int:
        await asyncio.get_running_loop().create_future()
        return after
