"""Schedules for real: several workers, clocks that are wrong, deaths, stock arq beside them, sleepers, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.campaign.killpoints import Point
from tests.campaign.needs import STRACE
from tests.e2e import scheduled
from tests.e2e.waking import Door
from tests.http.asking import site_of
from tests.processes import ROOT, Worker, command, program, wait_until

QUEUE = "arq:queue"
SKEWED = ROOT / "tests" / "campaign" / "skewed"
TOKEN = "0123456789abcdef0123456789abcdef"


class Runs:
    """What the handlers have noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def __call__(self, name: str = "tick") -> list[list[str]]:
        """Who ran which job for which moment."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [line for line in lines if line[1].startswith(f"{name}:")]

    def moments(self, name: str = "tick") -> list[int]:
        """Each occurrence that was run; and never twice."""
        counts = Counter(job_id for _, job_id, _ in self(name))
        assert set(counts.values()) <= {1}, counts
        return sorted(int(job_id.partition(":")[2]) for job_id in counts)

    def complete(self, name: str, span_ms: int) -> None:
        """None is missing between the first and the last."""
        moments = self.moments(name)
        assert moments == list(range(moments[0], moments[-1] + 1, span_ms))

    def wait(self, count: int, name: str = "tick") -> None:
        wait_until(lambda: len(self(name)) >= count, what=f"{count} runs of {name}")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def worker(url: str, runs: Runs, *queues: str, skew_s: float = 0.0, **settings: Any) -> Worker:
    if skew_s:
        clock = runs.path.with_name(f"clock{skew_s:+g}")
        clock.write_text(str(skew_s))
        settings |= {"RUNTIME_TEST_CLOCK": clock, "PYTHONPATH": f"{SKEWED}{os.pathsep}{ROOT}"}
    named = [word for queue in queues or (QUEUE,) for word in ("-Q", queue)]
    return Worker("tests.e2e.scheduled", redis=url, arguments=named, **{scheduled.FILE: runs.path, **settings})


def stock_worker(url: str, runs: Runs, ahead_s: float) -> AbstractContextManager[None]:
    settings = {scheduled.FILE: runs.path}
    return program(sys.executable, "-m", "tests.e2e.scheduled", url, ahead_s, **settings)


def beat_for_beat(url: str, runs: Runs, length: Callable[[], bool]) -> None:
    """Three workers whose clocks are wrong; one is killed, another one takes its place."""
    with ExitStack() as crew:
        ours = [crew.enter_context(worker(url, runs, skew_s=skew_s)) for skew_s in (-4.0, 0.0, 4.0)]
        for one in ours:
            one.up()
        runs.wait(3)
        ours[0].kill()
        runs.wait(len(runs()) + 3)
        ours[0].up()
        wait_until(length, 600)
        for one in ours:
            assert one.stop() == 0
            assert not one.events("PART_FAILED")
    runs.complete("tick", 1000)
    runs.complete("tock", 2000)
    for _, job_id, scheduled_for in runs("tick") + runs("tock"):
        assert datetime.fromisoformat(scheduled_for).timestamp() * 1000 == int(job_id.partition(":")[2])
    assert len({who for who, *_ in runs()}) > 1, "they share the work"
    left = {job_id for job_id in ids(url) if job_id.startswith("t")}
    assert len(left) <= 2, "what was fired as the last one stopped"


def ids(url: str) -> list[str]:
    with Redis.from_url(url, decode_responses=True) as redis:
        return [str(job_id) for job_id in redis.zrange(QUEUE, 0, -1)]


def test_K4_8_three_workers_with_wrong_clocks_fire_each_occurrence_once(tcp_url: str, runs: Runs) -> None:
    beat_for_beat(tcp_url, runs, lambda: len(runs()) >= 10)


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_WEATHER") != "all", reason="only with RUNTIME_TEST_WEATHER=all")
@pytest.mark.timeout(600)
def test_K4_8_likewise_for_three_minutes(tcp_url: str, runs: Runs) -> None:
    until = time.monotonic() + 180
    beat_for_beat(tcp_url, runs, lambda: time.monotonic() > until)
    assert len(runs()) > 170


@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_WEATHER") != "all", reason="only with RUNTIME_TEST_WEATHER=all")
@pytest.mark.skipif(bool(STRACE.missing()), reason="strace is not there")
@pytest.mark.parametrize("call", ["sendto", "recvfrom"])
@pytest.mark.timeout(300)
def test_K1_2_killed_at_each_send_and_receive_it_loses_and_doubles_no_occurrence(
    tcp_url: str, runs: Runs, call: str
) -> None:
    killed = 0
    with worker(tcp_url, runs) as one:
        for number in range(1, 21):
            one.up()
            before = len(runs())
            with Point(call, number).set(one):
                wait_until(lambda before=before: not one.running or len(runs()) >= before + 4)  # type: ignore[misc]
            killed += not one.running
            one.kill()
        one.up()
        until_ms = round(time.time()) * 1000

        def ran() -> set[int]:
            return {int(job_id.partition(":")[2]) for _, job_id, _ in runs()}

        wait_until(lambda: set(range(min(ran()), until_ms, 1000)) <= ran(), what="none is missing, leases have lapsed")
        assert one.stop() == 0
    assert killed >= 15
    assert len(runs()) - len(ran()) <= killed, "a run that a kill cut short is repeated, and no other"


@pytest.mark.parametrize("ahead_s", [-4.0, 0.0, 4.0])
def test_a_stock_worker_with_the_same_cron_job_doubles_none(tcp_url: str, runs: Runs, ahead_s: float) -> None:
    with worker(tcp_url, runs) as one, stock_worker(tcp_url, runs, ahead_s):
        one.up()
        runs.wait(5)
        if ahead_s < 0:
            time.sleep(-ahead_s)  # it comes late, when all has ended
        else:
            wait_until(lambda: any(line["jobs"] == [] for line in one.events("SCHEDULE_FIRED")), what="it came first")
        assert one.stop() == 0
    assert len(runs.moments()) >= 5


def test_an_occurrence_that_came_while_nobody_was_there_is_caught_up(tcp_url: str, runs: Runs) -> None:
    with worker(tcp_url, runs) as one:
        one.up()
        runs.wait(2)
        one.kill()
        time.sleep(4)
        one.up()
        runs.wait(len(runs()) + 6)
    runs.complete("tick", 1000)


def schedule(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return command("schedule", *words, REDIS_URL=url, RUNTIME_WAKE_URL="http://localhost:1/wake")


def listed(url: str, name: str, *words: str) -> dict[str, Any]:
    done = schedule(url, "list", "--json", *words)
    assert done.returncode == 0, done.stderr
    (found,) = [one for one in json.loads(done.stdout)["schedules"] if one["schedule"] == name]
    return dict(found)


def test_an_operator_lists_runs_pauses_and_resumes_them(tcp_url: str, runs: Runs) -> None:
    assert schedule(tcp_url, "list").stdout == "no worker has told of a schedule\n"
    with worker(tcp_url, runs, QUEUE, "nightly") as one:
        one.up()
        runs.wait(1)
        found = listed(tcp_url, "nightly", "-Q", "nightly")
        assert found["timetable"] == "0 3 * * * America/Sao_Paulo"
        assert [moment["local"][11:] for moment in found["next"]] == ["03:00:00-03:00"] * 3
        assert [moment["at"][11:16] for moment in found["next"]] == ["06:00"] * 3
        page = schedule(tcp_url, "list", "-Q", "nightly", "-Q", QUEUE).stdout
        assert "03:00:00-03:00" in page
        assert "every 2 s" in page

        assert schedule(tcp_url, "run", "nightly", "-Q", "nightly").returncode == 0
        wait_until(lambda: [line for line in runs.path.read_text().splitlines() if line.endswith(" -")])

        assert "paused" in schedule(tcp_url, "pause", "tick", "--reason", "too loud", "-Q", QUEUE).stdout
        paused_at_ms = time.time() * 1000
        assert listed(tcp_url, "tick", "-Q", QUEUE)["reason"] == "too loud"
        assert "paused: too loud" in schedule(tcp_url, "list", "-Q", QUEUE).stdout
        runs.wait(len(runs("tock")) + 3, "tock")
        assert all(moment <= paused_at_ms for moment in runs.moments())
        assert "next at" in schedule(tcp_url, "resume", "tick", "-Q", QUEUE).stdout
        assert "was not paused" in schedule(tcp_url, "resume", "tick", "-Q", QUEUE).stdout
        before = len(runs())
        wait_until(lambda: len(runs()) > before, 60, "it goes on, half a minute later at the latest")
        assert not [moment for moment in runs.moments() if paused_at_ms + 1000 < moment < paused_at_ms + 3000]

        wrong = schedule(tcp_url, "run", "tack", "-Q", QUEUE)
        assert wrong.returncode == 2
        assert "there are: tick, tock" in wrong.stderr
        assert schedule(tcp_url, "pause", "tick", "--reason", "x" * 201).returncode == 2
        assert one.running
        assert one.stop() == 0
    runs.path.with_name("pyproject.toml").write_text("[tool.runtime]\nhandlers = []\n")
    nobody = command("schedule", "list", folder=runs.path.parent, REDIS_URL=tcp_url, PYTHONPATH=ROOT).stdout
    assert "tick" in nobody, "no worker is there, nor a handler: it looks at arq's default queue"


def test_it_is_in_the_log_what_was_fired_and_what_was_missed(tcp_url: str, runs: Runs) -> None:
    with worker(tcp_url, runs) as one:
        one.up()
        (line, *_) = one.wait_for("SCHEDULE_FIRED", schedule="tick")
        assert line["jobs"][0].startswith("tick:")
        assert line["queue"] == QUEUE
        assert line["scheduled_for"]
        assert line["late_ms"] < 5000
        one.kill()
        with Redis.from_url(tcp_url) as redis:
            redis.zincrby(keys.schedule(QUEUE), -5_000_000, "tick")
        one.up()
        (missed,) = one.wait_for("SCHEDULE_MISSED", schedule="tick")
        assert missed["level"] == "warn"
        assert one.stop() == 0


# Sleep.


def sleeper(url: str, runs: Runs, **settings: Any) -> Worker:
    return worker(
        url, runs, "sleepers", RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN, RUNTIME_SLEEP_AFTER="5s", **settings
    )


def test_without_an_alarm_it_stays_awake_for_its_schedule_and_says_for_which(tcp_url: str, runs: Runs) -> None:
    with sleeper(tcp_url, runs).up() as one:
        site = site_of(one)

        def why() -> str:
            return "; ".join(site.ask("GET", "/health").json["awake_because"])

        wait_until(lambda: "the schedule seldom is due in" in why(), 30, "it says why")
        assert "RUNTIME_ALARM is not set" in why()

        assert schedule(tcp_url, "pause", "seldom", "-Q", "sleepers").returncode == 0
        one.wait_for("WORKER_QUIET")
        wake_url = f"http://localhost:{site.port}/wake"
        resume = ("schedule", "resume", "seldom", "-Q", "sleepers")
        resumed = command(*resume, REDIS_URL=tcp_url, RUNTIME_WAKE_URL=wake_url)
        assert "answered" in resumed.stderr
        wait_until(lambda: "the schedule seldom is due in" in why(), 30, "it is awake for it again")


HALF_A_DAY_MS = 43_200_000


def ages(url: str, occurrences: int) -> None:
    """As if so many occurrences had gone by."""
    with Redis.from_url(url) as redis:
        redis.zincrby(keys.schedule("sleepers"), -occurrences * HALF_A_DAY_MS, "seldom")


def test_a_sleeper_is_woken_for_its_schedule_by_the_sentinel(tcp_url: str, runs: Runs) -> None:
    with sleeper(tcp_url, runs, RUNTIME_ALARM="60s").up() as one:
        one.wait_for("WORKER_QUIET")
        port = site_of(one).port
        ages(tcp_url, 1)
        about: dict[str, Any] = {"arguments": ("-Q", "sleepers"), "RUNTIME_WAKE_URL": f"http://localhost:{port}/wake"}
        with Worker(command="sentinel", redis=tcp_url, **about).start() as sentinel:
            sentinel.wait_for("SENTINEL_RANG")
            runs.wait(1, "seldom")
        one.wait_for("WORKER_QUIET", 2)


def test_wake_if_due_rings_for_a_schedule_and_not_for_one_that_nobody_has_fired_for_days(
    tcp_url: str, runs: Runs
) -> None:
    with sleeper(tcp_url, runs, RUNTIME_ALARM="60s").up() as one:
        one.wait_for("WORKER_QUIET")
        one.kill()
    with Door() as door:

        def look() -> str:
            return command("wake", "--if-due", "-Q", "sleepers", REDIS_URL=tcp_url, RUNTIME_WAKE_URL=door.url).stdout

        assert "nothing is due, the next in" in look()
        ages(tcp_url, 1)
        assert "are due; nobody is awake" in look()
        assert len(door.rung_at) == 1
        ages(tcp_url, 2)
        assert "nothing is due" in look()
        assert len(door.rung_at) == 1


def test_a_worker_without_schedules_knows_nothing_of_them(tcp_url: str) -> None:
    with (
        Redis.from_url(tcp_url) as redis,
        redis.monitor() as monitor,
        Worker("tests.e2e.jobs", redis=tcp_url, arguments=("-Q", QUEUE)) as one,
    ):
        one.up()
        one.stop()
        redis.ping()
        said: list[str] = []
        for seen in monitor.listen():
            said.append(str(seen["command"]))
            if seen["command"] == "PING":
                break
    assert said
    assert not [text for text in said if ":schedule" in text or ":timetable" in text]
