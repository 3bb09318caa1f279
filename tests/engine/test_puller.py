"""When the puller asks for jobs, and for how many."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio

from runtime.core.errors import RetryLater
from runtime.core.job import Released
from runtime.core.retry import Retry
from runtime.engine import puller
from runtime.engine.context import Context
from runtime.engine.puller import MOST_AT_ONCE
from tests.engine.world import EPOCH_S, LEASE_S, Asked, World, seconds_in

HOUR_S = 3600.0


async def test_a_claim_never_asks_for_more_than_the_free_slots(world: World) -> None:
    too_much: list[Asked] = []

    def check(asked: Asked) -> None:
        if asked.what == "claim" and not 1 <= asked.size <= actor.slots.free:
            too_much.append(asked)

    world.store.on_ask = check
    world.store.slow_s["claim"] = 0.3
    running: list[int] = []

    async def work(ctx: Context, length_s: float) -> None:
        running.append(len(actor.slots.claims))
        await trio.sleep(length_s)

    world.handle(work)
    rows = [world.store.add("work", 0.1 + number % 7, queue=("a", "b")[number % 2]) for number in range(60)]
    actor = world.actor("a", "b", size=4)
    world.serve(actor)
    await world.until(lambda: all(row.outcome for row in rows))
    assert too_much == []
    assert max(running) == world.statistics.peak == 4


async def test_all_free_slots_are_filled_by_one_claim(world: World) -> None:
    world.handle_taking(10)
    for _ in range(7):
        world.store.add()
    world.serve(world.actor(size=5))
    await world.at(1)
    assert [(asked.size, asked.at) for asked in world.store.asked if asked.what == "claim"] == [(5, 0)]
    assert len(world.ran) == 5


async def test_one_claim_asks_for_fifty_at_most(world: World) -> None:
    world.handle_taking(10)
    for _ in range(250):
        world.store.add()
    world.serve(world.actor(size=250))
    await world.at(1)
    assert len(world.ran) == 250
    assert max(asked.size for asked in world.store.asked if asked.what == "claim") == MOST_AT_ONCE


async def test_a_slot_that_becomes_free_is_filled_at_once(world: World) -> None:
    world.handle_taking(10)
    for _ in range(4):
        world.store.add()
    world.serve(world.actor(size=1))
    await world.at(35)
    assert [when for _, when in world.ran] == [0, 10, 20, 30]


async def test_nothing_is_asked_while_no_slot_is_free(world: World) -> None:
    world.handle_taking(HOUR_S)
    world.store.add()
    world.store.add()
    world.serve(world.actor(size=1, timeout_s=2 * HOUR_S))
    await world.at(HOUR_S - 1)
    assert [asked.what for asked in world.store.asked] == ["claim"]


async def test_an_announced_job_is_claimed_at_once(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(HOUR_S + 0.123)
    row = world.store.add()
    await world.rest()
    assert row.starts_at == [HOUR_S + 0.123]


async def test_more_is_claimed_at_once_from_a_store_that_is_far(world: World) -> None:
    world.handle_taking(1)
    for _ in range(300):
        world.store.add()
    world.store.slow_s["claim"] = 0.02
    world.serve(world.actor(size=200))
    await world.at(1)
    sizes = [asked.size for asked in world.store.asked if asked.what == "claim"]
    assert sizes[:3] == [MOST_AT_ONCE, puller.MOST_FROM_AFAR, 200 - MOST_AT_ONCE - puller.MOST_FROM_AFAR]


@pytest.mark.usefixtures("one_wait")
async def test_only_the_announced_queue_is_asked(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor("a", "b", "c"))
    await world.at(HOUR_S + 0.123)
    world.store.add(queue="b")
    await world.rest()
    assert world.store.times("claim", "b") == [0, HOUR_S + 0.123]
    assert world.store.times("claim", "a") == [0]
    assert world.store.times("claim", "c") == [0]


async def test_the_next_due_time_is_slept_to_exactly(world: World) -> None:
    world.handle_taking(1)
    row = world.store.add(delay_s=7.25, announce=False)
    world.serve(world.actor())
    await world.at(60)
    assert row.starts_at == [7.25]
    assert world.store.times("claim") == [0, 7.25]


async def test_a_job_that_is_due_in_half_a_day_takes_no_time_to_wait_for(world: World) -> None:
    world.handle_taking(1)
    row = world.store.add(delay_s=12 * HOUR_S + 0.5)
    world.serve(world.actor(lease_s=300))
    await world.at(13 * HOUR_S)
    assert row.starts_at == [12 * HOUR_S + 0.5]


@pytest.fixture
def one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits does so for all of the test: each new wait would begin with a claim, which is a look too."""
    monkeypatch.setattr(puller, "LISTEN_S", 2 * HOUR_S)


