"""K2.1 to K2.3, K2.7 to K2.11, K2.13 to K2.15: Redis dies, hangs, refuses, forgets, and is crowded."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from runtime.adapters.redis import keys
from runtime.adapters.redis.scripts import script
from runtime.core.errors import RedisRefused
from runtime.core.spec import DEFAULT_QUEUE
from tests.benchmarks.growth import _FILL
from tests.benchmarks.measures import quantile
from tests.campaign import work
from tests.campaign.death import MODULES, exits, settle_down
from tests.campaign.scenario import Held, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.campaign.weather import (
    OPEN,
    SLACK_S,
    TOLD_S,
    ended,
    judged_apart,
    producing,
    quiet_enough,
    ridden_out,
    scene,
)
from tests.faults import campaign, jobs
from tests.faults.ledger import PLAIN, Breach, executions
from tests.faults.test_failover import make_replica, role, wait_until_replicated, watched
from tests.faults.test_weather import CASES, works
from tests.http.asking import site_of
from tests.processes import Worker, command, wait_until
from tests.servers import Server

FOREVER = float("inf")
UNSETTLED_S = 0.2
"""A handler notes its end before the store has its outcome: within this at most."""


def _crew(stage: Stage, size: int = 3, redis: str | None = None, **settings: Any) -> list[Worker]:
    crew = [stage.worker(redis, slots=5, **settings) for _ in range(size)]
    for worker in crew:
        worker.start()
    wait_until(lambda: all(worker.boots() for worker in crew))
    return crew


def _start_again(crew: Sequence[Worker]) -> list[Breach]:
    """Those that have exited, as a platform would."""
    gone = [worker for worker in crew if not worker.running]
    for worker in gone:
        worker.start()
    return [Breach("I9", "a worker exited as Redis was away") for _ in gone]


# K2.1, K2.2


def killed_and_durable(stage: Stage) -> Verdict:
    kills = 6 if stage.full else 1
    on = scene(stage)
    crew = _crew(stage, redis=stage.server.tcp_url)
    breaches: list[Breach] = []
    count = 400 if stage.full else 120
    again_s = []
    with producing(stage, count) as producer:
        for number in range(kills):
            time.sleep(stage.chance.uniform(0.8, 1.6))
            on.server.kill()
            time.sleep(stage.chance.uniform(0.1, 1.0))
            on.server.start()
            breaches += _start_again(crew)
            again_s.append(_next_end(stage, number))
        producer.join(60)
    settle_down(stage, count + kills)
    breaches += exits(crew) + (quiet_enough(crew) if stage.ours else [])
    late = [seconds for seconds in again_s if seconds > TOLD_S + SLACK_S]
    breaches += [Breach("I9", f"no progress {seconds:.1f} s after its return") for seconds in late]
    return stage.judged(
        PLAIN, *breaches, kills=kills, jobs=count, ended=stage.ended(), seconds_to_the_next_end_longest=max(again_s)
    )


def _next_end(stage: Stage, number: int) -> float:
    """Seconds until a job that comes now has ended."""
    began = time.monotonic()
    (job,) = stage.acked(jobs.work.options(key=f"after {number}", priority=9).request(0.0))
    with suppress(AssertionError):
        wait_until(lambda: job in ended(stage.ledger), 15)
    return time.monotonic() - began


def killed_and_forgetful(stage: Stage) -> Verdict:
    cases = list(FORGETFUL) if stage.full else ["nothing is saved"]
    verdicts = in_stages(stage, cases, lambda own, name: _forgets(own, *FORGETFUL[name]), abreast=2)
    figures: dict[str, float | str] = {}
    for case, verdict in zip(cases, verdicts, strict=True):
        if found := getattr(verdict, "figures", None):
            figures[case] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
    return merged(cases, verdicts, **figures)


FORGETFUL: dict[str, tuple[Sequence[str], bool, float]] = {
    # Its options, whether it keeps a log of writes, and how far back it may forget (s).
    "a log that is synced every second": (("--appendfsync", "everysec"), True, 0.0),
    "the same, and the disk has lost the last second": (("--appendfsync", "everysec"), True, 2.0),
    "a snapshot now and then": (("--dbfilename", "dump.rdb"), False, FOREVER),
    "nothing is saved": ((), False, FOREVER),
}


def _forgets(stage: Stage, options: Sequence[str], logs: bool, back_s: float) -> Verdict:
    data = stage.folder / "data"
    data.mkdir()
    stage.server = stage.enter(Server(data=data if logs else None, options=options))
    crew = _crew(stage, redis=stage.server.tcp_url)
    count, losses, breaches = 200 if stage.full else 60, [], []
    with producing(stage, count) as producer, _log_sizes(data) as sizes:
        for _ in range(3 if stage.full else 1):
            time.sleep(stage.chance.uniform(0.8, 1.2))
            saved_at = time.monotonic()
            if "--dbfilename" in options:
                with Redis.from_url(stage.url) as redis:
                    redis.save()
                time.sleep(stage.chance.uniform(0.8, 1.2))
            stage.server.kill()
            killed_at = time.monotonic()
            if logs and back_s:
                _lose_the_last_second(sizes, killed_at)
            stage.server.start()
            since = killed_at - back_s if back_s < FOREVER else saved_at if "--dbfilename" in options else 0.0
            if back_s:
                losses.append((since, time.monotonic() + 0.2))
            breaches += _start_again(crew)
        producer.join(60)
    # What was lost cannot be waited for: all that is there, and a job that comes now.
    (last,) = stage.acked(jobs.work.options(key="last").request(0.0))
    with suppress(AssertionError):
        wait_until(lambda: not campaign.waiting(stage.url) and last in ended(stage.ledger), 60 if stage.ours else 20)
    breaches += exits(crew)
    return judged_apart(stage, losses, *breaches)


@contextmanager
def _log_sizes(folder: Path) -> Iterator[list[tuple[float, Path, int]]]:
    """How long the log of writes was, every 50 ms."""
    sizes: list[tuple[float, Path, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            with suppress(OSError):
                sizes.extend((time.monotonic(), file, file.stat().st_size) for file in folder.rglob("*.incr.aof"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def _lose_the_last_second(sizes: Sequence[tuple[float, Path, int]], killed_at: float) -> None:
    """As if the machine had lost its power: what the server wrote last was only in memory."""
    before = [(file, size) for at, file, size in sizes if at < killed_at - 1.0]
    if before:
        file, size = before[-1]
        with open(file, "r+b") as log:
            log.truncate(min(size, file.stat().st_size))


# K2.3, K2.8, K2.10


def hangs(stage: Stage) -> Verdict:
    lengths = (3.0, 15.0, 30.0) if stage.full else (12.0,)
    names = ("stopped", "paused", "writes paused") if stage.full else ("stopped",)
    cases = [(name, lasts_s) for lasts_s in lengths for name in names]
    return _weathers(stage, cases, size=2)


def out_of_memory(stage: Stage) -> Verdict:
    return _weathers(stage, [("out of memory", 7.0)])


REFUSALS = [
    name
    for name in CASES
    if name not in ("stopped", "paused", "writes paused", "out of memory", "restart", "swallowed")  # have their own
    and name not in ("no blocking", "password changed")  # begin otherwise; `make weather` has them
]


def refuses(stage: Stage) -> Verdict:
    return _weathers(stage, [(name, 7.0) for name in REFUSALS])


def _weathers(stage: Stage, cases: Sequence[tuple[str, float]], size: int = 1) -> Verdict:
    verdicts = in_stages(stage, cases, lambda own, case: ridden_out(own, CASES[case[0]], case[1], size), abreast=3)
    told, again = (figure(verdicts, name) for name in ("seconds_to_its_telling", "seconds_to_the_next_end_after_it"))
    return merged(
        [f"{name}, {lasts_s:g} s" for name, lasts_s in cases],
        verdicts,
        kinds=len(cases),
        workers_that_exited=sum(figure(verdicts, "exits")),
        seconds_to_its_telling_longest=max(told, default="nobody can be asked"),
        seconds_to_the_next_end_after_it_longest=max(again, default="none"),
    )


# K2.7


def sentinels(stage: Stage) -> Verdict:
    second = stage.enter(Server())
    first = stage.server
    make_replica(second, first)
    url, _ = stage.enter(watched(first, stage.folder))
    worker = stage.worker(url, slots=20).up()
    stage.acked(*(jobs.work.request(0.3) for _ in range(300)))
    wait_until(lambda: len(ended(stage.ledger)) >= 30)
    replicated = time.monotonic()
    wait_until_replicated(first)
    first.kill()
    wait_until(lambda: role(second) == "master", what="the replica is promoted")
    promoted = time.monotonic()
    stage.server = second
    breaches = _start_again([worker])
    (after,) = stage.acked(jobs.work.options(priority=9).request(0.0))
    with suppress(AssertionError):
        wait_until(lambda: after in ended(stage.ledger), 15)
    again_s = time.monotonic() - promoted
    if again_s > TOLD_S + SLACK_S and not breaches:
        breaches.append(Breach("I9", f"no progress {again_s:.1f} s after the promotion"))
    settle_down(stage, 301)
    breaches += _start_again([worker])
    first.start()  # it comes back, and is told what it is now
    wait_until(lambda: role(first) == "slave", what="the old primary is a replica")
    breaches += exits([worker])
    losses = [(replicated - UNSETTLED_S, promoted)]
    return judged_apart(stage, losses, *breaches, seconds_to_the_next_end_after_the_promotion=again_s)


# K2.9


def evicts(stage: Stage) -> Verdict:
    on = scene(stage, "--maxmemory-policy", "allkeys-lru")
    breaches = []
    if stage.ours:
        said = command("doctor", REDIS_URL=stage.url).stdout
        if not re.search(r"eviction policy is allkeys-lru", said):
            breaches.append(Breach("I9", "doctor says nothing of the eviction policy"))
    given = stage.acked(*(jobs.work.request(0.05) for _ in range(10)))
    on.admin.delete(keys.JOB + given[4])  # as an eviction does; which key it hits cannot be chosen
    worker = stage.worker().up()
    settle_down(stage, 10)
    breaches += exits([worker])
    lines = [line for line in stage.ledger.lines() if line.job != given[4]]
    found = stage.subject.look(stage.url, stage.workers)
    told = campaign.letters(stage.url).get(given[4], {}).get("text", "")
    if "body is missing" not in told:
        how = "a failure that says 'job expired'" if given[4] in found.results else "gone without a word"
        breaches.append(Breach("I1", f"a job whose body was evicted is {how}"))
    if {line.job for line in lines if line.what == "end"} != set(given) - {given[4]}:
        breaches.append(Breach("I8", "its neighbours are not all done"))
    return _verdict(breaches)


def _verdict(breaches: Sequence[Breach], **figures: float | str) -> Verdict:
    from tests.campaign.scenario import Broken

    return Broken(breaches, figures) if breaches else Held(figures)


# K2.11


def flushed_scripts(stage: Stage) -> Verdict:
    on = scene(stage)
    worker = stage.worker(slots=20).up()
    count = len(stage.acked(*(jobs.work.request(0.1) for _ in range(300))))
    flushes = 0
    while stage.ended() < count and flushes < 3000:
        on.admin.script_flush()
        with suppress(ResponseError):
            on.admin.execute_command("FUNCTION", "FLUSH")
        flushes += 1
        time.sleep(stage.chance.uniform(0, 0.02))
    breaches = exits([worker])
    breaches += [Breach("I9", "it was noticed")] if worker.events("REDIS_AWAY") else []
    return stage.judged(PLAIN, *breaches, flushes=flushes, jobs=count)


# K2.13


TYPES: dict[str, Callable[[Any, str], object]] = {
    "string": lambda admin, key: admin.set(key, "spoiled"),
    "list": lambda admin, key: admin.rpush(key, "spoiled"),
    "set": lambda admin, key: admin.sadd(key, "spoiled"),
    "sorted set": lambda admin, key: admin.zadd(key, {"spoiled": 1}),
    "hash": lambda admin, key: admin.hset(key, "spoiled", "1"),
    "nothing": lambda admin, key: None,
}
OF_A_JOB = (keys.JOB, keys.IN_PROGRESS, keys.RETRY, keys.OWN, keys.AWAITED, keys.RESULT, keys.ONCE, keys.UNIQUE)
OF_A_QUEUE = {
    "the queue": DEFAULT_QUEUE,
    "later": keys.later(DEFAULT_QUEUE),
    "the mark": keys.mark(DEFAULT_QUEUE),
    "the counters": keys.count(DEFAULT_QUEUE),
    "those of unknown handlers": keys.unknown(DEFAULT_QUEUE),
    "the dead letters": keys.dead(DEFAULT_QUEUE),
    "arq:abort": keys.ABORT,
    "the workers": keys.WORKERS,
}


WANTED = ("the queue", "the mark")
"""Nobody can be served without the one, nobody can be told without the other: of these the worker says so."""


def spoiled(stage: Stage) -> Verdict:
    """A key of each running job becomes one of each type; then the queue's own, one after the other."""
    of_queues = list(OF_A_QUEUE) if stage.full else ["the queue", "later", "the mark", "the counters", "arq:abort"]
    if not stage.ours:
        of_queues = ["the queue", "arq:abort"]
    cases = [*(("", kind) for kind in TYPES), *((name, kind) for name in of_queues for kind in TYPES)]
    if not stage.full:
        cases = [("", kind) for kind in ("list", "nothing")] + [(name, "list") for name in of_queues]
    verdicts = in_stages(stage, cases, lambda own, case: _spoiled(own, *case), abreast=4)
    return merged((f"{name or 'the keys of jobs'}: {kind}" for name, kind in cases), verdicts, kinds=len(cases))


