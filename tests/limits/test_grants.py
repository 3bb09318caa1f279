"""What the campaign has found, each as the shortest story that shows it: one process, one bucket, the real scripts."""

import asyncio
from collections.abc import Awaitable, Callable

from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.connection import connect
from runtime.core.limits import Bucket, Granted, Reserved
from tests.limits.judge import Allowance, Use, excess
from tests.limits.taking import limiter

S = 1_000_000


def on(url: str, story: Callable[[RedisLimits], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with connect(url) as client:
            await story(RedisLimits(client))

    asyncio.run(tell())


def test_those_who_come_late_together_get_no_more_than_has_flowed_in(redis_url: str) -> None:
    """As after a store that was away: some are still in time, the others leave their tokens to whoever comes."""
    hundred = Bucket("hundred", "100/s", 10)
    granted: list[Use] = []

    async def story(limits: RedisLimits) -> None:
        async def take(held: str = "") -> Granted | Reserved:
            answer = await limits.take({hundred: 1}, 10, held=held)
            assert isinstance(answer, Granted | Reserved)
            if isinstance(answer, Granted):
                granted.append(Use(answer.at_us))
            return answer

        answers = [await take() for _ in range(40)]
        reserved = [answer for answer in answers if isinstance(answer, Reserved)]
        assert len(reserved) >= 20
        await asyncio.sleep(reserved[-1].wait_s)
        # The latest of them first: they are in time.
        await asyncio.gather(*(take(answer.id) for answer in reversed(reserved)))

    on(redis_url, story)
    assert len(granted) >= 15
    assert excess(granted, Allowance(100, S, 10)) <= 0


def test_what_is_given_back_is_all_that_is_given_back(redis_url: str) -> None:
    """At a rate of which a token is a whole number of microseconds, and at one of which it is not."""
    for rate, count in (("2000/s", 2000), ("3000/s", 3000)):
        bucket = Bucket(f"tokens.{count}", rate, 1000)
        used: list[Use] = []

        async def story(limits: RedisLimits, bucket: Bucket = bucket, used: list[Use] = used) -> None:
            mine = limiter(limits)
            for _ in range(20):
                grant = await mine.acquire({bucket: 300})
                used.append(Use(grant.at_us, 200))
                await mine.settle({bucket: -100}, grant)

        on(redis_url, story)
        assert excess(used, Allowance(count, S, 1000)) <= 0
