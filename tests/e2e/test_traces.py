"""One trace for each job: real producers, real workers, and a collector that decodes what it is sent."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Client
from runtime.adapters.telemetry.traces import SCHEMA
from tests.e2e.traced import (
    QUEUE,
    crash_once,
    fail_twice,
    fetch,
    linger_once,
    modules,
    nothing,
    own_span,
    snooze_once,
    use,
)
from tests.processes import ROOT, Worker, command, enqueue, environment, wait_until
from tests.standins.process import Running, running

SECRET = "an-argument-that-nobody-may-see"
KEY = "a-key-of-the-collector"
UPSTREAM = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Running]:
    with running("otlp") as standin:
        yield standin


def traced(url: str, endpoint: str, **settings: Any) -> Worker:
    return Worker(
        "tests.e2e.traced",
        redis=url,
        WORKER_ID="w1",
        RUNTIME_LEASE="1s",
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{KEY}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        **settings,
    )


def produce(url: str, endpoint: str, name: str, arguments: list[Any], *more: str) -> str:
    """Enqueue as a program that has set OpenTelemetry up by itself; the job's id."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "shop"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.traced", url, name, json.dumps(arguments), *more],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def enqueue_as_arq(url: str, name: str, *arguments: Any) -> str:
    from arq.connections import RedisSettings, create_pool

    async def add() -> str:
        pool = await create_pool(RedisSettings.from_dsn(url))
        try:
            job = await pool.enqueue_job(name, *arguments, _queue_name=QUEUE)
            assert job is not None
            return job.job_id
        finally:
            await pool.aclose()

    return asyncio.run(add())


def spans(collector: Running) -> list[dict[str, Any]]:
    """What the collector was sent, in the order in which it began."""
    found = [span for request in collector.log()["requests"] for span in request.get("spans", [])]
    return sorted(found, key=lambda span: span["start_ns"])


def named(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in found if span["name"] == name]


