"""take.lua, adjust.lua, leave.lua: buckets that all workers share. Time is made to go by by making the data older."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from runtime.adapters.redis.buckets import RedisLimits, said
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.scripts import script
from runtime.core.errors import LimitInvalid
from runtime.core.limits import Bucket, Granted, Refused, Reserved, wanted
from runtime.ports import Away
from tests.redis.buckets import Buckets
from tests.redis.store import Store
from tests.servers import Server

SLOW = Bucket("slow", "1/m", 10)
ONE = Bucket("one", "1/m", 1)
"""In the time of a test nothing flows in, of these."""


@pytest.fixture
def buckets(store: Store) -> Buckets:
    return Buckets(store)


# -- what every distributed limiter gets wrong sooner or later


def test_time_is_the_servers(buckets: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    for clock in ("time", "time_ns"):
        monkeypatch.setattr(time, clock, lambda: 0)
    before = buckets.store.now_ms()
    granted = buckets.grant({SLOW: 1})
    assert before <= granted.at_us / 1000 <= buckets.store.now_ms()


def test_numbers_keep_every_digit(buckets: Buckets) -> None:
    thirds = Bucket("thirds", "3/1000s", 1)
    first = buckets.grant({thirds: 1})
    second = buckets.reserve({thirds: 1})
    stored = buckets.shown(thirds)
    assert (stored.full, stored.parts, stored.rule.count) == (first.at_us + 333_333_333, 1, 3)
    assert stored.reserved[0].t == first.at_us + 333_333_334
    assert round(second.wait_s * 1e6) == stored.reserved[0].t - stored.at


def test_fractions_of_a_token_survive_any_number_of_touches(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 10}).at_us
    for _ in range(100):
        buckets.refuse({SLOW: 1})
        buckets.age(500)
    assert buckets.shown(SLOW).full == granted + 600_000_000 - 50_000_000
    buckets.age(10_000)
    buckets.grant({SLOW: 1})


def test_a_bucket_in_debt_is_kept_until_it_is_full(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 10})
    buckets.settle({SLOW: 25}, granted.at_us)
    full_us = granted.at_us + 35 * 60_000_000
    stored = buckets.shown(SLOW)
    assert stored.full == full_us
    assert stored.till_ms == (full_us + 1 + 999) // 1000
    buckets.age(35 * 60_000 - 1_000)
    assert buckets.stored(SLOW) is not None
    buckets.age(1_000)
    assert buckets.stored(SLOW) is None
    buckets.grant({SLOW: 10})


def test_a_key_lives_for_a_second_at_least(buckets: Buckets) -> None:
    fast = Bucket("fast", "1000000/s", 1)
    granted = buckets.grant({fast: 1})
    assert buckets.shown(fast).till_ms == (granted.at_us + 1_000_000 + 999) // 1000


def test_a_key_outlives_the_last_part_of_a_microsecond(buckets: Buckets) -> None:
    sevenths = Bucket("sevenths", "7/h", 7)
    full_ms = round(buckets.store.now_ms()) + 600_000
    value = f"{full_ms * 1000 - 600_000_000} {full_ms * 1000} 3 7:3600000000:7 0 0 0||"
    buckets.store.redis.set(keys.bucket(sevenths.label), value, ex=3600)
    buckets.lower({sevenths: 6})
    assert buckets.shown(sevenths).till_ms == full_ms + 1


def test_what_is_reserved_is_kept_until_nobody_may_come_for_it(buckets: Buckets) -> None:
    first = buckets.grant({ONE: 1})
    buckets.reserve({ONE: 1})
    assert buckets.shown(ONE).till_ms == (first.at_us + 120_000_001 + 1_000_000 + 999) // 1000


def test_a_closure_is_kept_as_long_as_it_lasts(buckets: Buckets) -> None:
    buckets.close({ONE: 1}, 30)
    assert buckets.shown(ONE).till_ms >= buckets.store.now_ms() + 29_000


def test_more_than_a_bucket_holds_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(LimitInvalid, match="more than it ever holds"):
        wanted({SLOW: 11})


def test_more_than_an_operator_has_left_room_for_is_given_by_a_full_bucket(buckets: Buckets) -> None:
    buckets.set_rule(SLOW, "1:1000000:2")
    granted = buckets.grant({SLOW: 5})
    again = buckets.reserve({SLOW: 5})
    assert buckets.shown(SLOW).reserved[0].t == granted.at_us + 5_000_000
    assert again.by == "slow"


def test_a_clock_that_is_turned_back_gives_nothing_and_takes_nothing(buckets: Buckets) -> None:
    buckets.grant({ONE: 1})
    waiting = buckets.reserve({ONE: 1})
    buckets.age(-3_600_000)
    refused = buckets.refuse({ONE: 1})
    assert 119 < refused.wait_s <= 120
    stored = buckets.shown(ONE)
    assert stored.at <= 1000 * buckets.store.now_ms()
    assert stored.reserved[0].t - stored.at <= 60_000_000
    _age_to(buckets, stored.reserved[0].t - 100_000)
    assert buckets.grant({ONE: 1}, held=waiting.id).id == waiting.id


def test_what_was_granted_by_another_clock_is_not_refunded(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 5}).at_us
    buckets.age(-60_000 * 60)
    buckets.grant({SLOW: 5})
    buckets.settle({SLOW: -5}, granted + 3_600_000_000)
    buckets.refuse({SLOW: 1})


def test_scripts_are_sent_again_to_a_server_that_has_lost_them(buckets: Buckets) -> None:
    buckets.grant({SLOW: 9})
    buckets.store.redis.script_flush()
    buckets.grant({SLOW: 1})
    buckets.store.redis.script_flush()
    buckets.close({SLOW: 1}, 1)
    buckets.store.redis.script_flush()
    buckets.leave({SLOW: 1}, "nobody's")
    buckets.store.redis.script_flush()
    assert not buckets.report("b", "failed")


def test_a_restart_loses_no_bucket_that_is_on_disk(tmp_path: Path) -> None:
    with Server(tmp_path) as server, Store(server.url) as store:
        buckets = Buckets(store)
        buckets.grant({SLOW: 10})
        server.restart()
        assert buckets.refuse({SLOW: 1}).wait_s > 50


class Cluster(Server):
    """A cluster of one."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--cluster-enabled", "yes"]


