"""Workers are told to stop, stopped in their tracks and thawed, at every moment that is easy to get wrong."""

from __future__ import annotations

import json
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
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger, Line
from tests.processes import Worker, enqueue, status, wait_until, workers

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


def test_a_handler_that_blocks_the_event_loop_for_longer_than_its_lease_runs_once(
    redis_url: str, ledger: Ledger
) -> None:
    with workers(campaign.worker(redis_url, ledger, slots=2, lease="2s") for _ in range(2)) as (blocked, other):
        blocked.up()
        (beside,) = enqueue(redis_url, jobs.work.request(1))
        wait_until(ledger.starts)
        (job,) = enqueue(redis_url, jobs.block.request(5))
        wait_until(lambda: ledger.starts(job))
        other.up()
        blocked.wait_for("JOB_COMPLETED", 2)
        wait_until(lambda: campaign.ended(redis_url) == 2)
        assert len(ledger.starts()) == 2
        assert campaign.results(redis_url)[job].value == blocked.pid
        assert campaign.results(redis_url)[beside].ok
        assert blocked.events("REDIS_AWAY") == []


BAD: dict[Any, tuple[str, str]] = {
    jobs.leave_by_system_exit: ("SystemExit", "3"),
    jobs.interrupt: ("KeyboardInterrupt", ""),
    jobs.close_generator: ("GeneratorExit", ""),
    jobs.raise_base_exception: ("tests.faults.jobs.Abrupt", "no exception of the common kind"),
    jobs.cancel_itself: ("asyncio.exceptions.CancelledError", ""),
    jobs.stop_iteration: ("RuntimeError", "coroutine raised StopIteration"),
    jobs.run_out_of_memory: ("MemoryError", ""),
    jobs.recurse: ("RecursionError", "maximum recursion depth exceeded"),
    jobs.raise_unprintable: ("tests.faults.jobs.Unprintable", "(its text cannot be read)"),
    jobs.raise_ten_megabytes: ("ValueError", "x" * 100),
    jobs.raise_surrogates: ("ValueError", "half a pair: \\ud800"),
    jobs.raise_group: ("ExceptionGroup", "two at once (2 sub-exceptions)"),
}


def test_no_exception_of_a_handler_harms_the_worker_or_its_other_jobs(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=4).up() as worker:
        pid = worker.pid
        bad = dict(zip(enqueue(redis_url, *(handler.request() for handler in BAD)), BAD, strict=True))
        good = enqueue(redis_url, *(jobs.work.request(0.05) for _ in range(10)))
        (kept,) = enqueue(redis_url, jobs.return_what_cannot_be_kept.request())
        wait_until(lambda: campaign.ended(redis_url) == len(BAD) + 11 or not worker.running)
        assert worker.running, f"exit code {worker.wait()}:\n{worker.output()}\n{worker.errors()}"
        assert {line.pid for line in ledger.starts()} == {pid}
        assert worker.boots() == 1

        results, letters = campaign.results(redis_url), campaign.letters(redis_url)
        assert all(results[job].ok for job in good)
        assert results[kept].ok
        assert "cannot be kept" in str(results[kept].value)
        for job, handler in bad.items():
            error, text = BAD[handler]
            letter = letters[job]
            assert (letter["reason"], letter["error"]) == ("exhausted", error), handler
            assert letter["text"].startswith(text), handler
            assert len(letter["text"]) <= 2000
            assert not results[job].ok
        assert worker.stop() == 0
        assert_says_farewell(worker, "SIGTERM", processed=len(BAD) + 11, succeeded=11, failed=len(BAD), peak=4)
        assert max(map(len, worker.output().splitlines())) < 5000
        assert all(json.loads(line) for line in worker.output().splitlines())


def test_an_exit_in_a_task_that_a_handler_started_is_that_jobs_failure_alone(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=4).up() as worker:
        good = enqueue(redis_url, *(jobs.work.request(1) for _ in range(3)))
        wait_until(lambda: len(ledger.starts()) == 3)
        (bad,) = enqueue(redis_url, jobs.leave_from_a_task_of_its_own.request())
        worker.wait_for("JOB_DEAD", job_id=bad)
        worker.wait_for("JOB_COMPLETED", 3, 5)
        assert worker.running
        assert worker.stop() == 0
        results = campaign.results(redis_url)
        assert all(results[job].ok for job in good)
        assert campaign.letters(redis_url)[bad]["error"] == "SystemExit"


@pytest.mark.parametrize("handler", [jobs.raise_what_cannot_be_looked_at])
def test_a_failure_that_cannot_be_judged_is_an_outcome_all_the_same(
    redis_url: str, ledger: Ledger, handler: Any
) -> None:
    with campaign.worker(redis_url, ledger, slots=2).up() as worker:
        (bad,) = enqueue(redis_url, handler.request())
        (good,) = enqueue(redis_url, jobs.work.request(0.5))
        worker.wait_for("JOB_COMPLETED", job_id=good, timeout_s=5)
        wait_until(lambda: status(redis_url, bad, "arq:queue") != "active", 3)
        assert worker.stop() == 0
        assert campaign.stranded(redis_url) == []
        assert worker.errors() == ""


def test_swallowed_cancellations_cost_a_slot_at_most(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=3).up() as worker:
        once, for_ever = enqueue(
            redis_url,
            jobs.swallow_cancellation_once.request(),
            jobs.swallow_cancellation_for_ever.request(),
        )
        good = enqueue(redis_url, *(jobs.work.request(0.05) for _ in range(10)))
        worker.wait_for("JOB_COMPLETED", 11, 5)
        worker.wait_for("JOB_DEAD", timeout_s=15)
        wait_until(lambda: campaign.ended(redis_url) == 12)
        results = campaign.results(redis_url)
        assert all(results[job].ok for job in good)
        assert results[once].value == "went on to its end"
        assert campaign.letters(redis_url)[for_ever]["reason"] == "stuck"
        # The other two slots go on.
        enqueue(redis_url, *(jobs.work.request(0.05) for _ in range(4)))
        worker.wait_for("JOB_COMPLETED", 15, 5)
        assert worker.running
        assert worker.boots() == 1


@pytest.mark.timeout(90)
def test_a_job_that_kills_its_worker_is_a_dead_letter_after_three_crashes(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=1, lease="1s").up() as worker:
        (pill,) = enqueue(redis_url, jobs.pill.request())
        good = enqueue(redis_url, *(jobs.work.request(0.05) for _ in range(5)))
        began = time.monotonic()
        while pill not in campaign.letters(redis_url):
            assert time.monotonic() - began < 60
            if not worker.running:
                worker.start()  # as a platform does
            time.sleep(0.05)
        print(f"\na dead letter after {time.monotonic() - began:.1f} s")
        wait_until(lambda: campaign.ended(redis_url) == 6)
        letter = campaign.letters(redis_url)[pill]
        runs: list[Line] = ledger.starts(pill)
        assert [line.crashes for line in runs] == [0, 1, 2]
        assert (letter["reason"], letter["crashes"], letter["category"]) == ("crashed", 3, "resource")
        assert all(campaign.results(redis_url)[job].ok for job in good)
        assert all(len(ledger.starts(job)) == 1 for job in good)
        assert worker.stop() == 0
        assert campaign.look(redis_url, [worker]).left == []
