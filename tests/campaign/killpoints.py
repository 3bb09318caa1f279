"""K1.2: a process is killed as it is about to send, or receive, for the n-th time: n = 1, 2, … until nothing is cut.

strace counts the system calls and sends the signal. It is attached when the operation begins, so that the n-th call is
the operation's, except where the whole life of a worker is tried. asyncio's own loop sends and receives with `sendto`
and `recvfrom`, uvloop with `write` and `read`; the lease keeper's thread is redis-py's, and uses the first.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Any

from tests.campaign import work
from tests.campaign.death import MODULES, TERMS, settle_down
from tests.campaign.needs import STRACE
from tests.campaign.scenario import Broken, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.campaign.subjects import SubjectName
from tests.faults import jobs
from tests.http.asking import site_of
from tests.processes import Worker, wait_until

ABREAST = 4
"""Points tried at a time: most of it is waiting for leases to lapse."""
QUIET_S = 0.3
"""How long after its last effect an operation may still receive something."""
NOT_IN_ARQ: dict[SubjectName, str] = {"arq": "arq has none"}


@dataclass(frozen=True)
class Point:
    """Where a process is killed."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.number}"

    @property
    def options(self) -> list[str]:
        kill = f"inject={self.call}:signal=SIGKILL:when={self.number}"
        return ["strace", "-qq", "-o", os.devnull, "-e", f"trace={self.call}", "-e", kill]

    @property
    def command(self) -> list[str]:
        """Stands before a command: strace becomes a grandchild, and the process remains the one that was started."""
        return [*self.options, "-D", "-f"]

    @contextmanager
    def set(self, worker: Worker, *, keeper: bool = False) -> Iterator[None]:
        """From now on for this worker: for its event loop, or for all threads but that."""
        watched = [thread for thread in _threads(worker) if (thread != worker.pid) == keeper]
        attach = [word for thread in watched for word in ("-p", str(thread))]
        with subprocess.Popen([*self.options, *attach], stdin=subprocess.DEVNULL) as strace:
            try:
                wait_until(lambda: not worker.running or _traced(worker.pid, watched), what="strace is attached")
                yield
            finally:
                strace.terminate()


def _threads(worker: Worker) -> list[int]:
    return [int(thread.name) for thread in Path(f"/proc/{worker.pid}/task").iterdir()]


def _traced(process: int, threads: Iterable[int]) -> bool:
    tasks = (Path(f"/proc/{process}/task/{thread}/status") for thread in threads)
    try:
        return all("TracerPid:\t0\n" not in task.read_text() for task in tasks)
    except OSError:
        return False  # it is about to be seen that it has died


Operation = Callable[[Stage, Point], Worker]
"""Lets a process get as far as it gets; gives it back. It has either died, or done everything it does."""


def whole_life(stage: Stage, point: Point) -> Worker:
    stage.acked(jobs.work.request(0.3))
    worker = stage.worker(lease="1s", inside=point.command).start()
    _until(worker, lambda: stage.ended() == 1)
    if worker.running:
        worker.stop()
    return worker


