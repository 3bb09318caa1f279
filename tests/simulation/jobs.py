"""What the jobs of a history do: a plan, one step of it for each run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from runtime.adapters.runner import token_of
from runtime.core.errors import RetryLater, Snooze
from runtime.core.retry import Retry
from runtime.core.spec import Spec

What = Literal["return", "fail", "later", "snooze", "never", "stubborn", "block"]
Plan = Sequence[tuple[What, float]]
Ending = Literal["returned", "failed", "snoozed", "cancelled", "overdue"]
"""`overdue`: cancelled so long after its timeout that it may be for that, or because its worker was told to stop."""
STEPS: tuple[What, ...] = ("return", "return", "fail", "later", "snooze", "never", "stubborn", "block")
LENGTHS_S: Mapping[What, tuple[float, float]] = {"stubborn": (12.0, 25.0), "block": (0.5, 6.0)}
SHORT_S, LONG_S = (0.01, 2.0), (8.0, 30.0)
CHIME = "chime"
"""The handler of the schedule."""
TIMEOUT_S = {"work": 40.0, "brief": 5.0, CHIME: 5.0}
ATTEMPTS = 3


def plan_of(rng: Random) -> list[tuple[What, float]]:
    """The steps of the first runs; every further one returns at once."""
    plan: list[tuple[What, float]] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        what = rng.choice(STEPS)
        length_s = LONG_S if what == "return" and rng.random() < 0.2 else SHORT_S
        plan.append((what, round(rng.uniform(*LENGTHS_S.get(what, length_s)), 3)))
    return plan


def handler_of(plan: Plan) -> str:
    return "brief" if any(what in ("never", "stubborn") for what, _ in plan) else "work"


class Floor(Protocol):
    """Where runs take place."""

    def begun(self, job_id: str, token: str) -> int:
        """How many runs of the job there were before."""
        ...

    def over(self, token: str, how: Ending) -> None: ...

    def block(self, length_s: float) -> None:
        """Keep the event loop from doing anything else."""
        ...


@dataclass
class Work:
    """`ports.Entry`."""

    spec: Spec
    floor: Floor

    async def run(self, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, object]) -> object:
        task = asyncio.current_task()
        assert task is not None
        token = token_of(task)
        assert token is not None
        plan: Plan = args[0] if args else ()  # a schedule's have none
        number = self.floor.begun(context.job_id, token)
        what, length_s = plan[number] if number < len(plan) else ("return", 0.0)
        how: Ending = "failed"
        try:
            await self._perform(what, length_s)
            how = "returned"
        except Snooze:
            how = "snoozed"
            raise
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            self.floor.over(token, how)
        return number

    async def _perform(self, what: What, length_s: float) -> None:
        if what == "stubborn":
            return await _whatever_comes(length_s)
        if what == "block":
            self.floor.block(length_s)
        await asyncio.sleep(10_000 if what == "never" else length_s)
        if what == "fail":
            raise RuntimeError("as planned")
        if what == "later":
            raise RetryLater(length_s)
        if what == "snooze":
            raise Snooze(length_s)
        return None


async def _whatever_comes(length_s: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + length_s
    while (left_s := until - loop.time()) > 1e-6:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue


def entries(floor: Floor, queue: str) -> dict[str, Any]:
    retry = Retry(ATTEMPTS, base="1s")
    return {
        name: Work(Spec(name, queue=queue, timeout_s=timeout_s, retry=retry), floor)
        for name, timeout_s in TIMEOUT_S.items()
    }
