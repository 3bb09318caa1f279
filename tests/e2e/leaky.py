"""Handlers that do with secrets what they should not: the canary test looks where they come out."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import threading
import warnings
from typing import Never

import structlog

from runtime import Context, Permanent, Retry, handler

KEY = "OPENAI_API_KEY"
ONCE = Retry(attempts=1)


class Colour(enum.Enum):
    RED = "red"


@handler(retry=ONCE)
async def says_it(ctx: Context, argument: str) -> Never:
    raise RuntimeError(f"401 for {os.environ[KEY]} at {os.environ['REDIS_URL']}")


@handler(retry=Retry(2, base="1ms"))
async def says_it_across_the_cut(ctx: Context, argument: str) -> Never:
    raise RuntimeError("." * 1990 + os.environ[KEY])


@handler(retry=ONCE)
async def refuses(ctx: Context, colour: Colour) -> None: ...


@handler(timeout="100ms", retry=ONCE)
async def too_slow(ctx: Context, argument: str) -> None:
    await asyncio.sleep(60)


@handler
async def logs_it(ctx: Context, argument: str) -> str:
    key = os.environ[KEY]
    log = logging.getLogger("some.library")
    log.warning("sent Authorization: Bearer %s", key)
    log.error("%d", key)
    structlog.get_logger().info("asked", headers={"x-api-key": "short1"}, claim=ctx._claim, deep=[{"a": (key,)}])
    try:
        raise ValueError(key)
    except ValueError:
        log.exception("it went wrong")
    warnings.warn(f"old {key}", stacklevel=1)
    thread = threading.Thread(target=_dies, args=(key,))
    thread.start()
    thread.join()

    async def forgotten() -> None:
        raise ValueError(key)

    _ = asyncio.get_running_loop().create_task(forgotten())
    await asyncio.sleep(0.05)
    return argument


def _dies(key: str) -> None:
    raise RuntimeError(key)


@handler
async def returns_it(ctx: Context, argument: str) -> str:
    return argument


@handler(retry=ONCE)
async def gives_up(ctx: Context, argument: str) -> Never:
    raise Permanent(f"for {os.environ['RUNTIME_TEST_SECRET']}")
