"""Document 002: what a free user and a subscriber may export, over three workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.http.asking import TOKEN, Answer, Site, site_of
from tests.processes import Worker, command, wait_until, workers

LIMITS = {
    "FREE_USER_HOURLY_LIMIT": 10,
    "SUBSCRIBER_HOURLY_LIMIT": 50,
    "FREE_USER_PENDING_LIMIT": 5,
    "SUBSCRIBER_PENDING_LIMIT": 20,
}
MODULE = "tests.e2e.exports"
FREE, SUBSCRIBER = ("ana@example.com", "free", 10, 5), ("bo@example.com", "subscriber", 50, 20)


@dataclass
class Kitchen:
    """Three workers, asked in turn."""

    url: str
    settings: dict[str, Any]
    workers: Sequence[Worker]

    def open(self) -> None:
        Path(self.settings["KITCHEN_OPEN"]).touch()

    def ask(self, number: int, user: str, tier: str) -> list[Answer]:
        """So many requests at once, over all ports."""
        sites = cycle([site_of(worker) for worker in self.workers])
        order = {"handler": "export", "kwargs": {"menu": 7, "user_id": user, "tier": tier}}

        def post(site: Site) -> Answer:
            return site.ask("POST", "/jobs", order)

        with ThreadPoolExecutor(12) as pool:
            return list(pool.map(post, [next(sites) for _ in range(number)]))


@pytest.fixture
def kitchen(redis_url: str, tmp_path: Path) -> Iterator[Kitchen]:
    settings: dict[str, Any] = {**LIMITS, "KITCHEN_OPEN": tmp_path / "open", "RUNTIME_TOKEN": TOKEN}
    made = [Worker(MODULE, redis=redis_url, RUNTIME_HTTP="on", PORT=0, **settings) for _ in range(3)]
    with workers(made) as three:
        for worker in three:
            worker.up()
        yield Kitchen(redis_url, settings, three)


def over(answers: Sequence[Answer]) -> list[Answer]:
    """Those that were refused; the others were accepted, each as a job of its own."""
    refused = [answer for answer in answers if answer.code == 429]
    assert all(answer.error == "quota-exceeded" for answer in refused)
    ids = [answer.json["jobId"] for answer in answers if answer.code == 202]
    assert len(set(ids)) == len(ids) == len(answers) - len(refused)
    return refused


def completed(redis: Any) -> int:
    return int(redis.hget(keys.count("exports"), "completed") or 0)


@pytest.mark.timeout(240)
def test_each_tier_gets_its_own_limits_and_not_one_job_more(kitchen: Kitchen) -> None:
    with Redis.from_url(kitchen.url) as redis:
        # Nothing ends: the limits of pending jobs, hit from three sides at once.
        for user, tier, _, pending in (FREE, SUBSCRIBER):
            refused = over(kitchen.ask(3 * pending, user, tier))
            assert len(refused) == 2 * pending
            assert {answer.headers["Retry-After"] for answer in refused} == {"5"}
            (message,) = {answer.json["error"]["message"] for answer in refused}
            assert f"{pending} jobs at a time for the tier '{tier}': {pending} waiting or running" in message
        assert redis.zcard("exports") == 25

        # They end, and each makes room for another, until the hour is used up.
        kitchen.open()
        for user, tier, hourly, pending in (FREE, SUBSCRIBER):
            accepted = pending
            while True:
                answers = kitchen.ask(15, user, tier)
                refused = over(answers)
                accepted += len(answers) - len(refused)
                waits = Counter(answer.headers["Retry-After"] != "5" for answer in refused)
                if waits[True] == len(answers):
                    break
            assert accepted == hourly
            assert all(3300 < int(answer.headers["Retry-After"]) <= 3600 for answer in refused)
            assert f"over the limit of {hourly} jobs an hour" in refused[0].json["error"]["message"]
        wait_until(lambda: completed(redis) == 60, 60, "all have been rendered")
        assert redis.zcard("exports") == 0

        # An hour later.
        for user, tier, _, pending in (FREE, SUBSCRIBER):
            tally = keys.quota("exports", user)
            redis.zadd(tally, {label: when - 3_600_000 for label, when in redis.zrange(tally, 0, -1, withscores=True)})
            assert not over(kitchen.ask(pending, user, tier))
        wait_until(lambda: completed(redis) == 85, 60, "these too")
    assert all("example.com" not in worker.output() + worker.errors() for worker in kitchen.workers)


def test_the_command_says_it_and_exits_with_75(redis_url: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **LIMITS,
        "FREE_USER_PENDING_LIMIT": 1,
        "KITCHEN_OPEN": tmp_path,
        "REDIS_URL": redis_url,
    }

    def run() -> tuple[int, str]:
        done = command("enqueue", "-m", MODULE, "export", '[7, "ana@example.com"]', **settings)
        return done.returncode, done.stderr

    assert run() == (0, "")
    assert run() == (
        75,
        "error: exports: over the limit of 1 job at a time for the tier 'free': 1 waiting or running\n"
        "hint: try again in 5 s\n",
    )
