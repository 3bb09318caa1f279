"""Handlers of which only so many run at once, in all workers together; the ledger is the witness."""

from __future__ import annotations

import asyncio

from runtime import Bucket, Concurrency, Context, handler
from tests.faults.jobs import noted

MOST = 4
EXPORTS = Concurrency("exports", MOST)
ALONE = Concurrency("alone", 1)
TENANTS = Concurrency("tenants", 1)
PLENTY = Bucket("plenty", "1000/s")


@handler(limit=[PLENTY, EXPORTS])
async def export(ctx: Context, length_s: float) -> int:
    with noted(ctx):
        await asyncio.sleep(length_s)
    return ctx.attempt


@handler(limit=ALONE)
async def export_alone(ctx: Context, length_s: float) -> int:
    """After a crash it takes no time."""
    with noted(ctx):
        await asyncio.sleep(0 if ctx.crashes else length_s)
    return ctx.attempt


@handler
async def export_of(ctx: Context, tenant: str, length_s: float) -> int:
    async with ctx.limit({EXPORTS: 1, TENANTS[tenant]: 1, PLENTY: 1}):
        with noted(ctx):
            await asyncio.sleep(length_s)
    return ctx.attempt


@handler
async def export_impatiently(ctx: Context, length_s: float) -> int:
    async with ctx.limit(ALONE, patience="200ms"):
        with noted(ctx):
            await asyncio.sleep(length_s)
    return ctx.attempt


@handler(limit=ALONE)
async def export_within_itself(ctx: Context) -> None:
    async with ctx.limit(ALONE):
        raise AssertionError("must not run")
