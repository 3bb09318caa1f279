"""The queue in Redis, as the engine wants it: `ports.Source`."""

import asyncio
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from runtime.adapters.egress import Egress
from runtime.adapters.payload import LARGEST, from_json, to_json
from runtime.adapters.redis import keys, scripts, wire
from runtime.adapters.redis.codecs import Serializer
from runtime.adapters.redis.connection import (
    REPLY_S,
    TROUBLE,
    away_of,
    away_when_lost,
    connect,
    exchange,
    is_too_large,
    lent,
)
from runtime.adapters.redis.ear import Ear
from runtime.adapters.redis.keeper import LeaseKeeper
from runtime.adapters.redis.weather import Wait, Weather
from runtime.core.job import (
    NEW,
    Call,
    Cancelled,
    Claim,
    Dead,
    Done,
    Failure,
    History,
    Outcome,
    Released,
    Settlement,
    Unreadable,
    Verdict,
)
from runtime.core.policy import attempt_after
from runtime.core.values import record
from runtime.ports import Away, Pulled

if TYPE_CHECKING:
    from runtime.core.lifecycle import Due
    from runtime.core.schedule import Schedule

WAIT_REPLY_S = 3.0
"""For so much longer than was asked a blocking wait may take, a new connection included; then it is taken for lost."""
ROUSE_S = 1.0
"""Within so long a wait that is to end has ended, or its connection is given up."""
ROUSE_KEY_S = 60
LATE_MS = 250
PROMPT_AGAIN_S = 600.0
"""For so long after an answer to a wait was read late, the server claims nothing behind one."""
LET_IN_S = 1.0
"""A wait that may not be is refused at once: one that is still on after so long has been let in."""
PING_S = 2.0
"""While Redis is away, work is to go on within 5 s of its coming back: no attempt may take most of that."""
PROBE_S = 1.0
PROBE_EVERY_S = 2.0
# Asked instead of PING, which a replica answers, a server without memory, and one that lets us run no scripts.
TRY_WRITING = "return redis.call('SET', KEYS[1], '', 'PX', 1000)"
_NO_KEY = -2
RETIRE_AGAIN_S = 1.0
OFFSET_S = 1.0
"""For so long a claim goes on behind ids that others hold, before it starts from the head again."""


