"""Fires schedules when their occurrences are due, by the store's clock, beside however many workers do the same."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from runtime.core.schedule import SET_BACK_MS, Move, Schedule, Standing, decide
from runtime.core.text import one_line
from runtime.ports import Away, Schedules

JITTER_S = 0.05
"""All workers wait for the same moment: each looks at a time of its own after it, and most find that it is done."""
LOOK_S = 30.0
"""The longest time between two looks: what operators and other versions do is seen then."""
AWAY_S = 1.0
"""Between two tries while the store is away."""
AGAIN_MS = 1000
"""Between two tries for one schedule that is refused, or of which another worker was first to tell."""


class Told(Protocol):
    """Who is told of what was fired, or was given up: `added` says for each occurrence whether there is a new job."""

    def __call__(self, schedule: Schedule, move: Move, added: Sequence[bool], late_ms: int) -> None: ...


class Scheduler:
    """Of one worker; it has at least one schedule."""

    def __init__(
        self,
        schedules: Sequence[Schedule],
        store: Schedules,
        told: Told,
        troubled: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._schedules = schedules
        self._store = store
        self._told = told
        self._troubled = troubled
        self._untold = {one.name for one in schedules}
        """Those of which the store has not been told since this worker began, or its clock was set back."""
        self._seen_ms = 0

    async def run(self) -> None:
        """Until cancelled, at any moment. A store that is away is waited for; then what was missed is caught up."""
        while True:
            try:
                next_at = await self.turn()
            except Away as away:
                next_at = anyio.current_time() + AWAY_S
                if away.refused:  # of any other the claims tell
                    self._troubled(f"schedules cannot be fired: {away.cause}")
            await anyio.sleep_until(next_at + random.uniform(0.0, JITTER_S))

    async def turn(self) -> float:
        """Fire what is due, and say when (by the clock of this loop) something will be. Raises `Away`."""
        now_ms, standings = await self._store.look(self._schedules)
        looked_at = anyio.current_time()
        if now_ms < self._seen_ms - SET_BACK_MS:
            self._untold = {one.name for one in self._schedules}
        begins, self._seen_ms = bool(self._untold), now_ms
        nexts = [
            await self._see_to(schedule, standing, now_ms)
            for schedule, standing in zip(self._schedules, standings, strict=True)
        ]
        if begins and not self._untold:
            await self._store.forget(self._schedules)
        due_in_s = [(next_ms - now_ms) / 1000 for next_ms in nexts if next_ms is not None]
        return looked_at + min([LOOK_S, *due_in_s])

    async def _see_to(self, schedule: Schedule, standing: Standing, now_ms: int) -> int | None:
        """When it is to be seen to next; None: not by this worker, as far as it knows."""
        begins = schedule.name in self._untold
        move = decide(schedule, standing, now_ms, begins=begins)
        if move is None:
            self._untold.discard(schedule.name)
            return standing.next_ms if standing.next_ms is not None and standing.next_ms > now_ms else None
        try:
            added = await self._store.fire(schedule, move)
        except Away as away:
            if not away.refused:
                raise
            self._troubled(f"the schedule {one_line(schedule.name)} cannot be fired: {away.cause}")
            return now_ms + AGAIN_MS  # others may be in a queue that is well
        if added is None and begins:
            return now_ms + AGAIN_MS  # another worker was first, and may be of another version: ours is to be told of
        self._untold.discard(schedule.name)
        if added is not None and move.first_ms is not None:
            self._told(schedule, move, added, now_ms - move.first_ms)
        return move.next_ms  # also where another worker was first: it has reckoned as we have
