"""The handler of document 002, with its four limits from the environment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from runtime import Allowance, Context, Quota, handler


def allowance(who: str) -> Allowance:
    return Allowance(
        hourly=int(os.environ[f"{who}_HOURLY_LIMIT"]),
        pending=int(os.environ[f"{who}_PENDING_LIMIT"]),
    )


exports = Quota(
    "exports",
    by="user_id",
    tier="tier",
    tiers={"free": allowance("FREE_USER"), "subscriber": allowance("SUBSCRIBER")},
)


@handler(queue="exports", quota=exports)
async def export(ctx: Context, menu: int, user_id: str, tier: str = "free") -> str:
    """Renders once the kitchen is open."""
    while not Path(os.environ["KITCHEN_OPEN"]).exists():
        await asyncio.sleep(0.02)
    return f"menu-{menu}.pdf"
