"""What the tests of waking have instead of a worker: its port, and its place among those that are awake."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from arq.connections import ArqRedis
from redis import Redis
from redis.asyncio import ConnectionPool

from runtime.adapters.payload import to_json
from runtime.adapters.redis import keys
from runtime.adapters.redis.heartbeats import Served
from tests.processes import wait_until
from tests.redis.test_heartbeats import BEAT


class Door:
    """A port that answers POST /wake, and remembers when it was asked."""

    def __init__(self, status: int = 202) -> None:
        self.rung_at: list[float] = []
        self.status = status
        door = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/wake"
                door.rung_at.append(time.time())
                self.send_response(door.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/wake"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rung_after(self, moment: float) -> float:
        """Seconds from then to the first ring since, once there was one."""
        return wait_until(lambda: [at for at in self.rung_at if at >= moment], what="somebody rings")[0] - moment


def enqueue_by_arq(url: str, queue: str = "arq:queue", **options: Any) -> float:
    """Stock arq's own client adds a job; when it had done so."""

    async def add() -> float:
        arq = ArqRedis(ConnectionPool.from_url(url))
        try:
            assert await arq.enqueue_job("add", 1, 2, _queue_name=queue, **options)
            return time.time()
        finally:
            await arq.aclose(close_connection_pool=True)

    return asyncio.run(add())


@contextmanager
def somebody_awake(
    url: str, queue: str = "arq:queue", *, beat_ago_s: float = 0.0, state: str = "awake"
) -> Iterator[None]:
    """As the server sees it; and what he has said of himself."""
    with Redis.from_url(url) as redis, redis.pubsub() as here:
        at_ms = round(1000 * (time.time() - beat_ago_s))
        beat = replace(BEAT, at_ms=at_ms, state=state, groups=(Served((queue,), 3),))
        redis.hset(keys.WORKERS, beat.incarnation, to_json(beat).decode())
        here.subscribe(keys.here(queue))
        assert here.get_message(timeout=5)
        yield
