"""A function as ours and as stock arq's, whose every run is noted in a ledger outside Redis.

As a program, the stock worker: python -m tests.arq_compat.crowd URL LEDGER
"""

import asyncio
import os
import sys
from typing import Any

from runtime import Context, Retry, RetryLater, handler
from tests.faults.ledger import Ledger

LEDGER = "RUNTIME_TEST_LEDGER"


async def _run(job_id: str, attempt: int, retries: int) -> bool:
    """Note a run; whether it is to be tried again."""
    ledger = Ledger(os.environ[LEDGER])
    ledger.note("start", job_id, attempt=attempt)
    await asyncio.sleep(0.005)
    ledger.note("end", job_id, attempt=attempt)
    return attempt <= retries


@handler(retry=Retry(5))
async def work(ctx: Context, retries: int) -> str:
    if await _run(ctx.job_id, ctx.attempt, retries):
        raise RetryLater("0.05s")
    return "ours"


async def stock_work(ctx: dict[str, Any], retries: int) -> str:
    from arq import Retry as ArqRetry

    if await _run(ctx["job_id"], ctx["job_try"], retries):
        raise ArqRetry(defer=0.05)
    return "stock"


def main(url: str, ledger: str) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    os.environ[LEDGER] = ledger
    Worker(
        functions=[func(stock_work, name="work")],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=10,
        poll_delay=0.05,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