async def test_a_wait_in_which_nothing_is_announced_claims_at_its_end(world: World) -> None:
    world.serve(world.actor("a"))
    await world.at(HOUR_S - 1)
    assert world.store.times("claim", "a") == [when * puller.LISTEN_S for when in range(20)]


def gaps(world: World, since: float = 0.0) -> dict[float, float]:
    """The time of each look, and what passed until the next."""
    looks = [when for when in world.store.times("look") if when >= since]
    return {first: round(second - first, 6) for first, second in pairwise(looks)}


@pytest.mark.usefixtures("one_wait")
async def test_a_young_worker_looks_often_and_soon_ever_less(world: World) -> None:
    world.serve(world.actor(lease_s=100))
    await world.at(HOUR_S)
    assert world.store.times("look")[:4] == [0.5, 1.0, 1.5, 2.0]
    assert all(gap == pytest.approx(max(when / 4, 0.5)) for when, gap in gaps(world).items() if when < 60)
    assert all(gap == 15 for when, gap in gaps(world).items() if when > 60)
    assert len(gaps(world, HOUR_S - 61)) <= 4


@pytest.mark.usefixtures("one_wait")
async def test_a_look_never_comes_later_than_eleven_tenths_of_a_lease_after_another(world: World) -> None:
    world.serve(world.actor(lease_s=4))
    await world.at(HOUR_S)
    assert max(gaps(world).values()) == pytest.approx(4.4)


@pytest.mark.usefixtures("one_wait")
async def test_looks_are_as_frequent_as_somebody_has_asked_for(world: World) -> None:
    world.store.looked_for_s = 2.0
    world.serve(world.actor())
    await world.at(HOUR_S)
    assert all(gap == 2 for when, gap in gaps(world).items() if when > 8)


@pytest.mark.usefixtures("one_wait")
async def test_where_the_store_tells_nobody_has_to_look_as_often_as_asked_for(world: World) -> None:
    world.store.tells, world.store.looked_for_s = True, 2.0
    world.serve(world.actor())
    await world.at(HOUR_S)
    assert set(gaps(world).values()) == {11}


@pytest.mark.usefixtures("one_wait")
async def test_where_the_store_tells_what_is_written_looks_are_for_leases(world: World) -> None:
    world.store.tells = True
    world.serve(world.actor())
    await world.at(HOUR_S)
    assert set(gaps(world).values()) == {11}


@pytest.mark.usefixtures("one_wait")
async def test_looks_do_not_interrupt_the_wait_for_an_announcement(world: World) -> None:
    world.serve(world.actor("a", "b"))
    await world.at(HOUR_S)
    assert len(world.store.times("wait")) == 1


async def test_an_idle_worker_that_looks_is_alive(world: World) -> None:
    actor = world.actor()
    world.serve(actor)
    await world.at(HOUR_S)
    assert actor.puller.turn_at is not None
    assert trio.current_time() - actor.puller.turn_at <= 11


