"""The worker's HTTP port: health, and nothing that costs or tells anything else.

Answers come from memory: no request makes the worker talk to Redis.
"""

import socket
from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

from runtime.adapters.payload import to_json

MAX_BODY = 1024


class Health(Protocol):
    """How the worker is, from memory."""

    def document(self) -> Mapping[str, Any]: ...

    def live(self) -> bool: ...

    def ready(self) -> bool: ...


class HttpServer:
    """Serves until closed."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._runner: web.AppRunner | None = None

    async def start(self, listener: socket.socket) -> int:
        """Answer on a socket that listens already; the port."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_refuse_in_json])
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=15.0
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        port: int = listener.getsockname()[1]
        return port

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_health(self, request: web.Request) -> web.Response:
        return _json(self._health.document(), 200 if self._health.live() else 503)

    async def _get_livez(self, request: web.Request) -> web.Response:
        return _answer("live", self._health.live())

    async def _get_readyz(self, request: web.Request) -> web.Response:
        return _answer("ready", self._health.ready())


def _answer(word: str, well: bool) -> web.Response:
    return _json({"status": word if well else f"not {word}"}, 200 if well else 503)


def _json(document: Mapping[str, Any], status: int) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=to_json(document), status=status, content_type="application/json", headers=headers)


@web.middleware
async def _refuse_in_json(request: web.Request, handler: Any) -> Any:
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        response = _json({"error": refusal.reason.lower()}, refusal.status)
        if "Allow" in refusal.headers:
            response.headers["Allow"] = refusal.headers["Allow"]
        return response
