"""What the scenarios of Redis share: a server behind a relay, and the way through bad weather."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any

from redis import Redis

from tests.campaign.death import exits, settle_down
from tests.campaign.scenario import Broken, Held, Stage, Verdict
from tests.faults import jobs
from tests.faults.ledger import PLAIN, Breach, Found, Ledger, Line, executions, judge
from tests.faults.test_weather import Case, Scene, assert_one_line_for_each_cause, tells, works
from tests.processes import Worker, wait_until
from tests.relay import Relay
from tests.servers import Server

TOLD_S = 5.0
"""How soon readiness tells, and how soon work goes on."""
SLACK_S = 3.0
"""What a machine that is busy with other things may add."""
OPEN: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0}


def scene(stage: Stage, *options: str) -> Scene:
    """A server that keeps what it acknowledges, behind a relay."""
    data = stage.folder / "data"
    data.mkdir()
    stage.server = stage.enter(Server(data=data, options=options))
    relay = stage.enter(Relay(stage.server.url.removeprefix("unix://")))
    return Scene(stage.server, relay, stage.enter(Redis.from_url(stage.url, decode_responses=True)))


def ridden_out(stage: Stage, case: Case, lasts_s: float, size: int = 1) -> Verdict:
    """Of the jobs of `size` workers some end meanwhile, some go on beyond it, some wait. No job may run twice."""
    on = scene(stage)
    crew = [stage.worker(on.relay.url, slots=3, **OPEN).up() for _ in range(size)]
    if stage.ours:
        for worker in crew:
            worker.wait_for("HTTP_LISTENING")
            wait_until(lambda worker=worker: works(worker))  # type: ignore[misc]
    count = len(stage.acked(*(jobs.work.request(s) for s in (1.5, 3.0, lasts_s + 3) for _ in crew)))
    wait_until(lambda: len(stage.ledger.starts()) == count)
    count += len(stage.acked(*(jobs.work.request(0.2) for _ in range(2 * size))))
    case.begin(on)
    began = time.monotonic()
    breaches = [] if lasts_s < TOLD_S + SLACK_S - 1 else list(_not_told(stage, crew, case))
    told_s = time.monotonic() - began
    time.sleep(max(0.0, lasts_s - told_s))
    case.end(on)
    over = time.monotonic()
    gone = [worker for worker in crew if not worker.running]
    breaches += [Breach("I9", f"the worker exited with {worker.wait()}") for worker in gone]
    for worker in gone:  # as a platform would
        worker.start()
    (after,) = stage.acked(jobs.work.options(priority=9).request(0.0))
    try:
        wait_until(lambda: after in ended(stage.ledger), TOLD_S + SLACK_S)
    except AssertionError:
        breaches += [] if gone else [Breach("I9", f"no progress {TOLD_S + SLACK_S:g} s after it was over")]
    again_s = time.monotonic() - over
    settle_down(stage, count + 1)
    breaches += quiet_enough(crew) if stage.ours else ()
    breaches += [] if gone else exits(crew)
    told = {"seconds_to_its_telling": told_s} if stage.ours and lasts_s >= TOLD_S + SLACK_S - 1 else {}
    return stage.judged(PLAIN, *breaches, exits=len(gone), **told, seconds_to_the_next_end_after_it=again_s)


def _not_told(stage: Stage, crew: Sequence[Worker], case: Case) -> Iterator[Breach]:
    """arq has nobody whom one could ask."""
    for worker in crew if stage.ours else ():
        try:
            wait_until(lambda worker=worker: tells(worker, case.says), TOLD_S + SLACK_S)  # type: ignore[misc]
        except AssertionError:
            yield Breach("I9", f"readiness does not say {case.says!r}")


def quiet_enough(crew: Iterable[Worker]) -> list[Breach]:
    """What a worker says too often, and what it should never have to say."""
    found = []
    for worker in crew:
        try:
            if worker.events("REDIS_AWAY"):
                assert_one_line_for_each_cause(worker)
        except AssertionError as failure:
            found.append(Breach("I9", str(failure).splitlines()[0]))
        crashes = len(worker.events("ACTOR_CRASH")) + len(worker.events("PART_FAILED"))
        found += [Breach("I9", f"{crashes} crashes of a part of it")] if crashes else []
    return found


def ended(ledger: Ledger) -> set[str]:
    return {line.job for line in ledger.lines() if line.what == "end"}


@contextmanager
def producing(stage: Stage, count: int, batch: int = 5, length_s: float = 0.1) -> Iterator[Thread]:
    """So many jobs are enqueued under keys, a few every 50 ms, each again until it is known to be accepted."""
    stop = Event()

    def run() -> None:
        for first in range(0, count, batch):
            requests = [jobs.work.options(key=str(n)).request(length_s) for n in range(first, first + batch)]
            while not stop.wait(0.05):
                try:
                    stage.acked(*requests)
                    break
                except Exception:  # each client's own; what was not accepted is tried again
                    continue

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(10)


def apart(lines: Sequence[Line], found: Found, touched: set[str]) -> tuple[list[Line], Found]:
    """Without these jobs, of which the server has forgotten something."""

    def rest(known: Mapping[str, Any]) -> dict[str, Any]:
        return {job: value for job, value in known.items() if job not in touched}

    names = ("results", "values", "letters", "told_completed", "told_started", "refused")
    by_job: dict[str, Any] = {name: rest(getattr(found, name)) for name in names}
    waiting = [job for job in found.waiting if job not in touched]
    left = [key for key in found.left if not any(key.endswith(job) for job in touched)]
    return (
        [line for line in lines if line.job not in touched],
        replace(found, **by_job, waiting=waiting, left=left, completed=None if touched else found.completed),
    )


def judged_apart(stage: Stage, losses: Sequence[tuple[float, float]], *others: Breach, **figures: Any) -> Verdict:
    """What was noted of a job within one of these spans the server may have lost: such jobs are counted, not judged."""
    lines, found = stage.ledger.lines(), stage.subject.look(stage.url, stage.workers)
    touched = {line.job for line in lines if line.job and any(since <= line.at <= till for since, till in losses)}
    accepted = {line.job for line in lines if line.what == "acked"}
    there = set(found.results) | set(found.letters) | set(found.waiting)
    runs = executions(lines)
    breaches = [*judge(*apart(lines, found, touched)), *others]
    figures |= {
        "jobs": len(accepted),
        "accepted_and_never_run_nor_there": len(accepted - there - set(runs)),
        "done_and_their_results_lost": len((accepted & set(runs)) - there),
        "run_again_after_the_loss": sum(len(these) > 1 for these in runs.values()),
        "not_judged_for_the_loss": len(touched),
    }
    return Broken(breaches, figures) if breaches else Held(figures)
