"""What a worker imports before its first job: a process that was just woken has a job waiting, and no time."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from runtime import connect
from tests.e2e.began import QUEUE, imported, tell
from tests.processes import START_S, Worker, wait_until
from tests.servers import Server

TOO_EARLY = {
    "aiohttp": "a quarter of a second and 12 MB: after the first look for jobs",
    "structlog": "our own lines do without: after the first look for jobs",
    "runtime.retinue": "what no job waits for: likewise",
    "runtime.bulletins": "comes with it",
    "runtime.health": "likewise",
    "runtime.silence": "likewise",
    "runtime.engine.governor": "likewise",
    "runtime.core.lifecycle": "likewise",
    "runtime.adapters.redis.heartbeats": "likewise",
    "runtime.adapters.redis.presence": "likewise",
    "runtime.desk": "comes with the HTTP server",
    "runtime.adapters.http.server": "likewise",
    "arq": "its format is ours, its code is not needed",
    "click": "comes with arq",
    "opentelemetry": "only where traces are wanted",
    "google.protobuf": "likewise",
    "requests": "likewise",
    "runtime.adapters.embedded": "only where no Redis is configured",
    "runtime.adapters.redis.inspector": "for commands",
    "runtime.adapters.sentinel": "for commands",
    "runtime.core.alarm": "for commands, and for whoever wakes others",
    "pydantic": "installed beside us for other things",
    "difflib": "only for mistakes",
    "tomllib": "only where no module is named",
    "unittest": "for tests",
    "multiprocessing": "nobody's",
}


def imported_by_its_first_job(tcp_url: str, **settings: Any) -> set[str]:
    """The modules of a worker's process when a job began that waited for its start."""

    async def enqueue() -> None:
        async with connect(tcp_url):
            await imported.options(key="first").enqueue()

    async def result() -> list[str]:
        async with connect(tcp_url) as client:
            found: Any = await client.result("imported:first", QUEUE, START_S)
            return [str(name) for name in found.value]

    asyncio.run(enqueue())
    with Worker("tests.e2e.began", redis=tcp_url, **settings) as worker:
        worker.start()
        return set(asyncio.run(result()))


def test_nothing_is_imported_before_the_first_job_that_it_does_not_need(tcp_url: str) -> None:
    found = imported_by_its_first_job(tcp_url)
    assert "runtime.engine.slots" in found  # the names are those of modules
    assert {name: why for name, why in TOO_EARLY.items() if name in found} == {}


def test_the_http_server_is_imported_after_the_first_look_for_jobs(server: Server) -> None:
    for _ in range(3):  # it does not wait for ever: on a machine that is busy with other things it may be there
        server.flush()
        found = imported_by_its_first_job(server.tcp_url, RUNTIME_HTTP="on", PORT=0)
        if "aiohttp" not in found:
            return
    raise AssertionError("aiohttp was there before the first job, three times")


def test_a_handler_that_imports_structlog_late_writes_the_same_lines(tcp_url: str) -> None:
    async def enqueue() -> None:
        async with connect(tcp_url):
            await tell.options(key="late").enqueue()

    asyncio.run(enqueue())
    with Worker("tests.e2e.began", redis=tcp_url) as worker:  # without the HTTP server, whose parts come later still
        worker.start()
        wait_until(lambda: worker.events("TOLD_LATE"), what="the handler's line")
        (line,) = worker.events("TOLD_LATE")
        assert (line["level"], line["message"], line["job_id"]) == ("info", "told late", "tell:late")
        assert "hunter2" not in worker.output()


def test_a_worker_that_is_stopped_before_its_first_look_ends_well_and_says_that_it_was_there() -> None:
    with Worker("tests.e2e.began", redis="redis://127.0.0.1:9/0") as worker:
        worker.start()
        wait_until(lambda: worker.events("REDIS_AWAY"), what="a look in vain")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        told = [line["event"] for line in worker.lines()]
        assert told.index("WORKER_BOOT") < told.index("WORKER_DRAINING") < told.index("WORKER_SHUTDOWN")


def test_a_worker_warns_at_its_start_of_a_server_that_deletes_jobs() -> None:
    with Server(options=["--maxmemory-policy", "allkeys-lru"]) as server, Worker(redis=server.url) as worker:
        worker.start()
        wait_until(lambda: "REDIS_EVICTS" in worker.output())
        assert "allkeys-lru" in worker.output()
