"""Who holds and who awaits permits, for people to look at. Nothing is written; redis-py's errors are raised."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.adapters.redis import keys
from runtime.core.values import frozen


@frozen
class Holder:
    """A job that has a permit. One that is not `live` has no lease: its permit goes to whoever asks next."""

    job_id: str
    live: bool


@frozen
class Standing:
    """How things stand with one limit on concurrency."""

    label: str
    holders: Sequence[Holder]
    waiting: int
    """Jobs in line, those of workers that have just died included."""


async def declared(redis: Any) -> dict[str, int]:
    """The limits that workers have used in the last 30 days: how many may hold each. What is none is left out."""
    known: dict[bytes, bytes] = await redis.hgetall(keys.CONCURRENCY_KNOWN)
    return {
        name.decode(): int(most)
        for name, most in sorted(known.items())
        if name.isascii() and re.fullmatch(rb"\d{1,4}", most)
    }


async def standing(redis: Any, labels: Sequence[str]) -> list[Standing]:
    """Of each label (`exports`, or `exports[tenant-42]`), in two round trips at most."""
    if not labels:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for label in labels:
            pipe.zrange(keys.held(label), 0, -1)
            pipe.zcard(keys.waiting(label))
        found = await pipe.execute()
    held = [[parts for text in texts if len(parts := text.split(b"|", 4)) == 5] for texts in found[::2]]
    leases = [keys.IN_PROGRESS.encode() + job_id for permits in held for *_, job_id in permits]
    owners: Iterator[bytes | None] = iter(await redis.mget(leases) if leases else [])
    return [
        Standing(label, [Holder(keys.id_text(job_id), next(owners) == token) for *_, token, job_id in permits], waiting)
        for label, permits, waiting in zip(labels, held, found[1::2], strict=True)
    ]
