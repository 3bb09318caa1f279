"""HTTP sessions for handlers: `ports.Sessions`. aiohttp is imported with the first one, not with the worker."""

import json
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, cast

from runtime.adapters.telemetry import traces
from runtime.ports import Toll

TOTAL_S = 120.0
CONNECT_S = 10.0
MOST_READ = 2 * 2**20
"""A longer answer is not looked into: what it has cost is not known then, nor what went wrong."""
_UNSAFE = ("POST", "PATCH")
"""Methods that do something anew when they are repeated: these carry an `Idempotency-Key`."""


class AiohttpSessions:
    """One session per name, kept open for the worker's life."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def session(self, name: str, toll: Toll | None) -> Any:
        session = self._of(name)
        return session if toll is None else Session(session, toll)

    def _of(self, name: str) -> Any:
        known = self._open.get(name)
        if known is None or known.closed:
            import aiohttp  # a quarter of a second, which a worker that was just woken does not have

            timeout = aiohttp.ClientTimeout(total=TOTAL_S, connect=CONNECT_S)
            known = self._open[name] = aiohttp.ClientSession(timeout=timeout, trace_configs=traces.of_requests())
        return known

    async def close(self) -> None:
        for session in self._open.values():
            await session.close()
        self._open.clear()


class Session:
    """An `aiohttp.ClientSession` whose requests pay their toll. What is not named here is that session's own."""

    def __init__(self, session: Any, toll: Toll) -> None:
        self._session = session
        self._toll = toll

    def request(self, method: str, url: Any, **options: Any) -> "_Request":
        """As aiohttp's: `async with session.request(…) as response`, or awaited.

        Waits for the limits of the API and its breaker before it is sent. A failure is raised, not returned: `Limited`,
        `Transient` or `Permanent`, or aiohttp's own where no answer came.
        """
        return _Request(self._session, self._toll, method.upper(), url, options)

    def get(self, url: Any, **options: Any) -> "_Request":
        return self.request("GET", url, **options)

    def head(self, url: Any, **options: Any) -> "_Request":
        return self.request("HEAD", url, **{"allow_redirects": False, **options})

    def options(self, url: Any, **options: Any) -> "_Request":
        return self.request("OPTIONS", url, **options)

    def post(self, url: Any, **options: Any) -> "_Request":
        return self.request("POST", url, **options)

    def put(self, url: Any, **options: Any) -> "_Request":
        return self.request("PUT", url, **options)

    def patch(self, url: Any, **options: Any) -> "_Request":
        return self.request("PATCH", url, **options)

    def delete(self, url: Any, **options: Any) -> "_Request":
        return self.request("DELETE", url, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _Request:
    def __init__(self, session: Any, toll: Toll, method: str, url: Any, options: Mapping[str, Any]) -> None:
        self._session = session
        self._toll = toll
        self._method = method
        self._url = url
        self._options = options
        self._response: Any = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._send().__await__()

    async def __aenter__(self) -> Any:
        self._response = await self._send()
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._response.release()
        await self._response.wait_for_close()

    async def _send(self) -> Any:
        import aiohttp

        body = self._options.get("json")
        headers = self._headers(body)
        fare = await self._toll.pay(cast("dict[str, Any]", body) if isinstance(body, dict) else {})
        try:
            response = await self._session.request(self._method, self._url, **{**self._options, "headers": headers})
            try:
                read = await _read(response)
            except BaseException:
                response.close()
                raise
        except aiohttp.InvalidURL:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            await self._toll.lost(fare, error)
            raise
        try:
            await self._toll.heed(fare, response.status, response.headers, read)
        except BaseException:
            response.release()
            raise
        return response

    def _headers(self, body: object) -> Any:
        from multidict import CIMultiDict

        headers = CIMultiDict(self._options.get("headers") or {})
        if self._method in _UNSAFE and "Idempotency-Key" not in headers:
            told = body if body is not None else self._options.get("data")
            headers["Idempotency-Key"] = self._toll.key(self._method, str(self._url), _spelt(told))
        return headers


async def _read(response: Any) -> bytes:
    """The body, where it may say something of cost or failure. aiohttp keeps it, for the handler to read again."""
    length = response.content_length
    told = response.status >= 400 or response.content_type.endswith("json")
    if not told or (length is not None and length > MOST_READ):
        return b""
    body: bytes = await response.read()
    return body if len(body) <= MOST_READ else b""


def _spelt(body: object) -> str:
    if isinstance(body, bytes):
        return body.decode("utf-8", "backslashreplace")
    try:
        return json.dumps(body, sort_keys=True, default=repr)
    except (TypeError, ValueError):
        return type(body).__name__
