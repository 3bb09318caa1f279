"""What is wrong with Redis, for a worker that keeps its jobs there."""

import re
from collections.abc import Iterator, Sequence
from statistics import quantiles
from typing import Literal

from runtime.core.findings import Finding
from runtime.core.look import FOREIGN_LOOK_S
from runtime.core.span import spell
from runtime.core.values import frozen

LEAST_VERSION = (6, 2)
"""Of Redis: older ones lack commands that the scripts use."""
NEAR_MS = 5.0
"""Within a region, a round trip takes less."""
FAR_MS = 50.0
"""From here on, it is another region."""
CLOCK_S = 1.0
FULL = 0.8
"""Of the memory, or of the connections: time to do something."""
BRIM = 0.95


@frozen
class Trial:
    """Something that the server was really asked to do. `cause`: why it would not; None: it did."""

    cause: str | None = None


Saves = Literal["log", "snapshots", "nothing"]
"""Each write within a second; everything, now and then; never."""


@frozen
class Store:
    """What was seen of a Redis. None: it does not let itself be seen."""

    scheme: str = "redis"
    host: str = ""
    on_railway: bool = False
    """We are."""
    lost: str | None = None
    """Why it does not work for us at all."""
    pings_ms: Sequence[float] = ()
    version: str | None = None
    product: str = "Redis"
    replica: bool | None = None
    policy: str | None = None
    """What it does when its memory is full."""
    used_bytes: int | None = None
    most_bytes: int | None = None
    """0: as much as there is."""
    saves: Saves | None = None
    """How what it acknowledges reaches a disk."""
    save_failed: bool | None = None
    clients: int | None = None
    most_clients: int | None = None
    wanted_clients: int = 0
    """As many more connections one worker may open."""
    scripts: Trial | None = None
    """A script that writes."""
    waits: Trial | None = None
    """A command that blocks."""
    announces: bool | None = None
    """It tells of keys that are written."""
    clock_s: float | None = None
    """How far its clock is ahead of ours."""


def verdicts(store: Store) -> list[Finding]:
    found = [*_address(store), _reached(store)]
    if store.lost is not None:
        return [*found, Finding("redis.rest", "skipped", "everything else about it: it has to answer first")]
    found += [
        _version(store), _role(store), _scripts(store), _waits(store), _eviction(store), _memory(store),
        _saving(store), _clients(store), _clock(store), _announcements(store),
    ]  # fmt: skip
    return found


def _address(store: Store) -> Iterator[Finding]:
    private = store.host.endswith(".railway.internal")
    if store.host.endswith(".upstash.io") and store.scheme == "redis":
        yield Finding(
            "redis.address", "fail", "an Upstash host without TLS", "Upstash hangs up on whoever speaks without",
            "write rediss:// instead of redis://",
        )  # fmt: skip
    if private and store.scheme == "rediss":
        yield Finding(
            "redis.address", "fail", "rediss:// to *.railway.internal",
            "there is no TLS in Railway's private network, which is encrypted itself", "write redis:// instead of rediss://",
        )  # fmt: skip
    if private and not store.on_railway:
        yield Finding(
            "redis.address", "warn", "*.railway.internal, and this is not Railway",
            "the name is known only inside", "from here use REDIS_PUBLIC_URL, or: railway ssh",
        )  # fmt: skip
    if store.on_railway and store.host.endswith((".proxy.rlwy.net", ".up.railway.app")):
        yield Finding(
            "redis.address", "warn", "the public address of a Redis on Railway",
            "each packet leaves the project and comes back: slower, and paid for as egress",
            "REDIS_URL=${{Redis.REDIS_URL}}, which is the private one",
        )  # fmt: skip


