"""Threads for what the worker itself cannot do in its event loop; handlers have others, and may keep them all busy."""

import asyncio
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")


class Aside:
    """At most so many threads for calls of one kind, so that no kind waits behind another. None before the first call.

    They are not waited for when the event loop closes, only when the interpreter ends (`app.LEAVE_S`).
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most

    async def __call__(self, call: Callable[[], T]) -> T:
        """What `call()` gives, in a thread. Whoever is cancelled waits no longer; a call that has begun goes on to its
        end.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    @cached_property
    def _threads(self) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
