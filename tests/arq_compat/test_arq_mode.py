"""arq applications, unchanged, by arq itself and by `runtime serve --arq`: what becomes of their jobs is the same."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import DeserializationError, Job, JobStatus, SerializationError
from arq.worker import JobExecutionFailed

from tests.arq_compat import documented
from tests.arq_compat.test_interop import with_arq
from tests.processes import ROOT, command, environment, wait_until

APPLICATIONS = "tests.arq_compat.documented"
SOON_S = 30.0


class Make:
    """A worker of one make or the other, for an application."""

    def __init__(self, kind: str, url: str, folder: Path, applications: str = APPLICATIONS) -> None:
        self.kind = kind
        self._applications = applications
        self.url = url
        self.notes = folder / f"notes of {kind}"
        self.notes.touch()
        self.settings: dict[str, Any] = {
            "APPLICATION_REDIS": url,
            "RUNTIME_TEST_NOTES": self.notes,
            "RUNTIME_HTTP": "off",
        }

    def command(self, settings: str, *arguments: str) -> list[str]:
        name = f"{self._applications}.{settings}"
        serve = ["arq", name] if self.kind == "arq" else ["runtime", "serve", "--arq", name]
        return [sys.executable, "-m", *serve, *arguments]

    def burst(self, settings: str, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run it until the queue is empty."""
        return subprocess.run(
            self.command(settings, "--burst", *arguments),
            cwd=ROOT,
            env=environment(**self.settings),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, settings: str) -> Process:
        return Process(self.command(settings), environment(**self.settings))

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines()


