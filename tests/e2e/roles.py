"""Handlers that use all that a worker may do in Redis."""

from __future__ import annotations

import asyncio

from runtime import Allowance, Bucket, Concurrency, Context, Permanent, Quota, Retry, every, handler

MODEST = Quota("modest", by="user", allow=Allowance(hourly=2, pending=5))


@handler(retry=Retry(3, base="0.1s"))
async def at_the_second_try(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise RuntimeError("once")
    return await ctx.once("step", _step)


async def _step() -> int:
    return 7


@handler(limit=[Bucket("roles", "100/s", burst=10), Concurrency("roles", 1)])
async def limited(ctx: Context) -> None:
    await asyncio.sleep(0.2)


@handler
async def for_good(ctx: Context) -> None:
    raise Permanent("never")


@handler
async def long(ctx: Context, length_s: float) -> None:
    await asyncio.sleep(length_s)


@handler
async def another(ctx: Context) -> str:
    job = await at_the_second_try.options(delay="0.2s", priority=5).enqueue()
    return job.id


@every("12h")
async def seldom(ctx: Context) -> None: ...


@handler(quota=MODEST)
async def modest(ctx: Context, user: str) -> None: ...


@handler
async def tells(ctx: Context) -> None:
    await ctx.progress(3, 4, "nearly")
    await asyncio.sleep(1.5)
