"""Ten good jobs beside bad ones, and what a platform does meanwhile: it starts again what has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from runtime import Request
from runtime.core.spec import DEFAULT_QUEUE
from tests.campaign.death import RECLAIM_S
from tests.campaign.scenario import Stage
from tests.faults import jobs
from tests.faults.ledger import Breach

GOOD = 10
LENGTH_S = 0.4
SLACK_S = 0.5
"""What a busy machine may add to twice the time."""
PATIENCE_S = RECLAIM_S + 2
"""A job that a killed worker had is over by then."""


def attend(
    stage: Stage, fact: Callable[[], bool], timeout_s: float, *, note: Literal["killed", "lapsed"] = "killed"
) -> bool:
    """Start every worker that has ended again, until `fact` or for so long; whether it came about.

    `note` is what the ledger is told of one: `lapsed` where it gives its jobs back before it ends.
    """
    until = time.monotonic() + timeout_s
    while not (came := fact()) and time.monotonic() < until:
        for worker in stage.workers:
            if worker.ended:
                stage.ledger.note(note, pid=worker.pid)
                worker.start()
        time.sleep(0.05)
    return came


class Company:
    """Ten good jobs. Nothing that is beside them may make them take more than twice their time (I8)."""

    def __init__(self, stage: Stage, queues: Sequence[str] = (DEFAULT_QUEUE,)) -> None:
        self._stage = stage
        self._queues = queues
        self.accepted = 0
        self.longest_s = 0.0
        """The longest time they took beside a bad job."""
        alone_s, _ = self._run()
        assert alone_s is not None, "the good jobs alone do not end"
        self.alone_s = alone_s

    def beside(self, name: str, *bad: Request[Any]) -> tuple[list[Breach], list[str]]:
        """What is broken with these ahead of them, and the ids of these."""
        took_s, ids = self._run(*bad)
        self.longest_s = max(self.longest_s, PATIENCE_S if took_s is None else took_s)
        if took_s is None:
            return [Breach("I8", f"beside {name}: not all good jobs had ended after {PATIENCE_S:g} s")], ids
        if took_s > 2 * self.alone_s + SLACK_S:
            return [Breach("I8", f"beside {name}: good jobs took {took_s:.1f} s, alone {self.alone_s:.1f} s")], ids
        return [], ids

    @property
    def figures(self) -> dict[str, float]:
        return {"good_jobs_alone_s": self.alone_s, "good_jobs_beside_bad_ones_s": self.longest_s}

    def _run(self, *bad: Request[Any]) -> tuple[float | None, list[str]]:
        began = time.monotonic()
        ids = self._stage.acked(*bad, *map(self._good, range(GOOD)))
        self.accepted += len(ids)
        good = set(ids[len(bad) :])
        ends: list[float] = []

        def ended() -> bool:
            ends[:] = [line.at for line in self._stage.ledger.lines() if line.what == "end" and line.job in good]
            return len(ends) >= GOOD

        attend(self._stage, ended, PATIENCE_S)
        return (max(ends) - began if len(ends) >= GOOD else None), ids[: len(bad)]

    def _good(self, number: int) -> Request[Any]:
        queue = self._queues[number % len(self._queues)]
        return jobs.work.options(queue=queue).request(LENGTH_S)
