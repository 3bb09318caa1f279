"""The image, built and started without an engine: `make image`. Needs root, buildah, mmdebstrap and two minutes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.image import jobs
from tests.processes import ROOT, enqueue, status, wait_until
from tests.servers import Server

pytestmark = [
    pytest.mark.skipif(not os.environ.get("RUNTIME_TEST_IMAGE"), reason="two minutes: make image"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """The folder with `root`, the image's file system, and `config.json`."""
    lacking = [name for name in ("buildah", "mmdebstrap", "unshare", "chroot") if shutil.which(name) is None]
    if lacking or os.getuid() != 0:
        pytest.skip(
            f"needs root, and {', '.join(lacking) or 'every program is there'} (apt-get install buildah mmdebstrap)"
        )
    out = Path(os.environ.get("RUNTIME_TEST_IMAGE_DIR") or ROOT / "build" / "image").absolute()
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["sh", str(ROOT / "tests/image/build.sh"), str(out)], env={**os.environ, "PYTHON": sys.executable}, check=True
    )
    shutil.copy(jobs.__file__, out / "root" / "app" / "jobs.py")
    yield out
    subprocess.run(["umount", "-R", str((out / "root").resolve())], check=False, capture_output=True)


class Container:
    """The image's own command in its root, as its user, and as process 1 of a pid namespace."""

    def __init__(self, built: Path, *arguments: str, **settings: object) -> None:
        config: dict[str, Any] = json.loads((built / "config.json").read_text())["OCIv1"]["config"]
        environment = [*config["Env"], *(f"{name}={value}" for name, value in settings.items())]
        self._out = tempfile.NamedTemporaryFile(prefix="container-")  # noqa: SIM115  # closed by close()
        self._process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "chroot", f"--userspec={config['User']}"),
                *(str((built / "root").resolve()), "env", "-i", "-C", config["WorkingDir"], *environment),
                *(*config["Entrypoint"], *(arguments or config["Cmd"])),
            ],
            stdout=self._out,
            stderr=self._out,
        )

    def output(self) -> str:
        return Path(self._out.name).read_text()

    def stop(self) -> int:
        """SIGTERM to process 1, and its exit code."""
        self._send(signal.SIGTERM)
        return self._process.wait(60)

    def _send(self, number: signal.Signals) -> None:
        for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            os.kill(int(child), number)

    def close(self) -> None:
        if self._process.poll() is None:
            self._send(signal.SIGKILL)  # the whole namespace ends with it; unshare's own death would not reach it
            self._process.wait(60)
        self._out.close()


def test_its_configuration_is_what_the_dockerfile_says(built: Path) -> None:
    config = json.loads((built / "config.json").read_text())["OCIv1"]["config"]
    assert config["Entrypoint"] == ["python", "-m", "runtime"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["User"] == "10001:10001"


def test_every_module_has_its_bytecode_and_nothing_is_there_to_build_with(built: Path) -> None:
    root = built / "root"
    sources = [*(root / "app").rglob("*.py"), *(root / "venv/lib").rglob("*.py")]
    sources.remove(root / "app" / "jobs.py")
    missing = [
        source for source in sources if not list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc"))
    ]
    assert len(sources) > 500
    assert not missing
    assert not (root / "venv/bin/pip").exists()
    assert not list((root / "usr/bin").glob("*gcc*"))


def test_it_runs_a_job_and_gives_back_another_when_it_is_told_to_stop(built: Path, server: Server) -> None:
    server.flush()
    settings = {"REDIS_URL": server.tcp_url, "PORT": 0, "GRACEFUL_SHUTDOWN_TIMEOUT_MS": 300}
    container = Container(built, "serve", "jobs", **settings)
    try:
        (first,) = enqueue(server.url, jobs.who.request())
        wait_until(lambda: status(server.url, first, "arq:queue") == "completed", 60, container.output())
        assert who(server.url, first) == [1, 10001]
        (second,) = enqueue(server.url, jobs.wait.request(600))
        wait_until(lambda: status(server.url, second, "arq:queue") == "active", 60)
        assert container.stop() == 0, container.output()
        assert "SIGTERM (Deployment/Scale-down)" in container.output()
        assert status(server.url, second, "arq:queue") == "waiting"
        with Redis.from_url(server.url, decode_responses=True) as redis:
            assert int(redis.get(f"arq:retry:{second}") or 0) == 0, "a deploy costs no attempt"
    finally:
        container.close()


def test_its_own_handlers_are_found(built: Path, server: Server) -> None:
    container = Container(built, REDIS_URL=server.tcp_url, PORT=0)
    try:
        wait_until(lambda: "WORKER_BOOT" in container.output(), 60)
        assert "flashcards" in container.output()
        assert container.stop() == 0
    finally:
        container.close()


def test_without_a_redis_it_says_what_is_missing(built: Path) -> None:
    container = Container(built, ENVIRONMENT="production")
    try:
        assert container._process.wait(60) == 78
        assert "no Redis is configured" in container.output()
    finally:
        container.close()


def who(url: str, job_id: str) -> Any:
    import asyncio

    from runtime import Client

    async def ask() -> Any:
        client = Client(url)
        try:
            return await client.job(job_id).result(10)
        finally:
            await client.close()

    return asyncio.run(ask())
