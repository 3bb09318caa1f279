"""Handlers and a producer of the tests of traces.

As a program, a producer that has set OpenTelemetry up by itself:
python -m tests.e2e.traced URL HANDLER JSON [TRACEPARENT]
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import structlog

from runtime import Context, Permanent, Pool, Retry, Snooze, connect, handler

QUEUE = "traced"


@handler(queue=QUEUE)
async def fetch(ctx: Context, url: str, secret: str) -> str:
    structlog.get_logger().info("about to fetch", event_name="FETCHING")
    logging.getLogger("some.library").warning("as libraries do")

    async def get() -> int:
        async with ctx.http("web").get(f"{url}/things/1", params={"key": secret}) as answer:
            return int(answer.status)

    status = await ctx.once("get", get)
    if status >= 400:
        raise Permanent(f"{secret}: {status}")
    return secret


async def open_slowly() -> str:
    logging.getLogger("some.library").warning("opening")
    await asyncio.sleep(0.2)
    return "a thing"


things = Pool("things", size=1, open=open_slowly)


@handler(queue=QUEUE)
async def use(ctx: Context) -> None:
    async with ctx.use(things):
        await asyncio.sleep(0.2)


@handler(queue=QUEUE, retry=Retry(3, base="10ms"))
async def fail_twice(ctx: Context) -> int:
    if ctx.attempt < 3:
        raise ValueError("a text with a secret in it")
    return ctx.attempt


@handler(queue=QUEUE)
async def snooze_once(ctx: Context, mark: str) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        raise Snooze("10ms")


@handler(queue=QUEUE)
async def crash_once(ctx: Context) -> None:
    if not ctx.crashes:
        os.kill(os.getpid(), signal.SIGKILL)


@handler(queue=QUEUE)
async def linger_once(ctx: Context, mark: str) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        await asyncio.sleep(3600)


@handler(queue=QUEUE)
async def own_span(ctx: Context) -> None:
    from opentelemetry import trace

    with trace.get_tracer("mine").start_as_current_span("inner"):
        structlog.get_logger().info("inside", event_name="INSIDE")
        await nothing.enqueue()


@handler(queue=QUEUE)
async def nothing(ctx: Context) -> None: ...


@handler(queue=QUEUE)
async def modules(ctx: Context) -> list[str]:
    return sorted(name for name in sys.modules if name.startswith(("opentelemetry", "google.protobuf")))


async def produce(url: str, name: str, arguments: str, traceparent: str) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from runtime.adapters.telemetry import traces

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    async with connect(url) as client:
        with traces.continued({"traceparent": traceparent} if traceparent else {}):
            job = await client.enqueue(name, json.loads(arguments), options={"queue": QUEUE, "priority": 7})
    print(job.id)
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(produce(sys.argv[1], sys.argv[2], sys.argv[3], "".join(sys.argv[4:])))
