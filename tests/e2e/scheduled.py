"""Handlers that are run by schedules, and note each run in a file; also as stock arq's cron jobs:

python -m tests.e2e.scheduled URL SECONDS_AHEAD
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

from runtime import Context, cron, every

FILE = "RUNTIME_TEST_RUNS"


def note(who: str, job_id: str, scheduled_for: str = "-") -> None:
    with open(os.environ[FILE], "a") as file:
        file.write(f"{who} {job_id} {scheduled_for}\n")


def _run(ctx: Context) -> None:
    moment = ctx.scheduled_for
    note(f"{os.getpid()}", ctx.job_id, "-" if moment is None else moment.isoformat())


@every("1s", misfire="all", priority=3)
async def tick(ctx: Context) -> str:
    _run(ctx)
    return "ours"


@every("2s", misfire="all", keep_result="0s")
async def tock(ctx: Context) -> None:
    _run(ctx)


@cron("0 3 * * *", tz="America/Sao_Paulo", queue="nightly")
async def nightly(ctx: Context) -> int:
    _run(ctx)
    return 7


@every("12h", queue="sleepers")
async def seldom(ctx: Context) -> None:
    _run(ctx)


def stock(url: str, ahead_s: float) -> None:
    """arq's own worker with `tick` as its cron job, unique as it has it, and a clock that is wrong."""
    import arq.worker
    from arq import cron as arq_cron
    from arq.connections import RedisSettings

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            right = super().now(tz)
            return right + timedelta(seconds=ahead_s)

    async def run(ctx: dict[str, Any]) -> str:
        note("stock", ctx["job_id"])
        return "stock"

    setattr(arq.worker, "datetime", Wrong)  # noqa: B010  # it is none of its exports
    job = arq_cron(run, name="tick", second=set(range(60)), microsecond=0)
    arq.worker.Worker(cron_jobs=[job], redis_settings=RedisSettings.from_dsn(url), poll_delay=0.1).run()


if __name__ == "__main__":
    stock(sys.argv[1], float(sys.argv[2]))
