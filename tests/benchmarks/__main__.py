"""`make bench`: this worker beside arq, BullMQ and the floor of the wire format, on one machine in one run, in turn.

Each contender has a server of its own, and its own client's jobs. Ratios count; the figures belong to the machine, and
differences below 1.3 in times say little. What jobs cost a server is counted by the server: that is exact.

The default run takes a quarter of an hour at most; `--only growth`, with a million jobs and many workers, is another.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import growth, report
from tests.benchmarks.contenders import Contender
from tests.benchmarks.measures import NOOPS, Figures
from tests.benchmarks.rows import ROWS, Row

START = "tests.benchmarks.start"
"""Row 9, cold start and idle memory, has a program of its own."""


def main() -> int:
    args = _arguments()
    if args.only == ["growth"]:
        for line in growth.lines(args.jobs / NOOPS):
            print(line, flush=True)
        return 0
    rows = chosen(args.only)
    run = report.configuration(args.rounds, args.jobs / NOOPS)
    print("\n".join(f"{name}: {value}" for name, value in run.items()), flush=True)
    results: dict[str, dict[str, list[Figures]]] = {}
    absences: dict[str, dict[str, str]] = {}
    for row in rows:
        results[row.name], absences[row.name] = measured(row, args.rounds, args.jobs / NOOPS)
        print(report.text(row, results[row.name], absences[row.name]), flush=True)
    seen = {contender.name: contender for row in rows for contender in row.contenders}
    print("\n" + report.legend(list(seen.values())), flush=True)
    if args.json is not None:
        report.write(args.json, run, results, absences)
    if (not args.only or "start" in args.only) and importlib.util.find_spec(START):
        return subprocess.run([sys.executable, "-m", START, "--rounds", str(args.rounds)], check=False).returncode
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW[/CONTENDER]",
        help=f"this, and what else is named; rows: {', '.join(row.name for row in ROWS)}, start; and growth, alone",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=NOOPS, help="no-op jobs a round; other rows' in proportion")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds there")
    return parser.parse_args()


def chosen(only: Sequence[str]) -> list[Row]:
    """The rows to run, each with its contenders. Raises `SystemExit` for a name that is none."""
    if not only:
        return list(ROWS)
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for word in only:
        name, _, contender = word.partition("/")
        wanted[name].add(contender)
    rows = []
    for row in ROWS:
        names = wanted.pop(row.name, None)
        if names is not None:
            some = [one for one in row.contenders if "" in names or one.name in names]
            rows.append(replace(row, contenders=some))
    wanted.pop("start", None)
    if wanted or not all(row.contenders for row in rows):
        raise SystemExit(f"no such row or contender: {', '.join(only)}")
    return rows


def measured(row: Row, rounds: int, scale: float) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """What was found of each contender in each round, and why nothing was found of others."""
    absent = {one.name: why for one in row.contenders if (why := one.missing)}
    there = [one for one in row.contenders if one.name not in absent]
    found: dict[str, list[Figures]] = {}
    for number in range(min(rounds, row.rounds or rounds)):
        began = time.monotonic()
        turn = number % max(len(there), 1)
        for contender, figures in row.measure(there[turn:] + there[:turn], scale):
            if isinstance(figures, str):
                absent[contender.name] = figures
            else:
                found.setdefault(contender.name, []).append(figures)
                _tell(row, number, contender, figures)
        print(f"{row.name}: round {number + 1} took {time.monotonic() - began:.1f} s", file=sys.stderr)
    return found, absent


def _tell(row: Row, number: int, contender: Contender, figures: Figures) -> None:
    shown = report.cell(replace(row.columns[0], spread=False), [figures])
    print(f"{row.name} {number + 1} {contender.name}: {shown} {row.columns[0].title}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
