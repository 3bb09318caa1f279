"""Bugs of ours and handlers that block the process: what a real worker makes of them."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime import connect
from runtime.adapters.redis import keys
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.source import RedisSource
from runtime.core.spec import DEFAULT_QUEUE
from tests.faults import bugs, campaign, jobs
from tests.faults.ledger import Ledger
from tests.processes import Worker, enqueue, wait_until
from tests.relay import Relay
from tests.servers import Server


def worker_with_bug(redis: str, ledger: Ledger, bug: Path) -> Worker:
    queues = ("-Q", bugs.QUEUE, "-Q", f"{DEFAULT_QUEUE}=3")
    settings: dict[str, Any] = {jobs.LEDGER: ledger.path, bugs.FILE: bug}
    return Worker(campaign.MODULE, "tests.faults.bugs", redis=redis, arguments=queues, **settings)


def test_a_key_of_a_wrong_type_is_told_by_its_name(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger).up() as worker, Redis.from_url(redis_url) as redis:
        redis.set(keys.count(DEFAULT_QUEUE), "somebody else's", px=60_000)
        (job,) = enqueue(redis_url, jobs.work.request(0.0))
        (told,) = worker.wait_for("REDIS_TROUBLE")
        assert told["message"].endswith(f"(the key is {keys.count(DEFAULT_QUEUE)})")
        assert campaign.results(redis_url)[job].ok


def test_jobs_that_nobody_knows_are_told_of_once_for_each_handler(redis_url: str, ledger: Ledger) -> None:
    async def add() -> None:
        async with connect(redis_url) as client:
            for name in ("paint", "paint", "draw\x1b[2J"):
                await client.enqueue(name)

    with campaign.worker(redis_url, ledger).up() as worker:
        asyncio.run(add())
        worker.wait_for("JOB_RELEASED", 5, reason="unknown-handler")  # they come back after a second or two
        told = worker.events("HANDLER_UNKNOWN", level="warn")
        assert sorted(line["handler"] for line in told) == ["draw\\x1b[2J", "paint"]
        assert "paint" in next(line["message"] for line in told if line["handler"] == "paint")


def test_what_fails_beside_the_actors_ends_no_worker(redis_url: str, ledger: Ledger) -> None:
    settings: dict[str, Any] = {jobs.LEDGER: ledger.path}
    with Worker(campaign.MODULE, "tests.faults.bugs_beside", redis=redis_url, **settings).up() as worker:
        (job,) = enqueue(redis_url, jobs.work.request(2.0))
        worker.wait_for("JOB_COMPLETED")
        assert campaign.results(redis_url)[job].ok
        assert {line["level"] for line in worker.wait_for("PART_FAILED", 2)} == {"error"}
        assert worker.stop() == 0
        assert len(worker.events("WORKER_SHUTDOWN")) == 1


def test_what_a_handler_binds_to_its_log_lines_costs_no_job(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=1).up() as worker:
        (job,) = enqueue(redis_url, jobs.bind_a_strange_text.request())
        wait_until(lambda: job in campaign.results(redis_url))
        (told,) = worker.wait_for("JOB_COMPLETED")
        assert told["user"] == "somebody"
        assert worker.stop() == 0


def test_a_stream_that_cannot_take_every_character_costs_no_job(redis_url: str, ledger: Ledger) -> None:
    async def add() -> None:
        async with connect(redis_url) as client:
            job = await client.enqueue("work", [0.0], job_id="größe-日本")
            assert await job.result(timeout=20)

    with campaign.worker(redis_url, ledger, slots=1, PYTHONIOENCODING="ascii").up() as worker:
        asyncio.run(add())
        assert worker.events("ACTOR_CRASH") == []
        (told,) = worker.wait_for("JOB_COMPLETED")
        assert told["job_id"] == "größe-日本"
        assert worker.stop() == 0


def test_a_handler_that_closes_the_stream_costs_the_lines_and_no_job(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=1).up() as worker:
        closing, after = enqueue(redis_url, jobs.close_stdout.request(), jobs.work.request(0.0))
        wait_until(lambda: {closing, after} <= campaign.results(redis_url).keys())
        assert len(ledger.starts(after)) == 1
        assert worker.stop() == 0


def test_what_was_finished_before_the_process_stood_still_is_not_lost(redis_url: str, ledger: Ledger) -> None:
    """Its outcome waits for an event loop that does not come back."""
    with campaign.worker(redis_url, ledger, slots=3, RUNTIME_BLOCK_LIMIT="2s").up() as worker:
        done, _ = enqueue(redis_url, jobs.work_at_once.request(), jobs.block.request(3600))
        assert worker.wait(20) == 1
        assert campaign.results(redis_url)[done].ok
        assert len(ledger.starts(done)) == 1


def test_a_process_that_is_being_ended_does_not_go_on_when_its_handler_does(server: Server, ledger: Ledger) -> None:
    """What it gives back may run elsewhere by then."""
    server.flush()
    with (
        Relay(server.url.removeprefix("unix://")) as relay,
        campaign.worker(relay.url, ledger, slots=3, RUNTIME_BLOCK_LIMIT="2s").up() as worker,
    ):
        _, blocking = enqueue(server.url, jobs.work.request(3.0), jobs.block.request(5.0))
        wait_until(lambda: ledger.starts(blocking))
        relay.swallow()  # so that it has not ended yet when the handler does
        assert worker.wait(30) == 1
        assert len(worker.events("WORKER_CRASH")) == 1
        assert [line.job for line in ledger.lines() if line.what == "end"] == [blocking]


def test_a_run_that_would_not_stop_and_then_blocks_is_no_crash_of_the_others(redis_url: str, ledger: Ledger) -> None:
    """It has its outcome, and nobody else is to blame."""
    settings = {"RUNTIME_BLOCK_LIMIT": "2s"}
    with campaign.worker(redis_url, ledger, slots=3, **settings).up() as worker:
        (stubborn,) = enqueue(redis_url, jobs.block_after_its_cancelling.request(1.0, 14.0))
        wait_until(lambda: stubborn in campaign.letters(redis_url), 40)
        others = enqueue(redis_url, jobs.work.request(3600.0), jobs.work.request(3600.0))
        wait_until(lambda: all(ledger.starts(other) for other in others))
        assert worker.wait(30) == 1
        assert campaign.attempts_kept(redis_url) == {}
        assert campaign.stranded(redis_url) == []


def test_a_block_in_a_task_that_a_handler_started_is_found_out_too(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=1, RUNTIME_BLOCK_LIMIT="2s").up() as worker:
        (job,) = enqueue(redis_url, jobs.block_in_a_task_of_its_own.request(3600))
        assert worker.wait(20) == 1
        (crash,) = worker.events("WORKER_CRASH")
        assert crash["job_id"] == job
        assert campaign.attempts_kept(redis_url) == {job: 1}
        assert campaign.stranded(redis_url) == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_handler_that_cancels_all_tasks_is_to_blame_and_no_other(redis_url: str, ledger: Ledger, loop: str) -> None:
    """Else it would be given back with the others, and end the next worker, and so on for ever."""
    with campaign.worker(redis_url, ledger, slots=4, RUNTIME_LOOP=loop).up() as worker:
        others = enqueue(redis_url, *(jobs.work.request(1.0) for _ in range(3)))
        wait_until(lambda: len(ledger.starts()) == 3)
        (job,) = enqueue(redis_url, jobs.cancel_all_other_tasks.request())
        for crashes in (1, 2, 3):
            assert worker.wait(40) == 1
            told = worker.wait_for("WORKER_CRASH", crashes)[-1]
            assert told["job_id"] == job
            assert "faults/jobs.py" in told["data"]["error"]
            assert campaign.stranded(redis_url) == []
            assert campaign.attempts_kept(redis_url) == ({} if crashes == 3 else {job: crashes})
            boots = worker.boots()
            worker.start()
        wait_until(lambda: worker.boots() > boots)
        assert campaign.letters(redis_url)[job]["reason"] == "crashed"
        wait_until(lambda: set(others) <= campaign.results(redis_url).keys())
        assert all(campaign.results(redis_url)[other].ok for other in others)
        assert worker.stop() == 0
        assert worker.errors() == ""


def test_being_stopped_for_a_while_is_not_standing_still(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger, slots=1, RUNTIME_BLOCK_LIMIT="2s").up() as worker:
        enqueue(redis_url, jobs.work.request(6))
        wait_until(ledger.starts)
        worker.send(signal.SIGSTOP)
        time.sleep(4)
        worker.send(signal.SIGCONT)
        worker.wait_for("JOB_COMPLETED")
        assert worker.events("LOOP_BLOCKED") == []
        assert worker.stop() == 0


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop(redis_url: str, ledger: Ledger) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as a worker inherits it there
    try:
        worker = campaign.worker(redis_url, ledger, slots=1).up()
    finally:
        signal.signal(signal.SIGHUP, before)
    with worker:
        worker.send(signal.SIGHUP)
        enqueue(redis_url, jobs.work.request(0))
        worker.wait_for("JOB_COMPLETED")
        assert worker.stop() == 0


def test_parts_may_be_started_and_stopped_out_of_turn(redis_url: str) -> None:
    async def misuse() -> None:
        never = LeaseKeeper(redis_url, 10.0, lambda text: None)
        never.close()
        never.close()
        never.start()  # closed already: it stays so
        keeper = LeaseKeeper(redis_url, 10.0, lambda text: None)
        keeper.start()
        keeper.start()
        keeper.close()
        keeper.close()
        source = RedisSource(redis_url, lease_s=10.0)
        await source.close()
        await source.close()

    asyncio.run(misuse())
