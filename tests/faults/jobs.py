"""Handlers of the fault tests: each notes in the ledger that it begins and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Never

import structlog

from runtime import Context, Retry, handler
from tests.faults.ledger import Ledger

LEDGER = "RUNTIME_TEST_LEDGER"
ONCE = Retry(attempts=1)


@contextmanager
def noted(ctx: Context) -> Iterator[Ledger]:
    ledger = Ledger(os.environ[LEDGER])
    ledger.note("start", ctx.job_id, attempt=ctx.attempt, crashes=ctx.crashes)
    try:
        yield ledger
    except asyncio.CancelledError:
        ledger.note("cancelled", ctx.job_id, attempt=ctx.attempt, crashes=ctx.crashes)
        raise
    except Exception:
        ledger.note("failed", ctx.job_id, attempt=ctx.attempt, crashes=ctx.crashes)
        raise
    ledger.note("end", ctx.job_id, attempt=ctx.attempt, crashes=ctx.crashes)


@handler
async def work(ctx: Context, length_s: float) -> int:
    with noted(ctx):
        await asyncio.sleep(length_s)
    return os.getpid()


@handler
async def work_at_once(ctx: Context) -> int:
    """It ends before the event loop can do anything else."""
    with noted(ctx):
        return os.getpid()


@handler(timeout="1h")
async def work_for_an_hour_at_most(ctx: Context, length_s: float) -> int:
    with noted(ctx):
        await asyncio.sleep(length_s)
    return os.getpid()


@handler(timeout="1h")
async def work_the_second_time(ctx: Context) -> int:
    """It takes an hour, but no time at all after a crash."""
    with noted(ctx):
        await asyncio.sleep(0 if ctx.crashes else 3600)
    return os.getpid()


@handler
async def block(ctx: Context, length_s: float) -> int:
    """Nothing else of its process's event loop runs meanwhile."""
    with noted(ctx):
        time.sleep(length_s)
    return os.getpid()


@handler
async def close_stdout(ctx: Context) -> None:
    sys.stdout.close()


@handler
async def talk(ctx: Context, length: int) -> None:
    """Says something of that length in its log, and prints as much."""
    structlog.get_logger().info("talking", talk="x" * min(length, 60_000))
    print(json.dumps({"talk": "y" * length}))


class Name(str):
    """As numpy and markupsafe have them."""


@handler
async def bind_a_strange_text(ctx: Context) -> None:
    """To every log line of its run; the line of its end is one of them."""
    structlog.contextvars.bind_contextvars(user=Name("somebody"))


@handler(timeout="1s")
async def block_after_its_cancelling(ctx: Context, timeout_s: float, after_s: float) -> None:
    """It swallows every cancellation for so long after its timeout, and then blocks."""
    until = time.monotonic() + timeout_s + after_s
    while time.monotonic() < until:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(until - time.monotonic())
    time.sleep(3600)


@handler
async def pill(ctx: Context) -> Never:
    with noted(ctx) as ledger:
        ledger.note("killed")
        os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(3600)
    raise AssertionError("unreachable")


@handler(retry=ONCE)
async def leave_by_system_exit(ctx: Context) -> None:
    raise SystemExit(3)


@handler(retry=ONCE)
async def leave_from_a_task_of_its_own(ctx: Context) -> None:
    async def leave() -> Never:
        raise SystemExit(4)

    async with asyncio.TaskGroup() as group:
        group.create_task(leave())


@handler(retry=ONCE)
async def interrupt(ctx: Context) -> None:
    raise KeyboardInterrupt


@handler(retry=ONCE)
async def close_generator(ctx: Context) -> None:
    raise GeneratorExit


class Abrupt(BaseException):
    pass


@handler(retry=ONCE)
async def raise_base_exception(ctx: Context) -> None:
    raise Abrupt("no exception of the common kind")


@handler(retry=ONCE)
async def cancel_itself(ctx: Context) -> None:
    raise asyncio.CancelledError


@handler(retry=ONCE)
async def stop_iteration(ctx: Context) -> None:
    raise StopIteration


@handler(retry=ONCE)
async def run_out_of_memory(ctx: Context) -> None:
    raise MemoryError


@handler(retry=ONCE)
async def recurse(ctx: Context) -> int:
    def deeper(level: int) -> int:
        return deeper(level + 1) + 1

    return deeper(0)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@handler(retry=ONCE)
async def raise_unprintable(ctx: Context) -> None:
    raise Unprintable


@handler(retry=ONCE)
async def raise_ten_megabytes(ctx: Context) -> None:
    raise ValueError("x" * 10_000_000)


@handler(retry=ONCE)
async def raise_surrogates(ctx: Context) -> None:
    raise ValueError("half a pair: \ud800, and an end of line\n{}")


@handler(retry=ONCE)
async def raise_group(ctx: Context) -> None:
    raise ExceptionGroup("two at once", [ValueError("one"), KeyError("two")])


class Broken(Exception):
    @property
    def status(self) -> Never:
        raise KeyboardInterrupt


@handler(retry=ONCE)
async def raise_what_cannot_be_looked_at(ctx: Context) -> None:
    raise Broken


@handler
async def return_what_cannot_be_kept(ctx: Context) -> object:
    return lambda: None


@handler(retry=ONCE, timeout="0.3s")
async def swallow_cancellation_once(ctx: Context) -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)
    return "went on to its end"


@handler(retry=ONCE, timeout="0.3s")
async def swallow_cancellation_for_ever(ctx: Context) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@handler
async def refuse_to_stop(ctx: Context) -> None:
    """As the last, and without a timeout of its own."""
    with noted(ctx):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


@handler(retry=ONCE)
async def block_in_a_task_of_its_own(ctx: Context, length_s: float) -> None:
    async def block() -> None:
        time.sleep(length_s)

    with noted(ctx):
        async with asyncio.TaskGroup() as group:
            group.create_task(block())
