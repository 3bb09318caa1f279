# ruff: noqa: RUF012  # settings classes are written like this, and never made objects of
"""Applications for arq as people have them, with what arq's documentation does not teach."""

import asyncio
import logging
import math
import os
from contextvars import ContextVar
from typing import Any

from arq import cron, func
from arq.connections import RedisSettings

from tests.arq_compat.documented import REDIS, note, the_task

Ctx = dict[Any, Any]


# Context variables, as loggers and database layers use them

tenant: ContextVar[str] = ContextVar("tenant", default="none")
request: ContextVar[str] = ContextVar("request", default="none")


async def choose_tenant(ctx: Ctx) -> None:
    tenant.set("of startup")


async def begin_request(ctx: Ctx) -> None:
    request.set(f"of {ctx['job_id']}")


async def tell_end(ctx: Ctx) -> None:
    note("end", tenant.get(), request.get())


async def tell_after(ctx: Ctx) -> None:
    note("after", tenant.get(), request.get())


async def variables(ctx: Ctx) -> tuple[str, str]:
    return tenant.get(), request.get()


class Variables:
    functions = [variables]
    on_startup = choose_tenant
    on_job_start = begin_request
    on_job_end = tell_end
    after_job_end = tell_after
    redis_settings = REDIS


# Hooks that take longer than the job may


async def slow_start(ctx: Ctx) -> None:
    await asyncio.sleep(0.8)
    note("start", ctx["job_id"])


async def slow_end(ctx: Ctx) -> None:
    await asyncio.sleep(0.8)
    note("end", ctx["job_id"])


async def takes(ctx: Ctx, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


class SlowHooks:
    functions = [takes]
    on_job_start = slow_start
    on_job_end = slow_end
    job_timeout = 0.5
    redis_settings = REDIS


# What is passed on: an exception, a file


async def report(ctx: Ctx, error: BaseException, *, others: list[Any]) -> list[str]:
    return [repr(error), *(repr(other) for other in others)]


async def file(ctx: Ctx, size: int) -> bytes:
    return bytes(size)


class Passes:
    functions = [report, file]
    redis_settings = REDIS


# Numbers, names


class Unusual:
    functions = [the_task, func(the_task, name="other", max_tries=math.inf)]  # type: ignore[arg-type]
    max_jobs = 5000
    max_tries = math.inf
    queue_name = "mail=2"
    redis_settings = REDIS


class Healthy:
    functions = [the_task]
    health_check_interval = 0
    redis_settings = REDIS


class Patient:
    functions = [the_task, func(takes, timeout=1800)]
    redis_settings = REDIS


class Impatient:
    functions = [func(takes, timeout=10)]
    job_timeout = 5
    poll_delay = 1.5
    redis_settings = REDIS


class Trusting:
    """With the authority's certificate as text, as a platform gives it in a variable."""

    functions = [the_task]
    redis_settings = RedisSettings(
        host="localhost",
        port=int(os.environ.get("APPLICATION_PORT", "0")),
        ssl=True,
        ssl_ca_data=os.environ.get("APPLICATION_AUTHORITY"),
    )


async def each(ctx: Ctx) -> None:
    note("each", ctx["job_id"])


class Each:
    functions = [the_task]
    cron_jobs = [cron(each, month=1, day=1, run_at_startup=True, unique=False)]
    redis_settings = REDIS


# A log file of its own


async def logged(ctx: Ctx) -> None:
    logging.getLogger("application").info("logged by %s", ctx["job_id"])


class Logs:
    functions = [logged]
    redis_settings = REDIS


if "APPLICATION_LOG" in os.environ:
    logging.basicConfig(filename=os.environ["APPLICATION_LOG"], level=logging.INFO)
