"""Handlers for the tests of hostile queues: they note their job's id, whatever it is made of."""

import os

from runtime import Context, handler


@handler
async def survive(ctx: Context, number: int) -> int:
    with open(os.environ["RUNTIME_TEST_NOTES"], "a") as notes:
        notes.write(f"{ctx.job_id[:100]!a} {number}\n")
    return number