def settle(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(slots=20, lease="1s").up()
    with point.set(worker):
        count = len(stage.acked(*(jobs.work.request(0.05) for _ in range(40))))
        _until(worker, lambda: stage.ended() == count)
    return worker


def settle_on_uvloop(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(slots=20, lease="1s", RUNTIME_LOOP="uvloop").up()
    with point.set(worker):
        count = len(stage.acked(*(jobs.work.request(0.05) for _ in range(20))))
        _until(worker, lambda: stage.ended() == count)
    return worker


def extend(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(lease="1s").up()
    count = len(stage.acked(*(jobs.work.request(2.5) for _ in range(3))))
    wait_until(lambda: stage.ledger.starts() and len(_threads(worker)) > 1)
    with point.set(worker, keeper=True):
        _until(worker, lambda: stage.ended() == count)
    return worker


def retry(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(modules=MODULES, lease="1s").up()
    with point.set(worker):
        stage.acked(work.fail_once.request())
        _until(worker, lambda: stage.ended() == 1)
    return worker


def release(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(modules=MODULES, lease="1s", GRACEFUL_SHUTDOWN_TIMEOUT_MS=0).up()
    stage.acked(*(work.wait_once.request() for _ in range(3)))
    wait_until(lambda: len(stage.ledger.starts()) == 3)
    with point.set(worker):
        stage.tell(worker)
        worker.wait()
    return worker


def take(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(modules=MODULES, slots=4, lease="1s").up()
    with point.set(worker):
        count = len(stage.acked(*(work.take.request() for _ in range(6))))
        _until(worker, lambda: stage.ended() == count)
    return worker


class Producer(Worker):
    program = ("tests.campaign.producer",)


def enqueue(stage: Stage, point: Point) -> Worker:
    settings: dict[str, Any] = {"redis": stage.url, jobs.LEDGER: stage.ledger.path}
    name = stage.subject.name
    cut = stage.enter(Producer(name, inside=point.command, **settings).start())
    cut.wait()
    again = stage.enter(Producer(name, **settings).start())  # as whoever got no answer
    assert again.wait() == 0, again.errors()
    return cut


def wake(stage: Stage, point: Point) -> Worker:
    worker = stage.worker(lease="1s", RUNTIME_HTTP="on", PORT=0, RUNTIME_SLEEP_AFTER="5s").up()
    site = site_of(worker)
    with point.set(worker):
        _until(worker, lambda: bool(worker.events("WORKER_QUIET")), rest_s=0)
        stage.acked(jobs.work.request(0.05))
        with suppress(OSError, HTTPException):
            site.ask("POST", "/wake", headers=())
        _until(worker, lambda: stage.ended() == 1)
    return worker


def _until(worker: Worker, fact: Callable[[], bool], rest_s: float = QUIET_S) -> None:
    wait_until(lambda: not worker.running or fact(), what="the operation has been cut short, or done")
    if worker.running:
        sleep(rest_s)


def every_point(operation: Operation, calls: Sequence[str] = ("sendto", "recvfrom")) -> Callable[[Stage], Verdict]:
    """The operation is tried from the first point to the first that is never reached."""

    def run(stage: Stage) -> Verdict:
        tried = [one for call in calls for one in _try_all(stage, operation, call)]
        points = {call: sum(point.call == call for point, _ in tried) for call in calls}
        return merged(
            (f"at {point}" for point, _ in tried),
            (verdict for _, verdict in tried),
            **{f"kills_at_{call}": count for call, count in points.items()},
        )

    return run


def _try_all(stage: Stage, operation: Operation, call: str) -> list[tuple[Point, Verdict]]:
    step = (1 if stage.full else 8) if stage.ours else 4  # arq's jobs are waited for in vain, and long
    tried: list[tuple[Point, Verdict]] = []
    while True:
        first = 1 + step * len(tried)
        points = [Point(call, first + step * at) for at in range(ABREAST)]
        verdicts = in_stages(stage, points, lambda own, point: _try(own, operation, point), ABREAST)
        pairs = list(zip(points, verdicts, strict=True))
        tried += [(point, verdict) for point, verdict in pairs if _was_cut(verdict) or isinstance(verdict, Broken)]
        if not all(map(_was_cut, verdicts)):
            return tried


def _was_cut(verdict: Verdict) -> bool:
    return figure([verdict], "cut") == [1]


def _try(stage: Stage, operation: Operation, point: Point) -> Verdict:
    """Let the process be cut short there; another one finds what it has left."""
    struck = operation(stage, point)
    cut = not struck.running and struck.wait() < 0
    if cut:
        stage.ledger.note("killed", pid=struck.pid)
    heir = stage.worker(modules=MODULES, slots=20, lease="1s").up()
    settle_down(stage, len({line.job for line in stage.ledger.lines() if line.what == "acked"}))
    for worker in (struck, heir):
        worker.stop()
    return stage.judged(TERMS, cut=int(cut))


def _scenario(
    name: str,
    does: str,
    operation: Operation,
    *,
    calls: Sequence[str] = ("sendto", "recvfrom"),
    quick: bool = False,
    not_for: Mapping[SubjectName, str] | None = None,
) -> Scenario:
    return Scenario(
        f"K1.2.{name}",
        f"{does} It is killed at its n-th send and at its n-th receive, for every n; another one finds what it left.",
        "At every n each job ends once, runs no more often than there were kills, and starts again within 12 s.",
        ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I10"),
        every_point(operation, calls),
        quick=quick,
        deadline_s=600,
        needs=(STRACE,),
        not_for=not_for or {},
    )


SCENARIOS = (
    _scenario("life", "A worker starts, claims a job, runs it, settles it and stops.", whole_life, quick=True),
    _scenario("settle", "A worker claims 40 jobs and settles them in batches.", settle),
    _scenario(
        "uvloop",
        "A worker on uvloop claims 20 jobs and settles them.",
        settle_on_uvloop,
        calls=("write", "read"),
        not_for={"arq": "its command runs on asyncio's own loop"},
    ),
    _scenario("extend", "A worker's keeper extends the leases of three jobs.", extend, not_for=NOT_IN_ARQ),
    _scenario("retry", "A worker runs a job that fails once, and is tried again.", retry),
    _scenario("release", "A worker is told to stop, and gives three jobs back.", release),
    _scenario("enqueue", "A producer enqueues two jobs, and again those of which it knows nothing.", enqueue),
    _scenario("take", "A worker runs six jobs that take tokens and permits.", take, not_for=NOT_IN_ARQ),
    _scenario("wake", "A worker falls quiet, and is woken for a job.", wake, not_for=NOT_IN_ARQ),
)
