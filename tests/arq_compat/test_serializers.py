"""Stock arq with `job_serializer` and `job_deserializer` on one side of the queue, ours on the other."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import JobStatus, SerializationError

from runtime import Client, JobCancelled, JobFailed
from runtime.adapters.redis import codecs
from tests.arq_compat import squeezed
from tests.processes import ROOT, Worker, command, wait_until

T = TypeVar("T")
Pair = tuple[Callable[[dict[str, Any]], bytes], Callable[[bytes], dict[str, Any]]]

PAIRS: dict[str, Pair] = {
    "json": (lambda fields: json.dumps(fields).encode(), json.loads),
    "indented json": (lambda fields: b"\n " + json.dumps(fields, indent=1).encode(), json.loads),
    "msgspec's json": (msgspec.json.encode, msgspec.json.decode),
    "msgspec's msgpack": (msgspec.msgpack.encode, msgspec.msgpack.decode),
    "squeezed": (squeezed.dumps, squeezed.loads),
}
try:
    import msgpack  # type: ignore[import-not-found,unused-ignore]  # not among our dependencies
except ImportError:
    pass
else:
    PAIRS["msgpack"] = (msgpack.packb, msgpack.unpackb)
SQUEEZED = "tests.arq_compat.squeezed"


def with_arq(url: str, pair: Pair | None, work: Callable[[ArqRedis], Awaitable[T]]) -> T:
    """Run `work` with a client of stock arq that uses this serializer."""

    async def session() -> T:
        serializer, deserializer = pair or (None, None)
        pool = await create_pool(RedisSettings.from_dsn(url), job_serializer=serializer, job_deserializer=deserializer)
        try:
            return await work(pool)
        finally:
            await pool.aclose()
            await pool.connection_pool.disconnect()

    return asyncio.run(session())


def with_ours(url: str, work: Callable[[Client], Awaitable[T]], serializer: str | None = None) -> T:
    async def session() -> T:
        client = Client(url, serializer=codecs.named(serializer))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(session())


@contextmanager
def our_worker(url: str, notes: Path, **settings: Any) -> Iterator[Worker]:
    with Worker("tests.arq_compat.applications", redis=url, RUNTIME_TEST_NOTES=notes, **settings) as worker:
        yield worker.up()


@contextmanager
def stock_worker(url: str, notes: Path, serializer: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [url, str(notes), "10", serializer]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.arq_compat.applications", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", PAIRS)
def test_stock_arqs_jobs_are_run_and_answered_in_their_serializer(name: str, tcp_url: str, tmp_path: Path) -> None:
    ids: list[str] = []

    async def produce(pool: ArqRedis) -> None:
        good = await pool.enqueue_job("shapes_of_text", 1, "é😀", [None, {"a": 2.5}], b="x,{}")
        bad = await pool.enqueue_job("fail", "builtin")
        odd = await pool.enqueue_job("fail", "odd")
        unfit = await pool.enqueue_job("shapeless")
        assert good is not None
        assert bad is not None
        assert odd is not None
        assert unfit is not None
        found = await good.result(timeout=30, poll_delay=0.02)
        assert found == {"args": [1, "é😀", [None, {"a": 2.5}]], "kwargs": {"b": "x,{}"}, "try": 1}
        info = await good.result_info()
        assert info is not None
        assert (info.function, info.success, info.queue_name) == ("shapes_of_text", True, "arq:queue")
        assert list(info.args) == [1, "é😀", [None, {"a": 2.5}]]
        with pytest.raises(SerializationError, match=r"^ValueError: a text$"):
            await bad.result(timeout=30, poll_delay=0.02)
        with pytest.raises(SerializationError, match=r"^tests\.arq_compat\.applications\.Odd: one and two$"):
            await odd.result(timeout=30, poll_delay=0.02)
        assert "cannot be kept as a result: object" in await unfit.result(timeout=30, poll_delay=0.02)
        assert await bad.status() is JobStatus.complete
        ids.extend(job.job_id for job in (good, bad, odd, unfit))

    settings = {"RUNTIME_SERIALIZER": SQUEEZED} if name == "squeezed" else {}
    with our_worker(tcp_url, tmp_path / "notes", **settings):
        with_arq(tcp_url, PAIRS[name], produce)

    async def follow(client: Client) -> None:
        good, bad, odd, _ = (client.job(job_id) for job_id in ids)
        assert (await good.result("20s"))["try"] == 1
        assert [await job.status() for job in (good, bad)] == ["completed", "dead"]
        with pytest.raises(JobFailed) as failure:
            await bad.result("20s")
        assert (failure.value.error, failure.value.text) == ("ValueError", "a text")
        with pytest.raises(JobFailed) as failure:
            await odd.result("20s")
        assert (failure.value.error, failure.value.text) == ("tests.arq_compat.applications.Odd", "one and two")

    with_ours(tcp_url, follow, settings.get("RUNTIME_SERIALIZER"))


@pytest.mark.parametrize("name", ["json", "msgspec's msgpack", "squeezed"])
def test_an_aborted_job_of_any_serializer_is_cancelled_to_our_client(name: str, tcp_url: str, tmp_path: Path) -> None:
    async def produce(pool: ArqRedis) -> str:
        job = await pool.enqueue_job("sleep")
        assert job is not None
        while await job.status() is not JobStatus.in_progress:
            await asyncio.sleep(0.02)
        await pool.zadd("arq:abort", {job.job_id: round(datetime.now(UTC).timestamp() * 1000)})
        with pytest.raises(SerializationError, match="CancelledError"):
            await job.result(timeout=30, poll_delay=0.05)
        return job.job_id

    serializer = SQUEEZED if name == "squeezed" else None
    settings = {"RUNTIME_SERIALIZER": serializer} if serializer else {}
    with our_worker(tcp_url, tmp_path / "notes", **settings):
        job_id = with_arq(tcp_url, PAIRS[name], produce)

    async def follow(client: Client) -> None:
        assert await client.job(job_id).status() == "cancelled"
        with pytest.raises(JobCancelled):
            await client.job(job_id).result("5s")

    with_ours(tcp_url, follow, serializer)


@pytest.mark.parametrize("serializer", [SQUEEZED, "json"])
def test_our_client_with_a_serializer_is_served_by_a_stock_worker_with_it(
    serializer: str, tcp_url: str, tmp_path: Path
) -> None:
    async def produce(client: Client) -> None:
        job = await client.enqueue("double", [21])
        wrong = await client.enqueue("double", ["two", 3])
        assert await job.result("30s") == 42
        assert await job.status() == "completed"
        with pytest.raises(JobFailed, match="unable to serialize result"):  # as arq has it
            await wrong.result("30s")

    with stock_worker(tcp_url, tmp_path / "notes", serializer):
        with_ours(tcp_url, produce, serializer)


def test_while_producers_change_over_a_queue_holds_both(tcp_url: str, tmp_path: Path) -> None:
    async def produce(pool: ArqRedis) -> int:
        job = await pool.enqueue_job("double", 4)
        assert job is not None
        found: int = await job.result(timeout=30, poll_delay=0.02)
        return found

    async def produce_ours(client: Client) -> object:
        return await (await client.enqueue("double", [4])).result("30s")

    with our_worker(tcp_url, tmp_path / "notes", RUNTIME_SERIALIZER=SQUEEZED):
        assert [with_arq(tcp_url, pair, produce) for pair in (None, *PAIRS.values())] == [8] * (1 + len(PAIRS))
        assert [with_ours(tcp_url, produce_ours, name) for name in (None, SQUEEZED)] == [8, 8]


def test_commands_use_the_serializer_of_the_environment(tcp_url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(Path(squeezed.__file__).read_text())
    (tmp_path / "shop.py").write_text(
        "from runtime import Permanent, handler\n"
        "@handler\nasync def sell(ctx, n: int) -> int:\n"
        "    if n < 0:\n        raise Permanent('less than nothing')\n    return n\n"
    )
    at: dict[str, Any] = {"REDIS_URL": tcp_url, "RUNTIME_SERIALIZER": "mine"}
    with Worker("shop", redis=tcp_url, folder=tmp_path, RUNTIME_SERIALIZER="mine") as worker:
        worker.up()
        done = command("enqueue", "sell", "7", "-m", "shop", "--wait", folder=tmp_path, **at)
        assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
        sold = done.stderr.split()[1]
        dead = command("enqueue", "sell", "[-7]", "-m", "shop", "--key", "x", folder=tmp_path, **at)
        assert dead.returncode == 0, dead.stderr
        worker.wait_for("JOB_DEAD")
    status = json.loads(command("job", "sell:x", folder=tmp_path, **at).stdout)
    assert (status["status"], status["error"]) == (
        "dead",
        {"type": "runtime.Permanent", "message": "less than nothing"},
    )
    letter = json.loads(command("dlq", "show", "sell:x", folder=tmp_path, **at).stdout)
    assert letter["args"] == [-7]

    def inspect(*arguments: str) -> dict[str, Any]:
        done = command("inspect", *arguments, "-m", "shop", "--json", folder=tmp_path, **at)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    assert inspect("job", sold, "--args")["job"]["value"] == 7
    assert inspect("job", "sell:x", "--args")["job"]["args"] == [-7]
    assert command("dlq", "replay", "sell:x", folder=tmp_path, **at).returncode == 0
    (listed,) = inspect("jobs")["queues"][0]["jobs"]
    assert (listed["handler"], listed["trouble"]) == ("sell", None)


@pytest.mark.parametrize("name", ["no_such.module", "math", "not a name"])
def test_a_serializer_that_is_none_is_refused_at_boot(name: str, redis_url: str) -> None:
    for arguments in (("serve", "tests.arq_compat.applications"), ("job", "x")):
        done = command(*arguments, REDIS_URL=redis_url, RUNTIME_SERIALIZER=name, RUNTIME_HTTP="off")
        assert done.returncode == 78, done.stderr
        assert "RUNTIME_SERIALIZER" in done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_pickle_as_a_serializer_is_allowed_and_warned_of_at_every_boot(tcp_url: str, tmp_path: Path) -> None:
    with our_worker(tcp_url, tmp_path / "notes", RUNTIME_SERIALIZER="pickle") as worker:

        async def produce(pool: ArqRedis) -> None:
            good, bad = await pool.enqueue_job("double", 4), await pool.enqueue_job("fail", "builtin")
            assert good is not None
            assert bad is not None
            assert await good.result(timeout=30, poll_delay=0.02) == 8
            with pytest.raises(ValueError, match="a text"):
                await bad.result(timeout=30, poll_delay=0.02)

        with_arq(tcp_url, None, produce)
        worker.stop()
        worker.up()
        wait_until(lambda: len(worker.events("SERIALIZER_TRUSTED")) == 2)
        assert "trusted" in worker.events("SERIALIZER_TRUSTED")[0]["message"]
