"""Handlers that are put into the image's root for the test."""

from __future__ import annotations

import asyncio
import os

from runtime import Context, handler


@handler
async def who(ctx: Context) -> list[int]:
    return [os.getpid(), os.getuid()]


@handler
async def wait(ctx: Context, length_s: float) -> None:
    await asyncio.sleep(length_s)
