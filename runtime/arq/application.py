"""What the settings class of an arq application says, checked before anything is started."""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from datetime import timedelta, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name, expires_extra_ms, health_check_key_suffix
from arq.cron import CronJob
from arq.worker import Function, Worker, func

from runtime import settings
from runtime.adapters.redis.codecs import Serializer
from runtime.arq import address, codec, crons
from runtime.core.errors import HandlerInvalid
from runtime.core.policy import describe
from runtime.core.values import frozen
from runtime.registry import import_one, make_importable

Hook = Callable[[dict[Any, Any]], Any]

OF_ARQ = frozenset(inspect.signature(Worker).parameters)
"""What arq reads of a settings class; all else in it is the application's own."""
TYPES = "runtime_types"
HOOKS = ("on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end")
MOST_JOBS = 1000
"""So many run at once at most, whatever max_jobs says."""
BLOCK_LIMIT_S = (60.0, 86_400.0)
"""For how long, at least and at most, a job may block the event loop where the environment does not say. Between them
it is as long as arq waits before it takes a job for lost: with arq, functions that block for minutes do their work."""
DEFAULT_TIMEOUT_S = 300.0
LOST_AFTER_S = 10.0
"""That is so much more than the longest timeout (arq 0.28 `worker.py`, `in_progress_timeout_s`)."""


@frozen
class Application:
    """An arq application. What its settings class does not say is None where the environment is asked next."""

    name: str
    """Of the settings, dotted."""
    functions: Mapping[str, Function | CronJob]
    queue: str
    url: str | None = field(repr=False)
    """Where its Redis is."""
    redis_settings: RedisSettings | None = field(repr=False)
    redis_pool: ArqRedis | None = field(repr=False)
    hooks: Mapping[str, Hook]
    ctx: dict[Any, Any] = field(repr=False)
    serializer: Serializer
    job_serializer: Any
    job_deserializer: Any
    max_jobs: int | None
    poll_delay_s: float | None
    """How often to look for jobs where the server does not tell of them; None: as seems fit."""
    job_completion_wait_s: float | None
    job_timeout_s: float | None
    """inf: unlimited."""
    keep_result_s: float
    keep_result_forever: bool
    """That goes before how long."""
    max_tries: float
    """inf: unlimited."""
    retry_jobs: bool
    allow_abort_jobs: bool
    """Aborts are looked for at short intervals. (Where it is not set, when leases are extended.)"""
    burst: bool
    max_burst_jobs: int
    """Below zero: as many as there are."""
    health_check_key: str
    health_check_interval_s: float
    expires_extra_ms: int
    timezone: tzinfo | None

    def environment(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """The environment, with what the application says laid over it; and arq's defaults where neither says a thing.

        What is read of it are this worker's settings.
        """
        said: dict[str, str] = {}
        if self.url is not None:
            said["REDIS_URL"] = self.url
        if self.max_jobs is not None:
            said["WORKER_CONCURRENCY"] = str(min(self.max_jobs, MOST_JOBS))
        if self.job_completion_wait_s is not None:
            said["GRACEFUL_SHUTDOWN_TIMEOUT_MS"] = str(round(1000 * self.job_completion_wait_s))
        defaults = {"WORKER_CONCURRENCY": "10", "RUNTIME_BLOCK_LIMIT": f"{self._block_limit_s:g}s"}
        named = any(env.get(name, "").strip() for name in ("REDIS_URL", "UPSTASH_REDIS_URL"))
        if not named and not settings.examine(env).production:  # there, it is a mistake that none is named
            defaults["REDIS_URL"] = address.url_of(RedisSettings())
        return {**defaults, **env, **said}

    def cron(self, name: str) -> Literal["shared", "own"] | None:
        """Whether the cron job of this name is fired once for all workers, or each enqueues its own; None: no such."""
        its = self.functions.get(name)
        if not isinstance(its, CronJob):
            return None
        return "own" if crons.timetable(its, self.timezone) is None else "shared"

    @property
    def _block_limit_s(self) -> float:
        usual_s = DEFAULT_TIMEOUT_S if self.job_timeout_s is None else self.job_timeout_s
        timeouts_s = [usual_s if one.timeout_s is None else one.timeout_s for one in self.functions.values()]
        least_s, most_s = BLOCK_LIMIT_S
        return min(max(least_s, LOST_AFTER_S + max(timeouts_s)), most_s)


def read(name: str) -> Application:
    """The application whose settings (a class, an object or a dict) have this dotted name.

    Raises `HandlerInvalid` with the attribute that is wrong, and how to mend it.
    """
    make_importable(Path.cwd())
    said = _attributes(_import(name), name)
    try:
        return _read(name, _Said(said))
    except HandlerInvalid as problem:
        raise HandlerInvalid(f"{name}: {problem.message}", cause=problem.cause, hint=problem.hint) from None


def _import(name: str) -> object:
    if "." not in name:
        raise HandlerInvalid(f"--arq {name}: it is the dotted name of a settings class", hint="app.WorkerSettings")
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_one(module), attribute)
    except AttributeError:
        raise HandlerInvalid(
            f"the module {module!r} has no {attribute}",
            hint="name the settings as for the command arq: package.module.WorkerSettings",
        ) from None