def test_several_buckets_are_in_one_slot_of_a_cluster() -> None:
    with Cluster() as server, Redis.from_url(server.url) as redis, Store(server.url) as store:
        redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        store.until(lambda: b"cluster_state:ok" in redis.execute_command("CLUSTER", "INFO"))
        buckets, tenant = Buckets(store), SLOW["a} tenant {b"]
        costs = {SLOW: 10, ONE: 1, tenant: 2}
        buckets.grant(costs, breaker="api")
        assert buckets.refuse(costs, breaker="api").by == "slow"
        buckets.leave(costs, "nobody's", "api")
        buckets.close(costs, 1)
        slots = {redis.execute_command("CLUSTER", "KEYSLOT", key) for key in redis.keys("*")}
        assert len(slots) == 1


def test_one_bucket_serves_many_takers(buckets: Buckets) -> None:
    """Takes of a bucket are one after the other. 2,000 of a hot one on a slow and busy machine; bars are generous."""
    hot = Bucket("hot", "100000/s", 100)
    takers = [RedisLimits(connect(buckets.store.url)) for _ in range(8)]

    async def take(limits: RedisLimits) -> None:
        for _ in range(250):
            await limits.take({hot: 1}, 0)
        await limits._redis.aclose()

    async def all_take() -> None:
        await asyncio.gather(*map(take, takers))

    since = time.monotonic()
    buckets.store.run(all_take())
    assert 2000 / (time.monotonic() - since) > 200
    assert buckets.store.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] < 2_000


def test_a_take_costs_the_script_two_commands_and_one_for_each_bucket(buckets: Buckets) -> None:
    costs = {SLOW: 5, ONE: 1}
    granted = buckets.grant(costs, breaker="api")
    for call, cost in (
        (partial(buckets.grant, {SLOW: 1}), {"set": 1}),
        (partial(buckets.refuse, costs, breaker="api"), {"set": 2}),
        (partial(buckets.reserve, costs, breaker="api"), {"set": 2}),
        (partial(buckets.leave, costs, "nobody's", "api"), {}),
        (partial(buckets.settle, {SLOW: -1}, granted.at_us), {"set": 1}),
    ):
        buckets.store.redis.ping()
        buckets.forget_commands()
        call()
        spent = {name: n for name, n in buckets.commands().items() if name not in ("info", "eval", "script|load")}
        assert spent.pop("evalsha", 1) == 1
        assert spent == {"time": 1, "mget": 1, **cost}


def test_two_deploys_with_different_rules_share_a_bucket_and_corrupt_nothing(buckets: Buckets) -> None:
    old, new = Bucket("api", "7/3s", 7), Bucket("api", "10/3s", 10)
    given = [0, 0]
    since = buckets.store.now_ms()
    for turn in range(60):
        for which, bucket in enumerate((old, new)):
            given[which] += isinstance(buckets.take({bucket: 1}), Granted)
            assert buckets.shown(bucket).rule == bucket.rule
        buckets.age(100 + turn % 3)
    passed_s = (buckets.store.now_ms() - since) / 1000 + 60 * 0.102
    assert 10 <= sum(given) <= 10 + passed_s * 10 / 3
    assert given[0] > 0
    assert given[1] > 0


OBEY = """
%s
local was, rule, ahead, parts, closed = rule_of(ARGV[1]), rule_of(ARGV[2]), unpack(ARGV, 3)
local now = 1700000000000000
local bucket = { rule = rule, full = now + ahead, parts = tonumber(parts), closed = now + closed, last = 0, marks = {} }
obey(bucket, was, now)
return { whole(bucket.full - now), bucket.parts }
"""


@pytest.mark.parametrize(
    ("was", "rule", "ahead_us", "parts", "closed_us", "becomes_us"),
    [
        ("1:60000000:5", "1:1000000:5", 300_000_000, 0, 0, 5_000_000),  # empty, and a higher rate
        ("1:1000000:5", "1:60000000:5", 5_000_000, 0, 0, 300_000_000),  # empty, and a lower rate
        ("1:1000000:5", "1:1000000:2", 5_000_000, 0, 0, 2_000_000),  # empty, and it holds less
        ("1:1000000:5", "1:1000000:2", 1_000_000, 0, 0, 0),  # four tokens, of which two fit
        ("1:1000000:2", "1:1000000:5", 500_000, 0, 0, 3_500_000),  # one and a half, and it would hold five
        ("1:1000000:2", "1:1000000:5", -9_000_000, 0, 0, 3_000_000),  # two
        ("1:1000000:2", "2:1000000:2", 7_000_000, 0, 0, 3_500_000),  # a debt of five
        ("1:1000000:5", "10:1000000:5", 604_000_000, 0, 600_000_000, 600_400_000),  # one, when it is open again
        ("3:1000:1", "1:1000000:1", 333, 1, 0, 1_000_000),  # one, and not 0.999
        ("1000000000:1:1", "1:86400000000:1", 10**12, 0, 0, 2**51),  # a debt for more than all time
    ],
)
def test_by_another_rule_there_are_as_many_tokens_as_before_if_they_fit(
    store: Store, was: str, rule: str, ahead_us: int, parts: int, closed_us: int, becomes_us: int
) -> None:
    source, header, _ = script("look", "schedule").source.decode().partition("-- Looks at buckets")
    assert header
    told = store.redis.eval(OBEY % source, 0, was, rule, ahead_us, parts, closed_us)
    assert [int(told[0]), told[1]] == [becomes_us, 0]


