"""`runtime limit`, run as an operator does, beside a real worker whose jobs are limited."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from runtime.adapters.redis.buckets import RedisLimits
from runtime.adapters.redis.connection import connect
from runtime.core.limits import Bucket, Granted
from tests.e2e.limited import BRISK, PACED, TENANTS, briskly, export, of_tenant, once_an_hour
from tests.processes import Worker, command, enqueue, wait_until

MODULE = "tests.e2e.limited"
NAMES = ["brisk", "judit", "paced", "tenants"]
NOBODY = "redis://127.0.0.1:1"
REQUESTS, TOKENS = Bucket("openai.requests", "500/m", burst=10), Bucket("openai.tokens", "90000/m")


@pytest.fixture
def worker(redis_url: str) -> Iterator[Worker]:
    with Worker(MODULE, redis=redis_url, WORKER_CONCURRENCY=2).up() as worker:
        wait_until(lambda: len(listed(redis_url)) == len(NAMES))
        yield worker


def limit(url: str, *arguments: str, code: int = 0) -> str:
    """What the command prints."""
    done = command("limit", *arguments, REDIS_URL=url)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def listed(url: str) -> dict[str, Any]:
    return {one["limit"]: one for one in json.loads(limit(url, "list", "--json"))["limits"]}


def shown(url: str, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(limit(url, "show", name, "--json"))
    assert next(iter(document.items())) == ("schema", "runtime.inspect/1")
    return document


def ran(worker: Worker) -> list[float]:
    """When jobs ran, in seconds."""
    return [
        datetime.fromisoformat(line["timestamp"]).timestamp() for line in worker.lines() if line.get("message") == "ran"
    ]


def runs(worker: Worker, count: int) -> list[float]:
    return wait_until(lambda: found if len(found := ran(worker)) >= count else [], what=f"{count} runs")


def use(url: str, what: Callable[[RedisLimits], Any]) -> Any:
    """As a worker does, without one."""

    async def go() -> Any:
        redis = connect(url)
        try:
            limits = RedisLimits(redis)
            answer = await what(limits)
            await limits.send_counts()
            return answer
        finally:
            await redis.aclose()

    return asyncio.run(go())


def put_off(url: str) -> list[dict[str, Any]]:
    done = command("inspect", "jobs", "-Q", "limited", "-Q", "tenants", "--json", REDIS_URL=url)
    jobs = [job for queue in json.loads(done.stdout)["queues"] for job in queue["jobs"]]
    return [job for job in jobs if (job["reason"] or "").startswith("waits for")]


def test_limits_are_seen_before_anybody_has_used_them(redis_url: str, worker: Worker) -> None:
    found = listed(redis_url)
    assert list(found) == NAMES
    judit = found["judit"]
    assert (judit["tokens"], judit["rate"], judit["burst"], judit["set"]) == (9, "3/s", 9, False)
    assert (judit["waiting"], judit["closed_s"], judit["counts"]["takes"]) == (0, None, 0)
    page = limit(redis_url, "list").splitlines()
    assert page[0].split() == ["LIMIT", "LEVEL", "RATE", "WAITING", "429S", "LAST", "429"]
    assert page[2].split() == ["judit", "9", "/", "9", "3/s", "0", "0", "–"]
    overview = command("inspect", REDIS_URL=redis_url).stdout
    assert "judit    9 / 9" in overview
    assert json.loads(command("inspect", "--json", REDIS_URL=redis_url).stdout)["limits"][1]["limit"] == "judit"
    alone = command("inspect", "limits", REDIS_URL=redis_url).stdout
    assert alone.splitlines() == page


def test_where_no_limit_is_known_none_is_shown(redis_url: str) -> None:
    assert "LIMIT" not in command("inspect", REDIS_URL=redis_url).stdout
    assert limit(redis_url, "list") == "no worker has told of a limit\n"
    assert "workers tell of their limits" in limit(redis_url, "show", "judit", code=2)


def test_a_job_that_was_put_off_says_for_what_and_runs_when_that_is_raised(redis_url: str, worker: Worker) -> None:
    ids = enqueue(redis_url, *(once_an_hour.request() for _ in range(5)))
    runs(worker, 1)
    first = wait_until(lambda: put_off(redis_url))[0]
    assert first["state"] == "deferred"
    assert first["reason"] == "waits for the limit paced"
    page = command("inspect", "job", first["id"], "-Q", "limited", REDIS_URL=redis_url).stdout
    assert "reason    waits for the limit paced\n" in page
    jobs = command("inspect", "job", first["id"], "-Q", "limited", "--json", REDIS_URL=redis_url).stdout
    assert json.loads(jobs)["job"]["waits_for"] == "paced"

    said = limit(redis_url, "set", "paced", "--rate", "2/s", "--for", "1h")
    changed, moved = said.splitlines()
    assert changed == "paced: was 1/h, burst 1; is 2/s, burst 1 for 1 h, then 1/h, burst 1 as declared"
    assert re.fullmatch("due now: [1-4] jobs that were snoozed for it", moved)
    at = runs(worker, len(ids))
    gaps = [later - sooner for sooner, later in pairwise(at[1:])]
    assert all(gap > 0.4 for gap in gaps), gaps
    found = listed(redis_url)["paced"]
    assert (found["rate"], found["declared"]["rate"], found["set"]) == ("2/s", "1/h", True)
    assert 3500 < found["set_for_s"] <= 3600
    assert "set by an operator for 59 m" in limit(redis_url, "list")


def test_a_lower_rate_spaces_the_jobs_that_wait(redis_url: str, worker: Worker) -> None:
    enqueue(redis_url, *(briskly.request() for _ in range(120)))
    runs(worker, 3)
    limit(redis_url, "set", "brisk", "--rate", "2/s")
    before = len(ran(worker))
    at = runs(worker, before + 6)[before + 2 :]  # two slots may have a moment of their own by the old rate
    assert all(later - sooner > 0.4 for sooner, later in pairwise(at)), at
    said = limit(redis_url, "reset", "brisk")
    assert said.startswith("brisk: full again; it had ")
    assert said.endswith("No longer 2/s, burst 1: 10/s, burst 1 as declared\n")
    before = len(ran(worker))
    begin, end = runs(worker, before + 12)[before + 2 : before + 12 : 9]
    assert end - begin < 9 * 0.4, "by the old rate again"


def test_what_an_operator_has_set_for_a_time_is_over_then(redis_url: str) -> None:
    use(redis_url, lambda limits: limits.tell_of([REQUESTS]))
    limit(redis_url, "set", REQUESTS.name, "--burst", "3", "--for", "1s")
    wait_until(lambda: listed(redis_url)[REQUESTS.name]["burst"] == 10)
    assert listed(redis_url)[REQUESTS.name]["set"] is False


def test_parts_that_are_not_given_stay_as_they_are_now(redis_url: str) -> None:
    use(redis_url, lambda limits: limits.tell_of([REQUESTS]))
    said = limit(redis_url, "set", REQUESTS.name, "--rate", "1/s")
    assert said == "openai.requests: was 500/m, burst 10; is 1/s, burst 10 until it is reset\n"
    said = limit(redis_url, "set", REQUESTS.name, "--burst", "3")
    assert said == "openai.requests: was 1/s, burst 10 as set before; is 1/s, burst 3 until it is reset\n"
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert redis.get(keys.bucket_set(REQUESTS.name)) == "1:1000000:3"
        assert redis.ttl(keys.bucket_set(REQUESTS.name)) == -1


def test_a_limit_of_a_key_is_shown_and_reset_where_it_is_named(redis_url: str, worker: Worker) -> None:
    tenant = "ana@example.com"
    enqueue(redis_url, *(of_tenant.request(tenant) for _ in range(2)))
    runs(worker, 1)
    (job,) = wait_until(lambda: put_off(redis_url))
    assert job["reason"] == f"waits for the limit tenants[{tenant}]"
    (one,) = shown(redis_url, f"tenants[{tenant}]")["limits"]
    assert one["limit"] == f"tenants[{tenant}]"
    assert one["tokens"] < 1
    assert listed(redis_url)["tenants"]["tokens"] == 1, "that of no key"
    assert "ana" not in limit(redis_url, "list") + limit(redis_url, "show", "tenants")
    limit(redis_url, "set", "tenants", "--burst", "2")
    assert "full again" in limit(redis_url, "reset", f"tenants[{tenant}]")
    (one,) = shown(redis_url, f"tenants[{tenant}]")["limits"]
    assert 1 <= one["tokens"] <= one["burst"] == 2, "what was set is for all keys"
    runs(worker, 2)
    assert worker.stop() == 0
    assert listed(redis_url)["tenants"]["counts"]["takes"] == 2, "what it counted came with its end"


def test_an_open_breaker_is_shown_and_closed_by_the_name_of_its_api(redis_url: str) -> None:
    async def breaks(limits: RedisLimits) -> None:
        await limits.take({REQUESTS: 1, TOKENS: 1000}, 0, breaker="openai")
        await limits.report("openai", "broken", "call", "insufficient_quota")
        await limits.take({REQUESTS: 1, TOKENS: 1000}, 0, breaker="openai")

    use(redis_url, breaks)
    (breaker,) = shown(redis_url, "openai.tokens")["breakers"]
    assert (breaker["breaker"], breaker["state"], breaker["reason"]) == ("openai", "open", "insufficient_quota")
    assert 30 < breaker["open_s"] <= 60
    assert (breaker["failures"], breaker["kept_back"], breaker["probing"]) == (1, 1, False)
    line = limit(redis_url, "list").splitlines()[-1]
    assert line.startswith("breaker openai: open; for ")
    assert "insufficient_quota" in line
    assert "breaker openai: open; for " in limit(redis_url, "show", "openai")
    assert "still open; close it with: runtime limit reset openai" in limit(redis_url, "reset", "openai.tokens")
    said = limit(redis_url, "reset", "openai").splitlines()
    assert [line.split(":")[0] for line in said] == ["openai.requests", "openai.tokens", "breaker openai"]
    assert said[-1] == "breaker openai: closed; it was open because of insufficient_quota"
    assert shown(redis_url, "openai")["breakers"][0]["state"] == "closed"
    assert "breaker" not in limit(redis_url, "list")
    answer = use(redis_url, lambda limits: limits.take({TOKENS: 90000}, 0, breaker="openai"))
    assert isinstance(answer, Granted)


def test_a_bucket_that_the_provider_has_closed_is_shown_and_opened(redis_url: str) -> None:
    async def met(limits: RedisLimits) -> None:
        await limits.take({TOKENS: 1000}, 0)
        await limits.close({TOKENS: 1000}, 600)

    use(redis_url, met)
    found = listed(redis_url)[TOKENS.name]
    assert 500 < found["closed_s"] <= 600
    assert found["counts"]["met"] == 1
    assert time.time() - datetime.fromisoformat(found["counts"]["met_at"]).timestamp() < 60
    shown = limit(redis_url, "show", TOKENS.name)
    assert "closed by the provider for 9 m 5" in shown or "closed by the provider for 10 m" in shown  # rounded
    assert " more" in limit(redis_url, "reset", TOKENS.name)
    assert isinstance(use(redis_url, lambda limits: limits.take({TOKENS: 90000}, 0)), Granted)


def test_jobs_that_waited_for_a_closed_limit_run_when_it_is_reset(redis_url: str, worker: Worker) -> None:
    use(redis_url, lambda limits: limits.close({PACED: 1}, 600))
    enqueue(redis_url, once_an_hour.request())
    (job,) = wait_until(lambda: put_off(redis_url))
    assert job["due_in_s"] > 500
    wait_until(lambda: json.loads(command("inspect", "workers", "--json", REDIS_URL=redis_url).stdout)["workers"])
    assert limit(redis_url, "reset", "brisk").count("\n") == 1, "that is another one"
    assert limit(redis_url, "reset", "paced").splitlines()[-1] == "due now: 1 jobs that were snoozed for it"
    runs(worker, 1)


def test_who_holds_a_limit_on_concurrency_is_seen(redis_url: str, worker: Worker) -> None:
    ids = enqueue(redis_url, *(export.request() for _ in range(2)))

    def concurrency(*arguments: str) -> dict[str, Any]:
        found = json.loads(limit(redis_url, *arguments, "--json"))["concurrency"]
        return found[0] if found and found[0]["held"] else {}

    one = wait_until(lambda: concurrency("list"))
    assert (one["limit"], one["most"], one["held"]) == ("exports", 1, 1)
    assert one["jobs"][0] in ids
    assert concurrency("show", "exports") == {**one, "waiting": concurrency("show", "exports")["waiting"]}
    page = limit(redis_url, "show", "exports")
    assert re.search(r"^exports +1 / 1 ", page, re.MULTILINE)
    assert f"held by   {one['jobs'][0]}\n" in page
    assert re.search(r"^exports +1 / 1 ", command("inspect", REDIS_URL=redis_url).stdout, re.MULTILINE)
    assert "no limit named 'exports'" in limit(redis_url, "set", "exports", "--burst", "2", code=2)


def test_how_good_the_estimates_were_is_shown(redis_url: str) -> None:
    async def settle(limits: RedisLimits) -> None:
        granted = await limits.take({TOKENS: 1000}, 0)
        assert isinstance(granted, Granted)
        await limits.settle({TOKENS: -250}, granted.at_us)

    use(redis_url, settle)
    (found,) = shown(redis_url, TOKENS.name)["limits"]
    assert (found["counts"]["tokens"], found["counts"]["used"], found["counts"]["estimate_error"]) == (1000, 750, 0.25)
    assert "750 tokens; the estimates were off by 25.0 %" in limit(redis_url, "show", TOKENS.name)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("set", "paced"), "give it a --rate or a --burst"),
        (("set", "paced", "--rate", "60"), "rate='60' is no rate: write for example"),
        (("set", "paced", "--rate", "0/m"), "the rate is 0, and must be a whole number from 1"),
        (("set", "paced", "--burst", "0"), "burst is 0, and must be a whole number from 1"),
        (("set", "paced", "--burst", "few"), "invalid int value"),
        (("set", "paced", "--burst", "3", "--for", "soon"), "is not a length of time"),
        (("set", "paced", "--burst", "3", "--for", "0"), "not from a second to a year"),
        (("set", "tenants[ana]", "--burst", "3"), "hint: runtime limit set tenants …"),
        (("set", "openai.reqests", "--burst", "3"), "did you mean 'openai.requests'?"),
        (("set", "openai", "--burst", "3"), "no limit named 'openai'"),
        (("show", "pacd"), "did you mean 'paced'?"),
        (("reset", "nobody"), "there are: openai, openai.requests, paced, tenants"),
        (("show", "openai[ana]"), "no limit named 'openai'"),
        (("frob",), "invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_and_changes_nothing(redis_url: str, arguments: tuple[str, ...], told: str) -> None:
    use(redis_url, lambda limits: limits.tell_of([PACED, TENANTS, REQUESTS]))
    assert told in limit(redis_url, *arguments, code=2)
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert redis.keys() == [keys.LIMITS_KNOWN]


def test_a_redis_that_is_away_is_told() -> None:
    for arguments in (("list", "--json"), ("set", "judit", "--rate", "1/s")):
        done = command("limit", *arguments, REDIS_URL=NOBODY)
        assert (done.returncode, done.stdout) == (69, "")


def test_what_strangers_have_written_is_shown_harmlessly_or_left_out(redis_url: str) -> None:
    hostile = "\x1b]0;owned\x07\u202e"
    use(redis_url, lambda limits: limits.tell_of([BRISK]))
    with Redis.from_url(redis_url) as redis:
        rules = {"zero": "0:1:1", "huge": f"{10**30}:1:1", "text": hostile, "short": "1:2", "negative": "-1:2:3"}
        redis.hset(keys.LIMITS_KNOWN, mapping={**rules, hostile: "1:1:1"})
        redis.hset(keys.LIMITS_KNOWN, b"\xff", "1:1:1")
        redis.set(keys.breaker("brisk"), f"99999999999999999 0 1 - {hostile}")
    for form in ((), ("--json",)):
        done = command("limit", "list", *form, REDIS_URL=redis_url)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(char.isprintable() or char == "\n" for char in done.stdout), done.stdout
    assert list(listed(redis_url)) == ["brisk"]
