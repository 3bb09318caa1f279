"""When workers that sleep are to be woken, and when to look again whether they are."""

from collections.abc import Sequence

from runtime.core.values import frozen

SLOW_LOOK_S = 5.0
"""Between two looks where the server announces nothing, or where something may change that it does not announce."""
SAFE_LOOK_S = 60.0
"""Between two looks where it announces new jobs; what it announces is looked at when it is."""
RING_AGAIN_S = (30.0, 900.0)
"""After a ring that has changed nothing: the first pause, and the longest. Each ring costs a sleeper its sleep."""
NOBODYS_S = 86_400.0
"""A schedule that nobody has fired so long after it was due is no reason to wake anybody."""


@frozen
class Need:
    """What a queue holds for workers that sleep."""

    queue: str
    due: bool
    """A job is due that nobody holds, and that does not wait for a worker which knows its handler; or a schedule is."""
    awake: int
    """Workers of the queue that are awake. Only whether it is 0 is certain: Valkey 9.1 miscounts."""
    next_in_s: float | None
    """Until the next job comes due (deferred, retrying, or held by a worker that may die) or schedule. None: there is
    none."""

    @property
    def calls(self) -> bool:
        """Somebody has to be woken."""
        return self.due and self.awake == 0


def next_look_s(needs: Sequence[Need], *, hears: bool) -> float:
    """Seconds until the next look. `hears`: new jobs are announced, so that nobody has to look for them."""
    settled = hears and not any(need.due for need in needs)
    times = [need.next_in_s for need in needs if need.next_in_s is not None]
    return min([SAFE_LOOK_S if settled else SLOW_LOOK_S, *times])


@frozen
class _Rung:
    again_at_s: float
    pause_s: float


class Calls:
    """For which queues to ring now. A queue that nobody serves is not rung for at every look."""

    def __init__(self) -> None:
        self._rung: dict[str, _Rung] = {}

    def answer(self, needs: Sequence[Need], now_s: float) -> list[str]:
        """The queues to ring for, which count as rung for by that. `now_s` is of a clock that does not jump."""
        calling = {need.queue for need in needs if need.calls}
        self._rung = {queue: rung for queue, rung in self._rung.items() if queue in calling}
        first_s, most_s = RING_AGAIN_S
        ring = [queue for queue in sorted(calling) if queue not in self._rung or now_s >= self._rung[queue].again_at_s]
        for queue in ring:
            pause_s = min(2 * self._rung[queue].pause_s, most_s) if queue in self._rung else first_s
            self._rung[queue] = _Rung(now_s + pause_s, pause_s)
        return ring