_HANGS_UP = "does it want TLS? Then write rediss:// instead of redis://; or a certificate of ours? ssl_certfile="
# Words of a cause (`adapters/redis/connection.py` has them all), and what to do.
_FIXES = (
    ("password", "copy the address anew from where Redis is hosted, its password percent-encoded"),
    ("lacks a permission", "give its user the rights that docs/redis.md lists"),
    ("connection refused", "start Redis there, or correct host and port in REDIS_URL"),
    ("no such file", "start Redis there, or correct the path in REDIS_URL"),
    ("permission denied", "let this user read and write the socket: unixsocketperm in the server's configuration"),
    ("name is not known", "correct the host in REDIS_URL; a database that was deleted has no name any more"),
    ("answer to TLS", "does the server speak TLS? If not, write redis:// instead of rediss://"),
    ("no TLS", "the server speaks no TLS: write redis:// instead of rediss://"),
    ("speaks TLS", "does it want TLS? Then write rediss:// instead of redis://"),
    ("another host", "name the server in REDIS_URL as its certificate does"),
    ("has expired", "renew the server's certificate, or set the clock of this machine"),
    ("certificate of ours", "name it and its key: rediss://…?ssl_certfile=/path/own.pem&ssl_keyfile=/path/own.key"),
    ("certificate or key", "the files that REDIS_URL names must be PEM, and a key must be that of its certificate"),
    ("certificate", "name the authority: rediss://…?ssl_ca_certs=/path/to/ca.pem"),
    ("closed", _HANGS_UP),
    ("reset", _HANGS_UP),
    ("no answer", "is a firewall between, or does the server hang? Try: redis-cli -u \"$REDIS_URL\" ping"),
    ("larger than", "make arguments and results smaller, or raise the plan's limit"),
    ("quota", "raise the plan's limit, or wait for the next period"),
    ("too many clients", "raise maxclients, or run fewer workers"),
    ("limit of connections", "raise the plan, or run fewer workers"),
    ("memory", "give it more memory, or empty it"),
    ("loading", "wait until it has read its data"),
    ("too few replicas", "bring its replicas back, or lower its min-replicas-to-write"),
    ("replica", "name the primary in REDIS_URL"),
    ("cannot save", "make room on its disk; INFO persistence tells"),
)  # fmt: skip


def fix_of(cause: str, host: str = "", *, on_railway: bool = False) -> str:
    """What to do about a Redis at `host` that does not work for us, by the cause that we were told."""
    if host.endswith(".railway.internal") and not on_railway:
        return "*.railway.internal resolves only inside Railway: from here use REDIS_PUBLIC_URL"
    return next(
        (fix for words, fix in _FIXES if words.lower() in cause.lower()), "the cause says what the server lacks"
    )


def _reached(store: Store) -> Finding:
    if store.lost is not None:
        why = "no job can be added or claimed"
        fix = fix_of(store.lost, store.host, on_railway=store.on_railway)
        return Finding("redis.reach", "fail", f"it does not work for us: {store.lost}", why, fix)
    if not store.pings_ms:
        return Finding("redis.reach", "skipped", "how long its answers take: there was no time to measure")
    middle, worst = _percentiles(store.pings_ms)
    tls = ", TLS" if store.scheme == "rediss" else ""
    seen = f"reachable{tls}, p50 {middle:.1f} ms, p99 {worst:.1f} ms of {len(store.pings_ms)} PINGs"
    if middle <= NEAR_MS:
        return Finding("redis.reach", "pass", seen)
    place = "it is in another region" if middle > FAR_MS else "it is not near, or not well"
    return Finding(
        "redis.reach", "warn", seen, f"each job takes several round trips; {place}",
        "run the workers in the region of their Redis",
    )  # fmt: skip


def _percentiles(times_ms: Sequence[float]) -> tuple[float, float]:
    if len(times_ms) == 1:
        return times_ms[0], times_ms[0]
    cuts = quantiles(times_ms, n=100, method="inclusive")
    return cuts[49], cuts[98]


def _version(store: Store) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", store.version or "")
    if not numbers:
        return Finding("redis.version", "skipped", "its version: it does not tell")
    said = f"{store.product} {store.version}"
    if (int(numbers[1]), int(numbers[2])) >= LEAST_VERSION:
        return Finding("redis.version", "pass", said)
    least = ".".join(map(str, LEAST_VERSION))
    return Finding(
        "redis.version", "fail", said, f"the scripts need {least}", f"take Redis {least} or newer, or Valkey"
    )


def _role(store: Store) -> Finding:
    if store.replica is None:
        return Finding("redis.role", "skipped", "whether it is a primary: it does not tell")
    if store.replica:
        return Finding("redis.role", "fail", "a replica", "it takes no writes", "name the primary in REDIS_URL")
    return Finding("redis.role", "pass", "a primary")


def _scripts(store: Store) -> Finding:
    if store.scripts is None:
        return Finding("redis.lua", "skipped", "whether it runs scripts: not tried")
    if store.scripts.cause is None:
        return Finding("redis.lua", "pass", "Lua runs, and writes")
    fix = fix_of(store.scripts.cause)
    return Finding(
        "redis.lua", "fail", f"a script that writes was refused: {store.scripts.cause}",
        "every claim and every settlement is such a script",
        "use a server of one node: a queue's keys must be together" if "CROSSSLOT" in store.scripts.cause else fix,
    )  # fmt: skip


