"""K5: a worker rests, is woken, and keeps to the rates of others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis

from tests.campaign import work
from tests.campaign.death import MODULES, RECLAIM_S, TERMS, exits, settle_down
from tests.campaign.port import descriptors, megabytes
from tests.campaign.scenario import Broken, Held, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.faults import jobs
from tests.faults.ledger import Breach
from tests.http.asking import site_of
from tests.limits import trials
from tests.limits.campaign import SHORT, WHOLE, Course, Seen
from tests.platform import handover
from tests.platform.edge import First
from tests.platform.network import Network
from tests.platform.silence import sent_after_work
from tests.platform.sleeping import SLEEP_AFTER_S, Address, reachable, some_network, woken
from tests.platform.sockets import Sockets
from tests.processes import Worker, wait_until
from tests.servers import Server

ASLEEP_WITHIN_S = 30.0
"""Once nothing holds it: its idle time, and a busy machine."""
NOBODY_SLEEPS = "it polls for ever, and nothing is there to wake it"
NO_LIMITS = "it has no limits"


def found(*breaches: Breach, **figures: float | str) -> Verdict:
    """Where there is no ledger to judge."""
    return Broken(breaches, figures) if breaches else Held(figures)


def silent(stage: Stage) -> Verdict:
    length_s = 60.0 if stage.full else 15.0
    network = _network(stage)
    figures: dict[str, float] = {}
    if stage.ours:
        sent = sent_after_work(network, length_s, 3)
    else:
        sent, figures = _sent_by_arq(stage, network, length_s)
    seen = "its wire" if isinstance(network, Network) else "its sockets"
    noise = [Breach("I14", f"{sent} bytes in {length_s:g} s without a job")] if sent else []
    return found(*noise, bytes=sent, seconds=length_s, looked_at=seen, **figures)


def _network(stage: Stage) -> Network | Sockets:
    made = some_network()
    stage.enter(made)
    return made


def _sent_by_arq(stage: Stage, network: Network | Sockets, length_s: float) -> tuple[int, dict[str, float]]:
    worker = stage.worker(reachable(stage.server, network), inside=network.enter()).up()
    network.watch(worker.pid)
    time.sleep(2)  # what it does as it starts
    with Redis.from_url(stage.url) as redis:

        def calls() -> int:
            stats: dict[str, Any] = redis.info("commandstats")
            return sum(row["calls"] for name, row in stats.items() if name != "cmdstat_info")

        sent, called = network.sent(), calls()
        time.sleep(length_s)
        return network.sent() - sent, {"commands": calls() - called}


def handed_over(stage: Stage) -> Verdict:
    runs, left = handover.swept(FULL_SWEEP if stage.full else QUICK_SWEEP, stage.folder)
    late = [Breach("I14", run.fault) for run in runs if run.fault]
    slowest = max(run.started_s for run in runs if run.started_s is not None)
    phases = {f"while_{run.phase.replace(' ', '_').replace(',', '')}": 0 for run in runs}
    for run in runs:
        phases[f"while_{run.phase.replace(' ', '_').replace(',', '')}"] += 1
    return found(
        *late,
        *(Breach("I7", f"left behind: {key}") for key in left),
        jobs=len(runs),
        after_a_ring=sum(run.rung for run in runs),
        seconds_to_the_start_longest=slowest,
        **phases,
    )


QUICK_SWEEP: handover.Lanes = {
    handover.client_rings: (3, 6),
    handover.client_rings_who_is_killed: (1, 3),
}
FULL_SWEEP: handover.Lanes = {
    handover.client_rings: (4, 50),
    handover.sentinel_rings: (1, 40),
    handover.alarm_rings: (1, 30),
    handover.client_rings_who_is_killed: (1, 40),
}


def refuses_to_rest(stage: Stage) -> Verdict:
    verdicts = in_stages(stage, HOLDS, lambda own, name: _held_awake(own, *HOLDS[name]), abreast=len(HOLDS))
    return merged(HOLDS, verdicts, reasons=len(HOLDS), seconds_until_it_rests_longest=max(figure(verdicts, "rests_s")))


Hold = Callable[[Stage, Worker], Callable[[], None]]
"""Sets up what holds a worker awake; gives what ends it."""


def _held_awake(stage: Stage, hold: Hold, says: str, alarm: str = "") -> Verdict:
    """For twice as long as it would otherwise take."""
    worker = _restful(stage, alarm).up()
    let_go = hold(stage, worker)
    time.sleep(2 * SLEEP_AFTER_S + 1)
    early = worker.events("WORKER_QUIET")
    why = "; ".join(site_of(worker).ask("GET", "/health", headers=()).json["awake_because"])
    silent = [] if says in why else [Breach("I14", f"it does not say {says!r} but {why!r}")]
    let_go()
    began = time.monotonic()
    worker.wait_for("WORKER_QUIET", len(early) + 1, ASLEEP_WITHIN_S + RECLAIM_S)
    rests_s = time.monotonic() - began
    broken = [Breach("I14", "it fell quiet")] if early else []
    return stage.judged(TERMS, *broken, *silent, rests_s=rests_s)


def _restful(stage: Stage, alarm: str) -> Worker:
    sleep = {"RUNTIME_SLEEP_AFTER": f"{SLEEP_AFTER_S:g}s", **({"RUNTIME_ALARM": alarm} if alarm else {})}
    return stage.worker(modules=MODULES, slots=1, RUNTIME_HTTP="on", PORT=0, **sleep)


def _runs_a_job(stage: Stage, worker: Worker) -> Callable[[], None]:
    """And another one is due."""
    stage.acked(jobs.work.request(2 * SLEEP_AFTER_S + 3), jobs.work.request(0.0))
    wait_until(stage.ledger.starts)
    return lambda: settle_down(stage, 2)


def _job_is_deferred(stage: Stage, worker: Worker) -> Callable[[], None]:
    stage.acked(jobs.work.options(delay=f"{2 * SLEEP_AFTER_S + 4:g}s").request(0.0))
    return lambda: settle_down(stage, 1)


def _another_holds_one(stage: Stage, worker: Worker) -> Callable[[], None]:
    """It may die, and then somebody must be there. It does."""
    other = stage.worker(modules=MODULES, slots=1)
    worker.send(signal.SIGSTOP)  # so that it does not take the job itself
    other.up()
    stage.acked(work.wait_once.request())
    wait_until(stage.ledger.starts)
    worker.send(signal.SIGCONT)

    def dies() -> None:
        stage.kill(other)
        settle_down(stage, 1)

    return dies


def _redis_is_away(stage: Stage, worker: Worker) -> Callable[[], None]:
    stage.server.stop()

    def comes_back() -> None:
        stage.server.start()

    return comes_back


HOLDS: dict[str, tuple[Hold, str] | tuple[Hold, str, str]] = {
    "a job runs, and one is due": (_runs_a_job, "1 job"),
    "a job is deferred, and no alarm is set": (_job_is_deferred, "RUNTIME_ALARM is not set"),
    "a job is deferred, and due before the alarm": (_job_is_deferred, "before the alarm is sure to ring", "5m"),
    "another worker holds a job": (_another_holds_one, "RUNTIME_ALARM is not set"),
    "Redis is away": (_redis_is_away, "Redis"),
}


def started_afresh(stage: Stage) -> Verdict:
    ways: Sequence[tuple[Address, First, signal.Signals]] = (
        ("public_url", First.HELD, signal.SIGKILL),
        ("public_url", First.BAD_GATEWAY, signal.SIGKILL),
        ("public_url", First.NOT_FOUND, signal.SIGKILL),
        ("private_url", First.HELD, signal.SIGTERM),
    )
    labels = [f"{address}, {first.value}, {ended_by.name}" for address, first, ended_by in ways]
    verdicts = in_stages(stage, ways, _started_afresh)
    return merged(labels, verdicts, seconds_from_enqueue_to_result_longest=max(figure(verdicts, "took_s")))


def _started_afresh(stage: Stage, way: tuple[Address, First, signal.Signals]) -> Verdict:
    network = _network(stage)
    if way[0] == "private_url" and not isinstance(network, Network):
        return Held()  # only what has a network of its own is woken by its private address
    return Held({"took_s": woken(network, *way)})


Trial = Callable[[Server, Any, Course], Seen]


def _rates(*tried: Trial, durable: bool = False) -> Callable[[Stage], Verdict]:
    def run(stage: Stage) -> Verdict:
        seen: list[Seen] = []
        breaches: list[Breach] = []
        for trial in tried:
            folder = stage.folder / trial.__name__
            folder.mkdir()
            server = stage.enter(Server(folder) if durable else Server())
            try:
                seen.append(trial(server, folder, WHOLE if stage.full else SHORT))
            except AssertionError as failure:
                breaches.append(Breach("I13", f"{trial.__name__.replace('_', ' ')}: {failure}"))
        return found(
            *breaches,
            grants=sum(len(one.grants) for one in seen),
            least_used=f"{min((one.used for one in seen), default=0):.1%}",
            most_over_the_limit=max((one.over for one in seen), default=0.0),
            refused_by_the_provider=sum(one.refused for one in seen),
        )

    return run


ROUND = 2000
MOST_KB_A_ROUND = 200.0
"""100 bytes a job: noise of the allocator, over so few rounds. Whoever keeps a job by mistake keeps kilobytes."""


def many_jobs(stage: Stage) -> Verdict:
    """The first two rounds fill what is kept on purpose: caches, pools of connections, the allocator's arenas."""
    worker = stage.worker(slots=50).up()
    memory: list[float] = []
    opened: list[int] = []
    tasks: list[int] = []
    for number in range(7 if stage.full else 5):
        stage.acked(*(jobs.work_at_once.request() for _ in range(ROUND)))
        settle_down(stage, ROUND * (number + 1), 120)
        time.sleep(2)
        memory.append(1024 * megabytes(worker))
        opened.append(descriptors(worker))
        if stage.ours:
            worker.send(signal.SIGUSR1)
            tasks.append(len(worker.wait_for("TASK_DUMP", number + 1)[-1]["data"]["tasks"]))
    slope = (memory[-1] - memory[1]) / (len(memory) - 2)
    grows = [Breach("I15", f"{slope:.0f} kB more each {ROUND} jobs")] if slope > MOST_KB_A_ROUND else []
    more = [
        Breach("I15", f"{before} {what} before, {after} after")
        for what, (before, *_, after) in {"descriptors": opened, "tasks": tasks or [0, 0]}.items()
        if after > before + 2
    ]
    return stage.judged(
        TERMS,
        *(*grows, *more, *exits([worker])),
        jobs=ROUND * len(memory),
        kilobytes_a_round=slope,
        megabytes_in_the_end=memory[-1] / 1024,
        descriptors=opened[-1],
        tasks=tasks[-1] if tasks else "it does not tell",
    )