class Process:
    """A worker that stays."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(SOON_S)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=["arq", "runtime"])
def make(request: pytest.FixtureRequest, tcp_url: str, tmp_path: Path) -> Make:
    return Make(request.param, tcp_url, tmp_path)


def do(make: Make, work: Callable[[ArqRedis], Awaitable[Any]]) -> Any:
    return with_arq(make.url, work)


def enqueue(make: Make, *jobs: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    async def add(pool: ArqRedis) -> None:
        for function, args, options in jobs:
            assert await pool.enqueue_job(function, *args, **options) is not None

    do(make, add)


def outcome(make: Make, job_id: str) -> tuple[bool, Any, int]:
    """Of a job that has ended: its success, its value or exception, and its try."""

    async def ask(pool: ArqRedis) -> tuple[bool, Any, int]:
        info = await Job(job_id, pool).result_info()
        assert info is not None, f"{job_id} has no result"
        assert info.queue_name == "arq:queue"
        assert info.job_id == job_id
        assert info.start_time <= info.finish_time
        return info.success, info.result, info.job_try

    found: tuple[bool, Any, int] = do(make, ask)
    return found


def ttl_s(make: Make, key: str) -> float:
    async def ask(pool: ArqRedis) -> float:
        return float(await pool.pttl(key)) / 1000

    found: float = do(make, ask)
    return found


@pytest.mark.parametrize("settings", ["Usage", "AS_DICT"])
def test_a_session_that_startup_opens_is_shared_by_jobs_and_closed(make: Make, settings: str) -> None:
    urls = ["https://facebook.com", "https://microsoft.com"]
    enqueue(make, *(("download_content", (url,), {"_job_id": url}) for url in urls))
    done = make.burst(settings)
    assert done.returncode == 0, done.stderr
    assert [outcome(make, url) for url in urls] == [(True, len(f"content of {url}"), 1) for url in urls]
    assert make.noted() == ["startup", "session closed"]


def test_inherited_attributes_count(tcp_url: str, tmp_path: Path) -> None:
    """arq itself finds no function there, and ends."""
    ours, arqs = Make("runtime", tcp_url, tmp_path), Make("arq", tcp_url, tmp_path)
    enqueue(ours, ("download_content", ("url",), {"_job_id": "one"}))
    assert "at least one function" in arqs.burst("Inherits").stderr
    assert ours.burst("Inherits").returncode == 0
    assert outcome(ours, "one") == (True, 14, 1)


def test_values_ids_and_results(make: Make) -> None:
    async def produce(pool: ArqRedis) -> None:
        assert await pool.enqueue_job("the_task", _job_id="foobar") is not None
        assert await pool.enqueue_job("the_task", _job_id="foobar") is None, "the id is taken"
        assert await Job("foobar", pool).status() is JobStatus.queued

    do(make, produce)
    enqueue(
        make,
        ("item", ("a",), {"_job_id": "item"}),
        ("name_of", (documented.Item("b", [documented.Item("c", [])]),), {"_job_id": "name"}),
        ("shape", (1, None), {"x": b"\0", "at": datetime(2026, 1, 2, tzinfo=UTC), "_job_id": "shape"}),
        ("enqueues", (3,), {"_job_id": "first"}),
        ("unkept", (), {"_job_id": "unkept"}),
        ("for ever", (), {"_job_id": "for ever"}),
        ("tests.arq_compat.documented.the_task", (), {"_job_id": "dotted"}),
        ("the_task", (), {"_job_id": "third", "_job_try": 3}),
    )
    assert make.burst("Jobs").returncode == 0
    assert outcome(make, "foobar") == (True, 42, 1)
    assert outcome(make, "item") == (True, documented.Item("a", [documented.Item("part", [])]), 1)
    assert outcome(make, "name") == (True, "bc", 1)
    success, found, _ = outcome(make, "shape")
    keys = ["enqueue_time", "job_id", "job_try", "own", "redis", "score"]
    assert (success, found) == (
        True,
        [keys, 1, True, (1, None), {"x": b"\0", "at": datetime(2026, 1, 2, tzinfo=UTC)}],
    )
    assert outcome(make, "by first") == (True, 45, 1)
    assert outcome(make, "third") == (True, 42, 3)
    with pytest.raises(AssertionError, match="has no result"):
        outcome(make, "unkept")
    assert 3500 < ttl_s(make, "arq:result:foobar") <= 3600
    assert 250 < ttl_s(make, "arq:result:dotted") <= 300
    assert ttl_s(make, "arq:result:for ever") == -0.001, "it does not expire"


def test_failures_are_final_and_raised_where_they_are_awaited(make: Make) -> None:
    names = ["builtin", "own"]
    enqueue(make, *(("fails", (name,), {"_job_id": name}) for name in names), ("too_long", (), {"_job_id": "long"}))
    assert make.burst("Jobs").returncode == 0

    async def ask(pool: ArqRedis) -> None:
        with pytest.raises(ValueError, match=r"^a text$"):
            await Job("builtin", pool).result()
        with pytest.raises(documented.Wrong) as raised:
            await Job("own", pool).result()
        assert (raised.value.what, raised.value.code) == ("own", 7)
        with pytest.raises(TimeoutError):
            await Job("long", pool).result()

    do(make, ask)
    assert [outcome(make, name)[::2] for name in [*names, "long"]] == [(False, 1)] * 3


def test_an_exception_that_nobody_can_read_again_hides_nothing(make: Make) -> None:
    """Of arq's worker the whole result is unreadable (arq issue 123)."""
    enqueue(make, ("fails", ("own, unreadable",), {"_job_id": "one"}))
    assert make.burst("Jobs").returncode == 0
    if make.kind == "arq":
        with pytest.raises(DeserializationError):
            outcome(make, "one")
        return
    error = JobExecutionFailed("tests.arq_compat.documented.Unreadable: own 7")
    assert outcome(make, "one") == (False, error, 1)


def test_wrong_arguments_fail_the_job(make: Make) -> None:
    enqueue(make, ("the_task", (1, 2, 3), {"_job_id": "one"}))
    make.burst("Jobs")
    success, error, job_try = outcome(make, "one")
    assert (success, type(error), job_try) == (False, TypeError, 1)
    assert "the_task() takes from 1 to 2 positional arguments but 4 were given" in str(error)


