"""The buckets' scripts and `bucket_model.py` agree after every step of any history; and no window ever holds too much.

`make model` is the longer campaign: other histories at each run (a failing one is printed as a program).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import floor
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime.adapters.redis import keys
from runtime.core.limits import Answer, Bucket, Granted, Refused, Reserved, Rule
from tests.redis import bucket_model as model
from tests.redis.bucket_model import EARLY, LATE, State, Use, Verdict, Witness
from tests.redis.buckets import Buckets, Kept, Stored
from tests.redis.store import Store

T = TypeVar("T")

# Some with a token in no whole number of microseconds, some that take longer than any history.
RATES = (("1/s", 1), ("7/3s", 3), ("10/s", 10), ("7/m", 20), ("999/10s", 50), ("3000/s", 1), ("60000/m", 90))
AGES_MS = (1, 7, 40, 333, 900, 2_500, 31_000)
KINDS = ("reservations", "several", "settles", "lower", "close", "other rules", "turned clocks", "keys", "deaths")
numbers = st.integers(0, 30)


@dataclass
class Tap:
    """A bucket: as declared, as the model has it, and what was used of it."""

    bucket: Bucket
    rule: Rule
    witness: Witness
    state: State = field(default_factory=State)

    def begin_anew(self, its: Rule) -> None:
        """By another rule. What was granted or promised by the one before is no matter of this one."""
        self.rule, self.witness = its, Witness(its)


@dataclass
class Call:
    """What somebody was told."""

    costs: dict[int, int]
    id: str
    at_us: int
    """When it is granted, or reserved for."""
    reserved: bool
    settled: bool = False
    """Or of another clock, by which nobody can tell."""


class Histories(RuleBasedStateMachine):
    """Any order of what takers and operators do, on a few buckets. Each history is without some kinds of steps."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        store.raw.flushall()
        self.buckets = Buckets(store)
        self.store = store
        self.taps: list[Tap] = []
        self.calls: list[Call] = []
        self.exact = True
        """Nothing has been corrected: whatever could be given is."""

    @initialize(
        rates=st.lists(st.sampled_from(RATES), min_size=3, max_size=3), off=st.sets(st.sampled_from(KINDS), max_size=7)
    )
    def begin(self, rates: list[tuple[str, int]], off: set[str]) -> None:
        self.off = off
        for name, (rate, burst) in zip("abc", rates, strict=True):
            bucket = Bucket(name, rate, burst)
            self.taps.append(Tap(bucket, bucket.rule, Witness(bucket.rule)))

    # -- what is there afterwards

    def _now(self, n: int) -> int | None:
        """When the last script wrote this bucket."""
        stored = self.buckets.stored(self.taps[n].bucket)
        return None if stored is None else stored.at

    def _play(self, touched: list[int], play: Callable[[int], T]) -> T:
        """Let the model do what a script has just done, and see that both have come to the same."""
        now = self._now(touched[0])
        assert now is not None, "it wrote nothing"
        for n in touched:
            self._arrive(self.taps[n], now)
        answer = play(now)
        for n in touched:
            tap = self.taps[n]
            assert self.buckets.stored(tap.bucket) == as_stored(tap, now)
        return answer

    def _change(self, n: int, change: Callable[[State, Rule, int], State]) -> None:
        tap = self.taps[n]

        def play(now: int) -> None:
            tap.state = change(tap.state, tap.rule, now)

        self._play([n], play)

    def _arrive(self, tap: Tap, now: int) -> None:
        if 1000 * -(-model.till(tap.state, tap.rule, tap.state.at) // 1000) + 1000 <= now:
            tap.state = State()  # it has expired, to the ms
        if tap.state.at > now:
            back = tap.state.at - now  # a clock turned back: no time has gone by since
            tap.witness.moved(lambda t: t - back)
            for call in self.calls:
                call.settled = True  # its moments are of another clock

    @invariant()
    def no_window_holds_too_much(self) -> None:
        for tap in self.taps:
            assert (overrun := tap.witness.overrun()) is None, f"{tap.bucket.label}: {overrun}"

    # -- takers

    @rule(
        which=st.sets(st.integers(0, 2), min_size=1),
        parts=st.lists(st.integers(1, 100), min_size=3, max_size=3),
        patience_s=st.sampled_from([0, 0, 0.2, 5, 1000]),
    )
    def take(self, which: set[int], parts: list[int], patience_s: float) -> None:
        chosen = sorted(which) if "several" not in self.off else [min(which)]
        costs = {n: max(1, self.taps[n].bucket.rule.burst * parts[n] // 100) for n in chosen}
        self._take(costs, 0 if "reservations" in self.off else patience_s, None)

    @rule(which=numbers, late_ms=st.sampled_from([-400, -249, -100, 0, 1, 20, 48, 51, 700, 1100]), wait=st.booleans())
    def ask_again(self, which: int, late_ms: int, wait: bool) -> None:
        """When its time has come, or sooner, or later."""
        waiting = sorted(self._waiting(), key=lambda call: call.at_us)
        if not waiting:
            return  # no precondition: real time goes by too, and it is not the same in each run of a history
        call = waiting[which % len(waiting)] if which > 20 else waiting[0]
        if wait:
            seconds, micros = self.store.redis.time()
            left_ms = (call.at_us - (seconds * 1_000_000 + micros)) / 1000 + late_ms
            if left_ms > 0:
                self._time_passes(round(left_ms))
        self._take(call.costs, 1000, call)

    def _take(self, costs: dict[int, int], patience_s: float, held: Call | None) -> None:
        asked = {self.taps[n].bucket: cost for n, cost in costs.items()}
        answer = self.buckets.take(asked, patience_s, held=held.id if held else "")

        def play(now: int) -> tuple[Verdict, int]:
            verdict, states = model.take(
                [self.taps[n].state for n in costs], [self.taps[n].rule for n in costs], list(costs.values()), now,
                getattr(answer, "id", ""), round(patience_s * 1e6), held.id if held else "",
            )  # fmt: skip
            for n, state in zip(costs, states, strict=True):
                self.taps[n].state = state
            return verdict, now

        verdict, now = self._play(list(costs), play)
        assert _as_told(answer, now) == _as_told_by(verdict)
        self._note(answer, verdict, now, costs, held)

    def _note(self, answer: Answer, verdict: Verdict, now: int, costs: dict[int, int], held: Call | None) -> None:
        if held and isinstance(answer, Granted) and answer.id == held.id:
            assert held.settled or held.at_us - EARLY <= now <= held.at_us + LATE
            held.reserved, held.at_us = False, answer.at_us
            for n in costs:
                for use in self.taps[n].witness.uses:
                    use.sure |= use.id == held.id
            return
        if held:
            self._drop(held)
        self._is_the_first_moment(verdict, now, costs)
        if isinstance(answer, Refused):
            return
        at_us = now + verdict.us
        self.calls.append(Call(costs, answer.id, at_us, isinstance(answer, Reserved)))
        for n, cost in costs.items():
            witness = self.taps[n].witness  # what is more than it holds is given by a full bucket
            witness.uses.append(Use(answer.id, at_us, min(cost, witness.rule.burst), isinstance(answer, Granted)))

    def _is_the_first_moment(self, verdict: Verdict, now: int, costs: dict[int, int]) -> None:
        """All together could have had it no sooner: told by the windows alone, without the model."""
        if not self.exact or verdict.what == "dry":
            return
        t = now + verdict.us
        assert self._all_could_give(costs, t, now)
        others = {use.t for n in costs for use in self.taps[n].witness.uses}
        for sooner in {now, t - 1, *others, *(other - 1 for other in others)}:
            if now <= sooner < t:
                assert not self._all_could_give(costs, sooner, now), f"{t - sooner} us too late"

    def _all_could_give(self, costs: dict[int, int], t: int, now: int) -> bool:
        return all(self.taps[n].witness.could_give(cost, t, now) for n, cost in costs.items())

    def _drop(self, call: Call) -> None:
        self.calls.remove(call)
        for n in call.costs:
            uses = self.taps[n].witness.uses
            uses[:] = [use for use in uses if use.id != call.id]

    @rule(which=numbers)
    def leave(self, which: int) -> None:
        waiting = self._waiting()
        if not waiting:
            return
        call = waiting[which % len(waiting)]
        before = {n: self._now(n) for n in call.costs}
        self.buckets.leave({self.taps[n].bucket: cost for n, cost in call.costs.items()}, call.id)
        for n in call.costs:
            if self._now(n) != before[n]:
                self._change(n, partial(model.left, id=call.id))
        self._drop(call)

    @precondition(lambda self: "deaths" not in self.off)
    @rule(which=numbers)
    def die(self, which: int) -> None:
        """It never asks again. What it has reserved stays, until it is seen that nobody comes for it."""
        if waiting := self._waiting():
            self.calls.remove(waiting[which % len(waiting)])

    def _waiting(self) -> list[Call]:
        return [call for call in self.calls if call.reserved]

    # -- corrections

    @precondition(lambda self: "settles" not in self.off)
    @rule(which=numbers, percent=st.sampled_from([-100, -100, -70, -40, -1, 30, 250]))
    def settle(self, which: int, percent: int) -> None:
        unsettled = [call for call in self.calls if not call.reserved and not call.settled]
        if not unsettled:
            return
        call = unsettled[which % len(unsettled)]
        call.settled, self.exact = True, False
        for n, cost in call.costs.items():
            tap, more = self.taps[n], cost * percent // 100
            self.buckets.settle({tap.bucket: more}, call.at_us)
            if more == 0:
                continue
            more = max(more, -tap.bucket.rule.burst)  # by a rule that is another since, there may be no such cost
            refunds: list[int] = []
            self._change(n, partial(model.settle, more=more, granted=call.at_us, refunds=refunds))
            refunded = sum(refunds)
            assert refunded <= cost
            for use in tap.witness.uses:
                use.n -= refunded if use.id == call.id else 0

    @precondition(lambda self: "lower" not in self.off)
    @rule(n=st.integers(0, 2), percent=st.integers(-10, 120))
    def lower(self, n: int, percent: int) -> None:
        tap = self.taps[n]
        left = tap.bucket.rule.burst * percent // 100
        self.buckets.lower({tap.bucket: left})
        if left < tap.bucket.rule.burst:
            self.exact = False
            self._change(n, partial(model.lower, left=max(0, left)))

    @precondition(lambda self: "close" not in self.off)
    @rule(n=st.integers(0, 2), ms=st.sampled_from([0, 1, 250, 4_000]))
    def close(self, n: int, ms: int) -> None:
        tap = self.taps[n]
        self.exact = False
        self.buckets.close({tap.bucket: 1}, ms / 1000)
        if self._now(n) is None:  # for so short a time that it is over, and with it all that was known
            tap.state = State()
        else:
            self._change(n, partial(model.close, us=ms * 1000))
        kept = {one.id for one in tap.state.reserved}
        tap.witness.uses = [use for use in tap.witness.uses if use.sure or use.id in kept]

    # -- operators, deploys and time

    @precondition(lambda self: "other rules" not in self.off)
    @rule(n=st.integers(0, 2), rate=st.sampled_from(RATES), deployed=st.booleans())
    def change_rule(self, n: int, rate: tuple[str, int], deployed: bool) -> None:
        """By an operator; or another deploy declares it so, until an operator says otherwise."""
        tap, self.exact = self.taps[n], False
        other = Bucket(tap.bucket.name, *rate)
        if deployed:
            tap.bucket = other
            self.buckets.set_rule(tap.bucket, None)
        else:
            its = other.rule
            self.buckets.set_rule(tap.bucket, f"{its.count}:{its.period_us}:{its.burst} by an operator")
        tap.begin_anew(other.rule)

    @rule(ms=st.sampled_from(AGES_MS))
    def time_passes(self, ms: int) -> None:
        self._time_passes(ms)

    def _time_passes(self, ms: int) -> None:
        self.buckets.age(ms)
        self._move(-ms * 1000)
        for tap in self.taps:
            if tap.state.at and self.buckets.stored(tap.bucket) is None:
                assert model.till(tap.state, tap.rule, tap.state.at) <= 1000 * self.store.now_ms(), (
                    "it expired too soon"
                )
                tap.state = State()

    def _move(self, us: int) -> None:
        for tap in self.taps:
            tap.state = _moved(tap.state, us)
            tap.witness.moved(lambda t: t + us)
        for call in self.calls:
            call.at_us += us

    @precondition(lambda self: "turned clocks" not in self.off)
    @rule(ms=st.sampled_from([3, 500, 70_000]))
    def clock_is_turned_back(self, ms: int) -> None:
        self.exact = False
        self.buckets.age(-ms)
        self._move(ms * 1000)

    @precondition(lambda self: "keys" not in self.off)
    @rule(n=st.integers(0, 2), spoiled=st.booleans())
    def key_is_lost(self, n: int, spoiled: bool) -> None:
        """By a flush, or by somebody's list of the same name: the bucket is full."""
        tap = self.taps[n]
        tap.state = State()
        tap.begin_anew(tap.rule)
        self.exact = False
        key = keys.bucket(tap.bucket.label)
        self.store.redis.delete(key)
        if spoiled:
            self.store.redis.rpush(key, "spoiled")
            self.store.redis.expire(key, 3600)
            self.buckets.grant({tap.bucket: 1})
            self.store.redis.delete(key)


def _moved(state: State, us: int) -> State:
    if not state.at:
        return state

    def move(t: int) -> int:
        return max(0, t + us) if t else 0

    return replace(
        state, at=move(state.at), full=state.full + us if state.full else state.full, closed=move(state.closed),
        cursor=move(state.cursor), last=move(state.last),
        marks=tuple((move(t), move(would)) for t, would in state.marks),
        reserved=tuple(replace(one, t=one.t + us) for one in state.reserved),
    )  # fmt: skip


def as_stored(tap: Tap, now: int) -> Stored:
    """What the model says that the server should have, to the microsecond."""
    state, its = tap.state, tap.rule
    whole = floor(state.full)
    return Stored(
        now, whole, int((state.full - whole) * its.count), its, state.closed, state.cursor, state.last,
        state.marks, tuple(Kept(one.id, one.t, one.n, one.sure) for one in state.reserved),
        -(-model.till(state, its, now) // 1000),
    )  # fmt: skip


def _as_told(answer: Answer, now: int) -> tuple[str, int, str]:
    match answer:
        case Granted():
            assert answer.rest_s == max(0, answer.at_us - now) / 1e6
            return "granted", answer.at_us - now, answer.id
        case Reserved():
            return "reserved", round(answer.wait_s * 1e6), answer.id
        case Refused():
            return "dry", round(answer.wait_s * 1e6), ""


def _as_told_by(verdict: Verdict) -> tuple[str, int, str]:
    return verdict.what, verdict.us, verdict.id


def test_scripts_and_the_model_agree_and_no_window_of_a_bucket_holds_too_much(store: Store) -> None:
    examples = int(os.environ.get("MODEL_EXAMPLES", 0))
    run_state_machine_as_test(
        lambda: Histories(store),  # type: ignore[arg-type]  # documented as a factory
        settings=settings(
            max_examples=examples or 120,
            stateful_step_count=40,
            derandomize=not examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
