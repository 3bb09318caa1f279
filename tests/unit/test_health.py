"""When a worker says that it needs a restart."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.adapters.egress import Egress
from runtime.engine.statistics import Statistics
from runtime.health import STALE_TURN_S, Health


async def probe() -> None:
    """Redis answers."""


@pytest.mark.parametrize(
    ("state", "in_it_for_s", "live"),
    [
        ("awake", 2 * STALE_TURN_S, False),
        ("awake", 1.0, True),
        ("quiet", 2 * STALE_TURN_S, True),
        ("waking", 1.0, True),
    ],
)
def test_the_turns_that_were_not_made_while_it_was_quiet_are_not_missed(
    state: str, in_it_for_s: float, live: bool
) -> None:
    now = time.monotonic()
    governor: Any = SimpleNamespace(state=state, since=now - in_it_for_s)
    actor: Any = SimpleNamespace(
        puller=SimpleNamespace(turn_at=now - 3600), slots=SimpleNamespace(free=1, free_since=now - 3600)
    )
    health = Health([actor], 1, Statistics(), lambda: None, probe, list, lambda: governor, Egress(), list)
    health._started = now - 3600  # a worker that has been up for long
    assert health.live() is live
