"""Every rule of the environment, and what is said where one is broken."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.errors import SettingsInvalid
from runtime.settings import TABLE, Settings, help_text, read

SECRET = "s3cr3t-pa55w0rd"
URL = f"rediss://default:{SECRET}@host.example:6380/0"


def refused(**env: str) -> str:
    """What is said of these settings."""
    with pytest.raises(SettingsInvalid) as caught:
        read(env)
    assert caught.value.exit_code == 78
    return str(caught.value)


# Defaults and names.


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = read({})
    assert (settings.redis_url, settings.redis_disabled, settings.data_dir) == (None, False, None)
    assert (settings.concurrency, settings.timeout_s, settings.grace_s, settings.lease_s) == (3, 300, 30, 10)
    assert settings.worker_id == f"{socket.gethostname()}-{os.getpid()}"
    assert (settings.version, settings.log_level, settings.log_format) == ("unknown", "info", None)
    assert (settings.http, settings.port, settings.production) == (True, 3002, False)
    assert settings.warnings == ()
    assert settings.tokens == ()


def test_a_worker_that_nobody_could_wake_does_not_sleep_and_says_so() -> None:
    assert read({"RUNTIME_SLEEP_AFTER": "60s"}).sleep_after_s == 60
    headless = read({"RUNTIME_SLEEP_AFTER": "60s", "RUNTIME_HTTP": "off"})
    assert headless.sleep_after_s is None
    assert "RUNTIME_HTTP" in headless.warnings[0]


def test_without_an_argument_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RUNTIME_", "WORKER_", "RAILWAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORKER_CONCURRENCY", "17")
    assert read().concurrency == 17


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("REDIS_URL", "redis://host:6379/1", "redis_url", "redis://host:6379/1"),
        ("UPSTASH_REDIS_URL", "rediss://host", "redis_url", "rediss://host"),
        ("REDIS_DISABLED", "true", "redis_disabled", True),
        ("RUNTIME_DATA", "somewhere", "data_dir", "somewhere"),
        ("WORKER_CONCURRENCY", "1", "concurrency", 1),
        ("WORKER_CONCURRENCY", "1000", "concurrency", 1000),
        ("WORKER_TIMEOUT", "1", "timeout_s", 0.001),
        ("JOB_TIMEOUT_SECONDS", "60", "timeout_s", 60),
        ("JOB_TIMEOUT_SECONDS", "2m", "timeout_s", 120),
        ("GRACEFUL_SHUTDOWN_TIMEOUT_MS", "0", "grace_s", 0),
        ("RUNTIME_LEASE", "1", "lease_s", 1),
        ("RUNTIME_LEASE", "5m", "lease_s", 300),
        ("WORKER_ID", "worker-1", "worker_id", "worker-1"),
        ("RAILWAY_REPLICA_ID", "r-7", "worker_id", "r-7"),
        ("WORKER_VERSION", "1.0.0", "version", "1.0.0"),
        ("RAILWAY_GIT_COMMIT_SHA", "abc", "version", "abc"),
        ("LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("LOG_LEVEL", "warning", "log_level", "warn"),
        ("LOG_LEVEL", "warn", "log_level", "warn"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("RUNTIME_HTTP", "off", "http", False),
        ("RUNTIME_TOKEN", "a" * 32, "tokens", ("a" * 32,)),
        ("RUNTIME_TOKEN", f"{'a' * 32}, {'b-._~+/=' * 4}", "tokens", ("a" * 32, "b-._~+/=" * 4)),
        (
            "RUNTIME_WAKE_URL",
            "http://worker.railway.internal:3002/wake",
            "wake_urls",
            ("http://worker.railway.internal:3002/wake",),
        ),
        (
            "RUNTIME_WAKE_URL",
            "https://a.example/wake, http://[::1]/b/wake",
            "wake_urls",
            ("https://a.example/wake", "http://[::1]/b/wake"),
        ),
        ("PORT", "0", "port", 0),
        ("PORT", "65535", "port", 65535),
        ("WORKER_HEALTH_PORT", "8080", "port", 8080),
    ],
)
def test_a_setting_is_read(name: str, text: str, field: str, value: object) -> None:
    # On Railway there has to be a Redis.
    assert getattr(read({"REDIS_URL": "redis://localhost", name: text}), field) == value or field == "redis_url"
    if not name.startswith("RAILWAY_"):
        assert getattr(read({name: text}), field) == value


@pytest.mark.parametrize(
    ("first", "second", "field", "value"),
    [
        (("REDIS_URL", "redis://a"), ("UPSTASH_REDIS_URL", "rediss://b"), "redis_url", "redis://a"),
        (("WORKER_ID", "a"), ("RAILWAY_REPLICA_ID", "b"), "worker_id", "a"),
        (("WORKER_VERSION", "a"), ("RAILWAY_GIT_COMMIT_SHA", "b"), "version", "a"),
        (("PORT", "1"), ("WORKER_HEALTH_PORT", "2"), "port", 1),
    ],
)
def test_of_two_names_the_first_that_is_set_counts(
    first: tuple[str, str], second: tuple[str, str], field: str, value: object
) -> None:
    redis = {"REDIS_URL": "redis://a"}
    assert getattr(read(redis | dict([first, second])), field) == value
    assert getattr(read(redis | dict([second, first])), field) == value
    second_alone = getattr(read({**redis, first[0]: "  ", second[0]: second[1]}), field)
    assert str(second_alone) == second[1]


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "on", "yes", "false", "False", "0", "off", "no"])
def test_a_switch_understands_the_usual_words(word: str) -> None:
    assert read({"RUNTIME_HTTP": word}).http is (word.lower() in ("true", "1", "on", "yes"))


# Wrong values.


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        *[("WORKER_CONCURRENCY", text, "whole number from 1 to 1000") for text in ("0", "1001", "-1", "three", "2.5")],
        *[("PORT", text, "whole number from 0 to 65535") for text in ("65536", "http", "-1", "9999999999")],
        *[("WORKER_TIMEOUT", text, "number of milliseconds, at least 1") for text in ("0", "5m", "-1", "1.5")],
        *[("GRACEFUL_SHUTDOWN_TIMEOUT_MS", text, "number of milliseconds, at least 0") for text in ("-1", "30s")],
        *[("JOB_TIMEOUT_SECONDS", text, "must be") for text in ("0", "soon", "-5", "31d", "inf")],
        *[("RUNTIME_LEASE", text, "must be from 1 s to 300 s") for text in ("0.5", "301", "0")],
        ("RUNTIME_LEASE", "long", "must be a length of time such as 10s or 5m"),
        ("LOG_LEVEL", "verbose", "must be one of debug, info, warn, error"),
        ("LOG_FORMAT", "xml", "must be one of json, text"),
        *[(name, "maybe", "must be on or off") for name in ("RUNTIME_HTTP", "REDIS_DISABLED")],
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_name_its_value_and_the_rule(name: str, text: str, rule: str) -> None:
    said = refused(**{name: text})
    assert f"{name}={text!r}" in said
    assert rule in said
    assert "runtime serve --help" in said


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        *[
            (url, "must be the address of a worker's /wake, such as https://worker.example/wake")
            for url in (
                "worker.example/wake",
                "redis://worker.example/wake",
                "https://worker.example",
                "https://worker.example/",
                "https:///wake",
                "https://a.example/wake,",
                "https://a.example/wake, b.example/wake",
            )
        ],
        *[
            (url, "must be an address alone: /wake is open, and takes no parameters")
            for url in (
                f"https://user:{SECRET}@worker.example/wake",
                f"https://worker.example/wake?token={SECRET}",
                "https://worker.example/wake#now",
            )
        ],
        *[(url, "is no address") for url in ("https://worker:port/wake", "http://[::1/wake")],
    ],
)
def test_a_wrong_doorbell_is_refused_without_quoting_it(url: str, rule: str) -> None:
    said = refused(RUNTIME_WAKE_URL=url)
    assert said.startswith("RUNTIME_WAKE_URL")
    assert rule in said
    assert SECRET not in said


def test_all_wrong_settings_are_told_at_once() -> None:
    said = refused(
        WORKER_CONCURRENCY="three",
        PORT="x",
        LOG_LEVEL="loud",
        REDIS_URL="https://x",
        RUNTIME_LEESE="5",
        RUNTIME_HTTP="?",
    )
    assert said.startswith("6 settings are wrong")
    for name in ("WORKER_CONCURRENCY", "PORT", "LOG_LEVEL", "REDIS_URL", "RUNTIME_LEESE", "RUNTIME_HTTP"):
        assert name in said


def test_a_missing_redis_in_production_is_told_with_the_rest() -> None:
    said = refused(NODE_ENV="production", PORT="x")
    assert "PORT" in said
    assert "no Redis" in said


def test_a_long_value_is_cut_in_what_is_said() -> None:
    assert len(refused(LOG_LEVEL="x" * 5000)) < 400


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("RUNTIME_LEESE", "RUNTIME_LEASE"), ("RUNTIME_HTPP", "RUNTIME_HTTP"), ("RUNTIME_DATA_DIR", "RUNTIME_DATA")],
)
def test_an_unknown_name_of_ours_is_refused_with_the_nearest_known(name: str, nearest: str) -> None:
    assert f"{name} is no setting; did you mean {nearest}?" in refused(**{name: "1"})


def test_an_unknown_name_of_ours_that_resembles_nothing_is_refused_without_a_guess() -> None:
    said = refused(RUNTIME_XYZZYQQ="1")
    assert "RUNTIME_XYZZYQQ is no setting" in said
    assert "did you mean" not in said


def test_names_for_tests_are_let_through() -> None:
    assert read({"RUNTIME_TEST_SERVER": "/usr/bin/x"}).warnings == ()


def test_an_unknown_name_of_workers_is_warned_of() -> None:
    assert read({"WORKER_COLOUR": "red"}).warnings == ("WORKER_COLOUR is not a setting of this worker",)


# Quotes.


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_around_a_value_are_taken_off_and_warned_of(quote: str) -> None:
    settings = read({"WORKER_CONCURRENCY": f" {quote}5{quote} ", "REDIS_URL": f"{quote}{URL}{quote}"})
    assert settings.concurrency == 5
    assert settings.redis_url == URL
    assert len(settings.warnings) == 2
    assert all("quotes" in warning for warning in settings.warnings)
    assert SECRET not in " ".join(settings.warnings)


@pytest.mark.parametrize("text", ['"5', "5'", "\"5'", '"'])
def test_a_single_quote_mark_belongs_to_the_value(text: str) -> None:
    assert "WORKER_CONCURRENCY" in refused(WORKER_CONCURRENCY=text)


@pytest.mark.parametrize("text", ["", "  ", '""', "''"])
def test_an_empty_value_is_none(text: str) -> None:
    assert read({"WORKER_CONCURRENCY": text}).concurrency == 3


# Redis.


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://u:p@h:6380/2", "unix:///run/redis.sock?db=1", "redis://[::1]:6379"]
)
def test_the_three_ways_to_name_a_redis_are_taken_as_they_are(url: str) -> None:
    assert read({"REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("redis://h:6379?family=0", "redis://h:6379"),
        ("redis://h:6379/0?family=0&protocol=3", "redis://h:6379/0?protocol=3"),
        ("redis://h:6379/0?protocol=3", "redis://h:6379/0?protocol=3"),
    ],
)
def test_an_option_for_node_clients_is_dropped(url: str, left: str) -> None:
    assert read({"REDIS_URL": url}).redis_url == left


def test_a_redis_that_need_not_prove_who_it_is_is_warned_of() -> None:
    settings = read({"REDIS_URL": f"rediss://u:{SECRET}@h?ssl_cert_reqs=none"})
    assert settings.redis_url == f"rediss://u:{SECRET}@h?ssl_cert_reqs=none"
    (warning,) = settings.warnings
    assert "ssl_cert_reqs=none" in warning
    assert SECRET not in warning
    assert read({"REDIS_URL": "rediss://h?ssl_cert_reqs=required"}).warnings == ()


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        (
            "https://eu1-x.upstash.io",
            "is a REST address; a worker needs the Redis address, which starts with rediss://",
        ),
        ("http://h", "is a REST address"),
        (f"redis://default:{SECRET}@eu1-x.upstash.io:6379", "write rediss:// instead of redis://"),
        ("host:6379", "must start with redis://, rediss:// or unix://"),
        (f"default:{SECRET}@host:6379", "must start with"),
        (f"postgres://u:{SECRET}@h", "must start with"),
        ("redis://", "names no host"),
        (f"redis://:{SECRET}@", "names no host"),
        (f"redis://u:{SECRET}@h:port", "has a port that is no number"),
        (f"redis://u:{SECRET}@h:70000", "has a port that is no number"),
        (f"rediss://u:{SECRET}@h?ssl_ca_certs=/no/such/ca.pem", "names a file in ssl_ca_certs that is not there"),
        (f"rediss://u:{SECRET}@h?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs=none"),
        (f"redis://u:{SECRET}@h?ssl_cert_reqs=none", "must start with rediss://"),
    ],
)
def test_a_wrong_redis_address_is_refused_with_the_fix_and_without_its_secret(url: str, rule: str) -> None:
    for name in ("REDIS_URL", "UPSTASH_REDIS_URL"):
        said = refused(**{name: url})
        assert f"{name} {rule}" in said or rule in said
        assert name in said
        assert SECRET not in said


@pytest.mark.parametrize("url", ["redis://[::1", "rediss://u:p@[host]:6379", "redis://h:6379/zero"])
def test_an_address_that_cannot_be_parsed_is_refused_as_a_wrong_setting(url: str) -> None:
    with suppress(SettingsInvalid):  # and nothing else
        read({"REDIS_URL": url})


@pytest.mark.parametrize(
    "env",
    [
        {"RAILWAY_ENVIRONMENT_NAME": "staging"},
        {"ENVIRONMENT": "production"},
        {"NODE_ENV": "Production"},
        {"SUPABASE_MODE": "prod"},
    ],
)
def test_production_without_redis_is_refused_with_the_fix(env: dict[str, str]) -> None:
    said = refused(**env)
    assert "no Redis is configured" in said
    assert "REDIS_URL" in said
    assert read({**env, "REDIS_URL": "redis://h"}).production
    assert read({**env, "REDIS_DISABLED": "true"}).production


@pytest.mark.parametrize("env", [{"NODE_ENV": "development"}, {"ENVIRONMENT": "test"}, {"SUPABASE_MODE": ""}])
def test_elsewhere_the_embedded_server_will_do(env: dict[str, str]) -> None:
    settings = read(env)
    assert not settings.production
    assert settings.redis_url is None


# Timeouts.


def test_the_two_timeouts_may_agree() -> None:
    assert read({"WORKER_TIMEOUT": "60000", "JOB_TIMEOUT_SECONDS": "60"}).timeout_s == 60


def test_two_timeouts_that_differ_are_refused() -> None:
    assert "WORKER_TIMEOUT (ms) and JOB_TIMEOUT_SECONDS are both set and differ" in refused(
        WORKER_TIMEOUT="60000", JOB_TIMEOUT_SECONDS="61"
    )


@pytest.mark.parametrize(("text", "wrong"), [('""', 0), ("5m", 1)])
def test_a_timeout_that_is_empty_or_wrong_does_not_differ_as_well(text: str, wrong: int) -> None:
    env = {"WORKER_TIMEOUT": text, "JOB_TIMEOUT_SECONDS": "60"}
    if wrong:
        assert "differ" not in refused(**env)
    else:
        assert read(env).timeout_s == 60


def test_a_timeout_in_seconds_goes_before_the_default_in_ms() -> None:
    assert read({"JOB_TIMEOUT_SECONDS": "120", "WORKER_TIMEOUT": " "}).timeout_s == 120


# Secrets.


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), st.sampled_from(TABLE))
def test_no_message_shows_the_redis_address(junk: str, setting: Any) -> None:
    url = f"{junk}://default:{SECRET}@{junk}:{junk}"
    said = ""
    try:
        settings = read({"REDIS_URL": url, setting.names[0]: url if setting.field == "redis_url" else junk})
        said = f"{settings!r} {settings.warnings}"
    except SettingsInvalid as wrong:
        said = str(wrong)
    assert SECRET not in said


def test_an_address_under_a_wrong_name_is_not_shown_either() -> None:
    assert SECRET not in refused(LOG_LEVEL=f"rediss://:{SECRET}@host")


def test_settings_do_not_show_their_secrets() -> None:
    settings = read({"REDIS_URL": URL, "WORKER_ID": "w"})
    assert repr(settings) == str(settings) == "<Settings of w>"


# The table.


def test_each_setting_has_a_field_and_each_field_a_setting() -> None:
    fields = {setting.field for setting in TABLE} - {"job_timeout_s", "otlp", "otel_off", "otel_exporter"}
    assert fields == set(Settings.__dataclass_fields__) - {"production", "warnings", "traced", "port_said", "secrets"}


@pytest.mark.parametrize(
    ("environment", "traced"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "None"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_traces_are_made_where_they_have_somewhere_to_go(environment: dict[str, str], traced: bool) -> None:
    assert read(environment).traced is traced


def test_no_name_is_used_twice() -> None:
    names = [name for setting in TABLE for name in setting.names]
    assert len(names) == len(set(names))


def test_every_default_keeps_its_own_rule() -> None:
    for setting in TABLE:
        if setting.default:
            setting.parse(setting.default)


def test_the_help_names_every_variable_and_its_default() -> None:
    text = help_text()
    for setting in TABLE:
        [line] = [line for line in text.splitlines() if re.search(rf"(^|\s){setting.names[0]}(\s|$)", line)]
        assert setting.doc in line
        assert all(name in line for name in setting.names)
        assert not setting.default or f"[default: {setting.default}]" in line


# The token of the job API.


@pytest.mark.parametrize(
    "text",
    ["x", "s3cret" * 5, f"{'s3cret' * 6},", f"{'s3cret' * 6},short", f"{'s3cret ' * 6}", ",".join(["s3cret" * 6] * 3)],
)
def test_a_token_is_long_and_there_are_two_at_most_and_none_is_shown(text: str) -> None:
    said = refused(RUNTIME_TOKEN=text)
    assert "RUNTIME_TOKEN must be one token or two" in said
    assert "s3cret" not in said


def test_a_token_is_in_no_text_of_the_settings() -> None:
    settings = read({"RUNTIME_TOKEN": "s3cret" * 6})
    assert "s3cret" not in f"{settings!r} {settings} {settings.warnings}"