def test_an_empty_bucket_gives_by_the_new_rate_at_once(buckets: Buckets) -> None:
    hourly = Bucket("api", "1/h", 1)
    buckets.grant({hourly: 1})
    buckets.set_rule(hourly, "2:1000000:1")
    assert 0.4 < buckets.reserve({hourly: 1}).wait_s <= 0.5
    buckets.set_rule(hourly, "1:60000000:1")
    buckets.limits = RedisLimits(buckets.store.scripts)
    assert 110 < buckets.reserve({hourly: 1}).wait_s <= 120, "after who waits already"


def test_what_was_granted_by_another_rule_is_not_refunded(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 5})
    buckets.set_rule(SLOW, "1:30000000:10")
    buckets.settle({SLOW: -5}, granted.at_us)
    assert buckets.drain(SLOW) == 5


def test_a_limiter_that_is_idle_says_nothing(buckets: Buckets) -> None:
    buckets.grant({ONE: 1})
    buckets.reserve({ONE: 1})
    buckets.forget_commands()

    async def idle() -> None:
        await asyncio.sleep(0.3)

    buckets.store.run(idle())
    assert buckets.commands().keys() <= {"info"}


def test_after_a_closure_one_comes_first_and_the_others_by_the_rate(buckets: Buckets) -> None:
    ten = Bucket("ten", "10/s", 10)
    waiting = [buckets.reserve({ten: 1}) for _ in range(4) if buckets.drain(ten) or True]
    buckets.close({ten: 1}, 5)
    closed = buckets.shown(ten).closed
    again = [buckets.reserve({ten: 1}, held=one.id) for one in waiting]
    assert [one.id for one in waiting] != [one.id for one in again]
    buckets.reserve({ten: 1})
    assert [one.t - closed for one in buckets.shown(ten).reserved] == [0, 100_000, 200_000, 300_000, 400_000]


def test_a_closure_holds_whoever_closes_for_less(buckets: Buckets) -> None:
    buckets.close({SLOW: 1}, 20)
    buckets.close({SLOW: 1}, 1)
    assert 19 < buckets.refuse({SLOW: 1}).wait_s <= 20


def test_a_closure_holds_whatever_rule_an_operator_sets(buckets: Buckets) -> None:
    buckets.close({SLOW: 1}, 20)
    buckets.set_rule(SLOW, "1:1000:10000000")
    assert 19 < buckets.refuse({SLOW: 1}).wait_s <= 20


def test_a_refund_does_not_undo_a_closure(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 5})
    buckets.close({SLOW: 1}, 0)
    buckets.settle({SLOW: -5}, granted.at_us)
    buckets.grant({SLOW: 1})
    buckets.refuse({SLOW: 1})


def test_a_refund_does_not_undo_the_closure_of_an_empty_bucket(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 10})
    buckets.close({SLOW: 1}, 0)
    buckets.settle({SLOW: -5}, granted.at_us)
    buckets.refuse({SLOW: 1})


@pytest.mark.parametrize(("before", "after"), [(3, 5), (6, 6)])
def test_a_closure_leaves_one_token_to_the_part_of_a_microsecond(buckets: Buckets, before: int, after: int) -> None:
    sevenths = Bucket("sevenths", "7/h", 7)
    now_us = round(buckets.store.now_ms() * 1000)
    closed, full = now_us + 600_000_000, now_us + 600_000_000 + 6 * 3_600_000_000 // 7
    value = f"{now_us} {full} {before} {said(sevenths.rule)} {closed} 0 0||"
    buckets.store.redis.set(keys.bucket(sevenths.label), value, ex=3600)
    buckets.close({sevenths: 1}, 0)
    stored = buckets.shown(sevenths)
    assert (stored.full, stored.parts) == (full, after)


def test_what_is_about_to_be_used_counts_in_spite_of_a_closure(buckets: Buckets) -> None:
    fifth = Bucket("fifth", "5/s", 1)
    buckets.grant({fifth: 1})
    waiting = buckets.reserve({fifth: 1})
    soon = buckets.grant({fifth: 1}, held=waiting.id)
    assert soon.id == waiting.id
    buckets.close({fifth: 1}, 0)
    buckets.reserve({fifth: 1})
    assert [one.t for one in buckets.shown(fifth).reserved][1:] == [soon.at_us + 200_000]


def test_nothing_is_given_while_the_server_is_away(server: Server, redis_url: str) -> None:
    with Store(redis_url) as store:
        buckets = Buckets(store)
        buckets.grant({SLOW: 1})
        server.kill()
        for call in (
            partial(buckets.take, {SLOW: 1}),
            partial(buckets.settle, {SLOW: 1}, 1),
            partial(buckets.report, "b", "ok"),
        ):
            with pytest.raises(Away):
                call()
        server.start()
        buckets.grant({SLOW: 1})


# -- exactness

