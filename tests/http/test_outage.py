"""Redis is away: the job API says so in time, and health goes on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import Client
from runtime.core.errors import RedisRefused, RedisUnreachable
from tests.http.asking import TOKEN, site_of
from tests.http.jobs import QUEUE
from tests.processes import Worker, wait_until
from tests.relay import Relay
from tests.servers import Server


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_an_outage_is_503_with_its_cause_and_when_to_try_again(how: str) -> None:
    with (
        Server() as own,
        Worker("tests.http.jobs", redis=own.tcp_url, RUNTIME_HTTP="on", PORT=0, RUNTIME_TOKEN=TOKEN).up() as worker,
    ):
        site = site_of(worker)
        assert site.ask("GET", "/queues").code == 200
        own.kill() if how == "gone" else own.pause()
        try:
            asked = [("POST", "/jobs"), ("GET", "/jobs/a"), ("DELETE", f"/jobs/a?queue={QUEUE}"), ("GET", "/queues")]
            for method, path in asked if how == "gone" else asked[:1]:
                began = time.monotonic()
                answer = site.ask(method, path, {"handler": "double", "args": [1]} if method == "POST" else None)
                assert (answer.code, answer.error) == (503, "redis-unreachable")
                assert ("refused" if how == "gone" else "no answer") in answer.json["error"]["message"]
                assert answer.headers["Retry-After"] == "2"
                assert time.monotonic() - began < 15
            began = time.monotonic()
            assert site.ask("GET", "/health", headers=[]).code == 200
            assert site.ask("GET", "/livez", headers=[]).code == 200
            assert time.monotonic() - began < 2
        finally:
            own.resume() if how == "silent" else own.start()


HOSTED = [
    ("ERR max requests limit exceeded. Limit: 500000, Usage: 500000.", 503, "quota of requests"),
    ("ERR max request size exceeded", 500, "larger than the plan allows"),
    ("ERR max concurrent connections exceeded", 503, "limit of connections"),
    ("ERR DB capacity quota exceeded", 503, "quota of memory"),
    ("NOPERM this user has no permissions to run the 'evalsha' command", 503, "lacks a permission"),
]
CHOSEN = HOSTED if os.environ.get("RUNTIME_TEST_WEATHER") == "all" else HOSTED[:2]


@pytest.mark.parametrize(("text", "code", "cause"), CHOSEN)
def test_what_a_hosted_server_refuses_is_told_to_producers(text: str, code: int, cause: str) -> None:
    """To those who ask over HTTP as to those who use the client."""
    with Server() as own, Relay(own.url.removeprefix("unix://")) as relay:
        settings: dict[str, Any] = {"RUNTIME_HTTP": "on", "PORT": 0, "RUNTIME_TOKEN": TOKEN}
        with Worker("tests.http.jobs", redis=relay.url, **settings).up() as worker:
            site = site_of(worker)
            relay.answer(text)
            answer = site.ask("POST", "/jobs", {"handler": "double", "args": [1]})
            assert answer.code == code
            assert cause in answer.json["error"]["message"]
            for ask in (_add, _wait, _cancel):
                with pytest.raises((RedisUnreachable, RedisRefused), match=cause) as told:
                    asyncio.run(ask(relay.url))
                assert isinstance(told.value, RedisUnreachable) == (code == 503)
            relay.answer("")
            wait_until(lambda: site.ask("POST", "/jobs", {"handler": "double", "args": [1]}).code == 202)
            assert "HTTP_ERROR" not in worker.output()


async def _add(url: str) -> None:
    async with _client(url) as client:
        await client.enqueue("double", [1])


async def _wait(url: str) -> None:
    async with _client(url) as client:
        await client.job("a").result("1s")


async def _cancel(url: str) -> None:
    async with _client(url) as client:
        await client.cancel("a")


@asynccontextmanager
async def _client(url: str) -> AsyncGenerator[Client]:
    client = Client(url, wake_urls=["http://localhost:1/wake"])
    try:
        yield client
    finally:
        await client.close()
