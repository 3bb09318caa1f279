"""The rights that docs/redis.md gives to a producer, a worker and an observer: all that each needs, and no more.

Every journey ends with a look at what the server has refused: nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import JobStatus
from redis import Redis
from redis.exceptions import ResponseError

from runtime import Client, JobCancelled, JobFailed, QuotaExceeded, Request
from runtime.adapters.redis import keys, scripts
from runtime.core.errors import RedisUnreachable
from tests.e2e import roles
from tests.e2e.waking import Door
from tests.http.asking import site_of
from tests.processes import ROOT, Worker, command, enqueue, status, wait_until
from tests.servers import Server

MODULE = "tests.e2e.roles"
QUEUE = "arq:queue"
NOBODY = "http://localhost:1/wake"
PAGE = (ROOT / "docs" / "redis.md").read_text()
_RULES = [
    rules.replace("\n", " ") for rules in re.findall(r"^```text\n(ACL SETUSER .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]
_PRODUCER, _CANCELS, _WORKER, _OBSERVER = _RULES
RULES = [*_RULES[:1], _WORKER, _OBSERVER, *(rules.replace("producer", "canceller") for rules in (_PRODUCER, _CANCELS))]
"""Of a producer, a worker, an observer, and a producer that may cancel."""


@dataclass
class Shared:
    """A server of several users, its administrator first."""

    server: Server
    admin: Any

    def url(self, role: str) -> str:
        return self.server.tcp_url.replace("redis://", f"redis://{role}:password@")

    def refused(self) -> list[str]:
        """What anybody was refused so far, by user."""
        seen = self.admin.execute_command("ACL", "LOG", 100)
        refused = {f"{one['username']}: {one['reason']} {one['object']}" for one in map(_pairs, seen)}
        return sorted(
            text for text in refused if "command client" not in text
        )  # redis-py's name, which it can do without

    def forget(self) -> None:
        self.admin.execute_command("ACL", "LOG", "RESET")


def _pairs(entry: Any) -> dict[str, str]:
    return entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with (
        Server(options=("--notify-keyspace-events", "K$")) as server,
        Redis.from_url(server.url, decode_responses=True) as admin,
    ):
        for rules in RULES:
            admin.execute_command(*rules.split())
        yield Shared(server, admin)


@pytest.fixture(autouse=True)
def afresh(shared: Shared) -> None:
    shared.admin.flushall()
    shared.forget()


def worker(shared: Shared, **settings: Any) -> Worker:
    settings |= {"RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_LEASE": "1s", "WORKER_CONCURRENCY": 10}
    return Worker(MODULE, redis=shared.url("worker"), **settings)


def as_client(shared: Shared, role: str, journey: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        client = Client(shared.url(role), wake_urls=[NOBODY])
        try:
            await journey(client)
        except RedisUnreachable as error:
            raise AssertionError(shared.refused()) from error
        finally:
            await client.close()

    asyncio.run(run())


async def _enqueues_and_follows(client: Client) -> None:
    requests: list[Request[Any]] = [
        roles.at_the_second_try.options(key="k", priority=5).request(),
        roles.limited.request(),
        roles.for_good.options(delay="0.1s").request(),
        roles.another.request(),
    ]
    retried, limited, dead, another = await client.send(requests)
    (again,) = await client.send([roles.at_the_second_try.options(key="k").request()])
    for _ in range(2):
        (unique,) = await client.send([roles.long.options(key="u", unique_for="0.05s").request(0.0)])
        assert unique.created, "the second takes the id over"
        await unique.result("20s")
        await asyncio.sleep(0.1)
    assert not again.created
    assert await retried.result("20s") == 7
    await limited.result("20s")
    with pytest.raises(JobFailed):
        await dead.result("20s")
    assert await client.job(await another.result("20s"), QUEUE).result("20s") == 7
    for _ in range(2):
        await client.send([roles.modest.request("ana")])
    with pytest.raises(QuotaExceeded):
        await client.send([roles.modest.request("ana")])
    (slow,) = await client.send([roles.long.request(1.5)])
    await slow.result("20s")  # which is told over the channel
    (telling,) = await client.send([roles.tells.request()])
    seen = [event async for event in telling.events("20s")]
    assert [event.progress.done for event in seen if event.progress] == [3]
    assert seen[-1].status == "completed"
    await client.wake(QUEUE)


async def _cancels(client: Client) -> None:
    waiting, running = await client.send([roles.long.options(delay="1h").request(0.1), roles.long.request(30.0)])
    assert await waiting.status() == "deferred"
    assert await waiting.cancel() == "cancelled"
    with pytest.raises(JobCancelled):
        await waiting.result()
    while await running.status() != "active":
        await asyncio.sleep(0.05)
    assert await running.cancel() == "asked"
    with pytest.raises(JobCancelled):
        await running.result("20s")


async def _uses_stock_arq(url: str) -> None:
    pool: ArqRedis = await create_pool(RedisSettings.from_dsn(url))
    try:
        job = await pool.enqueue_job("at_the_second_try", _job_id="a", _defer_by=0.2)
        assert job is not None
        assert await pool.enqueue_job("at_the_second_try", _job_id="a") is None
        assert await job.info() is not None
        assert await job.result(timeout=20) == 7
        assert await job.status() is JobStatus.complete
        assert [one.function for one in await pool.queued_jobs()] == []
        running = await pool.enqueue_job("long", 30.0)
        assert running is not None
        while await running.status() is not JobStatus.in_progress:
            await asyncio.sleep(0.05)
        assert await running.abort(timeout=20)
    finally:
        await pool.aclose()


def test_producers_and_a_worker_do_all_they_should(shared: Shared) -> None:
    with worker(shared).up() as one:
        as_client(shared, "producer", _enqueues_and_follows)
        as_client(shared, "canceller", _cancels)
        asyncio.run(_uses_stock_arq(shared.url("producer")))
        here = keys.here(QUEUE)
        wait_until(lambda: shared.admin.execute_command("PUBSUB", "NUMSUB", here) == [here, 1], what="it is counted")
        wait_until(lambda: shared.admin.execute_command("PUBSUB", "NUMPAT") == 1, 10, f"it listens {shared.refused()}")
        assert one.stop() == 0
        assert not {"REDIS_AWAY", "REDIS_TROUBLE", "PART_FAILED"} & {
            line["event"] for line in one.lines() if "event" in line
        }
    assert shared.refused() == []


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_WEATHER") != "all", reason="only with RUNTIME_TEST_WEATHER=all")
def test_a_worker_goes_quiet_and_what_it_left_is_seen(shared: Shared) -> None:
    """Its last look, its leaving, and the sentinel's rights."""
    with worker(shared, RUNTIME_SLEEP_AFTER="5s").up() as one:
        site = site_of(one)
        wait_until(lambda: site.ask("GET", "/health").json["state"] == "quiet")
        assert one.stop() == 0
    with Door() as door:
        about: dict[str, Any] = {"arguments": ("-Q", QUEUE), "RUNTIME_WAKE_URL": door.url}
        with Worker(command="sentinel", redis=shared.url("worker"), **about).start() as sentinel:
            sentinel.wait_for("SENTINEL_HEARING", announced=True)
            enqueue(shared.url("producer"), roles.long.request(0.0))
            sentinel.wait_for("SENTINEL_RANG")
    assert shared.refused() == []


