"""Handlers on the seven queues of document 004."""

from __future__ import annotations

import asyncio

from runtime import Context, handler

SEVEN = ("default", "asr", "analysis", "followups", "indexing", "uwc", "shunya")


@handler(queue="default")
async def general(ctx: Context, length_s: float = 0.0) -> str:
    await asyncio.sleep(length_s)
    return "done"


@handler(queue="asr")
async def transcribe(ctx: Context, length_s: float) -> str:
    await asyncio.sleep(length_s)
    return "words"


@handler(queue="default", unique_for="1h", keep_result="0s")
async def digest(ctx: Context, user_id: int, day: str = "today", *, loud: bool = False) -> None: ...
