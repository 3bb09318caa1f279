"""Permits of limits on concurrency: `ports.Permits`. Who gets one is decided in the scripts, by the server's order.

Who gives a permit back hands it to the first in line in the same script, and leaves a message for its process. One task
listens for these, over a connection of its own, and only while somebody here waits. A dead holder hands nothing on: so
a process asks again when the first lease of a holder would lapse, once for all who wait in it for that limit.

What this cannot see: a job whose lease had lapsed for more than a second, and was taken again by its own keeper, goes
on without its permit; and a permit that was lost in a failover is given to somebody else.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import field
from itertools import count
from typing import Any, Literal, cast

from runtime.adapters.egress import Row
from runtime.adapters.redis import keys
from runtime.adapters.redis.connection import away_when_lost, connect
from runtime.adapters.redis.scripts import script
from runtime.core.errors import LeaseLost, LimitInvalid
from runtime.core.job import Claim
from runtime.core.limits import Concurrency, Permit, Refused
from runtime.core.values import record
from runtime.ports import Away

BUSY_S = (1.0, 3.0)
"""Who was refused may ask again so much later. Nobody knows when a permit will be free; not all are to come at once."""
LISTEN_S = 15.0
"""So long after the last one has stopped waiting the connection for messages is closed."""
LISTEN_REPLY_S = 3.0
LAPSED_S = 0.25
"""A lease that is nobody's is our keeper's again by then, or another worker's."""
LEAST_LOOK_S = 0.05
RETRY_S = 0.5
"""From one attempt to the next while Redis is away."""
BATCH = 100
"""Most permits in one call: the server serves nobody else meanwhile."""
RELEASE_S = 1.0
KNOWN_S = 30 * keys.DAY_S

_State = Literal["held", "waiting", "lapsed", "lost"]


