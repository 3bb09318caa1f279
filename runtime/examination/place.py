"""Sees where a worker runs: its port, what the platform gives it, and where its traces are to go."""

import errno
import http.client
import re
import socket
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from runtime.adapters.payload import from_json
from runtime.core.diagnosis.platform import Place, Port, Telemetry
from runtime.core.values import frozen
from runtime.examination.deadline import in_thread, unreachable

ASK_S = 2.0
"""How long whoever has our port may take to answer."""
MOST_READ = 65_536
MEMORY = ("memory.max", "memory.limit_in_bytes")
"""Of a container: cgroup v2 and v1 (the kernel's cgroup-v2.rst, cgroup-v1/memory.rst)."""
NO_LIMIT = 2**50


def see(env: Mapping[str, str], chosen: Mapping[str, Any]) -> Place:
    """What is to be seen without asking anybody."""
    return Place(
        railway=on_railway(env),
        draining_s=_seconds(env.get("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "")),
        grace_s=chosen["grace_s"],
        sleep_after_s=chosen["sleep_after_s"],
        alarm_s=chosen["alarm_s"],
        http=chosen["http"],
        rings=bool(chosen["wake_urls"]),
        concurrency=chosen["concurrency"],
        memory_bytes=_memory_limit(),
        metrics=_metrics(env),
    )


def on_railway(env: Mapping[str, str]) -> bool:
    return any(name.startswith("RAILWAY_") for name in env)


def named(env: Mapping[str, str]) -> str:
    """Where this is, in a few words."""
    if not on_railway(env):
        return "not Railway"
    names = ("RAILWAY_ENVIRONMENT_NAME", "RAILWAY_SERVICE_NAME", "RAILWAY_REPLICA_REGION")
    return ", ".join(["Railway", *(env[name] for name in names if env.get(name))])


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,6}(\.\d+)?\s*", text) else None


def _memory_limit() -> int | None:
    for folder in _cgroups():
        for name in MEMORY:
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < NO_LIMIT:
                return int(text)
    return None


def _cgroups() -> list[Path]:
    """Where this process's limit may stand, the nearest first; within a container that is mostly the root."""
    root = Path("/sys/fs/cgroup")
    try:
        own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        own = None
    return [root / own[1] if own else root, root, root / "memory"]


def _metrics(env: Mapping[str, str]) -> str | None:
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if env.get("OTEL_METRICS_EXPORTER", "").strip().lower() not in ("", "none"):
        return "OTEL_METRICS_EXPORTER"
    ends = env.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "").strip()
    return "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" if ends else None


async def see_port(chosen: Mapping[str, Any]) -> Port:
    """Whether a worker could listen on its port, or one of ours does."""
    number: int = chosen["port"]
    if not chosen["http"]:
        return Port(number, "off")
    if number == 0:
        return Port(number, "any")
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", number), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", number)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Port(number, "refused", cause=error.strerror or type(error).__name__)
    else:
        return Port(number, "free")
    try:
        return await in_thread(lambda: _who_has(number), ASK_S)
    except TimeoutError:
        return Port(number, "foreign")


@frozen
class _Health:
    """What of a worker's /health is wanted here."""

    service: Literal["worker"]
    state: str
    awake_because: tuple[str, ...] = ()


def _who_has(port: int) -> Port:
    """Asks for /health, which wakes no worker."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_S)) as connection:
            connection.request("GET", "/health", headers={"Connection": "close"})
            said = from_json(connection.getresponse().read(MOST_READ), _Health)
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return Port(port, "foreign")
    return Port(port, "ours", said.state, said.awake_because)


async def see_telemetry(chosen: Mapping[str, Any], env: Mapping[str, str]) -> Telemetry:
    text = chosen["otlp"] or ""
    wanted = bool(text) and not chosen["otel_off"] and str(chosen["otel_exporter"]).lower() != "none"
    if not wanted:
        return Telemetry(wanted=False)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return Telemetry(wanted=True, endpoint="an address that cannot be read", lost="it is no URL")
    installed = find_spec("opentelemetry") is not None and _installed("opentelemetry.exporter.otlp.proto.http")
    shown = f"{parts.scheme}://{host or ''}" + (f":{port}" if port else "")
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    lost = await unreachable(host, port) if host and port else "it names no host with http:// or https://"
    return Telemetry(True, shown, port, installed, lost, protocol.strip())


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
