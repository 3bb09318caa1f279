"""What commands print: aligned columns, and JSON documents. Nothing that came from outside reaches the terminal raw."""

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from runtime.core.span import spell
from runtime.core.text import one_line, presentable

LONGEST = 120
"""Of a cell, in characters."""


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines with aligned cells; the first row is the head. None is shown as –."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    return one_line(str(value), LONGEST)


def say(*lines: str) -> None:
    """Print lines, whatever the terminal's encoding cannot write."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def say_json(document: object) -> None:
    """Print one JSON document, with letters of all scripts, and nothing that a terminal would obey."""
    text = json.dumps(presentable(document), indent=2, allow_nan=False, ensure_ascii=False)
    say(re.sub(r"[^\n]", lambda c: c[0] if c[0].isprintable() else json.dumps(c[0])[1:-1], text))


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
