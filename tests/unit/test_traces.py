"""The parts of traces that need no process of their own."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.adapters.redis import pickles, wire
from runtime.adapters.redis.source import _own_of, history_of
from runtime.adapters.telemetry import traces
from runtime.core.job import NEW, Call, ErrorRecord, History

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:a-password@cache:6380/1", {"server.address": "cache", "server.port": 6380}),
        ("rediss://:a-password@x.upstash.io", {"server.address": "x.upstash.io", "server.port": 6379}),
        ("unix:///run/redis.sock?db=1", {"server.address": "/run/redis.sock"}),
    ],
)
def test_where_redis_is_shows_no_password(url: str, shown: dict[str, object]) -> None:
    assert traces._store(url) == shown


def test_what_a_request_says_of_its_trace_travels_on_where_nobody_traces() -> None:
    spans = traces.Enqueueing(None, "redis://cache")
    with traces.continued({"traceparent": PARENT, "tracestate": "a=b", "host": "x"}):
        assert spans.begin("id", "queue", "handler", 0) == {"traceparent": PARENT, "tracestate": "a=b"}
    assert spans.begin("id", "queue", "handler", 0) is None


def test_attributes_are_put_together_for_a_sampler_that_looks_at_them_or_a_span_that_is_recorded() -> None:
    from opentelemetry.sdk.trace import TracerProvider, sampling

    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"queue": "dear"}

    class ByQueue(sampling.Sampler):
        def should_sample(
            self,
            parent_context: Any,
            trace_id: int,
            name: str,
            kind: Any = None,
            attributes: Any = None,
            links: Any = None,
            trace_state: Any = None,
        ) -> sampling.SamplingResult:
            wanted = sampling.Decision.RECORD_AND_SAMPLE if attributes["queue"] == "dear" else sampling.Decision.DROP
            return sampling.SamplingResult(wanted, attributes)

        def get_description(self) -> str:
            return "by queue"

    def span(sampler: sampling.Sampler) -> Any:
        tracer = TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("x")
        return tracer.start_span("x", attributes=traces._Late(make))

    assert not span(sampling.TraceIdRatioBased(0)).is_recording()
    assert made == []
    assert dict(span(sampling.ALWAYS_ON).attributes) == {"queue": "dear"}
    assert dict(span(ByQueue()).attributes) == {"queue": "dear"}
    assert len(made) == 2


def _call(rt: object) -> Call:
    call = wire.decode_call(pickles.dumps({"t": None, "f": "work", "a": (), "k": {}, "et": 1, "rt": rt}))
    assert isinstance(call, Call)
    return call


def test_a_trace_context_comes_back_from_a_body_as_it_went_in() -> None:
    body = wire.encode_call("work", (), {}, expires_ms=None, priority=0, trace={"traceparent": PARENT})
    call = wire.decode_call(body)
    assert isinstance(call, Call)
    assert call.trace == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "rt", [{}, [], 7, {"trace": 7}, {"trace": {"traceparent": 7}}, {"trace": {"tracestate": 600 * "x"}}]
)
def test_a_trace_context_that_is_none_costs_no_job(rt: object) -> None:
    assert _call(rt).trace is None


@pytest.mark.parametrize("text", ["", "x", "00-" + 32 * "0" + "-b7ad6b7169203331-01", PARENT[:-1]])
def test_a_traceparent_that_is_none_names_no_span(text: str) -> None:
    assert traces._read({"traceparent": text}) is None


@pytest.mark.parametrize(
    "history",
    [
        NEW,
        History(crashes=2),
        History(trace=PARENT, snoozes=3, snoozed_since_ms=5),
        History(1, (ErrorRecord(1, 2, "ValueError", "text", "transient"),), unknown_since_ms=9),
    ],
)
def test_what_a_job_remembers_comes_back(history: History) -> None:
    assert history_of(_own_of(history)) == history


@pytest.mark.parametrize(
    "own",
    [
        b"",
        b"2|{",
        b"x|{}",
        b'2|{"later":' + 50_000 * b"[",
        b'2|{"unknown_since_ms":' + 400 * b"9" + b"}",
        b'2|{"snoozed_since_ms":-' + 400 * b"9" + b"}",
        b'2|{"snoozes":18446744073709551616}',
        400 * b"9" + b"|{}",
        b"-1|{}",
    ],
)
def test_what_is_no_memory_of_ours_costs_no_job(own: bytes) -> None:
    assert history_of(own) == NEW


def test_what_says_nothing_is_not_written() -> None:
    assert _own_of(History(crashes=1)) == b"1|{}"


def test_a_name_that_is_no_unicode_can_be_sent() -> None:
    name: Any = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert traces._plain(name).encode() == b"caf\\udce9"
