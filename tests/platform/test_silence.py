"""A worker that is quiet sends nothing: counted outside it, at the end of its wire.

RUNTIME_TEST_SLEEP=all adds the platform's own times: 11 minutes beside a server at its default keep-alive. A minute
is K5.1 of the campaign.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.platform.jobs import call, work
from tests.platform.network import Network
from tests.platform.service import Service
from tests.platform.silence import sent_after_work, silence
from tests.platform.sleeping import TOKEN, reachable, sleeping
from tests.platform.sockets import Sockets
from tests.processes import enqueue
from tests.servers import Server
from tests.standins.process import running


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.environ.get("RUNTIME_TEST_SLEEP") != "all", reason="11 minutes: for `all`; shorter: K5.1")
def test_after_real_work_with_tracing_on_not_a_byte_is_sent_in_eleven_minutes(network: Network | Sockets) -> None:
    assert sent_after_work(network, 660.0, None) == 0


class Witness:
    """Looks all the time whether bytes come out of the network; `at` is when the last did, by the monotonic clock."""

    def __init__(self, network: Network | Sockets) -> None:
        self.at = 0.0
        self.sent = 0
        self._network = network
        self._over = threading.Event()

    def watch(self) -> None:
        while not self._over.wait(0.05):
            sent = self._network.sent()
            if sent != self.sent:
                self.at, self.sent = time.monotonic(), sent

    def end(self) -> None:
        self._over.set()


@contextmanager
def witness(network: Network | Sockets) -> Iterator[Witness]:
    seen = Witness(network)
    watching = threading.Thread(target=seen.watch)
    watching.start()
    try:
        yield seen
    finally:
        seen.end()
        watching.join()


def told(url: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_the_last_that_a_quiet_worker_says_it_sent_is_the_last_that_was_seen_outside(
    network: Network | Sockets,
) -> None:
    with Server() as server, running("otlp") as collector, running("web") as web:
        ports = [urlsplit(standin.url).port or 0 for standin in (collector, web)]
        collecting, page = (f"http://{network.outside}:{port}" for port in ports)
        worker = sleeping(network, reachable(server, network), OTEL_EXPORTER_OTLP_ENDPOINT=collecting)
        with Service(worker, network, idle_s=3600.0, reaches=ports) as service, witness(network) as seen:
            service.wait_for("listens")
            ids = enqueue(server.tcp_url, work.request(1), call.request(f"{page}/things/1"))
            worker.wait_for("JOB_COMPLETED", len(ids))
            worker.wait_for("WORKER_QUIET")
            silence(network)
            last_seen = seen.at
            for _ in range(2):  # to answer is to send: that is entered, and nothing else is
                document = told(service.public_url)
                asked = time.monotonic()
                assert document["state"] == "quiet"
                rows = {row["by"]: row for row in document["egress"]}
                rows.pop("answers")
                last = min(rows.values(), key=lambda row: float(row["age_s"]))
                assert asked - last["age_s"] == pytest.approx(last_seen, abs=1.0), (last, document["egress"])
                time.sleep(1.5)
            if isinstance(network, Network):
                assert document["transmitted_bytes"] == pytest.approx(seen.sent, rel=0.5)