class RedisSource:
    """Claims, settles and waits, for one worker. Its incarnation is new with each process.

    At most `waiters` calls of `wait` are under way at once: each blocks a connection of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_s: float,
        keeper: LeaseKeeper | None = None,
        weather: Weather | None = None,
        waiters: int = 1,
        on_trouble: Callable[[str, str], None] = lambda text, key: None,
        serializer: Serializer | None = None,
        egress: Egress | None = None,
    ) -> None:
        egress = egress or Egress()
        self.incarnation = f"{os.getpid():x}-{secrets.token_hex(6)}"
        waiting = egress.of("waiting")
        self.redis = connect(url, row=egress.of("jobs"))
        self._looking = lent(self.redis, waiting)
        self._bell = connect(url, connections=waiters, reply_s=None, row=waiting)
        self._ear = Ear(url, self.redis, egress.of("ear"))
        self._lease_ms = round(lease_s * 1000)
        self._keeper = keeper
        self._on_trouble = on_trouble
        self._serializer = serializer
        self._claims: dict[str, _ClaimState] = {}
        self._claim_seq = 0
        self._waits: dict[str, _Wait] = {}
        self._rousing: set[asyncio.Task[None]] = set()
        self._late_at = -math.inf
        """When an answer had lain unread for long: the event loop was blocked, or the process stopped."""
        self._lost_waits: set[str] = set()
        """The keys that end waits whose answers are not known, while the server may hold them still."""
        self._settle_seq = 0
        self._unanswered: dict[str, _Sending] = {}
        self._server_ahead_s = 0.0
        """The server's clock less our monotonic one, as of the last claim."""
        self.claimed = asyncio.Event()
        """Set once the server has answered a claim."""
        self._weather = weather or Weather()
        self._probing = asyncio.Lock()
        self._probed_at = -math.inf

    @property
    def away(self) -> str | None:
        """Why Redis does not work for us; None while it does."""
        return self._weather.away

    @property
    def paused(self) -> list[str]:
        """The queues that were found paused, with jobs that are due; as of the last claim or look."""
        return sorted(queue for queue, state in self._claims.items() if state.paused)

    @contextmanager
    def _asking(self, what: str, queue: str = "") -> Generator[None]:
        try:
            with away_when_lost(what):
                yield
        except Away as cause:
            self._weather.failed(what, cause, queue)
            raise
        self._weather.answered(what, queue)

    async def claim(self, queue: str, room: int) -> Pulled:
        state = self._claims.get(queue)
        if state is None:
            await self._spare_leases_after_a_restart(queue)
            state = self._claims[queue] = _ClaimState()
        await self._let_owners_go_first()
        again = state.unanswered
        if again:
            await self._end_lost_waits(queue)
        else:
            state.seq = self._next_claim()
        call = scripts.Claiming(
            [queue],
            room,
            self._lease_ms,
            self.incarnation,
            state.seq,
            again=again,
            offset=state.offset(),
            disowned=state.disowned,
            until_ms=self._until_ms(),
        )
        state.unanswered = True
        with self._asking("claim", queue):
            reply = await call(self.redis)
        state.unanswered = state.has_old = False
        return self._pulled(reply)

    def _until_ms(self) -> int:
        """How long a claim that is sent now is waited for."""
        return self.server_ms() + round(1000 * REPLY_S) if self.claimed.is_set() else 0

    def _next_claim(self) -> int:
        self._claim_seq += 1
        return self._claim_seq

    def _pulled(self, reply: scripts.ClaimReply) -> Pulled:
        queue, state = reply.queue, self._claims[reply.queue]
        state.disowned = [token for token in reply.lapsed if not (self._keeper and self._keeper.holds(token))]
        state.go_on(reply.offset)
        state.paused = reply.paused
        self._server_ahead_s = reply.now_ms / 1000 - time.monotonic()
        self.claimed.set()
        self._tell(reply.trouble)
        if reply.jobs:
            self._weather.proved()
        due_in_s = None if reply.due_in_ms is None else reply.due_in_ms / 1000
        if reply.others:
            # A stock worker that gives a job back tells nobody.
            due_in_s = min(1.0, due_in_s or 1.0)
        claims = [self._claim(queue, leased, reply.now_ms) for leased in reply.jobs]
        return Pulled(queue, claims, reply.more or bool(state.disowned), due_in_s)

    async def _spare_leases_after_a_restart(self, queue: str) -> None:
        """Before the first claim: a server that has just come up may hold leases whose owners are on their way."""
        with self._asking("look", queue):
            leases = await self.redis.exists(keys.later(queue))
            info: dict[str, Any] = await self.redis.info("server") if leases else {}
        if info.get("uptime_in_seconds", math.inf) * 1000 < self._lease_ms:
            await asyncio.sleep(self._lease_ms / 4000)

    async def _let_owners_go_first(self) -> None:
        """After an outage that this worker's keeper has seen, though perhaps nobody else of it did."""
        if self._keeper is None:
            return
        wait_s = self._keeper.owners_first_s()
        if wait_s is None:
            raise Away("the leases cannot be extended yet")
        if wait_s:
            await asyncio.sleep(wait_s)

    def _claim(self, queue: str, leased: scripts.Leased, now_ms: int) -> Claim:
        call = _call_of(leased, self._serializer)
        job_try = call.job_try if isinstance(call, Call) else None
        return Claim(
            id=keys.id_text(leased.id),
            queue=queue,
            token=leased.token,
            place=leased.place,
            starts=leased.starts,
            attempt=max(leased.starts, job_try or 0),
            call=call,
            body=leased.body or b"",
            now_ms=now_ms,
            history=history_of(leased.own),
            abort_ms=leased.abort_ms,
        )

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> Sequence[Verdict]:
        sending = self._unanswered.get(queue)
        if sending is None or sending.batch is not batch:
            sending = self._unanswered[queue] = _Sending(batch, self._serializer)
        while (part := sending.next_part()) is not None:
            if part.seq is None:
                self._settle_seq += 1
                part.seq = self._settle_seq
            with self._asking("settle", queue):
                reply = await self._record(queue, part, part.seq)
            if reply is None:
                for job_id in sending.lessen(part):
                    self._on_trouble(
                        f"the outcome of job {job_id!a} is larger than the plan allows: a marker is kept", ""
                    )
                continue
            sending.answered(part, reply.verdicts)
            self._tell(reply.trouble)
            for job_id in reply.dropped:
                self._on_trouble(f"the dead letter of job {job_id!a} was dropped to make room for newer ones", "")
        del self._unanswered[queue]
        return ["settled" if verdict == "1" else "refused" for verdict in sending.verdicts]

    async def _record(self, queue: str, part: "_Part", seq: int) -> scripts.SettleReply | None:
        """None: nothing was done, for it is larger than the plan allows, and can be made less."""
        try:
            return await scripts.settle(self.redis, queue, part.settlings, incarnation=self.incarnation, seq=seq)
        except ResponseError as refusal:
            if part.is_least or not is_too_large(refusal):
                raise
            return None

    async def wait(
        self, queues: Sequence[str], timeout_s: float, room: int, take: Callable[[Pulled], None]
    ) -> str | None:
        group = _group(queues)
        number = self._next_claim()
        wait = self._waits[group] = _Wait(keys.rouse(self.incarnation, number))
        call = None
        if room and self._may_claim(queues):
            call = scripts.Claiming(queues, room, self._lease_ms, self.incarnation, number, only_new=True)
        marks = {keys.mark(queue): queue for queue in queues}
        let_in = asyncio.get_running_loop().call_later(LET_IN_S, self._weather.granted, "wait", group)
        try:
            async with self._weather.waiting(timeout_s + WAIT_REPLY_S) as wait.limit:
                popped, *replies = await self._wait_and_claim(wait, ("BZPOPMIN", *marks, wait.key, timeout_s), call)
        except (*TROUBLE, Away) as error:
            if wait.roused:
                return None  # nobody waits for it any more, and what is wrong the next claim will find out
            away = error if isinstance(error, Away) else away_of(error, "wait")
            self._weather.failed("wait", away, group)
            raise away from None
        finally:
            let_in.cancel()
            del self._waits[group]
        claimed = await self._taken(call, replies[0], take) if call else None
        with self._asking("wait", group):
            if isinstance(popped, RedisError):
                raise popped
        announced = None if popped is None else marks.get(popped[0].decode())
        return None if announced == claimed else announced

    async def _wait_and_claim(self, wait: "_Wait", waiting: Sequence[Any], call: scripts.Claiming | None) -> list[Any]:
        """The second is done by the server as soon as the first is over: no way there and back lies between them."""
        if call is None:
            return await exchange(self._bell, waiting)
        for queue in call.queues:
            state = self._claims[queue]
            state.seq, state.unanswered = call.seq, True
        try:
            return await exchange(self._bell, waiting, call.command())
        except BaseException:
            self._lost_waits.add(wait.key)
            raise

    def _may_claim(self, queues: Sequence[str]) -> bool:
        """Whether the server may claim for us at a moment that it chooses.

        Not after it did, and we stood still: other workers had begun that job at once. Not while owners go first; nor
        where an earlier claim leaves something for the next one to say.
        """
        if time.monotonic() - self._late_at < PROMPT_AGAIN_S:
            return False
        if self._keeper is not None and self._keeper.owners_first_s() != 0:
            return False
        states = [self._claims.get(queue) for queue in queues]
        return all(state is not None and state.is_plain for state in states)

    async def _taken(self, call: scripts.Claiming, reply: Any, take: Callable[[Pulled], None]) -> str | None:
        """The queue from which was claimed behind a wait, if that is known; else the next claim asks for it again."""
        if isinstance(reply, NoScriptError):  # a claim by itself brings it
            return None
        if isinstance(reply, RedisError):
            with self._asking("claim", call.queues[-1]):
                raise reply
        answer = call.read(reply)
        unread_ms = self.server_ms() - answer.now_ms
        if unread_ms > LATE_MS:
            self._late_at = time.monotonic()
        if unread_ms > self._lease_ms / 2:
            return None  # others may have these jobs by now
        for queue in call.queues:
            self._claims[queue].unanswered = False
        self._claims[answer.queue].has_old = answer.more and not answer.jobs
        self._weather.answered("claim", answer.queue)
        take(self._pulled(answer))
        for _ in range(2):  # turns: what was taken begins, and what ends at once is settled, before all that comes next
            await asyncio.sleep(0)
        return answer.queue

    def rouse(self, queues: Sequence[str]) -> None:
        wait = self._waits.get(_group(queues))
        if wait is None or wait.roused:
            return
        wait.roused = True
        if wait.limit is not None:
            wait.limit.no_longer_than(ROUSE_S)
        rousing = asyncio.ensure_future(self._announce_end_in_time(wait.key))
        self._rousing.add(rousing)
        rousing.add_done_callback(self._rousing.discard)

    async def _announce_end_in_time(self, key: str) -> None:
        with suppress(*TROUBLE, TimeoutError):  # the wait's own limit ends it then
            async with asyncio.timeout(ROUSE_S):
                await self._announce_end(key)

    async def _announce_end(self, key: str) -> None:
        for reply in await exchange(self.redis, ("ZADD", key, 0, 0), ("EXPIRE", key, ROUSE_KEY_S)):
            if isinstance(reply, RedisError):
                raise reply

    async def _end_lost_waits(self, queue: str) -> None:
        """A server that has not noticed the end of a connection would claim for nobody, after we have asked again."""
        for key in list(self._lost_waits):
            with self._asking("claim", queue):
                await self._announce_end(key)
            self._lost_waits.discard(key)

    async def announce(self, queue: str) -> None:
        with away_when_lost("announce"):
            await self.redis.execute_command("ZADD", keys.mark(queue), 0, 0)

    async def due_in(self, queue: str) -> float | None:
        state = self._claims.get(queue)
        with self._asking("look", queue):
            if state is not None and state.paused:
                left_ms = await self._looking.execute_command("PTTL", keys.paused(queue))
                if left_ms != _NO_KEY:
                    return left_ms / 1000 if left_ms >= 0 else None
                state.paused = False
            first = await self._looking.execute_command("ZRANGE", queue, 0, 0, "WITHSCORES")
        if not first:
            return None
        score_ms = first[0][1] if isinstance(first[0], list | tuple) else float(first[1])
        return max(0.0, float(score_ms) / 1000 - self._server_ahead_s - time.monotonic())

    async def listen(self) -> None:
        """Until cancelled: then, and before, `hears` is false, and there are no news."""
        await self._ear.run()

    @property
    def look_s(self) -> float:
        return math.inf

    @property
    def hears(self) -> bool:
        return self._ear.hears

    async def news(self, after: int) -> int:
        return await self._ear.news(after)

    async def outlook(
        self, queues: Sequence[str], handlers: Collection[str], schedules: "Sequence[Schedule]"
    ) -> "Due | None":
        """When the first job of `queues` is due, a lease on one, or a schedule, by the primary; None: none at all.

        Jobs that wait for a worker that knows their handler count only if it is one of `handlers`, and schedules only
        if they are of `schedules`; those of a queue that is paused are due at the end of the pause, if it has one.
        """
        with self._asking("look"):
            return await scripts.outlook(self.redis, queues, handlers, schedules)

    async def disconnect(self) -> None:
        """Close every connection; what is asked next opens new ones."""
        try:
            await self._bell.connection_pool.disconnect()
        finally:
            await self.redis.connection_pool.disconnect()

    def server_ms(self) -> int:
        """The server's clock, without asking it. Not before a claim was answered."""
        return round(1000 * (self._server_ahead_s + time.monotonic()))

    async def ping(self) -> None:
        await self._ping(PING_S)

    async def _ping(self, longest_s: float) -> None:
        with self._asking("ping"):
            async with asyncio.timeout(longest_s):
                await self.redis.execute_command("EVAL", TRY_WRITING, 1, keys.trial(self.incarnation))

    async def probe(self) -> None:
        """Find out how the server is, if nothing has told it lately: one question for all who ask meanwhile.

        Takes a second at most and raises nothing; `away` knows. If it is not well, every `wait` ends with `Away`.
        """
        async with self._probing:
            now = time.monotonic()
            if self._weather.fresh or now - self._probed_at < PROBE_EVERY_S:
                return
            self._probed_at = now
            with suppress(Away):
                await self._ping(PROBE_S)

    async def forward_known(self, queue: str, names: Callable[[str], bool]) -> int:
        """Bring forward the jobs that wait for a handler which `names` knows; and forget old abort flags."""
        with away_when_lost("forward"):
            waiting: dict[bytes, bytes] = await self.redis.hgetall(keys.unknown(queue))
            ids = [job_id for job_id, name in waiting.items() if names(name.decode("utf-8", "replace"))]
            parts = [ids[at : at + 100] for at in range(0, len(ids), 100)] or [[]]
            return sum([await scripts.forward(self.redis, queue, part) for part in parts])

    async def eviction_policy(self) -> str | None:
        """What the server deletes by itself when its memory is full; None where it does not say."""
        with away_when_lost("look"):
            said: dict[str, Any] = await self.redis.info("memory")
            policy = said.get("maxmemory_policy")
            return policy if isinstance(policy, str) else None

    async def retire(self) -> None:
        """Say that this worker was told to stop: what it holds is not to blame if it dies from now on.

        Returns when it is said. Until then its death counts as a crash of its jobs; it may be cancelled.
        """
        while True:
            with suppress(*TROUBLE):
                await self.redis.set(keys.retired(self.incarnation), "", ex=keys.RETIRED_S)
                return
            await asyncio.sleep(RETIRE_AGAIN_S)

    async def close(self) -> None:
        for rousing in list(self._rousing):
            rousing.cancel()
        await self._bell.aclose()
        await self.redis.aclose()

    def _tell(self, trouble: Sequence[str]) -> None:
        for told in trouble:
            text, _, key = told.partition("\n")
            self._on_trouble(f"a key has a wrong type or cannot be written: {text}", key)


