"""What operators do with a queue: pause it, resume it, purge it. Our workers obey with their next claim.

Stock arq workers know nothing of a pause. Whatever runs goes on, and jobs can be added as ever.
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from runtime.adapters.payload import LARGEST, from_json, to_json
from runtime.adapters.redis import keys, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.core.values import frozen

PAGE = 100
"""Jobs that one step of a purge looks at; others are served between two steps."""
TOLD_MS = 60_000
"""How long the result is kept by which those who wait for a purged job learn of its end."""


@frozen
class Pause:
    """Why a queue is paused, and since when, as whoever paused it said so."""

    reason: str
    since_ms: int | None
    left_s: float | None
    """How long from now; None: until somebody resumes it."""


@frozen
class _Said:
    reason: str = ""
    since_ms: int | None = None


async def pause(redis: Any, queue: str, reason: str, for_s: float | None, since_ms: int) -> int:
    """Let no job of `queue` be claimed; another pause of it is replaced. None: until `resume`.

    Gives how many jobs and schedules wait for its end, if it has one: who sleeps may know of a pause that had none.
    """
    said = to_json(_Said(reason, since_ms))
    await redis.set(keys.paused(queue), said, px=None if for_s is None else max(1, round(1000 * for_s)))
    return 0 if for_s is None else await _announce(redis, queue)


async def resume(redis: Any, queue: str) -> tuple[bool, int]:
    """Let jobs of `queue` be claimed, from now on: whether it was paused, and how many jobs and schedules there are.

    Who is to see to them may have gone to sleep meanwhile.
    """
    was: int = await redis.delete(keys.paused(queue))
    return was > 0, await _announce(redis, queue)


async def _announce(redis: Any, queue: str) -> int:
    """Let a worker look at `queue`, if there are jobs. How many there are, and schedules that are not paused."""
    jobs: int = await redis.zcard(queue)
    if jobs:
        await redis.zadd(keys.mark(queue), {b"0": 0})
    schedules: int = await redis.zcount(keys.schedule(queue), "-inf", "(inf")
    return jobs + schedules


async def pauses(redis: Any, queues: Sequence[str]) -> list[Pause | None]:
    """How each of these queues is paused; None: it is not."""
    async with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.get(keys.paused(queue))
            pipe.pttl(keys.paused(queue))
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:  # a key of another type pauses nothing
        if isinstance(answer, Exception) and not (isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)):
            raise answer
    return [_pause(said, left_ms) for said, left_ms in zip(answers[::2], answers[1::2], strict=True)]


def _pause(value: object, left_ms: int) -> Pause | None:
    if not isinstance(value, bytes):
        return None
    try:
        said = from_json(value, _Said)
    except (ValueError, RecursionError):  # somebody else has written it: it pauses the queue all the same
        said = _Said()
    since_ms = said.since_ms if said.since_ms is not None and 0 <= said.since_ms < LARGEST else None
    return Pause(said.reason, since_ms, None if left_ms < 0 else left_ms / 1000)


@frozen
class Purged:
    gone: int
    held: int
    """Jobs that somebody runs: they were left alone."""


async def purge(
    redis: Any, queue: str, serializer: Serializer | None = None, told: Callable[[int], object] = lambda gone: None
) -> Purged:
    """Remove every job of `queue` that nobody holds, in steps; `told` is called after each with how many have gone.

    Whoever waits for one of them finds a result, for `TOLD_MS`: it was cancelled. Of others nothing is left, and their
    ids are free at once. Jobs that are added meanwhile may be removed or not; what is given back or retried meanwhile
    is not.
    """
    outcome = wire.encode_cancelled("", queue, b"", 0, serializer)
    gone = held = passed = 0
    score = "-inf"
    while score:
        page = await scripts.purge(redis, queue, score, passed, PAGE, outcome, TOLD_MS)
        gone, held, score, passed = gone + page.gone, held + page.held, page.score, page.passed
        told(gone)
    return Purged(gone, held)
