"""A stand-in for OpenAI's chat completions: its limits, its errors and its slowness, and flashcards for an answer.

    python -m tests.standins.openai --port 8081 --rpm 500 --tpm 30000 --latency 0.3

Its limits on requests and on tokens are buckets that refill continuously; with a `--slice` they hold no more than what
flows in in that time, as OpenAI may enforce 60 a minute as 1 a second. Tokens are counted at admission, as prompt
plus the most that may be answered. A call that fails later has used up its share of both; one that is refused for its
tokens has used up a request.
"""

import argparse
import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.standins.flashcards import cards_from, fill
from tests.standins.limits import Refill
from tests.standins.program import Answer, Call, Fault, Refusal, StandIn, arguments, run

MODELS = "gpt-4o,gpt-4o-mini,gpt-4.1,gpt-4.1-mini,gpt-4.1-nano,gpt-5,gpt-5-mini,gpt-5-nano"
ORGANISATION = "org-standin"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MINUTE_S = 60.0
# What the API used to allow an answer that sets no limit of its own; only the estimate at admission needs it.
UNSTATED_MAX_TOKENS = 16
KEYS_PAGE = "You can find your API key at https://platform.openai.com/account/api-keys."
RATE_LIMITS_PAGE = "Visit https://platform.openai.com/account/rate-limits to learn more."

JSON_KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a decimal",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
    type(None): "null",
}

QUOTA = "You exceeded your current quota, please check your plan and billing details."
SPEND = "Your {} has reached its spend limit. Raise the limit or wait for the next month."
FAILURES: dict[str, tuple[int, str, str]] = {
    # code: status, type, message
    "rate_limit_exceeded": (429, "requests", "Rate limit reached."),
    "slow_down": (429, "slow_down", "Slow down: your rate of requests grew too fast. Raise it gradually."),
    "insufficient_quota": (429, "insufficient_quota", QUOTA),
    "credit_balance_exhausted": (429, "insufficient_quota", "You have no credits left. Add credits to continue."),
    "organization_spend_limit_exceeded": (429, "insufficient_quota", SPEND.format("organization")),
    "project_spend_limit_exceeded": (429, "insufficient_quota", SPEND.format("project")),
    "organization_usage_limit_exceeded": (429, "insufficient_quota", SPEND.format("organization")),
    "server_error": (500, "server_error", "The server had an error while processing your request. Sorry about that!"),
    "server_is_overloaded": (503, "server_error", "The engine is currently overloaded, please try again later."),
}
USUAL_CODES = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_is_overloaded"}


@dataclass(frozen=True, slots=True)
class Order:
    """A chat completion as asked for."""

    model: str
    messages: list[tuple[str, str]]
    most_tokens: int | None
    choices: int
    schema: dict[str, Any] | None
    wants_json: bool

    @property
    def prompts(self) -> list[str]:
        return [text for role, text in self.messages if role == "user"]

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens(text) + 4 for _, text in self.messages) + 3

    @property
    def estimate(self) -> int:
        return self.prompt_tokens + self.choices * (self.most_tokens or UNSTATED_MAX_TOKENS)


