"""K5: whatever comes to the worker's port, while it works."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign.death import TERMS, settle_down
from tests.campaign.scenario import Scenario, Stage, Verdict
from tests.faults.ledger import Breach
from tests.http.asking import BEARER, HEALTH, KINDS, NO_HTTP, TOKEN, Site, read_all, site_of
from tests.processes import Worker

NO_PORT = "it has no port"
ANSWER_S = 1.0
CLOSED_S = 20.0
"""The longest that a connection may keep us waiting, and a busy machine."""
MEMORY_MB = 24.0
"""More than before; 64 connections may hold a head and a body each."""


def descriptors(worker: Worker) -> int:
    return len(list(Path(f"/proc/{worker.pid}/fd").iterdir()))


def megabytes(worker: Worker) -> float:
    """Of memory that it has."""
    pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@dataclass
class Visitor:
    """Somebody who behaves: asks for health, and has jobs done, all the time."""

    stage: Stage
    site: Site
    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    jobs: int = 0

    def go_on(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            try:
                code = self.site.ask("GET", "/health", headers=()).code
                job = self.site.enqueue("work", 0.05)
            except (OSError, AssertionError, ValueError) as failure:
                self.wrong.append(f"a good request: {failure!r}")
                continue
            self.took_s.append((time.monotonic() - began) / 2)
            self.stage.ledger.note("acked", job)
            self.jobs += 1
            if code != 200:
                self.wrong.append(f"/health answered {code}")

    def breaches(self) -> Iterator[Breach]:
        yield from (Breach("I9", sentence) for sentence in self.wrong)
        if max(self.took_s) > ANSWER_S:
            yield Breach("I9", f"a good request took {max(self.took_s):.1f} s")


@contextmanager
def _visited(stage: Stage, site: Site) -> Iterator[Visitor]:
    """By a good one, for as long as the block lasts."""
    visitor, over = Visitor(stage, site), threading.Event()
    going_on = threading.Thread(target=visitor.go_on, args=(over,))
    going_on.start()
    try:
        yield visitor
    finally:
        over.set()
        going_on.join()


def _under(stage: Stage, harass: Callable[[Site], tuple[Sequence[Breach], dict[str, float | str]]]) -> Verdict:
    """What a worker is like while and after it is harassed in this way."""
    worker = stage.worker(RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN).up()
    site = site_of(worker)
    for _ in range(20):
        stage.ledger.note("acked", site.enqueue("work", 0.0))
    settle_down(stage, 20)
    opened, memory = descriptors(worker), megabytes(worker)
    with _visited(stage, site) as visitor:
        breaches, figures = harass(site)
        most = megabytes(worker)
    settle_down(stage, 20 + visitor.jobs)
    until = time.monotonic() + CLOSED_S
    while (left := descriptors(worker) - opened) > 1 and time.monotonic() < until:
        time.sleep(0.1)
    leaks = [Breach("I15", f"{left} descriptors more")] if left > 1 else []
    grown = max(most, megabytes(worker)) - memory
    fat = [Breach("I15", f"{grown:.1f} MB more memory")] if grown > MEMORY_MB else []
    code = worker.stop()
    ends = [Breach("I9", f"exit code {code}")] if code else []
    told = [Breach("I11", "its token is in the log")] if TOKEN in worker.output() + worker.errors() else []
    return stage.judged(
        TERMS,
        *(*breaches, *visitor.breaches(), *leaks, *fat, *ends, *told),
        **figures,
        good_requests=2 * len(visitor.took_s),
        seconds_to_a_good_answer_longest=max(visitor.took_s),
        megabytes_more=grown,
    )


def slow_peers(stage: Stage) -> Verdict:
    """Five hundred of each kind, or a hundred; in full also ten thousand that ask once, and stay."""
    each = 500 if stage.full else 100

    def harass(site: Site) -> tuple[Sequence[Breach], dict[str, float | str]]:
        with ExitStack() as wires:
            slow = [wires.enter_context(_sent(site, sent)) for sent in KINDS.values() for _ in range(each)]
            asked = [wires.enter_context(_sent(site, HEALTH)) for _ in range(_most(10_000) if stage.full else 500)]
            dripping = [wires.enter_context(_sent(site, b"GET /health HTTP/1.1\r\nX-Slow: ")) for _ in range(20)]
            began = time.monotonic()
            left = [*slow, *asked, *dripping]
            while left and time.monotonic() < began + CLOSED_S:
                for wire in dripping:
                    _drip(wire)
                left = [wire for wire in left if not _closed(wire)]
                time.sleep(0.2)
            stay = [Breach("I15", f"{len(left)} of them are open after {CLOSED_S:g} s")] if left else []
            number = len(slow) + len(asked) + len(dripping)
            return stay, {"connections": number, "seconds_until_all_were_closed": time.monotonic() - began}

    return _under(stage, harass)


def _most(wanted: int) -> int:
    """As many sockets as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - 4000)


