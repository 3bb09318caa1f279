"""Whoever reads a worker's output may stand still, go away, or be slow: that costs lines, and nothing else."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.adapters.telemetry.writer import MOST, LineWriter, text_of
from tests.faults import campaign, jobs
from tests.faults.ledger import Ledger
from tests.processes import ROOT, enqueue, environment, wait_until

PORT = 21_519


class Reader:
    """The reading end of a worker's stdout, and what was read."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._data = b""

    def full(self) -> bool:
        """Whether a writer would have to wait."""
        end = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            poll = select.poll()
            poll.register(end, select.POLLOUT)
            return not poll.poll(0)
        finally:
            os.close(end)

    def read(self) -> bytes:
        """Everything so far."""
        while select.select([self._end], [], [], 0)[0]:
            data = os.read(self._end, 1 << 20)
            if not data:
                break
            self._data += data
        return self._data

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line so far; each must be JSON."""
        return [json.loads(line) for line in self.read().split(b"\n")[:-1]]

    def shrink(self) -> None:
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, 4096)

    def close(self) -> None:
        if self._end >= 0:
            os.close(self._end)
        self._end = -1


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path / "stdout")) as one:
        yield one


def health() -> float:
    """How long /health takes to answer."""
    began = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
    return time.monotonic() - began


def _have_ended(url: str, count: int) -> bool:
    return campaign.ended(url) == count


def test_jobs_go_on_while_nobody_reads_the_log_and_then_it_says_what_is_missing(
    redis_url: str, ledger: Ledger, reader: Reader
) -> None:
    settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": PORT}
    with campaign.worker(redis_url, ledger, slots=20, out=reader.path, **settings).start() as worker:
        wait_until(lambda: any(line.get("event") == "HTTP_LISTENING" for line in reader.lines()))
        reader.shrink()
        ended, rounds = 0, 0
        while rounds < 12:  # some of them with a megabyte of what a handler logs and prints
            given = enqueue(redis_url, *(jobs.talk.request(100_000) for _ in range(10)), jobs.work.request(0.0))
            ended, rounds = ended + len(given), rounds + 1
            wait_until(partial(_have_ended, redis_url, ended), 20, f"{ended} jobs have ended")
            assert health() < 1
        assert reader.full()
        (late,) = enqueue(redis_url, jobs.work.request(0.0))
        wait_until(lambda: late in campaign.results(redis_url))

        wait_until(lambda: any(line.get("event") == "LOG_LINES_LOST" for line in reader.lines()))
        (after,) = enqueue(redis_url, jobs.work.request(0.0))
        wait_until(lambda: any(line.get("job_id") == after for line in reader.lines()))
        assert worker.stop() == 0
        said = reader.lines()
    (lost,) = [line for line in said if line.get("event") == "LOG_LINES_LOST"]
    assert lost["level"] == "warn"
    assert lost["worker_id"] == said[0]["worker_id"]
    # Two lines of ours, one of the handler's and a printed one for each that talks.
    written = sum(line.get("event") in ("JOB_STARTED", "JOB_COMPLETED") or "talk" in line for line in said)
    assert written + lost["lines"] == rounds * (10 * 4 + 2) + 2 * 2
    assert said[-1]["event"] == "WORKER_SHUTDOWN"
    assert "LOOP_BLOCKED" not in {line.get("event") for line in said}


@pytest.mark.parametrize(("signals", "code"), [(1, 0), (2, 130), (3, 143)])
def test_a_log_that_nobody_reads_does_not_keep_a_worker(
    redis_url: str, ledger: Ledger, reader: Reader, signals: int, code: int
) -> None:
    with campaign.worker(redis_url, ledger, out=reader.path).start() as worker:
        wait_until(lambda: any(line.get("event") == "WORKER_BOOT" for line in reader.lines()))
        reader.shrink()
        (talking,) = enqueue(redis_url, jobs.talk.request(100_000))
        wait_until(lambda: talking in campaign.results(redis_url))
        wait_until(reader.full)
        if signals > 1:
            enqueue(redis_url, jobs.work.request(60) if signals == 2 else jobs.refuse_to_stop.request())
            wait_until(lambda: len(ledger.starts()) == 1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)[:signals]:
            worker.send(number)
            time.sleep(0.3)
        assert worker.wait(5) == code


def test_a_reader_that_goes_away_costs_the_lines_and_no_job(redis_url: str, ledger: Ledger, reader: Reader) -> None:
    with campaign.worker(redis_url, ledger, out=reader.path).start() as worker:
        wait_until(lambda: any(line.get("event") == "WORKER_BOOT" for line in reader.lines()))
        reader.close()
        given = enqueue(redis_url, *(jobs.talk.request(10) for _ in range(10)))
        wait_until(lambda: campaign.ended(redis_url) == len(given))
        assert worker.stop() == 0
        assert worker.errors() == ""


def test_the_last_words_of_a_process_that_stands_still_are_heard(
    redis_url: str, ledger: Ledger, reader: Reader
) -> None:
    """Written by the watchdog's thread as it ends the process, to a reader that is slow."""
    with campaign.worker(redis_url, ledger, out=reader.path, RUNTIME_BLOCK_LIMIT="2s").start() as worker:
        wait_until(lambda: any(line.get("event") == "WORKER_BOOT" for line in reader.lines()))
        enqueue(redis_url, jobs.block.request(3600))
        assert worker.wait(20) == 1
        assert [line["event"] for line in reader.lines()][-2:] == ["LOOP_BLOCKED", "WORKER_CRASH"]


