"""The schedules that handlers are run by, as the workers have told of them.

  runtime schedule list           when each is due next, three times over, in its zone and UTC; when it was fired last
  runtime schedule run NAME       enqueue a job of it now; its times stay as they are
  runtime schedule pause NAME     fire it no more, on any worker, until it is resumed
  runtime schedule resume NAME    fire it again, from its next time on; what was due meanwhile is not caught up

The queues are those of -Q, else those of the handlers found here and of all that workers have said they serve. Workers
see a change when a schedule is due, and within 30 s; if none is awake, one is woken for a schedule that is resumed.

With --arq they are the cron jobs of an arq application. A pause is heeded by workers of `runtime serve --arq`; a stock
arq worker knows of none, and goes on. Cron jobs with unique=False are no schedules: each worker enqueues its own.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from runtime.adapters import cron
from runtime.adapters.redis import inspector, schedules
from runtime.adapters.redis.schedules import Listed
from runtime.cli.display import columns, moment, say, say_json
from runtime.cli.inspect import SCHEMA
from runtime.cli.session import Owner, answered, declare_arq, owner, tell_of_ringing, with_client
from runtime.client import Client
from runtime.core.errors import UsageInvalid
from runtime.core.schedule import Timetable, occurrences
from runtime.core.span import spell
from runtime.core.spec import DEFAULT_QUEUE
from runtime.core.text import plain

if TYPE_CHECKING:
    from runtime.arq import Application

SHOWN = 3
"""So many of the next times of each."""
LONGEST_REASON = 200


def declare(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, doc in (
        ("list", "when each is due next, and when it was fired last"),
        ("run", "enqueue a job of it now"),
        ("pause", "fire it no more until it is resumed"),
        ("resume", "fire it again, from its next time on"),
    ):
        action = actions.add_parser(name, help=doc, description=doc)
        if name == "list":
            action.add_argument("--json", action="store_true", help="print one JSON document, as runtime inspect does")
        else:
            action.add_argument("name", metavar="NAME", help="as `runtime schedule list` has it")
        if name == "pause":
            action.add_argument("--reason", default="", help="why, for who looks at it later")
        action.add_argument(
            "-Q", "--queue", action="append", default=[], metavar="NAME", help="look at this queue; repeatable"
        )
        declare_arq(action)


def run(args: argparse.Namespace) -> int:
    if args.action == "pause" and len(args.reason) > LONGEST_REASON:
        raise UsageInvalid(f"--reason has {len(args.reason)} characters, more than {LONGEST_REASON}")
    actions = {"run": _run, "pause": _pause, "resume": _resume}
    whose = owner(args)
    named = args.queue or whose.queues()

    async def work(client: Client) -> int:
        ask_workers = not (args.queue or args.arq)
        now_ms, found = await client.ask(lambda redis: _found(redis, named, ask_workers=ask_workers))
        if args.action == "list":
            return _list(now_ms, found, as_json=args.json)
        return await actions[args.action](client, _named(found, args.name, whose), now_ms, args, whose)

    return with_client(work, whose)


async def _found(redis: Any, named: Sequence[str], *, ask_workers: bool) -> tuple[int, list[Listed]]:
    now_ms, beats = await inspector.workers(redis)
    queues = {*named}
    if ask_workers:
        queues.update(queue for beat in beats for queue in beat.queues)
    found: list[Listed] = []
    for queue in sorted(queues or {DEFAULT_QUEUE}):
        now_ms, listed = await schedules.listed(redis, queue)
        found += listed
    return now_ms, found


def _named(found: Sequence[Listed], name: str, whose: Owner) -> Listed:
    these = [one for one in found if one.name == name]
    if len(these) == 1:
        return these[0]
    if these:
        raise UsageInvalid(
            f"the schedule {name!r} is in several queues", hint=f"say which: -Q {these[0].queue} or another one"
        )
    if whose.application:
        _refuse_cron(whose.application, name)
    known = ", ".join(sorted({plain(one.name) for one in found})) or "none: a worker tells of those of its handlers"
    raise UsageInvalid(f"there is no schedule {name!r}", hint=f"there are: {known}")


def _refuse_cron(application: "Application", name: str) -> None:
    """Say why a cron job of the application is not found."""
    match application.cron(name):
        case "own":
            raise UsageInvalid(
                f"the cron job {name!r} has unique=False: each worker enqueues its own, by its own clock",
                hint="without unique=False it is a schedule, fired once for all workers",
            )
        case "shared":
            raise UsageInvalid(
                f"no worker has told of the cron job {name!r} yet",
                hint=f"one tells when it starts: runtime serve --arq {application.name}",
            )
        case None:
            pass


def _list(now_ms: int, found: Sequence[Listed], *, as_json: bool) -> int:
    if as_json:
        say_json({"schema": SCHEMA, "now": moment(now_ms), "schedules": [_document(one, now_ms) for one in found]})
    elif found:
        rows: list[Sequence[object]] = [
            ("SCHEDULE", "QUEUE", "TIMETABLE", "MISFIRE", "LAST FIRED", "NEXT", "IN UTC", " ")
        ]
        for one in found:
            rows += _rows(one, now_ms)
        say(*columns(rows))
    else:
        say("no worker has told of a schedule")
    return 0


def _rows(one: Listed, now_ms: int) -> list[Sequence[object]]:
    said, table = one.declared, _table(one)
    about = (one.name, one.queue, said and said.timetable, said and said.misfire, _short(one.fired_ms))
    if one.next_ms is None:
        return [(*about, None, None, "paused" + (f": {one.paused}" if one.paused else ""))]
    late = f"due {spell((now_ms - one.next_ms) / 1000)} ago" if one.next_ms < now_ms else " "
    rows: list[Sequence[object]] = [(*about, _local(one.next_ms, table), _short(one.next_ms), late)]
    rows += [(*" " * len(about), _local(ms, table), _short(ms), " ") for ms in _nexts(one)[1:]]
    return rows


def _document(one: Listed, now_ms: int) -> dict[str, Any]:
    said = one.declared
    return {
        "schedule": one.name,
        "queue": one.queue,
        "timetable": said and said.timetable,
        "misfire": said and said.misfire,
        "priority": said and said.priority,
        "paused": one.next_ms is None,
        "reason": one.paused,
        "last_fired_for": moment(one.fired_ms),
        "due_in_s": None if one.next_ms is None else (one.next_ms - now_ms) / 1000,
        "next": [{"at": moment(ms), "local": _local(ms, _table(one))} for ms in _nexts(one)],
    }


def _table(one: Listed) -> Timetable | None:
    return cron.read(one.declared.timetable) if one.declared else None


def _nexts(one: Listed) -> list[int]:
    """The next times as far as can be told: of a timetable that is none of ours, one."""
    if one.next_ms is None:
        return []
    table = _table(one)
    return [one.next_ms, *islice(occurrences(table, one.next_ms), SHOWN - 1)] if table else [one.next_ms]


def _local(ms: int, table: Timetable | None) -> str | None:
    if table is None:
        return None
    return datetime.fromtimestamp(ms / 1000, cron.zone_of(table)).isoformat(sep=" ", timespec="seconds")


def _short(ms: int | None) -> str | None:
    return None if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


async def _run(client: Client, one: Listed, now_ms: int, args: argparse.Namespace, whose: Owner) -> int:
    priority = one.declared.priority if one.declared else 0
    job = await client.enqueue(one.name, options={"queue": one.queue, "priority": priority})
    say(plain(job.id))
    tell_of_ringing(client)
    await answered(client)
    return 0


async def _pause(client: Client, one: Listed, now_ms: int, args: argparse.Namespace, whose: Owner) -> int:
    await client.ask(lambda redis: schedules.pause(redis, one.queue, one.name, args.reason))
    say(f"{plain(one.name)}: paused; resume it with: runtime schedule resume {plain(one.name)}{whose.option}")
    return 0


async def _resume(client: Client, one: Listed, now_ms: int, args: argparse.Namespace, whose: Owner) -> int:
    if one.next_ms is not None:
        say(f"{plain(one.name)}: it was not paused")
        return 0
    table = _table(one)
    next_ms = table.after(now_ms) if table else now_ms  # then a worker says when it is due after that
    await client.ask(lambda redis: schedules.resume(redis, one.queue, one.name, next_ms))
    say(f"{plain(one.name)}: " + (f"next at {_short(next_ms)}" if table else "resumed"))
    await client.wake(one.queue)  # nobody had to stay awake for it
    tell_of_ringing(client)
    await answered(client)
    return 0
