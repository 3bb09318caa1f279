"""The worker's HTTP port: health from memory, the doorbell, and the job API where a token is configured.

Nothing here talks to Redis except the job API, and who asks for health when nothing has told it lately: see
`Health.probe`, which is where a worker that must stay silent would refuse.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from runtime.adapters.egress import Row
from runtime.adapters.http.answers import Log, Refused, answer, in_json
from runtime.adapters.http.connections import AT_ONCE, BACKLOG, Connections, body_of, limited
from runtime.adapters.http.gate import Gate
from runtime.adapters.http.jobs import Jobs
from runtime.adapters.http.routes import JobApi

MOST_WAKE = 1024
WAKE_EVERY_S = 1.0
"""Rings that come faster are taken together."""
CLOSE_S = 1.0


class Health(Protocol):
    """How the worker is, from memory."""

    @property
    def probe(self) -> Callable[[], Awaitable[object]]:
        """Bring what is known of Redis up to date; at most a second."""
        ...

    def document(self) -> Mapping[str, Any]: ...

    def detail(self) -> Mapping[str, Any]:
        """What is told only to whoever has a token."""
        ...

    def live(self) -> bool: ...

    def unready(self) -> str | None:
        """Why it takes no jobs: nothing secret, as everybody may ask."""
        ...


class HttpServer:
    """Serves until closed. `wake` makes the worker look for jobs at once; without `tokens` there is no job API.

    Answers are entered in `row`.
    """

    def __init__(
        self,
        health: Health,
        wake: Callable[[], None],
        jobs: Jobs,
        *,
        tokens: Sequence[str],
        log: Log,
        row: Row | None = None,
    ) -> None:
        self._health = health
        self._bell = _Bell(wake)
        self._gate = Gate(tokens, log)
        self._api = JobApi(jobs, self._gate) if tokens else None
        self._row = row or Row()
        self._log = log
        self._runner: web.AppRunner | None = None
        self._accepting: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> int:
        """Answer on a socket that listens already; the port."""
        app = web.Application(middlewares=[limited, in_json(self._log)])
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        app.router.add_post("/wake", self._post_wake)
        if self._api is not None:
            self._api.add_to(app.router)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        assert self._runner.server is not None
        accept = Connections(self._runner.server, self._row)
        self._accepting = await asyncio.get_running_loop().create_server(accept, sock=listener, backlog=AT_ONCE)
        listener.listen(BACKLOG)
        port: int = listener.getsockname()[1]
        return port

    async def close(self) -> None:
        self._bell.close()
        if self._accepting is not None:
            self._accepting.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_health(self, request: web.Request) -> web.Response:
        """Open to all; whoever sends a valid token is told more."""
        await self._health.probe()
        more: Mapping[str, Any] = self._health.detail() if await self._gate.knows(request) else {}
        return answer({**self._health.document(), **more}, 200 if self._health.live() else 503)

    async def _get_livez(self, request: web.Request) -> web.Response:
        well = self._health.live()
        return answer({"status": "live" if well else "not live"}, 200 if well else 503)

    async def _get_readyz(self, request: web.Request) -> web.Response:
        await self._health.probe()
        why = self._health.unready()
        return answer({"status": "ready"}) if why is None else answer({"status": "not ready", "reason": why}, 503)

    async def _post_wake(self, request: web.Request) -> web.Response:
        """The doorbell. Open to all, as any request wakes a worker that sleeps; and so it says nothing."""
        if request.query_string:
            raise Refused(400, "unknown-parameter", "there are no parameters here")
        await body_of(request, MOST_WAKE)
        self._bell.ring()
        return answer({"status": "awake"}, 202)


class _Bell:
    """Passes a ring on, at most once in `WAKE_EVERY_S`; the last one always, for a job may have come before it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._rang_at = -WAKE_EVERY_S
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        if self._timer is None:
            wait_s = max(0.0, self._rang_at + WAKE_EVERY_S - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._pass_on)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self) -> None:
        self._timer = None
        self._rang_at = time.monotonic()
        self._wake()
