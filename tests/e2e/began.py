"""A handler that tells what its process had imported when its first job began."""

import sys

from runtime import Context, handler

QUEUE = "began"


@handler(queue=QUEUE)
async def imported(ctx: Context) -> list[str]:
    return sorted(sys.modules)