def _spoiled(stage: Stage, name: str, kind: str) -> Verdict:
    on = scene(stage)
    lease = "4s" if name else "10s"  # extended while jobs run; what says that a job is another's is obeyed then
    worker = stage.worker(redis=on.server.tcp_url, slots=30, lease=lease, **OPEN).up()
    prefixes = OF_A_JOB if stage.ours else OF_A_JOB[:3]
    victims = stage.acked(*(jobs.work.request(2.0) for _ in prefixes))
    good = stage.acked(*(jobs.work.request(2.0) for _ in range(10)))
    wait_until(lambda: len(stage.ledger.starts()) >= len(victims) + len(good))
    of_jobs = {prefix + job: job for prefix, job in zip(prefixes, victims, strict=True)}
    harmed = [OF_A_QUEUE[name]] if name else list(of_jobs)
    for key in harmed:
        on.admin.delete(key)
        TYPES[kind](on.admin, key)
    wait_until(lambda: len(ended(stage.ledger)) >= len(victims) + len(good), 20, "the running ones have ended")
    breaches = _neighbours(stage, name, good)
    if not worker.running:
        breaches.append(Breach("I8", f"the worker exited with {worker.wait()}"))
    if stage.ours and name not in WANTED and worker.events("REDIS_AWAY"):
        breaches.append(Breach("I8", "it takes Redis to be away"))
    for key in harmed:
        if name or on.admin.type(key) != "none":
            on.admin.delete(key)
    if not worker.running:
        worker.start()
    (last,) = stage.acked(jobs.work.request(0.0))
    with suppress(AssertionError):
        wait_until(lambda: campaign.results(stage.url).get(last), 20 if stage.ours else 8)
    results = campaign.results(stage.url)
    if last not in results:
        breaches.append(Breach("I9", "it serves no more once the key is in order again"))
    runs = executions(stage.ledger.lines())
    most = max(map(len, runs.values()))
    breaches += [Breach("I3", f"a job ran {most} times")] if most > 2 else []
    if stage.ours:
        breaches += [Breach("I9", "well again is not what it says")] if not _gets_well(worker) else []
        breaches += quiet_enough([worker])
    breaches += exits([worker]) if worker.running else []
    if "Traceback" in worker.errors() and stage.ours:
        breaches.append(Breach("I9", "a traceback on stderr"))
    return _verdict(breaches)


