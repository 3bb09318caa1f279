"""What a handler is given: who the job is, and what it may use."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import anyio

from runtime.core.job import Call, Claim
from runtime.core.limits import Keyed, wanted
from runtime.core.policy import CANCEL_REASONS, CancelReason, Stop
from runtime.core.pool import Pool
from runtime.core.span import Span, seconds
from runtime.engine.limiter import PATIENCE_S, Limit, Limiter
from runtime.engine.toll import Toll
from runtime.ports import Ports

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Keyed)
if TYPE_CHECKING:  # that a bare Context is a Context[Any] is the type checkers' affair alone
    from typing_extensions import TypeVar as TypeVarWithDefault

    S = TypeVarWithDefault("S", default=Any)
else:
    S = TypeVar("S")


class Checked(Generic[P, T]):
    """A step for `Context.once` with a way to look whether it was taken already.

    When a run died between taking the step and noting its value, `check` is called with the same arguments: the value
    it finds is taken as the step's, and only on None is the step taken again.
    """

    def __init__(self, step: Callable[P, Awaitable[T]], *, check: Callable[P, Awaitable[T | None]]) -> None:
        self._step = step
        self.check = check

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._step(*args, **kwargs)


async def _look_up(step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The value of a step that was taken, as far as it can tell."""
    return await cast("Checked[P, T]", step).check(*args, **kwargs) if isinstance(step, Checked) else None


