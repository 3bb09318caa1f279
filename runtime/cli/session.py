"""What commands share that talk to the queues: the settings, the handlers, a client, an event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from runtime import client, registry, settings
from runtime.adapters import embedded
from runtime.core.errors import OptionInvalid, SettingsInvalid
from runtime.core.span import seconds

T = TypeVar("T")


def redis_of(config: settings.Settings) -> tuple[str, embedded.Embedded | None]:
    """The Redis to use. Raises `SettingsInvalid` if it would be the embedded server, and that cannot start."""
    try:
        return client.redis_url(config)
    except (embedded.EmbeddedUnavailable, embedded.EmbeddedFailed) as error:
        raise SettingsInvalid(
            "no Redis is configured, and the embedded server cannot start", cause=str(error)
        ) from None


def with_client(work: Callable[[client.Client], Awaitable[T]]) -> T:
    """Run `work` with a client of the Redis that the environment names."""

    async def session() -> T:
        async with client.connect(url) as connected:
            return await work(connected)

    registry.make_importable(Path.cwd())
    url, server = redis_of(settings.read())
    try:
        return asyncio.run(session())
    finally:
        if server is not None:
            server.close()


def timeout_s(text: str) -> float:
    """The value of --timeout. Raises `OptionInvalid`: before anything is done, not when the wait begins."""
    try:
        return seconds(text)
    except ValueError as error:
        raise OptionInvalid(f"--timeout: {error}") from None
