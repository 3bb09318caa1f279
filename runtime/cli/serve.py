"""Run a worker: claim jobs, run their handlers, settle their outcomes.

SIGTERM or Ctrl-C stops it: it takes no new jobs, lets running ones finish within the grace, and gives back the rest.
A second one gives back at once, a third ends at once.
"""

import argparse
import gc
import os
import resource
import signal
import sys
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from runtime import settings
from runtime.core.errors import OptionInvalid, UsageInvalid

if TYPE_CHECKING:
    from runtime.arq import Session

GARBAGE = 10_000
"""So many new containers between two looks for garbage. Python's 700 are those of fifteen jobs, and cost 6 %."""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "module",
        nargs="*",
        help="handler modules or packages [default: tool.runtime.handlers of pyproject.toml, else `handlers`]",
    )
    parser.add_argument(
        "-Q", "--queue", action="append", default=[], metavar="NAME[=SLOTS]",
        help="serve this queue, with slots of its own if a number is given; repeatable [default: the handlers' queues]",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--concurrency", type=int, metavar="N", help="jobs at once; goes before WORKER_CONCURRENCY"
    )
    parser.add_argument(
        "--arq", metavar="SETTINGS", help="run an arq application: the dotted name of its settings class, as for `arq`"
    )
    parser.add_argument("--burst", action="store_true", help="with --arq: stop when the queue is empty")
    parser.epilog = f"settings, from the environment:\n{settings.help_text()}"


def run(args: argparse.Namespace) -> int:
    gc.disable()  # what is imported stays: looking for garbage in it takes a twentieth of the start
    _dump_no_core()
    # Until the worker listens to signals there is nothing to give back.
    signal.signal(signal.SIGTERM, _nothing_begun)
    guest = _guest(args)
    config = settings.read(guest.environment(os.environ) if guest else None)
    if config.redis_disabled:
        print("REDIS_DISABLED is set: this worker has nothing to do, and stops.", file=sys.stderr)
        return 0
    if args.concurrency is not None:
        if not 1 <= args.concurrency <= 1000:
            raise OptionInvalid(f"-c {args.concurrency}: concurrency is a whole number from 1 to 1000")
        config = replace(config, concurrency=args.concurrency)
    from runtime import app, client, groups, registry

    handlers = guest.handlers if guest else registry.collect(args.module)
    equipment = guest.equipment if guest else registry.equipment(args.module)
    served = groups.groups(handlers, args.queue, config.concurrency)
    url, server = client.redis_url(config)
    if server is not None:
        print(f"No Redis is configured: using the embedded server, {url}", file=sys.stderr)
    gc.freeze()
    gc.set_threshold(GARBAGE)
    gc.enable()
    return app.serve(config, url, handlers, served, equipment, guest)


def _guest(args: argparse.Namespace) -> "Session | None":
    """The arq application, if one is to be served."""
    if args.arq is None:
        if args.burst:
            raise UsageInvalid("--burst goes with --arq")
        return None
    if args.module:
        raise UsageInvalid("--arq goes without modules", hint="a second worker can serve them")
    from runtime import arq

    return arq.Session(arq.read(args.arq), burst=args.burst)


def _dump_no_core() -> None:
    """The memory of a worker that crashes holds secrets and jobs."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    # One byte, not none: the kernel heeds a limit of 0 for files only, and one of 1 also where it pipes to a program.
    resource.setrlimit(resource.RLIMIT_CORE, (0 if most == 0 else 1, most))


def _nothing_begun(number: int, frame: FrameType | None) -> None:
    os._exit(0)
