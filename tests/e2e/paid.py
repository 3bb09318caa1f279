"""Handlers that call APIs through `ctx.http`, as their authors would from its docstring. Their buckets come from the
environment, so that two workers may have different ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

from runtime import Bucket, Context, Permanent, Retry, Transient, handler

QUEUE = "paid"


def declared(name: str, rate: str, burst: int) -> Bucket:
    """As `PAID_<NAME>="rate burst"` says, else so."""
    rate, _, most = os.environ.get(f"PAID_{name.upper().replace('.', '_')}", f"{rate} {burst}").partition(" ")
    return Bucket(name, rate, burst=int(most))


requests = declared("openai.requests", "100/s", 100)
tokens = declared("openai.tokens", "100000/s", 100_000)
acme = declared("acme.requests", "100/s", 100)

RETRY = Retry(3, base="200ms")


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def complete(
    ctx: Context, url: str, text: str, most: int = 50, times: int = 1, wait_s: float = 30.0
) -> list[Any]:
    """What so many equal completions of OpenAI have used, in tokens."""
    import aiohttp

    request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "max_completion_tokens": most}
    headers = {"Authorization": f"Bearer {os.environ.get('PAID_KEY', 'sk-standin')}"}
    timeout = aiohttp.ClientTimeout(total=wait_s)
    used = []
    for _ in range(times):
        async with ctx.http("openai").post(url, json=request, headers=headers, timeout=timeout) as response:
            used.append((await response.json())["usage"]["total_tokens"])
    return used


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def get(ctx: Context, name: str, url: str, options: dict[str, Any] | None = None) -> Any:
    """What `GET` answers: its status and its text."""
    async with ctx.http(name).get(url, **options or {}) as response:
        return [response.status, await response.text()]


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def stream(ctx: Context, url: str) -> list[float]:
    """When each part came, in seconds after the first."""
    loop = asyncio.get_running_loop()
    came = []
    async with ctx.http("acme").get(url) as response:
        async for _ in response.content:
            came.append(loop.time())
    return [at - came[0] for at in came]


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def big(ctx: Context, url: str) -> int:
    async with ctx.http("acme").get(url) as response:
        return len((await response.json())["text"])


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def upload(ctx: Context, url: str, how: str) -> list[dict[str, Any]]:
    """What two equal uploads in a run were seen as; the run fails the first time."""
    import io

    import aiohttp

    def made() -> Any:
        match how:
            case "form":
                form = aiohttp.FormData()
                form.add_field("file", io.BytesIO(b"some bytes"), filename="a.txt")
                return form
            case "file":
                return io.BytesIO(b"some bytes")
            case "bytes":
                return b"some bytes"
            case _:
                return {"name": "some text"}

    session = ctx.http("acme")
    seen = []
    for _ in range(2):
        async with session.post(url, data=made()) as response:
            seen.append(await response.json())
    if ctx.attempt == 1:
        raise RuntimeError("after the uploads")
    return seen


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def insist(ctx: Context, url: str) -> int:
    """Posts until it is done, within one run."""
    for tries in range(1, 4):
        try:
            async with ctx.http("acme").post(url, json={"amount": 7}):
                return tries
        except Transient:
            continue
    raise Permanent("three times in vain")


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def as_aiohttp_has_it(ctx: Context, url: str) -> dict[str, Any]:
    """The ways of aiohttp to make a call, all on one session."""
    session = ctx.http("acme")
    awaited = await session.get(f"{url}/echo")
    async with session.request("put", f"{url}/echo", data=b"abc", headers=[("X-Mine", "1")]) as put:
        said = await put.json()
    task = asyncio.create_task(session.post(f"{url}/echo", json=None))
    first, second = await asyncio.gather(session.get(f"{url}/echo"), asyncio.wait_for(session.get(f"{url}/echo"), 10))
    async with session.post(f"{url}/moved", json={"a": 1}) as moved, session.ws_connect(f"{url}/ws") as socket:
        after = await moved.json()
        await socket.send_str("hello")
        echoed = await socket.receive_str(timeout=10)
    async with session.get(f"{url}/moved", allow_redirects=False) as stayed:
        status = stayed.status
    async with session.head(f"{url}/echo") as head:
        length = head.headers["Content-Length"]
    strict = await session.get(f"{url}/echo", raise_for_status=True)
    return {
        "awaited": awaited.status,
        "put": [said["method"], said["size"], said["headers"]["X-Mine"], "Idempotency-Key" in said["headers"]],
        "task": (await (await task).json())["method"],
        "gathered": [first.status, second.status],
        "moved": [after["method"], after["sha256"] == hashlib.sha256(b'{"a": 1}').hexdigest()],
        "stayed": status,
        "echoed": echoed,
        "head": int(length) > 0,
        "strict": strict.status,
        "headers": dict(session.headers),
        "closed": session.closed,
    }


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def strict(ctx: Context, url: str) -> None:
    """As one writes it who is used to aiohttp's sessions."""
    async with ctx.http("acme").get(url, raise_for_status=True) as response:
        response.raise_for_status()


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def wrong(ctx: Context, how: str) -> Any:
    """Mistakes in a call."""
    session = ctx.http("acme")
    match how:
        case "no URL":
            await session.get("not a url")
        case "no JSON":
            await session.post("http://127.0.0.1:9/x", json={"a": object()})
        case "two bodies":
            await session.post("http://127.0.0.1:9/x", json={}, data=b"")
        case _:
            await session.fetch("http://127.0.0.1:9/x")


@handler(queue=QUEUE, timeout="60s", retry=RETRY)
async def spend(ctx: Context, times: int, base: str) -> list[float]:
    """The time of each of so many plain calls, in µs."""
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(times):
        began = loop.time()
        async with ctx.http(base.partition(" ")[0]).get(base.partition(" ")[2]) as response:
            await response.read()
        took.append(1e6 * (loop.time() - began))
    return took
