"""What the tasks of the event loop wait for: for whoever asks a live process by a signal."""

import asyncio
from typing import Any

from runtime.adapters.runner import token_of

MOST = 200


def what_they_do() -> list[tuple[str | None, str]]:
    """Of each task, `MOST` at most: the token of the run it belongs to, and the line where it waits. No variables."""
    return [(token_of(task), _where(task.get_coro())) for task in list(asyncio.all_tasks())[:MOST]]


def _where(coroutine: Any) -> str:
    while (inner := getattr(coroutine, "cr_await", None)) is not None and hasattr(inner, "cr_frame"):
        coroutine = inner
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None:
        return "unknown"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