class OpenAI(StandIn[Fault]):
    fault_type = Fault

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.log)
        self._options = options
        self._models = frozenset(options.models.split(","))
        self.forget()

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [("POST", "/v1/chat/completions", self.complete)]

    def forget(self) -> None:
        now = time.monotonic()
        slice_s = self._options.slice
        self._requests = Refill(max(1, round(self._options.rpm * slice_s / MINUTE_S)), slice_s, now)
        self._tokens = Refill(max(1, round(self._options.tpm * slice_s / MINUTE_S)), slice_s, now)

    def complete(self, call: Call) -> Answer:
        self._authenticate(call)
        self._count_request(call)
        order = read_order(call.body)
        self._note(call, order)
        self._check_model(order)
        self._count_tokens(call, order)
        fault = self.meet_fault(call)
        if fault and fault.fails:
            raise failure(fault)
        return self._completion(call, order)

    # --- the steps of it

    def _authenticate(self, call: Call) -> None:
        scheme, _, key = call.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise refusal(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        if key.strip() != self._options.key:
            shown = key[:3] + "*" * 8 + key[-4:] if len(key) > 12 else "*" * 8
            raise refusal(401, f"Incorrect API key provided: {shown}. {KEYS_PAGE}", code="invalid_api_key")
        call.known = True

    def _count_request(self, call: Call) -> None:
        wait = self._requests.take(1, call.now)
        if wait:
            used = self._requests.capacity - math.floor(self._requests.level(call.now))
            raise self._rate_limited(call, "requests", "requests per min (RPM)", self._options.rpm, used, 1, wait)

    def _count_tokens(self, call: Call, order: Order) -> None:
        limit = self._tokens.capacity
        if order.estimate > limit:
            raise refusal(
                429,
                f"Request too large for {order.model} in organization {ORGANISATION} on tokens per min (TPM): "
                f"Limit {limit}, Requested {order.estimate}. The input or output tokens must be reduced in order to "
                f"run successfully. {RATE_LIMITS_PAGE}",
                type_="tokens",
                code="rate_limit_exceeded",
            )
        wait = self._tokens.take(order.estimate, call.now)
        if wait:
            used = limit - math.floor(self._tokens.level(call.now))
            raise self._rate_limited(call, "tokens", "tokens per min (TPM)", limit, used, order.estimate, wait)

    def _rate_limited(
        self, call: Call, type_: str, name: str, limit: int, used: int, requested: int, wait: float
    ) -> Refusal:
        self.log.count("rate_limited", type_)
        text = (
            f"Rate limit reached for {model_named(call.body)} in organization {ORGANISATION} on {name}: Limit {limit}, "
            f"Used {used}, Requested {requested}. Please try again in {go_duration(wait)}. {RATE_LIMITS_PAGE}"
        )
        return refusal(429, text, type_=type_, code="rate_limit_exceeded", headers=retry_headers(wait))

    def _check_model(self, order: Order) -> None:
        if order.model not in self._models:
            text = f"The model `{order.model}` does not exist or you do not have access to it."
            raise refusal(404, text, code="model_not_found")

    def _note(self, call: Call, order: Order) -> None:
        digest = hashlib.sha256("\n".join(order.prompts).encode()).hexdigest()
        call.facts |= {
            "model": order.model,
            "prompt_sha256": digest,
            "cost": order.estimate,
            "tokens": {"estimate": order.estimate, "prompt": order.prompt_tokens, "completion": 0},
        }

    def _completion(self, call: Call, order: Order) -> Answer:
        content, finish_reason = answer_to(order)
        completion_tokens = order.choices * tokens(content)
        call.facts["tokens"]["completion"] = completion_tokens
        self.log.count("completions_by_prompt", call.facts["prompt_sha256"])
        self.log.count("tokens", "prompt", order.prompt_tokens)
        self.log.count("tokens", "completion", completion_tokens)
        match call.fault.garbage if call.fault else False:
            case True | "content":
                content = "Sure! Here are your flashcards: {cards: [question = "
                choices = [choice(0, content, "stop")]
            case "choices":
                choices = []
            case _:
                choices = [choice(index, content, finish_reason) for index in range(order.choices)]
        body = {
            "id": f"chatcmpl-{uuid.uuid4().hex[:29]}",
            "object": "chat.completion",
            "created": int(call.wall_time),
            "model": order.model,
            "choices": choices,
            "usage": usage(order.prompt_tokens, completion_tokens),
            "service_tier": "default",
            "system_fingerprint": "fp_" + hashlib.sha256(order.model.encode()).hexdigest()[:10],
        }
        return Answer(200, body, latency=self._options.latency)

    # --- what every answer carries

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        took_s = answer.latency + (call.fault.latency if call.fault else 0.0)
        headers = {
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "openai-version": "2020-10-01",
            "openai-processing-ms": str(max(1, round(took_s * 1000))),
        }
        if not call.known:
            return headers
        headers["openai-organization"] = ORGANISATION
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.capacity)
            headers[f"x-ratelimit-remaining-{name}"] = str(math.floor(bucket.level(call.now)))
            headers[f"x-ratelimit-reset-{name}"] = go_duration(bucket.full_in(call.now))
        return headers

    def error(self, status: int, route: str) -> Answer:
        text = {
            404: f"Invalid URL ({route})",
            405: f"Not allowed: {route}.",
            413: "The request body is too large.",
        }
        return refusal(status, text.get(status, "The request could not be handled.")).answer


def read_order(body: bytes) -> Order:
    """The request body as an `Order`; raises the 400 that says what is wrong with it."""
    try:
        given = json.loads(body)
    except ValueError:
        raise refusal(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(given, dict):
        raise refusal(400, "The body of your request must be a JSON object.")
    if given.get("stream"):
        text = "Unsupported value: this stand-in does not stream."
        raise refusal(400, text, param="stream", code="unsupported_value")
    model = given.get("model")
    if model is None:
        raise refusal(400, "you must provide a model parameter")
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    messages = _messages(given.get("messages"))
    wants_json, schema = _format(given.get("response_format"), messages)
    choices = _positive(given, "n") or 1
    return Order(model, messages, _most_tokens(given), choices, schema, wants_json)


def model_named(body: bytes) -> str:
    """The model for a message, of a body that nobody has checked yet."""
    try:
        return str(json.loads(body)["model"])
    except (ValueError, TypeError, LookupError):
        return "default"


def _messages(given: Any) -> list[tuple[str, str]]:
    if given is None:
        text = "Missing required parameter: 'messages'."
        raise refusal(400, text, param="messages", code="missing_required_parameter")
    if not isinstance(given, list):
        raise wrong_type("messages", "an array of objects", given)
    if not given:
        text = "Invalid 'messages': empty array. Expected an array with minimum length 1."
        raise refusal(400, text, param="messages", code="empty_array")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(given)]


