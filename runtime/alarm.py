"""The sentinel for those who run it: as a process, or beside a web service in its own event loop."""

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from runtime import client, settings
from runtime.adapters.sentinel import Sentinel
from runtime.adapters.telemetry import logs
from runtime.core.errors import SettingsInvalid
from runtime.core.policy import describe
from runtime.core.redaction import Redactor
from runtime.settings import Settings

AGAIN_S = 5.0
"""After a bug of ours, beside a service that is not to end for it."""


def watch(config: Settings, url: str, queues: Sequence[str], wake_urls: Sequence[str]) -> int:
    """Run a sentinel until SIGTERM or Ctrl-C; the exit code."""
    log = logs.configure(config.log_level, config.log_format, config.worker_id, redact=Redactor(config.secrets))
    for warning in config.warnings:
        log.warning(warning, event_name="SETTING_WARNING")

    async def until_told() -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await Sentinel(url, queues, wake_urls, log).run()

    try:
        asyncio.run(until_told())
    except Exception as error:
        _tell_of_crash(log, error)
        return 1
    return 0


@asynccontextmanager
async def sentinel(
    *queues: str, redis_url: str | None = None, wake_urls: Sequence[str] | None = None
) -> AsyncGenerator[None]:
    """Watch `queues` for workers that sleep while the block lasts, and ring where a job is due and nobody is awake.

    For an asyncio service that is always on. Without `queues`: all that workers have said they serve. Without
    `redis_url` and `wake_urls`: those of the environment. The watching is a task of this block: it ends with the block,
    never ends it, and never delays it by more than the 2 s that a ring under way is given. A Redis that is away is
    waited for. It logs to the standard logger `runtime.sentinel`, its events as the field `event`.
    Raises `SettingsInvalid` at once where something is missing or wrong.
    """
    config = settings.read()
    urls = config.wake_urls if wake_urls is None else tuple(wake_urls)
    if not urls:
        raise SettingsInvalid("there is nobody to ring", hint="set RUNTIME_WAKE_URL, or give wake_urls")
    url, server = (redis_url, None) if redis_url else await asyncio.to_thread(client.redis_url, config)
    task = asyncio.create_task(_keep_watching(url, queues, urls), name="sentinel")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if server is not None:
            server.close()


async def _keep_watching(url: str, queues: Sequence[str], wake_urls: Sequence[str]) -> None:
    log = _StandardLog(logging.getLogger("runtime.sentinel"))
    while True:
        try:
            await Sentinel(url, queues, wake_urls, log).run()
        except Exception as error:
            _tell_of_crash(log, error)
        await asyncio.sleep(AGAIN_S)


def _tell_of_crash(log: Any, error: Exception) -> None:
    """A bug of ours."""
    log.error(f"Sentinel crashed: {describe(error).error}", event_name="SENTINEL_CRASH", exc_info=error)


class _StandardLog:
    """structlog's calls, for the logging that a service of others has set up."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, text: str, **fields: Any) -> None:
        self._write(logging.INFO, text, **fields)

    def warning(self, text: str, **fields: Any) -> None:
        self._write(logging.WARNING, text, **fields)

    def error(self, text: str, **fields: Any) -> None:
        self._write(logging.ERROR, text, **fields)

    def _write(
        self, level: int, text: str, *, event_name: str, exc_info: BaseException | None = None, **fields: Any
    ) -> None:
        self._logger.log(level, "%s", text, exc_info=exc_info, extra={"event": event_name, **fields})
