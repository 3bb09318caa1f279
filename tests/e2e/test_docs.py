"""The Python of the other pages: it is typed, and declares what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.registry import collect, equipment

ROOT = Path(__file__).parents[2]
# Those that begin with `from-` are followed step by step in test_migration.py.
# testing.md is a project: tests/testing/test_page.py.
PAGES = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if "```python" in page.read_text() and not page.name.startswith(("from-", "testing."))
]


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(300)  # all of the package is read
def test_the_examples_suit_the_stricter_checker_too(tmp_path: Path) -> None:
    for page in PAGES:
        for number, block in enumerate(examples(page)):
            (tmp_path / f"{page.stem.replace('-', '_')}_{number}.py").write_text(block)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_are_typed_and_declare_handlers(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(examples(page)):
        name = f"{page.stem}_{number}"
        (tmp_path / f"{name}.py").write_text(block)
        checked = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), f"{name}.py"],
            cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout
        assert collect([name])
        assert page.stem != "limits" or len(equipment([name]).buckets) == 3
