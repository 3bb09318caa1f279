"""The pools of one worker: items are opened when first wanted, lent to one block at a time, and replaced.

An item's life, all of it in one task:   opening → idle ⇄ lent → leaving → gone
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from contextvars import ContextVar, copy_context
from dataclasses import field
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from runtime.core.errors import HandlerInvalid
from runtime.core.policy import asks_for_another_run, describe
from runtime.core.pool import Pool, PoolStatistics
from runtime.core.values import record

T = TypeVar("T")

OPEN_S = 60.0
"""How long an item may take to open."""
CLOSE_S = 10.0
"""How long it may take to close; it is let go of after that."""
LAST_CLOSE_S = 5.0
"""How long all of them may take to close when the worker stops."""

_Life = Callable[[], Coroutine[Any, Any, None]]


@record
class _Item(Generic[T]):
    """One of the costly things, from its opening on."""

    state: Literal["opening", "idle", "lent", "leaving"] = "opening"
    uses: int = 0
    value: T = field(init=False)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Around its whole life: leaving it before those that the item has opened inside it would break them."""
    left: anyio.Event = field(default_factory=anyio.Event)
    """Set: nobody will use it any more."""


@record
class _Waiter(Generic[T]):
    """Somebody who waits for an item, and what came of it."""

    answered: anyio.Event = field(default_factory=anyio.Event)
    item: _Item[T] | None = None
    error: Exception | None = None


class Pools:
    """`ports.Pools`. Items live in the task of `run`; `warn` is told of troubles that no job will tell."""

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn
        self._stocks: dict[str, _Stock[Any]] = {}
        self._group: TaskGroup | None = None
        self._closing = anyio.Event()

    async def run(self) -> None:
        """Own the items; return once `close` was called and the last of them is closed. Call it once."""
        self._context = copy_context()
        async with anyio.create_task_group() as self._group:
            await self._closing.wait()

    def close(self) -> None:
        """Close all items, lent ones too, at once and within `LAST_CLOSE_S`. From now on `take` raises."""
        self._closing.set()
        for stock in self._stocks.values():
            stock.close(anyio.current_time() + LAST_CLOSE_S)

    def close_idle(self) -> None:
        """Close what nobody uses: it may hold connections. What is wanted later is opened anew."""
        for stock in self._stocks.values():
            stock.close_idle()

    async def take(self, pool: Pool[T]) -> AbstractContextManager[T]:
        """An item for one block, which is to be entered at once. Who waits is served in order of arrival.

        Raises what `pool.open` raised (for whoever waited longest), `TimeoutError` if it took too long, `RuntimeError`
        where the wait could never end. May be cancelled; an item that is being opened is then for the next one.
        """
        if self._group is None or self._closing.is_set():
            raise RuntimeError(f"pool {pool.name}: the worker is not running")
        stock = self._stocks.get(pool.name)
        if stock is None:
            stock = self._stocks[pool.name] = _Stock(pool, self._start, self._warn)
        if stock.pool is not pool:
            raise HandlerInvalid(
                f"two pools are named {pool.name!r}", hint="share one object, or give one of them another name"
            )
        if stock.held_here() >= pool.size:
            raise RuntimeError(
                f"pool {pool.name}: this job holds all {pool.size} itself and would wait for ever; "
                "leave the block of one before another is asked for"
            )
        return _Loan(stock, await stock.take())

    def statistics(self) -> Sequence[PoolStatistics]:
        """Of each pool that was used so far."""
        return [stock.statistics() for stock in self._stocks.values()]

    def _start(self, life: _Life) -> None:
        # Not in the context of the job that happens to ask: the item outlives it.
        assert self._group is not None
        self._context.copy().run(self._group.start_soon, life)