class _Wait:
    """A call of `wait`, and what ends it before its time."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.limit: Wait | None = None
        self.roused = False


def _group(queues: Sequence[str]) -> str:
    return ",".join(sorted(queues))  # in whatever order they are named


class _ClaimState:
    """What one queue's claims carry on from call to call."""

    def __init__(self) -> None:
        self.seq = 0
        self.unanswered = False
        """The claim of this number was sent and its reply is not known."""
        self.disowned: Sequence[str] = ()
        self.has_old = False
        """A wait has left jobs that were started before: only a claim by itself may take them."""
        self.paused = False
        """The last claim found jobs that are due, and the queue paused."""
        self._offset = 0
        self._from_head_at = 0.0

    @property
    def is_plain(self) -> bool:
        """The next claim begins at the head of the queue, and says nothing of earlier ones."""
        return not (self.unanswered or self.disowned or self.has_old or self.offset())

    def offset(self) -> int:
        now = time.monotonic()
        if now - self._from_head_at >= OFFSET_S:
            self._offset = 0
        if self._offset == 0:
            self._from_head_at = now
        return self._offset

    def go_on(self, offset: int) -> None:
        self._offset = offset


def _call_of(leased: scripts.Leased, serializer: Serializer | None) -> Call | Unreadable:
    if leased.body is not None:
        return wire.decode_call(leased.body, serializer)
    if leased.kind == "none":
        return Unreadable("the body is missing: it expired in the queue, or was deleted")
    if leased.kind == "oversized":
        return Unreadable(f"the body has more than {wire.MAX_BODY} bytes")
    return Unreadable(f"the body's key is a {leased.kind}, not a string")


