"""Redis is away: the job API says so in time, and health goes on."""

from __future__ import annotations

import time

import pytest

from tests.http.asking import TOKEN, site_of
from tests.http.jobs import QUEUE
from tests.processes import Worker
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
