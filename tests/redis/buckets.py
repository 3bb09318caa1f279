"""Buckets on a real server: the adapter's calls one by one, what is stored, and how to make it older."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runtime.adapters.redis import keys
from runtime.adapters.redis.buckets import RedisLimits, read_rule
from runtime.core.limits import Answer, Bucket, Costs, Granted, Refused, Reserved, Rule
from tests.redis.store import Store

# What is a moment is made so much smaller; a moment that never was stays 0.
AGE = """
local us = tonumber(ARGV[1])
local function older(moment)
  return string.format('%.0f', moment == '0' and 0 or math.max(0, moment - us))
end
for _, key in ipairs(redis.call('KEYS', 'rt:{limit}:*')) do
  local value = redis.call('TYPE', key).ok == 'string' and redis.call('GET', key) or ''
  local at, full, rest, closed, cursor, last, marks, reserved =
    string.match(value, '^(%d+) (%d+) (%d+ [%d:]+) (%d+) (%d+) (%d+)|([^|]*)|(.*)$')
  local open, probe, told = string.match(value, '^(%d+) (%d+) (.*)$')
  if at then
    marks = string.gsub(marks, '(%d+):(%d+)', function(t, would) return older(t) .. ':' .. older(would) end)
    reserved = string.gsub(reserved, '([^ :]+):(%d+):', function(id, t) return id .. ':' .. older(t) .. ':' end)
    local head = { older(at), older(full), rest, older(closed), older(cursor), older(last) }
    redis.call('SET', key, table.concat(head, ' ') .. '|' .. marks .. '|' .. reserved, 'KEEPTTL')
  elseif open then
    redis.call('SET', key, older(open) .. ' ' .. older(probe) .. ' ' .. told, 'KEEPTTL')
  end
  local till = redis.call('PEXPIRETIME', key)
  if till >= 0 then
    redis.call('PEXPIREAT', key, string.format('%.0f', till - us / 1000))
  end
end
"""


@dataclass(frozen=True)
class Kept:
    """A reservation as it is stored."""

    id: str
    t: int
    n: int
    sure: bool


@dataclass(frozen=True)
class Stored:
    """A bucket's value, read without the scripts. Moments are whole microseconds."""

    at: int
    full: int
    parts: int
    rule: Rule
    closed: int
    cursor: int
    last: int
    marks: tuple[tuple[int, int], ...]
    reserved: tuple[Kept, ...]
    till_ms: int

    @classmethod
    def of(cls, value: str, till_ms: int) -> Stored:
        head, marks, reserved = value.split("|")
        at, full, parts, rule, closed, cursor, last = head.split(" ")
        pairs = [one.split(":") for one in marks.split()]
        kept = [one.split(":") for one in reserved.split()]
        return cls(
            int(at), int(full), int(parts), read_rule(rule), int(closed), int(cursor), int(last),
            tuple((int(t), int(would)) for t, would in pairs),
            tuple(Kept(id, int(t), int(n), sure == "1") for id, t, n, sure in kept),
            till_ms,
        )  # fmt: skip


class Buckets:
    """`RedisLimits`, each call to its end."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.limits = RedisLimits(store.scripts)

    def take(self, costs: Costs, patience_s: float = 0, *, held: str = "", breaker: str | None = None) -> Answer:
        return self.store.run(self.limits.take(costs, patience_s, held=held, breaker=breaker))

    def grant(self, costs: Costs, **how: Any) -> Granted:
        answer = self.take(costs, **how)
        assert isinstance(answer, Granted)
        return answer

    def reserve(self, costs: Costs, patience_s: float = 1e6, **how: Any) -> Reserved:
        answer = self.take(costs, patience_s, **how)
        assert isinstance(answer, Reserved)
        return answer

    def refuse(self, costs: Costs, patience_s: float = 0, **how: Any) -> Refused:
        answer = self.take(costs, patience_s, **how)
        assert isinstance(answer, Refused)
        return answer

    def drain(self, bucket: Bucket) -> int:
        """Take what it has, one by one; how many those were."""
        for taken in range(10 * bucket.rule.burst):
            if not isinstance(self.take({bucket: 1}), Granted):
                return taken
        raise AssertionError("it gives without end")

    def leave(self, costs: Costs, held: str, breaker: str | None = None) -> None:
        self.store.run(self.limits.leave(costs, held, breaker))

    def settle(self, more: Mapping[Bucket, int], granted_us: int) -> None:
        self.store.run(self.limits.settle(more, granted_us))

    def lower(self, left: Mapping[Bucket, int]) -> None:
        self.store.run(self.limits.lower(left))

    def close(self, costs: Costs, wait_s: float) -> None:
        self.store.run(self.limits.close(costs, wait_s))

    def report(self, breaker: str, how: Literal["ok", "failed", "broken"], call: str = "nobody's") -> bool:
        return self.store.run(self.limits.report(breaker, how, call, "no more quota"))

    def set_rule(self, bucket: Bucket, rule: str | None) -> None:
        """As an operator does."""
        if rule is None:
            self.store.redis.delete(keys.bucket_set(bucket.name))
        else:
            self.store.redis.set(keys.bucket_set(bucket.name), rule, ex=86_400)

    def age(self, ms: float) -> None:
        """Make all that is stored older, as if so much time had gone by; below zero: as if the clock was turned back.

        Moments that a caller has (`Granted.at_us`) are the caller's to correct.
        """
        self.store.redis.eval(AGE, 0, round(ms * 1000))

    def stored(self, bucket: Bucket) -> Stored | None:
        key = keys.bucket(bucket.label)
        value, till_ms = self.store.redis.get(key), self.store.redis.pexpiretime(key)
        return None if value is None else Stored.of(value, till_ms)

    def shown(self, bucket: Bucket) -> Stored:
        stored = self.stored(bucket)
        assert stored is not None, "nothing is stored"
        return stored

    def commands(self) -> dict[str, int]:
        """How often each command was called since `forget_commands`, those of scripts too."""
        stats = self.store.redis.info("commandstats")
        return {re.sub("^cmdstat_", "", name): line["calls"] for name, line in stats.items() if "config" not in name}

    def forget_commands(self) -> None:
        self.store.redis.config_resetstat()