def _sent(site: Site, what: bytes) -> socket.socket:
    wire = socket.create_connection(("127.0.0.1", site.port), timeout=10)
    with suppress(OSError):  # it may have given way already
        wire.sendall(what)
    wire.setblocking(False)
    return wire


def _drip(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.send(b"x")


def _closed(wire: socket.socket) -> bool:
    try:
        while wire.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# What is refused.


@dataclass(frozen=True)
class Odd:
    """What nobody should send; `codes` are the answers it may have, 0 for none. `then` is in what comes after that."""

    name: str
    sent: bytes
    codes: Sequence[int]
    half_closed: bool = False
    then: bytes = b""


def _request(method: str, path: str, body: bytes | str = b"", *headers: tuple[str, str]) -> bytes:
    """On a connection of its own."""
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: a",
        "Connection: close",
        *(f"{name}: {text}" for name, text in headers),
    ]
    if data:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


JSON = ("Content-Type", "application/json")
GOOD = json.dumps({"handler": "work", "args": [0.0]})


def _post(body: bytes | str, *headers: tuple[str, str]) -> bytes:
    return _request("POST", "/jobs", body, BEARER, *(headers or (JSON,)))


def _tokens() -> Iterator[Odd]:
    wrong = {
        "none": (),
        "another": ("Bearer wr0ng-token-0123456789-0123456789",),
        "a part of it": (f"Bearer {TOKEN[:-1]}",),
        "no bearer's": (f"Basic {TOKEN}",),
        "without a scheme": (TOKEN,),
        "twice": (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
        "of 7 KB": ("Bearer " + "x" * 7000,),
        "of no text": ("Bearer \u00ff\u00fe",),
    }
    for name, given in wrong.items():
        headers = [("Authorization", value) for value in given]
        yield Odd(f"a token, {name}", _request("POST", "/jobs", GOOD, JSON, *headers), (401, 429))
    yield Odd("a token in the address", _request("POST", f"/jobs?token={TOKEN}", GOOD, JSON), (401, 429))
    yield Odd("from another site", _post(GOOD, JSON, ("Sec-Fetch-Site", "cross-site")), (403,))
    yield Odd("a preflight", _request("OPTIONS", "/jobs", "", ("Access-Control-Request-Method", "POST")), (403,))


def _paths() -> Iterator[Odd]:
    for path in (
        "/../health", "/health/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/health/", "//health", "/HEALTH",
        "/health%00", "/health%0d%0aX-A:%20b", "/health;a=b", "/.env", "/ui/../.git/config", "/wake/../jobs",
    ):  # fmt: skip
        yield Odd(f"GET {path}", _request("GET", path), (400, 404))
    yield Odd("a path of 9 KB", _request("GET", "/" + "a" * 9000), (431,))
    yield Odd("an id of 600 characters", _request("GET", "/jobs/" + "a" * 600, "", BEARER), (400, 422))
    yield Odd("an id of no text", _request("GET", "/jobs/%ff%fe", "", BEARER), (400, 422))
    yield Odd("an id that climbs", _request("GET", "/jobs/..%2f..%2fqueues", "", BEARER), (404,))
    yield Odd("an id with an end of line", _request("DELETE", "/jobs/a%0d%0ab%1b[2J", "", BEARER), (404,))
    yield Odd("a proxy's request", _request("CONNECT", "example.com:443"), (400, 404, 405))
    yield Odd("another method", _request("BREW", "/health"), (400, 405))
    yield Odd("a parameter of the doorbell", _request("POST", "/wake?url=http://169.254.169.254/"), (400,))


def _bodies() -> Iterator[Odd]:
    deep = '{"handler": "work", "args": [' + "[" * 20_000 + "]" * 20_000 + "]}"
    for name, body in {
        "no JSON": "{",
        "an array": "[]",
        "deep": deep,
        "no handler": "{}",
        "no text": "\udcff{}",
        "NaN": '{"handler": NaN}',
        "an unknown field": '{"handler": "work", "url": "http://169.254.169.254/"}',
        "arguments of another kind": '{"handler": "work", "args": "x"}',
        "a priority of 10^9": '{"handler": "work", "args": [0.0], "priority": 1000000000}',
        "a delay below zero": '{"handler": "work", "args": [0.0], "delay": -1}',
        "too many arguments": '{"handler": "work", "args": [0.0, 1, 2]}',
    }.items():
        yield Odd(f"a body, {name}", _post(body.encode(errors="surrogateescape")), (400, 422))
    yield Odd("a handler that is not there", _post('{"handler": "__import__"}'), (400, 404, 422))
    yield Odd("another type of body", _post(GOOD, ("Content-Type", "text/plain")), (415,))
    yield Odd("a packed body", _post(GOOD, JSON, ("Content-Encoding", "gzip")), (415,))
    yield Odd("a body of 1 MB", _post(b'{"handler": "work", "args": ["' + b"x" * 1_000_000 + b'"]}'), (413,))
    yield Odd("a ring of 1 MB", _request("POST", "/wake", b"x" * 1_000_000), (413,))
    endless = _request("POST", "/jobs", b"", BEARER, JSON, ("Transfer-Encoding", "chunked"))
    yield Odd("chunks without an end", endless + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 8, (413,))
    yield Odd("a chunk of no size", endless + b"zz\r\n", (400,))


def _wires() -> Iterator[Odd]:
    kept = HEALTH
    yield from (Odd(f"no HTTP, {number}", sent, (400,)) for number, sent in enumerate(NO_HTTP))
    yield Odd("a head of 100 KB", b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 100_000, (431,))
    yield Odd("garbage after a request", kept + b"\x00\x01garbage\r\n\r\n", (200, 400), then=b" 400 ")
    yield Odd("a request inside a request's body", _smuggled(), (400,))
    yield Odd("fifty requests at once", 49 * kept + _request("GET", "/health"), (200,))
    yield Odd("half closed after its request", kept, (200, 0), half_closed=True)
    yield Odd("half closed in its head", b"GET /health HTTP/1.1\r\nHost:", (400, 0), half_closed=True)
    yield Odd("half closed in its body", _post(GOOD)[:-5], (400, 408, 0), half_closed=True)


def _smuggled() -> bytes:
    return (
        b"POST /wake HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH
    )


ODD = (*_tokens(), *_paths(), *_bodies(), *_wires())


def _refused(site: Site, odd: Odd) -> Breach | None:
    with site.dial() as wire:
        try:
            wire.sendall(odd.sent)
            if odd.half_closed:
                wire.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        answer = read_all(wire)
    code = int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0
    if code not in odd.codes or odd.then not in answer:
        return Breach("I9", f"{odd.name}: answered {code}, not {' or '.join(map(str, odd.codes))}")
    if TOKEN.encode() in answer or b"Traceback" in answer:
        return Breach("I11", f"{odd.name}: the answer tells too much")
    return None


def refusals(stage: Stage) -> Verdict:
    rounds = 20 if stage.full else 3

    def harass(site: Site) -> tuple[Sequence[Breach], dict[str, float | str]]:
        with ThreadPoolExecutor(8) as pool:
            asked = stage.chance.sample(ODD * rounds, len(ODD) * rounds)
            answers = list(pool.map(lambda odd: _refused(site, odd), asked))
        broken = [breach for breach in answers if breach]
        seldom = Counter(str(breach) for breach in broken)
        return [breach for breach in broken if seldom.pop(str(breach), 0)], {
            "kinds": len(ODD),
            "odd_requests": len(asked),
        }

    return _under(stage, harass)


SCENARIOS = (
    Scenario(
        "K5.6",
        "Five hundred connections of each kind: silent ones, half a head, half a body, with a token and without, a "
        "head that drips; and ten thousand that ask once, and stay. Meanwhile somebody asks for health and adds jobs.",
        "Good requests are answered within a second, jobs are done; all of the slow ones are closed within 20 s, no "
        "descriptor is left, and memory stays.",
        ("I1", "I2", "I3", "I7", "I9", "I15"),
        slow_peers,
        deadline_s=180,
        not_for={"arq": NO_PORT},
    ),
    Scenario(
        "K5.7",
        "Everything that is to be refused comes to the port, eight at a time: wrong tokens, paths that climb, bodies "
        "that are too large, too deep or no JSON, chunks without an end, garbage behind a request, halves of requests. "
        "Meanwhile somebody asks for health and adds jobs.",
        "Each has its refusal, and tells no secret; good requests are answered within a second, jobs are done; no "
        "descriptor is left, and memory stays.",
        ("I1", "I2", "I3", "I7", "I9", "I11", "I15"),
        refusals,
        deadline_s=180,
        not_for={"arq": NO_PORT},
    ),
)
