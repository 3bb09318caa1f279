"""The judge of the limits: pure functions of what was granted and of what arrived at the provider.

The witnesses are outside Redis, because Redis and what we keep in it are what is tried: every taker appends its grants
to a file, a line each, before it makes use of them; the stand-in logs what arrives. All times are whole microseconds.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """Tokens that were granted, or used, at a moment."""

    at_us: int
    cost: int = 1
    caller: str = ""
    """Which grant it is, of those of a run: it comes to the provider with the request."""
    status: int = 0
    """What the provider answered; 0 for a grant."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """At most burst + count/period·t tokens in any stretch of t."""

    count: int
    period_us: int
    burst: int

    def in_time(self, length_us: float) -> float:
        """What flows in meanwhile."""
        return self.count * length_us / self.period_us


def excess(uses: Iterable[Use], allowed: Allowance, tolerance_us: int = 0) -> float:
    """By how many tokens the worst of all stretches, ends included, was over what is allowed; below zero if none was.

    As a use may have been noted earlier or later than it was, a stretch counts as longer by `tolerance_us`. The sums
    are whole numbers, so that one token in 10^9 is seen.
    """
    taken, least, worst = 0, 0, -(allowed.burst + 1) * allowed.period_us
    for use in sorted(uses):
        flowed_in = allowed.count * use.at_us
        before = taken * allowed.period_us - flowed_in
        least = min(least, before) if taken else before
        taken += use.cost
        worst = max(worst, taken * allowed.period_us - flowed_in - least)
    return (worst - allowed.count * tolerance_us - allowed.burst * allowed.period_us) / allowed.period_us


def most_within(uses: Iterable[Use], length_us: int) -> int:
    """The most tokens in any stretch of this length, without its end: what a provider with a sliding window counts."""
    inside: deque[Use] = deque()
    taken = most = 0
    for use in sorted(uses):
        inside.append(use)
        taken += use.cost
        while inside[0].at_us <= use.at_us - length_us:
            taken -= inside.popleft().cost
        most = max(most, taken)
    return most


def utilisation(uses: Iterable[Use], allowed: Allowance, since_us: int, until_us: int) -> float:
    """The share of what flowed in from one moment to the other that was used."""
    used = sum(use.cost for use in uses if since_us <= use.at_us < until_us)
    return used / allowed.in_time(until_us - since_us)


def quiet_us(uses: Iterable[Use], since_us: int, until_us: int) -> int:
    """The longest time between them without a use."""
    within = sorted(use.at_us for use in uses if since_us <= use.at_us < until_us)
    return max(after - before for before, after in pairwise([since_us, *within, until_us]))


def delays_us(grants: Iterable[Use], arrivals: Iterable[Use]) -> list[int]:
    """How long after its grant each request arrived, in order of size. Raises `ValueError` for one without a grant."""
    granted = {grant.caller: grant.at_us for grant in grants}
    uses = list(arrivals)
    without = [use.caller for use in uses if use.caller not in granted]
    if without:
        raise ValueError(f"{len(without)} requests without a grant: {without[:5]}")
    return sorted(use.at_us - granted[use.caller] for use in uses)


def quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def count(uses: Iterable[Use], *statuses: int) -> int:
    return sum(use.status in statuses for use in uses)


class Witness:
    """A folder with a file of grants for every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pen(self) -> Callable[[Use], None]:
        """What a process notes its grants with: a SIGKILL cuts no line short."""
        file = os.open(self.folder / f"{os.getpid()}.grants", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

        def note(use: Use) -> None:
            os.write(file, f"{use.at_us} {use.cost} {use.caller}\n".encode())

        return note

    def grants(self) -> list[Use]:
        lines = (line.split() for path in self.folder.glob("*.grants") for line in path.read_text().splitlines())
        return sorted(Use(int(at_us), int(cost), caller) for at_us, cost, caller in lines)


def arrived(log: Iterable[Mapping[str, Any]]) -> list[Use]:
    """What a stand-in's log says, in order."""
    return sorted(
        Use(round(entry["time"] * 1e6), entry["cost"], entry["caller"] or "", entry["status"]) for entry in log
    )
