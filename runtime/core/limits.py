"""Limits as values: what a bucket allows, how many may hold a permit, and what comes of asking."""

import math
import re
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import field
from typing import Any, Literal, Self

from runtime.core.errors import LimitInvalid
from runtime.core.span import Span, seconds, spell
from runtime.core.text import one_line
from runtime.core.values import frozen

YEAR_S = 366 * 86_400.0
MOST_EXACT = 2**51
"""The store counts in doubles, in which whole numbers are exact up to four times this: now in microseconds (less than
one of these until 2041), a bucket that is empty, and as much again for who waits for all that it holds."""
_RATE = re.compile(r"(\d{1,15})\s*/\s*([\d.]*\s*(?:ms|s|m|h|d))", re.ASCII)


@frozen
class Rule:
    """`count` tokens flow in, in `period_us` microseconds (in lowest terms); at most `burst` stay."""

    count: int
    period_us: int
    burst: int

    @property
    def rate_s(self) -> float:
        """Tokens a second."""
        return self.count * 1e6 / self.period_us

    def __str__(self) -> str:
        return f"{spell_rate(self)}, burst {self.burst}"


def rule(count: int, period_s: float, burst: int) -> Rule:
    """Raises `ValueError` with what it breaks."""
    for name, number in (("the rate", count), ("burst", burst)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r:.40}, and must be a whole number from 1")
    if not 0.001 <= period_s <= YEAR_S:
        raise ValueError(f"its period is {spell(period_s)}, and must be from a millisecond to a year")
    return _exact(count, round(period_s * 1_000_000), burst)


def changed(its: Rule, rate: tuple[int, float] | None, burst: int | None) -> Rule:
    """`its`, but for what is given: a rate as `parse_rate` reads it, a burst. Raises `ValueError` as `rule` does."""
    burst = its.burst if burst is None else burst
    if rate is not None:
        return rule(*rate, burst)
    rule(1, 1.0, burst)
    return _exact(its.count, its.period_us, burst)


def _exact(count: int, period_us: int, burst: int) -> Rule:
    common = math.gcd(count, period_us)
    count, period_us = count // common, period_us // common
    if max(count, burst + 1) * period_us > MOST_EXACT:
        raise ValueError(f"a burst of {burst} at this rate cannot be counted exactly: give a rounder rate")
    return Rule(count, period_us, burst)


def parse_rate(text: object) -> tuple[int, float]:
    """Tokens, and the seconds in which they flow in, of a text such as "500/m" or "10/30s". Raises `ValueError`."""
    found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"rate={text!r:.40} is no rate: write for example '10/s', '500/m', '180/60s' or '10000/d'")
    period = found[2].replace(" ", "")
    return int(found[1]), seconds(period if period[0].isdigit() else f"1{period}")


def spell_rate(its: Rule) -> str:
    """A rate as people write it, by the shortest unit in which it is a whole number."""
    for unit, length_us in (("s", 10**6), ("m", 60 * 10**6), ("h", 3600 * 10**6), ("d", 86400 * 10**6)):
        if its.count * length_us % its.period_us == 0:
            return f"{its.count * length_us // its.period_us}/{unit}"
    return f"{its.count}/{its.period_us / 1e6:g}s"


class Keyed:
    """A limit: it has a name, and may be had for each key."""

    __slots__ = ("key", "name")

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise LimitInvalid(
                f"{name!r:.80} is no name of a limit",
                hint="1 to 64 letters, digits, '.', '_' and '-', such as openai.tokens",
            )
        self.name = name
        self.key: str | None = None
        """Whose it is, of those that share the declaration."""

    def __getitem__(self, key: str) -> Self:
        """The limit of this key alone, with the same numbers: `judit["tenant-42"]`. Raises `LimitInvalid`."""
        if self.key is not None:
            raise LimitInvalid(f"{self.name!r} has a key already", hint="take the key of the limit as declared")
        if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY or any("\ud800" <= c <= "\udfff" for c in key):
            raise LimitInvalid(f"a key of {self.name!r} is a text of 1 to {LONGEST_KEY} characters")
        keyed = copy(self)
        keyed.key = key
        return keyed

    @property
    def label(self) -> str:
        """Its name, with its key."""
        return self.name if self.key is None else f"{self.name}[{self.key}]"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
LONGEST_KEY = 256


