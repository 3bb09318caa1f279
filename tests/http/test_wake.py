"""The doorbell makes an idle worker ask for jobs at once; rings that come together are passed on once and once more."""

from __future__ import annotations

import time

from redis import Redis

from tests.http.asking import TOKEN, site_of
from tests.http.jobs import QUEUE
from tests.processes import Worker, wait_until
from tests.servers import Server

EACH = 2
"""Claims for a ring: one ends the wait, and what was rung for may have been written after it."""


def test_a_ring_makes_an_idle_worker_ask_and_many_make_it_ask_twice(server: Server) -> None:
    with (
        Redis.from_url(server.url) as redis,
        Worker("tests.http.jobs", redis=server.url, arguments=("-Q", QUEUE), RUNTIME_HTTP="on", PORT=0).up() as worker,
    ):

        def claims() -> int:
            found: int = redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            return found

        site = site_of(worker)
        time.sleep(1)
        redis.config_resetstat()
        time.sleep(1.5)
        assert claims() == 0, "an idle worker looks, but asks for nothing"
        assert site.ask("POST", "/wake", headers=[]).code == 202
        wait_until(lambda: claims() == EACH)
        time.sleep(1.2)
        began = time.monotonic()
        assert {site.ask("POST", "/wake", headers=[]).code for _ in range(20)} == {202}
        rang_for_s = time.monotonic() - began
        wait_until(lambda: claims() >= 3 * EACH, what="the last ring is passed on too")
        time.sleep(1.2)
        assert claims() <= (3 + rang_for_s) * EACH


def test_a_job_that_comes_by_http_makes_the_worker_ask(server: Server) -> None:
    # It goes to a queue that this worker does not serve: so it is not the announcement that makes it ask.
    with (
        Redis.from_url(server.url, socket_timeout=10) as redis,
        Worker(
            "tests.http.jobs", redis=server.url, arguments=("-Q", QUEUE), RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN
        ).up() as worker,
    ):
        site = site_of(worker)
        time.sleep(1)
        site.enqueue("double", 1, queue="http:elsewhere")
        time.sleep(1.5)
        with redis.monitor() as monitor:
            site.enqueue("double", 1, queue="http:elsewhere")
            said: list[str] = []
            until = time.monotonic() + 20
            while len(said) < 2:
                assert time.monotonic() < until, said
                command = monitor.next_command()["command"]
                if command.startswith("EVALSHA "):
                    said.append(command)
        assert len([command for command in said if f" {QUEUE} " in command]) == 1


def test_a_ring_while_redis_is_away_changes_nothing() -> None:
    with (
        Server() as own,
        Worker("tests.http.jobs", redis=own.tcp_url, RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN).up() as worker,
    ):
        site = site_of(worker)
        own.kill()
        worker.wait_for("REDIS_AWAY")
        assert {site.ask("POST", "/wake", headers=[]).code for _ in range(5)} == {202}
        time.sleep(1.2)
        own.start()
        worker.wait_for("JOB_COMPLETED", job_id=site.enqueue("double", 1))