def one(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (span,) = named(found, name)
    return span


def awaited(collector: Running, **counts: int) -> list[dict[str, Any]]:
    """The spans, once there are so many of each operation."""

    def arrived() -> list[dict[str, Any]]:
        found = spans(collector)
        enough = all(len(named(found, f"{what} {QUEUE}")) >= count for what, count in counts.items())
        return found if enough else []

    return wait_until(arrived, what=f"the collector has {counts}")


def test_a_job_is_one_trace_from_its_enqueue_to_the_answer_of_the_store(tcp_url: str, collector: Running) -> None:
    with running("web") as web, traced(tcp_url, collector.url, OTEL_SERVICE_NAME="workers") as worker:
        worker.up()
        job_id = produce(tcp_url, collector.url, "fetch", [web.url, SECRET])
        found = awaited(collector, enqueue=1, settle=1)
        worker.stop()
        (request,) = web.log()["requests"]
    enqueued, process, settle = (one(found, f"{what} {QUEUE}") for what in ("enqueue", "process", "settle"))
    step, get = one(found, "once get"), one(found, "GET")
    assert {span["trace_id"] for span in found} == {enqueued["trace_id"]}
    assert [enqueued["parent"], process["parent"], step["parent"], get["parent"], settle["parent"]] == [
        *("", enqueued["span_id"], process["span_id"], step["span_id"], process["span_id"])
    ]
    assert [span["kind"] for span in (enqueued, process, step, get, settle)] == [
        *("PRODUCER", "CONSUMER", "INTERNAL", "CLIENT", "CLIENT")
    ]
    assert request["traceparent"] == f"00-{get['trace_id']}-{get['span_id']}-03"  # sampled, random
    assert request["query"] == {"key": SECRET}
    assert settle["start_ns"] >= process["start_ns"]
    assert {span["status"] for span in found} == {"UNSET"}
    assert {span["schema"] for span in found} == {SCHEMA}
    assert not any(span["links"] or span["events"] for span in found)

    host, _, port = tcp_url.removeprefix("redis://").partition(":")
    common = {
        "messaging.system": "arq",
        "messaging.destination.name": QUEUE,
        "messaging.message.id": job_id,
        "server.address": host,
        "server.port": int(port),
    }
    for span, what, kind in (
        (enqueued, "enqueue", "send"),
        (process, "process", "process"),
        (settle, "settle", "settle"),
    ):
        operation = {"messaging.operation.name": what, "messaging.operation.type": kind}
        assert {**common, **operation}.items() <= span["attributes"].items()
    about = process["attributes"]
    assert 0 <= about.pop("runtime.queue_wait_s") < 60
    assert {
        "messaging.client.id": "w1",
        "code.function.name": "tests.e2e.traced.fetch",
        "runtime.handler": "fetch",
        "runtime.attempt": 1,
        "runtime.max_attempts": 3,
        "runtime.priority": 7,
        "runtime.snoozes": 0,
        "runtime.outcome": "done",
    }.items() <= about.items()
    assert settle["attributes"]["runtime.verdict"] == "settled"
    assert enqueued["attributes"]["runtime.created"] is True
    assert {
        "http.request.method": "GET",
        "url.full": f"{web.url}/things/1",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
    }.items() <= get["attributes"].items()
    assert process["resource"]["service.name"] == "workers"
    assert process["resource"]["service.instance.id"] == "w1"
    assert enqueued["resource"]["service.name"] == "shop"


def test_the_wait_for_a_pool_is_a_span_of_the_job_and_its_use_and_the_opening_are_not(
    tcp_url: str, collector: Running
) -> None:
    with traced(tcp_url, collector.url).up() as worker:
        enqueue(tcp_url, use.request())
        found = awaited(collector, settle=1)
        (opening,) = worker.events("some.library") or [line for line in worker.lines() if line["message"] == "opening"]
        worker.stop()
    process, wait = one(found, f"process {QUEUE}"), one(found, "pool things")
    assert (wait["parent"], wait["kind"], wait["status"]) == (process["span_id"], "INTERNAL", "UNSET")
    assert 0.2e9 <= wait["end_ns"] - wait["start_ns"] <= process["end_ns"] - wait["start_ns"] - 0.2e9
    assert not {"job_id", "trace_id"} & opening.keys(), "the thing outlives the job that asked for it first"


def test_no_secret_is_in_a_span_or_a_line(tcp_url: str, collector: Running) -> None:
    with running("web") as web, traced(tcp_url, collector.url) as worker:
        worker.up()
        produce(tcp_url, collector.url, "fetch", [web.url, SECRET])
        web.fault({"status": 500})
        produce(tcp_url, collector.url, "fetch", [web.url, SECRET])
        enqueue(tcp_url, fail_twice.request())
        found = awaited(collector, settle=5)
        worker.stop()
        said = worker.output() + worker.errors()
    requests = collector.log()["requests"]
    assert f"Bearer {KEY}" in [request["authorization"] for request in requests]
    sent = "".join(request["raw"] for request in requests)
    for secret in (SECRET, KEY, "a text with a secret"):
        assert secret not in sent, secret
    assert KEY not in said
    assert not any(span["status_text"] for span in found)
    assert [span["attributes"].get("error.type") for span in named(found, "GET")].count("500") == 1


def test_every_attempt_is_in_the_trace_and_has_a_link_to_the_one_before(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        produce(tcp_url, collector.url, "fail_twice", [])
        found = awaited(collector, enqueue=1, settle=3)
        worker.stop()
    enqueued, runs = one(found, f"enqueue {QUEUE}"), named(found, f"process {QUEUE}")
    assert {span["trace_id"] for span in found} == {enqueued["trace_id"]}
    assert [run["parent"] for run in runs] == 3 * [enqueued["span_id"]]
    assert [run["links"] for run in runs] == [[], [runs[0]["span_id"]], [runs[1]["span_id"]]]
    assert [run["status"] for run in runs] == ["ERROR", "ERROR", "UNSET"]
    assert [run["attributes"].get("error.type") for run in runs] == ["ValueError", "ValueError", None]
    assert [run["attributes"]["runtime.attempt"] for run in runs] == [1, 2, 3]
    assert [run["attributes"]["runtime.outcome"] for run in runs] == ["retry", "retry", "done"]


def test_a_snoozed_job_is_no_error_and_goes_on_in_its_trace(tcp_url: str, collector: Running, tmp_path: Path) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        produce(tcp_url, collector.url, "snooze_once", [str(tmp_path / "mark")])
        found = awaited(collector, settle=2, enqueue=1)
        worker.stop()
    first, second = named(found, f"process {QUEUE}")
    assert first["trace_id"] == second["trace_id"] == one(found, f"enqueue {QUEUE}")["trace_id"]
    assert second["links"] == [first["span_id"]]
    assert [first["status"], second["status"]] == ["UNSET", "UNSET"]
    assert first["attributes"]["runtime.outcome"] == "snooze"
    assert [run["attributes"]["runtime.snoozes"] for run in (first, second)] == [0, 1]


def test_a_job_that_is_given_back_at_shutdown_goes_on_in_its_trace(
    tcp_url: str, collector: Running, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    with traced(tcp_url, collector.url, GRACEFUL_SHUTDOWN_TIMEOUT_MS="0") as worker:
        worker.up()
        produce(tcp_url, collector.url, "linger_once", [str(mark)])
        wait_until(mark.exists)
        assert worker.stop() == 0
        worker.up()
        found = awaited(collector, enqueue=1, settle=2)
        worker.stop()
    first, second = named(found, f"process {QUEUE}")
    assert first["trace_id"] == second["trace_id"]
    assert second["links"] == [first["span_id"]]
    assert [run["attributes"]["runtime.attempt"] for run in (first, second)] == [1, 1]
    assert [first["status"], first["attributes"]["runtime.outcome"]] == ["UNSET", "released"]


def test_a_job_that_outlived_its_worker_has_a_link_to_its_producer(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        produce(tcp_url, collector.url, "crash_once", [])
        worker.wait()
        worker.up()
        found = awaited(collector, enqueue=1, settle=1)
        worker.stop()
    enqueued, run = one(found, f"enqueue {QUEUE}"), one(found, f"process {QUEUE}")
    assert run["trace_id"] == enqueued["trace_id"]
    assert run["parent"] == enqueued["span_id"]
    assert run["links"] == [enqueued["span_id"]]
    assert run["attributes"]["runtime.crashes"] == 1


def test_the_attempts_at_a_job_of_a_stock_producer_are_one_trace(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        enqueue_as_arq(tcp_url, "fail_twice")
        found = awaited(collector, settle=3)
        worker.stop()
    first, second, third = named(found, f"process {QUEUE}")
    assert first["trace_id"] == second["trace_id"] == third["trace_id"]
    assert [run["parent"] for run in (first, second, third)] == ["", first["span_id"], second["span_id"]]
    assert [run["links"] for run in (second, third)] == [[first["span_id"]], [second["span_id"]]]


def test_a_trace_context_does_not_disturb_a_stock_worker(tcp_url: str, collector: Running) -> None:
    job_id = produce(tcp_url, collector.url, "stock", [3])
    script = (
        "import sys\nfrom arq.connections import RedisSettings\nfrom arq.worker import Worker, func\n"
        "async def stock(ctx, n): return 2 * n\n"
        "Worker([func(stock, name='stock')], queue_name=sys.argv[2], burst=True, poll_delay=0.05,\n"
        "       redis_settings=RedisSettings.from_dsn(sys.argv[1])).run()\n"
    )
    subprocess.run([sys.executable, "-c", script, tcp_url, QUEUE], check=True, timeout=60)
    assert asyncio.run(_result(tcp_url, job_id)) == 6


def test_an_enqueue_on_behalf_of_a_request_continues_its_trace(tcp_url: str, collector: Running) -> None:
    trace_id, span_id = UPSTREAM
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        produce(tcp_url, collector.url, "nothing", [], f"00-{trace_id}-{span_id}-01")
        found = awaited(collector, enqueue=1, settle=1)
        worker.stop()
    assert {span["trace_id"] for span in found} == {trace_id}
    assert one(found, f"enqueue {QUEUE}")["parent"] == span_id


def test_user_spans_and_jobs_enqueued_by_a_handler_nest(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        enqueue(tcp_url, own_span.request())
        found = awaited(collector, enqueue=1, settle=2)
        (line,) = worker.wait_for("INSIDE")
        worker.stop()
    outer, child = named(found, f"process {QUEUE}")
    inner, enqueued = one(found, "inner"), one(found, f"enqueue {QUEUE}")
    assert [inner["parent"], enqueued["parent"], child["parent"]] == [
        *(outer["span_id"], inner["span_id"], enqueued["span_id"])
    ]
    assert {span["trace_id"] for span in found} == {outer["trace_id"]}
    assert line["span_id"] == inner["span_id"]


def test_the_lines_of_a_job_carry_the_ids_of_its_trace(tcp_url: str, collector: Running) -> None:
    with running("web") as web, traced(tcp_url, collector.url) as worker:
        worker.up()
        (job_id,) = enqueue(tcp_url, fetch.request(web.url, SECRET))
        process = one(awaited(collector, settle=1), f"process {QUEUE}")
        worker.stop()
        lines = worker.lines()
    expected = {"job_id": job_id, "handler": "fetch", "queue": QUEUE, "attempt": 1}
    by_name = {line.get("event") or line.get("logger_name"): line for line in lines}
    for name in ("JOB_STARTED", "FETCHING", "some.library", "JOB_COMPLETED"):
        assert {**expected, "trace_id": process["trace_id"]}.items() <= by_name[name].items()
        assert by_name[name]["span_id"] == process["span_id"]
    assert "trace_id" not in by_name["WORKER_SHUTDOWN"]


def test_without_tracing_user_lines_still_name_their_job(tcp_url: str) -> None:
    with running("web") as web, Worker("tests.e2e.traced", redis=tcp_url) as worker:
        worker.up()
        (job_id,) = enqueue(tcp_url, fetch.request(web.url, SECRET))
        worker.wait_for("JOB_COMPLETED")
        (line,) = worker.events("FETCHING")
        assert {"job_id": job_id, "handler": "fetch", "queue": QUEUE, "attempt": 1}.items() <= line.items()
        assert "trace_id" not in line
        assert web.log()["requests"][0]["traceparent"] is None


@pytest.mark.parametrize(
    "settings",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
    ids=["no-endpoint", "disabled", "exporter-none"],
)
def test_where_nobody_wants_traces_nothing_is_imported_or_sent(
    tcp_url: str, collector: Running, settings: dict[str, str]
) -> None:
    wanted: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **settings} if settings else {}
    with Worker("tests.e2e.traced", redis=tcp_url, **wanted) as worker:
        worker.up()
        (job_id,) = enqueue(tcp_url, modules.request())
        assert asyncio.run(_result(tcp_url, job_id)) == []
        worker.stop()
    assert collector.log()["requests"] == []


def test_nothing_is_imported_before_the_first_job_and_then_not_the_exporter(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url, PYTHONPROFILEIMPORTTIME="1") as worker:
        worker.up()
        time.sleep(1)
        assert "runtime.engine.actor" in worker.errors()
        assert "opentelemetry.trace" not in worker.errors()  # only the empty packages above it, to see if it is there
        (job_id,) = enqueue(tcp_url, modules.request())
        loaded = asyncio.run(_result(tcp_url, job_id))
        assert "opentelemetry.sdk.trace" in loaded
        assert "opentelemetry.exporter.otlp.proto.http.trace_exporter" not in loaded
        awaited(collector, settle=1)


@pytest.mark.parametrize(("sampler", "sent"), [("parentbased_always_off", False), ("parentbased_always_on", True)])
def test_the_sampler_of_the_environment_is_honoured(tcp_url: str, collector: Running, sampler: str, sent: bool) -> None:
    with traced(tcp_url, collector.url, OTEL_TRACES_SAMPLER=sampler) as worker:
        worker.up()
        enqueue(tcp_url, nothing.request())
        worker.wait_for("JOB_COMPLETED")
        assert worker.stop() == 0
    assert bool(spans(collector)) is sent


def test_a_job_that_is_not_sampled_hands_its_context_on_and_its_lines_name_the_trace(
    tcp_url: str, collector: Running
) -> None:
    with (
        running("web") as web,
        traced(
            tcp_url, collector.url, OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0"
        ) as worker,
    ):
        worker.up()
        (job_id,) = enqueue(tcp_url, fetch.request(web.url, SECRET))
        (ended,) = worker.wait_for("JOB_COMPLETED", job_id=job_id)
        (started,) = worker.events("JOB_STARTED")
        assert worker.stop() == 0
        (request,) = web.log()["requests"]
    _, trace_id, span_id, flags = request["traceparent"].split("-")
    assert trace_id == started["trace_id"] == ended["trace_id"]
    assert len(span_id) == 16
    assert not int(flags, 16) & 1
    assert spans(collector) == []


def test_what_the_last_jobs_left_is_sent_at_shutdown(tcp_url: str, collector: Running) -> None:
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        enqueue(tcp_url, *(nothing.request() for _ in range(20)))
        worker.wait_for("JOB_COMPLETED", 20)
        assert worker.stop() == 0
    assert len(named(spans(collector), f"settle {QUEUE}")) == 20


@pytest.mark.parametrize("how", ["refuses", "hangs", "503"])
def test_a_collector_that_is_not_there_holds_nobody_up(tcp_url: str, collector: Running, how: str) -> None:
    url = collector.url
    if how == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    elif how == "hangs":
        collector.fault({"hang": True, "times": None})
    else:
        collector.fault({"status": 503, "times": None})
    with traced(tcp_url, url, WORKER_CONCURRENCY="10") as worker:
        worker.up()
        began = time.monotonic()
        for _ in range(4):
            enqueue(tcp_url, *(nothing.request() for _ in range(50)))
            time.sleep(0.5)
        worker.wait_for("JOB_COMPLETED", 200)
        assert time.monotonic() - began < 10
        stopping = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - stopping < 8  # 2 s are allowed for the flush; the rest is this machine's
        told = [line for line in worker.lines() if str(line.get("logger_name", "")).startswith("opentelemetry")]
        assert len(told) <= 2, told
        assert KEY not in worker.output() + worker.errors()
        if how != "hangs":
            assert told
        assert not worker.errors()


async def _result(url: str, job_id: str) -> Any:
    client = Client(url)
    try:
        return await client.job(job_id, QUEUE).result("30s")
    finally:
        await client.close()


def test_a_killed_worker_leaves_the_next_one_no_riddle(tcp_url: str, collector: Running) -> None:
    """What is remembered of a trace is of no use to a worker that makes none, and does it no harm."""
    with traced(tcp_url, collector.url) as worker:
        worker.up()
        (job_id,) = enqueue(tcp_url, linger_once.request("/nonexistent/mark/"), snooze_once.request("/dev/null"))[-1:]
        worker.wait_for("JOB_COMPLETED", job_id=job_id)
        enqueue(tcp_url, crash_once.request())
        assert worker.wait() == -signal.SIGKILL
    with Worker("tests.e2e.traced", redis=tcp_url, RUNTIME_LEASE="1s") as plain:
        plain.up()
        plain.wait_for("JOB_COMPLETED", handler="crash_once")


BROKEN = """
import sys
from runtime import Context, handler

if {broken}:
    sys.modules["opentelemetry.sdk.trace"] = None  # its import raises

async def step() -> int:
    return 7

@handler(queue="broken")
async def first(ctx: Context) -> int:
    await second.enqueue()
    return await ctx.once("step", step)

@handler(queue="broken")
async def second(ctx: Context) -> None:
    ctx.http("web")
"""


@pytest.mark.parametrize("what", ["import", "set-up"])
def test_an_opentelemetry_that_is_broken_costs_no_job_and_is_told_once(
    tcp_url: str, collector: Running, tmp_path: Path, what: str
) -> None:
    (tmp_path / "shop.py").write_text(BROKEN.format(broken=what == "import"))
    refused = {} if what == "import" else {"OTEL_BSP_MAX_QUEUE_SIZE": "1"}  # smaller than a batch
    settings: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **refused}
    with Worker("shop", redis=tcp_url, folder=tmp_path, **settings) as worker:
        worker.up()
        done = command("enqueue", "first", "[]", "-m", "shop", "--wait", folder=tmp_path, REDIS_URL=tcp_url)
        assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
        worker.wait_for("JOB_COMPLETED", handler="second")
        assert worker.stop() == 0
        (told,) = worker.events("SETTING_WARNING")
        assert "no traces" in told["message"]
        assert not worker.events("ACTOR_CRASH")
    assert spans(collector) == []


@pytest.mark.parametrize("job_id", ["begin", "end"])
def test_a_processor_that_raises_costs_spans_and_no_job(tcp_url: str, job_id: str) -> None:
    async def add() -> None:
        client = Client(tcp_url)
        await client.enqueue("work", job_id=job_id, options={"queue": "traced-badly"})
        assert await client.job(job_id, "traced-badly").result(timeout=20) == "done"
        await client.close()

    with Worker("tests.e2e.traced_badly", redis=tcp_url).up() as worker:
        asyncio.run(add())
        assert worker.events("ACTOR_CRASH") == []
        assert len(worker.events("JOB_STARTED")) == 1
        assert worker.stop() == 0
