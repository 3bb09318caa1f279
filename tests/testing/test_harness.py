"""The fixture `rt`, as users' tests have it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import JobStatus

from runtime import (
    Bucket,
    Context,
    Handler,
    JobCancelled,
    JobFailed,
    Permanent,
    RedisUnreachable,
    Retry,
    Snooze,
    WaitTimedOut,
    handler,
    settings,
)
from runtime.testing import Harness
from runtime.testing.declared import Given, declared
from runtime.testing.server import Server

tokens = Bucket("harness.tokens", rate="90000/m")
calls = Bucket("harness.calls", rate="1/s", burst=2)


class Boom(Exception):
    """Raised by the handlers below."""


@handler
async def double(ctx: Context, number: int) -> int:
    return 2 * number


@handler
async def chain(ctx: Context, length: int) -> int:
    if length:
        await chain.enqueue(length - 1)
    return length


@handler(retry=Retry(3, base="2s"))
async def fails(ctx: Context) -> None:
    raise Boom("as always")


@handler
async def poll(ctx: Context, times: int) -> int:
    _polls.append(ctx.attempt)
    if len(_polls) < times:
        raise Snooze("15s")
    return len(_polls)


_polls: list[int] = []


@handler
async def spends(ctx: Context, cost: int, used: int) -> None:
    async with ctx.limit(tokens, cost=cost) as grant:
        await asyncio.sleep(0.02)
        grant.settle(used)


@handler(limit=calls)
async def limited(ctx: Context) -> None: ...


_killers: list[Harness] = []


@handler
async def dies(ctx: Context) -> int:
    if _killers:
        _killers.pop().kill_worker()
        await asyncio.sleep(30)
    return ctx.crashes


@handler
async def dies_when_it_has_paid(ctx: Context) -> None:
    if _killers:
        async with ctx.limit(tokens, cost=1_000) as grant:
            grant.settle(10)
            _killers.pop().kill_worker()
            await asyncio.sleep(30)


@handler(queue="rare", limit=Bucket("harness.rare", rate="1/h"))
async def rare(ctx: Context) -> None: ...


@handler
async def never_ready(ctx: Context) -> None:
    raise Snooze("10m", give_up_after="35m")


@handler
async def hangs(ctx: Context) -> None:
    await asyncio.sleep(30)


@handler
async def steps(ctx: Context, text: str) -> str:
    return await ctx.once("upper", _upper, text)


async def _upper(text: str) -> str:
    return text.upper()


@pytest.fixture
def rt_handlers() -> Sequence[str | Handler[..., Any]]:
    return [double, chain, fails, poll, spends, never_ready, limited, rare, dies, dies_when_it_has_paid, hangs, steps]


async def test_a_job_is_run_by_drain_and_not_before(rt: Harness) -> None:
    job = await double.enqueue(21)
    assert await job.status() == "waiting"
    await rt.drain()
    assert await job.result() == 42
    assert rt.failures == []


async def test_each_test_begins_with_an_empty_server(rt: Harness) -> None:
    assert await rt.jobs() == []
    await double.options(delay="1h").enqueue(1)


async def test_and_so_does_the_next_one(rt: Harness) -> None:
    assert await rt.jobs() == []


async def test_what_jobs_enqueue_is_run_by_the_same_drain(rt: Harness) -> None:
    await chain.enqueue(20)
    await rt.drain()
    assert await rt.jobs() == []


async def test_a_deferred_job_waits_for_its_time(rt: Harness) -> None:
    job = await double.options(delay="1h").enqueue(1)
    await rt.advance("59m")
    assert await job.status() == "deferred"
    await rt.advance("1m")
    assert await job.result() == 2


async def test_a_paused_queue_waits_for_the_end_of_its_pause(rt: Harness) -> None:
    await rt.client.pause("arq:queue", length="10m")
    job = await double.enqueue(1)
    await rt.drain()
    assert await job.status() == "waiting"
    await rt.advance("10m")
    assert await job.result() == 2

    await rt.client.pause("arq:queue")
    job = await double.enqueue(2)
    await rt.advance("10h")
    assert await job.status() == "waiting"
    await rt.client.resume("arq:queue")
    await rt.drain()
    assert await job.result() == 4


async def test_an_expiry_comes_nearer(rt: Harness) -> None:
    await rt.client.pause("arq:queue", length="10m")
    late = await double.options(expires="9m").enqueue(1)
    timely = await double.options(expires="11m").enqueue(1)
    await rt.advance("10m")
    assert (await late.status(), await timely.status()) == ("dead", "completed")


async def test_patience_comes_to_its_end(rt: Harness) -> None:
    job = await never_ready.enqueue()
    await rt.advance("39m")
    assert await job.status() == "deferred"
    await rt.advance("2m")
    assert await job.status() == "dead"
    assert "still not ready after snoozing for 40 m" in rt.failures[-1].text


async def test_a_failure_is_seen_and_retried_after_all_of_its_backoff(rt: Harness) -> None:
    job = await fails.enqueue()
    await rt.drain()
    (first,) = rt.failures
    assert (first.handler, first.attempt, first.dead, str(first.error)) == ("fails", 1, False, "as always")
    with pytest.raises(WaitTimedOut, match="it is deferred, and no worker runs") as raised:
        await job.result()
    assert isinstance(raised.value.__cause__, Boom)
    await rt.advance("1.5s")
    assert len(rt.failures) == 1
    await rt.advance("500ms")
    assert len(rt.failures) == 2
    await rt.advance("4s")
    assert [failure.dead for failure in rt.failures] == [False, False, True]
    with pytest.raises(JobFailed, match="as always") as failed:
        await job.result()
    assert isinstance(failed.value.__cause__, Boom)


async def test_no_lot_is_drawn(rt: Harness) -> None:
    for _ in range(5):
        await fails.enqueue()
    await rt.advance("1.8s")
    assert len(rt.failures) == 5
    await rt.advance("200ms")
    assert len(rt.failures) == 10


async def test_what_is_due_just_after_the_end_is_due(rt: Harness) -> None:
    job = await double.options(delay=10.04).enqueue(1)
    await rt.advance("10s")
    assert await job.result() == 2


async def test_advance_runs_what_comes_due_at_its_time(rt: Harness) -> None:
    _polls.clear()
    job = await poll.enqueue(3)
    await rt.drain()
    assert len(_polls) == 1
    await rt.advance("30s")
    assert await job.result() == 3
    assert _polls == [1, 1, 1]


async def test_a_test_plans_failures(rt: Harness) -> None:
    job = await double.enqueue(1)
    rt.fail_next(double, TimeoutError, times=2)
    await rt.advance("2s")
    assert [type(failure.error) for failure in rt.failures] == [TimeoutError, TimeoutError]
    await rt.advance("4s")
    assert await job.result() == 2

    job = await double.enqueue(2)
    rt.fail_next("double", Permanent("no"))
    await rt.drain()
    assert rt.failures[-1].dead
    assert [(one.id, one.state) for one in await rt.jobs()] == [(job.id, "dead")]


async def test_a_bucket_is_refilled_by_advance_alone(rt: Harness) -> None:
    await spends.enqueue(5_000, 3_456)
    await spends.enqueue(1, 10)
    await rt.drain()
    await asyncio.sleep(0.3)
    await spends.enqueue(2_000, 2_000)
    await rt.drain()
    assert await tokens.available() == 90_000 - 5_466
    await rt.advance("1s")
    assert await tokens.available() == 90_000 - 3_966
    await rt.advance("1m")
    assert await tokens.available() == 90_000


async def test_a_bucket_that_is_nearly_full_stays_so(rt: Harness) -> None:
    await spends.enqueue(10, 10)
    await rt.drain()
    await asyncio.sleep(1.3)  # its key would have expired
    assert await tokens.available() == 89_990


async def test_what_waits_for_tokens_keeps_no_worker(rt: Harness) -> None:
    for _ in range(8):
        await rare.enqueue()
    await rt.drain("8s")
    assert sorted(job.state for job in await rt.jobs()) == ["deferred"] * 7
    await rt.advance("7h")
    assert await rt.jobs() == []


async def test_what_waits_for_tokens_is_put_off(rt: Harness) -> None:
    jobs = [await limited.enqueue() for _ in range(5)]

    async def done() -> int:
        return [await job.status() for job in jobs].count("completed")

    await rt.drain()
    assert await done() == 2
    await rt.advance("1s")
    assert await done() == 3
    await rt.advance("2s")
    assert await done() == 5


async def test_a_dead_worker_leaves_its_lease(rt: Harness) -> None:
    _killers.append(rt)
    job = await dies.enqueue()
    await rt.drain()
    assert await job.status() == "active"
    await rt.advance("9s")
    assert await job.status() == "active"
    await rt.advance("1s")
    assert await job.result() == 1  # it has seen one crash


async def test_nothing_of_a_dead_worker_reaches_redis(rt: Harness) -> None:
    _killers.append(rt)
    job = await dies_when_it_has_paid.enqueue()
    await rt.drain()
    assert await job.status() == "active"
    assert await tokens.available() == 89_000  # what it said of its use is not heard


class TestCancel:
    @pytest.fixture(autouse=True)
    def long_leases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RUNTIME_LEASE", "120s")

    async def test_a_run_is_cancelled_at_once(self, rt: Harness) -> None:
        job = await hangs.enqueue()
        drained = asyncio.create_task(rt.drain())
        while await job.status() != "active":
            await asyncio.sleep(0.01)
        assert await job.cancel() == "asked"
        await asyncio.wait_for(drained, 10)
        with pytest.raises(JobCancelled):
            await job.result()


async def test_the_next_worker_is_another_one(rt: Harness) -> None:
    rt.kill_worker()  # there is none
    await rt.drain()
    rt.kill_worker()
    job = await double.enqueue(3)
    assert await double(rt.context(), 1) == 2
    rt.kill_worker()
    await rt.drain()
    assert await job.result() == 6


async def test_a_job_of_stock_arq_is_run(rt: Harness) -> None:
    pool = await create_pool(RedisSettings.from_dsn(rt.url))
    now = await pool.enqueue_job("double", 1)
    later = await pool.enqueue_job("double", 2, _defer_by=60)
    await rt.drain()
    assert now is not None
    assert later is not None
    assert await now.result(timeout=1) == 2
    await rt.advance("59s")
    assert await later.status() == JobStatus.deferred
    await rt.advance("1s")
    assert await later.result(timeout=1) == 4
    await pool.aclose(close_connection_pool=True)


async def test_outside_of_its_test_it_says_so(rt: Harness, rt_server: Server, rt_handlers: Sequence[Given]) -> None:
    closed = Harness(rt_server, settings.read(), *declared(rt_handlers, Path()))
    with pytest.raises(RuntimeError, match="`rt` is open within the test itself"):
        await closed.drain()


async def test_what_does_not_end_is_named(rt: Harness) -> None:
    job = await hangs.enqueue()
    with pytest.raises(TimeoutError, match=r"after 300 ms of real time .* Still running: hangs \(\w+\)"):
        await rt.drain("300ms")
    assert await job.status() == "waiting"


async def test_a_handler_is_called_without_a_job(rt: Harness) -> None:
    assert await double(rt.context(), 4) == 8
    ctx = rt.context(steps, attempt=2)
    assert ctx.attempt == 2
    assert await steps(ctx, "a") == await steps(ctx, "b") == "A"
    await spends(rt.context(), 1_000, 400)
    assert await tokens.available() == 89_600


async def test_the_server_can_be_away(rt: Harness) -> None:
    job = await double.enqueue(1)
    rt.redis.stop()
    with pytest.raises(RedisUnreachable):
        await double.enqueue(2)
    with pytest.raises(RedisUnreachable):
        await rt.drain()
    rt.redis.start()
    await rt.drain()
    assert await job.result() == 2


async def test_two_drains_do_not_run_at_once(rt: Harness) -> None:
    jobs = [await double.enqueue(number) for number in range(10)]
    await asyncio.gather(rt.drain(), rt.drain(), jobs[3].result())
    assert [await job.result() for job in jobs] == [2 * number for number in range(10)]
