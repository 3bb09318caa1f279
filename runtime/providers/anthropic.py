"""Anthropic's Claude API. Facts from its pages on errors and on rate limits.

Not read: the use told by a stream, and an error in the middle of one.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from runtime.core.feedback import Feedback, Meaning
from runtime.providers import bodies, counts, plain, waits

BYTES_A_TOKEN = 3.5

# By `error.details.error_code`, else by `error.type`; what is not here goes by the status.
MEANINGS: Mapping[str, Meaning] = {
    "enforced_spend_limit_reached": "break",  # a 429 of type rate_limit_error, without a wait
    "billing_error": "break",
    "rate_limit_error": "wait",
    "overloaded_error": "retry",  # 529: by everybody together, not by us
}
# Answers of 400 and type invalid_request_error which only their message tells from a request that is wrong.
_OUT_OF_MONEY = re.compile(
    r"You have reached your specified (?:workspace )?API usage limits|Your credit balance is too low"
)
# `tokens` is the tightest of the limits on tokens that there are.
_DIMENSIONS = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}
_PER_MINUTE = re.compile(r"\b(requests|input tokens|output tokens|tokens) per minute")


def estimate(request: Mapping[str, Any]) -> Mapping[str, int]:
    """Input as if nothing of it were cached, and all of `max_tokens`; 0 tokens for a body that is no request."""
    prompt = [request.get(name) for name in ("system", "messages", "tools")]
    return {
        "requests": 1,
        "input_tokens": min(bodies.tokens(prompt, BYTES_A_TOKEN), counts.MOST),
        "output_tokens": counts.count(request.get("max_tokens")) or 0,
    }


def read(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
    fields = bodies.lowered(headers)
    until = partial(waits.until_s, now_s=now_s)
    quotas = counts.quotas(fields, "anthropic-ratelimit-{of}-{what}", _DIMENSIONS, until)
    left, full, limits = quotas.remaining, quotas.resets_in_s, quotas.limits
    if status < 400:
        return Feedback("ok", remaining=left, resets_in_s=full, limits=limits, used=_used(body))
    error = bodies.error_in(body)
    detail, kind = bodies.code(bodies.mapping(error.get("details")).get("error_code")), bodies.code(error.get("type"))
    text = bodies.text(error.get("message"))
    meaning = _meaning(status, detail, kind, text, fields)
    return Feedback(
        meaning,
        wait_s=plain.pause(meaning, waits.asked_s(fields, now_s)),
        of=_limited(text) if meaning == "wait" else frozenset(),
        remaining=left,
        resets_in_s=full,
        limits=limits,
        code=detail or kind,
        text=text,
    )


def _meaning(status: int, detail: str, kind: str, text: str, fields: Mapping[str, str]) -> Meaning:
    if _OUT_OF_MONEY.match(text):
        return "break"
    return MEANINGS.get(detail) or MEANINGS.get(kind) or plain.insisted(plain.by_status(status), fields)


def _limited(text: str) -> frozenset[str]:
    """Of "This request would exceed your organization's rate limit of 20,000 input tokens per minute"."""
    found = _PER_MINUTE.search(text)
    return frozenset({found[1].replace(" ", "_")}) if found else frozenset()


def _used(body: bytes) -> dict[str, int]:
    """What counts against the limits: input read from the cache does not, input written to it does."""
    usage = bodies.mapping(bodies.json_object(body).get("usage"))
    used: dict[str, int] = {}
    fresh = counts.count(usage.get("input_tokens"))
    if fresh is not None:
        used["input_tokens"] = fresh + (counts.count(usage.get("cache_creation_input_tokens")) or 0)
    written = counts.count(usage.get("output_tokens"))
    if written is not None:
        used["output_tokens"] = written
    return used
