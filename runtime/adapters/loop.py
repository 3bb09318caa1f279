"""The event loop: asyncio's own, or uvloop where it is asked for."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from runtime.adapters.aside import Aside
from runtime.adapters.runner import running_here
from runtime.core.errors import SettingsInvalid

_ours = Aside("look-up", 4)
"""A look-up of a name takes half a minute, where the name server does not answer."""
_theirs = Aside("look-up of a run", 32)
"""As many as asyncio has at most."""


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in threads of the worker's. asyncio has them wait behind what handlers do in its few threads
    (`asyncio.to_thread`): a Redis that was away could not be found again as long as those are busy. What runs look up
    (hundreds of hosts, perhaps, whose name servers are silent) has others, for the same reason. uvloop has its own.
    """

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        aside = _ours if running_here() is None else _theirs
        return await aside(partial(socket.getaddrinfo, host, port, family, type, proto, flags))


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio.Runner`. Raises `SettingsInvalid` where uvloop is not installed."""
    if name == "asyncio":
        return _of_policy
    try:
        made: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        raise SettingsInvalid(
            "RUNTIME_LOOP=uvloop: uvloop is not installed", hint="pip install 'runtime-worker[uvloop]'"
        ) from None
    return made


def _of_policy() -> asyncio.AbstractEventLoop:
    """Ours, unless a handler module has seen to another one: by `uvloop.install()`, as arq applications do."""
    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop:
        return loop
    loop.close()
    return _Loop()
