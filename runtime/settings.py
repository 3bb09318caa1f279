"""Every setting, once: its names in the environment, its rule, its default. Nothing else reads the environment."""

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from runtime.core.errors import SettingsInvalid
from runtime.core.span import seconds
from runtime.core.values import frozen


@frozen
class Settings:
    """What the environment says, checked. `repr` shows no secret."""

    redis_url: str | None
    """None: the embedded server."""
    redis_disabled: bool
    data_dir: str | None
    concurrency: int
    timeout_s: float
    grace_s: float
    lease_s: float
    sleep_after_s: float | None
    """None: never."""
    alarm_s: float | None
    """Somebody outside looks that often whether a job is due, and rings; None: nobody does."""
    block_limit_s: float
    loop: str
    worker_id: str
    version: str
    commit: str | None
    log_level: str
    log_format: str | None
    """`json` or `text`; None: text on a terminal."""
    http: bool
    port: int
    tokens: tuple[str, ...]
    """Any one opens the job API; none: there is no job API."""
    service: str | None
    environment: str | None
    region: str | None
    traced: bool
    """Traces are to be sent somewhere."""
    production: bool
    warnings: tuple[str, ...] = ()
    port_said: bool = False
    """The port is no default."""
    serializer: str | None = None
    """Dotted name of a user's own codec."""
    wake_urls: tuple[str, ...] = ()
    """Where workers that sleep are woken."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What is never to be shown, whoever configured it for whom."""

    def __repr__(self) -> str:
        return f"<Settings of {self.worker_id}>"


@frozen
class Setting:
    """One row of the table."""

    field: str
    names: tuple[str, ...]
    """In the environment; the first that is set counts."""
    parse: Callable[[str], Any]
    """Raises `ValueError` whose text completes the sentence "<name> …"."""
    default: str
    doc: str

    @property
    def secret(self) -> bool:
        """Its value is never shown."""
        return any(word in self.field for word in ("token", "secret", "password", "key"))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _ms(least: int) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,12}", text) or int(text) < least:
            raise ValueError(f"must be a number of milliseconds, at least {least}")
        return int(text) / 1000

    return parse