async def test_a_job_that_the_store_tells_of_is_claimed_at_once(world: World) -> None:
    world.store.tells = True
    world.handle_taking(1)
    world.serve(world.actor("a", "b"))
    await world.at(HOUR_S + 0.5)
    rows = []
    for second in range(100):
        await world.at(HOUR_S + 2 * second + 0.5)
        rows.append(world.store.add(queue="ab"[second % 2], foreign=True))
    await world.until(lambda: all(row.outcome for row in rows))
    assert max(row.starts_at[0] - (HOUR_S + 2 * n + 0.5) for n, row in enumerate(rows)) < 0.01


async def test_news_of_jobs_that_are_announced_to_somebody_are_followed_ever_less(world: World) -> None:
    world.store.tells = True
    world.serve(world.actor())
    await world.at(HOUR_S)
    asked = len(world.store.asked)
    for tick in range(6000):
        await world.at(HOUR_S + tick / 10)
        world.store.take_from(world.store.add(announce=False))
    assert len(world.store.asked) - asked < 600 / 11 + 60 / 11 + 10
    row = world.store.add(foreign=True)
    world.handle_taking(1)
    await world.until(lambda: row.outcome)
    later = world.store.add(foreign=True)
    at = trio.current_time()
    await world.until(lambda: later.outcome)
    assert trio.current_time() - at < 1.2


async def test_what_is_to_run_again_is_claimed_when_it_is_due(world: World) -> None:
    async def work(ctx: Context) -> None:
        raise RetryLater("100s")

    world.handle(work, retry=Retry(3))
    world.serve(world.actor())
    await world.at(HOUR_S)
    row = world.store.add()
    await world.until(lambda: row.outcome)
    assert row.starts_at == [HOUR_S, HOUR_S + 100, HOUR_S + 200]


@pytest.mark.usefixtures("one_wait")
async def test_a_look_asks_for_no_jobs(world: World) -> None:
    world.serve(world.actor())
    await world.at(HOUR_S)
    assert world.store.times("claim") == [0]


