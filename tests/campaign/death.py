"""K1: processes die."""

from __future__ import annotations

import time
from collections import Counter

from tests.campaign import work
from tests.campaign.needs import CGROUP, memory_limit
from tests.campaign.scenario import NoSuchThing, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Terms, effective_kills, executions, recoveries
from tests.processes import Worker, wait_until
from tests.standins.process import running

RECLAIM_S = 12.0
"""The default lease, a claim, and a second."""
TERMS = Terms(reclaim_s=RECLAIM_S)
AT_ONCE_S = 2.0
"""Far below a lease, and long enough for a busy machine."""
MODULES = (campaign.MODULE, work.MODULE)


def settle_down(stage: Stage, count: int, timeout_s: float = 60.0) -> None:
    """Wait until so many jobs have ended; for arq, which would take minutes, no longer than a killed job should."""
    if stage.ours:
        wait_until(lambda: stage.ended() >= count, timeout_s, f"{count} jobs have ended")
    until = time.monotonic() + RECLAIM_S + 2
    while stage.ended() < count and time.monotonic() < until:
        time.sleep(0.1)


def exits(workers: list[Worker]) -> list[Breach]:
    """Tell them to stop; who does not do so in good order."""
    codes = [worker.stop() for worker in workers]
    return [Breach("I9", f"a worker that was told to stop exited with {code}") for code in codes if code != 0]


