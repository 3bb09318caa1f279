"""Bugs of ours, put in on purpose: a worker that imports this module crashes in its claims while a file is there."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.engine.puller import Puller

FILE = "RUNTIME_TEST_BUG"
QUEUE = "ill"
MODULE = "tests.faults.bugs"

_claim = Puller._claim


class Bug(Exception):
    pass


async def _break(self: Puller, queue: object) -> None:
    if getattr(queue, "name", "") == QUEUE and Path(os.environ[FILE]).exists():
        raise Bug("of ours")
    await _claim(self, queue)  # type: ignore[arg-type]


def _no_room(self: Puller) -> int:
    return 0  # so that each claim is one by itself, and breaks before it is made


if FILE in os.environ:
    Puller._claim = _break  # type: ignore[method-assign]
    Puller._room_for_any = _no_room  # type: ignore[method-assign]
