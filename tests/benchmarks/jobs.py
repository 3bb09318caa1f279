"""The jobs of the benchmark, as plain functions: arq and the floor run them as they are, `ours` declares them.

They tell the bench when they begin, over the descriptor that it opened (`BENCH_MARKS`): `noop` and `nap` the first time
and the `BENCH_JOBS`th, `marked` each time. Times are monotonic: the same clock in all processes of the machine.
"""

import asyncio
import os
import time

_marks = int(os.environ.get("BENCH_MARKS", "2"))
_last = int(os.environ.get("BENCH_JOBS", "1"))
_begun = 0


def _tell() -> None:
    os.write(_marks, b"%r\n" % time.monotonic())


def _count() -> None:
    global _begun
    _begun += 1
    if _begun == 1 or _begun == _last:
        _tell()


async def noop(ctx: object, n: int) -> None:
    _count()


async def nap(ctx: object, s: float) -> None:
    _count()
    await asyncio.sleep(s)


async def marked(ctx: object) -> None:
    _tell()
