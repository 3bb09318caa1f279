"""arq's cron jobs as schedules: the same occurrences, by arq's own reckoning, and the same ids."""

from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo
from typing import cast

from arq.cron import CronJob, next_cron
from arq.utils import to_unix_ms

from runtime.core.values import frozen

FIELDS = ("month", "day", "weekday", "hour", "minute", "second", "microsecond")
WITHIN = {
    "month": range(1, 13),
    "day": range(1, 32),
    "weekday": range(7),
    "hour": range(24),
    "minute": range(60),
    "second": range(60),
}
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""The days of each month, when it has most."""
SEVERAL = (set, frozenset, list, tuple)
NO_TIME = timedelta()
KEEP_S = 60.0
"""So long at least the result of an occurrence is kept, also where none is asked for. A stock arq worker whose clock is
behind enqueues it again, unless there is one; arq itself holds the id for as long, and runs it then."""


@frozen
class ArqTimetable:
    """The times of a cron job in a zone. (`Timetable`)"""

    month: object
    day: object
    weekday: object
    hour: object
    minute: object
    second: object
    microsecond: int
    zone: tzinfo

    @property
    def text(self) -> str:
        said = [(name, getattr(self, name)) for name in FIELDS]
        times = " ".join(f"{name}={_spelt(value)}" for name, value in said if value is not None)
        return f"arq {times} {self.zone}"

    def after(self, moment_ms: int) -> int:
        """The first occurrence after this moment. The hour that summer time's end repeats has none, as in arq."""
        moment = datetime.fromtimestamp(moment_ms / 1000, self.zone)
        if moment.fold:  # what arq finds in this hour is of the hour before: look after it
            moment += (moment.replace(fold=0).utcoffset() or NO_TIME) - (moment.utcoffset() or NO_TIME)
        # arq looks from a second after the moment that it is given.
        found = self._next(moment - timedelta(seconds=1))
        while (found_ms := to_unix_ms(found)) <= moment_ms:
            found = self._next(found)
        return found_ms

    def _next(self, before: datetime) -> datetime:
        return next_cron(before, **{name: getattr(self, name) for name in FIELDS})


def _spelt(value: object) -> str:
    if not isinstance(value, SEVERAL):
        return str(value)
    several = sorted({*cast("Iterable[int]", value)})
    in_a_row = len(several) > 2 and several == list(range(several[0], several[-1] + 1))
    return f"{several[0]}-{several[-1]}" if in_a_row else ",".join(map(str, several))


def is_in_some_year(month: object, day: object) -> bool:
    """Whether there is such a day. arq would look for it through eight thousand years."""
    months, days = (
        whole if said is None else cast("Iterable[int]", said if isinstance(said, SEVERAL) else (said,))
        for said, whole in ((month, WITHIN["month"]), (day, WITHIN["day"]))
    )
    return any(day <= LONGEST[month - 1] for month in months if month in WITHIN["month"] for day in days)


def timetable(cron: CronJob, zone: tzinfo | None) -> ArqTimetable | None:
    """When all workers together are to enqueue it once; None where each enqueues its own."""
    return times(cron, zone) if cron.unique or cron.job_id is not None else None


def times(cron: CronJob, zone: tzinfo | None) -> ArqTimetable:
    """Its times, in this zone. The system's is, as for arq, an offset that does not change while the process lives."""
    fields = {name: getattr(cron, name) for name in FIELDS}
    return ArqTimetable(**fields, zone=zone or _own_zone())


def _own_zone() -> tzinfo:
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None
    return zone
