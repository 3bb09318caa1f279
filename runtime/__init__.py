"""An asyncio worker runtime for arq queues in Redis. What handler modules and producers import is named here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.alarm import sentinel
    from runtime.client import Client, Job, JobEvent, connect, enqueue_all
    from runtime.core.errors import (
        HandlerInvalid,
        Invalid,
        JobCancelled,
        JobFailed,
        LeaseLost,
        LifespanMissing,
        Limited,
        LimitInvalid,
        OptionInvalid,
        PayloadInvalid,
        Permanent,
        Problem,
        ProgressInvalid,
        QuotaExceeded,
        RedisRefused,
        RedisUnreachable,
        ResourceExhausted,
        ResultUnknown,
        RetryLater,
        SettingsInvalid,
        Snooze,
        Transient,
        WaitTimedOut,
    )
    from runtime.core.lifespan import Lifespan
    from runtime.core.limits import Concurrency
    from runtime.core.middleware import Middleware
    from runtime.core.pool import Pool
    from runtime.core.priority import Ranked, by
    from runtime.core.progress import Progress
    from runtime.core.quota import Allowance, Quota
    from runtime.core.request import Options, Request
    from runtime.core.retry import Retry
    from runtime.declare import Bucket, Handler, cron, every, handler, lifespan, middleware
    from runtime.engine.context import Checked, Context
    from runtime.engine.limiter import Grant

__version__ = "0.1.0"

__all__ = [
    "Allowance",
    "Bucket",
    "Checked",
    "Client",
    "Concurrency",
    "Context",
    "Grant",
    "Handler",
    "HandlerInvalid",
    "Invalid",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "LeaseLost",
    "Lifespan",
    "LifespanMissing",
    "LimitInvalid",
    "Limited",
    "Middleware",
    "OptionInvalid",
    "Options",
    "PayloadInvalid",
    "Permanent",
    "Pool",
    "Problem",
    "Progress",
    "ProgressInvalid",
    "Quota",
    "QuotaExceeded",
    "Ranked",
    "RedisRefused",
    "RedisUnreachable",
    "Request",
    "ResourceExhausted",
    "ResultUnknown",
    "Retry",
    "RetryLater",
    "SettingsInvalid",
    "Snooze",
    "Transient",
    "WaitTimedOut",
    "by",
    "connect",
    "cron",
    "enqueue_all",
    "every",
    "handler",
    "lifespan",
    "middleware",
    "sentinel",
]

# Each is imported when it is first asked for: `--help` and a worker's start do not pay for what they do not use.
_AT = {
    "runtime.alarm": ("sentinel",),
    "runtime.client": ("Client", "Job", "JobEvent", "connect", "enqueue_all"),
    "runtime.core.lifespan": ("Lifespan",),
    "runtime.core.limits": ("Concurrency",),
    "runtime.core.middleware": ("Middleware",),
    "runtime.core.pool": ("Pool",),
    "runtime.core.priority": ("Ranked", "by"),
    "runtime.core.progress": ("Progress",),
    "runtime.core.quota": ("Allowance", "Quota"),
    "runtime.core.request": ("Options", "Request"),
    "runtime.core.retry": ("Retry",),
    "runtime.declare": ("Bucket", "Handler", "cron", "every", "handler", "lifespan", "middleware"),
    "runtime.engine.context": ("Checked", "Context"),
    "runtime.engine.limiter": ("Grant",),
}
_HOME = {name: module for module, names in _AT.items() for name in names}

if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'runtime' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOME.get(name, "runtime.core.errors")), name)
        return found
