"""Lengths of time as people write them."""

import re
from datetime import timedelta

Span = timedelta | float | int | str
"""A length of time: a `timedelta`, a number of seconds, or text such as `"500ms"`, `"15s"`, `"1h30m"`, `"7d"`."""

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(span: Span) -> float:
    """`span` in seconds; never negative, always finite.

    Raises `ValueError` with the rule where the text is not a length of time, `TypeError` for any other type.
    """
    if isinstance(span, bool) or not isinstance(span, timedelta | float | int | str):
        raise TypeError(f"a length of time is a timedelta, seconds or text like '5m', not {type(span).__name__}")
    value = (
        span.total_seconds() if isinstance(span, timedelta) else _parse(span) if isinstance(span, str) else float(span)
    )
    if not 0 <= value < float("inf"):
        raise ValueError(f"{span!r} is not a length of time: it must be finite and not negative")
    return value


def _parse(text: str) -> float:
    compact = text.strip().replace(" ", "")
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        return float(compact)
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a length of time: write for example '500ms', '90s', '5m' or '1h30m'")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def spell(length_s: float) -> str:
    """`length_s` as a person would say it: `300 ms`, `4.5 s`, `45 s`, `5 m`, `1 h 30 m`."""
    if length_s < 0.9995:
        return f"{1000 * length_s:.0f} ms"
    if length_s < 60:
        return f"{length_s:.1f} s".replace(".0 ", " ")
    whole = round(length_s)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