def _waits(store: Store) -> Finding:
    if store.waits is None:
        return Finding("redis.blocking", "skipped", "whether commands may block: not tried")
    if store.waits.cause is None:
        return Finding("redis.blocking", "pass", "commands that block work (BZPOPMIN)")
    return Finding(
        "redis.blocking", "fail", f"BZPOPMIN did not work: {store.waits.cause}",
        "an idle worker waits by it for the next job", "allow it to REDIS_URL's user; a proxy between must let it pass",
    )  # fmt: skip


def _eviction(store: Store) -> Finding:
    if store.policy == "noeviction":
        return Finding("redis.eviction", "pass", "nothing is evicted (noeviction)")
    if store.policy is None:
        fix = "look in its configuration: maxmemory-policy must be noeviction"
        if store.host.endswith(".upstash.io"):
            fix = "Upstash console, Configuration: Eviction must be off"
        return Finding(
            "redis.eviction", "warn", "its eviction policy cannot be read here",
            "with any other than noeviction, queued jobs may vanish", fix,
        )  # fmt: skip
    return Finding(
        "redis.eviction", "fail", f"its eviction policy is {store.policy}",
        "when its memory is full, the server deletes queued jobs without a word",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and in its configuration, or where it is hosted",
    )  # fmt: skip


def _memory(store: Store) -> Finding:
    if store.used_bytes is None:
        return Finding("redis.memory", "skipped", "how much memory it has left: it does not tell")
    used = _size(store.used_bytes)
    if not store.most_bytes:
        return Finding("redis.memory", "pass", f"{used} of memory used, without a limit of its own")
    part = store.used_bytes / store.most_bytes
    seen = f"{used} of {_size(store.most_bytes)} of memory used"
    if part < FULL:
        return Finding("redis.memory", "pass", seen)
    return Finding(
        "redis.memory", "fail" if part >= BRIM else "warn", seen, "when it is full, no job can be added or claimed",
        "give it more, or see what lies there: runtime inspect; redis-cli --bigkeys",
    )  # fmt: skip


def _saving(store: Store) -> Finding:
    if store.save_failed:
        return Finding(
            "redis.persistence", "fail", "its last save failed", "it will soon refuse writes (MISCONF)",
            "make room on its disk; its log tells why",
        )  # fmt: skip
    if store.saves is None:
        return Finding("redis.persistence", "skipped", "whether it saves its data: it does not tell")
    if store.saves == "log":
        return Finding("redis.persistence", "pass", "it saves its data")
    if store.saves == "snapshots":
        return Finding(
            "redis.persistence", "warn", "it saves snapshots only",
            "what came since the last one is lost when it crashes: new jobs are gone, jobs that were done run again",
            "redis-cli CONFIG SET appendonly yes, and in its configuration, or where it is hosted",
        )  # fmt: skip
    return Finding(
        "redis.persistence", "warn", "it saves nothing", "a restart of Redis loses every job",
        "redis-server --appendonly yes, with a volume",
    )  # fmt: skip


def _clients(store: Store) -> Finding:
    if store.clients is None or not store.most_clients:
        return Finding("redis.clients", "skipped", "how many connections it allows: it does not tell")
    seen = f"{store.clients} of {store.most_clients} connections open; a worker opens {store.wanted_clients} at most"
    if store.clients + store.wanted_clients <= FULL * store.most_clients:
        return Finding("redis.clients", "pass", seen)
    short = store.clients + store.wanted_clients > store.most_clients
    return Finding(
        "redis.clients", "fail" if short else "warn", seen, "who comes after the last one is refused",
        "raise maxclients or the plan, or run fewer workers",
    )  # fmt: skip


def _clock(store: Store) -> Finding:
    if store.clock_s is None:
        return Finding("redis.clock", "skipped", "its clock: it does not tell")
    ahead = f"{'ahead of' if store.clock_s > 0 else 'behind'} ours"
    seen = f"its clock is {spell(abs(store.clock_s))} {ahead}"
    if abs(store.clock_s) <= CLOCK_S:
        return Finding("redis.clock", "pass", seen)
    return Finding(
        "redis.clock", "warn", seen,
        "leases and limits go by its clock, but stock arq's producers and expiries by theirs: jobs start early or late",
        "let both machines keep time (chrony, ntpd)",
    )  # fmt: skip


def _announcements(store: Store) -> Finding:
    match store.announces:
        case True:
            return Finding(
                "redis.events", "pass", "keyspace notifications are on: stock arq's jobs are heard of at once"
            )
        case False:
            seen = (
                "keyspace notifications are off: stock arq's jobs are found by looking, after "
                f"{spell(FOREIGN_LOOK_S[1])} at most (notify-keyspace-events K$ would tell of them)"
            )
            return Finding("redis.events", "pass", seen)
        case None:
            return Finding("redis.events", "skipped", "whether it tells of new jobs: not tried")


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.1f} MB"