SCENARIOS = (
    Scenario(
        "K5.1",
        "A worker has done jobs of all kinds, some through HTTP, traced, and has nothing more to do. Its bytes are "
        "counted outside it for a minute, beside a server that probes its connections every 3 s. (arq: it has only "
        "started.)",
        "Not a byte leaves it; a job that comes by HTTP is done by the same process.",
        ("I14",),
        silent,
        deadline_s=180,
    ),
    Scenario(
        "K5.2",
        "A worker goes quiet again and again; a job comes at every millisecond from 15 before to 25 after. Our client "
        "rings, or a sentinel, or a cron service, or nobody but our client while the worker is killed.",
        "Each job runs once, within 2 s of the ring's answer, or of its coming where nobody had to ring.",
        ("I7", "I14"),
        handed_over,
        deadline_s=600,
        not_for={"arq": NOBODY_SLEEPS},
    ),
    Scenario(
        "K5.3",
        "A worker that would fall quiet after 5 s runs a job while another is due; or a deferred job is there and no "
        "alarm, or one that may ring later; or another worker holds a job, and is killed; or Redis is away. For 11 s.",
        "It stays awake, says why, and rests once that is over; the killed one's job starts again within 12 s.",
        ("I1", "I3", "I5", "I14"),
        refuses_to_rest,
        deadline_s=150,
        not_for={"arq": NOBODY_SLEEPS},
    ),
    Scenario(
        "K5.4",
        "A worker that is quiet is ended without notice, as the platform does, and started afresh by what comes to "
        "its address: a request that is held, or meets 502 once, or 404 for 3 s, or is refused.",
        "Our client's job is done by the process that was started, once; the caller does not wait for it.",
        ("I14",),
        started_afresh,
        deadline_s=240,
        not_for={"arq": NOBODY_SLEEPS},
    ),
    Scenario(
        "K5.5",
        "Eight processes want the tokens of one bucket for 20 s. One is killed every 2 s; or the provider refuses all "
        "for 5 s, each time for 2.",
        "In no stretch of time is more granted than the bucket has, to a token in a thousand million; above 95 % of "
        "it is used; after a refusal all are silent, and let go one by one.",
        ("I13",),
        _rates(
            trials.killed_takers_cost_no_more_than_what_they_held,
            trials.a_storm_of_refusals_stops_all_and_is_released_one_by_one,
        ),
        deadline_s=120,
        not_for={"arq": NO_LIMITS},
    ),
    Scenario(
        "K5.5.calm",
        "The same in calm; and a process is stopped for 3 s.",
        "Nothing is refused by the provider; the others are not held up.",
        ("I13",),
        _rates(trials.in_calm_all_is_used_and_nothing_is_refused, trials.a_taker_that_stands_still_holds_nobody_up),
        quick=False,
        deadline_s=120,
        not_for={"arq": NO_LIMITS},
    ),
    Scenario(
        "K5.5.durable",
        "The same, and Redis is killed twice, and keeps its data.",
        "No token is granted twice.",
        ("I13",),
        _rates(trials.a_killed_store_that_keeps_its_data_grants_nothing_twice, durable=True),
        quick=False,
        deadline_s=120,
        not_for={"arq": NO_LIMITS},
    ),
    Scenario(
        "K5.5.forgetful",
        "The same, and Redis is killed once, and forgets everything.",
        "One burst more is granted, and no more than that.",
        ("I13",),
        _rates(trials.a_store_that_forgets_grants_one_burst_more),
        quick=False,
        deadline_s=120,
        not_for={"arq": NO_LIMITS},
    ),
    Scenario(
        "K5.8",
        "A worker does ten thousand jobs, in rounds of 2,000; after each it rests for 2 s and is looked at. The first "
        "two rounds fill its caches. (In full, fourteen thousand.)",
        "Its memory has no slope, and its descriptors and tasks are as many as before.",
        ("I1", "I2", "I3", "I7", "I15"),
        many_jobs,
        quick=False,
        deadline_s=400,
    ),
)
