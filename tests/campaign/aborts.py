"""K3.9: jobs are aborted by arq's own `Job.abort`, at every moment and by clocks that are wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from unittest.mock import patch

from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from arq.jobs import Job

from runtime.adapters.redis import keys
from tests.campaign.death import exits
from tests.campaign.scenario import Broken, Held, Scenario, Stage, Verdict
from tests.faults import jobs
from tests.faults.ledger import Breach
from tests.processes import wait_until

ABORT_S = 5.0
"""How long an abort may take to be obeyed: a beat of the keeper is 2.5 s."""
AWRY_S = 120


class Desk:
    """One job of a case, and those of its id that follow."""

    def __init__(self, stage: Stage, pool: ArqRedis, key: str) -> None:
        self._stage = stage
        self._pool = pool
        self._key = key
        self.id = f"work:{key}"

    async def enqueue(self, length_s: float, delay: str = "0s") -> None:
        request = jobs.work.options(key=self._key, delay=delay).request(length_s)
        await asyncio.to_thread(self._stage.acked, request)

    def runs(self) -> int:
        return len(self._stage.ledger.starts(self.id))

    async def until_run(self, count: int = 1) -> None:
        await asyncio.to_thread(wait_until, lambda: self.runs() >= count, 15.0, f"run {count} of it")

    async def abort(self, ahead_s: int = 0) -> bool:
        with patch("arq.jobs.timestamp_ms", lambda: round(1000 * (time.time() + ahead_s))):
            try:
                return await Job(self.id, self._pool).abort(timeout=ABORT_S, poll_delay=0.05)
            except TimeoutError:
                raise AssertionError(f"it was not obeyed within {ABORT_S:g} s") from None

    async def result(self) -> object:
        return await Job(self.id, self._pool).result(timeout=15, poll_delay=0.05)

    async def forget(self) -> None:
        """Its result: while that is there, arq takes no other job of the id."""
        await self._pool.delete(keys.RESULT + self.id)


async def _running(desk: Desk, ahead_s: int = 0) -> None:
    await desk.enqueue(30.0)
    await desk.until_run()
    assert await desk.abort(ahead_s), "the abort was not confirmed"


async def _deferred(desk: Desk, ahead_s: int = 0) -> None:
    await desk.enqueue(0.0, delay="1h")
    assert await desk.abort(ahead_s), "the abort was not confirmed"
    assert desk.runs() == 0, "it ran all the same"


async def _twice(desk: Desk) -> None:
    await desk.enqueue(30.0)
    await desk.until_run()
    assert all(await asyncio.gather(desk.abort(), desk.abort())), "the abort was not confirmed"


async def _ended(desk: Desk) -> None:
    await desk.enqueue(0.0)
    await desk.result()
    assert not await desk.abort(), "an abort of what had ended was confirmed"


async def _unknown(desk: Desk) -> None:
    assert not await desk.abort(), "an abort of no job was confirmed"


CASES: dict[str, Callable[[Desk], Awaitable[None]]] = {
    "while it runs": _running,
    "before it is due": _deferred,
    "twice": _twice,
    "after its end": _ended,
    "of no job": _unknown,
    "by a slow clock, while it runs": lambda desk: _running(desk, -AWRY_S),
    "by a fast clock, while it runs": lambda desk: _running(desk, AWRY_S),
    "by a slow clock, before it is due": lambda desk: _deferred(desk, -AWRY_S),
    "by a fast clock, before it is due": lambda desk: _deferred(desk, AWRY_S),
}


def aborted(stage: Stage) -> Verdict:
    worker = stage.worker(slots=len(CASES) + 1).up()
    breaches = asyncio.run(_all(stage))
    breaches += exits([worker])
    return Broken(breaches, {"cases": len(CASES)}) if breaches else Held({"cases": len(CASES)})


async def _all(stage: Stage) -> list[Breach]:
    pool = await create_pool(RedisSettings.from_dsn(stage.url))
    breaches = []
    try:
        for name, case in CASES.items():
            desk = Desk(stage, pool, name.replace(" ", "-"))
            try:
                await case(desk)
            except AssertionError as failure:
                breaches.append(Breach("I12", f"{name}: {failure}"))
            try:
                await desk.forget()
                before = desk.runs()
                await desk.enqueue(0.0)
                await desk.until_run(before + 1)
                await desk.result()
            except (AssertionError, TimeoutError, asyncio.CancelledError, Exception) as failure:
                why = str(failure) or type(failure).__name__
                breaches.append(Breach("I12", f"{name}: the next job of the id: {why}"))
    finally:
        await pool.aclose()
    return breaches


SCENARIOS = (
    Scenario(
        "K3.9",
        "`Job.abort` of a running job, a deferred one, one that has ended, of no job, twice, and by clocks that are "
        "two minutes slow or fast. After each, another job of the same id.",
        "Aborted is what runs or waits, and nothing else; the next job of the id runs.",
        ("I12",),
        aborted,
        quick=False,  # tests/arq_compat/test_abort.py tries ours more closely
        deadline_s=240,
    ),
)
