"""K2.4 to K2.6 and K2.12: connections break, and what was on its way is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runtime import Request
from runtime.adapters.redis.scripts import script
from tests.campaign import work
from tests.campaign.death import MODULES, exits, settle_down
from tests.campaign.needs import MOUNT_NAMESPACE, NETWORK_NAMESPACE, island, with_names
from tests.campaign.scenario import NotRun, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.campaign.weather import OPEN, SLACK_S, ended, producing, quiet_enough, scene
from tests.faults import jobs
from tests.faults.ledger import PLAIN, Breach, Terms
from tests.faults.test_weather import Scene, get, works
from tests.processes import Worker, wait_until
from tests.relay import Command, Relay
from tests.servers import Server

NOTICED_S = 6.0
"""A reply's deadline, and a claim over a new connection."""


def _gone(crew: Sequence[Worker]) -> list[Breach]:
    """Those that have exited are started again, as a platform would."""
    gone = [worker for worker in crew if not worker.running]
    for worker in gone:
        worker.start()
    return [Breach("I9", "a worker exited") for _ in gone]


# K2.4


def killed_again_and_again(stage: Stage) -> Verdict:
    on = scene(stage)
    crew = [stage.worker(on.server.tcp_url, slots=5).up() for _ in range(3)]
    count, kills = 300 if stage.full else 90, 0
    with producing(stage, count) as producer:
        until = time.monotonic() + (10 if stage.full else 1.5)
        while time.monotonic() < until:
            kills += int(on.admin.client_kill_filter(_type="normal", skipme=True))
            time.sleep(0.05)
        breaches = _gone(crew)
        producer.join(30)
    settle_down(stage, count)
    breaches += exits(crew) + (quiet_enough(crew) if stage.ours else [])
    return stage.judged(PLAIN, *breaches, connections_cut=kills, jobs=count, ended=stage.ended())


# K2.5


@dataclass(frozen=True)
class Break:
    """How live connections stop to work while new ones would."""

    begin: Callable[[Scene], object]
    asked: bool = True
    """Somebody asks for the worker's health meanwhile."""
    within_s: float = NOTICED_S


BREAKS = {
    "a black hole, busy": Break(lambda on: on.relay.strand(), asked=False),
    "a black hole, idle and asked for its health": Break(lambda on: on.relay.strand()),
    "a black hole, idle and asked by nobody": Break(lambda on: on.relay.strand(), asked=False, within_s=63.0),
    "ended on one side, idle": Break(lambda on: on.relay.finish(), asked=False),
    "ended on one side, busy": Break(lambda on: on.relay.finish(), asked=False),
}


def breaks(stage: Stage) -> Verdict:
    names = [*BREAKS, "the name"] if stage.full else ["a black hole, busy", "ended on one side, idle"]
    verdicts = in_stages(stage, names, lambda own, name: _renamed(own) if name == "the name" else _breaks(own, name))
    took = {
        f"seconds_to_the_next_end_{name}": found
        for name, verdict in zip(names, verdicts, strict=True)
        for found in figure([verdict], "took_s")
    }
    return merged(names, verdicts, **took)


def _breaks(stage: Stage, name: str) -> Verdict:
    on, how = scene(stage), BREAKS[name]
    worker = stage.worker(on.relay.url, slots=5, **OPEN).up()
    if stage.ours:
        worker.wait_for("HTTP_LISTENING")
        wait_until(lambda: works(worker))
    if "busy" in name:
        given = stage.acked(*(jobs.work.request(0.2) for _ in range(40)))
        wait_until(lambda: len(ended(stage.ledger)) >= 5)
    else:
        given = stage.acked(jobs.work.request(0.0))
        wait_until(lambda: len(ended(stage.ledger)) == 1)
        time.sleep(1)
    how.begin(on)
    began = time.monotonic()
    (after,) = stage.acked(jobs.work.options(priority=9).request(0.0))
    with suppress(AssertionError):
        wait_until(
            lambda: (not how.asked or not stage.ours or get(worker, "/health")) and after in ended(stage.ledger),
            how.within_s + SLACK_S + (0 if stage.ours else 30),
        )
    took_s = time.monotonic() - began
    breaches = _gone([worker])
    if took_s > how.within_s + SLACK_S:
        breaches.append(Breach("I9", f"no progress {took_s:.1f} s after it"))
    settle_down(stage, len(given) + 1)
    breaches += exits([worker]) + (quiet_enough([worker]) if stage.ours else [])
    return stage.judged(PLAIN, *breaches, took_s=took_s)