def kills(stage: Stage) -> Verdict:
    crew = [stage.worker(slots=5, lease="2s") for _ in range(3)]
    _add_work(stage, 400 if stage.full else 100)
    for worker in crew:
        worker.start()
    count = 100 if stage.full else 6
    for _ in range(count):
        time.sleep(stage.chance.uniform(0.2, 0.9))
        if campaign.waiting(stage.url) < 50:
            _add_work(stage, 50)
        _kill_one(stage, crew)
    accepted = sum(line.what == "acked" for line in stage.ledger.lines())
    settle_down(stage, accepted, 120)
    wrong_exits = exits(crew)
    lines = stage.ledger.lines()
    took = sorted(recoveries(lines))
    return stage.judged(
        Terms(reclaim_s=RECLAIM_S, slots=5),
        *wrong_exits,
        jobs=accepted,
        ended=stage.ended(),
        kills=count,
        kills_that_hit_a_job=effective_kills(lines),
        most_starts_of_a_job=max(map(len, executions(lines).values())),
        seconds_to_the_next_start_median=took[len(took) // 2] if took else "none started again",
        seconds_to_the_next_start_longest=took[-1] if took else "none started again",
    )


def _add_work(stage: Stage, count: int) -> None:
    stage.acked(*(jobs.work.request(stage.chance.uniform(0.05, 0.5)) for _ in range(count)))


def _kill_one(stage: Stage, crew: list[Worker]) -> None:
    """Mostly one that runs a job, now and then one that is starting; some are told to stop just before it."""
    busy = [worker for worker in crew if stage.ledger.running(worker.pid)]
    worker = stage.chance.choice(busy if busy and stage.chance.random() < 0.8 else crew)
    if stage.chance.random() < 0.25:
        stage.tell(worker)
        time.sleep(stage.chance.uniform(0, 0.05))
    stage.kill(worker)
    worker.start()


def between_effect_and_settlement(stage: Stage) -> Verdict:
    api = stage.enter(running("web"))
    worker = stage.worker(modules=MODULES, lease="1s").up()
    (done,) = stage.acked(work.pay.request(f"{api.url}/things/done"))
    wait_until(lambda: len(api.log()["requests"]) == 1)
    time.sleep(0.5)  # it has its answer, and has noted it
    api.fault({"latency": 30})
    (open_,) = stage.acked(work.pay.request(f"{api.url}/things/open"))
    wait_until(lambda: len(api.log()["requests"]) == 2)
    stage.kill(worker)
    api.mend()
    worker.up()
    if stage.ours or not stage.full:
        settle_down(stage, 2)
    else:
        wait_until(lambda: stage.ended() == 2, 400)  # once, so that it can be seen how long it takes
    worker.stop()
    calls = Counter(request["key"] for request in api.log()["requests"])
    twice = [Breach("I3", f"what was done and noted was done {calls[done]} times")] if calls[done] > 1 else []
    often = [Breach("I3", f"the open call was made {calls[open_]} times")] if calls[open_] > 2 else []
    strange = [Breach("I3", f"a call with the key {key}") for key in calls if key not in (done, open_)]
    return stage.judged(
        Terms(reclaim_s=RECLAIM_S),
        *(*twice, *often, *strange),
        calls_of_the_noted_step=calls[done],
        calls_of_the_open_step=calls[open_],
        **_next_starts(stage),
    )


def nobody_is_left(stage: Stage) -> Verdict:
    return NoSuchThing("a worker is one process, and leaves no orphan; what starts it again is the platform")


def told_and_killed(stage: Stage) -> Verdict:
    after = [0.0, 0.0, 3.0, 10.0, 30.0] if stage.full else [0.0, 0.5]
    cases = [(seconds, bool(number % 2)) for number, seconds in enumerate(after)]
    verdicts = in_stages(stage, cases, _told_and_killed, abreast=len(cases))
    labels = (f"{seconds:g} s, {'another worker idle' if other else 'alone'}" for seconds, other in cases)
    waits = figure(verdicts, "longest_s")
    return merged(labels, verdicts, seconds_to_the_next_start_longest=max(waits, default="none started again"))


def _told_and_killed(stage: Stage, case: tuple[float, bool]) -> Verdict:
    """At the default lease, and jobs whose timeout is an hour."""
    seconds, other = case
    killed, idle = (stage.worker(modules=MODULES, GRACEFUL_SHUTDOWN_TIMEOUT_MS=60_000) for _ in range(2))
    killed.up()
    stage.acked(*(work.wait_once.request() for _ in range(3)))
    wait_until(lambda: len(stage.ledger.starts()) == 3)
    if other:
        idle.up()
    stage.tell(killed)
    time.sleep(seconds)
    stage.kill(killed)
    if not other:
        time.sleep(1)
        killed.up()
    settle_down(stage, 3)
    exits(stage.workers if other else [killed])
    took = recoveries(stage.ledger.lines())
    costly = {line.job for line in stage.ledger.starts() if line.attempt > 1} if seconds else ()
    blamed = [
        Breach("I10", f"{job}: its worker was told to stop and killed, which cost it an attempt") for job in costly
    ]
    return stage.judged(TERMS, *blamed, **({"longest_s": max(took)} if took else {}))


def out_of_memory(stage: Stage) -> Verdict:
    inside = stage.enter(memory_limit(160 << 20))
    worker = stage.worker(modules=MODULES, slots=2, lease="1s", inside=inside).start()
    count = len(stage.acked(*(work.leak.request(10) for _ in range(40)), *(jobs.work.request(0.05) for _ in range(10))))
    deaths, since = 0, time.monotonic()
    while stage.ended() < count and time.monotonic() - since < (120 if stage.ours else 40):
        if not worker.running:  # a platform starts it again
            stage.ledger.note("killed", pid=worker.pid)
            deaths += 1
            worker.start()
        time.sleep(0.02)
    wrong_exits = exits([worker]) if worker.running else []
    return stage.judged(
        TERMS, *wrong_exits, jobs=count, ended=stage.ended(), killed_by_the_kernel=deaths, **_next_starts(stage)
    )


def two_generations(stage: Stage) -> Verdict:
    old = stage.worker(modules=[campaign.MODULE], slots=5)
    new = stage.worker(modules=MODULES, slots=5)
    old.up()
    known = [jobs.work.request(0.1) for _ in range(20)]
    unknown = [work.take.request() for _ in range(20)]
    count = len(stage.acked(*(request for pair in zip(known, unknown, strict=True) for request in pair)))
    time.sleep(2)  # the old one alone meets what it does not know
    new.up()
    time.sleep(2)
    wrong_exits = exits([old])
    began = time.monotonic()
    settle_down(stage, count)
    took_s = time.monotonic() - began
    wrong_exits += exits([new])
    ended = [line.pid for line in stage.ledger.lines() if line.what == "end"]
    return stage.judged(
        TERMS,
        *wrong_exits,
        jobs=count,
        done_by_the_old_one=ended.count(old.pid),
        done_by_the_new_one=ended.count(new.pid),
        seconds_to_the_last_end_after_the_old_one_left=took_s,
    )


def _next_starts(stage: Stage) -> dict[str, float | str]:
    took = recoveries(stage.ledger.lines())
    return {"seconds_to_the_next_start_longest": max(took, default="none started again")}


SCENARIOS = (
    Scenario(
        "K1.1",
        "Three workers run jobs of 50 to 500 ms. One is killed every 0.2 to 0.9 s and started again, 100 times in all.",
        "No job is lost, settled twice or run without cause, and a cut one starts again within 12 s.",
        ("I1", "I2", "I3", "I4", "I5", "I6", "I7"),
        kills,
        seeds=5,
        deadline_s=300,
    ),
    Scenario(
        "K1.3",
        "A worker is killed between an API call and its job's settlement. One call was answered, and noted by "
        "`ctx.once`; another one is still open. The API counts calls by their idempotency key.",
        "The noted one is not made again; the open one at most once more, with the same key.",
        ("I1", "I2", "I3", "I5", "I7"),
        between_effect_and_settlement,
        deadline_s=420,
    ),
    Scenario(
        "K1.4",
        "The parent of the worker's processes is killed, or a child of it.",
        "No orphan works on after 2 s.",
        (),
        nobody_is_left,
        quick=False,
    ),
    Scenario(
        "K1.8",
        "SIGTERM, and SIGKILL after 0 s (Railway's default), 3, 10 and 30 s, while jobs with a timeout of an hour run. "
        "At the default lease of 10 s; another worker is idle, or the killed one is started again alone.",
        "Each job starts again within 12 s of the kill.",
        ("I1", "I2", "I3", "I5", "I7"),
        told_and_killed,
        deadline_s=120,
    ),
    Scenario(
        "K1.11",
        "Each job keeps 10 MB for ever; the kernel kills the worker at 160 MB, and it is started again.",
        "No job is lost, and those that it cut start again within 12 s.",
        ("I1", "I2", "I3", "I5", "I7"),
        out_of_memory,
        quick=False,
        deadline_s=200,
        needs=(CGROUP,),
    ),
    Scenario(
        "K1.12",
        "Two generations of a worker share a queue, as in a deploy. The old one lacks a handler that half of the jobs "
        "want; it is there alone for 2 s, then beside the new one for 2 s.",
        "Every job is done, those that the old one does not know by the new one.",
        ("I1", "I2", "I3", "I7", "I10"),
        two_generations,
    ),
)
