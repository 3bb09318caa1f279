"""What commands share that talk to the queues: the settings, the handlers, a client, an event loop."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeVar

from runtime import client, registry, settings
from runtime.core.errors import HandlerInvalid, OptionInvalid
from runtime.core.span import seconds

T = TypeVar("T")


def with_client(work: Callable[[client.Client], Awaitable[T]], environment: Mapping[str, str] | None = None) -> T:
    """Run `work` with a client of the Redis that the environment names, or another one than this process has."""

    async def session() -> T:
        async with client.connect(url) as connected:
            return await work(connected)

    registry.make_importable(Path.cwd())
    url, server = client.redis_url(settings.read(environment))
    try:
        return asyncio.run(session())
    finally:
        if server is not None:
            server.close()


def tell_of_ringing(client: client.Client) -> None:
    if client.ringing:
        print("no worker seems to be awake: ringing the doorbell", file=sys.stderr)


async def answered(client: client.Client) -> None:
    """Wait for who was woken, a minute at most, and name them. (Who was not, the log names, which is stderr here.)"""
    for ring in await client.rung():
        if ring.answered:
            print(f"{ring.url} answered", file=sys.stderr)


def queues(named: Sequence[str]) -> Sequence[str]:
    """Which queues to look at: those of -Q, else those of the handlers found here. None: all that workers serve."""
    if named:
        return list(dict.fromkeys(named))
    try:
        return registry.queues(registry.collect())
    except HandlerInvalid as problem:
        print(f"no handlers here ({problem.message}): looking at the queues that workers serve", file=sys.stderr)
        return []


def queues_of_handlers(modules: Sequence[str] = ()) -> list[str]:
    """Those of the handlers that are found; none is found where somebody else's are run."""
    try:
        with redirect_stdout(sys.stderr):  # what a module prints is no part of what a command says
            return registry.queues(registry.collect(modules))
    except HandlerInvalid:
        if modules:
            raise
        return []


def timeout_s(text: str) -> float:
    """The value of --timeout. Raises `OptionInvalid`: before anything is done, not when the wait begins."""
    try:
        return seconds(text)
    except ValueError as error:
        raise OptionInvalid(f"--timeout: {error}") from None
