"""What a user may get wrong with the sample's handlers is rejected by both type checkers, each line of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RIGHT = """
from tests.testing.sample.deps import Card, Deck
from tests.testing.sample.handlers import cleanup, deliver, export_pdf, flashcards, onboard

async def right() -> None:
    await onboard.enqueue("00.000.000/0001-91")
    await export_pdf.enqueue("m1", tier="vip")
    await export_pdf.options(delay="5s", unique_for="1h").enqueue(menu_id="m1")
    cards: list[Card] = await (await flashcards.enqueue(Deck("cardiology"))).result()
    number: int = await (await cleanup.enqueue()).result()

async def old(ctx: dict[str, object], url: str) -> int:
    return len(url)

async def wrong() -> None:
"""
MISUSES = {
    "a wrong type": "await onboard.enqueue(123)",
    "a missing argument": "await deliver.enqueue(1)",
    "a misnamed argument": 'await export_pdf.enqueue("m1", teir="vip")',
    "a misspelt option": 'await onboard.options(dealy="5s").enqueue("1")',
    "a dict for a dataclass": 'await flashcards.enqueue({"topic": "cardiology"})',
    "a wrong type of result": 'text: str = await (await onboard.enqueue("1")).result()',
    "a keyword of a wrong type": 'await export_pdf.enqueue("m1", tier=7)',
    "arguments for a schedule": "await cleanup.enqueue(1)",
    "an option of a wrong type": 'await onboard.options(priority="high").enqueue("1")',
}
FIRST = RIGHT.count("\n") + 1


@pytest.fixture(scope="module")
def misuses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("misuses")
    (folder / "misuses.py").write_text(RIGHT + "".join(f"    {line}\n" for line in MISUSES.values()))
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    unused = {"reportUnusedVariable": False}  # they have a type to be wrong
    (folder / "pyrightconfig.json").write_text(json.dumps(settings | unused))
    return folder / "misuses.py"


@pytest.fixture(scope="module")
def rejected_by_mypy(misuses: Path) -> list[int]:
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(misuses.parent / "cache"), misuses.name],
        cwd=misuses.parent, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    return [int(line) for line in re.findall(r"^misuses\.py:(\d+): error", ran.stdout, re.MULTILINE)]


@pytest.fixture(scope="module")
def rejected_by_pyright(misuses: Path) -> list[int]:
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, misuses.name]
    ran = subprocess.run(command, cwd=misuses.parent, capture_output=True, text=True)
    found = json.loads(ran.stdout)["generalDiagnostics"]
    return [one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"]


@pytest.mark.timeout(300)  # all of the package is read
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_each_misuse_is_rejected_and_nothing_else(checker: str, request: pytest.FixtureRequest) -> None:
    lines: list[int] = request.getfixturevalue(f"rejected_by_{checker}")
    accepted = [what for number, what in enumerate(MISUSES, FIRST) if number not in lines]
    assert accepted == []
    assert [line for line in lines if not FIRST <= line < FIRST + len(MISUSES)] == []
