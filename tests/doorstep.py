"""What stands between a producer and a worker that sleeps: it answers as a platform does while it starts the worker."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Answer = int | Literal["silence", "hang up", "rubbish"]


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that came."""

    at: float
    """Monotonic."""
    head: str


class Doorstep:
    """Listens on a port of its own and gives one answer to each request; the last to all that follow.

    An answer is a status, `silence` until the other side goes, `hang up`, or `rubbish`. For `refuses_for_s` connections
    are refused. With a `certificate` (and its key, in one file) it speaks TLS, as localhost.
    """

    def __init__(
        self,
        *answers: Answer,
        host: str = "127.0.0.1",
        refuses_for_s: float = 0.0,
        certificate: Path | None = None,
    ) -> None:
        self.visits: list[Visit] = []
        self._answers = list(answers)
        self._opening = threading.Timer(refuses_for_s, self._open)
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.bind((host, 0))  # from now on it is ours, and refuses
        name = f"[{host}]" if ":" in host else host
        port = self._listener.getsockname()[1]
        self.url = f"https://localhost:{port}/wake" if certificate else f"http://{name}:{port}/wake"
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)

    def _open(self) -> None:
        self._listener.listen(16)
        self._spawn(self._accept)

    def gaps(self) -> Sequence[float]:
        """Seconds between one request and the next."""
        return [after.at - before.at for before, after in zip(self.visits, self.visits[1:], strict=False)]

    def __enter__(self) -> Self:
        if self._opening.interval:
            self._opening.start()
        else:
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._opening.cancel()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _spawn(self, what: Callable[..., None], *args: object) -> None:
        threading.Thread(target=what, args=args, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                wire, _ = self._listener.accept()
                self._spawn(self._serve, wire)

    def _serve(self, plain: socket.socket) -> None:
        with plain, suppress(OSError):
            plain.settimeout(30)
            wire = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            self._answer(wire)
            wire.close()

    def _answer(self, wire: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                part = wire.recv(4096)
                if not part:
                    return
                head += part
            self.visits.append(Visit(time.monotonic(), head.decode()))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if answer == "silence":
                wire.recv(1)
            elif answer == "rubbish":
                wire.sendall(b"\x00 what?\r\n")
            elif answer != "hang up":
                body = b'{"status":"error","code":404,"message":"Application not found"}' if answer == 404 else b"{}"
                wire.sendall(b"HTTP/1.1 %d So\r\nContent-Length: %d\r\n\r\n%b" % (answer, len(body), body))
