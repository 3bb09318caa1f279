"""Blocking work that nobody waits for once its time is over."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from runtime.adapters.redis.connection import cause_of

T = TypeVar("T")
RESOLVE_S = 3.0
CONNECT_S = 2.0


async def in_thread(work: Callable[[], T], within_s: float) -> T:
    """What `work` gives or raises; `TimeoutError` when it takes longer.

    In a thread of its own, which is left behind then and does not keep the process: name resolution cannot be ended,
    and asyncio's own threads are waited for when the event loop closes.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(give: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(lambda: None if done.done() else give())

    def run() -> None:
        try:
            value = work()
        except Exception as error:
            tell(lambda error=error: done.set_exception(error))  # type: ignore[misc]
        else:
            tell(lambda: done.set_result(value))

    threading.Thread(target=run, name="examination", daemon=True).start()
    async with asyncio.timeout(within_s):
        return await done


async def unresolved(host: str) -> str | None:
    """Why the name of a host cannot be resolved; None: it can."""
    try:
        await in_thread(lambda: socket.getaddrinfo(host, None), RESOLVE_S)
    except TimeoutError:
        return "no answer in time from the name servers"
    except (OSError, UnicodeError) as error:
        return "the host's name is not known" if isinstance(error, socket.gaierror) else cause_of(error)
    return None


async def unreachable(host: str, port: int) -> str | None:
    """Why nobody takes a TCP connection there; None: somebody does."""
    cause = await unresolved(host)
    if cause is not None:
        return cause
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        return cause_of(error)
    writer.close()
    return None
