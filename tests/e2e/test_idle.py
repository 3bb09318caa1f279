"""A worker that is awake and has nothing to do: what it sends, and what it hears."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from tests.e2e.waking import enqueue_by_arq
from tests.processes import Worker, wait_until
from tests.servers import Server

YOUNG_S = 20.0
WINDOW_S = 30.0
MOST_A_MINUTE = 10


@pytest.fixture
def own() -> Iterator[Server]:
    with Server() as server:
        yield server


def commands(redis: Any) -> dict[str, int]:
    stats: dict[str, Any] = redis.info("commandstats")
    return {name[8:]: row["calls"] for name, row in stats.items() if name != "cmdstat_info"}


def test_an_idle_worker_sends_ten_commands_a_minute_at_most(own: Server) -> None:
    with (
        Redis.from_url(own.url, decode_responses=True) as redis,
        Worker("tests.e2e.jobs", redis=own.tcp_url, arguments=("-Q", "arq:queue")) as worker,
    ):
        worker.up()
        time.sleep(YOUNG_S)
        before = commands(redis)
        time.sleep(WINDOW_S)
        sent = {name: calls - before.get(name, 0) for name, calls in commands(redis).items()}
        sent = {name: calls for name, calls in sent.items() if calls}
        # What comes every minute or half minute may fall into the window, or beside it.
        assert sum(sent.values()) <= MOST_A_MINUTE * WINDOW_S / 60 + 3, sent
        assert set(sent) <= {"zrange", "bzpopmin", "hset", "set"}


def test_a_job_of_stock_arq_is_taken_at_once_where_the_server_tells_of_it(own: Server) -> None:
    with (
        Redis.from_url(own.url, decode_responses=True) as redis,
        Worker("tests.e2e.jobs", redis=own.tcp_url, arguments=("-Q", "arq:queue")) as worker,
    ):
        redis.config_set("notify-keyspace-events", "K$")
        worker.up()
        time.sleep(6)  # by now it looks every 11 s, as it hears
        for _ in range(3):
            time.sleep(1)
            at = time.monotonic()
            enqueue_by_arq(own.url)
            wait_until(lambda: not redis.zcard("arq:queue"), 10, "the job is done")
            assert time.monotonic() - at < 1
