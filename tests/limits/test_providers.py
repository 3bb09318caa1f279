"""Three workers and one provider, whose limit they share. The provider's log is the witness: it refuses nothing.

The stand-ins count as the providers do: a sliding window (JUDIT, document 001's 10 in 1000 ms), or a bucket of requests
and one of tokens that refill continuously (OpenAI).
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from runtime import Request
from tests.faults import campaign
from tests.limits import jobs
from tests.limits.judge import Allowance, Use, arrived, count, excess, most_within, quiet_us, utilisation
from tests.processes import Worker, enqueue, wait_until, workers
from tests.standins.lawsuits import is_cnj
from tests.standins.process import Running, running

S = 1_000_000
WHOLE = os.environ.get("RUNTIME_TEST_LIMITS") == "all"
only_in_the_whole = pytest.mark.skipif(not WHOLE, reason="make limits")


def serve(
    url: str,
    standin: Running,
    requests: Sequence[Request[Any]],
    within_s: float,
    *,
    slots: int = 5,
    judit: str = "180/60s",
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Use]:
    """Three workers do these jobs, each at its first attempt; what has arrived at the stand-in meanwhile."""
    settings: dict[str, Any] = {jobs.STANDIN: standin.url, jobs.JUDIT_WINDOW: judit}
    crew = [Worker("tests.limits.jobs", redis=url, WORKER_CONCURRENCY=slots, **settings) for _ in range(3)]
    with workers(crew):
        for worker in crew:
            worker.up()
        ids = enqueue(url, *requests)
        began = time.monotonic()
        meanwhile()
        wait_until(lambda: campaign.ended(url) == len(ids), within_s, f"{len(ids)} jobs have ended")
        took_s = time.monotonic() - began
        shares = [len(worker.events("JOB_COMPLETED")) for worker in crew]
        codes = [worker.stop() for worker in crew]
    results = campaign.results(url)
    assert {job: results[job].value for job in ids} == dict.fromkeys(ids, 1), "not all at their first attempt"
    assert codes == [0, 0, 0]
    assert min(shares) > 0
    seen = arrived(standin.log()["requests"])
    print(
        f"\n{len(ids)} jobs in {took_s:.1f} s, {shares} by worker, {count(seen, 429)} refused of {len(seen)} requests"
    )
    return seen


def middle(uses: Sequence[Use]) -> tuple[int, int]:
    first, last = uses[0].at_us, uses[-1].at_us
    return first + (last - first) // 5, last - (last - first) // 5


def test_ten_in_a_thousand_milliseconds(redis_url: str) -> None:
    """Document 001, S1-F04."""
    with running("web", "--limit", "10", "--window", "1") as web:
        seen = serve(redis_url, web, [jobs.thing.request(number) for number in range(60)], 60)
    assert count(seen, 429) == 0
    assert len(seen) == 60
    assert most_within(seen, S) <= 10
    assert utilisation(seen, Allowance(8, S, 2), *middle(seen)) >= 0.9


def _searches(number: int) -> list[Request[Any]]:
    numbers = (f"{n:07d}-{check:02d}.2024.8.26.0100" for n in range(1_000_000, 2_000_000) for check in range(1, 99))
    valid = (cnj for cnj in numbers if is_cnj(cnj))
    return [jobs.search.request(next(valid)) for _ in range(number)]


def test_a_sliding_window_as_judits_is_never_full(redis_url: str) -> None:
    """A twelfth of its minute: 45 in 5 s, so that it slides a few times."""
    with running("judit", "--limit", "45", "--window", "5") as standin:
        seen = serve(redis_url, standin, _searches(35), 60, judit="45/5s")
    assert count(seen, 429) == 0
    assert len(seen) == 70
    assert 36 < most_within(seen, 5 * S) <= 45
    assert utilisation(seen, Allowance(36, 5 * S, 9), *middle(seen)) >= 0.9


@only_in_the_whole
@pytest.mark.timeout(240)
def test_judits_own_180_a_minute(redis_url: str) -> None:
    with running("judit") as standin:
        seen = serve(redis_url, standin, _searches(130), 180)
    assert count(seen, 429) == 0
    assert len(seen) == 260
    assert 171 < most_within(seen, 60 * S) <= 180
    assert utilisation(seen, Allowance(171, 60 * S, 9), *middle(seen)) >= 0.95


SMALL, LARGE = ("Cells divide.", 5), ("The heart pumps blood through arteries and veins. " * 16, 20)
"""Text, and tokens of the answer: few enough to be used up, as OpenAI does not give back those that are not."""


def _completions(what: tuple[str, int], number: int) -> list[Request[Any]]:
    text, most_tokens = what
    return [jobs.complete.request(text, most_tokens) for _ in range(number)]


@pytest.mark.parametrize(
    ("requests", "number", "binding"),
    [
        (SMALL, 100, lambda use: 1),
        (LARGE, 60, lambda use: use.cost),
    ],
    ids=["requests", "tokens"],
)
def test_openais_requests_and_tokens_a_minute(
    redis_url: str, requests: tuple[str, int], number: int, binding: Callable[[Use], int]
) -> None:
    """Of 1200 requests and 120,000 tokens, in slices of 1.5 s; one of both binds."""
    flags = ("--rpm", "1200", "--tpm", "120000", "--slice", "1.5", "--latency", "0.05")
    with running("openai", *flags) as standin:
        seen = serve(redis_url, standin, _completions(requests, number), 60, slots=8)
    assert count(seen, 429) == 0
    assert len(seen) == number
    for allowed, cost in ((Allowance(20, S, 30), lambda use: 1), (Allowance(2000, S, 3000), lambda use: use.cost)):
        assert excess([Use(use.at_us, cost(use)) for use in seen], allowed) <= 0
    flow = Allowance(20, S, 20) if requests is SMALL else Allowance(2000, S, 2000)
    assert utilisation([Use(use.at_us, binding(use)) for use in seen], flow, *middle(seen)) >= 0.9


def test_a_storm_of_refusals_costs_nobody_an_attempt(redis_url: str) -> None:
    """OpenAI refuses for a second and a half, each time for two; then come those that were refused, one by one."""
    with running("openai", "--rpm", "1200", "--tpm", "120000", "--slice", "1.5", "--latency", "0.05") as standin:

        def storm() -> None:
            time.sleep(1)
            standin.fault({"status": 429, "code": "rate_limit_exceeded", "retry_after": 2, "times": None})
            time.sleep(1.5)
            standin.mend()

        text, most_tokens = SMALL
        requests = [jobs.pay.request(text, most_tokens) for _ in range(80)]
        seen = serve(redis_url, standin, requests, 60, slots=8, meanwhile=storm)
    refused = [use for use in seen if use.status == 429]
    assert 0 < len(refused) <= 24, "more than were on their way"
    assert len(seen) - len(refused) == len(requests)
    assert quiet_us(seen, refused[0].at_us, refused[0].at_us + 2 * S) >= 1.7 * S
    released = [Use(use.at_us) for use in seen if use.at_us > refused[-1].at_us + S]
    assert excess(released, Allowance(20, S, 1), 300_000) <= 0, "a stampede"
