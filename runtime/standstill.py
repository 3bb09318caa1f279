"""What a worker does about an event loop that stands still: tells, and in the end gives its jobs back and ends."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.telemetry import logs
from runtime.adapters.watchdog import Standstill, Watchdog
from runtime.core.job import Claim, Settlement, Verdict
from runtime.core.span import spell
from runtime.engine.actor import Actor
from runtime.engine.settler import BATCH

LAST_WORDS_S = 5.0
"""How long recording what can be recorded may take, before the process is ended."""


class Standstills:
    """A handler blocks the event loop: after a second it is told, with the calls it is in. After `limit_s` the process
    is ended, as nothing in it goes on: finished outcomes are settled, the job is to blame for a crash, the other
    jobs are given back. Everything here but `watch` and `close` happens in the watchdog's thread.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        url: str,
        lease_s: float,
        limit_s: float,
        log: Any,
        *,
        serializer: Serializer | None,
    ) -> None:
        self._actors = actors
        self._loop = asyncio.get_running_loop()
        self._url = url
        self._lease_s = lease_s
        self._log = log
        self._serializer = serializer
        self._watchdog = Watchdog(limit_s, self._tell, self._tell_over, self._end)

    def watch(self) -> None:
        self._watchdog.start()

    def close(self) -> None:
        self._watchdog.close()

    def _running(self) -> Iterator[Claim]:
        for actor in self._actors:
            yield from actor.slots.claims

    def _to_blame(self, standstill: Standstill) -> Claim | None:
        running = list(self._running())
        if standstill.token is None and len(running) == 1:
            return running[0]
        return next((claim for claim in running if claim.token == standstill.token), None)

    def _tell(self, standstill: Standstill) -> None:
        self._log.warning(
            f"The event loop has been blocked for {spell(standstill.for_s)} at {standstill.where}; "
            "nothing else goes on meanwhile: the handler should await, or use asyncio.to_thread",
            event_name="LOOP_BLOCKED",
            **_whose(self._to_blame(standstill)),
            stack=standstill.stack,
        )

    def _tell_over(self, for_s: float) -> None:
        self._log.warning(f"The event loop goes on after {spell(for_s)}", event_name="LOOP_GOES_ON")

    def _end(self, standstill: Standstill) -> None:
        last = threading.Timer(LAST_WORDS_S + 1, os._exit, [1])  # whatever hangs here, too
        last.daemon = True
        last.start()
        # Should the handler end after all: what is given back here may run elsewhere by then, and is not to go on.
        self._loop.call_soon_threadsafe(threading.Event().wait)
        blamed = self._to_blame(standstill)
        try:
            recorded = asyncio.run(self._settle(self._outcomes(standstill, blamed)))
        except Exception:  # `Away`, no time left, or a bug of ours: the process ends in any case, and says why
            recorded = 0
        self._log.error(
            f"Worker crashed: its event loop was blocked for {spell(standstill.for_s)} at {standstill.where}. "
            f"{recorded} jobs were given back or settled, others run again when their leases lapse",
            event_name="WORKER_CRASH",
            **_whose(blamed),
            data={"error": f"blocked at {standstill.where}", "error_type": "Blocked"},
            stack=standstill.stack,
        )
        logs.close()
        os._exit(1)

    def _outcomes(self, standstill: Standstill, blamed: Claim | None) -> list[Settlement]:
        outcomes = [settlement for actor in self._actors for settlement in actor.unsettled]
        token = blamed.token if blamed is not None else standstill.token
        if token is not None:  # it may be of a run that would not stop, and has its outcome
            for actor in self._actors:
                outcomes += actor.slots.outcomes_at_standstill(token, standstill.where, standstill.for_s)
        # Where nobody can be named all leases lapse: that is a crash for each, and three make a dead letter.
        return outcomes

    async def _settle(self, outcomes: Sequence[Settlement]) -> int:
        source = RedisSource(self._url, lease_s=self._lease_s, serializer=self._serializer)
        by_queue: dict[str, list[Settlement]] = {}
        for settlement in outcomes:
            by_queue.setdefault(settlement.claim.queue, []).append(settlement)
        verdicts: list[Verdict] = []
        async with asyncio.timeout(LAST_WORDS_S):
            for queue, all_of_it in by_queue.items():
                for at in range(0, len(all_of_it), BATCH):
                    verdicts += await source.settle(queue, all_of_it[at : at + BATCH])
        await source.close()
        return verdicts.count("settled")


def _whose(claim: Claim | None) -> dict[str, Any]:
    return {} if claim is None else logs.fields_of(claim)
