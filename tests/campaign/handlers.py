"""K3.1 to K3.6, and K3.10: what a handler may do to its process, its own run, and the jobs beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from runtime import Request
from runtime.adapters.redis import wire
from tests.campaign import mischief
from tests.campaign.company import PATIENCE_S, Company, attend
from tests.campaign.death import TERMS, exits, settle_down
from tests.campaign.scenario import Scenario, Stage, Verdict, merged
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Terms
from tests.processes import Worker, wait_until

MODULES = (campaign.MODULE, mischief.MODULE)
TOLD_S = 3.0
"""A second, two looks of the watchdog, and a busy machine."""
STOPPED_S = 12.0
"""A pool's items may take 6 s to close."""


def crew(stage: Stage, lease_s: float, **settings: Any) -> dict[str, Any]:
    """Settings of workers whose claims lapse soon; arq's do 10 s after the longest timeout."""
    return {"modules": MODULES, "slots": 5, "lease": f"{lease_s:g}s", **settings} | (
        {} if stage.ours else {"JOB_TIMEOUT_SECONDS": 1}
    )


def blocked(stage: Stage) -> Verdict:
    """arq's claims lapse after 11 s."""
    length_s = 14.0 if stage.full or not stage.ours else 5.0
    first, other = (stage.worker(**crew(stage, 2)) for _ in range(2))
    first.up()
    company = Company(stage)
    (beside,) = stage.acked(jobs.work.request(1.0))
    wait_until(lambda: stage.ledger.starts(beside))
    (job,) = stage.acked(jobs.block.request(length_s))
    wait_until(lambda: stage.ledger.starts(job))
    began = time.monotonic()
    other.up()
    breaches, _ = company.beside("a worker whose event loop is blocked")
    if stage.ours:
        breaches += _told_of(first, job)
    settle_down(stage, company.accepted + 2)
    time.sleep(max(0.0, began + length_s + 1 - time.monotonic()))  # what the blocked one still says
    breaches += exits([first, other])
    return stage.judged(
        TERMS, *breaches, blocked_s=length_s, runs_of_the_blocking_job=len(stage.ledger.starts(job)), **company.figures
    )


def _told_of(worker: Worker, job: str) -> list[Breach]:
    (line,), (start,) = worker.wait_for("LOOP_BLOCKED"), worker.events("JOB_STARTED", job_id=job)
    after_s = (_time(line) - _time(start)).total_seconds()
    wrong = [
        *(["it does not name the job"] if line.get("job_id") != job else []),
        *(["its stack does not show the line"] if "time.sleep(length_s)" not in line["stack"] else []),
        *(["its stack shows a variable"] if "length_s=" in line["stack"] else []),
        *([f"it came after {after_s:.1f} s"] if after_s > TOLD_S else []),
    ]
    return [Breach("I8", f"the line about the blocked loop: {what}") for what in wrong]


def _time(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["timestamp"])


def blocked_for_ever(stage: Stage) -> Verdict:
    worker = stage.worker(modules=MODULES, slots=3, RUNTIME_BLOCK_LIMIT="2s").up()
    (beside,) = stage.acked(jobs.work.request(6.0))
    wait_until(stage.ledger.starts)
    bad, *good = stage.acked(jobs.block.request(3600.0), *(jobs.work.request(0.1) for _ in range(10)))
    began = time.monotonic()
    over = attend(stage, lambda: stage.ended() >= 12, 60 if stage.ours else PATIENCE_S, note="lapsed")
    took_s = time.monotonic() - began
    left_open = {*good, beside} - {line.job for line in stage.ledger.lines() if line.what == "end"}
    blamed = {line.job for line in stage.ledger.starts() if line.crashes and line.job != bad}
    breaches = [
        *([Breach("I8", f"{len(left_open)} of 11 good jobs had not ended after {took_s:.0f} s")] if left_open else []),
        *(Breach("I10", f"{job}: a crash is counted that was another's") for job in blamed),
        *([Breach("I10", f"{bad}: blocks its workers, and no end of it")] if not over else []),
    ]
    if stage.ours:
        assert worker.wait() == 1  # the third time
        breaches += exits([worker.up()])
        causes = {line["data"]["error_type"] for line in worker.events("WORKER_CRASH")}
        breaches += [Breach("I9", f"the crash is told as {causes}")] if causes != {"Blocked"} else []
        letter = campaign.letters(stage.url).get(bad, {})
        if [error["error"] for error in letter.get("errors", [])] != ["Blocked"] * 3 or "jobs.py" not in letter["text"]:
            breaches.append(Breach("I10", "its letter does not say where it blocked, and how often"))
    return stage.judged(TERMS, *breaches, starts_of_the_worker=worker.boots(), seconds_to_the_last_end=took_s)


def locked(stage: Stage) -> Verdict:
    ways = list(mischief.LOCKS) if stage.full else list(mischief.LOCKS)[:1]
    verdicts = []
    for how in ways:
        with Stage(stage.subject, seed=stage.seed, full=stage.full) as own:
            verdicts.append(_locked(own, how))
    return merged(ways, verdicts, times=3 if stage.full else 1)


