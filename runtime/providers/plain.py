"""Any API of which we know nothing: what HTTP itself says. The providers that we know begin here too."""

from collections.abc import Mapping
from typing import Any

from runtime.core.feedback import Feedback, Meaning
from runtime.providers import bodies, waits

UNSAID_WAIT_S = 10.0
"""After a rate limit that names no time."""


def estimate(request: Mapping[str, Any]) -> Mapping[str, int]:
    return {"requests": 1}


def read(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
    meaning = by_status(status)
    if meaning == "ok":
        return Feedback("ok")
    error = bodies.error_in(body)
    wait_s = pause(meaning, waits.asked_s(bodies.lowered(headers), now_s))
    return Feedback(meaning, wait_s, code=bodies.code(error.get("code")), text=bodies.text(error.get("message")))


def by_status(status: int) -> Meaning:
    """What a status means where nothing else says more.

    A wrong key (401, 403) is `permanent`, not `break`: handlers may call with the keys of many customers, and a 403 is
    often about one resource. 402 likewise: some use it for one request (a declined card).
    """
    if status < 400:
        return "ok"
    if status == 429:
        return "wait"
    return "retry" if status in (408, 409, 425) or status >= 500 else "permanent"


def insisted(meaning: Meaning, headers: Mapping[str, str]) -> Meaning:
    """`meaning`, unless `x-should-retry` says that an error is worth a retry, or is not.

    The official SDKs of OpenAI and Anthropic obey it before all else, and so retry where the money is gone. An error's
    code says more, so this is for what goes by the status, and a rate limit stays one.
    """
    if meaning in ("retry", "permanent"):
        match headers.get("x-should-retry", "").strip().lower():
            case "true":
                return "retry"
            case "false":
                return "permanent"
            case _:
                pass
    return meaning


def pause(meaning: Meaning, asked_s: float | None) -> float | None:
    """How long to wait, of an answer that asked for `asked_s`."""
    if meaning == "wait":
        return UNSAID_WAIT_S if asked_s is None else asked_s
    return asked_s if meaning == "retry" else None
