"""Handlers that call the stand-ins within limits. Each gives the number of its attempt."""

import os
from typing import Any

import aiohttp

from runtime import Bucket, Context, handler

STANDIN = "RUNTIME_TEST_STANDIN"
JUDIT_WINDOW = "RUNTIME_TEST_JUDIT"

ten_a_second = Bucket.window("things", 10, per="1s", burst=2)
judit_limit, judit_per = os.environ.get(JUDIT_WINDOW, "180/60s").split("/")
judit = Bucket.window("judit", int(judit_limit), per=judit_per, burst=9)
openai_requests = Bucket("openai.requests", "1200/m", burst=20)
openai_tokens = Bucket("openai.tokens", "120000/m", burst=2000)


class Unexpected(Exception):
    """The stand-in has refused."""


async def _ask(ctx: Context, method: str, path: str, *, json: object = None, **headers: str) -> dict[str, Any]:
    url = os.environ[STANDIN] + path
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, json=json, headers={"X-Caller": ctx.job_id, **headers}) as answer,
    ):
        if answer.status >= 400:
            raise Unexpected(f"{answer.status}: {await answer.text()}")
        body: dict[str, Any] = await answer.json()
        return body


@handler(limit=ten_a_second)
async def thing(ctx: Context, number: int) -> int:
    await _ask(ctx, "GET", f"/things/{number}")
    return ctx.attempt


@handler
async def search(ctx: Context, cnj: str) -> int:
    """Two requests, which are limited each by itself."""
    key = {"api-key": "judit-standin"}
    async with ctx.limit(judit):
        wanted = {"search": {"search_type": "lawsuit_cnj", "search_key": cnj}}
        search = await _ask(ctx, "POST", "/requests", json=wanted, **key)
    async with ctx.limit(judit):
        await _ask(ctx, "GET", f"/requests/{search['request_id']}", **key)
    return ctx.attempt


@handler
async def complete(ctx: Context, text: str, most_tokens: int) -> int:
    """It estimates too high or too low, and corrects itself by what it was charged for."""
    order = {"model": "gpt-4o-mini", "max_tokens": most_tokens, "messages": [{"role": "user", "content": text}]}
    async with ctx.limit({openai_requests: 1, openai_tokens: len(text) // 3 + most_tokens}) as grant:
        answer = await _ask(ctx, "POST", "/v1/chat/completions", json=order, Authorization="Bearer sk-standin")
        grant.settle({openai_tokens: answer["usage"]["total_tokens"]})
    return ctx.attempt


@handler
async def pay(ctx: Context, text: str, most_tokens: int) -> int:
    """As handlers are meant to call it."""
    order = {"model": "gpt-4o-mini", "max_tokens": most_tokens, "messages": [{"role": "user", "content": text}]}
    headers = {"Authorization": "Bearer sk-standin", "X-Caller": ctx.job_id}
    url = os.environ[STANDIN] + "/v1/chat/completions"
    async with ctx.http("openai").post(url, json=order, headers=headers) as answer:
        await answer.json()
    return ctx.attempt
