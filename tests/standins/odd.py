"""A stand-in for an API that answers in every way that HTTP has and JSON APIs seldom use."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from tests.standins.program import GATEWAY_PAGE, Answer, Call, Fault, StandIn, arguments, run

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
PAUSE_S = 0.5
"""From one part of a stream to the next."""


class Odd(StandIn[Fault]):
    """`/things/…` answers, or does what a fault says. As for the others:

    `/echo` tells what it was sent; `/gateway` is an HTML page of 502, `/html` one of 200; `/garbage` says that it is
    JSON and is none; `/stream?kind=…&parts=…` comes bit by bit; `/big?size=…` is JSON of so many bytes, in chunks;
    `/moved` redirects; `/full?wait=…` is a rate limit; `/cut-429` one whose body breaks off; `/endless` fails without
    an end; `/ws` echoes.
    """

    fault_type = Fault

    def routes(self) -> list[tuple[str, str, Callable[[Call], Answer]]]:
        return [(method, "/things/{name}", self._answer) for method in ("GET", "POST")]

    def _answer(self, call: Call) -> Answer:
        fault = self.meet_fault(call)
        return Answer(fault.status or 200 if fault else 200, {})

    def headers(self, call: Call, answer: Answer) -> dict[str, str]:
        return {}

    def forget(self) -> None: ...

    def application(self) -> web.Application:
        app = super().application()
        routes: dict[str, Respond] = {
            "echo": self._echo,
            "gateway": self._page,
            "html": self._page,
            "garbage": self._garbage,
            "stream": self._stream,
            "big": self._big,
            "moved": self._moved,
            "full": self._full,
            "cut-429": self._cut,
            "endless": self._endless,
            "ws": self._ws,
        }
        for name, respond in routes.items():
            app.router.add_route("*", f"/{name}", self._logged(respond))
        return app

    def _logged(self, respond: Respond) -> Respond:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = b"" if request.path == "/ws" else await request.read()
            route = f"{request.method} {request.path}"
            call = Call(route, request.path, {}, request.query, request.headers, body)
            call.facts["query"] = dict(request.query)
            self.log.add(call, 0)
            return await respond(request)

        return answer

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        said = {
            "method": request.method,
            "headers": dict(request.headers),
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return web.json_response(said)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        status = 502 if request.path == "/gateway" else 200
        return web.Response(status=status, body=GATEWAY_PAGE, content_type="text/html")

    async def _garbage(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"usage": {"total_tokens": ', content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": request.query["kind"]})
        await response.prepare(request)
        for part in range(int(request.query.get("parts", "3"))):
            await response.write(f'{{"part": {part}}}\n'.encode())
            await asyncio.sleep(PAUSE_S)
        return response

    async def _big(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if "length" in request.query:
            response.content_length = int(request.query["size"]) + len('{"text": ""}')
        await response.prepare(request)
        await response.write(b'{"text": "')
        for _ in range(int(request.query["size"]) // 65_536):
            await response.write(b"x" * 65_536)
        await response.write(b'"}')
        return response

    async def _moved(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/echo"})

    async def _full(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": request.query["wait"]})

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=429, headers={"Retry-After": "3", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(json.dumps({"error": "half"}).encode())
        if request.transport:
            request.transport.close()
        return response

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(message.data)
        return socket

    def error(self, status: int, route: str) -> Answer:
        return Answer(status, {"error": route})


def main() -> None:
    options = arguments("A stand-in for an API that answers oddly.", key="").parse_args()
    run(Odd(options.log), options)


if __name__ == "__main__":
    main()