def _span(least_s: float, most_s: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            length_s = seconds(text)
        except ValueError:
            raise ValueError("must be a length of time such as 10s or 5m") from None
        if not least_s <= length_s <= most_s:
            raise ValueError(f"must be from {least_s:g} s to {most_s:g} s")
        return length_s

    return parse


def _one_of(*words: str, **also: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return word

    return parse


def _switch(text: str) -> bool:
    words = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}
    if text.lower() not in words:
        raise ValueError("must be on or off")
    return words[text.lower()]


def _just_true(text: str) -> bool:
    """As OpenTelemetry has it: everything else is false, and no mistake."""
    return text.lower() == "true"


def _text(text: str) -> str:
    return text


def _tokens(text: str) -> tuple[str, ...]:
    tokens = tuple(token.strip() for token in text.split(","))
    if len(tokens) > 2 or not all(re.fullmatch(r"[A-Za-z0-9._~+/=-]{32,512}", token) for token in tokens):
        raise ValueError(
            "must be one token or two, separated by a comma, each of 32 to 512 letters, digits and -._~+/= "
            "(make one with: openssl rand -hex 32)"
        )
    return tokens


def _dotted_name(text: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", text):
        raise ValueError("must be the dotted name of a module, or of an object in one")
    return text


def _wake_urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("is no address") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.endswith("/wake"):
            raise ValueError("must be the address of a worker's /wake, such as https://worker.example/wake")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("must be an address alone: /wake is open, and takes no parameters")
    return urls


_URL_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_URL_OPTIONS = ("db", "protocol", "ssl_cert_reqs", "ssl_ca_data", *_URL_FILES)


def _redis_url(text: str) -> str:
    """Refuses what redis-py would meet with a riddle, in the words of the fix."""
    if text.startswith(("https://", "http://")):
        raise ValueError("is a REST address; a worker needs the Redis address, which starts with rediss://")
    try:
        parts = urlsplit(text)
    except ValueError:  # its text may quote the password
        raise ValueError("is no address; percent-encode what is special in its password") from None
    if parts.scheme == "unix":
        return text
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("must start with redis://, rediss:// or unix://")
    if not parts.hostname:
        raise ValueError("names no host")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("has a port that is no number from 0 to 65535") from None
    if parts.scheme == "redis" and parts.hostname.endswith(".upstash.io"):
        raise ValueError("is an Upstash host without TLS: write rediss:// instead of redis://")
    if not re.fullmatch(r"/?\d{0,4}", parts.path):
        raise ValueError("names a database that is no number")
    # Railway tells ioredis users to add family=0; redis-py takes every option for an argument of its own.
    options = [(name, value) for name, value in parse_qsl(parts.query) if name != "family"]
    for name, value in options:
        if name not in _URL_OPTIONS:
            raise ValueError(f"has an option that is not known; there are {', '.join(_URL_OPTIONS)}")
        if name == "ssl_cert_reqs" and value not in ("required", "none"):
            raise ValueError("must say ssl_cert_reqs=required, which is the default, or ssl_cert_reqs=none")
        if name in _URL_FILES and not os.path.isfile(value):
            raise ValueError(f"names a file in {name} that is not there")
    if any(name.startswith("ssl_") for name, _ in options) and parts.scheme != "rediss":
        raise ValueError("has an option of TLS, and must start with rediss:// then")
    return urlunsplit(parts._replace(query=urlencode(options)))


_OTLP = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_ENVIRONMENT = ("ENVIRONMENT", "RAILWAY_ENVIRONMENT_NAME", "NODE_ENV")
_LEVEL = _one_of("debug", "info", "warn", "error", warning="warn")

TABLE: Sequence[Setting] = (
    Setting("redis_url", ("REDIS_URL", "UPSTASH_REDIS_URL"), _redis_url, "", "Redis to use; else the embedded server"),
    Setting("redis_disabled", ("REDIS_DISABLED",), _switch, "false", "true: say so and stop at once"),
    Setting("data_dir", ("RUNTIME_DATA",), _text, "", "where the embedded server keeps its data"),
    Setting("concurrency", ("WORKER_CONCURRENCY",), _whole(1, 1000), "3", "jobs at once in this worker"),
    Setting("timeout_s", ("WORKER_TIMEOUT",), _ms(1), "300000", "longest run of a job, in ms"),
    Setting("job_timeout_s", ("JOB_TIMEOUT_SECONDS",), _span(0.001, 30 * 86400), "", "the same, in seconds"),
    Setting("grace_s", ("GRACEFUL_SHUTDOWN_TIMEOUT_MS",), _ms(0), "30000", "time to finish after SIGTERM, in ms"),
    Setting("lease_s", ("RUNTIME_LEASE",), _span(1, 300), "10s", "how long a dead worker's jobs stay its own"),
    Setting("sleep_after_s", ("RUNTIME_SLEEP_AFTER",), _span(5, 86400), "", "go quiet when idle for so long"),
    Setting("alarm_s", ("RUNTIME_ALARM",), _span(60, 86400), "", "somebody outside looks that often, and rings"),
    Setting("block_limit_s", ("RUNTIME_BLOCK_LIMIT",), _span(2, 86400), "60s", "longest block of the event loop"),
    Setting("loop", ("RUNTIME_LOOP",), _one_of("asyncio", "uvloop"), "asyncio", "event loop: asyncio or uvloop"),
    Setting("worker_id", ("WORKER_ID", "RAILWAY_REPLICA_ID"), _text, "", "name of this worker; else host and process"),
    Setting("version", ("WORKER_VERSION",), _text, "", "version of this deployment; else its commit"),
    Setting("commit", ("RAILWAY_GIT_COMMIT_SHA",), _text, "", "commit of this deployment"),
    Setting("log_level", ("LOG_LEVEL",), _LEVEL, "info", "least level logged: debug, info, warn or error"),
    Setting("log_format", ("LOG_FORMAT",), _one_of("json", "text"), "", "json or text; else text on a terminal"),
    Setting("serializer", ("RUNTIME_SERIALIZER",), _dotted_name, "", "own codec: a module with dumps and loads"),
    Setting("wake_urls", ("RUNTIME_WAKE_URL",), _wake_urls, "", "a worker's /wake, for producers; several with commas"),
    Setting("http", ("RUNTIME_HTTP",), _switch, "on", "off: no port, no health endpoint"),
    Setting("tokens", ("RUNTIME_TOKEN",), _tokens, "", "opens the job API to its bearer; two, with a comma, to rotate"),
    Setting("port", ("PORT", "WORKER_HEALTH_PORT"), _whole(0, 65535), "3002", "HTTP port; 0 takes a free one"),
    Setting("otlp", _OTLP, _text, "", "where traces go, by OTLP over HTTP; other OTEL_* of traces count too"),
    Setting("otel_off", ("OTEL_SDK_DISABLED",), _just_true, "false", "true: no traces"),
    Setting("otel_exporter", ("OTEL_TRACES_EXPORTER",), _text, "otlp", "none: no traces"),
    Setting("service", ("OTEL_SERVICE_NAME", "RAILWAY_SERVICE_NAME"), _text, "", "name of this service in traces"),
    Setting("environment", _ENVIRONMENT, _text, "", "name of this environment in traces"),
    Setting("region", ("RAILWAY_REPLICA_REGION",), _text, "", "region of this worker in traces"),
)  # fmt: skip

_ENVIRONMENT_NAMES = ("ENVIRONMENT", "NODE_ENV", "SUPABASE_MODE")


@frozen
class Found:
    """One setting as it stands."""

    setting: Setting
    name: str | None
    """Where in the environment it was read; None for the default."""
    text: str
    value: Any
    """None where the text is wrong, or empty."""
    wrong: str | None = None
    """The rule that it breaks: completes the sentence "<name> …"."""

    def shown(self) -> str:
        """The value, fit to be shown: `set` where it is a secret or may hold one."""
        if not self.text:
            return ""
        if self.setting.secret or (self.setting.field == "redis_url" and self.wrong):
            return "set"
        return _without_credentials(self.text)


@frozen
class Reading:
    """An environment, read."""

    found: Sequence[Found]
    wrong: Sequence[str]
    """Everything that is, in sentences."""
    warnings: Sequence[str]
    settings: Settings | None
    """None where something is wrong."""
    production: bool = False
    """A store inside the container would not do here."""


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of the environment. Raises `SettingsInvalid` with everything that is wrong, at once."""
    reading = examine(environment)
    if reading.settings is None:
        raise _invalid(reading.wrong)
    return reading.settings


def examine(environment: Mapping[str, str] | None = None) -> Reading:
    """Every setting of the environment with its source, and all that is wrong."""
    env = os.environ if environment is None else environment
    warnings: list[str] = []
    found = [_find(setting, env, warnings) for setting in TABLE]
    values = {one.setting.field: one.value for one in found}
    wrong = [f"{one.name}{_quoted(one)} {one.wrong}" for one in found if one.wrong]
    wrong += _unknown_names(env)
    warnings += _unknown_worker_names(env)
    _merge_timeouts(values, env, wrong)
    if "ssl_cert_reqs=none" in (values["redis_url"] or ""):
        warnings.append(
            "Redis is trusted whoever it is (ssl_cert_reqs=none): who sits between can read and change jobs"
        )
    otlp, off, exporter = (values.pop(name) for name in ("otlp", "otel_off", "otel_exporter"))
    values["traced"] = bool(otlp) and not off and str(exporter).lower() != "none"
    production = any(name.startswith("RAILWAY_") for name in env) or any(
        env.get(name, "").lower() in ("production", "prod") for name in _ENVIRONMENT_NAMES
    )
    configured = any(env.get(name, "").strip() for name in ("REDIS_URL", "UPSTASH_REDIS_URL"))
    if production and not configured and not values["redis_disabled"]:
        wrong.append(
            "no Redis is configured, and this is production: a store inside the container would die with it; "
            "set REDIS_URL (on Railway: Variables, New Variable, Add Reference, Redis.REDIS_URL)"
        )
    if wrong:
        return Reading(found, wrong, warnings, None, production)
    values["tokens"] = values["tokens"] or ()
    values["wake_urls"] = values["wake_urls"] or ()
    values["worker_id"] = values["worker_id"] or own_name()
    values["version"] = values["version"] or values["commit"] or "unknown"
    if values["sleep_after_s"] is not None and not values["http"]:
        values["sleep_after_s"] = None
        warnings.append("this worker never sleeps, as nobody could wake it: RUNTIME_SLEEP_AFTER needs RUNTIME_HTTP=on")
    hidden = secrets(env)
    said = any(one.setting.field == "port" and one.name is not None for one in found)
    checked = Settings(**values, production=production, warnings=tuple(warnings), port_said=said, secrets=hidden)
    return Reading(found, wrong, warnings, checked, production)


_SECRET_NAME = re.compile(r"key|token|secret|passw(?:or)?d|dsn|credential", re.IGNORECASE)
_IN_URL = re.compile(r"://[^:@/\s]*:(\S*?)@(?=[^@]*$|[^@\s]*[,;\s])")


def secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Every secret of the environment, ours or anybody's: for a `Redactor`.

    Values of variables with a secret's name, passwords in URLs, and what stands in lists of headers.
    """
    env = os.environ if environment is None else environment
    found: set[str] = set()
    for name, value in env.items():
        text = value.strip().strip("'\"")
        if _SECRET_NAME.search(name):
            found |= {text, *map(str.strip, text.split(","))}  # of a token there may be two
        if name.endswith("_HEADERS"):
            found |= {pair.partition("=")[2].strip() for pair in text.split(",")}
        found |= set(_IN_URL.findall(text))
        if name in ("REDIS_URL", "UPSTASH_REDIS_URL"):  # one address, in which the password may stand as it is
            found.add(text.rpartition("@")[0].partition("://")[2].partition(":")[2])
    found |= {unquote(secret) for secret in found}
    return tuple(sorted(found - {""}))


def own_name() -> str:
    """What a worker is called that was given no name."""
    return f"{socket.gethostname()}-{os.getpid()}"


def serializer(environment: Mapping[str, str] | None = None) -> str | None:
    """`RUNTIME_SERIALIZER` alone, whatever else the environment says. Raises `SettingsInvalid`."""
    name: str | None = _alone("serializer", environment)
    return name


def wake_urls(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """`RUNTIME_WAKE_URL` alone, likewise."""
    return _alone("wake_urls", environment) or ()


def _alone(field: str, environment: Mapping[str, str] | None) -> Any:
    env = os.environ if environment is None else environment
    (setting,) = (setting for setting in TABLE if setting.field == field)
    found = _find(setting, env, [])
    if found.wrong:
        raise _invalid([f"{found.name}{_quoted(found)} {found.wrong}"])
    return found.value


def _find(setting: Setting, env: Mapping[str, str], warnings: list[str]) -> Found:
    name, text = _first_set(setting, env, warnings)
    try:
        return Found(setting, name, text, setting.parse(text) if text else None)
    except ValueError as error:
        return Found(setting, name, text, None, str(error))


def _first_set(setting: Setting, env: Mapping[str, str], warnings: list[str]) -> tuple[str | None, str]:
    for name in setting.names:
        text = env.get(name, "").strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            warnings.append(f"{name} is written with quotes around its value; they were taken off")
            text = text[1:-1].strip()
        if text:
            return name, text
    return None, setting.default


def _quoted(found: Found) -> str:
    """The value, where it can hold no secret."""
    secret = found.setting.field == "redis_url" or found.setting.secret or "://" in found.text
    return "" if secret else f"={found.text[:40]!r}"


def _without_credentials(text: str) -> str:
    """An address without user, password and options; any other text as it is."""
    if "://" not in text:
        return text
    scheme, _, rest = text.partition("://")
    return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2])[0]}"


