"""Canaries everywhere: secrets come out nowhere, arguments and results only where they are asked for."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
from base64 import b64encode
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis

from runtime import Client, Request
from tests.e2e import leaky
from tests.processes import Worker, command, enqueue
from tests.servers import Server

MODULE = "tests.e2e.leaky"
KEY = "canary-of-the-api-key-7c1f"
PASSWORD = "canary/of the?p@ssword#5d"
BYSTANDER = "canary-bystander-99e0"
ARGUMENT = "canary-argument-3b"
SECRETS = [
    form
    for secret in (KEY, PASSWORD, BYSTANDER)
    for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], b64encode(secret.encode()).decode()[:-4])
]


def assert_silent(text: str, *also: str) -> None:
    for canary in (*SECRETS, *also):
        at = text.find(canary)
        assert at < 0, f"…{text[max(0, at - 200) : at + 100]}…"


def test_no_canary_gets_out(redis_url: str, server: Server) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.config_set("requirepass", PASSWORD)
    url = server.tcp_url.replace("redis://", f"redis://:{quote(PASSWORD, safe='')}@")
    settings: dict[str, Any] = {"REDIS_URL": url, leaky.KEY: KEY, "RUNTIME_TEST_SECRET": BYSTANDER}
    port = 21_473
    try:
        with Worker(MODULE, LOG_LEVEL="debug", RUNTIME_HTTP="on", PORT=port, **settings).up() as worker:
            said: list[Request[Any]] = [
                leaky.says_it.request(ARGUMENT),
                leaky.says_it_across_the_cut.request(ARGUMENT),
                leaky.too_slow.request(ARGUMENT),
                leaky.logs_it.request(ARGUMENT),
                leaky.gives_up.request(ARGUMENT),
                leaky.returns_it.request(ARGUMENT),
            ]
            ids = enqueue(url, *said)
            (refused,) = asyncio.run(_enqueue_by_name(url))
            with Redis.from_url(redis_url, password=PASSWORD) as redis:
                redis.set("arq:job:undecodable", f"\x80\x04 {ARGUMENT}".encode())
                redis.zadd("arq:queue", {"undecodable": 1})
            worker.wait_for("JOB_DEAD", 6)
            worker.wait_for("JOB_COMPLETED", 2)
            health = _get(port, "/health")
            listed = command("dlq", "list", **settings)
            jobs = [command("job", job_id, **settings) for job_id in (*ids[:5], refused)]
            shown = command("dlq", "show", ids[0], **settings)
            server.kill()
            worker.wait_for("REDIS_AWAY")
            down = command("dlq", "list", **settings)
            assert down.returncode == 69
            assert worker.stop() == 0
            assert_silent(worker.output() + worker.errors(), ARGUMENT, "short1")
            assert worker.errors() == ""
            assert len(worker.events("UNCAUGHT")) == 1
            assert "[redacted]" in worker.output()
            assert_silent(health + down.stdout + down.stderr, ARGUMENT)
            assert len(listed.stdout.splitlines()) == 6
            assert_silent(listed.stdout + listed.stderr, ARGUMENT)
            for done in jobs:
                assert_silent(done.stdout + done.stderr)
            assert ARGUMENT in shown.stdout
            assert_silent(shown.stdout + shown.stderr)
    finally:
        server.kill()  # it forgets its password with everything else


async def _enqueue_by_name(url: str) -> list[str]:
    client = Client(url)
    try:
        return [(await client.enqueue("refuses", [ARGUMENT])).id]
    finally:
        await client.close()


def _get(port: int, path: str) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


ENCODED = quote(PASSWORD, safe="")


@pytest.mark.parametrize(
    "address",
    [f"user:{ENCODED}@127.0.0.1:1/0", f":{PASSWORD}@127.0.0.1:1", f"user:{PASSWORD}@[::1", ":[x]p@ssword@127.0.0.1:1",
     f":{ENCODED}@127.0.0.1:port", f":{ENCODED}@host.invalid:6379"],
)  # fmt: skip
def test_no_form_of_an_address_shows_its_password(address: str) -> None:
    done = command("dlq", "list", REDIS_URL=f"redis://{address}")
    assert done.returncode in (69, 78), done.stderr
    assert_silent(done.stdout + done.stderr, "p@ssword", "p%40ssword", "[x]")


def test_a_worker_that_crashes_leaves_no_core(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url).up() as worker:
        soft, _ = resource.prlimit(worker.pid, resource.RLIMIT_CORE)
        assert soft <= 1
