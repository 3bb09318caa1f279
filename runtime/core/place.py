"""A job's place in its queue: a score that says when it was due and which priority it has."""

import math

from runtime.core.values import frozen

_STEP_MS = 2.0**33


@frozen
class Place:
    """A score `due - p*2^33 + p/1024` of a job that is due, taken apart (as `common.lua` puts it together)."""

    due_ms: float
    priority: int


def place(score: str | float, now_ms: float = math.inf) -> Place | None:
    """What a job's score says; None for one that says no moment (anybody may have written it).

    A job that is deferred, or has come due and was not claimed since, does not yet have the place of its priority: its
    score is `due + p/1024`. `now_ms`, by the server's clock, tells these apart; a claimed job is none of them.
    """
    try:
        value = float(score)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    priority = (value % 1) * 1024
    if priority != int(priority):
        return Place(value, 0)  # somebody else's fraction
    moved = now_ms - value >= _STEP_MS
    return Place(value + moved * priority * _STEP_MS - priority / 1024, int(priority))
