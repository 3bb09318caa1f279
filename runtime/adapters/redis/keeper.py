"""Extends leases from a thread of its own, with its own connection: a handler may block the event loop for as long as
its lease lives only because this goes on. `ports.Keeper`."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

from runtime.adapters.egress import Row
from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.connection import away_of, concerns_the_server, connect_blocking
from runtime.core.job import Claim
from runtime.core.values import record
from runtime.ports import Away, Notice

RENEW_BODY_S = 60.0
"""The bodies of jobs that run this long are kept from expiring meanwhile."""
BATCH = 200
LOST_RETRY_S = 0.5
LOOKS = 100
"""So many leases are looked at before their time, at most; of more, those that were asked for last."""


@record
class _Held:
    """A lease that is kept."""

    claim: Claim
    listener: Callable[[str, Notice], None]
    extended_at: float
    renewed_at: float
    abort_told: bool = False


class LeaseKeeper:
    """One per process. While nothing is held it is silent, and holds no connection open that it has not needed.

    `tell` is called in the event loop: with `Away` when leases could not be extended, with None once they can again.
    """

    def __init__(self, url: str, lease_s: float, tell: Callable[[Away | None], None], row: Row | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._redis = connect_blocking(url, reply_s=lease_s / 8, row=row)
        self._lease_ms = round(lease_s * 1000)
        self._beat_s = lease_s / 4
        self._tell = tell
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._asked: dict[str, None] = {}
        """The tokens of leases to look at, oldest first. Some may be of claims whose answers are still on their way."""
        self._closed = threading.Event()
        self._stirred = threading.Event()
        """There is no need to wait for the next beat."""
        self._failing = False
        self._failing_since: float | None = None
        """Since when the server serves nobody; a key of a wrong type is no such trouble."""
        self._owners_until = 0.0
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Extend from now on; a second time, or after `close`, changes nothing."""
        if not self._thread.ident and not self._closed.is_set():
            self._thread.start()

    def close(self) -> None:
        """Stop extending; what is still held lapses."""
        self._closed.set()
        self._stirred.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)
        self._redis.close()

    def disconnect(self) -> None:
        """Close the connection, while nothing is held; the next beat opens a new one."""
        if not self._held:
            self._redis.connection_pool.disconnect()

    def hold(self, claims: Sequence[Claim], listener: Callable[[str, Notice], None]) -> None:
        now = time.monotonic()
        with self._lock:
            for claim in claims:
                self._held[claim.token] = _Held(claim, listener, now, now)
            early = bool(self._asked) and any(claim.token in self._asked for claim in claims)
        if early:
            self._stirred.set()

    def look(self, token: str) -> None:
        """Extend this lease now, or as soon as it is held: there may be an abort flag. Never blocks."""
        with self._lock:
            self._asked[token] = None
            if len(self._asked) > LOOKS:
                del self._asked[next(iter(self._asked))]
        self._stirred.set()

    def drop(self, tokens: Sequence[str]) -> None:
        with self._lock:
            for token in tokens:
                self._held.pop(token, None)

    def claims(self) -> list[Claim]:
        """Those whose leases are kept, but for those that are known to be aborted."""
        with self._lock:
            return [held.claim for held in self._held.values() if not held.abort_told]

    def holds(self, token: str) -> bool:
        return token in self._held

    def owners_first_s(self) -> float | None:
        """How long strangers' jobs are not to be claimed, after an outage that leases may not have outlived.

        Their owners' keepers extend them again within a quarter of a lease of its end. None: it is not over, for all
        that this keeper knows.
        """
        since = self._failing_since
        if since is not None and time.monotonic() - since > 2 * self._beat_s:
            return None
        return max(0.0, self._owners_until - time.monotonic())

    def _run(self) -> None:
        pause_s = self._beat_s
        # It is not woken for a job: to wake a thread costs the start of that job as much as all else.
        while self._waited(pause_s):
            began = time.monotonic()
            try:
                self._beat()
            except Exception as error:  # whatever it is, the leases are to be tried again
                pause_s = min(LOST_RETRY_S, self._beat_s)
                if concerns_the_server(error):
                    self._failing_since = self._failing_since or began
                self._failing = True
                self._in_loop(self._tell, away_of(error, "extend"))
                self._redis.connection_pool.disconnect()
            else:
                pause_s = self._beat_s
                if self.owners_first_s() is None:
                    self._owners_until = time.monotonic() + self._beat_s
                self._failing_since = None
                if self._failing:
                    self._failing = False
                    self._in_loop(self._tell, None)

    def _waited(self, pause_s: float) -> bool:
        """Whether to go on, once the pause is over or something is to be looked at."""
        if not self._closed.is_set():
            self._stirred.wait(pause_s)
            self._stirred.clear()
        return not self._closed.is_set()

    def _beat(self) -> None:
        trouble: list[Exception] = []
        for queue, due in self._due().items():
            for at in range(0, len(due), BATCH):
                try:
                    self._extend(queue, due[at : at + BATCH])
                except Exception as error:  # one queue's trouble is not to cost the others their leases
                    trouble.append(error)
        if trouble:
            raise trouble[0]

    def _due(self) -> dict[str, list[_Held]]:
        """What has gone without an extension for most of a beat, or is to be looked at; by queue."""
        before = time.monotonic() - 0.8 * self._beat_s
        due: dict[str, list[_Held]] = {}
        with self._lock:
            for held in self._held.values():
                if held.extended_at <= before or held.claim.token in self._asked:
                    due.setdefault(held.claim.queue, []).append(held)
        return due

    def _extend(self, queue: str, due: Sequence[_Held]) -> None:
        # Trust in a lease runs from before the extension was sent, never from when its reply came.
        now = time.monotonic()
        asked = [held.claim.token for held in due if held.claim.token in self._asked]
        answers = scripts.extend(self._redis, queue, [_lease(held, now) for held in due], lease_ms=self._lease_ms)
        for held, answer in zip(due, answers, strict=True):
            held.extended_at = now
            if now - held.renewed_at >= RENEW_BODY_S:
                held.renewed_at = now
            if not answer.ours:
                self.drop([held.claim.token])
                self._notify(held, "lost")
            elif answer.abort_ms not in (None, held.claim.abort_ms) and not held.abort_told:
                held.abort_told = True
                self._notify(held, "abort")
        with self._lock:  # what was asked for meanwhile is to be looked at again
            for token in asked:
                self._asked.pop(token, None)

    def _notify(self, held: _Held, notice: Notice) -> None:
        self._in_loop(held.listener, held.claim.token, notice)

    def _in_loop(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self._closed.set()


def _lease(held: _Held, now: float) -> scripts.Lease:
    claim = held.claim
    return scripts.Lease(
        keys.id_bytes(claim.id),
        claim.token,
        claim.place,
        claim.starts,
        renew=now - held.renewed_at >= RENEW_BODY_S,
    )
