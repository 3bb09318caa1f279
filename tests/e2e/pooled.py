"""Handlers of the tests of pools. What is pooled are real processes: each a `cat`, which repeats what it is told."""

from __future__ import annotations

import asyncio
import os
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from runtime import Context, Pool, Retry, handler

WITNESS = "RUNTIME_TEST_WITNESS"
"""The file in which each process is noted when it was started and when it has ended."""
QUEUE = "exports"
SIZE = 3


def note(sign: str, pid: int) -> None:
    with open(os.environ[WITNESS], "a") as witness:
        witness.write(f"{sign} {pid}\n")


@asynccontextmanager
async def running_cat() -> AsyncGenerator[Process]:
    async with anyio.create_task_group():  # to be left by the task that entered it
        cat = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        note("+", cat.pid)
        try:
            yield cat
        finally:
            cat.kill()
            await cat.wait()
            note("-", cat.pid)


cats = Pool("cats", size=SIZE, open=running_cat)


@handler(queue=QUEUE, retry=Retry(1))
async def echo(ctx: Context, length_s: float, fails: bool = False) -> int:
    async with ctx.use(cats) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(f"{ctx.job_id}\n".encode())
        await asyncio.sleep(length_s)
        line = await cat.stdout.readline()
        if fails:
            raise ValueError("the page is broken")
    assert line.decode().strip() == ctx.job_id, "somebody else used it too"
    return cat.pid


class Deaf:
    """It does not close, and cancelling it is of no use."""

    async def aclose(self) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
            time.sleep(0.01)  # else nothing but this would run


async def open_deaf() -> Deaf:
    return Deaf()


deaf = Pool("deaf", size=1, open=open_deaf)


@handler(queue=QUEUE)
async def use_deaf(ctx: Context) -> None:
    async with ctx.use(deaf):
        pass


async def end_the_process() -> Deaf:
    raise SystemExit(7)


hostile = Pool("hostile", size=1, open=end_the_process)


@handler(queue=QUEUE, retry=Retry(1))
async def use_hostile(ctx: Context) -> None:
    async with ctx.use(hostile):
        pass


@asynccontextmanager
async def profile() -> AsyncGenerator[str]:
    """A folder that one Chromium at a time keeps its state in."""
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        yield folder


profiles = Pool("chromium", size=2, open=profile)


@handler(queue=QUEUE, retry=Retry(1))
async def render(ctx: Context, text: str, path: str) -> int:
    async with ctx.use(profiles) as folder:
        chromium = await asyncio.create_subprocess_exec(
            os.environ["RUNTIME_TEST_CHROMIUM"],
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", f"--print-to-pdf={path}"),
            f"data:text/html,<h1>{text}</h1>",
            stderr=PIPE,
        )
        await chromium.communicate()
    return Path(path).stat().st_size
