"""Pools of real processes in real workers."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.pools import LAST_CLOSE_S
from tests.e2e.pooled import QUEUE, SIZE, WITNESS, echo, render, use_deaf, use_hostile
from tests.e2e.test_documents import ask, port_of
from tests.processes import Worker, command, enqueue, status, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    path = tmp_path / "witness"
    path.touch()
    return path


def serving(redis: str, witness: Path, modules: Sequence[str] = (), **settings: Any) -> Worker:
    settings = {"WORKER_CONCURRENCY": 8, WITNESS: witness, **settings}
    return Worker("tests.e2e.pooled", *modules, redis=redis, arguments=("-Q", QUEUE), **settings)


def noted(witness: Path, sign: str) -> list[int]:
    return [int(line[2:]) for line in witness.read_text().splitlines() if line.startswith(sign)]


def most_alive(witness: Path) -> int:
    alive = peak = 0
    for line in witness.read_text().splitlines():
        alive += 1 if line.startswith("+") else -1
        peak = max(peak, alive)
    return peak


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_twelve_jobs_share_three_processes_and_a_failing_one_costs_one_more(redis_url: str, witness: Path) -> None:
    jobs = enqueue(redis_url, *(echo.request(0.3, fails=number == 4) for number in range(12)))
    with serving(redis_url, witness, RUNTIME_HTTP="on", PORT=0).up() as worker:
        seen: set[int] = set()

        def over() -> bool:
            seen.add(len(children(worker.pid)))
            return len(worker.events("JOB_COMPLETED")) + len(worker.events("JOB_DEAD")) == 12

        wait_until(over)
        (dead,) = worker.events("JOB_DEAD")
        assert dead["job_id"] in jobs
        assert dead["message"].endswith("ValueError: the page is broken")
        wait_until(lambda: len(noted(witness, "-")) == 1)
        assert max(seen) <= SIZE
        assert most_alive(witness) == SIZE
        assert (
            SIZE <= len(noted(witness, "+")) <= SIZE + 1
        )  # the last jobs may have had enough of the two that were left
        pool = ask(port_of(worker), "/health")[2]["pools"][0]
        started = len(noted(witness, "+"))
        counts = {"in_use": 0, "idle": started - 1, "waiting": 0, "opened": started, "recycled": 1, "failed": 0}
        assert pool == {"name": "cats", "size": SIZE, **counts}
        assert worker.stop() == 0
        assert sorted(noted(witness, "+")) == sorted(noted(witness, "-"))
        assert all(gone(pid) for pid in noted(witness, "+"))
        assert worker.errors() == ""
        assert not worker.events("POOL_TROUBLE")


def test_a_process_whose_job_failed_is_replaced_by_one(redis_url: str, witness: Path) -> None:
    with serving(redis_url, witness, WORKER_CONCURRENCY=1).up() as worker:
        for fails in (False, False, True, False, False):
            enqueue(redis_url, echo.request(0, fails=fails))
        wait_until(lambda: len(worker.events("JOB_COMPLETED")) + len(worker.events("JOB_DEAD")) == 5)
        assert len(noted(witness, "+")) == 2
        assert worker.stop() == 0
        assert sorted(noted(witness, "+")) == sorted(noted(witness, "-"))


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_that_is_stopped_in_the_middle_of_uses_leaves_no_process_behind(
    redis_url: str, witness: Path, signals: int
) -> None:
    with serving(redis_url, witness, GRACEFUL_SHUTDOWN_TIMEOUT_MS=300 if signals == 1 else 60_000).up() as worker:
        jobs = enqueue(redis_url, *(echo.request(600) for _ in range(8)))
        wait_until(lambda: len(noted(witness, "+")) == SIZE)
        began = time.monotonic()
        for _ in range(signals):
            worker.send(signal.SIGTERM)
            time.sleep(0.2)
        assert worker.wait(20) == (0 if signals == 1 else 143)
        assert time.monotonic() - began < LAST_CLOSE_S
        assert sorted(noted(witness, "+")) == sorted(noted(witness, "-"))
        assert all(gone(pid) for pid in noted(witness, "+"))
        assert {status(redis_url, job, QUEUE) for job in jobs} == {"waiting"}


def test_what_does_not_close_keeps_no_worker_from_ending(redis_url: str, witness: Path) -> None:
    with serving(redis_url, witness).up() as worker:
        enqueue(redis_url, use_deaf.request(), echo.request(0))
        worker.wait_for("JOB_COMPLETED", 2)
        began = time.monotonic()
        assert worker.stop(30) == 0
        assert time.monotonic() - began > LAST_CLOSE_S
        assert worker.lines()[-1]["event"] == "WORKER_SHUTDOWN"
        assert sorted(noted(witness, "+")) == sorted(noted(witness, "-"))


def test_an_open_that_ends_the_process_ends_its_job(redis_url: str, witness: Path) -> None:
    with serving(redis_url, witness).up() as worker:
        enqueue(redis_url, use_hostile.request())
        (dead,) = worker.wait_for("JOB_DEAD")
        assert dead["message"].endswith("RuntimeError: pool hostile: an item could not be opened: SystemExit")
        enqueue(redis_url, echo.request(0))
        worker.wait_for("JOB_COMPLETED")
        assert worker.stop() == 0
        assert not worker.events("EXIT_REFUSED")


def test_a_killed_worker_s_pool_is_opened_anew_by_the_next(redis_url: str, witness: Path) -> None:
    with serving(redis_url, witness, RUNTIME_LEASE="1s") as worker:
        worker.up()
        (job,) = enqueue(redis_url, echo.request(2))
        wait_until(lambda: noted(witness, "+"))
        worker.kill()
        worker.up()
        worker.wait_for("JOB_COMPLETED", job_id=job)
        assert worker.stop() == 0
    assert len(noted(witness, "+")) == 2


def test_heartbeats_and_inspect_tell_of_pools_once_they_are_used(redis_url: str, witness: Path) -> None:
    def pools() -> list[dict[str, Any]]:
        shown = command("inspect", "workers", "--json", REDIS_URL=redis_url)
        workers = json.loads(shown.stdout)["workers"]
        return [pool for worker in workers for pool in worker["pools"] if pool["in_use"] == SIZE]

    with serving(redis_url, witness, modules=("tests.e2e.hasty",), WORKER_ID="worker-7").up():
        wait_until(lambda: command("inspect", "workers", REDIS_URL=redis_url).stdout.startswith("WORKER"))
        assert "POOL" not in command("inspect", "workers", REDIS_URL=redis_url).stdout
        enqueue(redis_url, *(echo.request(600) for _ in range(5)))
        (pool,) = wait_until(pools)
        counts = {"in_use": 3, "idle": 0, "waiting": 2, "opened": 3, "recycled": 0, "failed": 0}
        assert pool == {"name": "cats", "size": 3, **counts}
        head, row = (line.split() for line in command("inspect", REDIS_URL=redis_url).stdout.splitlines()[-2:])
        assert " ".join(head) == "POOL WORKER SIZE IN USE IDLE WAITING OPENED RECYCLED FAILED"
        assert " ".join(row) == "cats worker-7 3 3 0 2 3 0 0"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_chromiums_render_pages_two_at_a_time(redis_url: str, witness: Path, tmp_path: Path) -> None:
    with serving(redis_url, witness, RUNTIME_TEST_CHROMIUM=CHROMIUM).up() as worker:
        pages = [tmp_path / f"{number}.pdf" for number in range(4)]
        enqueue(redis_url, *(render.request("Menu", str(page)) for page in pages))
        worker.wait_for("JOB_COMPLETED", 4, timeout_s=90)
        assert all(page.read_bytes().startswith(b"%PDF") for page in pages)
        assert worker.stop() == 0
