"""`runtime queue`, over workers that run; and seven queues in one of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from runtime import Client, JobCancelled, connect
from runtime.adapters.redis import keys
from tests.e2e.many import SEVEN, digest, general, transcribe
from tests.e2e.waking import Door
from tests.processes import Worker, command, enqueue, status, wait_until, workers

MODULE = "tests.e2e.many"


def queue(url: str, *arguments: str, code: int = 0, **settings: Any) -> str:
    """What the command says."""
    done = command("queue", *arguments, REDIS_URL=url, **settings)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def as_client(url: str, journey: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connect(url) as client:
            await journey(client)

    asyncio.run(run())


def is_over(url: str, job_id: str, of: str) -> bool:
    return status(url, job_id, of) == "completed"


def test_a_paused_queue_rests_on_all_workers_until_it_is_resumed(redis_url: str) -> None:
    with workers([Worker(MODULE, redis=redis_url, RUNTIME_LEASE="1s") for _ in range(2)]) as both:
        for worker in both:
            worker.up()
        (before,) = enqueue(redis_url, general.request())
        wait_until(lambda: is_over(redis_url, before, "default"))
        said = queue(redis_url, "pause", "default", "--reason", "a bad deploy")
        assert "default: paused until: runtime queue resume default; 0 waiting, 0 deferred, 0 running" in said
        ids = enqueue(redis_url, *[general.request() for _ in range(20)])
        (elsewhere,) = enqueue(redis_url, transcribe.request(0.0))
        wait_until(lambda: is_over(redis_url, elsewhere, "asr"))
        time.sleep(1.5)
        assert {status(redis_url, one, "default") for one in ids} == {"waiting"}

        listed = json.loads(queue(redis_url, "list", "default", "--json"))
        (found,) = listed["queues"]
        assert (found["waiting"], found["workers"], found["paused"]["reason"]) == (20, 2, "a bad deploy")
        assert "paused until it is resumed: a bad deploy" in queue(redis_url, "list", "default")
        assert "paused until it is resumed" in command("inspect", "queues", REDIS_URL=redis_url).stdout

        assert "default: resumed; " in queue(redis_url, "resume", "default")
        wait_until(lambda: all(is_over(redis_url, one, "default") for one in ids))
        assert "it was not paused" in queue(redis_url, "resume", "default")


def test_a_secret_in_the_reason_of_a_pause_is_not_shown(redis_url: str) -> None:
    """Everybody who may look at the queues sees it."""
    secret = "canary-of-a-pause-5e1f"
    queue(redis_url, "pause", "default", "--reason", f"the key {secret} is spent", OPENAI_API_KEY=secret)
    assert "paused until it is resumed: the key [redacted] is spent" in queue(redis_url, "list", "default")


def test_a_pause_with_an_end_is_over_by_itself(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url) as worker:
        worker.up()
        assert "paused for 2 s" in queue(redis_url, "pause", "default", "--for", "2s")
        began = time.monotonic()
        (job_id,) = enqueue(redis_url, general.request())
        wait_until(lambda: is_over(redis_url, job_id, "default"))
        assert time.monotonic() - began > 0.5


def test_a_drain_waits_for_what_runs_and_starts_nothing(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url) as worker:
        worker.up()
        (running,) = enqueue(redis_url, general.request(4.0))
        wait_until(lambda: status(redis_url, running, "default") == "active")
        queue(redis_url, "pause", "default", "--reason", "maintenance")
        (waiting,) = enqueue(redis_url, general.request())
        late = queue(redis_url, "drain", "default", "--timeout", "0.1s", code=75)
        assert "1 jobs of default still run after 100 ms" in late
        assert "the queue stays paused" in late
        assert "nothing of it runs" in queue(redis_url, "drain", "default")
        assert status(redis_url, running, "default") == "completed"
        assert status(redis_url, waiting, "default") == "waiting"
        assert "until it is resumed: maintenance" in queue(redis_url, "list", "default")
        queue(redis_url, "resume", "default")
        wait_until(lambda: is_over(redis_url, waiting, "default"))


def test_a_purge_leaves_what_runs_and_tells_who_waits(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url, WORKER_CONCURRENCY=1) as worker:
        worker.up()
        (running,) = enqueue(redis_url, transcribe.request(6.0))
        wait_until(lambda: status(redis_url, running, "asr") == "active")
        ids = enqueue(redis_url, *[transcribe.request(60.0) for _ in range(250)])
        ids += enqueue(redis_url, transcribe.options(delay="1h", priority=9).request(60.0))

        async def waits(client: Client) -> None:
            with pytest.raises(JobCancelled):
                await client.job(ids[200], "asr").result("60s")

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(as_client, redis_url, waits)
            with Redis.from_url(redis_url) as redis:
                wait_until(lambda: redis.exists(keys.AWAITED + ids[200]))
            refused = queue(redis_url, "purge", "asr", code=2)
            assert "runtime queue purge asr --yes" in refused
            assert queue(redis_url, "purge", "asr", "--yes") == "asr: 251 jobs removed; 1 run, and were left alone\n"
            waiting.result(20)
        assert status(redis_url, ids[0], "asr") == "unknown"
        wait_until(lambda: is_over(redis_url, running, "asr"))
        with Redis.from_url(redis_url) as redis:
            assert not redis.keys("arq:job:*")
            assert not redis.exists(keys.later("asr"))


def test_nobody_is_woken_for_a_paused_queue_but_with_the_resume(redis_url: str) -> None:
    with Door() as door:
        queue(redis_url, "pause", "default")
        added = command("enqueue", "general", "-m", MODULE, REDIS_URL=redis_url, RUNTIME_WAKE_URL=door.url)
        assert (added.returncode, added.stderr) == (0, "")
        wake = command("wake", "--if-due", "-Q", "default", REDIS_URL=redis_url, RUNTIME_WAKE_URL=door.url)
        assert "nothing is due" in wake.stdout
        queue(redis_url, "pause", "default", RUNTIME_WAKE_URL=door.url)
        assert not door.rung_at
        said = queue(redis_url, "resume", "default", RUNTIME_WAKE_URL=door.url)
        assert f"{door.url} answered" in said
        assert len(door.rung_at) == 1


def test_who_sleeps_is_told_when_a_pause_is_given_an_end(redis_url: str) -> None:
    with Door() as door:
        queue(redis_url, "pause", "default", "--for", "1h", RUNTIME_WAKE_URL=door.url)
        assert not door.rung_at, "there is nothing that waits for it"
        queue(redis_url, "pause", "default")
        enqueue(redis_url, general.request())
        said = queue(redis_url, "pause", "default", "--for", "1h", RUNTIME_WAKE_URL=door.url)
        assert f"{door.url} answered" in said
        assert len(door.rung_at) == 1


def test_who_sleeps_is_woken_by_a_resume_also_where_there_are_schedules_alone(redis_url: str) -> None:
    with Door() as door, Redis.from_url(redis_url) as redis:
        redis.zadd(keys.schedule("default"), {"stopped": "inf"})
        queue(redis_url, "pause", "default")
        queue(redis_url, "resume", "default", RUNTIME_WAKE_URL=door.url)
        assert not door.rung_at, "a schedule that is paused is never due"
        redis.zadd(keys.schedule("default"), {"seldom": 1000 * time.time() + 3_600_000})
        queue(redis_url, "pause", "default")
        queue(redis_url, "resume", "default", RUNTIME_WAKE_URL=door.url)
        assert len(door.rung_at) == 1, "nobody stayed awake for it while the queue was paused"


def test_a_worker_goes_to_sleep_on_a_paused_queue_and_wakes_with_it(redis_url: str) -> None:
    settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_SLEEP_AFTER": "5s"}
    with Worker(MODULE, redis=redis_url, **settings) as worker:
        worker.up()
        queue(redis_url, "pause", "default")
        (job_id,) = enqueue(redis_url, general.request())
        worker.wait_for("WORKER_QUIET")
        assert status(redis_url, job_id, "default") == "waiting"
        port = worker.wait_for("HTTP_LISTENING")[0]["message"].rpartition(" ")[2]
        queue(redis_url, "resume", "default", RUNTIME_WAKE_URL=f"http://127.0.0.1:{port}/wake")
        wait_until(lambda: is_over(redis_url, job_id, "default"))


def test_a_worker_stays_awake_for_the_end_of_a_pause(redis_url: str) -> None:
    settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_SLEEP_AFTER": "5s"}
    with Worker(MODULE, redis=redis_url, **settings) as worker:
        worker.up()
        queue(redis_url, "pause", "default", "--for", "9s")
        (job_id,) = enqueue(redis_url, general.request())
        wait_until(lambda: is_over(redis_url, job_id, "default"))
        assert not worker.events("WORKER_QUIET"), "nobody else would have looked"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pause", "default", "--for", "soon"), "--for"),
        (("pause", "default", "--for", "0s"), "longer than nothing"),
        (("pause", "default", "--until", "2027-01-31T09:30:00"), "with its time zone"),
        (("pause", "default", "--until", "2020-01-31T09:30:00Z"), "that is past"),
        (("pause", "default", "--for", "1m", "--until", "2027-01-31T09:30:00Z"), "not allowed with"),
        (("pause", ""), "1 to 512 characters"),
        (("drain", "default", "--timeout", "soon"), "--timeout"),
    ],
)
def test_what_makes_no_pause_is_refused(redis_url: str, arguments: tuple[str, ...], said: str) -> None:
    assert said in queue(redis_url, *arguments, code=2)
    with Redis.from_url(redis_url) as redis:
        assert not redis.keys("rt:*")


# -- seven queues


def test_seven_queues_in_one_worker_and_a_slow_one_with_slots_of_its_own(redis_url: str) -> None:
    flags = [word for name in SEVEN for word in ("-Q", "asr=2" if name == "asr" else name)]
    with Worker(MODULE, redis=redis_url, arguments=flags, WORKER_CONCURRENCY=3) as worker:
        worker.up()
        slow = enqueue(redis_url, *[transcribe.request(60.0) for _ in range(20)])
        wait_until(lambda: [status(redis_url, one, "asr") for one in slow[:2]] == ["active"] * 2)
        others = [name for name in SEVEN if name != "asr"]
        ids = enqueue(redis_url, *[general.options(queue=name).request() for name in others])
        wait_until(lambda: all(is_over(redis_url, *one) for one in zip(ids, others, strict=True)), 20)
        assert status(redis_url, slow[2], "asr") == "waiting"


def test_a_slow_queue_that_shares_slots_takes_its_turn(redis_url: str) -> None:
    flags = [word for name in SEVEN for word in ("-Q", name)]
    with Worker(MODULE, redis=redis_url, arguments=flags, WORKER_CONCURRENCY=2) as worker:
        worker.up()
        slow = enqueue(redis_url, *[transcribe.request(2.0) for _ in range(40)])
        wait_until(lambda: status(redis_url, slow[0], "asr") == "active")
        others = [name for name in SEVEN if name != "asr"]
        ids = enqueue(redis_url, *[general.options(queue=name).request() for name in others])
        wait_until(lambda: all(is_over(redis_url, *one) for one in zip(ids, others, strict=True)), 30)
        assert status(redis_url, slow[-1], "asr") == "waiting", "they were served before its backlog was"


# -- unique jobs


def test_a_job_is_unique_by_its_handler_and_arguments(redis_url: str) -> None:
    async def journey(client: Client) -> None:
        first = await digest.enqueue(7)
        assert first.created
        for again in (
            await digest.enqueue(7, "today"),
            await digest.enqueue(user_id=7, loud=False),
            await client.enqueue(
                "digest",
                kwargs={"user_id": 7, "day": "today", "loud": False},
                options={"queue": "default", "unique_for": "1h"},
            ),
        ):
            assert (again.created, again.id) == (False, first.id)
        for another in (await digest.enqueue(8), await digest.enqueue(7, loud=True), await digest.enqueue(7, "7")):
            assert another.created
        by_key = await digest.options(key="ana").enqueue(7)
        assert (by_key.created, by_key.id) == (True, "digest:ana")
        assert not (await digest.options(key="ana").enqueue(9)).created
        free = [await digest.options(unique_for=0).enqueue(7) for _ in range(2)]
        assert all(job.created for job in free)
        assert free[0].id != free[1].id

    as_client(redis_url, journey)
    with Worker(MODULE, redis=redis_url) as worker, Redis.from_url(redis_url) as redis:
        worker.up()
        wait_until(lambda: not redis.exists("default"))
        assert not redis.keys("arq:result:*")

        async def later(client: Client) -> None:
            again = await digest.enqueue(7)
            assert not again.created
            assert await again.status() == "unknown", "it has ended, and left nothing"

        as_client(redis_url, later)
        said = command("enqueue", "digest", "[7]", "-m", MODULE, REDIS_URL=redis_url).stdout
        assert "there already" in said
        said = command("enqueue", "digest", "[7]", "-m", MODULE, "--unique-for", "0s", REDIS_URL=redis_url).stdout
        assert "there already" not in said
        for key in redis.scan_iter("rt:unique:*"):
            assert 3_000_000 < redis.pttl(key) <= 3_600_000
            redis.delete(key)
        as_client(redis_url, created_again)


async def created_again(client: Client) -> None:
    assert (await digest.enqueue(7)).created


def test_cancelling_a_unique_job_that_runs_frees_its_id(redis_url: str) -> None:
    unique = transcribe.options(unique_for="1h", key="ana")
    with Worker(MODULE, redis=redis_url, RUNTIME_LEASE="1s") as worker:
        worker.up()
        (job_id,) = enqueue(redis_url, unique.request(60.0))
        wait_until(lambda: status(redis_url, job_id, "asr") == "active")

        async def journey(client: Client) -> None:
            assert not (await unique.enqueue(60.0)).created
            job = client.job(job_id, "asr")
            assert await job.cancel() == "asked"
            with pytest.raises(JobCancelled):
                await job.result("30s")
            assert (await unique.enqueue(0.0)).created

        as_client(redis_url, journey)
        wait_until(lambda: is_over(redis_url, job_id, "asr"))
