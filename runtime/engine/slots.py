"""The slots of an actor: each runs one claimed job and makes an outcome of what becomes of it."""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import anyio

from runtime.core.job import Call, Claim, Dead, Failure, Outcome, Released, Settlement
from runtime.core.policy import (
    Ended,
    Stop,
    after_crash,
    after_run,
    before_run,
    describe,
    kept_s,
    redacted,
    remember,
    suspect,
)
from runtime.core.spec import Spec
from runtime.core.values import record
from runtime.engine.context import Context
from runtime.engine.drought import Drought
from runtime.engine.limiter import Limiter
from runtime.engine.statistics import Statistics
from runtime.ports import Entry, Notice, Ports, Run


@record
class _Slot:
    """A job that is being run."""

    claim: Claim
    entry: Entry
    limiter: Limiter
    began: float
    run: Run | None = None
    stop: Stop | None = None
    aborted: bool = False
    trace: str | None = None

    def now_ms(self) -> int:
        """The server's time at its claim, and how long it has been here: no clock of this machine that may be set."""
        return self.claim.now_ms + round(1000 * (time.monotonic() - self.began))

    def stopped(self) -> Stop | None:
        """Why the run was asked to stop, if it was."""
        return self.run.stopped if self.run is not None else None

    def shield(self, length_s: float) -> AbstractContextManager[None]:
        """A block in which the run is not cancelled: see `Run.shield`."""
        return self.run.shield(length_s) if self.run is not None else nullcontext()


