"""What handler modules write: `@handler`. Declaring has no side effect; `runtime serve` collects what is declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from runtime.core import limits
from runtime.core.errors import HandlerInvalid, Invalid, PayloadInvalid
from runtime.core.limits import Keyed, one_each
from runtime.core.quota import Counted, Quota
from runtime.core.request import Options, Request, check_options
from runtime.core.retry import Retry
from runtime.core.span import Span, seconds
from runtime.core.spec import DEFAULT_QUEUE, Spec

if TYPE_CHECKING:
    from runtime.adapters.payload import Signature
    from runtime.client import Job

P = ParamSpec("P")
R = TypeVar("R")


class Handler(Generic[P, R]):
    """A declared handler: called by the worker for each job, and typed for whoever enqueues one."""

    def __init__(self, function: Callable[Concatenate[Any, P], Awaitable[R]], spec: Spec, options: Options) -> None:
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
        options = self._options
        return Request(
            handler=self.name,
            queue=options.get("queue", self.spec.queue),
            priority=options.get("priority", self.spec.priority),
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
        """The function itself: for tests, and for one handler that calls another."""
        return await self.function(ctx, *args, **kwargs)

    async def run(self, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A job's run: arguments checked against the signature (`Invalid` if they do not fit), result as plain data."""
        try:
            args, kwargs = self.signature.unpack(args, kwargs)
        except (TypeError, ValueError) as error:
            raise Invalid(str(error)) from None
        return self.signature.pack_result(await self.function(context, *args, **kwargs))

    def _pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return self.signature.pack(args, kwargs)
        except (TypeError, ValueError) as error:
            raise PayloadInvalid(
                f"{self.name}: {error}", hint=f"its arguments are {self.name}{self.signature}"
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

    def __repr__(self) -> str:
        return f"<Handler {self.name} of queue {self.spec.queue} at {self.spec.where}>"


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

    def __call__(self, function: Callable[Concatenate[Any, P], Awaitable[R]]) -> Handler[P, R]:
        code = getattr(function, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else "?"
        name = self._name or getattr(function, "__name__", None)
        if not isinstance(name, str):
            raise HandlerInvalid(
                f"a handler at {where} has no name that is a text", hint="give it one: @handler(name=…)"
            )
        if code and not code.co_argcount and not code.co_flags & _TAKES_ANY_NUMBER:
            raise HandlerInvalid(f"the handler {name!r} at {where} takes no context", hint="its first parameter is ctx")
        from runtime.adapters.payload import defaults, is_async

        if not is_async(function):
            raise HandlerInvalid(
                f"the handler {name!r} at {where} is not async",
                hint="write it as `async def`: it runs in the event loop",
            )
        spec = self._spec(name, where)
        if spec.quota is not None:
            spec.quota.check(f"the handler {name!r} at {where}", defaults(function))
        return Handler(function, spec, {})


@overload
def handler(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Handler[P, R]: ...


@overload
def handler(
    *,
    name: str | None = None,
    queue: str = DEFAULT_QUEUE,
    timeout: Span | None = None,
    retry: Retry | None = None,
    priority: int = 0,
    keep_result: Span = "1h",
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
    priority: int = 0,
    keep_result: Span = "1h",
    limit: Keyed | Iterable[Keyed] = (),
    quota: Quota | None = None,
) -> Any:
    """Declare an `async def` whose first parameter is the `Context` as a handler of jobs.

    `name` is its name on the wire (default: the function's), `queue` the Redis key of its queue, `timeout` the longest
    run (default: the worker's), `retry` what follows a failure (default: three attempts), `priority` that of its jobs
    unless an enqueue says otherwise, `keep_result` how long a result can be read ("0s": none is kept), `limit` what
    every attempt takes before it runs: of each `Bucket` a token, of each `Concurrency` a permit that it holds to its
    end (it waits for up to 10 s in its slot, else the job goes back for as long as it takes), `quota` how many of its
    jobs one user may enqueue. Raises `HandlerInvalid`, `OptionInvalid` or `LimitInvalid` where it stands.
    """
    check_options({"priority": priority, "queue": queue})
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
                limit=limited,
                quota=quota,
                where=where,
            )
        except (TypeError, ValueError) as error:
            raise HandlerInvalid(f"the handler {its_name!r} at {where}: {error}") from None

    decorate = _Decorator(name, spec)
    return decorate if function is None else decorate(function)


def _positive(span: Span, name: str) -> float:
    length_s = seconds(span)
    if length_s == 0:
        raise ValueError(f"{name}={span!r}: it must be longer than nothing")
    return length_s
