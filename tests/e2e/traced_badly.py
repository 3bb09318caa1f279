"""A handler module that has set OpenTelemetry up by itself, with a processor that raises, as no processor should."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from runtime import Context, handler

QUEUE = "traced-badly"


class Ill(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if "begin" in str(span.attributes.get("messaging.message.id")):
            raise RuntimeError("as it begins")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("as it ends")


_provider = TracerProvider()
_provider.add_span_processor(Ill())
trace.set_tracer_provider(_provider)


@handler(queue=QUEUE)
async def work(ctx: Context) -> str:
    async def step() -> str:
        return "done"

    return await ctx.once("step", step)
