"""Threads for what the worker itself cannot do in its event loop; handlers have others, and may keep them all busy."""

import asyncio
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

MOST = 4
"""A look-up of a name may take long, where the name server does not answer."""


async def aside(call: Callable[[], T]) -> T:
    """What `call()` gives, in a thread. Whoever is cancelled waits no longer; the call goes on to its end."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


@cache
def _threads() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MOST, thread_name_prefix="aside")