def history_of(own: bytes | None) -> History:
    """What a job remembers beside its starts."""
    if own is None:
        return NEW
    crashes, _, rest = own.partition(b"|")
    try:
        past = replace(from_json(rest, History) if rest else NEW, crashes=int(crashes))
    except (ValueError, RecursionError):  # not as we write it: a job is not to be lost for the memory of its errors
        return NEW
    numbers = (past.crashes, past.snoozes, past.snoozed_since_ms or 0, past.unknown_since_ms or 0)
    return past if all(0 <= number < LARGEST for number in numbers) else NEW


def _own_of(history: History) -> bytes:
    """As `history_of` reads it. What says nothing is left out."""
    names = [one.name for one in fields(History) if one.name != "crashes"]
    said = {name: getattr(history, name) for name in names if getattr(history, name) != getattr(NEW, name)}
    return f"{history.crashes}|".encode() + to_json(said)


LONGEST_S = 10 * 365 * keys.DAY_S
MOST_BYTES = 8 * 2**20
"""About the most that goes to the server in one call, if a single outcome is not more."""


@record
class _Part:
    """Outcomes of a batch that go in one call, and the number under which they do, whenever they are sent again."""

    places: list[int] = field(default_factory=list)
    settlings: list[scripts.Settling] = field(default_factory=list)
    size: int = 0
    seq: int | None = None
    is_least: bool = False
    """One outcome, of which nothing more can be left out."""


