"""Hand-over races: a job at every millisecond of going quiet. See `handover`.

RUNTIME_TEST_SLEEP=all makes of some dozens of runs more than a thousand.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.platform import handover
from tests.platform.handover import Lane
from tests.platform.jobs import QUEUE
from tests.servers import Server

Producer = Callable[[Lane, Sequence[int]], Awaitable[None]]

ALL = os.environ.get("RUNTIME_TEST_SLEEP") == "all"
LANES: dict[Producer, tuple[int, int]] = {
    handover.client_rings: (6, 167) if ALL else (4, 10),
    handover.sentinel_rings: (1, 120) if ALL else (1, 4),
    handover.alarm_rings: (1, 80) if ALL else (1, 3),
    handover.client_rings_who_is_killed: (1, 120) if ALL else (1, 4),
}
"""So many workers side by side, and so many jobs for each."""
FROM_MS, TO_MS = -15, 25
"""The window around the moment at which a worker is expected to leave: it takes some 3 ms until all is closed."""


def offsets_ms(first: int, count: int) -> list[int]:
    """Every millisecond of the window in turn, far apart from each other."""
    return [FROM_MS + n * 37 % (TO_MS - FROM_MS) for n in range(first, first + count)]


@pytest.mark.timeout(1800)
def test_each_job_runs_once_and_soon_whenever_it_comes(
    tmp_path: Path, assert_keys_bounded: Callable[..., None]
) -> None:
    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for producer, (count, runs) in LANES.items():
                for n in range(count):
                    server = servers.enter_context(Server())
                    with Redis.from_url(server.url) as redis:
                        redis.config_set("notify-keyspace-events", "K$")
                    lane = Lane(f"{producer.__name__}-{n}", server, tmp_path)
                    lanes.append((producer, lane))
                    group.create_task(producer(lane, offsets_ms(n * runs, runs)))  # type: ignore[arg-type]

    lanes: list[tuple[Producer, Lane]] = []
    with ExitStack() as servers:
        asyncio.run(all_of_them())
        for producer in LANES:
            runs = [run for its, lane in lanes if its is producer for run in lane.runs]
            print(f"\n{producer.__name__}, {len(runs)} jobs\n{handover.table(runs)}")
        runs = [run for _, lane in lanes for run in lane.runs]
        assert len(runs) == sum(count * jobs for count, jobs in LANES.values())
        assert not [run.fault for run in runs if run.fault]
        for _, lane in lanes:
            with Redis.from_url(lane.server.url) as redis:
                assert (redis.zcard(QUEUE), redis.zcard(keys.later(QUEUE))) == (0, 0)
            assert_keys_bounded(lane.server.url)
