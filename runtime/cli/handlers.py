"""List what `serve` would run: each handler, its queue, its schedule, its limits and where it is declared."""

import argparse
import os

from runtime import registry
from runtime.cli.display import columns, say
from runtime.core.span import spell


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", nargs="*", help="handler modules or packages, as for serve")


def run(args: argparse.Namespace) -> int:
    rows = [("HANDLER", "QUEUE", "SCHEDULE", "TIMEOUT", "ATTEMPTS", "DECLARED AT")]
    for name, handler in sorted(registry.collect(args.module).items()):
        spec = handler.spec
        timeout = "default" if spec.timeout_s is None else spell(spec.timeout_s)
        where = os.path.relpath(spec.where) if os.path.isabs(spec.where) else spec.where
        schedule = spec.timetable.text if spec.timetable else ""
        rows.append((f"{name}{handler.signature}", spec.queue, schedule, timeout, str(spec.retry.attempts), where))
    say(*columns(rows))
    return 0
