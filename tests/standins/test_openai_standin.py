"""The OpenAI stand-in over real sockets: cards, errors, limits and faults as its documentation has them."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.standins.process import Running, running

KEY = {"Authorization": "Bearer sk-standin"}
TEXT = (
    "Photosynthesis is the process by which plants turn light into chemical energy. "
    "It happens in the chloroplasts. The mitochondrion is the powerhouse of the cell. Water boils at 100 degrees."
)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body["error"]
        return found

    @property
    def content(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running("openai", "--rpm", "120", "--tpm", "60000", "--latency", "0.01") as standin:
        yield standin


@pytest.fixture
def openai(shared: Running) -> Running:
    shared.reset()
    return shared


def order(prompt: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], **more}


async def post(standin: Running, body: Any, headers: dict[str, str] | None = None) -> Reply:
    async with aiohttp.ClientSession(standin.url, headers=KEY if headers is None else headers) as session:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with session.post("/v1/chat/completions", data=data) as answer:
            return Reply(answer.status, answer.headers, await answer.json())


def send(standin: Running, body: Any, headers: dict[str, str] | None = None) -> Reply:
    return asyncio.run(post(standin, body, headers))


# --- answers


def test_a_text_becomes_as_many_cards_as_were_asked_for(openai: Running) -> None:
    reply = send(
        openai,
        {
            "model": "gpt-4o",
            "response_format": {"type": "json_object"},
            "messages": [
                {"role": "system", "content": "You are a tutor. Answer in JSON."},
                {"role": "user", "content": [{"type": "text", "text": f"Create 3 flashcards.\n\n{TEXT}"}]},
            ],
        },
    )
    assert [(card["question"], card["answer"]) for card in json.loads(reply.content)["cards"]] == [
        ("What is Photosynthesis?", "The process by which plants turn light into chemical energy."),
        ("Fill in the blank: It happens in the ____.", "chloroplasts"),
        ("What is the mitochondrion?", "The powerhouse of the cell."),
    ]


def test_the_same_text_gives_the_same_cards_and_another_one_others(openai: Running) -> None:
    first, again, other = (send(openai, order(text)).content for text in (TEXT, TEXT, "Ice melts at zero degrees."))
    assert first == again
    assert first != other


def test_an_answer_carries_what_the_documentation_lists(openai: Running) -> None:
    reply = send(openai, order())
    assert reply.status == 200
    assert reply.body["id"].startswith("chatcmpl-")
    assert reply.body["object"] == "chat.completion"
    assert abs(reply.body["created"] - time.time()) < 5
    assert reply.body["model"] == "gpt-4o-mini"
    assert reply.body["system_fingerprint"].startswith("fp_")
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["openai-processing-ms"] == "10"


def test_usage_is_about_four_characters_a_token_and_adds_up(openai: Running) -> None:
    reply = send(openai, order())
    usage = reply.body["usage"]
    assert usage["prompt_tokens"] == pytest.approx(len(TEXT) / 4, abs=10)
    assert usage["completion_tokens"] == pytest.approx(len(reply.content) / 4, abs=1)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_beyond_its_limit_is_cut_and_says_so(openai: Running, name: str) -> None:
    reply = send(openai, order(TEXT + " Answer as JSON.", **{name: 20}))
    assert reply.body["choices"][0]["finish_reason"] == "length"
    assert reply.body["usage"]["completion_tokens"] == 20
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.content)


def test_a_json_schema_is_filled_with_one_object_for_each_card(openai: Running) -> None:
    card = {
        "type": "object",
        "properties": {
            "front": {"type": "string"},
            "back": {"type": "string"},
            "difficulty": {"type": "string", "enum": ["easy", "hard"]},
            "hint": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    }
    schema = {
        "type": "object",
        "properties": {"deck": {"type": "array", "items": {"$ref": "#/$defs/Card"}}, "count": {"type": "integer"}},
        "$defs": {"Card": card},
    }
    given = {"type": "json_schema", "json_schema": {"name": "deck", "schema": schema, "strict": True}}
    filled = json.loads(send(openai, order(f"Make 2 flashcards.\n\n{TEXT}", response_format=given)).content)
    assert [set(each) for each in filled["deck"]] == [{"front", "back", "difficulty", "hint"}] * 2
    assert filled["deck"][0]["front"] == "What is Photosynthesis?"
    assert filled["deck"][0]["difficulty"] == "easy"
    assert filled["count"] == 2


# --- errors


def test_a_call_without_a_key_or_with_a_wrong_one_is_refused_and_shows_no_limits(openai: Running) -> None:
    missing, wrong = (
        send(openai, order(), {}),
        send(openai, order(), {"Authorization": "Bearer sk-mine-0123456789abcd"}),
    )
    assert (missing.status, wrong.status) == (401, 401)
    assert set(missing.error) == {"message", "type", "param", "code"}
    assert missing.error["type"] == "invalid_request_error"
    assert wrong.error["code"] == "invalid_api_key"
    assert "0123456789" not in wrong.error["message"]
    assert not any(name.lower().startswith("x-ratelimit") for name in wrong.headers)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, None),
        (b"[]", None, None),
        ({"messages": []}, None, None),
        ({"model": "gpt-4o"}, "messages", "missing_required_parameter"),
        (order(messages="hello"), "messages", "invalid_type"),
        (order(messages=[]), "messages", "empty_array"),
        (order(messages=["hello"]), "messages[0]", "invalid_type"),
        (order(messages=[{"role": "boss", "content": "x"}]), "messages[0].role", "invalid_value"),
        (order(messages=[{"role": "user", "content": None}]), "messages[0].content", "invalid_type"),
        (order(max_tokens=0), "max_tokens", "integer_below_min_value"),
        (order(max_tokens="many"), "max_tokens", "invalid_type"),
        (order(max_tokens=5, max_completion_tokens=5), "max_tokens", "invalid_parameter_combination"),
        (order(response_format={"type": "json_object"}), "messages", None),
        (order(response_format={"type": "json_schema"}), "response_format.json_schema", "invalid_value"),
        (order(response_format="json"), "response_format", "invalid_value"),
        (order(stream=True), "stream", "unsupported_value"),
    ],
)
def test_a_body_that_is_wrong_is_refused_naming_the_parameter(
    openai: Running, body: Any, param: str | None, code: str | None
) -> None:
    reply = send(openai, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert (reply.error["param"], reply.error["code"]) == (param, code)


def test_a_model_that_there_is_not_is_not_found(openai: Running) -> None:
    reply = send(openai, order(model="gpt-99"))
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"


def test_an_unknown_path_is_refused_in_the_same_shape(openai: Running) -> None:
    async def scenario() -> None:
        async with aiohttp.ClientSession(openai.url) as session, session.get("/v1/nothing") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["message"] == "Invalid URL (GET /v1/nothing)"

    asyncio.run(scenario())


# --- limits


def test_requests_beyond_the_limit_are_told_how_long_to_wait_and_then_let_in(openai: Running) -> None:
    async def scenario() -> None:
        first = await post(openai, order())
        assert first.headers["x-ratelimit-limit-requests"] == "120"
        assert first.headers["x-ratelimit-remaining-requests"] == "119"
        assert first.headers["x-ratelimit-reset-requests"] == "500ms"
        replies = await asyncio.gather(*(post(openai, order()) for _ in range(130)))
        refused = [reply for reply in replies if reply.status == 429]
        assert 1 <= len(refused) <= 11
        last = refused[-1]
        assert (last.error["type"], last.error["code"]) == ("requests", "rate_limit_exceeded")
        assert last.headers["x-ratelimit-remaining-requests"] == "0"
        assert last.headers["retry-after"] == "1"
        wait_ms = int(last.headers["retry-after-ms"])
        assert 1 <= wait_ms <= 500
        assert f"Please try again in {wait_ms}ms." in last.error["message"]
        await asyncio.sleep(wait_ms / 1000)
        assert (await post(openai, order())).status == 200
        assert openai.log()["counters"]["rate_limited"] == {"requests": len(refused)}

    asyncio.run(scenario())


def test_tokens_are_counted_as_prompt_plus_the_most_that_may_be_answered(openai: Running) -> None:
    async def scenario() -> None:
        first = await post(openai, order(max_tokens=58_000))
        assert first.status == 200
        estimate = first.body["usage"]["prompt_tokens"] + 58_000
        assert first.headers["x-ratelimit-limit-tokens"] == "60000"
        assert first.headers["x-ratelimit-remaining-tokens"] == str(60_000 - estimate)
        assert re.fullmatch(r"58\.\d+s", first.headers["x-ratelimit-reset-tokens"])

        refused = await post(openai, order(max_tokens=2400))
        assert refused.status == 429
        assert refused.error["type"] == "tokens"
        wait = re.search(r"Please try again in (\d+)ms\.", refused.error["message"])
        assert wait
        await asyncio.sleep(int(wait[1]) / 1000)
        assert (await post(openai, order(max_tokens=2400))).status == 200

        too_large = await post(openai, order(max_tokens=60_000))
        assert too_large.status == 429
        assert too_large.error["message"].startswith("Request too large for gpt-4o-mini")
        assert "retry-after" not in too_large.headers

    asyncio.run(scenario())


def test_a_call_that_fails_has_used_up_a_request_all_the_same(openai: Running) -> None:
    openai.fault({"status": 500})
    assert send(openai, b"{").headers["x-ratelimit-remaining-requests"] == "119"
    reply = send(openai, order())
    assert reply.status == 500
    assert reply.headers["x-ratelimit-remaining-requests"] == "118"


# --- faults


@pytest.mark.parametrize(
    ("fault", "status", "type_"),
    [
        ({"code": "insufficient_quota"}, 429, "insufficient_quota"),
        ({"code": "project_spend_limit_exceeded"}, 429, "insufficient_quota"),
        ({"code": "slow_down"}, 429, "slow_down"),
        ({"code": "slow_down", "status": 503}, 503, "slow_down"),
        ({"status": 500, "code": "server_error"}, 500, "server_error"),
        ({"status": 503, "code": "server_is_overloaded"}, 503, "server_error"),
        ({"status": 502, "code": "bad_gateway"}, 502, "server_error"),
    ],
)
def test_a_fault_answers_with_its_code_and_then_is_over(
    openai: Running, fault: dict[str, Any], status: int, type_: str
) -> None:
    openai.fault(fault)
    reply = send(openai, order())
    assert (reply.status, reply.error["code"], reply.error["type"]) == (status, fault["code"], type_)
    assert "retry-after" not in reply.headers
    assert send(openai, order()).status == 200


def test_a_rate_limit_can_be_had_for_the_asking(openai: Running) -> None:
    openai.fault({"status": 429, "retry_after": 61.5})
    reply = send(openai, order())
    assert reply.error["code"] == "rate_limit_exceeded"
    assert "Please try again in 1m1.5s." in reply.error["message"]
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("62", "61500")


def test_an_answer_can_be_slow(openai: Running) -> None:
    openai.fault({"latency": 0.2})
    began = time.monotonic()
    assert send(openai, order()).headers["openai-processing-ms"] == "210"
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("fault", [{"cut": True}, {"hang": True}])
def test_an_answer_that_is_lost_was_worked_out_and_counted_all_the_same(openai: Running, fault: dict[str, Any]) -> None:
    openai.fault(fault)
    with pytest.raises((aiohttp.ClientPayloadError, TimeoutError)):
        asyncio.run(asyncio.wait_for(post(openai, order()), 0.3))
    log = openai.log()
    assert [entry["status"] for entry in log["requests"]] == [200]
    assert log["counters"]["completions_by_prompt"] == {hashlib.sha256(TEXT.encode()).hexdigest(): 1}


def test_an_answer_can_be_garbage_in_three_ways(openai: Running) -> None:
    openai.fault({"garbage": True}, {"garbage": "choices"}, {"garbage": "body"})
    with pytest.raises(json.JSONDecodeError):
        json.loads(send(openai, order()).content)
    assert send(openai, order()).body["choices"] == []
    with pytest.raises(aiohttp.ContentTypeError):
        send(openai, order())


# --- the log


def test_the_log_tells_what_was_asked_how_often_and_how_many_at_once(openai: Running) -> None:
    openai.fault({"latency": 0.2, "times": 3})

    async def scenario() -> None:
        await asyncio.gather(*(post(openai, order(), {**KEY, "Idempotency-Key": "job-1"}) for _ in range(3)))

    asyncio.run(scenario())
    openai.fault({"status": 500})
    send(openai, order(), {**KEY, "Idempotency-Key": "job-1"})
    log = openai.log()
    entry = log["requests"][0]
    assert entry["route"] == "POST /v1/chat/completions"
    assert entry["idempotency_key"] == "job-1"
    assert entry["prompt_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert entry["tokens"]["completion"] > 0
    assert abs(entry["monotonic"] - time.monotonic()) < 10
    assert log["counters"]["most_in_flight"] == 3
    assert log["counters"]["by_status"] == {"200": 3, "500": 1}
    assert log["counters"]["by_idempotency_key"] == {"job-1": 4}
    assert log["counters"]["done_by_idempotency_key"] == {"job-1": 3}
