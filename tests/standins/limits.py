"""The two ways in which providers count: a sliding window and a bucket that refills continuously.

Both take `now` from the caller and refuse without leaving a trace: who waits as long as told gets in.
"""

from collections import deque

# Floats that were added up must not keep a client out that came at the very moment it was told.
_CLOSE_ENOUGH = 1e-6


class SlidingWindow:
    """At most `limit` hits in any `period_s` seconds."""

    def __init__(self, limit: int, period_s: float) -> None:
        self.limit = limit
        self.period_s = period_s
        self._hits: deque[float] = deque()

    def hit(self, now: float) -> float:
        """Count a hit and return 0.0, or count nothing and return the seconds until there is room."""
        self._forget(now)
        if len(self._hits) >= self.limit:
            return self._hits[0] + self.period_s - now
        self._hits.append(now)
        return 0.0

    def remaining(self, now: float) -> int:
        self._forget(now)
        return self.limit - len(self._hits)

    def _forget(self, now: float) -> None:
        while self._hits and self._hits[0] + self.period_s <= now + _CLOSE_ENOUGH:
            self._hits.popleft()


class Refill:
    """A bucket that starts full with `capacity` tokens and would fill from empty in `period_s` seconds."""

    def __init__(self, capacity: int, period_s: float, now: float) -> None:
        self.capacity = capacity
        self._rate = capacity / period_s
        self._level = float(capacity)
        self._at = now

    def take(self, amount: int, now: float) -> float:
        """Take the amount and return 0.0, or take nothing and return the seconds until it is there."""
        level = self.level(now)
        if level + _CLOSE_ENOUGH < amount:
            return (amount - level) / self._rate
        self._level, self._at = max(0.0, level - amount), now
        return 0.0

    def level(self, now: float) -> float:
        return min(float(self.capacity), self._level + max(0.0, now - self._at) * self._rate)

    def full_in(self, now: float) -> float:
        return (self.capacity - self.level(now)) / self._rate