MILLION = """
local moment, value = 1700000000000000, false
local redis = { call = function(name, _, what)
  if name == 'SET' then
    value = what
  end
end }
%s
local rule = { count = 7, period = 3000000, burst = 10 }
local bucket = read('', value, rule, moment)
local wrong, first = 0, moment
for k = 1, 1000000 do
  moment = earliest(bucket, moment, 1)
  local expected = first + math.max(0, math.ceil((k - rule.burst) * rule.period / rule.count))
  wrong = wrong + (moment == expected and 0 or 1)
  spend(bucket, moment, 1)
  if k %% 50 == 0 then
    write(bucket, moment)
    bucket = read('', value, rule, moment)
  end
end
return { wrong, string.format('%%.0f', moment - first) }
"""


def test_a_million_takes_of_a_fractional_rate_do_not_drift_by_a_microsecond(store: Store) -> None:
    source = (files("runtime.adapters.redis") / "lua" / "schedule.lua").read_text()
    wrong, passed_us = store.redis.eval(MILLION % source, 0)
    assert wrong == 0
    assert int(passed_us) == -(-(1_000_000 - 10) * 3_000_000 // 7)


@pytest.mark.parametrize(
    ("rate", "burst"),
    [("1/366d", 70), ("71/366d", 70), ("10000/d", 10_000), ("2251799813/s", 2_251_798), ("225179981300000/s", 1)],
)
def test_a_rule_at_the_edge_of_what_is_counted_exactly_is(buckets: Buckets, rate: str, burst: int) -> None:
    edge = Bucket("edge", rate, burst)
    its = edge.rule
    granted = buckets.grant({edge: its.burst})
    stored = buckets.shown(edge)
    full = granted.at_us + Fraction(its.burst * its.period_us, its.count)
    assert stored.full + Fraction(stored.parts, stored.rule.count) == full
    if isinstance(buckets.take({edge: its.burst}, 1e12), Reserved):  # else it is full again already
        assert buckets.shown(edge).reserved[0].t == -(-full.numerator // full.denominator)


def test_the_time_to_come_is_in_order_and_as_late_as_the_rate(buckets: Buckets) -> None:
    granted = buckets.grant({ONE: 1})
    for _ in range(5):
        buckets.reserve({ONE: 1})
    assert [one.t - granted.at_us for one in buckets.shown(ONE).reserved] == [60e6, 120e6, 180e6, 240e6, 300e6]


# -- several buckets


def test_several_are_debited_all_or_none(buckets: Buckets) -> None:
    buckets.drain(ONE)
    assert buckets.refuse({SLOW: 3, ONE: 1}).by == "one"
    assert buckets.drain(SLOW) == 10


def test_who_waits_for_one_bucket_leaves_the_others_to_others_meanwhile(buckets: Buckets) -> None:
    ten = Bucket("ten", "10/s", 10)
    buckets.grant({SLOW: 10})
    buckets.reserve({SLOW: 1, ten: 10})  # in a minute
    assert buckets.drain(ten) == 10


def test_what_is_reserved_for_later_is_not_overrun_by_who_comes_before(buckets: Buckets) -> None:
    buckets.grant({ONE: 1})
    buckets.grant({SLOW: 8})
    wants_all = buckets.reserve({ONE: 1, SLOW: 2})
    assert wants_all.by == "one"
    assert buckets.refuse({SLOW: 1}).wait_s > 50
    buckets.leave({ONE: 1, SLOW: 2}, wants_all.id)
    assert buckets.drain(SLOW) == 2


def test_too_much_that_is_reserved_for_later_keeps_nobody_back_now(buckets: Buckets) -> None:
    """Somebody has made the bucket smaller since."""
    now_us = round(buckets.store.now_ms() * 1000)
    later = " ".join(f"r.{n}:{now_us + 3_600_000_000}:9:0" for n in range(3))
    buckets.store.redis.set(keys.bucket(SLOW.label), f"{now_us} {now_us} 0 {said(SLOW.rule)} 0 0 0||{later}", ex=7200)
    assert buckets.drain(SLOW) == 10


def test_the_one_that_has_them_latest_is_named(buckets: Buckets) -> None:
    two = Bucket("two", "1/2m", 1)
    buckets.grant({ONE: 1, two: 1})
    assert buckets.reserve({two: 1, ONE: 1}).by == "two"
    assert buckets.refuse({ONE: 1, two: 1}).by == "two"


# -- asking again


def _waiting(buckets: Buckets, bucket: Bucket = ONE) -> tuple[Reserved, int]:
    buckets.drain(bucket)
    waiting = buckets.reserve({bucket: 1})
    return waiting, buckets.shown(bucket).reserved[0].t


def _age_to(buckets: Buckets, moment_us: int) -> None:
    buckets.age(moment_us / 1000 - buckets.store.now_ms())


@pytest.mark.parametrize("ms", [-200, 0, 30])
def test_who_asks_in_time_is_granted_what_is_reserved(buckets: Buckets, ms: int) -> None:
    for _ in range(20):
        buckets.store.raw.flushall()
        waiting, t = _waiting(buckets)
        _age_to(buckets, t + ms * 1000)
        t = buckets.shown(ONE).reserved[0].t
        granted = buckets.grant({ONE: 1}, held=waiting.id)
        stored = buckets.shown(ONE)
        if stored.at <= t + 50_000:  # else this machine was held up
            break
    assert (granted.id, granted.at_us) == (waiting.id, t)
    assert granted.rest_s == max(0, t - stored.at) / 1e6
    assert stored.reserved[0].sure


def test_who_asks_too_late_is_given_a_new_time(buckets: Buckets) -> None:
    waiting, t = _waiting(buckets)
    _age_to(buckets, t + 60_000)
    granted = buckets.grant({ONE: 1}, held=waiting.id)
    assert granted.id != waiting.id
    assert granted.at_us == buckets.shown(ONE).last
    buckets.refuse({ONE: 1})


def test_who_asks_too_early_waits_again(buckets: Buckets) -> None:
    waiting, t = _waiting(buckets)
    again = buckets.reserve({ONE: 1}, held=waiting.id)
    assert [(one.id, one.t) for one in buckets.shown(ONE).reserved] == [(again.id, t)]


def test_who_was_granted_may_ask_again_before_its_time(buckets: Buckets) -> None:
    """The reply was lost."""
    fifth = Bucket("fifth", "5/s", 1)
    waiting, t = _waiting(buckets, fifth)
    for _ in range(2):
        assert buckets.grant({fifth: 1}, held=waiting.id).at_us == t


def test_what_nobody_asks_for_goes_to_others_a_second_after_its_time(buckets: Buckets) -> None:
    long = Bucket("long", "1/h", 1)
    _, t = _waiting(buckets, long)
    _age_to(buckets, t + 400_000)
    buckets.refuse({long: 1})
    buckets.age(600)
    buckets.grant({long: 1})
    assert buckets.shown(long).reserved == ()


def test_what_is_left_goes_to_others_at_once(buckets: Buckets) -> None:
    waiting, _ = _waiting(buckets)
    behind = buckets.reserve({ONE: 1})
    buckets.leave({ONE: 1}, waiting.id)
    next_one = buckets.reserve({ONE: 1})
    assert [one.id for one in buckets.shown(ONE).reserved] == [next_one.id, behind.id]
    buckets.leave({ONE: 1}, waiting.id)  # twice is as once
    assert len(buckets.shown(ONE).reserved) == 2


def test_who_asks_again_and_is_refused_has_given_back_what_it_held(buckets: Buckets) -> None:
    waiting, _ = _waiting(buckets)
    buckets.refuse({ONE: 1}, held=waiting.id)
    assert buckets.shown(ONE).reserved == ()


def test_who_is_refused_comes_back_one_after_the_other_for_a_minute(buckets: Buckets) -> None:
    tenth = Bucket("tenth", "1/10s", 1)
    buckets.grant({tenth: 1})
    waits = [buckets.refuse({tenth: 1}).wait_s for _ in range(9)]
    assert [round(wait / 10) for wait in waits] == [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert buckets.shown(tenth).reserved == ()


def test_patience_is_enough_or_nothing_is_taken(buckets: Buckets) -> None:
    granted = buckets.grant({ONE: 1})
    buckets.refuse({ONE: 1}, 30)
    buckets.refuse({ONE: 1}, -1)
    buckets.grant({SLOW: 1}, patience_s=-1)
    buckets.reserve({ONE: 1}, 60)
    assert buckets.shown(ONE).reserved[0].t == granted.at_us + 60_000_000


def test_no_more_than_500_wait_at_a_bucket(buckets: Buckets) -> None:
    hot = Bucket("hot", "1/10s", 1)
    buckets.grant({hot: 1})
    answers = [buckets.take({hot: 1}, 1e6) for _ in range(502)]
    assert [type(answer) for answer in answers] == [Reserved] * 500 + [Refused] * 2
    assert answers[-1].wait_s > 4_900  # type: ignore[union-attr]
    buckets.refuse({hot: 1, SLOW: 1}, 1e6)
    buckets.forget_commands()
    for _ in range(20):
        buckets.take({hot: 1}, 0)
    per_call = buckets.store.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
    assert per_call < 20_000  # 1,500 on two slow cores
    buckets.age(6_000_000)
    buckets.grant({hot: 1})


def test_however_many_wait_what_is_there_now_is_given(buckets: Buckets) -> None:
    now_us = round(buckets.store.now_ms() * 1000)
    later = " ".join(f"r.{n}:{now_us + 3_600_000_000 * (n + 10)}:1:0" for n in range(500))
    buckets.store.redis.set(keys.bucket(SLOW.label), f"{now_us} {now_us} 0 {said(SLOW.rule)} 0 0 0||{later}", ex=3600)
    buckets.grant({SLOW: 1})


def test_two_full_buckets_with_gaps_in_turn_are_searched_in_bounded_time(buckets: Buckets) -> None:
    one, other = Bucket("left", "10/s", 1), Bucket("right", "10/s", 1)
    now_us = round(buckets.store.now_ms() * 1000)
    for offset_us, bucket in ((0, one), (50_000, other)):
        kept = " ".join(f"r.{n}:{now_us + offset_us + 100_000 * n}:1:0" for n in range(1, 500))
        buckets.store.redis.set(
            keys.bucket(bucket.label), f"{now_us} {now_us} 0 {said(bucket.rule)} 0 0 0||{kept}", ex=600
        )
    buckets.refuse({one: 1, other: 1})
    buckets.forget_commands()
    assert 49 < buckets.reserve({one: 1, other: 1}).wait_s < 51
    assert buckets.store.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] < 500_000


def test_one_that_died_does_not_make_a_busy_bucket_slow(buckets: Buckets) -> None:
    """What is used after the dead one's time is kept apart until it is seen that nobody comes; but not without end."""
    fast = Bucket("fast", "100000/s", 1000)
    now_us = round(buckets.store.now_ms() * 1000)
    used = " ".join(f"u.{n}:{now_us - 60_000 + n}:1:1" for n in range(10_000))
    value = f"{now_us} {now_us} 0 {said(fast.rule)} 0 0 0||dead.1:{now_us - 70_000}:1:0 {used}"
    buckets.store.redis.set(keys.bucket(fast.label), value, ex=600)
    assert isinstance(buckets.take({fast: 1}), Refused)
    assert buckets.shown(fast).reserved == ()


def test_one_that_may_be_late_is_waited_for_however_many_are_to_come(buckets: Buckets) -> None:
    slow = Bucket("many", "1/h", 1)
    now_us = round(buckets.store.now_ms() * 1000)
    to_come = " ".join(f"r.{n}:{now_us + 3_600_000_000 * n}:1:0" for n in range(1, 200))
    value = f"{now_us} {now_us - 500_000} 0 {said(slow.rule)} 0 0 0||late.1:{now_us - 300_000}:1:0 {to_come}"
    buckets.store.redis.set(keys.bucket(slow.label), value, ex=3600)
    buckets.refuse({slow: 1})
    assert buckets.shown(slow).reserved[0].id == "late.1"


def test_what_is_used_after_one_that_may_be_late_is_kept_in_its_order(buckets: Buckets) -> None:
    now_us = round(buckets.store.now_ms() * 1000)
    kept = f"late.1:{now_us - 300_000}:1:0 used.1:{now_us - 200_000}:1:1"
    value = f"{now_us} {now_us - 500_000} 0 {said(SLOW.rule)} 0 0 0||{kept}"
    buckets.store.redis.set(keys.bucket(SLOW.label), value, ex=3600)
    buckets.grant({SLOW: 1})
    stored = buckets.shown(SLOW)
    assert [one.id for one in stored.reserved[:2]] == ["late.1", "used.1"]
    assert stored.full == now_us - 500_000
    buckets.age(1_000)
    buckets.grant({SLOW: 1})
    assert buckets.shown(SLOW).full == now_us - 1_200_000 + 3 * 60_000_000


# -- settling


def test_what_was_not_used_is_given_back(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 9})
    buckets.settle({SLOW: -4}, granted.at_us)
    assert buckets.shown(SLOW).full == granted.at_us + 5 * 60_000_000
    assert buckets.drain(SLOW) == 5


def test_what_was_used_beyond_is_owed(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 9})
    buckets.settle({SLOW: 4}, granted.at_us)
    assert buckets.refuse({SLOW: 1}).wait_s == pytest.approx(4 * 60, abs=5)


