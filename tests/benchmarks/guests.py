"""What only the benchmark needs is in `.bench/`, fetched at its first run: BullMQ by npm, uvloop by pip.

A contender whose guest cannot be had is not run, and the report says so.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HOME = Path(__file__).parents[2] / ".bench"
NODE_MODULES = HOME / "node" / "node_modules"
PYTHON = HOME / "python"
BULLMQ = ("bullmq@6.7.0", "ioredis@6.0.0")
UVLOOP = "uvloop>=0.22,<1"
FETCH_S = 180.0


@cache
def bullmq() -> str | None:
    """Why it cannot be run; None if it can."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "there is no Node"
    if not (NODE_MODULES / "bullmq").exists():
        return _fetch(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(HOME / "node"), *BULLMQ)
    return None


@cache
def uvloop() -> str | None:
    """Why it cannot be run; None if it can."""
    if not (PYTHON / "uvloop").exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        return _fetch(*pip, "--target", str(PYTHON), UVLOOP)
    return None


def versions() -> dict[str, str]:
    """Those of the guests that are there."""
    found = {}
    for name in ("bullmq", "ioredis"):
        package = NODE_MODULES / name / "package.json"
        if package.exists():
            found[name] = json.loads(package.read_text())["version"]
    for folder in PYTHON.glob("uvloop-*.dist-info"):
        found["uvloop"] = folder.name.removeprefix("uvloop-").removesuffix(".dist-info")
    return found


def use_loop() -> None:
    """In a child process: the event loop that this contender is to run on."""
    if os.environ.get("BENCH_LOOP") == "uvloop":
        from importlib import import_module

        asyncio.set_event_loop_policy(import_module("uvloop").EventLoopPolicy())


def _fetch(*command: str) -> str | None:
    HOME.mkdir(exist_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        return f"could not be fetched within {FETCH_S:g} s"
    return f"could not be fetched: {done.stderr.strip()[-200:]}" if done.returncode else None
