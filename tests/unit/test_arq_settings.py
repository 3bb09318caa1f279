"""Where an arq application's Redis is, as a URL; and what of its settings goes before the environment."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from arq.connections import ArqRedis, RedisSettings

from runtime import arq, settings
from runtime.arq import address
from runtime.arq.session import settings_of
from runtime.core.errors import HandlerInvalid
from runtime.core.job import Call, Claim, Done, Settlement

SETTINGS = {
    "redis://localhost:6379/0": RedisSettings(),
    "redis://:p%40ss%2Fword@h:1/2": RedisSettings(host="h", port=1, database=2, password="p@ss/word"),
    "redis://user:pw@h:6379/0": RedisSettings(host="h", username="user", password="pw"),
    "redis://[::1]:6379/0": RedisSettings(host="::1"),
    "unix:///run/redis.sock?db=3": RedisSettings(unix_socket_path="/run/redis.sock", database=3),
    "rediss://h:6379/0?ssl_cert_reqs=required": RedisSettings(host="h", ssl=True),
    "rediss://h:6379/0?ssl_cert_reqs=none": RedisSettings(host="h", ssl=True, ssl_cert_reqs="none"),
    "rediss://h:6379/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem": RedisSettings(
        host="h", ssl=True, ssl_ca_certs="/ca.pem"
    ),
}


@pytest.mark.parametrize("url", SETTINGS)
def test_settings_have_a_url_and_a_url_has_settings(url: str) -> None:
    said = SETTINGS[url]
    assert address.url_of(said) == url
    back = settings_of(url)
    for name in (
        "port",
        "database",
        "password",
        "ssl",
        "unix_socket_path",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_cert_reqs",
    ):
        assert getattr(back, name) == getattr(said, name), name
    assert back.username == said.username
    assert back.host in (said.host, "localhost")


@pytest.mark.parametrize(
    "said",
    [
        RedisSettings(host=[("a", 1)], sentinel=True),
        RedisSettings(ssl=True, ssl_cert_reqs="optional"),
    ],
)
def test_what_has_none_is_refused(said: RedisSettings) -> None:
    with pytest.raises(HandlerInvalid):
        address.url_of(said)


def test_a_pool_has_one() -> None:
    assert address.url_of_pool(ArqRedis(host="h", port=7, db=1, password="x")) == "redis://:x@h:7/1"
    assert address.url_of_pool(ArqRedis(unix_socket_path="/s", db=1)) == "unix:///s?db=1"
    assert address.url_of_pool(ArqRedis(host="h", ssl=True)).startswith("rediss://h:6379/0?")


# What the settings say


async def task(ctx: Any) -> None: ...


def application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: object) -> arq.Application:
    import sys
    import types

    module = types.ModuleType("an_application")
    module.found = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "an_application", module)
    return arq.read("an_application.found")


def test_what_the_application_says_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env = {"REDIS_URL": "redis://env:6379/0", "WORKER_CONCURRENCY": "7", "GRACEFUL_SHUTDOWN_TIMEOUT_MS": "1000"}
    said = {
        "functions": [task],
        "redis_settings": RedisSettings(host="its"),
        "max_jobs": 3,
        "job_completion_wait": timedelta(seconds=5),
    }
    config = settings.read(application(monkeypatch, tmp_path, said).environment(env))
    assert (config.redis_url, config.concurrency, config.grace_s) == ("redis://its:6379/0", 3, 5.0)
    silent = application(monkeypatch, tmp_path, {"functions": [task]})
    config = settings.read(silent.environment(env))
    assert (config.redis_url, config.concurrency, config.grace_s) == ("redis://env:6379/0", 7, 1.0)
    config = settings.read(silent.environment({}))
    assert (config.redis_url, config.concurrency, config.grace_s) == ("redis://localhost:6379/0", 10, 30.0)
    production = settings.examine(silent.environment({"RAILWAY_SERVICE_NAME": "worker"}))
    assert any("no Redis is configured" in text for text in production.wrong)


class Base:
    functions = (task,)
    max_tries = 2

    async def on_startup(ctx: Any) -> None: ...  # as applications have it


class Heir(Base):
    job_timeout = None
    unknown = 7


@dataclass
class Holder:
    functions: Any
    max_tries: int = 2


@pytest.mark.parametrize(
    "found",
    [
        Heir,
        Heir(),
        {"functions": [task], "max_tries": 2, "unknown": 7},
        Holder([task]),
        SimpleNamespace(functions=[task], max_tries=2),
    ],
    ids=["a class", "an object", "a dict", "a dataclass", "a namespace"],
)
def test_settings_have_many_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: object) -> None:
    read = application(monkeypatch, tmp_path, found)
    assert list(read.functions) == ["task"]
    assert read.max_tries == 2
    if isinstance(found, Heir) or found is Heir:
        assert read.job_timeout_s == math.inf
        assert read.hooks["on_startup"] is Base.on_startup


async def after(ctx: Any) -> None:
    await anyio.sleep(0.5)


def test_jobs_wait_for_the_hooks_of_those_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There are never more than so many, however slow they are."""
    its = application(monkeypatch, tmp_path, {"functions": [task], "after_job_end": after})
    lived = arq.Session(its, burst=False)
    monkeypatch.setattr("runtime.arq.session.MOST_AFTERWARDS", 1)

    async def play() -> None:
        claim = Claim("one", "q", "token", "0", 1, 1, Call("task", (), {}, 0), b"", 0)
        ctx = await lived.enter({"job_id": "one", "job_try": 1})
        assert ctx["job_id"] == "one"
        async with anyio.create_task_group() as lived._afterwards:
            lived.settled(Settlement(claim, Done(None), 0, 0), "settled")
            with anyio.move_on_after(0.05) as scope:
                await lived.enter({"job_id": "two", "job_try": 1})
            assert scope.cancelled_caught
        await lived.enter({"job_id": "two", "job_try": 1})

    asyncio.run(play())


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = {"functions": [task], "redis_settings": RedisSettings(password="s3cret")}
    assert "s3cret" not in repr(application(monkeypatch, tmp_path, said))


@pytest.mark.parametrize("times", [{"hour": {25}}, {"minute": 60}, {"hour": set()}, {"month": 0}])
def test_a_cron_job_at_times_that_arq_would_look_for_for_ever_is_refused(
    times: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "never.py").write_text(
        "from arq import cron\nasync def tidy(ctx): ...\n"
        f"class WorkerSettings:\n    cron_jobs = [cron(tidy, **{times!r})]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "never", raising=False)
    (name,) = times
    with pytest.raises(HandlerInvalid, match=f"tidy with {name}="):
        arq.read("never.WorkerSettings")
