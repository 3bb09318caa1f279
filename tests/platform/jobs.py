"""What the worker that sleeps has to do."""

from __future__ import annotations

import os
import time

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


@handler(queue=QUEUE)
async def sign(ctx: Context, book: str, name: str) -> None:
    """Write into the file `book` that it runs now: it is on disk before anything else happens."""
    page = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(page, f"{name} {time.time()!r}\n".encode())
        os.fsync(page)
    finally:
        os.close(page)
