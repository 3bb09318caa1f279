"""What the answers of OpenAI, Anthropic, JUDIT and anybody else are read as, and what a request is taken to cost.

The messages are those of the providers' pages, or of answers that people have shown in public.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from runtime.core.feedback import Meaning
from runtime.ports import Provider
from runtime.providers import PROVIDERS, anthropic, bodies, counts, judit, openai, plain, provider, waits

NOW = datetime(2026, 11, 22, 8, 0, 0, tzinfo=UTC)
NOW_S = NOW.timestamp()
EVERYBODY: list[Provider] = [*PROVIDERS.values(), plain]
DAY_S = 86_400.0


@dataclass(frozen=True)
class Case:
    """An answer and, of what is read from it, that which must be so."""

    status: int
    code: str
    meaning: Meaning
    wait_s: float | None = None
    of: frozenset[str] = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = b""

    def __str__(self) -> str:
        return f"{self.status} {self.code}"

    def check(self, who: Provider) -> None:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        found = who.read(self.status, self.headers, body, NOW_S)
        assert (found.meaning, found.of, found.code) == (self.meaning, self.of, self.code)
        assert found.wait_s == (None if self.wait_s is None else pytest.approx(self.wait_s))


def open_ai(
    status: int,
    code: str | None,
    meaning: Meaning,
    wait_s: float | None = None,
    of: frozenset[str] = frozenset(),
    *,
    kind: str = "invalid_request_error",
    says: str = "",
    **headers: str,
) -> Case:
    body = {"error": {"message": says, "type": kind, "param": None, "code": code}}
    return Case(status, code or kind, meaning, wait_s, of, dashed(headers), body)


def claude(
    status: int,
    kind: str,
    meaning: Meaning,
    wait_s: float | None = None,
    of: frozenset[str] = frozenset(),
    *,
    says: str = "",
    detail: str = "",
    **headers: str,
) -> Case:
    error = {"type": kind, "message": says, "details": {"error_code": detail} if detail else None}
    body = {"type": "error", "error": error, "request_id": "req_1"}
    return Case(status, detail or kind, meaning, wait_s, of, dashed(headers), body)


def dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


REQUESTS, TOKENS = frozenset({"requests"}), frozenset({"tokens"})
LIMITED = "rate_limit_exceeded"
RPM = "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1."
TPM = "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used {}, Requested {}."
TOO_LARGE = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit {}, Requested {}. "
AZURE = (
    "Your requests have exceeded token rate limit of your current AIServices S0 pricing tier. Please retry after {}."
)
OUT_OF_MONEY = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
)


@pytest.mark.parametrize(
    "case",
    [
        Case(200, "", "ok"),
        open_ai(429, LIMITED, "wait", 20, REQUESTS, kind="requests", says=f"{RPM} Please try again in 20s. Visit"),
        open_ai(429, LIMITED, "wait", 0.12, REQUESTS, kind="requests", says=f"{RPM} Please try again in 120ms. Visit"),
        open_ai(429, LIMITED, "wait", 360, TOKENS, kind="tokens", says=f"{TPM} Please try again in 6m0s. Visit"),
        open_ai(429, LIMITED, "wait", 86.4, TOKENS, kind="tokens", says="Please try again in 1m26.4s."),
        open_ai(429, LIMITED, "wait", 10, TOKENS, kind="tokens", says=TPM.format(29000, 5000)),
        open_ai(429, LIMITED, "wait", 10, kind="images", says="Please try again in 5 minutes."),
        # The headers go before the message, the milliseconds before the seconds, and the reset is no wait.
        open_ai(429, LIMITED, "wait", 3, REQUESTS, kind="requests", says="Please try again in 20s.", Retry_After="3"),
        open_ai(429, LIMITED, "wait", 2.5, Retry_After="3", Retry_After_Ms="2500"),
        open_ai(429, LIMITED, "wait", 10, x_ratelimit_reset_requests="6m0s"),
        open_ai(429, "429", "wait", 37, says=AZURE.format("37 seconds")),
        open_ai(429, "slow_down", "wait", 10, kind="rate_limit_error"),
        open_ai(503, "slow_down", "wait", 60, kind="rate_limit_error", retry_after="60"),
        Case(429, "", "wait", 10),
        Case(429, "", "wait", 10, body=b"<html>Too Many Requests</html>"),
        # Larger than the limit, or only larger than what is left.
        open_ai(429, LIMITED, "permanent", kind="tokens", says=TOO_LARGE.format(30000, 36278)),
        open_ai(429, LIMITED, "permanent", kind="tokens", says=TOO_LARGE.format(3, 4), x_should_retry="true"),
        open_ai(
            413, LIMITED, "permanent", kind="tokens", says="Request too large for model: Limit 6000, Requested 7591"
        ),
        open_ai(429, LIMITED, "permanent", kind="tokens", says="Request too large for gpt-4o."),
        open_ai(429, LIMITED, "permanent", kind="tokens", says=TPM.format(1, 36278)),
        open_ai(429, LIMITED, "wait", 10, TOKENS, kind="tokens", says=TOO_LARGE.format(250000, 546)),
        # No waiting mends these. The code goes before the type and the header.
        *(open_ai(status, code, "break", retry_after="5") for status in (400, 403, 429) for code in OUT_OF_MONEY),
        open_ai(429, "insufficient_quota", "break", x_should_retry="true"),
        open_ai(429, None, "break", kind="insufficient_quota"),
        open_ai(429, "something_new", "break", kind="insufficient_quota"),
        open_ai(429, LIMITED, "wait", 10, kind="insufficient_quota"),
        open_ai(402, "invalid_request_error", "break", kind="unknown_error", says="Insufficient Balance"),
        # The rest goes by the status.
        open_ai(503, "server_is_overloaded", "retry", kind="service_unavailable_error"),
        open_ai(503, "server_is_overloaded", "retry", 7, retry_after="7", x_should_retry="false"),
        open_ai(500, None, "retry", kind="server_error"),
        open_ai(500, None, "permanent", kind="server_error", X_Should_Retry="false"),
        open_ai(400, "odd", "retry", x_should_retry="true"),
        *(Case(status, "", "retry") for status in (408, 409, 425, 502, 504, 520)),
        open_ai(401, "invalid_api_key", "permanent"),
        open_ai(403, "unsupported_country_region_territory", "permanent"),
        open_ai(404, "model_not_found", "permanent"),
        open_ai(400, "context_length_exceeded", "permanent"),
        Case(400, "", "permanent", body={"error": "an old server's message"}),
        Case(400, "400", "permanent", body={"object": "error", "message": "vLLM's", "code": 400}),
    ],
    ids=str,
)
def test_an_answer_of_openai_means_what_its_guide_says(case: Case) -> None:
    case.check(openai)


OVER = "This request would exceed your organization's rate limit of 20,000 {} per minute. For details, see"
SPENT = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
SPENT_TOO = "You have reached your specified workspace API usage limits. You will regain access on"
LOW = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing"
INPUT, OUTPUT = frozenset({"input_tokens"}), frozenset({"output_tokens"})


@pytest.mark.parametrize(
    "case",
    [
        Case(200, "", "ok"),
        claude(429, "rate_limit_error", "wait", 41, INPUT, says=OVER.format("input tokens"), retry_after="41"),
        claude(429, "rate_limit_error", "wait", 10, OUTPUT, says=OVER.format("output tokens")),
        claude(429, "rate_limit_error", "wait", 10, REQUESTS, says=OVER.format("requests")),
        claude(429, "rate_limit_error", "wait", 10, says="Number of concurrent connections has exceeded your limit"),
        claude(429, "rate_limit_error", "break", detail="enforced_spend_limit_reached"),
        *(claude(400, "invalid_request_error", "break", says=says) for says in (SPENT, SPENT_TOO, LOW)),
        claude(402, "billing_error", "break"),
        claude(529, "overloaded_error", "retry", says="Overloaded"),
        claude(529, "overloaded_error", "retry", 4, Retry_After="4", x_should_retry="false"),
        claude(500, "api_error", "retry"),
        claude(500, "api_error", "permanent", x_should_retry="false"),
        claude(504, "timeout_error", "retry"),
        claude(409, "conflict_error", "retry"),
        claude(400, "invalid_request_error", "permanent", says="max_tokens: Field required"),
        claude(401, "authentication_error", "permanent"),
        claude(403, "permission_error", "permanent"),
        claude(413, "request_too_large", "permanent"),
    ],
    ids=str,
)
def test_an_answer_of_anthropic_means_what_its_pages_say(case: Case) -> None:
    case.check(anthropic)


def of_judit(
    status: int,
    name: str,
    meaning: Meaning,
    wait_s: float | None = None,
    of: frozenset[str] = frozenset(),
    **headers: str,
) -> Case:
    body = {"error": {"name": name, "message": "MESSAGE", "data": []}}
    return Case(status, name, meaning, wait_s, of, dashed(headers), body)


@pytest.mark.parametrize(
    "case",
    [
        Case(201, "", "ok", body={"request_id": "1"}),
        of_judit(429, "HttpTooManyRequestsError", "wait", 10, REQUESTS),
        of_judit(429, "HttpTooManyRequestsError", "wait", 42, REQUESTS, Retry_After="42"),
        Case(429, "", "wait", 10, REQUESTS),
        of_judit(504, "TIMEOUT_ERROR", "retry"),
        of_judit(409, "HttpConflictError", "permanent"),
        of_judit(422, "PROCESSING_ERROR", "permanent"),
        of_judit(401, "USER_NOT_FOUND", "permanent"),
        of_judit(403, "INSUFFICIENT_PERMISSIONS", "permanent"),
    ],
    ids=str,
)
def test_an_answer_of_judit_means_what_its_pages_say(case: Case) -> None:
    case.check(judit)


@pytest.mark.parametrize(
    "case",
    [
        Case(204, "", "ok"),
        Case(304, "", "ok"),
        Case(429, "", "wait", 10, body=b"slow down"),
        Case(429, "", "wait", 90, headers={"RETRY-AFTER": "Sun, 22 Nov 2026 08:01:30 GMT"}),
        Case(503, "", "retry", 12, headers={"Retry-After": "12"}),
        Case(503, "", "retry"),
        Case(500, "E7", "retry", body={"message": "oh", "code": "E7"}),
        Case(400, "", "permanent", headers={"Retry-After": "12"}),
        Case(402, "", "permanent"),
        Case(401, "", "permanent"),
    ],
    ids=str,
)
def test_of_any_other_api_the_status_speaks(case: Case) -> None:
    case.check(plain)


# --- what the headers say


RATES = {
    "X-RateLimit-Limit-Requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "X-RATELIMIT-RESET-REQUESTS": "120ms",
    "x-ratelimit-limit-tokens": "30000",
    "x-ratelimit-remaining-tokens": "21000",
    "x-ratelimit-reset-tokens": "1m30.951s",
}


@pytest.mark.parametrize("headers", [RATES, CIMultiDict(RATES)])
def test_openai_tells_what_is_left_in_headers_of_any_case(headers: Mapping[str, str]) -> None:
    found = openai.read(200, headers, b'{"usage": {"prompt_tokens": 9, "total_tokens": 321}}', NOW_S)
    assert found.limits == {"requests": 500, "tokens": 30000}
    assert found.remaining == {"requests": 499, "tokens": 21000}
    assert found.resets_in_s == {"requests": pytest.approx(0.12), "tokens": pytest.approx(90.951)}
    assert found.used == {"tokens": 321}


def test_the_project_counts_where_it_has_fewer_tokens_left() -> None:
    project = {"limit": "10000", "remaining": "700", "reset": "9s"}
    found = openai.read(200, RATES | {f"x-ratelimit-{what}-project-tokens": project[what] for what in project}, b"", 0)
    assert (found.limits["tokens"], found.remaining["tokens"], found.resets_in_s["tokens"]) == (10000, 700, 9)
    assert found.remaining["requests"] == 499
    assert (
        openai.read(200, RATES | {"x-ratelimit-remaining-project-tokens": "90000"}, b"", 0).remaining["tokens"] == 21000
    )


@pytest.mark.parametrize(
    ("limit", "left", "reset", "found"),
    [
        ("-1", "-1", "0", ({}, {}, {})),  # Azure's Responses API
        ("-1", "0", "0", ({}, {}, {})),
        ("0", "0", "0s", ({}, {}, {})),
        (None, "0", None, ({}, {}, {})),
        (None, "-1", None, ({}, {}, {})),
        (None, "12", "7", ({}, {"tokens": 12}, {"tokens": 7})),  # Azure's seconds
        ("100", "0", "60", ({"tokens": 100}, {"tokens": 0}, {"tokens": 60})),
        ("100", "101", "-5s", ({"tokens": 100}, {}, {})),
        ("100", "1e2", "inf", ({"tokens": 100}, {}, {})),
        ("100", "１２", "1e400", ({"tokens": 100}, {}, {})),
        ("9" * 5000, "9" * 5000, "9" * 5000, ({}, {}, {})),
        ("100", "5", "9999999h", ({"tokens": 100}, {"tokens": 5}, {})),
    ],
)
def test_what_cannot_be_believed_is_left_out(limit: str | None, left: str, reset: str | None, found: object) -> None:
    given = {"limit": limit, "remaining": left, "reset": reset}
    headers = {f"x-ratelimit-{what}-tokens": text for what, text in given.items() if text is not None}
    read = openai.read(200, headers, b"{}", NOW_S)
    assert (read.limits, read.remaining, read.resets_in_s) == found


def test_anthropic_tells_times_at_which_it_is_full_again() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-11-22T08:00:01Z",
        "anthropic-ratelimit-input-tokens-limit": "20000",
        "anthropic-ratelimit-input-tokens-remaining": "19000",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-22T05:00:03.5-03:00",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "8000",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-22T07:59:00Z",
        "anthropic-ratelimit-tokens-remaining": "27000",
        "anthropic-ratelimit-tokens-reset": "2026-11-22T08:00:00",  # no RFC 3339: it has no zone
    }
    body = {
        "usage": {
            "input_tokens": 100,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 7000,
            "output_tokens": 33,
        }
    }
    found = anthropic.read(200, headers, json.dumps(body).encode(), NOW_S)
    assert found.limits == {"requests": 50, "input_tokens": 20000, "output_tokens": 8000}
    assert found.remaining == {"requests": 49, "input_tokens": 19000, "output_tokens": 8000, "tokens": 27000}
    assert found.resets_in_s == {"requests": 1, "input_tokens": 3.5, "output_tokens": 0}
    assert found.used == {"input_tokens": 120, "output_tokens": 33}


def test_judit_tells_what_is_left_and_what_was_wrong() -> None:
    found = judit.read(
        400,
        {"X-RateLimit-Limit": "180", "X-RateLimit-Remaining": "17"},
        b'{"error": {"message": "BAD_REQUEST", "data": ["CNJ is not valid", 7, "search is required"]}}',
        NOW_S,
    )
    assert (found.limits, found.remaining) == ({"requests": 180}, {"requests": 17})
    assert found.text == "BAD_REQUEST CNJ is not valid search is required"


# --- lengths of time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1),
        ("6m0s", 360),
        ("1m30.951s", 90.951),
        ("1h2m3s", 3723),
        ("250µs", 0.00025),  # U+00B5
        ("250μs", 0.00025),  # U+03BC
        ("250us", 0.00025),
        ("40ns", 4e-8),
        ("0s", 0),
        ("60", 60),
        (" 7.5 ", 7.5),
    ],
)
def test_a_duration_is_read_as_go_prints_it(text: str, seconds: float) -> None:
    assert waits.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1s", "s", "1", "１s", "1e3s", "1s!", "nan", "inf", "1" * 16, "1s" * 9, "."])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert waits.duration_s(text) == (1 if text == "1" else None)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("20", 20),
        ("0.25", 0.25),
        ("90000", DAY_S),  # longer than a day: asked again after one
        ("Sun, 22 Nov 2026 08:00:20 GMT", 20),
        ("Mon, 23 Nov 2026 09:00:00 GMT", DAY_S),
        ("Sun, 22 Nov 2026 08:00:60 GMT", 59),  # a leap second
        *(
            (text, None)
            for text in (
                "0",
                "-5",
                "nan",
                "inf",
                "1e400",
                "１",
                "9" * 5000,
                "1795334400",  # a Unix time
                "soon",
                "Sun, 22 Nov 2026 07:59:59 GMT",
                "Sun, 22 Nov 9999 08:00:00 GMT",
                "Sun, 31 Feb 2026 08:00:00 GMT",
                "Sun, 22 Foo 2026 08:00:00 GMT",
                "Sun, 22 Nov 0000 08:00:00 GMT",
                "Sun, 22 Nov 2026 25:00:00 GMT",
            )
        ),
    ],
)
def test_a_wait_is_believed_within_reason(header: str, wait_s: float | None) -> None:
    assert waits.asked_s({"retry-after": header}, NOW_S) == wait_s
    assert plain.read(429, {"Retry-After": header}, b"", NOW_S).wait_s == (wait_s or plain.UNSAID_WAIT_S)


def test_milliseconds_that_make_no_sense_leave_it_to_the_seconds() -> None:
    assert waits.asked_s({"retry-after-ms": "-1", "retry-after": "4"}, NOW_S) == 4


# --- what is said


def test_the_message_is_one_line_of_at_most_500_characters() -> None:
    hostile = "\x1b[31mred\n\nnext \u202e\ud800 " + "x" * 5000
    found = openai.read(
        400, {}, json.dumps({"error": {"code": "a\nb" + "c" * 999, "message": hostile}}).encode(), NOW_S
    )
    assert found.text.startswith("\\x1b[31mred next \\u202e\\ud800 xxx")
    assert len(found.text) == 500
    assert found.code.startswith("a\\nbccc")
    assert len(found.code) == 100


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"error": {"mess',
        b"[" * 1_000_000,
        b'{"error":' * 100_000,
        b'{"error": {"code": [], "type": {}, "message": 7}, "usage": [1]}',
        b'{"error": {"code": ' + b"9" * 4000 + b"}}",
        b'{"error": {"code": ' + b"9" * 5000 + b"}}",
        b'{"usage": {"total_tokens": 1e400, "input_tokens": NaN, "output_tokens": -3}}',
        b'{"usage": {"total_tokens": true, "input_tokens": "7", "output_tokens": 99999999999999999}}',
        b"\xff\xfe\x00",
        b"null",
        b'{"usage": {"total_tokens": 5}}' + b" " * bodies.LARGEST,
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("who", EVERYBODY)
def test_a_body_that_is_no_answer_says_nothing(who: Provider, body: bytes) -> None:
    assert {key: used for key, used in who.read(200, {}, body, NOW_S).used.items() if key != "input_tokens"} == {}
    found = who.read(500, {}, body, NOW_S)
    assert (found.meaning, found.code, found.text) == ("retry", "", "")


# --- what a request costs


def chat(*contents: object, **more: object) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": each} for each in contents], **more}


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({}, 0),
        ({"model": "gpt-4o", "max_tokens": 50}, 0),
        # A message is four tokens longer than its text, and an answer begins with three.
        (chat("x" * 400, max_completion_tokens=50), 3 + 104 + 50),
        (chat("x" * 400, max_tokens=50), 3 + 104 + 50),
        (chat("x" * 400, "y" * 40, max_completion_tokens=50, n=3), 3 + 104 + 14 + 150),
        (chat("x" * 400), 3 + 104 + openai.UNSTATED_ANSWER),
        (chat("x" * 400, max_tokens=10**400, n="many"), 3 + 104 + openai.UNSTATED_ANSWER),
        (chat("ção" * 40, max_tokens=1), 3 + 4 + 50 + 1),  # five bytes for three characters
        (chat("\ud800", max_tokens=1), 3 + 4 + 1 + 1),
        (chat([{"type": "text", "text": "x" * 400}], max_tokens=1), 3 + 4 + (1 + 1 + 1 + 100) + 1),
        (chat([{"type": "image_url", "image_url": {"url": "data:" + "x" * 9000}}], max_tokens=1), 3 + 4 + 1000 + 1),
        ({"model": "o4", "input": "x" * 400, "instructions": "y" * 40, "max_output_tokens": 60}, 3 + 110 + 60),
        ({"model": "o4", "input": [{"role": "user", "content": "x" * 400}], "max_output_tokens": 60}, 3 + 104 + 60),
        ({"model": "text-embedding-3-small", "input": "x" * 400}, 3 + 100),
        ({"model": "my-deployment", "input": ["x" * 400, "y" * 40]}, 3 + 110),
        ({"model": "my-deployment", "input": [[1, 2, 3], [4, 5]]}, 3 + 5),
        ({"prompt": "x" * 400, "max_tokens": 10, "best_of": 2, "n": 1}, 3 + 100 + 20),
        (chat("x", max_tokens=counts.MOST, n=100), counts.MOST),
    ],
)
def test_a_request_to_openai_costs_its_prompt_and_all_it_may_be_answered(request_: dict[str, Any], tokens: int) -> None:
    assert openai.estimate(request_) == {"requests": 1, "tokens": tokens}


def test_the_schema_of_tools_costs_too() -> None:
    schema = {"type": "object", "properties": {"name": {"type": ["string", "null"]}}}
    tool = {"type": "function", "function": {"name": "find", "parameters": schema}}
    assert openai.estimate(chat("x", tools=[tool]))["tokens"] > openai.estimate(chat("x"))["tokens"] + 10


def test_a_request_to_anthropic_costs_input_and_output() -> None:
    request = {"system": "s" * 35, "messages": [{"role": "user", "content": "x" * 350}], "max_tokens": 1024}
    assert anthropic.estimate(request) == {"requests": 1, "input_tokens": 10 + 6 + 100, "output_tokens": 1024}
    assert anthropic.estimate({}) == {"requests": 1, "input_tokens": 0, "output_tokens": 0}


def test_any_other_request_costs_a_request() -> None:
    assert judit.estimate({"search": {}}) == plain.estimate({"messages": []}) == {"requests": 1}


def test_providers_are_found_by_name() -> None:
    assert provider("openai") is openai
    assert provider("anthropic") is anthropic
    assert provider("judit") is judit
    assert provider("weather") is plain


# --- whatever comes

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["-1", "0", "nan", "inf", "1e400", "１", "9" * 5000, "6m0s", "1h" * 9, "2026-11-22T08:00:01Z"]),
    st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat()),
    st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
)
NAMES = st.sampled_from(
    [
        "Retry-After",
        "retry-after-ms",
        "x-should-retry",
        "X-RateLimit-Remaining",
        "X-RateLimit-Limit",
        *(
            f"x-ratelimit-{what}-{of}"
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "project-tokens")
        ),
        *(
            f"anthropic-ratelimit-{of}-{what}"
            for what in ("limit", "remaining", "reset")
            for of in ("tokens", "requests")
        ),
    ]
)
HEADERS = st.dictionaries(st.one_of(NAMES, ANY_TEXT), st.one_of(NUMBERS, ANY_TEXT))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.just(10**400))
WORDS = st.sampled_from(
    [
        *("error", "code", "type", "message", "details", "error_code", "data", "name", "usage", "total_tokens"),
        *("input_tokens", "output_tokens", "messages", "content", "input", "prompt", "model", "n", "best_of"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "system", "tools"),
    ]
)
VALUES = st.recursive(
    st.one_of(SCALARS, st.sampled_from([*openai.MEANINGS, *anthropic.MEANINGS, RPM, TOO_LARGE.format(1, 2), "image"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(WORDS, ANY_TEXT), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(WORDS, VALUES, max_size=5)
BODIES = st.one_of(st.binary(max_size=60), OBJECTS.map(lambda value: json.dumps(value).encode()))


@pytest.mark.parametrize("who", EVERYBODY)
@settings(deadline=None)
@given(st.one_of(st.integers(), st.sampled_from([200, 400, 429, 503, 529])), HEADERS, BODIES, st.floats())
@example(429, {"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, b"", -math.inf)
def test_whatever_is_answered_is_read_as_sound_values(
    who: Provider, status: int, headers: dict[str, str], body: bytes, now_s: float
) -> None:
    found = who.read(status, headers, body, now_s)
    assert found.meaning in get_args(Meaning)
    assert (found.wait_s is not None) >= (found.meaning == "wait")
    assert found.wait_s is None or 0 < found.wait_s <= DAY_S
    assert found.wait_s is None or found.meaning in ("wait", "retry")
    for counted in (found.remaining, found.limits, found.used):
        assert all(type(each) is int and 0 <= each <= 2 * counts.MOST for each in counted.values())
    assert all(0 <= each <= 31 * DAY_S for each in found.resets_in_s.values())
    for line, longest in ((found.code, 100), (found.text, 500)):
        assert len(line) <= longest
        assert line.isprintable()


@pytest.mark.parametrize("who", EVERYBODY)
@settings(deadline=None)
@given(OBJECTS)
def test_whatever_is_asked_has_a_cost(who: Provider, request: dict[str, Any]) -> None:
    found = who.estimate(request)
    assert found["requests"] == 1
    assert all(type(each) is int and 0 <= each <= counts.MOST for each in found.values())
