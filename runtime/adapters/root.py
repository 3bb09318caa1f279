"""The task that everything else of a worker hangs on."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.adapters.runner import running_here


class RootTask(asyncio.Task[int]):
    """Whoever cancels it cancels the worker; a run that does (with all tasks there are, as recipes for a clean end
    have it) ends its process, and is to be blamed for that: else it would be given back, and do it again for ever.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, int],
        *,
        loop: asyncio.AbstractEventLoop,
        cancelled_by: Callable[[str], None],
    ) -> None:
        """`cancelled_by` is told the token of such a run, before anything is cancelled by it here."""
        super().__init__(work, loop=loop)
        self._cancelled_by = cancelled_by

    def cancel(self, msg: Any | None = None) -> bool:
        token = running_here()
        if token is not None:
            self._cancelled_by(token)
        return super().cancel(msg)
