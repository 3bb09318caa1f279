"""Which handlers a test has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import registry
from runtime.core.limits import Bucket
from runtime.declare import Handler
from runtime.registry import Handlers


def declared(given: Sequence[str | Handler[..., Any]], folder: Path) -> tuple[Handlers, Sequence[Bucket]]:
    """The handlers of the modules that are given, and those that are; their buckets. Without any, the project's.

    Raises `HandlerInvalid`.
    """
    modules = [one for one in given if isinstance(one, str)]
    handlers: dict[str, Handler[..., Any]] = {}
    buckets: list[Bucket] = []
    if modules or not given:
        handlers |= registry.collect(modules, folder)
        buckets += registry.buckets(modules, folder)
    for one in given:
        if not isinstance(one, str):
            handlers[one.name] = one
            buckets += [limit for limit in one.spec.limit.costs if limit.name not in {known.name for known in buckets}]
    return handlers, buckets
