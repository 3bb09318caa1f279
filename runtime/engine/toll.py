"""What a call of a paid API goes through: limits and the breaker before it, and what the answer says after it."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any, Literal

from runtime.core.errors import Limited, Permanent, Transient
from runtime.core.feedback import Feedback
from runtime.core.job import Call, Claim
from runtime.core.limits import Bucket, Costs, Granted
from runtime.core.text import one_line
from runtime.core.values import frozen
from runtime.engine.limiter import Limiter
from runtime.ports import Api, Limits

UNSAID_S = 10.0
"""How long everybody waits after a rate limit that names no time."""
BROKEN_S = 60.0
"""When a job is to come back whose call has opened the breaker, as that is open for so long."""


@frozen
class Fare:
    """What was taken for one call."""

    costs: Costs
    granted: Granted


class Toll:
    """The calls of one API in one run of a job."""

    def __init__(self, api: Api, claim: Claim, limiter: Limiter, limits: Limits) -> None:
        self._api = api
        self._limiter = limiter
        self._limits = limits
        self._made: Counter[str] = Counter()
        self._failed: dict[str, list[int]] = {}
        enqueued_ms = claim.call.enqueued_ms if isinstance(claim.call, Call) else 0
        self._job = f"{claim.id}:{enqueued_ms}"  # an id may be used again, for another job

    async def pay(self, request: Mapping[str, Any]) -> Fare:
        """Return when a call with this JSON body may be made. Raises `Limited`; cancelled, it gives back."""
        estimate = self._api.provider.estimate(request)
        # An estimate above what the bucket ever holds may still be too high: the provider knows.
        costs = {
            bucket: min(estimate.get(dimension, 0), bucket.rule.burst)
            for dimension, bucket in self._api.buckets.items()
            if estimate.get(dimension, 0)
        }
        return Fare(costs, await self._limiter.acquire(costs, breaker=self._api.name))

    async def heed(self, fare: Fare, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Learn from an answer. Raises for what is no success: `Limited` (wait, or the breaker is open now; no attempt
        is used), `Transient`, `Permanent`."""
        said = self._api.provider.read(status, headers, body, time.time())
        closed = self._met(said) if said.meaning == "wait" else {}
        await self._limiter.say(self._learn(fare, status, said, closed))
        # Not in the provider's own words: they may quote the request, and this is logged.
        text = one_line(f"{self._api.name} answered {status}: {said.code}".rstrip(": "), 500)
        match said.meaning:
            case "wait":
                raise Limited(next(iter(closed)).label, said.wait_s or UNSAID_S)
            case "break":
                raise Limited(self._api.name, BROKEN_S)
            case "retry":
                raise Transient(text, after=said.wait_s)
            case "permanent":
                raise Permanent(text)
            case "ok":
                return

    async def lost(self, fare: Fare, error: BaseException) -> None:
        """No answer came: that counts as a failure of the provider."""
        report = self._limits.report(self._api.name, "failed", fare.granted.id, type(error).__name__)
        await self._limiter.say(report)

    def key(self, method: str, url: str, body: str) -> str:
        """The n-th of equal requests in a run has the same key in a later run of the job, and in no other job."""
        told = f"{self._job}\n{method} {url}\n{body}"
        request = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:32]
        failed = self._failed.get(request)
        if failed:
            return f"{request}-{heappop(failed)}"
        self._made[request] += 1
        return f"{request}-{self._made[request]}"

    def failed(self, key: str) -> None:
        """The request with this key came to nothing, as far as we know: the next equal one is its repetition."""
        request, _, number = key.rpartition("-")
        heappush(self._failed.setdefault(request, []), int(number))

    async def _learn(self, fare: Fare, status: int, said: Feedback, closed: Mapping[Bucket, int]) -> None:
        """What the buckets and the breaker are to know; mostly nothing."""
        buckets, call = self._api.buckets, fare.granted.id
        if closed:
            await self._limits.close(closed, said.wait_s or UNSAID_S)
        used = {buckets[of]: n for of, n in said.used.items() if of in buckets}
        more = {bucket: n - fare.costs.get(bucket, 0) for bucket, n in used.items() if n != fare.costs.get(bucket, 0)}
        if more:
            await self._limits.settle(more, fare.granted.at_us)
        # While much is left it need not be told with every call.
        left = {buckets[of]: n for of, n in said.remaining.items() if of in buckets and n < buckets[of].rule.burst / 2}
        if left:
            await self._limits.lower(left)
        if said.meaning in ("retry", "break"):
            how: Literal["broken", "failed"] = "broken" if said.meaning == "break" else "failed"
            await self._limits.report(self._api.name, how, call, said.code or f"it answered {status}")
        elif fare.granted.watched:
            await self._limits.report(self._api.name, "ok", call)

    def _met(self, said: Feedback) -> dict[Bucket, int]:
        """The buckets whose limit was met; all, where the answer does not say."""
        buckets = self._api.buckets
        named = {buckets[of]: 0 for of in sorted(said.of) if of in buckets}
        return named or dict.fromkeys(buckets.values(), 0)
