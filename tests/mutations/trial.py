"""The tests of a script, against a copy of it that lacks one guard."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from runtime.adapters.redis import scripts
from tests.mutations.table import Mutant

SCRIPTS = Path(scripts.__file__).parent / "lua"

# The likeliest to fail first.
TESTS = {
    "common": ("enqueue", "extend", "settle", "claim", "follow", "forward", "need", "outlook", "paused"),
    "enqueue": ("enqueue", "quota", "commands", "unique", "paused"),
    "claim": ("claim", "wait", "settle", "extend", "commands", "paused"),
    "extend": ("extend",),
    "settle": ("settle", "follow", "claim", "commands", "unique"),
    "once": ("once", "source"),
    "cancel": ("cancel", "follow", "unique"),
    "purge": ("purge",),
    "follow": ("follow",),
    "progress": ("progress",),
    "permits": ("permits",),
    "acquire": ("permits",),
    "release": ("permits",),
    "need": ("need", "paused", "fire"),
    "outlook": ("outlook", "paused", "fire"),
    "fire": ("fire",),
    **dict.fromkeys(("schedule", "take", "leave", "adjust", "breaker"), ("buckets", "bucket_model")),
}
QUICKLY = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--assert=plain"]
NO_TEST, FAILED = pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.TESTS_FAILED


def mutated(row: Mutant) -> str:
    """The script without this guard."""
    return (SCRIPTS / f"{row.file}.lua").read_text().replace(row.text, row.replacement)


def passes(file: str, row: Mutant | None = None) -> bool:
    """Whether the tests of this script pass, with this mutation if any. To be called in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        shutil.copytree(SCRIPTS, Path(home, "lua"))
        if row is not None:
            Path(home, "lua", f"{file}.lua").write_text(mutated(row))
        tests = [f"tests/redis/test_{name}.py" for name in TESTS[file]]
        rules = " or ".join(f"{rule}_" for rule in re.findall(r"\b[RL]\d+\b", row.guard)) if row else ""
        # The tests that are named for the rule first: most mutants go no further.
        scripts.script.cache_clear()
        with mock.patch.object(scripts, "get_data", lambda package, name: Path(home, name).read_bytes()):
            return (not rules or _pass("-k", rules, *tests)) and _pass(*tests)


def _pass(*which: str) -> bool:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = pytest.main([*QUICKLY, "-x", "--timeout=60", *which])
    if code not in (pytest.ExitCode.OK, NO_TEST, FAILED):
        raise RuntimeError(f"pytest ended with {code}")
    return code != FAILED