def _neighbours(stage: Stage, name: str, good: Sequence[str]) -> list[Breach]:
    """Those who are not served although nothing is wrong with their own keys, nor yet mended elsewhere."""
    if name != "the queue":
        try:
            good = [*good, *stage.acked(jobs.work.request(0.0))]
        except RedisRefused as refusal:
            return [Breach("I8", f"no job can be added: {refusal}")]
    with suppress(AssertionError):
        wait_until(lambda: set(good) <= set(campaign.results(stage.url)), 8)
    lost = set(good) - set(campaign.results(stage.url))
    return [Breach("I8", f"{len(lost)} of its neighbours have no result")] if lost else []


def _gets_well(worker: Worker) -> bool:
    try:
        return wait_until(lambda: works(worker), 15)
    except AssertionError:
        return False


# K2.14


def emptied(stage: Stage) -> Verdict:
    on = scene(stage)
    worker = stage.worker(slots=10, **OPEN).up()
    given = stage.acked(*(jobs.work.request(1.5) for _ in range(10)))
    wait_until(lambda: len(stage.ledger.starts()) >= 10)
    on.admin.flushall()
    wait_until(lambda: len(ended(stage.ledger)) >= 10)
    time.sleep(1)
    (last,) = stage.acked(jobs.work.request(0.0))
    wait_until(lambda: last in campaign.results(stage.url))
    kept = set(campaign.results(stage.url)) - {last}
    refused = {line["job_id"] for line in worker.events("JOB_REFUSED")}
    breaches = [Breach("I4", f"{len(kept)} outcomes of jobs that are gone were accepted")] if kept else []
    if stage.ours:
        breaches += [Breach("I4", f"{len(refused)} of 10 refusals are told")] if refused != set(given) else []
        breaches += [] if _gets_well(worker) else [Breach("I9", "well again is not what it says")]
        breaches += quiet_enough([worker])
    breaches += exits([worker])
    return _verdict(breaches, outcomes_refused_and_told=len(refused), outcomes_accepted=len(kept))


