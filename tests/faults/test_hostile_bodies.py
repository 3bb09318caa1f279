"""A queue full of bodies that somebody sent to do harm (K4.1 to K4.3), between jobs that are none of their business."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys, wire
from runtime.core.job import Unreadable
from runtime.core.spec import DEFAULT_QUEUE
from tests.arq_compat.applications import double
from tests.processes import Worker, command, enqueue, status, wait_until
from tests.unit.test_codecs import NO_BODIES, all_samples
from tests.unit.test_pickles import BOMBS, HOSTILE, mutations

GOOD = 10
MB = 2**20


def hostile() -> dict[str, bytes]:
    """Some 250 bodies that are no calls; what a mutation leaves readable is not among them."""
    broken = {f"mutation {n}": body for n, body in enumerate(mutations(all_samples(), seed=4, count=120))}
    bodies = {**HOSTILE, **BOMBS, **NO_BODIES, **broken, "50 MB": b"\x80\x04" + bytes(50 * MB)}
    return {name: body for name, body in bodies.items() if isinstance(wire.decode_call(body), Unreadable)}


@pytest.mark.timeout(180)
def test_hostile_bodies_are_dead_letters_and_the_good_jobs_between_them_run(tcp_url: str, tmp_path: Path) -> None:
    bodies = hostile()
    assert len(bodies) >= 200
    with (
        Redis.from_url(tcp_url) as redis,
        Worker("tests.arq_compat.applications", redis=tcp_url, RUNTIME_TEST_NOTES=tmp_path / "notes") as worker,
    ):
        worker.up()
        before = enqueue(tcp_url, *(double.request(n) for n in range(GOOD)))
        wait_until(lambda: all(status(tcp_url, job, DEFAULT_QUEUE) == "completed" for job in before))
        worker.stop()
        before = enqueue(tcp_url, *(double.request(n) for n in range(GOOD)))
        names = list(bodies)
        random.Random(1).shuffle(names)
        _send(redis, {name: bodies[name] for name in names})
        after = enqueue(tcp_url, *(double.request(n) for n in range(GOOD)))
        worker.up()
        calm_kb = _memory_kb(worker.pid, "VmRSS")
        started = time.monotonic()
        wait_until(lambda: redis.zcard(DEFAULT_QUEUE) == 0, 120, "the queue is empty")
        grown_mb = (_memory_kb(worker.pid, "VmHWM") - calm_kb) / 1024
        print(
            f"\n{len(bodies)} hostile bodies, {sum(map(len, bodies.values())) / MB:.0f} MB, and {2 * GOOD} jobs took "
            f"{time.monotonic() - started:.1f} s; at most {grown_mb:.0f} MB more than at boot"
        )

        assert worker.running
        assert worker.boots() == 2
        assert "Traceback" not in worker.errors() + worker.output()
        assert not worker.events("ACTOR_CRASHED")
        assert [status(tcp_url, job, DEFAULT_QUEUE) for job in before + after] == ["completed"] * 2 * GOOD
        assert {name.decode() for name in redis.zrange(keys.dead(DEFAULT_QUEUE), 0, -1)} == bodies.keys()
        for name in bodies:
            letter = json.loads(redis.hget(keys.LETTER + name, "letter"))
            assert letter["reason"] == "undecodable", (name, letter)
            assert 10 < len(letter["text"]) < 200, (name, letter)
            assert _kept(redis, name) == bodies[name], name
            assert status(tcp_url, name, DEFAULT_QUEUE) == "dead"
        assert grown_mb < 200  # several large bodies at once, and their letters
        again = enqueue(tcp_url, double.request(1))
        wait_until(lambda: status(tcp_url, again[0], DEFAULT_QUEUE) == "completed")
        assert worker.stop() == 0
    for name in ("eval", "an array of 2^32", "50 MB"):
        shown = command("dlq", "show", name, REDIS_URL=tcp_url)
        assert shown.returncode == 0, shown.stderr
        assert '"reason": "undecodable"' in shown.stdout


def _send(redis: Any, bodies: dict[str, bytes]) -> None:
    now_ms = int(time.time() * 1000)
    for name, body in bodies.items():
        redis.set(keys.JOB + name, body, px=86_400_000)
        redis.zadd(DEFAULT_QUEUE, {name: now_ms})


def _kept(redis: Any, name: str) -> bytes:
    """The body in a letter; one that was too large to be fetched is kept where the server could move it."""
    body: bytes = redis.hget(keys.LETTER + name, "body") or redis.get(keys.LETTER + name + ":original") or b""
    return body


def _memory_kb(pid: int, field: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
