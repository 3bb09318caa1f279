"""The README, followed to the letter: every code block runs, in a copy of what git knows."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the working tree: what is tracked, and what would be."""
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, names.splitlines()):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(**more: str) -> dict[str, str]:
    """Ours, less what would configure the worker or point at this environment's Python."""
    names = ("REDIS_URL", "UPSTASH_REDIS_URL", "OPENAI_API_KEY", "EXPO_PUBLIC_OPENAI_API_KEY", "JUDIT_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("RUNTIME_")}
    return {**kept, **more}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def demo(clone: Path) -> Iterator[list[str]]:
    """The first block, `make run`: what it prints until the worker is up."""
    (command,) = blocks("sh")[0].splitlines()
    env = environment(PYTHON=sys.executable, PORT=free_port(), LOG_FORMAT="json")
    running = subprocess.Popen(
        command.split(), cwd=clone, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    printed: list[str] = []
    try:
        assert running.stdout is not None
        for line in running.stdout:
            printed.append(line)
            if "HTTP_LISTENING" in line:
                break
        yield printed
    finally:
        os.killpg(running.pid, signal.SIGINT)
        rest, _ = running.communicate(timeout=20)
    assert "WORKER_SHUTDOWN" in rest, "Ctrl-C is a clean stop"


def run(line: str, folder: Path) -> str:
    done = subprocess.run(line, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(300)
def test_make_run_says_what_it_stands_in_for_and_its_lines_work_as_pasted(demo: list[str], clone: Path) -> None:
    text = "".join(demo)
    assert "No Redis is configured" in text
    assert "OPENAI_API_KEY is not set" in text
    assert "JUDIT_API_KEY is not set" in text
    pasted = [line.strip() for line in demo if " enqueue " in line and "--wait" in line]
    assert len(pasted) == 2
    answers = [run(line, clone) for line in pasted]
    assert '"question"' in answers[0]
    assert '"tokenUsage"' in answers[0]
    assert '"lawsuits"' in answers[1]
    (curl,) = [line.strip() for line in demo if line.strip().startswith("curl ")]
    assert '"created":true' in run(curl, clone)


@pytest.mark.timeout(300)
def test_the_lines_of_the_readme_work_as_pasted(demo: list[str], clone: Path) -> None:
    for line in blocks("sh")[1].splitlines():
        assert run(line, clone)


def test_the_third_block_is_what_ci_runs() -> None:
    assert blocks("sh")[2].strip() == "make test"
    assert "exec make test" in (ROOT / ".ci/run").read_text()
    assert len(blocks("sh")) == 3


def test_the_python_blocks_run(tmp_path: Path, tcp_url: str) -> None:
    declared, producer = blocks("python")
    (tmp_path / "shop.py").write_text(declared)
    (tmp_path / "producer.py").write_text(producer)
    env = environment(REDIS_URL=tcp_url, PORT="0", LOG_FORMAT="json")
    produced = subprocess.run([sys.executable, "producer.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert produced.returncode == 0, produced.stderr
    assert produced.stdout.split()[1:] == ["waiting", "True"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", "shop"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        completed = 0
        for line in worker.stdout:
            completed += "JOB_COMPLETED" in line
            if completed == 2:
                break
    finally:
        worker.terminate()
        worker.communicate(timeout=20)
    assert worker.returncode == 0


def test_every_command_that_the_readme_names_exists() -> None:
    (commands,) = [block for block in blocks("text") if "runtime serve" in block]
    for line in commands.splitlines():
        name = line.split()[1]
        shown = subprocess.run([sys.executable, "-m", "runtime", name, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
