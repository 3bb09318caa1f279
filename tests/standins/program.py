"""What the stand-ins share: a request as a value, faults set at run time, the log, and the program around the server.

A provider decides about a `Call` in one plain function and gives back an `Answer`; here the answer is logged, then
delayed, lost, cut or sent. So what the log says has happened at the provider, whether or not the client hears of it.
"""

import argparse
import asyncio
import json
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOST = "127.0.0.1"
LOG_KEEPS = 100_000
# Long enough to send what is ready, short enough that nobody waits for a stand-in to stop.
SHUTDOWN_S = 0.1
GATEWAY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Something to go wrong with the next `times` calls that match, or (null) until the faults are cleared.

    With a status or a code the call fails and has no effect. `hang`, `cut` and `garbage` lose or spoil the answer of a
    call that did have its effect, `latency` delays it.
    """

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    code: str | None = None
    message: str | None = None
    route: str | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    latency: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    retry_after: Annotated[float, msgspec.Meta(ge=0)] | None = None
    hang: bool = False
    cut: bool = False
    garbage: bool | Literal["content", "choices", "body"] = False

    @property
    def fails(self) -> bool:
        return self.status is not None or self.code is not None

    def matches(self, call: "Call") -> bool:
        return self.route in (None, call.route)


@dataclass(slots=True)
class Call:
    """One request as it arrived, and what is noted of it for the log."""

    route: str
    path: str
    ids: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    wall_time: float = field(default_factory=time.time)
    now: float = field(default_factory=time.monotonic)
    known: bool = False
    """Whether it came with an accepted key."""
    fault: Fault | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict)
    latency: float = 0.0


class Refusal(Exception):
    """An answer that ends the decision early."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


F = TypeVar("F", bound=Fault)


