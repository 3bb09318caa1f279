"""The event loop: asyncio's own, or uvloop where it is asked for."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from runtime.adapters.aside import aside
from runtime.core.errors import SettingsInvalid


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in threads of the worker's. asyncio has them wait behind what handlers do in its few threads
    (`asyncio.to_thread`): a Redis that was away could not be found again as long as those are busy. uvloop has its own.
    """

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        return await aside(partial(socket.getaddrinfo, host, port, family, type, proto, flags))


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio.Runner`. Raises `SettingsInvalid` where uvloop is not installed."""
    if name == "asyncio":
        return _Loop
    try:
        made: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        raise SettingsInvalid(
            "RUNTIME_LOOP=uvloop: uvloop is not installed", hint="pip install 'runtime-worker[uvloop]'"
        ) from None
    return made
