"""`ctx.http` of a paid API, as the author of a handler has it: what it sends, what it gives back, what it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Client, JobFailed, Request
from runtime.core.errors import WaitTimedOut
from tests.e2e import paid
from tests.processes import Worker, command
from tests.servers import Server
from tests.standins.odd import PAUSE_S
from tests.standins.process import Running, running

MODULE = "tests.e2e.paid"


def result(url: str, request: Request[Any], timeout: str = "30s") -> Any:
    """What the job returned, or how it failed."""

    async def ask() -> Any:
        client = Client(url)
        try:
            (job,) = await client.send([request])
            return await job.result(timeout)
        except JobFailed as failure:
            return failure
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Worker]:
    """One worker for the tests that do not look at its buckets."""
    with Worker(MODULE, redis=server.tcp_url, RUNTIME_LEASE="2s") as worker:
        yield worker.up()


@pytest.fixture
def worker(tcp_url: str, shared: Worker) -> Worker:
    return shared


@pytest.fixture(scope="module")
def shared_odd() -> Iterator[Running]:
    with running("odd") as standin:
        yield standin


@pytest.fixture
def odd(shared_odd: Running) -> Running:
    shared_odd.reset()
    return shared_odd


def seen(standin: Running) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = standin.log()["requests"]
    return requests


def test_every_way_of_aiohttp_to_make_a_call_works(tcp_url: str, worker: Worker, odd: Running) -> None:
    assert result(tcp_url, paid.as_aiohttp_has_it.request(odd.url)) == {
        "awaited": 200,
        "put": ["PUT", 3, "1", False],
        "task": "POST",
        "gathered": [200, 200],
        "moved": ["POST", True],
        "stayed": 307,
        "echoed": "hello",
        "head": True,
        "strict": 200,
        "headers": {},
        "closed": False,
    }


def test_lines_of_json_and_events_come_in_as_they_are_sent(tcp_url: str, worker: Worker, odd: Running) -> None:
    for kind in ("text/event-stream", "application/x-ndjson", "application/octet-stream"):
        came = result(tcp_url, paid.stream.request(f"{odd.url}/stream?kind={kind}&parts=3"))
        assert len(came) == 3, kind
        assert came[2] >= 1.5 * PAUSE_S, kind


@pytest.mark.parametrize("query", ["", "&length=1"], ids=["chunks", "a length"])
def test_a_big_answer_is_the_handlers(tcp_url: str, worker: Worker, odd: Running, query: str) -> None:
    size = 64 * 65_536
    assert result(tcp_url, paid.big.request(f"{odd.url}/big?size={size}{query}")) == size


def test_what_says_that_it_is_json_and_is_none_is_the_handlers(tcp_url: str, worker: Worker, odd: Running) -> None:
    assert result(tcp_url, paid.get.request("acme", f"{odd.url}/garbage")) == [200, '{"usage": {"total_tokens": ']
    status, page = result(tcp_url, paid.get.request("acme", f"{odd.url}/html"))
    assert (status, "<html>" in page) == (200, True)


@pytest.mark.parametrize("what", ["gateway", "endless"])
def test_a_failure_is_transient_whatever_its_body_is(tcp_url: str, worker: Worker, odd: Running, what: str) -> None:
    failure = result(tcp_url, paid.get.request("acme", f"{odd.url}/{what}"))
    assert isinstance(failure, JobFailed)
    assert failure.error == "runtime.Transient"
    assert failure.text == f"acme answered {502 if what == 'gateway' else 500}"
    assert len(seen(odd)) == 3


def test_a_rate_limit_counts_although_its_body_breaks_off(tcp_url: str, worker: Worker, odd: Running) -> None:
    with pytest.raises(WaitTimedOut, match="it is deferred"):
        result(tcp_url, paid.get.request("acme", f"{odd.url}/cut-429"), timeout="2s")
    assert not worker.events("JOB_RETRIED", handler="get", error_type="aiohttp.client_exceptions.ClientPayloadError")
    assert len(seen(odd)) == 1


@pytest.mark.parametrize(("status", "error"), [(404, "runtime.Permanent"), (503, "runtime.Transient")])
def test_who_asks_aiohttp_to_raise_for_a_status_gets_ours(
    tcp_url: str, worker: Worker, odd: Running, status: int, error: str
) -> None:
    odd.fault({"status": status, "times": None})
    failure = result(tcp_url, paid.strict.request(f"{odd.url}/things/1"))
    assert isinstance(failure, JobFailed)
    assert (failure.error, failure.text) == (error, f"acme answered {status}")


@pytest.mark.parametrize("how", ["form", "file", "bytes", "dict"])
def test_an_upload_has_the_same_key_in_a_later_run(tcp_url: str, worker: Worker, odd: Running, how: str) -> None:
    first, second = result(tcp_url, paid.upload.request(f"{odd.url}/echo", how))
    assert first["size"] == second["size"] > 0
    keys = [entry["idempotency_key"] for entry in seen(odd)]
    assert keys[:2] == keys[2:]
    assert len(set(keys)) == 2


def test_a_handler_that_insists_repeats_its_key(tcp_url: str, worker: Worker, odd: Running) -> None:
    odd.fault({"status": 503, "times": 2})
    assert result(tcp_url, paid.insist.request(f"{odd.url}/things/1")) == 3
    keys = [entry["idempotency_key"] for entry in seen(odd)]
    assert len(keys) == 3
    assert len(set(keys)) == 1


@pytest.mark.parametrize("how", ["no URL", "no JSON", "two bodies", "no such method"])
def test_a_mistake_in_a_call_blames_nobody_else(tcp_url: str, worker: Worker, how: str) -> None:
    failure = result(tcp_url, paid.wrong.request(how))
    assert isinstance(failure, JobFailed)
    assert not failure.error.startswith("runtime.")


def test_a_name_without_a_bucket_is_a_session_of_aiohttp(tcp_url: str, worker: Worker, odd: Running) -> None:
    odd.fault({"status": 503})
    status, _ = result(tcp_url, paid.get.request("other", f"{odd.url}/things/1"))
    assert status == 503


def test_a_bucket_that_is_declared_twice_with_different_rules_is_refused_at_boot(tcp_url: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "from runtime import Bucket, Context, handler\nstripe = Bucket('stripe.requests', '10/s')\n"
        "@handler()\nasync def pay(ctx: Context) -> None:\n    async with ctx.http('stripe').get('http://x'): ...\n"
    )
    (tmp_path / "two.py").write_text("from runtime import Bucket\nstripe = Bucket('stripe.requests', '20/s')\n")
    refused = command("serve", "one", "two", folder=tmp_path, REDIS_URL=tcp_url, RUNTIME_HTTP="off")
    assert refused.returncode == 78
    for words in ("stripe.requests", "10/s", "20/s", "declare it once"):
        assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_call_waits_for_a_redis_that_is_away_and_a_paid_one_does_not_fail_for_it(
    tcp_url: str, server: Server, odd: Running
) -> None:
    with Worker(MODULE, redis=tcp_url, RUNTIME_LEASE="10s") as worker:
        worker.up()

        async def ask() -> Any:
            client = Client(tcp_url)
            (job,) = await client.send([paid.get.request("acme", f"{odd.url}/things/1")])
            while not seen(odd):
                await asyncio.sleep(0.02)
            server.pause()
            try:
                await asyncio.sleep(2.5)
            finally:
                server.resume()
            try:
                return await job.result("30s")
            finally:
                await client.close()

        odd.fault({"latency": 1.0})
        assert asyncio.run(ask()) == [200, "{}"]
        assert not worker.events("JOB_RETRIED")
        assert len(seen(odd)) == 1
