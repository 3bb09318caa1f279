"""The lease keeper on a real server: what it extends, what it tells, and when it is silent."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keeper as keeper_module
from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.scripts import NewJob
from runtime.adapters.redis.source import RedisSource
from runtime.core.job import Claim
from runtime.ports import Away
from tests.processes import until
from tests.redis.store import DAY_MS, body
from tests.servers import Server

LEASE_S = 0.4
QUEUE = "arq:queue"


class Bench:
    """A keeper, a source beside it that knows it, and what the keeper has told."""

    def __init__(self, url: str, lease_s: float = LEASE_S) -> None:
        self.told: list[tuple[str, str]] = []
        self.trouble: list[str] = []
        self.keeper = LeaseKeeper(url, lease_s, self._hear)
        self.source = RedisSource(url, lease_s=lease_s, keeper=self.keeper)
        self.raw: Any = Redis.from_url(url)

    def _hear(self, away: Away | None) -> None:
        self.trouble.append("well again" if away is None else str(away))

    async def enqueue(self, *ids: str, queue: str = QUEUE, keep_ms: int = DAY_MS) -> None:
        await scripts.enqueue(self.source.redis, queue, [NewJob(job_id, body(), keep_ms) for job_id in ids])

    async def take(self, *ids: str, queue: str = QUEUE, keep_ms: int = DAY_MS) -> list[Claim]:
        """Enqueue, claim and hold jobs of these ids."""
        await self.enqueue(*ids, queue=queue, keep_ms=keep_ms)
        found = {claim.id: claim for claim in (await self.source.claim(queue, len(ids))).claims}
        assert found.keys() == set(ids)
        claims = [found[job_id] for job_id in ids]
        self.keeper.hold(claims, lambda token, notice: self.told.append((token, notice)))
        return claims

    def flag(self, *ids: str) -> None:
        """As an abort does."""
        self.raw.zadd(keys.ABORT, dict.fromkeys(ids, time.time_ns() // 1_000_000))

    def owner(self, job_id: str) -> str | None:
        owner: bytes | None = self.raw.get(keys.IN_PROGRESS + job_id)
        return None if owner is None else owner.decode()

    def keeps(self, claim: Claim) -> bool:
        return self.owner(claim.id) == claim.token

    def extensions(self) -> int:
        """How many scripts the server has run."""
        return int(self.raw.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

    async def outlives(self, leases: float, *claims: Claim) -> None:
        """So many leases pass, and these are ours all the time."""
        end = time.monotonic() + leases * LEASE_S
        while time.monotonic() < end:
            assert all(self.keeps(claim) for claim in claims)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def bench(url: str, lease_s: float = LEASE_S) -> AsyncIterator[Bench]:
    made = Bench(url, lease_s)
    made.keeper.start()
    try:
        yield made
    finally:
        made.keeper.close()
        await made.source.close()
        made.raw.close()


def test_held_leases_are_extended_for_as_long_as_they_are_held(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            claims = await it.take("a", "b")
            await it.outlives(1.3, *claims)
            assert not it.told

    asyncio.run(main())


def test_a_blocked_event_loop_costs_no_lease(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            time.sleep(1.5 * LEASE_S)
            assert it.keeps(claim)

    asyncio.run(main())


def test_more_leases_than_go_in_one_call_are_all_extended(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "BATCH", 2)

    async def main() -> None:
        async with bench(redis_url) as it:
            claims = await it.take("a", "b", "c", "d", "e")
            await it.outlives(1.2, *claims)

    asyncio.run(main())


def test_while_nothing_is_held_it_is_silent_and_not_even_connected(redis_url: str) -> None:
    async def main() -> None:
        lease_s = 0.2
        async with bench(redis_url, lease_s) as it:
            it.raw.ping()
            connections, commands = _traffic(it.raw)
            await asyncio.sleep(2 * lease_s)  # eight beats in which it could speak
            assert _traffic(it.raw) == (connections, commands + 1)

    asyncio.run(main())


def test_it_is_silent_again_when_all_is_dropped_and_wakes_for_the_next_job(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            extended = it.extensions()
            await until(lambda: it.extensions() > extended)
            it.keeper.drop([claim.token])
            await asyncio.sleep(LEASE_S / 2)  # what was on its way has come, and it has gone to sleep
            _, commands = _traffic(it.raw)
            await asyncio.sleep(LEASE_S / 2)
            assert _traffic(it.raw)[1] == commands + 1
            (claim,) = await it.take("b")
            await it.outlives(1.1, claim)

    asyncio.run(main())


def _traffic(raw: Any) -> tuple[int, int]:
    """Connections and commands so far; asking is one command more the next time."""
    info = raw.info("stats")
    return info["total_connections_received"], info["total_commands_processed"]


def test_a_dropped_lease_is_not_extended_while_the_others_are(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            dropped, kept = await it.take("a", "b")
            it.keeper.drop([dropped.token])
            assert not it.keeper.holds(dropped.token)
            await until(lambda: it.owner("a") is None)
            await it.outlives(0.3, kept)
            assert it.owner("a") is None
            assert not it.told

    asyncio.run(main())


def test_it_tells_that_somebody_else_has_the_job_and_leaves_it_to_them(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            lost, kept = await it.take("a", "b")
            it.raw.set(keys.IN_PROGRESS + "a", "somebody-else", px=60_000)
            await until(lambda: it.told)
            assert not it.keeper.holds(lost.token)
            await it.outlives(0.6, kept)
            assert it.told == [(lost.token, "lost")]
            assert it.owner("a") == "somebody-else"
            assert it.raw.pttl(keys.IN_PROGRESS + "a") > 50_000

    asyncio.run(main())


def test_it_tells_of_an_abort_flag_once_and_keeps_the_lease(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            flagged, other = await it.take("a", "b")
            it.raw.zadd(keys.ABORT, {"a": time.time_ns() // 1_000_000})
            await until(lambda: it.told)
            await it.outlives(0.6, flagged, other)
            assert it.told == [(flagged.token, "abort")]

    asyncio.run(main())


LONG_S = 400.0
"""A lease with beats so far apart that none comes while a test runs."""


def test_it_looks_at_once_at_a_lease_that_it_is_told_to_look_at(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url, LONG_S) as it:
            flagged, other = await it.take("a", "b")
            it.flag("a", "b")
            it.keeper.look(flagged.token)
            await until(lambda: it.told)
            assert it.told == [(flagged.token, "abort")], "and at no other one"
            before = it.extensions()
            it.keeper.look(flagged.token)
            await until(lambda: it.extensions() == before + 1)
            it.keeper.look(other.token)
            await until(lambda: len(it.told) == 2)
            assert it.told[1:] == [(other.token, "abort")], "each is told of once"

    asyncio.run(main())


def test_it_looks_at_a_lease_that_is_held_only_after_it_was_told_to(redis_url: str) -> None:
    """The word may overtake the answer of the claim: it comes over another connection."""

    async def main() -> None:
        async with bench(redis_url, LONG_S) as it:
            await it.enqueue("a")
            (claim,) = (await it.source.claim(QUEUE, 1)).claims
            it.flag("a")
            it.keeper.look(claim.token)
            await asyncio.sleep(0.1)
            it.keeper.hold([claim], lambda token, notice: it.told.append((token, notice)))
            await until(lambda: it.told)
            assert it.told == [(claim.token, "abort")]

    asyncio.run(main())


def test_a_look_without_a_flag_stops_nothing(redis_url: str) -> None:
    """Whoever may publish can ask for one, with a token that every client can read."""

    async def main() -> None:
        async with bench(redis_url, LONG_S) as it:
            (claim,) = await it.take("a")
            before = it.extensions()
            it.keeper.look(claim.token)
            it.keeper.look("1:somebody-else:1")
            await until(lambda: it.extensions() == before + 1)
            await asyncio.sleep(0.1)
            assert not it.told
            assert it.extensions() == before + 1

    asyncio.run(main())


def test_the_token_of_an_earlier_claim_of_the_id_stops_nothing(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url, LONG_S) as it:
            (claim,) = await it.take("a")
            it.flag("a")
            it.keeper.look(f"1:{it.source.incarnation}:1")
            await asyncio.sleep(0.1)
            assert not it.told
            assert it.keeper.holds(claim.token)

    asyncio.run(main())


def test_it_does_not_keep_more_tokens_than_it_will_look_at(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url, LONG_S) as it:
            for number in range(5 * keeper_module.LOOKS):
                it.keeper.look(f"1:somebody-else:{number}")
            (claim,) = await it.take("a")
            it.flag("a")
            it.keeper.look(claim.token)
            await until(lambda: it.told)
            assert len(it.keeper._asked) <= keeper_module.LOOKS

    asyncio.run(main())


def test_a_body_that_would_expire_while_its_job_runs_is_kept(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "RENEW_BODY_S", 0.0)

    async def main() -> None:
        async with bench(redis_url) as it:
            await it.take("a", keep_ms=60_000)
            await until(lambda: it.raw.pttl(keys.JOB + "a") > 60_000)

    asyncio.run(main())


def test_b2_a_queue_of_a_wrong_type_does_not_cost_another_queue_its_leases(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            await it.take("a", queue="bad")
            (kept,) = await it.take("b", queue="good")
            _spoil(it.raw, "bad")
            await it.outlives(1.2, kept)
            assert set(it.trouble) == {"extend: the server answered WRONGTYPE"}
            assert not it.told

    asyncio.run(main())


def test_b2_a_queue_of_a_wrong_type_does_not_keep_the_worker_from_claiming_in_another(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (stuck,) = await it.take("a", queue="bad")
            await it.enqueue("b", queue="good")
            _spoil(it.raw, "bad")
            await it.outlives(0.8, stuck)
            pulled = await it.source.claim("good", 1)
            assert [claim.id for claim in pulled.claims] == ["b"]

    asyncio.run(main())


def _spoil(raw: Any, key: str) -> None:
    raw.delete(key)
    raw.rpush(key, "spoiled")


def test_without_an_outage_nobody_needs_to_wait_for_owners(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            await it.outlives(0.3, claim)
            assert it.keeper.owners_first_s() == 0

    asyncio.run(main())


def test_b1_after_a_hang_of_the_server_owners_go_first(server: Server, redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            server.pause()
            hung_at = time.monotonic()
            await until(lambda: it.keeper.owners_first_s() is None)
            assert time.monotonic() - hung_at > LEASE_S / 2
            server.resume()
            await _owners_go_first(it)
            assert it.keeps(claim)
            assert not it.told
            assert set(it.trouble) <= {"extend: no answer in time", "well again"}

    asyncio.run(main())


def test_b1_after_a_crash_of_the_server_owners_go_first_and_lapsed_leases_are_taken_again(tmp_path: Path) -> None:
    async def main(server: Server) -> None:
        async with bench(server.url) as it:
            (claim,) = await it.take("a")
            server.kill()
            died_at = time.monotonic()
            await until(lambda: it.keeper.owners_first_s() is None)
            await until(lambda: time.monotonic() - died_at > 1.2 * LEASE_S)
            assert it.keeper.owners_first_s() is None
            server.start()
            await _owners_go_first(it)
            await it.outlives(0.3, claim)
            assert not it.told

    with Server(data=tmp_path) as server:
        asyncio.run(main(server))


async def _owners_go_first(it: Bench) -> None:
    """The next extension succeeds; a quarter of a lease begins, and ends."""
    first = None
    end = time.monotonic() + 10
    while first is None:
        assert time.monotonic() < end, "it did not extend again"
        await asyncio.sleep(0.001)
        first = it.keeper.owners_first_s()
    assert 0 < first <= LEASE_S / 4
    await until(lambda: it.keeper.owners_first_s() == 0)


def test_an_outage_of_less_than_half_a_lease_makes_nobody_wait(server: Server, redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url, lease_s := 0.8) as it:
            (claim,) = await it.take("a")
            server.pause()
            await until(lambda: it.trouble)
            server.resume()
            extended = time.monotonic()
            while time.monotonic() - extended < lease_s / 4:
                assert it.keeper.owners_first_s() == 0
                await asyncio.sleep(0.01)
            assert it.keeps(claim)

    asyncio.run(main())


def test_a_closed_event_loop_ends_it_when_there_is_something_to_tell(redis_url: str) -> None:
    assert _ends_without_its_loop(redis_url, lambda raw: raw.zadd(keys.ABORT, {"a": time.time_ns() // 1_000_000}))


def test_a_closed_event_loop_ends_it_also_when_its_last_lease_is_lost(redis_url: str) -> None:
    assert _ends_without_its_loop(redis_url, lambda raw: raw.set(keys.IN_PROGRESS + "a", "somebody-else", px=60_000))


def _ends_without_its_loop(url: str, news: Callable[[Any], object]) -> bool:
    kept: list[Bench] = []

    async def main() -> None:
        it = Bench(url)
        kept.append(it)
        it.keeper.start()
        await it.take("a")
        await it.source.close()

    before = set(threading.enumerate())
    asyncio.run(main())
    (it,) = kept
    (thread,) = set(threading.enumerate()) - before
    try:
        news(it.raw)
        thread.join(timeout=2 * LEASE_S)
        assert not it.told
        return not thread.is_alive()
    finally:
        it.keeper.close()
        it.raw.close()


def test_it_closes_within_a_moment_and_what_was_held_lapses(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            await it.take("a")
            began = time.monotonic()
            it.keeper.close()
            assert time.monotonic() - began < LEASE_S
            await until(lambda: it.owner("a") is None)

    asyncio.run(main())