class Context(Mapping[str, Any], Generic[S]):
    """The first argument of every handler. `Context[State]` says what its lifespan yields.

    It is also a Mapping with the keys of arq's ctx (`job_id`, `job_try`, `enqueue_time`, `score`), so that functions
    written for arq run as they are.
    """

    def __init__(
        self,
        claim: Claim,
        call: Call,
        ports: Ports,
        limiter: Limiter,
        stopped: Callable[[], Stop | None],
        shield: Callable[[float], AbstractContextManager[None]],
    ) -> None:
        self._claim = claim
        self._call = call
        self._ports = ports
        self._limiter = limiter
        self._stopped = stopped
        self._shield = shield
        self._tolls: dict[str, Toll] = {}

    @property
    def state(self) -> S:
        """What the lifespan has yielded, the same for all handlers. Raises `LifespanMissing` if none is declared."""
        return cast("S", self._ports.state())

    @property
    def job_id(self) -> str:
        return self._claim.id

    @property
    def queue(self) -> str:
        return self._claim.queue

    @property
    def handler(self) -> str:
        """The handler's name on the wire."""
        return self._call.handler

    @property
    def attempt(self) -> int:
        """Starts of this job so far, the present one included; a snooze or a shutdown gives its start back."""
        return self._claim.attempt

    @property
    def crashes(self) -> int:
        """How often a worker died while it ran this job."""
        return self._claim.history.crashes

    @property
    def enqueued_at(self) -> datetime:
        """When the job was enqueued, by the producer's clock."""
        return datetime.fromtimestamp(self._call.enqueued_ms / 1000, UTC)

    @property
    def scheduled_for(self) -> datetime | None:
        """The occurrence that a schedule has fired it for (in UTC; the run may be later); None for any other job."""
        moment_ms = self._call.scheduled_ms
        return None if moment_ms is None else datetime.fromtimestamp(moment_ms / 1000, UTC)

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why this run was asked to stop; None while it was not. For an `except asyncio.CancelledError` or a `finally`.

        `user`: somebody has cancelled the job, and it will not run again. `timeout`: it ran for too long; another
        attempt follows, if there is one. `shutdown`: its worker is stopping; it runs again elsewhere, its attempt given
        back. `lost lease`: another worker has the job by now, or it is gone; what this run still does nobody sees. The
        first reason stands. A cancel that the handler itself has made, of a task of its own, has none.
        """
        why = self._stopped()
        return None if why is None else CANCEL_REASONS[why]

    async def once(self, step: str, take: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value of `take(*args, **kwargs)`, which is called only if no attempt of this job has finished `step`.

        The value is kept with the job: plain data only (`TypeError` otherwise). If an earlier attempt began the step
        and died before it could note the value, nobody knows whether it was taken: then a `Checked` step is looked up
        first, any other is taken again. Raises `LeaseLost` if the job is no longer ours. Names are per job.
        """
        with self._ports.journal.within(self._claim, f"once {step}"):
            known = await self._ports.ledger.begin(self._claim, step)
            if known.state == "done":
                return cast("T", known.value)  # it was this step's value when it was noted
            value = await _look_up(take, *args, **kwargs) if known.state == "begun" else None
            if value is None:
                value = await take(*args, **kwargs)
            await self._ports.ledger.finish(self._claim, step, value)
            return value

    async def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell how far this run is: `await ctx.progress(3, 10, "rendering")`. `Job.progress` and `GET /jobs/{id}` show
        it for as long as the run goes on.

        It may be told a thousand times a second: once a second the latest is written down, and the last one always is
        if the run goes on for another second. It never waits for Redis; what cannot be written is tried again. The note
        is redacted as failures are, and cut after 200 characters. Raises `ProgressInvalid` for what is no number from
        0, or no text. May be cancelled.
        """
        from runtime.core.progress import check  # for those alone who tell

        check(done, total, note)
        self._ports.board().show(self._claim, done, total, note)
        await anyio.sleep(0)  # a handler that does nothing else lets others run

    def limit(self, what: Keyed | Mapping[K, int], *, cost: int = 1, patience: Span = PATIENCE_S) -> Limit:
        """Take tokens for a block: `async with ctx.limit({requests: 1, tokens: 900}) as grant:`, or of one bucket
        `ctx.limit(tokens, cost=900)`. All or none; the block begins when they may be used. Of a `Concurrency` it takes
        a permit, which is given back at its end: `ctx.limit(exports)`, `ctx.limit({exports: 1, requests: 1})`.

        A wait of up to `patience` is slept through in the slot; where it would be longer, `Limited` is raised: the job
        is snoozed until it can go on, and its attempt given back. While Redis is away it waits. `grant.settle` corrects
        an estimate. Raises `LimitInvalid` for a cost that the bucket can never hold, and for a permit that
        the job has already, from an outer block or from its handler's `limit=`.
        """
        return Limit(self._limiter, wanted({what: cost} if isinstance(what, Keyed) else what), seconds(patience))

    def http(self, name: str) -> Any:
        """The `aiohttp.ClientSession` of this name, one per worker: shared connections, a timeout on every request.

        The name of an API that we know (openai, anthropic, judit), or of one for which a bucket is declared
        (`Bucket("stripe.requests", …)`), stands for a session whose requests wait for its buckets and its breaker, and
        teach them; a POST carries an `Idempotency-Key`, the same when it is repeated after a failure or in a later run
        of the job. There a failure is raised:
        `Limited` (waiting, no attempt is used), `Transient`, `Permanent`.
        """
        api = self._ports.apis(name)
        if api is not None and name not in self._tolls:
            self._tolls[name] = Toll(api, self._claim, self._limiter, self._ports.limits)
        return self._ports.sessions.session(name, self._tolls.get(name))

    @asynccontextmanager
    async def use(self, pool: Pool[T]) -> AsyncGenerator[T]:
        """An item of `pool` for a block: `async with ctx.use(chromium) as browser`. Waits, in order, until one is free.

        Raises what the pool's `open` raised, `TimeoutError` if it took longer than a minute, and `RuntimeError` where
        this job holds all items of the pool itself. Blocks of one pool within each other may wait for other jobs that
        do likewise, to the end of their timeouts: take what a job needs in one block.
        """
        with self._ports.journal.within(self._claim, f"pool {pool.name}"):
            loan = await self._ports.pools.take(pool)
        with loan as item:
            yield item

    def shield(self, span: Span) -> AbstractContextManager[None]:
        """`with ctx.shield("5s"):` in a handler that is being cancelled: what the block waits for is not cut short by
        further cancels (a user's, the timeout's, a shutdown's) for so long, after which the block is cancelled too.

        Entered before the run is asked to stop, it holds that off in the same way, from then on. In all, shields last
        for 10 s after the run was asked, whatever is asked for: a platform that stops a worker waits no longer than it
        was told to. The worker waits for them when it stops, after its grace if need be. Only an end of the process
        goes before it: a third signal, SIGKILL, or the watchdog.

        Without effect in the thread of a handler that is no `async def`, which nothing cuts short.
        """
        return self._shield(seconds(span))

    def _as_arq(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "job_try": self.attempt,
            "enqueue_time": self.enqueued_at,
            "score": int(float(self._claim.place)),
        }

    def __getitem__(self, key: str) -> Any:
        return self._as_arq()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._as_arq())

    def __len__(self) -> int:
        return len(self._as_arq())

    def __repr__(self) -> str:
        return f"<Context {self.handler} job={self.job_id} attempt={self.attempt}>"


def untimed(context: Context, most_s: float) -> AbstractContextManager[None]:
    """A block of this run whose time is not the handler's: see `Limiter.untimed`."""
    return context._limiter.untimed(most_s)  # pyright: ignore[reportPrivateUsage]  # no handler is to have it
