"""The state that the handlers of a worker share, as it is declared."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, NoReturn, TypeVar, cast

from runtime.core.errors import HandlerInvalid, LifespanMissing
from runtime.core.spec import declared_at

S = TypeVar("S")

OPEN_S = 60.0
"""How long a lifespan may take to open."""
CLOSE_S = 5.0
"""How long it may take to close; it is let go of after that."""
_YIELDS = 0x200  # CO_ASYNC_GENERATOR, as in the documentation of `inspect`


class Lifespan(Generic[S]):
    """What `@lifespan` gives: opens the state by running `function` to its `yield`, closes it by what follows that."""

    def __init__(
        self, function: Callable[[], AsyncIterator[S]], *, open_s: float = OPEN_S, close_s: float = CLOSE_S
    ) -> None:
        self.open_s = open_s
        self.close_s = close_s
        code = getattr(function, "__code__", None)
        self.name = str(getattr(function, "__name__", function))
        self.where = declared_at(function)
        self.function = function
        self.opened: Callable[[], AbstractAsyncContextManager[S]] = asynccontextmanager(
            cast("Callable[[], AsyncGenerator[S]]", function)
        )
        """The state for a block."""
        self.__doc__ = function.__doc__
        if not getattr(code, "co_flags", 0) & _YIELDS:
            raise HandlerInvalid(
                f"{self} is no async generator",
                hint="write `async def` with one `yield` of the state, and leave out @asynccontextmanager",
            )
        if code is not None and code.co_argcount + code.co_kwonlyargcount:
            raise HandlerInvalid(f"{self} takes arguments", hint="it is called without any")

    def __str__(self) -> str:
        return f"the lifespan {self.name!r} at {self.where}"

    def __repr__(self) -> str:
        return f"<Lifespan {self.name} at {self.where}>"


def no_state() -> NoReturn:
    """Where no lifespan is declared there is none."""
    raise LifespanMissing
