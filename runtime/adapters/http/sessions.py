"""HTTP sessions for handlers: `ports.Sessions`. aiohttp is imported with the first one, not with the worker."""

import json
from collections.abc import Coroutine, Generator, Mapping
from types import TracebackType
from typing import Any, cast

from runtime.adapters.egress import Egress, Row
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

    def __init__(self, egress: Egress | None = None) -> None:
        self._egress = egress or Egress()
        self._open: dict[str, Any] = {}

    def session(self, name: str, toll: Toll | None) -> Any:
        session = self._of(name)
        return session if toll is None else Session(session, toll)

    def _of(self, name: str) -> Any:
        known = self._open.get(name)
        if known is None or known.closed:
            import aiohttp  # a quarter of a second, which a worker that was just woken does not have

            timeout = aiohttp.ClientTimeout(total=TOTAL_S, connect=CONNECT_S)
            told = [_entering(self._egress.of_api(name)), *traces.of_requests()]
            known = self._open[name] = aiohttp.ClientSession(timeout=timeout, trace_configs=told)
        return known

    async def close(self) -> None:
        for session in self._open.values():
            await session.close()
        self._open.clear()


def _entering(row: Row) -> Any:
    """What enters in `row` whatever a session sends: names it asks for, connections, requests and their parts."""
    import aiohttp

    async def stirred(*_: object) -> None:
        row.stirred()

    async def sent(*_: object) -> None:
        row.sent()

    config = aiohttp.TraceConfig()
    config.on_dns_resolvehost_start.append(stirred)
    config.on_connection_create_start.append(stirred)
    config.on_request_headers_sent.append(sent)
    config.on_request_chunk_sent.append(stirred)
    return config


class Session:
    """An `aiohttp.ClientSession` whose requests pay their toll. What is not named here is that session's own."""

    def __init__(self, session: Any, toll: Toll) -> None:
        self._session = session
        self._toll = toll

    def request(self, method: str, url: Any, **options: Any) -> "_Request":
        """As aiohttp's: `async with session.request(…) as response`, or awaited.

        Waits for the limits of the API and its breaker before it is sent. A failure is raised, not returned: `Limited`,
        `Transient` or `Permanent`, or aiohttp's own where no answer came. An answer in JSON is there as a whole (so
        `response.content` is at its end), any other comes in as it is read.
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


class _Request(Coroutine[Any, Any, Any]):
    """A coroutine and a context manager, as aiohttp's."""

    def __init__(self, session: Any, toll: Toll, method: str, url: Any, options: Mapping[str, Any]) -> None:
        self._session = session
        self._toll = toll
        self._method = method
        self._url = url
        self._options = options
        self._sending = self._send()
        self._response: Any = None

    def send(self, value: Any, /) -> Any:
        return self._sending.send(value)

    def throw(self, *error: Any) -> Any:
        return self._sending.throw(*error)

    def close(self) -> None:
        self._sending.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._sending.__await__()

    async def __aenter__(self) -> Any:
        self._response = await self._sending
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._response.release()
        await self._response.wait_for_close()

    async def _send(self) -> Any:
        from multidict import CIMultiDict

        headers = CIMultiDict(self._options.get("headers") or {})
        if self._method not in _UNSAFE or "Idempotency-Key" in headers:
            return await self._exchange(headers)
        told = [self._options.get(name) for name in ("params", "json", "data")]
        headers["Idempotency-Key"] = key = self._toll.key(self._method, str(self._url), _spelt(told))
        try:
            return await self._exchange(headers)
        except BaseException:
            self._toll.failed(key)
            raise

    async def _exchange(self, headers: Any) -> Any:
        import aiohttp

        body = self._options.get("json")
        # aiohttp would raise for a status before it can be heeded; here a failure is raised in any case.
        options = {**self._options, "headers": headers, "raise_for_status": False}
        fare = await self._toll.pay(cast("dict[str, Any]", body) if isinstance(body, dict) else {})
        try:
            response = await self._session.request(self._method, self._url, **options)
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


async def _read(response: Any) -> bytes:
    """The body, where it may say something of cost or failure. aiohttp keeps that of a success, for the handler."""
    if response.status >= 400:
        return await _start(response)
    length = response.content_length
    kind = response.content_type
    # JSON alone: lines of it (application/x-ndjson) are a stream.
    if (kind != "application/json" and not kind.endswith("+json")) or (length is not None and length > MOST_READ):
        return b""
    body: bytes = await response.read()
    return body if len(body) <= MOST_READ else b""


async def _start(response: Any) -> bytes:
    """The body of a failure; empty if it is too long, or does not arrive as a whole: the status says enough."""
    import aiohttp

    body = bytearray()
    try:
        async for some in response.content.iter_any():
            body += some
            if len(body) > MOST_READ:
                return b""
    except (aiohttp.ClientError, TimeoutError, OSError):
        return b""
    return bytes(body)


def _spelt(told: object) -> str:
    """A request's parts as text. What is no plain data (a file, a form) goes by its type: it has the same key in a
    later run all the same, if the job makes its requests in the same order."""
    try:
        return json.dumps(told, sort_keys=True, default=_opaque)
    except (TypeError, ValueError):
        return _opaque(told)


def _opaque(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else type(value).__name__