def test_no_refund_makes_a_bucket_more_than_full(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 2})
    buckets.settle({SLOW: -10}, granted.at_us)
    assert buckets.drain(SLOW) == 10


def test_a_bucket_that_has_been_full_since_refunds_nothing(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 8})
    buckets.age(8 * 60_000)
    buckets.grant({SLOW: 10})
    buckets.settle({SLOW: -8}, granted.at_us - 8 * 60_000_000)
    buckets.refuse({SLOW: 1})


def test_refunds_of_many_calls_are_not_more_than_the_bucket_had_room_for(buckets: Buckets) -> None:
    one = buckets.grant({SLOW: 5})
    other = buckets.grant({SLOW: 5})
    by_ms = 5 * 60_000
    buckets.age(by_ms)
    buckets.grant({SLOW: 5})  # of a bucket that is half full: with both refunds it would have been full
    for granted in (one, other):
        buckets.settle({SLOW: -5}, granted.at_us - by_ms * 1000)
    assert buckets.drain(SLOW) <= 5


def test_a_busy_bucket_refunds_all(buckets: Buckets) -> None:
    """What was not used is used by the next: 60 a minute, calls of 10 s that use half of what they ask."""
    tokens = Bucket("tokens", "60/m", 60)
    buckets.drain(tokens)
    under_way: list[tuple[int, int]] = []
    passed_ms, used = 0, 0
    while passed_ms < 600_000:
        while isinstance(granted := buckets.take({tokens: 10}), Granted):
            under_way.append((passed_ms, granted.at_us + passed_ms * 1000))
        buckets.age(1_000)
        passed_ms += 1_000
        while under_way and under_way[0][0] <= passed_ms - 10_000:
            buckets.settle({tokens: -5}, under_way.pop(0)[1] - passed_ms * 1000)
            used += 5
    assert used / 600 > 0.9
    assert len(buckets.shown(tokens).marks) == 4


