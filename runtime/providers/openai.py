"""OpenAI, and what speaks its language: Azure OpenAI, DeepSeek, Groq, OpenRouter, vLLM.

Facts from its guides on rate limits and error codes, help.openai.com 5955604 and 6614457, openai-python, and for Azure
learn.microsoft.com. Not read: the error inside a Responses object of status 200, and the use told by a stream.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from runtime.core.feedback import Feedback, Meaning
from runtime.providers import bodies, counts, plain, waits

UNSTATED_ANSWER = 1_000
"""Tokens for an answer whose length the request leaves open: more than most are, and settled by use afterwards."""

# By `error.code`, else by `error.type`; what is not here goes by the status.
MEANINGS: Mapping[str, Meaning] = {
    "rate_limit_exceeded": "wait",
    "slow_down": "wait",  # 503 on older endpoints
    "server_is_overloaded": "retry",
    "insufficient_quota": "break",
    "credit_balance_exhausted": "break",
    "organization_spend_limit_exceeded": "break",
    "project_spend_limit_exceeded": "break",
    "organization_usage_limit_exceeded": "break",
    # Not in the guide, but met in the open.
    "billing_hard_limit_reached": "break",
    "billing_not_active": "break",
    "account_deactivated": "break",
}
_PROMPT = ("messages", "input", "prompt", "instructions", "tools", "response_format", "text")
_TYPES = frozenset({"requests", "tokens"})
"""The `error.type` of a rate limit that names its dimension."""
_SIZES = re.compile(r"\bLimit:? ([0-9]{1,15})\b.{0,80}?\bRequested:? ([0-9]{1,15})\b")
_AGAIN = re.compile(r"(?:try again in|retry after) ([0-9][0-9.hmsnuµ]{0,40}[hms]|[0-9.]{1,20}(?= seconds?\b))", re.I)


def estimate(request: Mapping[str, Any]) -> Mapping[str, int]:
    """Tokens as OpenAI counts them at admission: those of the prompt, and the most that may be answered.

    Of chat completions, responses, completions and embeddings; 0 tokens for a body that is none of these. A request
    that names no most is taken for `UNSTATED_ANSWER` tokens an answer.
    """
    prompt = [request.get(name) for name in _PROMPT]
    if not any(prompt):
        return {"requests": 1, "tokens": 0}
    tokens = bodies.tokens(prompt) + 3  # with which every answer is begun
    if _is_answered(request):
        tokens += _choices(request) * _most_tokens(request)
    return {"requests": 1, "tokens": min(tokens, counts.MOST)}


def read(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
    fields = bodies.lowered(headers)
    quotas = _quotas(fields)
    left, full, limits = quotas.remaining, quotas.resets_in_s, quotas.limits
    if status < 400:
        return Feedback("ok", remaining=left, resets_in_s=full, limits=limits, used=_used(body))
    error = bodies.error_in(body)
    code, kind, text = bodies.code(error.get("code")), bodies.code(error.get("type")), bodies.text(error.get("message"))
    meaning = _meaning(status, code, kind, text, fields)
    asked_s = waits.asked_s(fields, now_s)
    return Feedback(
        meaning,
        # Never the reset: that is when all of it is back, not when the next call may be made.
        wait_s=plain.pause(meaning, _said_s(text) if asked_s is None else asked_s),
        of=_TYPES & {kind} if meaning == "wait" else frozenset(),
        remaining=left,
        resets_in_s=full,
        limits=limits,
        code=code or kind,
        text=text,
    )


def _meaning(status: int, code: str, kind: str, text: str, fields: Mapping[str, str]) -> Meaning:
    if status == 402:  # not OpenAI's own: so DeepSeek and OpenRouter say that the money is gone
        return "break"
    meaning = MEANINGS.get(code) or MEANINGS.get(kind) or plain.insisted(plain.by_status(status), fields)
    return "permanent" if meaning == "wait" and _is_too_large(text) else meaning


def _is_too_large(text: str) -> bool:
    """Whether the request is larger than the limit, so that no waiting will do.

    The numbers go before the words: OpenAI has said "Request too large" of one that fits, when too little was left.
    """
    sizes = _SIZES.search(text)
    return int(sizes[2]) > int(sizes[1]) if sizes else text.startswith("Request too large")


def _said_s(text: str) -> float | None:
    """The wait in the message: "Please try again in 6m0s." (OpenAI), "Please retry after 37 seconds." (Azure)."""
    found = _AGAIN.search(text)
    return waits.wait(waits.duration_s(found[1])) if found else None


def _quotas(fields: Mapping[str, str]) -> counts.Quotas:
    """The organisation's counts, or the project's where that has fewer tokens left."""
    organisation, project = (
        counts.quotas(fields, "x-ratelimit-{what}-{of}", {"requests": "requests", "tokens": tokens})
        for tokens in ("tokens", "project-tokens")
    )
    return min(organisation, project, key=lambda each: each.remaining.get("tokens", counts.MOST))


def _used(body: bytes) -> dict[str, int]:
    total = counts.count(bodies.mapping(bodies.json_object(body).get("usage")).get("total_tokens"))
    return {} if total is None else {"tokens": total}


def _is_answered(request: Mapping[str, Any]) -> bool:
    """Whether the model writes anything: not for embeddings and moderations, whose `input` is texts or tokens."""
    model, given = request.get("model"), request.get("input")
    if isinstance(model, str) and ("embedding" in model or "moderation" in model):
        return False
    return not isinstance(given, list) or any(isinstance(item, Mapping) for item in cast("list[object]", given))


def _most_tokens(request: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        most = counts.count(request.get(name))
        if most:
            return most
    return UNSTATED_ANSWER


def _choices(request: Mapping[str, Any]) -> int:
    return max(1, *(counts.count(request.get(name)) or 1 for name in ("n", "best_of")))
