"""The mistakes of the first hour: each is told in a few lines that name the thing, the rule and the fix."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.e2e.jobs import add
from tests.processes import Worker, command, enqueue
from tests.servers import Server

MODULE = "tests.e2e.jobs"
NOBODY = "redis://:s3cret-pa55word@127.0.0.1:1/0"
SECRET = "s3cret-pa55word"


def assert_told(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with this code and a short message with these words, on stderr and without a traceback."""
    said = done.stderr.strip()
    assert done.returncode == code, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 4, said
    assert done.stdout == ""
    for word in words:
        assert word in said, said
    assert SECRET not in said


def test_a_module_that_does_not_exist(redis_url: str) -> None:
    assert_told(command("serve", "no.such.module", REDIS_URL=redis_url), 78, "no.such.module")


def test_a_module_without_handlers(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    assert_told(command("serve", "empty", folder=tmp_path, REDIS_URL=redis_url), 78, "no handler in empty", "@handler")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\nimport no_such_package\n", ("mistaken.py:2", "no_such_package", "install")),
        ("from runtime import handle\n", ("mistaken.py:1", "ImportError", "handle")),
        ("def f(:\n", ("mistaken.py:1", "SyntaxError")),
        ("\n\nraise RuntimeError('not set up')\n", ("mistaken.py:3", "RuntimeError: not set up")),
        (
            "from runtime import handler\n\n@handler\ndef plain(ctx): yield\n",
            ("'plain'", "mistaken.py:3", "generator"),
        ),
        (
            "from runtime import handler\n@handler(name='a')\nasync def one(ctx): ...\n"
            "@handler(name='a')\nasync def two(ctx): ...\n",
            ("two handlers are named 'a'", "mistaken.py:2", "mistaken.py:4"),
        ),
        ("import sys\nsys.exit()\n", ("mistaken.py:2", "SystemExit")),
    ],
    ids=["missing package", "missing name", "syntax", "any exception", "a generator", "one name twice", "exit"],
)
def test_a_module_that_cannot_be_imported(redis_url: str, tmp_path: Path, source: str, words: tuple[str, ...]) -> None:
    (tmp_path / "mistaken.py").write_text(source)
    assert_told(command("serve", "mistaken", folder=tmp_path, REDIS_URL=redis_url), 78, *words)


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "-m", MODULE, "add", "[1, 2]"),
        ("job", "some-id"),
        ("dlq", "list"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_say_that_redis_is_down(arguments: tuple[str, ...]) -> None:
    assert_told(command(*arguments, REDIS_URL=NOBODY), 69, "redis://127.0.0.1:1", "refused", "REDIS_URL")


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/no.sock"
    assert_told(command("inspect", REDIS_URL=url), 69, "no such file", "correct the path in REDIS_URL")


def test_where_there_are_no_dead_letters_it_is_said_beside_the_output(redis_url: str) -> None:
    done = command("dlq", "list", REDIS_URL=redis_url)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "", "no dead letters")


def test_a_worker_waits_for_redis_says_so_once_and_goes_on() -> None:
    with Server() as server:
        server.stop()
        with Worker(MODULE, redis=server.tcp_url).up() as worker:
            worker.wait_for("REDIS_AWAY")
            server.start()
            (job,) = enqueue(server.url, add.request(1, 2))
            worker.wait_for("JOB_COMPLETED", job_id=job)
            assert len(worker.events("REDIS_AWAY")) == 1
            # The same again, now that it has been there.
            server.stop()
            worker.wait_for("REDIS_AWAY", 2)
            server.start()
            (job,) = enqueue(server.url, add.request(3, 4))
            worker.wait_for("JOB_COMPLETED", job_id=job)
            assert worker.stop() == 0
            assert worker.errors() == ""
            assert len(worker.events("REDIS_AWAY")) <= 4  # at most one for each cause


def test_a_wrong_password_is_weather_to_a_worker_and_an_error_to_a_command(tcp_url: str) -> None:
    with Redis.from_url(tcp_url) as redis:
        redis.config_set("requirepass", "another-one")
    try:
        url = tcp_url.replace("redis://", f"redis://:{SECRET}@")
        done = command("enqueue", "-m", MODULE, "add", "[1, 2]", REDIS_URL=url)
        assert_told(done, 69, "wrong password")
        with Worker(MODULE, redis=url).up() as worker:
            worker.wait_for("REDIS_AWAY")
            assert worker.stop() == 0
            assert SECRET not in worker.output() + worker.errors()
            assert "wrong password" in worker.events("REDIS_AWAY")[0]["message"]
    finally:
        with Redis.from_url(tcp_url, password="another-one") as redis:
            redis.config_set("requirepass", "")


def test_all_bad_settings_are_told_at_once() -> None:
    done = command(
        "serve",
        MODULE,
        REDIS_URL=f"http://:{SECRET}@example.com",
        WORKER_CONCURRENCY="many",
        PORT="99999",
        RUNTIME_LEES="5s",
        LOG_LEVEL="loud",
    )
    assert_told(
        done,
        78,
        "5 settings are wrong",
        "REDIS_URL is a REST address",
        "WORKER_CONCURRENCY='many' must be a whole number",
        "PORT='99999'",
        "RUNTIME_LEES is no setting; did you mean RUNTIME_LEASE?",
        "LOG_LEVEL='loud' must be one of",
    )


