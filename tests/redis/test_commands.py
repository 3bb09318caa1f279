"""How many Redis commands a job costs, those inside scripts counted: that is what is paid for by the command."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from runtime.adapters.redis import scripts
from runtime.adapters.redis.source import RedisSource
from runtime.client import Client
from runtime.core.job import Call, Claim, Done, Settlement
from runtime.core.quota import Allowance, Quota
from runtime.declare import Handler, handler
from tests.redis.store import Store, done, no_claim


@handler
async def nothing(ctx: object, number: int) -> int:
    return number


@handler(quota=Quota("numbers", by="number", allow=Allowance(hourly=100, pending=100)))
async def limited(ctx: object, number: int) -> int:
    return number


class Counted:
    """A client and a worker's source, and what their calls cost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.client = Client(store.url)
        self.source = RedisSource(store.url, lease_s=10)

    def cost(self, call: Callable[[], Coroutine[Any, Any, object]]) -> int:
        before = self._commands()
        self._store.run(call())
        return self._commands() - before

    def _commands(self) -> int:
        stats = self._store.redis.info("commandstats")
        aside = ("cmdstat_info", "cmdstat_client|setinfo")  # the counting itself, and what redis-py says at a connect
        return sum(stat["calls"] for name, stat in stats.items() if name not in aside)

    def __enter__(self) -> Counted:
        self._store.run(self._warm_up())
        return self

    def __exit__(self, *_: object) -> None:
        self._store.run(self._close())

    async def _warm_up(self) -> None:
        """Connections are open and scripts loaded."""
        await self.enqueue(1)
        await self.wait()
        await self.work(1)

    async def _close(self) -> None:
        await self.client.close()
        await self.source.close()

    async def enqueue(self, count: int) -> None:
        await self.client.send([nothing.request(n) for n in range(count)])

    async def wait(self) -> None:
        assert await self.source.wait([self._store.queue], 1, 0, no_claim)

    async def work(self, room: int) -> None:
        pulled = await self.source.claim(self._store.queue, room)
        assert len(pulled.claims) == room
        verdicts = await self.source.settle(self._store.queue, [_done(claim) for claim in pulled.claims])
        assert set(verdicts) == {"settled"}


def _done(claim: Claim) -> Settlement:
    assert isinstance(claim.call, Call)
    now_ms = time.time_ns() // 1_000_000
    return Settlement(claim, Done(claim.call.args[0]), now_ms, now_ms)


def test_r23_a_lone_job_costs_at_most_23_commands_from_the_client_to_its_result(store: Store) -> None:
    with Counted(store) as counted:

        async def lone() -> None:
            await counted.enqueue(1)
            await counted.wait()
            await counted.work(1)

        assert counted.cost(lone) <= 23


@pytest.mark.parametrize("size", [1, 100])
def test_asking_who_is_awake_costs_one_command_and_not_asking_none(store: Store, size: int) -> None:
    with Counted(store) as counted:
        deaf = Client(store.url, wake_urls=["http://127.0.0.1:1/wake"], bells={"arq:queue": lambda: None})
        asks = Client(store.url, wake_urls=["http://127.0.0.1:1/wake"])

        async def send(client: Client) -> None:
            await client.send([nothing.request(n) for n in range(size)])

        async def close() -> None:
            await deaf.close()
            await asks.close()

        with store.awake():
            for client in (counted.client, deaf, asks):
                store.run(send(client))
            plain = 4 + size
            assert counted.cost(partial(send, counted.client)) == plain
            assert counted.cost(partial(send, deaf)) == plain
            store.raw.delete(store.mark)
            assert counted.cost(partial(send, asks)) == plain + 1
        store.run(close())


def test_a_quota_costs_five_commands_a_call_however_many_jobs_it_has(store: Store) -> None:
    with Counted(store) as counted:

        async def some(declared: Handler[[int], int], size: int) -> None:
            await counted.client.send([declared.request(7) for _ in range(size)])

        for size in (1, 20, 20):
            plain = counted.cost(partial(some, nothing, size))
            assert counted.cost(partial(some, limited, size)) <= plain + 5


@pytest.mark.parametrize("size", [20, 100])
def test_r23_in_batches_a_job_costs_at_most_10_commands(store: Store, size: int) -> None:
    with Counted(store) as counted:

        async def batches() -> None:
            await counted.enqueue(5 * size)
            await counted.wait()
            for _ in range(5):
                await counted.work(size)

        assert counted.cost(batches) <= 10 * 5 * size


@pytest.mark.parametrize("size", [1, 20])
def test_an_end_that_is_awaited_costs_one_command_more_and_one_that_is_not_none(store: Store, size: int) -> None:
    with Counted(store) as counted:

        async def all_asked() -> None:
            for job_id in store.queued():
                await scripts.follow(store.scripts, store.queue, job_id, "a" * 16)

        def cost() -> int:
            return counted.cost(partial(counted.work, size))

        store.run(counted.enqueue(size))
        plain = cost()
        store.run(counted.enqueue(size))
        store.run(all_asked())
        assert cost() == plain + size


def test_a_look_at_an_end_costs_two_commands_and_being_noted_three_more(store: Store) -> None:
    with Counted(store) as counted:

        async def look() -> None:
            await scripts.follow(store.scripts, store.queue, "a", "a" * 16)

        store.enqueue("a")
        store.run(look())
        assert counted.cost(look) == 5
        worker = store.worker()
        worker.settle(done(worker.one("a")))
        assert counted.cost(look) == 2


def test_an_empty_claim_costs_three_commands(store: Store) -> None:
    with Counted(store) as counted:
        assert counted.cost(lambda: counted.source.claim(store.queue, 3)) == 3


@pytest.mark.parametrize("size", [1, 20, 100])
def test_an_extension_costs_at_most_6_commands_and_2_for_each_job(store: Store, size: int) -> None:
    store.backlog(size)
    worker = store.worker()
    jobs = worker.claim(size).jobs
    with Counted(store) as counted:

        async def extend() -> None:
            assert all(answer.ours for answer in worker.extend(*jobs))

        assert counted.cost(extend) <= 6 + 2 * size
