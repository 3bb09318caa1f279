"""What a worker does about a handler that blocks its event loop, or cancels all that goes on in it: tells, and in the
end gives its jobs back and ends.
"""

import asyncio
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.adapters.loop import loop_factory
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.source import RedisSource
from runtime.adapters.telemetry import logs
from runtime.adapters.watchdog import FRAMES, Standstill, Watchdog
from runtime.core.job import Claim, Failure, Settlement, Verdict
from runtime.core.span import spell
from runtime.engine.actor import Actor
from runtime.engine.settler import BATCH

LAST_WORDS_S = 5.0
"""How long recording what can be recorded may take, before the process is ended."""


class Standstills:
    """A handler blocks the event loop: after a second it is told, with the calls it is in. After `limit_s` the process
    is ended, as nothing in it goes on: finished outcomes are settled, the job is to blame for a crash, the other
    jobs are given back. That happens in the watchdog's thread. It is the same with one that cancels the worker's own
    tasks, at once: nothing could go on without them.
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
        self._watchdog = Watchdog(limit_s, self._tell, self._tell_over, self._stuck)

    def watch(self) -> None:
        self._watchdog.start()

    def close(self) -> None:
        self._watchdog.close()

    def _running(self) -> Iterator[Claim]:
        for actor in self._actors:
            yield from actor.slots.claims

    def _run_of(self, token: str | None) -> Claim | None:
        return next((claim for claim in self._running() if claim.token == token), None)

    def _to_blame(self, standstill: Standstill) -> Claim | None:
        running = list(self._running())
        if standstill.token is None and len(running) == 1:
            return running[0]
        return self._run_of(standstill.token)

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

    def _stuck(self, standstill: Standstill) -> None:
        for_s, where = spell(standstill.for_s), standstill.where
        text = f"it blocked the event loop for {for_s}, and its worker was ended for that: {where}"
        blamed = self._to_blame(standstill)
        token = blamed.token if blamed is not None else standstill.token
        self._end(
            Failure("Blocked", text, "resource"),
            token,  # it may be of a run that would not stop, and has its outcome
            f"Worker crashed: its event loop was blocked for {for_s} at {where}",
            f"blocked at {where}",
            standstill.stack,
        )

    def cancelled_by(self, token: str) -> None:
        """The run `token` cancels the tasks of the worker itself, here and now. Returns only if the end is there."""
        calls = traceback.extract_stack()[:-3][-FRAMES:]  # without our own, from `RootTask.cancel` on
        where = f"{calls[-1].filename}:{calls[-1].lineno} in {calls[-1].name}"
        failure = Failure("Cancelled", f"it cancelled the tasks of its worker, which ended: {where}", "permanent")
        told = f"Worker crashed: a handler has cancelled its tasks at {where}"
        words = (failure, token, told, f"cancelled at {where}", "".join(traceback.format_list(calls)))
        self._watchdog.close()
        # In a thread: what was cancelled before is not to find out, and this one's event loop is not to go on.
        last = threading.Thread(target=self._end, args=words, name="last words")
        last.start()
        last.join()

    def _end(self, failure: Failure, token: str | None, told: str, error: str, stack: str) -> None:
        last = threading.Timer(LAST_WORDS_S + 1, os._exit, [1])  # whatever hangs here, too
        last.daemon = True
        last.start()
        # Should the handler go on after all: what is given back here may run elsewhere by then.
        self._loop.call_soon_threadsafe(threading.Event().wait)
        blamed = self._run_of(token)
        try:
            with asyncio.Runner(loop_factory=loop_factory("asyncio")) as runner:  # waits for no look-up at its end
                recorded = runner.run(self._settle(self._outcomes(token, failure)))
        except Exception:  # `Away`, no time left, or a bug of ours: the process ends in any case, and says why
            recorded = 0
        self._log.error(
            f"{told}. {recorded} jobs were given back or settled, others run again when their leases lapse",
            event_name="WORKER_CRASH",
            **_whose(blamed),
            data={"error": error, "error_type": failure.error},
            stack=stack,
        )
        logs.close()
        os._exit(1)

    def _outcomes(self, token: str | None, failure: Failure) -> list[Settlement]:
        outcomes = [settlement for actor in self._actors for settlement in actor.unsettled]
        if token is not None:
            for actor in self._actors:
                outcomes += actor.slots.outcomes_at_crash(token, failure)
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
