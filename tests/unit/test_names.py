"""What `from runtime import …` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import runtime


@pytest.mark.parametrize("name", runtime.__all__)
def test_every_public_name_is_what_it_is_called(name: str) -> None:
    assert getattr(runtime, name).__name__ == name


def test_a_name_that_does_not_exist_is_told_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.nothing  # type: ignore[attr-defined]


def test_the_package_itself_loads_nothing_of_its_own() -> None:
    script = "import sys, runtime; print([name for name in sys.modules if name.startswith('runtime.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
