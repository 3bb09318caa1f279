"""`runtime inspect` and `runtime check`, run as people and scripts run them, beside real workers."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis import Redis
from redis.asyncio import ConnectionPool

from runtime.adapters.redis import keys
from tests.e2e.jobs import add, generate
from tests.processes import ROOT, Worker, command, enqueue, environment, wait_until

MODULE = "tests.e2e.jobs"
QUEUE = "ai-jobs"
NOBODY = "redis://:s3cret-pa55word@127.0.0.1:1/0"
HOSTILE = b"\x1b]0;owned\x07\x1b[2J\xff\r\n\x7f\xc2\x9b\xe2\x80\xae"


def inspect(url: str, *arguments: str, code: int = 0, **settings: Any) -> dict[str, Any]:
    """The document that the command prints."""
    done = command("inspect", *arguments, "--json", REDIS_URL=url, **settings)
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    assert next(iter(document.items())) == ("schema", "runtime.inspect/1")
    return document


def page(url: str, *arguments: str, **settings: Any) -> str:
    """What the command prints for people."""
    done = command("inspect", *arguments, REDIS_URL=url, **settings)
    assert done.stderr == ""
    return done.stdout


def serving(redis: str, **settings: Any) -> Worker:
    return Worker(MODULE, redis=redis, **settings)


def beating(url: str) -> list[dict[str, Any]]:
    with Redis.from_url(url) as redis:
        return [json.loads(beat) for beat in redis.hgetall(keys.WORKERS).values()]


def test_a_worker_is_seen_while_it_lives_and_gone_once_it_has_stopped(redis_url: str) -> None:
    with serving(redis_url, WORKER_ID="worker-7", RAILWAY_GIT_COMMIT_SHA="abc123").up() as worker:
        (beat,) = wait_until(lambda: beating(redis_url))
        assert beat["statistics"]["processed"] == 0
        (shown,) = inspect(redis_url, "workers")["workers"]
        assert (shown["worker_id"], shown["version"], shown["pid"]) == ("worker-7", "abc123", worker.pid)
        assert (shown["live"], shown["state"], shown["redis"]) == (True, "awake", "ok")
        assert 0 <= shown["age_s"] < 60
        assert shown["groups"] == [{"queues": [QUEUE, "arq:queue"], "slots": 3}]
        assert shown["handlers"] == ["add", "flashcard-generation", "log_as_libraries_do"]
        assert 10 * 2**20 < shown["rss_bytes"] < 2**30
        (boot,) = worker.events("WORKER_BOOT")
        assert boot["data"]["redis_status"] == "ok"
        assert (boot["data"]["version"], boot["data"]["commit"]) == ("abc123", "abc123")
        assert boot["data"]["embedded"] is False
        assert boot["data"]["python"].startswith("3.")
        assert 0 < boot["data"]["boot_ms"] < 60_000
        assert worker.stop() == 0
    assert beating(redis_url) == []


def test_a_killed_worker_stays_seen_for_who_asks_what_became_of_it(redis_url: str) -> None:
    with serving(redis_url).up() as worker:
        wait_until(lambda: beating(redis_url))
        worker.kill()
    (field,) = beating(redis_url)
    with Redis.from_url(redis_url) as redis:
        redis.hset(keys.WORKERS, field["incarnation"], json.dumps({**field, "at_ms": field["at_ms"] - 121_000}))
    (shown,) = inspect(redis_url, "workers")["workers"]
    assert shown["live"] is False
    assert shown["age_s"] > 121


def test_a_worker_says_at_its_boot_that_redis_does_not_answer() -> None:
    with serving(NOBODY).up() as worker:
        (boot,) = worker.events("WORKER_BOOT")
        assert "refused" in boot["data"]["redis_status"]
        assert "s3cret" not in worker.output()


def test_the_overview_shows_queues_workers_and_dead_letters(redis_url: str) -> None:
    with serving(redis_url).up() as worker:
        enqueue(redis_url, *(generate.request(60) for _ in range(5)), add.options(delay="1h").request(1, 2))
        worker.wait_for("JOB_STARTED", 3)
        wait_until(lambda: beating(redis_url))
        document = inspect(redis_url)
        queues = {queue["queue"]: queue for queue in document["queues"]}
        assert queues.keys() == {QUEUE, "arq:queue", "judit"}, "of this folder's handlers, and of the worker's"
        ours = queues[QUEUE]
        assert (ours["active"], ours["waiting"], ours["workers"]) == (3, 2, 1)
        assert queues["arq:queue"]["deferred"] == 1
        assert len(document["workers"]) == 1
        text = page(redis_url, "-Q", QUEUE)
        assert "workers: 1 live, 3 slots" in text
        assert "jobs: 3 active, 2 waiting" in text
        assert "dead letters: 0" in text


def test_a_queue_that_nobody_serves_is_told_as_such(redis_url: str) -> None:
    enqueue(redis_url, add.request(1, 2))
    assert "nobody serves it" in page(redis_url, "queues", "-Q", "arq:queue")
    (queue,) = inspect(redis_url, "queues", "-Q", "arq:queue")["queues"]
    assert (queue["waiting"], queue["workers"]) == (1, 0)


def test_jobs_are_shown_with_who_holds_them_and_never_their_arguments(redis_url: str) -> None:
    with serving(redis_url, WORKER_ID="worker-7", WORKER_CONCURRENCY=1).up() as worker:
        first, second = enqueue(redis_url, generate.request(61.25), generate.request(61.25))
        worker.wait_for("JOB_STARTED")
        wait_until(lambda: beating(redis_url))
        (queue,) = inspect(redis_url, "jobs", "-Q", QUEUE)["queues"]
        jobs = {job["id"]: job for job in queue["jobs"]}
        assert (jobs[first]["state"], jobs[second]["state"]) == ("active", "waiting")
        assert jobs[first]["held_by"]["worker_id"] == "worker-7"
        assert 0 < jobs[first]["held_by"]["left_s"] <= 10
        text = page(redis_url, "jobs", "-Q", QUEUE)
        assert "held by worker-7, " in text
        assert "61.25" not in text
        sheet = inspect(redis_url, "job", first)
        assert (sheet["job"]["state"], sheet["job"]["attempt"], sheet["job"]["queue"]) == ("active", 1, QUEUE)
        assert "61.25" not in json.dumps(sheet)
        with_args = inspect(redis_url, "job", first, "--args")["job"]
        assert (with_args["args"], with_args["kwargs"]) == ([61.25], {})


def test_a_job_that_a_stock_worker_holds_is_shown_as_such(redis_url: str) -> None:
    async def enqueue_as_arq() -> None:
        arq = ArqRedis(ConnectionPool.from_url(redis_url))
        await arq.enqueue_job("add", 1, 2, _job_id="theirs")
        await arq.psetex(keys.IN_PROGRESS + "theirs", 290_000, b"1")  # as arq's `Worker.start_jobs` does
        await arq.aclose(close_connection_pool=True)

    asyncio.run(enqueue_as_arq())
    assert re.search(r"held by a stock worker, 2\d\d s left", page(redis_url, "job", "theirs", "-Q", "arq:queue"))
    (queue,) = inspect(redis_url, "jobs", "-Q", "arq:queue")["queues"]
    assert queue["jobs"][0]["held_by"]["stock"] is True


def test_of_an_ended_job_the_result_is_told_and_shown_only_if_asked_for(redis_url: str) -> None:
    with serving(redis_url).up() as worker:
        (job,) = enqueue(redis_url, add.request(20_000, 22_022))
        worker.wait_for("JOB_COMPLETED", job_id=job)
        wait_until(lambda: inspect(redis_url, "job", job, code=0)["job"]["state"] == "completed")
        found = inspect(redis_url, "job", job)["job"]
        assert found["result"]["ok"] is True
        assert found["result"]["finished_at"].startswith("20")
        assert "42022" not in json.dumps(found)
        assert inspect(redis_url, "job", job, "--args")["job"]["value"] == 42022
    assert inspect(redis_url, "job", "nobody", code=1)["job"]["state"] == "unknown"


def test_nothing_from_outside_reaches_the_terminal(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        text = HOSTILE.decode("utf-8", "replace")
        redis.zadd(HOSTILE, {HOSTILE: 1})
        redis.zadd(QUEUE, {HOSTILE: 1, b"second": 2})
        redis.set(b"arq:in-progress:" + HOSTILE, b"7:" + HOSTILE.replace(b":", b"") + b":1", px=60_000)
        letter = {"reason": text, "handler": text, "error": text, "text": text, "queue": text}
        redis.zadd(keys.dead(QUEUE), {"letter": 1})
        redis.hset(keys.LETTER + "letter", mapping={"letter": json.dumps(letter)})
        beat: dict[str, Any] = dict.fromkeys(("worker_id", "incarnation", "version", "host", "state", "redis"), text)
        beat |= {"pid": 1, "started_ms": 1, "at_ms": int(redis.time()[0]) * 1000, "running": 0}
        beat |= {"groups": [{"queues": [text], "slots": 1}], "handlers": [text], "statistics": {text: 1}}
        redis.hset(keys.WORKERS, mapping={HOSTILE: json.dumps(beat), "odd": b"\xff{"})
    asked = [[], ["queues"], ["jobs"], ["workers"], ["job", "letter"], ["job", "second"], ["job", "\udcff\x1b[2J"]]
    for arguments in asked:
        for form in ([], ["--json"]):
            done = subprocess_of("inspect", *arguments, *form, url=redis_url)
            assert done.returncode in (0, 1), done.stderr
            assert done.stderr == b""
            printed = done.stdout.decode()
            assert all(char.isprintable() or char == "\n" for char in printed), printed
            assert not form or json.loads(printed)["schema"] == "runtime.inspect/1"


def subprocess_of(*arguments: str, url: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        cwd=ROOT, env=environment(REDIS_URL=url), capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_overview_takes_one_round_trip_and_one_for_each_queue(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        command("inspect", "-Q", "a", "-Q", "b", REDIS_URL=redis_url)  # the script is loaded
        before = calls(redis)
        command("inspect", "-Q", "a", "-Q", "b", REDIS_URL=redis_url)
        after = calls(redis)
    sent = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name)}
    assert sent["cmdstat_evalsha"] == 2
    assert {name for name in sent if name in ("cmdstat_hgetall", "cmdstat_keys", "cmdstat_scan")} == {"cmdstat_hgetall"}


def calls(redis: Any) -> dict[str, int]:
    return {name: stat["calls"] for name, stat in redis.info("commandstats").items()}


def test_settings_are_shown_with_their_sources_and_no_secret() -> None:
    url = "rediss://default:s3cret-pa55word@host.example:6380/0?db=1"
    document = inspect("", "settings", UPSTASH_REDIS_URL=url, WORKER_CONCURRENCY=7)
    found = {row["names"][0]: row for row in document["settings"]}
    assert (found["REDIS_URL"]["value"], found["REDIS_URL"]["source"]) == (
        "rediss://host.example:6380/0",
        "environment UPSTASH_REDIS_URL",
    )
    assert (found["WORKER_CONCURRENCY"]["value"], found["WORKER_CONCURRENCY"]["source"]) == (
        "7",
        "environment WORKER_CONCURRENCY",
    )
    assert (found["LOG_LEVEL"]["value"], found["LOG_LEVEL"]["source"]) == ("info", "default")
    assert document["wrong"] == []
    text = page("", "settings", UPSTASH_REDIS_URL=url)
    assert "s3cret" not in text + json.dumps(document)
    assert "host.example:6380" in text


def test_wrong_settings_are_shown_too_and_make_the_code_78() -> None:
    settings: dict[str, Any] = {"WORKER_CONCURRENCY": "three", "RUNTIME_LEAS": "1s", "LOG_LEVEL": "loud\x1b[2J"}
    document = inspect("default:s3cret-pa55word@host", "settings", code=78, **settings)
    found = {row["name"]: row for row in document["settings"]}
    assert found["REDIS_URL"]["value"] == "set"
    assert found["REDIS_URL"]["wrong"]
    assert found["WORKER_CONCURRENCY"]["wrong"] == "must be a whole number from 1 to 1000"
    assert found["PORT"]["wrong"] is None
    assert len(document["wrong"]) == 4
    done = command("inspect", "settings", REDIS_URL="default:s3cret-pa55word@host", **settings)
    assert done.returncode == 78
    assert "did you mean RUNTIME_LEASE" in done.stdout
    assert "\x1b" not in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [("job",), ("queues", "an-id"), ("--args",), ("jobs", "-n", "0"), ("nonsense",)], ids=" ".join
)
def test_a_wrong_use_is_told(arguments: tuple[str, ...]) -> None:
    done = command("inspect", *arguments, REDIS_URL=NOBODY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_an_error_is_a_document_too_where_one_was_asked_for() -> None:
    for arguments in (("inspect", "--json"), ("check", "--redis", "--json")):
        done = command(*arguments, REDIS_URL=NOBODY)
        assert (done.returncode, done.stdout) == (69, "")
        error = json.loads(done.stderr)["error"]
        assert error["code"] == "redis-unreachable"
        assert "refused" in error["cause"]
        assert "s3cret" not in done.stderr


# check


def port_of(worker: Worker) -> int:
    (line,) = worker.wait_for("HTTP_LISTENING")
    return int(line["message"].rpartition(" ")[2])


def test_check_asks_the_port_of_the_worker(redis_url: str) -> None:
    with serving(redis_url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        port = port_of(worker)
        alive = command("check", REDIS_URL=redis_url, PORT=port)
        assert (alive.returncode, alive.stderr) == (0, "")
        assert alive.stdout.startswith("alive: ")
        assert command("check", "--url", f"http://127.0.0.1:{port}", REDIS_URL="nonsense").returncode == 0
        assert worker.stop() == 0
        dead = command("check", "--json", REDIS_URL=redis_url, PORT=port)
        assert dead.returncode == 1
        document = json.loads(dead.stdout)
        assert list(document) == ["schema", "alive", "asked", "reason"]
        assert (document["schema"], document["alive"]) == ("runtime.check/1", False)
        assert "refused" in document["reason"].lower()


@contextmanager
def port_that_answers(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("status", [302, 404, 503])
def test_check_takes_nothing_but_200_for_alive(status: int) -> None:
    with port_that_answers(status) as url:
        done = command("check", "--url", url)
        assert done.returncode == 1
        assert f"it answers {status}" in done.stdout


def test_check_without_a_port_looks_for_the_heartbeat(redis_url: str) -> None:
    off: dict[str, Any] = {"REDIS_URL": redis_url, "RUNTIME_HTTP": "off"}
    assert command("check", **off).returncode == 1
    with serving(redis_url, WORKER_ID="worker-7").up():
        wait_until(lambda: beating(redis_url))
        assert command("check", **off, WORKER_ID="worker-7").returncode == 0
        assert command("check", **off).returncode == 0, "it is on this host"
        other = command("check", **off, WORKER_ID="worker-8")
        assert other.returncode == 1
        assert "worker-8" in other.stdout
        assert command("check", "--any", REDIS_URL=redis_url, WORKER_ID="worker-8").returncode == 0
    (field,) = beating(redis_url)  # it was killed
    with Redis.from_url(redis_url) as redis:
        redis.hset(keys.WORKERS, field["incarnation"], json.dumps({**field, "at_ms": field["at_ms"] - 121_000}))
    stale = command("check", **off, WORKER_ID="worker-7")
    assert stale.returncode == 1
    assert "2 m" in stale.stdout


@pytest.mark.parametrize(
    "arguments", [("--url", "nonsense"), ("--url", "http://h:99999"), ("--url", "http://h", "--any")]
)
def test_check_tells_a_wrong_use(arguments: tuple[str, ...]) -> None:
    assert command("check", *arguments).returncode == 2


def test_check_tells_wrong_settings() -> None:
    assert command("check", PORT="many").returncode == 78


def job(url: str, *arguments: str) -> tuple[int, Any]:
    """Its exit code, and the document or line that the command prints, where no handlers are."""
    done = command("job", *arguments, folder=ROOT / "deploy", REDIS_URL=url)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


def test_a_job_is_found_and_stopped_in_whatever_queue_a_worker_serves(redis_url: str) -> None:
    with serving(redis_url).up() as worker:
        wait_until(lambda: beating(redis_url))
        worker.kill()  # what it said of itself stays
    waiting, other = enqueue(
        redis_url, add.options(queue=QUEUE).request(1, 2), add.options(queue="elsewhere").request(1, 2)
    )
    assert inspect(redis_url, "job", waiting)["job"]["queue"] == QUEUE
    assert job(redis_url, waiting) == (0, {"jobId": waiting, "status": "waiting"})
    code, said = job(redis_url, other)
    assert (code, said["status"]) == (1, "unknown")
    assert job(redis_url, other, "--cancel")[0] == 1
    assert job(redis_url, other, "--queue", "elsewhere") == (0, {"jobId": other, "status": "waiting"})
    assert job(redis_url, waiting, "--cancel") == (0, f"{waiting}: cancelled; it had not been running\n")
    assert job(redis_url, waiting)[1]["status"] == "cancelled"