class _Sending:
    """A batch on its way: what has been answered is not sent again."""

    def __init__(self, batch: Sequence[Settlement], serializer: Serializer | None) -> None:
        self.batch = batch
        self._serializer = serializer
        self.verdicts = ["0"] * len(batch)
        self._parts: list[_Part] = []
        for place, settlement in enumerate(batch):
            self._add(place, _settling(settlement, serializer))

    def _add(self, place: int, settling: scripts.Settling) -> None:
        size = len(settling.result) + len(settling.body) + len(settling.letter) + len(settling.own)
        if not self._parts or self._parts[-1].size + size > MOST_BYTES:
            self._parts.append(_Part())
        part = self._parts[-1]
        part.places.append(place)
        part.settlings.append(settling)
        part.size += size

    def next_part(self) -> _Part | None:
        return self._parts[0] if self._parts else None

    def answered(self, part: _Part, verdicts: str) -> None:
        self._parts.remove(part)
        for place, verdict in zip(part.places, verdicts, strict=True):
            self.verdicts[place] = verdict
            if verdict == "2":  # the body expired while it ran: once more, with it
                self._parts.append(_Part([place], [_settling(self.batch[place], self._serializer, with_body=True)]))

    def lessen(self, part: _Part) -> Sequence[str]:
        """Instead of a part that is too large, two; of a single outcome, what is left of it: of this job, then."""
        self._parts.remove(part)
        half = len(part.places) // 2
        if half:
            parts = (part.places[:half], part.settlings[:half]), (part.places[half:], part.settlings[half:])
            self._parts[:0] = [_Part(places, settlings) for places, settlings in parts]
            return ()
        settlement = self.batch[part.places[0]]
        self._parts.insert(0, _Part(part.places, [_least(settlement, self._serializer)], is_least=True))
        return (settlement.claim.id,)


