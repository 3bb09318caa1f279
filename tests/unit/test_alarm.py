"""When to wake, and when to look again."""

from __future__ import annotations

import pytest

from runtime.core.alarm import Calls, Need, next_look_s

EMPTY = Need("q", due=False, awake=0, next_in_s=None)
CALLING = Need("q", due=True, awake=0, next_in_s=None)
SERVED = Need("q", due=True, awake=1, next_in_s=None)
DEFERRED = Need("q", due=False, awake=0, next_in_s=2.5)


@pytest.mark.parametrize(
    ("needs", "hears", "in_s"),
    [
        ([], True, 60),
        ([EMPTY], True, 60),
        ([EMPTY], False, 5),
        ([EMPTY, DEFERRED], True, 2.5),
        ([DEFERRED], False, 2.5),
        ([CALLING], True, 5),
        ([SERVED], True, 5),
    ],
)
def test_the_next_look_is_when_something_can_have_changed(needs: list[Need], hears: bool, in_s: float) -> None:
    assert next_look_s(needs, hears=hears) == in_s


def test_only_a_queue_that_calls_is_rung_for() -> None:
    calls = Calls()
    assert calls.answer([EMPTY, SERVED, DEFERRED], 0) == []
    assert calls.answer([CALLING], 0) == ["q"]


def test_a_ring_in_vain_is_repeated_ever_more_rarely() -> None:
    calls = Calls()
    rung_at = [now for now in range(4000) if calls.answer([CALLING], now)]
    assert rung_at == [0, 30, 90, 210, 450, 930, 1830, 2730, 3630]


@pytest.mark.parametrize("between", [EMPTY, SERVED, DEFERRED])
def test_once_it_has_helped_the_next_is_at_once(between: Need) -> None:
    calls = Calls()
    assert calls.answer([CALLING], 0)
    assert not calls.answer([CALLING], 1)
    assert not calls.answer([between], 2)
    assert calls.answer([CALLING], 3)


def test_each_queue_has_its_own_pause() -> None:
    calls = Calls()
    other = Need("other", due=True, awake=0, next_in_s=None)
    assert calls.answer([CALLING], 0) == ["q"]
    assert calls.answer([CALLING, other], 1) == ["other"]
    assert calls.answer([CALLING, other], 30) == ["q"]