def _locked(stage: Stage, how: str) -> Verdict:
    """Nothing of ours in the process can run then, the keeper's thread neither: the leases lapse."""
    length_s, times = (7.0 if stage.ours else 14.0), (3 if stage.full else 1)
    first, other = (stage.worker(**crew(stage, 3)) for _ in range(2))
    first.up()
    company = Company(stage)
    (beside,) = stage.acked(jobs.work.request(1.0))
    wait_until(lambda: stage.ledger.starts(beside))
    (bad,) = stage.acked(mischief.keep_the_lock.request(how, length_s, times))
    wait_until(lambda: stage.ledger.starts(bad))
    other.up()
    breaches, _ = company.beside("a worker whose interpreter is locked")
    settle_down(stage, company.accepted + 2, 90)
    if not stage.ours:
        time.sleep(times * length_s)
    time.sleep(length_s + 1)  # what a locked one still says
    breaches += exits([first, other])
    terms = Terms(letters={bad: "crashed"}) if times == 3 else Terms()
    return stage.judged(terms, *breaches, **company.figures)


def raised(stage: Stage) -> Verdict:
    cases: Mapping[str, Request[Any]] = {
        **{name: mischief.fail.request(name) for name in mischief.FAILURES},
        "SystemExit in a task of its own": mischief.fail_in_a_task_of_its_own.request(),
    }
    groups = [[name] for name in cases] if stage.full else [list(cases)]
    worker = stage.worker(modules=MODULES).up()
    company = Company(stage)
    breaches: list[Breach] = []
    bad: list[str] = []
    for group in groups:
        found, ids = company.beside(group[0] if len(group) == 1 else "all", *(cases[name] for name in group))
        breaches += found
        bad += ids
    settle_down(stage, company.accepted)
    starts = worker.boots()
    breaches += [Breach("I9", f"the worker had to be started {starts} times")] if starts > 1 else []
    breaches += exits([worker])
    if stage.ours and (longest := max(map(len, worker.output().splitlines()))) > 5000:
        breaches.append(Breach("I9", f"a line of the log has {longest} characters"))
    terms = Terms(letters=dict.fromkeys(bad, "exhausted"))
    return stage.judged(terms, *breaches, kinds=len(cases), starts_of_the_worker=starts, **company.figures)


def unwilling_to_stop(stage: Stage) -> Verdict:
    worker = stage.worker(modules=MODULES, slots=8).up()
    company = Company(stage)
    breaches, (for_ever, shielded, failing, *_) = company.beside(
        "handlers that do not stop",
        mischief.swallow_for_ever.request(),
        mischief.shield.request(),
        mischief.fail_while_it_stops.request(),
        mischief.swallow_once.request(),
        mischief.leave_things_behind.request(),
    )
    settle_down(stage, company.accepted)
    again, _ = company.beside("a slot that is lost")
    settle_down(stage, company.accepted)
    breaches += again
    if for_ever not in campaign.results(stage.url):
        breaches.append(Breach("I1", f"{for_ever}: has no outcome, {PATIENCE_S:g} s after a timeout of 0.3 s"))
    if stage.ours and [line["job_id"] for line in worker.events("JOB_STUCK")] != [for_ever]:
        breaches.append(Breach("I8", "the lost slot is not told of"))
    late, took_s = _stopped(worker)
    breaches += late
    terms = Terms(letters={for_ever: "stuck", shielded: "exhausted", failing: "exhausted"})
    return stage.judged(terms, *breaches, seconds_to_its_exit=took_s, **company.figures)


def _stopped(worker: Worker) -> tuple[list[Breach], float]:
    began = time.monotonic()
    wrong_exits = exits([worker])
    took_s = time.monotonic() - began
    return wrong_exits + [Breach("I9", f"{took_s:.1f} s to its exit")] * (took_s > STOPPED_S), took_s


def callbacks(stage: Stage) -> Verdict:
    """arq has no pools."""
    worker = stage.worker(modules=MODULES).up()
    company = Company(stage)
    pools = [mischief.use.request(what) for what in mischief.POOLS] if stage.ours else []
    breaches, ids = company.beside(
        "handlers whose pools do not open or close", mischief.spoil_its_arguments.request([1, 2, 3]), *pools
    )
    settle_down(stage, company.accepted)
    late, took_s = _stopped(worker)
    breaches += late
    if worker.events("EXIT_REFUSED"):
        breaches.append(Breach("I9", "what opened an item reached the event loop with its exit"))
    terms = Terms(letters=dict.fromkeys(ids[1:3], "exhausted"))
    return stage.judged(terms, *breaches, seconds_to_its_exit=took_s, **company.figures)


