"""`runtime wake`, run as a cron service runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.payload import to_json
from runtime.adapters.redis import keys
from runtime.adapters.redis.heartbeats import LIVE_S
from tests.e2e.waking import Door, enqueue_by_arq, somebody_awake
from tests.processes import command
from tests.redis.test_heartbeats import BEAT

NOBODY = "redis://127.0.0.1:1/0"
ON_ARQ_QUEUE = ("-Q", "arq:queue")


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as door:
        yield door


def wake(door: Door, url: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return command("wake", *arguments, REDIS_URL=url, RUNTIME_WAKE_URL=door.url, **settings)


def test_it_rings_and_asks_no_redis(door: Door) -> None:
    done = wake(door, NOBODY)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{door.url}: awake\n", "")
    assert len(door.rung_at) == 1


def test_it_rings_if_a_job_is_due(door: Door, redis_url: str) -> None:
    done = wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "arq:queue: nothing is due; nobody is awake\nnobody has to be woken\n"
    assert not door.rung_at
    enqueue_by_arq(redis_url)
    done = wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE)
    assert done.returncode == 0
    assert done.stdout == f"arq:queue: jobs are due; nobody is awake\n{door.url}: awake\n"
    assert len(door.rung_at) == 1


def test_it_leaves_the_future_and_those_who_are_awake_alone(door: Door, redis_url: str) -> None:
    enqueue_by_arq(redis_url, _defer_by=90)
    done = wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE)
    assert "nothing is due, the next in 1 m" in done.stdout
    enqueue_by_arq(redis_url)
    with somebody_awake(redis_url):
        done = wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE)
    assert done.returncode == 0
    assert "somebody is awake\nnobody has to be woken" in done.stdout
    assert not door.rung_at


@pytest.mark.parametrize(
    ("beat_ago_s", "state"), [(LIVE_S + 1, "awake"), (0.0, "quiet")], ids=["vanished", "left unheard"]
)
def test_who_is_still_counted_though_he_is_gone_does_not_keep_it_from_ringing(
    door: Door, redis_url: str, beat_ago_s: float, state: str
) -> None:
    """A host that vanishes says nothing to the server, which counts its worker for minutes."""
    enqueue_by_arq(redis_url)
    with somebody_awake(redis_url, beat_ago_s=beat_ago_s, state=state):
        done = wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE)
    assert done.returncode == 0
    assert "jobs are due; nobody is awake" in done.stdout
    assert len(door.rung_at) == 1


def test_one_queue_that_calls_is_enough(door: Door, redis_url: str) -> None:
    enqueue_by_arq(redis_url)
    enqueue_by_arq(redis_url, queue="other")
    with somebody_awake(redis_url):
        assert wake(door, redis_url, "--if-due", *ON_ARQ_QUEUE, "-Q", "other").returncode == 0
    assert len(door.rung_at) == 1


def test_without_names_it_looks_at_the_handlers_queues(door: Door, redis_url: str) -> None:
    enqueue_by_arq(redis_url, queue="judit")
    done = wake(door, redis_url, "--if-due")
    assert done.stdout.startswith("ai-jobs: nothing is due; nobody is awake\njudit: jobs are due; nobody is awake\n")
    assert len(door.rung_at) == 1


def test_without_handlers_it_looks_at_the_queues_of_workers_that_sleep(
    door: Door, redis_url: str, tmp_path: Path
) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.hset(keys.WORKERS, "a-1", to_json(replace(BEAT, state="quiet")).decode())
    enqueue_by_arq(redis_url, queue="exports")
    (tmp_path / "pyproject.toml").write_text('[tool.runtime]\nhandlers = ["app.jobs"]\n')
    done = wake(door, redis_url, "--if-due", folder=tmp_path)
    assert "no handlers here (there is no module 'app.jobs')" in done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:3]] == ["ai-jobs", "arq", "exports"]
    assert len(door.rung_at) == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        ((), {"RUNTIME_WAKE_URL": ""}, 78, "RUNTIME_WAKE_URL is not set"),
        ((), {"RUNTIME_WAKE_URL": "worker"}, 78, "must be the address of a worker's /wake"),
        (("--url", "http://worker"), {}, 2, "--url must be the address of a worker's /wake"),
        (("-Q", "jobs"), {}, 2, "--if-due"),
        (("--if-due", "-Q", "jobs"), {}, 69, "cannot reach Redis at redis://127.0.0.1:1"),
    ],
    ids=["no address", "bad address", "bad --url", "-Q alone", "no Redis"],
)
def test_what_is_wrong_is_told(arguments: tuple[str, ...], settings: dict[str, Any], code: int, said: str) -> None:
    done = command(
        "wake", *arguments, **{"REDIS_URL": NOBODY, "RUNTIME_WAKE_URL": "http://127.0.0.1:1/wake", **settings}
    )
    assert done.returncode == code
    assert said in done.stderr


def test_an_address_that_refuses_is_told_and_is_75() -> None:
    with Door(status=403) as door, Door() as other:
        done = wake(door, NOBODY, RUNTIME_LEASE="10s")
        assert (done.returncode, done.stdout) == (75, f"{door.url}: status 403\n")
        done = wake(door, NOBODY, "--url", f"{door.url},{other.url}")
        assert done.returncode == 75, "all are to answer: each may be that of another queue"
        assert f"{other.url}: awake" in done.stdout
