import asyncio
from collections.abc import AsyncIterator

from runtime import Bucket, Context, Pool, Retry, Snooze, by, cron, every, handler, lifespan

from .deps import Card, Deck, State, TransientError, estimate_tokens, launch_browser, open_state

judit = Bucket("judit", rate="60/m", burst=10)  # one bucket for the whole fleet, in Redis
tokens = Bucket("openai.tokens", rate="90000/m")
chromium = Pool("chromium", size=3, open=launch_browser)  # at most 3 renders in this worker
TIERS = {"vip": 100, "normal": 50, "free": 10}  # higher runs first


@lifespan
async def resources() -> AsyncIterator[State]:
    async with open_state() as state:
        yield state


@handler(queue="judit", limit=judit, timeout="30s", retry=Retry(5, on=TransientError))
async def onboard(ctx: Context[State], cnpj: str) -> int:
    request_id = await ctx.once("create", ctx.state.judit.create_request, cnpj)  # not repeated by a retry
    reply = await ctx.state.judit.get_request(request_id)
    if reply.pending:
        raise Snooze("15s", give_up_after="30m")  # frees the slot; is not a failed attempt
    return await ctx.state.db.save_lawsuits(cnpj, reply.lawsuits)


@handler(queue="ai-jobs", timeout="2m", retry=Retry(3))
async def flashcards(ctx: Context[State], deck: Deck) -> list[Card]:
    async with ctx.limit(tokens, cost=estimate_tokens(deck)) as grant:  # reserve
        reply = await ctx.state.openai.make_cards(deck)
        grant.settle(reply.total_tokens)  # refund or charge the difference
    return reply.cards


@handler(queue="exports", timeout="60s", priority=by("tier", TIERS))
async def export_pdf(ctx: Context[State], menu_id: str, tier: str = "free") -> str:
    path = f"exports/{menu_id}/{ctx.job_id}.pdf"
    pages = await ctx.state.db.menu_pages(menu_id)
    try:
        async with ctx.use(chromium) as browser:
            for done, page in enumerate(pages, 1):
                await ctx.state.storage.append(path, await browser.pdf(page))
                await ctx.progress(done, len(pages), "rendering")
    except asyncio.CancelledError:  # user cancel, timeout or shutdown
        with ctx.shield("5s"):
            await ctx.state.storage.delete(path)
        raise
    return path


@cron("0 3 * * *", tz="America/Sao_Paulo")  # runs once, however many workers there are
async def cleanup(ctx: Context[State]) -> int:
    return await ctx.state.db.delete_jobs(done_before_days=30, failed_before_days=7)


@every("5s", queue="outbox")
async def drain_outbox(ctx: Context[State]) -> None:
    for row in await ctx.state.db.claim_outbox(100):  # SELECT ... FOR UPDATE SKIP LOCKED
        await deliver.options(key=f"outbox:{row.id}", priority=row.priority).enqueue(row.id, row.topic)


@handler(queue="outbox", unique_for="24h", retry=Retry(8))  # same key within 24 h: the first job, not a second
async def deliver(ctx: Context[State], event_id: int, topic: str) -> None:
    await ctx.state.bus.publish(topic, event_id)
