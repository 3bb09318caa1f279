"""One run of a scenario: which, and what came of it."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

from tests.campaign.scenario import Scenario, Verdict, perform
from tests.campaign.subjects import SubjectName


@dataclass(frozen=True)
class Case:
    scenario: str
    subject: SubjectName
    seed: int = 1
    full: bool = False

    def find(self) -> Scenario:
        from tests.campaign.registry import SCENARIOS

        return next(one for one in SCENARIOS if one.id == self.scenario)

    def run(self) -> Outcome:
        began = time.monotonic()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, workers are to ignore it
        verdict = perform(self.find(), self.subject, seed=self.seed, full=self.full)
        return Outcome(self, verdict, time.monotonic() - began)


@dataclass(frozen=True)
class Outcome:
    case: Case
    verdict: Verdict
    took_s: float
