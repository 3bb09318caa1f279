"""What is wrong with where a worker runs: its port, its end, its sleep, its memory, its traces."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from runtime.core.findings import Finding
from runtime.core.lifecycle import LATELY, NO_ALARM
from runtime.core.span import spell
from runtime.core.values import frozen

CLOSING_S = 20.0
"""After the grace: giving the rest back, leaving, closing connections, sending the last spans (`app.py`)."""
OWN_BYTES = 64 * 2**20
"""What a worker takes before its first job; and for each job at once, as little as one can count on."""
JOB_BYTES = 8 * 2**20
FULL = 0.85


@frozen
class Port:
    """The HTTP port. `ours`: a worker of this package answers there; `foreign`: something else has it."""

    number: int
    who: Literal["off", "any", "free", "ours", "foreign", "refused"]
    state: str = ""
    awake_because: Sequence[str] = ()
    """What that worker says."""
    cause: str = ""
    """Why it was refused."""


@frozen
class Peer:
    """A worker, as it has told of itself."""

    worker_id: str
    incarnation: str
    state: str
    live: bool
    running: int = 0
    awake_because: Sequence[str] = ()
    started_ms: int = 0
    at_ms: int = 0
    rss_bytes: int | None = None
    here: bool = False
    """It runs on this machine."""


@frozen
class Place:
    """Where this process runs, and what it was told of that. None: not to be seen."""

    serves: bool = True
    """There are handlers here, so that a worker may run."""
    railway: bool = False
    draining_s: float | None = None
    """From SIGTERM to SIGKILL; None: nothing is said here."""
    grace_s: float = 30.0
    sleep_after_s: float | None = None
    alarm_s: float | None = None
    http: bool = True
    rings: bool = False
    """RUNTIME_WAKE_URL is set."""
    concurrency: int = 3
    memory_bytes: int | None = None
    """The container's limit."""
    metrics: str | None = None
    """A variable that makes OpenTelemetry send metrics."""
    port: Port | None = None
    peers: Sequence[Peer] | None = None
    deferred: int | None = None
    """Jobs that wait for their time, in the queues looked at."""


@frozen
class Telemetry:
    """Where traces are to go."""

    wanted: bool
    endpoint: str = ""
    port: int | None = None
    installed: bool = True
    lost: str | None = None
    """Why nobody can be reached there."""
    protocol: str = ""


def verdicts(place: Place) -> Iterator[Finding]:
    if place.serves:
        if place.port is not None:
            yield _port(place.port)
        if place.railway:
            yield _draining(place)
        yield _memory(place)
    else:
        yield Finding("platform.worker", "skipped", "port, end and memory of a worker: no handlers are here")
    yield from _sleep(place)
    yield from _bells(place)
    yield from _names(place)


def _port(port: Port) -> Finding:
    match port.who:
        case "off":
            return Finding("platform.port", "skipped", "the port: RUNTIME_HTTP is off")
        case "any":
            return Finding("platform.port", "pass", "port 0: a worker takes a free one")
        case "free":
            return Finding("platform.port", "pass", f"port {port.number} is free")
        case "ours":
            return Finding("platform.port", "pass", f"a worker answers on port {port.number}; it is {port.state}")
        case "foreign":
            return Finding(
                "platform.port", "fail", f"port {port.number} is taken, and no worker answers there",
                "`runtime serve` refuses to start", "set PORT to a free one, stop who has it, or RUNTIME_HTTP=off",
            )  # fmt: skip
        case "refused":
            return Finding(
                "platform.port", "fail", f"port {port.number} cannot be listened on: {port.cause}",
                "`runtime serve` refuses to start", "set PORT to one from 1024 on, or RUNTIME_HTTP=off",
            )  # fmt: skip


