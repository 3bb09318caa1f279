"""What stands around the runs of handlers, as it is declared."""

from collections.abc import Awaitable, Callable
from typing import Any

from runtime.core.values import frozen

CallNext = Callable[[], Awaitable[Any]]


@frozen
class Middleware:
    """What `@middleware` gives."""

    function: Callable[[Any, CallNext], Awaitable[Any]]
    name: str
    queue: str | None = None
    """Only the jobs of this queue; None: all."""
    where: str = ""
    """`file:line` of the declaration, for messages."""
