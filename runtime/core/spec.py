"""What a declaration says about a handler, as a value."""

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING

from runtime.core.limits import NOTHING, Wanted
from runtime.core.priority import Ranked
from runtime.core.quota import Quota
from runtime.core.retry import Retry
from runtime.core.values import frozen

if TYPE_CHECKING:
    from runtime.core.schedule import Misfire, Timetable

DEFAULT_QUEUE = "arq:queue"
"""arq's default: the queue's name is the Redis key of its sorted set, literally."""


@frozen
class Spec:
    """How jobs of one handler are to be run."""

    name: str
    """The name on the wire: the function's name, as in arq, or what `name=` said."""
    queue: str = DEFAULT_QUEUE
    timeout_s: float | None = None
    """Longest run; None takes the worker's setting."""
    retry: Retry = field(default_factory=Retry)
    priority: int | Ranked = 0
    keep_result_s: float = 3600.0
    unique_for_s: float = 0.0
    """For so long from its enqueue a job keeps its id for itself."""
    limit: Wanted = NOTHING
    """What each attempt takes before it runs; the permits are held until its end."""
    quota: Quota | None = None
    """How many of its jobs one user may enqueue."""
    timetable: "Timetable | None" = None
    """When it is run without being enqueued."""
    misfire: "Misfire" = "latest"
    shared_id: str | None = None
    """The id of all jobs that its timetable makes, where they share one."""
    where: str = ""
    """`file:line` of the declaration, for messages."""


def declared_at(function: Callable[..., object]) -> str:
    """`file:line` of what is called, for messages; `?` where none of it is in Python."""
    if isinstance(function, partial):
        return declared_at(function.func)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "?"
