"""The event loop: asyncio's own, or uvloop where it is asked for."""

import asyncio
from collections.abc import Callable
from importlib import import_module

from runtime.core.errors import SettingsInvalid


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For `asyncio.Runner`; None for asyncio's own. Raises `SettingsInvalid` where uvloop is not installed."""
    if name == "asyncio":
        return None
    try:
        made: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        raise SettingsInvalid(
            "RUNTIME_LOOP=uvloop: uvloop is not installed", hint="pip install 'runtime-worker[uvloop]'"
        ) from None
    return made