class StandIn(ABC, Generic[F]):
    """A provider's server: routes that decide, and control routes under `/_standin/`."""

    fault_type: type[F]
    gateway_garbage: frozenset[bool | str] = frozenset({"body"})
    """The values of `garbage` that replace the whole body by a gateway's page."""

    def __init__(self, log_file: Path | None = None) -> None:
        self.faults: list[F] = []
        self.log = Log(log_file)

    @abstractmethod
    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]: ...

    @abstractmethod
    def error(self, status: int, route: str) -> Answer:
        """The provider's words for what the server itself refuses: unknown path, wrong method, too large a body."""

    @abstractmethod
    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        """What every answer carries besides its own headers."""

    @abstractmethod
    def forget(self) -> None:
        """Back to the state at start; the faults and the log are cleared by the caller."""

    def meet_fault(self, call: Call) -> F | None:
        """Use up the first fault that matches this call."""
        fault = next((fault for fault in self.faults if fault.matches(call)), None)
        if fault is None:
            return None
        if fault.times is not None:
            fault.times -= 1
            if fault.times == 0:
                self.faults.remove(fault)
        call.fault = fault
        return fault

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._speak_like_the_provider], client_max_size=16 * 1024**2)
        for method, path, decide in self.routes():
            app.router.add_route(method, path, self._handler(f"{method} {path}", decide))
        app.router.add_get("/_standin/log", self._show_log)
        app.router.add_get("/_standin/faults", self._show_faults)
        app.router.add_post("/_standin/faults", self._add_faults)
        app.router.add_delete("/_standin/faults", self._clear_faults)
        app.router.add_post("/_standin/reset", self._reset)
        return app

    # --- the provider's routes

    def _handler(self, route: str, decide: Callable[[Call], Answer]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            call = await _read(request, route)
            with self.log.in_flight():
                try:
                    answer = decide(call)
                except Refusal as refusal:
                    answer = refusal.answer
                self.log.add(call, answer.status)
                return await self._deliver(request, call, answer)

        return handle

    async def _deliver(self, request: web.Request, call: Call, answer: Answer) -> web.StreamResponse:
        body, content_type = _json(answer.body), "application/json"
        headers = {**self.headers(call, answer), **answer.headers}
        fault = call.fault
        if fault is None:
            await asyncio.sleep(answer.latency)
            return web.Response(status=answer.status, headers=headers, body=body, content_type=content_type)
        if not fault.fails and fault.garbage in self.gateway_garbage:
            body, content_type = GATEWAY_PAGE, "text/html"
        await asyncio.sleep(answer.latency + fault.latency)
        if fault.hang:
            await asyncio.Event().wait()
        if fault.cut:
            return await _send_half(request, answer.status, {**headers, "Content-Type": content_type}, body)
        return web.Response(status=answer.status, headers=headers, body=body, content_type=content_type)

    @web.middleware
    async def _speak_like_the_provider(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if request.path.startswith("/_standin/"):
                raise
            route = f"{request.method} {request.path}"
            call = Call(route, request.path, {}, {}, request.headers, b"")
            answer = self.error(error.status, route)
            self.log.add(call, answer.status)
            return web.Response(
                status=answer.status,
                headers={**self.headers(call, answer), **answer.headers},
                body=_json(answer.body),
                content_type="application/json",
            )

    # --- the control routes

    async def _show_log(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": list(self.log.entries), "counters": self.log.counters()})

    async def _show_faults(self, request: web.Request) -> web.Response:
        return web.json_response(body=msgspec.json.encode(self.faults))

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            faults = msgspec.json.decode(await request.read(), type=list[self.fault_type])  # type: ignore[name-defined]  # a type known at run time only
        except msgspec.DecodeError as error:
            return web.json_response({"error": str(error)}, status=400)
        self.faults.extend(faults)
        return await self._show_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self.faults.clear()
        return await self._show_faults(request)

    async def _reset(self, request: web.Request) -> web.Response:
        self.faults.clear()
        self.log.clear()
        self.forget()
        return web.json_response({"reset": True})


class Log:
    """Every request, in the order of the decisions; the last `LOG_KEEPS` in memory, all of them in the file.

    `cost` is what it took of the provider's limit, in tokens where the provider counts those.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file.open("a", encoding="utf-8", buffering=1) if file else None
        self._in_flight = 0
        self.clear()

    def clear(self) -> None:
        self.entries: deque[dict[str, Any]] = deque(maxlen=LOG_KEEPS)
        self._counts: dict[str, Counter[str]] = {}
        self._requests = 0
        self._most_in_flight = self._in_flight

    def add(self, call: Call, status: int) -> None:
        entry: dict[str, Any] = {
            "time": call.wall_time,
            "monotonic": call.now,
            "route": call.route,
            "path": call.path,
            "status": status,
            "cost": 1,
            "caller": call.headers.get("X-Caller"),
            "idempotency_key": call.headers.get("Idempotency-Key"),
            "fault": _named(call.fault),
            **call.facts,
        }
        self.entries.append(entry)
        self._requests += 1
        self.count("by_route", call.route)
        self.count("by_status", str(status))
        if key := entry["idempotency_key"]:
            self.count("by_idempotency_key", key)
            if status < 300:
                self.count("done_by_idempotency_key", key)
        if self._file:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def count(self, counter: str, name: str, amount: int = 1) -> None:
        self._counts.setdefault(counter, Counter())[name] += amount

    def counters(self) -> dict[str, Any]:
        return {
            "requests": self._requests,
            "in_flight": self._in_flight,
            "most_in_flight": self._most_in_flight,
            **{name: dict(counts) for name, counts in self._counts.items()},
        }

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        if self._file:
            self._file.close()


def arguments(description: str, *, key: str) -> argparse.ArgumentParser:
    """The flags that every stand-in has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="0: any free port, named in the line printed at start")
    parser.add_argument("--key", default=key, help="the API key that is accepted (default: %(default)s)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append one JSON line per request")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin ends, so when the parent dies")
    return parser


def run(standin: StandIn[Any], options: argparse.Namespace) -> None:
    """Serve on loopback until SIGTERM, SIGINT or, if asked, the end of stdin."""
    asyncio.run(_serve(standin, options.port, options.until_eof))


async def _serve(standin: StandIn[Any], port: int, until_eof: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = standin.application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise SystemExit(f"cannot listen on {HOST}:{port}: {os.strerror(error.errno or 0)}") from None
        print(f"listening on http://{HOST}:{runner.addresses[0][1]}", flush=True)
        if until_eof:
            threading.Thread(target=_wait_for_eof, args=(loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()
        standin.log.close()


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # A thread with os.read: the event loop cannot watch a file or /dev/null, and a daemon thread inside
    # sys.stdin's lock would make the interpreter abort at exit.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


async def _read(request: web.Request, route: str) -> Call:
    return Call(route, request.path, dict(request.match_info), request.query, request.headers, await request.read())


async def _send_half(request: web.Request, status: int, headers: dict[str, str], body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport:
        request.transport.close()
    return response


def _json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _named(fault: Fault | None) -> dict[str, Any] | None:
    if fault is None:
        return None
    given = msgspec.to_builtins(fault)
    return {name: value for name, value in given.items() if name not in ("times", "route") and value}
