"""Keeps actors alive: one that dies of a bug is started again, alone, after a growing pause; many that die end it."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import anyio

from runtime.engine.actor import Actor
from runtime.ports import Journal

RESTART_S = (0.1, 5.0)
CALM_S = 30.0
"""An actor that has run for this long is trusted again."""
INTENSITY = 5
"""Most crashes within `PERIOD_S`, of all actors together: one more, and the process is not trusted any longer."""
PERIOD_S = 30.0


def bug_of(error: Exception) -> Exception:
    """The exception itself, where task groups have wrapped it and nothing else."""
    if not isinstance(error, ExceptionGroup):
        return error
    group = cast("ExceptionGroup[Exception]", error)
    return bug_of(group.exceptions[0]) if len(group.exceptions) == 1 else group


class Supervisor:
    """One_for_one over the actors that `make` makes. It runs once; `drain` and `hurry` may be called at any time."""

    def __init__(self, make: Sequence[Callable[[], Actor]], journal: Journal) -> None:
        self._make = make
        self._journal = journal
        self._crashed_at: deque[float] = deque(maxlen=INTENSITY)
        self._begun = False
        self._goes_on = anyio.Event()
        self._goes_on.set()
        self.draining = False
        self.failure: Exception | None = None
        """The crash that was one too many: everything was given back because of it."""
        self.actors: list[Actor] = []

    async def run(self) -> None:
        """Return when every actor has drained, or was stopped because of too many crashes: see `failure`."""
        if self._begun:
            raise RuntimeError("a Supervisor runs once; make another one")
        self._begun = True
        async with anyio.create_task_group() as group:
            if self.draining:
                return
            for place, make in enumerate(self._make):
                self.actors.append(make())
                group.start_soon(self._keep_alive, place, make)

    async def _keep_alive(self, place: int, make: Callable[[], Actor]) -> None:
        delay_s, most_s = RESTART_S
        while True:
            began = anyio.current_time()
            try:
                await self.actors[place].run()
                return
            except Exception as group:
                error = bug_of(group)
                if self._one_too_many():
                    self.failure = self.failure or error
                    self.hurry()
                    return
                if anyio.current_time() - began > CALM_S:
                    delay_s = RESTART_S[0]
                self._journal.crashed(self.actors[place].name, error, delay_s)
            await anyio.sleep(0.0 if self.draining else delay_s * random.uniform(0.5, 1.0))
            if not self.draining:
                await self._goes_on.wait()
            if self.draining:
                return
            delay_s = min(2 * delay_s, most_s)
            self.actors[place] = make()

    def _one_too_many(self) -> bool:
        now = anyio.current_time()
        full = len(self._crashed_at) == INTENSITY and now - self._crashed_at[0] <= PERIOD_S
        self._crashed_at.append(now)
        return full

    def wake(self) -> None:
        """Let every actor look for jobs now."""
        for actor in self.actors:
            actor.wake()

    async def pause(self) -> None:
        """Claim nothing until `resume`, nor start an actor again that died; returns when no claim is on its way."""
        self._goes_on = anyio.Event()
        for actor in list(self.actors):
            await actor.pause()

    def resume(self) -> None:
        """Claim again."""
        self._goes_on.set()
        for actor in self.actors:
            actor.resume()

    def drain(self) -> None:
        """Stop pulling and let the work finish."""
        self.draining = True
        self._goes_on.set()
        for actor in self.actors:
            actor.drain()

    def hurry(self) -> None:
        """Wait no longer: cancel what runs and give it back."""
        self.draining = True
        self._goes_on.set()
        for actor in self.actors:
            actor.hurry()