def test_what_was_used_between_is_in_the_way_of_a_refund(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 1}).at_us
    buckets.grant({SLOW: 9})
    buckets.age(5 * 60_000)
    buckets.grant({SLOW: 5})
    buckets.settle({SLOW: -1}, granted - 5 * 60_000_000)
    buckets.refuse({SLOW: 1})


def test_a_refund_of_nothing_costs_nothing(buckets: Buckets) -> None:
    sevenths = Bucket("sevenths", "7/h", 7)
    granted = buckets.grant({sevenths: 3}).at_us
    buckets.grant({sevenths: 1})
    full = buckets.shown(sevenths).full
    buckets.settle({sevenths: -3}, granted)
    assert buckets.shown(sevenths).full == full


def test_what_is_full_after_a_refund_owes_no_part_of_a_microsecond(buckets: Buckets) -> None:
    sevenths = Bucket("sevenths", "7/h", 7)
    granted = buckets.grant({sevenths: 3}).at_us
    buckets.age(1_000_000)
    buckets.settle({sevenths: -2}, granted - 1_000_000_000)
    stored = buckets.shown(sevenths)
    assert (stored.full, stored.parts) == (stored.at, 0)


def test_an_older_mark_is_no_fuller_than_a_later_one_after_a_refund(buckets: Buckets) -> None:
    minute = 60_000_000
    now_us = round(buckets.store.now_ms() * 1000)
    marks = f"{now_us - 10 * minute}:{now_us + 18 * minute} {now_us - 5 * minute}:{now_us + 17 * minute}"
    value = f"{now_us} {now_us + 20 * minute} 0 {said(SLOW.rule)} 0 0 {now_us - minute}|{marks}|"
    buckets.store.redis.set(keys.bucket(SLOW.label), value, ex=3600)
    buckets.settle({SLOW: -5}, now_us - 4 * minute)
    stored = buckets.shown(SLOW)
    assert stored.full == now_us + 17 * minute
    assert [would for _, would in stored.marks] == [now_us + 17 * minute] * 2


