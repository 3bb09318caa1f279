"""The queues, and what an operator can do with them.

  runtime queue list          one line a queue: its jobs, its workers, and how it is paused
  runtime queue pause NAME    let no job of it be started, until --for or --until is over, or until it is resumed
  runtime queue resume NAME   go on with it
  runtime queue drain NAME    pause it, and wait until nothing of it runs; exit 75 if that takes longer than --timeout
  runtime queue purge NAME    remove every job of it that nobody runs

Workers obey at once, with their next claim; nothing is restarted. What runs goes on to its end, and jobs can be added
to a queue that is paused: nobody is woken for them before the pause is over. (Stock arq workers know of no pause.)

With --arq the queue is that of an arq application, and need not be named.

A purge leaves nothing of a job: its id is free again at once. Whoever waits for its end learns that it was cancelled,
from a result that is kept for a minute.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from runtime.adapters.redis import queues, scripts
from runtime.cli import pages, survey
from runtime.cli.display import say, say_json
from runtime.cli.inspect import SCHEMA
from runtime.cli.session import Owner, answered, declare_arq, owner, tell_of_ringing, timeout_s, with_client
from runtime.client import Client
from runtime.core.errors import OptionInvalid, UsageInvalid, WaitTimedOut
from runtime.core.span import seconds, spell
from runtime.core.text import plain

LOOK_S = 0.5
TELL_S = 2.0
"""How often a long purge says how far it is."""


def declare(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="jobs, workers and pauses", description="one line a queue")
    listing.add_argument("name", nargs="*", metavar="NAME", help="only these [default: those of handlers and workers]")
    declare_arq(listing)
    listing.add_argument("--json", action="store_true", help="print one JSON document, as runtime inspect does")
    for name, doc in (
        ("pause", "let no job of it be started"),
        ("resume", "go on with it"),
        ("drain", "pause it, and wait until nothing of it runs"),
        ("purge", "remove every job of it that nobody runs"),
    ):
        action = actions.add_parser(name, help=doc, description=doc)
        action.add_argument("name", nargs="?", metavar="NAME", help="the queue, by the key of its sorted set")
        declare_arq(action)
        if name in ("pause", "drain"):
            action.add_argument("--reason", default="", help="for whoever asks why")
        if name == "pause":
            end = action.add_mutually_exclusive_group()
            end.add_argument("--for", dest="length", metavar="TIME", help="such as 30m [default: until it is resumed]")
            end.add_argument("--until", metavar="MOMENT", help="such as 2027-01-31T09:30:00Z, with its time zone")
        if name == "drain":
            action.add_argument("--timeout", default="5m", help="longest wait [default: 5m]")
        if name == "purge":
            action.add_argument("--yes", action="store_true", help="they are gone for good, and it is meant so")


def run(args: argparse.Namespace) -> int:
    work = {"list": _list, "pause": _pause, "resume": _resume, "drain": _drain, "purge": _purge}[args.action]
    whose = owner(args)
    if args.action != "list":
        args.name = whose.queue(args.name, f"queue {args.action}")
    if args.action == "purge" and not args.yes:
        raise UsageInvalid(
            f"queue purge removes every job of {args.name} that waits, for good",
            hint=f"if that is meant: runtime queue purge {args.name} --yes{whose.option}",
        )
    return with_client(partial(work, args=args, whose=whose), whose)


async def _list(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    named: Sequence[str] = args.name or whose.queues()
    found = await client.ask(lambda redis: _found(redis, named, ask_workers=not (args.name or args.arq)))
    if args.json:
        say_json({"schema": SCHEMA, "queues": found})
    else:
        say(*pages.queues_page({"queues": found}))
    return 0


async def _found(redis: Any, named: Sequence[str], *, ask_workers: bool) -> list[survey.Document]:
    return await (await survey.begin(redis, named, ask_workers=ask_workers)).queues()


async def _pause(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    length_s = seconds_until(args.until) if args.until else _length(args.length)
    await client.pause(args.name, reason=args.reason, length=length_s)
    (found,) = await client.ask(lambda redis: _found(redis, [args.name], ask_workers=False))
    how = f"for {spell(length_s)}" if length_s is not None else f"until: {_resuming(args.name, whose)}"
    say(f"{plain(args.name)}: paused {how}; {_counts(found)}")
    if not found["workers"]:
        print("no live worker serves it", file=sys.stderr)
    tell_of_ringing(client)
    await answered(client)
    return 0


def _resuming(queue: str, whose: Owner) -> str:
    return f"runtime queue resume {plain(queue)}{whose.option}"


def _length(text: str | None) -> float | None:
    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise OptionInvalid(f"--for: {error}") from None


def seconds_until(text: str) -> float:
    """From now to a moment, by this machine's clock. Raises `OptionInvalid`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise OptionInvalid(f"--until {text}: it is a moment with its time zone, such as 2027-01-31T09:30:00Z")
    left_s = (moment - datetime.now(UTC)) / timedelta(seconds=1)
    if left_s <= 0:
        raise OptionInvalid(f"--until {text}: that is past")
    return left_s


def _counts(found: survey.Document) -> str:
    if "trouble" in found:
        return str(found["trouble"])
    return f"{found['waiting']:,} waiting, {found['deferred']:,} deferred, {found['active']:,} running"


async def _resume(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    was = await client.resume(args.name)
    (found,) = await client.ask(lambda redis: _found(redis, [args.name], ask_workers=False))
    say(f"{plain(args.name)}: {'resumed' if was else 'it was not paused'}; {_counts(found)}")
    tell_of_ringing(client)
    await answered(client)
    return 0


async def _drain(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    longest_s = timeout_s(args.timeout)
    (before,) = await client.ask(lambda redis: queues.pauses(redis, [args.name]))
    await client.pause(args.name, reason=args.reason or (before.reason if before else ""))
    until = time.monotonic() + longest_s
    while running := (await client.ask(lambda redis: scripts.census(redis, args.name))).active:
        if time.monotonic() >= until:
            raise WaitTimedOut(
                f"{running:,} jobs of {args.name} still run after {spell(longest_s)}",
                hint=f"the queue stays paused; see them with: runtime inspect jobs -Q {args.name}{whose.option}",
            )
        await asyncio.sleep(LOOK_S)
    say(f"{plain(args.name)}: nothing of it runs; it is paused until: {_resuming(args.name, whose)}")
    return 0


async def _purge(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    told_at = time.monotonic()

    def tell(gone: int) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + TELL_S:
            told_at = time.monotonic()
            print(f"{gone:,} removed", file=sys.stderr)

    gone, held = await client.purge(args.name, tell)
    say(f"{plain(args.name)}: {gone:,} jobs removed" + (f"; {held:,} run, and were left alone" if held else ""))
    return 0
