"""Handlers of the HTTP tests, on two queues."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from runtime import Allowance, Bucket, Context, Permanent, Quota, handler

QUEUE, OTHER = "http:jobs", "http:other"


@handler(queue=QUEUE)
async def double(ctx: Context, number: int, times: int = 1) -> int:
    return number << times


@handler(queue=QUEUE)
async def echo(ctx: Context, *args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


@handler(queue=QUEUE)
async def next_day(ctx: Context, day: date, after: timedelta = timedelta(days=1)) -> date:
    return day + after


@handler(queue=OTHER)
async def hold(ctx: Context, length_s: float) -> str:
    await asyncio.sleep(length_s)
    return "held"


@handler(queue=QUEUE)
async def refuse(ctx: Context) -> None:
    raise Permanent("there is nobody to write to")


@handler(queue=QUEUE, quota=Quota("reports", by="user", allow=Allowance(hourly=2, pending=1)))
async def report(ctx: Context, user: str) -> str:
    return "written"


@handler(queue=OTHER, limit=Bucket("rare", "1/h", burst=1))
async def rare(ctx: Context) -> None: ...


@handler(queue=QUEUE)
async def odd(ctx: Context) -> dict[Any, Any]:
    return {
        "bytes": b"\x00\xff",
        "moment": datetime(2027, 1, 31, tzinfo=UTC),
        "span": timedelta(seconds=1.5),
        "number": Decimal("1.10"),
        "nan": float("nan"),
        "set": {3, 1},
        7: ("a", b"b"),
    }
