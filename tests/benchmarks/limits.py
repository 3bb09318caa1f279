"""`make bench-limits`: the token bucket beside the limiters that others wrote, in one run, in turn.

Two cases. *Free*: more tokens than anybody takes; how many takes a second do one process and eight make, and how many
commands does one cost (those inside scripts too: that is what hosted servers bill). *Full*: four processes of five
takers want more than there is (50/s, burst 5) for ten seconds; how much do they get, in the worst stretch and on the
whole, and what does the waiting cost.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import redis

from tests.benchmarks.limiters import MAKERS
from tests.limits.judge import Allowance, Use, excess, most_within, utilisation
from tests.servers import Server

S = 1_000_000
RATE, BURST = 50, 5
PROCESSES, TAKERS, FULL_S = 4, 5, 10.0
PLENTY, FREE_S = 1_000_000, 2.0

CONFIGURATIONS = {
    "runtime": "Bucket(rate='50/s', burst=5); a reservation, then asked for again at its time",
    "limits": "MovingWindowRateLimiter, 50 per second, async+redis with redis-py; sleeps until the window's reset",
    "throttled:token_bucket": "per_sec(50, burst=5), RedisStore, timeout 60",
    "throttled:gcra": "per_sec(50, burst=5), RedisStore, timeout 60",
    "pyrate:log": "RedisBucket, Rate(50, SECOND), blocking",
    "pyrate:token_bucket": "StateBucket(TokenBucket), RedisStateStore, Rate(50, SECOND, burst=5), blocking",
    "aiolimiter": "AsyncLimiter(5, 0.1): each process by itself",
}
PEERS = {
    "limits": "limits",
    "throttled": "throttled-py",
    "pyrate_limiter": "pyrate-limiter",
    "aiolimiter": "aiolimiter",
}
"""The module, and what installs it."""


@dataclass(frozen=True, slots=True)
class Run:
    went: list[Use]
    by_server: list[Use]
    took_s: float
    commands: int

    @property
    def per_s(self) -> float:
        return len(self.went) / self.took_s

    @property
    def commands_each(self) -> float:
        return self.commands / max(1, len(self.went))


def run(name: str, *, processes: int, takers: int, rate: int, burst: int, length_s: float) -> Run:
    """One limiter on a server of its own."""
    args = [name, "{url}", *map(str, (rate, burst, takers, length_s))]
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        args[1] = server.tcp_url
        probe = stack.enter_context(redis.Redis.from_url(server.url))
        children = [stack.enter_context(_child(args)) for _ in range(processes)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", f"{name} did not start"
        before = _calls(probe)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        told = [json.loads(child.communicate(timeout=length_s + 30)[0]) for child in children]
        commands = _calls(probe) - before

    def uses(what: str) -> list[Use]:
        return sorted(Use(at_us) for each in told for at_us in each[what])

    return Run(uses("went"), uses("by_server"), max(each["took_s"] for each in told), commands)


def _child(args: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.limiters", *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _calls(probe: Any) -> int:
    """The calls of all commands so far, those of scripts too, without those of connecting and of this look."""
    info = probe.info("commandstats")
    no_work = ("info", "hello", "client", "select", "ping", "script", "config")
    return sum(of["calls"] for name, of in info.items() if name.removeprefix("cmdstat_").split("|")[0] not in no_work)


@dataclass(frozen=True, slots=True)
class Round:
    alone: Run
    eight: Run
    full: Run


def measure(name: str) -> Round:
    plenty = {"rate": PLENTY, "burst": PLENTY, "length_s": FREE_S}
    return Round(
        alone=run(name, processes=1, takers=TAKERS, **plenty),  # type: ignore[arg-type]  # of two types
        eight=run(name, processes=8, takers=TAKERS, **plenty),  # type: ignore[arg-type]  # likewise
        full=run(name, processes=PROCESSES, takers=TAKERS, rate=RATE, burst=BURST, length_s=FULL_S),
    )


def report(rounds: dict[str, list[Round]]) -> None:
    allowed = Allowance(RATE, S, BURST)
    bound = BURST + RATE
    header = (
        *("limiter", "takes/s alone", "of eight", "commands"),
        *(f"most in 1 s, of {bound}", "over burst + rate·t", "used of 50/s", "commands, full"),
    )
    print(" | ".join(header))
    for name, these in rounds.items():
        fulls = [each.full for each in these]
        cells = [
            name,
            f"{_median(each.alone.per_s for each in these):,.0f}",
            f"{_median(each.eight.per_s for each in these):,.0f}",
            f"{_median(each.alone.commands_each for each in these):.1f}",
            f"{max(most_within(full.went, S) for full in fulls)}",
            f"{max(excess(full.went, allowed) for full in fulls):+.1f}",
            f"{_median(_used(full.went, allowed) for full in fulls):.0%}",
            f"{_median(full.commands_each for full in fulls):.1f}",
        ]
        print(" | ".join(cells))
        if all(full.by_server for full in fulls):
            worst = max(excess(full.by_server, allowed) for full in fulls)
            print(f"  {name} by the server's clock: {worst:+.6f} over burst + rate·t in the worst stretch")


def _used(uses: list[Use], allowed: Allowance) -> float:
    """Of the middle eight tenths."""
    first = uses[0].at_us if uses else 0
    return utilisation(uses, allowed, first + int(FULL_S * S * 0.1), first + int(FULL_S * S * 0.9))


def _median(values: Any) -> float:
    return float(statistics.median(values))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(MAKERS), help="limiters by name")
    args = parser.parse_args()
    missing = [package for module, package in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"the other limiters are no dependency of this project: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    chosen = args.only or list(MAKERS)
    rounds: dict[str, list[Round]] = {name: [] for name in chosen}
    for number in range(args.rounds):
        for name in chosen:  # in turn, so that the machine's moods meet all alike
            rounds[name].append(measure(name))
            print(f"round {number + 1} {name}: {rounds[name][-1].alone.per_s:,.0f} takes/s", file=sys.stderr)
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PEERS.values())
    print(
        f"\nPython {platform.python_version()}, redis-py {metadata.version('redis')}, {versions}\n"
        f"free: {TAKERS} takers a process, {FREE_S:g} s; full: {PROCESSES} processes of {TAKERS}, {RATE}/s, burst "
        f"{BURST}, {FULL_S:g} s. Medians of {args.rounds} rounds; the worst stretch is that of all of them\n"
    )
    report(rounds)
    print()
    for name in chosen:
        print(f"{name}: {CONFIGURATIONS[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
