"""docs/testing.md: its files are a project, whose tests pass and whose types are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.test_plugin import run_pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text('[tool.runtime]\nhandlers = ["jobs"]\n[tool.pytest]\npythonpath = ["."]\n')
    return tmp_path


def test_its_tests_pass(project: Path) -> None:
    code, said = run_pytest(project)
    assert code == 0, said
    assert f"{PAGE.read_text().count('async def test_')} passed" in said


@pytest.mark.timeout(300)  # all of the package is read
def test_it_is_typed(project: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(project / "cache"), "."],
        cwd=project, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
