"""A handler that is run each second, by ours and as stock arq's cron job; each run is in the ledger."""

from __future__ import annotations

from runtime import Context, every
from tests.faults.jobs import noted


@every("1s", misfire="all", keep_result="0s")
async def tick(ctx: Context) -> None:
    with noted(ctx):
        pass
