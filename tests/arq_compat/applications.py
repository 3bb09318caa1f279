"""The same functions as handlers of ours and as functions of a stock arq worker; each run notes itself in a file.

As a program, the stock worker: python -m tests.arq_compat.applications URL NOTES MAX_JOBS [SERIALIZER]
"""

import asyncio
import importlib
import os
import sys
from datetime import UTC, datetime
from typing import Any

from runtime import Context, Retry, RetryLater, Snooze, handler


def note(job_id: str, who: str) -> None:
    path = os.environ["RUNTIME_TEST_NOTES"]
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{job_id} {who}\n".encode())
    os.close(file)


@handler
async def double(ctx: Context, n: int) -> int:
    note(ctx.job_id, "ours")
    await asyncio.sleep(0.01)
    return 2 * n


@handler
async def shapes(ctx: Context, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": list(args), "kwargs": kwargs, "try": ctx["job_try"], "at": ctx["enqueue_time"]}


@handler
async def shapes_of_text(ctx: Context, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": list(args), "kwargs": kwargs, "try": ctx["job_try"]}


@handler
async def shapeless(ctx: Context) -> object:
    return object()


@handler
async def sleep(ctx: Context) -> None:
    await asyncio.sleep(60)


@handler(retry=Retry(1))
async def fail(ctx: Context, kind: str) -> None:
    if kind == "builtin":
        raise ValueError("a text")
    raise Odd("one", "two")


@handler(retry=Retry(3))
async def retry_as_arq(ctx: Context) -> int:
    from arq import Retry as ArqRetry

    if ctx.attempt < 3:
        raise ArqRetry(defer=0.05)
    return ctx.attempt


@handler
async def act(ctx: Context, how: str = "") -> str:
    """`how`: what its first run does; every other one is over at once."""
    note(ctx.job_id, how or "at once")
    if how == "sleep":
        await asyncio.sleep(3600)
    if how == "snooze" and ctx.crashes == 0:
        raise Snooze("1h")
    if how == "retry":
        raise RetryLater("1h")
    return "ran"


class Odd(Exception):
    """With two required arguments: an exception of this shape cannot be read by whoever lacks the class."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


async def stock_double(ctx: dict[str, Any], n: int) -> int:
    note(ctx["job_id"], "stock")
    await asyncio.sleep(0.01)
    return 2 * n


async def stock_act(ctx: dict[str, Any], how: str = "") -> str:
    note(ctx["job_id"], how or "at once")
    if how == "sleep":
        await asyncio.sleep(3600)
    return "ran"


async def stock_when(ctx: dict[str, Any], at: datetime) -> datetime:
    return at.astimezone(UTC)


def main(url: str, notes: str, max_jobs: str, serializer: str | None = None) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    os.environ["RUNTIME_TEST_NOTES"] = notes
    codec: Any = importlib.import_module(serializer) if serializer else None
    Worker(
        functions=[func(stock_double, name="double"), func(stock_when, name="when"), func(stock_act, name="act")],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=int(max_jobs),
        poll_delay=0.02,
        allow_abort_jobs=True,
        job_serializer=(lambda fields: _bytes(codec.dumps(fields))) if codec else None,
        job_deserializer=codec.loads if codec else None,
    ).run()


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


if __name__ == "__main__":
    main(*sys.argv[1:])
