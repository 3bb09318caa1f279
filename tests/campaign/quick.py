"""The quick scenarios as tests, a file for each family so that they run beside each other. `make campaign` runs all."""

from __future__ import annotations

import pytest

from tests.campaign.outcome import Case
from tests.campaign.registry import SCENARIOS
from tests.campaign.scenario import Broken, Held, NotRun


def quick(family: str) -> list[str]:
    """The ids of those that `make test` runs against ours."""
    ours = [one.id for one in SCENARIOS if one.quick and "runtime" not in one.not_for]
    return [scenario for scenario in ours if scenario.startswith(f"{family}.")]


def must_hold(scenario: str) -> None:
    """Run it; what must hold holds."""
    verdict = Case(scenario, "runtime").run().verdict
    if isinstance(verdict, NotRun):
        pytest.skip(verdict.why)
    assert not isinstance(verdict, Broken), "\n".join(map(str, verdict.breaches[:20]))
    assert isinstance(verdict, Held)
    print(f"\n{dict(verdict.figures)}")