class _Stock(Generic[T]):
    """The items of one pool, and who waits for them."""

    def __init__(self, pool: Pool[T], start: Callable[[_Life], None], warn: Callable[[str], object]) -> None:
        self.pool = pool
        self._start = start
        self._warn = warn
        self._items: list[_Item[T]] = []
        """All that exist, whatever their state: never more than `size`."""
        self._waiting: deque[_Waiter[T]] = deque()
        self._end_at = math.inf
        self._opened = self._recycled = self._failed = 0

    async def take(self) -> _Item[T]:
        waiter = _Waiter[T]()
        self._waiting.append(waiter)
        self._match()
        try:
            await waiter.answered.wait()
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        assert waiter.item is not None
        return waiter.item

    def give_back(self, item: _Item[T], *, sound: bool) -> None:
        item.uses += 1
        if item.state != "lent":  # it ended by itself, or the worker is closing
            return
        if sound and item.uses < self.pool.uses:
            item.state = "idle"
        else:
            self._recycled += 1
            self._dismiss(item)
        self._match()

    def close(self, end_at: float) -> None:
        self._end_at = end_at
        while self._waiting:
            self._refuse(self._waiting.popleft(), RuntimeError(f"pool {self.pool.name}: the worker stops"))
        for item in self._items:
            item.scope.deadline = min(item.scope.deadline, end_at)
            self._dismiss(item)

    def close_idle(self) -> None:
        for item in self._items:
            if item.state == "idle":
                self._dismiss(item)

    def held_here(self) -> int:
        """Items that the present task holds, or those whose blocks it was started in."""
        return sum(loan.stock is self and not loan.over for loan in _loans.get())

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            name=self.pool.name,
            size=self.pool.size,
            in_use=self._count("lent"),
            idle=self._count("idle"),
            waiting=len(self._waiting),
            opened=self._opened,
            recycled=self._recycled,
            failed=self._failed,
        )

    def _count(self, state: str) -> int:
        return sum(item.state == state for item in self._items)

    # Who gets what.

    def _match(self) -> None:
        """Hand idle items to who waits, and open as many more as are wanted and have a place."""
        idle = [item for item in self._items if item.state == "idle"]
        while self._waiting and idle:
            self._lend(idle.pop(), self._waiting.popleft())
        wanted = len(self._waiting) - self._count("opening")
        for _ in range(min(wanted, self.pool.size - len(self._items))):
            item = _Item[T]()
            item.scope.deadline = self._by(OPEN_S)
            self._items.append(item)
            self._start(partial(self._live, item))

    def _lend(self, item: _Item[T], waiter: _Waiter[T]) -> None:
        item.state = "lent"
        waiter.item = item
        waiter.answered.set()

    def _refuse(self, waiter: _Waiter[T], error: Exception) -> None:
        waiter.error = error
        waiter.answered.set()

    def _withdraw(self, waiter: _Waiter[T]) -> None:
        """It was cancelled, perhaps in the moment in which it was answered: then the item was not used."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.item is not None and waiter.item.state == "lent":
            waiter.item.state = "idle"
            self._match()

    def _dismiss(self, item: _Item[T]) -> None:
        if item.state != "opening":  # else it is dismissed once it is open
            item.state = "leaving"
        item.left.set()

    def _by(self, limit_s: float) -> float:
        return min(anyio.current_time() + limit_s, self._end_at)

    # An item's task.

    async def _live(self, item: _Item[T]) -> None:
        try:
            with item.scope:
                async with _opened(self.pool) as item.value:
                    await checkpoint_if_cancelled()  # an `open` may have swallowed that its time was over
                    self._enter(item)
                    try:
                        await item.left.wait()
                    finally:  # also where a task group of its own ends it
                        item.state = "leaving"
                        item.scope.deadline = self._by(CLOSE_S)
            self._check(item)
        except BaseException as error:  # a SystemExit that left the task would end the event loop
            self._fail(item, error)
        self._items.remove(item)
        self._match()

    def _check(self, item: _Item[T]) -> None:
        if item.scope.cancelled_caught:
            what = "open" if item.state == "opening" else "close"
            raise TimeoutError(f"pool {self.pool.name}: an item did not {what} in time")
        if not item.left.is_set():
            raise RuntimeError("its context manager came to its end")

    def _enter(self, item: _Item[T]) -> None:
        self._opened += 1
        item.state = "idle"
        item.scope.deadline = self._end_at
        self._match()

    def _fail(self, item: _Item[T], error: BaseException) -> None:
        self._failed += 1
        if item.state == "opening" and self._waiting:
            text = f"pool {self.pool.name}: an item could not be opened: {type(error).__name__}"
            self._refuse(self._waiting.popleft(), error if isinstance(error, Exception) else RuntimeError(text))
            return
        closing = "could not be closed" if item.left.is_set() else "ended by itself"
        what = "could not be opened" if item.state == "opening" else closing
        failure = describe(error)
        self._warn(f"An item of the pool {self.pool.name} {what}: {failure.error}: {failure.text}")


_loans: ContextVar[tuple["_Loan[Any]", ...]] = ContextVar("runtime_loans", default=())


class _Loan(AbstractContextManager[T]):
    """An item for one block."""

    def __init__(self, stock: _Stock[T], item: _Item[T]) -> None:
        self.stock = stock
        self.over = False
        self._item = item

    def __enter__(self) -> T:
        _loans.set((*_loans.get(), self))
        return self._item.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over = True
        _loans.set(tuple(loan for loan in _loans.get() if loan is not self))
        self.stock.give_back(self._item, sound=error is None or asks_for_another_run(error))


@asynccontextmanager
async def _opened(pool: Pool[T]) -> AsyncGenerator[T]:
    opening = pool.open()
    if isinstance(opening, AbstractAsyncContextManager) and pool.close is None:
        async with cast("AbstractAsyncContextManager[T]", opening) as item:
            yield item
    elif isinstance(opening, Awaitable):
        item = await cast("Awaitable[T]", opening)
        try:
            yield item
        finally:
            closed = _close(pool, item)
            if isinstance(closed, Awaitable):
                await closed
    else:
        kind = type(cast("object", opening)).__name__
        wanted = "an awaitable" if pool.close else "an awaitable or an async context manager"
        raise TypeError(f"pool {pool.name}: its open gave {kind}, not {wanted}")


def _close(pool: Pool[T], item: T) -> object:
    if pool.close is not None:
        return pool.close(item)
    close = getattr(item, "aclose", None) or getattr(item, "close", None)
    return None if close is None else close()
