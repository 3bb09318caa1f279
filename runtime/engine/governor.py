"""Puts a worker to sleep when nothing keeps it awake, and wakes it when somebody rings."""

import math
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Protocol

import anyio

from runtime.core.lifecycle import (
    Change,
    Event,
    Hold,
    Kind,
    Reason,
    Standing,
    State,
    after,
    away,
    held_by,
    holding,
    reasons,
    worth_telling,
)
from runtime.engine.statistics import Statistics
from runtime.engine.supervisor import Supervisor
from runtime.ports import Away, Stillness

START_LOOK_S = 0.02
LOOK_S = 0.25
"""How often it is looked whether anything goes on in this process; nothing is sent for that."""
TURN_S = 10.0
"""How long a worker that was called is given for its first claim before it counts as awake all the same."""
HISTORY = 20
"""Changes that are remembered."""
USUAL: Set[Kind] = frozenset[Kind]({"lately"})
"""What every worker waits for that is to sleep. It is told of only when something else has held it before."""


class Told(Protocol):
    """Who is told of changes: the state, and why; also while it stays awake, when something else holds it."""

    def __call__(self, state: State, why: str) -> None: ...


class Governor:
    """Owns the state. Without `sleep_after_s` it never sleeps, and only follows the start."""

    def __init__(
        self,
        supervisor: Supervisor,
        stillness: Stillness,
        statistics: Statistics,
        away: Callable[[], str | None],
        *,
        sleep_after_s: float | None,
        alarm_s: float | None,
        told: Told,
    ) -> None:
        self._supervisor = supervisor
        self._stillness = stillness
        self._statistics = statistics
        self._begun = 0
        self._away = away
        self._sleep_after_s = sleep_after_s
        self._alarm_s = alarm_s
        self._told = told
        self._called = anyio.Event()
        self._active_at = 0.0
        self._held: Reason | None = None
        self._holds: Sequence[Hold] = ()
        self._told_of: Set[Kind] = USUAL
        self._told_at = -math.inf
        self.history: deque[Change] = deque(maxlen=HISTORY)
        """What has changed lately, the oldest first. That it was drowsy is not told: what came of it is."""
        self.state: State = "starting"
        self.since = anyio.current_time()
        """When it came into this state, monotonic; not kept for `stopping`."""
        self.next_due_in_s: float | None = None
        """What was due next when it went quiet."""

    def call(self) -> None:
        """Somebody rang, or wants something of this worker: be awake. From any state, as often as you like."""
        self._called.set()

    @property
    def holds(self) -> Sequence[Hold]:
        """What keeps it awake, and since when."""
        return holding(self._holds, self._reasons(), anyio.current_time())

    @property
    def why(self) -> list[str]:
        """What keeps it awake, for people."""
        return [hold.reason.text for hold in self.holds]

    def _reasons(self) -> Sequence[Reason]:
        if self.state in ("quiet", "stopping"):
            return []
        if self._sleep_after_s is None:
            return [Reason("unset", "it is not to sleep: RUNTIME_SLEEP_AFTER is not set")]
        standing = self._standing()
        if self._held is not None:
            return reasons(replace(standing, quiet_in_s=0.0)) or [self._held]
        return reasons(standing)

    async def run(self) -> None:
        """Until cancelled, or told to stop. A bug in it, which it raises, leaves the worker awake for good."""
        self._active_at = anyio.current_time()
        while not any(turn_at is not None for turn_at in self._turns()):
            await anyio.sleep(START_LOOK_S)
        self._happened("turned", "the first claim was made")
        self._holds = self.holds
        if self._sleep_after_s is None:
            return
        try:
            await self._take_turns()
        except Exception:
            await self._stay_awake()
            raise

    async def _take_turns(self) -> None:
        while True:
            await self._idle()
            if self.state == "stopping":
                return
            if await self._fall_asleep():
                await self._called.wait()
                await self._wake_up()
            self._active_at = anyio.current_time()

    async def _idle(self) -> None:
        """Return when nothing has gone on here for long enough, or when the worker is told to stop."""
        while self.state != "stopping":
            if self._called.is_set():
                self._called = anyio.Event()
                self._active_at = anyio.current_time()
            begun, self._begun = self._begun, self._statistics.begun
            if self._busy() or self._begun > begun or self._away() is not None:
                self._active_at = anyio.current_time()
                self._held = None
            elif not reasons(self._standing()):
                return
            self._look_what_holds()
            await anyio.sleep(LOOK_S)

    def _look_what_holds(self) -> None:
        self._holds = self.holds
        news = worth_telling(self._holds, self._told_of, self._told_at, anyio.current_time())
        if news:
            self._told_of = {hold.reason.kind for hold in news}
            why = "; ".join(hold.reason.text for hold in news)
            self._remember(why)
            self._told(self.state, why)

    async def _fall_asleep(self) -> bool:
        """Nobody is to count on us first, and then we look; who writes after that look rings."""
        self._happened("idle", "nothing to do")
        await self._supervisor.pause()
        try:
            held = await self._look()
        except Away as cause:
            held = away(cause.cause)
        if self.state == "drowsy" and held is None and not self._called.is_set():
            self._held = None
            self._happened("clear", "no job is due")
            self._holds = ()
            try:
                await self._stillness.fall_silent()
            except Away as cause:
                self._held = away(cause.cause)
                self._called.set()
            return True
        self._held = held
        await self._stillness.speak()
        self._supervisor.resume()
        if held is None:
            self._happened("called", "somebody rang")
        else:
            self._happened("held", held.text, {held.kind})
        return False

    async def _look(self) -> Reason | None:
        """What holds it back, when nobody counts on it any more; None: nothing. Raises `Away`."""
        await self._stillness.leave()
        if self._busy():  # asked first: nothing begins during a pause, and what ends after this the store tells of
            return Reason("came", "a job came")
        due = await self._stillness.due_in()
        self.next_due_in_s = None if due is None else due.in_s
        return held_by(due, self._alarm_s)

    async def _stay_awake(self) -> None:
        """Whatever has failed, jobs are not to wait for ever."""
        self._held = Reason("broken", "going quiet has failed")
        self._happened("called", self._held.text)
        self._happened("turned", self._held.text)
        try:
            await self._stillness.speak()
        finally:  # not before: handlers need their state
            self._supervisor.resume()

    async def _wake_up(self) -> None:
        self._called = anyio.Event()
        turns = self._turns()
        self._happened("called", self._held.text if self._held is not None else "somebody rang")
        await self._stillness.speak()
        self._supervisor.resume()
        with anyio.move_on_after(TURN_S):
            while self._turns() == turns:
                await anyio.sleep(0.01)
        self._happened("turned", "it looks for jobs")

    def _happened(self, event: Event, why: str, held: Set[Kind] = USUAL) -> None:
        """`held` is what holds it awake now."""
        before, self.state = self.state, after(self.state, event)
        if self.state in (before, "stopping"):  # to stop is told outside of any task, where there is no clock
            return
        self.since = anyio.current_time()
        known = event == "held" and held == self._told_of
        if self.state == "drowsy" or known:
            return
        self._told_of = held
        self._remember(why)
        if before != "starting":
            self._told(self.state, why)

    def _remember(self, why: str) -> None:
        self._told_at = anyio.current_time()
        self.history.append(Change(self.state, why, self._told_at))

    def stop(self) -> None:
        """The worker is told to stop."""
        self._happened("stop", "told to stop")

    def _turns(self) -> list[float | None]:
        return [actor.puller.turn_at for actor in self._supervisor.actors]

    def _busy(self) -> bool:
        return any(actor.slots.claims or actor.unsettled for actor in self._supervisor.actors)

    def _standing(self) -> Standing:
        idle_s = anyio.current_time() - self._active_at
        return Standing(
            running=sum(len(actor.slots.claims) for actor in self._supervisor.actors),
            unsettled=sum(len(actor.unsettled) for actor in self._supervisor.actors),
            away=self._away(),
            quiet_in_s=max(0.0, (self._sleep_after_s or 0.0) - idle_s),
        )