def _say(shared: Shared, folder: Path, role: str, *words: str) -> str:
    done = command(*words, folder=folder, REDIS_URL=shared.url(role), RUNTIME_HTTP="off", RUNTIME_WAKE_URL=NOBODY)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_an_observer_sees_everything_and_an_operator_mends_it(shared: Shared, tmp_path: Path) -> None:
    with worker(shared).up() as one:
        dead, limited = enqueue(shared.url("producer"), roles.for_good.request(), roles.limited.request())
        wait_until(lambda: status(shared.url("observer"), dead, QUEUE) == "dead")
        wait_until(lambda: status(shared.url("observer"), limited, QUEUE) == "completed")
        enqueue(shared.url("producer"), roles.long.request(60.0), *[roles.limited.request() for _ in range(4)])
        named = ("-Q", QUEUE)
        seen: list[tuple[tuple[str, ...], str]] = [
            (("inspect", "queues", *named), QUEUE),
            (("queue", "list", QUEUE), QUEUE),
            (("inspect", "jobs", *named), dead),
            (("inspect", "job", dead, "--args", *named), "never"),
            (("inspect", "workers", *named), "awake"),
            (("inspect", "limits", *named), "roles"),
            (("inspect", "sleep", *named), "RUNTIME_SLEEP_AFTER"),
            (("dlq", "list", *named), dead),
            (("dlq", "show", dead), "never"),
            (("limit", "list"), "roles"),
            (("limit", "show", "roles"), "roles"),
            (("schedule", "list", *named), "every 12 h"),
            (("job", dead, *named), "dead"),
            (("check", "--redis"), ""),
        ]
        for words, says in seen:
            assert says in _say(shared, tmp_path, "observer", *words), (words, shared.refused())
            assert shared.refused() == [], words
        mended: list[tuple[tuple[str, ...], str]] = [
            (("dlq", "list"), dead),
            (("dlq", "replay", dead), "back in its queue"),
            (("limit", "set", "roles", "--rate", "50/s"), "is 50/s"),
            (("limit", "reset", "roles"), "full again"),
            (("queue", "pause", QUEUE, "--for", "1m"), "paused for 1 m"),
            (("queue", "drain", QUEUE, "--timeout", "0.1s"), "stays paused"),
            (("queue", "purge", QUEUE, "--yes"), "were left alone"),
            (("queue", "resume", QUEUE), "resumed"),
            (("schedule", "pause", "seldom", *named), "paused"),
            (("schedule", "resume", "seldom", *named), "next at"),
            (("wake", "--if-due", *named), "nobody has to be woken"),
            (("doctor", MODULE), "0 failed"),
        ]
        for words, says in mended:
            assert says in _say(shared, tmp_path, "worker", *words), (words, shared.refused())
        assert shared.refused() == ["worker: command config|get"]  # the doctor, who does without
        assert one.running


