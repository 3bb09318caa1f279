"""K4.6, K4.7, K4.9: clocks that are wrong, ids that come again, and bodies that expire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis

from runtime import Request
from runtime.adapters.redis import keys, wire
from runtime.core.spec import DEFAULT_QUEUE
from tests.campaign import work
from tests.campaign.death import AT_ONCE_S, MODULES, TERMS, exits, settle_down
from tests.campaign.inputs import told
from tests.campaign.scenario import Scenario, Stage, Verdict, figure, in_stages, merged
from tests.campaign.subjects import SUBJECTS
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach
from tests.processes import ROOT, environment, wait_until

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

# Clocks


class WrongClock:
    """What makes a process's clock wrong, and how wrong it is."""

    def __init__(self, stage: Stage, wrong_by_s: float) -> None:
        self._file = stage.folder / f"clock{wrong_by_s:+g}"
        self.set(wrong_by_s)

    def set(self, wrong_by_s: float) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(str(wrong_by_s))
        new.replace(self._file)  # it is read all the time

    @property
    def settings(self) -> dict[str, Any]:
        folder = Path(__file__).parent / "skewed"
        return {"RUNTIME_TEST_CLOCK": self._file, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def wrong_clocks(stage: Stage) -> Verdict:
    skews = (-HOUR_S, -10.0, 10.0, HOUR_S) if stage.full else (-HOUR_S, 10.0)
    cases: dict[str, Callable[[Stage], Verdict]] = {
        **{f"a worker {skew:+g} s": partial(_worker_ahead, skew_s=skew) for skew in skews},
        **{f"a producer {skew:+g} s": partial(_producer_ahead, skew_s=skew) for skew in skews},
        "set back by an hour during a job": partial(_set, by_s=-HOUR_S),
        "set forward by an hour during a job": partial(_set, by_s=HOUR_S),
    }
    verdicts = in_stages(stage, cases.values(), lambda own, run: run(own))
    late = figure(verdicts, "late_s")
    return merged(cases, verdicts, tried=len(cases), seconds_from_due_to_start_longest=max(late, default="none began"))


def _worker_ahead(stage: Stage, skew_s: float) -> Verdict:
    clock = WrongClock(stage, skew_s)
    worker = stage.worker(modules=MODULES, **clock.settings).up()
    due_s = {0.0: jobs.work.request(0.0), 1.5: jobs.work.options(delay="1.5s").request(0.0)}
    ids = {stage.acked(request)[0]: delay_s for delay_s, request in due_s.items()}
    (retried,) = stage.acked(work.fail_once.request())
    settle_down(stage, 3)
    late, breaches = _late(stage, ids)
    runs = [line.at for line in stage.ledger.starts(retried)]
    if len(runs) == 2 and not 0.15 <= runs[1] - runs[0] <= 0.2 + AT_ONCE_S:
        breaches.append(Breach("I17", f"a retry after 0.2 s came after {runs[1] - runs[0]:.2f} s"))
    return stage.judged(TERMS, *breaches, *exits([worker]), late_s=late)


def _producer_ahead(stage: Stage, skew_s: float) -> Verdict:
    """Its two jobs, of 0.05 s each, are due at once."""
    worker = stage.worker().up()
    settings = {"REDIS_URL": stage.url, jobs.LEDGER: stage.ledger.path, **WrongClock(stage, skew_s).settings}
    program = [sys.executable, "-m", "tests.campaign.producer", stage.subject.name]
    subprocess.run(program, cwd=ROOT, env=environment(**settings), check=True, timeout=60)
    settle_down(stage, 2)
    late, breaches = _late(stage, {"work:first": 0.0, "work:second": 0.0})
    return stage.judged(TERMS, *breaches, *exits([worker]), late_s=late)


def _set(stage: Stage, by_s: float) -> Verdict:
    """The lease is shorter than the job, so that it is extended meanwhile."""
    clock = WrongClock(stage, 0.0)
    worker = stage.worker(modules=MODULES, lease="1s", **clock.settings).up()
    (job,) = stage.acked(jobs.work.request(2.0))
    wait_until(lambda: stage.ledger.starts(job))
    clock.set(by_s)
    settle_down(stage, 1)
    after = {stage.acked(jobs.work.request(0.0))[0]: 0.0}
    settle_down(stage, 2)
    late, breaches = _late(stage, after)
    return stage.judged(TERMS, *breaches, *_odd_lengths(stage, job), *exits([worker]), late_s=late)


def _late(stage: Stage, due_s: dict[str, float]) -> tuple[float, list[Breach]]:
    """How late the latest of these jobs began, as many seconds after its enqueue as it is due; and what is wrong."""
    acked = {line.job: line.at for line in stage.ledger.lines() if line.what == "acked"}
    began = {line.job: line.at for line in stage.ledger.starts()}
    late = {job: began.get(job, time.monotonic()) - acked[job] - delay_s for job, delay_s in due_s.items()}
    breaches = [
        Breach("I17", f"{'begun' if job in began else 'not begun'} {seconds:+.2f} s from when it was due")
        for job, seconds in late.items()
        if not -0.5 <= seconds <= AT_ONCE_S
    ]
    return max(late.values()), breaches


def _odd_lengths(stage: Stage, job: str) -> Iterator[Breach]:
    """What is told of a run of two seconds."""
    with Redis.from_url(stage.url) as redis:
        data = redis.get(keys.RESULT + job)
    if data is not None:
        result = wire.decode_result(data)
        took_s = (result.finished_ms - result.started_ms) / 1000
        if not 1.5 <= took_s <= 2 + AT_ONCE_S:
            yield Breach("I17", f"by its result a job of 2 s took {took_s:g} s")
    for worker in stage.workers:
        for line in worker.events("JOB_COMPLETED", job_id=job):
            if not 1500 <= line.get("duration_ms", 2000) <= 2000 + 1000 * AT_ONCE_S:
                yield Breach("I17", f"by the log a job of 2 s took {line['duration_ms']} ms")


# Ids


def ids_again(stage: Stage) -> Verdict:
    """arq is given a timeout of a second, so that its claim lapses after eleven, and not after 310."""
    cases = {
        "while it waits": (_waits, 1),
        "while it runs": (_runs, 1),
        "when it is done": (_done, 1),
        "while it runs, and a slot was free": (_runs, 2),
    }
    if not stage.ours:
        del cases["while it runs, and a slot was free"]  # arq claims for nobody who is stopped
    verdicts = in_stages(stage, cases.values(), lambda own, case: _id_again(own, *case))
    return merged(cases, verdicts, tried=len(cases), seconds_away=_AWAY_S[stage.subject.name])


_AWAY_S = {"runtime": 1.6, "arq": 13.0}
Then = Callable[[Stage], None]


def _waits(stage: Stage) -> None:
    stage.acked(jobs.work.options(key="again", delay="3s").request(0.5))


def _runs(stage: Stage) -> None:
    stage.acked(jobs.work.options(key="again").request(3.0))
    wait_until(lambda: len(stage.ledger.starts()) == 3)


def _done(stage: Stage) -> None:
    stage.acked(jobs.work.options(key="again").request(0.0))
    wait_until(stage.ended)
    settle_down(stage, 2 if stage.ours else 1)


def _id_again(stage: Stage, then: Then, slots: int) -> Verdict:
    """The first run of the first job is stopped, the second ends it; its result expires, and its id comes again.

    Of a stopped worker with a free slot the server holds a claim: it takes the second job, and loses it after a lease.
    What it is told of it when it goes on comes too late for it to begin.
    """
    settings: dict[str, Any] = {"slots": slots, "lease": "1s", **({} if stage.ours else {"JOB_TIMEOUT_SECONDS": 1})}
    zombie, other = (stage.worker(**settings) for _ in range(2))
    zombie.up()
    (job,) = stage.acked(jobs.work.options(key="again").request(0.8))
    wait_until(stage.ledger.starts)
    zombie.send(signal.SIGSTOP)
    time.sleep(_AWAY_S[stage.subject.name])
    other.up()
    wait_until(lambda: stage.ended() == 1, what="the other worker has done it")
    with Redis.from_url(stage.url) as redis:
        redis.delete(keys.RESULT + job)
    then(stage)
    zombie.send(signal.SIGCONT)
    time.sleep(2)  # what the zombie says now
    settle_down(stage, 2 if stage.ours else 1)
    starts = stage.ledger.starts(job)
    result = campaign.results(stage.url).get(job)
    left = [name for name in (keys.JOB, keys.IN_PROGRESS, keys.OWN) if _exists(stage, name + job)]
    runs_there = sum(line.pid == zombie.pid for line in starts)  # it may run the second job, too, in good order
    by_zombie = result is not None and result.value == zombie.pid and runs_there == 1
    breaches = [
        *([Breach("I1", "the second job has no result")] if result is None else []),
        *([Breach("I4", "the first job's stopped run has settled the second job")] if by_zombie else []),
        *([Breach("I3", f"{len(starts)} runs of two jobs, one of which lapsed once")] if len(starts) != 3 else []),
        *(Breach("I7", f"left behind: {name}") for name in left),
        *(_miscounted(stage) if stage.ours else ()),
        *exits([zombie, other]),
        *stage.tracebacks(),
    ]
    return told(breaches)


def _exists(stage: Stage, name: str) -> bool:
    with Redis.from_url(stage.url) as redis:
        return bool(redis.exists(name))


def _miscounted(stage: Stage) -> Iterator[Breach]:
    if (ended := stage.ended()) != 2:
        yield Breach("I2", f"{ended} settlements accepted, of two jobs")


# Expiry


def expiry(stage: Stage) -> Verdict:
    cases: dict[str, Callable[[Stage], Verdict]] = {
        "enqueued by its own client, 25 hours ago": _old,
        "enqueued by arq's client, 25 hours ago": _old_of_arq,
        "retried after more than a day": _retried_late,
    }
    verdicts = in_stages(stage, cases.values(), lambda own, run: run(own))
    return merged(cases, verdicts, tried=len(cases))


def age(stage: Stage, by_s: float) -> None:
    """As if all that is in the store had been there for so much longer: scores, expiries, moments in bodies."""
    by_ms = round(by_s * 1000)
    with Redis.from_url(stage.url) as redis:
        for name in redis.scan_iter(count=1000):
            left_ms = redis.pttl(name)
            if left_ms > by_ms:
                redis.pexpire(name, left_ms - by_ms)
            elif left_ms > 0:
                redis.delete(name)
        for queue in (DEFAULT_QUEUE, keys.later(DEFAULT_QUEUE)):
            for member, score in redis.zrange(queue, 0, -1, withscores=True):
                redis.zadd(queue, {member: score - by_ms})


def _old(stage: Stage) -> Verdict:
    stage.acked(*(jobs.work.request(0.0) for _ in range(5)))
    age(stage, DAY_S + HOUR_S)
    worker = stage.worker().up()
    settle_down(stage, 5)
    return stage.judged(TERMS, *exits([worker]))


def _old_of_arq(stage: Stage) -> Verdict:
    """Redis has dropped the body, so that nobody can run it; it is to be said, and told apart from others."""
    ids = SUBJECTS["arq"].enqueue(stage.url, *_five())
    age(stage, DAY_S + HOUR_S)
    worker = stage.worker().up()
    wait_until(lambda: stage.ended() >= 5)
    wrong_exits = exits([worker])
    said = campaign.letters(stage.url)
    breaches = [
        Breach("I1", f"{job}: no dead letter says that its body is gone") for job in ids if not _says(said, job)
    ]
    return told([*breaches, *wrong_exits, *stage.tracebacks()])


def _five() -> list[Request[int]]:
    return [jobs.work.request(0.0) for _ in range(5)]


def _says(letters: dict[str, dict[str, Any]], job: str) -> bool:
    return "the body is missing" in letters.get(job, {}).get("text", "")


def _retried_late(stage: Stage) -> Verdict:
    """A job of arq's client, whose body has a day and a second to live, asks to be run again after 30 hours."""
    (job,) = SUBJECTS["arq"].enqueue(stage.url, work.fail_for.request(30 * HOUR_S))
    stage.ledger.note("acked", job)
    worker = stage.worker(modules=MODULES).up()
    wait_until(lambda: any(line.what == "failed" for line in stage.ledger.lines()))
    wait_until(lambda: not campaign.stranded(stage.url))
    wrong_exits = exits([worker])
    age(stage, 30 * HOUR_S + 1)
    worker.up()
    settle_down(stage, 1)
    return stage.judged(TERMS, *wrong_exits, *exits([worker]))


SCENARIOS = (
    Scenario(
        "K4.6",
        "The wall clock of a worker, or of a producer, is wrong by 10 s or an hour, either way; or is set by an hour "
        "while a job runs. (The clock is Python's `time`, shifted in the process; the server's own is not touched.)",
        "A job begins when it is due by the server's clock, within 2 s; a retry after as long as it said; a job of 2 s "
        "is said to have taken 2 s, and is run once.",
        ("I1", "I2", "I3", "I5", "I7", "I17"),
        wrong_clocks,
        deadline_s=120,
    ),
    Scenario(
        "K4.7",
        "A worker is stopped (SIGSTOP) in the middle of a job; another does it; its result expires, and a second job "
        "of the same id is enqueued. While that one waits, runs, or when it is done, the stopped worker goes on.",
        "Nothing that it still says reaches the second job: its outcome is its own; each of the two is counted once.",
        ("I1", "I2", "I3", "I4", "I7"),
        ids_again,
        deadline_s=120,
    ),
    Scenario(
        "K4.9",
        "Jobs have waited for 25 hours before a worker comes (the store is aged), enqueued by the system's own client, "
        "or by arq's, whose bodies Redis drops after a day. A job of arq's is retried after 30 hours.",
        "What the own client enqueued and what is retried runs; a body that is gone is a dead letter that says so.",
        ("I1", "I2", "I3", "I7"),
        expiry,
        deadline_s=120,
    ),
)
