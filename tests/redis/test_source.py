"""The source and the ledger on a real server: lost replies, hostile bodies, restarts, and what is left behind."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from runtime.adapters.redis import keys, ledger, letters, pickles, scripts, wire
from runtime.adapters.redis.ledger import RedisLedger
from runtime.adapters.redis.scripts import NewJob
from runtime.adapters.redis.source import MOST_BYTES, RedisSource
from runtime.core.errors import LeaseLost
from runtime.core.job import (
    Call,
    Claim,
    Dead,
    Done,
    ErrorRecord,
    Failure,
    History,
    Outcome,
    Released,
    Retried,
    Settlement,
    Unreadable,
)
from runtime.ports import Away, Step
from tests.processes import until
from tests.redis.store import DAY_MS, body, no_claim
from tests.relay import Relay
from tests.servers import Server

QUEUE = "arq:queue"
LEASE_S = 10.0
FAILURE = Failure("ValueError", "no", "transient", builtin=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "RETRY_S", 0.02)


class Bench:
    """A source, and a client of our own for looking."""

    def __init__(self, url: str, lease_s: float, keeper: object) -> None:
        self.trouble: list[str] = []
        self.source = RedisSource(
            url,
            lease_s=lease_s,
            keeper=cast(Any, keeper),
            on_trouble=lambda text, key: self.trouble.append(f"{text} {key}".rstrip()),
        )
        self.ledger = RedisLedger(self.source.redis)
        self.raw: Any = Redis.from_url(url)
        self.asked = 0
        """Scripts run by the server, and calls that failed."""

    async def enqueue(self, *ids: str, data: bytes | None = None, **options: Any) -> None:
        jobs = [NewJob(job_id, data or body(job_id), **{"keep_ms": DAY_MS, **options}) for job_id in ids]
        assert all((await scripts.enqueue(self.source.redis, QUEUE, jobs)).added)

    def puts(self, job_id: str | bytes, data: bytes | None) -> None:
        """A job as a stock producer leaves it; without a body if there is none."""
        if data is not None:
            self.raw.set(b"arq:job:" + (job_id.encode() if isinstance(job_id, str) else job_id), data, px=DAY_MS)
        self.raw.zadd(QUEUE, {job_id: time.time_ns() // 1_000_000 - 1000})

    async def claim(self, room: int = 10) -> list[Claim]:
        return sorted((await self.source.claim(QUEUE, room)).claims, key=lambda claim: claim.id)

    async def one(self) -> Claim:
        (claim,) = await self.claim()
        return claim

    async def take(self, *ids: str) -> list[Claim]:
        await self.enqueue(*ids)
        return await self.claim(len(ids))

    async def settle(self, *batch: Settlement) -> list[str]:
        return list(await self.source.settle(QUEUE, batch))

    def result(self, job_id: str) -> wire.Result:
        return wire.decode_result(self.raw.get(keys.RESULT + job_id))

    def is_over(self) -> bool:
        """Nothing is queued, nothing held."""
        return not (self.raw.zcard(QUEUE) or self.raw.zcard(keys.later(QUEUE)) or self.raw.keys(keys.IN_PROGRESS + "*"))

    def lose_replies(self, monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
        """The replies of these scripts, counted from now on, never arrive; the server has run them all the same."""
        real = self.source.redis.execute_command
        self.asked = 0

        async def execute(*args: Any, **options: Any) -> Any:
            reply = await real(*args, **options)
            if args[0] in ("EVALSHA", "EVAL"):
                self.asked += 1
                if self.asked in calls:
                    raise ConnectionError("Connection closed by server.")
            return reply

        monkeypatch.setattr(self.source.redis, "execute_command", execute)

    def count_failures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = self.source.redis.execute_command
        self.asked = 0

        async def execute(*args: Any, **options: Any) -> Any:
            try:
                return await real(*args, **options)
            except ConnectionError:
                self.asked += 1
                raise

        monkeypatch.setattr(self.source.redis, "execute_command", execute)


@asynccontextmanager
async def bench(url: str, *, lease_s: float = LEASE_S, keeper: object = None) -> AsyncIterator[Bench]:
    made = Bench(url, lease_s, keeper)
    try:
        yield made
    finally:
        await made.source.close()
        made.raw.close()


def ends(claim: Claim, outcome: Outcome, *, keep_result_s: float = 60.0, history: History | None = None) -> Settlement:
    now = claim.now_ms
    return Settlement(claim, outcome, now, now + 1, history=history or claim.history, keep_result_s=keep_result_s)


def unknown(claim: Claim) -> Settlement:
    released = Released("unknown-handler", 60.0)
    return ends(claim, released, history=History(unknown_since_ms=claim.now_ms))


def stock_body(**fields: object) -> bytes:
    return pickle.dumps({"t": None, "f": "work", "a": (), "k": {}, "et": 1_700_000_000_000, **fields})


# Claims


def test_a_job_is_claimed_settled_and_gone_but_for_its_result(
    redis_url: str, assert_keys_bounded: Callable[[str], None]
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            assert claim.call == wire.decode_call(body("a"))
            assert (claim.id, claim.queue, claim.starts, claim.attempt, claim.body) == ("a", QUEUE, 1, 1, body("a"))
            assert await it.claim() == []
            assert await it.settle(ends(claim, Done({"n": 7}))) == ["settled"]
            assert it.is_over()
            assert it.result("a").value == {"n": 7}
            assert await it.settle(ends(claim, Done(8))) == ["refused"]
            assert it.result("a").value == {"n": 7}
            assert it.source.away is None
            assert not it.trouble

    asyncio.run(main())
    assert_keys_bounded(redis_url)


def test_a_retried_job_brings_its_history_and_its_next_attempt(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            past = History(errors=(ErrorRecord(1, claim.now_ms, "ValueError", "no \ud800", "transient"),))
            assert await it.settle(ends(claim, Retried(0.0, FAILURE), history=past)) == ["settled"]
            claim = await it.one()
            assert (claim.starts, claim.attempt) == (2, 2)
            assert [error.text for error in claim.history.errors] == ["no \\ud800"]

    asyncio.run(main())


def test_a_claim_whose_reply_was_lost_brings_the_same_jobs_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            await it.enqueue("a", "b", "c")
            it.lose_replies(monkeypatch, 1)
            with pytest.raises(Away, match=r"^claim: connection closed$"):
                await it.claim(2)
            assert it.source.away
            held = {key.decode().removeprefix(keys.IN_PROGRESS) for key in it.raw.keys(keys.IN_PROGRESS + "*")}
            assert len(held) == 2
            claims = await it.claim(2)
            assert {claim.id for claim in claims} == held
            assert [claim.starts for claim in claims] == [1, 1]
            assert [claim.starts for claim in await it.claim(2)] == [1]
            assert set(await it.settle(*[ends(claim, Done(1)) for claim in claims])) == {"settled"}

    asyncio.run(main())


class Owners:
    """A keeper as `claim` knows it."""

    def __init__(self, wait_s: float | None) -> None:
        self.wait_s = wait_s

    def owners_first_s(self) -> float | None:
        return self.wait_s

    def holds(self, token: str) -> bool:
        return False


def test_b1_while_leases_cannot_be_extended_nothing_is_claimed_and_then_owners_go_first(redis_url: str) -> None:
    async def main() -> None:
        owners = Owners(None)
        async with bench(redis_url, keeper=owners) as it:
            await it.enqueue("a")
            for _ in range(2):
                with pytest.raises(Away, match="cannot be extended"):
                    await it.claim()
            assert not it.raw.exists(keys.IN_PROGRESS + "a")
            owners.wait_s = 0.25
            assert await _seconds_of_a_claim(it) >= 0.25
            owners.wait_s = 0.0
            assert await _seconds_of_a_claim(it) < 0.25

    asyncio.run(main())


def test_b1_a_claim_that_lay_before_a_server_that_was_stopped_takes_nothing(server: Server, redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            await it.claim()
            await it.enqueue("a")
            server.pause()
            try:
                with pytest.raises(Away, match=r"^claim: no answer"):
                    await it.claim()
                await asyncio.sleep(0.5)
            finally:
                server.resume()
            await until(lambda: it.raw.ping())
            await asyncio.sleep(0.2)  # it has been read
            assert not it.raw.exists(keys.IN_PROGRESS + "a")
            assert [claim.id for claim in await it.claim()] == ["a"]

    asyncio.run(main())


async def _seconds_of_a_claim(it: Bench) -> float:
    began = time.monotonic()
    await it.claim()
    return time.monotonic() - began


def test_b1_on_a_server_that_has_just_come_up_the_first_claim_leaves_time_to_the_owners(server: Server) -> None:
    async def main(leases: bool) -> list[float]:
        server.restart()
        async with bench(server.url, lease_s=2.0) as it:
            if leases:
                it.raw.zadd(keys.later(QUEUE), {"1:a-1:1|1|a": time.time_ns() // 1_000_000 + 60_000})
            return [await _seconds_of_a_claim(it) for _ in range(2)]

    first, second = asyncio.run(main(leases=True))
    assert first >= 0.5
    assert second < 0.5
    assert all(seconds < 0.5 for seconds in asyncio.run(main(leases=False)))


# Bodies


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: raw.delete(keys.JOB + "b"), "the body is missing: it expired in the queue, or was deleted"),
        (
            lambda raw: raw.set(keys.JOB + "b", bytes(wire.MAX_BODY + 1), px=DAY_MS),
            "the body has more than 8388608 bytes",
        ),
        (
            lambda raw: (raw.delete(keys.JOB + "b"), raw.rpush(keys.JOB + "b", "x")),
            "the body's key is a list, not a string",
        ),
        (lambda raw: raw.set(keys.JOB + "b", b"", px=DAY_MS), "it is not a pickle of protocol 2 to 5"),
        (lambda raw: raw.set(keys.JOB + "b", pickle.dumps([1]), px=DAY_MS), "the body is a list, not a dict"),
    ],
    ids=["missing", "oversized", "wrong-type", "empty", "no-dict"],
)
def test_a_body_that_is_none_says_why_and_its_neighbours_are_run(
    redis_url: str, spoil: Callable[[Any], object], reason: str
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            await it.enqueue("a", "b", "c")
            spoil(it.raw)
            a, b, c = await it.claim()
            assert b.call == Unreadable(reason)
            assert isinstance(a.call, Call)
            assert isinstance(c.call, Call)
            dead = Dead("undecodable", Failure("Undecodable", reason, "validation"))
            assert await it.settle(ends(a, Done(1)), ends(b, dead), ends(c, Done(1))) == ["settled"] * 3
            letter = await letters.find(it.source.redis, "b")
            assert letter is not None
            assert (letter["reason"], letter["text"], letter["handler"]) == ("undecodable", reason, None)
            assert it.is_over()
            assert not it.raw.exists(keys.JOB + "b")
            assert it.result("b").error == "Undecodable"

    asyncio.run(main())


def test_b3_a_handler_name_that_is_no_unicode_is_released_as_unknown_beside_its_neighbours(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts("b", stock_body(f="\ud800"))
            await it.enqueue("a", "c")
            a, b, c = await it.claim()
            assert isinstance(b.call, Call)
            assert b.call.handler == "\ud800"
            assert await it.settle(ends(a, Done(1)), unknown(b), ends(c, Done(1))) == ["settled"] * 3
            assert it.raw.hgetall(keys.unknown(QUEUE)) == {b"b": b"\\ud800"}
            assert it.raw.zrange(QUEUE, 0, -1) == [b"b"]

    asyncio.run(main())


def test_b3_text_that_is_no_unicode_becomes_a_dead_letter_beside_its_neighbours(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts("b", stock_body(f="\ud800", a=("\udfff",)))
            await it.enqueue("a", "c")
            a, b, c = await it.claim()
            dead = Dead("unknown-handler", Failure("UnknownHandler", "no '\ud800'", "permanent"))
            assert await it.settle(ends(a, Done(1)), ends(b, dead), ends(c, Done(1))) == ["settled"] * 3
            letter = await letters.find(it.source.redis, "b")
            assert letter is not None
            assert (letter["reason"], letter["handler"], letter["args"]) == (
                "unknown-handler",
                "\\ud800",
                ("\udfff",),
            )
            assert it.is_over()

    asyncio.run(main())


def test_a_job_whose_id_is_no_unicode_runs_and_settles(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts(b"\xff\xfeid", stock_body())
            claim = await it.one()
            assert await it.settle(ends(claim, Retried(0.0, FAILURE))) == ["settled"]
            claim = await it.one()
            assert claim.starts == 2
            assert await it.settle(ends(claim, Done(7))) == ["settled"]
            assert it.is_over()
            assert wire.decode_result(it.raw.get(b"arq:result:\xff\xfeid")).value == 7

    asyncio.run(main())


def test_a_job_whose_id_is_no_unicode_becomes_a_dead_letter(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts(b"\xff\xfeid", stock_body())
            assert await it.settle(ends(await it.one(), Dead("permanent", FAILURE))) == ["settled"]
            assert it.is_over()
            assert it.raw.zrange(keys.dead(QUEUE), 0, -1) == [b"\xff\xfeid"]
            assert it.raw.hexists(b"rt:dead:\xff\xfeid", "letter")

    asyncio.run(main())


def test_a_dead_letter_whose_id_is_no_unicode_can_be_listed(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts(b"\xff\xfeid", stock_body())
            await it.settle(ends(await it.one(), Dead("permanent", FAILURE)))
            assert [letter["reason"] async for letter in letters.each(it.source.redis, QUEUE)] == ["permanent"]

    asyncio.run(main())


# Outcomes


def test_a_settle_whose_reply_was_lost_settles_once_and_says_so(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            a, b, c = await it.take("a", "b", "c")
            batch = [ends(a, Done(1)), ends(b, Retried(60.0, FAILURE)), ends(c, Released("shutdown"))]
            it.lose_replies(monkeypatch, 1)
            with pytest.raises(Away, match=r"^settle: connection closed$"):
                await it.source.settle(QUEUE, batch)
            assert await it.source.settle(QUEUE, batch) == ["settled"] * 3
            assert it.raw.hgetall(keys.count(QUEUE)) == {b"completed": b"1"}
            assert it.raw.get(keys.RETRY + "b") == b"1"
            assert await it.source.settle(QUEUE, [batch[0]]) == ["refused"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "outcome",
    [Retried(float("nan"), FAILURE), Done(1)],
    ids=["nan", "broken"],
)
def test_b3_an_outcome_that_cannot_be_written_becomes_a_dead_letter_beside_its_neighbours(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    real = wire.encode_result

    def encode_result(settlement: Settlement, serializer: None) -> bytes:
        if settlement.claim.id == "b" and isinstance(settlement.outcome, Done):
            raise RuntimeError("secret")
        return real(settlement, serializer)

    monkeypatch.setattr(wire, "encode_result", encode_result)

    async def main() -> None:
        async with bench(redis_url) as it:
            a, b, c = await it.take("a", "b", "c")
            assert await it.settle(ends(a, Done(1)), ends(b, outcome), ends(c, Done(1))) == ["settled"] * 3
            letter = await letters.find(it.source.redis, "b")
            assert letter is not None
            assert letter["reason"] == "undecodable"
            assert letter["text"].startswith("its outcome cannot be written (")
            assert "secret" not in letter["text"]
            assert letter["args"] == ("b",)
            assert it.is_over()

    asyncio.run(main())


def _large(claims: Sequence[Claim]) -> list[Settlement]:
    """Outcomes of which two go in one call, and three do not."""
    return [ends(claim, Done(bytes(3 * 2**20))) for claim in claims]


@pytest.mark.parametrize("lost", [(), (1,), (2,), (3,), (1, 2, 3)], ids=str)
def test_a_batch_too_large_for_one_call_goes_in_several_whichever_reply_is_lost(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            batch = _large(await it.take("a", "b", "c", "d", "e"))
            assert 3 * 3 * 2**20 > MOST_BYTES > 2 * 3 * 2**20
            it.lose_replies(monkeypatch, *lost)
            for _ in lost:
                with pytest.raises(Away):
                    await it.source.settle(QUEUE, batch)
            assert await it.source.settle(QUEUE, batch) == ["settled"] * 5
            assert it.asked == 3 + len(lost)
            assert it.is_over()
            assert it.raw.hget(keys.count(QUEUE), "completed") == b"5"
            assert all(len(cast(bytes, it.result(job_id).value)) == 3 * 2**20 for job_id in "abcde")

    asyncio.run(main())


@pytest.mark.parametrize("lost", [(), (1,), (2,), (3,)], ids=str)
def test_a_retry_whose_body_has_expired_is_sent_again_with_it_whichever_reply_is_lost(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            a, b, c = await it.take("a", "b", "c")
            it.raw.delete(keys.JOB + "b", keys.JOB + "c")
            it.lose_replies(monkeypatch, *lost)
            batch = [ends(a, Done(1)), ends(b, Retried(0.0, FAILURE)), ends(c, Released("shutdown"))]
            for _ in lost:
                with pytest.raises(Away):
                    await it.source.settle(QUEUE, batch)
            assert await it.source.settle(QUEUE, batch) == ["settled"] * 3
            assert it.asked == 3 + len(lost)
            assert it.raw.ttl(keys.JOB + "b") > 3600
            b, c = await it.claim()
            assert [(b.body, b.starts), (c.body, c.starts)] == [(body("b"), 2), (body("c"), 1)]

    asyncio.run(main())


PLAN_BYTES = 2**20


@contextmanager
def small_plan(server: Server) -> Iterator[str]:
    """The address of a server that refuses requests of a megabyte and more, as hosted ones do."""
    with Relay(server.url.removeprefix("unix://")) as relay:
        refusal = f"ERR max request size exceeded. Limit: {PLAN_BYTES} bytes"
        relay.answer(refusal, lambda command: sum(map(len, command)) >= PLAN_BYTES)
        yield relay.url


@pytest.mark.parametrize("lost", [(), (1,), (2,)], ids=str)
def test_an_outcome_too_large_for_the_plan_leaves_a_marker_and_the_others_are_settled(
    server: Server, redis_url: str, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    async def main(url: str) -> None:
        async with bench(url) as it:
            it.raw = Redis.from_url(redis_url)
            claims = await it.take("a", "b", "c", "d", "e")
            values = [1, bytes(2 * PLAN_BYTES), 3, bytes(700_000), bytes(700_000)]
            batch = [ends(claim, Done(value)) for claim, value in zip(claims, values, strict=True)]
            it.lose_replies(monkeypatch, *lost)
            for _ in lost:
                with pytest.raises(Away, match=r"^settle: connection closed$"):
                    await it.source.settle(QUEUE, batch)
            assert await it.source.settle(QUEUE, batch) == ["settled"] * 5
            kept = [it.result(job_id).value for job_id in "abcde"]
            assert kept == [1, f"{wire.NO_RESULT}: bytes", 3, bytes(700_000), bytes(700_000)]
            assert it.is_over()
            assert it.raw.hget(keys.count(QUEUE), "completed") == b"5"
            assert it.trouble == ["the outcome of job 'b' is larger than the plan allows: a marker is kept"]
            assert it.source.away is None
            assert await it.settle(batch[1]) == ["refused"]

    with small_plan(server) as url:
        asyncio.run(main(url))


def test_a_dead_letter_too_large_for_the_plan_keeps_its_body_and_its_reason(server: Server, redis_url: str) -> None:
    """The arguments would go there twice: in the body, and in the result."""
    data = wire.encode_call("work", ("x" * 900_000,), {}, expires_ms=None, priority=0)
    larger = wire.encode_call("work", ("x" * PLAN_BYTES,), {}, expires_ms=None, priority=0)

    async def main(url: str) -> None:
        async with bench(url) as it:
            it.raw = Redis.from_url(redis_url)
            await it.enqueue("a", data=data)
            it.puts("b", larger)
            it.puts("c", larger)
            a, b, c = await it.claim()
            it.raw.delete(keys.JOB + "c")  # so that its next run wants it to be written again
            batch = ends(a, Dead("permanent", FAILURE)), ends(b, Done(1)), ends(c, Retried(60.0, FAILURE))
            assert await it.settle(*batch) == ["settled"] * 3
            lost = await letters.find(it.source.redis, "c")
            assert lost is not None
            assert lost["text"] == "its outcome is larger than the plan allows"
            letter = await letters.find(it.source.redis, "a")
            assert letter is not None
            assert (letter["reason"], letter["args"]) == ("permanent", ("x" * 900_000,))
            assert not it.result("a").ok
            assert it.result("b").value == f"{wire.NO_RESULT}: int"  # its arguments are what is too large
            assert it.is_over()
            assert not it.raw.exists(keys.JOB + "a", keys.JOB + "b", keys.LETTER + "a:original")
            assert await letters.replay(it.source.redis, letter) == "done"
            assert it.raw.get(keys.JOB + "a") == data

    with small_plan(server) as url:
        asyncio.run(main(url))


@pytest.mark.parametrize("value", [object(), {"f": open}, bytes(9 * 2**20)], ids=["object", "function", "too-large"])
def test_a_value_that_cannot_be_kept_is_a_success_with_a_marker(redis_url: str, value: object) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            assert await it.settle(ends(claim, Done(value))) == ["settled"]
            assert it.result("a").ok
            assert it.result("a").value == f"{wire.NO_RESULT}: {type(value).__name__}"

    asyncio.run(main())


def test_an_outcome_that_keeps_no_result_leaves_nothing(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            assert await it.settle(ends(claim, Done(object()), keep_result_s=0)) == ["settled"]
            assert set(it.raw.keys()) == {
                keys.count(QUEUE).encode(),
                keys.batch(QUEUE, it.source.incarnation).encode(),
                keys.mark(QUEUE).encode(),
            }

    asyncio.run(main())


# Waiting


def test_wait_gives_the_queue_in_which_something_was_announced(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            assert await it.source.wait(["a", "b"], 0.01, 0, no_claim) is None
            await it.source.announce("b")
            assert await it.source.wait(["a", "b"], 10, 0, no_claim) == "b"
            assert await it.source.wait(["a", "b"], 0.01, 0, no_claim) is None
            waiting = asyncio.create_task(it.source.wait(["a", QUEUE], 10, 0, no_claim))
            await until(lambda: it.raw.info("clients")["blocked_clients"])
            await it.enqueue("x")
            assert await waiting == QUEUE

    asyncio.run(main())


def test_a_cancelled_wait_swallows_no_later_announcement(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            waiting = asyncio.create_task(it.source.wait(["a"], 10, 0, no_claim))
            await until(lambda: it.raw.info("clients")["blocked_clients"])
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await until(lambda: not it.raw.info("clients")["blocked_clients"])
            await it.source.announce("a")
            assert await it.source.wait(["a"], 10, 0, no_claim) == "a"

    asyncio.run(main())


def test_due_in_says_when_the_first_job_is_due_by_the_servers_clock(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            assert (await it.source.claim(QUEUE, 1)).due_in_s is None
            assert await it.source.due_in(QUEUE) is None
            seconds, micros = it.raw.time()
            await it.enqueue("a", due_ms=seconds * 1000 + micros // 1000 + 30_000)
            assert await it.source.due_in(QUEUE) == pytest.approx(30, abs=2)
            assert (await it.source.claim(QUEUE, 1)).due_in_s == pytest.approx(30, abs=2)
            await it.enqueue("b")
            assert await it.source.due_in(QUEUE) == pytest.approx(0, abs=2)

    asyncio.run(main())


def test_forward_known_brings_forward_only_the_jobs_whose_handler_is_known_now(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            for name in ("new", "other", "\ud800"):
                it.puts(f"job-{name.encode('ascii', 'replace').decode()}", stock_body(f=name))
            claims = await it.claim()
            assert await it.settle(*map(unknown, claims)) == ["settled"] * 3
            assert await it.claim() == []
            assert await it.source.forward_known(QUEUE, lambda name: name == "new") == 1
            assert await it.source.forward_known(QUEUE, lambda name: name == "new") == 0
            claim = await it.one()
            assert (claim.id, claim.starts) == ("job-new", 1)
            assert claim.history.unknown_since_ms
            assert len(it.raw.hgetall(keys.unknown(QUEUE))) == 2

    asyncio.run(main())


def test_without_a_server_every_call_is_away(server: Server, redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            server.kill()
            for call in (
                it.source.claim(QUEUE, 1),
                it.settle(ends(claim, Done(1))),
                it.source.wait([QUEUE], 1, 0, no_claim),
                it.source.announce(QUEUE),
                it.source.due_in(QUEUE),
                it.source.forward_known(QUEUE, lambda name: True),
                it.source.ping(),
            ):
                with pytest.raises(Away):
                    await call
                assert it.source.away
            server.start()
            await it.source.ping()
            assert it.source.away is None

    asyncio.run(main())


# The ledger


def test_a_step_is_taken_once_and_its_value_is_kept_over_attempts(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            assert await it.ledger.begin(claim, "pay") == Step("new")
            await it.ledger.finish(claim, "pay", {"paid": [1, None]})
            assert await it.ledger.begin(claim, "pay") == Step("done", {"paid": [1, None]})
            await it.settle(ends(claim, Retried(0.0, FAILURE)))
            claim = await it.one()
            assert await it.ledger.begin(claim, "pay") == Step("done", {"paid": [1, None]})
            assert await it.ledger.begin(claim, "ship") == Step("new")

    asyncio.run(main())


def test_a_step_that_an_earlier_run_began_and_never_finished_is_begun(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url, lease_s=0.05) as dead, bench(redis_url, lease_s=1.0) as it:
            (claim,) = await dead.take("a")
            assert await dead.ledger.begin(claim, "pay") == Step("new")
            claims: list[Claim] = []
            while not claims:  # its lease lapses
                claims = await it.claim()
            assert claims[0].history.crashes == 1
            assert await it.ledger.begin(claims[0], "pay") == Step("begun")

    asyncio.run(main())


def test_a_later_job_of_the_same_id_takes_its_steps_anew(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts("a", stock_body(et=1_700_000_000_000))
            claim = await it.one()
            await it.ledger.begin(claim, "pay")
            await it.ledger.finish(claim, "pay", 7)
            await it.settle(ends(claim, Dead("permanent", FAILURE), keep_result_s=0))
            it.puts("a", stock_body(et=1_700_000_000_001))
            assert await it.ledger.begin(await it.one(), "pay") == Step("new")

    asyncio.run(main())


def test_a_step_of_a_job_that_somebody_else_has_is_refused(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            it.raw.set(keys.IN_PROGRESS + "a", "somebody-else", px=60_000)
            with pytest.raises(LeaseLost):
                await it.ledger.begin(claim, "pay")
            with pytest.raises(LeaseLost):
                await it.ledger.finish(claim, "pay", 7)
            assert not it.raw.exists(keys.ONCE + "a")

    asyncio.run(main())


def test_a_value_that_cannot_be_kept_is_a_type_error_and_the_step_stays_begun(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            await it.ledger.begin(claim, "pay")
            with pytest.raises(TypeError, match=r"builtins\.object"):
                await it.ledger.finish(claim, "pay", [object()])
            assert await it.ledger.begin(claim, "pay") == Step("begun")

    asyncio.run(main())


def test_a_step_waits_while_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(server: Server) -> None:
        async with bench(server.url, lease_s=60) as it:
            (claim,) = await it.take("a")
            server.kill()
            it.count_failures(monkeypatch)
            step = asyncio.create_task(it.ledger.begin(claim, "pay"))
            await until(lambda: it.asked >= 2)
            assert not step.done()
            server.start()
            assert await step == Step("new")

    with Server(data=tmp_path) as server:
        asyncio.run(main(server))


def test_a_step_waits_while_the_lease_is_nobodys(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            it.raw.delete(keys.IN_PROGRESS + "a")
            it.lose_replies(monkeypatch)  # only counts
            step = asyncio.create_task(it.ledger.begin(claim, "pay"))
            await until(lambda: it.asked >= 2)
            assert not step.done()
            it.raw.set(keys.IN_PROGRESS + "a", claim.token, px=60_000)
            assert await step == Step("new")

    asyncio.run(main())


def test_a_finish_whose_reply_was_lost_is_noted_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            await it.ledger.begin(claim, "pay")
            it.lose_replies(monkeypatch, 1)
            await it.ledger.finish(claim, "pay", 7)
            assert it.asked == 2
            assert await it.ledger.begin(claim, "pay") == Step("done", 7)
            assert pickles.dumps(7) in it.raw.hvals(keys.ONCE + "a")[0]

    asyncio.run(main())


def test_a_begin_whose_reply_was_lost_is_still_new(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            (claim,) = await it.take("a")
            it.lose_replies(monkeypatch, 1)
            assert await it.ledger.begin(claim, "pay") == Step("new")

    asyncio.run(main())


def test_a_job_whose_id_is_no_unicode_can_take_steps(redis_url: str) -> None:
    async def main() -> None:
        async with bench(redis_url) as it:
            it.puts(b"\xff\xfeid", stock_body())
            claim = await it.one()
            assert await it.ledger.begin(claim, "pay") == Step("new")

    asyncio.run(main())


def test_i10_that_it_was_told_to_stop_is_said_as_soon_as_it_can_be(server: Server) -> None:
    async def live(relay: Relay) -> None:
        async with bench(relay.url) as made:
            relay.answer("LOADING Redis is loading the dataset in memory")
            telling = asyncio.create_task(made.source.retire())
            await asyncio.sleep(0.2)
            assert not telling.done()
            relay.answer("")
            await asyncio.wait_for(telling, 10)
            assert made.raw.ttl(keys.retired(made.source.incarnation)) > keys.RETIRED_S - 60

    with Relay(server.url.removeprefix("unix://")) as relay:
        asyncio.run(live(relay))
