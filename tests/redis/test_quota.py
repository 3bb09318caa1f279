"""enqueue.lua: how many jobs one user may enqueue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from runtime import Client, handler
from runtime.adapters.redis import keys, letters, scripts
from runtime.client import BULK
from runtime.core.errors import QuotaExceeded, RedisRefused
from runtime.core.quota import PENDING_AGAIN_S, Allowance, Counted, Quota
from tests.redis.store import DAY_MS, Store, again, back, body, dead, done

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def ana(hourly: int | None = None, pending: int | None = None, tier: str = "free", user: str = "ana") -> Counted:
    return Counted("exports", user, tier, Allowance(hourly, pending))


def tally(counted: Counted) -> str:
    return keys.quota(counted.quota, counted.user)


def remembered(store: Store, counted: Counted) -> list[str]:
    """The ids that count, or did, as they came."""
    return [label.partition("|")[2] for label in store.redis.zrange(tally(counted), 0, -1)]


def age(store: Store, counted: Counted, by_ms: int) -> None:
    """Let so much time have passed since these jobs were enqueued."""
    for label, when in store.redis.zrange(tally(counted), 0, -1, withscores=True):
        store.redis.zadd(tally(counted), {label: when - by_ms})


def contents(store: Store) -> dict[bytes, bytes]:
    """All there is."""
    return {key: store.raw.dump(key) for key in store.raw.keys("*")}


def refused(store: Store, *ids: str, **options: Any) -> QuotaExceeded:
    """What the store says of these jobs, none of which it writes."""
    before = contents(store)
    with pytest.raises(QuotaExceeded) as caught:
        store.enqueue(*ids, **options)
    assert contents(store) == before
    return caught.value


def finish(store: Store, *ids: str) -> None:
    worker = store.worker()
    worker.settle(*(done(job) for job in worker.take(*ids)))


def cancel(store: Store, job_id: str) -> None:
    reply = store.run(
        scripts.cancel(store.scripts, store.queue, job_id, body=body(), result=b"cancelled", result_ms=1000)
    )
    assert reply.said == "cancelled"


def test_a_job_that_counts_is_a_job_like_any_other_and_is_remembered(store: Store) -> None:
    before = store.now_ms()
    assert store.enqueue("a", counted=ana(hourly=1)) == [True]
    assert store.raw.get(keys.JOB + "a") == body()
    assert before <= store.score("a") <= store.now_ms() + 1
    assert remembered(store, ana()) == ["a"]
    ((_, when),) = store.redis.zrange(tally(ana()), 0, -1, withscores=True)
    assert when == store.score("a")
    assert HOUR_MS - 1000 < store.redis.pttl(tally(ana())) <= HOUR_MS
    finish(store, "a")


def test_as_many_as_an_hour_allows_enter_and_the_next_is_refused(store: Store) -> None:
    for n in range(3):
        assert store.enqueue(f"a{n}", counted=ana(hourly=3)) == [True]
    error = refused(store, "a3", counted=ana(hourly=3))
    assert (error.quota, error.which, error.limit) == ("exports", "hourly", 3)
    assert 3590 < error.retry_after_s <= 3600


def test_the_hour_slides_and_the_time_to_wait_is_that_of_the_oldest(store: Store) -> None:
    quota = ana(hourly=2)
    store.enqueue("a", counted=quota)
    age(store, quota, 40 * MINUTE_MS)
    store.enqueue("b", counted=quota)
    age(store, quota, 19 * MINUTE_MS)
    assert 50 < refused(store, "c", counted=quota).retry_after_s <= 60
    age(store, quota, MINUTE_MS)
    assert store.enqueue("c", counted=quota) == [True]
    assert remembered(store, quota) == ["b", "c"]
    assert 39 * 60 < refused(store, "d", counted=quota).retry_after_s <= 40 * 60


def test_several_wait_until_as_many_have_fallen_out_as_are_too_many(store: Store) -> None:
    for job_id in ("a", "b", "c"):
        store.enqueue(job_id, counted=ana(hourly=3))
        age(store, ana(), 10 * MINUTE_MS)
    assert 29 * 60 < refused(store, "d", counted=ana(hourly=3)).retry_after_s <= 30 * 60
    assert 39 * 60 < refused(store, "d", "e", counted=ana(hourly=3)).retry_after_s <= 40 * 60
    # A user who has come down to a lower tier.
    assert 49 * 60 < refused(store, "d", counted=ana(hourly=1, tier="lower")).retry_after_s <= 50 * 60


def test_more_than_the_limit_never_fit(store: Store) -> None:
    error = refused(store, "a", "b", "c", counted=ana(hourly=2))
    assert error.retry_after_s == 3600
    assert error.hint == "never more than 2 at once"
    assert refused(store, "a", "b", "c", counted=ana(pending=2)).hint == "never more than 2 at once"


@pytest.mark.parametrize(("limits", "which"), [({"hourly": 0}, "hourly"), ({"pending": 0}, "pending")])
def test_nothing_is_allowed_to_who_may_do_nothing(store: Store, limits: dict[str, Any], which: str) -> None:
    assert refused(store, "a", counted=ana(**limits)).which == which


def test_as_many_as_may_be_pending_enter_and_the_next_is_refused(store: Store) -> None:
    assert store.enqueue("a", "b", counted=ana(pending=2)) == [True, True]
    error = refused(store, "c", counted=ana(pending=2))
    assert (error.quota, error.which, error.limit) == ("exports", "pending", 2)
    assert error.retry_after_s == PENDING_AGAIN_S


def test_a_job_is_pending_until_it_has_ended_however_it_does(store: Store) -> None:
    quota = ana(pending=1)
    worker = store.worker()
    store.enqueue("a", counted=quota)
    job = worker.one("a")
    assert refused(store, "b", counted=quota)
    worker.settle(back(job))
    assert refused(store, "b", counted=quota)
    worker.settle(again(worker.one("a")))
    assert refused(store, "b", counted=quota)
    worker.settle(done(worker.one("a")))
    assert store.enqueue("b", counted=quota) == [True]
    assert refused(store, "c", counted=quota)
    worker.settle(dead(worker.one("b")))
    assert store.enqueue("c", counted=quota) == [True]
    cancel(store, "c")
    assert store.enqueue("d", counted=quota) == [True]


def test_an_id_may_have_any_sign_in_it(store: Store) -> None:
    store.enqueue("a|b", counted=ana(pending=1))
    assert refused(store, "c", counted=ana(pending=1))


def test_what_ends_or_is_cancelled_still_counts_for_the_hour(store: Store) -> None:
    quota = ana(hourly=2, pending=1)
    store.enqueue("a", counted=quota)
    finish(store, "a")
    store.enqueue("b", counted=quota)
    cancel(store, "b")
    assert refused(store, "c", counted=quota).which == "hourly"


def test_a_job_of_next_week_is_pending_until_then(store: Store) -> None:
    quota = ana(hourly=5, pending=1)
    store.enqueue("a", delay_ms=7 * DAY_MS, counted=quota)
    age(store, quota, 6 * DAY_MS)
    assert refused(store, "b", counted=quota).which == "pending"
    assert store.redis.pttl(tally(quota)) >= store.redis.pttl(keys.JOB + "a")


def test_a_tally_lives_as_long_as_the_longest_of_its_jobs(store: Store) -> None:
    quota = ana(pending=9)
    store.enqueue("a", delay_ms=7 * DAY_MS, counted=quota)
    store.enqueue("b", keep_ms=1000, counted=quota)
    assert store.redis.pttl(tally(quota)) > 8 * DAY_MS - 2000
    store.enqueue("c", due_ms=int(store.now_ms()) + 30 * DAY_MS, counted=quota)
    assert store.redis.pttl(tally(quota)) > 31 * DAY_MS - 2000


def test_so_it_does_if_they_come_in_one_call(store: Store) -> None:
    quota = ana(pending=9)
    new = [
        scripts.NewJob(f"a{n}", body(), DAY_MS, delay_ms=days * DAY_MS, counted=quota)
        for n, days in enumerate((1, 7, 2))
    ]
    store.run(scripts.enqueue(store.scripts, store.queue, new))
    assert store.redis.pttl(tally(quota)) > 8 * DAY_MS - 2000


def test_a_tally_of_the_hour_alone_lives_for_an_hour(store: Store) -> None:
    store.enqueue("a", delay_ms=7 * DAY_MS, counted=ana(hourly=9))
    assert store.redis.pttl(tally(ana())) <= HOUR_MS


def test_a_dead_letter_that_is_replayed_is_pending_again_and_no_new_enqueue(store: Store) -> None:
    quota = ana(hourly=2, pending=1)
    store.enqueue("a", counted=quota)
    worker = store.worker()
    worker.settle(dead(worker.one("a")))
    assert store.run(scripts.revive(store.scripts, store.queue, "a", priority=0)) == "done"
    assert refused(store, "b", counted=quota).which == "pending"
    finish(store, "a")
    assert store.enqueue("b", counted=quota) == [True]


# What is no new job.


def test_an_id_that_is_taken_uses_nothing_and_is_not_refused(store: Store) -> None:
    quota = ana(hourly=2, pending=2)
    store.enqueue("waits", "ends", counted=quota)
    finish(store, "ends")
    for taken in ("waits", "ends"):
        assert store.enqueue(taken, text="again", counted=quota) == [False]
    assert set(remembered(store, quota)) == {"waits", "ends"}
    assert refused(store, "a", counted=quota)


def test_an_id_that_is_held_without_a_body_uses_nothing(store: Store) -> None:
    store.waits_at("a", store.now_ms() - 1000)
    store.redis.delete(keys.JOB + "a")
    store.worker().one("a")
    assert store.enqueue("a", counted=ana(hourly=0)) == [False]


def test_an_id_that_comes_twice_in_a_call_counts_once(store: Store) -> None:
    assert store.enqueue("a", "a", counted=ana(hourly=1, pending=1)) == [True, False]
    assert remembered(store, ana()) == ["a"]


def test_an_id_that_comes_again_after_its_end_counts_twice_and_is_pending_once(store: Store) -> None:
    quota = ana(hourly=3, pending=2)
    for text in ("first", "second"):
        store.enqueue("a", text=text, counted=quota)
        worker = store.worker()
        worker.settle(done(worker.one("a"), b""))
    store.enqueue("a", text="third", counted=quota)
    assert refused(store, "b", counted=quota).which == "hourly"
    age(store, quota, HOUR_MS)
    assert store.enqueue("b", counted=quota) == [True]
    assert refused(store, "c", counted=quota).which == "pending"


# A lost reply.


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("limits", [{"hourly": 1}, {"pending": 1}])
def test_r21_a_resend_is_neither_refused_nor_counted_twice(store: Store, limits: dict[str, Any], fresh: bool) -> None:
    quota = ana(**limits)
    store.enqueue("a", fresh=fresh, counted=quota)
    assert store.enqueue("a", fresh=fresh, counted=quota, again=True) == [True]
    assert remembered(store, quota) == ["a"]
    finish(store, "a")
    assert store.enqueue("a", fresh=fresh, counted=quota, again=True) == [True]
    assert store.queued() == []


@pytest.mark.parametrize("fresh", [True, False])
def test_r21_a_resend_after_an_end_that_left_no_result_does_not_run_it_again(store: Store, fresh: bool) -> None:
    store.enqueue("a", fresh=fresh, counted=ana(hourly=1))
    worker = store.worker()
    worker.settle(done(worker.one("a"), b""))
    assert store.enqueue("a", fresh=fresh, counted=ana(hourly=1), again=True) == [True]
    assert store.queued() == []


@pytest.mark.parametrize("fresh", [True, False])
def test_r21_a_resend_of_what_never_came_is_counted_and_may_be_refused(store: Store, fresh: bool) -> None:
    assert store.enqueue("a", fresh=fresh, counted=ana(hourly=1), again=True) == [True]
    assert remembered(store, ana()) == ["a"]
    assert refused(store, "b", fresh=fresh, counted=ana(hourly=1), again=True)


def test_r21_a_resend_does_not_take_an_earlier_job_of_its_id_for_its_own(store: Store) -> None:
    quota = ana(hourly=1)
    store.enqueue("a", text="an hour's only one", counted=quota)
    worker = store.worker()
    worker.settle(done(worker.one("a"), b""))
    assert refused(store, "a", text="another", counted=quota, again=True)
    assert refused(store, "a", text="another", counted=quota)
    assert refused(store, "a", text="an hour's only one", counted=quota)


# Several at once.


def test_a_call_is_all_or_nothing_and_counts_its_own(store: Store) -> None:
    assert refused(store, "a", "b", "c", "d", counted=ana(hourly=3)).which == "hourly"
    assert refused(store, "a", "b", "c", "d", counted=ana(pending=3)).which == "pending"
    assert store.enqueue("a", "b", "c", counted=ana(hourly=3, pending=3)) == [True] * 3


def enqueue_each(store: Store, *jobs: tuple[str, Counted | None], text: str = "") -> list[bool]:
    new = [scripts.NewJob(job_id, body(text), DAY_MS, counted=counted) for job_id, counted in jobs]
    return store.run(scripts.enqueue(store.scripts, store.queue, new)).added


def test_users_and_quotas_are_counted_apart_and_one_that_is_over_stops_the_call(store: Store) -> None:
    bo, other = ana(hourly=2, user="bo"), Counted("mails", "ana", None, Allowance(hourly=2))
    assert enqueue_each(store, ("a", ana(hourly=1)), ("b", bo), ("c", other), ("d", None)) == [True] * 4
    before = contents(store)
    with pytest.raises(QuotaExceeded) as caught:
        enqueue_each(store, ("e", None), ("f", bo), ("g", ana(hourly=1)), ("h", other))
    assert (caught.value.quota, caught.value.limit) == ("exports", 1)
    assert contents(store) == before
    assert enqueue_each(store, ("e", None), ("f", bo), ("h", other)) == [True] * 3
    assert [remembered(store, each) for each in (ana(), bo, other)] == [["a"], ["b", "f"], ["c", "h"]]


def test_a_user_of_two_tiers_in_one_call_has_the_lower_limits(store: Store) -> None:
    low, high = ana(hourly=2), ana(hourly=3, tier="paying")
    for jobs in ([("a", low), ("b", high), ("c", high)], [("a", high), ("b", high), ("c", low)]):
        with pytest.raises(QuotaExceeded, match="'free'"):
            enqueue_each(store, *jobs)
    assert enqueue_each(store, ("a", low), ("b", high)) == [True, True]
    # What is taken asks for nothing, and so its limit is not asked.
    assert enqueue_each(store, ("a", low), ("c", high), text="again") == [False, True]
    assert refused(store, "d", counted=high)


def test_limits_of_either_kind_hold_where_one_tier_has_the_one_and_one_the_other(store: Store) -> None:
    hourly, pending = ana(hourly=2), ana(pending=2, tier="paying")
    assert enqueue_each(store, ("a", hourly), ("b", pending)) == [True, True]
    for jobs in ([("c", hourly), ("a", pending)], [("a", pending), ("c", hourly)]):
        with pytest.raises(QuotaExceeded, match="an hour"):
            enqueue_each(store, *jobs)
    for jobs in ([("c", pending), ("a", hourly)], [("a", hourly), ("c", pending)]):
        with pytest.raises(QuotaExceeded, match="at a time"):
            enqueue_each(store, *jobs)


def test_two_clients_that_race_never_get_in_more_than_is_allowed(store: Store) -> None:
    numbers = count()

    async def one(client: Client) -> bool:
        new = scripts.NewJob(f"a{next(numbers)}", body(), DAY_MS, fresh=True, counted=ana(hourly=10, pending=10))
        try:
            (added,) = (await client.ask(lambda redis: scripts.enqueue(redis, store.queue, [new]))).added
        except QuotaExceeded:
            return False
        return added

    async def race() -> Sequence[bool]:
        clients = [Client(store.url), Client(store.url)]
        try:
            return await asyncio.gather(*(one(clients[n % 2]) for n in range(50)))
        finally:
            for client in clients:
                await client.close()

    assert sorted(store.run(race())) == [False] * 40 + [True] * 10
    assert len(store.queued()) == len(remembered(store, ana())) == 10


# What is kept.


def test_what_counts_no_longer_is_forgotten(store: Store) -> None:
    quota = ana(hourly=3, pending=3)
    store.enqueue("a", "b", "c", counted=quota)
    finish(store, "a", "b", "c")
    age(store, quota, HOUR_MS)
    store.enqueue("d", counted=quota)
    assert remembered(store, quota) == ["d"]


def test_what_is_pending_is_kept_and_what_has_gone_leaves_when_it_is_the_greater_part(store: Store) -> None:
    quota = ana(hourly=9, pending=9)
    store.enqueue("a", "b", "c", counted=quota)
    store.enqueue("stays", delay_ms=DAY_MS, counted=quota)
    finish(store, "a")
    age(store, quota, HOUR_MS)
    store.enqueue("d", counted=quota)
    assert set(remembered(store, quota)) == {"a", "b", "c", "stays", "d"}
    finish(store, "b", "c", "d")
    store.enqueue("e", counted=quota)
    assert set(remembered(store, quota)) == {"stays", "d", "e"}
    age(store, quota, HOUR_MS)
    assert store.enqueue("f", counted=ana(pending=3)) == [True]
    assert refused(store, "g", counted=ana(pending=3))


def test_where_no_hour_counts_what_has_ended_is_forgotten_at_once(store: Store) -> None:
    quota = ana(pending=1)
    for n in range(5):
        store.enqueue(f"a{n}", counted=quota)
        finish(store, f"a{n}")
    store.enqueue("b", counted=quota)
    assert remembered(store, quota) == ["b"]


def test_where_nothing_pending_counts_the_old_are_forgotten(store: Store) -> None:
    store.enqueue("a", delay_ms=DAY_MS, counted=ana(hourly=9))
    age(store, ana(), HOUR_MS)
    store.enqueue("b", counted=ana(hourly=9))
    assert remembered(store, ana()) == ["b"]


def test_a_full_tally_is_swept_in_one_go(store: Store) -> None:
    quota = ana(hourly=1000, pending=1000)
    ids = [f"a{n}" for n in range(1000)]
    assert store.enqueue(*ids, counted=quota) == [True] * 1000
    assert refused(store, "b", counted=quota)
    store.redis.delete(*(keys.JOB + job_id for job_id in ids[1:]))
    age(store, quota, HOUR_MS)
    assert store.enqueue(*(f"b{n}" for n in range(999)), counted=quota) == [True] * 999
    assert len(remembered(store, quota)) == 1000


# Trouble.


def test_r19_a_tally_of_a_wrong_type_is_an_error_and_nothing_is_written(store: Store) -> None:
    store.spoil(tally(ana()))
    before = contents(store)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.enqueue("a", counted=ana(hourly=1))
    assert contents(store) == before


@pytest.mark.parametrize("delay_ms", [0, 5000])
def test_r19_a_queue_of_a_wrong_type_leaves_nothing_counted(store: Store, delay_ms: int) -> None:
    store.spoil(store.queue)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.enqueue("a", "b", delay_ms=delay_ms, priority=1, counted=ana(hourly=2))
    assert not store.redis.exists(tally(ana()), keys.JOB + "a", keys.JOB + "b")


def test_r19_it_does_so_also_where_another_users_job_is_there_already(store: Store) -> None:
    bo = ana(hourly=2, user="bo")
    store.enqueue("b", counted=bo)
    store.spoil(store.queue)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        enqueue_each(store, ("a", ana(hourly=2)), ("b", bo))
    assert not store.redis.exists(tally(ana()))
    assert remembered(store, bo) == ["b"]


def test_r19_a_server_out_of_memory_neither_counts_nor_keeps_the_job(store: Store) -> None:
    quota = ana(hourly=2, pending=2)
    store.enqueue("a", counted=quota)
    finish(store, "a")
    age(store, quota, HOUR_MS)  # so that there is something to sweep, which needs no memory
    before = contents(store)
    with store.out_of_memory(), pytest.raises(OutOfMemoryError):
        store.enqueue("b", counted=quota)
    assert contents(store) == before


def test_a_user_called_dead_is_no_list_of_dead_letters(store: Store) -> None:
    store.enqueue("a", counted=ana(hourly=2, user="dead"))
    worker = store.worker()
    worker.settle(dead(worker.one("a")))
    assert store.run(letters.queues(store.scripts)) == [store.queue]


# The client.

exports = Quota("exports", by="user", allow=Allowance(hourly=110, pending=110))


@handler(quota=exports)
async def export(ctx: object, user: str) -> None: ...


async def send_to(url: str, *users: str) -> list[bool]:
    client = Client(url)
    try:
        return [job.created for job in await client.send([export.request(user) for user in users])]
    finally:
        await client.close()


def send(store: Store, *users: str) -> list[bool]:
    return store.run(send_to(store.url, *users))


@asynccontextmanager
async def losing_a_reply(path: str) -> AsyncIterator[str]:
    """The address of a relay to this socket that cuts the connection instead of passing on the first script's reply."""
    lost = False

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        back, there = await asyncio.open_unix_connection(path)
        while command := await reader.read(1_000_000):
            there.write(command)
            reply = await back.read(1_000_000)
            if b"EVALSHA" in command and not lost:
                lost = True
                break
            writer.write(reply)
        for end in (writer, there):
            end.close()
            await end.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert lost


