"""Tests of the engine are coroutines: each runs on Trio, on a clock of its own that jumps over every wait."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.engine.world import EPOCH_S, World

LONGEST_S = 40 * 86400.0
"""Virtual. A test in which everybody waits for everybody is over at once, not after the real timeout."""


@pytest.fixture
def world() -> World:
    return World()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    clock = MockClock(autojump_threshold=0)
    clock.jump(EPOCH_S)
    try:
        trio.run(_run, pyfuncitem.obj, arguments, pyfuncitem.funcargs.get("world"), clock=clock)
    except BaseExceptionGroup as group:
        raise _alone(group) from None
    return True


async def _run(test: Any, arguments: dict[str, Any], world: Any) -> None:
    with trio.fail_after(LONGEST_S):
        async with trio.open_nursery() as nursery:
            if world is not None:
                world.nursery = nursery
                nursery.start_soon(world.pools.run)
                await trio.testing.wait_all_tasks_blocked()
            await test(**arguments)
            nursery.cancel_scope.cancel()


def _alone(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