async def test_a_job_that_nobody_announced_is_found_by_the_next_look(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(1.1)
    row = world.store.add(foreign=True)
    await world.at(2)
    assert row.starts_at == [1.5]


async def test_a_worker_that_is_woken_finds_what_nobody_announced_at_once(world: World) -> None:
    world.handle_taking(1)
    actor = world.actor("a", "b")
    world.serve(actor)
    await world.at(HOUR_S)
    row = world.store.add(foreign=True, queue="b")
    actor.wake()
    await world.until(lambda: row.outcome)
    assert world.ran == [(row.id, HOUR_S)]
    assert world.store.times("claim", "a")[-1] == HOUR_S


async def test_a_wake_during_a_claim_or_with_no_slot_free_is_not_lost(world: World) -> None:
    world.handle_taking(10)
    actor = world.actor(size=1)
    world.serve(actor)
    world.store.slow_s["claim"] = 1.0
    await world.at(0.5)
    actor.wake()
    await world.at(5)
    assert world.store.times("claim") == [0, 1]
    world.store.slow_s["claim"] = 0.0
    world.store.add()
    await world.at(6)
    assert len(world.ran) == 1
    actor.wake()
    world.store.asked.clear()
    await world.at(16)
    assert world.store.times("claim") == [15], "as soon as the slot is free"


async def test_a_wake_while_the_store_is_away_does_not_go_before_the_owners(world: World) -> None:
    actor = world.actor()
    world.serve(actor)
    await world.at(20)
    world.store.go_away()
    await world.at(60)
    world.store.come_back()
    actor.wake()
    world.store.asked.clear()
    await world.at(61)
    actor.wake()
    await world.at(80)
    back = world.store.times("ping")[0]
    assert world.store.times("claim")[0] == pytest.approx(back + LEASE_S / 4)


async def test_after_a_job_of_a_silent_producer_the_looks_are_frequent_again(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(HOUR_S)
    row = world.store.add(foreign=True)
    await world.until(lambda: row.outcome)
    assert row.starts_at[0] - HOUR_S <= 1.1 * LEASE_S
    at = trio.current_time() - EPOCH_S
    await world.at(at + 40)
    assert set(gaps(world, at).values()) == {0.5}


async def test_a_job_of_our_own_producer_changes_nothing_about_the_looks(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(HOUR_S)
    world.store.add()
    await world.at(HOUR_S + 100)
    assert set(gaps(world, HOUR_S + 0.1).values()) == {11}


async def test_queues_are_taken_in_turn(world: World) -> None:
    world.handle_taking(1)
    for _ in range(4):
        for queue in ("a", "b", "c"):
            world.store.add(queue=queue)
    world.serve(world.actor("a", "b", "c", size=1))
    await world.at(20)
    served = [world.store.rows[job_id].queue for job_id, _ in world.ran]
    assert served == ["a", "b", "c"] * 4


async def test_a_job_whose_neighbour_queue_has_a_backlog_is_still_served_in_turn(world: World) -> None:
    world.handle_taking(1)
    for _ in range(1000):
        world.store.add(queue="busy")
    world.serve(world.actor("busy", "calm", size=2))
    await world.at(10.5)
    row = world.store.add(queue="calm")
    await world.at(10.5 + 2 * LEASE_S)
    assert row.starts_at


async def test_an_unannounced_job_is_found_although_another_queue_is_announced_again_and_again(world: World) -> None:
    world.handle_taking(0.1)
    world.serve(world.actor("busy", "calm"))
    await world.at(HOUR_S)
    row = world.store.add(queue="calm", foreign=True)
    for second in range(0, 120, 5):
        await world.at(HOUR_S + second)
        world.store.add(queue="busy")
    await world.rest()
    assert row.starts_at
    assert row.starts_at[0] - HOUR_S <= LEASE_S


async def test_a_short_job_elsewhere_does_not_put_off_a_due_time(world: World) -> None:
    world.handle_taking(0.1)
    row = world.store.add(queue="calm", delay_s=30)
    world.serve(world.actor("busy", "calm"))
    for second in range(0, 60, 2):
        await world.at(second + 0.5)
        world.store.add(queue="busy")
    assert row.starts_at == [30]


async def test_a_claim_that_finds_nothing_although_something_is_due_is_not_repeated_in_a_frenzy(world: World) -> None:
    world.store.others_are_quicker = True
    world.serve(world.actor())
    await world.at(2)
    assert 10 <= len(world.store.times("claim")) <= 45


async def test_what_a_claim_that_was_sent_brings_is_given_back_when_draining(world: World) -> None:
    world.handle_taking(1)
    serving = world.serve(world.actor())
    await world.at(10)
    world.store.slow_s["claim"] = 3
    row = world.store.add()
    await world.at(11)
    serving.drain()
    assert await serving.end() == 13
    assert "claim" not in world.store.interrupted
    assert world.store.outcomes(row.id) == [Released("shutdown")]


async def test_what_a_wait_may_have_claimed_that_did_not_end_is_given_back_when_draining(world: World) -> None:
    world.handle_taking(1)
    serving = world.serve(world.actor())
    await world.at(10)
    world.store.unheard = True  # of the claim behind the wait
    row = world.store.add()
    serving.drain()
    await serving.end()
    assert world.store.outcomes(row.id) == [Released("shutdown")]


async def test_a_drained_puller_claims_from_no_further_queue(world: World) -> None:
    world.store.slow_s["claim"] = 1
    serving = world.serve(world.actor("a", "b", "c"))
    await world.at(0.5)
    serving.drain()
    await serving.end()
    assert world.store.times("claim") == [0]


async def test_unsettled_outcomes_bound_what_is_claimed(world: World) -> None:
    world.handle_taking(0.01)
    world.store.refused["settle"] = "out of memory"
    for _ in range(1000):
        world.store.add()
    actor = world.actor(size=3)
    world.serve(actor)
    await world.at(600)
    assert MOST_AT_ONCE <= len(world.ran) <= MOST_AT_ONCE + 10
    del world.store.refused["settle"]
    await world.until(lambda: len(world.store.settlements) == 1000)


async def test_the_last_turn_is_remembered_for_whoever_asks_whether_it_lives(world: World) -> None:
    actor = world.actor()
    before_the_first = actor.puller.turn_at
    world.serve(actor)
    await world.at(100)
    while_well = trio.current_time() - (actor.puller.turn_at or 0)
    world.store.go_away()
    await world.at(200)
    while_away = trio.current_time() - (actor.puller.turn_at or 0)
    assert before_the_first is None
    assert while_well <= 15
    assert while_away >= 100


# Outages.


async def test_while_the_store_is_away_it_is_asked_ever_less_often(world: World) -> None:
    world.store.go_away()
    world.serve(world.actor())
    await world.at(HOUR_S)
    pings = world.store.times("ping")
    gaps = [round(second - first, 6) for first, second in pairwise(pings)]
    assert pings[0] == 0.1
    assert gaps[:4] == [0.2, 0.4, 0.8, 1.0]
    assert set(gaps[4:]) == {1.0}
    assert world.store.times("claim") == [0]


async def test_a_store_that_answers_but_refuses_claims_is_asked_ever_less_often(world: World) -> None:
    world.store.refused["claim"] = "READONLY You can't write against a read only replica"
    world.serve(world.actor())
    await world.at(600)
    assert len(world.store.times("claim")) < 700
    assert len(world.diary.weathers) < 700


async def test_a_store_that_grants_claims_and_refuses_waits_is_asked_ever_less_often(world: World) -> None:
    world.store.refused["wait"] = "NOPERM"
    world.serve(world.actor())
    await world.at(600)
    assert 200 < len(world.store.times("claim")) < 700


async def test_each_failure_to_reach_the_store_is_told_as_weather(world: World) -> None:
    world.store.go_away("connection refused")
    serving = world.serve(world.actor())
    await world.at(1)
    assert world.diary.weathers[:2] == [(0, "claim: connection refused"), (0.1, "ping: connection refused")]
    assert world.diary.crashes == []
    assert not serving.over


async def test_after_a_short_outage_jobs_are_claimed_at_once(world: World) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(20)
    world.store.go_away()
    row = world.store.add(announce=False)
    await world.at(22)
    world.store.come_back()
    await world.until(lambda: row.starts_at)
    [back] = [when for when in world.store.times("ping") if when >= 22]
    assert row.starts_at == [back]


@pytest.mark.parametrize("length_s", [0.6 * LEASE_S, HOUR_S])
async def test_after_an_outage_that_leases_may_not_have_outlived_their_owners_go_first(
    world: World, length_s: float
) -> None:
    world.handle_taking(1)
    world.serve(world.actor())
    await world.at(20)
    world.store.go_away()
    row = world.store.add(announce=False)
    await world.at(20 + length_s)
    world.store.come_back()
    await world.until(lambda: row.starts_at)
    [back] = [when for when in world.store.times("ping") if when >= 20 + length_s]
    assert row.starts_at == [pytest.approx(back + LEASE_S / 4)]


async def test_an_outage_that_was_there_at_boot_counts_as_well(world: World) -> None:
    world.handle_taking(1)
    world.store.go_away()
    world.serve(world.actor())
    row = world.store.add(announce=False)
    await world.at(60)
    world.store.come_back()
    await world.until(lambda: row.starts_at)
    [back] = [when for when in world.store.times("ping") if when >= 60]
    assert row.starts_at == [pytest.approx(back + LEASE_S / 4)]


async def test_after_an_outage_every_queue_is_asked(world: World) -> None:
    world.serve(world.actor("a", "b"))
    await world.at(20)
    world.store.go_away()
    await world.at(21)
    world.store.come_back()
    await world.at(30)
    assert len(world.store.times("claim", "a")) == len(world.store.times("claim", "b")) == 2


@pytest.mark.parametrize("when", [21.05, 60.0, 90.0])
@pytest.mark.parametrize("stop", ["drain", "hurry"])
async def test_a_worker_that_waits_for_the_store_stops_at_once_when_told(world: World, when: float, stop: str) -> None:
    serving = world.serve(world.actor())
    await world.at(20)
    world.store.go_away()
    if when == 90.0:
        await world.at(88)
        world.store.come_back()
    await world.at(when)
    told: Callable[[], None] = getattr(serving, stop)
    told()
    assert await serving.end() == when


# A queue that is paused


async def test_a_paused_queue_is_left_in_peace_until_somebody_resumes_it(world: World) -> None:
    world.handle_taking(1)
    world.store.paused["q"] = math.inf
    row = world.store.add()
    world.serve(world.actor())
    await world.at(HOUR_S)
    assert row.starts_at == []
    claims = world.store.times("claim")
    assert len(claims) < 30, "a wait is over every three minutes, and then it is asked"
    world.store.resume("q")
    await world.rest()
    assert row.starts_at == [HOUR_S]


async def test_the_end_of_a_pause_is_slept_to(world: World) -> None:
    world.handle_taking(1)
    world.store.paused["q"] = EPOCH_S + 1234.5
    row = world.store.add()
    world.serve(world.actor())
    await world.at(1300)
    assert row.starts_at == [pytest.approx(1234.5, abs=0.1)]
    assert len(world.store.times("claim")) < 30


async def test_a_paused_queue_holds_no_other_up(world: World) -> None:
    world.handle_taking(1)
    world.store.paused["b"] = math.inf
    for _ in range(100):
        world.store.add(queue="b")
    world.serve(world.actor("a", "b", "c", size=2))
    await world.at(1)
    for queue in ("a", "c", "a"):
        at = seconds_in()
        row = world.store.add(queue=queue)
        await world.rest()
        assert row.starts_at == [at]
        await world.at(at + 100)
    assert len(world.store.times("claim", "b")) < 20


async def test_jobs_added_to_a_paused_queue_are_one_question_each_at_most(world: World) -> None:
    world.handle_taking(1)
    world.store.paused["b"] = math.inf
    world.serve(world.actor("a", "b"))
    await world.at(10)
    before = len(world.store.asked)
    for number in range(20):
        world.store.add(queue="b")
        await world.at(11 + number)
    assert len(world.store.asked) - before <= 100


# Queues that share slots

SEVEN = ("default", "asr", "analysis", "followups", "indexing", "uwc", "shunya")


async def test_a_slow_queue_takes_its_turn_with_those_it_shares_slots_with(world: World) -> None:
    world.handle_taking(60)
    for _ in range(200):
        world.store.add(queue="asr")
    world.serve(world.actor(*SEVEN, size=3))
    await world.at(1)
    assert len(world.ran) == 3, "it may use all slots while nobody else wants one"
    others = [world.store.add(queue=queue) for queue in SEVEN if queue != "asr"]
    await world.at(121)
    assert all(row.starts_at for row in others), "each slot that becomes free is for who has waited for a turn"
    assert max(row.starts_at[0] for row in others) <= 120


async def test_a_slow_queue_with_slots_of_its_own_delays_nobody(world: World) -> None:
    world.handle_taking(60)
    for _ in range(200):
        world.store.add(queue="asr")
    world.serve(world.actor("asr", size=2))
    world.serve(world.actor(*(queue for queue in SEVEN if queue != "asr"), size=3))
    await world.at(1)
    for queue in ("default", "shunya", "uwc"):
        row = world.store.add(queue=queue)
        await world.rest()
        assert row.starts_at == [seconds_in()]