def test_a_lost_key_refunds_nothing(buckets: Buckets) -> None:
    buckets.settle({SLOW: -10}, round(buckets.store.now_ms() * 1000))
    assert buckets.drain(SLOW) == 10


# -- what a provider says


def test_a_provider_that_has_less_left_lowers_the_bucket(buckets: Buckets) -> None:
    buckets.lower({SLOW: 3})
    assert buckets.drain(SLOW) == 3


def test_each_bucket_is_lowered_to_what_is_said_of_it(buckets: Buckets) -> None:
    other = Bucket("other", "1/m", 5)
    buckets.lower({SLOW: 3, other: 1})
    assert (buckets.drain(SLOW), buckets.drain(other)) == (3, 1)


def test_a_provider_that_has_more_left_raises_nothing(buckets: Buckets) -> None:
    buckets.drain(SLOW)
    buckets.lower({SLOW: 9, ONE: 1_000})
    assert buckets.drain(SLOW) == 0


def test_less_than_nothing_left_is_nothing(buckets: Buckets) -> None:
    buckets.lower({SLOW: -1_000_000})
    assert buckets.refuse({SLOW: 1}).wait_s <= 60


def test_what_was_granted_before_a_provider_said_so_is_not_refunded(buckets: Buckets) -> None:
    granted = buckets.grant({SLOW: 4})
    buckets.lower({SLOW: 2})
    buckets.settle({SLOW: -4}, granted.at_us)
    assert buckets.drain(SLOW) == 2


# -- what operators and strangers have put there


def test_an_operators_rule_goes_before_the_declared_one(buckets: Buckets) -> None:
    buckets.set_rule(SLOW, "1:60000000:3 for the weekend")
    assert buckets.drain(SLOW) == 3
    buckets.set_rule(SLOW, None)
    assert buckets.drain(SLOW) == 0, "what it had not is not given by a change of rules"


@pytest.mark.parametrize("rule", ["", "nonsense", "0:1000:5", "1:0:5", "-1:5:5"])
def test_an_operators_rule_that_is_none_changes_nothing(buckets: Buckets, rule: str) -> None:
    buckets.set_rule(SLOW, rule)
    assert buckets.drain(SLOW) == 10


def test_keys_of_wrong_types_stop_nobody(buckets: Buckets) -> None:
    names = keys.bucket(SLOW.label), keys.bucket_set(SLOW.name), keys.breaker("api"), keys.LIMITS_KNOWN
    for name in names:
        buckets.store.spoil(name)
    granted = buckets.grant({SLOW: 9}, breaker="api")
    buckets.leave({SLOW: 9}, granted.id, "api")
    assert not buckets.report("api", "failed")
    assert buckets.drain(SLOW) == 1
    for name in names:
        buckets.store.redis.expire(name, 60)


def test_a_value_that_is_none_is_a_full_bucket(buckets: Buckets) -> None:
    for value in ("", "1", "nonsense", "1 2 3|4"):
        buckets.store.redis.set(keys.bucket(SLOW.label), value)
        assert buckets.drain(SLOW) == 10
        buckets.store.redis.delete(keys.bucket(SLOW.label))


# -- breakers


@pytest.fixture
def open_breaker(buckets: Buckets) -> None:
    """Its cool-down is over."""
    assert buckets.report("api", "broken")
    assert isinstance(buckets.take({SLOW: 1}, breaker="api"), Refused)
    buckets.age(60_001)
    return


def _ask(buckets: Buckets, held: str = "", patience_s: float = 0) -> Granted | Refused | Reserved:
    return buckets.take({SLOW: 1}, patience_s, held=held, breaker="api")


def test_an_open_breaker_keeps_all_calls_back_for_a_minute(buckets: Buckets) -> None:
    buckets.report("api", "broken")
    refused = buckets.refuse({SLOW: 1}, 1e6, breaker="api")
    assert (refused.why, refused.by) == ("open", "api")
    assert 50 < refused.wait_s <= 60
    buckets.age(50_000)
    assert buckets.refuse({SLOW: 1}, breaker="api").wait_s <= 10
    assert buckets.drain(SLOW) == 10  # who does not ask for it is not kept back


def test_an_open_breaker_frees_what_is_reserved(buckets: Buckets) -> None:
    waiting, _ = _waiting(buckets)
    buckets.report("api", "broken")
    assert buckets.refuse({ONE: 1}, held=waiting.id, breaker="api").why == "open"
    assert buckets.shown(ONE).reserved == ()


@pytest.mark.usefixtures("open_breaker")
def test_of_fifty_at_once_one_is_the_probe(buckets: Buckets) -> None:
    many = Bucket("many", "1/m", 100)

    async def all_ask() -> list[object]:
        return await asyncio.gather(*(buckets.limits.take({many: 1}, 0, breaker="api") for _ in range(50)))

    answers = buckets.store.run(all_ask())
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert [answer.probe for answer in granted] == [True]
    waits = [answer.wait_s for answer in answers if isinstance(answer, Refused) and answer.why == "open"]
    assert len(waits) == 49
    assert max(waits) <= 5


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_succeeds_closes_the_breaker(buckets: Buckets) -> None:
    probe = buckets.grant({SLOW: 1}, breaker="api")
    assert probe.probe
    assert not buckets.report("api", "ok", probe.id)
    assert not buckets.grant({SLOW: 1}, breaker="api").probe


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_fails_opens_it_for_another_minute(buckets: Buckets) -> None:
    probe = buckets.grant({SLOW: 1}, breaker="api")
    assert buckets.report("api", "failed", probe.id)
    assert 50 < buckets.refuse({SLOW: 1}, breaker="api").wait_s <= 60


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_dies_is_replaced_after_a_minute(buckets: Buckets) -> None:
    dead = buckets.grant({SLOW: 1}, breaker="api")
    buckets.age(59_000)
    assert buckets.refuse({SLOW: 1}, breaker="api").wait_s <= 1
    buckets.age(1_001)
    probe = buckets.grant({SLOW: 1}, breaker="api")
    assert probe.probe
    assert buckets.report("api", "ok", dead.id)
    assert not buckets.report("api", "ok", probe.id)


