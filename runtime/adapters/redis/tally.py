"""How limits are used: counted in each worker, added up in Redis. By names alone, as a key may be a person's."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from runtime.adapters.payload import LARGEST
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import away_when_lost
from runtime.core.limits import Answer, Bucket, Costs, Granted, Refused, Reserved
from runtime.core.values import frozen

KEPT_S = 30 * keys.DAY_S


@frozen
class Counts:
    """What has come of a limit since it was first used, or since nobody had used it for 30 days. As kept."""

    takes: int = 0
    tokens: int = 0
    """That were taken, as estimated."""
    more: int = 0
    """That were used beyond that."""
    less: int = 0
    """That were taken and not used."""
    waits: int = 0
    """Takes that were waited for in a slot."""
    waited_ms: int = 0
    refused: int = 0
    """Takes that would have had to wait for too long: their jobs were snoozed."""
    kept_back: int = 0
    """Takes that the breaker of this name has refused."""
    met: int = 0
    """Answers of the provider that the limit is met (429), which closed it."""
    met_ms: int | None = None
    """When the last of them came, by the server's clock."""


NAMES = [one.name for one in fields(Counts)]


class Tally:
    """What one worker has counted and not yet sent."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def took(self, costs: Costs, answer: Answer, held_up: str, *, again: bool) -> None:
        """A take was answered. `held_up`: the name of the bucket or the breaker that made it wait; `again`: it has
        waited before."""
        match answer:
            case Granted():
                for bucket, tokens in costs.items():
                    self._add(bucket.name, takes=1, tokens=tokens)
            case Reserved():
                self._add(held_up, waits=0 if again else 1, waited_ms=round(1000 * answer.wait_s))
            case Refused(why="open"):
                self._add(held_up, kept_back=1)
            case Refused():
                self._add(held_up, refused=1)

    def settled(self, more: Mapping[Bucket, int]) -> None:
        for bucket, tokens in more.items():
            self._add(bucket.name, more=max(tokens, 0), less=max(-tokens, 0))

    def _add(self, name: str, **counts: int) -> None:
        self._counts.setdefault(name, Counter()).update(counts)

    async def send(self, redis: Any) -> None:
        """Add what was counted to what is kept; nothing, if nothing was. Raises `Away`.

        Sent once, as it must not count twice: what does not get through is lost.
        """
        counts, self._counts = self._counts, {}
        if not counts:
            return
        with away_when_lost("limit"):
            async with redis.pipeline(transaction=False) as pipe:
                for name, of_it in counts.items():
                    for what, number in of_it.items():
                        if number:
                            pipe.hincrby(keys.bucket_count(name), what, number)
                    pipe.expire(keys.bucket_count(name), KEPT_S)
                await pipe.execute(raise_on_error=False)  # one key of a wrong type keeps no other from being counted


async def count_met(redis: Any, names: Iterable[str]) -> None:
    """The provider has answered that these limits are met: rare, and seen at once. Raises `Away`."""
    with away_when_lost("limit"):
        now_s, us = await redis.time()
        async with redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hincrby(keys.bucket_count(name), "met", 1)
                pipe.hset(keys.bucket_count(name), "met_ms", now_s * 1000 + us // 1000)
                pipe.expire(keys.bucket_count(name), KEPT_S)
            await pipe.execute(raise_on_error=False)


async def read(redis: Any, names: Sequence[str]) -> list[Counts]:
    """What is kept of each, but for what is no number or has a key of a wrong type. Raises redis-py's errors."""
    if not names:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(keys.bucket_count(name), NAMES)
        found: list[Any] = await pipe.execute(raise_on_error=False)
    return [Counts() if isinstance(values, Exception) else _counts(values) for values in found]


def _counts(values: Sequence[bytes | None]) -> Counts:
    numbers = {
        name: int(value)
        for name, value in zip(NAMES, values, strict=True)
        if value is not None and re.fullmatch(rb"\d{1,16}", value) and int(value) < LARGEST
    }
    return Counts(**numbers)
