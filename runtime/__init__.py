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
    from runtime.core.limits import Concurrency
    from runtime.core.pool import Pool
    from runtime.core.progress import Progress
    from runtime.core.quota import Allowance, Quota
    from runtime.core.request import Options, Request
    from runtime.core.retry import Retry
    from runtime.declare import Bucket, Handler, handler
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
    "LimitInvalid",
    "Limited",
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
    "connect",
    "enqueue_all",
    "handler",
    "sentinel",
]

# Each is imported when it is first asked for: `--help` and a worker's start do not pay for what they do not use.
_AT = {
    "runtime.alarm": ("sentinel",),
    "runtime.client": ("Client", "Job", "JobEvent", "connect", "enqueue_all"),
    "runtime.core.limits": ("Concurrency",),
    "runtime.core.pool": ("Pool",),
    "runtime.core.progress": ("Progress",),
    "runtime.core.quota": ("Allowance", "Quota"),
    "runtime.core.request": ("Options", "Request"),
    "runtime.core.retry": ("Retry",),
    "runtime.declare": ("Bucket", "Handler", "handler"),
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
