"""Dead letters: jobs that will not run again by themselves, with their bodies and the reasons."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from runtime.adapters.payload import from_json
from runtime.adapters.redis import keys, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.core.job import Call
from runtime.core.place import place
from runtime.core.priority import PRIORITIES

PAGE = 100


async def queues(redis: Any) -> list[str]:
    """The queues that have dead letters."""
    prefix, suffix = keys.dead("\0").split("\0")
    names = [name.decode("utf-8", "surrogateescape") async for name in redis.scan_iter(match=keys.dead("*"), count=500)]
    lists = [name for name in names if name.endswith(suffix) and not name.startswith(keys.LIMIT)]
    found = [name.removeprefix(prefix).removesuffix(suffix) for name in lists]
    kept: list[str] = []
    for queue in sorted(found):
        if await redis.type(keys.dead(queue)) == b"zset":
            kept.append(queue)
    return kept


async def each(redis: Any, queue: str) -> AsyncIterator[dict[str, Any]]:
    """The letters of a queue, newest first."""
    start = 0
    while ids := await redis.zrevrange(keys.dead(queue), start, start + PAGE - 1):
        for job_id in ids:
            letter = await find(redis, keys.id_text(job_id))
            if letter is not None:
                yield letter
        start += PAGE


async def find(redis: Any, job_id: str, serializer: Serializer | None = None) -> dict[str, Any] | None:
    """One letter, with `args` and `kwargs` where its body can be read; None if there is none."""
    data, body = await redis.hmget(keys.of(keys.LETTER, job_id), "letter", "body")
    if data is None:
        return None
    letter = from_json(data, dict[str, Any])
    letter["id"] = job_id
    letter["body_bytes"] = len(body or b"")
    call = wire.decode_call(body, serializer) if body else None
    if isinstance(call, Call):
        letter["args"], letter["kwargs"] = call.args, call.kwargs
    return letter


async def replay(redis: Any, letter: dict[str, Any]) -> str:
    """Put the job back into its queue, as new: `done`, `gone`, `empty` (no body) or `exists` (the id has a job)."""
    return await scripts.revive(redis, letter["queue"], letter["id"], priority=_priority(letter["place"]))


async def discard(redis: Any, letters: Sequence[dict[str, Any]]) -> int:
    """Delete letters, and the steps their jobs had taken; how many there were."""
    count = 0
    for letter in letters:
        async with redis.pipeline(transaction=True) as pipe:
            job_id = letter["id"]
            pipe.zrem(keys.dead(letter["queue"]), keys.id_bytes(job_id))
            pipe.delete(keys.of(keys.LETTER, job_id))
            pipe.delete(keys.of(keys.LETTER, job_id) + b":original", keys.of(keys.ONCE, job_id))
            count += (await pipe.execute())[1]
    return count


def _priority(score: str) -> int:
    was = place(score)
    return was.priority if was and was.priority in PRIORITIES else 0
