"""What queues hold for workers that sleep, and whether somebody else is there to take it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from runtime.adapters.redis import heartbeats, scripts
from runtime.core.alarm import Need


async def needs(redis: Any, queues: Sequence[str]) -> Sequence[Need]:
    """Of each queue. Raises as redis-py does.

    A server counts a worker whose host has vanished for twice its tcp-keepalive: 10 minutes. So where a job is due
    though somebody is counted, it is asked whose heartbeat is young: he is missed after 2 minutes.
    """
    found = await scripts.needs(redis, queues)
    if not any(need.due and need.awake for need in found):
        return found
    awake = await heartbeats.queues_awake(redis)
    return [need if need.queue in awake else replace(need, awake=0) for need in found]
