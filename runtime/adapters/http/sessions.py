"""HTTP sessions for handlers: `ports.Sessions`. aiohttp is imported with the first one, not with the worker."""

from typing import Any

from runtime.adapters.telemetry import traces

TOTAL_S = 120.0
CONNECT_S = 10.0


class AiohttpSessions:
    """One session per name, kept open for the worker's life."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def session(self, name: str) -> Any:
        known = self._open.get(name)
        if known is None or known.closed:
            import aiohttp  # a quarter of a second, which a worker that was just woken does not have

            timeout = aiohttp.ClientTimeout(total=TOTAL_S, connect=CONNECT_S)
            known = self._open[name] = aiohttp.ClientSession(timeout=timeout, trace_configs=traces.of_requests())
        return known

    async def close(self) -> None:
        for session in self._open.values():
            await session.close()
        self._open.clear()
