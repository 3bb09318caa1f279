"""Commands about an arq application, by `--arq` alone: no REDIS_URL, no -Q, and a folder without handlers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis import Redis

from tests.arq_compat import operated, squeezed
from tests.arq_compat.documented import Item
from tests.arq_compat.test_arq_mode import Make
from tests.arq_compat.test_interop import with_arq
from tests.processes import command, wait_until

MODULE = "tests.arq_compat.operated"
QUEUE = operated.Operated.queue_name


class Desk:
    """Where somebody gives commands about the application."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder

    def run(self, *arguments: str, settings: str = "Operated") -> subprocess.CompletedProcess[str]:
        done = command(*arguments, "--arq", f"{MODULE}.{settings}", folder=self._folder, APPLICATION_REDIS=self._url)
        assert not (self._folder / ".runtime").exists(), "it has begun an embedded server"
        return done

    def say(self, *arguments: str, settings: str = "Operated") -> str:
        done = self.run(*arguments, settings=settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def document(self, *arguments: str, settings: str = "Operated") -> Any:
        return json.loads(self.say(*arguments, settings=settings))


@pytest.fixture
def desk(tcp_url: str, tmp_path: Path) -> Desk:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Desk(tcp_url, folder)


def enqueue(url: str, function: str, *args: Any, job_id: str) -> None:
    async def add(pool: ArqRedis) -> None:
        assert await pool.enqueue_job(function, *args, _job_id=job_id, _queue_name=QUEUE) is not None

    with_arq(url, add)


@contextmanager
def worker(url: str, folder: Path) -> Iterator[Make]:
    make = Make("runtime", url, folder, MODULE)
    with make.start("Operated"):
        yield make


def test_jobs_are_found_by_the_settings_alone(tcp_url: str, tmp_path: Path, desk: Desk) -> None:
    enqueue(tcp_url, "item", "a", job_id="one")
    assert desk.document("job", "one")["status"] == "waiting"
    (queue,) = desk.document("queue", "list", "--json")["queues"]
    assert (queue["queue"], queue["waiting"]) == (QUEUE, 1)
    (listed,) = desk.document("inspect", "jobs", "--json")["queues"]
    assert (listed["queue"], [job["id"] for job in listed["jobs"]]) == (QUEUE, ["one"])
    with worker(tcp_url, tmp_path):
        found = desk.document("job", "one", "--wait")
        wait_until(lambda: desk.document("inspect", "workers", "--json")["workers"])  # after its first job
    assert found == {"jobId": "one", "status": "completed", "result": str(Item("a", []))}
    sheet = desk.document("inspect", "job", "one", "--args", "--json")["job"]
    assert sheet["value"] == str(Item("a", []))
    assert "one" in desk.say("inspect", "job", "one")
    assert QUEUE in desk.say("inspect")
    assert desk.run("inspect", "job", "none").returncode == 1


def test_plain_types_of_the_library_need_no_vouching(tcp_url: str, tmp_path: Path, desk: Desk) -> None:
    enqueue(tcp_url, "beside", PurePosixPath("/a"), job_id="path")
    with worker(tcp_url, tmp_path):
        assert desk.document("job", "path", "--wait")["result"] == "/a/beside"


def test_a_running_job_is_cancelled(tcp_url: str, tmp_path: Path, desk: Desk) -> None:
    enqueue(tcp_url, "waits", job_id="long")
    with worker(tcp_url, tmp_path) as make:
        wait_until(make.noted)
        assert "asked to stop" in desk.say("job", "long", "--cancel")
        wait_until(lambda: desk.run("job", "long").returncode == 1 and True)
    assert json.loads(desk.run("job", "long").stdout)["status"] == "cancelled"


def test_dead_letters_are_read_with_its_types_and_replayed(tcp_url: str, tmp_path: Path, desk: Desk) -> None:
    enqueue(tcp_url, "fails", Item("x", []), job_id="bad")
    with worker(tcp_url, tmp_path):
        wait_until(lambda: "bad" in desk.say("dlq", "list"))
    with Redis.from_url(tcp_url) as redis:
        redis.zadd("rt:another:dead", {"not its": 1})
    assert "no good: x" in desk.say("dlq", "list")
    ended = json.loads(desk.run("job", "bad").stdout)
    assert (ended["status"], ended["error"]) == ("dead", {"type": "ValueError", "message": "no good: x"})
    letter = desk.document("dlq", "show", "bad")
    assert (letter["queue"], letter["args"]) == (QUEUE, [str(Item("x", []))])
    assert "back in its queue" in desk.say("dlq", "replay", "--all")
    assert desk.document("job", "bad")["status"] == "waiting"
    assert desk.say("dlq", "discard", "--all") == "0 dead letters deleted\n"


def test_its_queue_is_paused_and_purged_without_a_name(tcp_url: str, desk: Desk) -> None:
    enqueue(tcp_url, "item", "a", job_id="one")
    said = desk.say("queue", "pause", "--reason", "a move")
    assert said.startswith(f"{QUEUE}: paused until: runtime queue resume {QUEUE} --arq {MODULE}.Operated; 1 waiting")
    (queue,) = desk.document("queue", "list", "--json")["queues"]
    assert queue["paused"]["reason"] == "a move"
    assert desk.say("queue", "resume").startswith(f"{QUEUE}: resumed")
    assert "nothing of it runs" in desk.say("queue", "drain")
    refused = desk.run("queue", "purge")
    assert refused.returncode == 2
    assert f"runtime queue purge {QUEUE} --yes --arq {MODULE}.Operated" in refused.stderr
    assert desk.say("queue", "purge", "--yes") == f"{QUEUE}: 1 jobs removed\n"
    unnamed = command("queue", "pause", REDIS_URL=tcp_url)
    assert (unnamed.returncode, "name a queue" in unnamed.stderr) == (2, True)


def test_a_codec_of_its_own_is_read(tcp_url: str, desk: Desk) -> None:
    body: dict[str, Any] = {"t": None, "f": "doubled", "a": [21], "k": {}, "et": 1}
    with Redis.from_url(tcp_url) as redis:
        redis.set("arq:job:own", squeezed.dumps(body))
        redis.zadd("squeezed", {"own": time.time() * 1000})
    sheet = desk.document("inspect", "job", "own", "--args", "--json", settings="Squeezed")["job"]
    assert (sheet["handler"], sheet["args"], sheet["trouble"]) == ("doubled", [21], [])
    assert "cancelled; it had not been running" in desk.say("job", "own", "--cancel", settings="Squeezed")
    with Redis.from_url(tcp_url) as redis:
        written = redis.get("arq:result:own")
    assert isinstance(written, bytes)
    assert squeezed.loads(written)["s"] is False, "the result is in the application's codec, too"


def test_cron_jobs_are_listed_run_and_paused(tcp_url: str, tmp_path: Path, desk: Desk) -> None:
    early = desk.run("schedule", "pause", "cron:nightly")
    assert early.returncode == 2
    assert f"runtime serve --arq {MODULE}.Operated" in early.stderr
    with worker(tcp_url, tmp_path) as make:
        wait_until(lambda: desk.document("schedule", "list", "--json")["schedules"])
        (listed,) = desk.document("schedule", "list", "--json")["schedules"]
        assert (listed["schedule"], listed["queue"]) == ("cron:nightly", QUEUE)
        said = desk.say("schedule", "pause", "cron:nightly")
        assert f"runtime schedule resume cron:nightly --arq {MODULE}.Operated" in said
        assert desk.document("schedule", "list", "--json")["schedules"][0]["paused"]
        desk.say("schedule", "resume", "cron:nightly")
        job_id = desk.say("schedule", "run", "cron:nightly").strip()
        wait_until(lambda: f"nightly {job_id}" in make.noted())
        each = desk.run("schedule", "pause", "by each")
        assert (each.returncode, "unique=False" in each.stderr) == (2, True)
        assert "there is no schedule 'other'" in desk.run("schedule", "run", "other").stderr


def test_settings_are_shown_with_what_the_application_says(tcp_url: str, desk: Desk) -> None:
    shown = {row["name"]: row for row in desk.document("inspect", "settings", "--json")["settings"]}
    assert shown["REDIS_URL"]["source"] == "arq application"
    assert shown["WORKER_TIMEOUT"]["source"] == "default"


COMMANDS = [
    ("job", "x"),
    ("dlq", "list"),
    ("queue", "list"),
    ("schedule", "list"),
    ("inspect",),
    ("inspect", "settings"),
]


@pytest.mark.parametrize("about", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("no.such.module.Settings", "no.such"),
        (f"{MODULE}.Absent", f"the module '{MODULE}' has no Absent"),
        (f"{MODULE}.MISTAKE", "settings are a class, an object or a dict"),
        ("Settings", "dotted name of a settings class"),
    ],
)
def test_what_are_no_settings_is_told(tmp_path: Path, about: tuple[str, ...], settings: str, told: str) -> None:
    done = command(*about, "--arq", settings, folder=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 5, done.stderr
    assert not (tmp_path / ".runtime").exists()


def test_options_that_go_without_arq_are_told(tcp_url: str, desk: Desk) -> None:
    done = desk.run("inspect", "jobs", "-m", "handlers")
    assert (done.returncode, "--arq goes without modules" in done.stderr) == (2, True)