# K2.15


WALKS = re.compile(r"^(?:KEYS|SMEMBERS|SCAN|SSCAN|HSCAN|ZSCAN|FLUSH\w*)$", re.IGNORECASE)


def crowded(stage: Stage) -> Verdict:
    queued, others = (1_000_000, 100_000) if stage.full else (20_000, 2_000)
    now_ms = time.time_ns() // 1_000_000
    with Redis.from_url(stage.url) as admin:
        _fill(admin, "waiting", queued, now_ms + 3_600_000)  # behind ours, which are due before them
        _fill(admin, "deferred", others, now_ms + 7_200_000)
        for first in range(0, others, 10_000):
            admin.mset({f"{keys.RESULT}r{n}": b"\x80\x04N." for n in range(first, min(first + 10_000, others))})
        admin.config_set("slowlog-max-len", 100_000)
        admin.config_set("slowlog-log-slower-than", 0)
        admin.slowlog_reset()
        with _heard(stage.url) as heard:
            worker = stage.worker(modules=MODULES, slots=20, **OPEN).up()
            busy = [jobs.work.request(0.01) for _ in range(200)]
            odd = [work.fail_once.request(), *(work.take.request() for _ in range(3))] if stage.ours else []
            given = stage.acked(*busy, *odd)
            wait_until(lambda: set(given) <= ended(stage.ledger), 60)
            if stage.ours:
                site = site_of(worker)
                for path in ("/health", "/readyz", "/metrics", "/queues"):
                    site.ask("GET", path, headers=())
            time.sleep(1)
            breaches = exits([worker])
        sha = script("claim").sha.encode()
        entries: Any = admin.execute_command("SLOWLOG", "GET", "-1")
    times = [entry[2] / 1000 for entry in entries if sha in entry[3][1:2]]
    walks = {name: count for name, count in heard.items() if WALKS.match(name)}
    breaches += [Breach("I15", f"{name} {count} times") for name, count in walks.items()]
    p99 = quantile(times, 0.99) if times else 0.0
    breaches += [Breach("I15", f"a claim takes {p99:.1f} ms (p99)")] if p99 > 5 else []
    figures = {"claims": len(times), "claim_ms_median": quantile(times, 0.5), "claim_ms_p99": p99} if times else {}
    kinds = ", ".join(sorted(heard))
    return _verdict(breaches, in_the_queue=queued + others, results=others, **figures, commands=kinds)


