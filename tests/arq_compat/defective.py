# ruff: noqa: RUF012  # settings classes are written like this, and never made objects of
"""An arq application that runs into arq's defects; each test names the settings that it serves."""

import asyncio
import math
import os
from datetime import UTC, datetime
from typing import Any

from arq import Retry, func

from tests.arq_compat.documented import REDIS, note

Ctx = dict[Any, Any]


async def task(ctx: Ctx) -> int:
    note("run", ctx["job_id"], ctx["job_try"])
    return 42


async def again(ctx: Ctx, defer_s: float = 0.0) -> None:
    note("run", ctx["job_id"], ctx["job_try"])
    raise Retry(defer=defer_s)


async def cancels_itself(ctx: Ctx) -> None:
    note("run", ctx["job_id"], ctx["job_try"])
    raise asyncio.CancelledError


async def long(ctx: Ctx) -> None:
    note("run", ctx["job_id"], ctx["job_try"])
    await asyncio.sleep(60)


async def enqueues_late(ctx: Ctx) -> str:
    try:
        await ctx["redis"].enqueue_job("task", _job_id="late", _defer_until=datetime(2020, 1, 1, tzinfo=UTC))
    except Exception as error:
        return type(error).__name__
    return "enqueued"


async def on_shutdown(ctx: Ctx) -> None:
    note("shutdown")


async def breaks(ctx: Ctx) -> None:
    if ctx["job_id"].startswith("broken"):
        raise ValueError("a hook")


class Usual:
    functions = [task, again, cancels_itself, long, enqueues_late, func(long, name="unkept", keep_result=0)]
    on_shutdown = on_shutdown
    redis_settings = REDIS
    poll_delay = 0.05
    max_tries = 3
    allow_abort_jobs = True


class ForEver(Usual):
    functions = Usual.functions
    on_shutdown = on_shutdown
    redis_settings = REDIS
    poll_delay = 0.05
    max_tries = 1
    keep_result_forever = True


class Start:
    functions = [task]
    on_job_start = breaks
    on_shutdown = on_shutdown
    redis_settings = REDIS
    poll_delay = 0.05


class End:
    functions = [task]
    on_job_end = breaks
    redis_settings = REDIS
    poll_delay = 0.05


class After:
    functions = [task]
    after_job_end = breaks
    redis_settings = REDIS
    poll_delay = 0.05


class Short:
    functions = [func(again, keep_result=100, max_tries=1)]
    redis_settings = REDIS
    poll_delay = 0.05


class Unlimited:
    functions = [task]
    redis_settings = REDIS
    poll_delay = 0.05
    job_timeout = math.inf


class Old:
    """A version that lacks a function."""

    functions = [again]
    redis_settings = REDIS
    poll_delay = 0.05


# What lasts as long as a worker


async def begin(ctx: Ctx) -> None:
    how = os.environ.get("RUNTIME_TEST_START", "")
    note("startup")
    if how == "fail":
        raise ValueError("no database")
    if how == "wait":
        await asyncio.sleep(60)


async def chain(ctx: Ctx, n: int) -> int:
    note("run", ctx["job_id"], ctx["job_try"])
    if n:
        await ctx["redis"].enqueue_job("chain", n - 1, _job_id=f"chain {n - 1}")
    return n


class Lived:
    functions = [task, chain, func(long, name="short", timeout=0.5)]
    on_startup = begin
    on_shutdown = on_shutdown
    redis_settings = REDIS
    max_jobs = 2


class Silent:
    """Says nothing of Redis, nor of anything but its function."""

    functions = [task]


class Hasty:
    """Waits for nothing when it is stopped, which arq does without being told."""

    functions = [long]
    redis_settings = REDIS
    poll_delay = 0.05
    job_completion_wait = 0


class Burst:
    functions = [task]
    redis_settings = REDIS
    max_burst_jobs = 7
    max_jobs = 5
