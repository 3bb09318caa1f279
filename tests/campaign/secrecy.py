"""K4.10: secrets and arguments are looked for in all that leaves a worker, while handlers do their worst with them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from redis import Redis

from runtime import Request
from runtime.adapters.redis import keys
from runtime.core.spec import DEFAULT_QUEUE
from tests.campaign.canaries import PASSWORD, PLAIN_PASSWORD, PLANTED, leaks
from tests.campaign.inputs import told
from tests.campaign.scenario import Scenario, Stage, Verdict
from tests.e2e import leaky
from tests.faults.ledger import Breach
from tests.http.asking import JSON, Site, site_of
from tests.processes import Worker, command
from tests.standins.process import Running, running

MODULE = "tests.e2e.leaky"
BEARER = ("Authorization", f"Bearer {PLANTED['RUNTIME_TOKEN']}")
SAYING = (
    leaky.says_it,
    leaky.says_it_across_the_cut,
    leaky.too_slow,
    leaky.logs_it,
    leaky.gives_up,
    leaky.returns_it,
)
ENDED = {"dead": 5, "completed": 2}
"""With the one that cannot be read."""
ASKED_FOR = leaky.returns_it.name
"""Its result is its argument, and may be shown to who asks for it."""


def argument_of(handler: str) -> str:
    return f"canary-argument-of-{handler}!"


def no_canary_gets_out(stage: Stage) -> Verdict:
    password = PASSWORD if stage.ours else PLAIN_PASSWORD
    with Redis.from_url(stage.url) as redis:
        redis.config_set("requirepass", password)
    url = stage.server.tcp_url.replace("redis://", f"redis://:{quote(password, safe='')}@")
    arguments = {handler.name: argument_of(handler.name) for handler in SAYING}
    requests: list[Request[Any]] = [handler.request(arguments[handler.name]) for handler in SAYING]
    with running("otlp") as collector:
        worker = stage.worker(url, modules=(MODULE,), **_settings(stage, collector)).up()
        ids = dict(zip(arguments, stage.subject.enqueue(url, *requests), strict=True))
        with Redis.from_url(url) as redis:
            redis.set(f"{keys.JOB}undecodable", f"\x80\x04 {arguments['gives_up']}".encode())
            redis.zadd(DEFAULT_QUEUE, {"undecodable": 1})
        looks = _ours(stage, worker, url, ids) if stage.ours else _arqs(url, len(ids) + 1)
        shown = {name: (text, allowed) for name, text, allowed in looks}
        code = worker.stop()
        shown["stdout and stderr"] = worker.output() + worker.errors(), ()
        sent = collector.log()["requests"]
        shown["the spans"] = "".join(request["raw"] for request in sent), ()
    everything = {*arguments.values(), "short1"}
    breaches = [
        *(breach for where, (text, known) in shown.items() for breach in leaks(where, text, everything - {*known})),
        *(_as_expected(worker, sent, code) if stage.ours else ()),
    ]
    return told(breaches, looked_at=len(shown), spans_sent=len(sent))


def _settings(stage: Stage, collector: Running) -> dict[str, Any]:
    if not stage.ours:
        return {}
    return {
        "LOG_LEVEL": "debug",
        "RUNTIME_HTTP": "on",
        "PORT": 0,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={PLANTED['RUNTIME_TEST_SECRET']}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


Look = tuple[str, str, tuple[str, ...]]
"""What was looked at, its text, and the arguments that it may show."""


def _ours(stage: Stage, worker: Worker, url: str, ids: Mapping[str, str]) -> Iterator[Look]:
    worker.wait_for("JOB_DEAD", ENDED["dead"])
    worker.wait_for("JOB_COMPLETED", ENDED["completed"])
    yield from _pages(site_of(worker), ids)
    settings: dict[str, Any] = {"REDIS_URL": url, **PLANTED}
    yield from _commands(settings, ids)
    yield from _results(url, ids)
    stage.server.kill()
    worker.wait_for("REDIS_AWAY")
    for asked in ("dlq list", "inspect", "doctor"):
        done = command(*asked.split(), **settings)
        yield f"runtime {asked} without Redis", done.stdout + done.stderr, ()


def _pages(site: Site, ids: Mapping[str, str]) -> Iterator[Look]:
    for path in ("/", "/ui", "/livez", "/readyz", "/health", "/metrics", "/queues", "/jobs/undecodable", "/nowhere"):
        for headers in ((), (BEARER,)):
            answer = site.ask("GET", path, headers=headers)
            yield f"GET {path}{' with the token' * bool(headers)}", _whole(answer), ()
    for name, job_id in ids.items():
        allowed = (argument_of(name),) if name in (ASKED_FOR, "logs_it") else ()
        yield f"GET /jobs/ of {name}", _whole(site.ask("GET", f"/jobs/{job_id}", headers=(BEARER,))), allowed
    order = {"handler": ASKED_FOR, "args": [argument_of("says_it"), 2, 3]}
    yield "POST /jobs of a wrong call", _whole(site.ask("POST", "/jobs", order, (BEARER, JSON))), ()
    wrong = ("Authorization", f"Bearer {PLANTED['OPENAI_API_KEY']}")
    yield "GET /queues with a wrong token", _whole(site.ask("GET", "/queues", headers=(wrong,))), ()


def _whole(answer: Any) -> str:
    return f"{answer.headers.as_string()}{answer.body.decode(errors='replace')}"


def _commands(settings: Mapping[str, Any], ids: Mapping[str, str]) -> Iterator[Look]:
    for asked in ("dlq list", "inspect", "inspect --json", "doctor", "doctor --json", "limit list", "handlers leaky"):
        done = command(*asked.replace("leaky", MODULE).split(), **settings)
        yield f"runtime {asked}", done.stdout + done.stderr, ()
    for name, job_id in ids.items():
        own = (argument_of(name),)
        done = command("job", job_id, **settings)
        yield f"runtime job of {name}", done.stdout + done.stderr, own
    done = command("dlq", "show", ids["says_it"], **settings)
    yield "runtime dlq show", done.stdout + done.stderr, (argument_of("says_it"),)


def _results(url: str, ids: Mapping[str, str]) -> Iterator[Look]:
    """As they are in the store. arq's form has the job's own arguments in it."""
    with Redis.from_url(url) as redis:
        for name, job_id in ids.items():
            data = redis.get(keys.RESULT + job_id) or b""
            yield f"the result of {name}", data.decode("latin-1"), (argument_of(name),)


def _arqs(url: str, count: int) -> Iterator[Look]:
    until = time.monotonic() + 15
    with Redis.from_url(url) as redis:
        while len(redis.keys(f"{keys.RESULT}*")) < count and time.monotonic() < until:
            time.sleep(0.1)
        yield (
            "the results",
            "".join((redis.get(name) or b"").decode("latin-1") for name in redis.keys(f"{keys.RESULT}*")),
            (),
        )


def _as_expected(worker: Worker, sent: list[dict[str, Any]], code: int) -> Iterator[Breach]:
    """Else there was nothing in which a secret could have been."""
    if code != 0 or worker.errors():
        yield Breach("I9", f"exit code {code}, {worker.errors()[:200]!a}")
    if not any(request.get("spans") for request in sent):
        yield Breach("procedure", "no span was sent")
    if "[redacted]" not in worker.output() or len(worker.events("UNCAUGHT")) != 1:
        yield Breach("procedure", "the handlers have not said what they should")


SCENARIOS = (
    Scenario(
        "K4.10",
        "API keys, a token and the password of Redis are in the environment; handlers raise, log, warn of and return "
        "them, and their arguments. They are looked for, in every spelling, in stdout, stderr, spans, all pages, what "
        "the commands print (with Redis and without), and the results of other jobs. arq: in its log, and the results.",
        "None is found; an argument only where somebody asks for that very job.",
        ("I11",),
        no_canary_gets_out,
        deadline_s=120,
    ),
)
