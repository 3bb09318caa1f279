"""What the fixture `rt` is."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from runtime import registry
from runtime.adapters.http.sessions import AiohttpSessions
from runtime.adapters.redis import codecs, inspector, wire
from runtime.adapters.redis.connection import connect as open_redis
from runtime.adapters.redis.inspector import Listed
from runtime.adapters.telemetry.logs import Within
from runtime.apis import Apis
from runtime.client import Client, connect, unworkable, use
from runtime.core.errors import JobCancelled, JobFailed, WaitTimedOut
from runtime.core.job import Call, Claim, Dead, Retried, Settlement, Verdict
from runtime.core.retry import Retry
from runtime.core.span import Span, seconds, spell
from runtime.core.spec import Spec
from runtime.core.values import frozen
from runtime.declare import Handler
from runtime.engine.context import Context
from runtime.engine.drought import Drought
from runtime.engine.lifetime import Lifetime
from runtime.engine.limiter import Limiter
from runtime.engine.middleware import within
from runtime.engine.pools import Pools
from runtime.groups import groups
from runtime.ports import Away, Entry, Journal
from runtime.registry import Equipment, Handlers
from runtime.settings import Settings
from runtime.testing.ageing import age
from runtime.testing.clock import Clock, stilled
from runtime.testing.server import Server
from runtime.testing.worker import Worker

AT_ONCE_MS = 50
"""What would be due so shortly after the end of `advance` is due: a test takes some real time itself."""
MOST_LISTED = 1000

_log = logging.getLogger("runtime.testing")


@frozen
class Failure:
    """An attempt that failed, or a job that became a dead letter without one."""

    job_id: str
    handler: str
    attempt: int
    error: BaseException | None
    """What the handler raised, with its traceback; None where it was not run, or did not stop."""
    text: str
    """As it is kept with the job."""
    dead: bool
    """There is no further attempt: it is a dead letter now."""


class Harness:
    """A worker, a queue and a clock for one test: enqueue as your program does, then `drain`, or `advance`.

    The server is real, and so is the worker: it runs in the test's event loop, and only while it is told to. The
    fixture `rt` makes one, opens it around the test, and closes it.
    """

    def __init__(
        self, server: Server, settings: Settings, handlers: Handlers, equipment: Equipment, state: Any = None
    ) -> None:
        self.url = server.url
        """The URL of the test's Redis, empty at its start. REDIS_URL of the environment has it, too."""
        self.redis = server
        """`rt.redis.stop()` and `rt.redis.start()`: a server that is away for a while."""
        self.failures: list[Failure] = []
        """Every attempt that failed, in their order."""
        self._settings = settings
        self._serializer = codecs.named(settings.serializer)
        self._handlers = handlers
        self._equipment = equipment
        self._groups = groups(handlers, (), settings.concurrency)
        self._journal = _Records(self.failures)
        entries = {name: _Entry(handler, self._journal) for name, handler in handlers.items()}
        self._entries = within(entries, equipment.middleware)
        self._given = state
        self._worker: Worker | None = None
        self._hired: list[Worker] = []
        """Those that were killed, too."""
        self._is_open = False
        self._alone = asyncio.Lock()
        self._open = AsyncExitStack()

    async def drain(self, timeout: Span = "30s") -> None:
        """Run everything that is due, and what becomes due by that; returns when nothing is due and nothing runs.

        What is deferred, retried or snoozed waits for `advance`. A handler that fails fails no test: look at the job's
        result, or at `failures`. Raises `TimeoutError` after so much real time, and gives back what was still running;
        `RedisUnreachable`. Returns at once when the worker is killed.
        """
        async with self._alone:
            run = asyncio.ensure_future(self._on_duty().run_due())
            try:
                await asyncio.wait([run], timeout=seconds(timeout))
                late = None if run.done() else await self._explain(timeout)
            finally:
                run.cancel()
                await asyncio.wait([run])
            if late is not None:
                raise TimeoutError(late)
            try:
                run.result()
            except Away as away:
                raise unworkable(self.url, str(away), answers=away.refused) from None

    async def advance(self, span: Span, timeout: Span = "30s") -> None:
        """Let so much time go by: whatever comes due meanwhile is run at its time, in its order. Nobody sleeps.

        Everything in Redis is made older, so that its moments come nearer and what expires does so; real time goes on
        beside it, as everywhere. Begins and ends with a `drain`, each of which may take `timeout`.
        """
        left_ms = math.ceil(1000 * seconds(span))
        await self.drain(timeout)
        while left_ms > 0:
            due_ms = await self._due_in_ms()
            step_ms = left_ms if due_ms is None or due_ms > left_ms + AT_ONCE_MS else due_ms
            await age(self._admin, step_ms, self._queues, self._serializer)
            await self._clock.advance(step_ms)
            left_ms -= step_ms
            await self.drain(timeout)

    def kill_worker(self) -> None:
        """Let the worker die as by SIGKILL: what it runs comes to no outcome, and its leases lapse by themselves.

        To be called while `drain` runs, by a handler or by what it calls; `drain` returns then. The handler is
        cancelled where it waits next, as a coroutine has no other end. The next `drain` has a new worker, and
        `advance("10s")` brings the end of the lease, at its default.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def fail_next(
        self, handler: Handler[..., Any] | str, error: BaseException | type[BaseException], times: int = 1
    ) -> None:
        """Let the next attempts of this handler raise `error` instead of being run."""
        name = handler if isinstance(handler, str) else handler.name
        self._journal.planned.setdefault(name, deque()).extend([error] * times)

    def context(self, handler: Handler[..., Any] | str = "test", *, attempt: int = 1) -> Context[Any]:
        """For a call without a job: `await flashcards(rt.context(), Deck("cardiology"))`. Limits and steps are real."""
        name = handler if isinstance(handler, str) else handler.name
        job_id, token = f"test-{secrets.token_hex(8)}", secrets.token_hex(8)
        worker = self._on_duty()
        worker.lend_lease(job_id, token)
        now_ms = wire.now_ms()
        call = Call(name, (), {}, now_ms)
        claim = Claim(job_id, "arq:queue", token, str(now_ms), attempt, attempt, call, b"", now_ms)
        limiter = Limiter(claim, name, worker.ports, Drought(self._entries, lambda: None), lambda more_s: None)
        return Context(claim, call, worker.ports, limiter, lambda: None, lambda length_s: nullcontext())

    async def jobs(self) -> list[Listed]:
        """What is in the queues: of each those that wait, in their order, those that are deferred, and dead letters."""
        found: list[Listed] = []
        for queue in self._queues:
            listed = await inspector.jobs(self._admin, queue, MOST_LISTED, self._serializer)
            if isinstance(listed, inspector.Trouble):
                raise RuntimeError(f"{queue}: {listed.text}")
            found += listed
        return found

    @property
    def client(self) -> Client:
        """The one that handlers enqueue with in this test."""
        return self._client

    @property
    def state(self) -> Any:
        """What handlers find in `ctx.state`: what `rt_state` gives, else what the lifespan has yielded for this test.

        Raises `LifespanMissing`.
        """
        return self._lifetime.state() if self._given is None else self._given

    @property
    def running(self) -> bool:
        """A worker runs what is due."""
        return self._alone.locked()

    def last_failure(self, job_id: str) -> Failure | None:
        """The last failure of this job, if it had one."""
        return next((failure for failure in reversed(self.failures) if failure.job_id == job_id), None)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(stilled())
            self._admin = open_redis(self.url)
            stack.push_async_callback(self._admin.aclose)
            self._clock = Clock(self._admin)
            await self._clock.start()
            await self._open_pools(stack)
            await self._open_state(stack)
            self._sessions = AiohttpSessions()
            stack.push_async_callback(self._sessions.close)
            await stack.enter_async_context(connect(self.url))
            self._client = _Client(self)
            use(self._client)
            stack.push_async_callback(self._client.close)
            stack.push_async_callback(self._dismiss)
            self._open = stack.pop_all()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _open_pools(self, stack: AsyncExitStack) -> None:
        self._pools = Pools(_log.warning)
        running = asyncio.create_task(self._pools.run())
        await asyncio.sleep(0)

        async def close() -> None:
            self._pools.close()
            await running

        stack.push_async_callback(close)

    async def _open_state(self, stack: AsyncExitStack) -> None:
        failures: list[Exception] = []
        lifespan = self._equipment.lifespan if self._given is None else None
        self._lifetime = Lifetime(lifespan, failures.append, _log.warning)
        running = asyncio.create_task(self._lifetime.run())

        async def close() -> None:
            await self._lifetime.close()
            self._lifetime.end()
            await running

        stack.push_async_callback(close)
        await self._lifetime.open()
        for failure in failures:
            raise failure

    def _on_duty(self) -> Worker:
        """The worker that is not dead."""
        if self._worker is None:
            if not self._is_open:
                raise RuntimeError("`rt` is open within the test itself: not in its fixtures, and not after it")
            self._worker = self._hire()
            self._hired.append(self._worker)
        return self._worker

    def _hire(self) -> Worker:
        return Worker(
            self.url,
            self._settings,
            self._entries,
            self._groups,
            registry.schedules(self._handlers, self._queues),
            Apis(self._equipment.buckets),
            self._clock,
            self._pools,
            self._sessions,
            self._journal,
            lambda: self.state,
        )

    async def _dismiss(self) -> None:
        self._is_open = False
        for worker in self._hired:
            await worker.close()

    @property
    def _queues(self) -> list[str]:
        return [queue for group in self._groups for queue in group.queues]

    async def _due_in_ms(self) -> int | None:
        due_in_s = await self._on_duty().due_in_s()
        return None if due_in_s is None else round(1000 * due_in_s)

    async def _explain(self, timeout: Span) -> str:
        runs = ", ".join(sorted(self._journal.running.values()))
        due = Counter(job.handler or job.id for job in await self.jobs() if job.state == "waiting")
        waits = ", ".join(f"{count} × {name}" for name, count in due.items())
        return (
            f"after {spell(seconds(timeout))} of real time not everything that was due has ended."
            f" Still running: {runs or 'nothing'}. Waiting: {waits or 'nothing'}"
        )


class _Records(Journal):
    """What happened in a test; the engine's journal."""

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        self.planned: dict[str, deque[BaseException | type[BaseException]]] = {}
        """By handler, what its next attempts raise."""
        self.errors: dict[str, BaseException] = {}
        """By job, what its handler has raised."""
        self.running: dict[str, str] = {}
        """By token, what runs now, in words."""

    def within(self, claim: Claim, part: str | None = None) -> AbstractContextManager[str | None]:
        return Within(claim)

    def started(self, claim: Claim, running: int) -> None:
        self.running[claim.token] = f"{_handler_of(claim)} ({claim.id})"

    def ended(self, settlement: Settlement, running: int) -> None:
        claim, outcome = settlement.claim, settlement.outcome
        self.running.pop(claim.token, None)
        error = self.errors.pop(claim.id, None)
        if not isinstance(outcome, Retried | Dead):
            return
        failure = outcome.failure
        text = f"{failure.error}: {failure.text}" if failure.text else failure.error
        failed = Failure(claim.id, _handler_of(claim), claim.attempt, error, text, isinstance(outcome, Dead))
        self.failures.append(failed)
        what = "is a dead letter" if failed.dead else "will be tried again"
        _log.warning(
            "%s failed at its attempt %d and %s: %s", failed.handler, failed.attempt, what, text, exc_info=error
        )

    def settled(self, settlement: Settlement, verdict: Verdict) -> None: ...

    def lost(self, claim: Claim) -> None:
        self.running.pop(claim.token, None)

    def stuck(self, claim: Claim) -> None:
        _log.error("%s does not stop: it swallows cancellations", _handler_of(claim))

    def weather(self, away: Away) -> None:
        _log.warning("Redis is away: %s", away)

    def crashed(self, actor: str, error: BaseException, restart_in_s: float) -> None:
        _log.error("the actor of %s crashed", actor, exc_info=error)