@record
class _Asked:
    """A permit that somebody of this process wants."""

    permit: Permit
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is held, or when it never will be."""
    lost: bool = False
    away: Away | None = None
    """Why nobody knows, where it could not be asked for again."""


@record
class _Returned:
    """A permit that is to be given back."""

    permit: Permit
    unsure: bool
    """It may be asked for yet: the server has perhaps not come to a question that is on its way."""
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class RedisPermits:
    """The permits of one process, in the event loop's thread. `run` does what is waited for, and what was given back.

    `on_trouble` is told of keys of a wrong type.
    """

    def __init__(
        self,
        url: str,
        redis: Any,
        incarnation: str,
        on_trouble: Callable[[str, str], None] = lambda text, key: None,
        row: Row | None = None,
    ) -> None:
        self._redis = redis
        self._bell = connect(url, connections=1, reply_s=LISTEN_S + LISTEN_REPLY_S, row=row)
        self._incarnation = incarnation
        self._on_trouble = on_trouble
        self._numbers = count(1)
        self._told: set[tuple[str, int]] = set()
        self._out: dict[tuple[str, str], Permit] = {}
        """What is held or awaited here, by label and token."""
        self._line: dict[bytes, _Asked] = {}
        """Who waits here, by the permit's text."""
        self._look_at: dict[str, float] = {}
        """When to ask again, by label."""
        self._look_changed = asyncio.Event()
        self._waited_for = asyncio.Event()
        self._returned: list[_Returned] = []
        self._some_returned = asyncio.Event()

    async def acquire(
        self, limit: Concurrency, claim: Claim, patience_s: float, waiting: AbstractContextManager[object]
    ) -> Permit | Refused:
        place = (limit.label, claim.token)
        if place in self._out:
            raise LimitInvalid(
                f"{limit.label}: this job holds or awaits a permit of it already, and would wait for itself",
                hint="a limit on concurrency counts jobs: take it once, around all that needs it",
            )
        head = f"{next(self._numbers)}|{self._incarnation}|{limit.most}|{claim.token}|"
        permit = self._out[place] = Permit(limit, claim.token, head.encode() + keys.id_bytes(claim.id))
        try:
            await self._back_first(place)
            if await self._comes(permit, patience_s, waiting):
                await self._tell_of(limit)
                return permit
        except BaseException:
            self._give_back(permit, unsure=True)
            raise
        self._give_back(permit, unsure=True)
        return Refused(random.uniform(*BUSY_S), limit.label, "full")

    async def _back_first(self, place: tuple[str, str]) -> None:
        """What the same job has just given back is to be back before it asks anew: else it waits for itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                for one in list(self._returned):
                    if _place(one.permit) == place:
                        await one.taken.wait()

    async def _comes(self, permit: Permit, patience_s: float, waiting: AbstractContextManager[object]) -> bool:
        asked = self._line[permit.text] = _Asked(permit)
        try:
            await self._ask(permit.limit.label, [asked])
            if not asked.answered.is_set():
                self._waited_for.set()
                with waiting:
                    async with asyncio.timeout(patience_s):
                        await asked.answered.wait()
        except TimeoutError:
            if asked.away is not None:
                raise asked.away from None
            return False
        finally:
            del self._line[permit.text]
        if asked.lost:
            raise LeaseLost("this job is run by another worker now")
        return True

    def release(self, permit: Permit) -> None:
        self._give_back(permit)

    def _give_back(self, permit: Permit, *, unsure: bool = False) -> None:
        if self._out.get(_place(permit)) is permit:
            del self._out[_place(permit)]
            self._returned.append(_Returned(permit, unsure))
            self._some_returned.set()

    async def run(self) -> None:
        """Listen, ask again and give back, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._ask_again())
            group.create_task(self._send_back())

    async def close(self) -> None:
        """Give back what is to be, if Redis is there; else it is free when its leases have lapsed."""
        with suppress(Away, TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                await self._send_returned()
        await self._bell.aclose()

    async def disconnect(self) -> None:
        """Close the connection that messages come over, while nobody waits."""
        if not self._line:
            await self._bell.connection_pool.disconnect()

    async def _listen(self) -> None:
        name = keys.handed(self._incarnation)
        while True:
            await self._waited_for.wait()
            popped: tuple[bytes, bytes] | None = None
            try:
                with away_when_lost("limit"):
                    popped = await self._bell.execute_command("BLPOP", name, LISTEN_S)
            except Away:  # a message may be lost with the connection
                await asyncio.sleep(RETRY_S)
                self._ask_soon({one.permit.limit.label for one in self._line.values()}, 0.0)
            if popped is not None:
                self._handed(popped[1])
            elif not self._line:
                self._waited_for.clear()
                await self._bell.connection_pool.disconnect()

    def _handed(self, text: bytes) -> None:
        if text in self._line:  # else it has been given back, and is handed on so
            self._line[text].answered.set()

    async def _ask_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._look_changed.clear()
            until = min(self._look_at.values(), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._look_changed.wait()
            for label in [label for label, at in self._look_at.items() if at <= loop.time()]:
                await self._ask_for_all(label)

    async def _ask_for_all(self, label: str) -> None:
        del self._look_at[label]
        waiting = [one for one in self._line.values() if one.permit.limit.label == label and not one.answered.is_set()]
        for at in range(0, len(waiting), BATCH):
            part = waiting[at : at + BATCH]
            try:
                await self._ask(label, part)
            except Away as cause:
                for one in part:
                    one.away = cause
                self._ask_soon([label], RETRY_S)

    async def _ask(self, label: str, askers: Sequence[_Asked]) -> None:
        """Ask for these, and note the answers. Raises `Away`."""
        with away_when_lost("limit"):
            reply = await _script("acquire")(
                self._redis, [keys.held(label), keys.waiting(label)], [one.permit.text for one in askers]
            )
        states = cast("list[_State]", [state.decode() for state in reply[1:]])
        for one, state in zip(askers, states, strict=True):
            one.away = None
            one.lost = state == "lost"
            if state in ("held", "lost"):
                one.answered.set()
        if "lapsed" in states:
            self._ask_soon([label], LAPSED_S)
        elif "waiting" in states:
            self._ask_soon([label], max(int(reply[0]) / 1000, LEAST_LOOK_S))

    def _ask_soon(self, labels: Iterable[str], in_s: float) -> None:
        at = asyncio.get_running_loop().time() + in_s
        for label in labels:
            self._look_at[label] = min(at, self._look_at.get(label, at))
        self._look_changed.set()

    async def _send_back(self) -> None:
        while True:
            self._some_returned.clear()
            try:
                await self._send_returned()
            except Away:
                await asyncio.sleep(RETRY_S)
            else:
                await self._some_returned.wait()

    async def _send_returned(self) -> None:
        """Give back what is to be given back: while one call is on its way, the next batch gathers. Raises `Away`."""
        while batch := self._returned[:BATCH]:
            labels = [one.permit.limit.label for one in batch]
            names = [name for label in labels for name in (keys.held(label), keys.waiting(label))]
            with away_when_lost("limit"):
                trouble: list[bytes] = await _script("release")(self._redis, names, [one.permit.text for one in batch])
            del self._returned[: len(batch)]
            for one in batch:
                self._was_taken(one)
            for told in trouble:
                text, _, key = told.decode("utf-8", "replace").partition("\n")
                self._on_trouble(f"a permit cannot be given back: {text}", key)

    def _was_taken(self, returned: _Returned) -> None:
        if returned.unsure:  # the server answers: what it was asked before, it has done by the next time
            returned.unsure = False
            self._returned.append(returned)
        else:
            returned.taken.set()

    async def _tell_of(self, limit: Concurrency) -> None:
        """Let operators see which limits there are, once for each process. Nobody's permit depends on it."""
        if (limit.name, limit.most) in self._told:
            return
        with suppress(Away), away_when_lost("limit"):
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(keys.CONCURRENCY_KNOWN, limit.name, limit.most)
                pipe.expire(keys.CONCURRENCY_KNOWN, KNOWN_S)
                await pipe.execute()
        self._told.add((limit.name, limit.most))


def _place(permit: Permit) -> tuple[str, str]:
    return permit.limit.label, permit.token


def _script(name: str) -> Any:
    return script(name, "permits")
