"""A handler that tells what its process had imported when its first job began."""

import asyncio
import sys

from runtime import Context, handler

QUEUE = "began"


@handler(queue=QUEUE)
async def imported(ctx: Context) -> list[str]:
    return sorted(sys.modules)


@handler(queue=QUEUE)
async def tell(ctx: Context) -> None:
    import structlog  # as a handler module may that is to be imported quickly

    while not structlog.is_configured():
        await asyncio.sleep(0.01)
    structlog.get_logger().info("told late", event_name="TOLD_LATE", password="hunter2")
