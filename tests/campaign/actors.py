"""K3.11: ten actors, one of which is ill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime import Request
from tests.campaign import mischief
from tests.campaign.company import Company
from tests.campaign.scenario import Broken, Held, Scenario, Stage, Verdict
from tests.faults import bugs, campaign, jobs
from tests.faults.ledger import Breach
from tests.processes import wait_until

WELL = [f"well-{number}" for number in range(9)]
MODULES = (campaign.MODULE, mischief.MODULE, bugs.MODULE)
FAILING = 30
INTENSITY = 5


def ten(stage: Stage) -> Verdict:
    bug = stage.folder / "bug"
    groups = [part for queue in (bugs.QUEUE, *WELL) for part in ("-Q", f"{queue}=2")]
    settings: dict[str, Any] = {bugs.FILE: bug}
    worker = stage.worker(modules=MODULES, arguments=groups, **settings).up()
    company = Company(stage, WELL)
    fails = mischief.fail.options(queue=bugs.QUEUE).request("an exception")
    breaches, _ = company.beside("an actor whose jobs all fail", *[fails] * FAILING)
    worker.wait_for("JOB_DEAD", FAILING)
    if worker.events("ACTOR_CRASH"):
        breaches.append(Breach("I9", "a handler's failure has crashed its actor"))
    found, waiting = _crashes(company, bug)
    breaches += found
    crashed = worker.wait_for("ACTOR_CRASH", 2)
    bug.unlink()
    wait_until(lambda: waiting in _done(stage), what="the job of the actor that was ill")
    breaches += [Breach("I9", "the worker was started again")] if worker.boots() > 1 else []
    long = stage.acked(*(jobs.work.options(queue=queue).request(60.0) for queue in WELL))
    wait_until(lambda: all(stage.ledger.starts(job) for job in long))
    breaches += _given_up(stage, bug, long)
    return Broken(breaches, company.figures) if breaches else Held({**company.figures, "crashes": len(crashed)})


def _crashes(company: Company, bug: Path) -> tuple[list[Breach], str]:
    bug.touch()
    found, (waiting,) = company.beside("an actor that crashes", _ill())
    return found, waiting


def _given_up(stage: Stage, bug: Path, long: list[str]) -> list[Breach]:
    """One crash too many: the process gives everything back and ends with 1, for the platform to start it again."""
    (worker,) = stage.workers
    before = len(worker.events("ACTOR_CRASH"))
    bug.touch()
    stage.acked(_ill())
    code = worker.wait()
    released = {line["job_id"] for line in worker.events("JOB_RELEASED")}
    crashes = len(worker.events("ACTOR_CRASH")) - before
    told = [line["data"]["error_type"] for line in worker.events("WORKER_CRASH")]
    bug.unlink()
    return [
        *([Breach("I9", f"exit code {code}")] if code != 1 else []),
        *([Breach("I9", f"{crashes} more crashes were borne")] if crashes > INTENSITY else []),
        *([Breach("I9", f"told is {told}")] if told != [f"{bugs.MODULE}.Bug"] else []),
        *(Breach("I5", f"{job}: was not given back") for job in set(long) - released),
        *(Breach("I5", f"held: {key}") for key in campaign.stranded(stage.url)),
        *(Breach("I10", f"{job}: an attempt is counted") for job in campaign.attempts_kept(stage.url)),
    ]


def _ill() -> Request[int]:
    return jobs.work.options(queue=bugs.QUEUE).request(0.01)


def _done(stage: Stage) -> set[str]:
    return {line.job for line in stage.ledger.lines() if line.what == "end"}


SCENARIOS = (
    Scenario(
        "K3.11",
        "A worker has ten actors. Every job of one fails; then a bug crashes that actor at each claim, and is mended; "
        "then it comes back for good.",
        "The other nine are not slower; a failure crashes nothing; the ill actor is started again alone. More than "
        "five crashes in 30 s end the process with exit code 1, and everything is given back.",
        ("I5", "I8", "I9", "I10"),
        ten,
        deadline_s=120,
        not_for={"arq": "a worker of arq has one queue, and nothing is supervised"},
    ),
)
