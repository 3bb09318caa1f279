"""What handler modules write: `@handler`, `@lifespan`, `@middleware`.

Declaring has no side effect; `runtime serve` collects what is declared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload

from runtime.core import limits
from runtime.core.errors import HandlerInvalid, Invalid, OptionInvalid, PayloadInvalid
from runtime.core.lifespan import Lifespan
from runtime.core.limits import Keyed, one_each
from runtime.core.middleware import CallNext, Middleware
from runtime.core.priority import Ranked
from runtime.core.quota import Counted, Quota
from runtime.core.request import Options, Request, check_name, check_options, check_queue
from runtime.core.retry import Retry
from runtime.core.span import Span, seconds
from runtime.core.spec import DEFAULT_QUEUE, Spec, declared_at

if TYPE_CHECKING:
    from runtime.adapters.payload import Signature
    from runtime.client import Job
    from runtime.core.schedule import Misfire, Timetable

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Handler(Generic[P, R]):
    """A declared handler: called by the worker for each job, and typed for whoever enqueues one."""

    def __init__(self, function: Callable[Concatenate[Any, P], Any], spec: Spec, options: Options) -> None:
        self.function = function
        self.spec = spec
        self._options = options
        self.__name__ = spec.name
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__

    @property
    def name(self) -> str:
        """The name on the wire."""
        return self.spec.name

    async def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Add a job; one round trip. An id that is taken gives the job that has it, with `created` False.

        Raises `PayloadInvalid` (arguments that do not fit), `OptionInvalid`, `QuotaExceeded`, `RedisUnreachable`; then
        nothing was written, except that after `RedisUnreachable` nobody knows. Uses the client of `connect`, else one
        of its own that it opens from the settings of the environment.
        """
        from runtime.client import current

        request = self.request(*args, **kwargs)
        (job,) = await (await current()).send([request])
        return job

    def request(self, /, *args: P.args, **kwargs: P.kwargs) -> Request[R]:
        """The same as a value, for `enqueue_all`. Raises `PayloadInvalid`."""
        packed, named = self._pack(args, kwargs)
        options = self._unique(args, kwargs)
        priority = options.get("priority")
        return Request(
            handler=self.name,
            queue=options.get("queue", self.spec.queue),
            priority=self._rank(packed, named) if priority is None else priority,
            args=packed,
            kwargs=named,
            options=options,
            read=self.signature.unpack_result,
            counted=self._count(packed, named),
        )

    def options(self, **options: Unpack[Options]) -> Handler[P, R]:
        """This handler, to be enqueued with these options. Raises `OptionInvalid`."""
        check_options(options)
        return Handler(self.function, self.spec, {**self._options, **options})

    async def __call__(self, ctx: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function itself: for tests, and for one handler that calls another. One that is no `async def` runs in a
        thread, as in a worker."""
        value: R = await self._call(ctx, *args, **kwargs)
        return value

    async def run(self, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A job's run: arguments checked against the signature (`Invalid` if they do not fit), result as plain data."""
        try:
            args, kwargs = self.signature.unpack(args, kwargs)
        except (TypeError, ValueError) as error:
            raise Invalid(str(error)) from None
        return self.signature.pack_result(await self._call(context, *args, **kwargs))

    def _pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return self.signature.pack(args, kwargs)
        except (TypeError, ValueError) as error:
            raise PayloadInvalid(
                f"{self.name}: {error}", hint=f"its arguments are {self.name}{self.signature}"
            ) from None

    def _rank(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        priority = self.spec.priority
        if isinstance(priority, int):
            return priority
        return priority.of(self.signature.arguments(args, kwargs)[priority.parameter])

    def _unique(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Options:
        """The options, and the key of a job that is unique by its arguments: those that are not given count, too."""
        unique_for = self._options.get("unique_for", self.spec.unique_for_s)
        if not unique_for:
            return self._options
        options: Options = {**self._options, "unique_for": unique_for}
        if "key" in options or not seconds(unique_for):
            return options
        from runtime.adapters.payload import digest

        try:
            return {**options, "key": digest(self.signature.arguments(args, kwargs))}
        except (TypeError, ValueError) as error:
            raise PayloadInvalid(
                f"{self.name}: no key can be made of the arguments: {error}", hint="give it one: options(key=…)"
            ) from None

    def _count(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Counted | None:
        quota = self.spec.quota
        if quota is None:
            return None
        given = self.signature.arguments(args, kwargs)
        return quota.count(self.name, given[quota.by], given[quota.tier] if quota.tier else None)

    @cached_property
    def signature(self) -> Signature:
        # Read when first needed: its annotations may name what the module defines further down.
        from runtime.adapters.payload import Signature

        return Signature(self.function)

    @cached_property
    def _call(self) -> Callable[..., Awaitable[Any]]:
        from runtime.adapters.payload import is_async

        function: Callable[..., Any] = self.function
        return function if is_async(function) else _threaded(function)

    def __repr__(self) -> str:
        return f"<Handler {self.name} of queue {self.spec.queue} at {self.spec.where}>"


def _threaded(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        from runtime.adapters.threads import in_thread

        value: object = await in_thread(partial(function, *args, **kwargs))
        if isinstance(value, Awaitable):
            if isinstance(value, Coroutine):
                value.close()  # one that nobody awaits complains
            raise TypeError("the handler has returned something to await: write it as `async def`")
        return value

    return call


_TAKES_ANY_NUMBER = 0x04  # CO_VARARGS, as in the documentation of `inspect`


class Bucket(limits.Bucket):
    __doc__ = limits.Bucket.__doc__
    __slots__ = ()

    async def available(self) -> int:
        """The tokens that are there now; below zero if others wait for some. Raises `RedisUnreachable`.

        Uses the client of `connect`, else one of its own that it opens from the settings of the environment.
        """
        from runtime.client import current

        return await (await current()).available(self)


class _Decorator:
    def __init__(self, name: str | None, spec: Callable[[str, str], Spec]) -> None:
        self._name = name
        self._spec = spec

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Handler[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R]) -> Handler[P, R]: ...

    def __call__(self, function: Callable[..., Any]) -> Any:
        if isinstance(function, Handler):
            raise HandlerInvalid(
                f"{function.name!r} at {function.spec.where} is a handler already",
                hint="one decorator is enough: @cron and @every take the options of @handler; "
                "for a second schedule, a second function that calls the first",
            )
        if not callable(function):
            raise HandlerInvalid(
                f"@handler is given {function!r:.60}, which is no function",
                hint='name its options: @handler(queue="…")',
            )
        if isinstance(function, type):
            raise HandlerInvalid(
                f"{function.__name__!r} is a class, and a handler is a function",
                hint="write a function whose first parameter is ctx; what handlers share is opened by @lifespan",
            )
        code = getattr(function, "__code__", None)
        where = declared_at(function)
        name = self._name or getattr(function, "__name__", None)
        if not isinstance(name, str):
            raise HandlerInvalid(
                f"a handler at {where} has no name that is a text", hint="give it one: @handler(name=…)"
            )
        try:
            check_name("name", name)
        except OptionInvalid as problem:
            raise HandlerInvalid(f"a handler at {where}: {problem.message}") from None
        if code and not code.co_argcount and not code.co_flags & _TAKES_ANY_NUMBER:
            raise HandlerInvalid(f"the handler {name!r} at {where} takes no context", hint="its first parameter is ctx")
        from runtime.adapters.payload import defaults, yields

        if yields(function):
            raise HandlerInvalid(
                f"the handler {name!r} at {where} is a generator: calling it runs nothing of it",
                hint="return the result; what follows a `yield` would never run",
            )
        spec = self._spec(name, where)
        for rule in (spec.quota, spec.priority):
            if isinstance(rule, Quota | Ranked):
                rule.check(f"the handler {name!r} at {where}", defaults(function))
        made: Handler[..., Any] = Handler(function, spec, {})
        return made


@overload
def handler(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...


@overload
def handler(function: Callable[Concatenate[Any, P], R], /) -> Handler[P, R]: ...


@overload
def handler(
    *,
    name: str | None = None,
    queue: str = DEFAULT_QUEUE,
    timeout: Span | None = None,
    retry: Retry | None = None,
    priority: int | Ranked = 0,
    keep_result: Span = "1h",
    unique_for: Span = 0,
    limit: Keyed | Iterable[Keyed] = (),
    quota: Quota | None = None,
) -> _Decorator: ...


def handler(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str = DEFAULT_QUEUE,
    timeout: Span | None = None,
    retry: Retry | None = None,
    priority: int | Ranked = 0,
    keep_result: Span = "1h",
    unique_for: Span = 0,
    limit: Keyed | Iterable[Keyed] = (),
    quota: Quota | None = None,
) -> Any:
    """Declare a function whose first parameter is the `Context` as a handler of jobs.

    An `async def` runs in the event loop. A `def` runs in a thread, with the context variables of its run; the async
    methods of `ctx` are called from there as `anyio.from_thread.run(lambda: ctx.once("create", create))`. Nothing can
    end a thread: one that is asked to stop (by a user, its timeout, a shutdown) learns it by what it waits for in this
    way, by `ctx.cancel_reason` or by `anyio.from_thread.check_cancelled()`, and keeps its slot until it ends. What it
    returns within 10 s counts; after that its job is a dead letter (`stuck`). A worker that stops gives it back after
    2 s, and ends with it.

    `name` is its name on the wire (default: the function's), `queue` the Redis key of its queue, `timeout` the longest
    run (default: the worker's), `retry` what follows a failure (default: three attempts), `priority` that of its jobs
    unless an enqueue says otherwise (a number, or `by` an argument), `keep_result` how long a result can be read ("0s":
    none is kept), `unique_for` how long from its enqueue a job is the only one with its key, or with its arguments
    (`Options.unique_for`), `limit` what every attempt takes before it runs: of each `Bucket` a token, of each
    `Concurrency` a permit that it holds to its end (it waits for up to 10 s in its slot, else the job goes back for as
    long as it takes), `quota` how many of its jobs one user may enqueue. Raises `HandlerInvalid`, `OptionInvalid` or
    `LimitInvalid` where it stands.
    """
    check_options({"queue": queue} if isinstance(priority, Ranked) else {"priority": priority, "queue": queue})
    limited = one_each(limit)
    if retry is not None and not isinstance(retry, Retry):
        raise HandlerInvalid(f"retry={retry!r:.40}: it is a Retry", hint="e.g. retry=Retry(3)")

    if quota is not None and not isinstance(quota, Quota):
        raise HandlerInvalid(f"quota={quota!r:.40}: it is a Quota", hint='Quota("exports", by="user_id", allow=…)')

    def spec(its_name: str, where: str) -> Spec:
        try:
            return Spec(
                name=its_name,
                queue=queue,
                timeout_s=None if timeout is None else _positive(timeout, "timeout"),
                retry=retry or Retry(),
                priority=priority,
                keep_result_s=seconds(keep_result),
                unique_for_s=seconds(unique_for),
                limit=limited,
                quota=quota,
                where=where,
            )
        except (TypeError, ValueError) as error:
            raise HandlerInvalid(f"the handler {its_name!r} at {where}: {error}") from None

    decorate = _Decorator(name, spec)
    return decorate if function is None else decorate(function)


class Handled(TypedDict, total=False):
    """What `handler` may be told of one that has a schedule."""

    name: str
    queue: str
    timeout: Span | None
    retry: Retry | None
    priority: int
    keep_result: Span
    limit: Keyed | Iterable[Keyed]


class _Scheduled:
    """Declares a handler without arguments, and when it is run."""

    def __init__(self, decorate: _Decorator, timetable: Timetable, misfire: Misfire) -> None:
        self._decorate = decorate
        self._timetable = timetable
        self._misfire = misfire

    @overload
    def __call__(self, function: Callable[[Any], Coroutine[Any, Any, R]]) -> Handler[[], R]: ...

    @overload
    def __call__(self, function: Callable[[Any], R]) -> Handler[[], R]: ...

    def __call__(self, function: Callable[..., Any]) -> Any:
        declared: Handler[..., Any] = self._decorate(function)
        needed = declared.signature.required
        if needed:
            raise HandlerInvalid(
                f"the handler {declared.name!r} at {declared.spec.where} has a schedule: nobody gives it {needed[0]!r}",
                hint="give its arguments defaults; or enqueue one job for each from a handler that has the schedule",
            )
        made: Handler[..., Any] = Handler(
            function, replace(declared.spec, timetable=self._timetable, misfire=self._misfire), {}
        )
        return made


def cron(
    expression: str,
    /,
    *,
    tz: str = "UTC",
    misfire: Misfire = "latest",
    **handled: Unpack[Handled],
) -> _Scheduled:
    """Declare a function whose only parameter is the `Context` as a handler that is run at the times of a cron
    expression, once however many workers there are: `@cron("0 3 * * *", tz="America/Sao_Paulo")`.

    `expression` has five fields (minute, hour, day of month, month, day of week; `*`, lists, ranges, steps, names, `L`,
    `#`), or six with the seconds first; its times are those of the zone `tz`. In summer time what is at fixed times of
    the day is once a day (at the end of the hour that spring leaves out, the first time of two in autumn), and what is
    every so many minutes or hours goes on as if there were no change; with six fields what the clock shows counts.

    A schedule begins when a worker first tells of it. `misfire` says what becomes of times at which no worker was
    there: "latest" (the last one is run, however late), "skip" (the same, but not later than a minute), "all" (each is
    run, the last 1,000 at most). The job's id is `<name>:<ms since 1970>`, `ctx.scheduled_for` its time. It may be
    enqueued by hand, too. The rest is as with `handler`. Raises `HandlerInvalid` where it stands.
    """
    from runtime.adapters.cron import Cron

    return _scheduled(
        lambda: Cron(expression, tz),
        misfire,
        handled,
    )


def every(
    span: Span,
    /,
    *,
    misfire: Misfire = "latest",
    **handled: Unpack[Handled],
) -> _Scheduled:
    """The same at the multiples of a span since 1970 (UTC): `@every("60s")`. The span is a whole number of seconds.

    One run does not wait for the end of the one before: a `Concurrency` in `limit` keeps them apart.
    """
    from runtime.adapters import cron as timetables

    return _scheduled(
        lambda: timetables.every(span),
        misfire,
        handled,
    )


def _scheduled(timetable: Callable[[], Timetable], misfire: Misfire, handled: Handled) -> _Scheduled:
    from runtime.core.schedule import MISFIRES

    unknown = sorted(handled.keys() - Handled.__annotations__.keys())
    if unknown:
        known = ", ".join(Handled.__annotations__)
        raise HandlerInvalid(
            f"{unknown[0]!r} is nothing that a handler with a schedule may be told", hint=f"its options are {known}"
        )
    if misfire not in MISFIRES:
        raise HandlerInvalid(f"misfire={misfire!r:.40}: it is one of {', '.join(MISFIRES)}")
    decorate = handler(**handled)
    try:
        return _Scheduled(decorate, timetable(), misfire)
    except (TypeError, ValueError) as error:
        raise HandlerInvalid(str(error)) from None


def lifespan(function: Callable[[], AsyncIterator[S]]) -> Lifespan[S]:
    """Declare what opens the state that the handlers share: an `async def` with one `yield`, of the state.

        @lifespan
        async def resources() -> AsyncIterator[State]:
            async with open_database() as database:
                yield State(database)

    A worker opens it before its first claim and closes it when its last run has ended; handlers have it as `ctx.state`
    (`Context[State]`). While the worker is quiet it is closed, as an open socket would keep the platform from putting
    the worker to sleep. Opening may take a minute, closing 5 s, both in one task of its own. When it cannot be opened,
    or ends by itself, the worker gives back what it holds and ends with `WORKER_CRASH` and exit 1. What a worker serves
    has one lifespan at most. Raises `HandlerInvalid` where it stands.
    """
    return Lifespan(function)


Around = Callable[[Any, CallNext], Awaitable[Any]]


@overload
def middleware(function: Around, /) -> Middleware: ...


@overload
def middleware(*, queue: str | None = None) -> Callable[[Around], Middleware]: ...


def middleware(function: Around | None = None, /, *, queue: str | None = None) -> Any:
    """Declare what stands around every run of a handler: `async def m(ctx, call_next): return await call_next()`.

    It runs within the handler's timeout, span and log context, and sees the result, as the plain data that is recorded,
    and the exceptions: those of the arguments' check and the handler's ways to speak (`Snooze`, `RetryLater`) too. What
    it returns or raises takes their place. The first that is declared is the outermost; modules go in the order in
    which they are named. With `queue`, it is for the jobs of that queue alone. Raises `HandlerInvalid` where it stands.
    """
    if queue is not None:
        check_queue(queue)
    return partial(_middleware, queue=queue) if function is None else _middleware(function)


def _middleware(function: Around, queue: str | None = None) -> Middleware:
    from runtime.adapters.payload import is_async

    code = getattr(function, "__code__", None)
    where = declared_at(function)
    name = str(getattr(function, "__name__", function))
    if not is_async(function):
        raise HandlerInvalid(
            f"the middleware {name!r} at {where} is not async", hint="async def m(ctx, call_next): await call_next()"
        )
    if code and code.co_argcount < 2 and not code.co_flags & _TAKES_ANY_NUMBER:
        raise HandlerInvalid(
            f"the middleware {name!r} at {where} does not take two parameters", hint="(ctx, call_next)"
        )
    return Middleware(function, name, queue, where)


def _positive(span: Span, name: str) -> float:
    length_s = seconds(span)
    if length_s == 0:
        raise ValueError(f"{name}={span!r}: it must be longer than nothing")
    return length_s