def _draining(place: Place) -> Finding:
    wanted_s = place.grace_s + CLOSING_S
    fix = f"railway variable set RAILWAY_DEPLOYMENT_DRAINING_SECONDS={wanted_s:.0f}"
    if place.draining_s is None:
        return Finding(
            "platform.draining", "fail",
            f"RAILWAY_DEPLOYMENT_DRAINING_SECONDS is not set; its default is 0, and the grace {spell(place.grace_s)}",
            "SIGKILL follows SIGTERM at once: each deploy kills the jobs that run, and they begin anew",
            f"{fix} (also where drainingSeconds is set elsewhere: it cannot be seen from here)",
        )  # fmt: skip
    seen = f"SIGKILL comes {spell(place.draining_s)} after SIGTERM; the grace is {spell(place.grace_s)}"
    if place.draining_s < place.grace_s:
        return Finding("platform.draining", "fail", seen, "each deploy kills the jobs that still run then", fix)
    if place.draining_s < wanted_s:
        return Finding(
            "platform.draining", "warn", seen,
            f"giving jobs back and closing may take {spell(CLOSING_S)} after the grace", fix,
        )  # fmt: skip
    return Finding("platform.draining", "pass", seen)


def _sleep(place: Place) -> Iterator[Finding]:
    if place.sleep_after_s is None:
        yield Finding("platform.sleep", "skipped", "sleep: RUNTIME_SLEEP_AFTER is not set here")
    else:
        amiss = list(_cannot_sleep(place))
        yield from amiss
        if not amiss:
            alarm = (
                f"the alarm rings every {spell(place.alarm_s)}"
                if place.alarm_s
                else f"without an alarm it stays awake while a job is deferred ({_now(place.deferred)})"
            )
            yield Finding("platform.sleep", "pass", f"quiet after {spell(place.sleep_after_s)}; {alarm}")
    yield from _awake(place)


def _now(deferred: int | None) -> str:
    return "none is now" if deferred == 0 else "whether one is, is not known"


def _cannot_sleep(place: Place) -> Iterator[Finding]:
    if not place.http:
        yield Finding(
            "platform.sleep", "warn", "it cannot sleep: RUNTIME_HTTP is off", "nobody could wake it", "RUNTIME_HTTP=on"
        )
    if place.deferred and place.alarm_s is None:
        yield Finding(
            "platform.sleep", "warn", f"it cannot sleep: {place.deferred} deferred jobs, and RUNTIME_ALARM is not set",
            "nobody would wake it when they come due",
            _ALARM,
        )  # fmt: skip
    if place.metrics is not None:
        yield Finding(
            "platform.sleep", "warn",
            f"it may not sleep: {place.metrics} is set, and metrics are sent every minute where a module starts them",
            "the platform puts to sleep only what sends nothing",
            f"unset {place.metrics} in the worker; let /health or Redis be asked elsewhere",
        )  # fmt: skip


_ALARM = "let a cron service run `runtime wake --if-due` every 5 minutes, and set RUNTIME_ALARM=5m"


def _awake(place: Place) -> Iterator[Finding]:
    """What live workers say of why they are awake. The one on our port says it now, the others up to 30 s ago."""
    peers = [peer for peer in place.peers or () if peer.live and not peer.running]
    if place.port is not None and place.port.who == "ours":
        yield from _reasons(f"the worker on port {place.port.number}", place.port.awake_because)
        if sum(peer.here for peer in peers) == 1:
            peers = [peer for peer in peers if not peer.here]
    for peer in peers:
        yield from _reasons(peer.worker_id, peer.awake_because)


def _reasons(who: str, reasons: Sequence[str]) -> Iterator[Finding]:
    """That it works, or did lately, or is not to sleep, needs no fix."""
    for reason in reasons:
        if not (reason.startswith(LATELY) or reason.endswith("jobs run") or "RUNTIME_SLEEP_AFTER" in reason):
            yield Finding(
                "platform.awake", "warn", f"{who} is awake: {reason}",
                "a worker that is awake is paid for, and asks Redis",
                _ALARM if NO_ALARM in reason else "see it again in a minute: runtime inspect sleep",
            )  # fmt: skip


