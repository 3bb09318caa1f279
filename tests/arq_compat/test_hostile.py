"""A queue that strangers have written to: what they put there runs or becomes a dead letter, and the rest goes on.

Ids and scores that are odd, and bodies that are none, are the campaign's too (`tests/campaign/inputs.py`).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from runtime.adapters.redis import keys, wire
from tests.processes import Worker, command, wait_until

QUEUE = "arq:queue"
DAY_MS = 86_400_000
GOOD = [f"good-{n}" for n in range(10)]


class Queue:
    """The queue as a stranger with a Redis client sees it."""

    def __init__(self, url: str, notes: Path) -> None:
        self.url = url
        self.notes = notes
        self.redis: Any = Redis.from_url(url)

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return int(seconds * 1000 + micros // 1000)

    def put(self, job_id: str | bytes, score: float | None = None, body: bytes | None = None) -> None:
        raw = job_id.encode() if isinstance(job_id, str) else job_id
        self.redis.set(keys.JOB.encode() + raw, body or stock_body(), px=DAY_MS)
        self.redis.zadd(QUEUE, {raw: self.now_ms() if score is None else score})

    def put_good(self) -> None:
        for job_id in GOOD:
            self.put(job_id)

    def result(self, job_id: str | bytes) -> wire.Result | None:
        raw = job_id.encode() if isinstance(job_id, str) else job_id
        data = self.redis.get(keys.RESULT.encode() + raw)
        return None if data is None else wire.decode_result(data)

    def reason(self, job_id: str | bytes) -> str | None:
        """Of its dead letter."""
        raw = job_id.encode() if isinstance(job_id, str) else job_id
        letter = self.redis.hget(keys.LETTER.encode() + raw, "letter")
        return None if letter is None else str(json.loads(letter)["reason"])

    def ran(self, job_id: str | bytes) -> bool:
        found = self.result(job_id)
        return found is not None and found.ok

    def all_ran(self, *ids: str | bytes) -> Callable[[], bool]:
        return lambda: all(self.ran(job_id) for job_id in ids)


def stock_body(**fields: object) -> bytes:
    return pickle.dumps({"t": None, "f": "survive", "a": (1,), "k": {}, "et": 1_700_000_000_000, **fields})


@pytest.fixture
def queue(tcp_url: str, tmp_path: Path) -> Queue:
    notes = tmp_path / "notes"
    notes.touch()
    return Queue(tcp_url, notes)


@contextmanager
def working(queue: Queue, **settings: Any) -> Iterator[Worker]:
    """A worker of ours that lives through the block, and says nothing but whole lines."""
    settings = {"RUNTIME_TEST_NOTES": queue.notes, "RUNTIME_LEASE": "2s", **settings}
    with Worker("tests.arq_compat.hostile", redis=queue.url, **settings) as worker:
        yield worker.up()
        assert worker.running, worker.errors()
        assert worker.stop() == 0
        assert worker.errors() == ""
        assert not worker.events("ACTOR_CRASH"), worker.output()
        for line in worker.output().splitlines():
            assert json.loads(line)["level"]
            assert line.isprintable(), line


IDS = [
    b"\xff\xfe", b"", b" ", b"a\0b", b"two\nlines", b"a\r\nX-Injected: 1", b"{braces}", b"*?[a-z]", b"../../etc/passwd",
    b"%00", b"a|b|c", b"|", b"\"quoted' \\", "\u202egnitrid".encode(), "\U0001f9e8".encode(), b"\x1b[31mred",
    b"x" * 2**20,
]  # fmt: skip


def test_k4_4_hostile_ids_can_become_letters_and_be_replayed(queue: Queue) -> None:
    for job_id in IDS:
        queue.put(job_id, body=stock_body(a=("not a number",)))
    with working(queue):
        wait_until(lambda: all(queue.reason(job_id) == "permanent" for job_id in IDS))
        listed = command("dlq", "list", REDIS_URL=queue.url)
        assert (listed.returncode, listed.stderr, len(listed.stdout.splitlines())) == (0, "", len(IDS))
        assert listed.stdout.replace("\n", "").isprintable()
        replayed = command("dlq", "replay", "--all", REDIS_URL=queue.url)
        assert (replayed.returncode, replayed.stderr, len(replayed.stdout.splitlines())) == (0, "", len(IDS))
        wait_until(lambda: queue.redis.zcard(keys.dead(QUEUE)) == len(IDS))


@pytest.mark.parametrize("job_id", [b"\xff\xfe", b"two\nlines"])
def test_k4_4_the_commands_take_hostile_ids(queue: Queue, job_id: bytes) -> None:
    queue.put(job_id)
    name = keys.id_text(job_id)
    shown = command("job", name, REDIS_URL=queue.url)
    assert (shown.returncode, shown.stderr, '"waiting"' in shown.stdout) == (0, "", True)
    cancelled = command("job", name, "--cancel", REDIS_URL=queue.url)
    assert (cancelled.returncode, cancelled.stderr, len(cancelled.stdout.splitlines())) == (0, "", 1)


SCORES = [0.0, float("-inf"), -1e300, -1.0, 1e-300, 0.1, 1.5, 1_700_000_000_000.7, -(2.0**33), 2.0**53]


@pytest.mark.parametrize("score", [score for score in SCORES if score < 2.0**53])
def test_k4_5_jobs_with_odd_scores_can_fail_and_be_replayed(queue: Queue, score: float) -> None:
    queue.put("odd", score, stock_body(a=("not a number",)))
    with working(queue):
        wait_until(lambda: queue.reason("odd") == "permanent")
        replayed = command("dlq", "replay", "odd", REDIS_URL=queue.url)
        assert (replayed.returncode, replayed.stderr) == (0, "")


HUGE = 10**30
BODIES: dict[str, dict[str, object]] = {
    "unhashable f": {"f": ["survive"]},
    "f no text": {"f": b"survive"},
    "et text": {"et": "now"},
    "et nan": {"et": float("nan")},
    "et none": {"et": None},
    "t text": {"t": "1"},
    "t true": {"t": True},
    "a text": {"a": "args"},
    "k list": {"k": []},
    "k no text": {"k": {1: 2}},
}
ODD_BODIES: dict[str, dict[str, object]] = {
    "et huge": {"et": HUGE},
    "et long ago": {"et": -HUGE},
    "t negative": {"t": -HUGE},
    "rt no dict": {"rt": [1]},
    "rt odd": {"rt": {"x": "never", "p": "high", "unknown": [None]}},
    "expiry huge": {"rt": {"x": HUGE}},
    "one key more": {"zz": 1},
}


def test_a16_bodies_that_are_no_calls_become_letters_and_odd_ones_run(queue: Queue) -> None:
    for name, fields in {**BODIES, **ODD_BODIES}.items():
        queue.put(name, body=stock_body(**fields))
    queue.put("t huge", body=stock_body(t=HUGE))
    queue.put("f odd", body=stock_body(f="\ud800\n\0"))
    queue.put_good()
    with working(queue):
        wait_until(queue.all_ran(*ODD_BODIES, *GOOD))
        wait_until(lambda: all(queue.reason(name) == "undecodable" for name in BODIES))
        wait_until(lambda: queue.reason("t huge") == "exhausted")
        listed = command("dlq", "list", REDIS_URL=queue.url)
        assert (listed.returncode, listed.stderr) == (0, "")


TYPES: dict[str, tuple[Any, ...]] = {
    "string": ("SET", "x"),
    "list": ("RPUSH", "x"),
    "hash": ("HSET", "x", "y"),
    "set": ("SADD", "x"),
    "zset": ("ZADD", 1, "x"),
    "stream": ("XADD", "*", "x", "y"),
}
OF_A_JOB = {
    keys.IN_PROGRESS: "string",
    keys.RETRY: "string",
    keys.OWN: "string",
    keys.RESULT: "string",
    keys.LETTER: "hash",
}
SHARED = {
    keys.later(QUEUE): "zset", keys.mark(QUEUE): "zset", keys.ABORT: "zset",
    keys.unknown(QUEUE): "hash", keys.count(QUEUE): "hash", keys.dead(QUEUE): "zset",
}  # fmt: skip


def spoil(queue: Queue, key: str, kind: str) -> None:
    name, *rest = TYPES[kind]
    queue.redis.delete(key)
    queue.redis.execute_command(name, key, *rest)


@pytest.mark.parametrize("kind", TYPES)
def test_k2_13_keys_of_a_job_that_are_of_a_wrong_type_do_not_keep_it_from_running(queue: Queue, kind: str) -> None:
    spoilt = [prefix for prefix, right in OF_A_JOB.items() if right != kind]
    for prefix in spoilt:
        queue.put(f"run {prefix}")
        spoil(queue, f"{prefix}run {prefix}", kind)
        queue.put(f"fail {prefix}", body=stock_body(a=("not a number",)))
        spoil(queue, f"{prefix}fail {prefix}", kind)
    if kind != "string":
        queue.put("body")
        spoil(queue, f"{keys.JOB}body", kind)
    queue.put_good()
    held = [] if kind == "string" else [keys.IN_PROGRESS]
    with working(queue):
        wait_until(queue.all_ran(*GOOD))
        wait_until(queue.all_ran(*(f"run {prefix}" for prefix in spoilt if prefix not in held)))
        wait_until(lambda: all(queue.reason(f"fail {prefix}") for prefix in spoilt if prefix not in held))
        if kind != "string":
            wait_until(lambda: queue.reason("body") == "undecodable")
            assert queue.redis.exists(f"{keys.LETTER}body:original"), "nothing is deleted unread"


@pytest.mark.parametrize("kind", TYPES)
def test_k2_13_keys_of_the_queue_that_are_of_a_wrong_type_do_not_keep_jobs_from_running(
    queue: Queue, kind: str
) -> None:
    for key, right in SHARED.items():
        if right != kind:
            spoil(queue, key, kind)
    with working(queue):
        queue.put_good()
        queue.put("fails", body=stock_body(a=("not a number",)))
        queue.put("unknown", body=stock_body(f="nobody_knows"))
        wait_until(queue.all_ran(*GOOD))
        wait_until(lambda: queue.reason("fails") == "permanent")


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "zset"])
def test_k2_13_a_queue_that_is_none_does_not_stop_the_others(queue: Queue, kind: str) -> None:
    with working(queue, arguments=("-Q", QUEUE, "-Q", "none")) as worker:
        spoil(queue, "none", kind)
        queue.put_good()
        wait_until(queue.all_ran(*GOOD))
        worker.wait_for("REDIS_AWAY")
        queue.redis.delete("none")
        queue.put("afterwards")
        wait_until(queue.all_ran("afterwards"))


def test_a22_a_job_whose_enqueue_failed_half_way_becomes_a_letter(queue: Queue) -> None:
    """A stock client that is given an expiry in the past writes the id, and no body."""
    queue.redis.zadd(QUEUE, {"orphan": queue.now_ms()})
    queue.put_good()
    with working(queue):
        wait_until(queue.all_ran(*GOOD))
        wait_until(lambda: queue.reason("orphan") == "undecodable")
