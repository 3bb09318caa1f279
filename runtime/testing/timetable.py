"""The schedules of a test: what is in Redis was made older, but an occurrence is at the time that it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.schedules import RedisSchedules
from runtime.core.schedule import Move, Schedule, Standing


class AgedSchedules(RedisSchedules):
    """The server's clock is ahead here by as much as the test has advanced; in Redis the moments are set back by that.

    So `0 3 * * *` is at three o'clock of the test's day, and `ctx.scheduled_for` says so.
    """

    def __init__(self, redis: Any, serializer: Serializer | None, ahead_ms: Callable[[], int]) -> None:
        super().__init__(redis, serializer)
        self._ahead_ms = ahead_ms

    async def look(self, schedules: Sequence[Schedule]) -> tuple[int, Sequence[Standing]]:
        now_ms, standings = await super().look(schedules)
        return now_ms + self._ahead_ms(), [_moved(standing, self._ahead_ms()) for standing in standings]

    async def fire(self, schedule: Schedule, move: Move) -> Sequence[bool] | None:
        back_ms = -self._ahead_ms()
        next_ms = None if move.next_ms is None else move.next_ms + back_ms
        return await super().fire(schedule, replace(move, standing=_moved(move.standing, back_ms), next_ms=next_ms))


def _moved(standing: Standing, by_ms: int) -> Standing:
    return standing if standing.next_ms is None else replace(standing, next_ms=standing.next_ms + by_ms)
