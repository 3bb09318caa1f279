"""Who may use the job API: whoever sends a token of `RUNTIME_TOKEN`, and is no page of another site."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from hashlib import sha256

from aiohttp import web

from runtime.adapters.http.answers import Log, Refused
from runtime.adapters.http.connections import waiting

DELAY_S = 0.25
"""Before a wrong token is refused."""
FAILURES_A_MINUTE = 30
"""Of one source; beyond them it is told to slow down. A right token is always let in: a proxy may hide many behind
one address."""
SOURCES = 1000
TELL_S = 10.0


class Gate:
    """Lets requests in. Keeps no token, only their hashes."""

    def __init__(self, tokens: Sequence[str], log: Log) -> None:
        self._wanted = [sha256(token.encode()).digest() for token in tokens]
        self._log = log
        self._failures: dict[str, tuple[float, int]] = {}
        self._unlogged = 0
        self._logged_at = -TELL_S

    async def admit(self, request: web.Request) -> None:
        """Return, or raise `Refused`."""
        if _cross_site(request):
            raise Refused(403, "cross-site", "pages of other sites are not served")
        if self._valid(_given(request)):
            return
        self._tell()
        if self._too_many(request.remote or ""):
            raise Refused(429, "too-many-failures", "too many requests without a valid token", Retry_After="60")
        await _delay(request)
        raise Refused(
            401,
            "unauthorized",
            "this needs a token",
            "send the header Authorization: Bearer, with the token of RUNTIME_TOKEN",
            WWW_Authenticate="Bearer",
        )

    async def knows(self, request: web.Request) -> bool:
        """Whether it carries a valid token, for what is answered without one too. A wrong one has to wait as well."""
        if "Authorization" not in request.headers or _cross_site(request):
            return False
        if self._valid(_given(request)):
            return True
        if self._wanted:
            self._tell()
            await _delay(request)
        return False

    def _valid(self, given: str | None) -> bool:
        """Takes equally long whichever token it is, and however much of it is right."""
        digest = sha256((given or "").encode("utf-8", "surrogateescape")).digest()
        return sum(hmac.compare_digest(digest, wanted) for wanted in self._wanted) > 0 and given is not None

    def _too_many(self, source: str) -> bool:
        """Count a failure of `source`."""
        now = time.monotonic()
        since, count = self._failures.pop(source, (now, 0))
        if now - since >= 60:
            since, count = now, 0
        while len(self._failures) >= SOURCES:
            del self._failures[next(iter(self._failures))]
        self._failures[source] = (since, count + 1)
        return count >= FAILURES_A_MINUTE

    def _tell(self) -> None:
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged_at >= TELL_S:
            self._log.warning(
                f"Refused, for want of a valid token: {self._unlogged} requests", event_name="HTTP_UNAUTHORIZED"
            )
            self._unlogged, self._logged_at = 0, now


def _cross_site(request: web.Request) -> bool:
    return request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")


async def _delay(request: web.Request) -> None:
    with waiting(request, DELAY_S):
        await asyncio.sleep(DELAY_S)


def _given(request: web.Request) -> str | None:
    """The token of the one header that may carry it."""
    headers = request.headers.getall("Authorization", [])
    if len(headers) != 1:
        return None
    scheme, _, token = headers[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