FORBIDDEN: dict[str, list[str]] = {
    "producer": [
        "SET arq:in-progress:a 1-x",
        "SET arq:retry:a 9",
        "HSET rt:workers a b",
        "SET rt:{limit}:bucket:judit 0",
        "SET rt:{limit}:set:judit 0",
        "ZADD other:queue 0 a",
        "ZPOPMIN arq:queue",
        "PUBLISH rt:reply:a b",
        "SUBSCRIBE __keyspace@0__:arq:job:a",
    ],
    "worker": ["ZADD other:queue 0 a", "SUBSCRIBE others", "CONFIG SET maxmemory 1"],
    "observer": [
        "DEL arq:job:a",
        "ZREM arq:queue a",
        "SET rt:try:a 1",
        "ZADD arq:abort 0 a",
        "HDEL rt:workers a",
        "SUBSCRIBE rt:reply:a",
        "PUBLISH rt:reply:a b",
    ],
}
NOBODYS = ["GET secret", "SET secret 1", "KEYS *", "FLUSHALL", "CONFIG GET requirepass", "ACL LIST", "CLIENT LIST"]


def _refused(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except ResponseError:
        return True
    return False


@pytest.mark.parametrize("role", FORBIDDEN)
def test_what_a_role_must_not_do_is_refused(shared: Shared, role: str) -> None:
    shared.admin.set("secret", "it")
    with Redis.from_url(shared.url(role)) as redis:
        for line in (*FORBIDDEN[role], *NOBODYS):
            assert _refused(partial(redis.execute_command, *line.split())), line
            assert _refused(partial(redis.eval, "return redis.call(unpack(ARGV))", 0, *line.split())), line
    assert shared.admin.keys() == ["secret"]


def test_what_is_refused_is_said_clearly_and_nothing_is_lost(shared: Shared, tmp_path: Path) -> None:
    async def try_all(client: Client) -> None:
        (job,) = await client.send([roles.long.request(0.0)])
        before = shared.admin.zrange(QUEUE, 0, -1, withscores=True)
        with pytest.raises(RedisUnreachable, match="lacks a permission"):
            await job.cancel()
        with pytest.raises(RedisUnreachable, match="lacks a permission"):
            await client.send([roles.long.options(queue="other:queue").request(0.0)])
        claim = scripts.Claiming([QUEUE], room=1, lease_ms=1000, incarnation="a-1", seq=1)
        try:
            assert (await client.ask(claim)).jobs == []
        except RedisUnreachable as error:
            assert "lacks a permission" in str(error)  # noqa: PT017
        assert not shared.admin.exists(keys.IN_PROGRESS + job.id)
        assert await job.status() == "waiting"
        assert shared.admin.zrange(QUEUE, 0, -1, withscores=True) == before

    as_client(shared, "producer", try_all)
    assert not shared.admin.exists("other:queue")
    (job,) = shared.admin.zrange(QUEUE, 0, -1)
    for words in (("job", job, "--cancel"), ("enqueue", "long", "[0]", "-m", MODULE)):
        said = _say(shared, tmp_path, "observer", *words)
        assert "lacks a permission" in said, words
    assert shared.admin.zrange(QUEUE, 0, -1) == [job]


def test_a_worker_without_its_rights_waits_for_them(shared: Shared) -> None:
    (job,) = enqueue(shared.url("producer"), roles.long.request(0.0))
    mistaken = Worker(MODULE, redis=shared.url("producer"), RUNTIME_HTTP="on", PORT=0)
    with mistaken.start() as one:
        (away,) = one.wait_for("REDIS_AWAY")
        assert "lacks a permission" in away["message"]
        shared.admin.execute_command(*RULES[1].replace("worker", "producer").split())
        try:
            wait_until(lambda: status(shared.url("observer"), job, QUEUE) == "completed")
        finally:
            shared.admin.execute_command(*RULES[0].split())
        assert one.stop() == 0
