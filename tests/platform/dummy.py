"""What a platform may have to do with, instead of a worker: `python -m tests.platform.dummy KIND`, where KIND is

silent   it does nothing;
chatty   it says one byte to TO each 0.1 s;
holding  it holds a connection to TO, and says nothing on it;
answers  it listens on PORT once START_S are over, and says how many bytes it was sent;
ends     it ends by itself, with code 0, as soon as it has begun.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from tests.processes import Worker

ALONE_S = 600.0


class Dummy(Worker):
    """One of these, read, signalled and killed as a worker is."""

    program = ("tests.platform.dummy",)


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        body = json.dumps({"pid": os.getpid(), "size": size}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def _say(event: str) -> None:
    print(json.dumps({"event": event, "pid": os.getpid()}), flush=True)


def _stop(*_: object) -> None:
    _say("SIGTERM")
    sys.exit(0)


def main(kind: str) -> None:
    signal.signal(signal.SIGTERM, _stop)
    _say("WORKER_BOOT")
    host, _, port = os.environ.get("TO", "").rpartition(":")
    if kind == "chatty":
        with socket.create_connection((host, int(port))) as wire:
            while True:
                wire.sendall(b"!")
                time.sleep(0.1)
    elif kind == "holding":
        with socket.create_connection((host, int(port))):
            time.sleep(ALONE_S)
    elif kind == "answers":
        time.sleep(float(os.environ.get("START_S", "0")))
        HTTPServer(("0.0.0.0", int(os.environ["PORT"])), _Answer).serve_forever()
    elif kind == "silent":
        time.sleep(ALONE_S)


if __name__ == "__main__":
    main(sys.argv[1])
