"""JUDIT's queries. Facts from its pages on rate limits and errors (docs.judit.io).

180 requests in any 60 s, all routes together. Whether a 429 carries Retry-After is not documented. An
`application_error` comes inside an answer of status 200 and is the handler's to read.
"""

from collections.abc import Mapping
from typing import Any, cast

from runtime.core.feedback import Feedback, Meaning
from runtime.providers import bodies, counts, plain, waits


def estimate(request: Mapping[str, Any]) -> Mapping[str, int]:
    return {"requests": 1}


def read(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Feedback:
    fields = bodies.lowered(headers)
    quotas = counts.quotas(fields, "x-ratelimit-{what}", {"requests": ""})
    # JUDIT says to retry 429, 5xx and timeouts, and nothing else of the 4xx.
    meaning: Meaning = "permanent" if status == 409 else plain.by_status(status)
    error: Mapping[str, Any] = bodies.error_in(body) if meaning != "ok" else {}
    data = error.get("data")
    details = cast("list[object]", data)[:20] if isinstance(data, list) else [data]
    return Feedback(
        meaning,
        wait_s=plain.pause(meaning, waits.asked_s(fields, now_s)),
        of=frozenset({"requests"}) if meaning == "wait" else frozenset(),
        remaining=quotas.remaining,
        resets_in_s=quotas.resets_in_s,
        limits=quotas.limits,
        code=bodies.code(error.get("name")),
        text=bodies.text(error.get("message"), *details),
    )
