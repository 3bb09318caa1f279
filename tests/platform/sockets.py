"""What a worker sends, as far as the kernel tells of its sockets: for machines where it can have no network of its own.

`ss` is asked from outside for each TCP connection's bytes and segments, bare acknowledgements included. Not seen are
datagrams, and what was sent on connections that begin and end between two looks, except that there were some through
the edge. The worker is on the loopback like everybody, so nobody
can tell that something has come in for it while it does not run.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from typing import Self

from tests.platform.network import listens

_HEADERS_BYTES = 40
_PID = re.compile(r"pid=(\d+)")
_BYTES = re.compile(r"bytes_sent:(\d+)")
_SEGMENTS = re.compile(r"segs_out:(\d+)")


class Sockets:
    """In place of a `Network`."""

    outside = inside = "127.0.0.1"

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._pid = 0
        self._seen: dict[str, int] = {}
        self._gone = 0
        self._asking = threading.Lock()

    def watch(self, pid: int) -> None:
        with self._asking:
            self._pid = pid

    def answered(self) -> None:
        with self._asking:
            self._gone += _HEADERS_BYTES

    def enter(self) -> list[str]:
        return []

    def sent(self) -> int:
        with self._asking:
            now = dict(_connections(self._pid)) if self._pid else {}
            # A connection that has gone has sent its end; a reopened one, from the same port, begins again.
            ended = [name for name, sent in self._seen.items() if now.get(name, -1) < sent]
            self._gone += sum(self._seen[name] + _HEADERS_BYTES for name in ended)
            self._seen = now
            return self._gone + sum(now.values())

    def received(self) -> int:
        return 0

    def listens(self, port: int) -> bool:
        return listens("self", port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def _connections(pid: int) -> Sequence[tuple[str, int]]:
    told = subprocess.run(["ss", "-tinpOH"], capture_output=True, text=True, check=True).stdout
    return [
        (" ".join(line.split()[3:5]), _number(_BYTES, line) + _HEADERS_BYTES * _number(_SEGMENTS, line))
        for line in told.splitlines()
        if str(pid) in _PID.findall(line)
    ]


def _number(pattern: re.Pattern[str], line: str) -> int:
    found = pattern.search(line)
    return int(found[1]) if found else 0