def _fill(admin: Any, prefix: str, count: int, from_ms: int) -> None:
    body = b"\x80\x04N."
    for number in range(0, count, 10_000):
        text = _FILL.replace("'q%07d'", f"'{prefix}%07d'")
        admin.eval(text, 1, DEFAULT_QUEUE, min(10_000, count - number), number, from_ms, body)


@contextmanager
def _heard(url: str) -> Iterator[Counter[str]]:
    """The commands that the server is given, those of scripts too, and how often."""
    heard: Counter[str] = Counter()
    ready, stop = threading.Event(), threading.Event()

    def listen() -> None:
        with Redis.from_url(url, socket_timeout=0.5) as redis, redis.monitor() as monitor:
            ready.set()
            while not stop.is_set():
                with suppress(RedisError):
                    said = monitor.next_command()
                    if said["command"]:
                        heard[said["command"].split()[0].upper()] += 1

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield heard
    finally:
        stop.set()
        thread.join(10)


SCENARIOS = (
    Scenario(
        "K2.1",
        "Redis, which has every write on disk before it answers, is killed six times while three workers run jobs and "
        "a producer enqueues.",
        "No worker exits; every job that was accepted is done once.",
        ("I1", "I2", "I3", "I4", "I7", "I9"),
        killed_and_durable,
        deadline_s=180,
    ),
    Scenario(
        "K2.2",
        "The same with less on disk: a log synced every second (SIGKILL; and then without what was written in the last "
        "second, as when the power fails), a snapshot now and then, nothing at all.",
        "Nothing else is lost than what the server has forgotten, which is counted; no worker exits.",
        ("I1", "I2", "I3", "I9"),
        killed_and_forgetful,
        deadline_s=240,
    ),
    Scenario(
        "K2.3",
        "Redis is stopped (SIGSTOP), or pauses all clients, or those that write, for 3, 15 and 30 s, while two workers "
        "run jobs, at the default lease of 10 s.",
        "Readiness tells; jobs run on, and none runs twice: their owners extend their leases before anybody claims.",
        ("I1", "I2", "I3", "I7", "I9"),
        hangs,
        deadline_s=300,
    ),
    Scenario(
        "K2.7",
        "Three sentinels promote a replica after the primary was killed under load; it comes back.",
        "Work goes on within 5 s of the promotion; what the replica may not have had is not judged.",
        ("I1", "I3", "I9"),
        sentinels,
        quick=False,
        deadline_s=150,
    ),
    Scenario(
        "K2.8",
        "Redis is out of memory for 7 s (`maxmemory` below what it uses, `noeviction`).",
        "Readiness tells; running jobs go on and keep their outcomes; work goes on within 5 s of its end.",
        ("I1", "I2", "I3", "I7", "I9"),
        out_of_memory,
        quick=False,
        deadline_s=90,
    ),
    Scenario(
        "K2.9",
        "Redis may evict any key, and the body of a waiting job is gone.",
        "`runtime doctor` warns of it; the job becomes a dead letter that says so, and its neighbours are done.",
        ("I1", "I8", "I9"),
        evicts,
        quick=False,
    ),
    Scenario(
        "K2.10",
        "Redis refuses everything for 7 s, in each of its ways: a replica, loading, busy, without memory, password or "
        "permission, too many clients, a plan's quota, and so on.",
        "Readiness tells in words; no job is lost or run twice; work goes on within 5 s of its end.",
        ("I1", "I2", "I3", "I7", "I9"),
        refuses,
        quick=False,
        deadline_s=420,
    ),
    Scenario(
        "K2.11",
        "Scripts and functions are flushed every 10 ms, while 300 jobs run.",
        "Nobody notices.",
        ("I1", "I2", "I3", "I7", "I9"),
        flushed_scripts,
        not_for={"arq": "it uses no scripts"},
    ),
    Scenario(
        "K2.13",
        "Under running jobs, each key of a job and of its queue is deleted, or becomes one of another type.",
        "No worker exits or crashes, its neighbours and a job that comes now get their results before anything is "
        "mended; where the queue itself is harmed, the next job does once it is in order.",
        ("I3", "I8", "I9"),
        spoiled,
        quick=False,
        deadline_s=420,
    ),
    Scenario(
        "K2.14",
        "Redis is emptied (FLUSHALL) under ten running jobs.",
        "No worker exits; the outcomes of jobs that are gone are refused, and it says so.",
        ("I4", "I9"),
        emptied,
    ),
    Scenario(
        "K2.15",
        "A million jobs wait, 100,000 are deferred, 100,000 results are kept; a worker runs 200; MONITOR hears.",
        "No command walks over keys or sets, and a claim takes 5 ms at most (p99).",
        ("I15",),
        crowded,
        quick=False,
        deadline_s=180,
    ),
)
