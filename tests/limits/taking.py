"""The way to a grant, over the port alone: what is reserved is waited for, and asked for again at its time."""

import asyncio

from runtime.core.limits import Costs, Granted, Refused, Reserved
from runtime.ports import Limits


async def taken(limits: Limits, costs: Costs, patience_s: float) -> Granted:
    """The grant, once the tokens may be used. Raises `Away`; a cancelled wait leaves its reservation to lapse."""
    held = ""
    while True:
        match await limits.take(costs, patience_s, held=held):
            case Granted() as grant:
                await asyncio.sleep(grant.rest_s)
                return grant
            case Reserved(id=held, wait_s=wait_s):
                await asyncio.sleep(wait_s)
            case Refused(wait_s=wait_s):
                held = ""
                await asyncio.sleep(wait_s)
