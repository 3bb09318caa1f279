"""What was found, as text and as JSON: medians, minima and maxima over the rounds, ratios, and the bars of §11."""

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from redis import Redis

from tests.benchmarks import guests
from tests.benchmarks.contenders import Contender
from tests.benchmarks.measures import Figures, quantile
from tests.benchmarks.rows import Bar, Column, Row
from tests.servers import Server

_PACKAGES = ("arq", "redis", "hiredis", "anyio", "msgspec", "structlog", "opentelemetry-sdk")

Rounds = Mapping[str, Sequence[Figures]]
"""Of one row, by contender; those that gave nothing are not there."""


def configuration(rounds: int, scale: float) -> dict[str, str]:
    """Of this run: what the figures depend on, and who is not measured here."""
    with Server() as server, Redis.from_url(server.url) as probe:
        info: Any = probe.info("server")
    packages = [f"{name} {metadata.version(name)}" for name in _PACKAGES]
    versions = [f"{name} {version}" for name, version in guests.versions().items()]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, load {_load()} at the start",
        "python": f"{platform.python_version()}: {', '.join(packages + versions)}",
        "server": f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}, "
        "one for each contender and round, TCP on loopback, no persistence",
        "rounds": f"{rounds}, jobs x {scale:g}, contenders in turn; results are kept by all",
    }


def _load() -> str:
    return ", ".join(f"{load:.2f}" for load in os.getloadavg())


def text(row: Row, rounds: Rounds, absent: Mapping[str, str]) -> str:
    """The table of a row, and how it stands to its bars."""
    first = row.columns[0]
    header = ["", *(column.title for column in row.columns), *(f"x {other.name}" for other in row.against)]
    lines = [header]
    for contender in row.contenders:
        found = rounds.get(contender.name)
        if not found:
            lines.append([contender.name, f"not run: {absent.get(contender.name, 'nothing was found')}"])
            continue
        cells = [cell(column, found) for column in row.columns]
        lines.append([contender.name, *cells, *(_ratio(first, found, rounds.get(one.name)) for one in row.against)])
    widths = [max(len(line[at]) for line in lines if len(line) > 2) for at in range(len(header))]
    table = [
        " | ".join(part.ljust(width) for part, width in zip(line, widths, strict=False)).rstrip() for line in lines
    ]
    bars = [verdict for bar in row.bars if (verdict := judged(bar, rounds))]
    failed = [f"{name}: {why}" for name, why in absent.items() if name in rounds]
    return "\n".join([f"\n{row.name}: {row.title}\n", *table, *(f"  {line}" for line in bars + failed)])


def cell(column: Column, rounds: Sequence[Figures]) -> str:
    middles = _middles(column.figure, column.quantile, rounds)
    if not middles:
        return "-"
    shown = (min(middles), statistics.median(middles), max(middles)) if column.spread else (statistics.median(middles),)
    return " / ".join(f"{each:,.{column.digits}f}" for each in shown)


def _middles(figure: str, part: float, rounds: Sequence[Figures] | None) -> list[float]:
    samples = [each[figure] for each in rounds or () if each.get(figure)]
    if part != 0.5 and samples:
        samples = [[one for each in samples for one in each]]
    return [quantile(each, part) for each in samples]


def _median(figure: str, part: float, rounds: Sequence[Figures] | None) -> float | None:
    middles = _middles(figure, part, rounds)
    return statistics.median(middles) if middles else None


def _ratio(column: Column, ours: Sequence[Figures], theirs: Sequence[Figures] | None) -> str:
    upper, lower = (_median(column.figure, column.quantile, each) for each in (ours, theirs))
    return f"{upper / lower:.2f}" if upper is not None and lower else "-"


def judged(bar: Bar, rounds: Rounds) -> str | None:
    """Whether a bar is met; None where there is nothing to compare."""
    ours = _median(bar.figure, bar.quantile, rounds.get(bar.who.name))
    if ours is None:
        return None
    what = f"{bar.who.name} {bar.figure}" + (f" p{100 * bar.quantile:.0f}" if bar.quantile != 0.5 else "")
    if bar.than is None:
        met, stands = ours, f"{bar.much:g}"
    else:
        theirs = _median(bar.figure, 0.5, rounds.get(bar.than.name))
        if not theirs:
            return None
        met, stands = ours / theirs, f"{bar.much:g} x {bar.than.name}"
    good = met >= bar.much if bar.at == "least" else met <= bar.much
    return f"{'met   ' if good else 'MISSED'} {what}: at {bar.at} {stands}, is {met:.2f}"


def legend(contenders: Sequence[Contender]) -> str:
    """How each contender is configured."""
    return "\n".join(f"{one.name}: {one.configuration}; event loop: {one.loop}" for one in contenders)


def write(path: Path, run: Mapping[str, str], results: Mapping[str, Rounds], absent: Mapping[str, Any]) -> None:
    """All figures of all rounds."""
    document = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "run": run, "rows": results, "absent": absent}
    path.write_text(json.dumps(document, indent=1))