def _renamed(stage: Stage) -> Verdict:
    """The name is not known for a while, and then it means another address."""
    if why := MOUNT_NAMESPACE.missing():
        return NotRun(why)
    on, hosts = scene(stage), stage.folder / "hosts"
    path, port = stage.url.removeprefix("unix://"), on.relay.port
    hosts.write_text("127.0.0.1 localhost store.test\n")
    url = f"redis://store.test:{port}"
    worker = stage.worker(url, slots=5, inside=with_names(stage.folder), **OPEN).up()
    (first,) = stage.acked(jobs.work.request(0.0))
    wait_until(lambda: first in ended(stage.ledger))
    hosts.write_text("127.0.0.1 localhost\n")
    on.relay.swallow()  # the old address: whoever comes there waits
    on.relay.cut()
    time.sleep(6)
    (after,) = stage.acked(jobs.work.request(0.0))
    breaches = _gone([worker])
    if stage.ours and not worker.events("REDIS_AWAY"):
        breaches.append(Breach("I9", "it does not say that the name is not known"))
    stage.enter(Relay(path, "127.0.0.2", port))
    hosts.write_text("127.0.0.1 localhost\n127.0.0.2 store.test\n")
    began = time.monotonic()
    with suppress(AssertionError):
        wait_until(lambda: after in ended(stage.ledger), NOTICED_S + SLACK_S)
    took_s = time.monotonic() - began
    if took_s > NOTICED_S + SLACK_S and not breaches:
        breaches.append(Breach("I9", f"no progress {took_s:.1f} s after the name's new address"))
    settle_down(stage, 2)
    breaches += exits([worker]) + (quiet_enough([worker]) if stage.ours else [])
    return stage.judged(PLAIN, *breaches, took_s=took_s)


# K2.6


def cut_off(stage: Stage) -> Verdict:
    lengths = (5.0, 25.0, 120.0) if stage.ours and stage.full else (5.0, 25.0) if stage.full else (5.0,)
    verdicts = in_stages(stage, lengths, _cut_off)
    labels = [f"{length_s:g} s" for length_s in lengths]
    runs = {f"runs_{label}": n for label, one in zip(labels, verdicts, strict=True) for n in figure([one], "runs")}
    return merged(labels, verdicts, **runs)


def _cut_off(stage: Stage, lasts_s: float) -> Verdict:
    """arq is given a timeout of a second, so that its claim lapses after eleven, and not after 310."""
    settings: dict[str, Any] = {} if stage.ours else {"JOB_TIMEOUT_SECONDS": 1}
    with island() as place:
        addresses = ("--bind", "127.0.0.1", place.address, "--protected-mode", "no")
        stage.server = stage.enter(Server(options=addresses))
        url = stage.server.tcp_url.replace("127.0.0.1", place.address)
        far = stage.worker(url, inside=place.command, **settings).up()
        (job,) = stage.acked(jobs.work.request(3.0 if stage.ours else 0.9))
        wait_until(stage.ledger.starts)
        place.cut_off()
        began = time.monotonic()
        if lasts_s > 10:
            stage.ledger.note("lapsed", pid=far.pid)
        near = stage.worker(stage.server.tcp_url, **settings).up()
        time.sleep(max(0.0, began + lasts_s - time.monotonic()))
        taken_over = stage.ended()
        place.join()
        over = time.monotonic()
        settle_down(stage, 1)
        near.stop()
        (after,) = stage.acked(jobs.work.request(0.0))
        with suppress(AssertionError):
            wait_until(lambda: after in ended(stage.ledger), 10 if stage.ours else 30)
        again_s = time.monotonic() - over
        breaches = _gone([far])
        settle_down(stage, 2)
        breaches += exits([far]) + (quiet_enough([far]) if stage.ours else [])
        if lasts_s > 20 and not taken_over:
            breaches.append(Breach("I5", "the other worker did not take the job over"))
        runs = len(stage.ledger.starts(job))
        return stage.judged(Terms(), *breaches, runs=runs, seconds_to_its_next_end=again_s)


