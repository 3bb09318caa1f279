"""What `runtime doctor` sees of the environment and of where it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime import settings
from runtime.examination import environment, place
from runtime.examination.environment import chosen


def test_a_setting_that_is_wrong_counts_as_its_default() -> None:
    env = {"PORT": "many", "WORKER_CONCURRENCY": "5", "REDIS_URL": "redis://", "GRACEFUL_SHUTDOWN_TIMEOUT_MS": "-1"}
    values = chosen(settings.examine(env))
    assert (values["port"], values["concurrency"], values["redis_url"], values["grace_s"]) == (3002, 5, None, 30.0)


@pytest.mark.parametrize(
    ("env", "timeout_s"),
    [
        ({}, None),
        ({"WORKER_TIMEOUT": "300000"}, 300.0),
        ({"JOB_TIMEOUT_SECONDS": "60"}, 60.0),
        ({"WORKER_TIMEOUT": "300000", "JOB_TIMEOUT_SECONDS": "60"}, 60.0),
        ({"WORKER_TIMEOUT": "long"}, None),
    ],
)
def test_a_timeout_counts_where_somebody_has_set_it(env: dict[str, str], timeout_s: float | None) -> None:
    assert chosen(settings.examine(env))["timeout_s"] == timeout_s


def test_what_is_odd_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# REDIS_URL=x\nexport LOG_LEVEL = info\nPORT=1\nRUNTIME_HTTP=\nOTHER=1\n")
    env = {"PORT": " 3002", "REDIS_URL": "redis://a", "UPSTASH_REDIS_URL": "rediss://b", "SOME_TOKEN": "changeme"}
    seen = environment.see(env, settings.examine(env), tmp_path)
    assert seen.spaced == ("PORT",)
    assert seen.placeholders == ("SOME_TOKEN",)
    assert seen.two_redis
    assert seen.unread == ("LOG_LEVEL",)
    assert seen.tracked == ()


def test_what_git_keeps_of_it(tmp_path: Path) -> None:
    for name in (".env", ".env.production", ".env.example", ".envrc"):
        (tmp_path / name).write_text("A=1\n")
    for words in (("init", "-q"), ("add", ".")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    assert environment.see({}, settings.examine({}), tmp_path).tracked == (".env", ".env.production")


@pytest.mark.parametrize(("text", "expected"), [("268435456\n", 2**28), ("max\n", None), (f"{2**63 - 4096}\n", None)])
@pytest.mark.parametrize("name", place.MEMORY)
def test_the_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: int | None
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(place, "_cgroups", lambda: [tmp_path / "missing", tmp_path])
    assert place.see({}, chosen(settings.examine({}))).memory_bytes == expected


@pytest.mark.parametrize(
    ("env", "railway", "draining_s", "metrics"),
    [
        ({}, False, None, None),
        ({"RAILWAY_SERVICE_ID": "x"}, True, None, None),
        ({"RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "60"}, True, 60.0, None),
        ({"RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "a minute"}, True, None, None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, False, None, "OTEL_METRICS_EXPORTER"),
        ({"OTEL_METRICS_EXPORTER": "none"}, False, None, None),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False, None, None),
    ],
)
def test_what_the_platform_says(
    env: dict[str, str], railway: bool, draining_s: float | None, metrics: str | None
) -> None:
    seen = place.see(env, chosen(settings.examine(env)))
    assert (seen.railway, seen.draining_s, seen.metrics) == (railway, draining_s, metrics)
