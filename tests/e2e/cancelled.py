"""Handlers that are cancelled, one for each thing that a job can be doing then; they note why."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runtime import Bucket, Concurrency, Context, Pool, Retry, RetryLater, Snooze, handler

WITNESS = "RUNTIME_TEST_WITNESS"
QUEUE = "cancelled"
ALONE = Concurrency("alone", 1)
DRY = Bucket("dry", "1/h", burst=1)
WET = Bucket("wet", "1/h", burst=1)


def note(ctx: Context, what: str) -> None:
    with open(os.environ[WITNESS], "a") as witness:
        witness.write(f"{ctx.handler} {what}\n")


@handler(queue=QUEUE)
async def runs(ctx: Context) -> None:
    note(ctx, "began")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note(ctx, f"{ctx.cancel_reason}")
        raise
    finally:
        note(ctx, f"finally {ctx.cancel_reason}")


@handler(queue=QUEUE, timeout="1s", retry=Retry(1))
async def takes_too_long(ctx: Context) -> None:
    await runs.function(ctx)


@handler(queue=QUEUE, limit=ALONE)
async def needs_a_permit(ctx: Context) -> None:
    await runs.function(ctx)


@handler(queue=QUEUE, limit=DRY)
async def needs_a_token(ctx: Context) -> None:
    await runs.function(ctx)


@handler(queue=QUEUE)
async def waits_for_a_token(ctx: Context) -> None:
    async with ctx.limit(WET):
        pass
    note(ctx, "began")
    try:
        async with ctx.limit(WET, patience="2h"):
            note(ctx, "has it")
    finally:
        note(ctx, f"{ctx.cancel_reason}")


@asynccontextmanager
async def opened() -> AsyncGenerator[int]:
    yield 1


ONE = Pool("one", size=1, open=opened)


@handler(queue=QUEUE)
async def uses_the_pool(ctx: Context) -> None:
    note(ctx, "began")
    try:
        async with ctx.use(ONE):
            note(ctx, "has it")
            await asyncio.sleep(600)
    finally:
        note(ctx, f"{ctx.cancel_reason}")


@handler(queue=QUEUE)
async def snoozes(ctx: Context) -> None:
    note(ctx, "began")
    raise Snooze("10m")


@handler(queue=QUEUE)
async def is_tried_again(ctx: Context) -> None:
    note(ctx, "began")
    raise RetryLater("10m")


@handler(queue=QUEUE, retry=Retry(1))
async def dies(ctx: Context) -> None:
    note(ctx, "began")
    raise ValueError("no")


@handler(queue=QUEUE)
async def has_done_its_work(ctx: Context) -> str:
    note(ctx, "began")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note(ctx, f"{ctx.cancel_reason}")
    return "done"


@handler(queue=QUEUE)
async def never_stops(ctx: Context) -> None:
    note(ctx, "began")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note(ctx, f"{ctx.cancel_reason}")


@handler(queue=QUEUE)
async def tells(ctx: Context, most: int = 1000) -> None:
    """How far it is, a thousand times and more in a second; and then it goes on without a word."""
    for done in range(most + 1):
        await ctx.progress(done, most, f"page {done} for sk-abcdefghijklmnopqrstuvwxyz0123456789")
    note(ctx, "began")
    await asyncio.sleep(600)
