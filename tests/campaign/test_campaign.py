"""The quick scenarios against ours; `make campaign` runs all of them, against arq too."""

from __future__ import annotations

import pytest

from tests.campaign.outcome import Case
from tests.campaign.registry import SCENARIOS
from tests.campaign.scenario import Broken, Held, NotRun


@pytest.mark.parametrize("scenario", [one.id for one in SCENARIOS if one.quick and "runtime" not in one.not_for])
def test_what_must_hold_holds(scenario: str) -> None:
    verdict = Case(scenario, "runtime").run().verdict
    if isinstance(verdict, NotRun):
        pytest.skip(verdict.why)
    assert not isinstance(verdict, Broken), "\n".join(map(str, verdict.breaches[:20]))
    assert isinstance(verdict, Held)
    print(f"\n{dict(verdict.figures)}")
