"""A handler module whose process notes what it does once `watch` has run: Python's audit events, one a line.

What a body makes its worker import, open or run is seen here, whoever does it and in whatever thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from zoneinfo import TZPATH

from runtime import Context, handler
from tests.faults.jobs import LEDGER, noted

MODULE = "tests.campaign.audited"
EVENTS = "RUNTIME_TEST_EVENTS"
QUIET = ("builtins.id", "object.", "sys._", "gc.", "cpython.", "socket.", "signal.", "_thread.", "time.sleep")
"""They reach nothing."""
ZONES = tuple(f"{folder}/" for folder in TZPATH)
"""Time zones are read there, those that a body names, too."""
WATCHDOG = "watchdog"
"""The thread that tells where the event loop stands still, and reads the source for that. No body is met there."""

BEAT_S = 3.0
"""The keeper of leases does the first time what it does every quarter of a lease (2.5 s): it reads its script."""

_watching = False


def _hook() -> None:
    file = os.open(os.environ[EVENTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ledger = os.environ[LEDGER]

    def note(event: str, args: tuple[object, ...]) -> None:
        if not _watching or threading.current_thread().name == WATCHDOG:
            return
        if event.startswith(QUIET) or (event == "open" and _is_free(str(args[0]), ledger)):
            return
        os.write(file, f"{event} {args!a:.100}\n".encode())

    sys.addaudithook(note)


def _is_free(file: str, ledger: str) -> bool:
    return file == ledger or str(Path(file).resolve()).startswith(ZONES)


if EVENTS in os.environ:
    _hook()


@handler
async def watch(ctx: Context) -> int:
    """From its end on."""
    global _watching
    with noted(ctx):
        await asyncio.sleep(BEAT_S)
    _watching = True
    return os.getpid()
