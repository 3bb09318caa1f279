"""Permits as a worker asks for them: handed on, waited for without asking, and never lost with what goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import holders, keys, scripts
from runtime.adapters.redis import permits as permits_module
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.permits import RETRY_S, RedisPermits
from runtime.adapters.redis.scripts import NewJob, script
from runtime.adapters.redis.source import RedisSource
from runtime.core.errors import LeaseLost, LimitInvalid
from runtime.core.job import Claim
from runtime.core.limits import Concurrency, Permit, Refused
from runtime.ports import Away
from tests.processes import until
from tests.redis.store import DAY_MS, body
from tests.servers import Server

LEASE_S = 10.0
QUEUE = "arq:queue"
EXPORTS = Concurrency("exports", 1)
PATIENT_S = 60.0
SLACK_S = 5.0
"""What a machine that is busy with other things may add."""


class Process:
    """What a worker has of it: leases that are kept, and permits."""

    def __init__(self, url: str, lease_s: float) -> None:
        self.trouble: list[str] = []
        self.keeper = LeaseKeeper(url, lease_s, lambda away: None)
        self.source = RedisSource(url, lease_s=lease_s, keeper=self.keeper)
        self.permits = RedisPermits(url, self.source.redis, self.source.incarnation, self._note)
        self.raw: Any = Redis.from_url(url, decode_responses=True)
        self._jobs = 0

    def _note(self, text: str, key: str) -> None:
        self.trouble.append(f"{text} {key}")

    async def lease(self, count: int = 1) -> list[Claim]:
        ids = [f"{self.source.incarnation}.{self._jobs + n}" for n in range(count)]
        self._jobs += count
        await scripts.enqueue(self.source.redis, QUEUE, [NewJob(job_id, body(), DAY_MS) for job_id in ids])
        found = {claim.id: claim for claim in (await self.source.claim(QUEUE, count)).claims}
        claims = [found[job_id] for job_id in ids]
        self.keeper.hold(claims, lambda token, notice: None)
        return claims

    async def job(self) -> Claim:
        (claim,) = await self.lease()
        return claim

    async def ask(self, claim: Claim, limit: Concurrency = EXPORTS, patience_s: float = PATIENT_S) -> Permit | Refused:
        return await self.permits.acquire(limit, claim, patience_s, nullcontext())

    async def get(self, claim: Claim, limit: Concurrency = EXPORTS) -> Permit:
        permit = await self.ask(claim, limit)
        assert isinstance(permit, Permit)
        return permit

    async def in_line(self, limit: Concurrency = EXPORTS) -> asyncio.Task[Permit]:
        """A job of ours waits."""
        claim, before = await self.job(), self.waiting(limit)
        task = asyncio.create_task(self.get(claim, limit))
        await until(lambda: self.waiting(limit) > before)
        return task

    def waiting(self, limit: Concurrency = EXPORTS) -> int:
        return int(self.raw.zcard(keys.waiting(limit.label)))

    def held(self, limit: Concurrency = EXPORTS) -> list[str]:
        """The jobs that hold a permit."""
        return [text.split("|", 4)[4] for text in self.raw.zrange(keys.held(limit.label), 0, -1)]

    def is_clean(self) -> bool:
        return not (self.held() or self.waiting())

    def listens(self) -> int:
        """Connections that wait for messages."""
        return sum(client["cmd"] == "blpop" for client in self.raw.client_list())

    def die(self) -> None:
        """Nothing more is extended."""
        self.keeper.close()


@asynccontextmanager
async def processes(url: str, count: int = 1, lease_s: float = LEASE_S) -> AsyncIterator[list[Process]]:
    made = [Process(url, lease_s) for _ in range(count)]
    runs = [asyncio.create_task(one.permits.run()) for one in made]
    for one in made:
        one.keeper.start()
    try:
        yield made
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        for one in made:
            one.keeper.close()
            await one.permits.close()
            await one.source.close()
            one.raw.close()


async def handed(waiting: asyncio.Task[Permit], timeout_s: float = SLACK_S) -> Permit:
    async with asyncio.timeout(timeout_s):
        return await waiting


@pytest.fixture
def url(redis_url: str, assert_keys_bounded: Callable[..., None]) -> Iterator[str]:
    yield redis_url
    assert_keys_bounded(redis_url)


def test_permits_are_handed_on_in_the_order_of_their_coming_over_all_processes(url: str) -> None:
    async def play() -> None:
        async with processes(url, 2) as (here, there):
            got = await here.get(await here.job())
            line = [await one.in_line() for one in (there, here, there, there, here)]
            owners = [there, here, there, there, here]
            here.permits.release(got)
            for n, (owner, waiting) in enumerate(zip(owners, line, strict=True)):
                permit = await handed(waiting)
                assert not any(later.done() for later in line[n + 1 :])
                owner.permits.release(permit)
            await until(here.is_clean)

    asyncio.run(play())


def test_disconnected_it_listens_no_more_until_somebody_waits(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            got = await process.get(await process.job())
            waiting = await process.in_line()
            process.permits.release(got)
            process.permits.release(await handed(waiting))
            await until(process.is_clean)
            await until(lambda: process.listens() == 1)
            await process.permits.disconnect()
            await asyncio.sleep(3 * RETRY_S)  # it would be there again
            assert process.listens() == 0
            got = await process.get(await process.job())
            waiting = await process.in_line()
            await until(lambda: process.listens() == 1)
            process.permits.release(got)
            await handed(waiting)

    asyncio.run(play())


def test_there_are_as_many_for_each_key(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            one, other, third = await process.lease(3)
            await process.get(one, EXPORTS["a"])
            await process.get(other, EXPORTS["b"])
            assert isinstance(await process.ask(third, EXPORTS["a"], 0), Refused)
            assert isinstance(await process.ask(third, EXPORTS, 0), Permit)

    asyncio.run(play())


def test_over_the_patience_nothing_is_held_nor_waited_for(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            one, other = await process.lease(2)
            got = await process.get(one)
            began = time.monotonic()
            refused = await process.ask(other, patience_s=0.3)
            assert 0.25 < time.monotonic() - began < SLACK_S
            assert isinstance(refused, Refused)
            assert (refused.by, refused.why) == ("exports", "full")
            assert 1 <= refused.wait_s <= 3
            await until(lambda: not process.waiting())
            process.permits.release(got)
            await until(process.is_clean)
            assert isinstance(await process.ask(other, patience_s=0), Permit)

    asyncio.run(play())


def test_the_wait_alone_is_told(url: str) -> None:
    told: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        told.append("waits")
        yield
        told.append("has it")

    async def play() -> None:
        async with processes(url) as (process,):
            one, other = await process.lease(2)
            got = await process.permits.acquire(EXPORTS, one, PATIENT_S, waiting())
            assert isinstance(got, Permit)
            assert told == []
            task = asyncio.create_task(process.permits.acquire(EXPORTS, other, PATIENT_S, waiting()))
            await until(process.waiting)
            process.permits.release(got)
            await task
            assert told == ["waits", "has it"]

    asyncio.run(play())


def test_who_is_cancelled_leaves_the_line(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            got = await process.get(await process.job())
            first, second = await process.in_line(), await process.in_line()
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            await until(lambda: process.waiting() == 1)
            process.permits.release(got)
            await handed(second)

    asyncio.run(play())


def test_who_is_cancelled_as_it_is_handed_the_permit_hands_it_on(url: str) -> None:
    async def play() -> None:
        async with processes(url, 2) as (here, there):
            for _ in range(20):
                got = await here.get(await here.job())
                first, second = await there.in_line(), await here.in_line()
                here.permits.release(got)
                await until(lambda: here.waiting() == 1)
                first.cancel()  # the message is on its way, or has just come
                with suppress(asyncio.CancelledError):
                    there.permits.release(await first)
                here.permits.release(await handed(second))
                await until(here.is_clean)

    asyncio.run(play())


def test_who_is_cancelled_before_it_is_answered_holds_nothing(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            await process.get(await process.job(), Concurrency("other", 1))
            claims = await process.lease(30)
            for n, claim in enumerate(claims):
                task = asyncio.create_task(process.get(claim))
                for _ in range(n % 10):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.0001 * (n // 3))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    process.permits.release(task.result())
            await until(process.is_clean)
            await asyncio.sleep(0.3)
            assert process.is_clean()

    asyncio.run(play())


def test_a_job_that_asks_for_what_it_has_is_told_so_and_waits_for_nothing(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            claim = await process.job()
            got = await process.get(claim)
            with pytest.raises(LimitInvalid, match="wait for itself"):
                await process.ask(claim)
            assert len(process.held()) == 1
            process.permits.release(got)
            process.permits.release(got)
            for _ in range(20):  # at once again, and again: what was given back is back first
                process.permits.release(await process.get(claim))
            assert process.listens() == 0

    asyncio.run(play())


def test_a_late_second_release_does_not_give_back_what_was_got_since(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            claim = await process.job()
            first = await process.get(claim)
            process.permits.release(first)
            await process.get(claim)
            process.permits.release(first)
            await asyncio.sleep(0.1)
            assert process.held() == [claim.id]

    asyncio.run(play())


def test_a_job_that_is_no_longer_ours_gets_none(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            first, second = await process.lease(2)
            process.raw.set(keys.IN_PROGRESS + first.id, "another", px=60_000)
            with pytest.raises(LeaseLost):
                await process.ask(first)
            got = await process.get(second)
            waiting = await process.in_line()
            (_, third) = sorted(process.raw.keys(keys.IN_PROGRESS + "*"))[-2:]
            process.raw.set(third, "another", px=60_000)
            process.permits.release(got)
            await until(lambda: not process.waiting())
            process.permits._ask_soon(["exports"], 0)
            with pytest.raises(LeaseLost):
                await handed(waiting)

    asyncio.run(play())


def test_a_lease_that_has_lapsed_is_waited_for(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            claim = await process.job()
            process.raw.delete(keys.IN_PROGRESS + claim.id)
            task = asyncio.create_task(process.get(claim))
            await asyncio.sleep(0.4)
            assert not task.done()
            assert process.is_clean()
            process.raw.set(keys.IN_PROGRESS + claim.id, claim.token, px=60_000)  # as its keeper does
            await handed(task)

    asyncio.run(play())


# A dead holder, a dead waiter, a lost message.


def test_a_dead_holders_permit_is_free_within_its_lease_and_two_seconds(url: str) -> None:
    async def play() -> float:
        async with processes(url, 2, lease_s=3) as (dies, lives):
            await dies.get(await dies.job())
            first, second = await lives.in_line(), await lives.in_line()
            died = time.monotonic()
            dies.die()
            permit = await handed(first, 3 + 2 + SLACK_S)
            took = time.monotonic() - died
            lives.permits.release(permit)
            await handed(second)
            return took

    took = asyncio.run(play())
    print(f"\nfree {took:.2f} s after the death of its holder, whose lease was of 3 s")
    assert took < 3 + 2


def test_a_message_that_is_lost_costs_no_more_than_a_lease(url: str) -> None:
    async def play() -> None:
        async with processes(url, 2, lease_s=3) as (here, there):
            got = await here.get(await here.job())
            waiting = await there.in_line()
            there.raw.set(keys.handed(there.source.incarnation), "in the way", px=60_000)
            here.permits.release(got)
            await until(lambda: not there.waiting())
            assert not waiting.done()
            await handed(waiting, 3 + SLACK_S)

    asyncio.run(play())


def test_a_message_that_is_lost_with_its_connection_is_not_waited_for(url: str) -> None:
    async def play() -> None:
        async with processes(url, 2) as (here, there):
            got = await here.get(await here.job())
            waiting = await there.in_line()
            await until(lambda: there.listens() == 1)
            (listener,) = [client for client in there.raw.client_list() if client["cmd"] == "blpop"]
            there.raw.client_kill_filter(_id=listener["id"])
            here.permits.release(got)
            await until(lambda: there.raw.delete(keys.handed(there.source.incarnation)))
            await handed(waiting, SLACK_S)

    asyncio.run(play())


def test_who_dies_between_the_hand_over_and_the_message_keeps_nobody_waiting(url: str) -> None:
    async def play() -> None:
        async with processes(url, 3, lease_s=3) as (holds, dies, lives):
            got = await holds.get(await holds.job())
            dead = await dies.in_line()
            (lost,) = dies.permits._line
            dies.permits._line.clear()  # it hears of nothing any more
            dies.die()
            waiting = await lives.in_line()
            holds.permits.release(got)
            await until(lambda: lives.raw.zscore(keys.held("exports"), lost.decode()) == 0)
            await handed(waiting, 3 + 2 + SLACK_S)
            dead.cancel()
            with suppress(asyncio.CancelledError, KeyError):
                await dead

    asyncio.run(play())


def test_a_dead_waiter_is_passed_over(url: str) -> None:
    async def play() -> None:
        async with processes(url, 3, lease_s=1) as (holds, dies, lives):
            got = await holds.get(await holds.job())
            dead = await dies.in_line()
            dies.die()
            waiting = await lives.in_line()
            await until(lambda: len(lives.raw.keys(keys.IN_PROGRESS + "*")) == 2)
            holds.permits.release(got)
            await handed(waiting)
            dead.cancel()

    asyncio.run(play())


# What it costs.


def calls(raw: Any) -> dict[str, int]:
    told = raw.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in told.items()}


@pytest.mark.parametrize(("lease_s", "most"), [(10, 0), (2, 60)], ids=["leases of 10 s", "leases of 2 s"])
def test_ten_that_wait_for_five_seconds_hardly_ask(url: str, lease_s: int, most: int) -> None:
    """Somebody listens already; and one asks for all of a process, when the lease of a holder would lapse."""

    async def play() -> dict[str, int]:
        async with processes(url, 2, lease_s=lease_s) as (here, there):
            await here.get(await here.job())
            line = [await there.in_line() for _ in range(10)]
            here.keeper.close()
            there.keeper.close()  # what extends the leases is told apart: it is done here
            before, extended = calls(here.raw), 0
            for _ in range(10):
                leases = here.raw.keys(keys.IN_PROGRESS + "*")
                extended += sum(here.raw.pexpire(name, 1000 * lease_s) for name in leases)
                await asyncio.sleep(0.5)
            after = calls(here.raw)
            for waiting in line:
                waiting.cancel()
            await asyncio.gather(*line, return_exceptions=True)
            cost = {name: n - before.get(name, 0) for name, n in after.items()}
            cost["pexpire"] -= extended
            cost["keys"] -= 10
            cost["info"] = 0
            return {name: n for name, n in cost.items() if n}

    cost = asyncio.run(play())
    print(f"\n10 wait for 5 s with leases of {lease_s} s: {sum(cost.values())} commands: {cost}")
    assert sum(cost.values()) <= most


def test_a_hand_over_takes_milliseconds(url: str) -> None:
    async def play() -> list[float]:
        took = []
        async with processes(url, 2) as (here, there):
            got = await here.get(await here.job())
            owner = here
            for _ in range(20):
                other = there if owner is here else here
                waiting = await other.in_line()
                began = time.perf_counter()
                owner.permits.release(got)
                got, owner = await handed(waiting), other
                took.append(time.perf_counter() - began)
        return sorted(took)

    took = asyncio.run(play())
    print(f"\nhand-over: median {1000 * took[10]:.2f} ms, longest {1000 * took[-1]:.2f} ms")
    assert took[10] < 0.25


def test_what_is_free_costs_two_calls_and_no_connection(url: str) -> None:
    async def play() -> dict[str, int]:
        async with processes(url) as (process,):
            first, second = await process.lease(2)
            process.permits.release(await process.get(first))
            await until(process.is_clean)
            before, connected = calls(process.raw), process.raw.info("stats")["total_connections_received"]
            process.permits.release(await process.get(second))
            await asyncio.sleep(0.2)
            after = calls(process.raw)
            assert process.raw.info("stats")["total_connections_received"] == connected
            return {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}

    cost = asyncio.run(play())
    cost.pop("info")
    print(f"\nacquire and release: {cost}")
    assert cost["evalsha"] == 2
    assert sum(cost.values()) <= 9


def test_the_connection_for_messages_is_closed_when_nobody_waits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permits_module, "LISTEN_S", 0.3)

    async def play() -> None:
        async with processes(url) as (process,):
            one, other = await process.lease(2)
            before = len(process.raw.client_list())
            got = await process.get(one)
            assert process.listens() == 0
            waiting = asyncio.create_task(process.get(other))
            await until(lambda: process.listens() == 1)
            await asyncio.sleep(0.5)
            assert process.listens() == 1
            process.permits.release(got)
            await handed(waiting)
            await until(lambda: len(process.raw.client_list()) <= before)
            again = await process.in_line()
            process.permits.release(waiting.result())
            await handed(again)

    asyncio.run(play())


# Weather.


def test_a_restart_with_its_data_takes_nobodys_permit_nor_place(tmp_path: Path) -> None:
    async def play(server: Server) -> None:
        async with processes(server.url, 2, lease_s=3) as (here, there):
            got = await here.get(await here.job())
            first, second = await there.in_line(), await there.in_line()
            server.kill()
            await asyncio.sleep(4)  # every lease has lapsed
            server.start()
            await asyncio.sleep(3)
            assert not first.done()
            here.permits.release(got)
            done, _ = await asyncio.wait([first, second], timeout=10, return_when=asyncio.FIRST_COMPLETED)
            (next_one,) = done
            there.permits.release(next_one.result())
            await handed(second if next_one is first else first, 10)

    with Server(tmp_path) as server:
        asyncio.run(play(server))


def test_a_restart_without_its_data_leaves_nobody_waiting_for_ever(server: Server) -> None:
    """The leases are lost with it: so are the permits, and who waits learns that its job is not known any more."""

    async def play() -> None:
        async with processes(server.url, 1, lease_s=3) as (process,):
            claim, other = await process.lease(2)
            await process.get(claim)
            task = asyncio.create_task(process.ask(other, patience_s=6))
            await until(process.waiting)
            server.restart()
            async with asyncio.timeout(6 + SLACK_S):
                assert isinstance(await task, Refused)
            fresh = await process.job()
            await process.get(fresh)

    server.flush()
    asyncio.run(play())


def test_what_is_given_back_while_redis_is_away_is_given_back_when_it_is_there(tmp_path: Path) -> None:
    async def play(server: Server) -> None:
        async with processes(server.url) as (process,):
            got = await process.get(await process.job())
            server.kill()
            process.permits.release(got)
            await asyncio.sleep(1)
            server.start()
            await until(process.is_clean)

    with Server(tmp_path) as server:
        asyncio.run(play(server))


def test_where_redis_is_away_it_is_said_at_once_and_over_the_patience(tmp_path: Path) -> None:
    async def play(server: Server) -> None:
        async with processes(server.url) as (process,):
            one, other, third = await process.lease(3)
            await process.get(one)
            task = asyncio.create_task(process.ask(other, patience_s=3))
            await until(process.waiting)
            server.kill()
            with pytest.raises(Away, match="limit"):
                await process.ask(third)
            with pytest.raises(Away, match="limit"):
                await task
            server.start()
            await until(lambda: process.held() == [one.id] and not process.waiting())

    with Server(tmp_path) as server:
        asyncio.run(play(server))


def test_a_server_that_hangs_keeps_nothing_from_anybody(server: Server) -> None:
    """A question may be answered after what takes it back."""

    async def play() -> None:
        async with processes(server.url, lease_s=60) as (process,):
            claims = await process.lease(6)
            await process.permits._tell_of(EXPORTS)
            server.pause()
            tasks = [asyncio.create_task(process.ask(claim)) for claim in claims]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.3)
            server.resume()
            await asyncio.sleep(1)
            await until(process.is_clean)
            await asyncio.sleep(0.5)
            assert process.is_clean()

    server.flush()
    asyncio.run(play())


class Overtaken:
    """A connection whose first question arrives after what takes it back."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._late: tuple[Any, ...] | None = None

    async def execute_command(self, *args: Any) -> Any:
        if args[1] == script("acquire", "permits").sha and self._late is None:
            self._late = args
            await asyncio.Event().wait()
        reply = await self._redis.execute_command(*args)
        if self._late:
            await self._redis.execute_command(*self._late)
            self._late = ()
        return reply


