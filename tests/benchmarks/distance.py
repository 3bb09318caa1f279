"""A relay that is nothing but distance: what is said through it arrives so much later, each way, and no less of it.

usage: python -m tests.benchmarks.distance DELAY_MS SOCKET; it prints its port, and ends with its stdin.

Threads that sleep, since an event loop's timers are only good to a millisecond.
"""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from tests.processes import ROOT, environment
from tests.servers import Server

Parcel = tuple[float, bytes]
"""When it arrives, and what; nothing is the end."""


@contextmanager
def far_away(server: Server, delay_ms: float) -> Iterator[str]:
    """The address of `server` through a relay of its own, a process."""
    command = [sys.executable, "-m", "tests.benchmarks.distance", str(delay_ms), server.url.removeprefix("unix://")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, text=True) as relay:
        try:
            assert relay.stdout is not None
            yield f"redis://127.0.0.1:{int(relay.stdout.readline())}"
        finally:
            relay.kill()


def relay(client: socket.socket, path: str, delay_s: float) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for one, other in ((client, server), (server, client)):
        way: SimpleQueue[Parcel] = SimpleQueue()
        threading.Thread(target=send_off, args=(one, way, delay_s), daemon=True).start()
        threading.Thread(target=deliver, args=(way, other), daemon=True).start()


def send_off(source: socket.socket, way: SimpleQueue[Parcel], delay_s: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(1 << 20)
        except OSError:
            data = b""
        way.put((time.monotonic() + delay_s, data))


def deliver(way: SimpleQueue[Parcel], sink: socket.socket) -> None:
    while True:
        arrives, data = way.get()
        time.sleep(max(arrives - time.monotonic(), 0))
        with suppress(OSError):
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)


def main(delay_ms: str, path: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            relay(client, path, float(delay_ms) / 1000)

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
