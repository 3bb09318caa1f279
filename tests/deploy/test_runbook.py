"""The runbook: all that the code can raise has its entry, what is quoted is said by the code, the procedures work."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from runtime.adapters.redis import connection
from runtime.core import errors
from runtime.core.job import Dead
from tests.processes import ROOT, Worker, command, environment, wait_until
from tests.servers import Server

TEXT = (ROOT / "deploy/RUNBOOK.md").read_text()
HANDLERS = """
from runtime import Context, handler

@handler()
async def note(ctx: Context, text: str) -> str:
    return text
"""


def section(title: str) -> str:
    """What stands under a heading of the second or third level, up to the next of its own level."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^#{{2,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    if found[1] == "###":
        return found[2]
    return (
        TEXT[found.start() :].partition("\n## ")[0] if TEXT[found.start() :].count("\n## ") else TEXT[found.start() :]
    )


def rows(title: str) -> list[list[str]]:
    """The rows of the tables of a section, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", section(title), re.MULTILINE)
    cells = [re.split(r" \| ?", line) for line in lines]
    return [cell for cell in cells if cell[0] not in ("Check", "Reason", "Code", "Cause", "Answer", "Line")]


def spans(text: str) -> list[str]:
    """What is quoted."""
    return re.findall(r"`([^`\n]+)`", text)


# What the code says.


def nodes() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        if path.parent.name != "testing":  # no operator sees what is said in users' tests
            yield from ast.walk(ast.parse(path.read_text()))


NODES = list(nodes())


def calls() -> Iterator[tuple[str, ast.Call]]:
    for node in NODES:
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    yield name, node


def constant(node: ast.AST | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def named(call: ast.Call, keyword: str) -> ast.expr | None:
    return next((word.value for word in call.keywords if word.arg == keyword), None)


def events(*levels: str) -> set[str]:
    """The log events of these levels, whose names are written out."""
    found = {str(constant(named(call, "event_name"))) for name, call in calls() if name in levels} - {"None"}
    if "warning" in levels:  # one line is made by the writer, in no call
        pairs = [zip(node.keys, node.values, strict=True) for node in NODES if isinstance(node, ast.Dict)]
        found |= {str(constant(value)) for pair in pairs for key, value in pair if constant(key) == "event_name"}
    return found


def checks() -> set[str]:
    """The checks of the doctor that can warn or fail."""
    return {
        constant(call.args[0])
        for name, call in calls()
        if name == "Finding" and {"warn", "fail"} & {constant(node) for node in ast.walk(call.args[1])}
    }


DOCSTRINGS = {id(node.value) for node in NODES if isinstance(node, ast.Expr)}


def pieces(node: ast.AST) -> list[str]:
    """A text of the code, with an empty piece where it has a value."""
    if isinstance(node, ast.JoinedStr):
        return [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
    text = constant(node)
    return [text] if isinstance(text, str) and id(node) not in DOCSTRINGS else []


SAID = [found for node in NODES if (found := pieces(node))]
SAID += [[path.read_text()] for path in (ROOT / "handlers").glob("*.py")]
TEMPLATES = [
    "".join(re.escape(piece) if piece else ".+" for piece in text) for text in SAID if len("".join(text).strip()) >= 6
]


def is_said(quote: str) -> bool:
    """By the code: as it stands, with values in it, or a part of it, with `…` for values."""
    parts = [part.strip() for part in quote.split("…") if part.strip(" .,:;()")]
    if all(any(part in piece for text in SAID for piece in text) for part in parts):
        return True
    return any(re.fullmatch(template, quote) for template in TEMPLATES)


# Whatever can be raised has its entry, and every entry can be raised.


def test_every_log_event_that_warns_has_its_entry() -> None:
    assert set(re.findall(r"^### `([A-Z_]+)`$", section("Log events"), re.MULTILINE)) == events("warning", "error")


def test_every_warning_without_an_event_has_its_row() -> None:
    bare = [
        call
        for name, call in calls()
        if name in ("warning", "error") and call.args and not named(call, "event_name") and pieces(call.args[0])
    ]
    told = [re.sub(r"%s", "…", "…".join(pieces(call.args[0]))) for call in bare]
    quoted = spans(section("Lines without an event"))
    assert len(told) == 4
    for text in told:
        assert any(text.startswith(quote.rstrip("…").partition("…")[0]) for quote in quoted), text


def test_every_finding_of_the_doctor_has_its_row() -> None:
    assert sorted(spans(row[0])[0] for row in rows("Doctor")) == sorted(checks())


def test_every_exit_code_has_its_row() -> None:
    said = {int(number) for row in rows("Exit codes") for number in re.findall(r"\d+", row[0])}
    problems = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Problem)]
    assert said == {0, 1, 130, 143, 129, 137} | {kind.exit_code for kind in problems}


def test_every_cause_for_which_redis_is_away_has_its_row() -> None:
    quoted = {quote for row in rows("Why Redis is away") for quote in spans(row[0])}
    known = {cause.said for cause in connection._CAUSES}
    assert quoted == known | {"the server answered …", "the server refused a command"}


def test_every_reason_of_a_dead_letter_has_its_row() -> None:
    reasons = get_args(get_type_hints(Dead)["reason"])
    assert {spans(row[0])[0] for row in rows("Dead letters")} == set(reasons)


def test_every_way_of_not_being_well_has_its_row() -> None:
    tree = ast.parse((ROOT / "runtime/health.py").read_text())
    (document,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "document"]
    chosen = [node for node in ast.walk(document) if isinstance(node, ast.IfExp)]
    words = {constant(value) for node in chosen for value in (node.body, node.orelse)} - {None, "", "answers"}
    assert {"healthy", "degraded", "unhealthy", "quiet", "connected", "disconnected"} <= words
    assert [word for word in words - {"healthy", "connected"} if word not in section("Health")] == []
    routes = re.findall(r'add_get\("([^"]+)"', (ROOT / "runtime/adapters/http/server.py").read_text())
    assert [route for route in routes if f"`{route}`" not in section("Health")] == []


def test_every_alert_has_its_entry() -> None:
    """There are none as long as there are no metrics."""
    files = [path for path in (ROOT / "deploy").iterdir() if path.suffix in (".yml", ".yaml")]
    alerts = [name for path in files for name in re.findall(r"^\s*- alert: (\S+)", path.read_text(), re.MULTILINE)]
    assert [name for name in alerts if f"`{name}`" not in TEXT] == []


def test_every_event_that_is_named_exists() -> None:
    capitals = {quote for quote in spans(TEXT) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", quote)}
    ours = {
        name for name in capitals if not name.startswith(("RUNTIME_", "WORKER_", "REDIS_URL", "REDIS_DIS", "RAILWAY_"))
    }
    others = {"JOB_TIMEOUT_SECONDS", "LOG_LEVEL", "OPENAI_API_KEY"}
    assert ours - others <= events("info", "warning", "error")


@pytest.mark.parametrize(
    "title", ["By symptom", "Log events", "Why Redis is away", "Doctor", "Dead letters", "Health", "Railway"]
)
def test_what_is_quoted_is_said_by_the_code(title: str) -> None:
    tools = "runtime |redis-cli|railway |kill |INFO |CONFIG |ACL |SCRIPT |POST |GET |WORKER_CONCURRENCY=|RUNTIME_ALARM="
    quotes = [quote for quote in spans(section(title)) if " " in quote and not re.match(tools, quote)]
    assert len(quotes) > 0
    assert [quote for quote in quotes if not is_said(quote)] == []


# Its procedures.


def block(mark: str) -> str:
    """The block of code in which this stands."""
    blocks: list[str] = re.findall(r"^```\w*\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (found,) = [code for code in blocks if mark in code]
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


def add(project: Path, url: str, key: str, *more: str) -> None:
    done = command("enqueue", "note", '"x"', "--key", key, *more, folder=project, REDIS_URL=url)
    assert done.returncode == 0, done.stderr


def state(project: Path, url: str, job_id: str) -> str:
    said = json.loads(command("job", job_id, folder=project, REDIS_URL=url).stdout)
    return str(said["status"])


def test_enqueueing_everything_anew_brings_back_what_was_lost_and_nothing_else(project: Path) -> None:
    with Server() as server:
        for key in ("1", "2"):
            add(project, server.tcp_url, key, "--delay", "1h")
        with Redis.from_url(server.url) as redis:
            redis.delete("arq:job:note:1")
            redis.zrem("arq:queue", "note:1")
        (project / "open.tsv").write_text('1\t"x"\n2\t"x"\n')
        (project / "runtime").write_text(f'#!/bin/sh\nexec {sys.executable} -m runtime "$@"\n')
        (project / "runtime").chmod(0o755)
        env = environment(REDIS_URL=server.tcp_url)
        env["PATH"] = f"{project}:{env['PATH']}"
        script = block("open.tsv").replace("flashcards", "note")
        done = subprocess.run(["sh", "-c", script], cwd=project, env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines() == ["note:1", "note:2 (there already: the key has a job)"]
        with Redis.from_url(server.url) as redis:
            assert redis.zcard("arq:queue") == 2


def test_jobs_whose_queue_is_gone_run_again(project: Path) -> None:
    with Server() as server:
        for key in ("1", "2"):
            add(project, server.tcp_url, key)
        with Redis.from_url(server.url) as redis:
            redis.delete("arq:queue")
        assert state(project, server.tcp_url, "note:1") == "unknown"
        assert "body" in command("inspect", "job", "note:1", folder=project, REDIS_URL=server.tcp_url).stdout
        env = environment(REDIS_URL=server.tcp_url)
        for found in ({"note:1", "note:2"}, set()):  # a second time there is nothing to do
            done = subprocess.run([sys.executable, "-c", block("scan_iter")], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert set(done.stdout.split()) == found
        with Worker("handlers", redis=server.tcp_url, folder=project).up():
            wait_until(lambda: state(project, server.tcp_url, "note:1") == "completed")
            wait_until(lambda: state(project, server.tcp_url, "note:2") == "completed")


@pytest.mark.skipif(shutil.which("perl") is None, reason="the procedure uses perl")
@pytest.mark.parametrize("how", ["FLUSHALL", "FLUSHALL ASYNC", "flushall sync"])
def test_flushall_is_undone_while_the_worker_goes_on(project: Path, tmp_path: Path, how: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with Server(data=data) as server, Worker("handlers", redis=server.tcp_url, folder=project).up() as worker:
        add(project, server.tcp_url, "1", "--delay", "1h")
        with Redis.from_url(server.url) as redis:
            redis.execute_command(*how.split())
            assert state(project, server.tcp_url, "note:1") == "unknown"
            for line in block("perl").splitlines():
                if line.startswith("redis-cli SHUTDOWN"):
                    with suppress(ConnectionError):
                        redis.shutdown(nosave=True)
                elif line.startswith("redis-cli "):
                    redis.execute_command(*line.split()[1:])
                else:
                    subprocess.run(["sh", "-c", line], cwd=data, env=dict(os.environ), check=True)
        wait_until(lambda: not server.running)
        server.start()
        assert state(project, server.tcp_url, "note:1") == "deferred"
        add(project, server.tcp_url, "2")
        worker.wait_for("JOB_COMPLETED", job_id="note:2")


def test_what_ran_at_the_time_of_a_snapshot_runs_again_and_what_is_taken_out_does_not(project: Path) -> None:
    with Server() as server:
        for key in ("1", "2"):
            add(project, server.tcp_url, key, "--delay", "3s")
        with Redis.from_url(server.url) as redis:
            kept = {key: redis.dump(key) for key in redis.keys("*")}  # the data as they were
        with Worker("handlers", redis=server.tcp_url, folder=project).up() as worker:
            worker.wait_for("JOB_COMPLETED", count=2)
        server.flush()
        with Redis.from_url(server.url) as redis:
            for key, value in kept.items():
                redis.restore(key, 0, value)
        done = command("job", "note:1", "--cancel", folder=project, REDIS_URL=server.tcp_url)
        assert done.stdout == "note:1: cancelled; it had not been running\n"
        with Worker("handlers", redis=server.tcp_url, folder=project).up() as worker:
            worker.wait_for("JOB_COMPLETED", job_id="note:2")
            time.sleep(0.5)
            assert not worker.events("JOB_STARTED", job_id="note:1")


def test_a_worker_is_kept_from_restored_data_by_redis_disabled(project: Path) -> None:
    done = command("serve", "handlers", folder=project, REDIS_URL="redis://127.0.0.1:1", REDIS_DISABLED="true")
    assert done.returncode == 0
    assert done.stderr == "REDIS_DISABLED is set: this worker has nothing to do, and stops.\n"
