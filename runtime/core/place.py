"""A job's place in its queue: a score that says when it was due and which priority it has."""

import math
from dataclasses import dataclass

_STEP_MS = 2.0**33


@dataclass(frozen=True, slots=True)
class Place:
    """A score `due - p*2^33 + p/1024`, taken apart (as `common.lua` puts it together)."""

    due_ms: float
    priority: int


def place(score: str) -> Place | None:
    """What the score of a claimed job says; None for one that says no moment (anybody may have written it)."""
    try:
        value = float(score)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    priority = (value % 1) * 1024
    if priority != int(priority):
        return Place(value, 0)  # somebody else's fraction
    return Place(value + priority * _STEP_MS - priority / 1024, int(priority))
