"""arq's own worker over handlers of ours, as functions of its own: python -m tests.campaign.stock MODULE …

What it logs is written as JSON, with our names for the few things that a scenario waits for.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from arq import Retry
from arq.connections import RedisSettings
from arq.worker import Function, Worker, func

from runtime import RetryLater, Snooze
from runtime.declare import Handler

LONGEST_S = 300.0
"""arq's own default. A longer one would hold back the jobs of all functions of a dead worker for as long."""


@dataclass(frozen=True, slots=True)
class StockContext:
    """What our handlers read of their context, as far as arq knows it."""

    job_id: str
    attempt: int
    crashes: int = 0

    async def once(self, step: str, take: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """arq keeps no such thing."""
        return await take(*args, **kwargs)


def function(handler: Handler[Any, Any]) -> Function:
    async def run(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await handler.function(StockContext(ctx["job_id"], ctx["job_try"]), *args, **kwargs)
        except (RetryLater, Snooze) as again:
            raise Retry(defer=again.delay_s) from again

    timeout_s = handler.spec.timeout_s
    return func(run, name=handler.name, timeout=None if timeout_s is None else min(timeout_s, LONGEST_S))


class Told(logging.Handler):
    """arq's log, a JSON object a line."""

    EVENTS = (
        ("Starting worker", "WORKER_BOOT"),
        ("→", "JOB_STARTED"),
        ("●", "JOB_COMPLETED"),
        ("failed,", "JOB_FAILED"),
        ("will be run again", "JOB_RELEASED"),
    )

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        event = next((event for words, event in self.EVENTS if words in text), None)
        reference = next((word for word in text.split() if ":" in word), "")
        line = {"event": event, "level": record.levelname.lower(), "message": text}
        if event and event.startswith("JOB_"):
            line["job_id"] = reference.partition("(")[0].rpartition(":")[0]
        print(json.dumps(line), flush=True)


def handlers(modules: list[str]) -> Iterator[Handler[Any, Any]]:
    for name in modules:
        yield from (thing for thing in vars(importlib.import_module(name)).values() if isinstance(thing, Handler))


def main(*modules: str) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[Told()])
    worker = Worker(
        functions=[function(handler) for handler in handlers(list(modules))],
        redis_settings=RedisSettings.from_dsn(os.environ["REDIS_URL"]),
        max_jobs=int(os.environ["WORKER_CONCURRENCY"]),
        job_completion_wait=int(os.environ.get("GRACEFUL_SHUTDOWN_TIMEOUT_MS", 0)) // 1000,
        allow_abort_jobs=True,
        keep_result=3600,
    )
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
