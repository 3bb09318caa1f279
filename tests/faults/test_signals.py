"""Workers are told to stop, stopped in their tracks and thawed, at every moment that is easy to get wrong."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from runtime.adapters import embedded
from runtime.adapters.redis import keys
from runtime.core.spec import DEFAULT_QUEUE
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger
from tests.processes import Worker, enqueue, status, wait_until
from tests.relay import Relay
from tests.servers import Server

TERM, INT = signal.SIGTERM, signal.SIGINT
AT_ONCE_S = 2.0
"""Far below a lease, and long enough for a busy machine."""


def assert_says_farewell(
    worker: Worker, reason: str, *, processed: int, succeeded: int, failed: int, peak: int, running: int = 0
) -> None:
    (statistics,) = worker.events("WORKER_STATISTICS")
    assert statistics["message"] == "WORKER STATISTICS"
    assert {name: statistics[name] for name in ("processed", "succeeded", "failed")} == {
        "processed": processed,
        "succeeded": succeeded,
        "failed": failed,
    }
    assert statistics["currentlyProcessing"] == running
    assert statistics["peakConcurrency"] == peak
    assert statistics["startTime"] <= statistics["timestamp"].replace("Z", "+00:00")
    (farewell,) = worker.events("WORKER_SHUTDOWN")
    assert farewell["data"]["reason"].startswith(reason)
    assert farewell == worker.lines()[-1]
    assert worker.errors() == ""


@pytest.mark.parametrize(("first", "second", "code"), [(TERM, TERM, 143), (INT, INT, 130), (TERM, INT, 130)])
def test_a_second_signal_gives_back_at_once(
    redis_url: str, ledger: Ledger, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    with campaign.worker(redis_url, ledger).up() as worker:
        given = enqueue(redis_url, *(jobs.work.request(60) for _ in range(5)))
        wait_until(lambda: len(ledger.starts()) == 5)
        worker.send(first)
        worker.wait_for("WORKER_DRAINING")
        assert worker.events("JOB_RELEASED") == []
        worker.send(second)
        assert worker.wait(AT_ONCE_S) == code
        assert {line["job_id"] for line in worker.events("JOB_RELEASED")} == set(given)
        assert_nothing_is_held(redis_url, given)
        assert_says_farewell(worker, first.name, processed=0, succeeded=0, failed=0, peak=5)


def assert_nothing_is_held(url: str, given: list[str]) -> None:
    assert campaign.stranded(url) == []
    assert campaign.attempts_kept(url) == {}
    assert {status(url, job, "arq:queue") for job in given} == {"waiting"}


def test_a_third_signal_ends_the_worker_whatever_its_handlers_do(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger).up() as worker:
        enqueue(redis_url, jobs.refuse_to_stop.request())
        wait_until(ledger.starts)
        worker.send(TERM)
        worker.wait_for("WORKER_DRAINING")
        worker.send(TERM)
        time.sleep(0.3)  # it waits for the handler now
        assert worker.running
        worker.send(TERM)
        assert worker.wait(1) == 143


def test_a_handler_that_refuses_to_stop_does_not_keep_the_worker(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, GRACEFUL_SHUTDOWN_TIMEOUT_MS=100).up() as worker:
        (job,) = enqueue(redis_url, jobs.refuse_to_stop.request())
        wait_until(ledger.starts)
        began = time.monotonic()
        assert worker.stop(15) == 0
        print(f"\nended {time.monotonic() - began:.2f} s after SIGTERM")
        assert_nothing_is_held(redis_url, [job])
        assert_says_farewell(worker, "SIGTERM", processed=0, succeeded=0, failed=0, peak=1, running=1)


def test_i10_deploys_that_leave_no_time_to_stop_are_no_crashes_of_the_job(redis_url: str, ledger: Ledger) -> None:
    (job,) = enqueue(redis_url, jobs.work.request(60))
    with campaign.worker(redis_url, ledger, lease="1s") as worker:
        for deploy in range(1, 5):  # the third crash would make it a dead letter
            (*_, started) = worker.up().wait_for("JOB_STARTED", deploy)
            assert started["attempt"] == 1
            worker.send(TERM)
            wait_until_retired(redis_url, deploy)
            worker.kill()
        worker.up().wait_for("JOB_STARTED", 5)
        worker.kill()  # and this is one
        (*_, started) = worker.up().wait_for("JOB_STARTED", 6)
        assert started["attempt"] == 2
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert redis.get(keys.OWN + job) == "1|"


def test_i10_nor_are_they_where_an_outcome_is_on_its_way(ledger: Ledger) -> None:
    """Nothing runs any more, and yet the job is held."""
    with Server() as server, Relay(server.url.removeprefix("unix://")) as relay:
        with campaign.worker(relay.url, ledger, lease="1s").up() as worker:
            outcome = relay.hold(lambda command: keys.dead(DEFAULT_QUEUE).encode() in command)
            (job,) = enqueue(server.url, jobs.work_at_once.request())
            assert outcome.there.wait(30)
            worker.send(TERM)
            wait_until_retired(server.url, 1)
            worker.kill()
        with campaign.worker(server.url, ledger, lease="1s").up():
            wait_until(lambda: campaign.ended(server.url) == 1)
    assert [(line.attempt, line.crashes) for line in ledger.starts(job)] == [(1, 0), (1, 0)]


def wait_until_retired(url: str, count: int) -> None:
    """So many workers have said that they were told to stop."""
    with Redis.from_url(url) as redis:
        wait_until(lambda: len(redis.keys(keys.retired("*"))) == count)


@pytest.fixture
def slow_module(tmp_path: Path) -> Path:
    """A handler module whose import takes its time, and says when it has begun."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(30)\nfrom tests.faults.jobs import work\n"
    )
    return tmp_path


