"""A pool of costly things, such as browsers, as it is declared; and what a worker counts of one."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, overload

from runtime.core.errors import HandlerInvalid
from runtime.core.values import frozen

T = TypeVar("T")

_YIELDS = 0x200  # CO_ASYNC_GENERATOR, as in the documentation of `inspect`


class Pool(Generic[T]):
    """At most `size` of these exist in one worker at any time, each lent to one block of `ctx.use(pool)` at a time.

    They are opened when first wanted. `open` gives, without arguments, an async context manager of the item, or an
    awaitable of it. With a context manager, leaving it closes the item. Otherwise `close(item)` does, or for want of it
    the item's own `aclose()` or `close()`; each may be async or not. An item is opened and closed in one task of its
    own, which is no job's: opening may take a minute, closing ten seconds.

    After `uses` uses an item is closed and replaced, and so it is when an exception leaves the block that used it, or
    the job is stopped in it: nobody knows its state then. `Snooze` and `RetryLater` are no such exceptions.

    The object is what handlers share, `name` is for people; a worker refuses a second pool of one name. Declaring has
    no side effect. Raises `HandlerInvalid`.
    """

    @overload
    def __init__(
        self, name: str, *, size: int, open: Callable[[], AbstractAsyncContextManager[T]], uses: int = 100
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        *,
        size: int,
        open: Callable[[], Awaitable[T]],
        close: Callable[[T], object] | None = None,
        uses: int = 100,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        *,
        size: int,
        open: Callable[[], Any],
        close: Callable[[Any], object] | None = None,
        uses: int = 100,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise HandlerInvalid(f"Pool({name!r:.40}): its name is a text", hint='e.g. Pool("chromium", …)')
        for option, number in (("size", size), ("uses", uses)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise HandlerInvalid(f"Pool({name!r}, {option}={number!r:.40}): {option} is a whole number from 1")
        if not callable(open):
            raise HandlerInvalid(
                f"Pool({name!r}, open={open!r:.40}): open is a function without arguments",
                hint="hand over the function itself, do not call it",
            )
        if getattr(getattr(open, "__code__", None), "co_flags", 0) & _YIELDS:
            raise HandlerInvalid(
                f"Pool({name!r}, open={open!r:.40}): a function that yields is no context manager yet",
                hint="decorate it with @contextlib.asynccontextmanager",
            )
        if close is not None and not callable(close):
            raise HandlerInvalid(f"Pool({name!r}, close={close!r:.40}): close is a function that takes the item")
        self.name = name
        self.size = size
        self.open = open
        self.close = close
        self.uses = uses

    def __repr__(self) -> str:
        return f"Pool({self.name!r}, size={self.size}, uses={self.uses})"


@frozen
class PoolStatistics:
    """A pool of one worker. What is of the moment comes first; the rest is counted since the worker started."""

    name: str
    size: int
    in_use: int
    idle: int
    """Open and waiting for a job. `size` less these two are free, or are being opened or closed."""
    waiting: int
    """Blocks that wait for an item."""
    opened: int
    recycled: int
    """Items replaced: used often enough, or left in an unknown state."""
    failed: int
    """Items that could not be opened or closed, or ended by themselves."""
