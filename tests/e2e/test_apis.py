"""Paid APIs under a fleet: limits, breaker and feedback over real workers, a real server and stand-ins that log."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from runtime import Bucket
from runtime.adapters.redis import keys
from runtime.adapters.redis.buckets import COOL_DOWN_S, FAILURES, BreakerState, Level, look
from tests.e2e import paid
from tests.e2e.test_traces import named, one, spans
from tests.processes import Worker, command, enqueue, wait_until
from tests.standins.process import Running, running

MODULE = "tests.e2e.paid"
FLEET = 3
SLOTS = 3
KEY = "sk-canary-0123456789abcdef"
PROMPT = "canary-of-the-prompt"
WORDS = "canary-of-the-providers-words"


@contextmanager
def fleet(url: str, size: int = FLEET, **settings: Any) -> Iterator[list[Worker]]:
    """So many workers that serve, each with `SLOTS`."""
    settings = {"WORKER_CONCURRENCY": SLOTS, "RUNTIME_LEASE": "2s", **settings}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(MODULE, redis=url, **settings)).start() for _ in range(size)]
        for worker in workers:
            worker.wait_for("WORKER_BOOT")
        yield workers


def events(workers: Sequence[Worker], name: str, **fields: object) -> list[dict[str, Any]]:
    return [line for worker in workers for line in worker.events(name, **fields)]


def completed(workers: Sequence[Worker], count: int, timeout_s: float = 60.0) -> None:
    wait_until(
        lambda: len(events(workers, "JOB_COMPLETED")) >= count,
        timeout_s,
        f"{count} jobs are completed; {len(events(workers, 'JOB_COMPLETED'))} are",
    )


def calls(standin: Running) -> list[dict[str, Any]]:
    """What has arrived, in order."""
    return sorted(standin.log()["requests"], key=lambda request: float(request["time"]))


def chat(standin: Running) -> str:
    return f"{standin.url}/v1/chat/completions"


def complete(standin: Running, count: int = 1, **more: Any) -> list[Any]:
    return [paid.complete.request(chat(standin), f"Blood is red. It flows. {n}", **more) for n in range(count)]


def inspected(url: str, *buckets: Bucket) -> tuple[list[Level], list[BreakerState]]:
    async def ask() -> tuple[list[Level], list[BreakerState]]:
        redis = AsyncRedis.from_url(url)
        try:
            return await look(redis, buckets, ["openai"])
        finally:
            await redis.aclose()

    return asyncio.run(ask())


def breaker(url: str) -> BreakerState:
    ((), (state,)) = inspected(url)
    return state


def open_breaker(url: str, for_s: float) -> None:
    """As a failure would have, that was long enough ago."""
    with Redis.from_url(url) as redis:
        seconds, micros = redis.time()
        until = seconds * 1_000_000 + micros + round(for_s * 1e6)
        redis.set(keys.breaker("openai"), f"{until} 0 1 - insufficient_quota", px=600_000)


def waiting(url: str) -> list[dict[str, Any]]:
    """The jobs that are deferred, as `runtime inspect` has them."""
    said = command("inspect", "jobs", "--json", "-Q", paid.QUEUE, REDIS_URL=url)
    assert said.returncode == 0, said.stderr
    (queue,) = json.loads(said.stdout)["queues"]
    return [job for job in queue["jobs"] if job["state"] == "deferred"]


@pytest.fixture
def openai() -> Iterator[Running]:
    with running("openai", "--rpm", "1000000", "--tpm", "10000000", "--latency", "0.1") as standin:
        yield standin


# A rate limit.


def test_a_rate_limit_that_one_worker_meets_holds_up_all_and_then_lets_them_go_by_the_rate(
    tcp_url: str, openai: Running
) -> None:
    closed_s, rate, count = 3.0, 10, 40
    with fleet(tcp_url, PAID_OPENAI_REQUESTS=f"{rate}/s 10") as workers:
        enqueue(tcp_url, *complete(openai, 5))
        completed(workers, 5)
        openai.fault({"status": 429, "code": "rate_limit_exceeded", "retry_after": closed_s})
        enqueue(tcp_url, *complete(openai, count))
        completed(workers, 5 + count)
        attempts = {line["attempt"] for line in events(workers, "JOB_STARTED")}
        met = {line["worker_id"] for line in events(workers, "JOB_STARTED")}
    arrived = calls(openai)
    (limited,) = [call for call in arrived if call["status"] == 429]
    after = [call["time"] - limited["time"] for call in arrived if call["time"] > limited["time"]]
    in_flight = [at for at in after if at < closed_s]
    assert len(in_flight) <= FLEET * SLOTS - 1
    assert max(in_flight, default=0.0) < 1.0, "they were on their way"
    released = [at - closed_s for at in after if at >= closed_s]
    assert len(released) >= 20
    for n, at in enumerate(released):
        # The first of them comes at once, each other one a tenth of a second later; arrivals come a bit early or late.
        assert at >= n / rate - 0.1, released
    assert attempts == {1}
    assert len(met) == FLEET


def test_a_rate_limit_for_longer_than_anybody_waits_puts_jobs_back_with_their_attempts(
    tcp_url: str, openai: Running
) -> None:
    with fleet(tcp_url, 2) as workers:
        openai.fault({"status": 429, "code": "rate_limit_exceeded", "retry_after": 90})
        ids = enqueue(tcp_url, *complete(openai))
        wait_until(lambda: events(workers, "JOB_SNOOZED"))
        ids += enqueue(tcp_url, *complete(openai, 5))
        wait_until(lambda: len(waiting(tcp_url)) == 6, what="all jobs wait in the queue")
        snoozed = events(workers, "JOB_SNOOZED")
        (requests,), _ = inspected(tcp_url, paid.requests)
        jobs = waiting(tcp_url)
        with Redis.from_url(tcp_url, decode_responses=True) as redis:
            starts = [redis.get(keys.RETRY + job_id) for job_id in ids]
    assert 80 < requests.closed_s <= 90
    assert {line["limit"] for line in snoozed} == {"openai.requests"}
    assert {line["attempt"] for line in snoozed} == {1}
    assert {job["id"] for job in jobs} == set(ids)
    assert set(starts) <= {None, "0"}
    assert len(calls(openai)) == 1


# The breaker.


def test_an_empty_account_stops_the_fleet_and_its_jobs_wait_in_the_queue(tcp_url: str, openai: Running) -> None:
    openai.fault({"status": 429, "code": "insufficient_quota", "times": None, "message": WORDS})
    with fleet(tcp_url) as workers:
        ids = enqueue(tcp_url, *complete(openai, 20))
        wait_until(lambda: events(workers, "JOB_SNOOZED"))
        opened = time.time()
        state = breaker(tcp_url)
        wait_until(lambda: len(events(workers, "JOB_SNOOZED")) >= FLEET, what="all have met it")
        time.sleep(3)
        arrived = calls(openai)
        snoozed = events(workers, "JOB_SNOOZED")
        with Redis.from_url(tcp_url, decode_responses=True) as redis:
            assert redis.zcard(paid.QUEUE) == 20
            starts = [redis.get(keys.RETRY + job_id) for job_id in ids]
            assert redis.keys(keys.IN_PROGRESS + "*") == []
        assert not events(workers, "JOB_RETRIED")
    assert state.state == "open"
    assert COOL_DOWN_S - 10 < state.opens_in_s <= COOL_DOWN_S
    assert state.reason == "insufficient_quota"
    assert len(arrived) <= FLEET * SLOTS
    assert all(call["time"] < opened + 1 for call in arrived)
    assert {line["limit"] for line in snoozed} == {"openai"}
    assert set(starts) <= {None, "0"}


def test_after_the_cool_down_one_call_finds_out_and_then_all_go_on(tcp_url: str, openai: Running) -> None:
    open_breaker(tcp_url, 4.0)
    openai.fault({"latency": 2.0})  # the first that comes, and only that one, is slow
    with fleet(tcp_url) as workers:
        enqueue(tcp_url, *complete(openai, 12))
        completed(workers, 12)
        attempts = {line["attempt"] for line in events(workers, "JOB_STARTED")}
        early = events(workers, "JOB_SNOOZED", limit="openai")
    probe, *others = calls(openai)
    assert probe["fault"] == {"latency": 2.0}
    assert others[0]["time"] - probe["time"] >= 1.9, "nobody else called before its answer was there"
    assert len(others) == 11
    assert early
    assert attempts == {1}
    assert breaker(tcp_url) == BreakerState("closed", 0, 0, False, "")


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}, {"status": 429, "code": "insufficient_quota"}])
def test_a_probe_that_fails_opens_the_breaker_again(tcp_url: str, openai: Running, fault: dict[str, Any]) -> None:
    open_breaker(tcp_url, 2.0)
    openai.fault({**fault, "latency": 1.0, "times": None})
    with fleet(tcp_url) as workers:
        ids = enqueue(tcp_url, *complete(openai, 12))
        wait_until(lambda: calls(openai), what="the probe")
        wait_until(lambda: breaker(tcp_url).state == "open")
        time.sleep(3)
        state = breaker(tcp_url)
        arrived = calls(openai)
        with Redis.from_url(tcp_url, decode_responses=True) as redis:
            starts = [redis.get(keys.RETRY + job_id) or "0" for job_id in ids]
        assert not events(workers, "JOB_DEAD")
    assert len(arrived) == 1
    assert state.state == "open"
    assert COOL_DOWN_S - 20 < state.opens_in_s <= COOL_DOWN_S
    # A failed call uses an attempt of the job that made it; an account that is at its end does not.
    assert sorted(starts)[-1] == ("0" if "code" in fault else "1")
    assert sum(int(each) for each in starts) <= 1


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"cut": True}, {"hang": True}], ids=str)
def test_a_run_of_failures_opens_it_too(tcp_url: str, openai: Running, fault: dict[str, Any]) -> None:
    openai.fault({**fault, "times": None})
    with fleet(tcp_url) as workers:
        enqueue(tcp_url, *complete(openai, 30, wait_s=1.0))
        wait_until(lambda: breaker(tcp_url).state == "open", what="the breaker is open")
        opened = time.time()
        time.sleep(3)
        arrived = calls(openai)
        state = breaker(tcp_url)
        assert state.failures >= FAILURES
        assert {line["error_category"] for line in events(workers, "JOB_RETRIED")} == {"transient"}
        assert not events(workers, "JOB_DEAD")
    assert FAILURES <= len(arrived) <= FAILURES + FLEET * SLOTS
    assert all(call["time"] < opened + 1 for call in arrived)
    assert state.reason in ("server_error", "server_is_overloaded", "it answered 500", "it answered 503") or (
        state.reason.endswith("Error") and " " not in state.reason
    )


def test_failures_that_a_success_interrupts_do_not_open_it(tcp_url: str, openai: Running) -> None:
    with fleet(tcp_url, 1, WORKER_CONCURRENCY=1) as workers:
        for done in range(4):
            openai.fault({"status": 500, "times": 2})
            enqueue(tcp_url, *complete(openai, 1))
            completed(workers, done + 1)
    assert breaker(tcp_url).state == "closed"
    assert len(calls(openai)) == 12


def test_a_wrong_key_is_a_dead_letter_and_stops_nobody_else(tcp_url: str, openai: Running) -> None:
    with fleet(tcp_url, 1, PAID_KEY="sk-wrong") as workers:
        enqueue(tcp_url, *complete(openai, FAILURES + 2))
        wait_until(lambda: len(events(workers, "JOB_DEAD")) == FAILURES + 2)
    assert breaker(tcp_url).state == "closed"
    assert {call["status"] for call in calls(openai)} == {401}


# What calls cost.


def test_tokens_are_settled_by_use(tcp_url: str, openai: Running) -> None:
    most = 5_000
    with fleet(tcp_url, 1, PAID_OPENAI_TOKENS="60/m 20000") as workers:
        enqueue(tcp_url, *complete(openai, 1, most=most, times=2))
        completed(workers, 1)
    used = [call["tokens"]["prompt"] + call["tokens"]["completion"] for call in calls(openai)]
    estimates = [call["tokens"]["estimate"] for call in calls(openai)]
    assert min(estimates) > most
    (level,), _ = inspected(tcp_url, Bucket("openai.tokens", "60/m", burst=20_000))
    assert 20_000 - sum(used) <= level.tokens <= 20_000 - sum(used) + 30  # what flows in meanwhile


def test_what_others_use_of_the_same_account_lowers_the_bucket(tcp_url: str) -> None:
    bucket = Bucket("openai.tokens", "60/m", burst=5000)
    with (
        running("openai", "--tpm", "5000", "--latency", "0") as openai,
        fleet(tcp_url, 1, PAID_OPENAI_TOKENS="60/m 5000") as workers,
    ):
        somebody_else(openai, most_tokens=3000)
        enqueue(tcp_url, *complete(openai, 1))
        completed(workers, 1)
    (level,), _ = inspected(tcp_url, bucket)
    assert level.tokens < 5000 - 3000 + 600, "the stand-in lets 83 a second flow in"


def somebody_else(openai: Running, most_tokens: int) -> None:
    """A call with the same key that no worker knows of."""
    messages = [{"role": "user", "content": "Water boils."}]
    body = {"model": "gpt-4o", "messages": messages, "max_completion_tokens": most_tokens}
    headers = {"Authorization": "Bearer sk-standin", "Content-Type": "application/json"}
    request = urllib.request.Request(chat(openai), json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_call_that_can_never_fit_is_a_dead_letter_at_once(tcp_url: str) -> None:
    with (
        running("openai", "--tpm", "1000", "--latency", "0") as openai,
        fleet(tcp_url, 1, PAID_OPENAI_TOKENS="1000/m 1000") as workers,
    ):
        enqueue(tcp_url, *complete(openai, 1, most=50_000))
        (line,) = wait_until(lambda: events(workers, "JOB_DEAD"))
        assert len(calls(openai)) == 1
    assert (line["reason"], line["error_type"]) == ("permanent", "runtime.Permanent")
    (level,), _ = inspected(tcp_url, Bucket("openai.tokens", "1000/m", burst=1000))
    assert level.closed_s == 0


def test_two_workers_with_different_rules_share_the_bucket(tcp_url: str, openai: Running) -> None:
    """As in a rolling deploy: each asks by its own rule, and what the other took counts."""
    with (
        fleet(tcp_url, 1, PAID_OPENAI_REQUESTS="5/s 5") as old,
        fleet(tcp_url, 1, PAID_OPENAI_REQUESTS="10/s 10") as new,
    ):
        enqueue(tcp_url, *complete(openai, 60))
        completed([*old, *new], 60)
        both = [len(events(some, "JOB_COMPLETED")) for some in (old, new)]
    times = [call["time"] for call in calls(openai)]
    for n, begin in enumerate(times):
        for count, end in enumerate(times[n:], 1):
            assert count <= 10 + 10 * (end - begin) + 2, "never more than the larger rule allows"
    assert all(both)


# Idempotency keys.


def test_a_job_whose_worker_was_killed_in_a_call_repeats_its_key(tcp_url: str, openai: Running) -> None:
    openai.fault({"hang": True})
    with fleet(tcp_url, 1, RUNTIME_LEASE="1s") as (worker,):
        enqueue(tcp_url, *complete(openai, 1, times=2))
        wait_until(lambda: calls(openai), what="the call has arrived")
        worker.kill()
        worker.up()
        worker.wait_for("JOB_COMPLETED")
    lost, first, second = [call["idempotency_key"] for call in calls(openai)]
    assert lost == first is not None
    assert second not in (None, first)


# What is seen of it.


def test_a_wait_is_a_span_of_its_run_and_a_field_of_its_line(tcp_url: str, openai: Running) -> None:
    with (
        running("otlp") as collector,
        fleet(
            tcp_url,
            1,
            PAID_OPENAI_TOKENS="600/m 100",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
        ) as (worker,),
    ):
        # Each takes about 80 of 100 tokens, and 10 flow in in a second.
        (job_id,) = enqueue(tcp_url, *complete(openai, 1, most=60, times=2))
        (line,) = worker.wait_for("JOB_COMPLETED", job_id=job_id)
        found = wait_until(lambda: named(spans(collector), f"settle {paid.QUEUE}") and spans(collector))
    wait, process = one(found, "limit openai.tokens"), one(found, f"process {paid.QUEUE}")
    assert wait["parent"] == process["span_id"]
    assert wait["trace_id"] == process["trace_id"]
    posts = named(found, "POST")
    assert [post["parent"] for post in posts] == [process["span_id"]] * 2
    assert 300 < line["limit_wait_ms"] < line["duration_ms"] + 50


def test_neither_key_nor_prompt_nor_the_providers_words_get_out(tcp_url: str) -> None:
    faults: list[dict[str, Any]] = [
        {"status": 500, "message": f"{WORDS} {PROMPT} {KEY}"},
        {"status": 429, "code": "rate_limit_exceeded", "retry_after": 0.2, "message": f"{WORDS} {PROMPT}"},
        {"status": 400, "message": f"{WORDS} {PROMPT} {KEY}"},
        {"cut": True},
        {"status": 429, "code": "insufficient_quota", "message": f"{WORDS} {PROMPT} {KEY}"},
    ]
    with (
        running("openai", "--key", KEY, "--latency", "0") as openai,
        fleet(tcp_url, 1, PAID_KEY=KEY, LOG_LEVEL="debug", WORKER_CONCURRENCY=1) as (worker,),
    ):
        openai.fault(*faults)
        enqueue(tcp_url, *(paid.complete.request(chat(openai), PROMPT) for _ in range(3)))
        wait_until(lambda: breaker(tcp_url).state == "open")
        worker.wait_for("JOB_DEAD")
        worker.stop()
        said = worker.output() + worker.errors()
    with Redis.from_url(tcp_url) as redis:
        kept = {key: dumped(redis, key) for key in redis.scan_iter(count=1000)}
    for canary in (KEY, WORDS, PROMPT):
        assert canary not in said, canary
    for canary in (KEY, WORDS):
        assert [key for key, value in kept.items() if canary.encode() in value] == [], canary
    holders = {key.decode().rpartition(":")[0] for key, value in kept.items() if PROMPT.encode() in value}
    assert holders <= {"arq:job", "arq:result", "rt:dead"}, "only the jobs themselves have their arguments"
    assert kept[keys.breaker("openai").encode()].endswith(b"insufficient_quota")


def dumped(redis: Any, key: bytes) -> bytes:
    match redis.type(key):
        case b"hash":
            return repr(redis.hgetall(key)).encode()
        case b"zset":
            return repr(redis.zrange(key, 0, -1)).encode()
        case _:
            return bytes(redis.get(key))


# JUDIT.


def test_judit_closes_for_all_when_one_meets_its_limit(tcp_url: str) -> None:
    """A limit of 180 a minute that somebody else has used up: no wait is named, so all wait for 10 s."""
    from handlers.judit import onboard
    from tests.standins.lawsuits import make_cnj

    with running("judit", "--pending", "0.1", "--processing", "0.1", "--no-retry-after") as judit, ExitStack() as stack:
        judit.fault({"code": "HttpTooManyRequestsError", "status": 429})
        settings: dict[str, Any] = {"JUDIT_API_BASE_URL": judit.url, "JUDIT_API_KEY": "judit-standin"}
        workers = [stack.enter_context(Worker("handlers", redis=tcp_url, **settings)).start() for _ in range(2)]
        for worker in workers:
            worker.wait_for("WORKER_BOOT")
        enqueue(tcp_url, *(onboard.request(make_cnj(n)) for n in range(6)))
        completed(workers, 6, 90)
        assert {line["attempt"] for line in events(workers, "JOB_STARTED")} == {1}
        creates = judit.log()["counters"]["creates"]
        arrived = calls(judit)
    assert set(creates.values()) == {1}
    (limited,) = [call for call in arrived if call["status"] == 429]
    later = [call["time"] - limited["time"] for call in arrived if call["time"] > limited["time"]]
    assert not [at for at in later if 1.0 < at < 9.9]
