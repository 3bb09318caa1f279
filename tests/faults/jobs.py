"""Handlers of the fault tests: each notes in the ledger that it begins and ends."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Never

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
async def replace_the_streams(ctx: Context) -> None:
    for name in ("stdout", "stderr"):
        setattr(sys, name, object())


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


@handler
async def refuse_to_stop(ctx: Context) -> None:
    """It swallows every cancellation."""
    with noted(ctx):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue


@handler(retry=ONCE)
async def cancel_all_other_tasks(ctx: Context) -> None:
    """As recipes for a clean end have it."""
    with noted(ctx):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.5)


@handler
async def take_the_signals(ctx: Context) -> None:
    """As libraries do that start a browser, each in its way."""
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loop.remove_signal_handler(signal.SIGINT)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    if isinstance(loop, asyncio.SelectorEventLoop):  # uvloop looks after it only as it begins
        signal.set_wakeup_fd(-1)


def in_processes(ctx: Context) -> list[int]:
    with noted(ctx), multiprocessing.get_context("fork").Pool(2) as pool:  # whose end is SIGTERM to each
        return pool.map(abs, [-1, -2])


@handler
def use_processes_in_a_thread(ctx: Context) -> list[int]:
    return in_processes(ctx)


@handler
async def use_processes(ctx: Context) -> list[int]:
    return in_processes(ctx)


@handler
async def keep_the_threads_busy(ctx: Context, length_s: float) -> None:
    """More calls that block than asyncio has threads for them."""
    with noted(ctx):
        await asyncio.gather(*(asyncio.to_thread(time.sleep, length_s) for _ in range(64)))


@handler
async def keep_the_look_ups_busy(ctx: Context, length_s: float) -> None:
    """Hosts whose name servers are silent, more of them than there are threads to look them up."""
    usual = socket.getaddrinfo

    def look_up(host: Any, *args: Any) -> Any:
        return time.sleep(length_s) if str(host).endswith(".invalid") else usual(host, *args)

    socket.getaddrinfo = look_up  # type: ignore[assignment]
    with noted(ctx):
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.getaddrinfo(f"{n}.invalid", 80) for n in range(64)))


@handler(retry=ONCE)
async def block_in_a_task_of_its_own(ctx: Context, length_s: float) -> None:
    async def block() -> None:
        time.sleep(length_s)

    with noted(ctx):
        async with asyncio.TaskGroup() as group:
            group.create_task(block())
