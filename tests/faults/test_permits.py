"""So many at once over several workers, whatever becomes of the workers. The witness is a file, not Redis."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from runtime.core.spec import DEFAULT_QUEUE
from tests.faults import campaign, exports, jobs
from tests.faults.ledger import Ledger, Line, executions, recoveries
from tests.processes import Worker, enqueue, wait_until, workers
from tests.servers import Server

LEASE_S = 3.0
SLACK_S = 5.0
"""What a machine that is busy with other things may add."""


def crew(url: str, ledger: Ledger, count: int = 3, slots: int = 20, **settings: Any) -> list[Worker]:
    settings = {"REDIS_URL": url, jobs.LEDGER: ledger.path, "WORKER_CONCURRENCY": slots, **settings}
    return [Worker("tests.faults.exports", RUNTIME_LEASE=f"{LEASE_S}s", **settings) for _ in range(count)]


def most_at_once(lines: Iterable[Line], only: Callable[[str], bool] = lambda job: True) -> int:
    """As the ledger has it. What a killed process ran is over with it."""
    running: set[tuple[int, str]] = set()
    most = 0
    for line in lines:
        match line.what:
            case "start" if only(line.job):
                running.add((line.pid, line.job))
                most = max(most, len(running))
            case "end" | "cancelled":
                running.discard((line.pid, line.job))
            case "killed":
                running = {run for run in running if run[0] != line.pid}
            case _:
                pass
    return most


def waiting(url: str, label: str) -> int:
    with Redis.from_url(url) as redis:
        return int(redis.zcard(keys.waiting(label)))


def permits_left(url: str) -> list[str]:
    with Redis.from_url(url, decode_responses=True) as redis:
        return [*redis.scan_iter("rt:{limit}:held:*"), *redis.scan_iter("rt:{limit}:waiting:*")]


def values(url: str) -> list[object]:
    return [result.value for result in campaign.results(url).values()]


def test_never_more_than_that_many_run_of_sixty_slots_and_hardly_fewer(redis_url: str, ledger: Ledger) -> None:
    lengths = [random.Random(1).uniform(0.05, 0.2) for _ in range(200)]
    with workers(crew(redis_url, ledger)) as three:
        for worker in three:
            worker.up()
        enqueue(redis_url, *(exports.export.request(length_s) for length_s in lengths))
        wait_until(lambda: campaign.ended(redis_url) == len(lengths), 60)
        wait_until(lambda: not permits_left(redis_url), 5)
        codes = [worker.stop() for worker in three]
        errors = "".join(worker.errors() for worker in three)
    lines = ledger.lines()
    took = max(line.at for line in lines) - min(line.at for line in lines)
    used = sum(lengths) / (exports.MOST * took)
    print(f"\n{len(lengths)} jobs in {took:.2f} s: {100 * used:.0f} % of {exports.MOST} places used")
    assert most_at_once(lines) == exports.MOST
    assert values(redis_url) == [1] * len(lengths)
    assert len({line.pid for line in lines}) == 3
    assert (codes, errors) == ([0, 0, 0], "")
    assert used > 0.5


def test_permits_of_several_limits_at_once_and_by_key(redis_url: str, ledger: Ledger) -> None:
    """Two that take the same do not wait for each other: everybody takes them in one order."""
    tenants = {}
    with workers(crew(redis_url, ledger)) as three:
        for worker in three:
            worker.up()
        for n in range(60):
            tenant = f"tenant {n % 6}"
            (job,) = enqueue(redis_url, exports.export_of.request(tenant, 0.1))
            tenants[job] = tenant
        wait_until(lambda: campaign.ended(redis_url) == 60, 60)
    lines = ledger.lines()
    assert most_at_once(lines) <= exports.MOST
    for tenant in set(tenants.values()):
        assert most_at_once(lines, lambda job, tenant=tenant: tenants[job] == tenant) == 1  # type: ignore[misc]
    assert values(redis_url) == [1] * 60


@pytest.mark.timeout(150)
def test_workers_are_killed_and_still_never_more_run_and_all_is_done(redis_url: str, ledger: Ledger) -> None:
    chance = random.Random(2)
    with workers(crew(redis_url, ledger, slots=6)) as three:
        for worker in three:
            worker.up()
        acked = enqueue(redis_url, *(exports.export.request(chance.uniform(0.1, 0.5)) for _ in range(150)))
        for _ in range(8):
            time.sleep(chance.uniform(0.5, 1.5))
            worker = chance.choice(three)
            worker.kill()
            ledger.note("killed", pid=worker.pid)
            worker.start()
        wait_until(lambda: campaign.ended(redis_url) == len(acked), 90)
        wait_until(lambda: not permits_left(redis_url), LEASE_S + SLACK_S)
    lines = ledger.lines()
    assert 2 <= most_at_once(lines) <= exports.MOST
    assert {job for job, runs in executions(lines).items() if runs[-1].end} >= {
        job for job in acked if job not in campaign.letters(redis_url)
    }


@pytest.mark.parametrize("away_s", [1, LEASE_S + 2], ids=["shorter than a lease", "longer than a lease"])
def test_redis_is_restarted_with_its_data_and_never_more_run(tmp_path: Path, ledger: Ledger, away_s: float) -> None:
    """Half of the jobs are longer than the outage, and hold their permits through it."""
    lengths = [0.1, away_s + 3] * 8
    with Server(tmp_path) as server, workers(crew(server.url, ledger)) as three:
        for worker in three:
            worker.up()
        enqueue(server.url, *(exports.export.request(length_s) for length_s in lengths))
        wait_until(lambda: len(ledger.starts()) > 4)
        server.kill()
        time.sleep(away_s)
        server.start()
        wait_until(lambda: campaign.ended(server.url) == len(lengths), 90)
        wait_until(lambda: not permits_left(server.url), LEASE_S + SLACK_S)
        found = values(server.url)
    assert most_at_once(ledger.lines()) == exports.MOST
    assert found == [1] * len(lengths)


def test_a_killed_holders_permit_is_free_within_its_lease_and_two_seconds(redis_url: str, ledger: Ledger) -> None:
    with workers(crew(redis_url, ledger, slots=3)) as three:
        dies, *others = three
        dies.up()
        enqueue(redis_url, exports.export_alone.request(60))
        wait_until(ledger.starts)
        for worker in others:
            worker.up()
        enqueue(redis_url, *(exports.export_alone.request(0) for _ in range(4)))
        wait_until(lambda: waiting(redis_url, "alone") == 4)
        ledger.note("killed", pid=dies.pid)
        died = time.monotonic()
        dies.kill()
        wait_until(lambda: len(ledger.starts()) > 1, LEASE_S + 2 + SLACK_S)
        took = ledger.starts()[1].at - died
        wait_until(lambda: campaign.ended(redis_url) == 5, 30)
        print(
            f"\nthe next began {took:.2f} s after the kill; the killed one again {recoveries(ledger.lines())[0]:.2f} s"
        )
    assert took < LEASE_S + 2
    assert most_at_once(ledger.lines()) == 1


def test_over_the_patience_a_job_is_snoozed_and_its_attempt_given_back(redis_url: str, ledger: Ledger) -> None:
    with workers(crew(redis_url, ledger, count=2, slots=2)) as both:
        for worker in both:
            worker.up()
        ids = enqueue(redis_url, *(exports.export_impatiently.request(1.5) for _ in range(3)))
        wait_until(lambda: campaign.ended(redis_url) == 3, 40)
        snoozed = [line for worker in both for line in worker.events("JOB_SNOOZED")]
    assert {line["job_id"] for line in snoozed} <= set(ids)
    assert len(snoozed) >= 2
    assert values(redis_url) == [1, 1, 1]
    assert most_at_once(ledger.lines()) == 1


def test_who_waits_is_given_back_at_once_when_its_worker_stops(redis_url: str, ledger: Ledger) -> None:
    with workers(crew(redis_url, ledger, count=2, slots=3, GRACEFUL_SHUTDOWN_TIMEOUT_MS=300)) as (holds, stops):
        holds.up()
        enqueue(redis_url, exports.export_alone.request(60))
        wait_until(ledger.starts)
        stops.up()
        enqueue(redis_url, *(exports.export_alone.request(0) for _ in range(4)))
        wait_until(lambda: waiting(redis_url, "alone") == 4)
        assert stops.stop() == 0
        wait_until(lambda: waiting(redis_url, "alone") == 2)
        assert stops.errors() == ""
        with Redis.from_url(redis_url) as redis:
            assert redis.zcard(DEFAULT_QUEUE) == 5


def test_a_job_that_asks_for_what_its_handler_holds_is_a_dead_letter_that_says_so(
    redis_url: str, ledger: Ledger
) -> None:
    with workers(crew(redis_url, ledger, count=1)) as (worker,):
        worker.up()
        (job,) = enqueue(redis_url, exports.export_within_itself.request())
        wait_until(lambda: campaign.ended(redis_url) == 1)
        (line,) = worker.wait_for("JOB_DEAD", job_id=job)
        wait_until(lambda: not permits_left(redis_url))
    assert "wait for itself" in str(line)
