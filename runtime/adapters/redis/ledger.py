"""The steps a job has taken, kept beside it in Redis: `ports.Ledger`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from runtime.adapters.redis import pickles, scripts
from runtime.adapters.redis.connection import away_when_lost
from runtime.core.errors import LeaseLost
from runtime.core.job import Call, Claim
from runtime.ports import Away, Step

T = TypeVar("T")
RETRY_S = 0.25


class RedisLedger:
    """Every call waits while Redis is away; the handler's own timeout bounds it."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def begin(self, claim: Claim, step: str) -> Step:
        async def ask(again: bool) -> tuple[str, bytes | None]:
            return await scripts.begin_step(self._redis, claim.id, claim.token, _instance(claim, step), again=again)

        state, value = await _while_ours(claim, ask, lambda answer: answer[0])
        match state:
            case "done":
                return Step("done", pickles.loads(value or b""))
            case "begun":
                return Step("begun")
            case _:
                return Step("new")

    async def finish(self, claim: Claim, step: str, value: object) -> None:
        data = pickles.dumps(value)

        async def ask(again: bool) -> str:
            return await scripts.finish_step(self._redis, claim.id, claim.token, _instance(claim, step), data)

        await _while_ours(claim, ask, lambda answer: answer)


async def _while_ours(claim: Claim, ask: Callable[[bool], Awaitable[T]], state_of: Callable[[T], str]) -> T:
    again = False
    while True:
        try:
            with away_when_lost("once"):
                answer = await ask(again)
        except Away:
            again = True
            await asyncio.sleep(RETRY_S)
            continue
        state = state_of(answer)
        if state == "lost":
            raise LeaseLost(f"job {claim.id} is run by another worker now")
        if state != "lapsed":
            return answer
        await asyncio.sleep(RETRY_S)  # our keeper takes the lease again, or another worker does


def _instance(claim: Claim, step: str) -> str:
    """The step's name within this enqueue of the id: a later job of the same id takes its steps anew."""
    enqueued_ms = claim.call.enqueued_ms if isinstance(claim.call, Call) else 0
    return f"{enqueued_ms}:{step}".encode("utf-8", "backslashreplace").decode()
