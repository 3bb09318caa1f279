"""What an HTTP answer of a paid API means for the job: its JSON, or the right exception."""

from typing import Any, cast

from runtime import Permanent, Snooze, Transient

LIMITED_WAIT_S = 10.0
"""After a 429 that names no time."""


async def read_json(response: Any, provider: str) -> dict[str, Any]:
    """The answer's JSON object if it is a success.

    Raises `Snooze` for a rate limit (no attempt is used up by waiting), `Transient` for what may work next time
    and `Permanent` for what will not.
    """
    if response.status == 429:
        raise Snooze(_wait_s(response), give_up_after="6h")
    if response.status in (408, 409, 425) or response.status >= 500:
        raise Transient(f"{provider} answered {response.status}")
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        answer = None
    if response.status >= 400:
        raise Permanent(f"{provider} answered {response.status}: {_message(answer)}")
    if not isinstance(answer, dict):
        raise Transient(f"{provider} answered {response.status} with something that is no JSON object")
    return cast("dict[str, Any]", answer)


def _wait_s(response: Any) -> float:
    try:
        if "retry-after-ms" in response.headers:
            return max(0.1, float(response.headers["retry-after-ms"]) / 1000)
        return max(0.1, float(response.headers.get("retry-after", LIMITED_WAIT_S)))
    except ValueError:  # an HTTP date
        return LIMITED_WAIT_S


def _message(answer: Any) -> str:
    match answer:
        case {"error": {**error}}:
            return " ".join(str(error[name]) for name in ("code", "name", "message") if error.get(name))[:500]
        case _:
            return "no reason given"
