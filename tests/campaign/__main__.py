"""Runs the campaign. Exit code 1 if an invariant of ours is broken."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import tests.campaign
from tests.campaign import report
from tests.campaign.outcome import Case, Outcome
from tests.campaign.registry import chosen
from tests.campaign.scenario import Broken, Scenario
from tests.campaign.subjects import SubjectName

SIDE_BY_SIDE = 2
"""More of them, and the figures say more of the machine than of what is tried."""
SUBJECTS: dict[str, Sequence[SubjectName]] = {"runtime": ["runtime"], "arq": ["arq"], "both": ["runtime", "arq"]}


def main() -> int:
    args = _arguments()
    full = args.full or (bool(args.only) and not args.quick)
    cases = list(_cases(chosen(args.only, full=full), SUBJECTS[args.against], args.seed, full=full))
    began = time.monotonic()
    outcomes = []
    for outcome in _outcomes(cases):
        outcomes.append(outcome)
        print(report.line(outcome), flush=True)
    took_s = time.monotonic() - began
    broken = [one for one in outcomes if one.case.subject == "runtime" and isinstance(one.verdict, Broken)]
    print(f"{len(outcomes)} runs in {took_s:.0f} s; broken of ours: {len(broken)}")
    if args.report is not None:
        report.write(args.report, outcomes, full=full, took_s=took_s)
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=tests.campaign.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="the quick scenarios with one seed (the default)")
    how_much.add_argument("--full", action="store_true", help="all, with all their seeds (the default with --only)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="K1 is all of K1.1, K1.2, …")
    parser.add_argument("--seed", nargs="+", type=int, default=[], metavar="N", help="instead of the fixed ones")
    parser.add_argument("--against", choices=SUBJECTS, default="both")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write it as Markdown, and as JSON beside it")
    return parser.parse_args()


def _cases(
    scenarios: Sequence[Scenario], subjects: Sequence[SubjectName], seeds: Sequence[int], *, full: bool
) -> Iterator[Case]:
    for scenario in scenarios:
        fixed = range(1, (scenario.seeds if full else 1) + 1)
        for place, seed in enumerate(seeds or fixed):
            # One seed says of stock arq what there is to say; ours is to hold over all.
            yield from (
                Case(scenario.id, subject, seed, full) for subject in subjects if subject == "runtime" or not place
            )


def _outcomes(cases: Sequence[Case]) -> Iterator[Outcome]:
    """As they come. Each in a process of its own: whatever it leaves behind ends with it."""
    with ProcessPoolExecutor(SIDE_BY_SIDE, get_context("spawn"), max_tasks_per_child=1) as pool:
        for run in as_completed([pool.submit(Case.run, case) for case in cases]):
            yield run.result()


if __name__ == "__main__":
    sys.exit(main())