def test_retries_are_asked_for_and_counted(make: Make) -> None:
    began = time.monotonic()
    enqueue(
        make,
        ("again", (3, 0.4), {"_job_id": "deferred"}),
        ("again", (99,), {"_job_id": "never"}),
        ("twice", (99,), {"_job_id": "twice"}),
        ("at_once", (), {"_job_id": "at once"}),
        ("again", (99,), {"_job_id": "late", "_job_try": 4}),
    )
    assert make.burst("Retries").returncode == 0
    assert time.monotonic() - began > 1.2, "deferred by 0.4 s, then by 0.8 s"
    assert outcome(make, "deferred") == (True, 3, 3)
    assert outcome(make, "never") == (False, JobExecutionFailed("max 4 retries exceeded"), 5)
    assert outcome(make, "twice") == (False, JobExecutionFailed("max 2 retries exceeded"), 3)
    assert outcome(make, "at once") == (True, 3, 3)
    assert outcome(make, "late") == (False, JobExecutionFailed("max 4 retries exceeded"), 5)
    assert sorted(line for line in make.noted() if "never" in line) == [f"run never {n}" for n in (1, 2, 3, 4)]


def test_retry_jobs_false_makes_a_retry_a_failure(make: Make) -> None:
    enqueue(make, ("again", (99,), {"_job_id": "one"}), ("at_once", (), {"_job_id": "two"}))
    make.burst("RetriesNot")
    success, error, job_try = outcome(make, "one")
    assert (success, repr(error), job_try) == (False, "<Retry defer 0.00s>", 1)
    success, error, job_try = outcome(make, "two")
    assert (success, repr(error), job_try) == (False, "RetryJob('once more')", 1)


def test_hooks_come_in_order_with_one_ctx(make: Make) -> None:
    enqueue(make, *(("hooked", (how,), {"_job_id": how}) for how in ("ok", "retry", "fail")))
    assert make.burst("Hooks").returncode == 0
    assert [line for line in make.noted() if line.split()[1] == "ok"] == [
        "start ok",
        "run ok 1",
        "end ok ok 0",
        "after ok ok 1",
    ]
    assert [line for line in make.noted() if line.split()[1] == "fail"] == [
        "start fail",
        "run fail 1",
        "end fail fail 0",
        "after fail fail 1",
    ]
    assert [line for line in make.noted() if line.split()[1] == "retry"] == [
        "start retry",
        "run retry 1",
        "end retry retry 0",
        "after retry retry 0",
        "start retry",
        "run retry 2",
        "end retry retry 0",
        "after retry retry 1",
    ]


def test_a_serializer_of_the_application(make: Make) -> None:
    async def session() -> tuple[Any, Any]:
        pool = await create_pool(
            RedisSettings.from_dsn(make.url),
            job_serializer=msgspec.msgpack.encode,
            job_deserializer=msgspec.msgpack.decode,
        )
        for job_id, name, args in (("one", "the_task", (1,)), ("bad", "fails", ("builtin",))):
            assert await pool.enqueue_job(name, *args, _job_id=job_id) is not None
        assert (await asyncio.to_thread(make.burst, "Packed")).returncode == 0
        jobs = [Job(job_id, pool, _deserializer=msgspec.msgpack.decode) for job_id in ("one", "bad")]
        found = [await job.result_info() for job in jobs]
        await pool.aclose()
        await pool.connection_pool.disconnect()
        return found[0], found[1]

    one, bad = asyncio.run(session())
    assert (one.success, one.result, one.function) == (True, 43, "the_task")
    assert bad.success is False
    assert bad.result == ("unable to serialize result" if make.kind == "arq" else "ValueError: a text")


def test_synchronous_work_in_a_pool_of_processes(make: Make) -> None:
    enqueue(make, *(("run_sync_task", (n,), {"_job_id": f"job {n}"}) for n in range(4)))
    assert make.burst("Processes").returncode == 0
    assert [outcome(make, f"job {n}") for n in range(4)] == [(True, n * n, 1) for n in range(4)]


def test_a_burst_waits_for_what_is_deferred(make: Make) -> None:
    async def produce(pool: ArqRedis) -> None:
        await pool.enqueue_job("the_task", _job_id="by", _defer_by=1)
        await pool.enqueue_job("the_task", _job_id="until", _defer_until=datetime.now(UTC) + timedelta(seconds=1.5))
        await pool.enqueue_job("the_task", _job_id="now")

    do(make, produce)
    make.burst("Jobs")
    assert make.noted() == ["run now 1", "run by 1", "run until 1"]