class Slots:
    """At most `size` jobs at once. A slot is free again when its handler has ended; its outcome is put to the settler.

    Everything here is synchronous: a claimed job is running before anything else can happen.
    """

    def __init__(
        self,
        size: int,
        entries: Mapping[str, Entry],
        timeout_s: float,
        ports: Ports,
        statistics: Statistics,
        *,
        put: Callable[[Settlement], None],
        drought: Drought,
    ) -> None:
        self.size = size
        self._entries = entries
        self._timeout_s = timeout_s
        self._ports = ports
        self._statistics = statistics
        self._put = put
        self._drought = drought
        self._busy: dict[str, _Slot] = {}
        self._stuck: set[str] = set()
        self._changed = anyio.Event()
        self.free_since = -math.inf
        """When a slot became free after all were taken, monotonic."""

    @property
    def free(self) -> int:
        return self.size - len(self._busy) - len(self._stuck)

    @property
    def stuck(self) -> int:
        """Slots whose handler swallows cancellations: their jobs have an outcome, the slots are lost until it ends."""
        return len(self._stuck)

    @property
    def claims(self) -> Sequence[Claim]:
        """What is running now."""
        return [slot.claim for slot in list(self._busy.values())]  # in one step: the watchdog's thread asks too

    async def changed(self) -> None:
        """Return when a slot becomes free, or an outcome is settled."""
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def touch(self) -> None:
        """Something changed that whoever waits for room should look at."""
        self._changed.set()

    def start(self, claims: Sequence[Claim]) -> None:
        """Run these, one slot each."""
        if not claims:
            return
        self._ports.keeper.hold(claims, self._noticed)
        waiting = deque(claims)
        try:
            while waiting:
                self._start(waiting[0])
                waiting.popleft()
        finally:  # whatever a bug of ours kept from starting is not to be kept from lapsing
            self._ports.keeper.drop([claim.token for claim in waiting])

    def decline(self, claims: Sequence[Claim], why: Literal["no-slot", "shutdown"]) -> None:
        """Give these back unstarted."""
        for claim in claims:
            self._settle(claim, Released(why), claim.now_ms, None)

    def _start(self, claim: Claim) -> None:
        call = claim.call
        entry = self._entries.get(call.handler) if isinstance(call, Call) else None
        spec: Spec | None = entry.spec if entry else None
        beside_suspect = self._statistics.suspect is not None
        outcome = before_run(claim, spec, beside_suspect=beside_suspect, chance=random.random())
        if outcome is not None:
            self._settle(claim, outcome, claim.now_ms, spec)
            return
        assert isinstance(call, Call)
        assert entry is not None
        ports, limit = self._ports, entry.spec.limit
        limiter = Limiter(claim, call.handler, ports, self._drought, lambda more_s: self._allow(claim.token, more_s))
        slot = self._busy[claim.token] = _Slot(claim, entry, limiter, time.monotonic())
        self._statistics.entered()
        if suspect(claim):
            self._statistics.suspect = claim.token
        context: Context[Any] = Context(claim, call, ports, limiter, slot.stopped, slot.shield)
        timeout_s = self._timeout_s if entry.spec.timeout_s is None else entry.spec.timeout_s
        try:
            with ports.journal.within(claim) as slot.trace:
                ports.journal.started(claim, len(self._busy))
                slot.run = ports.runner.start(
                    claim.token,
                    lambda: entry.run(context, call.args, call.kwargs),
                    timeout_s,
                    lambda ended: self._ended(claim.token, limiter, ended),
                    lambda: self._will_not_stop(claim.token),
                    before=(lambda: limiter.take(limit)) if limit.permits or limit.costs else None,
                )
        finally:
            if slot.run is None:  # a bug of ours: what never ran is not to be taken for a run that does not stop
                del self._busy[claim.token]
                self._left(claim.token)

    def _allow(self, token: str, more_s: float) -> None:
        slot = self._busy.get(token)
        if slot is not None and slot.run is not None:
            slot.run.allow(more_s)

    def _ended(self, token: str, limiter: Limiter, ended: Ended) -> None:
        limiter.end()
        if not self.free:
            self.free_since = anyio.current_time()
        slot = self._busy.pop(token, None)
        self._left(token)
        self._changed.set()
        if slot is None:  # it has its outcome: what it brings now comes too late
            self._stuck.discard(token)
            return
        try:
            outcome = after_run(
                ended, slot.claim, slot.entry.spec.retry, slot.now_ms(), random.random(), aborted=slot.aborted
            )
        except BaseException as error:  # an exception of the handler's that cannot even be looked at
            outcome = Dead("permanent", describe(error))
        if outcome is not None:
            self._settle_run(slot, outcome)
            return
        self._ports.keeper.drop([token])
        if slot.stop != "lost":  # else it was told when it was noticed
            self._ports.journal.lost(slot.claim)

    def _left(self, token: str) -> None:
        self._statistics.left()
        if self._statistics.suspect == token:
            self._statistics.suspect = None

    def _settle_run(self, slot: _Slot, outcome: Outcome) -> None:
        self._settle(slot.claim, outcome, slot.now_ms(), slot.entry.spec, slot.trace, slot.limiter.waited_s)

    def _settle(
        self,
        claim: Claim,
        outcome: Outcome,
        now_ms: int,
        spec: Spec | None,
        trace: str | None = None,
        waited_s: float = 0.0,
    ) -> None:
        # The one way to the journal, the history, the letter and the result.
        outcome = redacted(outcome, self._ports.redact)
        keep_s = kept_s(outcome, spec.keep_result_s if spec else 3600.0)
        history = remember(claim, outcome, now_ms, trace)
        settlement = Settlement(claim, outcome, claim.now_ms, now_ms, history, keep_s, waited_s)
        self._put(settlement)  # first: whatever comes of telling it, a job without an outcome is held for ever
        self._ports.journal.ended(settlement, len(self._busy))

    def _noticed(self, token: str, notice: Notice) -> None:
        slot = self._busy.get(token)
        if slot is None:
            return
        if notice == "abort":
            slot.aborted = True
            slot.claim = replace(slot.claim, abort_ms=slot.now_ms())  # the flag goes with the job, however that ends
        self._stop(slot, notice)
        if notice == "lost":
            self._ports.journal.lost(slot.claim)

    def stop(self, why: Stop) -> None:
        """Ask every run to stop."""
        for slot in list(self._busy.values()):
            self._stop(slot, why)

    @property
    def shielded_until(self) -> float:
        """When the last shield is over of those runs that were asked to stop; -inf where there is none."""
        return max((slot.run.shielded_until for slot in self._busy.values() if slot.run is not None), default=-math.inf)

    def _stop(self, slot: _Slot, why: Stop) -> None:
        slot.stop = slot.stop or why
        if slot.run is not None:
            slot.run.stop(slot.stop)

    def _will_not_stop(self, token: str) -> None:
        """The job gets its outcome now. It is not to run again while this run goes on, so it is a dead letter."""
        text = "it was cancelled and did not stop: the handler swallows cancellations"
        self._set_aside(token, Dead("stuck", Failure("Stuck", text, "permanent")))

    def abandon(self) -> None:
        """Give back every job whose run would not end. The runs are left to the end of the process, which is near."""
        for token in list(self._busy):
            self._set_aside(token, Released("shutdown"))

    def bury(self) -> None:
        """Make dead letters of them: this process goes on, and so do the runs."""
        for token in list(self._busy):
            self._will_not_stop(token)

    def _set_aside(self, token: str, outcome: Outcome) -> None:
        slot = self._busy.pop(token, None)
        if slot is None:
            return
        self._stuck.add(token)
        self._changed.set()
        try:
            self._ports.journal.stuck(slot.claim)
        finally:
            if slot.stop != "lost":
                self._settle_run(slot, outcome)

    def outcomes_at_crash(self, blamed: str, failure: Failure) -> list[Settlement]:
        """What is to become of everything that runs, in a process that is ended because of the run `blamed`.

        Changes nothing; may be called from another thread, as the event loop stands still.
        """
        settlements: list[Settlement] = []
        for slot in list(self._busy.values()):
            claim, now_ms = slot.claim, slot.now_ms()
            outcome, history = (
                after_crash(claim, failure, now_ms) if claim.token == blamed else (Released("shutdown"), claim.history)
            )
            settlements.append(Settlement(claim, outcome, claim.now_ms, now_ms, history, slot.entry.spec.keep_result_s))
        return settlements

    async def idle(self) -> None:
        """Return when nothing runs."""
        while self._busy:
            await self.changed()
