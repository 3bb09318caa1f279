"""What a test has of what modules declare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import registry
from runtime.core.lifespan import Lifespan
from runtime.core.limits import Bucket
from runtime.core.middleware import Middleware
from runtime.declare import Handler
from runtime.registry import Equipment, Handlers

Given = str | Handler[..., Any] | Lifespan[Any] | Middleware
"""A module by its name, or something that one would declare."""


def declared(given: Sequence[Given], folder: Path) -> tuple[Handlers, Equipment]:
    """What the given modules declare, and what is given itself; without any, what the project in `folder` serves.

    Raises `HandlerInvalid`.
    """
    modules = [one for one in given if isinstance(one, str)]
    if modules or not given:
        handlers, equipment = registry.collect(modules, folder), registry.equipment(modules, folder)
    else:
        handlers, equipment = {}, registry.UNEQUIPPED
    handlers = {**handlers, **{one.name: one for one in given if isinstance(one, Handler)}}
    buckets = {bucket.name: bucket for bucket in equipment.buckets}
    for one in given:
        if isinstance(one, Handler):
            buckets |= {limit.name: limit for limit in one.spec.limit.costs if isinstance(limit, Bucket)}
    lifespans = [equipment.lifespan, *(one for one in given if isinstance(one, Lifespan))]
    layers = [*equipment.middleware, *(one for one in given if isinstance(one, Middleware))]
    return handlers, Equipment(list(buckets.values()), lifespans[-1], layers)
