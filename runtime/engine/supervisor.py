"""Keeps actors alive: one that dies of a bug is started again, alone, after a growing pause."""

import random
from collections.abc import Callable

import anyio

from runtime.engine.actor import Actor
from runtime.ports import Journal

RESTART_S = (0.1, 5.0)
CALM_S = 30.0
"""An actor that has run for this long is trusted again."""


class Supervisor:
    """One_for_one over the actors that `make` makes."""

    def __init__(self, make: list[Callable[[], Actor]], journal: Journal) -> None:
        self._make = make
        self._journal = journal
        self.draining = False
        self.actors: list[Actor] = []

    async def run(self) -> None:
        """Return when every actor has drained."""
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
            except Exception as error:
                if anyio.current_time() - began > CALM_S:
                    delay_s = RESTART_S[0]
                self._journal.crashed(self.actors[place].name, error, delay_s)
            await anyio.sleep(0.0 if self.draining else delay_s * random.uniform(0.5, 1.0))
            if self.draining:
                return
            delay_s = min(2 * delay_s, most_s)
            self.actors[place] = make()

    def drain(self) -> None:
        self.draining = True
        for actor in self.actors:
            actor.drain()

    def hurry(self) -> None:
        self.draining = True
        for actor in self.actors:
            actor.hurry()
