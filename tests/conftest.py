from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

import pytest
from redis import Redis

from tests.servers import Server

pytest_plugins = ["runtime.testing.plugin"]

# What may stay without a TTL: it empties itself, or its size is bounded otherwise.
ENDLESS = (
    "rt:*:later", "rt:*:mark", "rt:*:dead", "rt:*:count", "rt:*:unknown", "rt:*:paused", "rt:*:schedule",
    "rt:*:timetable", "rt:workers", "arq:abort",
)  # fmt: skip


def pytest_configure() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, workers are to ignore it


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for the whole run of pytest. A test may kill, pause or restart it; the next one finds it in order."""
    with Server() as server:
        yield server


@pytest.fixture
def redis_url(server: Server) -> str:
    """An empty server, on its unix socket."""
    server.flush()
    return server.url


@pytest.fixture
def tcp_url(server: Server) -> str:
    """The same, on TCP."""
    server.flush()
    return server.tcp_url


@pytest.fixture
def assert_keys_bounded() -> Callable[..., None]:
    """`assert_keys_bounded(url, *patterns)`: each key has a TTL, or is meant to have none (`patterns` names more)."""
    return _assert_keys_bounded


def _assert_keys_bounded(url: str, *patterns: str) -> None:
    with Redis.from_url(url, decode_responses=True) as redis:
        endless = [key for key in redis.scan_iter(count=1000) if redis.ttl(key) == -1]
        leaks = [
            key
            for key in endless
            if not any(fnmatchcase(key, pattern) for pattern in (*ENDLESS, *patterns))
            and not _is_queue(key, redis.type(key))
        ]
    assert not leaks, f"keys without a TTL that nothing ever removes: {sorted(leaks)}"


def _is_queue(key: str, kind: object) -> bool:
    """arq's queues may have any name; its other keys have none of this type without a TTL, except `arq:abort`."""
    return kind == "zset" and not key.startswith("rt:")