def _handler_of(claim: Claim) -> str:
    return claim.call.handler if isinstance(claim.call, Call) else "a job that cannot be read"


class _Entry(Entry):
    """A handler whose failures are seen, and may be planned."""

    def __init__(self, entry: Handler[..., Any], records: _Records) -> None:
        self._entry = entry
        self._records = records
        self._spec: Spec = replace(entry.spec, retry=_Whole(entry.spec.retry))

    @property
    def spec(self) -> Spec:
        return self._spec

    async def run(self, context: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        try:
            planned = self._records.planned.get(self.spec.name)
            if planned:
                raise planned.popleft()
            return await self._entry.run(context, args, kwargs)
        except BaseException as error:
            self._records.errors[context.job_id] = error
            raise


class _Whole(Retry):
    """Without the lot: the wait is all of its backoff, so that a test knows when a job is tried again."""

    def __init__(self, retry: Retry) -> None:
        super().__init__(retry.attempts, on=retry.on, base=retry.base_s, max=retry.max_s)

    def delay_s(self, failures: int, chance: float) -> float:
        return super().delay_s(failures, 1.0)


class _Client(Client):
    """Who waits for a result that will not come is told so, and why."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness.url, wake_urls=())
        self._harness = harness

    async def result(self, job_id: str, queue: str, timeout_s: float | None) -> wire.Result:
        failure = self._harness.last_failure(job_id)
        error = failure.error if failure else None
        for _ in range(3):  # turns: a `drain` that is started beside this one runs by then
            await asyncio.sleep(0)
        if timeout_s is None and not self._harness.running:
            status = await self.status(job_id, queue)
            if status in ("waiting", "deferred", "active"):
                why = f"its attempt {failure.attempt} failed: {failure.text}" if failure else None
                raise WaitTimedOut(
                    f"job {job_id} has no result: it is {status}, and no worker runs",
                    cause=why,
                    hint="await rt.drain() runs what is due, rt.advance(…) also what is due later",
                ) from error
        found = await super().result(job_id, queue, timeout_s)
        if not found.ok and error is not None:
            kind = JobCancelled if found.cancelled else JobFailed
            raise kind(job_id, found.error or "error", found.text) from error
        return found