def returned(stage: Stage) -> Verdict:
    secret = "sk-" + "7Qw3" * 10
    worker = stage.worker(modules=MODULES, **{mischief.SECRET: secret}).up()
    company = Company(stage)
    names = list(mischief.RESULTS)
    breaches, ids = company.beside("results of every kind", *(mischief.bring.request(name) for name in names))
    settle_down(stage, company.accepted)
    breaches += exits([worker])
    if secret in worker.output() + worker.errors():
        breaches.append(Breach("I11", "the secret that a handler returned is in the log"))
    kept = campaign.results(stage.url)
    marked = [
        name
        for name, job in zip(names, ids, strict=True)
        if job in kept and str(kept[job].value).startswith(wire.NO_RESULT)
    ]
    return stage.judged(TERMS, *breaches, replaced_by_a_marker=", ".join(marked) or "none", **company.figures)


def forked(stage: Stage) -> Verdict:
    children = ("returns", "raises", "awaits", "asks", "ends")
    worker = stage.worker(modules=MODULES, slots=8).up()
    company = Company(stage)
    breaches: list[Breach] = []
    forks: list[str] = []
    for group in [[child] for child in children] if stage.full else [children]:
        found, ids = company.beside("forks", *(mischief.fork.request(child) for child in group))
        breaches += found
        forks += ids
    settle_down(stage, company.accepted)
    kept = campaign.results(stage.url)
    breaches += [
        Breach("I4", f"{child}: the outcome is the child's")
        for child, job in zip(children, forks, strict=True)
        if job in kept and kept[job].value != worker.pid
    ]
    went_on = {line.job for line in stage.ledger.lines() if line.pid not in (0, worker.pid, os.getpid())} - set(forks)
    breaches += [Breach("I3", f"{job}: goes on in a child of its worker, too") for job in went_on]
    breaches += [Breach("I9", f"the worker was started {worker.boots()} times")] if worker.boots() > 1 else []
    breaches += exits([worker])
    return stage.judged(TERMS, *breaches, **company.figures)


SCENARIOS = (
    Scenario(
        "K3.1",
        "A handler blocks the event loop for longer than two leases, beside a job of 1 s; another worker is idle.",
        "One execution of each; the log shows the line it blocks at; the other worker's jobs are not slower.",
        ("I1", "I2", "I3", "I4", "I7", "I8", "I9"),
        blocked,
        deadline_s=120,
    ),
    Scenario(
        "K3.1.limit",
        "A handler blocks the event loop for ever, with good jobs beside and behind it. What ends is started again.",
        "After the limit the process gives the others back and ends; after three times the job is a dead letter.",
        ("I1", "I2", "I7", "I8", "I9", "I10"),
        blocked_for_ever,
        deadline_s=120,
    ),
    Scenario(
        "K3.2",
        "A handler keeps the interpreter's lock for two leases, so that no thread of its process runs: in a call into "
        "C, and by a pattern that takes so long. Another worker is idle.",
        "The leases lapse, the other worker takes over, a crash is counted; nothing that the locked one says later is "
        "accepted. After three times the job is a dead letter.",
        ("I1", "I2", "I3", "I4", "I7", "I8"),
        locked,
        deadline_s=200,
    ),
    Scenario(
        "K3.3",
        "Handlers raise everything that can be raised: SystemExit, CancelledError, MemoryError, exceptions without a "
        "readable text or with one of 10 MB. Ten good jobs are beside them.",
        "One failed outcome each; the worker lives; the good jobs take no more than twice their time.",
        ("I1", "I2", "I3", "I7", "I8", "I9"),
        raised,
        deadline_s=420,
    ),
    Scenario(
        "K3.4",
        "Handlers swallow their cancellation once or for ever, shield what they wait for, raise while they stop, leave "
        "a task, a thread, a process and a socket behind. Ten good jobs are beside them.",
        "A slot at most is lost, and told of; the job is a dead letter and runs no second time; the worker can stop.",
        ("I1", "I2", "I3", "I7", "I8", "I9"),
        unwilling_to_stop,
        deadline_s=120,
    ),
    Scenario(
        "K3.5",
        "What opens a pool's items raises or hangs, what closes them hangs; a handler changes its arguments and asks "
        "for another run. Ten good jobs are beside them.",
        "Only the jobs that need it fail; the second run has the arguments that were sent; the worker can stop.",
        ("I1", "I2", "I3", "I7", "I8", "I9"),
        callbacks,
        quick=False,  # tests/e2e/test_pools.py has the parts of it
    ),
    Scenario(
        "K3.6",
        "Handlers return what cannot be kept: a function, a cycle, 50 MB, 100,000 lists in each other; and a secret.",
        "The job is done, a marker stands for its result; the secret is in no log.",
        ("I1", "I2", "I3", "I7", "I8", "I11"),
        returned,
    ),
    Scenario(
        "K3.10",
        "Handlers fork. The child returns, raises, waits in the event loop, asks Redis for something, or ends.",
        "The child settles nothing and claims nothing; each job ends once, as its parent's run does.",
        ("I1", "I2", "I3", "I4", "I7", "I8", "I9"),
        forked,
    ),
)
