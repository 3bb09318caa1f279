"""What a call of a paid API goes through, whatever HTTP makes of it: a provider and a session that are scripted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from runtime.core.feedback import Feedback
from runtime.core.job import Cancelled, Dead, Done, Outcome, Retried, Snoozed
from runtime.core.limits import Bucket
from runtime.core.retry import Retry
from runtime.engine.context import Context
from runtime.engine.toll import BROKEN_S, UNSAID_S, Fare
from runtime.ports import Api, Toll
from tests.engine.world import Row, World

REQUESTS = Bucket("acme.requests", "1/s", burst=5)
TOKENS = Bucket("acme.tokens", "10/s", burst=50)


@dataclass
class Scripted:
    """A provider that estimates what the request says, and reads what the test has put down for a status."""

    answers: dict[int, Feedback] = field(default_factory=lambda: {200: Feedback("ok")})

    def estimate(self, request: Mapping[str, Any]) -> Mapping[str, int]:
        return {"requests": 1, "tokens": 0, **request}

    def read(self, status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
        return self.answers[status]


class Line:
    """A session whose calls are answered as their caller says."""

    def __init__(self, toll: Toll) -> None:
        self._toll = toll

    async def call(
        self, status: int = 200, *, meanwhile: Callable[[], Awaitable[object]] | None = None, **costs: int
    ) -> None:
        fare: Fare = await self._toll.pay(costs)
        if meanwhile is not None:
            await meanwhile()
        await self._toll.heed(fare, status, {}, b"")

    async def lose(self, error: BaseException) -> None:
        await self._toll.lost(await self._toll.pay({}), error)
        raise error

    def key(self, body: str, url: str = "/charges") -> str:
        return self._toll.key("POST", url, body)

    def failed(self, key: str) -> None:
        self._toll.failed(key)


class Lines:
    """`ports.Sessions`."""

    def session(self, name: str, toll: Toll | None) -> Any:
        assert toll is not None
        return Line(toll)


class Acme:
    """A worker in whose jobs `ctx.http("acme")` is a `Line`."""

    def __init__(self, world: World, *buckets: Bucket) -> None:
        self.world = world
        self.provider = Scripted()
        by_dimension = {bucket.name.removeprefix("acme."): bucket for bucket in buckets or (REQUESTS, TOKENS)}
        world.apis["acme"] = Api("acme", self.provider, by_dimension)

    def serve(self, **options: Any) -> None:
        self.world.serve(self.world.actor(ports=replace(self.world.ports, sessions=Lines()), **options))

    def answers(self, feedback: Feedback, status: int = 400) -> None:
        self.provider.answers[status] = feedback

    async def calls(self, *args: Any, retry: Retry | None = None, **costs: int) -> Outcome:
        """The first outcome of a job that makes one call."""

        async def work(ctx: Context) -> str:
            await ctx.http("acme").call(*args, **costs)
            return "called"

        self.world.handle(work, retry=retry)
        return await self.first_outcome()

    async def first_outcome(self) -> Outcome:
        """That of a new job, once it is served."""
        row = self.world.store.add()
        self.serve()
        await self.world.until(lambda: self.world.store.outcomes(row.id))
        return self.world.store.outcomes(row.id)[0]


@pytest.fixture
def acme(world: World) -> Acme:
    return Acme(world)


# Before the call.


async def test_a_call_takes_what_it_is_estimated_at_and_asks_the_breaker(acme: Acme) -> None:
    assert await acme.calls(tokens=30) == Done("called")
    assert acme.world.taps.asked == [({REQUESTS: 1, TOKENS: 30}, "acme")]


async def test_what_is_not_estimated_is_not_taken(acme: Acme) -> None:
    await acme.calls()
    assert acme.world.taps.asked == [({REQUESTS: 1}, "acme")]


async def test_an_estimate_above_what_the_bucket_holds_takes_all_of_it(acme: Acme) -> None:
    assert await acme.calls(tokens=10_000) == Done("called")
    assert acme.world.taps.asked == [({REQUESTS: 1, TOKENS: 50}, "acme")]


async def test_an_api_without_a_bucket_for_what_it_costs_asks_the_breaker_alone(world: World) -> None:
    acme = Acme(world, TOKENS)
    assert await acme.calls() == Done("called")
    assert world.taps.asked == [({}, "acme")]


async def test_calls_beyond_the_limit_wait_in_their_slots_and_then_go(world: World) -> None:
    acme = Acme(world, Bucket("acme.requests", "1/s", burst=1))

    async def work(ctx: Context) -> float:
        await ctx.http("acme").call()
        return world.now

    world.handle(work)
    rows = [world.store.add() for _ in range(3)]
    acme.serve()
    await world.until(lambda: all(row.outcome for row in rows))
    assert {row.outcome for row in rows} == {Done(0.0), Done(1.0), Done(2.0)}
    assert {part for _, part in world.diary.parts} == {"limit acme.requests"}


async def test_waits_in_the_middle_of_a_run_are_no_part_of_its_timeout(world: World) -> None:
    acme = Acme(world, Bucket("acme.requests", "1/2s", burst=1))

    async def work(ctx: Context) -> float:
        for _ in range(4):
            await ctx.http("acme").call()
        return world.now

    world.handle(work, timeout_s=1.0, retry=Retry(1))
    assert await acme.first_outcome() == Done(6.0)


async def test_waits_at_the_same_time_put_the_timeout_off_once(world: World) -> None:
    acme = Acme(world, Bucket("acme.requests", "1/2s", burst=1))

    async def work(ctx: Context) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ctx.http("acme").call)
        await trio.sleep_forever()

    world.handle(work, timeout_s=1.0, retry=Retry(1))
    assert isinstance(await acme.first_outcome(), Dead)
    assert world.now == 7


async def test_a_store_that_is_away_in_the_middle_of_a_run_costs_no_attempt(acme: Acme) -> None:
    world = acme.world

    async def work(ctx: Context) -> str:
        await ctx.http("acme").call()
        world.taps.away = "connection refused"
        await ctx.http("acme").call()
        return "called"

    world.handle(work, timeout_s=5.0, retry=Retry(1))
    row = world.store.add()
    acme.serve()
    await world.at(60)
    world.taps.away = None
    await world.until(lambda: row.outcome)
    assert row.outcome == Done("called")


async def test_while_the_breaker_is_open_a_job_is_snoozed_and_nothing_is_called(acme: Acme) -> None:
    acme.world.taps.open.add("acme")
    outcome = await acme.calls(500)  # which nobody could read
    assert isinstance(outcome, Snoozed)
    assert outcome.waits_for == "acme"
    assert 60 <= outcome.delay_s <= 61


# What an answer teaches.


@pytest.mark.parametrize("used", [7, 30, 44])
async def test_an_estimate_is_settled_by_use_once_and_only_where_it_was_wrong(acme: Acme, used: int) -> None:
    acme.answers(Feedback("ok", used={"tokens": used}), 200)
    await acme.calls(tokens=30)
    assert acme.world.taps.settled == ([] if used == 30 else [{TOKENS: used - 30}])


async def test_use_that_nobody_estimated_is_settled_too(acme: Acme) -> None:
    acme.answers(Feedback("ok", used={"tokens": 12, "pages": 3}), 200)
    await acme.calls()
    assert acme.world.taps.settled == [{TOKENS: 12}]


async def test_use_is_settled_against_what_was_taken_not_what_was_estimated(acme: Acme) -> None:
    acme.answers(Feedback("ok", used={"tokens": 60}), 200)
    await acme.calls(tokens=10_000)
    assert acme.world.taps.settled == [{TOKENS: 10}]


async def test_what_the_provider_has_left_lowers_only_buckets_that_hold_more(acme: Acme) -> None:
    acme.answers(Feedback("ok", remaining={"requests": 2, "tokens": 50, "pages": 1}), 200)
    await acme.calls()
    assert acme.world.taps.lowered == [{REQUESTS: 2}]


async def test_a_refund_comes_before_the_lowering(acme: Acme) -> None:
    """The other way round it would raise a bucket above what the provider has left."""
    order: list[str] = []
    taps = acme.world.taps
    settle, lower = taps.settle, taps.lower

    async def note_settle(*args: Any) -> None:
        order.append("settle")
        await settle(*args)

    async def note_lower(*args: Any) -> None:
        order.append("lower")
        await lower(*args)

    taps.settle, taps.lower = note_settle, note_lower  # type: ignore[assignment,method-assign]
    acme.answers(Feedback("ok", used={"tokens": 7}, remaining={"tokens": 20}), 200)
    await acme.calls(tokens=30)
    assert order == ["settle", "lower"]


async def test_a_success_is_reported_only_where_the_breaker_waits_to_hear_of_it(acme: Acme) -> None:
    async def work(ctx: Context) -> None:
        await ctx.http("acme").call()
        acme.world.taps.watched = True
        await ctx.http("acme").call()

    acme.world.handle(work)
    await acme.first_outcome()
    assert acme.world.taps.told == [("acme", "ok")]


# What an answer means for the job.


async def test_a_rate_limit_closes_the_buckets_it_names_and_uses_no_attempt(acme: Acme) -> None:
    acme.answers(Feedback("wait", 7.5, of=frozenset({"tokens", "pages"})))
    assert await acme.calls(400) == Snoozed(7.5, waits_for="acme.tokens")
    assert acme.world.taps.closed == [("acme.tokens", 7.5)]
    assert acme.world.taps.told == []


async def test_a_rate_limit_that_names_none_closes_all(acme: Acme) -> None:
    acme.answers(Feedback("wait", 7.5))
    outcome = await acme.calls(400)
    assert isinstance(outcome, Snoozed)
    assert outcome.waits_for in ("acme.requests", "acme.tokens")
    assert sorted(acme.world.taps.closed) == [("acme.requests", 7.5), ("acme.tokens", 7.5)]


async def test_a_rate_limit_of_what_we_do_not_count_closes_all(acme: Acme) -> None:
    acme.answers(Feedback("wait", 7.5, of=frozenset({"pages"})))
    await acme.calls(400)
    assert sorted(acme.world.taps.closed) == [("acme.requests", 7.5), ("acme.tokens", 7.5)]


async def test_a_rate_limit_that_names_no_time_waits_for_a_while(acme: Acme) -> None:
    acme.answers(Feedback("wait", None, of=frozenset({"requests"})))
    assert await acme.calls(400) == Snoozed(UNSAID_S, waits_for="acme.requests")
    assert acme.world.taps.closed == [("acme.requests", UNSAID_S)]


async def test_a_rate_limit_met_again_and_again_leaves_the_attempt_as_it_was(acme: Acme) -> None:
    acme.answers(Feedback("wait", 5.0))
    world = acme.world
    attempts: list[int] = []

    async def work(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        await ctx.http("acme").call(400 if len(attempts) < 6 else 200)
        return "called"

    world.handle(work, retry=Retry(1))
    row = world.store.add()
    acme.serve()
    await world.until(lambda: row.outcome)
    assert row.outcome == Done("called")
    assert attempts == [1] * 6


async def test_an_account_that_is_at_its_end_opens_the_breaker_and_uses_no_attempt(acme: Acme) -> None:
    acme.answers(Feedback("break", code="insufficient_quota", text="You, sk-1, have no money"))
    assert await acme.calls(400) == Snoozed(BROKEN_S, waits_for="acme")
    assert acme.world.taps.told == [("acme", "broken")]
    assert acme.world.taps.reasons == ["insufficient_quota"]
    assert acme.world.taps.closed == []


async def test_a_failure_is_reported_and_is_transient(acme: Acme) -> None:
    acme.answers(Feedback("retry"), 503)
    outcome = await acme.calls(503)
    assert isinstance(outcome, Retried)
    assert (outcome.failure.error, outcome.failure.text) == ("runtime.Transient", "acme answered 503")
    assert acme.world.taps.told == [("acme", "failed")]
    assert acme.world.taps.reasons == ["it answered 503"]


async def test_a_request_that_will_never_do_is_a_dead_letter_and_no_failure_of_the_provider(acme: Acme) -> None:
    acme.answers(Feedback("permanent", code="bad_model"), 404)
    outcome = await acme.calls(404)
    assert isinstance(outcome, Dead)
    assert (outcome.failure.error, outcome.failure.text) == ("runtime.Permanent", "acme answered 404: bad_model")
    assert acme.world.taps.told == []


@pytest.mark.parametrize("meaning", ["retry", "permanent"])
async def test_the_providers_own_words_go_no_further(acme: Acme, meaning: Any) -> None:
    """They may quote the request."""
    acme.answers(Feedback(meaning, code="bad", text="the prompt 'my diary' is bad"))
    outcome = await acme.calls(400)
    assert "diary" not in repr(outcome)
    assert "diary" not in repr(acme.world.taps.reasons)


async def test_an_answer_that_is_no_failure_of_the_provider_tells_a_breaker_that_waits_that_it_works(
    acme: Acme,
) -> None:
    acme.world.taps.watched = True
    acme.answers(Feedback("permanent"))
    await acme.calls(400)
    assert acme.world.taps.told == [("acme", "ok")]


async def test_a_call_without_an_answer_is_a_failure_of_the_provider(acme: Acme) -> None:
    async def work(ctx: Context) -> None:
        await ctx.http("acme").lose(ConnectionResetError("by sk-1"))

    acme.world.handle(work)
    outcome = await acme.first_outcome()
    assert isinstance(outcome, Retried)
    assert acme.world.taps.told == [("acme", "failed")]
    assert acme.world.taps.reasons == ["ConnectionResetError"]


# The store in trouble, and the caller.


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_a_call_that_is_paid_for_does_not_fail_because_nobody_can_be_told(acme: Acme, how: str) -> None:
    world = acme.world
    acme.answers(Feedback("ok", used={"tokens": 7}, remaining={"tokens": 3}), 200)

    async def hang(*args: object) -> None:
        await trio.sleep_forever()

    async def store_goes() -> None:
        if how == "refuses":
            world.taps.away = "connection refused"
        else:
            world.taps.settle = hang  # type: ignore[assignment,method-assign]

    async def work(ctx: Context) -> float:
        await ctx.http("acme").call(tokens=30, meanwhile=store_goes)
        return world.now

    world.handle(work)
    outcome = await acme.first_outcome()
    assert isinstance(outcome, Done)
    assert world.now < 5
    assert world.taps.settled == []


async def test_a_rate_limit_is_one_for_its_job_although_nobody_can_be_told(acme: Acme) -> None:
    acme.answers(Feedback("wait", 5.0))

    async def store_goes() -> None:
        acme.world.taps.away = "connection refused"

    async def work(ctx: Context) -> None:
        await ctx.http("acme").call(400, meanwhile=store_goes)

    acme.world.handle(work)
    outcome = await acme.first_outcome()
    assert isinstance(outcome, Snoozed)
    assert outcome.delay_s == 5


async def test_a_call_waits_for_a_store_that_is_away_however_long(acme: Acme) -> None:
    world = acme.world
    world.taps.away = "connection refused"

    async def work(ctx: Context) -> float:
        await ctx.http("acme").call()
        return world.now

    world.handle(work)
    row = world.store.add()
    acme.serve()
    await world.at(60)
    world.taps.away = None
    await world.until(lambda: row.outcome)
    assert row.outcome == Done(pytest.approx(60, abs=1))


async def test_a_job_that_is_cancelled_while_it_waits_gives_its_place_back(world: World) -> None:
    acme = Acme(world, Bucket("acme.requests", "1/s", burst=1))

    async def work(ctx: Context) -> None:
        await ctx.http("acme").call()

    world.handle(work)
    rows = [world.store.add() for _ in range(2)]
    acme.serve()
    await world.at(0.5)
    (waiting,) = [row for row in rows if not row.outcome]
    world.keeper.notify(waiting, "abort")
    await world.until(lambda: waiting.outcome)
    assert isinstance(waiting.outcome, Cancelled)
    assert len(world.taps.left) == 1
    assert world.taps.told == []


async def test_a_job_that_is_cancelled_in_the_middle_of_a_call_blames_nobody(acme: Acme) -> None:
    world = acme.world

    async def work(ctx: Context) -> None:
        await ctx.http("acme").call(503, meanwhile=trio.sleep_forever, tokens=30)

    world.handle(work)
    row = world.store.add()
    acme.serve()
    await world.at(1)
    world.keeper.notify(row, "abort")
    await world.until(lambda: row.outcome)
    assert isinstance(row.outcome, Cancelled)
    assert (world.taps.told, world.taps.left, world.taps.settled) == ([], [], [])


# Idempotency keys.


async def keys_of(acme: Acme, row: Row, body: Callable[[Any], list[str]], runs: int = 1) -> list[list[str]]:
    """The keys that each of the first `runs` runs of a job makes."""
    made: list[list[str]] = []

    async def work(ctx: Context) -> None:
        assert ctx.http("acme") is not None
        made.append(body(ctx.http("acme")))
        if len(made) < runs:
            raise RuntimeError("again")

    acme.world.handle(work, retry=Retry(runs))
    acme.serve()
    await acme.world.until(lambda: row.outcome)
    return made


async def test_a_later_run_of_the_job_makes_the_same_keys(acme: Acme) -> None:
    first, second, third = await keys_of(
        acme, acme.world.store.add(), lambda line: [line.key("a"), line.key("a"), line.key("b")], runs=3
    )
    assert first == second == third
    assert len(set(first)) == 3, "the n-th of equal requests has a key of its own, as has another request"


async def test_keys_tell_requests_apart(acme: Acme) -> None:
    ((*made,),) = await keys_of(
        acme,
        acme.world.store.add(),
        lambda line: [line.key("a"), line.key("b"), line.key("a", "/refunds"), line.key("\ud800")],
    )
    assert len(set(made)) == 4
    assert all(key.isascii() and len(key) < 64 for key in made)


async def test_a_request_that_is_repeated_after_a_failure_has_the_same_key(acme: Acme) -> None:
    def repeat(line: Any) -> list[str]:
        first, second = line.key("a"), line.key("a")
        line.failed(second)
        line.failed(first)
        return [first, second, line.key("a"), line.key("a"), line.key("a")]

    ((first, second, *again, third),) = await keys_of(acme, acme.world.store.add(), repeat)
    assert again == [first, second]
    assert len({first, second, third}) == 3


async def test_keys_tell_jobs_apart_and_another_enqueue_of_the_same_id(acme: Acme) -> None:
    world = acme.world
    made: dict[str, str] = {}

    async def work(ctx: Context) -> None:
        made[f"{ctx.job_id} at {world.now}"] = ctx.http("acme").key("a")

    world.handle(work)
    acme.serve()
    rows = [world.store.add(id="one"), world.store.add(id="two")]
    await world.until(lambda: all(row.outcome for row in rows))
    await world.at(5)
    again = world.store.add(id="one")
    await world.until(lambda: again.outcome)
    assert len(made) == 3
    assert len(set(made.values())) == 3
