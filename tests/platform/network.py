"""A network of a worker's own, whose bytes are counted outside the worker: a namespace of Linux and one wire out of it.

What the kernel sends for the worker counts too, down to the acknowledgement of somebody else's keep-alive probe, and so
do other protocols than TCP. The wire is silent by itself: its two ends know each other's addresses and have no IPv6.
"""

from __future__ import annotations

import os
import random
import subprocess
from itertools import count
from pathlib import Path
from typing import Self

_FRAME_BYTES = 14
_LISTENS = "0A"
_numbers = count(1)


class NoNetwork(Exception):
    """This machine lets nobody make a network here. As root of one's own namespace it may: `unshare -Urn COMMAND`."""


class Network:
    """`outside` is this side's address on the wire, `inside` the worker's, which is to listen on `port`.

    Nothing else can be reached from inside.
    It is gone with its last process: the worker's, or its keeper's, which ends when this process does, however it ends.
    """

    port = 3002

    def __init__(self) -> None:
        # 198.18.0.0/15 is kept for measuring (RFC 2544), so nobody's network is hidden by it.
        base = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        first = 4 * random.randrange(64)
        self.outside, self.inside = f"{base}.{first + 1}", f"{base}.{first + 2}"
        self._wire = f"rt{os.getpid()}-{next(_numbers)}"
        self._keeper: subprocess.Popen[bytes] | None = None

    def enter(self) -> list[str]:
        """What stands before a command so that it runs inside. The process remains the one that was started."""
        assert self._keeper is not None, "the network is not up"
        return ["nsenter", f"--net=/proc/{self._keeper.pid}/ns/net"]

    def sent(self) -> int:
        """Bytes that have come out, with the headers of IP and what is in it."""
        into, packets = self._counted(0)
        return into - _FRAME_BYTES * packets

    def received(self) -> int:
        """Bytes that have gone in, likewise."""
        out, packets = self._counted(8)
        return out - _FRAME_BYTES * packets

    def listens(self, port: int) -> bool:
        """Whether somebody inside listens on this port of TCP; asking sends nothing."""
        assert self._keeper is not None, "the network is not up"
        return listens(self._keeper.pid, port)

    def watch(self, pid: int) -> None:
        """Nothing has to be known of the process that sends,"""

    def answered(self) -> None:
        """nor that it has just answered a request: it was counted."""

    def up(self) -> None:
        """Raises `NoNetwork`."""
        try:
            self._hold()
            self._connect()
        except (OSError, NoNetwork) as failure:
            self._close()
            raise NoNetwork(f"no network of its own for the worker: {failure}") from None

    def __enter__(self) -> Self:
        if self._keeper is None:
            self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _hold(self) -> None:
        """A process that holds the namespace, and ends when our end of its pipe closes."""
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "/bin/sh", "-c", "echo; read -r line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            raise NoNetwork(self._keeper.communicate()[1].decode().strip())

    def _connect(self) -> None:
        here, there = "02:00:00:00:00:01", "02:00:00:00:00:02"
        assert self._keeper is not None
        _ip(
            f"link add {self._wire} address {here} type veth peer name eth0 address {there} netns {self._keeper.pid}",
            f"link set {self._wire} addrgenmode none",
            f"address add {self.outside}/30 dev {self._wire}",
            f"link set {self._wire} up",
            f"neighbour add {self.inside} lladdr {there} dev {self._wire} nud permanent",
        )
        _ip(
            f"address add {self.inside}/30 dev eth0",
            "link set lo up",
            "link set eth0 addrgenmode none",
            "link set eth0 up",
            f"neighbour add {self.outside} lladdr {here} dev eth0 nud permanent",
            inside=self.enter(),
        )

    def _counted(self, column: int) -> tuple[int, int]:
        """Bytes and packets, of those that came in from the wire (0) or that went out on it (8)."""
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == self._wire:
                counts = [int(figure) for figure in figures.split()]
                return counts[column], counts[column + 1]
        raise NoNetwork(f"{self._wire} is gone")

    def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.communicate()
            subprocess.run(["ip", "link", "delete", self._wire], stderr=subprocess.DEVNULL, check=False)
            self._keeper = None


def listens(beside: int | str, port: int) -> bool:
    """Whether somebody listens on this port of TCP in the network of the process `beside`."""
    tables = (Path(f"/proc/{beside}/net/{family}") for family in ("tcp", "tcp6"))
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return any(state == _LISTENS and int(local[-4:], 16) == port for _, local, _, state, *_ in lines)


def _ip(*commands: str, inside: list[str] | None = None) -> None:
    done = subprocess.run(
        [*(inside or []), "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoNetwork(done.stderr.strip())
