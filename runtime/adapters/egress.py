"""The egress ledger: who in this process has sent how often, and when last. Kept always, in memory, for all its life.

What keeps a service awake is what it transmits. Here stands what is sent by this package's own parts, down to the
beginning and the end of their connections. What a handler's own libraries send is not seen here, nor what the kernel
does by itself (the answer to somebody's probe): of that only the system's own total tells, `process.transmitted_bytes`.
"""

import time
from collections.abc import Sequence
from typing import Literal, get_args

from runtime.core.values import frozen

Sender = Literal[
    "jobs",  # claims, settlements, steps; the last look before a silence
    "waiting",  # for the marker of a new job, and looks beside it
    "ear",  # asks the server to tell of new jobs, and each minute whether it does
    "leases",
    "heartbeat",
    "presence",
    "limits",
    "schedules",  # looks when one is due, and every half minute
    "permits",
    "progress",  # what handlers tell of it
    "client",  # what this process enqueues and asks
    "doorbell",  # requests to other workers' /wake
    "answers",  # of the HTTP port
    "traces",
]
SENDERS: Sequence[Sender] = get_args(Sender)
MOST_APIS = 50
"""Further names of `ctx.http` are entered together: the ledger stays small whatever handlers do."""


class Row:
    """What one sender has sent. Written by one thread, read by any."""

    __slots__ = ("at", "sends")

    def __init__(self) -> None:
        self.sends = 0
        self.at: float | None = None
        """When something went out last, by the monotonic clock."""

    def sent(self) -> None:
        """A message goes out: a command, a batch of them, a request, an answer."""
        self.sends += 1
        self.at = time.monotonic()

    def stirred(self) -> None:
        """Packets go out that are no message: a connection begins, or ends."""
        self.at = time.monotonic()


@frozen
class Entry:
    """A row as it is shown."""

    by: str
    sends: int
    age_s: float
    """Since it sent last."""


class Egress:
    """The rows of one process."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {sender: Row() for sender in SENDERS}
        self._apis: dict[str, Row] = {}

    def of(self, sender: Sender) -> Row:
        return self._rows[sender]

    def of_api(self, name: str) -> Row:
        """For the requests that handlers make by `ctx.http(name)`."""
        known = self._apis.get(name)
        if known is None:
            name = name if len(self._apis) < MOST_APIS else "others"
            known = self._apis.setdefault(name, Row())
        return known

    def entries(self) -> Sequence[Entry]:
        """Those who have sent anything, the last first."""
        now = time.monotonic()
        rows = {**self._rows, **{f"ctx.http {name}": row for name, row in self._apis.items()}}
        said = [Entry(by, row.sends, max(0.0, now - row.at)) for by, row in rows.items() if row.at is not None]
        return sorted(said, key=lambda entry: entry.age_s)
