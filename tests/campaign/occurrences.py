"""K4.8: schedules, with clocks that are wrong, workers that die, and a time at which there is none."""

from __future__ import annotations

from collections import Counter
from time import sleep

from tests.campaign.moments import WrongClock
from tests.campaign.scenario import Broken, Held, Scenario, Stage, Verdict
from tests.faults.ledger import Breach
from tests.processes import Worker, wait_until

MODULES = ("tests.campaign.ticking",)
SKEWS_S = (-4.0, 0.0, 4.0)
LEASE_S = 1.0


def each_second(stage: Stage) -> Verdict:
    workers = [_ticking(stage, skew_s).up() for skew_s in SKEWS_S]
    _pass(stage, 60 if stage.full else 5)
    stage.kill(workers[0])
    _pass(stage, 60 if stage.full else 3)
    for worker in workers[1:]:
        worker.stop()
    sleep(3)
    for worker in workers:
        worker.up()
    _pass(stage, 60 if stage.full else 4)
    sleep(2 * LEASE_S)
    for worker in workers:
        worker.stop()
    return _judged(stage)


def _ticking(stage: Stage, skew_s: float) -> Worker:
    return stage.worker(modules=MODULES, lease=f"{LEASE_S:g}s", **WrongClock(stage, skew_s).settings)


def _pass(stage: Stage, runs: int) -> None:
    before = len(stage.ledger.starts())
    wait_until(lambda: len(stage.ledger.starts()) >= before + runs, 60 + 2 * runs, f"{runs} runs")


def _judged(stage: Stage) -> Verdict:
    lines = stage.ledger.lines()
    killed = {line.pid for line in lines if line.what == "killed"}
    runs = Counter(line.job for line in lines if line.what == "start" and line.pid not in killed)
    seen = {int(line.job.rpartition(":")[2]) for line in lines if line.what == "start"}
    doubled = sorted(job for job, count in runs.items() if count > 1)
    # What the last one fired as it stopped is still in the queue.
    missing = sorted(set(range(min(seen), max(seen), 1000)) - seen)
    breaches = [Breach("I18", f"{job} has run {runs[job]} times") for job in doubled]
    breaches += [Breach("I18", f"the occurrence {moment} never ran") for moment in missing]
    breaches += [*stage.tracebacks()]
    figures = {"occurrences": len(seen), "doubled": len(doubled), "missing": len(missing)}
    return Broken(breaches, figures) if breaches else Held(figures)


SCENARIOS = (
    Scenario(
        "K4.8",
        "Three workers whose clocks are wrong by -4 s, 0 and +4 s run a handler each second; one of them is killed, "
        "then all are away for 3 s, and come again. (In full for three minutes.)",
        "Each second there is one run, also for those at which nobody was there.",
        ("I18",),
        each_second,
        deadline_s=600,
    ),
)
