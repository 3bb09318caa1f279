"""Who waits for a result is told of it; and finds it by looking where nobody tells.

Where a test is about being told, the pauses between looks are a minute, so that looking cannot be what has helped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import client as client_module
from runtime.adapters.redis import keys, replies, scripts
from runtime.adapters.redis.replies import Pauses
from runtime.adapters.redis.source import RedisSource
from runtime.client import Client, Job, JobEvent
from runtime.core.errors import JobCancelled, JobFailed, RedisUnreachable, ResultUnknown, WaitTimedOut
from runtime.core.job import Call, Cancelled, Claim, Dead, Done, Failure, Outcome, Retried, Settlement
from tests.processes import until
from tests.redis.store import Stock, Store
from tests.relay import Relay
from tests.servers import Server

MINUTE = Pauses(60.0, 1.0, 60.0)
SOON_S = 20.0
"""Long before a look would come."""


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "OFTEN", MINUTE)
    monkeypatch.setattr(replies, "SELDOM", MINUTE)


class Pair:
    """A client, and a worker that does what it is told to."""

    def __init__(self, url: str, store: Store) -> None:
        self.client = Client(url)
        self.source = RedisSource(store.url, lease_s=10)
        self._store = store

    async def job(self, **options: Any) -> Job[Any]:
        return await self.client.enqueue("work", [1], **options)

    async def ends(self, count: int = 1, outcome: Outcome | None = None, keep_s: float = 3600.0) -> None:
        """These many jobs end, each with its first argument."""
        while count:
            claims = (await self.source.claim(self._store.queue, count)).claims
            settlements = [_settlement(claim, outcome, keep_s) for claim in claims]
            if claims:
                assert set(await self.source.settle(self._store.queue, settlements)) == {"settled"}
            count -= len(claims)

    async def close(self) -> None:
        await self.client.close()
        await self.source.close()


def _settlement(claim: Claim, outcome: Outcome | None, keep_s: float) -> Settlement:
    assert isinstance(claim.call, Call)
    now_ms = time.time_ns() // 1_000_000
    return Settlement(claim, outcome or Done(claim.call.args[0]), now_ms, now_ms, keep_result_s=keep_s)


@asynccontextmanager
async def pair(store: Store, url: str = "") -> AsyncIterator[Pair]:
    both = Pair(url or store.url, store)
    try:
        yield both
    finally:
        await both.close()


@asynccontextmanager
async def waiting(job: Job[Any], store: Store) -> AsyncIterator[asyncio.Task[Any]]:
    """Somebody waits for this job, and is noted."""
    task = asyncio.create_task(job.result(SOON_S))
    try:
        await until(lambda: store.redis.exists(keys.AWAITED + job.id), SOON_S)
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def channels(store: Store) -> list[str]:
    return [name for name in store.redis.pubsub_channels() if name.startswith("rt:reply:")]


# -- being told


@pytest.mark.usefixtures("only_told")
def test_a_result_is_told_to_who_waits_for_it(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            for _ in range(3):  # the first one has to wait for the subscription
                async with waiting(await both.job(), store) as result:
                    await both.ends()
                    assert await result == 1

    store.run(live())


@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize("size", [100, 10_000])
def test_a_result_comes_whole_whatever_its_size(store: Store, size: int) -> None:
    async def live() -> None:
        async with pair(store) as both, waiting(await both.job(), store) as result:
            await both.ends(outcome=Done("x" * size))
            assert await result == "x" * size

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_failures_and_cancellations_are_told(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            async with waiting(await both.job(), store) as result:
                await both.ends(outcome=Dead("permanent", Failure("ValueError", "no", "permanent", builtin=True)))
                with pytest.raises(JobFailed, match="no"):
                    await result
            async with waiting(await both.job(), store) as result:
                await both.ends(outcome=Cancelled())
                with pytest.raises(JobCancelled):
                    await result
            job = await both.job()
            async with waiting(job, store) as result:
                assert await job.cancel() == "cancelled"
                with pytest.raises(JobCancelled):
                    await result

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_that_no_result_was_kept_is_known_at_once(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both, waiting(await both.job(), store) as result:
            await both.ends(keep_s=0)
            with pytest.raises(ResultUnknown):
                await result

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_who_has_only_the_id_is_told_too_whoever_has_enqueued_it(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            queued = await store.arq.enqueue_job("work", 7)
            assert queued is not None
            async with waiting(both.client.job(queued.job_id), store) as result:
                await both.ends()
                assert await result == 7

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_all_who_wait_for_a_job_are_told(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both, pair(store) as others:
            job = await both.job()
            handles = [job, both.client.job(job.id), others.client.job(job.id)]
            results = [asyncio.create_task(handle.result(SOON_S)) for handle in handles]
            await until(lambda: len(store.redis.get(keys.AWAITED + job.id) or "") > 20, SOON_S)
            await both.ends()
            assert await asyncio.gather(*results) == [1, 1, 1]

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_a_thousand_may_wait_over_one_connection(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            jobs = [await both.client.enqueue("work", [n]) for n in range(1000)]
            results = asyncio.gather(*(job.result(60) for job in jobs))
            await until(lambda: all(store.redis.exists(keys.AWAITED + job.id) for job in jobs), SOON_S)
            assert len(channels(store)) == 1
            for _ in range(10):
                await both.ends(100)
            assert await results == list(range(1000))

    store.run(live())


# -- what it costs


def test_who_was_told_once_looks_seldom(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            async with waiting(await both.job(), store) as result:
                await both.ends()
                assert await result == 1
            async with waiting(await both.job(), store) as result:
                before = store.redis.info("stats")["total_commands_processed"]
                await asyncio.sleep(0.7)
                assert store.redis.info("stats")["total_commands_processed"] - before < 10
                await both.ends()
                assert await result == 1

    store.run(live())


def test_a_connection_is_opened_by_who_waits_and_closed_with_the_client(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            with pytest.raises(WaitTimedOut):
                await job.result(0)
            assert channels(store) == []
            for close in (both.client.disconnect, both.client.close):
                async with waiting(job, store):
                    await until(lambda: channels(store), SOON_S)
                await close()
                await until(lambda: not channels(store), SOON_S)

    store.run(live())


def test_a_connection_that_nobody_needs_is_closed_and_opened_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "IDLE_S", 0.05)

    async def live() -> None:
        async with pair(store) as both:
            for _ in range(2):
                async with waiting(await both.job(), store) as result:
                    await asyncio.sleep(0.2)
                    assert len(channels(store)) == 1
                    await both.ends()
                    assert await result == 1
                await until(lambda: not channels(store), SOON_S)

    store.run(live())


# -- where nobody tells


def test_what_a_stock_worker_runs_is_found_by_looking_and_often(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "SELDOM", Pauses(0.3, 1.0, 0.3))
    stock = Stock(store, ends="stock")

    async def begin(both: Pair) -> asyncio.Task[Any]:
        async with waiting(await both.job(), store) as result:
            await both.ends()
            assert await result == 1
        assert both.client._replies.reliable
        job = await both.client.enqueue("work", job_id="s")
        return asyncio.create_task(job.result(SOON_S))

    both = Pair(store.url, store)
    try:
        result = store.run(begin(both))
        assert stock.claims("s")
        stock.finishes()
        store.until(result.done)
        assert result.result() == "stock"
        assert not both.client._replies.reliable
    finally:
        store.run(both.close())


@asynccontextmanager
async def user(store: Store, *rules: str) -> AsyncIterator[str]:
    """The address for a user with these rights."""
    store.raw.execute_command("ACL", "SETUSER", "deaf", "reset", "on", ">secret", "~*", *rules)
    try:
        yield store.url.replace("unix://", "unix://deaf:secret@")
    finally:
        store.raw.execute_command("ACL", "DELUSER", "deaf")


def test_who_is_one_too_many_to_be_told_looks_often(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "SELDOM", MINUTE)

    async def live() -> None:
        async with pair(store) as both:
            async with waiting(await both.job(), store) as result:
                await both.ends()
                assert await result == 1
            job = await both.job()
            store.redis.set(keys.AWAITED + job.id, " ".join(["a" * 16] * 8), px=60_000)
            async with waiting(job, store) as result:
                await asyncio.sleep(0.02)
                await both.ends()
                assert await asyncio.wait_for(result, SOON_S / 2) == 1

    store.run(live())


def test_without_the_right_to_subscribe_who_waits_looks_and_asks_for_it_seldom(store: Store) -> None:
    async def live() -> None:
        async with user(store, "resetchannels", "+@all") as url, pair(store, url) as both:
            for _ in range(10):
                result = asyncio.create_task((await both.job()).result(SOON_S))
                await asyncio.sleep(0.02)
                await both.ends()
                assert await result == 1
            assert 1 <= store.redis.info("commandstats")["cmdstat_subscribe"]["rejected_calls"] <= 2

    store.raw.config_resetstat()
    store.run(live())


def test_who_may_only_read_looks(store: Store) -> None:
    async def live() -> None:
        rights = ("allchannels", "+@read", "+@connection", "+@transaction", "+@pubsub")
        async with user(store, *rights) as url, pair(store, url) as reader, pair(store) as both:
            for _ in range(2):
                job = await both.job()
                result = asyncio.create_task(reader.client.job(job.id).result(SOON_S))
                await until(lambda: reader.client._replies.hears, SOON_S)
                await asyncio.sleep(0.02)
                await both.ends()
                assert await result == 1

    store.run(live())


# -- weather


@pytest.mark.usefixtures("only_told")
def test_what_ended_while_the_connection_was_lost_is_found_when_it_is_back(store: Store, server: Server) -> None:
    async def live(relay: Relay) -> None:
        async with pair(store, relay.url) as both:
            job = await both.job()
            result = asyncio.create_task(job.result(SOON_S))
            await until(lambda: store.redis.exists(keys.AWAITED + job.id), SOON_S)
            relay.swallow()
            await both.ends()
            relay.let_through()
            relay.cut()
            try:
                assert await result == 1
            except RedisUnreachable:  # it was its look that was cut
                assert await job.result(SOON_S) == 1

    with Relay(server.url.removeprefix("unix://")) as relay:
        store.run(live(relay))


@pytest.mark.usefixtures("only_told")
def test_a_connection_that_is_lost_is_opened_again_and_who_waits_is_noted_again(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            async with waiting(job, store) as result:
                store.raw.client_kill_filter(_type="pubsub")
                store.raw.delete(keys.AWAITED + job.id)  # as a server that has forgotten it
                await until(lambda: store.redis.exists(keys.AWAITED + job.id), SOON_S)
                await both.ends()
                assert await result == 1

    store.run(live())


def test_that_nothing_was_heard_over_a_lost_connection_is_nobodys_fault(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            told = await both.job()
            async with waiting(told, store) as result:
                await both.ends()
                assert await result == 1
            job = await both.job()
            async with waiting(job, store) as result:
                store.raw.client_kill_filter(_type="pubsub")
                store.raw.set(keys.RESULT + job.id, store.raw.get(keys.RESULT + told.id), px=60_000)
                assert await result == 1
            assert both.client._replies.reliable

    store.run(live())


# -- giving up


@pytest.mark.usefixtures("only_told")
def test_a_wait_ends_at_its_time_and_not_before(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            for _ in range(2):
                job = await both.job()
                began = time.monotonic()
                with pytest.raises(WaitTimedOut, match=r"no result after 0\.4 s"):
                    await job.result(0.4)
                assert 0.4 <= time.monotonic() - began < 5
                await both.ends()
                assert await job.result(SOON_S) == 1

    store.run(live())


def test_who_gives_up_leaves_nothing_behind(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            async with waiting(job, store) as result:
                result.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await result
            assert both.client._replies._waits == {}
            await both.ends()
            assert await job.result(0) == 1

    store.run(live())


@pytest.mark.parametrize("said", [b"", b"x", b":", b"9:", b"1:", b"9" * 5000 + b":a", b"-1:a", b"\xff\xfe"])
def test_nonsense_on_the_channel_disturbs_nobody(store: Store, said: bytes) -> None:
    async def live() -> None:
        async with pair(store) as both, waiting(await both.job(), store) as result:
            listener = both.client._replies._listener
            store.raw.publish(channels(store)[0], said)
            await both.ends()
            assert await result == 1
            assert both.client._replies._listener is listener

    store.run(live())


# -- following a job


@asynccontextmanager
async def followed(job: Job[Any]) -> AsyncIterator[list[str]]:
    """What somebody sees who follows this job, so far."""
    seen: list[str] = []

    async def follow() -> None:
        async for event in job.events(SOON_S):
            seen.append(f"{event.status} {event.progress.done}" if event.progress else event.status)

    task = asyncio.create_task(follow())
    try:
        yield seen
        await asyncio.wait_for(task, SOON_S)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def tells(both: Pair, claim: Claim, done: int) -> None:
    said = b'{"done":%d,"total":null,"note":""}' % done
    assert await scripts.progress(both.source.redis, [scripts.Noted(claim.id, claim.token, said)]) == [True]


@pytest.mark.usefixtures("only_told")
def test_who_follows_a_job_is_told_of_its_progress_and_of_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_S", 60.0)

    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            (claim,) = (await both.source.claim(store.queue, 1)).claims
            async with followed(job) as seen:
                await until(lambda: store.redis.exists(keys.AWAITED + job.id), SOON_S)
                for done in (1, 2):
                    await tells(both, claim, done)
                    await until(lambda: seen[-1] == f"active {done}", SOON_S)  # noqa: B023  # it is over by then
                await both.source.settle(store.queue, [_settlement(claim, None, 60.0)])
            assert seen == ["active", "active 1", "active 2", "completed"]

    store.run(live())


def test_who_follows_a_job_finds_each_of_its_states_by_looking(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            async with followed(job) as seen:
                await until(lambda: seen == ["waiting"], SOON_S)
                (claim,) = (await both.source.claim(store.queue, 1)).claims
                await until(lambda: seen[-1] == "active", SOON_S)
                outcome = Retried(60.0, Failure("ValueError", "no", "transient"))
                await both.source.settle(store.queue, [_settlement(claim, outcome, 60.0)])
                await until(lambda: seen[-1] == "deferred", SOON_S)
                assert await job.cancel() == "cancelled"
            assert seen == ["waiting", "active", "deferred", "cancelled"]

    store.run(live())


def test_of_a_job_that_nobody_knows_there_is_nothing_to_follow(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both, followed(both.client.job("nobody")) as seen:
            await until(lambda: seen, SOON_S)
        assert seen == ["unknown"]

    store.run(live())


def test_who_follows_for_too_long_is_told_so_and_leaves_nothing_behind(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            with pytest.raises(WaitTimedOut, match=r"has not ended after 0\.3 s"):
                [event async for event in job.events(0.3)]
            first = job.events()
            assert await anext(first) == JobEvent("waiting", None)
            await first.aclose()
            assert not both.client._replies._waits

    store.run(live())


@pytest.mark.usefixtures("only_told")
def test_who_waits_for_a_result_does_not_look_again_for_news_of_progress(store: Store) -> None:
    async def live() -> None:
        async with pair(store) as both:
            job = await both.job()
            (claim,) = (await both.source.claim(store.queue, 1)).claims
            async with waiting(job, store) as result:
                looked = store.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
                for done in range(5):
                    await tells(both, claim, done)
                await asyncio.sleep(0.2)
                assert store.redis.info("commandstats")["cmdstat_evalsha"]["calls"] <= looked + 5 + 1
                await both.source.settle(store.queue, [_settlement(claim, None, 60.0)])
                assert await result == 1

    store.run(live())
