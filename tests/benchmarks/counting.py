"""What work costs, as counted by the server (`INFO`, the commands inside scripts too) and by the kernel (`/proc`)."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from redis import Redis

_TICKS = os.sysconf("SC_CLK_TCK")
_INFO = ("INFO", "stats", "commandstats", "cpu")


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one server, since it began or between two moments; without what the probe itself has asked."""

    calls: Mapping[str, int]
    """Of each command."""
    reads: float
    """From sockets; as good as the round trips."""
    bytes_in: float
    bytes_out: float
    cpu_s: float

    @property
    def commands(self) -> int:
        return sum(self.calls.values())

    def __sub__(self, older: Self) -> "Counts":
        calls = {name: count - older.calls.get(name, 0) for name, count in self.calls.items()}
        return Counts(
            {name: count for name, count in calls.items() if count},
            self.reads - older.reads,
            self.bytes_in - older.bytes_in,
            self.bytes_out - older.bytes_out,
            self.cpu_s - older.cpu_s,
        )


class Probe:
    """A connection of the bench's own to a server. It knows what it costs, to the byte."""

    def __init__(self, url: str) -> None:
        self._redis: Any = Redis.from_url(url)
        self._connection: Any = self._redis.connection_pool.get_connection("probe")
        self._asked: Counter[str] = Counter()
        self._bytes_in = 0
        self._bytes_out = 0

    def ask(self, *command: object) -> Any:
        """The answer to a command that is not to be counted; of those that answer with a number or with a text."""
        packed = self._connection.pack_command(*command)
        self._connection.send_packed_command(packed)
        answer = self._connection.read_response()
        self._asked[str(command[0]).lower()] += 1
        self._bytes_in += sum(len(part) for part in packed)
        self._bytes_out += len(b"$%d\r\n%b\r\n" % (len(answer), answer)) if isinstance(answer, bytes) else 4
        return answer

    def counts(self) -> Counts:
        """Up to now. Only differences mean something."""
        asked, bytes_out = self._asked.copy(), self._bytes_out
        fields = dict(line.split(":", 1) for line in self.ask(*_INFO).decode().splitlines() if ":" in line)
        calls = {
            name[8:]: int(stats.split(",")[0].removeprefix("calls=")) - asked[name[8:]]
            for name, stats in fields.items()
            if name.startswith("cmdstat_")
        }
        return Counts(
            calls,
            int(fields["total_reads_processed"]) - self._asked.total(),
            int(fields["total_net_input_bytes"]) - self._bytes_in,
            int(fields["total_net_output_bytes"]) - bytes_out,
            float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"]),
        )

    def close(self) -> None:
        self._connection.disconnect()
        self._redis.close()


def cpu_s(pid: int) -> float:
    """What a process has used, all its threads together; to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mb(pid: int) -> float:
    """Resident."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024
