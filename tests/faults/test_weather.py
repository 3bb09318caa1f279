"""Whatever Redis does, it is weather: the worker lives, says so, says it to who asks, and goes on when it is over.

Each weather meets an idle worker and a busy one. `make weather` tries them all, the default suite the `QUICK` ones. The
campaign (`tests/campaign/store.py`, `network.py`) goes through the same with more workers, for longer, and beside arq.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from runtime.adapters.redis.scripts import script
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger, executions
from tests.processes import ROOT, Worker, enqueue, wait_until, workers
from tests.relay import Command, Relay
from tests.servers import Server

TOLD_S = 5.0
"""How soon `/health` tells, and how soon work goes on once the weather is over."""
SLACK_S = 3.0
"""What a machine that is busy with other things may add."""
LASTS_S = 7.0
"""Longer than half a lease: owners go first after it, which is the slower way back."""
ONCE_IN_S = 9.9


@dataclass
class Scene:
    server: Server
    relay: Relay
    admin: Any
    """A connection that goes past the relay, and was there before the weather."""

    def drop_clients(self) -> None:
        """Everybody but us has to connect again."""
        self.admin.client_kill_filter(_type="normal", skipme=True)


@dataclass(frozen=True)
class Case:
    """A weather: how it begins and ends, and what must be said of it. `password` is what the workers have."""

    begin: Callable[[Scene], object]
    end: Callable[[Scene], object]
    says: str
    password: str = ""
    idle_only: bool = False
    """A busy worker has no use for what is refused."""


def said(error: str, says: str) -> Case:
    """The server says this to everything."""
    return Case(lambda scene: scene.relay.answer(error), lambda scene: scene.relay.answer(""), says)


def configured(says: str, password: str = "", **settings: object) -> Case:
    """The server is configured so, and every client has to connect again; then it is as before."""
    before: dict[str, Any] = {}

    def begin(scene: Scene) -> None:
        for name, value in settings.items():
            before[name] = scene.admin.config_get(name)[name]
            scene.admin.config_set(name, value)
        scene.drop_clients()

    def end(scene: Scene) -> None:
        for name, value in before.items():
            scene.admin.config_set(name, value)

    return Case(begin, end, says, password)


def permitted(rules: str, *, idle_only: bool = False) -> Case:
    return Case(
        lambda scene: scene.admin.execute_command("ACL", "SETUSER", "default", rules),
        lambda scene: scene.admin.execute_command("ACL", "SETUSER", "default", "+@all"),
        "NOPERM",
        idle_only=idle_only,
    )


def replica(says: str, *, stale: str) -> Case:
    def begin(scene: Scene) -> None:
        scene.admin.config_set("replica-serve-stale-data", stale)
        scene.admin.execute_command("REPLICAOF", "127.0.0.1", "1")

    return Case(begin, lambda scene: scene.admin.execute_command("REPLICAOF", "NO", "ONE"), says)


def _keep_busy(scene: Scene) -> None:
    """A script without an end, from another client."""
    scene.admin.config_set("busy-reply-threshold", 100)

    def run() -> None:
        with Redis.from_url(scene.server.url) as redis, suppress(RedisError):
            redis.eval("while true do end", 0)

    threading.Thread(target=run, daemon=True).start()


CASES: dict[str, Case] = {
    "restart": Case(lambda scene: scene.server.kill(), lambda scene: scene.server.start(), "refused|closed|reset"),
    "swallowed": Case(lambda scene: scene.relay.swallow(), lambda scene: scene.relay.let_through(), "no answer"),
    "stopped": Case(lambda scene: scene.server.pause(), lambda scene: scene.server.resume(), "no answer"),
    "paused": Case(
        lambda scene: scene.admin.execute_command("CLIENT", "PAUSE", 60_000, "ALL"),
        lambda scene: scene.admin.execute_command("CLIENT", "UNPAUSE"),
        "no answer",
    ),
    "writes paused": Case(
        lambda scene: scene.admin.execute_command("CLIENT", "PAUSE", 60_000, "WRITE"),
        lambda scene: scene.admin.execute_command("CLIENT", "UNPAUSE"),
        "no answer",
    ),
    "busy": Case(_keep_busy, lambda scene: scene.admin.execute_command("SCRIPT", "KILL"), "BUSY|no answer"),
    "out of memory": Case(
        lambda scene: scene.admin.config_set("maxmemory", 1),
        lambda scene: scene.admin.config_set("maxmemory", 0),
        "OOM",
    ),
    "a replica": replica("READONLY", stale="yes"),
    "a replica alone": replica("MASTERDOWN", stale="no"),
    "too few replicas": Case(
        lambda scene: scene.admin.config_set("min-replicas-to-write", 1),
        lambda scene: scene.admin.config_set("min-replicas-to-write", 0),
        "NOREPLICAS",
    ),
    "no scripts": permitted("-@scripting"),
    "no blocking": permitted("-bzpopmin", idle_only=True),
    "password wanted": configured("NOAUTH", requirepass="secret-one"),
    "password changed": configured("wrong password", requirepass="secret-two", password="secret-one"),
    "too many clients": configured("too many clients|reset|closed", maxclients=1),
    "unblocked": said("UNBLOCKED force unblock from blocking operation, instance state changed", "READONLY"),
    "too many clients, said": said("ERR max number of clients reached", "too many clients"),
    "no reading either": permitted("-@read"),
    "loading": said("LOADING Redis is loading the dataset in memory", "LOADING"),
    "cannot save": said("MISCONF Redis is configured to save RDB snapshots, but cannot persist to disk.", "MISCONF"),
    "cluster down": said("CLUSTERDOWN The cluster is down", "CLUSTERDOWN"),
    "moved": said("MOVED 3999 10.0.0.7:6381", "MOVED"),
    "quota of a day": said(
        "ERR max daily request limit exceeded. Limit: 10000, Usage: 10001. See https://upstash.com/docs",
        "quota of requests",
    ),
    "quota of connections": said("ERR max concurrent connections exceeded", "limit of connections"),
    "quota of memory": said("ERR DB capacity quota exceeded", "quota of memory"),
    "quota": said("ERR max requests limit exceeded. Limit: 500000, Usage: 500000.", "quota of requests"),
}
QUICK = ("restart", "out of memory")
ALL = os.environ.get("RUNTIME_TEST_WEATHER") == "all"
CHOSEN = CASES if ALL else QUICK


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with (
        Server(data=tmp_path) as server,
        Relay(server.url.removeprefix("unix://")) as relay,
        Redis.from_url(server.url, decode_responses=True) as admin,
    ):
        yield Scene(server, relay, admin)


@contextmanager
def crew(scene: Scene, ledger: Ledger, *queues: str, password: str = "", slots: int = 3) -> Iterator[list[Worker]]:
    """A worker for each of these queues, well and ready."""
    url = scene.relay.url.replace("redis://", f"redis://:{password}@" if password else "redis://")
    settings: dict[str, Any] = {"slots": slots, "RUNTIME_HTTP": "on", "PORT": 0}
    with workers(campaign.worker(url, ledger, arguments=("-Q", queue), **settings) for queue in queues) as made:
        for worker in made:
            worker.start()
        for worker in made:
            worker.wait_for("HTTP_LISTENING")
            wait_until(lambda worker=worker: get(worker, "/readyz")[0] == 200)  # type: ignore[misc]
        yield made


def get(worker: Worker, path: str) -> tuple[int, dict[str, Any]]:
    port = int(worker.events("HTTP_LISTENING")[-1]["message"].rpartition(" ")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def tells(worker: Worker, says: str) -> bool:
    health = get(worker, "/health")[1]
    if health["redis"] == "connected":
        return False
    assert (health["redis"], health["status"], health["checks"]["redis"]["healthy"]) == (
        "disconnected",
        "degraded",
        False,
    )
    code, readiness = get(worker, "/readyz")
    causes = (health["checks"]["redis"]["message"], readiness.get("reason", ""))
    return code == 503 and all(re.search(says, cause) for cause in causes)


def works(worker: Worker) -> bool:
    return get(worker, "/health")[1]["status"] == "healthy" and get(worker, "/readyz")[0] == 200


def work(url: str, length_s: float, queue: str) -> str:
    return enqueue(url, jobs.work.options(queue=queue).request(length_s))[0]


def done(ledger: Ledger) -> set[str]:
    return {line.job for line in ledger.lines() if line.what == "end"}


def results(url: str) -> set[str]:
    return {job for job, result in campaign.results(url).items() if result.ok}


def assert_one_line_for_each_cause(worker: Worker) -> None:
    told: dict[str, list[float]] = {}
    for line in worker.events("REDIS_AWAY"):
        cause = line["message"].rpartition(": ")[2]
        told.setdefault(cause, []).append(datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp())
    for cause, moments in told.items():
        for before, after in pairwise(moments):
            assert after - before > ONCE_IN_S, f"{cause} twice within {after - before:.1f} s"
    assert told


def assert_nothing_lost(ledger: Ledger, url: str, given: Sequence[str]) -> None:
    """Each ran once, in its first attempt, and has its result; nothing is held, no attempt kept against anybody."""
    wait_until(lambda: results(url) >= set(given), what="every outcome is recorded")
    runs = executions(ledger.lines())
    assert {job: len(runs.get(job, ())) for job in given} == dict.fromkeys(given, 1)
    assert {(line.attempt, line.crashes) for line in ledger.starts()} == {(1, 0)}
    assert campaign.attempts_kept(url) == {}
    assert campaign.letters(url) == {}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_weather_is_told_ridden_out_and_costs_nothing(scene: Scene, ledger: Ledger, name: str) -> None:
    case, url = CASES[name], scene.server.url
    if case.password:
        scene.admin.config_set("requirepass", case.password)
        url = url.replace("unix://", f"unix://:{case.password}@")
    with crew(scene, ledger, "idle", "busy", password=case.password) as (idle, busy):
        # Of the busy one's jobs two end in the bad weather, and one goes on beyond it; more wait in the queue.
        given = [work(url, length_s, "busy") for length_s in (1.5, 3.0, LASTS_S + 3, 0.2, 0.2)]
        wait_until(lambda: len(ledger.starts()) >= 3)
        case.begin(scene)
        began = time.monotonic()
        took = []
        concerned = (idle,) if case.idle_only else (idle, busy)
        for worker in concerned:
            wait_until(lambda: tells(worker, case.says), TOLD_S + SLACK_S, f"{name} is told: {get(worker, '/health')}")  # noqa: B023
            took.append(time.monotonic() - began)
        time.sleep(max(0.0, LASTS_S - (time.monotonic() - began)))
        for worker in concerned:
            assert worker.running
            assert not works(worker)
        case.end(scene)
        over = time.monotonic()
        given.append(work(url, 0.0, "idle"))
        wait_until(lambda: given[-1] in done(ledger), TOLD_S + SLACK_S, "the idle one goes on")
        took.append(time.monotonic() - over)
        wait_until(lambda: done(ledger) >= {given[3], given[4]}, TOLD_S + SLACK_S, "the busy one goes on")
        took.append(time.monotonic() - over)
        wait_until(lambda: works(idle) and works(busy), TOLD_S + SLACK_S)
        assert_nothing_lost(ledger, url, given)
        for worker in concerned:
            assert_one_line_for_each_cause(worker)
            (back,) = worker.wait_for("REDIS_BACK")
            assert back["duration_ms"] > 1000 * (LASTS_S - TOLD_S - 1)
        for worker in (idle, busy):
            assert worker.events("ACTOR_CRASH") == []
            assert "secret" not in worker.output()
            assert worker.stop() == 0
            assert worker.errors() == ""
    print(f"\n{name}: told, and on again, after {', '.join(f'{seconds:.1f}' for seconds in took)} s")


def test_an_idle_worker_gets_over_a_connection_that_is_dead_and_does_not_know(scene: Scene, ledger: Ledger) -> None:
    """A new connection would work at once; the question of who asks for its health makes it notice."""
    with crew(scene, ledger, "idle") as (idle,):
        scene.relay.strand()
        job = work(scene.server.url, 0.0, "idle")
        stranded = time.monotonic()
        wait_until(lambda: get(idle, "/health") and job in done(ledger), TOLD_S + SLACK_S)
        print(f"\non again after {time.monotonic() - stranded:.1f} s")
        assert_nothing_lost(ledger, scene.server.url, [job])
        wait_until(lambda: works(idle))


def test_outcomes_that_are_refused_are_kept_and_health_does_not_flap(scene: Scene, ledger: Ledger) -> None:
    """Claims are granted all the while, and every question whether the server is there."""
    with crew(scene, ledger, "busy") as (busy,):
        sha = script("settle").sha.encode()

        def settles(command: Command) -> bool:
            return command[:2] == [b"EVALSHA", sha] or (command[0] == b"EVAL" and b"thirteen for each" in command[1])

        scene.relay.answer("READONLY You can't write against a read only replica.", settles)
        given = [work(scene.server.url, 0.1, "busy") for _ in range(5)]
        wait_until(lambda: tells(busy, "^settle: .*READONLY"))
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert tells(busy, "READONLY")
            time.sleep(0.05)
        wait_until(lambda: done(ledger) == set(given))
        assert results(scene.server.url) == set()
        scene.relay.answer("")
        wait_until(lambda: results(scene.server.url) == set(given), TOLD_S + SLACK_S)
        wait_until(lambda: works(busy))
        assert_nothing_lost(ledger, scene.server.url, given)
        assert_one_line_for_each_cause(busy)
        assert len(busy.events("REDIS_BACK")) == 1


def test_a_wrong_password_at_the_start_is_waited_for(scene: Scene, ledger: Ledger) -> None:
    scene.admin.config_set("requirepass", "another-one")
    url = scene.relay.url.replace("redis://", "redis://:secret-one@")
    with campaign.worker(url, ledger, RUNTIME_HTTP="on", PORT=0).up() as worker:
        worker.wait_for("HTTP_LISTENING")
        wait_until(lambda: tells(worker, "wrong password"))
        scene.admin.config_set("requirepass", "secret-one")
        wait_until(lambda: works(worker), TOLD_S + SLACK_S)
        assert len(worker.wait_for("REDIS_BACK")) == 1
        assert "secret" not in worker.output()


def test_health_asks_redis_seldom_and_nobody_else_does(scene: Scene, ledger: Ledger) -> None:
    with crew(scene, ledger, "idle") as (idle,):

        def asked() -> int:
            return int(scene.admin.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))

        first, until = asked(), time.monotonic() + 3.5
        while time.monotonic() < until:
            get(idle, "/health")
        assert asked() - first <= 3
        first = asked()
        time.sleep(3.5)
        assert asked() == first


BUSY = pytest.mark.parametrize("keep_busy", [jobs.keep_the_threads_busy, jobs.keep_the_look_ups_busy])


@BUSY
def test_handlers_that_keep_all_threads_busy_do_not_keep_redis_away(
    server: Server, ledger: Ledger, keep_busy: Any
) -> None:
    """Its name has to be looked up again, and asyncio has few threads for that and for them."""
    server.flush()
    url = server.tcp_url.replace("127.0.0.1", "localhost")
    with campaign.worker(url, ledger).up(), Redis.from_url(server.url) as redis:
        (busy,) = enqueue(server.url, keep_busy.request(60.0))
        wait_until(lambda: ledger.starts(busy))
        assert redis.client_kill_filter(_type="normal", skipme=True)  # told or not: an idle one is opened again unseen
        (job,) = enqueue(server.url, jobs.work.request(0.0))
        wait_until(lambda: campaign.results(server.url), TOLD_S + SLACK_S)
        assert campaign.results(server.url)[job].ok


@BUSY
def test_handlers_that_keep_all_threads_busy_do_not_keep_the_worker_from_its_port(
    redis_url: str, ledger: Ledger, keep_busy: Any
) -> None:
    """What serves it is imported in a thread, when the first jobs have begun."""
    enqueue(redis_url, keep_busy.request(60.0))
    with campaign.worker(redis_url, ledger, RUNTIME_HTTP="on", PORT=0).up() as worker:
        assert worker.wait_for("HTTP_LISTENING", timeout_s=TOLD_S + SLACK_S)


def test_a_name_server_that_is_silent_does_not_keep_the_worker_from_its_port(tmp_path: Path, ledger: Ledger) -> None:
    """Platforms end what does not answer there: each queue of its own looks for Redis by itself, and waits."""
    (tmp_path / "silent.py").write_text(
        "import socket, time\nusual = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *args: time.sleep(60) if host == 'redis.invalid' else usual(host, *args)\n"
    )
    queues = [word for n in range(6) for word in ("-Q", f"q{n}=1")]
    worker = campaign.worker(
        "redis://redis.invalid:6379", ledger, modules=(campaign.MODULE, "silent"), arguments=queues,
        RUNTIME_HTTP="on", PORT=0, PYTHONPATH=f"{ROOT}:{tmp_path}",
    )  # fmt: skip
    with worker.start():
        assert worker.wait_for("HTTP_LISTENING", timeout_s=TOLD_S + SLACK_S)
        assert worker.stop() == 0
