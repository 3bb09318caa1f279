from __future__ import annotations

import pytest

from runtime.core.place import Place, place

DUE_MS = 1_795_000_000_000


@pytest.mark.parametrize("priority", [0, 1, 10, 999, 1000])
def test_a_score_says_when_it_was_due_and_which_priority_it_has(priority: int) -> None:
    score = f"{DUE_MS - priority * 2**33 + priority / 1024:.17g}"
    assert place(score) == Place(DUE_MS, priority)


@pytest.mark.parametrize(
    ("score", "due", "priority"),
    [
        (DUE_MS - 5000, DUE_MS - 5000, 0),
        (DUE_MS + 5000, DUE_MS + 5000, 0),
        (DUE_MS - 5000 - 7 * 2**33 + 7 / 1024, DUE_MS - 5000, 7),
        (DUE_MS + 5000 + 7 / 1024, DUE_MS + 5000, 7),
        (DUE_MS - 5000 + 7 / 1024, DUE_MS - 5000, 7),  # deferred with a priority, come due, not yet moved
    ],
)
def test_by_the_clock_a_score_says_it_also_while_the_job_is_deferred(score: float, due: float, priority: int) -> None:
    assert place(score, DUE_MS) == Place(due, priority)


@pytest.mark.parametrize("score", ["-inf", "inf", "nan", "", "x"])
def test_what_is_no_moment_says_nothing(score: str) -> None:
    assert place(score) is None


def test_a_fraction_that_is_not_ours_is_no_priority() -> None:
    assert place(f"{DUE_MS}.3") == Place(DUE_MS + 0.3, 0)
