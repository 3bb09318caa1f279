"""Handlers that are limited, as those of the tests of `runtime limit` are."""

from __future__ import annotations

import asyncio
import logging

from runtime import Bucket, Concurrency, Context, handler

PACED = Bucket("paced", "1/h", burst=1)
BRISK = Bucket("brisk", "10/s", burst=1)
TENANTS = Bucket("tenants", "1/h", burst=1)
UNUSED = Bucket("judit", "180/m", burst=9)
log = logging.getLogger("limited")


@handler(queue="limited", limit=PACED)
async def once_an_hour(ctx: Context) -> None:
    log.warning("ran")


@handler(queue="brisk", limit=BRISK)
async def briskly(ctx: Context) -> None:
    log.warning("ran")


@handler(queue="tenants")
async def of_tenant(ctx: Context, tenant: str) -> None:
    async with ctx.limit(TENANTS[tenant], patience="1s"):
        log.warning("ran")


@handler(queue="exports", limit=Concurrency("exports", 1))
async def export(ctx: Context) -> None:
    await asyncio.sleep(60)
