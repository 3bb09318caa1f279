"""K3.7 and K3.8: jobs that nobody can run, and one that kills whoever runs it."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence

from redis import Redis

from runtime.adapters.redis import keys
from runtime.core.spec import DEFAULT_QUEUE
from tests.campaign.company import PATIENCE_S, attend
from tests.campaign.death import RECLAIM_S, exits
from tests.campaign.scenario import Scenario, Stage, Verdict
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Terms, recoveries
from tests.processes import Worker, wait_until

POISON = 5000
GOOD = 100
GOOD_S = 0.6
BESIDE = 3
SLACK_S = 1.0
"""What a busy machine may add to twice the time."""


def _body(**fields: object) -> bytes:
    return pickle.dumps({"t": None, "f": "work", "a": (0.0,), "k": {}, "et": 1_700_000_000_000} | fields, 4)


BODIES = {
    "a name that is a list": _body(f=["work"]),
    "a time that is a text": _body(et="yesterday"),
    "a time that is no number": _body(et=float("nan")),
    "an attempt that is a text": _body(t="first"),
    "no arguments": _body(a=None),
    "nothing": b"",
    "half a body": _body()[:20],
    "no dict": pickle.dumps([1, 2], 4),
}
"""What its producer's mistakes may leave; some of them end a worker of stock arq."""


def many(stage: Stage) -> Verdict:
    worker = stage.worker(slots=10)
    alone = _good(stage)
    alone_s = _took_s(stage, worker, alone, 60.0)
    assert alone_s is not None, "the good jobs alone do not end"
    worker.stop()
    spoilt, unknown = _poison(stage.url, POISON)
    for job in (*spoilt, *unknown):
        stage.ledger.note("acked", job)
    good = _good(stage)
    limit_s = 2 * alone_s + SLACK_S
    took_s = _took_s(stage, worker, good, 4 * limit_s if stage.ours else limit_s)
    breaches = []
    if took_s is None or took_s > limit_s:
        told = "not all ended" if took_s is None else f"ended after {took_s:.1f} s"
        breaches.append(Breach("I8", f"{GOOD} good jobs behind the poison: {told}; alone they take {alone_s:.1f} s"))
    if stage.ours:
        wait_until(lambda: stage.ended() >= 2 * GOOD + len(spoilt), 60, "each spoilt job is a dead letter")
        with Redis.from_url(stage.url, decode_responses=True) as redis:
            waiting = redis.hlen(keys.unknown(DEFAULT_QUEUE))
        breaches += [Breach("I1", f"{waiting} of {len(unknown)} jobs wait for a worker that knows them")] * (
            waiting != len(unknown)
        )
    starts = worker.boots()
    breaches += exits([worker]) if worker.running else []
    return stage.judged(
        Terms(reclaim_s=RECLAIM_S, letters=dict.fromkeys(spoilt, "undecodable")),
        *breaches,
        good_jobs_alone_s=alone_s,
        good_jobs_behind_poison_s="not within the limit" if took_s is None else took_s,
        starts_of_the_worker=starts - 1,
    )


def _good(stage: Stage) -> list[str]:
    return stage.acked(*(jobs.work.request(GOOD_S) for _ in range(GOOD)))


def _took_s(stage: Stage, worker: Worker, good: Sequence[str], timeout_s: float) -> float | None:
    """From the worker's start to the last end of these."""
    began = time.monotonic()
    worker.start()
    wanted = set(good)
    ends: list[float] = []

    def ended() -> bool:
        ends[:] = [line.at for line in stage.ledger.lines() if line.what == "end" and line.job in wanted]
        return len(ends) >= len(good)

    return max(ends) - began if attend(stage, ended, timeout_s) else None


def _poison(url: str, count: int) -> tuple[list[str], list[str]]:
    """Jobs as somebody else might write them, all due before any other: half of them spoilt, half of them unknown."""
    bodies = list(BODIES.values())
    spoilt = [f"spoilt-{number}" for number in range(count // 2)]
    unknown = [f"unknown-{number}" for number in range(count // 2)]
    before_ms = int(time.time() * 1000) - 60_000
    with Redis.from_url(url) as redis, redis.pipeline(transaction=False) as pipe:
        for number, (bad, strange) in enumerate(zip(spoilt, unknown, strict=True)):
            pipe.set(keys.JOB + bad, bodies[number % len(bodies)], px=86_400_000)
            pipe.set(keys.JOB + strange, _body(f="of_another_deploy"), px=86_400_000)
            pipe.zadd(DEFAULT_QUEUE, {bad: before_ms + number, strange: before_ms + number})
        pipe.execute()
    return spoilt, unknown


def pill(stage: Stage) -> Verdict:
    """In full at the default lease."""
    worker = stage.worker(slots=6, lease="10s" if stage.full else "1s").up()
    stage.acked(*(jobs.work.request(1.0) for _ in range(BESIDE)))
    wait_until(lambda: len(stage.ledger.starts()) == BESIDE)
    (bad,) = stage.acked(jobs.pill.request())
    stage.acked(*(jobs.work.request(0.05) for _ in range(6)))
    began = time.monotonic()
    attend(stage, lambda: stage.ended() == BESIDE + 7, 120 if stage.ours else PATIENCE_S)
    took_s = time.monotonic() - began
    wrong_exits = exits([worker]) if worker.running else []
    letters = campaign.letters(stage.url) if stage.ours else {}
    breaches = [
        *(Breach("I10", f"{job}: a dead letter for what another did") for job in letters if job != bad),
        *([Breach("I10", f"{bad}: kills its workers, and no end of it")] if stage.ours and bad not in letters else []),
        *wrong_exits,
    ]
    took = recoveries(stage.ledger.lines())
    return stage.judged(
        Terms(reclaim_s=RECLAIM_S, letters={bad: "crashed"}),
        *breaches,
        runs_of_the_pill=len(stage.ledger.starts(bad)),
        seconds_until_all_had_ended=took_s,
        seconds_to_the_next_start_longest=max(took, default="none started again"),
    )


SCENARIOS = (
    Scenario(
        "K3.7",
        "5,000 jobs that nobody can run are ahead of 100 good ones: bodies of wrong types, cut bodies, no bodies, and "
        "functions that this worker does not know.",
        "The good ones take no more than twice their time; the spoilt ones are dead letters, the unknown ones wait.",
        ("I1", "I2", "I3", "I8", "I9"),
        many,
        quick=False,  # tests/faults/test_hostile_bodies.py has worse bodies, and fewer
        deadline_s=180,
    ),
    Scenario(
        "K3.8",
        "A handler kills its process with SIGKILL, at each run; the worker is started again. Three jobs run beside it, "
        "six wait behind it.",
        "After three crashes it is a dead letter; no other job is one, each of them is done.",
        ("I1", "I2", "I3", "I5", "I7", "I10"),
        pill,
        deadline_s=180,
    ),
)
