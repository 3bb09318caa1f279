"""What commands print: aligned columns, and JSON documents. Nothing that came from outside reaches the terminal raw."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from runtime.core.span import spell

DEEPEST = 100
"""Levels of a value that are shown."""
LONGEST = 120
"""Of a cell, in characters."""


def plain(text: str) -> str:
    """`text` without anything that a terminal would obey: control characters, direction marks, what is no Unicode."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines with aligned cells; the first row is the head. None is shown as –."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    text = plain(str(value))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def say(*lines: str) -> None:
    """Print lines, whatever the terminal's encoding cannot write."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def say_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document, in plain ASCII."""
    text = json.dumps(as_json(document), indent=2, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"))


def as_json(value: Any, depth: int = 0) -> Any:
    """`value` as JSON has it; a type that JSON lacks becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if depth == DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {_key(key): as_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item, depth + 1) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else as_json(str(value), depth)


def _key(key: object) -> str:
    text = as_json(key, DEEPEST)
    return text if isinstance(text, str) else str(text)


def moment(ms: float | None) -> str | None:
    """A moment of a clock in ms, as ISO 8601 in UTC; None where there is none, or none that a calendar has."""
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def roughly(length_s: float | None) -> str | None:
    """A length of time in its two largest units."""
    return None if length_s is None else " ".join(spell(max(length_s, 0.0)).split(" ")[:4]) or "0 s"
