"""uvloop, where it is asked for: the same worker on another event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from runtime import connect
from tests.e2e.jobs import add
from tests.processes import ROOT, Worker, enqueue, environment, status, wait_until
from tests.servers import Server


@pytest.fixture
def worker(server: Server) -> Worker:
    return Worker("tests.e2e.jobs", redis=server.tcp_url, RUNTIME_LOOP="uvloop", RUNTIME_HTTP="on", PORT=0)


def done(url: str, job_id: str) -> bool:
    return status(url, job_id, "arq:queue") == "completed"


def test_jobs_run_on_it_and_a_signal_stops_it(redis_url: str, worker: Worker) -> None:
    with worker:
        worker.up()
        ids = enqueue(redis_url, *(add.request(n, 2) for n in range(50)))
        for job_id in ids:
            wait_until(partial(done, redis_url, job_id))
        assert worker.stop() == 0
        assert worker.events("WORKER_SHUTDOWN")
        assert not worker.errors()


def test_where_it_is_not_installed_the_start_says_what_to_do(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('as if it were not there')\n")
    (tmp_path / "jobs.py").write_text("from runtime import handler\n\n@handler\nasync def work(ctx): ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "serve", "jobs"],
        env=environment(REDIS_URL=redis_url, RUNTIME_LOOP="uvloop"), cwd=tmp_path, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert "uvloop is not installed" in done.stderr
    assert "runtime-worker[uvloop]" in done.stderr
    assert "Traceback" not in done.stderr


async def asked(url: str, handler: str) -> object:
    async with connect(url) as client:
        return await (await client.enqueue(handler)).result(timeout=20)


@pytest.mark.parametrize(("said", "module"), [("", "runtime.adapters.loop"), ("uvloop.install()", "uvloop")])
def test_a_loop_that_a_handler_module_has_seen_to_is_taken(
    tmp_path: Path, redis_url: str, said: str, module: str
) -> None:
    """As arq applications do, by a line at their beginning."""
    (tmp_path / "looped.py").write_text(
        f"import asyncio, uvloop\nfrom runtime import handler\n{said}\n"
        "@handler\nasync def which(ctx) -> str:\n    return type(asyncio.get_running_loop()).__module__\n"
    )
    with Worker("looped", redis=redis_url, RUNTIME_LOOP="asyncio", PYTHONPATH=f"{ROOT}:{tmp_path}") as worker:
        worker.up()
        assert asyncio.run(asked(redis_url, "which")) == module
        assert worker.stop() == 0
