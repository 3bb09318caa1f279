"""A real worker on the platform, and what the stories of its sleep have in common."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from redis import Redis

from tests.platform.network import Network
from tests.platform.sockets import Sockets
from tests.processes import Worker, wait_until
from tests.servers import Server

TOKEN = "t0ken-of-the-sleep-tests-0123456789abcdef"
SLEEP_AFTER_S = 5.0
"""The least that may be set."""
IDLE_S = SLEEP_AFTER_S + 2
"""The platform's. As in earnest it is longer than the worker's, or a worker that is awake and frugal would be ended."""


def sleeping(network: Network | Sockets, redis_url: str, **more: Any) -> Worker:
    return Worker(
        "tests.platform.jobs",
        inside=network.enter(),
        redis=redis_url,
        RUNTIME_HTTP="on",
        PORT=network.port,
        RUNTIME_TOKEN=TOKEN,
        RUNTIME_SLEEP_AFTER=f"{SLEEP_AFTER_S:g}s",
        WORKER_ID="sleeper",
        **more,
    )


def reachable(server: Server, network: Network | Sockets, keepalive_s: int | None = None) -> str:
    """The server itself at this side of the wire, so that what it says to a silent socket counts too."""
    with Redis.from_url(server.url) as redis:
        redis.config_set("protected-mode", "no")
        redis.config_set("bind", " ".join({"127.0.0.1", network.outside}))
        if keepalive_s is not None:
            redis.config_set("tcp-keepalive", keepalive_s)
    return f"redis://{network.outside}:{urlsplit(server.tcp_url).port}"


def post(url: str, body: object = None) -> Any:
    """As a client of any language does: again for half a minute while nobody is there."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    def ask() -> Any:
        try:
            request = urllib.request.Request(url, data, headers, method="POST")
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 202
                return (answer.read(),)
        except HTTPError as refused:
            refused.close()
            if refused.code not in (404, 502):
                raise
        except OSError:
            pass
        return None

    return wait_until(ask)[0]
