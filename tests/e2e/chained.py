"""A handler whose work goes on elsewhere."""

from __future__ import annotations

from runtime import Context, handler

HERE, ASLEEP = "chained:here", "chained:asleep"


@handler(queue=HERE)
async def begin(ctx: Context) -> None:
    await begin_again.enqueue()
    await go_on.enqueue()


@handler(queue=HERE)
async def begin_again(ctx: Context) -> None: ...


@handler(queue=ASLEEP)
async def go_on(ctx: Context) -> None: ...
