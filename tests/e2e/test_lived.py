"""The state that handlers share, and handlers of each kind, in real workers that are stopped, timed out and asleep."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.actor import STOP_GRACE_S
from tests.e2e import lived
from tests.e2e.lived import DOOR, OPENING, QUEUE, WITNESS
from tests.e2e.test_documents import ask, port_of
from tests.processes import Worker, command, enqueue, status, wait_until
from tests.servers import Server

TOKEN = "0123456789abcdef0123456789abcdef"


class Witness:
    """What the handlers have noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def said(self) -> list[str]:
        return self.path.read_text().splitlines()

    def says(self, *what: str) -> None:
        wait_until(lambda: all(word in self.said for word in what), what=f"{what} of {self.said}")


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness")


@pytest.fixture
def serving(redis_url: str, witness: Witness) -> Callable[..., Worker]:
    def make(**settings: Any) -> Worker:
        settings = {"WORKER_CONCURRENCY": 4, WITNESS: witness.path, **settings}
        return Worker("tests.e2e.lived", redis=redis_url, arguments=("-Q", QUEUE), **settings)

    return make


Serving = Callable[..., Worker]


# The state.


def test_it_is_opened_before_the_first_claim_and_closed_after_the_last_run(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    (job,) = enqueue(redis_url, lived.loop.request(1.0))
    with serving(**{OPENING: "1"}).start() as worker:
        witness.says("opening")
        assert status(redis_url, job, QUEUE) == "waiting"
        witness.says("loop begins with shared")
        assert worker.stop() == 0
        assert witness.said == ["opening", "open", "loop begins with shared", "loop ends", "closed"]
        assert worker.events("JOB_COMPLETED", job_id=job)
        assert worker.errors() == ""


@pytest.mark.parametrize(("how", "error"), [("fails", "ConnectionRefusedError: no database here"), ("exits", "3")])
def test_a_worker_that_cannot_open_it_ends_and_says_where_and_why(
    redis_url: str, witness: Witness, serving: Serving, how: str, error: str
) -> None:
    (job,) = enqueue(redis_url, lived.loop.request(0))
    with serving(**{OPENING: how}).start() as worker:
        assert worker.wait() == 1
        (crash,) = worker.events("WORKER_CRASH")
        assert "the lifespan 'resources' at" in crash["message"]
        assert f"{lived.__file__}:" in crash["message"]
        assert crash["message"].endswith(f"could not be opened; {'SystemExit: ' if how == 'exits' else ''}{error}")
        assert not worker.events("JOB_STARTED")
    assert status(redis_url, job, QUEUE) == "waiting"
    assert witness.said == ["opening"]


def test_a_state_that_ends_by_itself_ends_the_worker_which_gives_its_jobs_back(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    (job,) = enqueue(redis_url, lived.loop.request(60))
    with serving(**{OPENING: "breaks"}).start() as worker:
        assert worker.wait() == 1
        (crash,) = worker.events("WORKER_CRASH")
        assert "ended by itself" in crash["message"]
        assert "ConnectionResetError" in json.dumps(crash)
        (back,) = worker.events("JOB_RELEASED", job_id=job)
        assert back["attempt"] == 1
    assert status(redis_url, job, QUEUE) == "waiting"


@pytest.mark.parametrize("when", ["cancels", "cancels soon"])
def test_a_lifespan_that_cancels_all_tasks_ends_the_worker_which_says_so(
    witness: Witness, serving: Serving, when: str
) -> None:
    """Else the process would stay as long as any thread does, with nobody in it."""
    with serving(**{OPENING: when}).start() as worker:
        witness.says("open")
        if when == "cancels":
            worker.send(signal.SIGTERM)
        assert worker.wait(20) == 1
        (crash,) = worker.events("WORKER_CRASH")
        assert "has cancelled its tasks" in crash["message"]
        assert worker.errors() == ""


def test_a_worker_that_is_stopped_while_it_opens_ends_at_once(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    (job,) = enqueue(redis_url, lived.loop.request(0))
    with serving(**{OPENING: "50"}).start() as worker:
        witness.says("opening")
        worker.wait_for("WORKER_BOOT")
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10
        assert not worker.events("WORKER_CRASH")
    assert status(redis_url, job, QUEUE) == "waiting"


def test_a_worker_that_is_stopped_before_it_is_open_and_says_anything_ends_too(
    witness: Witness, serving: Serving
) -> None:
    with serving(**{OPENING: "50"}).start() as worker:
        witness.says("opening")
        assert worker.stop() == 0


def test_while_the_worker_is_quiet_it_is_closed(
    redis_url: str, server: Server, witness: Witness, serving: Serving
) -> None:
    door = server.tcp_url.rpartition(":")[2].partition("/")[0]
    settings = {"RUNTIME_SLEEP_AFTER": "5s", "RUNTIME_HTTP": "on", "PORT": 0, DOOR: door}
    with serving(**settings).up() as worker:
        witness.says("open")
        worker.wait_for("WORKER_QUIET")  # said when it begins to fall silent
        witness.says("closed")
        wait_until(lambda: _sockets(worker) == [], what="no connection left")
        assert witness.said == ["opening", "open", "closed"]
        (job,) = enqueue(redis_url, lived.loop.request(0))
        ask(port_of(worker), "/wake", "POST")
        worker.wait_for("JOB_COMPLETED", job_id=job)
        assert witness.said[3:5] == ["opening", "open"]
        worker.wait_for("WORKER_QUIET", 2)
        wait_until(lambda: witness.said.count("closed") == 2, what="closed again")
        assert worker.stop() == 0
        assert witness.said.count("open") == witness.said.count("closed") == 2


def test_a_worker_that_cannot_open_it_when_it_wakes_ends_and_claims_nothing(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    settings = {"RUNTIME_SLEEP_AFTER": "5s", "RUNTIME_HTTP": "on", "PORT": 0, OPENING: "fails later"}
    with serving(**settings).up() as worker:
        port = port_of(worker)
        worker.wait_for("WORKER_QUIET")
        (job,) = enqueue(redis_url, lived.loop.request(0))
        ask(port, "/wake", "POST")
        assert worker.wait() == 1
        assert "could not be opened" in worker.events("WORKER_CRASH")[0]["message"]
        assert not worker.events("JOB_STARTED")
    assert status(redis_url, job, QUEUE) == "waiting"
    assert witness.said == ["opening", "open", "closed", "opening"]


def _sockets(worker: Worker) -> list[str]:
    """Its TCP connections that are open."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{worker.pid}/fd").iterdir() if fd.exists()]
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links}
    rows = [line.split() for line in Path(f"/proc/{worker.pid}/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[9] in inodes and row[3] == "01"]


def test_two_lifespans_are_refused_at_boot_with_both_places(redis_url: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        text = f"from runtime import lifespan\n\n@lifespan\nasync def {name}():\n    yield 1\n"
        (tmp_path / f"{name}.py").write_text(text)
    done = command("serve", "tests.e2e.jobs", "one", "two", folder=tmp_path, REDIS_URL=redis_url)
    assert done.returncode == 78
    assert f"'one' at {tmp_path / 'one.py'}:3" in done.stderr
    assert f"'two' at {tmp_path / 'two.py'}:3" in done.stderr


# Handlers of each kind.


def test_each_kind_has_the_state_the_context_and_the_middleware_of_its_queue(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    jobs = dict(zip(lived.slow, enqueue(redis_url, *(kind.request(0.2) for kind in lived.KINDS)), strict=True))
    with serving().up() as worker:
        worker.wait_for("JOB_COMPLETED", 4)
        for name, job in jobs.items():
            (line,) = [line for line in worker.lines() if line.get("message") == f"around {name}"]
            assert line["job_id"] == job
        (line,) = [line for line in worker.lines() if line.get("message") == "in a thread"]
        assert line["job_id"] == jobs["thread"]
        shown = [command("job", jobs[name], "-Q", QUEUE, REDIS_URL=redis_url).stdout for name in jobs]
        assert "shared acme free" in shown[0]
        assert "taken acme" in shown[2]
        assert worker.stop() == 0
        assert "middleware of another queue" not in witness.said


def test_each_kind_finishes_within_the_grace(redis_url: str, witness: Witness, serving: Serving) -> None:
    with serving().up() as worker:
        enqueue(redis_url, *(kind.request(2.0) for kind in lived.KINDS))
        worker.wait_for("JOB_STARTED", 4)
        witness.says("loop begins with shared", "thread begins with shared", "polite begins", "shielded begins")
        assert worker.stop() == 0
        assert len(worker.events("JOB_COMPLETED")) == 4
        assert witness.said[-1] == "closed"


def test_each_kind_is_given_back_when_the_grace_is_over(redis_url: str, witness: Witness, serving: Serving) -> None:
    with serving(GRACEFUL_SHUTDOWN_TIMEOUT_MS=200).up() as worker:
        jobs = enqueue(redis_url, *(kind.request(600.0) for kind in lived.KINDS))
        witness.says("loop begins with shared", "thread begins with shared", "polite begins", "shielded begins")
        began = time.monotonic()
        assert worker.stop(60) == 0
        assert 3.0 < time.monotonic() - began < 30.0
        assert "shielded has cleaned up" in witness.said
        assert "thread ends" not in witness.said
        assert "loop ends" in witness.said
        assert len(worker.events("JOB_RELEASED")) == 4
    assert {status(redis_url, job, QUEUE) for job in jobs} == {"waiting"}


def test_a_second_signal_hurries_each_kind_likewise(redis_url: str, witness: Witness, serving: Serving) -> None:
    with serving().up() as worker:
        jobs = enqueue(redis_url, *(kind.request(600.0) for kind in lived.KINDS))
        witness.says("loop begins with shared", "thread begins with shared", "polite begins", "shielded begins")
        worker.send(signal.SIGTERM)
        worker.wait_for("WORKER_DRAINING")
        worker.send(signal.SIGTERM)
        assert worker.wait(60) == 143
        assert "shielded has cleaned up" in witness.said
    assert {status(redis_url, job, QUEUE) for job in jobs} == {"waiting"}


def test_each_kind_times_out(redis_url: str, witness: Witness, serving: Serving) -> None:
    requests = (
        lived.short_loop.request(60), lived.short_shielded.request(60), lived.short_thread.request(2.5),
        lived.short_polite.request(60),
    )  # fmt: skip
    with serving().up() as worker:
        loop, shielded, thread, polite = enqueue(redis_url, *requests)
        (done,) = worker.wait_for("JOB_COMPLETED")
        assert (done["job_id"], done["duration_ms"] > 2000) == (thread, True)
        dead = {line["job_id"]: line for line in worker.wait_for("JOB_DEAD", 3)}
        assert set(dead) == {loop, shielded, polite}
        assert all("TimeoutError: it ran longer than its timeout of 1 s" in line["message"] for line in dead.values())
        assert dead[shielded]["duration_ms"] >= 4000
        assert "shielded has cleaned up" in witness.said
        assert dead[loop]["duration_ms"] < 4000
        assert worker.stop() == 0


def test_each_kind_is_cancelled_by_its_user_as_far_as_it_can_be(
    redis_url: str, witness: Witness, serving: Serving
) -> None:
    requests = [kind.request(60.0 if kind is not lived.thread else 3.0) for kind in lived.KINDS]
    with serving().up() as worker:
        jobs = dict(zip(lived.slow, enqueue(redis_url, *requests), strict=True))
        witness.says("loop begins with shared", "thread begins with shared", "polite begins", "shielded begins")
        for job in jobs.values():
            command("job", job, "--cancel", "-Q", QUEUE, REDIS_URL=redis_url)
        ended = {line["job_id"] for line in worker.wait_for("JOB_CANCELLED", 3)}
        assert ended == {jobs[name] for name in ("loop", "shielded", "polite")}
        assert "shielded has cleaned up" in witness.said
        worker.wait_for("JOB_COMPLETED", job_id=jobs["thread"])
        assert worker.stop() == 0


def test_a_thread_that_does_not_end_after_its_timeout_is_stuck_and_keeps_its_slot(
    redis_url: str, serving: Serving
) -> None:
    with serving(WORKER_CONCURRENCY=1).up() as worker:
        (stuck,) = enqueue(redis_url, lived.short_thread.request(14.0))
        worker.wait_for("JOB_STARTED")
        (other,) = enqueue(redis_url, lived.loop.request(0))
        (line,) = worker.wait_for("JOB_DEAD", job_id=stuck)
        assert line["reason"] == "stuck"
        time.sleep(1.0)
        assert not worker.events("JOB_STARTED", job_id=other)
        worker.wait_for("JOB_COMPLETED", job_id=other)
        assert worker.stop() == 0


def test_a_thread_that_never_ends_does_not_keep_the_process(redis_url: str, witness: Witness, serving: Serving) -> None:
    with serving(GRACEFUL_SHUTDOWN_TIMEOUT_MS=0).up() as worker:
        enqueue(redis_url, lived.thread.request(600.0))
        witness.says("thread begins with shared")
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < STOP_GRACE_S + 10


def test_there_are_never_more_threads_than_slots(redis_url: str, witness: Witness, serving: Serving) -> None:
    with serving(WORKER_CONCURRENCY=3).up() as worker:
        (job,) = enqueue(redis_url, lived.many.request(30))
        worker.wait_for("JOB_COMPLETED", job_id=job)
        assert "at once: 3" in witness.said
        assert worker.stop() == 0


# Priorities.


def test_the_job_api_and_the_command_rank_by_the_argument(redis_url: str, serving: Serving) -> None:
    settings = {"RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_TOKEN": TOKEN, "WORKER_CONCURRENCY": 1}
    with serving(**settings).up() as worker:
        (first,) = enqueue(redis_url, lived.loop.request(3.0))
        worker.wait_for("JOB_STARTED", job_id=first)
        for tier in ("free", "normal", "vip"):
            order = {"handler": "loop", "args": [0, tier], "key": f"http-{tier}"}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port_of(worker)}/jobs", json.dumps(order).encode(),
                {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 202
        typed = command(
            "enqueue", "loop", '[0, "normal"]', "--key", "typed", "-m", "tests.e2e.lived", REDIS_URL=redis_url
        )
        assert typed.returncode == 0, typed.stderr
        worker.wait_for("JOB_COMPLETED", 5)
        order_of_starts = [line["job_id"] for line in worker.events("JOB_STARTED")]
        assert order_of_starts == [first, "loop:http-vip", "loop:http-normal", "loop:typed", "loop:http-free"]
        assert worker.stop() == 0
