"""What the worker that sleeps has to do."""

from __future__ import annotations

import os

from runtime import Context, handler

QUEUE = "sleeper"


@handler(queue=QUEUE)
async def work(ctx: Context, number: int) -> list[int]:
    """Its argument, and the process that has done it."""
    return [number, os.getpid()]


@handler(queue=QUEUE)
async def call(ctx: Context, url: str) -> int:
    async with ctx.http("web").get(url) as answer:
        await answer.read()
        return int(answer.status)
