"""K4.1 to K4.5: what strangers put into a queue, with ten good jobs between it."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from redis import Redis

from runtime import Request
from runtime.adapters.redis import keys, wire
from runtime.adapters.redis.codecs import Undecodable
from runtime.core.errors import OptionInvalid
from runtime.core.spec import DEFAULT_QUEUE
from tests.arq_compat.test_hostile import IDS, SCORES
from tests.campaign import audited
from tests.campaign.canaries import PLANTED
from tests.campaign.scenario import Broken, Held, Scenario, Stage, Verdict, figure, in_stages, merged
from tests.faults import campaign, jobs
from tests.faults.ledger import Breach, Found, judge
from tests.http.asking import Site, site_of
from tests.processes import Worker, wait_until
from tests.unit.test_codecs import NO_BODIES, all_samples
from tests.unit.test_pickles import BOMBS, HOSTILE, mutations

MB = 2**20
DAY_MS = 86_400_000
GOOD = 10
SOON_S = 10.0
"""Good jobs are done so soon, whatever is beside them."""
MOST_GROWN_MB = 64
"""By one body, or by many small ones. Large ones that come together meet in as many slots."""
MOST_GROWN_TOGETHER_MB = 128
LARGE = 300_000
KINDEST = "import by name alone"
"""It opens a browser where it is obeyed; arq is spared it."""
SPARED = ["prlimit", f"--as={3 << 30}"]
"""arq's worker gets no more memory than that: it would take all there is."""

Bodies = Mapping[str, bytes]


def body(**fields: object) -> bytes:
    """As stock arq writes it: a call that runs, unless `fields` say otherwise."""
    return pickle.dumps({"t": None, "f": "work_at_once", "a": (), "k": {}, "et": 1_700_000_000_000, **fields})


def put(stage: Stage, bodies: Mapping[Any, bytes], scores: Mapping[Any, float] | None = None) -> None:
    """As a stranger with a Redis client does, all in one transaction. Their score is now, unless it is said."""
    with Redis.from_url(stage.url) as redis:
        now = int(time.time() * 1000)
        pipe = redis.pipeline()
        for name, data in bodies.items():
            pipe.set(keys.JOB.encode() + _raw(name), data, px=DAY_MS)
            pipe.zadd(DEFAULT_QUEUE, {_raw(name): (scores or {}).get(name, now)})
        pipe.execute()


