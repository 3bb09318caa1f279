"""The limits that all workers share: how they stand, and what an operator can do about them.

  runtime limit list           every limit that workers have told of, and every breaker that is not closed
  runtime limit show NAME      everything about one: what it is used for, how good the estimates are, its breaker
  runtime limit set NAME       another --rate or --burst than is declared, until --for is over, or until it is reset
  runtime limit reset NAME     as after a quiet time: it is full, what was set is gone, its breaker is closed

NAME is that of a bucket (openai.requests), or that of an API (openai), which for `show` and `reset` stands for all of
its buckets and its breaker: a breaker is closed only so. A limit per key (judit[tenant-42]) has a bucket for each key;
they are shown and reset one by one, by that label, and `set` changes all of them.

Workers obey with their next take; nothing is restarted. Jobs that were snoozed for a limit which is reset, or has a
higher rate now, are due at once: of each queue that has a live worker, the next 1,000.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

from runtime.adapters.redis import buckets, controls, inspector
from runtime.adapters.redis.buckets import BreakerState, Level
from runtime.cli import gauges, pages
from runtime.cli.display import say, say_json
from runtime.cli.inspect import SCHEMA
from runtime.cli.session import with_client
from runtime.client import Client
from runtime.core.errors import UsageInvalid
from runtime.core.limits import YEAR_S, Bucket, changed, parse_rate
from runtime.core.span import seconds, spell
from runtime.core.text import plain


def declare(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, doc in (
        ("list", "one line a limit, and the breakers that are not closed"),
        ("show", "everything about one limit"),
        ("set", "another rate or burst than is declared"),
        ("reset", "fill it, forget what was set, close its breaker"),
    ):
        action = actions.add_parser(name, help=doc, description=doc)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="as `runtime limit list` has it")
        if name == "set":
            action.add_argument("--rate", type=_rate, help="such as 60/m or 10/30s [default: as it is]")
            action.add_argument("--burst", type=int, help="most tokens that stay in it [default: as it is]")
            action.add_argument(
                "--for", type=_length, dest="for_s", metavar="TIME", help="such as 1h [default: until it is reset]"
            )
        if name in ("list", "show"):
            action.add_argument("--json", action="store_true", help="print one JSON document, as runtime inspect does")


def _rate(text: str) -> tuple[int, float]:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _length(text: str) -> float:
    try:
        length_s = seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= length_s <= YEAR_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not from a second to a year")
    return length_s


def run(args: argparse.Namespace) -> int:
    if args.action == "set" and args.rate is None and args.burst is None:
        raise UsageInvalid(
            "limit set: give it a --rate or a --burst",
            hint=f"to take back what was set: runtime limit reset {args.name}",
        )
    if args.action == "set" and (key := gauges.split(args.name)[1]) is not None:
        name = args.name.removesuffix(f"[{key}]")
        raise UsageInvalid("limit set changes the limit of all keys", hint=f"runtime limit set {name} …")
    actions = {"list": _list, "show": _show, "set": _set, "reset": _reset}

    async def work(client: Client) -> int:
        return await client.ask(lambda redis: actions[args.action](redis, args))

    return with_client(work)


async def _list(redis: Any, args: argparse.Namespace) -> int:
    document = await gauges.read(redis)
    if args.json:
        say_json({"schema": SCHEMA, **document})
    else:
        say(*pages.limits_page(document))
    return 0


async def _show(redis: Any, args: argparse.Namespace) -> int:
    document = await gauges.read_one(redis, args.name)
    if args.json:
        say_json({"schema": SCHEMA, **document})
    else:
        say(*pages.limit_page(document))
    return 0


async def _set(redis: Any, args: argparse.Namespace) -> int:
    known = await controls.known(redis)
    if args.name not in known:
        raise gauges.unknown(known, args.name)
    bucket = known[args.name]
    (level,), _ = await buckets.look(redis, [bucket])
    try:
        its = changed(level.rule, args.rate, args.burst)
    except ValueError as error:
        raise UsageInvalid(f"limit set {args.name}: {error}") from None
    await controls.set_rule(redis, bucket.name, its, args.for_s)
    length = "until it is reset" if args.for_s is None else f"for {spell(args.for_s)}, then {bucket.rule} as declared"
    say(f"{bucket.name}: was {level.rule}{' as set before' if level.set else ''}; is {its} {length}")
    if its.rate_s > level.rule.rate_s:
        await _bring_forward(redis, lambda label: gauges.split(label)[0] == bucket.name)
    return 0


async def _reset(redis: Any, args: argparse.Namespace) -> int:
    chosen, api = gauges.choose(await controls.known(redis), args.name)
    breaker = api if args.name == api else None
    levels, (state,) = await buckets.look(redis, chosen, [api])
    await controls.reset(redis, chosen, breaker)
    for bucket, level in zip(chosen, levels, strict=True):
        say(f"{plain(bucket.label)}: {_refilled(bucket, level)}")
    if state.state != "closed":
        say(f"breaker {api}: {_closed(state) if breaker else _still_open(api, state)}")
    freed = {bucket.name for bucket, level in zip(chosen, levels, strict=True) if level.set and bucket.key is None}
    labels = {*(bucket.label for bucket in chosen), breaker}
    await _bring_forward(redis, lambda label: label in labels or gauges.split(label)[0] in freed)
    return 0


async def _bring_forward(redis: Any, given: Callable[[str], bool]) -> None:
    now_ms, beats = await inspector.workers(redis)
    queues = sorted({queue for beat in beats if beat.live(now_ms) for queue in beat.queues})
    moved = sum([await controls.bring_forward(redis, queue, given) for queue in queues])
    if moved:
        say(f"due now: {moved:,} jobs that were snoozed for it")


def _refilled(bucket: Bucket, level: Level) -> str:
    text = f"full again; it had {math.floor(level.tokens):,} of {level.rule.burst:,} tokens"
    if level.closed_s:
        text += f", and was closed for {spell(level.closed_s)} more"
    if level.set and bucket.key is None:
        text += f". No longer {level.rule}: {bucket.rule} as declared"
    return text


def _closed(was: BreakerState) -> str:
    return f"closed; it was {was.state} because of {plain(was.reason) or 'nothing it knows'}"


def _still_open(api: str, its: BreakerState) -> str:
    return f"still {its.state}; close it with: runtime limit reset {api}"
