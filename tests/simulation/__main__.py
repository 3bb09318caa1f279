"""Play histories by their numbers: `--seeds A-B` tells of those that fail, `--trace N` all that happens in one."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.history import play


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    options.add_argument("--seeds", metavar="A-B", default="0-499", help="numbers of the seeds (default: 0-499)")
    options.add_argument("--trace", metavar="N", type=int, help="one seed, with a trace of what happens")
    options.add_argument("--first", action="store_true", help="end with the first that fails")
    args = options.parse_args()
    if args.trace is not None:
        told = play(args.trace, trace=True)
        print("\n".join([*told.trace, *(f"BREACH {breach}" for breach in told.breaches)]))
        return 1 if told.breaches else 0
    first, _, last = args.seeds.partition("-")
    return _play_all(range(int(first), int(last or first) + 1), args.first)


def _play_all(seeds: range, end_at_first: bool) -> int:
    since, failed, runs, lapses, slowest_s = time.monotonic(), list[int](), 0, 0, 0.0
    for seed in seeds:
        told = play(seed)
        runs, lapses, slowest_s = runs + told.runs, lapses + told.lapses, max(slowest_s, told.slowest_s)
        if told.breaches:
            failed.append(seed)
            print(f"seed {seed}: {told.breaches[0]} (and {len(told.breaches) - 1} more)", flush=True)
            if end_at_first:
                break
    print(
        f"{len(seeds)} seeds, {len(failed)} failed; {runs} runs, {lapses} lapses, in calm times due for "
        f"{slowest_s:.2f} s at most; {time.monotonic() - since:.1f} s"
    )
    return 1 if failed else 0


sys.exit(main())