def test_production_without_redis_is_refused() -> None:
    assert_told(command("serve", MODULE, RAILWAY_ENVIRONMENT="production"), 78, "no Redis is configured", "Railway")


def test_a_disabled_worker_says_so_and_stops() -> None:
    done = command("serve", MODULE, REDIS_DISABLED="true")
    assert (done.returncode, done.stdout) == (0, "")
    assert "REDIS_DISABLED" in done.stderr


def test_a_misspelt_command() -> None:
    assert_told(command("sreve"), 2, "unknown command 'sreve'", "did you mean 'serve'?")


@pytest.mark.parametrize(
    "arguments",
    [("serve", "--no-such-option"), ("serve", "-c", "many"), ("enqueue",), ("dlq",), ("dlq", "replay")],
    ids=" ".join,
)
def test_a_misspelt_option(arguments: tuple[str, ...], redis_url: str) -> None:
    assert_told(command(*arguments, REDIS_URL=redis_url), 2)


def test_an_unknown_handler(redis_url: str) -> None:
    done = command("enqueue", "-m", MODULE, "ad", "[1, 2]", REDIS_URL=redis_url)
    assert_told(done, 2, "no handler named 'ad'", "did you mean 'add'?")


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("{a: 1}", ("not JSON", "quote them")),
        ('[1, "two"]', ("add", "b", "int")),
        ("[1]", ("add", "b")),
        ("[1, 2, 3]", ("add",)),
        ('{"a": 1, "b": 2, "c": 3}', ("add", "'c'")),
    ],
    ids=["not JSON", "wrong type", "too few", "too many", "unknown name"],
)
def test_arguments_that_do_not_fit(redis_url: str, payload: str, words: tuple[str, ...]) -> None:
    assert_told(command("enqueue", "-m", MODULE, "add", payload, REDIS_URL=redis_url), 2, *words)
    with Redis.from_url(redis_url) as redis:
        assert redis.dbsize() == 0


@pytest.mark.parametrize(
    "option",
    [
        ("--priority", "1001"),
        ("--delay", "soon"),
        ("--key", ""),
        ("-Q", ""),
        ("--wait", "--timeout", "soon"),
    ],
    ids=lambda option: " ".join(option),
)
def test_options_that_break_their_rule(redis_url: str, option: tuple[str, ...]) -> None:
    assert_told(command("enqueue", "-m", MODULE, "add", "[1, 2]", *option, REDIS_URL=redis_url), 2, option[-1])
    with Redis.from_url(redis_url) as redis:
        assert redis.dbsize() == 0


@pytest.mark.parametrize("option", ["ai-jobs=0", "ai-jobs=many", "=3"])
def test_a_queue_option_that_breaks_its_rule(redis_url: str, option: str) -> None:
    assert_told(command("serve", MODULE, "-Q", option, REDIS_URL=redis_url), 2, option)


def test_a_port_that_is_taken(redis_url: str) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        done = command("serve", MODULE, REDIS_URL=redis_url, PORT=port)
        assert_told(done, 78, f"port {port}", "in use", "RUNTIME_HTTP=off")


def test_waiting_for_a_result_that_does_not_come_in_time(redis_url: str) -> None:
    done = command("enqueue", "-m", MODULE, "add", "[1, 2]", "--wait", "--timeout", "0.2s", REDIS_URL=redis_url)
    assert done.returncode == 75
    assert re.fullmatch(r"job \w+\nerror: .+\n  cause: it is waiting\nhint: .+\n", done.stderr), done.stderr


def test_a_job_that_does_not_exist(redis_url: str) -> None:
    done = command("job", "never-heard-of", REDIS_URL=redis_url)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"jobId": "never-heard-of", "status": "unknown"}


def test_a_key_of_a_wrong_type_is_no_outage(redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.lpush(keys.RESULT + "x", "no result")
        redis.set(keys.LETTER + "x", "no letter")
    for arguments in (("job", "x"), ("dlq", "show", "x")):
        assert_told(command(*arguments, REDIS_URL=redis_url), 1, "of a wrong type", "WRONGTYPE", "runtime inspect job")


def test_the_password_of_redis_is_never_shown(redis_url: str, server: Server) -> None:
    """Not by a worker that is well, either."""
    url = server.tcp_url.replace("redis://", f"redis://default:{SECRET}@")
    with Redis.from_url(redis_url) as redis:
        redis.config_set("requirepass", SECRET)
    try:
        with Worker(MODULE, redis=url, LOG_LEVEL="debug", RUNTIME_HTTP="on", PORT=0).up() as worker:
            done = command("enqueue", "-m", MODULE, "add", "[1, 2]", "--wait", REDIS_URL=url)
            assert (done.returncode, done.stdout) == (0, "3\n")
            assert worker.stop() == 0
            assert SECRET not in worker.output() + worker.errors() + done.stderr
    finally:
        with Redis.from_url(redis_url, password=SECRET) as redis:
            redis.config_set("requirepass", "")
