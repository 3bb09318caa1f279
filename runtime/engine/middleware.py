"""Handlers within their middleware."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from runtime.core.middleware import CallNext, Middleware
from runtime.ports import Entry


class Wrapped:
    """A handler, and around each run of it the middleware for the queue that its job is in. `ports.Entry`."""

    def __init__(self, entry: Entry, middleware: Sequence[Middleware]) -> None:
        self.spec = entry.spec
        self._entry = entry
        self._middleware = middleware

    async def run(self, context: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        call: CallNext = partial(self._entry.run, context, args, kwargs)
        for layer in reversed(self._middleware):
            if layer.queue in (None, context.queue):
                call = partial(layer.function, context, call)
        return await call()


def within(entries: Mapping[str, Entry], middleware: Sequence[Middleware]) -> Mapping[str, Entry]:
    """Each of them within all of it, the first the outermost; without any, they themselves."""
    return {name: Wrapped(entry, middleware) for name, entry in entries.items()} if middleware else entries
