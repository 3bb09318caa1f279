"""What operators do with limits, in Redis. Workers obey with their next take, which reads what is set, too."""

from collections.abc import Callable, Sequence
from typing import Any

from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.buckets import read_rule, said
from runtime.adapters.redis.source import history_of
from runtime.core.errors import LimitInvalid
from runtime.core.limits import MOST_EXACT, Bucket, Rule

SEEN = 1000
"""As many jobs that are not yet due are looked at in a queue, the next ones first."""


async def known(redis: Any) -> dict[str, Bucket]:
    """The buckets of which workers have told in the last 30 days, by name, with the rule that was declared last.

    What is none is left out: anybody may have written it.
    """
    told: dict[bytes, bytes] = await redis.hgetall(keys.LIMITS_KNOWN)
    buckets = [_declared(name, rule) for name, rule in sorted(told.items())]
    return {bucket.name: bucket for bucket in buckets if bucket}


def _declared(name: bytes, told: bytes) -> Bucket | None:
    try:
        bucket, its = Bucket(name.decode(), "1/s"), read_rule(told.decode())
    except (LimitInvalid, ValueError, TypeError):
        return None
    if min(its.count, its.period_us, its.burst) < 1 or max(its.count, its.burst + 1) * its.period_us > MOST_EXACT:
        return None
    bucket.rule = its
    return bucket


async def set_rule(redis: Any, name: str, its: Rule, for_s: float | None) -> None:
    """This rule instead of what is declared, for the bucket of this name and those of all its keys; None: for good."""
    await redis.set(keys.bucket_set(name), said(its), px=None if for_s is None else round(1000 * for_s))


async def reset(redis: Any, buckets: Sequence[Bucket], breaker: str | None) -> None:
    """The buckets are full, and what is reserved in them is void; the rules that operators have set for their names are
    gone, unless a bucket is that of a key; the breaker is closed."""
    names = [keys.bucket(bucket.label) for bucket in buckets]
    names += [keys.bucket_set(bucket.name) for bucket in buckets if bucket.key is None]
    await redis.delete(*names, *([keys.breaker(breaker)] if breaker else ()))


async def bring_forward(redis: Any, queue: str, given: Callable[[str], bool]) -> int:
    """Jobs of `queue` that were snoozed for a limit which is `given` now are due at once; how many those were."""
    now_s, _ = await redis.time()
    ids: list[bytes] = await redis.zrangebyscore(queue, now_s * 1000, "+inf", start=0, num=SEEN)
    if not ids:
        return 0
    owns = await redis.mget([keys.OWN.encode() + job_id for job_id in ids])
    waiting = [job_id for job_id, own in zip(ids, owns, strict=True) if given(history_of(own).waits_for or "")]
    parts = [waiting[at : at + 100] for at in range(0, len(waiting), 100)]
    return sum([await scripts.forward(redis, queue, part) for part in parts])