def test_sigterm_while_the_handlers_are_imported_ends_at_once(redis_url: str, slow_module: Path) -> None:
    with Worker("slow", redis=redis_url, folder=slow_module).start() as worker:
        wait_until((slow_module / "importing").exists)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 1
        assert worker.errors() == ""


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:  # not tmp_path: a socket's path ends at 107 bytes
        yield Path(folder)


def test_ctrl_c_twice_gives_back_through_the_embedded_server(data: Path, ledger: Ledger) -> None:
    server = embedded.attach(data)
    try:
        worker = campaign.worker(None, ledger, slots=3, RUNTIME_DATA=data)
        with worker.up():
            given = enqueue(server.url, *(jobs.work.request(60) for _ in range(5)))
            wait_until(lambda: len(ledger.starts()) == 3)
            worker.send_group(INT)
            worker.wait_for("WORKER_DRAINING")
            worker.send_group(INT)
            assert worker.wait(AT_ONCE_S) == 130
            assert_nothing_is_held(server.url, given)
            assert "Traceback" not in worker.errors() + worker.output()
            assert [line["level"] for line in worker.lines() if line["level"] in ("warn", "error")] == []
    finally:
        server.close()
        wait_until(lambda: not (data / "server.sock").exists() or not _answers(server.url))


def _answers(url: str) -> bool:
    with Redis.from_url(url) as redis:
        try:
            return bool(redis.ping())
        except RedisError:
            return False


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [TERM, INT, signal.SIGHUP])
def test_signals_that_a_handler_has_taken_are_taken_back(
    redis_url: str, ledger: Ledger, number: signal.Signals, loop: str
) -> None:
    with campaign.worker(redis_url, ledger, RUNTIME_LOOP=loop).up() as worker:
        enqueue(redis_url, jobs.take_the_signals.request())
        (told,) = worker.wait_for("SIGNALS_TAKEN_BACK")
        assert "SIGTERM" in told["message"]
        (job,) = enqueue(redis_url, jobs.work.request(1.5))
        wait_until(lambda: ledger.starts(job))
        worker.send(number)
        assert worker.wait(20) == 0
        assert campaign.results(redis_url)[job].ok
        assert len(worker.events("SIGNALS_TAKEN_BACK")) == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("use", [jobs.use_processes, jobs.use_processes_in_a_thread])
def test_signals_to_processes_that_a_handler_forks_are_not_the_workers(
    redis_url: str, ledger: Ledger, use: Any, loop: str
) -> None:
    with campaign.worker(redis_url, ledger, RUNTIME_LOOP=loop).up() as worker:
        (job,) = enqueue(redis_url, use.request())
        wait_until(lambda: job in campaign.results(redis_url))
        assert campaign.results(redis_url)[job].value == [1, 2]
        assert not worker.events("WORKER_DRAINING")
        assert worker.stop() == 0
