"""Buckets and breakers in Redis: `ports.Limits`. The arithmetic is in the scripts, by the server's clock."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Literal

from runtime.adapters.redis import keys, tally
from runtime.adapters.redis.connection import away_when_lost
from runtime.adapters.redis.scripts import script
from runtime.adapters.redis.tally import Tally
from runtime.core.limits import MOST_EXACT, Answer, Bucket, Costs, Granted, Refused, Reserved, Rule
from runtime.core.text import one_line
from runtime.core.values import frozen
from runtime.ports import Away

PROBE_S = 60.0
"""How long the one call may take that finds out whether a broken provider works again."""
FAILURES = 5
"""So many in a row open a breaker."""
COOL_DOWN_S = 60.0
REMEMBERED_S = 3600.0
KNOWN_S = 30 * keys.DAY_S


class RedisLimits:
    """Every call raises `Away` when the store is lost. What was sent then may or may not have been done: tokens that
    were taken so are lost, a reservation lapses a second after its time."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._mine = secrets.token_hex(4)
        self._number = count(1)
        self._told: dict[str, Rule] = {}
        self._tally = Tally()

    async def take(self, costs: Costs, patience_s: float, *, held: str = "", breaker: str | None = None) -> Answer:
        await self.tell_of(costs)
        call = f"{self._mine}.{next(self._number)}"
        args: list[Any] = [len(costs), call, held, _us(patience_s), _us(PROBE_S)]
        for bucket, cost in costs.items():
            args += [said(bucket.rule), cost]
        with away_when_lost("limit"):
            reply: list[Any] = await _schedule("take")(self._redis, _names(costs, breaker), args)
        what, us, now = bytes(reply[0]), int(reply[1]), int(reply[2])
        latest, probe, watched, its_id = int(reply[3]), reply[4] == 1, reply[5] == 1, bytes(reply[6]).decode()
        dry = list(costs)[latest - 1] if latest else None
        by: str = dry.label if dry else breaker or ""
        answer: Answer
        match what:
            case b"granted":
                answer = Granted(now + us, max(0, us) / 1e6, its_id, probe, watched)
            case b"reserved":
                answer = Reserved(its_id, us / 1e6, by)
            case _:
                answer = Refused(us / 1e6, by, "open" if what == b"open" else "dry")
        self._tally.took(costs, answer, dry.name if dry else by, again=held != "")
        return answer

    async def leave(self, costs: Costs, held: str, breaker: str | None = None) -> None:
        args = [len(costs), held, *(said(bucket.rule) for bucket in costs)]
        with away_when_lost("limit"):
            await _schedule("leave")(self._redis, _names(costs, breaker), args)

    async def settle(self, more: Mapping[Bucket, int], granted_us: int) -> None:
        self._tally.settled(more)
        await self._adjust({bucket: ("settle", _bounded(bucket, n), granted_us) for bucket, n in more.items() if n})

    async def lower(self, left: Mapping[Bucket, int]) -> None:
        await self._adjust({bucket: ("lower", max(0, n), 0) for bucket, n in left.items() if n < bucket.rule.burst})

    async def close(self, costs: Costs, wait_s: float) -> None:
        await self._adjust({bucket: ("close", _us(wait_s), 0) for bucket in costs})
        with suppress(Away):
            await tally.count_met(self._redis, {bucket.name for bucket in costs})

    async def _adjust(self, what: Mapping[Bucket, tuple[str, int, int]]) -> None:
        if not what:
            return
        args: list[Any] = [len(what)]
        for bucket, words in what.items():
            args += [said(bucket.rule), *words]
        with away_when_lost("limit"):
            await _schedule("adjust")(self._redis, _names(what, None), args)

    async def report(self, breaker: str, how: Literal["ok", "failed", "broken"], call: str, reason: str = "") -> bool:
        args = [how, call, FAILURES, _us(COOL_DOWN_S), _us(REMEMBERED_S), one_line(reason)]
        with away_when_lost("limit"):
            state = await _schedule("breaker")(self._redis, [keys.breaker(breaker)], args)
        return bool(state == b"open")

    async def send_counts(self) -> None:
        """Add what was counted here since the last time to what operators see."""
        await self._tally.send(self._redis)

    async def tell_of(self, buckets: Iterable[Bucket]) -> None:
        """Let operators see which limits there are, once for each process."""
        new = {b.name: b.rule for b in buckets if self._told.get(b.name) != b.rule}
        if not new:
            return
        with away_when_lost("limit"):
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(keys.LIMITS_KNOWN, mapping={name: said(rule) for name, rule in new.items()})
                pipe.expire(keys.LIMITS_KNOWN, KNOWN_S)
                await pipe.execute(raise_on_error=False)  # it is for show, and no reason to give nothing
        self._told.update(new)


@frozen
class Level:
    """A bucket, looked at."""

    tokens: float
    """There now; below zero by what is reserved."""
    next_s: float
    """Until one can be had."""
    closed_s: float
    """It gives nothing for so long: the provider said so."""
    waiting: int
    """Reservations whose time is to come."""
    rule: Rule
    """What counts now."""
    set: bool
    """An operator has set that rule."""
    set_for_s: float | None
    """For so long; None: until it is reset."""


@frozen
class BreakerState:
    state: Literal["closed", "open", "half-open"]
    opens_in_s: float
    """Until it lets a probe through."""
    failures: int
    probing: bool
    reason: str


async def look(
    redis: Any, buckets: Sequence[Bucket], breakers: Sequence[str] = ()
) -> tuple[list[Level], list[BreakerState]]:
    """How these are, without changing them."""
    names = _names(dict.fromkeys(buckets), None) + [keys.breaker(name) for name in breakers]
    reply = await _schedule("look")(redis, names, [len(buckets), *(said(bucket.rule) for bucket in buckets)])
    levels = [
        Level(
            tokens=float(reply[a]),
            next_s=int(reply[a + 1]) / 1e6,
            closed_s=int(reply[a + 2]) / 1e6,
            waiting=reply[a + 3],
            rule=read_rule(reply[a + 4].decode()),
            set=reply[a + 5] == 1,
            set_for_s=int(reply[a + 6]) / 1e6 if int(reply[a + 6]) >= 0 else None,
        )
        for a in range(0, 7 * len(buckets), 7)
    ]
    states = [
        BreakerState(
            reply[a].decode(), int(reply[a + 1]) / 1e6, reply[a + 2], reply[a + 3] == 1,
            reply[a + 4].decode("utf-8", "backslashreplace"),
        )
        for a in range(7 * len(buckets), len(reply), 6)
    ]  # fmt: skip
    return levels, states


def read_rule(said: str) -> Rule:
    """A rule as it is kept."""
    return Rule(*(int(part) for part in said.split(":")))


def _schedule(name: str) -> Any:
    return script(name, "schedule")


def _names(costs: Mapping[Bucket, object], breaker: str | None) -> list[str]:
    names = [keys.bucket(bucket.label) for bucket in costs] + [keys.bucket_set(bucket.name) for bucket in costs]
    return [*names, keys.breaker(breaker)] if breaker else names


def said(its: Rule) -> str:
    """A rule as the scripts read it."""
    return f"{its.count}:{its.period_us}:{its.burst}"


def _us(length_s: float) -> int:
    return round(length_s * 1e6)


def _bounded(bucket: Bucket, tokens: int) -> int:
    """What can be counted exactly; nobody means more."""
    most = MOST_EXACT // bucket.rule.period_us
    return max(-bucket.rule.burst, min(tokens, most))
