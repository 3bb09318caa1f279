"""Dead letters: jobs that will not run again by themselves. They are kept for 30 days. With --arq, those of an arq
application: of its queue, and its arguments are read as it reads them."""

import argparse
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any

from runtime import settings
from runtime.adapters.redis import codecs, letters
from runtime.cli import without_secrets
from runtime.cli.display import say_json
from runtime.cli.session import Owner, answered, declare_arq, owner, tell_of_ringing, with_client
from runtime.client import Client
from runtime.core.errors import UsageInvalid
from runtime.core.text import one_line


def declare(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, doc, many in (
        ("list", "one line a letter, newest first", False),
        ("show", "one letter: reason, errors, arguments", False),
        ("replay", "put jobs back into their queues, as new", True),
        ("discard", "delete letters for good", True),
    ):
        action = actions.add_parser(name, help=doc, description=doc)
        declare_arq(action)
        if name == "show":
            action.add_argument("id", help="the job's id")
            continue
        action.add_argument("-Q", "--queue", help="of this queue only [default: of all; with --arq, of its]")
        action.add_argument("--handler", help="of this handler only")
        if many:
            action.add_argument("id", nargs="*", help="jobs' ids")
            action.add_argument("--all", action="store_true", help="every letter that matches")


def run(args: argparse.Namespace) -> int:
    if args.action in ("replay", "discard") and bool(args.id) == args.all:
        raise UsageInvalid(
            f"dlq {args.action}: name jobs by their ids, or say --all", hint="see them with: runtime dlq list"
        )
    actions = {"list": _list, "show": _show, "discard": _discard}
    whose = owner(args)

    async def work(client: Client) -> int:
        if args.action == "replay":
            return await _replay(client, args, whose)
        return await client.ask(lambda redis: actions[args.action](redis, args, whose))

    return with_client(work, whose)


async def _matching(redis: Any, args: argparse.Namespace, whose: Owner) -> list[dict[str, Any]]:
    its = whose.queues() if whose.application else await letters.queues(redis)
    queues = [args.queue] if args.queue else its
    found = [letter for queue in queues async for letter in letters.each(redis, queue)]
    return [letter for letter in found if args.handler in (None, letter["handler"])]


async def _chosen(redis: Any, args: argparse.Namespace, whose: Owner) -> list[dict[str, Any]]:
    """The letters that were named; a name without a letter is told."""
    if args.all:
        return await _matching(redis, args, whose)
    chosen: list[dict[str, Any]] = []
    for job_id in args.id:
        letter = await letters.find(redis, job_id)
        if letter is None:
            print(f"{one_line(job_id)}: no such dead letter", file=sys.stderr)
        else:
            chosen.append(letter)
    return chosen


async def _list(redis: Any, args: argparse.Namespace, whose: Owner) -> int:
    found = await _matching(redis, args, whose)
    if not found:
        print("no dead letters", file=sys.stderr)
    for letter in found:
        died = datetime.fromtimestamp(letter["died_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        queue, handler = one_line(letter["queue"]), one_line(letter["handler"] or "?")
        text = one_line(" ".join(without_secrets(f"{letter['error']}: {letter['text']}").split()), 120)
        print(f"{one_line(letter['id'], 1000)}  {died}  {queue}  {handler}  {letter['reason']}  {text}")
    return 0


async def _show(redis: Any, args: argparse.Namespace, whose: Owner) -> int:
    letter = await letters.find(redis, args.id, whose.serializer or codecs.named(settings.serializer()))
    if letter is None:
        print(f"{one_line(args.id)}: no such dead letter", file=sys.stderr)
        return 1
    say_json(letter)
    return 0


_SAID = {
    "done": "back in its queue",
    "gone": "no such dead letter",
    "empty": "its body is missing: nothing to replay",
    "exists": "a job of this id waits or runs; the letter is kept",
}


async def _replay(client: Client, args: argparse.Namespace, whose: Owner) -> int:
    chosen = await client.ask(lambda redis: _chosen(redis, args, whose))
    missing = 0 if args.all else len(args.id) - len(chosen)
    queues: set[str] = set()
    for letter in chosen:
        answer = await client.ask(partial(letters.replay, letter=letter))
        missing += answer != "done"
        queues |= {letter["queue"]} if answer == "done" else set()
        print(f"{one_line(letter['id'])}: {_SAID[answer]}", flush=True)
    for queue in sorted(queues):
        await client.wake(queue)
    tell_of_ringing(client)
    await answered(client)
    return 1 if missing else 0


async def _discard(redis: Any, args: argparse.Namespace, whose: Owner) -> int:
    chosen = await _chosen(redis, args, whose)
    count = await letters.discard(redis, chosen)
    print(f"{count} dead letters deleted")
    return 0 if args.all or count == len(args.id) else 1