def _bells(place: Place) -> Iterator[Finding]:
    asleep = [peer.worker_id for peer in place.peers or () if peer.state == "quiet"]
    if place.rings:
        yield Finding("platform.doorbell", "pass", "RUNTIME_WAKE_URL is set: who enqueues from here rings")
    elif place.sleep_after_s is not None:
        yield Finding("platform.doorbell", "skipped", "RUNTIME_WAKE_URL of the producers: run doctor there, too")
    elif asleep:
        yield Finding(
            "platform.doorbell", "warn", f"RUNTIME_WAKE_URL is not set here, and {', '.join(asleep)} may be asleep",
            "what is enqueued from here waits until something else wakes it",
            "RUNTIME_WAKE_URL=http://${{worker.RAILWAY_PRIVATE_DOMAIN}}:${{worker.PORT}}/wake",
        )  # fmt: skip


def _names(place: Place) -> Iterator[Finding]:
    peers = [peer for peer in place.peers or () if peer.live and peer.state != "quiet"]
    for name in sorted({peer.worker_id for peer in peers}):
        same = sorted((peer for peer in peers if peer.worker_id == name), key=lambda peer: peer.started_ms)
        # One that was killed looks alive for two minutes; it has said nothing since its successor started.
        both = [old for old, new in pairwise(same) if old.at_ms > new.started_ms]
        if both:
            yield Finding(
                "platform.worker_id", "warn", f"{len(both) + 1} live workers are named {name}",
                "logs, traces and heartbeats of replicas cannot be told apart",
                "unset WORKER_ID: on Railway RAILWAY_REPLICA_ID names each, elsewhere host and process",
            )  # fmt: skip


def _memory(place: Place) -> Finding:
    if place.memory_bytes is None:
        return Finding("platform.memory", "skipped", "the memory limit: this container has none, or does not tell")
    least = OWN_BYTES + place.concurrency * JOB_BYTES
    seen = f"{place.memory_bytes // 2**20} MB for WORKER_CONCURRENCY={place.concurrency}"
    largest = max((peer.rss_bytes or 0 for peer in place.peers or () if peer.live), default=0)
    if place.memory_bytes < least or largest > FULL * place.memory_bytes:
        used = f"; a worker uses {largest // 2**20} MB now" if largest else ""
        return Finding(
            "platform.memory", "warn", seen + used, "past its limit the container is killed, with all jobs in it",
            "lower WORKER_CONCURRENCY, or raise the limit",
        )  # fmt: skip
    return Finding("platform.memory", "pass", seen)


def telemetry_verdicts(telemetry: Telemetry) -> Iterator[Finding]:
    if not telemetry.wanted:
        yield Finding("telemetry.traces", "skipped", "traces: OTEL_EXPORTER_OTLP_ENDPOINT is not set, or they are off")
        return
    if not telemetry.installed:
        yield Finding(
            "telemetry.exporter", "warn", "traces are wanted, and OpenTelemetry is not installed", "none are sent",
            "pip install 'runtime-worker[otlp]'",
        )  # fmt: skip
    if telemetry.protocol.lower() == "grpc" or telemetry.port == 4317:
        yield Finding(
            "telemetry.protocol", "warn", f"{telemetry.endpoint} is for gRPC", "spans are sent by HTTP, as protobuf",
            "take the collector's port for HTTP, 4318, and unset OTEL_EXPORTER_OTLP_PROTOCOL",
        )  # fmt: skip
    if telemetry.lost is not None:
        yield Finding(
            "telemetry.endpoint", "warn", f"nobody can be reached at {telemetry.endpoint}: {telemetry.lost}",
            "spans are lost", "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT",
        )  # fmt: skip
    else:
        yield Finding("telemetry.endpoint", "pass", f"{telemetry.endpoint} can be reached")
