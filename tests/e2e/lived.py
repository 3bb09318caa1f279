"""Handlers that share a state, of each kind: in the event loop, shielded, in threads; each within middleware."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread

from runtime import Context, Retry, by, handler, lifespan, middleware

WITNESS = "RUNTIME_TEST_WITNESS"
"""The file in which is noted what happens, in order."""
OPENING = "RUNTIME_TEST_OPENING"
"""How the lifespan opens: in so many seconds, or not (`fails`, `exits`, the second time: `fails later`); or ends by
itself (`breaks`); or cancels all tasks as it closes (`cancels`) or before it (`cancels soon`), with a thread that goes
on."""
DOOR = "RUNTIME_TEST_DOOR"
"""A port to be connected with."""
QUEUE = "lived"
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def note(what: str) -> None:
    with open(os.environ[WITNESS], "a") as witness:
        witness.write(f"{what}\n")


@dataclass
class State:
    name: str
    writer: asyncio.StreamWriter | None


async def break_down() -> None:
    await asyncio.sleep(1)
    raise ConnectionResetError("the database has gone")


async def cancel_all_other_tasks() -> None:
    """As recipes for a clean end have it."""
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def cancel_them_soon() -> None:
    await asyncio.sleep(1)
    await cancel_all_other_tasks()


@lifespan
async def resources() -> AsyncIterator[State]:
    how = os.environ.get(OPENING, "0")
    note("opening")
    if how == "fails" or (how == "fails later" and "closed" in Path(os.environ[WITNESS]).read_text()):
        raise ConnectionRefusedError("no database here")
    if how == "exits":
        raise SystemExit(3)
    writer = None
    if DOOR in os.environ:
        _, writer = await asyncio.open_connection("127.0.0.1", int(os.environ[DOOR]))
    async with anyio.create_task_group() as group:
        if how == "breaks":
            group.start_soon(break_down)
        elif how == "cancels soon":
            group.start_soon(cancel_them_soon)
        elif how not in ("cancels", "fails later"):
            await asyncio.sleep(float(how))
        note("open")
        yield State("shared", writer)
    if writer is not None:
        writer.close()
        await writer.wait_closed()
    if how == "cancels":
        await cancel_all_other_tasks()
    note("closed")


@middleware(queue=QUEUE)
async def outer(ctx: Context[State], call_next: Any) -> Any:
    tenant.set("acme")
    logging.getLogger("tests.lived").warning("around %s", ctx.handler)
    try:
        return await call_next()
    except BaseException as error:
        note(f"{ctx.handler} met {type(error).__name__}")
        raise


@middleware(queue="another")
async def never(ctx: Context[State], call_next: Any) -> Any:
    note("middleware of another queue")


@handler(queue=QUEUE, retry=Retry(1), priority=by("tier", {"vip": 100, "normal": 50}))
async def loop(ctx: Context[State], length_s: float, tier: str = "free") -> str:
    note(f"loop begins with {ctx.state.name}")
    try:
        await asyncio.sleep(length_s)
    finally:
        note("loop ends")
    return f"{ctx.state.name} {tenant.get()} {tier}"


@handler(queue=QUEUE, retry=Retry(1))
async def shielded(ctx: Context[State], length_s: float, clean_s: float = 3.0) -> None:
    note("shielded begins")
    try:
        await asyncio.sleep(length_s)
    finally:
        with ctx.shield("5s"):
            await asyncio.sleep(clean_s)
            note("shielded has cleaned up")


@handler(queue=QUEUE, retry=Retry(1))
def thread(ctx: Context[State], length_s: float) -> str:
    note(f"thread begins with {ctx.state.name}")
    logging.getLogger("tests.lived").warning("in a thread")
    step = from_thread.run(ctx.once, "step", step_taken)
    time.sleep(length_s)
    note("thread ends")
    return f"{step} {tenant.get()}"


async def step_taken() -> str:
    return "taken"


@handler(queue=QUEUE, retry=Retry(1))
def polite(ctx: Context[State], length_s: float) -> None:
    note("polite begins")
    end = time.monotonic() + length_s
    with suppress(TimeoutError):
        while time.monotonic() < end:
            from_thread.check_cancelled()
            time.sleep(0.02)


_now: set[int] = set()


@handler(queue=QUEUE)
def one_of_many(ctx: Context[State]) -> int:
    _now.add(threading.get_ident())
    time.sleep(0.05)
    many = len(_now)
    _now.discard(threading.get_ident())
    return many


@handler(queue=QUEUE)
async def many(ctx: Context[State], count: int) -> int:
    note(f"at once: {max(await asyncio.gather(*(one_of_many(ctx) for _ in range(count))))}")
    return count


KINDS = (loop, shielded, thread, polite)
slow = {kind.name: kind for kind in KINDS}


@handler(queue=QUEUE, retry=Retry(1), timeout="1s", name="loop-1s")
async def short_loop(ctx: Context[State], length_s: float) -> None:
    await asyncio.sleep(length_s)


@handler(queue=QUEUE, retry=Retry(1), timeout="1s", name="shielded-1s")
async def short_shielded(ctx: Context[State], length_s: float, clean_s: float = 3.0) -> None:
    await shielded(ctx, length_s, clean_s)


@handler(queue=QUEUE, retry=Retry(1), timeout="1s", name="thread-1s")
def short_thread(ctx: Context[State], length_s: float) -> str:
    time.sleep(length_s)
    return "late, but done"


@handler(queue=QUEUE, retry=Retry(1), timeout="1s", name="polite-1s")
def short_polite(ctx: Context[State], length_s: float) -> None:
    polite.function(ctx, length_s)
