"""What the user documents promise their readers, tried as they say to try it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import time
from datetime import datetime
from typing import Any

from redis import Redis

from runtime import Client
from tests.e2e.jobs import add, generate, log_as_libraries_do
from tests.processes import Worker, command, enqueue, status, wait_until

QUEUE = "ai-jobs"
MODULE = "tests.e2e.jobs"


def serving(redis: str, **settings: Any) -> Worker:
    return Worker(MODULE, redis=redis, arguments=("-Q", QUEUE), **settings)


def steps(worker: Worker) -> list[tuple[str, str, int]]:
    """The log as its readers see it: what happened, to which job, and how many jobs run then."""
    words = {"JOB_STARTED": "picked up", "JOB_COMPLETED": "done"}
    return [
        (words[line["event"]], line["job_id"].rpartition(":")[2], line["running"])
        for line in worker.lines()
        if line.get("event") in words
    ]


def test_a_single_job_is_picked_up_completed_and_has_a_result(redis_url: str) -> None:
    with serving(redis_url).up() as worker:
        (job,) = enqueue(redis_url, generate.request(0.1))
        worker.wait_for("JOB_COMPLETED", job_id=job)
        wait_until(lambda: status(redis_url, job, QUEUE) == "completed")
        messages = [line["message"] for line in worker.lines()]
        assert f"Job picked up: {job} (flashcard-generation). Currently processing: 1 jobs" in messages
        assert any(message.startswith(f"Job completed: {job} in ") for message in messages)
        shown = command("job", job, "-Q", QUEUE, REDIS_URL=redis_url)
        assert shown.returncode == 0
        assert json.loads(shown.stdout) == {"jobId": job, "status": "completed", "result": {"cards": 15}}


def test_of_five_jobs_three_run_at_once_and_the_others_wait_for_slots_in_their_order(redis_url: str) -> None:
    lengths = {"001": 1.2, "002": 0.5, "003": 2.6, "004": 2.2, "005": 1.0}
    with serving(redis_url).up() as worker:
        enqueue(redis_url, *(generate.options(key=key).request(length) for key, length in lengths.items()))
        worker.wait_for("JOB_COMPLETED", 5)
        assert worker.stop() == 0
        assert steps(worker)[:7] == [
            ("picked up", "001", 1),
            ("picked up", "002", 2),
            ("picked up", "003", 3),
            ("done", "002", 2),
            ("picked up", "004", 3),
            ("done", "001", 2),
            ("picked up", "005", 3),
        ]
        assert any(line["message"].endswith("Currently processing: 3 jobs") for line in worker.lines())
        assert max(running for _, _, running in steps(worker)) == 3
        (statistics,) = worker.events("WORKER_STATISTICS")
        assert (statistics["processed"], statistics["peakConcurrency"]) == (5, 3)


def test_jobs_outlive_the_worker_and_complete_after_its_restart(redis_url: str) -> None:
    with serving(redis_url, GRACEFUL_SHUTDOWN_TIMEOUT_MS=100, WORKER_CONCURRENCY=1) as worker:
        worker.up()
        running, waiting = enqueue(redis_url, generate.request(1), generate.request(0))
        worker.wait_for("JOB_STARTED")
        assert worker.stop() == 0
        (later,) = enqueue(redis_url, generate.request(0))
        assert [status(redis_url, job, QUEUE) for job in (running, waiting, later)] == ["waiting"] * 3
        shown = command("job", waiting, "-Q", QUEUE, REDIS_URL=redis_url)
        assert json.loads(shown.stdout)["status"] == "waiting"
        worker.up()
        worker.wait_for("JOB_COMPLETED", 3)
        wait_until(lambda: all(status(redis_url, job, QUEUE) == "completed" for job in (running, waiting, later)))
        # In their order: what was cut off goes first.
        assert [line["job_id"] for line in worker.events("JOB_COMPLETED")] == [running, waiting, later]


def ask(port: int, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, answer.headers, json.loads(body) if body else None
    finally:
        connection.close()


def port_of(worker: Worker) -> int:
    (line,) = worker.wait_for("HTTP_LISTENING")
    return int(line["message"].rpartition(" ")[2])


def test_health_has_the_fields_of_the_documents(redis_url: str) -> None:
    with serving(redis_url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        port = port_of(worker)
        done = enqueue(redis_url, generate.request(0))
        worker.wait_for("JOB_COMPLETED", job_id=done[0])
        enqueue(redis_url, generate.request(60))
        worker.wait_for("JOB_STARTED", 2)
        wait_until(lambda: ask(port, "/health")[2]["stats"]["processed"] == 1)
        code, headers, health = ask(port, "/health")

        assert code == 200
        assert headers["Content-Type"].startswith("application/json")
        assert (health["status"], health["service"], health["state"]) == ("healthy", "worker", "awake")
        assert health["redis"] == "connected"
        assert 0 < health["uptime"] < 60_000
        assert datetime.fromisoformat(health["timestamp"]).tzinfo is not None
        stats = health["stats"]
        assert datetime.fromisoformat(stats.pop("startTime")).tzinfo is not None
        assert stats == {
            "processed": 1,
            "succeeded": 1,
            "failed": 0,
            "retried": 0,
            "currentlyProcessing": 1,
            "peakConcurrency": 1,
            "successRate": "100.0%",
        }
        assert health["checks"]
        for check in health["checks"].values():
            assert check["healthy"] is True
            assert check["message"]


def test_probes_answer_and_what_is_not_there_is_refused_in_json(redis_url: str) -> None:
    with serving(redis_url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        port = port_of(worker)
        assert ask(port, "/livez")[0] == 200
        assert (ask(port, "/readyz")[0], ask(port, "/readyz")[2]) == (200, {"status": "ready"})
        code, headers, body = ask(port, "/nothing-here")
        assert (code, headers.get_content_type(), list(body)) == (404, "application/json", ["error"])
        code, headers, body = ask(port, "/health", "POST")
        assert (code, headers.get_content_type(), list(body)) == (405, "application/json", ["error"])
        assert "GET" in headers["Allow"]
        assert worker.running


def test_a_worker_that_drains_is_alive_and_not_ready(redis_url: str) -> None:
    with serving(redis_url, RUNTIME_HTTP="on", PORT=0).up() as worker:
        port = port_of(worker)
        enqueue(redis_url, generate.request(1))
        worker.wait_for("JOB_STARTED")
        worker.send(signal.SIGTERM)
        worker.wait_for("WORKER_DRAINING")
        assert ask(port, "/livez")[0] == 200
        code, _, body = ask(port, "/readyz")
        assert (code, body) == (503, {"status": "not ready", "reason": "stopping"})
        assert ask(port, "/health")[2]["state"] == "stopping"
        assert worker.wait() == 0
        assert len(worker.events("JOB_COMPLETED")) == 1


def test_every_line_of_the_log_is_json_with_the_fields_that_are_searched_for(redis_url: str) -> None:
    before = time.time()
    with serving(redis_url, WORKER_ID="worker-7", WORKER_VERSION="abc123").up() as worker:
        (job,) = enqueue(redis_url, generate.request(0.1))
        worker.wait_for("JOB_COMPLETED", job_id=job)
        assert worker.stop() == 0
        lines = [json.loads(line) for line in worker.output().splitlines()]

        for line in lines:
            assert list(line)[:3] == ["timestamp", "level", "message"]
            assert before - 1 < datetime.fromisoformat(line["timestamp"]).timestamp() < time.time() + 1
            assert line["level"] in ("debug", "info", "warn", "error")
            assert line["message"]
            assert "\n" not in line["message"]
            assert line["worker_id"] == "worker-7"
        (boot,) = worker.events("WORKER_BOOT")
        assert lines[0] == boot
        assert boot["data"]["worker_name"] == "worker-7"
        assert boot["data"]["version"] == "abc123"
        assert boot["data"]["queues"] == [QUEUE]
        assert boot["data"]["concurrency"] == 3
        assert "Concurrency: 3 jobs in parallel" in boot["message"]
        (done,) = worker.events("JOB_COMPLETED", job_id=job)
        assert done["queue"] == QUEUE
        assert done["handler"] == "flashcard-generation"
        assert done["attempt"] == 1
        assert 100 <= done["duration_ms"] < 2000
        assert [line["event"] for line in lines[-2:]] == ["WORKER_STATISTICS", "WORKER_SHUTDOWN"]
        assert worker.errors() == ""


def test_what_libraries_log_is_in_the_log(redis_url: str) -> None:
    with Worker(MODULE, redis=redis_url).up() as worker:
        (job,) = enqueue(redis_url, log_as_libraries_do.request())
        worker.wait_for("JOB_COMPLETED", job_id=job)
        assert worker.stop() == 0
        (line,) = [line for line in worker.lines() if line["message"] == "the disk is nearly full"]
        assert line["level"] == "warn"
        assert worker.errors() == ""


def test_a_closed_client_leaves_no_connection_open(redis_url: str) -> None:
    async def connections_after_close() -> int:
        client = Client(redis_url)
        await client.send([add.request(1, 2)])
        await client.close()
        with Redis.from_url(redis_url) as redis:
            return len(redis.client_list()) - 1

    assert asyncio.run(connections_after_close()) == 0
