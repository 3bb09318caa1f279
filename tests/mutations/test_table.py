"""The table of mutations speaks of the scripts as they are. (`make mutants` runs it.)"""

from __future__ import annotations

import subprocess
import sys

from tests.mutations.table import MUTANTS
from tests.mutations.trial import SCRIPTS, mutated


def test_every_guard_of_the_table_is_in_its_script_exactly_once() -> None:
    counts = {row.name: (SCRIPTS / f"{row.file}.lua").read_text().count(row.text) for row in MUTANTS}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_every_row_changes_its_script_and_has_a_name_of_its_own() -> None:
    assert len({row.name for row in MUTANTS}) == len(MUTANTS)
    assert all(mutated(row) != (SCRIPTS / f"{row.file}.lua").read_text() for row in MUTANTS)


def test_a_mutant_is_run_instead_of_the_script() -> None:
    command = [sys.executable, "-m", "tests.mutations", "--jobs", "1"]
    run = subprocess.run(
        [*command, "--only", "what waits for its handler does not count"], capture_output=True, text=True, timeout=120
    )
    assert "1 mutants, 0 survived" in run.stdout, run.stdout + run.stderr
