"""What the stand-ins really answer, headers and all, as the providers' modules read it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from runtime.core.feedback import Feedback
from runtime.ports import Provider
from runtime.providers import judit as judit_module
from runtime.providers import openai as openai_module
from tests.standins.lawsuits import make_cnj
from tests.standins.process import Running, running

KEY = {"Authorization": "Bearer sk-standin"}
REQUESTS, TOKENS = frozenset({"requests"}), frozenset({"tokens"})


def ask(who: Provider, url: str, body: object, headers: dict[str, str]) -> Feedback:
    """The feedback on one `POST`, its headers as aiohttp gives them."""

    async def exchange() -> Feedback:
        async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
            return who.read(answer.status, answer.headers, await answer.read(), 0.0)

    return asyncio.run(exchange())


# --- OpenAI


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running("openai", "--rpm", "3", "--tpm", "600", "--latency", "0") as standin:
        yield standin


@pytest.fixture
def openai(shared: Running) -> Running:
    shared.reset()
    return shared


def chat(most_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "The heart pumps blood. Arteries carry it away."}]
    return {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": most_tokens}


def complete(standin: Running, most_tokens: int = 20, headers: dict[str, str] = KEY) -> Feedback:
    return ask(openai_module, f"{standin.url}/v1/chat/completions", chat(most_tokens), headers)


def test_a_completion_tells_what_it_used_and_what_is_left(openai: Running) -> None:
    found = complete(openai)
    assert (found.meaning, found.wait_s, found.code, found.text) == ("ok", None, "", "")
    assert found.limits == {"requests": 3, "tokens": 600}
    assert found.remaining["requests"] == 2
    assert 500 < found.remaining["tokens"] < 600
    assert 0 < found.resets_in_s["requests"] <= 20
    assert 0 < found.used["tokens"] <= openai_module.estimate(chat(20))["tokens"]


def test_the_estimate_is_what_the_stand_in_counts_at_admission(openai: Running) -> None:
    complete(openai)
    assert openai.log()["requests"][-1]["tokens"]["estimate"] == openai_module.estimate(chat(20))["tokens"]


def test_too_many_requests_are_to_wait_for_requests(openai: Running) -> None:
    found = [complete(openai) for _ in range(4)][-1]
    assert (found.meaning, found.of, found.code) == ("wait", REQUESTS, "rate_limit_exceeded")
    assert found.wait_s is not None
    assert 0 < found.wait_s <= 20  # one request comes back in 20 s, all of them in 60
    assert found.remaining["requests"] == 0
    assert found.text.startswith("Rate limit reached for gpt-4o-mini")


def test_too_many_tokens_are_to_wait_for_tokens(openai: Running) -> None:
    found = [complete(openai, 500) for _ in range(2)][-1]
    assert (found.meaning, found.of, found.code) == ("wait", TOKENS, "rate_limit_exceeded")
    assert found.wait_s is not None
    assert 0 < found.wait_s <= 60


def test_a_request_that_is_larger_than_the_limit_will_never_do(openai: Running) -> None:
    found = complete(openai, 1000)
    assert (found.meaning, found.wait_s, found.code) == ("permanent", None, "rate_limit_exceeded")
    assert found.text.startswith("Request too large")


@pytest.mark.parametrize(
    ("fault", "meaning", "wait_s"),
    [
        ({"code": "insufficient_quota"}, "break", None),
        ({"code": "project_spend_limit_exceeded", "retry_after": 3}, "break", None),
        ({"code": "server_is_overloaded"}, "retry", None),
        ({"code": "server_is_overloaded", "retry_after": 3}, "retry", 3),
        ({"code": "slow_down", "retry_after": 1.5}, "wait", 1.5),
        ({"code": "slow_down"}, "wait", 10),
        ({"status": 500}, "retry", None),
    ],
    ids=str,
)
def test_a_fault_of_openai_is_read_for_what_it_is(
    openai: Running, fault: dict[str, Any], meaning: str, wait_s: float | None
) -> None:
    openai.fault(fault)
    found = complete(openai)
    assert (found.meaning, found.wait_s) == (meaning, wait_s)
    assert found.code == fault.get("code", found.code)
    assert found.text


def test_a_wrong_key_is_permanent_and_says_nothing_of_limits(openai: Running) -> None:
    found = complete(openai, headers={"Authorization": "Bearer sk-wrong"})
    assert (found.meaning, found.code) == ("permanent", "invalid_api_key")
    assert (found.limits, found.remaining) == ({}, {})


def test_the_page_of_a_gateway_says_nothing_and_is_no_trouble(openai: Running) -> None:
    openai.fault({"garbage": "body"})
    found = complete(openai)
    assert (found.meaning, found.used) == ("ok", {})


# --- JUDIT


def search(standin: Running, key: str = "judit-standin") -> Feedback:
    body = {"search": {"search_type": "lawsuit_cnj", "search_key": make_cnj(7), "response_type": "lawsuit"}}
    return ask(judit_module, f"{standin.url}/requests", body, {"api-key": key})


@pytest.mark.parametrize("flag", ["--retry-after", "--no-retry-after"])
def test_judit_is_read_with_and_without_a_time_to_come_back(flag: str) -> None:
    with running("judit", "--limit", "2", flag) as judit:
        first, second, third = (search(judit) for _ in range(3))
    assert (first.meaning, first.remaining, first.limits) == ("ok", {"requests": 1}, {"requests": 2})
    assert (second.meaning, second.remaining) == ("ok", {"requests": 0})
    assert (third.meaning, third.of, third.code) == ("wait", REQUESTS, "HttpTooManyRequestsError")
    assert third.wait_s is not None
    assert third.wait_s == 10 if flag == "--no-retry-after" else 10 < third.wait_s <= 60
    assert third.text.startswith("TOO_MANY_REQUESTS Rate limit of 2 requests")


def test_faults_and_a_wrong_key_of_judit_are_read_for_what_they_are() -> None:
    with running("judit") as judit:
        judit.fault({"code": "TIMEOUT_ERROR"}, {"status": 422})
        overdue, refused, unknown = search(judit), search(judit), search(judit, "wrong")
    assert (overdue.meaning, overdue.code) == ("retry", "TIMEOUT_ERROR")
    assert (refused.meaning, refused.code) == ("permanent", "PROCESSING_ERROR")
    assert (unknown.meaning, unknown.code, unknown.limits) == ("permanent", "USER_NOT_FOUND", {})