@pytest.mark.parametrize("full", [False, True])
def test_a_question_that_arrives_after_it_was_taken_back_leaves_nothing(url: str, full: bool) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            first, claim = await process.lease(2)
            before = [await process.get(first)]
            if not full:
                process.permits.release(before.pop())
                await until(process.is_clean)
            process.permits._redis = Overtaken(process.source.redis)
            task = asyncio.create_task(process.ask(claim))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not process.permits._returned)
            assert (len(process.held()), process.waiting()) == (len(before), 0)

    asyncio.run(play())


def test_a_key_of_a_wrong_type_is_refused_and_harms_nobody_else(url: str) -> None:
    async def play() -> None:
        async with processes(url) as (process,):
            one, other = await process.lease(2)
            process.raw.set(keys.held("exports"), "spoiled", px=60_000)
            with pytest.raises(Away, match="WRONGTYPE") as caught:
                await process.ask(one)
            assert caught.value.refused
            await until(lambda: process.trouble)
            assert "WRONGTYPE" in process.trouble[0]
            assert process.trouble[0].endswith(f" {keys.held('exports')}")
            permit = await process.get(other, EXPORTS["a"])
            process.permits.release(permit)
            await until(lambda: not process.held(EXPORTS["a"]))

    asyncio.run(play())


# For people to look at.


def test_it_can_be_seen_who_holds_and_how_many_wait(url: str) -> None:
    async def play() -> None:
        async with processes(url, 2) as (here, there):
            one, other = await here.lease(2)
            await here.get(one, Concurrency("exports", 2))
            await here.get(other, Concurrency("exports", 2))
            waiting = await there.in_line(Concurrency("exports", 2))
            here.raw.delete(keys.IN_PROGRESS + other.id)
            redis = connect(url)
            found, empty = await holders.standing(redis, ["exports", "exports[a]"])
            assert {(one.job_id, one.live) for one in found.holders} == {(one.id, True), (other.id, False)}
            assert (found.label, found.waiting) == ("exports", 1)
            assert (empty.holders, empty.waiting) == ([], 0)
            assert await holders.declared(redis) == {"exports": 2}
            await redis.aclose()
            waiting.cancel()

    asyncio.run(play())
