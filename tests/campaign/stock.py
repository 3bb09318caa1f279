"""arq's own worker over handlers of ours, as functions of its own: python -m tests.campaign.stock MODULE …

What it logs is written as JSON, with our names for the few things that a scenario waits for. No function's timeout is
longer than arq's default: the longest of all is how long the jobs of a dead worker are held back.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Self

import arq.worker
from arq import Retry, cron
from arq.connections import RedisSettings
from arq.cron import CronJob
from arq.worker import Function, Worker, func

from runtime import RetryLater, Snooze
from runtime.core.schedule import Every
from runtime.declare import Handler


@dataclass(frozen=True, slots=True)
class StockContext:
    """What our handlers read of their context, as far as arq knows it."""

    job_id: str
    attempt: int
    crashes: int = 0

    async def once(self, step: str, take: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """arq keeps no such thing."""
        return await take(*args, **kwargs)


def function(handler: Handler[Any, Any], longest_s: float) -> Function:
    async def run(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await handler.function(StockContext(ctx["job_id"], ctx["job_try"]), *args, **kwargs)
        except (RetryLater, Snooze) as again:
            raise Retry(defer=again.delay_s) from again

    timeout_s = handler.spec.timeout_s
    return func(run, name=handler.name, timeout=None if timeout_s is None else min(timeout_s, longest_s))


class Told(logging.Formatter):
    """arq's log, a JSON object a line."""

    EVENTS = (
        ("Starting worker", "WORKER_BOOT"),
        ("→", "JOB_STARTED"),
        ("●", "JOB_COMPLETED"),
        ("failed,", "JOB_FAILED"),
        ("will be run again", "JOB_RELEASED"),
    )

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        event = next((event for words, event in self.EVENTS if words in text), None)
        line = {"event": event, "level": record.levelname.lower(), "message": text}
        if event and event.startswith("JOB_"):
            reference = next((word for word in text.split() if ":" in word), "")
            line["job_id"] = reference.partition("(")[0].rpartition(":")[0]
        return json.dumps(line)


def handlers(modules: list[str]) -> Iterator[Handler[Any, Any]]:
    for name in modules:
        yield from (thing for thing in vars(importlib.import_module(name)).values() if isinstance(thing, Handler))


class SameClock(datetime):
    """What arq's cron jobs go by: the clock of `time`, which a test may have made wrong."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(time.time(), tz)


def _cron_job(handler: Handler[Any, Any]) -> CronJob:
    """One of each second, as arq has such; unique, as it calls it."""
    assert handler.spec.timetable == Every(1000)
    run = function(handler, 300.0).coroutine
    return cron(run, name=handler.name, second=set(range(60)), microsecond=0)


def main(*modules: str) -> None:
    log = logging.StreamHandler(sys.stdout)
    log.setFormatter(Told())
    logging.basicConfig(level=logging.INFO, handlers=[log])
    longest_s = int(os.environ.get("JOB_TIMEOUT_SECONDS", 300))
    if "RUNTIME_TEST_CLOCK" in os.environ:
        setattr(arq.worker, "datetime", SameClock)  # noqa: B010  # it is none of its exports
    found = list(handlers(list(modules)))
    worker = Worker(
        functions=[function(handler, longest_s) for handler in found],
        cron_jobs=[_cron_job(handler) for handler in found if handler.spec.timetable is not None],
        redis_settings=RedisSettings.from_dsn(os.environ["REDIS_URL"]),
        max_jobs=int(os.environ["WORKER_CONCURRENCY"]),
        job_completion_wait=int(os.environ.get("GRACEFUL_SHUTDOWN_TIMEOUT_MS", 0)) // 1000,
        job_timeout=longest_s,
        allow_abort_jobs=True,
        keep_result=3600,
    )
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
