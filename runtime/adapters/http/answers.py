"""What the HTTP port answers: JSON, always, and one form for whatever went wrong."""

import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

from runtime.adapters.payload import to_json
from runtime.core.errors import HandlerUnknown, OptionInvalid, PayloadInvalid, Problem, QuotaExceeded, RedisUnreachable

AGAIN_IN_S = 2
"""When to try again while Redis is away."""
_STATUS: Mapping[type[Problem], int] = {
    HandlerUnknown: 422,
    OptionInvalid: 422,
    PayloadInvalid: 422,
    QuotaExceeded: 429,
    RedisUnreachable: 503,
}


class Log(Protocol):
    """The worker's log."""

    def warning(self, message: str, /, *, event_name: str) -> object: ...

    def error(self, message: str, /, *, event_name: str, exc_info: BaseException) -> object: ...


class Refused(Exception):
    """A request that is not served, and what its sender is told."""

    def __init__(self, status: int, code: str, message: str, hint: str | None = None, **headers: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(self) -> web.Response:
        error = {"code": self.code, "message": self.message, "hint": self.hint}
        return answer({"error": error}, self.status, self.headers)


def answer(document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`document` as JSON, not to be stored or guessed at, without a word about what serves it."""
    fixed = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Server": "runtime",
    }
    return web.Response(
        body=to_json(document), status=status, content_type="application/json", headers={**fixed, **(headers or {})}
    )


def of_problem(problem: Problem) -> Refused:
    """A mistake that a person can mend, as it is told to whoever sent it."""
    code = re.sub(r"(?<!^)(?=[A-Z])", "-", type(problem).__name__).lower()
    message = f"{problem.message}: {problem.cause}" if problem.cause else problem.message
    status = _STATUS.get(type(problem), 500)
    return Refused(status, code, message, problem.hint, **_again(problem))


def _again(problem: Problem) -> dict[str, str]:
    """When to try again, for what time will mend."""
    match problem:
        case QuotaExceeded():
            return {"Retry_After": str(math.ceil(problem.retry_after_s))}
        case RedisUnreachable():
            return {"Retry_After": str(AGAIN_IN_S)}
        case _:
            return {}


def in_json(log: Log) -> Any:
    """The middleware that makes an answer of whatever is raised. What a bug of ours says goes to the log alone."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                raise Refused(403, "cross-origin", "pages of other origins are not served")
            response: web.StreamResponse = await handler(request)
            return response
        except Refused as refused:
            return refused.answer()
        except Problem as problem:
            return of_problem(problem).answer()
        except web.HTTPException as refusal:
            return _of_aiohttp(refusal)
        except ConnectionError:
            raise  # nobody is left to answer
        except Exception as error:
            log.error("A request met a bug", event_name="HTTP_ERROR", exc_info=error)
            return Refused(500, "internal", "something went wrong; the worker's log says what").answer()

    return middleware


def _of_aiohttp(refusal: web.HTTPException) -> web.Response:
    """What aiohttp's router refuses: a path or a method that is not there."""
    allow = {"Allow": refusal.headers["Allow"]} if "Allow" in refusal.headers else {}
    code = refusal.reason.lower().replace(" ", "-")
    return Refused(refusal.status, code, refusal.reason.lower(), **allow).answer()
