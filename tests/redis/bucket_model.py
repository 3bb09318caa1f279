"""Buckets as they are meant to be, in exact fractions: what `lua/schedule.lua` and the scripts on it promise.

No Redis and no clock: `now` (us) is given to every call. `Witness` knows nothing of how a bucket is kept: it is the
list of what was used, and the windows over it. Both are the oracles of `test_bucket_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor

from runtime.core.limits import Rule

EARLY, LATE, SLACK, SPREAD = 250_000, 50_000, 1_000_000, 60_000_000
MOST_PAST, MOST_RESERVED, MOST_MARKS = 100, 500, 4


@dataclass(frozen=True)
class Reservation:
    id: str
    t: int
    n: int
    sure: bool = False


@dataclass(frozen=True)
class State:
    """One bucket. `full`: when it would be full, without what is reserved; exact."""

    at: int = 0
    full: Fraction = Fraction(0)
    rule: Rule | None = None
    """By which it was used."""
    closed: int = 0
    cursor: int = 0
    last: int = 0
    marks: tuple[tuple[int, int], ...] = ()
    reserved: tuple[Reservation, ...] = ()


def each_us(rule: Rule) -> Fraction:
    """How long one token takes to flow in."""
    return Fraction(rule.period_us, rule.count)


def used(full: Fraction, rule: Rule, t: int, n: int) -> Fraction:
    return max(full, Fraction(t)) + n * each_us(rule)


def in_time(full: Fraction, rule: Rule, t: int, n: int) -> bool:
    """Whether a use of n at t leaves no debt, if the bucket will be full then."""
    return full <= t + max(rule.burst, n) * each_us(rule)


def till(state: State, rule: Rule, now: int) -> int:
    """Until when it is kept."""
    full = state.full
    for one in state.reserved:
        full = used(full, rule, one.t, one.n)
    return max(floor(full) + 1, state.closed, state.cursor, now + SLACK) + (SLACK if state.reserved else 0)


def spend(state: State, rule: Rule, t: int, n: int) -> State:
    marks = list(state.marks) if state.full >= t + 1 else []  # a bucket that is full by then begins anew
    if t >= state.last and (not marks or t - marks[-1][0] >= rule.burst * each_us(rule) / 2):
        marks = [*marks[-(MOST_MARKS - 1) :], (t, t)]
    marks = [(since, ceil(used(Fraction(would), rule, t, n))) for since, would in marks]
    return replace(state, full=used(state.full, rule, t, n), last=max(state.last, t), marks=tuple(marks))


def seen_at(state: State, rule: Rule, now: int) -> State:
    """The bucket as who comes now finds it."""
    if state.at > now:
        back = state.at - now
        state = replace(
            state, full=max(Fraction(0), state.full - back), closed=max(0, state.closed - back),
            cursor=max(0, state.cursor - back), last=max(state.last, state.at + 1), marks=(),
            reserved=tuple(replace(one, t=one.t - back) for one in state.reserved),
        )  # fmt: skip
    if state.rule not in (None, rule):
        state = _obeying(state, rule, now)
    state = replace(state, rule=rule)
    crowd = len(state.reserved) >= MOST_PAST and state.reserved[MOST_PAST - 1].t <= now
    left: list[Reservation] = []
    reserved, state = state.reserved, replace(state, at=now)
    for one in reserved:
        if not one.sure and one.t < now - (LATE if crowd else SLACK):
            continue
        if one.sure and one.t <= now and not left:
            state = spend(state, rule, one.t, one.n)
        else:
            left.append(one)
    return replace(state, reserved=tuple(left))


def _obeying(state: State, rule: Rule, now: int) -> State:
    """By another rule from now on, or from when it is open: with the tokens that it would have had, if they fit.

    Reckoned in floats, as the script does: it may be a microsecond off, and no promise spans a change of rules.
    """
    was = state.rule
    assert was is not None
    since = max(now, state.closed)
    used = float(max(Fraction(0), (state.full - since) * was.count)) / was.period_us
    missing = max(0.0, used + rule.burst - was.burst)
    full = Fraction(since + min(2**51, ceil(missing * rule.period_us / rule.count)))
    return replace(state, full=full, last=max(state.last, now), marks=())


def earliest(state: State, rule: Rule, since: int, n: int) -> int:
    """Gap by gap between what is reserved: the first moment in it at which there is enough, if that hinders nobody."""
    since, full = max(since, state.closed), state.full
    for i in range(len(state.reserved) + 1):
        if i:
            full = used(full, rule, state.reserved[i - 1].t, state.reserved[i - 1].n)
            since = max(since, state.reserved[i - 1].t)
        there = max(since, ceil(full + (n - max(rule.burst, n)) * each_us(rule)))
        is_last = i == len(state.reserved)
        if (is_last or there < state.reserved[i].t) and not _hinders(state.reserved[i:], rule, full, there, n):
            return there
    raise AssertionError("after all that is reserved nobody is hindered")


def _hinders(others: Sequence[Reservation], rule: Rule, full: Fraction, t: int, n: int) -> bool:
    with_it = used(full, rule, t, n)
    for one in others:
        full, with_it = used(full, rule, one.t, one.n), used(with_it, rule, one.t, one.n)
        if not in_time(with_it, rule, one.t, one.n):
            return True
        if full == with_it:
            return False
    return False


def booked(state: State, one: Reservation) -> State:
    later = [other for other in state.reserved if other.t > one.t]
    return replace(state, reserved=(*state.reserved[: len(state.reserved) - len(later)], one, *later))


def without(state: State, id: str) -> State:
    return replace(state, reserved=tuple(one for one in state.reserved if one.id != id))


def found(state: State, id: str) -> Reservation | None:
    return next((one for one in state.reserved if one.id == id), None)


@dataclass(frozen=True)
class Verdict:
    what: str
    us: int = 0
    which: int = 0
    id: str = ""


def take(
    states: Sequence[State], rules: Sequence[Rule], costs: Sequence[int], now: int, id: str, patience: int, held: str
) -> tuple[Verdict, list[State]]:
    states = [seen_at(state, rule, now) for state, rule in zip(states, rules, strict=True)]
    mine = [found(state, held) for state in states]
    if all(one is not None and now - LATE <= one.t <= now + EARLY for one in mine):
        sure = [replace(one, sure=True) for one in mine if one is not None]
        states = [_swapped(state, one) for state, one in zip(states, sure, strict=True)]
        return Verdict("granted", max(one.t for one in sure) - now, 0, held), states
    states = [without(state, held) for state in states]
    t, latest = now, 0
    while True:
        before = t
        for i, (state, rule, n) in enumerate(zip(states, rules, costs, strict=True)):
            if (first := earliest(state, rule, t, n)) > t:
                t, latest = first, i + 1
        if t == before:
            break
    if t - now > patience or (t > now and any(len(state.reserved) >= MOST_RESERVED for state in states)):
        return _refused(states, rules, costs, now, t, latest)
    states = [booked(state, Reservation(id, t, n, t == now)) for state, n in zip(states, costs, strict=True)]
    if t == now:
        states = [seen_at(state, rule, now) for state, rule in zip(states, rules, strict=True)]
    return Verdict("granted" if t == now else "reserved", t - now, latest, id), states


def _refused(
    states: list[State], rules: Sequence[Rule], costs: Sequence[int], now: int, t: int, latest: int
) -> tuple[Verdict, list[State]]:
    state, rule = states[latest - 1], rules[latest - 1]
    back = max(t, state.cursor)
    if back > t + SPREAD:
        back = t
    states[latest - 1] = replace(state, cursor=back + floor(costs[latest - 1] * each_us(rule)))
    return Verdict("dry", back - now, latest), states


def _swapped(state: State, by: Reservation) -> State:
    return replace(state, reserved=tuple(by if one.id == by.id else one for one in state.reserved))


def settle(state: State, rule: Rule, now: int, more: int, granted: int, refunds: list[int]) -> State:
    """`refunds` gets the tokens that were refunded."""
    state = seen_at(state, rule, now)
    if more >= 0:
        return spend(state, rule, now, more)
    n, least, older = -more, 0, len(state.marks)
    if granted < state.last:
        before = [i for i, (since, _) in enumerate(state.marks) if since <= granted]
        if not before:
            return state
        older = before[-1]
        least = state.marks[older][1]
        n = min(n, floor(max(0, floor(state.full) - least) / each_us(rule)))
    back = n * each_us(rule)
    marks = [(since, max(least, would - floor(back)) if i < older else would)
             for i, (since, would) in enumerate(state.marks)]  # fmt: skip
    full = state.full - back
    refunds.append(n)
    return replace(state, full=full if full >= now else Fraction(now), marks=tuple(marks))


def lower(state: State, rule: Rule, now: int, left: int) -> State:
    return _leave_only(seen_at(state, rule, now), rule, left, now)


def close(state: State, rule: Rule, now: int, us: int) -> State:
    state = seen_at(state, rule, now)
    closed = max(state.closed, now + us)
    state = replace(state, closed=closed, reserved=tuple(one for one in state.reserved if one.sure))
    return _forget(_leave_only(state, rule, 1, closed), closed)


def _leave_only(state: State, rule: Rule, left: int, t: int) -> State:
    full = t + max(0, rule.burst - left) * each_us(rule)
    if full <= state.full:
        return state
    return _forget(replace(state, full=full), t)


def _forget(state: State, t: int) -> State:
    return replace(state, last=max(state.last, t), marks=())


def left(state: State, rule: Rule, now: int, id: str) -> State:
    return without(seen_at(state, rule, now), id)


@dataclass
class Use:
    id: str
    t: int
    n: int
    sure: bool
    """Else it is reserved, and perhaps will be used."""


@dataclass
class Witness:
    """What was used of a bucket, and what is promised; told by answers alone."""

    rule: Rule
    uses: list[Use] = field(default_factory=list)

    def overrun(self) -> str | None:
        """The worst window of all, if it holds more than burst + rate·t."""
        uses = sorted((use for use in self.uses if use.n), key=lambda use: use.t)
        for i, first in enumerate(uses):
            total = 0
            for use in uses[i:]:
                total += use.n
                if not self._allows(total, use.t - first.t):
                    return f"{total} tokens in {use.t - first.t} us, by {self.rule}"
        return None

    def _allows(self, tokens: int, us: int) -> bool:
        return tokens * self.rule.period_us <= self.rule.burst * self.rule.period_us + us * self.rule.count

    def could_give(self, n: int, t: int, now: int) -> bool:
        """Whether a use of n at t would be in no window that is too full; who is dead by now has used nothing."""
        there = [use for use in self.uses if use.n and (use.sure or use.t >= now - SLACK)]
        before, after = [0], [0]
        gaps_before, gaps_after = [0], [0]
        for use in sorted((use for use in there if use.t <= t), key=lambda use: -use.t):
            before.append(before[-1] + use.n)
            gaps_before.append(t - use.t)
        for use in sorted((use for use in there if use.t > t), key=lambda use: use.t):
            after.append(after[-1] + use.n)
            gaps_after.append(use.t - t)
        return all(
            self._allows(one + n + other, gap + later)
            for one, gap in zip(before, gaps_before, strict=True)
            for other, later in zip(after, gaps_after, strict=True)
        )

    def moved(self, move: Callable[[int], int]) -> None:
        for use in self.uses:
            use.t = move(use.t)