def test_a_job_is_aborted(make: Make) -> None:
    with make.start("Long"):

        async def play(pool: ArqRedis) -> None:
            job = await pool.enqueue_job("do_stuff", _job_id="one")
            assert job is not None
            await asyncio.to_thread(wait_until, lambda: "run one 1" in make.noted(), SOON_S)
            assert await job.status() is JobStatus.in_progress
            assert await job.abort(timeout=SOON_S, poll_delay=0.05)
            with pytest.raises(asyncio.CancelledError):
                await job.result()
            later = await pool.enqueue_job("do_stuff", 0, _job_id="later", _defer_by=3600)
            assert later is not None
            assert await later.abort(timeout=SOON_S, poll_delay=0.05)

        do(make, play)
    assert make.noted() == ["run one 1", "cancelled one"]


def test_arq_check_finds_the_worker(make: Make) -> None:
    check = [sys.executable, "-m", "arq", f"{APPLICATIONS}.Long", "--check"]

    def found() -> bool:
        return subprocess.run(check, cwd=ROOT, env=environment(**make.settings), capture_output=True).returncode == 0

    assert not found()
    with make.start("Long") as worker:
        wait_until(found, SOON_S)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert not found()


# What arq's own tests look at, of its worker and its jobs


def test_a_value_may_be_an_exception(make: Make) -> None:
    enqueue(make, ("error", (), {"_job_id": "one", "_queue_name": "another:queue"}))
    assert make.burst("Behaviours").returncode == 0

    async def ask(pool: ArqRedis) -> Any:
        return await Job("one", pool, "another:queue").result(timeout=5)

    assert repr(do(make, ask)) == "TypeError('a value')"


def test_a_queue_of_another_name_is_the_only_one_served(make: Make) -> None:
    enqueue(
        make,
        ("the_task", (), {"_job_id": "here", "_queue_name": "another:queue"}),
        ("the_task", (), {"_job_id": "elsewhere"}),
    )
    assert make.burst("Behaviours").returncode == 0
    assert make.noted() == ["run here 1"]


def test_no_more_than_max_jobs_run_at_once(make: Make) -> None:
    enqueue(make, *(("crowd", (), {"_job_id": f"{n}", "_queue_name": "another:queue"}) for n in range(12)))
    assert make.burst("Behaviours").returncode == 0

    async def ask(pool: ArqRedis) -> list[Any]:
        return [await Job(f"{n}", pool, "another:queue").result(timeout=5) for n in range(12)]

    assert max(do(make, ask)) == 4


def test_a_value_that_cannot_be_written(make: Make) -> None:
    enqueue(make, ("unserializable", (7,), {"_job_id": "one", "_queue_name": "another:queue"}))
    make.burst("Behaviours")

    async def ask(pool: ArqRedis) -> Any:
        job = Job("one", pool, "another:queue")
        with pytest.raises(SerializationError, match="unable to serialize result"):
            await job.result()
        return await job.result_info()

    found = do(make, ask)
    assert (found.success, found.args) == (False, (7,))
    assert found.result == "unable to serialize result" + (": function" if make.kind == "runtime" else "")


def test_a_job_that_expired_in_the_queue_has_failed(make: Make) -> None:
    enqueue(make, ("the_task", (), {"_job_id": "one", "_expires": 0.01}))
    time.sleep(0.1)
    assert make.burst("Jobs").returncode == 0
    success, error, _ = outcome(make, "one")
    assert (success, type(error)) == (False, JobExecutionFailed)
    assert make.noted() == []


def test_nothing_is_left_of_a_job_but_its_result(make: Make) -> None:
    enqueue(make, ("the_task", (), {"_job_id": "one"}), ("fails", ("builtin",), {"_job_id": "bad"}))
    make.burst("Jobs")

    async def left(pool: ArqRedis) -> list[str]:
        return sorted(key.decode() for key in await pool.keys("arq:*"))

    assert do(make, left) == ["arq:result:bad", "arq:result:one"]


