"""The public API as users write it; mypy strict and pyright strict accept this file.

Both complain of an ignore that is not needed, so each rejects every line that carries its own.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from anyio import from_thread

from runtime import (
    Allowance,
    Bucket,
    Checked,
    Concurrency,
    Context,
    Invalid,
    Job,
    JobFailed,
    Lifespan,
    Middleware,
    Pool,
    Progress,
    Quota,
    QuotaExceeded,
    Retry,
    RetryLater,
    Snooze,
    Transient,
    by,
    connect,
    cron,
    enqueue_all,
    every,
    handler,
    lifespan,
    middleware,
)


@dataclass
class Deck:
    content: str
    cards: int = 5


@handler
async def bare(ctx: Context, text: str) -> int:
    return len(text)


@handler(queue="ai-jobs", timeout="2m", retry=Retry(3, on=Transient, base="1s"), priority=5, keep_result="1d")
async def flashcards(ctx: Context, deck: Deck, *, tier: str = "free") -> list[str]:
    if not deck.content:
        raise Invalid("an empty deck")
    if ctx.attempt > 2:
        raise RetryLater("30s")
    request: str = await ctx.once("create", Checked(create, check=find), deck.content)
    if not request:
        raise Snooze(timedelta(seconds=5), give_up_after="30m")
    return [request] * deck.cards


async def create(content: str) -> str:
    return content


async def find(content: str) -> str | None:
    return None


exports = Quota(
    "exports", by="user_id", tier="tier", tiers={"free": Allowance(hourly=10, pending=5), "paying": Allowance()}
)


@handler(quota=exports, priority=10)
async def export(ctx: Context, user_id: int, tier: str = "free") -> str:
    return f"{user_id}.pdf"


async def export_or_say_when(user_id: int) -> Job[str] | float:
    try:
        return await export.enqueue(user_id, tier="paying")
    except QuotaExceeded as error:
        print(error.quota, error.which, error.limit)
        return error.retry_after_s


# A function as arq's users write it.
@handler(name="old-name")
async def old(ctx: dict[str, object], url: str) -> None:
    assert ctx["job_id"], url


requests = Bucket("openai.requests", "500/m")
tokens = Bucket("openai.tokens", "30000/m")
renders = Concurrency("renders", 5)


@handler(limit=[requests, renders])
async def limited(ctx: Context, tenant: str) -> None:
    async with ctx.limit({tokens: 900, renders[tenant]: 1}, patience="2s") as grant:
        grant.settle({tokens: 731})
    async with ctx.limit(renders[tenant]):
        pass


@handler(limit=renders)
async def limited_by_one(ctx: Context) -> None:
    ctx.limit("renders")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a name for a limit
    ctx.limit({renders: "one"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]  # a text for a number
    Concurrency("renders", "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # likewise


@handler
async def told(ctx: Context, pages: int) -> None:
    try:
        for page in range(pages):
            await ctx.progress(page, pages, "rendering")
        await ctx.progress(0.5)
    finally:
        if ctx.cancel_reason == "user":
            print("nobody wants it any more")
    await ctx.progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a text for a number
    await ctx.progress(1, 2, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a number for a note


async def follow() -> None:
    job = await told.enqueue(3)
    async for event in job.events("5m"):
        if event.progress is not None:
            print(event.status, event.progress.done, event.progress.total, event.progress.note, event.progress.at.year)
    found: Progress | None = await job.progress()
    print(found)


class Browser:
    async def pdf(self, page: str) -> bytes:
        return page.encode()

    async def aclose(self) -> None: ...


@asynccontextmanager
async def running_browser() -> AsyncGenerator[Browser]:
    yield Browser()


async def launch_browser() -> Browser:
    return Browser()


chromium = Pool("chromium", size=3, open=running_browser)
launched = Pool("launched", size=3, open=launch_browser, close=Browser.aclose, uses=50)
named: Pool[Browser] = Pool("named", size=1, open=lambda: launch_browser())


@handler(queue="exports")
async def render(ctx: Context, page: str) -> bytes:
    async with ctx.use(chromium) as browser:
        pdf: bytes = await browser.pdf(page)
    async with ctx.use(launched) as other, ctx.use(named) as third:
        return pdf + await other.pdf(page) + await third.pdf(page)


async def misuses_of_pools(ctx: Context) -> None:
    Pool("none", open=launch_browser)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # no size
    Pool("both", size=1, open=running_browser, close=Browser.aclose)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # two ways to close
    async with ctx.use(chromium) as browser:
        page: str = await browser.pdf("page")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # a wrong type of what the item gives
        print(page)
    ctx.use("chromium")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a name for a pool


@dataclass
class State:
    database: dict[str, int]


@lifespan
async def resources() -> AsyncIterator[State]:
    yield State({})


opened: Lifespan[State] = resources


@middleware
async def timed(ctx: Context[State], call_next: Callable[[], Awaitable[Any]]) -> Any:
    print(ctx.handler, ctx.state.database)
    return await call_next()


@middleware(queue="ai-jobs")
async def of_one_queue(ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
    return await call_next()


layers: list[Middleware] = [timed, of_one_queue]


@handler
async def stateful(ctx: Context[State], key: str) -> int:
    value: int = ctx.state.database[key]
    try:
        return value
    finally:
        with ctx.shield("5s"):
            await create(key)


@handler
def bare_thread(ctx: Context[State], key: str) -> int:
    return ctx.state.database[key]


@handler(queue="reports", priority=by("tier", {"vip": 100}, default=1))
def in_a_thread(ctx: Context, path: str, tier: str = "free") -> list[str]:
    return [from_thread.run(create, path)]


async def use_of_these() -> None:
    number: int = await (await stateful.enqueue("a")).result()
    other: int = await (await bare_thread.enqueue("a")).result()
    lines: list[str] = await (await in_a_thread.options(key="k").enqueue("a", tier="vip")).result()
    print(number, other, lines)


async def misuses_of_these(ctx: Context[State]) -> None:
    await bare_thread.enqueue(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a wrong type
    await in_a_thread.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a missing argument
    wrong: str = await (await bare_thread.enqueue("a")).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # a wrong result type
    ctx.state.databse  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018  # a misspelt part of the state
    by("tier", {"vip": "100"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]  # a text for a number
    handler(priority="high")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]  # likewise
    lifespan(create)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no generator
    middleware(create)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no middleware
    print(wrong)


@cron("0 3 * * *", tz="America/Sao_Paulo", misfire="skip", queue="nightly")
async def cleanup(ctx: Context) -> int:
    return 0 if ctx.scheduled_for is None else ctx.scheduled_for.day


@every("5s", limit=tokens)
async def drain_outbox(ctx: Context) -> None: ...


async def scheduled_by_hand(ctx: Context) -> int:
    job: Job[int] = await cleanup.options(priority=3).enqueue()
    await drain_outbox(ctx)
    return await job.result()


async def needs_arguments(ctx: Context, name: str) -> None: ...


async def misuses_of_schedules() -> None:
    cron("0 3 * * *", misfire="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no such policy
    every("5s", tz="UTC")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # it has no zone
    every("5s")(needs_arguments)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]  # nobody gives them
    await cleanup.enqueue(7)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # it takes none


async def produce() -> None:
    async with connect("redis://localhost"):
        job: Job[list[str]] = await flashcards.enqueue(Deck("cardiology"), tier="vip")
        cards: list[str] = await job.result(timeout="1m")
        later = flashcards.options(key="k", priority=10, delay="5m", queue="other")
        again: Job[list[str]] = await later.enqueue(Deck("cardiology", cards=3))
        await bare.options(at=datetime.now(UTC), expires=3600).enqueue("text")
        jobs: list[Job[int]] = await enqueue_all([bare.request("a"), bare.request(text="b")])
        lengths: list[int] = [await each.result() for each in jobs]
        try:
            await again.result()
        except JobFailed as failure:
            print(failure.error, failure.text, cards, lengths, job.created)


async def seven_misuses() -> None:
    await bare.enqueue(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a wrong type
    await bare.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a missing argument
    await bare.enqueue(txt="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a misnamed argument
    bare.options(prio=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a misspelt option
    await flashcards.enqueue({"content": "a"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a dict for a dataclass
    wrong: str = await (await bare.enqueue("a")).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # a wrong result type
    await flashcards.enqueue(Deck("a"), tier=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a wrong type of a keyword
    print(wrong)


async def in_a_unit_test(ctx: Context, as_mapping: Mapping[str, object]) -> None:
    length: int = await bare(ctx, "text")
    name: str = bare.name
    print(length, name, as_mapping)