def _raw(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


class Beside:
    """Ten good jobs, and what is done while they run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._good: list[str] = []
        self.took_s = 0.0

    def good(self, count: int = GOOD // 2) -> None:
        self._good += self._stage.acked(*(jobs.work.request(0.05) for _ in range(count)))

    def await_good(self) -> None:
        """Until they have ended; for no longer than they may take."""
        began = time.monotonic()
        while not self._ended() and time.monotonic() - began < SOON_S:
            time.sleep(0.05)
        self.took_s = time.monotonic() - began

    def _ended(self) -> bool:
        found = self._found()
        return set(found.results) == set(self._good)

    def breaches(self) -> Iterator[Breach]:
        """Of the promises to the good ones, and to the worker."""
        mine = {*self._good, ""}
        lines = [line for line in self._stage.ledger.lines() if line.job in mine]
        found = self._found()
        yield from judge(lines, found)
        if late := len(self._good) - len(found.results):
            yield Breach("I8", f"{late} of {len(self._good)} good jobs are not done after {SOON_S:g} s")
        for worker in self._stage.workers:
            if not worker.running:
                last = (worker.errors().strip() or "it said nothing").splitlines()[-1]
                yield Breach("I9", f"the worker ended with exit code {worker.wait()}: {last[:200]}")
            elif self._stage.ours and worker.stop() != 0:
                yield Breach("I9", f"exit code {worker.wait()}")
        yield from self._stage.tracebacks()

    def _found(self) -> Found:
        with Redis.from_url(self._stage.url) as redis:
            raw = [redis.get(keys.RESULT + job) for job in self._good]
            left = {job for job in self._good if redis.exists(keys.JOB + job)}
        results = {job: wire.decode_result(data) for job, data in zip(self._good, raw, strict=True) if data}
        return Found(
            results={job: result.ok for job, result in results.items()},
            values={job: result.value for job, result in results.items() if result.ok},
            completed=None,
            waiting=left,
            at=time.monotonic(),
        )


def told(breaches: Sequence[Breach], **figures: float | str) -> Verdict:
    return Broken(breaches, figures) if breaches else Held(figures)


# Bodies


def feed(stage: Stage, *batches: Bodies, calls: bool = False, most_mb: int = MOST_GROWN_MB) -> Verdict:
    """A worker that watches itself meets these bodies, one batch after another.

    With `calls` some may be calls; else each is to be a dead letter.
    """
    bodies = {name: data for batch in batches for name, data in batch.items()}
    with Redis.from_url(stage.url) as redis:
        redis.config_set("notify-keyspace-events", "K$")  # so that nobody has to look for what strangers enqueue
    events = stage.folder / "events"
    settings: dict[str, Any] = {audited.EVENTS: events, "inside": [] if stage.ours else SPARED}
    worker = stage.worker(modules=(campaign.MODULE, audited.MODULE), **settings).up()
    _warm_up(stage)
    beside = Beside(stage)
    beside.good()
    began, calm_kb, peaks_kb = time.monotonic(), _memory_kb(worker, "VmRSS"), []
    for batch in batches:
        before_kb = _peak_from_now(worker)
        put(stage, batch)
        if batch is batches[-1]:
            beside.good()
            beside.await_good()
        _fates(stage, batch, 60 if stage.ours else 1)
        peaks_kb.append(_memory_kb(worker, "VmHWM") - before_kb)
    took_s = time.monotonic() - began
    kept_mb, most_more_mb = (_memory_kb(worker, "VmRSS") - calm_kb) / 1024, max(peaks_kb) / 1024
    fates = _fates(stage, bodies, 0)
    did = events.read_text().splitlines() if events.exists() else []
    breaches = [
        *beside.breaches(),
        *(Breach("I16", f"a body made the worker do this: {line}") for line in dict.fromkeys(did)),
        *([Breach("I15", f"{most_more_mb:.0f} MB more for some bodies")] if most_more_mb > most_mb else []),
        *([Breach("I15", f"{kept_mb:.0f} MB more afterwards")] if kept_mb > most_mb else []),
        *(_kept(stage, bodies, fates, calls=calls) if stage.ours else ()),
    ]
    kinds = {kind: list(fates.values()).count(kind) for kind in sorted({*fates.values()})}
    return told(
        breaches,
        bodies=len(bodies),
        size_mb=sum(map(len, bodies.values())) / MB,
        fates=" ".join(f"{count} {kind}" for kind, count in kinds.items()),
        good_jobs_done_after_s=beside.took_s,
        all_met_after_s=took_s,
        most_memory_more_mb=most_more_mb,
        memory_kept_mb=kept_mb,
    )


def _warm_up(stage: Stage) -> None:
    """What a worker imports and compiles at its first job of a kind is no body's doing."""
    names = ("protocol 1", "a JSON list", "a MessagePack list", "numbers in k", "an extension")
    put(
        stage,
        {"of a handler that nobody has": body(f="nobody"), **{f"first {name}": NO_BODIES[name] for name in names}},
    )
    put(stage, {"first call": body(), "first wrong call": body(a=("too many",))})
    stage.acked(jobs.work.request(0.0))
    wait_until(lambda: stage.ended() >= len(names) + 3, what="the worker is warm")
    before = stage.ended()
    stage.acked(audited.watch.request())
    wait_until(lambda: stage.ended() > before)


def _fates(stage: Stage, bodies: Bodies, patience_s: float) -> dict[str, str]:
    """What became of each: a letter's reason, `done`, `failed`, `unknown-handler` (it waits for one), `waiting`."""
    until = time.monotonic() + patience_s
    while True:
        with Redis.from_url(stage.url) as redis:
            put_off = {raw.decode() for raw in redis.hkeys(keys.unknown(DEFAULT_QUEUE))}
            fates = {name: _fate(redis, name, put_off) for name in bodies}
        if "waiting" not in fates.values() or time.monotonic() > until:
            return fates
        time.sleep(0.05)


def _fate(redis: Any, name: str, put_off: set[str]) -> str:
    if letter := redis.hget(keys.LETTER + name, "letter"):
        return str(json.loads(letter)["reason"])
    if name in put_off:
        return "unknown-handler"
    if data := redis.get(keys.RESULT + name):
        try:
            return "done" if wire.decode_result(data).ok else "failed"
        except Undecodable:
            return "unreadable-result"
    return "waiting"


def _kept(stage: Stage, bodies: Bodies, fates: Mapping[str, str], *, calls: bool) -> Iterator[Breach]:
    """Nothing is deleted unread: each body that is none is a dead letter that has it, and says why."""
    allowed = ("undecodable", *(("done", "permanent", "exhausted", "unknown-handler") if calls else ()))
    with Redis.from_url(stage.url) as redis:
        for name, data in bodies.items():
            if fates[name] not in allowed:
                yield Breach("I1", f"the body {name!r}: {fates[name]}")
            elif fates[name] == "undecodable":
                key = keys.LETTER + name
                kept = redis.hget(key, "body") or redis.get(f"{key}:original") or b""
                text = json.loads(redis.hget(key, "letter") or b"{}")["text"]
                if kept != data:
                    yield Breach("I1", f"the body {name!r} is not what its letter keeps")
                if not 10 < len(text) < 200:
                    yield Breach("I1", f"the body {name!r}: its letter says {text!r}")


def _memory_kb(worker: Worker, field: str) -> int:
    """0 of a worker that has ended."""
    if not worker.running:
        return 0
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return int(next((line for line in lines if line.startswith(field)), "none 0").split()[1])


def _peak_from_now(worker: Worker) -> int:
    """Forget the most that the worker has had so far; what it has now, in kB."""
    if worker.running:
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")
    return _memory_kb(worker, "VmRSS")


def malicious(stage: Stage) -> Verdict:
    return feed(stage, {name: data for name, data in HOSTILE.items() if stage.ours or name != KINDEST})


def malformed(stage: Stage) -> Verdict:
    count = 2000 if stage.full else 500
    bodies = mutations([*all_samples(), *[body()] * 8], seed=stage.seed, count=count)
    return feed(stage, {f"mutation {n}": data for n, data in enumerate(bodies)}, calls=True)


def oversized(stage: Stage) -> Verdict:
    large = {
        "50 MB of pickle": b"\x80\x04" + bytes(50 * MB),
        "50 MB of JSON": b'{"f": "' + b"x" * (50 * MB) + b'"}',
        "200 000 keys": body(k={f"key-{n}": n for n in range(200_000)}),
        "200 000 keys in JSON": json.dumps({"f": "x", "k": {f"key-{n}": n for n in range(200_000)}}).encode(),
        "200 000 keys in MessagePack": msgspec.msgpack.encode({"k": {f"key-{n}": n for n in range(200_000)}}),
    }
    bodies = {**BOMBS, **NO_BODIES, **large}
    alone = [{name: data} for name, data in bodies.items() if len(data) > LARGE]
    small = {name: data for name, data in bodies.items() if len(data) <= LARGE}
    cases = {
        "one after another": lambda own: feed(own, *alone, small),
        "all at once": lambda own: feed(own, bodies, most_mb=MOST_GROWN_TOGETHER_MB),
    }
    verdicts = in_stages(stage, cases.values(), lambda own, run: run(own))
    most_mb = figure(verdicts, "most_memory_more_mb")
    names = ("most_memory_more_for_one_mb", "most_memory_more_for_all_mb")
    return merged(cases, verdicts, bodies=len(bodies), **dict(zip(names, most_mb, strict=False)))


# Ids

MARKUP = [b"<script>alert(1)</script>", b"<img src=x onerror=alert(1)>", b"a\r\n\r\n<html>", b"\x9b31m"]
BEARER = [("Authorization", f"Bearer {PLANTED['RUNTIME_TOKEN']}")]
BAD_SIGNS = ("<script", "<img", "<html")


def ugly_ids(stage: Stage) -> Verdict:
    ids = [*IDS, *MARKUP]
    settings: dict[str, Any] = (
        {
            "RUNTIME_HTTP": "on",
            "PORT": 0,
        }
        if stage.ours
        else {}
    )
    worker = stage.worker(**settings).up()
    beside = Beside(stage)
    beside.good()
    put(stage, {job_id: body() for job_id in ids})
    put(stage, {b"fails " + job_id: body(a=("too many",)) for job_id in ids})
    beside.good()
    beside.await_good()
    ended = _ended_ids(stage, [*ids, *(b"fails " + job_id for job_id in ids)])
    wrong = list(_shown(site_of(worker), ids)) if stage.ours else []
    breaches = [
        *(Breach("I1", f"the id {job_id[:40]!a} has not ended") for job_id, over in ended.items() if not over),
        *beside.breaches(),
        *wrong,
        *(_logged(worker) if stage.ours else ()),
    ]
    return told(breaches, ids=len(ended), ended=sum(ended.values()), good_jobs_done_after_s=beside.took_s)


def _ended_ids(stage: Stage, ids: Sequence[bytes]) -> dict[bytes, bool]:
    until = time.monotonic() + SOON_S
    while True:
        with Redis.from_url(stage.url) as redis:
            ended = {job_id: bool(redis.exists(keys.RESULT.encode() + job_id)) for job_id in ids}
        if all(ended.values()) or time.monotonic() > until:
            return ended
        time.sleep(0.1)


def _shown(site: Site, ids: Sequence[bytes]) -> Iterator[Breach]:
    """Each id over HTTP: it is told in JSON that nobody takes for anything else, and no header comes out of it."""
    for raw in [*ids, *(b"fails " + job_id for job_id in ids)]:
        answer = site.ask("GET", f"/jobs/{quote(raw[:1024], safe='')}", headers=BEARER)
        wanted = _as_text(raw)
        if wanted is None or not 1 <= len(wanted) <= 512:
            if answer.code not in (400, 404, 422):
                yield Breach("I16", f"the id {raw[:40]!a}: HTTP answers {answer.code}")
            continue
        state = answer.json.get("status") if answer.code == 200 else answer.code
        if answer.code != 200 or answer.json["jobId"] != wanted:
            yield Breach("I16", f"the id {raw[:40]!a}: HTTP answers {state}, {answer.body[:80]!a}")
        if answer.headers["X-Injected"] or not answer.headers["Content-Type"].startswith("application/json"):
            yield Breach("I16", f"the id {raw[:40]!a} comes out as more than a text: {answer.headers.as_string()!a}")
        if answer.headers["X-Content-Type-Options"] != "nosniff":
            yield Breach("I16", f"the id {raw[:40]!a}: a browser may take the answer for HTML")
    for path in ("/", "/ui", "/health", "/queues", "/metrics"):
        answer = site.ask("GET", path, headers=BEARER)
        text = answer.body.decode(errors="replace")
        if "json" not in answer.headers.get("Content-Type", "") and any(sign in text for sign in BAD_SIGNS):
            yield Breach("I16", f"{path} shows an id as HTML")


def _as_text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _logged(worker: Worker) -> Iterator[Breach]:
    """Each line is one JSON object, and nothing in it would move a terminal."""
    for line in worker.output().splitlines():
        try:
            whole = isinstance(json.loads(line), dict) and line.isprintable()
        except ValueError:
            whole = False
        if not whole:
            yield Breach("I16", f"a line of the log that is none: {line[:100]!a}")


# Scores and delays

NEVER = {"never": float("inf"), "hardly": 1e300}
REFUSED: tuple[Mapping[str, Any], ...] = (
    *({"delay": span} for span in (-1, float("nan"), float("inf"), float("-inf"), 1e18, True, "soon", "-5s", b"1")),
    *({"expires": span} for span in (-1, float("nan"), float("inf"), 1e18)),
    *({"at": moment} for moment in (0, "2027-01-31T09:30:00Z", "now")),
    *({"priority": number} for number in (-1, 1001, 0.5, True, float("nan"))),
)


def odd_scores(stage: Stage) -> Verdict:
    stage.worker().up()
    beside = Beside(stage)
    beside.good()
    now = time.time() * 1000
    scores = {f"odd {score!r}": score for score in SCORES} | NEVER
    put(stage, {name: body() for name in scores}, scores)
    with Redis.from_url(stage.url) as redis:
        redis.zadd(DEFAULT_QUEUE, {"orphan": now})
    beside.good()
    beside.await_good()
    due = [name for name, score in scores.items() if score < now]
    over = _ended_ids(stage, [name.encode() for name in (*due, "orphan")])
    started = {line.job for line in stage.ledger.starts()}
    breaches = [
        *(Breach("I1", f"{name.decode()}: due, and not ended") for name, ended in over.items() if not ended),
        *(Breach("I3", f"{name}: not due, and started") for name in scores if name not in due and name in started),
        *(_refused(stage) if stage.ours else ()),
        *beside.breaches(),
    ]
    return told(breaches, scores=len(scores), due=len(due), options_refused=len(REFUSED) if stage.ours else 0)


def _refused(stage: Stage) -> Iterator[Breach]:
    """Our client says no before anything is written."""
    with Redis.from_url(stage.url) as redis:
        before = {*redis.keys("*job*")}
        for options in REFUSED:
            try:
                stage.subject.enqueue(stage.url, _request(options))
                yield Breach("I1", f"our client took {dict(options)!r}")
            except OptionInvalid:
                pass
        if {*redis.keys("*job*")} - before:
            yield Breach("I1", "our client wrote a job that it refused")


def _request(options: Mapping[str, Any]) -> Request[int]:
    return jobs.work_at_once.options(**options).request()


SCENARIOS = (
    Scenario(
        "K4.1",
        "Some 140 bodies that name what is to be imported, called, built or opened: every opcode that can, chains of "
        "getattr, extension codes, persistent ids, state for admitted classes. Ten good jobs are between them. The "
        "worker's process notes every audit event of Python's.",
        "Nothing is imported, opened or run; each body is a dead letter that keeps it; the good jobs are done.",
        ("I1", "I3", "I8", "I9", "I15", "I16"),
        malicious,
        deadline_s=120,
    ),
    Scenario(
        "K4.2",
        "2,000 bodies in pickle, JSON, MessagePack with bits turned, ends cut off, pieces of others inside (500 in the "
        "quick run), with ten good jobs.",
        "Each is a dead letter that keeps it, or still a call; the worker has at most 64 MB more.",
        ("I1", "I3", "I8", "I9", "I15", "I16"),
        malformed,
        seeds=3,
        deadline_s=180,
    ),
    Scenario(
        "K4.3",
        "Bodies that are small and become huge, or are huge: 2^27 shared lists, 100,000 levels, a memo index of 2^27 "
        "in 9 bytes, an integer of 1 MB, 200,000 keys, 50 MB; with ten good jobs. arq's worker is given 3 GB at most.",
        "Each is a dead letter that keeps it; one of them costs the worker 64 MB at most, all at once 128 MB; the good "
        "jobs are done.",
        ("I1", "I3", "I8", "I9", "I15", "I16"),
        oversized,
        deadline_s=180,
    ),
    Scenario(
        "K4.4",
        "Ids that are no UTF-8, empty, of 1 MB, with line ends, NUL, escape codes, marks of direction, globs, paths, "
        "markup; a job of each that runs, and one that fails; ten good jobs.",
        "Each ends; a line of the log stays one line; over HTTP each is told as JSON and nothing else.",
        ("I1", "I3", "I8", "I9", "I16"),
        ugly_ids,
    ),
    Scenario(
        "K4.5",
        "Jobs with the scores 0, -inf, -1e300, fractions, 2^53, inf, and an id without a body; ten good jobs. Our "
        "client is asked for delays and moments that are none.",
        "What is due runs, what is not waits, the id without a body is told of; our client refuses and writes nothing.",
        ("I1", "I3", "I8", "I9"),
        odd_scores,
    ),
)
