"""Virtual time: what is to happen next happens at once, and the clock says that it is the time for it."""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
from collections.abc import Callable
from typing import Any, Protocol

EPOCH_S = 1_800_000_000


class Clock:
    """The time, in seconds since the history began. Stands for the module `time` in what is simulated."""

    def __init__(self) -> None:
        self.now = 0.0
        self.behind_s = 0.0
        """So much less than others has whoever takes his turn now seen pass: his machine stood still."""

    def monotonic(self) -> float:
        return self.now - self.behind_s

    def time_ns(self) -> int:
        return round((EPOCH_S + self.now) * 1e9)


class Turns(Protocol):
    """Who does something at a time, one after the other."""

    def next_at(self) -> float:
        """When there is something to do, in the clock's time; infinity: not as far as known."""
        ...

    def step(self) -> None: ...


class Agenda:
    """Calls to be made at a time; those of one time in the order in which they were put down."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def after(self, delay_s: float, call: Callable[[], object]) -> None:
        self.at(self._clock.now + delay_s, call)

    def at(self, when: float, call: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._calls, (when, self._count, call))

    def next_at(self) -> float:
        return self._calls[0][0] if self._calls else math.inf

    def step(self) -> None:
        heapq.heappop(self._calls)[2]()


class _NoSockets:
    def select(self, timeout: float | None) -> list[Any]:
        return []


class Loop(asyncio.BaseEventLoop):
    """An event loop without sockets that goes on only by `step`. Its clock may be behind."""

    def __init__(self, clock: Clock, broken: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._clock = clock
        self._selector = _NoSockets()
        self.behind_s = 0.0
        self.set_exception_handler(lambda _, context: broken(context))

    def time(self) -> float:
        return self._clock.now - self.behind_s

    def next_at(self) -> float:
        this: Any = self
        if this._ready:
            return self._clock.now
        # A little late, as always: never by the error of a sum too early.
        return max(this._scheduled[0].when() + self.behind_s, self._clock.now) + 1e-6 if this._scheduled else math.inf

    def step(self) -> None:
        """Everything that is to be done now, once."""
        self.stop()
        self.run_forever()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class Strand:
    """A thread that runs only in its turns, while everybody else waits for it."""

    def __init__(self, clock: Clock, target: Callable[[], None]) -> None:
        self._clock = clock
        self._go, self._gone = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=[target], daemon=True)
        self._killed = False
        self._error: BaseException | None = None
        self.waits_for: object = None
        self.wake_at = math.inf
        self.ended = False

    def begin(self) -> None:
        self.wake_at = self._clock.now
        self._thread.start()

    def next_at(self) -> float:
        return math.inf if self.ended else self.wake_at

    def step(self) -> None:
        self._go.release()
        self._gone.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let it end where it waits."""
        self._killed = True
        if not self.ended and self._thread.is_alive():
            self.step()

    def rest(self, until: float, waits_for: object = None) -> None:
        """For the thread itself: wait until then, or for `stir` with the same thing."""
        self.wake_at, self.waits_for = until, waits_for
        self._gone.release()
        self._go.acquire()
        self.waits_for = None
        if self._killed:
            raise SystemExit

    def stir(self, thing: object) -> None:
        if self.waits_for is thing:
            self.wake_at = self._clock.now

    def _run(self, target: Callable[[], None]) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                target()
        except SystemExit:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.ended = True
            self._gone.release()


class Threads:
    """Stands for the module `threading` in what is simulated: one thread for each worker. `strand` is whose turn it is,
    `adopt` gets a new one."""

    Lock = threading.Lock

    def __init__(self, clock: Clock, adopt: Callable[[Strand], None]) -> None:
        self._clock = clock
        self._adopt = adopt
        self.strand: Strand | None = None

    def Event(self) -> _Event:
        return _Event(self._clock, self)

    def Thread(self, *, target: Callable[[], None], name: str, daemon: bool) -> _Thread:
        strand = Strand(self._clock, target)
        self._adopt(strand)
        return _Thread(strand, self)


class _Event:
    def __init__(self, clock: Clock, threads: Threads) -> None:
        self._clock = clock
        self._threads = threads
        self._set = False
        self._waiting: Strand | None = None

    def set(self) -> None:
        self._set = True
        if self._waiting is not None:
            self._waiting.stir(self)

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        strand = self._waiting = self._threads.strand
        assert strand is not None
        if not self._set:
            strand.rest(math.inf if timeout is None else self._clock.now + timeout, self)
        return self._set


class _Thread:
    def __init__(self, strand: Strand, threads: Threads) -> None:
        self._strand = strand
        self._threads = threads
        self.ident: int | None = None

    def start(self) -> None:
        self.ident = 1
        self._strand.begin()

    def is_alive(self) -> bool:
        return self.ident is not None and not self._strand.ended

    def join(self, timeout: float) -> None:
        self._threads.strand = self._strand
        self._strand.step()
        self._threads.strand = None
