"""Handlers of the campaign, besides those of `tests.faults.jobs`. What they remember is in the ledger, not in Redis."""

from __future__ import annotations

import asyncio
import os

from runtime import Bucket, Concurrency, Context, RetryLater, handler
from tests.faults.jobs import noted

MODULE = "tests.campaign.work"

calls = Bucket("calls", "600/m", burst=5)
doors = Concurrency("doors", 2)


@handler
async def fail_once(ctx: Context) -> int:
    """Its first run that gets so far asks for another one soon."""
    with noted(ctx) as ledger:
        if not any(line.what == "failed" and line.job == ctx.job_id for line in ledger.lines()):
            raise RetryLater("0.2s")
    return os.getpid()


@handler
async def wait_once(ctx: Context) -> int:
    """Its first run takes an hour, any other no time."""
    with noted(ctx) as ledger:
        await asyncio.sleep(3600 if len(ledger.starts(ctx.job_id)) == 1 else 0)
    return os.getpid()


@handler(limit=[calls, doors])
async def take(ctx: Context) -> int:
    with noted(ctx):
        await asyncio.sleep(0.05)
    return os.getpid()
