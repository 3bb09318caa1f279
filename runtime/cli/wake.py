"""Wake a worker that sleeps: POST to its /wake, at RUNTIME_WAKE_URL or --url, again and again for a minute or until it
answers.

With --if-due it looks in Redis first, and wakes only if a job or a schedule is due and no worker of its queue is awake:
for a cron service that runs every few minutes, so that deferred jobs, retries and schedules wake a sleeper too. The
queues are those of -Q, else those of the handlers found here, else all that workers have said they serve.

Exit codes: 0 woken, or nothing to do; 69 Redis cannot be reached, 75 an address did not answer, 78 a setting is wrong.
"""

import argparse
import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime import settings
from runtime.core.errors import OptionInvalid, SettingsInvalid

if TYPE_CHECKING:
    from runtime.core.alarm import Need


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--if-due", action="store_true", help="only if a job is due and nobody is awake for it")
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME", help="look at this queue; repeatable"
    )
    parser.add_argument("--url", help="ring here; goes before RUNTIME_WAKE_URL")


def run(args: argparse.Namespace) -> int:
    from runtime.cli.display import say
    from runtime.core.text import plain

    if args.queue and not args.if_due:
        raise OptionInvalid("-Q says where --if-due is to look", hint="add --if-due, or leave -Q out")
    config = settings.read()
    urls = addresses(args.url, config)
    if args.if_due:
        needs = _look(args.queue)
        say(*(plain(f"{need.queue}: {_told(need)}") for need in needs))
        if not any(need.calls for need in needs):
            say("nobody has to be woken")
            return 0
    return asyncio.run(_ring(urls))


def addresses(given: str | None, config: settings.Settings) -> Sequence[str]:
    """Where to ring: --url, else RUNTIME_WAKE_URL. Raises `OptionInvalid`, or `SettingsInvalid` if there is neither."""
    if given is not None:
        (setting,) = (setting for setting in settings.TABLE if setting.field == "wake_urls")
        try:
            return tuple(setting.parse(given))
        except ValueError as error:
            raise OptionInvalid(f"--url {error}") from None
    if not config.wake_urls:
        raise SettingsInvalid(
            "there is nobody to ring: RUNTIME_WAKE_URL is not set",
            hint="set it to the worker's address, e.g. http://worker.railway.internal:3002/wake",
        )
    return config.wake_urls


def _look(named: Sequence[str]) -> "Sequence[Need]":
    from runtime.adapters.redis import heartbeats
    from runtime.adapters.redis.needs import needs
    from runtime.cli.session import queues, with_client

    wanted = queues(named)

    async def look(redis: object) -> "Sequence[Need]":
        return await needs(redis, wanted or sorted(await heartbeats.queues_served(redis)))

    return with_client(lambda client: client.ask(look))


def _told(need: "Need") -> str:
    from runtime.cli.display import roughly

    awake = "somebody is awake" if need.awake else "nobody is awake"  # Valkey 9.1 miscounts subscribers
    later = f", the next in {roughly(need.next_in_s)}" if need.next_in_s is not None else ""
    return f"{'jobs are due' if need.due else 'nothing is due'}{later}; {awake}"


async def _ring(urls: Sequence[str]) -> int:
    from runtime.adapters.doorbell import Doorbell

    doorbell = Doorbell(urls)
    doorbell.ring()
    rings = await doorbell.rung()
    for ring in rings:
        print(f"{ring.url}: {'awake' if ring.answered else ring.said}", flush=True)
    return 0 if all(ring.answered for ring in rings) else 75