def _settling(
    settlement: Settlement, serializer: Serializer | None, *, with_body: bool = False, least: bool = False
) -> scripts.Settling:
    """An outcome as it is sent. One that cannot be written becomes a dead letter: it must not stop the others."""
    try:
        return _as_asked(settlement, serializer, with_body, least)
    except Exception as error:
        failure = Failure("Unwritable", f"its outcome cannot be written ({type(error).__name__})", "permanent")
        claim = replace(settlement.claim, call=Unreadable(failure.text))
        dead = replace(settlement, claim=claim, outcome=Dead("undecodable", failure))
        return _as_asked(dead, serializer, with_body, least)


def _least(settlement: Settlement, serializer: Serializer | None) -> scripts.Settling:
    """An outcome without its value and the job's arguments; a dead letter's body goes there from where it is.

    What would run again has no other part than a body that is gone, and cannot be put back: it becomes a dead letter.
    """
    if not isinstance(settlement.outcome, Done | Dead | Cancelled):
        failure = Failure("Unwritable", "its outcome is larger than the plan allows", "permanent")
        settlement = replace(settlement, outcome=Dead("undecodable", failure))
    return _settling(settlement, serializer, least=True)


@lru_cache(maxsize=256)
def _ms(length_s: float) -> int:
    """In ms, and within what the server takes: no handler's wish may stop what is settled with it."""
    return round(1000 * min(max(length_s, 0.0), LONGEST_S))


_ENDED: Mapping[type[Outcome], str] = {Done: "c", Dead: "f", Cancelled: "fx"}


def _as_asked(settlement: Settlement, serializer: Serializer | None, with_body: bool, least: bool) -> scripts.Settling:
    claim, outcome = settlement.claim, settlement.outcome
    known = "u" if claim.history.unknown_since_ms else ""
    common: dict[str, Any] = {
        "id": keys.id_bytes(claim.id),
        "token": claim.token,
        "place": claim.place,
        "starts": claim.starts,
    }
    body = claim.body if with_body else b""
    match outcome:
        case Done() | Dead() | Cancelled():
            keep_ms = None if settlement.keep_result_s == math.inf else _ms(settlement.keep_result_s)
            letter = to_json(wire.letter_of(claim, settlement)) if isinstance(outcome, Dead) else b""
            encode = wire.encode_marker if least else wire.encode_result
            aborted = "a" if claim.abort_ms is not None else ""
            return scripts.Settling(
                **common,
                what="end",
                result=b"" if keep_ms == 0 else encode(settlement, serializer),
                result_ms=keep_ms,
                letter=letter,
                body=claim.body if letter and not least else b"",
                flags=_ENDED[type(outcome)] + known + aborted + ("b" if least else ""),
            )
        case Released(why="shutdown" | "no-slot"):
            # As it was, but for the trace of the run that was cut short.
            trace = settlement.history.trace
            own = b"" if trace == claim.history.trace else _own_of(replace(claim.history, trace=trace))
            return scripts.Settling(
                **common, what="back", keep_starts=attempt_after(claim, outcome), own=own, body=body
            )
        case _:
            unknown = isinstance(outcome, Released) and outcome.why == "unknown-handler"
            name = claim.call.handler if unknown and isinstance(claim.call, Call) else ""
            return scripts.Settling(
                **common,
                what="again",
                keep_starts=attempt_after(claim, outcome),
                delay_ms=_ms(outcome.delay_s or 0.0),
                own=_own_of(settlement.history),
                letter=name.encode("utf-8", "backslashreplace"),
                body=body,
                flags="n" if unknown else known,
            )
