"""Reads the bodies of a queue as a worker would, and tells which of them it would refuse. Nothing is run or changed."""

from collections import Counter
from dataclasses import field
from typing import Any

from redis.exceptions import ResponseError

from runtime.adapters.redis import codecs, keys, pickles, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.inspector import Trouble
from runtime.core.job import Unreadable
from runtime.core.values import frozen, record

PAGE = 100
"""Bodies in one call."""


@frozen
class Refusal:
    """Why a body is refused, and the classes that it names and the loader does not take, dotted and sorted."""

    reason: str
    types: tuple[str, ...] = ()


@record
class Bodies:
    """What was found in a queue."""

    readable: int = 0
    missing: int = 0
    """Ids without a body: it has expired, or the job ended meanwhile."""
    refused: Counter[Refusal] = field(default_factory=Counter)
    examples: dict[Refusal, str] = field(default_factory=dict)
    """The id of one job of each."""


async def examine(redis: Any, queue: str, serializer: Serializer | None) -> Bodies | Trouble:
    """All bodies of the jobs in a queue, whether they wait, run or are deferred."""
    found = Bodies()
    try:
        ids: list[bytes] = await redis.zrange(queue, 0, -1)
    except ResponseError:
        return Trouble("its key is no sorted set")
    for at in range(0, len(ids), PAGE):
        page = ids[at : at + PAGE]
        bodies = await redis.mget([keys.JOB.encode() + job_id for job_id in page])
        for job_id, body in zip(page, bodies, strict=True):
            _examine(found, keys.id_text(job_id), body, serializer)
    return found


def _examine(found: Bodies, job_id: str, body: bytes | None, serializer: Serializer | None) -> None:
    if body is None:
        found.missing += 1
        return
    call = wire.decode_call(body, serializer)
    if not isinstance(call, Unreadable):
        found.readable += 1
        return
    admitted = serializer.admitted if serializer else None
    types = pickles.strangers(body, admitted or {}) if codecs.recognise(body) == "pickle" else ()
    refusal = Refusal(call.reason, tuple(types))
    found.refused[refusal] += 1
    found.examples.setdefault(refusal, job_id)
