"""An actor: a puller, slots and a settler that live and die together."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio

from runtime.core.job import Released, Retried, Settlement, Snoozed, Verdict
from runtime.engine.drought import Drought
from runtime.engine.puller import Puller
from runtime.engine.settler import Settler
from runtime.engine.slots import Slots
from runtime.engine.statistics import Statistics
from runtime.ports import Away, Entry, Ports

STOP_GRACE_S = 2.0
"""How long a cancelled handler may take to clean up before its job is given back without waiting for it; and so long
after its shields are over."""
ANNOUNCE_S = 0.3
"""How long telling other workers may take when this one stops."""
LAST_SETTLE_S = 5.0
"""How long the last outcomes may take to reach the store; after that they run again when their leases lapse."""


class Actor:
    """Serves a group of queues with a number of slots. `run` once."""

    def __init__(
        self,
        queues: Sequence[str],
        size: int,
        entries: Mapping[str, Entry],
        ports: Ports,
        statistics: Statistics,
        *,
        lease_s: float,
        timeout_s: float,
    ) -> None:
        self.name = ",".join(queues)
        self._queues = queues
        self._ports = ports
        self._statistics = statistics
        self._hurried = anyio.Event()
        self._settler = Settler(ports.source, ports.journal, self._settled)
        drought = Drought(entries, self.wake)
        self.slots = Slots(size, entries, timeout_s, ports, statistics, put=self._settler.put, drought=drought)
        self.puller = Puller(
            queues,
            self.slots,
            ports.source,
            ports.journal,
            lease_s=lease_s,
            backlog=lambda: self._settler.backlog,
            drought=drought,
        )

    async def run(self) -> None:
        """Pull, run and settle until drained and idle. A bug of ours in any part ends all, and gives the jobs back."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._settler.run)
                group.start_soon(self.puller.look_out)
                await self.puller.run()
                await self._announce_rest()
                if not await self._unless_hurried(self.slots.idle):
                    await self._stop_runs()
                    self.slots.abandon()
                self._settler.close()
                await self._unless_hurried(self._settler.finished.wait)
                with anyio.move_on_after(LAST_SETTLE_S):
                    await self._settler.finished.wait()
                group.cancel_scope.cancel()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._give_back()
            raise

    def wake(self) -> None:
        """Look for jobs now."""
        self.puller.wake()

    async def pause(self) -> None:
        """Claim nothing until `resume`; returns when that is so."""
        await self.puller.pause()

    def resume(self) -> None:
        """Claim again."""
        self.puller.resume()

    def drain(self) -> None:
        """Stop pulling and let the work finish."""
        self.puller.drain()

    def hurry(self) -> None:
        """Wait no longer: cancel what runs and give it back."""
        self.puller.drain()
        self._hurried.set()

    @property
    def unsettled(self) -> list[Settlement]:
        """Outcomes that the store has not answered for."""
        return self._settler.unsettled

    def _settled(self, settlement: Settlement, verdict: Verdict) -> None:
        self._ports.keeper.drop([settlement.claim.token])
        if verdict == "settled":
            self._statistics.count(settlement.outcome)
            if isinstance(settlement.outcome, Retried | Snoozed | Released):
                self.puller.expect(settlement.claim.queue, settlement.outcome.delay_s or 0.0)
        self._ports.journal.settled(settlement, verdict)
        self.slots.touch()

    async def _announce_rest(self) -> None:
        """The announcement that this worker may just have taken is for another one now."""
        with anyio.move_on_after(ANNOUNCE_S):
            for queue in self._queues:
                try:
                    await self._ports.source.announce(queue)
                except Away:
                    return

    async def _unless_hurried(self, wait: Callable[[], Awaitable[object]]) -> bool:
        """Await `wait`, but no longer than until `hurry`; whether it came to its end."""
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                await self._hurried.wait()
                group.cancel_scope.cancel()

            group.start_soon(give_up)
            await wait()
            group.cancel_scope.cancel()
            return True
        return False

    async def _stop_runs(self) -> None:
        self.slots.stop("shutdown")
        until = anyio.current_time() + STOP_GRACE_S
        while anyio.current_time() < until:
            with anyio.CancelScope(deadline=until):
                await self.slots.idle()
                return
            until = self.slots.shielded_until + STOP_GRACE_S

    async def _give_back(self) -> None:
        await self._stop_runs()
        self.slots.bury()
        self._settler.close()
        try:
            with anyio.move_on_after(LAST_SETTLE_S):
                await self._settler.run()
        finally:
            # What could not be given back comes back by itself, once nobody extends its lease.
            self._ports.keeper.drop([settlement.claim.token for settlement in self._settler.unsettled])