@pytest.mark.usefixtures("open_breaker")
def test_a_late_success_of_another_call_closes_nothing(buckets: Buckets) -> None:
    assert buckets.report("api", "ok", "from before")
    probe = buckets.grant({SLOW: 1}, breaker="api")
    assert buckets.report("api", "ok", "from before")
    assert buckets.report("api", "failed", "from before")
    assert not buckets.report("api", "ok", probe.id)


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_waits_for_its_tokens_is_the_probe_when_it_has_them(buckets: Buckets) -> None:
    buckets.drain(ONE)  # that asks for no breaker
    probe = buckets.reserve({ONE: 1}, breaker="api")
    assert buckets.refuse({SLOW: 1}, breaker="api").why == "open"
    _age_to(buckets, buckets.shown(ONE).reserved[0].t - 100_000)
    granted = buckets.grant({ONE: 1}, held=probe.id, breaker="api")
    assert granted.probe
    assert not buckets.report("api", "ok", granted.id)


def test_one_that_waited_since_before_it_opened_may_be_the_probe(buckets: Buckets) -> None:
    two = Bucket("two", "1/2m", 1)
    waiting, t = _waiting(buckets, two)
    buckets.report("api", "broken")
    _age_to(buckets, t - 100_000)
    granted = buckets.grant({two: 1}, held=waiting.id, breaker="api")
    assert granted.probe
    assert buckets.refuse({SLOW: 1}, breaker="api").why == "open"
    assert not buckets.report("api", "ok", granted.id)


@pytest.mark.usefixtures("open_breaker")
def test_nobody_else_is_the_probe_while_one_waits_for_its_tokens(buckets: Buckets) -> None:
    two = Bucket("two", "1/2m", 1)
    buckets.drain(two)
    buckets.reserve({two: 1}, breaker="api")
    buckets.age(90_000)
    assert buckets.refuse({SLOW: 1}, breaker="api").why == "open"


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_comes_too_late_is_the_probe_by_its_new_name(buckets: Buckets) -> None:
    buckets.drain(ONE)
    probe = buckets.reserve({ONE: 1}, breaker="api")
    _age_to(buckets, buckets.shown(ONE).reserved[0].t + 70_000)
    granted = buckets.grant({ONE: 1}, held=probe.id, breaker="api")
    assert granted.probe
    assert granted.id != probe.id
    assert not buckets.report("api", "ok", granted.id)


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_leaves_lets_another_be_it(buckets: Buckets) -> None:
    buckets.drain(ONE)
    probe = buckets.reserve({ONE: 1}, breaker="api")
    buckets.leave({ONE: 1}, "another", "api")
    assert isinstance(_ask(buckets), Refused)
    buckets.leave({ONE: 1}, probe.id, "api")
    assert buckets.grant({SLOW: 1}, breaker="api").probe


@pytest.mark.usefixtures("open_breaker")
def test_a_probe_that_is_refused_its_tokens_lets_another_be_it(buckets: Buckets) -> None:
    buckets.drain(ONE)
    probe = buckets.reserve({ONE: 1}, breaker="api")
    assert buckets.refuse({ONE: 1}, held=probe.id, breaker="api").why == "dry"
    assert buckets.grant({SLOW: 1}, breaker="api").probe


@pytest.mark.usefixtures("open_breaker")
def test_a_breaker_that_nobody_asks_is_forgotten_in_an_hour(buckets: Buckets) -> None:
    key = keys.breaker("api")
    buckets.grant({SLOW: 1}, breaker="api")
    left_ms = buckets.store.redis.pttl(key)
    assert 3_590_000 < left_ms <= 3_600_000
    buckets.age(3_600_000)
    assert not buckets.store.redis.exists(key)
    assert not buckets.grant({SLOW: 1}, breaker="api").probe


def test_failures_in_a_row_open_it(buckets: Buckets) -> None:
    for _ in range(2):
        assert [buckets.report("api", "failed") for _ in range(4)] == [False] * 4
        assert not buckets.grant({SLOW: 1}, breaker="api").probe
        assert not buckets.report("api", "ok")
    assert [buckets.report("api", "failed") for _ in range(6)] == [False] * 4 + [True] * 2
    assert isinstance(_ask(buckets), Refused)
    assert buckets.store.redis.get(keys.breaker("api")).endswith(" no more quota")


def test_failures_of_calls_that_were_on_their_way_do_not_prolong_it(buckets: Buckets) -> None:
    for _ in range(5):
        buckets.report("api", "failed")
    buckets.age(50_000)
    assert buckets.report("api", "failed")
    assert buckets.refuse({SLOW: 1}, breaker="api").wait_s <= 10


def test_failures_are_counted_for_an_hour(buckets: Buckets) -> None:
    buckets.report("api", "failed")
    assert 3_590_000 < buckets.store.redis.pttl(keys.breaker("api")) <= 3_600_000
