"""How silent a worker is that has nothing to do any more, as it is seen outside it."""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

from tests.platform.jobs import call, work
from tests.platform.network import Network
from tests.platform.service import Service
from tests.platform.sleeping import IDLE_S, post, reachable, sleeping
from tests.platform.sockets import Sockets
from tests.processes import enqueue
from tests.servers import Server
from tests.standins.process import running


def silence(network: Network | Sockets, within_s: float = 60.0) -> int:
    """The bytes sent so far, once there have been no more for as long as the platform would wait."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        sent = network.sent()
        time.sleep(IDLE_S)
        if network.sent() == sent:
            return sent
    raise AssertionError(f"still not silent after {within_s:g} s")


def sent_after_work(network: Network | Sockets, length_s: float, keepalive_s: int | None) -> int:
    """The bytes that a worker of ours sends in so long, once it is quiet after jobs of all kinds, with tracing on.

    Beside a server with this keep-alive, or its default. A job that comes by HTTP then is done by the same process.
    """
    with Server() as server, running("otlp") as collector, running("web") as web:
        ports = [urlsplit(standin.url).port or 0 for standin in (collector, web)]
        collecting, page = (f"http://{network.outside}:{port}" for port in ports)
        redis_url = reachable(server, network, keepalive_s)
        worker = sleeping(network, redis_url, OTEL_EXPORTER_OTLP_ENDPOINT=collecting)
        with Service(worker, network, idle_s=3600.0, reaches=ports) as service:
            service.wait_for("listens")
            ids = enqueue(
                server.tcp_url, *(work.request(n) for n in range(50)), *[call.request(f"{page}/things/1")] * 10
            )
            by_http = {"handler": "work", "args": [0]}
            post(f"{service.public_url}/jobs", by_http)
            worker.wait_for("JOB_COMPLETED", len(ids) + 1)
            worker.wait_for("WORKER_QUIET")
            assert collector.log()["requests"], "it was not traced"
            before = silence(network)
            time.sleep(length_s)
            sent = network.sent() - before
            assert worker.running, "it has ended"
            pid = worker.pid
            job_id = json.loads(post(f"{service.public_url}/jobs", by_http))["jobId"]
            worker.wait_for("JOB_COMPLETED", job_id=job_id)
            assert worker.pid == pid, "it is another process"
            assert network.sent() > before, "nothing of it can be seen"
            return sent
