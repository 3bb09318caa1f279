"""How the stand-ins count, at times that the tests choose."""

import pytest

from tests.standins.limits import Refill, SlidingWindow
from tests.standins.openai import go_duration


def test_a_window_lets_hits_out_one_by_one_as_they_grow_old() -> None:
    window = SlidingWindow(3, 60.0)
    assert [window.hit(now) for now in (0.0, 10.0, 20.0)] == [0.0, 0.0, 0.0]
    assert window.hit(30.0) == pytest.approx(30.0)
    assert window.remaining(59.9) == 0
    assert window.hit(60.0) == 0.0
    assert window.hit(60.0) == pytest.approx(10.0)


def test_a_refused_hit_does_not_make_the_window_fuller() -> None:
    window = SlidingWindow(1, 1.0)
    window.hit(0.0)
    assert all(window.hit(now / 10) > 0 for now in range(1, 10))
    assert window.hit(1.0) == 0.0


def test_no_window_of_any_phase_holds_more_than_the_limit() -> None:
    window = SlidingWindow(7, 1000)
    taken = [tick for tick in range(0, 20_000, 3) if window.hit(tick) == 0.0]
    assert max(sum(start <= at < start + 1000 for at in taken) for start in taken) == 7


def test_a_bucket_refills_without_steps() -> None:
    bucket = Refill(60, 60.0, now=0.0)
    assert bucket.take(60, 0.0) == 0.0
    assert bucket.level(0.5) == pytest.approx(0.5)
    assert bucket.take(1, 0.5) == pytest.approx(0.5)
    assert bucket.take(1, 1.0) == 0.0
    assert bucket.full_in(1.0) == pytest.approx(60.0)


def test_who_waits_as_long_as_the_bucket_says_is_let_in() -> None:
    bucket, now = Refill(7, 3.0, now=0.0), 0.0
    for _ in range(1000):
        wait = bucket.take(1, now)
        if wait:
            now += wait
            assert bucket.take(1, now) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.012, "12ms"),
        (0.0121, "13ms"),
        (1.0, "1s"),
        (1.2, "1.2s"),
        (59.9999, "1m0s"),
        (90.951, "1m30.951s"),
        (360.0, "6m0s"),
        (3723.0, "1h2m3s"),
        (3600.0, "1h0m0s"),
    ],
)
def test_a_duration_reads_as_go_prints_it_and_is_never_too_short(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