def _attributes(found: object, name: str) -> Mapping[str, Any]:
    """What arq looks for; inherited attributes, too, which arq overlooks."""
    wanted = {*OF_ARQ, TYPES}
    if isinstance(found, Mapping):
        return {key: value for key, value in cast("Mapping[str, Any]", found).items() if key in wanted}
    if isinstance(found, type | ModuleType):
        return {key: getattr(found, key) for key in wanted if hasattr(found, key)}
    own = getattr(found, "__dict__", None)
    if own is None:
        raise HandlerInvalid(f"{name} is a {type(found).__name__}", hint="settings are a class, an object or a dict")
    # From the type, a function that stands in the class is not bound to the object.
    of_class = {key: getattr(type(found), key) for key in wanted if hasattr(type(found), key)}
    return {**of_class, **{key: value for key, value in own.items() if key in wanted}}


_NO_LISTS: tuple[type, ...] = (str, bytes, Mapping)


class _Said:
    """Attributes with their rules. Each method raises `HandlerInvalid`, naming the attribute."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._said = said

    def get(self, name: str, default: Any = None) -> Any:
        return self._said.get(name, default)

    def whole(self, name: str, default: int | None, least: int, most: int) -> Any:
        value = self.get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def span(self, name: str, default: float | None) -> Any:
        """Seconds, or a timedelta. In arq None is no default: a limit that is not there."""
        value = self.get(name, default)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if value is not default and not _is_length(value):
            raise _wrong(name, value, "a number of seconds, or a timedelta")
        return value

    def switch(self, name: str, default: bool) -> bool:
        return bool(self.get(name, default))

    def kind(self, name: str, kind: type, what: str) -> Any:
        value = self.get(name)
        if value is not None and not isinstance(value, kind):
            raise _wrong(name, value, what)
        return value

    def callable(self, name: str) -> Any:
        value = self.get(name)
        if value is not None and not callable(value):
            raise _wrong(name, value, "a function")
        return value

    def items(self, name: str) -> Iterable[Any]:
        value = self.get(name) or ()
        if isinstance(value, _NO_LISTS) or not hasattr(value, "__iter__"):
            raise _wrong(name, value, "a list")
        found: Iterable[Any] = value
        return found


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _wrong(name: str, value: object, rule: str) -> HandlerInvalid:
    return HandlerInvalid(f"{name}={value!r:.60}", hint=f"{name} is {rule}")


def _read(name: str, said: _Said) -> Application:
    pool = said.kind("redis_pool", ArqRedis, "an ArqRedis, as create_pool gives it")
    at = said.kind("redis_settings", RedisSettings, "a RedisSettings, such as RedisSettings.from_dsn(…)")
    url = address.url_of_pool(pool) if pool is not None else address.url_of(at) if at is not None else None
    queue = said.get("queue_name", default_queue_name)
    if queue is None and pool is not None:
        queue = pool.default_queue_name
    if not isinstance(queue, str) or not queue:
        raise _wrong("queue_name", queue, "the name of a queue, such as 'arq:queue'")
    dumps, loads = said.callable("job_serializer"), said.callable("job_deserializer")
    timeout_s = said.span("job_timeout", None) if said.get("job_timeout", ...) is not None else float("inf")
    ctx = said.kind("ctx", dict, "a dict")
    zone = said.kind("timezone", tzinfo, "a tzinfo, such as ZoneInfo('America/Sao_Paulo')")
    return Application(
        name=name,
        functions=_functions(said, zone),
        queue=queue,
        url=url,
        redis_settings=at,
        redis_pool=pool,
        hooks={hook: said.callable(hook) for hook in HOOKS if said.callable(hook) is not None},
        ctx={} if ctx is None else ctx,
        serializer=codec.serializer(dumps, loads, said.get(TYPES, ())),
        job_serializer=dumps,
        job_deserializer=loads,
        max_jobs=said.whole("max_jobs", None, 1, 2**31),
        poll_delay_s=said.span("poll_delay", None),
        job_completion_wait_s=said.span("job_completion_wait", None),
        job_timeout_s=timeout_s,
        keep_result_s=said.span("keep_result", 3600.0),
        keep_result_forever=said.switch("keep_result_forever", False),
        max_tries=math.inf if said.get("max_tries") == math.inf else said.whole("max_tries", 5, 1, 2**31),
        retry_jobs=said.switch("retry_jobs", True),
        allow_abort_jobs=said.switch("allow_abort_jobs", False),
        burst=said.switch("burst", False),
        max_burst_jobs=said.whole("max_burst_jobs", -1, -(2**31), 2**31),
        health_check_key=said.get("health_check_key") or queue + health_check_key_suffix,
        health_check_interval_s=said.span("health_check_interval", 3600.0),
        expires_extra_ms=said.whole("expires_extra_ms", expires_extra_ms, 1, 2**53),
        timezone=zone,
    )


def _functions(said: _Said, zone: tzinfo | None) -> Mapping[str, Function | CronJob]:
    """By name; of two with one name the last counts, as in arq."""
    found: dict[str, Function | CronJob] = {}
    for one in said.items("functions"):
        try:
            function = func(one)
        except (Exception, SystemExit) as error:  # not async, or a dotted name that cannot be imported
            failure = describe(error)
            raise HandlerInvalid(
                f"functions has {_called(one)}",
                cause=f"{failure.error}: {failure.text}",
                hint="a function of arq is an `async def`, the dotted name of one, or func(…) of either",
            ) from None
        found[function.name] = function
    for one in said.items("cron_jobs"):
        if not isinstance(one, CronJob):
            raise HandlerInvalid(f"cron_jobs has {_called(one)}", hint="write it as arq.cron.cron(function, hour=…)")
        _check_times(one, zone)
        found[one.name] = one
    if not found:
        raise HandlerInvalid("it has no functions and no cron_jobs", hint="functions = [your_function]")
    return found


def _check_times(cron: CronJob, zone: tzinfo | None) -> None:
    for name, within in crons.WITHIN.items():
        said = getattr(cron, name)
        values = cast("Iterable[object]", said if isinstance(said, crons.SEVERAL) else (said,))
        # arq would look for such a time for ever.
        if not any(value in within or not isinstance(value, int) for value in values):
            raise HandlerInvalid(
                f"cron_jobs has {cron.name} with {name}={said!r:.60}",
                hint=f"{name} is from {within[0]} to {within[-1]}",
            )
    try:
        if not crons.is_in_some_year(cron.month, cron.day):
            raise ValueError(f"no year has month={cron.month!r:.60} with day={cron.day!r:.60}")
        crons.times(cron, zone).after(round(1000 * time.time()))
    except Exception as error:  # a weekday that is none, or a date that no year has
        failure = describe(error)
        raise HandlerInvalid(
            f"cron_jobs has {cron.name} at times that never come",
            cause=f"{failure.error}: {failure.text}",
            hint="month 1 to 12, day 1 to 31, weekday 0 to 6 or mon, tues, wed, thurs, fri, sat, sun",
        ) from None


def _called(one: object) -> str:
    return one if isinstance(one, str) else getattr(one, "__qualname__", None) or f"{one!r:.60}"


__all__: Sequence[str] = ["Application", "Hook", "read"]
