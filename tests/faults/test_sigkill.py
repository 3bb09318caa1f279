"""Workers are killed while they run jobs, again and again: nothing is lost, nothing is done twice without cause."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger, effective_kills, executions, judge, recoveries
from tests.processes import Worker, enqueue, wait_until, workers

JOBS = 400
KILLS = 30
RECOVERY_S = 12.0


@pytest.mark.timeout(170)
def test_thirty_kills_lose_no_job_and_settle_none_twice(redis_url: str, ledger: Ledger) -> None:
    chance = random.Random(1)
    with workers(campaign.worker(redis_url, ledger, slots=5, lease="2s") for _ in range(3)) as crew:
        _acked(redis_url, ledger, chance, JOBS)
        for worker in crew:
            worker.start()
        _kill_until(KILLS, crew, redis_url, ledger, chance)
        acked = sum(line.what == "acked" for line in ledger.lines())
        wait_until(lambda: campaign.ended(redis_url) >= acked or not all(worker.running for worker in crew), 60)
        assert all(worker.running for worker in crew), "".join(worker.errors()[-2000:] for worker in crew)
        codes = [worker.stop() for worker in crew]
        found = campaign.look(redis_url, crew)
        errors = "".join(worker.errors() for worker in crew)

    lines = ledger.lines()
    broken = judge(lines, found)
    assert not broken, "\n".join(map(str, broken[:20]))
    assert effective_kills(lines) >= KILLS
    assert codes == [0, 0, 0]
    assert "Traceback" not in errors, errors
    took = sorted(recoveries(lines))
    print(
        f"\n{acked} jobs, {sum(line.what == 'killed' for line in lines)} kills, {effective_kills(lines)} of them "
        f"mid-job, {len(took)} runs cut short, {len(found.letters)} dead letters, most starts "
        f"{max(map(len, executions(lines).values()))}, to the next start: median {took[len(took) // 2]:.2f} s, "
        f"longest {took[-1]:.2f} s"
    )


def _acked(url: str, ledger: Ledger, chance: random.Random, count: int) -> None:
    for job in enqueue(url, *(jobs.work.request(chance.uniform(0.05, 0.5)) for _ in range(count))):
        ledger.note("acked", job)


def _kill_until(kills: int, crew: list[Worker], url: str, ledger: Ledger, chance: random.Random) -> None:
    """Kill a worker and start it again, until so many kills have hit one that ran a job."""
    until = time.monotonic() + 100
    while effective_kills(ledger.lines()) < kills:
        assert time.monotonic() < until, f"only {effective_kills(ledger.lines())} kills hit a worker that ran a job"
        time.sleep(chance.uniform(0.2, 0.9))
        if campaign.waiting(url) < 50:
            _acked(url, ledger, chance, 50)
        busy = [worker for worker in crew if ledger.running(worker.pid)]
        worker = chance.choice(busy if busy and chance.random() < 0.8 else crew)  # now and then one that is starting
        if chance.random() < 0.25:  # as platforms do: told to stop, and given no time for it
            worker.send(signal.SIGTERM)
            time.sleep(chance.uniform(0, 0.05))
        _kill(worker, ledger)
        worker.start()


def _kill(worker: Worker, ledger: Ledger) -> None:
    ledger.note("killed", pid=worker.pid)
    worker.kill()


def test_a_killed_workers_job_starts_again_within_twelve_seconds(redis_url: str, ledger: Ledger) -> None:
    """Whatever its timeout: where another worker is idle, and where the killed one is started again, alone."""
    helped, alone = ("-Q", "helped"), ("-Q", "alone")
    with workers(campaign.worker(redis_url, ledger, slots=1, arguments=queue) for queue in (helped, helped, alone)) as (
        killed,
        idle,
        lonely,
    ):
        killed.up()
        lonely.up()
        one, other = enqueue(
            redis_url,
            jobs.work_the_second_time.options(queue="helped").request(),
            jobs.work_for_an_hour_at_most.options(queue="alone").request(60),
        )
        wait_until(lambda: len(ledger.starts()) == 2)
        idle.up()
        _kill(killed, ledger)
        _kill(lonely, ledger)
        time.sleep(1)
        lonely.up()
        wait_until(lambda: len(ledger.starts()) == 4, RECOVERY_S + 3, "both jobs have been started again")
        took = recoveries(ledger.lines())
        print(f"\nto the next start: {', '.join(f'{seconds:.2f} s' for seconds in took)}")
        assert max(took) <= RECOVERY_S

        again = [ledger.starts(job)[1] for job in (one, other)]
        assert [line.pid for line in again] == [idle.pid, lonely.pid]
        assert [(line.attempt, line.crashes) for line in again] == [(2, 1), (2, 1)]
        idle.wait_for("JOB_COMPLETED", job_id=one)
        wait_until(lambda: one in campaign.results(redis_url))
        assert campaign.results(redis_url)[one].value == idle.pid
