"""What `runtime doctor` makes of what it has seen: every verdict, from tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from runtime.core.diagnosis import handlers, platform, settings, store
from runtime.core.diagnosis.handlers import Breaker, Declared, Mistake, Paused, Project, Queue, Rates
from runtime.core.diagnosis.platform import Peer, Place, Port, Telemetry
from runtime.core.diagnosis.settings import Environment, is_placeholder
from runtime.core.diagnosis.store import Store, Trial
from runtime.core.findings import Finding, count
from runtime.core.lifecycle import Due, Standing, held_by, reasons
from runtime.core.limits import Rule


def told(findings: Iterable[Finding]) -> dict[str, str]:
    """The verdicts by check, the worst of each; all that is amiss says why, and how to mend it."""
    order = ("skipped", "pass", "warn", "fail")
    found: dict[str, str] = {}
    for one in findings:
        found[one.check] = max(found.get(one.check, "skipped"), one.verdict, key=order.index)
        assert one.seen
        assert (one.verdict in ("warn", "fail")) == bool(one.why)
        assert one.verdict not in ("warn", "fail") or one.fix
    return found


def seen_of(findings: Iterable[Finding], check: str) -> str:
    (one,) = (one for one in findings if one.check == check)
    return f"{one.seen} | {one.why} | {one.fix}"


GOOD = Store(
    scheme="redis",
    host="redis.internal",
    pings_ms=(0.2, 0.3, 0.4),
    version="7.2.4",
    replica=False,
    policy="noeviction",
    used_bytes=10 * 2**20,
    most_bytes=100 * 2**20,
    saves="log",
    save_failed=False,
    clients=5,
    most_clients=10_000,
    wanted_clients=20,
    scripts=Trial(),
    waits=Trial(),
    announces=True,
    clock_s=0.01,
)


def test_nothing_is_wrong_with_a_good_redis() -> None:
    assert set(told(store.verdicts(GOOD)).values()) == {"pass"}


def test_what_a_redis_does_not_tell_is_skipped_but_for_its_eviction() -> None:
    found = told(store.verdicts(Store(pings_ms=(0.2,))))
    assert found.pop("redis.reach") == "pass"
    assert found.pop("redis.eviction") == "warn"
    assert set(found.values()) == {"skipped"}


@pytest.mark.parametrize(
    ("check", "verdict", "seen"),
    [
        ("redis.address", "fail", {"scheme": "redis", "host": "eu1-x.upstash.io"}),
        ("redis.address", "fail", {"scheme": "rediss", "host": "redis.railway.internal", "on_railway": True}),
        ("redis.address", "warn", {"host": "redis.railway.internal"}),
        ("redis.address", "warn", {"host": "roundhouse.proxy.rlwy.net", "on_railway": True}),
        ("redis.reach", "pass", {"pings_ms": (5.0,)}),
        ("redis.reach", "warn", {"pings_ms": (5.1, 5.2)}),
        ("redis.reach", "pass", {"pings_ms": (*[0.3] * 49, 40.0)}),
        ("redis.reach", "fail", {"lost": "wrong password or user"}),
        ("redis.reach", "skipped", {"pings_ms": ()}),
        ("redis.version", "fail", {"version": "6.0.16"}),
        ("redis.version", "pass", {"version": "6.2.0"}),
        ("redis.version", "pass", {"version": "10.0"}),
        ("redis.version", "skipped", {"version": "unstable"}),
        ("redis.role", "fail", {"replica": True}),
        ("redis.lua", "fail", {"scripts": Trial("the user lacks a permission (NOPERM)")}),
        ("redis.lua", "fail", {"scripts": Trial("the server answered CROSSSLOT")}),
        ("redis.blocking", "fail", {"waits": Trial("the server refused a command")}),
        ("redis.eviction", "fail", {"policy": "allkeys-lru"}),
        ("redis.eviction", "fail", {"policy": "volatile-ttl"}),
        ("redis.eviction", "warn", {"policy": None}),
        ("redis.memory", "pass", {"most_bytes": 0}),
        ("redis.memory", "warn", {"used_bytes": 85, "most_bytes": 100}),
        ("redis.memory", "fail", {"used_bytes": 96, "most_bytes": 100}),
        ("redis.persistence", "warn", {"saves": "snapshots"}),
        ("redis.persistence", "warn", {"saves": "nothing"}),
        ("redis.persistence", "fail", {"save_failed": True}),
        ("redis.clients", "warn", {"clients": 70, "most_clients": 100}),
        ("redis.clients", "fail", {"clients": 90, "most_clients": 100}),
        ("redis.clock", "warn", {"clock_s": 1.5}),
        ("redis.clock", "warn", {"clock_s": -1.5}),
        ("redis.clock", "pass", {"clock_s": -0.9}),
        ("redis.events", "pass", {"announces": False}),
        ("redis.events", "skipped", {"announces": None}),
    ],
)
def test_what_is_made_of_a_redis(check: str, verdict: str, seen: dict[str, Any]) -> None:
    assert told(store.verdicts(replace(GOOD, **seen)))[check] == verdict


@pytest.mark.parametrize(
    ("seen", "check", "words"),
    [
        ({"policy": None, "host": "eu1.upstash.io", "scheme": "rediss"}, "redis.eviction", "Upstash console"),
        ({"pings_ms": (80.0,)}, "redis.reach", "another region"),
        ({"lost": "connection refused"}, "redis.reach", "start Redis"),
        ({"lost": "wrong password or user"}, "redis.reach", "percent-encoded"),
        ({"lost": "no TLS with the server"}, "redis.reach", "write redis://"),
        ({"lost": "connection closed"}, "redis.reach", "rediss://"),
        ({"lost": "the host's name is not known", "host": "r.railway.internal"}, "redis.reach", "REDIS_PUBLIC_URL"),
        ({"scripts": Trial("the server answered CROSSSLOT")}, "redis.lua", "one node"),
        ({"announces": False}, "redis.events", "stock arq"),
    ],
)
def test_what_is_said_of_a_redis(seen: dict[str, Any], check: str, words: str) -> None:
    assert words in seen_of(store.verdicts(replace(GOOD, **seen)), check)


def test_of_a_redis_that_is_lost_nothing_else_is_said() -> None:
    assert told(store.verdicts(replace(GOOD, lost="connection refused"))) == {
        "redis.reach": "fail",
        "redis.rest": "skipped",
    }


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (Environment(), {}),
        (Environment(read=("PORT",)), {}),
        (Environment(wrong=("RUNTIME_LEES is no setting; did you mean RUNTIME_LEASE?",)), {"settings.wrong": "fail"}),
        (Environment(warnings=("WORKER_X is not a setting of this worker",)), {"settings.odd": "warn"}),
        (Environment(spaced=("PORT",)), {"settings.spaces": "warn"}),
        (Environment(placeholders=("JUDIT_API_KEY",)), {"settings.placeholder": "fail"}),
        (Environment(two_redis=True), {"settings.redis": "warn"}),
        (Environment(disabled=True), {"settings.disabled": "warn"}),
        (Environment(unread=("REDIS_URL",)), {"settings.dotenv": "warn"}),
        (Environment(tracked=(".env",)), {"settings.git": "fail"}),
    ],
)
def test_what_is_made_of_the_environment(env: Environment, expected: dict[str, str]) -> None:
    assert told(settings.verdicts(env)) == {"settings.read": "pass", **expected}


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("RUNTIME_LEES is no setting; did you mean RUNTIME_LEASE?", "rename it to RUNTIME_LEASE"),
        ("WORKER_TIMEOUT (ms) and JOB_TIMEOUT_SECONDS are both set and differ; unset one", "unset one of them"),
        ("WORKER_X is not a setting of this worker", "unset WORKER_X"),
        ("PORT='x' must be a whole number from 0 to 65535", "correct PORT"),
        ("REDIS_URL names no host", "correct REDIS_URL"),
    ],
)
def test_how_a_setting_is_corrected(text: str, fix: str) -> None:
    assert fix in seen_of(settings.verdicts(Environment(wrong=(text,))), "settings.wrong")


@pytest.mark.parametrize(
    "text",
    ["your_judit_api_key", "your-key-here", "sk-...", "sk-proj-xxxx", "sk-your-key", "<token>", "changeme", "CHANGE_ME",
     "...", "xxx", "'your_key'", "rediss://default:your_password@host:6379", "rediss://default:<password>@host",
     "${KEY}", "TODO"],
)  # fmt: skip
def test_placeholders_are_known(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize("text", ["", "sk-proj-9aZ1", "8d7f", "redis://:pw@host:6379", "yours", "exampler-12", "xx"])
def test_what_was_filled_in_is_no_placeholder(text: str) -> None:
    assert not is_placeholder(text)


TWO = (Declared("mail", "mails"), Declared("export", "exports", 60.0))
HERE = Project(named=("handlers",), modules=2, handlers=TWO, grace_s=60.0)


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        (HERE, {"handlers.found": "pass", "handlers.grace": "pass"}),
        (replace(HERE, took_s=3.0), {"handlers.found": "warn", "handlers.grace": "pass"}),
        (replace(HERE, grace_s=30.0), {"handlers.found": "pass", "handlers.grace": "warn"}),
        (replace(HERE, timeout_s=61.0), {"handlers.found": "pass", "handlers.grace": "warn"}),
        (
            replace(HERE, wrong=(Mistake("the module 'a' cannot be imported", "a.py:1", "correct it"),)),
            {"handlers.modules": "fail", "handlers.found": "pass", "handlers.grace": "pass"},
        ),
        (Project(("jobs",), wrong=(Mistake("there is no module 'jobs'", hint="?"),)), {"handlers.modules": "fail"}),
        (Project(("handlers",), chosen=False, wrong=(Mistake("there is none"),)), {"handlers.modules": "warn"}),
        (Project(("jobs",), modules=1), {"handlers.found": "fail"}),
    ],
)
def test_what_is_made_of_handlers(project: Project, expected: dict[str, str]) -> None:
    assert told(handlers.verdicts(project)) == {"handlers.runtime": "pass", **expected}


def test_another_package_of_our_name_is_told() -> None:
    said = seen_of(handlers.verdicts(replace(HERE, other_runtime="/app/runtime.py")), "handlers.runtime")
    assert "/app/runtime.py" in said


@pytest.mark.parametrize(
    ("queue", "verdict", "words"),
    [
        (Queue("q", True, awake=2), "pass", "q (2 awake)"),
        (Queue("q", True, awake=1, waiting=5), "pass", "q (1 awake)"),
        (Queue("q", True, asleep=1), "pass", "1 asleep"),
        (Queue("q", True, asleep=1, waiting=2), "warn", "2 jobs due, and its workers sleep"),
        (Queue("q", True, asleep=1, deferred=2), "pass", "1 asleep"),
        (Queue("q", True, asleep=1, awake=1, waiting=2), "pass", "1 awake, 1 asleep"),
        (Queue("q", True), "warn", "nobody serves q; no job is there"),
        (Queue("q", True, waiting=1), "warn", "nobody serves q, with 1 job in it"),
        (Queue("q", False, waiting=1, deferred=1), "warn", "with 2 jobs in it, and no handler here"),
        (Queue("q", False, waiting=1, stock=True), "pass", "q (stock arq)"),
        (Queue("q", True, awake=1, trouble="a key of a wrong type"), "fail", "q: a key of a wrong type"),
    ],
)
def test_what_is_made_of_a_queue(queue: Queue, verdict: str, words: str) -> None:
    found = list(handlers.queue_verdicts([queue]))
    assert told(found) == {"handlers.queues": verdict}
    assert words in seen_of(found, "handlers.queues")


def test_the_key_that_is_no_queue_is_named_in_the_fix() -> None:
    (found,) = handlers.queue_verdicts([Queue("q", True, awake=1, trouble="its key is of a wrong type")])
    assert found.fix.startswith("redis-cli TYPE q:")


def test_jobs_that_nobody_knows_are_told() -> None:
    found = told(handlers.queue_verdicts([Queue("q", True, awake=1, deferred=2, unknown=2)]))
    assert found == {"handlers.queues": "pass", "handlers.unknown": "warn"}


@pytest.mark.parametrize(
    ("paused", "verdict"),
    [
        (Paused("a deploy", 7200.0, ends=False), "warn"),
        (Paused("", None, ends=False), "warn"),
        (Paused("", 60.0, ends=False), None),
        (Paused("", 7200.0, ends=True), None),
    ],
)
def test_a_pause_without_an_end_is_told_when_it_is_old(paused: Paused, verdict: str | None) -> None:
    found = list(handlers.queue_verdicts([Queue("q", True, asleep=1, waiting=3, paused=paused)]))
    assert told(found) == {"handlers.queues": "pass", **({"handlers.paused": verdict} if verdict else {})}
    if verdict and paused.reason:
        assert "q is paused for 2 h now, without an end: a deploy" in seen_of(found, "handlers.paused")


def test_a_stock_worker_heeds_no_pause() -> None:
    found = list(handlers.queue_verdicts([Queue("q", True, stock=True, paused=Paused("", 60.0, ends=True))]))
    assert "a stock arq worker" in seen_of(found, "handlers.paused")


A, B = Rule(3, 1_000_000, 10), Rule(5, 1_000_000, 10)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Rates("judit", A, A), {"limits.rates": "pass"}),
        (Rates("judit", A), {"limits.rates": "pass"}),
        (Rates("judit", None, A), {"limits.rates": "pass"}),
        (Rates("judit", A, B), {"limits.rates": "warn"}),
        (Rates("judit", A, A, set=B), {"limits.set": "warn"}),
        (Rates("judit", A, A, closed_s=9.0), {"limits.closed": "warn"}),
    ],
)
def test_what_is_made_of_a_limit(limit: Rates, expected: dict[str, str]) -> None:
    assert told(handlers.limit_verdicts([limit])) == expected


def test_an_open_breaker_is_told_with_its_reason() -> None:
    found = handlers.limit_verdicts([Rates("openai", A, A)], [Breaker("openai", 60.0, "insufficient_quota")])
    assert told(found) == {"limits.breaker": "warn"}
    assert "insufficient_quota" in seen_of(found, "limits.breaker")


PLACE = Place(port=Port(3002, "free"), memory_bytes=512 * 2**20)
PEER = Peer("w", "1", "awake", live=True, started_ms=1_000, at_ms=9_000)


def why(standing: Standing) -> list[str]:
    return [reason.text for reason in reasons(standing)]


HELD = held_by(Due(3600.0), None)
assert HELD is not None
DEFERRED = HELD.text


@pytest.mark.parametrize(
    ("seen", "check", "verdict"),
    [
        ({"port": Port(3002, "free")}, "platform.port", "pass"),
        ({"port": Port(3002, "ours", "quiet")}, "platform.port", "pass"),
        ({"port": Port(0, "any")}, "platform.port", "pass"),
        ({"port": Port(3002, "off")}, "platform.port", "skipped"),
        ({"port": Port(3002, "foreign")}, "platform.port", "fail"),
        ({"port": Port(80, "refused", cause="Permission denied")}, "platform.port", "fail"),
        ({"railway": False}, "platform.draining", None),
        ({"railway": True, "serves": False}, "platform.draining", None),
        ({"port": Port(3002, "foreign"), "serves": False}, "platform.port", None),
        ({"railway": True}, "platform.draining", "fail"),
        ({"railway": True, "draining_s": 0.0}, "platform.draining", "fail"),
        ({"railway": True, "draining_s": 29.0}, "platform.draining", "fail"),
        ({"railway": True, "draining_s": 40.0}, "platform.draining", "warn"),
        ({"railway": True, "draining_s": 50.0}, "platform.draining", "pass"),
        ({}, "platform.sleep", "skipped"),
        ({"sleep_after_s": 60.0, "deferred": 0}, "platform.sleep", "pass"),
        ({"sleep_after_s": 60.0, "http": False}, "platform.sleep", "warn"),
        ({"sleep_after_s": 60.0, "deferred": 2}, "platform.sleep", "warn"),
        ({"sleep_after_s": 60.0, "deferred": 2, "alarm_s": 300.0}, "platform.sleep", "pass"),
        ({"sleep_after_s": 60.0, "metrics": "OTEL_METRICS_EXPORTER"}, "platform.sleep", "warn"),
        ({"metrics": "OTEL_METRICS_EXPORTER"}, "platform.sleep", "skipped"),
        ({"rings": True}, "platform.doorbell", "pass"),
        ({"sleep_after_s": 60.0}, "platform.doorbell", "skipped"),
        ({"peers": [replace(PEER, state="quiet")]}, "platform.doorbell", "warn"),
        ({"peers": [PEER]}, "platform.doorbell", None),
        ({"memory_bytes": None}, "platform.memory", "skipped"),
        ({"memory_bytes": 64 * 2**20}, "platform.memory", "warn"),
        ({"memory_bytes": 512 * 2**20, "concurrency": 100}, "platform.memory", "warn"),
        ({"peers": [replace(PEER, rss_bytes=500 * 2**20)]}, "platform.memory", "warn"),
        ({"peers": [replace(PEER, rss_bytes=500 * 2**20, live=False)]}, "platform.memory", "pass"),
    ],
)
def test_what_is_made_of_a_place(seen: dict[str, Any], check: str, verdict: str | None) -> None:
    assert told(platform.verdicts(replace(PLACE, **seen))).get(check) == verdict


@pytest.mark.parametrize(
    ("peer", "verdict"),
    [
        (replace(PEER, awake_because=(DEFERRED,)), "warn"),
        (replace(PEER, awake_because=(DEFERRED,), live=False), None),
        (replace(PEER, awake_because=(DEFERRED,), running=1), None),
        (replace(PEER, awake_because=why(Standing(quiet_in_s=30))), None),
        (replace(PEER, awake_because=why(Standing(running=3))), None),
        (replace(PEER, awake_because=why(Standing(away="no answer in time"))), "warn"),
        (replace(PEER, awake_because=("it is not to sleep: RUNTIME_SLEEP_AFTER is not set",)), None),
    ],
)
def test_why_a_worker_is_awake_is_told_where_it_can_be_mended(peer: Peer, verdict: str | None) -> None:
    assert told(platform.verdicts(replace(PLACE, peers=[peer]))).get("platform.awake") == verdict


def test_a_job_that_nobody_would_wake_a_worker_for_wants_an_alarm() -> None:
    found = list(platform.verdicts(replace(PLACE, peers=[replace(PEER, awake_because=(DEFERRED,))])))
    assert "RUNTIME_ALARM=5m" in seen_of(found, "platform.awake")


def test_the_worker_on_our_port_speaks_for_itself() -> None:
    peer = replace(PEER, awake_because=(DEFERRED,), here=True)
    place = replace(PLACE, peers=[peer], port=Port(3002, "ours", "awake", (DEFERRED,)))
    assert "the worker on port 3002 is awake" in seen_of(platform.verdicts(place), "platform.awake")


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (replace(PEER, incarnation="2", started_ms=2_000), "warn"),
        (replace(PEER, incarnation="2", started_ms=9_500, at_ms=9_500), None),  # it came after the first was killed
        (replace(PEER, incarnation="2", started_ms=2_000, live=False), None),
        (replace(PEER, incarnation="2", started_ms=2_000, state="quiet"), None),
        (replace(PEER, incarnation="2", started_ms=2_000, worker_id="v"), None),
    ],
)
def test_replicas_of_one_name_are_told(other: Peer, verdict: str | None) -> None:
    assert told(platform.verdicts(replace(PLACE, peers=[other, PEER]))).get("platform.worker_id") == verdict


ENDPOINT = Telemetry(True, "http://collector:4318", 4318)


@pytest.mark.parametrize(
    ("telemetry", "expected"),
    [
        (Telemetry(False), {"telemetry.traces": "skipped"}),
        (ENDPOINT, {"telemetry.endpoint": "pass"}),
        (replace(ENDPOINT, lost="connection refused"), {"telemetry.endpoint": "warn"}),
        (replace(ENDPOINT, installed=False), {"telemetry.endpoint": "pass", "telemetry.exporter": "warn"}),
        (replace(ENDPOINT, port=4317), {"telemetry.endpoint": "pass", "telemetry.protocol": "warn"}),
        (replace(ENDPOINT, protocol="grpc"), {"telemetry.endpoint": "pass", "telemetry.protocol": "warn"}),
    ],
)
def test_what_is_made_of_telemetry(telemetry: Telemetry, expected: dict[str, str]) -> None:
    assert told(platform.telemetry_verdicts(telemetry)) == expected


def test_findings_are_counted_by_their_verdicts() -> None:
    findings = [Finding("a.b", "pass", "x"), Finding("a.c", "fail", "x"), Finding("b.c", "fail", "x")]
    assert count(findings) == {"fail": 2, "warn": 0, "pass": 1, "skipped": 0}
    assert findings[2].group == "b"
