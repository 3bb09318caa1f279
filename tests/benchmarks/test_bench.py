"""That the bench still measures: a row of it with few jobs, as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import report, rows
from tests.benchmarks.contenders import ARQ_BEST, RUNTIME
from tests.benchmarks.rows import Bar
from tests.processes import ROOT, environment

QUICK = ("noop/runtime", "noop/arq", "enqueue-5ms/runtime")


def test_rows_are_measured_and_reported_with_what_each_job_costs(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    only = [part for name in QUICK for part in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *only, "--rounds", "1", "--jobs", "300", "--json", str(found)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())["rows"]
    (ours,), (arqs,), (far,) = figures["noop"]["runtime"], figures["noop"]["arq"], figures["enqueue-5ms"]["runtime"]
    # What the server counts is exact but for the start of the worker, which these few jobs carry.
    assert 20 < arqs["all_commands"][0] < 26
    assert 2 < ours["all_commands"][0] < 10
    assert ours["reads"][0] < 0.5 < 5 < arqs["reads"][0]
    assert ours["jobs_per_s"][0] > arqs["jobs_per_s"][0]
    assert far["one"][0] < 100 < far["bulk"][0]  # there and back in 10 ms
    assert "met    runtime all_commands: at most 10" in done.stdout


def test_a_row_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--only", "nap"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no such row or contender: nap" in done.stderr


@pytest.mark.parametrize(("ours", "verdict"), [(3.0, "met"), (2.9, "MISSED")])
def test_a_bar_is_judged_by_the_medians_of_the_rounds(ours: float, verdict: str) -> None:
    found = {
        RUNTIME.name: [{"jobs_per_s": [speed]} for speed in (1.0, ours, 9.0)],
        ARQ_BEST.name: [{"jobs_per_s": [speed]} for speed in (0.9, 1.0, 1.0)],
    }
    said = report.judged(Bar(RUNTIME, "jobs_per_s", "least", 3, ARQ_BEST), found)
    assert said is not None
    assert said.startswith(verdict)


def test_each_bar_is_about_a_figure_of_its_row() -> None:
    for row in rows.ROWS:
        for bar in row.bars:
            assert bar.who in row.contenders
            assert bar.figure in {column.figure for column in row.columns}
            assert bar.than is None or bar.than in row.contenders
