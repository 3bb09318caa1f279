"""What commands share that talk to the queues: whose those are, the settings, a client, an event loop."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runtime import client, registry, settings
from runtime.core.errors import HandlerInvalid, OptionInvalid, UsageInvalid
from runtime.core.span import seconds
from runtime.core.values import frozen

if TYPE_CHECKING:
    from runtime.adapters.redis.codecs import Serializer
    from runtime.arq import Application

T = TypeVar("T")


@frozen
class Owner:
    """Whose jobs a command is about: this project's, by the environment; or an arq application's, by its settings."""

    application: "Application | None" = None

    @property
    def environment(self) -> Mapping[str, str] | None:
        """Another one than this process has, in which the application's Redis is named."""
        return self.application.environment(os.environ) if self.application else None

    @property
    def serializer(self) -> "Serializer | None":
        """None: that of the environment, if it names one."""
        return self.application.serializer if self.application else None

    @property
    def option(self) -> str:
        """What a command that is printed for this owner ends with."""
        return f" --arq {self.application.name}" if self.application else ""

    def queues(self, modules: Sequence[str] = ()) -> list[str]:
        """The application's; else those of the handlers that are found."""
        return [self.application.queue] if self.application else queues_of_handlers(modules)

    def queue(self, named: str | None, what: str) -> str:
        """The one that is named, else the application's. Raises `UsageInvalid`: handlers may have many."""
        if named is not None:
            return named
        if self.application is None:
            raise UsageInvalid(f"{what}: name a queue, or an arq application", hint="see them with: runtime queue list")
        return self.application.queue


OURS = Owner()


def declare_arq(parser: argparse.ArgumentParser) -> None:
    """The option `--arq`, which `owner` reads."""
    parser.add_argument(
        "--arq", metavar="SETTINGS",
        help="of an arq application: its Redis, its queue and its types, as its settings class says",
    )  # fmt: skip


def owner(args: argparse.Namespace) -> Owner:
    """That of `--arq`, else this project. Raises `HandlerInvalid` for settings that are none."""
    if args.arq is None:
        return OURS
    if getattr(args, "module", None):
        raise UsageInvalid("--arq goes without modules", hint="its settings say which queue is meant")
    with redirect_stdout(sys.stderr):  # what a module prints is no part of what a command says
        from runtime import arq

        return Owner(arq.read(args.arq))


def with_client(work: Callable[[client.Client], Awaitable[T]], whose: Owner = OURS) -> T:
    """Run `work` with a client of the owner's Redis, that writes and reads as its workers do."""

    async def session() -> T:
        async with client.connect(url, serializer=whose.serializer) as connected:
            return await work(connected)

    registry.make_importable(Path.cwd())
    url, server = client.redis_url(settings.read(whose.environment))
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
