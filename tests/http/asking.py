"""Asking a worker over real sockets: whole requests, and such as no client should send."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.processes import Worker

TOKEN = "t0ken-of-the-http-tests-0123456789abcdef"
BEARER = ("Authorization", f"Bearer {TOKEN}")
JSON = ("Content-Type", "application/json")

HEAD = f"POST /jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
KINDS = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ",
    "half a body": f"{HEAD}Content-Length: 60000\r\n\r\n{{".encode(),
    "half a body for nobody": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{",
    "half a ring": b"POST /wake HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx",
}
"""What slow peers send, and then nothing."""
NO_HTTP = [
    b"nonsense\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
]


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error's code, in the one form that errors have."""
        error = self.json["error"]
        assert list(error) == ["code", "message", "hint"]
        assert error["message"]
        code: str = error["code"]
        return code


@dataclass(frozen=True, slots=True)
class Site:
    """A worker's port."""

    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | Mapping[str, Any] | None = None,
        headers: Sequence[tuple[str, str]] = (BEARER, JSON),
    ) -> Answer:
        """One request on a connection of its own; `headers` are all there are, but for Host and Content-Length."""
        data = (
            json.dumps(body).encode() if isinstance(body, Mapping) else body.encode() if isinstance(body, str) else body
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if data is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def enqueue(self, handler: str, *args: Any, **fields: Any) -> str:
        """Add a job; its id."""
        answer = self.ask("POST", "/jobs", {"handler": handler, "args": args, **fields})
        assert answer.code == 202, answer.body
        job_id: str = answer.json["jobId"]
        return job_id

    def dial(self, sent: bytes = b"") -> socket.socket:
        """A connection on which so much has been sent."""
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        wire.sendall(sent)
        return wire


def site_of(worker: Worker) -> Site:
    (line,) = worker.wait_for("HTTP_LISTENING")
    return Site(int(line["message"].rpartition(" ")[2]))


def read_all(wire: socket.socket) -> bytes:
    """What comes until the other side closes."""
    got = b""
    try:
        while part := wire.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


def closed_after(wire: socket.socket) -> float:
    """Seconds until the other side closes."""
    began = time.monotonic()
    read_all(wire)
    return time.monotonic() - began
