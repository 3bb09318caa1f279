"""Who holds and who awaits permits, for people to look at. Nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import away_when_lost


@dataclass(frozen=True, slots=True)
class Holder:
    """A job that has a permit. One that is not `live` has no lease: its permit goes to whoever asks next."""

    job_id: str
    live: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand with one limit on concurrency."""

    label: str
    holders: Sequence[Holder]
    waiting: int
    """Jobs in line, those of workers that have just died included."""


async def declared(redis: Any) -> dict[str, int]:
    """The limits that workers have used in the last 30 days: how many may hold each. Raises `Away`."""
    with away_when_lost("limit"):
        known: dict[bytes, bytes] = await redis.hgetall(keys.CONCURRENCY_KNOWN)
    return {name.decode(): int(most) for name, most in sorted(known.items())}


async def standing(redis: Any, labels: Sequence[str]) -> list[Standing]:
    """Of each label (`exports`, or `exports[tenant-42]`), in two round trips at most. Raises `Away`."""
    with away_when_lost("limit"):
        async with redis.pipeline(transaction=False) as pipe:
            for label in labels:
                pipe.zrange(keys.held(label), 0, -1)
                pipe.zcard(keys.waiting(label))
            found = await pipe.execute()
        permits = [text.split(b"|", 4) for texts in found[::2] for text in texts]
        leases = [keys.IN_PROGRESS.encode() + job_id for *_, job_id in permits]
        owners: list[bytes | None] = await redis.mget(leases) if leases else []
    of_all = iter(
        Holder(keys.id_text(job_id), owner == token) for (*_, token, job_id), owner in zip(permits, owners, strict=True)
    )
    return [
        Standing(label, [next(of_all) for _ in texts], waiting)
        for label, texts, waiting in zip(labels, found[::2], found[1::2], strict=True)
    ]
