"""The job, for this project's worker."""

from runtime import Context, handler
from tests.benchmarks.first.mark import leave


@handler
async def mark(ctx: Context, path: str) -> None:
    leave(path)
