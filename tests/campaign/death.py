"""K1: processes die, are told to stop, or are stopped in their tracks."""

from __future__ import annotations

import signal
import time

from tests.campaign.scenario import Scenario, Stage, Verdict
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Terms, effective_kills, executions, recoveries
from tests.processes import Worker, wait_until

RECLAIM_S = 12.0
"""The default lease, a claim, and a second."""


def settle_down(stage: Stage, count: int, timeout_s: float = 60.0) -> None:
    """Wait until so many jobs have ended; for arq, which would take minutes, no longer than a killed job should."""
    if stage.ours:
        wait_until(lambda: stage.ended() >= count, timeout_s, f"{count} jobs have ended")
    until = time.monotonic() + RECLAIM_S + 2
    while stage.ended() < count and time.monotonic() < until:
        time.sleep(0.1)


def exits(workers: list[Worker]) -> list[Breach]:
    """Tell them to stop; who does not do so in good order."""
    codes = [worker.stop() for worker in workers]
    return [Breach("I9", f"a worker that was told to stop exited with {code}") for code in codes if code != 0]


def kills(stage: Stage) -> Verdict:
    crew = [stage.worker(slots=5, lease="2s") for _ in range(3)]
    _add_work(stage, 400 if stage.full else 100)
    for worker in crew:
        worker.start()
    count = 100 if stage.full else 10
    for _ in range(count):
        time.sleep(stage.chance.uniform(0.2, 0.9))
        if campaign.waiting(stage.url) < 50:
            _add_work(stage, 50)
        _kill_one(stage, crew)
    accepted = sum(line.what == "acked" for line in stage.ledger.lines())
    settle_down(stage, accepted)
    wrong_exits = exits(crew)
    lines = stage.ledger.lines()
    took = sorted(recoveries(lines))
    return stage.judged(
        Terms(reclaim_s=RECLAIM_S, slots=5),
        *wrong_exits,
        jobs=accepted,
        ended=stage.ended(),
        kills=count,
        kills_that_hit_a_job=effective_kills(lines),
        most_starts_of_a_job=max(map(len, executions(lines).values())),
        seconds_to_the_next_start_median=took[len(took) // 2] if took else "none started again",
        seconds_to_the_next_start_longest=took[-1] if took else "none started again",
    )


def _add_work(stage: Stage, count: int) -> None:
    stage.acked(*(jobs.work.request(stage.chance.uniform(0.05, 0.5)) for _ in range(count)))


def _kill_one(stage: Stage, crew: list[Worker]) -> None:
    """Mostly one that runs a job, now and then one that is starting; some are told to stop just before it."""
    busy = [worker for worker in crew if stage.ledger.running(worker.pid)]
    worker = stage.chance.choice(busy if busy and stage.chance.random() < 0.8 else crew)
    if stage.chance.random() < 0.25:
        worker.send(signal.SIGTERM)
        time.sleep(stage.chance.uniform(0, 0.05))
    stage.kill(worker)
    worker.start()


SCENARIOS = (
    Scenario(
        "K1.1",
        "Three workers run jobs of 50 to 500 ms. One is killed every 0.2 to 0.9 s and started again, 100 times in all.",
        "No job is lost, settled twice or run without cause, and a cut one starts again within 12 s.",
        ("I1", "I2", "I3", "I4", "I5", "I6", "I7"),
        kills,
        seeds=5,
        deadline_s=240,
    ),
)
