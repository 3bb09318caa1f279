"""Take each guard of `table.py` away, one at a time, and see that a test fails.

    python -m tests.mutations [--only TEXT] [--jobs N]

The scripts are read from a copy of their folder; nothing of the project is changed. Exit code 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.mutations.table import MUTANTS, Mutant
from tests.mutations.trial import passes

PRELOADED = ["tests.mutations.trial", "arq.worker", "runtime.adapters.redis.source", "runtime.client"]


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    options.add_argument("--only", metavar="TEXT", default="", help="only rows whose name contains this")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    args = options.parse_args()
    rows = [row for row in MUTANTS if args.only in row.name and not row.equivalent]
    since = time.monotonic()
    context = get_context("forkserver")  # a process for each, without its imports
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(args.jobs, context, max_tasks_per_child=1) as pool:
        sound = {pool.submit(passes, file): file for file in {row.file for row in rows}}
        if broken := [file for run, file in sound.items() if not run.result()]:
            print(f"without any mutation the tests fail of: {', '.join(broken)}")
            return 2
        survivors = list(_survivors(pool, rows))
    equivalent = sum(bool(row.equivalent) for row in MUTANTS)
    print(f"{len(rows)} mutants, {len(survivors)} survived; {equivalent} equivalent; {time.monotonic() - since:.0f} s")
    return 1 if survivors else 0


def _survivors(pool: Executor, rows: Sequence[Mutant]) -> Iterator[Mutant]:
    runs = {pool.submit(passes, row.file, row): row for row in rows}
    for run in as_completed(runs):
        survived = run.result()
        print(f"{'SURVIVED' if survived else 'killed  '} {runs[run].name}", flush=True)
        if survived:
            yield runs[run]


if __name__ == "__main__":
    sys.exit(main())
