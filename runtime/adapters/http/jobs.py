"""The jobs as the job API wants them. Free of aiohttp, so that whoever deals in them does not wait for its import."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from runtime.core.request import Options
from runtime.core.span import Span
from runtime.core.values import frozen


@frozen
class Order:
    """What `POST /jobs` asks for."""

    handler: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Options


@frozen
class Receipt:
    """What became of it."""

    job_id: str
    status: str
    created: bool
    """False: the key had a job already, and this is that one."""


Ending = Literal["cancelled", "asked", "gone"]
"""`cancelled`: it will not run. `asked`: it runs, and its worker is told. `gone`: nothing waits or runs."""


class Jobs(Protocol):
    """The jobs, as this API wants them. Every call raises `RedisUnreachable` and `RedisRefused`."""

    async def add(self, order: Order) -> Receipt:
        """Raises `HandlerUnknown`, `PayloadInvalid`, `OptionInvalid`, `QuotaExceeded`; then nothing was written."""
        ...

    async def show(self, job_id: str, queue: str | None) -> Mapping[str, Any]:
        """Where a job is, in `queue` or wherever this worker serves: at least `jobId` and `status`. Fit for JSON."""
        ...

    async def cancel(self, job_id: str, queue: str | None) -> tuple[Ending, str]:
        """End a job that has not ended; and its status, after that."""
        ...

    async def count(self) -> Mapping[str, Mapping[str, Any]]:
        """The jobs of each queue that this worker serves, by status; and how it is paused."""
        ...

    async def pause(self, queue: str, reason: str, length: Span | None) -> Mapping[str, Any] | None:
        """Let no job of `queue` be started, for `length` (None: until it is resumed); its counts, as `count` has them.

        None: this worker does not serve it. Raises `OptionInvalid`.
        """
        ...

    async def resume(self, queue: str) -> Mapping[str, Any] | None:
        """Go on with `queue`; its counts. None: this worker does not serve it."""
        ...