class Bucket(Keyed):
    """A token bucket that all workers share: `rate` flows in, at most `burst` tokens stay in it, and it begins full.

    In any stretch of t seconds it gives at most burst + rate·t tokens, by the clock of the server. `rate` is a text
    such as "500/m" (s, m, h, d, or a length of time: "10/30s"); without `burst` it holds what flows in in that time.
    Declaring has no side effect. Raises `LimitInvalid`.
    """

    __slots__ = ("rule",)

    def __init__(self, name: str, rate: str, burst: int | None = None) -> None:
        super().__init__(name)
        try:
            count, period_s = parse_rate(rate)
            self.rule = rule(count, period_s, count if burst is None else burst)
        except ValueError as error:
            raise LimitInvalid(f"Bucket({name!r}): {error}") from None

    @classmethod
    def window(cls, name: str, limit: int, *, per: Span, burst: int = 1) -> Self:
        """For a provider that allows `limit` in any stretch of `per`: a bucket of (limit - burst) in that time.

        A bucket gives up to burst + rate·per in such a stretch, which is `limit` so. A small burst leaves a high rate.
        Raises `LimitInvalid`.
        """
        bucket = cls.__new__(cls)
        Keyed.__init__(bucket, name)
        try:
            if not isinstance(limit, int) or not isinstance(burst, int) or burst >= limit:
                raise ValueError(
                    f"burst={burst!r} leaves nothing of limit={limit!r}: its rate is the limit less the burst"
                )
            bucket.rule = rule(limit - burst, seconds(per), burst)
        except (TypeError, ValueError) as error:
            raise LimitInvalid(f"Bucket.window({name!r}): {error}") from None
        return bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bucket) and (self.label, self.rule) == (other.label, other.rule)

    def __hash__(self) -> int:
        return hash((self.label, self.rule))

    def __repr__(self) -> str:
        return f"<Bucket {one_line(self.label)}: {self.rule}>"


MOST_PERMITS = 1000


class Concurrency(Keyed):
    """At most `most` jobs hold a permit at once, in all workers together; the others wait, first come, first served.

    A permit is valid as long as its job's lease: those of a dead worker are free when its leases have lapsed. Where two
    declarations differ (a rolling deploy lowers `most`), a job gets in by its own, and no holder is thrown out. Jobs
    hold permits, calls do not: a job that asks for what it holds already gets `LimitInvalid`, as it would wait for
    itself. Declaring has no side effect. Raises `LimitInvalid`.
    """

    __slots__ = ("most",)

    def __init__(self, name: str, most: int) -> None:
        super().__init__(name)
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_PERMITS:
            raise LimitInvalid(
                f"Concurrency({name!r}): it is {most!r:.40}, and must be a whole number from 1 to {MOST_PERMITS}"
            )
        self.most = most

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Concurrency) and (self.label, self.most) == (other.label, other.most)

    def __hash__(self) -> int:
        return hash((self.label, self.most))

    def __repr__(self) -> str:
        return f"<Concurrency {one_line(self.label)}: {self.most}>"


Costs = Mapping[Bucket, int]


@frozen
class Wanted:
    """What a job asks for at once."""

    permits: tuple[Concurrency, ...]
    """By label: all take them in this order, so that no two that ask for the same can wait for each other."""
    costs: Costs


NOTHING = Wanted((), {})


def wanted(what: Mapping[Any, Any]) -> Wanted:
    """`what` without that of which nothing is taken. Raises `LimitInvalid` for what could never be had."""
    if not isinstance(what, Mapping) or not all(isinstance(limit, Keyed) for limit in what):
        raise LimitInvalid("a limit is a Bucket or a Concurrency, or a mapping of these to what is taken of each")
    for limit, cost in what.items():
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
            raise LimitInvalid(f"{limit.label}: a cost is a whole number from 0, not {cost!r:.40}")
        if isinstance(limit, Concurrency) and cost > 1:
            raise LimitInvalid(f"{limit.label}: {cost} permits are more than the one that a job can hold")
        if isinstance(limit, Bucket) and cost > limit.rule.burst:
            raise LimitInvalid(
                f"{limit.label}: {cost} tokens at once are more than it ever holds ({limit.rule.burst})",
                hint="split the work, or declare the bucket with a larger burst",
            )
    permits = [limit for limit, cost in what.items() if isinstance(limit, Concurrency) and cost]
    costs = {limit: cost for limit, cost in what.items() if isinstance(limit, Bucket) and cost}
    for some in (permits, costs):
        if len({limit.label for limit in some}) < len(some):
            raise LimitInvalid("one limit is named twice, with different numbers")
    return Wanted(tuple(sorted(permits, key=lambda limit: limit.label)), costs)


def one_each(limit: Keyed | Iterable[Keyed]) -> Wanted:
    """What a handler's `limit=` takes for each attempt. Raises `LimitInvalid`."""
    return wanted(dict.fromkeys([limit] if isinstance(limit, Keyed) else limit, 1))


@frozen
class Reserved:
    """Tokens are set aside for a moment to come. They are to be asked for again then; else they go to others."""

    id: str
    wait_s: float
    by: str
    """The label of the bucket that has them latest."""


@frozen
class Granted:
    """Tokens may be used, in `rest_s`."""

    at_us: int
    """When, by the server's clock."""
    rest_s: float = 0.0
    id: str = ""
    probe: bool = False
    """This is the one call that finds out whether a broken provider works again."""
    watched: bool = False
    """The breaker has counted failures: it is to hear of a success."""


@frozen
class Refused:
    """Nothing was taken: it would have to be waited for too long (`full`: others hold all permits), or the breaker is
    open."""

    wait_s: float
    """When it is worth asking again."""
    by: str
    why: Literal["dry", "open", "full"]


Answer = Reserved | Granted | Refused


@frozen
class Permit:
    """What a job holds of a `Concurrency`, to be given back."""

    limit: Concurrency
    token: str
    """Of the claim that it is valid with."""
    text: bytes = field(repr=False)
    """As the store has it: no other permit is the same."""