# K2.12


SCRIPTS = (
    *(("claim", "common"), ("extend", "common"), ("settle", "common"), ("enqueue", "common")),
    *(("take", "schedule"), ("acquire", "permits")),
)


def of_script(name: str) -> Callable[[Command], bool]:
    """A command that runs this script."""
    its = script(name, dict(SCRIPTS)[name])
    return lambda command: (
        (command[0], command[1]) in ((b"EVALSHA", its.sha.encode()), (b"EVAL", its.source)) if command[1:] else False
    )


def of_kind(name: bytes) -> Callable[[Command], bool]:
    return lambda command: command[0] == name


def _works(length_s: float, count: int) -> Sequence[Request[Any]]:
    return [jobs.work.options(key=str(number)).request(length_s) for number in range(count)]


@dataclass(frozen=True)
class Asking:
    """What is asked of Redis, and jobs that lead to it."""

    concerned: Callable[[Command], bool]
    requests: Sequence[Request[Any]]
    lease: str = "10s"
    by_client: bool = False


ASKINGS: dict[str, Asking] = {
    "claim": Asking(of_script("claim"), _works(0.1, 12)),
    "wait and claim": Asking(of_kind(b"BZPOPMIN"), _works(0.1, 1)),
    "extend": Asking(of_script("extend"), _works(2.5, 2), lease="2s"),
    "settle": Asking(of_script("settle"), _works(0.1, 12)),
    "settle for a retry": Asking(of_script("settle"), [work.fail_once.request()]),
    "enqueue": Asking(of_script("enqueue"), _works(0.1, 3), by_client=True),
    # One token goes with the reply: whoever takes again cannot know. Of three, two jobs need two.
    "take": Asking(of_script("take"), [work.take_rare.request(), work.take_rare.request()]),
    "acquire": Asking(of_script("acquire"), [work.take.request() for _ in range(4)]),
}
OF_ARQ: dict[str, Asking] = {
    "claim and settle": Asking(of_kind(b"EXEC"), _works(0.1, 3)),
    "look": Asking(of_kind(b"ZRANGEBYSCORE"), _works(0.1, 1)),
    "enqueue": Asking(of_kind(b"EXEC"), _works(0.1, 3), by_client=True),
}


def lost_replies(stage: Stage) -> Verdict:
    askings = ASKINGS if stage.ours else OF_ARQ
    numbers = range(1, 5) if stage.full else (1,)
    cases = [(name, number, 0) for name in askings for number in numbers]
    return _cut_replies(stage, cases)


def cut_replies(stage: Stage) -> Verdict:
    names = ("claim", "wait and claim", "settle", "extend") if stage.ours else ("claim and settle", "look")
    sizes = (1, 3, 10, 40, 120, 400)
    return _cut_replies(stage, [(name, 1, size) for name in names for size in sizes])


def _cut_replies(stage: Stage, cases: Sequence[tuple[str, int, int]]) -> Verdict:
    verdicts = in_stages(stage, cases, lambda own, case: _cut_reply(own, *case))
    labels = [f"{name}, number {number}, after {after} bytes" for name, number, after in cases]
    return merged(labels, verdicts, kinds=len(cases), replies_cut=sum(figure(verdicts, "cut")))


