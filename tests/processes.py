"""Real processes of the command `runtime`: workers that are read, signalled and killed, and commands that are run.

A worker's output goes to files, so that nothing it says is lost with it, and nobody has to read while it runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from runtime import Client, Request

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
START_S = 30.0
"""The longest start that is waited for, on a machine that is busy with other things."""
_FROM_US = ("PATH", "HOME", "LANG", "TMPDIR", "RUNTIME_TEST_SERVER", "RUNTIME_LOOP")


def environment(**settings: object) -> dict[str, str]:
    """What a worker of a test is started with: these settings, and none of the machine's."""
    inherited = {name: os.environ[name] for name in _FROM_US if name in os.environ}
    return {**inherited, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in settings.items()}}


def wait_until(fact: Callable[[], T], timeout_s: float = START_S, what: str = "") -> T:
    """The first true value of `fact`, asked again and again; fails after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:g} s: {what or fact}")
        time.sleep(0.02)


async def until(fact: Callable[[], object], timeout_s: float = 10.0) -> None:
    """The same in an event loop, with what is seen quickly."""
    end = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.001)


@contextmanager
def program(*command: object, **settings: object) -> Iterator[None]:
    """Another program that runs meanwhile, with these settings, and is killed then; it says nothing."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Worker:
    """One `runtime serve` in a session of its own: it may be signalled as from a terminal, and ends with this process.

    `out` is written to instead of the file that the methods here read. `inside` stands before the command: it runs it
    somewhere else, as the same process. `command` is another one of runtime's that stays.
    """

    program: Sequence[str] = ("runtime", "serve")

    def __init__(
        self,
        *modules: str,
        redis: str | None = None,
        folder: Path = ROOT,
        arguments: Sequence[str] = (),
        out: str | None = None,
        inside: Sequence[str] = (),
        command: str | None = None,
        **settings: Any,
    ) -> None:
        self._out_path = out
        if redis is not None:
            settings["REDIS_URL"] = redis
        settings.setdefault("RUNTIME_HTTP", "off")
        program = self.program if command is None else ("runtime", command)
        self._command = [*inside, sys.executable, "-m", *program, *modules, *arguments]
        self._folder = folder
        self._env = environment(**settings)
        self._out = tempfile.NamedTemporaryFile(prefix="worker-out-")  # noqa: SIM115  # closed by close()
        self._err = tempfile.NamedTemporaryFile(prefix="worker-err-")  # noqa: SIM115  # likewise
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, or start it again; its output goes on in the same files."""
        self._reap()
        with open(self._out_path or self._out.name, "ab") as out, open(self._err.name, "ab") as err:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._warden = _warden(self._process.pid)
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None, "the worker was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> bool:
        """It was started, and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def boots(self) -> int:
        """How many of its processes have begun to serve."""
        return len(self.events("WORKER_BOOT"))

    def up(self) -> Self:
        """Start it, and wait until it serves."""
        before = self.boots()
        self.start()
        wait_until(lambda: self.boots() > before or not self.running, what="the worker has booted")
        assert self.running, f"the worker did not start:\n{self.errors()}\n{self.output()}"
        return self

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if it runs."""
        if self.running:
            os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Signal its process group, as a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = START_S) -> int:
        """Its exit code, once it has ended: negative where a signal ended it."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout_s:g} s:\n{self.output()}") from None

    def stop(self, timeout_s: float = START_S) -> int:
        """SIGTERM, and its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout_s)

    def output(self) -> str:
        return Path(self._out.name).read_text(errors="replace")

    def errors(self) -> str:
        return Path(self._err.name).read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Its log so far. A line that a SIGKILL cut short, or that is being written, is left out."""
        lines = []
        for line in self.output().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def events(self, name: str, **fields: object) -> list[dict[str, Any]]:
        """The log lines of this event with these fields."""
        return [
            line
            for line in self.lines()
            if line.get("event") == name and all(line.get(key) == value for key, value in fields.items())
        ]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = START_S, **fields: object) -> list[dict[str, Any]]:
        """The log lines of this event with these fields, once there are as many."""
        what = f"{count} {name} {fields}"
        try:
            return wait_until(
                lambda: found if len(found := self.events(name, **fields)) >= count else [], timeout_s, what
            )
        except AssertionError as missing:
            raise AssertionError(f"{missing}, in:\n{self.output()}{self.errors()}") from None

    def close(self) -> None:
        """End it, and whatever it started, at once."""
        self._reap()
        self._out.close()
        self._err.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reap(self) -> None:
        if self._warden is not None:
            self._warden.kill()  # first: once the worker is reaped, its number may be somebody else's
            self._warden.communicate()
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = self._warden = None


def _warden(worker: int) -> subprocess.Popen[bytes]:
    """Ends the worker's group when this process is gone, however it went: its end of the pipe closes."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r line; kill -KILL -- "-$0"', str(worker)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def workers(made: Iterable[Worker]) -> Iterator[list[Worker]]:
    """These workers for the block; ended after it, whatever happens."""
    all_of_them = list(made)
    try:
        yield all_of_them
    finally:
        for worker in all_of_them:
            worker.close()


def command(
    *arguments: str, folder: Path = ROOT, typed: str = "", timeout_s: float = 60.0, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run `runtime` with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        cwd=folder,
        env=environment(**settings),
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    client = Client(url)
    try:
        yield client
    finally:
        await client.close()


def enqueue(url: str, *requests: Request[Any]) -> list[str]:
    """Add these jobs; their ids, once Redis has them."""

    async def add() -> list[str]:
        async with _client(url) as client:
            return [job.id for job in await client.send(requests)]

    return asyncio.run(add())


def status(url: str, job_id: str, queue: str) -> str:
    """What the client says of a job."""

    async def ask() -> str:
        async with _client(url) as client:
            return await client.status(job_id, queue)

    return asyncio.run(ask())
