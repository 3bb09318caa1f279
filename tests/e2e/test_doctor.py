"""`runtime doctor` on real servers, ports, workers and folders, each with something wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.e2e.jobs import add
from tests.processes import ROOT, Worker, command, enqueue, environment, wait_until
from tests.servers import Server

MODULE = "tests.e2e.jobs"
PASSWORD = "canary/of the?p@ssword#5d"
KEY = "canary-of-the-api-key-7c1f"
LIMITED = """
from runtime import Bucket, handler
bucket = Bucket("judit", "{rate}")

@handler(limit=bucket)
async def {name}(ctx): ...
"""
TOKEN = "canary0of0the0token0d41d8cd98f00b204"


class Report:
    """What doctor has said."""

    def __init__(self, *modules: str, folder: Path = ROOT, code: int | None = None, **settings: Any) -> None:
        began = time.monotonic()
        settings.setdefault("RUNTIME_HTTP", "off")
        self.done = command("doctor", "--json", *modules, folder=folder, **settings)
        self.took_s = time.monotonic() - began
        self.text = self.done.stdout + self.done.stderr
        assert self.done.returncode in (0, 1), self.text
        self.document: Mapping[str, Any] = json.loads(self.done.stdout)
        assert next(iter(self.document)) == "schema"
        assert self.document["schema"] == "runtime.doctor/1"
        self.rows = [row for section in self.document["sections"] for row in section["findings"]]
        assert self.done.returncode == (1 if self.document["counts"]["fail"] else 0), self.text
        assert code in (None, self.done.returncode), self.text

    def all(self, check: str) -> list[Mapping[str, str]]:
        return [row for row in self.rows if row["check"] == check]

    def verdict(self, check: str) -> str:
        (row,) = self.all(check)
        return row["verdict"]

    def said(self, check: str) -> str:
        return " | ".join(f"{row['seen']} | {row['why']} | {row['fix']}" for row in self.all(check))

    def failed(self) -> set[str]:
        return {row["check"] for row in self.rows if row["verdict"] == "fail"}


def test_all_is_well(tcp_url: str) -> None:
    with Redis.from_url(tcp_url) as redis:
        redis.config_set("notify-keyspace-events", "K$")
    try:
        with Worker(MODULE, redis=tcp_url, WORKER_ID="w-1").up():
            report = Report(MODULE, REDIS_URL=tcp_url, code=0)
    finally:
        with Redis.from_url(tcp_url) as redis:
            redis.config_set("notify-keyspace-events", "")
    for check in ("version", "role", "lua", "blocking", "eviction", "memory", "clients", "clock", "events"):
        assert report.verdict(f"redis.{check}") == "pass", report.said(f"redis.{check}")
    assert "of 50 PINGs" in report.said("redis.reach")
    assert "notifications are on" in report.said("redis.events")
    assert "saves nothing" in report.said("redis.persistence")
    assert report.verdict("handlers.found") == report.verdict("handlers.queues") == "pass"
    assert "ai-jobs (1 awake), arq:queue (1 awake)" in report.said("handlers.queues")
    assert report.failed() == set()


def test_the_text_is_lines_with_fixes_and_a_last_line_that_counts(tcp_url: str) -> None:
    done = command("doctor", MODULE, REDIS_URL=tcp_url, RUNTIME_HTTP="off", RUNTIME_LEES="5s")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0] == "Settings"
    at = lines.index("  ✗ RUNTIME_LEES is no setting; did you mean RUNTIME_LEASE?")
    assert lines[at + 1].startswith("      why: ")
    assert lines[at + 2] == "      fix: rename it to RUNTIME_LEASE, or unset it"
    assert f"Redis  {tcp_url}" in lines
    assert "  ✓ Lua runs, and writes" in lines
    assert lines[-1].startswith("1 failed, ")
    assert lines[-1].endswith(" s")


def test_nothing_stays_in_redis(tcp_url: str) -> None:
    Report(MODULE, REDIS_URL=tcp_url)
    with Redis.from_url(tcp_url) as redis:
        wait_until(lambda: redis.dbsize() == 0, what="the key that was tried is gone")


def test_a_redis_that_refuses_leaves_the_rest_to_be_looked_at() -> None:
    report = Report(MODULE, REDIS_URL="redis://127.0.0.1:1", PORT="many", code=1)
    assert report.failed() == {"settings.wrong", "redis.reach"}
    assert "connection refused" in report.said("redis.reach")
    assert report.verdict("handlers.found") == "pass"
    assert report.verdict("handlers.queues") == "skipped"


def test_a_redis_that_hangs_costs_seconds(server: Server) -> None:
    server.flush()
    server.pause()
    try:
        report = Report(MODULE, REDIS_URL=server.tcp_url, code=1)
    finally:
        server.resume()
    assert "no answer in time" in report.said("redis.reach")
    assert report.document["took_s"] < 10


def test_a_name_server_that_hangs_costs_seconds() -> None:
    program = (
        "import socket, sys, time; socket.getaddrinfo = lambda *_, **__: time.sleep(50); "
        "from runtime.cli import main; sys.exit(main(['doctor']))"
    )
    env = environment(REDIS_URL="redis://host.example:6379", RUNTIME_HTTP="off")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert "no answer in time from the name servers" in done.stdout, done.stderr
    assert done.returncode == 1
    assert time.monotonic() - began < 20


def test_tls_to_a_server_without(tcp_url: str) -> None:
    report = Report(MODULE, REDIS_URL=tcp_url.replace("redis://", "rediss://"), code=1)
    assert "write redis:// instead" in report.said("redis.reach")


def test_a_wrong_password(server: Server) -> None:
    with Redis.from_url(server.url) as redis:
        redis.config_set("requirepass", "another-one")
    try:
        report = Report(MODULE, REDIS_URL=server.tcp_url.replace("redis://", f"redis://:{quote(PASSWORD, safe='')}@"))
        assert "wrong password" in report.said("redis.reach")
    finally:
        server.kill()  # it forgets its password with everything else


def test_a_server_that_evicts() -> None:
    with Server(options=("--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb")) as server:
        report = Report(MODULE, REDIS_URL=server.tcp_url, code=1)
    assert report.failed() == {"redis.eviction"}
    assert "allkeys-lru" in report.said("redis.eviction")
    assert "100.0 MB of memory" in report.said("redis.memory")


def test_a_server_that_only_takes_snapshots_is_told_from_one_that_keeps_a_log(tmp_path: Path) -> None:
    with Server(options=("--save", "3600 1")) as server:
        report = Report(MODULE, REDIS_URL=server.tcp_url, code=0)
        assert report.verdict("redis.persistence") == "warn"
        assert "it saves snapshots only" in report.said("redis.persistence")
    with Server(tmp_path, options=("--save", "3600 1")) as server:
        assert Report(MODULE, REDIS_URL=server.tcp_url, code=0).verdict("redis.persistence") == "pass"


def test_a_server_that_tells_nothing_of_its_configuration(tmp_path: Path) -> None:
    with Server(tmp_path, options=("--rename-command", "CONFIG", "")) as server:
        report = Report(MODULE, REDIS_URL=server.tcp_url, code=0)
        # Its INFO has the policy; a hosted one may tell not even that.
        assert report.verdict("redis.eviction") == "pass"
        assert report.verdict("redis.persistence") == "pass"
        assert "notifications are off" in report.said("redis.events")
    with Server(options=("--rename-command", "CONFIG", "", "--rename-command", "INFO", "")) as server:
        report = Report(MODULE, REDIS_URL=server.tcp_url, code=0)
        assert report.verdict("redis.eviction") == "warn"
        assert "maxmemory-policy must be noeviction" in report.said("redis.eviction")
        assert report.verdict("redis.lua") == "pass"
        for check in ("version", "memory", "persistence", "clients"):
            assert report.verdict(f"redis.{check}") == "skipped"


def test_a_user_who_may_not_run_scripts(tcp_url: str) -> None:
    with Redis.from_url(tcp_url) as redis:
        redis.execute_command("ACL", "SETUSER", "reader", "on", ">reader-password", "~*", "&*", "+@all", "-eval")
        try:
            report = Report(MODULE, REDIS_URL=tcp_url.replace("redis://", "redis://reader:reader-password@"), code=1)
        finally:
            redis.execute_command("ACL", "DELUSER", "reader")
    assert report.failed() == {"redis.lua"}
    assert "lacks a permission" in report.said("redis.lua")


def test_every_module_that_cannot_be_imported_is_told_beside_those_that_can(tmp_path: Path) -> None:
    package = tmp_path / "work"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("print('a module may print')\n")
    (package / "good.py").write_text("from runtime import handler\n@handler\nasync def good(ctx): ...\n")
    (package / "bad.py").write_text("import no_such_package\n")
    (package / "worse.py").write_text("import sys\nsys.exit(3)\n")
    (package / "deep" / "__init__.py").write_text("def f(:\n")
    (package / "twice.py").write_text("from runtime import handler\n@handler(name='good')\nasync def other(ctx): ...\n")
    report = Report("work", folder=tmp_path, REDIS_URL="redis://127.0.0.1:1")
    assert report.failed() == {"handlers.modules", "redis.reach"}
    said = report.said("handlers.modules")
    for words in ("no_such_package", "SystemExit", "SyntaxError", "two handlers are named 'good'"):
        assert words in said
    assert len(report.all("handlers.modules")) == 4
    assert "1 handler in 3 modules" in report.said("handlers.found")


def test_two_rules_for_one_bucket(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(LIMITED.format(rate="3/s", name="one"))
    (tmp_path / "two.py").write_text(LIMITED.format(rate="5/s", name="two"))
    report = Report("one", "two", folder=tmp_path, REDIS_URL="redis://127.0.0.1:1")
    assert "two buckets are named 'judit'" in report.said("handlers.modules")


def test_a_rule_that_differs_from_what_a_worker_has_told(tcp_url: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(LIMITED.format(rate="3/s", name="one"))
    with Redis.from_url(tcp_url) as redis:
        redis.hset(keys.LIMITS_KNOWN, "judit", "5:1000000:5")
    report = Report("one", folder=tmp_path, REDIS_URL=tcp_url)
    assert report.verdict("limits.rates") == "warn"
    assert "judit is 3/s" in report.said("limits.rates")
    assert "has told 5/s" in report.said("limits.rates")


def installed_in(place: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the command says in `folder` as a script does, which has not the working directory to import from."""
    program = f"import sys; sys.path[0] = {str(place)!r}; from runtime.cli import main; sys.exit(main())"
    env = {name: value for name, value in environment(RUNTIME_HTTP="off").items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", program, "doctor", "--json"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_empty_folder_without_redis(tmp_path: Path) -> None:
    bare, only = tmp_path / "bare", tmp_path / "only"
    bare.mkdir()
    only.mkdir()
    (only / "runtime").symlink_to(ROOT / "runtime")  # this project's package `handlers` is not to be found
    done = installed_in(only, bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no handlers here" in done.stdout
    assert "will start an embedded one" in done.stdout
    assert list(bare.iterdir()) == []


def test_the_embedded_server_is_looked_at_where_there_is_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "will start an embedded one" in Report(MODULE, RUNTIME_DATA=data).said("redis.reach")
    assert not data.exists()
    data.mkdir()
    report = Report(MODULE, RUNTIME_DATA=data, code=0)
    assert "of 50 PINGs" in report.said("redis.reach")
    assert report.verdict("redis.persistence") == report.verdict("redis.eviction") == "pass"


def test_a_dotenv_in_git_and_one_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"REDIS_URL=redis://:{KEY}@host\nPORT=3002\nOTHER=1\n")
    (tmp_path / ".env.example").write_text("REDIS_URL=\n")
    for words in (("init", "-q"), ("add", "-f", ".")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    report = Report(MODULE, folder=tmp_path, REDIS_URL="redis://127.0.0.1:1", JUDIT_API_KEY="your_judit_api_key")
    assert "settings.git" in report.failed()
    assert report.all("settings.git")[0]["seen"] == ".env is in git"
    assert "has PORT, which" in report.said("settings.dotenv")
    assert "JUDIT_API_KEY still has" in report.said("settings.placeholder")
    assert KEY not in report.text


def test_a_module_of_our_name_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runtime.py").write_text("")
    done = installed_in(ROOT, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"gets {tmp_path}/runtime.py here" in done.stdout


def test_a_port_that_is_taken_by_somebody_else(tcp_url: str) -> None:
    with socket.create_server(("", 0)) as listener:
        report = Report(MODULE, REDIS_URL=tcp_url, RUNTIME_HTTP="on", PORT=listener.getsockname()[1], code=1)
    assert report.failed() == {"platform.port"}
    assert report.document["took_s"] < 10


def port_of(worker: Worker) -> int:
    (line,) = worker.wait_for("HTTP_LISTENING")
    return int(line["message"].split()[-1])


def test_a_worker_that_a_deferred_job_keeps_awake(tcp_url: str) -> None:
    enqueue(tcp_url, add.options(delay="1h").request(1, 2))
    sleepy: dict[str, Any] = {"RUNTIME_HTTP": "on", "RUNTIME_SLEEP_AFTER": "5s"}
    with Worker(MODULE, redis=tcp_url, PORT=0, **sleepy).up() as worker:
        port = port_of(worker)

        def held() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                return any("RUNTIME_ALARM" in reason for reason in json.load(answer)["awake_because"])

        wait_until(held)
        report = Report(MODULE, REDIS_URL=tcp_url, PORT=port, code=0, **sleepy)
        assert "a worker answers" in report.said("platform.port")
        assert "it cannot sleep: 1 deferred jobs" in report.said("platform.sleep")
        assert f"the worker on port {port} is awake: a job, or somebody's lease" in report.said("platform.awake")
        assert "runtime wake --if-due" in report.said("platform.awake")


def test_jobs_that_nobody_serves(tcp_url: str) -> None:
    enqueue(tcp_url, add.options(queue="lost").request(1, 2), add.request(1, 2))
    report = Report(MODULE, REDIS_URL=tcp_url, code=0)
    said = report.said("handlers.queues")
    assert "nobody serves lost, with 1 job in it, and no handler here is for it" in said
    assert "nobody serves arq:queue, with 1 job in it" in said
    assert "nobody serves ai-jobs; no job is there" in said


def test_two_workers_of_one_name(tcp_url: str) -> None:
    with Worker(MODULE, redis=tcp_url, WORKER_ID="w-1").up(), Worker(MODULE, redis=tcp_url, WORKER_ID="w-1") as second:
        second.up()
        with Redis.from_url(tcp_url) as redis:
            # Each says a second time that it lives, as it does after 30 s.
            for name, beat in redis.hgetall(keys.WORKERS).items():
                redis.hset(keys.WORKERS, name, json.dumps({**json.loads(beat), "at_ms": round(1000 * time.time())}))
        report = Report(MODULE, REDIS_URL=tcp_url, code=0)
    assert "2 live workers are named w-1" in report.said("platform.worker_id")


def test_jobs_that_wait_for_workers_that_sleep(tcp_url: str) -> None:
    with Worker(
        MODULE, redis=tcp_url, RUNTIME_HTTP="on", PORT=0, RUNTIME_SLEEP_AFTER="5s", WORKER_ID="w-1"
    ).up() as worker:
        with Redis.from_url(tcp_url) as redis:
            wait_until(lambda: any(json.loads(beat)["state"] == "quiet" for beat in redis.hvals(keys.WORKERS)))
        worker.kill()
        enqueue(tcp_url, add.request(1, 2))
        report = Report(MODULE, REDIS_URL=tcp_url, code=0)
    assert "arq:queue: 1 job due, and its workers sleep" in report.said("handlers.queues")
    assert "RUNTIME_WAKE_URL is not set here, and w-1 may be asleep" in report.said("platform.doorbell")


def test_what_others_have_written_breaks_nothing(tcp_url: str) -> None:
    with Redis.from_url(tcp_url) as redis:
        redis.set("ai-jobs", "no queue")
        redis.hset(keys.WORKERS, "x", "no heartbeat")
        redis.hset(keys.LIMITS_KNOWN, "judit", "5:1000000:5")
        redis.set(keys.bucket_set("judit"), "no rule")
        redis.zadd(b"no\xffunicode", {"job": 1})
        redis.set("arq:job:job", "no body")
    report = Report(MODULE, REDIS_URL=tcp_url)
    assert report.failed() == {"handlers.queues"}
    assert "ai-jobs: " in report.said("handlers.queues")
    with Redis.from_url(tcp_url) as redis:
        redis.delete(keys.WORKERS)
        redis.set(keys.WORKERS, "no hash")
    assert Report(MODULE, REDIS_URL=tcp_url).verdict("redis.lua") == "pass"


def test_what_railway_does_by_default(tcp_url: str) -> None:
    railway: dict[str, Any] = {"REDIS_URL": tcp_url, "RAILWAY_ENVIRONMENT_NAME": "production"}
    report = Report(MODULE, **railway)
    assert report.failed() == {"platform.draining"}
    assert "RAILWAY_DEPLOYMENT_DRAINING_SECONDS=50" in report.said("platform.draining")
    assert Report(MODULE, **railway, RAILWAY_DEPLOYMENT_DRAINING_SECONDS=60).failed() == set()
    assert "no Redis is configured" in Report(MODULE, RAILWAY_ENVIRONMENT_NAME="production").said("settings.wrong")


def test_a_collector_that_is_not_there(tcp_url: str) -> None:
    endpoint = "http://user:canary-in-the-endpoint@127.0.0.1:1"
    report = Report(MODULE, REDIS_URL=tcp_url, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert "nobody can be reached at http://127.0.0.1:1: connection refused" in report.said("telemetry.endpoint")
    assert "canary" not in report.text
    with socket.create_server(("127.0.0.1", 0)) as collector:
        url = f"http://127.0.0.1:{collector.getsockname()[1]}"
        assert (
            Report(MODULE, REDIS_URL=tcp_url, OTEL_EXPORTER_OTLP_ENDPOINT=url).verdict("telemetry.endpoint") == "pass"
        )


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    (tmp_path / "leaky.py").write_text(
        "import os\nraise RuntimeError('key ' + os.environ['JUDIT_API_KEY'] + ' at ' + os.environ['REDIS_URL'])\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "address",
    [lambda port: f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}", lambda port: f"redis://u:{PASSWORD}@h:{port}",
     lambda port: f"http://u:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"],
    ids=["right", "not encoded", "no scheme of Redis"],
)  # fmt: skip
def test_no_secret_gets_out(server: Server, leaky: Path, address: Callable[[int], str]) -> None:
    server.flush()
    with Redis.from_url(server.url) as redis:
        redis.config_set("requirepass", PASSWORD)
    port = int(server.tcp_url.rpartition(":")[2])
    settings: dict[str, Any] = {"REDIS_URL": address(port), "JUDIT_API_KEY": KEY, "RUNTIME_TOKEN": TOKEN}
    try:
        said: tuple[tuple[str, ...], ...] = ((), ("--json",))
        for words in said:
            done = command("doctor", *words, "leaky", folder=leaky, **settings)
            assert "cannot be imported" in done.stdout
            for canary in (KEY, PASSWORD, TOKEN):
                for form in (canary, quote(canary, safe=""), b64encode(canary.encode()).decode()[:-4]):
                    assert form not in done.stdout + done.stderr
    finally:
        server.kill()
