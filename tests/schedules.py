"""The store's side of schedules as a model: `ports.Schedules` in memory, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.core.schedule import Move, Schedule, Standing
from runtime.ports import Away


class Board:
    """What agenda.lua and fire.lua do, by their headers. (`tests/redis/test_fire.py` compares them with it.)"""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.standings: dict[str, Standing] = {}
        self.fired: dict[str, int] = {}
        """The jobs there have been, and how often each was added."""
        self.away = False
        self.refuses: str | None = None
        """The queue of a wrong type."""
        self.lost_replies = 0
        """So many calls from now on are done, and not answered."""
        self.looks = 0
        self.forgotten = 0

    async def look(self, schedules: Sequence[Schedule]) -> tuple[int, Sequence[Standing]]:
        self._answer()
        self.looks += 1
        return self.now_ms(), [self.standings.get(one.name, Standing()) for one in schedules]

    async def fire(self, schedule: Schedule, move: Move) -> Sequence[bool] | None:
        if self.away:
            raise Away("away")
        if schedule.queue == self.refuses:
            raise Away("WRONGTYPE", refused=True)
        added = self._fire(schedule, move)
        self._answer()
        return added

    def _fire(self, schedule: Schedule, move: Move) -> Sequence[bool] | None:
        stands = self.standings.get(schedule.name, Standing())
        if stands != move.standing:
            return None
        next_ms = stands.next_ms if move.next_ms is None else move.next_ms
        self.standings[schedule.name] = Standing(next_ms, schedule.declaration, stands.paused)
        ids = [schedule.id_of(moment) for moment in move.fires]
        for job_id in ids:
            self.fired[job_id] = self.fired.get(job_id, 0) + 1
        return [self.fired[job_id] == 1 for job_id in ids]

    async def forget(self, schedules: Sequence[Schedule]) -> None:
        self._answer()
        self.forgotten += 1

    def pause(self, name: str) -> None:
        self.standings[name] = Standing(None, self.standings[name].declaration, paused=True)

    def resume(self, name: str, next_ms: int) -> None:
        self.standings[name] = Standing(next_ms, self.standings[name].declaration)

    def _answer(self) -> None:
        if self.lost_replies:
            self.lost_replies -= 1
            raise Away("the reply was lost")
        if self.away:
            raise Away("away")
