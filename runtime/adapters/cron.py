"""Timetables as people write them. The only module that knows cronsim."""

from datetime import UTC, datetime, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from runtime.core.request import LONGEST_S
from runtime.core.schedule import Every, Timetable
from runtime.core.span import Span, seconds


class Cron:
    """A cron expression in a time zone.

    Five fields (minute, hour, day of month, month, day of week), or six with the seconds first. Summer time is as
    Debian's cron has it: what is at fixed times of the day is once a day, at the end of the hour that spring leaves
    out, and the first time of two in autumn; what is every so many minutes or hours goes on as if there were no change.
    (With six fields, a time that spring leaves out is left out, and one that autumn has twice is twice.)
    """

    def __init__(self, expression: str, zone: str) -> None:
        """Raises `ValueError`, with what is wrong."""
        fields = expression.split() if isinstance(expression, str) else []
        if len(fields) not in (5, 6):
            raise ValueError(
                f"{expression!r:.60} is no cron expression: it has five fields "
                "(minute, hour, day of month, month, day of week), or six with the seconds first"
            )
        self._expression = " ".join(fields)
        self.zone = _zone(zone)
        self.text = f"{self._expression} {zone}"
        try:
            next(CronSim(self._expression, datetime.now(self.zone)))  # summer time may leave out all there are
        except CronSimError as error:
            raise ValueError(f"{self._expression!r:.60} is no cron expression: {str(error).lower()}") from None
        except StopIteration:
            raise ValueError(f"{self._expression!r:.60} never comes about") from None

    def after(self, moment_ms: int) -> int:
        """As `Timetable` has it."""
        for moment in CronSim(self._expression, datetime.fromtimestamp(moment_ms // 1000, self.zone)):
            # Within an hour that autumn has twice, cronsim may name a moment of the first one in the second.
            found_ms = round(moment.timestamp()) * 1000
            if found_ms > moment_ms:
                return found_ms
        raise AssertionError(f"{self.text} has no further occurrence")


def every(span: Span) -> Every:
    """Raises `ValueError` or `TypeError`, with the rule."""
    length_s = seconds(span)
    if length_s != round(length_s) or not 1 <= length_s <= LONGEST_S:
        raise ValueError(f"{span!r} is no span of a schedule: it is a whole number of seconds, 1 at the least")
    return Every(round(length_s) * 1000)


def read(text: str) -> Timetable | None:
    """The timetable of this text; None: it is none of ours."""
    try:
        if text.startswith("every "):
            return every(text.removeprefix("every "))
        expression, _, zone = text.rpartition(" ")
        return Cron(expression, zone)
    except ValueError:
        return None


def zone_of(table: Timetable) -> tzinfo:
    """The one that its moments are told in."""
    return table.zone if isinstance(table, Cron) else UTC


@cache
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ValueError(
            f"there is no time zone {name!r:.60} here: it is a name such as 'Europe/Berlin'; "
            "a system without any has them with: pip install tzdata"
        ) from None


__all__ = ["Cron", "every", "read", "zone_of"]
