"""Show queues, jobs, workers, limits or settings; without a word, all but jobs and settings on one page. It changes
nothing.

  runtime inspect             queues, limits and workers
  runtime inspect queues      jobs counted by state, how long the oldest waits, how many live workers serve the queue
  runtime inspect jobs        jobs of each state: when they are due, who holds them and for how long
  runtime inspect job ID      everything known of one job; its arguments and result only with --args
  runtime inspect workers     what each worker last said of itself (every 30 s; it is live for 2 minutes after)
  runtime inspect sleep       which workers sleep, what keeps the others awake and since when, what each had sent last
                              as it said so (by whom, how long ago), and when the next job is due
  runtime inspect limits      the level of each limit, what waits for it; more, and what to do: runtime limit
  runtime inspect settings    every setting, its value and its source; exit 78 if one is wrong
  runtime inspect --decode    which bodies in the queues a worker would refuse, and why; exit 1 if there are any

--arq SETTINGS shows all this of an arq application, whose settings say where its Redis is, which its queue and how
bodies are read; `runtime inspect --decode --arq SETTINGS` what it would lose, before it is served.

--json prints one document. Its first key is "schema": "runtime.inspect/1"; keys are only ever added. Lengths of time
are seconds (`_s`), moments are ISO 8601 in UTC (`_at`).
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime import settings
from runtime.cli import pages
from runtime.cli.display import say, say_json
from runtime.core.errors import UsageInvalid

if TYPE_CHECKING:
    from runtime.cli.session import Owner

SCHEMA = "runtime.inspect/1"
WHATS = ("queues", "jobs", "job", "workers", "limits", "sleep", "settings")
Document = dict[str, Any]


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=WHATS, metavar="WHAT")
    parser.add_argument("id", nargs="?", help="the job's id, for `job`")
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME",
        help="look at this queue; repeatable [default: those of the handlers found and of workers, or that of --arq]",
    )  # fmt: skip
    parser.add_argument("-m", "--module", action="append", default=[], help="handler module, as for serve; repeatable")
    parser.add_argument("-n", "--limit", type=int, default=50, help="jobs of each state and queue [default: 50]")
    parser.add_argument("--args", action="store_true", help="with `job`: also its arguments and its result")
    parser.add_argument("--decode", action="store_true", help="read every body, and list what would be refused")
    parser.add_argument(
        "--arq", metavar="SETTINGS", help="of an arq application, by the dotted name of its settings class"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    if args.what == "job" and args.id is None:
        raise UsageInvalid("inspect job: name one by its id", hint="see ids with: runtime inspect jobs")
    if args.what != "job" and args.id is not None:
        raise UsageInvalid(f"inspect {args.what} takes no id", hint=f"runtime inspect job {args.id}")
    if args.args and args.what != "job":
        raise UsageInvalid("--args goes with one job", hint="runtime inspect job ID --args")
    if not 1 <= args.limit <= 1000:
        raise UsageInvalid(f"--limit {args.limit}: a whole number from 1 to 1000")
    if args.decode and args.what:
        raise UsageInvalid("--decode stands alone", hint="runtime inspect --decode")
    if args.what == "settings" and args.arq is None:
        return _settings(os.environ, as_document=args.json)
    # The store's side is imported for what asks the store.
    from runtime.cli.session import owner, with_client

    whose = owner(args)
    if args.what == "settings":
        return _settings(whose.environment or os.environ, as_document=args.json)
    named = args.queue or whose.queues(args.module)
    document = with_client(
        lambda client: client.ask(lambda redis: _found(redis, client.url, named, args, whose)), whose
    )
    if args.json:
        say_json({"schema": SCHEMA, **document})
    elif args.decode:
        say(*pages.bodies_page(document))
    else:
        say(*pages.PAGES[args.what](document))
    if args.decode:
        return 1 if any(queue["refused"] for queue in document["bodies"]) else 0
    return 1 if args.what == "job" and document["job"]["state"] == "unknown" else 0


async def _found(redis: Any, url: str, named: Sequence[str], args: argparse.Namespace, whose: "Owner") -> Document:
    """What is asked for: of one queue or more that are named with -Q or by the application, else of those of handlers
    and live workers."""
    from runtime.adapters.redis.connection import shown
    from runtime.cli import gauges, survey

    if args.what == "limits":
        return await gauges.read(redis)
    ask_workers = not (args.queue or args.arq)
    found = await survey.begin(redis, named, ask_workers=ask_workers, serializer=whose.serializer)
    if args.decode:
        return {"bodies": await found.bodies()}
    match args.what:
        case "queues":
            return {"queues": await found.queues()}
        case "jobs":
            return {"limit": args.limit, "queues": await found.jobs(args.limit)}
        case "job":
            return {"job": await found.job(args.id, with_args=args.args)}
        case "workers" | "sleep":
            return {"workers": found.workers()}
        case _:
            queues, limits = await found.queues(), await gauges.read(redis)
            return {"redis": shown(url), "queues": queues, "workers": found.workers(), **limits}


def _settings(environment: Mapping[str, str], *, as_document: bool) -> int:
    """Those of the environment, or of another one, in which an application has the last word."""
    reading = settings.examine(environment)
    rows = [
        {
            "name": found.name or found.setting.names[0],
            "names": found.setting.names,
            "value": found.shown(),
            "source": _source(found.name, environment),
            "wrong": found.wrong,
            "doc": found.setting.doc,
        }
        for found in reading.found
    ]
    document = {"schema": SCHEMA, "settings": rows, "wrong": reading.wrong, "warnings": reading.warnings}
    if as_document:
        say_json(document)
    else:
        say(*pages.settings_page(document))
    return 78 if reading.wrong else 0


def _source(name: str | None, environment: Mapping[str, str]) -> str:
    if name is None:
        return "default"
    return f"environment {name}" if environment[name] == os.environ.get(name) else "arq application"


__all__ = ["declare", "run"]
