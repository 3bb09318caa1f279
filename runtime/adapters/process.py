"""What the system knows of this process, read from Linux's /proc; None where there is none."""

import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path


def rss_bytes() -> int | None:
    """Memory held (proc(5), statm: its second field, in pages)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def age_ms() -> int | None:
    """Since the process was started, to 10 ms (proc(5), stat: the 22nd field, in clock ticks since boot)."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the 3rd field is the first here
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return max(0, round(1000 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)))
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def transmitted_bytes() -> Mapping[str, int] | None:
    """What has gone out of this process's network namespace, by each interface but the loopback, whoever sent it.

    In a container of its own that is what the service transmits. (proc(5), net/dev: the ninth figure.)
    """
    try:
        lines = [line.partition(":") for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
        return {name.strip(): int(figures.split()[8]) for name, _, figures in lines if name.strip() != "lo"}
    except (OSError, ValueError, IndexError):
        return None


def connected_to() -> Mapping[str, int] | None:
    """The TCP connections of this process that are up, whoever in it has opened them, counted by address and port.

    Those that have come in to a port of ours count as the port's: `:3002`. (proc(5), net/tcp and fd.)
    """
    try:
        ours = {_socket_of(link) for link in Path("/proc/self/fd").iterdir()}
        tables = [Path(f"/proc/self/net/{name}") for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        heard = {row[1].rpartition(":")[2] for row in rows if row[3] == _LISTENS and row[9] in ours}
        return Counter(_peer(row[1], row[2], heard) for row in rows if row[3] == _UP and row[9] in ours)
    except (OSError, ValueError, IndexError):
        return None


_UP, _LISTENS = "01", "0A"


def _socket_of(link: Path) -> str | None:
    try:
        return os.readlink(link).removeprefix("socket:[").rstrip("]")
    except OSError:  # it was closed meanwhile
        return None


def _peer(local: str, remote: str, heard: Collection[str]) -> str:
    ours = local.rpartition(":")[2]
    if ours in heard:
        return f":{int(ours, 16)}"
    address, _, port = remote.rpartition(":")
    # Each word of 32 bits is shown as the machine holds it.
    words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
    host = ip_address(b"".join(words))
    if isinstance(host, IPv6Address):
        return f"{host.ipv4_mapped or f'[{host}]'}:{int(port, 16)}"
    return f"{host}:{int(port, 16)}"