def test_nothing_at_all_is_left_where_no_result_is_kept(make: Make) -> None:
    enqueue(make, ("the_task", (), {"_job_id": "one"}), ("fails", ("builtin",), {"_job_id": "bad"}))
    make.burst("KeepsNothing")

    async def left(pool: ArqRedis) -> list[str]:
        return sorted(key.decode() for key in await pool.keys("arq:*"))

    assert do(make, left) == []


def test_a_body_that_cannot_be_read_fails_its_job_alone(make: Make) -> None:
    async def write(pool: ArqRedis) -> None:
        await pool.set("arq:job:torn", b"\x80\x04not a pickle")
        await pool.zadd("arq:queue", {"torn": 1})

    do(make, write)
    enqueue(make, ("the_task", (), {"_job_id": "good"}))
    assert make.burst("Jobs").returncode == 0
    assert outcome(make, "good") == (True, 42, 1)
    success, error, _ = outcome(make, "torn")
    assert success is False
    assert isinstance(error, RuntimeError), "arq's DeserializationError is one, and our JobExecutionFailed"


def test_a_job_may_end_within_job_completion_wait(make: Make) -> None:
    with make.start("Completes") as worker:
        enqueue(make, ("do_stuff", (3,), {"_job_id": "one"}))
        wait_until(lambda: make.noted() == ["run one 1"], SOON_S)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    assert make.noted() == ["run one 1"]
    assert outcome(make, "one") == (True, "done", 1)


def test_two_workers_share_a_queue(make: Make) -> None:
    enqueue(make, *(("the_task", (n,), {"_job_id": f"job {n}"}) for n in range(60)))
    with make.start("Jobs"), make.start("Jobs"):
        wait_until(lambda: len(make.noted()) >= 60, SOON_S)
    assert sorted(make.noted()) == sorted(f"run job {n} 1" for n in range(60))


WRONG: dict[str, tuple[str, str]] = {
    "nothing here": ("nowhere.WorkerSettings", "there is no module 'nowhere'"),
    "no settings": ("tests.arq_compat.Nothing", "the module 'tests.arq_compat' has no Nothing"),
    "a broken module": ("functions = [no_such_function]", "broken.py:5 NameError"),
    "no name": ("WorkerSettings", "dotted name"),
    "functions": ("functions = [print]", "functions has print"),
    "a dotted name": ("functions = ['no.such.function']", "functions has no.such.function"),
    "no functions": ("x = 1", "no functions and no cron_jobs"),
    "max_jobs": ("functions = [task]; max_jobs = 'ten'", "max_jobs='ten'"),
    "timeout": ("functions = [task]; job_timeout = 'long'", "job_timeout='long'"),
    "hook": ("functions = [task]; on_startup = 1", "on_startup=1"),
    "redis": ("functions = [task]; redis_settings = 'redis://localhost'", "redis_settings='redis://localhost'"),
    "sentinel": (
        "functions = [task]; redis_settings = RedisSettings(host=[('a', 1)], sentinel=True)",
        "redis_settings names sentinels",
    ),
    "types": ("functions = [task]; runtime_types = [1]", "runtime_types has 1"),
    "cron": ("functions = [task]; cron_jobs = [task]", "cron_jobs has task"),
    "weekday": ("cron_jobs = [cron(task, weekday='tue')]", "cron_jobs has cron:task at times that never come"),
    "date": ("cron_jobs = [cron(task, month=2, day=30)]", "cron_jobs has cron:task at times that never come"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    body, said = WRONG[case]
    name = "broken.WorkerSettings"
    if "=" in body:
        statements = "\n".join(f"    {one.strip()}" for one in body.split(";"))
        (tmp_path / "broken.py").write_text(
            "from arq import cron\nfrom arq.connections import RedisSettings\nasync def task(ctx): ...\n"
            f"class WorkerSettings:\n{statements}\n"
        )
    else:
        name = body
    done = command("serve", "--arq", name, folder=tmp_path)
    assert done.returncode == 78, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
