"""Why a worker is awake, and what it sent: in `/health` for who has a token, in `runtime inspect sleep`, in its log."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis import Redis

from runtime.adapters.redis import keys
from tests.arq_compat.test_interop import with_arq
from tests.e2e import jobs
from tests.e2e.test_sleep import Sleeper, runtime
from tests.http.asking import Site
from tests.platform.jobs import call
from tests.processes import Worker, enqueue, status, wait_until
from tests.standins.process import running

MORE = {"egress", "transmitted_bytes", "connections", "held", "history"}
TOKEN = ("Authorization", "Bearer 0123456789abcdef0123456789abcdef")


def by(document: dict[str, Any]) -> dict[str, int]:
    return {row["by"]: row["sends"] for row in document["egress"]}


@contextmanager
def overheard(url: str) -> Iterator[Counter[str]]:
    """What the server is asked meanwhile, by command and first key."""
    heard: Counter[str] = Counter()
    with Redis.from_url(url) as redis, redis.monitor() as monitor:

        def listen() -> None:
            for told in monitor.listen():
                words = told["command"].split()
                heard[" ".join(words[:2])] += told["client_type"] != "lua"
                if words[:2] == ["ECHO", "enough"]:
                    return

        listening = threading.Thread(target=listen)
        listening.start()
        try:
            yield heard
        finally:
            with Redis.from_url(url) as other:
                other.echo("enough")
            listening.join(10)


def test_health_tells_more_only_to_who_has_a_token(tcp_url: str) -> None:
    sleeping = Sleeper(tcp_url)
    with sleeping.worker as worker:
        worker.up()
        site = Site(sleeping.port)
        assert set(sleeping.ask("/health")) >= MORE
        wrong = [("Authorization", "Bearer wrong")]
        for headers in ([], wrong, [TOKEN, TOKEN], [TOKEN, ("Sec-Fetch-Site", "cross-site")]):
            began = time.monotonic()
            answer = site.ask("GET", "/health", headers=headers)
            assert answer.code == 200
            assert not MORE & set(answer.json)
            assert headers != wrong or time.monotonic() - began >= 0.2, "who guesses has to wait"


def test_without_a_token_configured_nobody_is_told_more(tcp_url: str) -> None:
    with Worker("tests.e2e.jobs", redis=tcp_url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        (line,) = worker.wait_for("HTTP_LISTENING")
        site = Site(int(line["message"].split()[-1]))
        for token in ("", "Bearer ", "Bearer x"):
            answer = site.ask("GET", "/health", headers=[("Authorization", token)])
            assert answer.code == 200
            assert not MORE & set(answer.json)


def test_what_it_sent_is_what_those_have_met_whom_it_was_sent_to(tcp_url: str) -> None:
    with (
        running("otlp") as collector,
        running("web") as web,
        overheard(tcp_url) as heard,
        Worker(
            "tests.platform.jobs", redis=tcp_url, RUNTIME_HTTP="on", PORT=0, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            RUNTIME_SLEEP_AFTER="5s", RUNTIME_TOKEN=TOKEN[1].split()[1],
        ).up() as worker,
    ):  # fmt: skip
        (line,) = worker.wait_for("HTTP_LISTENING")
        site = Site(int(line["message"].split()[-1]))
        enqueue(tcp_url, *[call.request(f"{web.url}/things/1")] * 3)
        worker.wait_for("JOB_COMPLETED", 3)
        worker.wait_for("WORKER_QUIET")
        wait_until(
            lambda: not site.ask("GET", "/health", headers=[TOKEN]).json["connections"].keys() - {f":{site.port}"}
        )
        document = site.ask("GET", "/health", headers=[TOKEN]).json
        sent = by(document)
        assert sent["ctx.http web"] == len(web.log()["requests"]) == 3
        assert sent["traces"] == len(collector.log()["requests"]) > 0
        assert sent["heartbeat"] == sum(heard[f"{word} {keys.WORKERS}"] for word in ("HSET", "HGETALL", "HDEL"))
        assert sent["waiting"] == heard[f"BZPOPMIN {keys.mark('sleeper')}"] + heard["ZRANGE sleeper"]
        assert sent["presence"] > 0
        assert not {"leases", "permits", "limits", "doorbell"} & {name for name, count in sent.items() if count}
        assert sent["answers"] >= 1
        assert document["transmitted_bytes"] >= 0
        before = {row["by"]: row for row in document["egress"]}
        time.sleep(2)
        after = {row["by"]: row for row in site.ask("GET", "/health", headers=[TOKEN]).json["egress"]}
        for name in before.keys() - {"answers"}:
            assert after[name]["sends"] == before[name]["sends"]
            assert after[name]["age_s"] >= before[name]["age_s"] + 1.9
            moments = [datetime.fromisoformat(row["last_at"]) for row in (before[name], after[name])]
            assert abs((moments[1] - moments[0]).total_seconds()) < 0.1
        assert after["answers"]["sends"] > before["answers"]["sends"]


def test_what_holds_it_awake_is_told_once_and_since_when_everywhere(tcp_url: str) -> None:
    async def defer(pool: ArqRedis) -> None:
        await pool.enqueue_job("add", 1, 2, _defer_by=3600)

    with_arq(tcp_url, defer)
    sleeping = Sleeper(tcp_url)
    with sleeping.worker as worker:
        worker.up()
        worker.wait_for("WORKER_AWAKE")
        began = time.monotonic()
        time.sleep(12)  # it tries twice more
        (line,) = worker.events("WORKER_AWAKE")
        assert "RUNTIME_ALARM" in line["message"]
        assert re.search(r"; sent last: \w+ .* ago", line["message"])
        document = sleeping.ask("/health")
        (held,) = document["held"]
        assert held["why"] == document["awake_because"][0]
        assert held["for_s"] == pytest.approx(time.monotonic() - began, abs=2.0)
        assert [(change["state"], change["why"]) for change in document["history"]] == [
            ("awake", "the first claim was made"),
            ("awake", line["data"]["reason"]),
        ]
        assert any(address != f":{sleeping.port}" for address in document["connections"])


def test_inspect_sleep_tells_of_each_worker_what_it_sent_last_and_what_holds_it(tcp_url: str) -> None:
    sleeping = Sleeper(tcp_url, WORKER_ID="one")
    with sleeping.worker as worker, Worker("tests.e2e.jobs", redis=tcp_url, WORKER_ID="two").up() as two:
        worker.up()
        two.wait_for("WORKER_BOOT")
        (job_id,) = enqueue(tcp_url, jobs.generate.request(1.0))
        wait_until(lambda: status(tcp_url, job_id, "ai-jobs") == "completed")
        worker.wait_for("WORKER_QUIET", timeout_s=60)
        time.sleep(3)
        found = json.loads(runtime(tcp_url, "inspect", "sleep", "--json"))
        told = {each["worker_id"]: each for each in found["workers"]}
        assert told["one"]["held"] == []
        last = told["one"]["sent"][0]
        assert 2.5 < last["age_s"] < 10, "its farewell, and what came just before"
        assert last["age_s"] <= told["one"]["sent"][-1]["age_s"]
        assert {sent["by"] for sent in told["one"]["sent"]} >= {"jobs", "waiting", "presence"}
        (held,) = told["two"]["held"]
        assert "RUNTIME_SLEEP_AFTER" in held["why"]
        started, since = (datetime.fromisoformat(moment) for moment in (told["two"]["started_at"], held["since"]))
        assert 0 <= (since - started).total_seconds() < 10
        head, *lines = runtime(tcp_url, "inspect", "sleep").splitlines()
        assert "SENT LAST" in head
        (one,) = [line for line in lines if line.startswith("one")]
        assert re.search(r"quiet .*\w+ [\d.]+ s ago, \w+ [\d.]+ s ago", one)
        (other,) = [line for line in lines if line.startswith("two")]
        assert re.search(r"RUNTIME_SLEEP_AFTER is not set \(for [\d.]+ m?s\)", other)
