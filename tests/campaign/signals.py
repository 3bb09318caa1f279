"""K1.5 to K1.10: workers are told to stop, signalled, and stopped in their tracks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.campaign import work
from tests.campaign.death import AT_ONCE_S, MODULES, TERMS, exits, settle_down
from tests.campaign.needs import AS_PID_1, PID_NAMESPACE
from tests.campaign.scenario import Broken, Held, NotRun, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Terms
from tests.http.asking import site_of
from tests.processes import Worker, wait_until


def drain(stage: Stage) -> Verdict:
    old, new = (stage.worker(modules=MODULES, slots=10, GRACEFUL_SHUTDOWN_TIMEOUT_MS=3000) for _ in range(2))
    old.up()
    short = stage.acked(*(jobs.work.request(1.0) for _ in range(5)))
    long = stage.acked(*(work.wait_once.request() for _ in range(5)))
    wait_until(lambda: len(stage.ledger.starts()) == 10)
    began = time.monotonic()
    old.send(signal.SIGTERM)
    new.up()
    code, took_s = old.wait(20), time.monotonic() - began
    settle_down(stage, 10)
    wrong_exits = exits([new])
    lines = stage.ledger.lines()
    given_back = {line.job: line.at for line in lines if line.what == "cancelled"}
    again_s = [line.at - given_back[line.job] for line in lines if line.what == "start" and line.pid == new.pid]
    ended = {line.job for line in lines if line.what == "end" and line.pid == old.pid}
    breaches = [
        *([Breach("I9", f"exit code {code}")] if code else []),
        *(Breach("I10", f"{job}: cut short, although it would have ended in time") for job in set(short) - ended),
        *(Breach("I1", f"{job}: was not given back") for job in set(long) - set(given_back)),
        *(Breach("I5", f"{wait:.1f} s from its release to its next start") for wait in again_s if wait > AT_ONCE_S),
        *wrong_exits,
    ]
    return stage.judged(
        Terms(slots=10),
        *breaches,
        exit_code=code,
        seconds_to_its_exit=took_s,
        finished=len(ended),
        seconds_from_release_to_next_start_longest=max(again_s, default="none started again"),
    )


def second_signals(stage: Stage) -> Verdict:
    """The kinds change, because two of a kind may become one before the process sees them."""
    kinds = [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
    pauses = range(0, 51, 1 if stage.full else 25)
    cases = [(*kinds[number % 2], pause_ms) for number, pause_ms in enumerate(pauses)]
    verdicts = in_stages(stage, cases, _two_signals)
    longest = max(figure(verdicts, "took_s"), default=0.0)
    labels = (f"{first.name}, {second.name} after {pause_ms} ms" for first, second, pause_ms in cases)
    return merged(labels, verdicts, runs=len(cases), seconds_to_the_exit_longest=longest)


def _two_signals(stage: Stage, case: tuple[signal.Signals, signal.Signals, int]) -> Verdict:
    first, second, pause_ms = case
    worker = stage.worker(slots=10).up()
    given = stage.acked(*(jobs.work.request(60) for _ in range(20)))
    wait_until(lambda: len(stage.ledger.starts()) >= 10)
    worker.send(first)
    time.sleep(pause_ms / 1000)
    began = time.monotonic()
    worker.send(second)
    code, took_s = worker.wait(20), time.monotonic() - began
    stranded = campaign.stranded(stage.url)
    breaches = [
        *(Breach("I5", f"stranded: {len(stranded)} of {len(given)} jobs") for _ in stranded[:1]),
        *([Breach("I9", f"exit code {code}, as if it were well")] if stage.ours and code not in (130, 143) else []),
        *([Breach("I9", f"{took_s:.1f} s to its exit")] if took_s > AT_ONCE_S + 1 else []),
    ]
    return stage.judged(TERMS, *breaches, took_s=took_s)


def told_to_stop_early(stage: Stage) -> Verdict:
    left_out = () if stage.full and stage.ours else SLOW_TO_REACH  # the slowest two are not in arq
    cases = [name for name in EARLY if name not in left_out]
    verdicts = in_stages(stage, cases, lambda own, name: EARLY[name](own))
    return merged(cases, verdicts, moments=len(cases), seconds_to_the_exit_longest=max(figure(verdicts, "took_s")))


def _while_it_starts(moment_s: float) -> Callable[[Stage], Verdict]:
    def run(stage: Stage) -> Verdict:
        stage.acked(work.wait_once.request())
        worker = stage.worker(modules=MODULES, GRACEFUL_SHUTDOWN_TIMEOUT_MS=0).start()
        time.sleep(moment_s)
        return _stopped_well(stage, worker, codes=(0, -signal.SIGTERM))  # the second before Python runs any of ours

    return run


def _while_redis_is_down(stage: Stage) -> Verdict:
    stage.server.stop()
    worker = stage.worker().start()
    time.sleep(1.5)
    return _stopped_well(stage, worker, judged=False)


def _while_redis_does_not_answer(stage: Stage) -> Verdict:
    url = stage.url
    stage.server.pause()
    worker = stage.worker(url).start()
    time.sleep(1.5)
    return _stopped_well(stage, worker, judged=False)


def _while_it_falls_quiet(stage: Stage) -> Verdict:
    worker = _sleeper(stage)
    time.sleep(4.9)
    return _stopped_well(stage, worker)


def _while_it_wakes(stage: Stage) -> Verdict:
    worker = _sleeper(stage)
    worker.wait_for("WORKER_QUIET")
    stage.acked(work.wait_once.request())
    with suppress(OSError, HTTPException):
        site_of(worker).ask("POST", "/wake", headers=())
    return _stopped_well(stage, worker)


def _sleeper(stage: Stage) -> Worker:
    settings: dict[str, Any] = {
        "RUNTIME_HTTP": "on",
        "PORT": 0,
        "RUNTIME_SLEEP_AFTER": "5s",
        "GRACEFUL_SHUTDOWN_TIMEOUT_MS": 0,
    }
    return stage.worker(modules=MODULES, **settings).up()


def _as_pid_1(*shell: str) -> Callable[[Stage], Verdict]:
    def run(stage: Stage) -> Verdict:
        if PID_NAMESPACE.missing():
            return NotRun("no namespace of processes")
        stage.acked(work.wait_once.request())
        worker = stage.worker(modules=MODULES, inside=[*AS_PID_1, *shell], GRACEFUL_SHUTDOWN_TIMEOUT_MS=0).up()
        wait_until(stage.ledger.starts)
        (inner,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        return _stopped_well(stage, worker, sends=False)

    return run


def _stopped_well(
    stage: Stage, worker: Worker, *, codes: Sequence[int] = (0,), sends: bool = True, judged: bool = True
) -> Verdict:
    """Told to stop, it does so at once and with exit code 0, and holds nothing."""
    began = time.monotonic()
    if sends:
        worker.send(signal.SIGTERM)
    code, took_s = worker.wait(20), time.monotonic() - began
    breaches = [
        *([Breach("I9", f"exit code {code}")] if code not in codes else []),
        *([Breach("I9", f"{took_s:.1f} s to its exit")] if took_s > AT_ONCE_S else []),
    ]
    if not judged:  # Redis cannot be asked
        return Broken(breaches, {"took_s": took_s}) if breaches else Held({"took_s": took_s})
    breaches += [Breach("I5", f"stranded: {key}") for key in campaign.stranded(stage.url)]
    breaches += [Breach("I10", f"{job}: {n} attempts") for job, n in campaign.attempts_kept(stage.url).items()]
    return stage.judged(TERMS, *breaches, took_s=took_s)


EARLY: dict[str, Callable[[Stage], Verdict]] = {
    **{f"{moment_s:g} s after its start": _while_it_starts(moment_s) for moment_s in (0.05, 0.2, 0.3, 0.4, 0.5, 0.8)},
    "while Redis is down": _while_redis_is_down,
    "while Redis does not answer": _while_redis_does_not_answer,
    "as process 1": _as_pid_1(),
    "as process 1 under sh -c": _as_pid_1("sh", "-c", 'exec "$@"', "sh"),
    "while it falls quiet": _while_it_falls_quiet,
    "while it wakes": _while_it_wakes,
}
SLOW_TO_REACH = ("while it falls quiet", "while it wakes", "0.05 s after its start", "0.4 s after its start")


def other_signals(stage: Stage) -> Verdict:
    cases = (*HARMLESS, signal.SIGHUP, None)
    verdicts = in_stages(stage, cases, _other_signal)
    labels = ["stdout closed" if case is None else case.name for case in cases]
    return merged(labels, verdicts, kinds=len(cases))


HARMLESS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH, signal.SIGPIPE)
DUMPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def _other_signal(stage: Stage, number: signal.Signals | None) -> Verdict:
    out = None if number is not None else "/dev/full"
    worker = stage.worker(out=out)
    worker.start() if out else worker.up()
    (job,) = stage.acked(jobs.work.request(1.5))
    wait_until(stage.ledger.starts)
    if number is not None:
        worker.send(number)
    if stage.ours and number in DUMPS:
        (dump,) = worker.wait_for("TASK_DUMP")
        assert [task for task in dump["data"]["tasks"] if task.get("job_id") == job], "the dump does not name the job"
    settle_down(stage, 1)
    code = worker.wait() if number == signal.SIGHUP else worker.stop()
    return stage.judged(TERMS, *([Breach("I9", f"exit code {code}")] if code else []))


def away(stage: Stage) -> Verdict:
    """arq is given a timeout of a second, so that its claim lapses after eleven, and not after 310."""
    cases = {"with another worker": (True, 0.9), "alone": (False, 0.9), "alone, with work left": (False, 6.0)}
    if not stage.ours:
        del cases["alone, with work left"]
    verdicts = in_stages(stage, cases.values(), lambda own, case: _away(own, *case))
    return merged(cases, verdicts, seconds_away=_AWAY_S[stage.subject.name])


_AWAY_S = {"runtime": 4.0, "arq": 22.0}


def _away(stage: Stage, other: bool, length_s: float) -> Verdict:
    settings: dict[str, Any] = {"slots": 2, "lease": "2s", **({} if stage.ours else {"JOB_TIMEOUT_SECONDS": 1})}
    sleeper, idle = (stage.worker(**settings) for _ in range(2))
    sleeper.up()
    (job,) = stage.acked(jobs.work.request(length_s))
    wait_until(stage.ledger.starts)
    if other:
        idle.up()
        stage.ledger.note("lapsed", pid=sleeper.pid)
    sleeper.send(signal.SIGSTOP)
    time.sleep(_AWAY_S[stage.subject.name])  # this is what is tried: to be away for so long
    if other:
        wait_until(lambda: stage.ended() == 1, what="the other one has done it")
    sleeper.send(signal.SIGCONT)
    (after,) = stage.acked(jobs.work.request(0.0))
    settle_down(stage, 2)
    time.sleep(1)  # what the sleeper still says
    wrong_exits = exits([sleeper, idle] if other else [sleeper])
    (second,) = [line for line in stage.ledger.lines() if line.what == "end" and line.job == after]
    assert second.pid in (sleeper.pid, idle.pid if other else 0)
    return stage.judged(Terms(slots=2), *wrong_exits, runs=len(stage.ledger.starts(job)))


SCENARIOS = (
    Scenario(
        "K1.5",
        "A worker that runs five jobs of 1 s and five of an hour is told to stop (SIGTERM), and has 3 s. "
        "Another one starts meanwhile.",
        "The short ones finish, the others are given back and start within 2 s; no attempt is used; exit code 0.",
        ("I1", "I2", "I3", "I5", "I6", "I7", "I9", "I10"),
        drain,
    ),
    Scenario(
        "K1.6",
        "A second signal follows the first after 0 to 50 ms, while ten jobs run and ten wait.",
        "It gives everything back and ends within 3 s; no job is left to anybody's lease.",
        ("I1", "I3", "I5", "I9"),
        second_signals,
        deadline_s=200,
    ),
    Scenario(
        "K1.7",
        "SIGTERM comes while a worker starts, while Redis is down or does not answer, while it falls quiet or wakes, "
        "as process 1, alone and under a shell.",
        "It ends within 2 s with exit code 0, and holds nothing.",
        ("I1", "I5", "I9", "I10"),
        told_to_stop_early,
    ),
    Scenario(
        "K1.9",
        "While a job runs: SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2, SIGQUIT, SIGWINCH; or stdout cannot be written to.",
        "SIGHUP stops the worker in good order; SIGUSR1, SIGUSR2, SIGQUIT show its tasks; the others change nothing.",
        ("I1", "I3", "I5", "I9"),
        other_signals,
    ),
    Scenario(
        "K1.10",
        "A worker is stopped (SIGSTOP) for two leases in the middle of a job, and goes on.",
        "Where another took the job over, nothing of the first run is accepted; alone, it runs the job once.",
        ("I1", "I2", "I3", "I4", "I6", "I7"),
        away,
    ),
)
