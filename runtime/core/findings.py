"""What `runtime doctor` finds: a row for each check."""

from collections.abc import Iterable, Sequence
from typing import Literal

from runtime.core.values import frozen

Verdict = Literal["pass", "warn", "fail", "skipped"]
"""As it should be; it works and may bite; it does not work, or loses jobs; could not be looked at from here."""


@frozen
class Finding:
    """The outcome of one check."""

    check: str
    """Its name, which stays: `<group>.<what>`."""
    verdict: Verdict
    seen: str
    why: str = ""
    """Why that matters; empty where nothing is amiss."""
    fix: str = ""
    """What to do, as exactly as it can be said."""

    @property
    def group(self) -> str:
        return self.check.partition(".")[0]


@frozen
class Section:
    """The findings of one group. `about`: what was looked at."""

    group: str
    about: str
    findings: Sequence[Finding]


def count(findings: Iterable[Finding]) -> dict[Verdict, int]:
    """How many there are of each verdict."""
    counts: dict[Verdict, int] = {"fail": 0, "warn": 0, "pass": 0, "skipped": 0}
    for finding in findings:
        counts[finding.verdict] += 1
    return counts
