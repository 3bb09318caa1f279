from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.http.asking import TOKEN, Site, site_of
from tests.processes import Worker
from tests.servers import Server


@pytest.fixture(scope="package")
def redis(server: Server) -> Iterator[Redis]:
    server.flush()
    with Redis.from_url(server.url, decode_responses=True) as redis:
        yield redis


@pytest.fixture(scope="package")
def worker(server: Server, redis: Redis) -> Iterator[Worker]:
    """A worker with the job API and two tokens, for all tests here that do it no harm."""
    with Worker(
        "tests.http.jobs", redis=server.url, RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=f"{TOKEN}, {TOKEN[::-1]}"
    ) as worker:
        yield worker.up()


@pytest.fixture
def site(worker: Worker) -> Site:
    return site_of(worker)
