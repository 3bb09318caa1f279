"""Handlers of the campaign, besides those of `tests.faults.jobs`. What they remember is in the ledger, not in Redis."""

from __future__ import annotations

import asyncio
import os

import aiohttp

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
async def fail_for(ctx: Context, delay_s: float) -> int:
    """Its first run asks for another one after so long."""
    with noted(ctx) as ledger:
        if len(ledger.starts(ctx.job_id)) == 1:
            raise RetryLater(delay_s)
    return os.getpid()


@handler(timeout="1h")
async def wait_once(ctx: Context) -> int:
    """Its first run takes an hour, any other no time."""
    with noted(ctx) as ledger:
        await asyncio.sleep(3600 if len(ledger.starts(ctx.job_id)) == 1 else 0)
    return os.getpid()


@handler(timeout="1h")
async def pay(ctx: Context, url: str) -> int:
    """Calls the API once, says so in the ledger, and takes an hour at its first run, no time at any other."""
    with noted(ctx) as ledger:
        await ctx.once("charge", _charge, url, ctx.job_id)
        await asyncio.sleep(3600 if len(ledger.starts(ctx.job_id)) == 1 else 0)
    return os.getpid()


async def _charge(url: str, key: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, headers={"Idempotency-Key": key}) as answer,
    ):
        answer.raise_for_status()


@handler
async def leak(ctx: Context, megabytes: int) -> int:
    """Keeps so much memory for ever."""
    with noted(ctx):
        _kept.append(b"x" * (megabytes << 20))
        await asyncio.sleep(0.1)
    return os.getpid()


_kept: list[bytes] = []


@handler(limit=[calls, doors])
async def take(ctx: Context) -> int:
    with noted(ctx):
        await asyncio.sleep(0.05)
    return os.getpid()


rare = Bucket("rare", "3/d", burst=3)


@handler(limit=rare)
async def take_rare(ctx: Context) -> int:
    """Three of them may run in a day."""
    with noted(ctx):
        await asyncio.sleep(0)
    return os.getpid()
