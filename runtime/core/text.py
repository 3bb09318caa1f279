"""Values from outside, fit to be shown to people and programs."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any, cast

DEEPEST = 100
"""Levels of a value that are shown."""


def plain(text: str) -> str:
    """`text` without anything that a terminal would obey: control characters, direction marks, what is no Unicode."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str, most: int = 200) -> str:
    """`text` likewise, cut off after `most` characters."""
    safe = plain(text[: most + 1])
    return safe if len(safe) <= most else safe[:most] + "…"


def presentable(value: Any, depth: int = 0) -> Any:
    """`value` as JSON has it: a type that JSON lacks becomes text or a number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else hex(value)  # beyond that, many a reader gives up
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if depth == DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {_key(key): presentable(item, depth + 1) for key, item in cast("Mapping[object, Any]", value).items()}
    if isinstance(value, set | frozenset):
        return [presentable(item, depth + 1) for item in sorted(cast("Iterable[Any]", value), key=repr)]
    if isinstance(value, SimpleNamespace):
        return presentable(vars(value), depth)
    if isinstance(value, list | tuple | deque):
        return [presentable(item, depth + 1) for item in cast("Iterable[Any]", value)]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else presentable(str(value), depth)


def _key(key: object) -> str:
    text = presentable(key, DEEPEST)
    return text if isinstance(text, str) else str(text)
