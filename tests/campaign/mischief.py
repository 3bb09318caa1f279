"""Handlers that do their worst, besides those of `tests.faults.jobs`."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Never

from runtime import Checked, Context, Pool, RetryLater, handler
from tests.faults.jobs import ONCE, noted

MODULE = "tests.campaign.mischief"

WAIT_S = 3600.0
SECRET = "OPENAI_API_KEY"
"""Its variable."""


class Abrupt(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unjudgeable(Exception):
    @property
    def status(self) -> Never:
        raise KeyboardInterrupt


class Unpicklable(Exception):
    def __reduce__(self) -> Never:
        raise RuntimeError("not to be sent")


def _raises(error: BaseException) -> Callable[[], Never]:
    def fail() -> Never:
        raise error

    return fail


def _recurse() -> int:
    return _recurse() + 1


FAILURES: Mapping[str, Callable[[], object]] = {
    "an exception": _raises(ValueError("as any")),
    "SystemExit": _raises(SystemExit(3)),
    "KeyboardInterrupt": _raises(KeyboardInterrupt()),
    "GeneratorExit": _raises(GeneratorExit()),
    "a BaseException of its own": _raises(Abrupt("no exception of the common kind")),
    "CancelledError": _raises(asyncio.CancelledError()),
    "StopIteration": _raises(StopIteration()),
    "MemoryError": _raises(MemoryError()),
    "RecursionError": _recurse,
    "an exception without a text": _raises(Unprintable()),
    "an exception that cannot be pickled": _raises(Unpicklable("it")),
    "an exception that cannot be looked at": _raises(Unjudgeable()),
    "a text of 10 MB": _raises(ValueError("x" * 10_000_000)),
    "half a surrogate pair": _raises(ValueError("\ud800, and an end of line\n{}")),
    "a group": _raises(ExceptionGroup("two at once", [ValueError("one"), KeyError("two")])),
}


@handler(retry=ONCE)
async def fail(ctx: Context, how: str) -> None:
    with noted(ctx):
        FAILURES[how]()


@handler(retry=ONCE)
async def fail_in_a_task_of_its_own(ctx: Context) -> None:
    async def leave() -> None:
        raise SystemExit(4)

    with noted(ctx):
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())


def _a_cycle() -> list[object]:
    cycle: list[object] = []
    cycle.append(cycle)
    return cycle


def _nested(levels: int) -> list[object]:
    nested: list[object] = []
    for _ in range(levels):
        nested = [nested]
    return nested


RESULTS: Mapping[str, Callable[[], object]] = {
    "a function": lambda: lambda: None,
    "a cycle": _a_cycle,
    "50 MB": lambda: bytes(50 << 20),
    "100,000 lists in each other": lambda: _nested(100_000),
    "what refuses to be pickled": lambda: Unpicklable("it"),
    "half a surrogate pair": lambda: "\ud800",
    "a secret": lambda: os.environ[SECRET],
}


@handler(retry=ONCE)
async def bring(ctx: Context, what: str) -> object:
    with noted(ctx):
        return RESULTS[what]()


@handler(retry=ONCE, timeout="0.3s")
async def swallow_once(ctx: Context) -> int:
    with noted(ctx):
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
    return os.getpid()


@handler(retry=ONCE, timeout="0.3s")
async def swallow_for_ever(ctx: Context) -> None:
    with noted(ctx):
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(WAIT_S)


@handler(retry=ONCE, timeout="0.3s")
async def shield(ctx: Context) -> None:
    with noted(ctx):
        await asyncio.shield(asyncio.sleep(WAIT_S))


@handler(retry=ONCE, timeout="0.3s")
async def fail_while_it_stops(ctx: Context) -> None:
    with noted(ctx):
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            raise ValueError("in the middle of its end")


@handler
async def leave_things_behind(ctx: Context) -> int:
    """A task that does not end, a thread, a process, a connection."""

    async def stay() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(WAIT_S)

    with noted(ctx):
        _left.append(asyncio.create_task(stay()))
        threading.Thread(target=time.sleep, args=(20,)).start()
        _left.append(subprocess.Popen(["sleep", "20"]))
        _left.append(socket.create_server(("127.0.0.1", 0)))
        await asyncio.sleep(0.1)
    return os.getpid()


_left: list[object] = []


async def _open_in_vain() -> Never:
    raise SystemExit(7)


async def _open_for_ever() -> Never:
    await asyncio.sleep(WAIT_S)
    raise AssertionError("unreachable")


class Deaf:
    async def aclose(self) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)


async def _open_deaf() -> Deaf:
    return Deaf()


POOLS: Mapping[str, Pool[object]] = {
    "opening raises": Pool("raising", size=1, open=_open_in_vain),
    "opening hangs": Pool("hanging", size=1, open=_open_for_ever),
    "closing hangs": Pool("deaf", size=1, open=_open_deaf),
}


@handler(retry=ONCE, timeout="1s")
async def use(ctx: Context, what: str) -> int:
    with noted(ctx):
        async with ctx.use(POOLS[what]):
            return os.getpid()


@handler
async def spoil_its_arguments(ctx: Context, values: list[int]) -> int:
    """Its first run changes them, and asks for another one."""
    with noted(ctx) as ledger:
        given = list(values)
        values.clear()
        if len(ledger.starts(ctx.job_id)) == 1:
            raise RetryLater("0.2s")
        assert given == [1, 2, 3], f"the second run was given {given}"
    return os.getpid()


@handler
async def keep_the_lock(ctx: Context, how: str, length_s: float, times: int) -> int:
    """Its first `times` runs let no other thread of the process run for so long."""
    with noted(ctx) as ledger:
        if len(ledger.starts(ctx.job_id)) <= times:
            ledger.note("lapsed")
            LOCKS[how](length_s)
    return os.getpid()


def _sleep(length_s: float) -> None:
    ctypes.PyDLL(None).sleep(math.ceil(length_s))  # a call into C that, unlike time.sleep, keeps the lock


def _match(length_s: float) -> None:
    """A pattern that takes twice as long for each letter more."""
    letters = 18
    began = time.monotonic()
    re.match("(a+)+$", "a" * letters + "!")
    took_s = time.monotonic() - began
    re.match("(a+)+$", "a" * (letters + math.ceil(math.log2(length_s / took_s))) + "!")


LOCKS: Mapping[str, Callable[[float], None]] = {"a call into C": _sleep, "a pattern": _match}


@handler(retry=ONCE)
async def fork(ctx: Context, child: str) -> int:
    """The child that it makes comes back from here, or goes on in the event loop. The parent waits for its end."""
    with noted(ctx):
        begun = asyncio.create_task(asyncio.sleep(1))  # the child can wait for nothing that is not begun yet
        await asyncio.sleep(0.2)  # others run, too
        pid = os.fork()
        if pid == 0:
            if child == "raises":
                raise ValueError("in the child")
            if child == "awaits":
                await begun
            if child == "asks":
                await ctx.once("step", _step)
            if child == "ends":
                os._exit(0)
        else:
            await asyncio.to_thread(os.waitpid, pid, 0)
            await ctx.once("step", _step)
    return os.getpid()


async def _take() -> None:
    pass


async def _begun() -> Never:
    raise AssertionError("the child has begun the step")


_step = Checked(_take, check=_begun)
