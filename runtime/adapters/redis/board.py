"""Where is written how far the jobs of this worker are: `ports.Board`; and how that is read.

What handlers tell is only remembered, the latest of each job. Once a second it is written down for all of them
together. Nothing of it outlives the run: what is there counts only while the job's lease has the token that it carries.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

from runtime.adapters.payload import from_json, to_json
from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.connection import away_when_lost
from runtime.core.job import Claim
from runtime.core.progress import NOTE_LIMIT, Progress
from runtime.core.redaction import Redactor
from runtime.core.text import presentable
from runtime.core.values import frozen, record
from runtime.ports import Away

EVERY_S = 1.0
"""From one writing to the next."""
BATCH = 100
"""Most jobs in one call."""


@frozen
class _Said:
    """In JSON, where 3 is not to become 3.0."""

    done: int | float
    total: int | float | None
    note: str


@record
class _Report:
    """What a run has told last."""

    claim: Claim
    said: _Said
    written_at: float = -math.inf


class RedisBoard:
    """In one event loop. It works only while there are runs that have told something. Close it.

    `holds` says whether the lease of a token is still kept.
    """

    def __init__(self, redis: Any, holds: Callable[[str], bool], redact: Redactor) -> None:
        self._redis = redis
        self._holds = holds
        self._redact = redact
        self._reports: dict[str, _Report] = {}
        self._writing: asyncio.Task[None] | None = None

    def show(self, claim: Claim, done: float, total: float | None, note: str) -> None:
        self._reports[claim.token] = _Report(claim, _Said(done, total, note))
        if self._writing is None or self._writing.done():
            # In a context of its own: what it does is no part of the run that happens to be the first.
            self._writing = asyncio.get_running_loop().create_task(self._write_on(), context=Context())

    async def close(self) -> None:
        """Write no more."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            await asyncio.wait([writing])

    async def _write_on(self) -> None:
        """Until every run that has told something has ended."""
        while self._reports:
            due = self._due()
            for at in range(0, len(due), BATCH):
                with suppress(Away):  # it is due again a second later
                    await self._write(due[at : at + BATCH])
            await asyncio.sleep(EVERY_S)
            for token in [token for token in self._reports if not self._holds(token)]:
                del self._reports[token]

    def _due(self) -> Sequence[_Report]:
        """What is not written yet, or would be forgotten while the run says nothing new."""
        before = time.monotonic() - keys.PROGRESS_S / 2
        return [report for report in self._reports.values() if report.written_at < before]

    async def _write(self, reports: Sequence[_Report]) -> None:
        noted = [scripts.Noted(one.claim.id, one.claim.token, self._news(one)) for one in reports]
        now = time.monotonic()
        with away_when_lost("progress"):
            written = await scripts.progress(self._redis, noted)
        for report, is_written in zip(reports, written, strict=True):
            report.written_at = now if is_written else -math.inf

    def _news(self, report: _Report) -> bytes:
        """What is written already is only kept: it was told then."""
        return b"" if report.written_at > -math.inf else to_json(self._plain(report.said))

    def _plain(self, said: _Said) -> _Said:
        """Redacted, and in numbers of Python's own: others (numpy's are floats, too) are not written as JSON."""
        note = self._redact.text(str(said.note), NOTE_LIMIT - 1)  # and a mark where it was cut
        return _Said(_number(said.done), None if said.total is None else _number(said.total), note)


def _number(value: float) -> int | float:
    return int(value) if isinstance(value, int) else float(value)


def read(written: bytes | None, holder: bytes | None) -> Progress | None:
    """What is written of a job whose lease is `holder`'s; None: that one has told nothing."""
    token, _, rest = (written or b"").partition(b"|")
    at_ms, _, text = rest.partition(b"|")
    if not token or token != holder:
        return None
    try:
        said = from_json(text, _Said)
        at = datetime.fromtimestamp(int(at_ms) / 1000, UTC)
    except (ValueError, OverflowError, OSError, RecursionError):  # not as we write it
        return None
    return Progress(said.done, said.total, said.note[:NOTE_LIMIT], at)


def shown(progress: Progress) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "done": progress.done,
        "total": progress.total,
        "note": presentable(progress.note),
        "at": progress.at.isoformat(timespec="milliseconds"),
    }