def _unknown_names(env: Mapping[str, str]) -> list[str]:
    known = [name for setting in TABLE for name in setting.names]
    wrong: list[str] = []
    for name in sorted(env):
        if name.startswith("RUNTIME_") and not name.startswith("RUNTIME_TEST_") and name not in known:
            import difflib  # for mistakes alone

            near = difflib.get_close_matches(name, known, 1)
            wrong.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return wrong


def _unknown_worker_names(env: Mapping[str, str]) -> list[str]:
    known = {name for setting in TABLE for name in setting.names}
    return [
        f"{name} is not a setting of this worker"
        for name in sorted(env)
        if name.startswith("WORKER_") and name not in known
    ]


def _merge_timeouts(values: dict[str, Any], env: Mapping[str, str], wrong: list[str]) -> None:
    in_seconds = values.pop("job_timeout_s")
    if in_seconds is None:
        return
    both = env.get("WORKER_TIMEOUT", "").strip(" '\"") and values["timeout_s"] is not None
    if both and values["timeout_s"] != in_seconds:
        wrong.append("WORKER_TIMEOUT (ms) and JOB_TIMEOUT_SECONDS are both set and differ; unset one")
    values["timeout_s"] = in_seconds


def _invalid(wrong: Sequence[str]) -> SettingsInvalid:
    hint = "correct the environment; `runtime serve --help` lists every variable and its default"
    if len(wrong) == 1:
        return SettingsInvalid(wrong[0], hint=hint)
    return SettingsInvalid(f"{len(wrong)} settings are wrong", cause="; ".join(wrong), hint=hint)


def help_text() -> str:
    """The table, for `--help`."""
    rows = [(" or ".join(s.names), s.default, s.doc) for s in TABLE]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(
        f"  {name:<{width}}  {doc}{f' [default: {default}]' if default else ''}" for name, default, doc in rows
    )
