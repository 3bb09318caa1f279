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
  runtime inspect --decode    which bodies in the queues a worker would refuse, and why; exit 1 if there are any. With
                              --arq, those of an arq application, before it is served

--json prints one document. Its first key is "schema": "runtime.inspect/1"; keys are only ever added. Lengths of time
are seconds (`_s`), moments are ISO 8601 in UTC (`_at`).
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from runtime import settings
from runtime.cli import pages
from runtime.cli.display import say, say_json
from runtime.core.errors import UsageInvalid

SCHEMA = "runtime.inspect/1"
WHATS = ("queues", "jobs", "job", "workers", "limits", "sleep", "settings")
Document = dict[str, Any]


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=WHATS, metavar="WHAT")
    parser.add_argument("id", nargs="?", help="the job's id, for `job`")
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME",
        help="look at this queue; repeatable [default: the queues of the handlers found and of workers]",
    )  # fmt: skip
    parser.add_argument("-m", "--module", action="append", default=[], help="handler module, as for serve; repeatable")
    parser.add_argument("-n", "--limit", type=int, default=50, help="jobs of each state and queue [default: 50]")
    parser.add_argument("--args", action="store_true", help="with `job`: also its arguments and its result")
    parser.add_argument("--decode", action="store_true", help="read every body, and list what would be refused")
    parser.add_argument(
        "--arq", metavar="SETTINGS", help="with --decode: as `serve --arq` reads them, where its Redis is"
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
    if args.what == "settings":
        return _settings(as_document=args.json)
    if args.decode or args.arq:
        if args.what or not args.decode:
            raise UsageInvalid("--decode stands alone, and --arq goes with it", hint="runtime inspect --decode")
        return _decode(args)
    # The store's side is imported for what asks the store.
    from runtime.cli.session import queues_of_handlers, with_client

    named = args.queue or queues_of_handlers(args.module)
    document = with_client(lambda client: client.ask(lambda redis: _found(redis, client.url, named, args)))
    if args.json:
        say_json({"schema": SCHEMA, **document})
    else:
        say(*pages.PAGES[args.what](document))
    return 1 if args.what == "job" and document["job"]["state"] == "unknown" else 0


async def _found(redis: Any, url: str, named: Sequence[str], args: argparse.Namespace) -> Document:
    """What is asked for: of one queue or more that are named with -Q, else of those of handlers and live workers."""
    from runtime.adapters.redis.connection import shown
    from runtime.cli import gauges, survey

    if args.what == "limits":
        return await gauges.read(redis)
    found = await survey.begin(redis, named, ask_workers=not args.queue)
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


def _decode(args: argparse.Namespace) -> int:
    from runtime.cli.session import queues_of_handlers, with_client

    if args.arq:
        from runtime import arq

        its = arq.read(args.arq)
        environment, serializer, queues = its.environment(os.environ), its.serializer, args.queue or [its.queue]
    else:
        environment, serializer, queues = os.environ, None, args.queue or queues_of_handlers(args.module)
    alone = bool(args.queue or args.arq)
    document = with_client(
        lambda client: client.ask(lambda redis: _bodies(redis, queues, serializer, ask_workers=not alone)), environment
    )
    if args.json:
        say_json({"schema": SCHEMA, **document})
    else:
        say(*pages.bodies_page(document))
    return 1 if any(queue["refused"] for queue in document["bodies"]) else 0


async def _bodies(redis: Any, named: Sequence[str], serializer: Any, *, ask_workers: bool) -> Document:
    from runtime.cli import survey

    found = await survey.begin(redis, named, ask_workers=ask_workers)
    return {"bodies": await found.bodies(serializer)}


def _settings(*, as_document: bool) -> int:
    reading = settings.examine()
    rows = [
        {
            "name": found.name or found.setting.names[0],
            "names": found.setting.names,
            "value": found.shown(),
            "source": f"environment {found.name}" if found.name else "default",
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


__all__ = ["declare", "run"]
