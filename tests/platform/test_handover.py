"""Hand-over races: a job at every millisecond of going quiet, more than a thousand times. K5.2 has fewer of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.platform import handover

LANES: handover.Lanes = {
    handover.client_rings: (6, 167),
    handover.sentinel_rings: (1, 120),
    handover.alarm_rings: (1, 80),
    handover.client_rings_who_is_killed: (1, 120),
}


@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_SLEEP") != "all", reason="minutes: for `all`")
def test_each_job_runs_once_and_soon_whenever_it_comes(tmp_path: Path) -> None:
    runs, left = handover.swept(LANES, tmp_path)
    print(f"\n{handover.table(runs)}")
    assert [run.fault for run in runs if run.fault] == []
    assert left == []
