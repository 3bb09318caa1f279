"""Enqueueing wakes: the doorbell is rung where nobody is awake, and the enqueue is none the slower for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from runtime import client as client_module
from runtime import connect, enqueue_all, handler
from runtime.client import Client
from runtime.core.errors import SettingsInvalid
from tests.doorstep import Answer, Doorstep
from tests.redis.store import Store


@handler
async def work(ctx: object, number: int = 0) -> None: ...


def with_client(store: Store, step: Doorstep, use: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    """What `use` returns, once its client has closed."""

    async def main() -> Any:
        client = Client(store.url, wake_urls=[step.url], **options)
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(main())


async def enqueue(client: Client) -> None:
    assert (await client.enqueue("work")).created


def test_it_rings_where_nobody_is_awake(store: Store) -> None:
    with Doorstep(404, 202) as step:
        with_client(store, step, enqueue)
    assert len(step.visits) == 2
    assert len(store.queued()) == 1


def test_it_does_not_ring_while_somebody_is_awake(store: Store) -> None:
    with Doorstep(202) as step, store.awake():
        with_client(store, step, enqueue)
        assert step.visits == []


def test_it_rings_where_somebody_is_awake_for_another_queue_only(store: Store) -> None:
    with Doorstep(202) as step, store.awake("another"):
        with_client(store, step, enqueue)
    assert len(step.visits) == 1


def test_for_what_the_process_serves_itself_its_own_bell_is_rung(store: Store) -> None:
    rang: list[int] = []

    async def use(client: Client) -> None:
        await enqueue(client)
        await client.wake(store.queue)
        assert rang == [1, 1]
        assert not client.ringing
        await client.enqueue("work", options={"queue": "another"})
        assert client.ringing

    with Doorstep(202) as step:
        with_client(store, step, use, bells={store.queue: lambda: rang.append(1)})
    assert len(step.visits) == 1
    assert len(rang) == 2


def test_the_addresses_are_those_of_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connect(store.url) as client:
            await work.enqueue(1)
            await client.rung()  # calls that come together may be one
            await enqueue_all([work.request(n) for n in range(3)])

    with Doorstep(202) as first, Doorstep(202) as second:
        monkeypatch.setenv("RUNTIME_WAKE_URL", f"{first.url}, {second.url}")
        asyncio.run(main())
    assert len(first.visits) == len(second.visits) == 2
    monkeypatch.setenv("RUNTIME_WAKE_URL", "worker.example")
    with pytest.raises(SettingsInvalid, match=r"^RUNTIME_WAKE_URL\S* must be the address of a worker's /wake"):
        Client(store.url)


def test_a_thousand_enqueues_are_rung_for_once_a_second(store: Store) -> None:
    async def use(client: Client) -> float:
        began = time.monotonic()
        for n in range(1000):
            await client.enqueue("work", [n])
        return time.monotonic() - began

    with Doorstep(202) as step:
        took_s = with_client(store, step, use)
    assert 2 <= len(step.visits) <= took_s + 2
    assert len(store.queued()) == 1000


@pytest.mark.parametrize(("answer", "refuses_for_s"), [("silence", 0), (404, 0), (202, 60)])
def test_an_enqueue_takes_no_longer_while_it_rings(store: Store, answer: Answer, refuses_for_s: float) -> None:
    async def times(client: Client, count: int = 300) -> list[float]:
        took = []
        for _ in range(count):
            began = time.perf_counter()
            await enqueue(client)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)
        return sorted(took)

    with Doorstep(answer, refuses_for_s=refuses_for_s) as step:
        with store.awake():
            alone = with_client(store, step, times)
            assert not step.visits

        async def ringing(client: Client) -> list[float]:
            took = await times(client)
            assert client.ringing
            return took

        beside = with_client(store, step, ringing)
    print(f"median {1000 * alone[150]:.2f} ms alone, {1000 * beside[150]:.2f} ms beside the doorbell")
    print(f"longest {1000 * alone[-1]:.2f} ms alone, {1000 * beside[-1]:.2f} ms beside the doorbell")
    assert beside[150] < 2 * alone[150] + 0.002
    assert beside[-1] < alone[-1] + 0.25


def test_a_doorbell_that_fails_fails_no_enqueue(store: Store) -> None:
    with Doorstep(500) as step:
        with_client(store, step, enqueue)
    assert len(store.queued()) == 1


class Losing:
    """A connection that loses the first reply: what was asked is done, and nobody is told."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._lost = False

    async def execute_command(self, *command: Any) -> Any:
        reply = await self._redis.execute_command(*command)
        if not self._lost:
            self._lost = True
            raise ConnectionError("Connection closed by server.")
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)


@pytest.mark.parametrize("awake", [True, False])
def test_r21_a_reply_that_is_lost_is_asked_for_again_and_who_is_awake_with_it(store: Store, awake: bool) -> None:
    async def use(client: Client) -> None:
        client._redis = Losing(client._redis)
        await enqueue(client)

    store.enqueue("warm")  # so that the first reply is that of the job
    with Doorstep(202) as step:
        if awake:
            with store.awake():
                with_client(store, step, use)
        else:
            with_client(store, step, use)
    assert len(step.visits) == (not awake)
    assert len(store.queued()) == 2


def test_an_enqueue_that_is_cancelled_may_have_written_and_rings(store: Store) -> None:
    async def use(client: Client) -> None:
        await enqueue(client)
        await client.rung()
        store.raw.client_pause(1000, all=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await enqueue(client)

    with Doorstep(202) as step:
        with_client(store, step, use)
    assert len(step.visits) == 2


def test_who_disconnects_rings_no_more_and_may_ring_again(store: Store) -> None:
    async def use(client: Client) -> None:
        await enqueue(client)
        await client.disconnect()
        assert not client.ringing
        visits = len(step.visits)
        await asyncio.sleep(1)
        assert len(step.visits) == visits
        await enqueue(client)
        assert client.ringing

    with Doorstep(404) as step:
        with_client(store, step, use)


def test_a_key_that_has_a_job_rings_too(store: Store) -> None:
    # Whoever sends it again may do so because nothing has happened.
    async def use(client: Client) -> None:
        for _ in range(2):
            await client.enqueue("work", job_id="a")
            await client.rung()

    with Doorstep(202) as step:
        with_client(store, step, use)
    assert len(step.visits) == 2


def test_r28_jobs_that_lie_unseen_ring_at_workers_that_seem_awake_every_half_minute(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(client: Client) -> list[int]:
        visits = []
        for wait_s in (0, 0, 0, 1.1):
            await asyncio.sleep(wait_s)
            await enqueue(client)
            await client.rung()
            visits.append(len(step.visits))
            store.ages(store.queued()[0], 6000)
        return visits

    assert client_module.DOUBT_S == 30
    monkeypatch.setattr(client_module, "DOUBT_S", 1.0)
    with Doorstep(202) as step, store.awake():
        assert with_client(store, step, use) == [0, 1, 1, 2]


def test_jobs_that_came_another_way_are_rung_for_on_demand(store: Store) -> None:
    async def use(client: Client) -> None:
        with store.awake():
            await client.wake(store.queue)
            assert not client.ringing
        await client.wake(store.queue)
        (ring,) = await client.rung()
        assert ring.answered

    with Doorstep(202) as step:
        with_client(store, step, use)
    assert len(step.visits) == 1


def test_a_producer_that_ends_right_after_its_enqueue_has_rung(store: Store) -> None:
    async def main() -> None:
        async with connect(store.url):
            await work.enqueue()

    with Doorstep(202) as step, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_WAKE_URL", step.url)
        asyncio.run(main())
        assert len(step.visits) == 1
