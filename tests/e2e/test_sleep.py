"""A worker that falls silent: real processes, real sockets, looked at from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis import Redis

from runtime.adapters.redis import keys
from tests.arq_compat.test_interop import with_arq
from tests.e2e import jobs
from tests.platform.jobs import QUEUE as SLEEPER
from tests.platform.restless import Restless
from tests.processes import ROOT, Worker, enqueue, environment, status, wait_until
from tests.servers import Server

QUEUE = "arq:queue"
SLEEP = "5s"
TOKEN = "0123456789abcdef0123456789abcdef"


def runtime(url: str, *words: str) -> str:
    command = [sys.executable, "-m", "runtime", *words]
    done = subprocess.run(command, env=environment(REDIS_URL=url), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Sleeper:
    """A worker that goes quiet after five idle seconds."""

    def __init__(self, redis: str, **settings: Any) -> None:
        self.redis = redis
        self.worker = Worker(
            "tests.e2e.jobs", redis=redis, RUNTIME_HTTP="on", PORT=0, RUNTIME_SLEEP_AFTER=SLEEP,
            RUNTIME_TOKEN=TOKEN, **settings,
        )  # fmt: skip

    @cached_property
    def port(self) -> int:
        (line,) = self.worker.wait_for("HTTP_LISTENING")
        return int(line["message"].split()[-1])

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Connection": "close"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    @property
    def state(self) -> str:
        return str(self.ask("/health")["state"])

    def until_quiet(self) -> None:
        self.worker.wait_for("WORKER_QUIET", len(self.worker.events("WORKER_QUIET")) + 1)

    def counted(self) -> int:
        with Redis.from_url(self.redis) as redis:
            return int(redis.pubsub_numsub(keys.here(QUEUE))[0][1])

    def sockets(self) -> list[str]:
        """Its TCP sockets that are neither listening nor over."""
        fds = Path(f"/proc/{self.worker.pid}/fd")
        inodes = {_inode(link) for link in fds.iterdir()}
        lines = [
            line.split()
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/{self.worker.pid}/net/{table}").read_text().splitlines()[1:]
        ]
        return [f"{words[1]} {words[2]} {words[3]}" for words in lines if words[9] in inodes and words[3] != "0A"]


def _inode(link: Path) -> str | None:
    try:
        return link.readlink().name.removeprefix("socket:[").rstrip("]")
    except OSError:
        return None


@pytest.fixture
def sleeper(tcp_url: str) -> Iterator[Sleeper]:
    sleeping = Sleeper(tcp_url)
    with sleeping.worker as worker:
        worker.up()
        yield sleeping


def test_quiet_it_has_no_socket_and_health_opens_none(sleeper: Sleeper) -> None:
    (job_id,) = enqueue(sleeper.redis, jobs.add.request(1, 2))
    wait_until(lambda: status(sleeper.redis, job_id, QUEUE) == "completed")
    assert sleeper.sockets()
    assert sleeper.counted() == 1
    sleeper.until_quiet()
    wait_until(lambda: not sleeper.sockets(), 2.0)
    assert sleeper.counted() == 0
    for _ in range(3):
        document = sleeper.ask("/health")
        assert (document["state"], document["redis"], document["status"]) == ("quiet", "quiet", "healthy")
        assert sleeper.ask("/readyz") is not None
    time.sleep(2.5)  # longer than a probe is thought fresh
    assert sleeper.sockets() == []
    with Redis.from_url(sleeper.redis) as redis:
        (beat,) = [json.loads(value) for value in redis.hvals(keys.WORKERS)]
    assert (beat["state"], beat["next_due_ms"]) == ("quiet", None)
    assert "quiet" in runtime(sleeper.redis, "inspect", "sleep").splitlines()[1]
    assert "asleep" in runtime(sleeper.redis, "check", "--redis", "--any")
    assert sleeper.sockets() == []


@pytest.mark.parametrize("how", ["a ring", "a job over HTTP"])
def test_called_it_does_what_is_there_within_a_second_and_sleeps_again(sleeper: Sleeper, how: str) -> None:
    sleeper.until_quiet()
    began = time.monotonic()
    if how == "a ring":
        (job_id,) = enqueue(sleeper.redis, jobs.add.request(1, 2))
        sleeper.ask("/wake", "POST", b"")
    else:
        body = json.dumps({"handler": "add", "args": [1, 2]}).encode()
        job_id = sleeper.ask("/jobs", "POST", body)["jobId"]
    wait_until(lambda: status(sleeper.redis, job_id, QUEUE) == "completed")
    assert time.monotonic() - began < 3
    assert sleeper.counted() == 1
    sleeper.until_quiet()
    wait_until(lambda: not sleeper.sockets(), 2.0)


def test_with_an_alarm_it_sleeps_on_a_deferred_job_and_says_when_it_is_due(tcp_url: str) -> None:
    async def defer(pool: ArqRedis) -> None:
        await pool.enqueue_job("add", 1, 2, _defer_by=600)

    with_arq(tcp_url, defer)
    sleeping = Sleeper(tcp_url, RUNTIME_ALARM="5m")
    with sleeping.worker as worker, Redis.from_url(tcp_url) as redis:
        worker.up()
        sleeping.until_quiet()
        (beat,) = [json.loads(value) for value in redis.hvals(keys.WORKERS)]
        assert 500_000 < beat["next_due_ms"] - 1000 * redis.time()[0] < 601_000


def test_a_job_whose_handler_nobody_knows_keeps_nobody_awake_and_is_done_by_who_knows_it(tcp_url: str) -> None:
    async def ask(pool: ArqRedis) -> None:
        await pool.enqueue_job("add", 1, 2, _job_id="a", _queue_name=SLEEPER)

    settings: dict[str, Any] = {"redis": tcp_url, "RUNTIME_HTTP": "on", "PORT": 0}
    with Restless("tests.platform.jobs", **settings).up() as worker:
        worker.wait_for("HTTP_LISTENING")
        with_arq(tcp_url, ask)
        worker.wait_for("JOB_RELEASED", job_id="a")
        worker.wait_for("WORKER_QUIET", len(worker.events("WORKER_QUIET")) + 1)
        assert status(tcp_url, "a", SLEEPER) == "deferred"
        with Worker("tests.e2e.jobs", redis=tcp_url, arguments=("-Q", SLEEPER)).up():
            wait_until(lambda: status(tcp_url, "a", SLEEPER) == "completed")
        assert worker.running


@pytest.mark.parametrize("moment", ["as it goes down", "quiet"])
def test_told_to_stop_it_stops_at_once(sleeper: Sleeper, moment: str) -> None:
    sleeper.until_quiet()
    if moment == "as it goes down":
        sleeper.ask("/wake", "POST", b"")
        sleeper.until_quiet()
    assert sleeper.worker.stop() == 0
    with Redis.from_url(sleeper.redis) as redis:
        assert not redis.exists(keys.WORKERS)


def test_who_is_told_to_stop_is_not_counted_while_its_jobs_end(tcp_url: str) -> None:
    with Sleeper(tcp_url).worker as worker, Redis.from_url(tcp_url) as redis:

        def counted() -> int:
            return int(redis.pubsub_numsub(keys.here("ai-jobs"))[0][1])

        worker.up()
        (job_id,) = enqueue(tcp_url, jobs.generate.request(4.0))
        wait_until(lambda: status(tcp_url, job_id, "ai-jobs") == "active")
        wait_until(lambda: counted() == 1)
        worker.send(signal.SIGTERM)
        wait_until(lambda: counted() == 0, 2.0)
        assert status(tcp_url, job_id, "ai-jobs") == "active"
        assert worker.wait() == 0
        assert status(tcp_url, job_id, "ai-jobs") == "completed"


def test_redis_may_be_gone_while_it_sleeps_and_come_back(sleeper: Sleeper, server: Server) -> None:
    sleeper.until_quiet()
    server.restart()
    assert sleeper.state == "quiet"
    (job_id,) = enqueue(sleeper.redis, jobs.add.request(1, 2))
    sleeper.ask("/wake", "POST", b"")
    wait_until(lambda: status(sleeper.redis, job_id, QUEUE) == "completed")
