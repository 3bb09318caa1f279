"""The pytest plugin. It brings the fixture `rt`, and runs the tests that take it, whatever else runs async tests.

A test that takes `rt` is an `async def`: it needs no mark, and no further plugin. Where pytest-asyncio or anyio's
plugin runs it, they do; else it is run here. What users override in their conftest.py: `rt_handlers`, and `rt_state`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from runtime.testing.declared import Given
    from runtime.testing.harness import Harness
    from runtime.testing.server import Server

# What is not for tests: doorbells of other workers, and other stores.
_NOT_OURS = ("UPSTASH_REDIS_URL", "REDIS_DISABLED", "RUNTIME_WAKE_URL")


@pytest.fixture(scope="session")
def rt_server() -> Iterator[Server]:
    """The server for all tests of this process: that of RUNTIME_TEST_REDIS_URL, else one of its own."""
    from runtime.testing.server import ServerUnusable, server

    try:
        found = server()
    except ServerUnusable as error:
        pytest.fail(str(error), pytrace=False)
    yield found
    found.close()


@pytest.fixture
def rt_handlers() -> Sequence[Given]:
    """Override it to name other modules than `[tool.runtime] handlers` of pyproject.toml, or to give handlers."""
    return ()


@pytest.fixture
def rt_state() -> Any:
    """Override it to give handlers another `ctx.state` than their lifespan would."""
    return None


@pytest.fixture
def rt(
    request: pytest.FixtureRequest,
    rt_server: Server,
    rt_handlers: Sequence[Given],
    rt_state: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Harness:
    """The handlers of this project with an empty Redis, and a worker that runs when it is told to: see `Harness`."""
    from runtime import settings
    from runtime.testing.declared import declared
    from runtime.testing.harness import Harness
    from runtime.testing.server import ServerUnusable

    if not inspect.iscoroutinefunction(request.function):
        pytest.fail("a test that takes the fixture `rt` is an `async def`", pytrace=False)
    try:
        rt_server.flush()
    except ServerUnusable as error:
        pytest.fail(str(error), pytrace=False)
    for name in _NOT_OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", rt_server.url)  # for whatever opens a client by itself
    handlers, equipment = declared(rt_handlers, request.config.rootpath)
    return Harness(rt_server, settings.read(os.environ), handlers, equipment, rt_state)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The harness is open around the test itself, in its event loop, whoever runs that."""
    if isinstance(item, pytest.Function) and "rt" in item.fixturenames and inspect.iscoroutinefunction(item.obj):
        item.obj = _within_its_harness(item.obj)


def _within_its_harness(test: Any) -> Any:
    @functools.wraps(test)
    async def opened(*args: Any, **kwargs: Any) -> None:
        async with kwargs["rt"]:
            await test(*args, **kwargs)

    return opened


@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run it where nobody else does."""
    if "rt" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    import asyncio  # not for runs without such tests

    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
