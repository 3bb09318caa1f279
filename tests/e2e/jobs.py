"""Handlers of the end-to-end tests."""

from __future__ import annotations

import asyncio
import logging

from runtime import Context, handler


@handler(queue="ai-jobs", name="flashcard-generation")
async def generate(ctx: Context, length_s: float) -> dict[str, int]:
    await asyncio.sleep(length_s)
    return {"cards": 15}


@handler
async def add(ctx: Context, a: int, b: int) -> int:
    return a + b


@handler
async def log_as_libraries_do(ctx: Context) -> None:
    logging.getLogger("some.library").warning("the disk is %s", "nearly full")
