"""The server: the models of some queues, behind the commands that a worker sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from runtime.adapters.redis import keys
from runtime.adapters.redis.scripts import script
from tests.redis.model import Claimed, Fire, Held, Model, Outcome, Plan
from tests.simulation.clock import EPOCH_S, Agenda, Clock

Command = Sequence[Any]
Answered = Callable[[list[Any]], None]


class Witness(Protocol):
    """Told of what the server has accepted."""

    def claimed(self, queue: str, worker: str, number: int, claimed: Claimed, lease_until: float) -> None: ...

    def extended(self, held: Held, lease_until: float) -> None: ...

    def settled(self, outcome: Outcome, by: tuple[str, int]) -> None: ...

    def fired(self, queue: str, fire: Fire, added: Sequence[bool]) -> None: ...

    def published(self, channel: str, said: bytes) -> None: ...


class Waiter:
    """A client that is blocked, and what it has sent behind that."""

    def __init__(self, names: Sequence[str], rest: Sequence[Command], answered: Answered) -> None:
        self.names = names
        self.rest = rest
        self.answered = answered


class Server:
    def __init__(self, clock: Clock, agenda: Agenda, queues: Sequence[str], witness: Witness) -> None:
        self._clock = clock
        self._calls = agenda
        self._witness = witness
        self.models = {queue: Model() for queue in queues}
        self._roused: set[str] = set()
        self._waiters: list[Waiter] = []
        self._fence = 0
        self.up_since = -1e6
        self.lease_ms = 10_000
        self._scripts = {
            script(name).sha: getattr(self, f"_{name}") for name in ("claim", "extend", "settle", "agenda", "fire")
        }

    @property
    def now_ms(self) -> int:
        return math.ceil((EPOCH_S + self._clock.now) * 1000)

    def handle(self, commands: Sequence[Command], answered: Answered) -> Waiter | None:
        """Do this, and `answered` with the replies, at once or when something is announced: then who waits is given."""
        first, *rest = commands
        if first[0] == "BZPOPMIN":
            waiter = Waiter(first[1:-1], rest, answered)
            self._waiters.append(waiter)
            self._calls.after(first[-1], lambda: self._let_go(waiter, None))
            self.announce()
            return waiter
        answered([self._do(command) for command in commands])
        self.announce()
        return None

    def forget(self, waiter: Waiter) -> None:
        """Its connection is closed."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def restart(self) -> None:
        """Nothing is lost, but who is connected."""
        self._waiters.clear()
        self.up_since = self._clock.now

    def announce(self) -> None:
        """Serve who waits for what is there, the first first; and say what is to be said."""
        for model in self.models.values():
            told, model.told = model.told, []
            for channel, said in told:
                self._witness.published(channel, said)
        for waiter in list(self._waiters):
            if waiter in self._waiters and (name := next(filter(self._pop, waiter.names), None)) is not None:
                self._let_go(waiter, [name.encode(), b"0", b"0"])

    def _let_go(self, waiter: Waiter, popped: list[bytes] | None) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter.answered([popped, *map(self._do, waiter.rest)])
            self.announce()

    def _pop(self, name: str) -> bool:
        if name in self._roused:
            self._roused.remove(name)
            return True
        for queue, model in self.models.items():
            if model.marked and name == keys.mark(queue):
                model.marked = False
                return True
        return False

    def _do(self, command: Command) -> Any:
        match command:
            case ["EVALSHA", sha, count, *rest]:
                return self._scripts[sha](rest[:count], rest[count:])
            case ["ZADD", name, *_]:
                for queue, model in self.models.items():
                    model.marked = model.marked or name == keys.mark(queue)
                if name.startswith("rt:rouse:"):
                    self._roused.add(name)
                return 1
            case ["ZRANGE", queue, 0, 0, "WITHSCORES"]:
                first = min(((score, job_id) for job_id, score in self.models[queue].queue.items()), default=None)
                return [] if first is None else [first[1].encode(), b"%.17g" % first[0]]
            case ["EXISTS", name]:
                return int(any(name == keys.later(queue) and model.later for queue, model in self.models.items()))
            case ["PTTL", name]:
                (model,) = (model for queue, model in self.models.items() if name == keys.paused(queue))
                model.expire(self.now_ms)
                left_ms = model.paused.until("") - self.now_ms if "" in model.paused else -2
                return -1 if left_ms == math.inf else left_ms
            case ["ZRANGEBYSCORE", name, "-inf", due_ms]:
                plans = self._model_of(name).plans
                return [name.encode() for name, plan in plans.items() if plan.next_ms and plan.next_ms <= due_ms]
            case ["TIME"]:
                return [self.now_ms // 1000, self.now_ms % 1000 * 1000]
            case ["INFO", "server"]:
                return {"uptime_in_seconds": int(self._clock.now - self.up_since)}
            case ["EXPIRE" | "EVAL", *_]:
                return b"OK"
            case _:
                raise AssertionError(f"nobody told the server what {command[0]} is")

    # -- the scripts, by their headers

    def _claim(self, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        room, lease_ms, incarnation, seq, again, _, *disowned = args
        now, queues, which = self.now_ms, names[::5], -1
        self._fence = max(self._fence + 1000, round((EPOCH_S + self._clock.now) * 1e6))
        while True:
            which = self._first_due(queues, which + 1)
            queue = queues[which]
            claimed = self.models[queue].claim(
                incarnation, seq, room, now, lease_ms=lease_ms, fence=self._fence, again=again == "again",
                disowned=disowned,
            )  # fmt: skip
            if not claimed.paused or which == len(queues) - 1:
                break
        self._witness.claimed(queue, incarnation, seq, claimed, self._clock.now + lease_ms / 1000)
        flat: list[Any] = []
        for job in claimed.jobs:
            own = None if job.own is None else job.own.encode()
            abort = None if job.abort_ms is None else b"%.17g" % job.abort_ms
            kind = b"none" if job.body is None else b"string"
            flat += [job.id.encode(), job.token.encode(), b"%.17g" % job.place, job.starts, job.body, own, abort, kind]
        due_in = -1 if claimed.due_in_ms is None else claimed.due_in_ms
        lapsed = [token.encode() for token in claimed.lapsed]
        return [b"%d" % now, int(claimed.more), b"%.17g" % due_in, 0, claimed.others, flat, lapsed, [], which,
                int(claimed.paused)]  # fmt: skip

    def _first_due(self, queues: Sequence[str], start: int) -> int:
        """The first from `start` on in which something is due, or the last."""
        due = (n for n in range(start, len(queues)) if self._is_due(self.models[queues[n]]))
        return next(due, len(queues) - 1)

    def _is_due(self, model: Model) -> bool:
        return any(at <= self.now_ms for at in model.queue.values())

    def _extend(self, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        lease_ms, reply = args[0], list[Any]()
        for a in range(1, len(args), 5):
            held = _held(args[a : a + 4])
            ours, abort = self.models[names[0]].extend(
                held, self.now_ms, lease_ms=lease_ms, renew=args[a + 4] == "renew"
            )
            if ours:
                self._witness.extended(held, self._clock.now + lease_ms / 1000)
            reply += [int(ours), None if abort is None else b"%.17g" % abort]
        return reply

    def _settle(self, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        seq, incarnation = args[0], names[3].split(":")[2]
        batch = [_outcome(args[a : a + 13]) for a in range(3, len(args), 13)]
        verdicts = self.models[names[0]].settle(incarnation, seq, batch, self.now_ms)
        for outcome, verdict in zip(batch, verdicts, strict=True):
            if verdict == "1":
                self._witness.settled(outcome, (incarnation, seq))
        return [verdicts.encode(), [], []]

    def _agenda(self, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        plans = [self._model_of(names[0]).plans.get(name, Plan()) for name in args]
        nexts = [None if plan.next_ms is None else b"%.17g" % plan.next_ms for plan in plans]
        return [b"%d" % self.now_ms, nexts, [None if plan.said is None else plan.said.encode() for plan in plans]]

    def _fire(self, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        name, known_next, known_said, next_ms, said, fired, priority, keep_ms, *jobs = args
        known = Plan(None if known_next == "" else float(known_next), known_said or None)
        fire = Fire(
            name, known, None if next_ms == "" else next_ms, said, str(fired),
            list(zip(jobs[::2], jobs[1::2], strict=True)), priority,
        )  # fmt: skip
        added = self.models[names[0]].fire(fire, self.now_ms, keep_ms=keep_ms)
        if added is None:
            return [b"moved"]
        self._witness.fired(names[0], fire, added)
        return list(map(int, added))

    def _model_of(self, schedule: str) -> Model:
        (model,) = (model for queue, model in self.models.items() if schedule == keys.schedule(queue))
        return model


def _held(args: Sequence[Any]) -> Held:
    job_id, token, place, starts = args
    return Held(job_id.decode(), token, float(place), starts)


def _outcome(args: Sequence[Any]) -> Outcome:
    what, keep, delay_ms, own, result, result_ms, letter, body, flags = args[4:]
    return Outcome(_held(args[:4]), what, keep, delay_ms, own.decode(), result, result_ms, letter.decode(), body, flags)
