"""Time in tests: what is in Redis is made older, as if it had been written earlier. Nobody's clock is turned.

Of the keys that `adapters/redis/keys.py` names, these are left as they are, but for their expiry:

| what | why |
|---|---|
| buckets and breakers | their clock stands still, and is moved with `advance` (`clock.py`) |
| `arq:abort` | its flags are compared with the moments in bodies |
| when a body was written | it is part of the names of the job's steps (`rt:once:<id>`) |
| results, letters, `rt:<queue>:timetable`, `:paused` | they say when something happened, and nobody reckons with it |
| `rt:{limit}:waiting:<label>` | only the order of its turns counts |
| `rt:workers` | heartbeats: the worker of a test writes none |
| `rt:<queue>:mark`, `:unknown`, `:count`, and those that only expire | there is no moment in them |
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from typing import Any, cast

from runtime.adapters.redis import codecs, keys
from runtime.adapters.redis.codecs import Serializer, Undecodable


async def age(redis: Any, by_ms: int, queues: Collection[str], serializer: Serializer | None = None) -> None:
    """Make everything in this database older by so many ms: these queues, and those that our workers know."""
    marks = [key async for key in redis.scan_iter(match=keys.mark("*"), count=1000)]
    known = [key.removeprefix(b"rt:").removesuffix(b":mark") for key in marks]
    await redis.eval(_script(), 0, by_ms, *queues, *known)
    await _age_bodies(redis, by_ms, serializer)


def _script() -> bytes:
    text = pkgutil.get_data("runtime.testing", "age.lua")
    assert text is not None
    return text


async def _age_bodies(redis: Any, by_ms: int, serializer: Serializer | None) -> None:
    """A job's expiry is in its body."""
    async for key in redis.scan_iter(match=f"{keys.JOB}*", count=1000):
        body: bytes | None = await redis.get(key)
        aged = _aged(body, by_ms, serializer) if body else None
        if aged is not None:
            await redis.set(key, aged, keepttl=True)


def _aged(body: bytes, by_ms: int, serializer: Serializer | None) -> bytes | None:
    """The body with an earlier expiry; None where it has none, or is not ours."""
    try:
        fields, codec = codecs.loads(body, serializer)
    except Undecodable:
        return None
    own = _dict(_dict(fields).get("rt"))
    if not isinstance(own.get("x"), int):
        return None
    return codecs.dumps({**_dict(fields), "rt": {**own, "x": own["x"] - by_ms}}, codec, serializer)


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