FORKS = """
import os, structlog
from runtime import Context, handler

@handler
async def fork(ctx: Context) -> int:
    print("parent, before")
    child = os.fork()
    if not child:
        print("child prints")
        structlog.get_logger().info("child logs")
        os._exit(0)
    os.waitpid(child, 0)
    print("parent, after")
    return child
"""


def test_what_a_forked_child_says_is_written_once(redis_url: str, tmp_path: Path) -> None:
    from tests.processes import Worker

    (tmp_path / "forks.py").write_text(FORKS)
    with Worker("forks", redis=redis_url, folder=tmp_path).up() as worker:
        done = subprocess.run(
            [sys.executable, "-m", "runtime", "enqueue", "fork", "[]", "-m", "forks", "--wait"],
            cwd=tmp_path, env=environment(REDIS_URL=redis_url), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert worker.stop() == 0
        said = worker.output().splitlines()
    printed = [line for line in said if not line.startswith("{")]
    assert sorted(printed) == ["child prints", "parent, after", "parent, before"]
    assert printed.index("parent, before") < printed.index("parent, after")
    assert sum('"child logs"' in line for line in said) == 1


# ── the writer itself ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def lost(count: int) -> bytes:
    return b"lost %d\n" % count


def drained(reading: int, until: bytes) -> list[bytes]:
    data = b""
    while not data.endswith(until):
        assert select.select([reading], [], [], 10)[0], f"nothing came; the last: {data[-200:]!r}"
        data += os.read(reading, 1 << 20)
    return data.splitlines()


def test_lines_of_many_threads_are_whole_and_each_threads_in_order() -> None:
    with pipe() as (reading, writing):
        writer = LineWriter(writing, lost)

        def say(thread: int) -> None:
            for n in range(1000):
                writer.write(b"%d %d %s\n" % (thread, n, b"x" * 500))

        threads = [threading.Thread(target=say, args=[n]) for n in range(6)]
        for thread in threads:
            thread.start()
        read: list[bytes] = []
        taker = threading.Thread(target=lambda: read.extend(drained(reading, b"end\n")))
        taker.start()
        for thread in threads:
            thread.join()
        writer.write(b"end\n")
        writer.close()
        taker.join()
    assert len(read) == 6001
    for n in range(6):
        ours = [line.split() for line in read if line.startswith(b"%d " % n)]
        assert [int(line[1]) for line in ours] == list(range(1000))
        assert {line[2] for line in ours} == {b"x" * 500}


def test_what_is_missing_is_told_in_its_place() -> None:
    with pipe() as (reading, writing):
        writer = LineWriter(writing, lost)
        writer.write(200_000 * b"x" + b"\n")
        poll = select.poll()
        poll.register(writing, select.POLLOUT)
        wait_until(lambda: not poll.poll(0), what="the pipe is full")
        began = time.monotonic()
        for n in range(6000):
            writer.write(b"%06d %s\n" % (n, b"y" * 992))
        assert time.monotonic() - began < 2
        writer.close(0.1)  # gives up: nobody reads
        writer.write(b"too late %s\n" % (b"y" * 992))
        first, *said = drained(reading, b"lost 1807\n")
    assert first == 200_000 * b"x"
    assert [int(line[:6]) for line in said[:-1]] == list(range(MOST // 1000))
    assert said[-1] == lost(6001 - MOST // 1000).strip()


def test_after_its_end_lines_are_written_at_once() -> None:
    with pipe() as (reading, writing):
        writer = LineWriter(writing, lost)
        writer.write(b"before\n")
        writer.close()
        writer.write(b"after\n")
        assert os.read(reading, 100) == b"before\nafter\n"
        writer.close()


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing() -> None:
    with pipe() as (reading, writing):
        os.set_blocking(writing, False)
        writer = LineWriter(writing, lost)
        for n in range(1000):
            writer.write(b"%d %s\n" % (n, b"z" * 1000))
        writer.write(b"end\n")
        assert len(drained(reading, b"end\n")) == 1001
        writer.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that cannot be written to")
def test_lines_that_could_not_be_written_are_told_when_they_can_be_again(tmp_path: Path) -> None:
    out = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(out, lost)
    for n in range(3):
        writer.write(b"%d\n" % n)
        time.sleep(0.05)
    better = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(better, out)
    writer.write(b"again\n")
    writer.close()
    assert (tmp_path / "log").read_bytes() == b"again\nlost 3\n"
    os.close(out)
    os.close(better)


def test_what_is_printed_stands_in_its_place_in_whole_lines() -> None:
    with pipe() as (reading, writing):
        writer = LineWriter(writing, lost)
        out = text_of(writer, writing, "utf-8")
        print("one", "two", file=out, end=" ")
        writer.write(b"a line\n")
        print("three \udcff", file=out)
        writer.write(b"the last\n")
        writer.close()
        assert os.read(reading, 1000) == b"a line\none two three \\udcff\nthe last\n"
        assert (out.fileno(), out.isatty(), out.writable()) == (writing, False, True)


def test_an_end_without_a_word_loses_nothing() -> None:
    """As after an exception that nobody caught."""
    script = (
        "from runtime.adapters.telemetry import logs\nlog = logs.configure('info', 'json', 'w')\n"
        "for n in range(5000): log.info(f'line {n}')\nprint('printed')\nraise ValueError('the end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, timeout=60, check=False
    )
    said = done.stdout.splitlines()
    assert done.returncode == 1
    assert [json.loads(line)["message"] for line in said[:5000]] == [f"line {n}" for n in range(5000)]
    assert said[5000] == b"printed"
    assert json.loads(said[5001])["event"] == "UNCAUGHT"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_are_no_connections(redis_url: str, ledger: Ledger, closed: str) -> None:
    """The next descriptor that is opened has the lowest number that is free."""
    with campaign.worker(redis_url, ledger, inside=("sh", "-c", f'exec "$@" {closed}', "sh")).start() as worker:
        (job,) = enqueue(redis_url, jobs.work.request(0.0))
        wait_until(lambda: job in campaign.results(redis_url))
        where = [os.readlink(f"/proc/{worker.pid}/fd/{number}") for number in (0, 1, 2)]
        assert [place for place in where if place.startswith("socket:")] == []
        assert worker.stop() == 0


def test_what_handlers_put_in_place_of_the_streams_is_no_crash_at_the_end(redis_url: str, ledger: Ledger) -> None:
    with campaign.worker(redis_url, ledger).up() as worker:
        (job,) = enqueue(redis_url, jobs.replace_the_streams.request())
        wait_until(lambda: job in campaign.results(redis_url))
        assert worker.stop() == 0
        assert worker.events("UNCAUGHT") == []


def test_a_worker_without_descriptors_says_so_once(redis_url: str, ledger: Ledger) -> None:
    """asyncio says it for each of a hundred connections that might be waiting, and that each second."""
    few = ("sh", "-c", 'ulimit -n 26; exec "$@"', "sh")
    with campaign.worker(redis_url, ledger, inside=few, RUNTIME_HTTP="on", PORT=PORT).start() as worker:
        worker.wait_for("HTTP_LISTENING")
        connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(40)]
        told = wait_until(lambda: [line for line in worker.lines() if line.get("logger_name") == "asyncio"])
        time.sleep(2.5)
        told = [line["message"] for line in worker.lines() if line.get("logger_name") == "asyncio"]
        assert len(told) == len(set(told)) == 1
        for connection in connections:
            connection.close()
        (job,) = enqueue(redis_url, jobs.work_at_once.request())
        wait_until(lambda: job in campaign.results(redis_url))
        assert worker.stop() == 0


def test_of_what_asyncio_says_only_the_flood_is_told_once() -> None:
    script = (
        "import logging\nfrom runtime.adapters.telemetry import logs\nsaid = logging.getLogger('asyncio')\n"
        "said.addFilter(lambda record: 'ours to hide' not in record.getMessage())\n"
        "logs.configure('info', 'json', 'w')\nsaid.error('ours to hide')\n"
        "for n in range(200): said.error('socket.accept() out of system resource\\nsocket: 7')\n"
        "for n in range(400): said.error(f'Task exception was never retrieved {n // 2}', exc_info=ValueError(n))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, timeout=60, check=True
    )
    told = [json.loads(line)["message"].splitlines()[0] for line in done.stdout.splitlines()]
    assert told[0] == "socket.accept() out of system resource"
    assert told[1:] == [f"Task exception was never retrieved {n // 2}" for n in range(400)]


def test_whatever_writes_to_the_console_gives_way_and_a_file_does_not(tmp_path: Path) -> None:
    script = (
        "import logging, sys\nfrom types import SimpleNamespace\nfrom runtime.adapters.telemetry import logs\n"
        "class Rich(logging.Handler):  # as that of rich\n"
        "    console = SimpleNamespace(file=sys.stdout)\n"
        "    def emit(self, record): self.console.file.write(record.getMessage() + '\\n')\n"
        "console = [logging.StreamHandler(), logging.StreamHandler(sys.stdout), logging.FileHandler('/dev/stdout')]\n"
        f"handlers = [Rich(), *console, logging.FileHandler({str(tmp_path / 'log')!r}, delay=True)]\n"
        "logging.basicConfig(handlers=handlers)\nlogs.configure('info', 'json', 'w')\nlogging.info('one line')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, timeout=60, check=True
    )
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["one line"]
    assert done.stderr == b""
    assert (tmp_path / "log").read_text() == "INFO:root:one line\n"
