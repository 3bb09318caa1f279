"""Where contenders are measured: a server of their own, their worker and their producer as processes."""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.benchmarks import guests
from tests.benchmarks.contenders import Contender
from tests.benchmarks.counting import Probe
from tests.benchmarks.distance import far_away
from tests.processes import ROOT, environment
from tests.servers import Server
from tests.standins.process import running

LIMIT_S = 180.0
"""Longest that anything here is waited for; who needs longer has failed."""


class Failed(Exception):
    """A contender did not do what it is there for."""


class Marks:
    """What the jobs of a worker tell: a time for each that is to be told of."""

    def __init__(self, source: int, stderr: IO[bytes]) -> None:
        self._source = source
        self._stderr = stderr
        self._read = b""

    def next(self, timeout_s: float = LIMIT_S) -> float:
        """The next one. Raises `Failed` when the worker has ended, or said nothing for so long."""
        until = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._source], [], [], max(until - time.monotonic(), 0))
            more = os.read(self._source, 65536) if ready else b""
            if not more:
                raise Failed(f"no job began within {timeout_s:g} s: {self._last_words()}")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return float(line)

    def _last_words(self) -> str:
        return Path(self._stderr.name).read_text(errors="replace")[-400:]


class Stage:
    """One contender with a server of its own, which is `url` for it: far away if there is a delay."""

    def __init__(self, contender: Contender, server: Server, url: str, probe: Probe, settings: dict[str, str]) -> None:
        self.contender = contender
        self.server = server
        self.url = url
        self.probe = probe
        self._env = environment(
            REDIS_URL=url,
            BENCH_LOOP=contender.loop,
            NODE_PATH=guests.NODE_MODULES,
            **contender.settings,
            **settings,
        )
        self._env["PYTHONPATH"] = f"{ROOT}:{guests.PYTHON}" if contender.loop == "uvloop" else str(ROOT)

    @contextmanager
    def worker(self, jobs: int = 0) -> Iterator[tuple[int, Marks]]:
        """Its worker for the block: the process, and the marks of its jobs. Its output is read by another process."""
        source, sink = os.pipe()
        with (
            tempfile.NamedTemporaryFile(prefix="bench-err-") as err,
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader,
        ):
            process = subprocess.Popen(
                self.contender.work(self.url),
                cwd=ROOT,
                env=self._env | {"BENCH_MARKS": str(sink), "BENCH_JOBS": str(jobs)},
                stdout=reader.stdin,
                stderr=err,
                pass_fds=[sink],
            )
            os.close(sink)
            try:
                yield process.pid, Marks(source, err)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                os.close(source)

    def produce(self, *action: object) -> list[float]:
        """What its producer measured; see `clients.py`."""
        with self.producing(*action) as process:
            out, _ = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise Failed(f"the producer ended with {process.returncode}")
        figures: list[float] = json.loads(out)
        return figures

    @contextmanager
    def producing(self, *action: object) -> Iterator[subprocess.Popen[str]]:
        """The producer while it is at work."""
        process = subprocess.Popen(
            self.contender.produce(self.url, *action), cwd=ROOT, env=self._env, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def wait_until_drained(self) -> float:
        """The moment when nothing is left to be settled, to 2 ms."""
        until = time.monotonic() + LIMIT_S
        while self.contender.family.left(self.probe):
            if time.monotonic() > until:
                raise Failed("jobs are left")
            time.sleep(0.002)
        return time.monotonic()


@contextmanager
def stage(contender: Contender, delay_ms: float = 0) -> Iterator[Stage]:
    """A server, and whatever else the contender needs. With a delay, all that it and the server say takes so long."""
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        probe = Probe(server.url)
        stack.callback(probe.close)
        if contender.events:
            probe.ask("CONFIG", "SET", "notify-keyspace-events", contender.events)
        settings: dict[str, str] = {}
        if contender.traced:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = stack.enter_context(running("otlp")).url
        url = stack.enter_context(far_away(server, delay_ms)) if delay_ms else server.tcp_url
        yield Stage(contender, server, url, probe, settings)
