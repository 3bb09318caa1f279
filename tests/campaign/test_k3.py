"""Handlers and actors."""

from __future__ import annotations

import pytest

from tests.campaign.quick import must_hold, quick


@pytest.mark.parametrize("scenario", quick("K3"))
def test_what_must_hold_holds(scenario: str) -> None:
    must_hold(scenario)
