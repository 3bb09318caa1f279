"""A worker that falls silent: real processes, real sockets, looked at from outside."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys
from tests.e2e import jobs
from tests.processes import Worker, enqueue, wait_until

SLEEP_S = 5.0


def sockets(pid: int) -> list[str]:
    """The TCP and unix sockets of a process that are connected, or on their way."""
    inodes = {
        link.readlink().name.removeprefix("socket:[").rstrip("]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if _is_socket(link)
    }
    found: list[str] = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] not in ("0A", "06"):  # listening; waiting for stragglers
                found.append(f"{words[1]} {words[2]} {words[3]}")
    return found


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except FileNotFoundError:
        return False


def health(worker: Worker) -> dict[str, Any]:
    with urllib.request.urlopen(f"{worker.url}/health", timeout=5) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def ring(worker: Worker) -> None:
    request = urllib.request.Request(f"{worker.url}/wake", b"", method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 202


def counted(redis: Redis, queue: str = "arq:queue") -> int:
    return int(redis.pubsub_numsub(keys.here(queue))[0][1])


@pytest.fixture
def sleeper(tcp_url: str) -> Any:
    settings: dict[str, Any] = {"RUNTIME_SLEEP_AFTER": f"{SLEEP_S:g}s", "WORKER_ID": "sleeper"}
    with Worker("tests.e2e.jobs", redis=tcp_url, **settings) as worker:
        worker.start()
        yield worker


def quiet(worker: Worker) -> bool:
    return bool(health(worker)["state"] == "quiet")
