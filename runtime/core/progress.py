"""How far a job is: what its handler may say of it, and what others see."""

from datetime import datetime

from runtime.core.errors import ProgressInvalid
from runtime.core.values import frozen

NOTE_LIMIT = 200
"""As much of a note is shown, once it is redacted."""
LARGEST = 2**53
"""Beyond it not every reader of JSON has the number."""


@frozen
class Progress:
    """How far a job is, as the run that goes on has told."""

    done: float
    total: float | None
    """What `done` will be at the end, as far as the handler knows."""
    note: str
    at: datetime
    """When it was written down, by the server's clock: up to a second after it was told, longer while Redis is away."""


def check(done: float, total: float | None, note: str) -> None:
    """Raises `ProgressInvalid` for what cannot be shown."""
    _check_number("done", done)
    if total is not None:
        _check_number("total", total)
    if not isinstance(note, str):
        raise ProgressInvalid(f"progress: note is text, not a {type(note).__name__}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ProgressInvalid(f"progress: {name} is a number, not a {type(value).__name__}")
    if not 0 <= value <= LARGEST:  # nor is NaN
        raise ProgressInvalid(f"progress: {name} is a number from 0 to 2^53")
