"""Bugs of ours beside the actors, put in on purpose: a worker that imports this module fails in all else."""

from __future__ import annotations

from typing import Never

from runtime.adapters.http.sessions import AiohttpSessions
from runtime.adapters.redis.heartbeats import Heartbeats
from runtime.adapters.redis.source import RedisSource


async def _break(*_: object) -> Never:
    raise RuntimeError("of ours")


Heartbeats.beat = _break  # type: ignore
Heartbeats.leave = _break  # type: ignore
RedisSource.forward_known = _break  # type: ignore
AiohttpSessions.close = _break  # type: ignore