def _message(name: str, given: Any) -> tuple[str, str]:
    if not isinstance(given, dict):
        raise wrong_type(name, "an object", given)
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        text = f"Invalid value: {role!r}. Supported values are: {', '.join(map(repr, ROLES))}."
        raise refusal(400, text, param=f"{name}.role", code="invalid_value")
    if isinstance(content, str):
        return role, content
    if content is None and role == "assistant":
        return role, ""
    if isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content):
        return role, "\n".join(str(part.get("text", "")) for part in content)
    raise wrong_type(f"{name}.content", "one of a string or array of objects", content)


def _format(given: Any, messages: list[tuple[str, str]]) -> tuple[bool, dict[str, Any] | None]:
    match given:
        case None | {"type": "text"}:
            return any("json" in text.lower() for _, text in messages), None
        case {"type": "json_object"}:
            if not any("json" in text.lower() for _, text in messages):
                text = "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
                raise refusal(400, text + "'json_object'.", param="messages")
            return True, None
        case {"type": "json_schema", "json_schema": {"name": str(), "schema": {"type": "object"} as schema}}:
            return True, schema
        case {"type": "json_schema"}:
            name = "response_format.json_schema"
            text = f"Invalid '{name}': a name and a schema of type 'object' are required."
            raise refusal(400, text, param=name, code="invalid_value")
        case _:
            text = "Invalid 'response_format': supported types are 'json_object', 'json_schema' and 'text'."
            raise refusal(400, text, param="response_format", code="invalid_value")


def _most_tokens(given: dict[str, Any]) -> int | None:
    older, newer = _positive(given, "max_tokens"), _positive(given, "max_completion_tokens")
    if older and newer:
        text = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise refusal(400, text, param="max_tokens", code="invalid_parameter_combination")
    return older or newer


def _positive(given: dict[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if value < 1:
        text = f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {value} instead."
        raise refusal(400, text, param=name, code="integer_below_min_value")
    return value


def answer_to(order: Order) -> tuple[str, str]:
    """The content, cut to the tokens it may have, and the reason for which it ends."""
    cards = cards_from(order.prompts)
    if order.schema is not None:
        content = json.dumps(fill(order.schema, cards), ensure_ascii=False)
    elif order.wants_json:
        pairs = [{"question": card.question, "answer": card.answer} for card in cards]
        content = json.dumps({"cards": pairs}, ensure_ascii=False)
    else:
        content = "\n\n".join(f"Q: {card.question}\nA: {card.answer}" for card in cards)
    if order.most_tokens is None or tokens(content) <= order.most_tokens:
        return content, "stop"
    return content[: order.most_tokens * 4], "length"


def choice(index: int, content: str, finish_reason: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def tokens(text: str) -> int:
    return math.ceil(len(text) / 4)


def refusal(
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Refusal:
    body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    return Refusal(Answer(status, body, headers or {}))


def wrong_type(name: str, expected: str, given: Any) -> Refusal:
    text = f"Invalid type for '{name}': expected {expected}, but got {JSON_KINDS[type(given)]} instead."
    return refusal(400, text, param=name, code="invalid_type")


def failure(fault: Fault) -> Refusal:
    """The documented error for the code or the status of a fault."""
    code = fault.code or USUAL_CODES.get(fault.status or 0)
    status, type_, message = FAILURES.get(code or "", (500, "invalid_request_error", "The request failed."))
    status = fault.status or status
    if code not in FAILURES and status >= 500:
        type_ = "server_error"
    wait = fault.retry_after
    if code == "rate_limit_exceeded":
        wait = 1.0 if wait is None else wait
        message += f" Please try again in {go_duration(wait)}. {RATE_LIMITS_PAGE}"
    headers = {} if wait is None else retry_headers(wait)
    return refusal(status, fault.message or message, type_=type_, code=code, headers=headers)


def retry_headers(wait_s: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(_milliseconds(wait_s))}


def go_duration(seconds: float) -> str:
    """As Go prints a duration, to the millisecond and never too short: 12ms, 1s, 6m0s, 1m30.951s, 1h2m3s."""
    ms = _milliseconds(seconds)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _milliseconds(seconds: float) -> int:
    return math.ceil(round(seconds * 1000, 6))


def main() -> None:
    parser = arguments("A stand-in for OpenAI's chat completions.", key="sk-standin")
    parser.add_argument("--rpm", type=int, default=500, help="requests per minute (default: %(default)s)")
    parser.add_argument("--tpm", type=int, default=200_000, help="tokens per minute (default: %(default)s)")
    parser.add_argument("--slice", type=float, metavar="S", default=MINUTE_S, help="of them (default: a minute)")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds of a completion (default: %(default)s)")
    parser.add_argument("--models", default=MODELS, help="the models there are, with commas (default: %(default)s)")
    options = parser.parse_args()
    if options.rpm < 1 or options.tpm < 1 or options.slice <= 0:
        parser.error("--rpm and --tpm must be at least 1, --slice above 0")
    run(OpenAI(options), options)


if __name__ == "__main__":
    main()