def _cut_reply(stage: Stage, name: str, number: int, after: int) -> Verdict:
    asking = (ASKINGS if stage.ours else OF_ARQ)[name]
    on = scene(stage)
    for known in SCRIPTS:  # else the first reply is that it is not known
        on.admin.script_load(script(*known).source.decode())
    worker = stage.worker(on.relay.url, modules=MODULES, slots=4, lease=asking.lease).up()
    time.sleep(0.7)  # it is idle, and waits
    cut = on.relay.cut_reply(asking.concerned, after=after, number=number)
    if asking.by_client:
        _enqueue_until_accepted(stage, on.relay.url, asking.requests)
    else:
        if name == "wait and claim":
            on.relay.cut()  # so that it waits anew: the next wait is the one
            time.sleep(0.5)
        stage.acked(*asking.requests)
    settle_down(stage, len(asking.requests), 40)
    breaches = _gone([worker])
    refused = worker.events("JOB_REFUSED")
    breaches += [Breach("I4", f"{len(refused)} outcomes of jobs that were ours were refused")] if refused else []
    if breaches:
        settle_down(stage, len(asking.requests))
    breaches += exits([worker]) + (quiet_enough([worker]) if stage.ours else [])
    return stage.judged(PLAIN, *breaches, cut=int(cut.done.is_set()))


def _enqueue_until_accepted(stage: Stage, url: str, requests: Sequence[Request[Any]]) -> None:
    """As whoever got no answer: the same, under the same keys."""
    for request in requests:
        for _ in range(5):
            try:
                ids = stage.subject.enqueue(url, request)
            except Exception:  # each client's own
                continue
            for job in ids:
                stage.ledger.note("acked", job)
            break


SCENARIOS = (
    Scenario(
        "K2.4",
        "Every connection to Redis is cut each 50 ms for 10 s (`CLIENT KILL`), while three workers run jobs.",
        "No worker exits, and each job is done once.",
        ("I1", "I2", "I3", "I7", "I9"),
        killed_again_and_again,
        deadline_s=120,
    ),
    Scenario(
        "K2.4.bytes",
        "The reply to a claim, a wait, a settlement or an extension is cut after 1 to 400 bytes, and the connection.",
        "Each job is done once.",
        ("I1", "I2", "I3", "I4", "I7", "I9"),
        cut_replies,
        quick=False,
        deadline_s=240,
    ),
    Scenario(
        "K2.5",
        "Live connections are dead and nobody is told, or end on one side, while new ones work; the server's name is "
        "not known, and then has another address. The worker is busy or idle.",
        "Work goes on within 6 s: an idle one that nobody asks for its health may take the minute of its wait.",
        ("I1", "I2", "I3", "I7", "I9"),
        breaks,
        quick=False,
        deadline_s=200,
    ),
    Scenario(
        "K2.6",
        "A worker in a network of its own is cut off for 5, 25 and 120 s, while its job ends; another one is there.",
        "It runs once if the worker is back before its lease lapses; else the other one's outcome is kept.",
        ("I1", "I2", "I3", "I4", "I5", "I7", "I9"),
        cut_off,
        quick=False,
        deadline_s=240,
        needs=(NETWORK_NAMESPACE,),
    ),
    Scenario(
        "K2.12",
        "The n-th reply to a claim, a wait that claims, an extension, a settlement, an enqueue, a taking of tokens or "
        "of a permit is lost, and the connection with it; n = 1 to 4. What was enqueued without an answer is again.",
        "Nothing is done twice: no run, no outcome, no job; one token at most is lost with a reply; nothing that was "
        "done is told as refused.",
        ("I1", "I2", "I3", "I4", "I7", "I9"),
        lost_replies,
        deadline_s=240,
    ),
)
