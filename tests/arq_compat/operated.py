# ruff: noqa: RUF012  # settings classes are written like this, and never made objects of
"""Applications that are operated by commands: with a queue, types, a serializer and cron jobs of their own."""

import asyncio
from pathlib import PurePosixPath
from typing import Any

from arq import cron

from tests.arq_compat import squeezed
from tests.arq_compat.documented import REDIS, Ctx, Item, note

print("what a module prints is no part of what a command says")


async def item(ctx: Ctx, name: str) -> Item:
    return Item(name, [])


async def fails(ctx: Ctx, given: Item) -> None:
    raise ValueError(f"no good: {given.name}")


async def waits(ctx: Ctx) -> None:
    note("waits", ctx["job_id"])
    await asyncio.sleep(3600)


async def beside(ctx: Ctx, path: PurePosixPath) -> PurePosixPath:
    return path / "beside"


async def doubled(ctx: Ctx, n: int) -> int:
    return 2 * n


async def nightly(ctx: Ctx) -> None:
    note("nightly", ctx["job_id"])


class Operated:
    functions = [item, fails, waits, beside]
    cron_jobs = [cron(nightly, month=1, day=1), cron(nightly, name="by each", month=1, day=1, unique=False)]
    queue_name = "operated"
    runtime_types = [Item]
    redis_settings = REDIS
    allow_abort_jobs = True


class Squeezed(Operated):
    """Its bodies are of a codec of its own, which nobody can tell by the first byte."""

    functions: list[Any] = [doubled]
    cron_jobs = []
    queue_name = "squeezed"
    job_serializer = squeezed.dumps
    job_deserializer = squeezed.loads
    redis_settings = REDIS


MISTAKE = 7