def test_r21_a_client_that_has_lost_the_reply_uses_its_place_once(store: Store) -> None:
    send(store, *["ana"] * 55, "bo")  # the server knows the script

    async def it() -> list[bool]:
        async with losing_a_reply(store.url.removeprefix("unix://")) as url:
            return await send_to(url, *["ana"] * 55)

    assert store.run(it()) == [True] * 55
    assert len(store.queued()) == 111
    assert store.redis.zcard(keys.quota("exports", "ana")) == 110


def test_a_hundred_are_written_or_none_and_those_before_stay(store: Store) -> None:
    with pytest.raises(QuotaExceeded) as caught:
        send(store, *["ana"] * (BULK + 11))
    assert caught.value.limit == 110
    assert len(store.queued()) == BULK
    assert send(store, *["ana"] * 10) == [True] * 10
    with pytest.raises(QuotaExceeded):
        send(store, "bo", "ana")
    assert len(store.queued()) == BULK + 10


def test_what_counts_for_one_user_goes_in_one_call_where_it_fits(store: Store) -> None:
    users = [*["bo"] * (BULK - 5), *["ana"] * 15, *[f"user{n}" for n in range(BULK)]]
    send(store, *["ana"] * BULK)
    with pytest.raises(QuotaExceeded):
        send(store, *users)  # ana may have ten more
    assert len(store.queued()) == BULK + BULK - 5
    assert send(store, *users[-BULK:]) == [True] * BULK


def test_a_tally_of_a_wrong_type_is_told_as_such(store: Store) -> None:
    store.spoil(keys.quota("exports", "ana"))
    with pytest.raises(RedisRefused, match="the job or its quota is of a wrong type"):
        send(store, "ana")
