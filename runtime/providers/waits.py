"""Lengths of time as answers tell them: seconds, Go's durations, dates. What makes no sense is None; nothing raises."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

LONGEST_S = 86_400.0
"""Nobody is kept waiting longer than a day without asking again."""
_MONTH_S = 31 * 86_400.0
"""No limit has a longer period. What is said to take longer is no length of time: a Unix time, perhaps."""

_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = re.compile(rf"({_DECIMAL.pattern})(ms|us|µs|μs|ns|h|m|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern}){{1,8}}")
_DATE = re.compile(r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def asked_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """The wait that `retry-after-ms` or `retry-after` asks for, at most `LONGEST_S`; `headers` in small letters.

    Milliseconds go first, because OpenAI and Azure round the seconds up. `retry-after` is seconds or a date (RFC 9110,
    10.2.3; of dates its one form that may still be sent). A wait of 0 or a date gone by is none: no client is asked
    to come back that instant, and the official SDKs of OpenAI and Anthropic do not take it for an answer either.
    """
    thousandths = decimal(headers.get("retry-after-ms", ""))
    asked = wait(None if thousandths is None else thousandths / 1000)
    if asked is not None:
        return asked
    text = headers.get("retry-after", "")
    seconds = decimal(text)
    return wait(_until_date_s(text, now_s) if seconds is None else seconds)


def wait(seconds: float | None) -> float | None:
    """`seconds` if that is a time somebody can be asked to wait, at most `LONGEST_S`."""
    if seconds is None or not 0 < seconds <= _MONTH_S:
        return None
    return min(seconds, LONGEST_S)


def reset(seconds: float | None) -> float | None:
    """`seconds` if a count can be full again after them."""
    return seconds if seconds is not None and 0 <= seconds <= _MONTH_S else None


def decimal(text: str) -> float | None:
    """`60`, `0.25`: digits of ASCII and a point, no sign, no exponent."""
    found = _DECIMAL.fullmatch(text.strip())
    return float(found[0]) if found else None


def duration_s(text: str) -> float | None:
    """`12ms`, `1m30.951s`, `1h2m3s` as Go's `time.Duration` prints it (OpenAI's resets); bare seconds too (Azure's)."""
    text = text.strip()
    if not _DURATION.fullmatch(text):
        return decimal(text)
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


def until_s(text: str, now_s: float) -> float | None:
    """From `now_s` until a time of RFC 3339 (Anthropic's resets); 0 for one that is past."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return None if moment.tzinfo is None else max(0.0, moment.timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _until_date_s(text: str, now_s: float) -> float | None:
    found = _DATE.fullmatch(text.strip())
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
    try:
        moment = datetime(year, _MONTHS.index(found[2]) + 1, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() - now_s
