"""Sees the environment, the `.env` beside it, and what git keeps of that."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime import settings
from runtime.core.diagnosis.settings import Environment, is_placeholder
from runtime.settings import Reading

GIT_S = 2.0
MOST_READ = 65_536
_FILLED_IN = re.compile(r"key|token|secret|passw|dsn|credential|url$", re.IGNORECASE)
"""Names of variables whose values people are to fill in."""
_SHARED = re.compile(r"example|sample|template|dist|test", re.IGNORECASE)
"""In the names of files that are meant to be in git."""


def see(env: Mapping[str, str], reading: Reading, folder: Path) -> Environment:
    names = [name for setting in settings.TABLE for name in setting.names]
    redis = {env.get(name, "").strip(" '\"") for name in ("REDIS_URL", "UPSTASH_REDIS_URL")} - {""}
    return Environment(
        read=tuple(found.name for found in reading.found if found.name),
        wrong=tuple(reading.wrong),
        warnings=tuple(reading.warnings),
        spaced=tuple(name for name in names if env.get(name, "").strip() != env.get(name, "")),
        placeholders=tuple(
            sorted(name for name, value in env.items() if _FILLED_IN.search(name) and is_placeholder(value))
        ),
        two_redis=len(redis) > 1,
        disabled=chosen(reading)["redis_disabled"] is True,
        unread=tuple(name for name in _in_file(folder / ".env") if name in names and not env.get(name)),
        tracked=tuple(_tracked(folder)),
    )


def chosen(reading: Reading) -> Mapping[str, Any]:
    """The value of each setting by its field; its default where what is set is wrong.

    `timeout_s` is None unless somebody has set it.
    """
    values: dict[str, Any] = {}
    for found in reading.found:
        setting = found.setting
        default = setting.parse(setting.default) if setting.default else None
        values[setting.field] = default if found.wrong else found.value
    named = {found.setting.field for found in reading.found if found.name and not found.wrong}
    values["timeout_s"] = values["job_timeout_s"] or (values["timeout_s"] if "timeout_s" in named else None)
    return values


def _in_file(path: Path) -> Sequence[str]:
    """The names that a file of variables sets, sorted; its values are not looked at."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_READ)
    except OSError:
        return ()
    return sorted(set(re.findall(r"^[ \t]*(?:export[ \t]+)?([A-Z][A-Z0-9_]*)[ \t]*=[ \t]*\S", text, re.MULTILINE)))


def _tracked(folder: Path) -> Sequence[str]:
    """Files of variables that git keeps; none where there is no git."""
    command = ["git", "-c", "core.fsmonitor=false", "ls-files", "-z", "--", ".env", ".env.*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=GIT_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ()
    names = done.stdout.split("\0") if done.returncode == 0 else []
    return [name for name in names if name and not _SHARED.search(name)]
