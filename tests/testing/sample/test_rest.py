"""What else the sample's handlers do, and how it is tested."""

import asyncio

import pytest

from runtime import JobCancelled, JobFailed
from runtime.testing import Harness

from .deps import Card, Deck, Judit, Report, Row, TransientError
from .handlers import cleanup, export_pdf, flashcards, judit, onboard, tokens


async def test_a_menu_is_exported_page_by_page(rt: Harness) -> None:
    job = await export_pdf.enqueue("m1", tier="vip")
    await rt.drain()
    path = await job.result()
    assert path == f"exports/m1/{job.id}.pdf"
    assert rt.state.storage.files == {path: [b"m1/1", b"m1/2", b"m1/3"]}


async def test_who_pays_is_served_first(rt: Harness) -> None:
    for tier in ("free", "vip", "normal"):
        await export_pdf.enqueue(tier, tier=tier)
    assert [job.priority for job in await rt.jobs()] == [100, 50, 10]


async def test_a_cancelled_export_leaves_no_file(rt: Harness) -> None:
    rt.state.storage.full.set()
    job = await export_pdf.enqueue("m1")
    drained = asyncio.create_task(rt.drain())
    while not rt.state.storage.files:
        await asyncio.sleep(0.01)
    await job.cancel()
    await drained
    assert rt.state.storage.files == {}
    with pytest.raises(JobCancelled):
        await job.result()


async def test_the_outbox_is_emptied_every_five_seconds_and_nothing_is_sent_twice(rt: Harness) -> None:
    rt.state.db.outbox = [Row(1, "paid"), Row(2, "cancelled", priority=5)]
    await rt.advance("1m")
    assert sorted(rt.state.bus.published) == [("cancelled", 2), ("paid", 1)]


async def test_old_jobs_are_deleted_each_night(rt: Harness) -> None:
    await cleanup.enqueue()  # by hand: to wait for it would fire all that is every five seconds until then
    await rt.drain()
    assert rt.state.db.cleaned == 1


async def test_a_provider_that_is_down_is_asked_again(rt: Harness) -> None:
    rt.state.judit.reply("down", "pending", "completed")
    job = await onboard.enqueue("1")
    await rt.advance("20s")
    assert await job.result() == 3
    assert [type(failure.error) for failure in rt.failures] == [TransientError]
    assert rt.state.judit.created == 1


async def test_a_worker_that_dies_repeats_no_step(rt: Harness) -> None:
    dying = _DiesOnce(rt)
    rt.state.judit = dying
    dying.reply("completed")
    job = await onboard.enqueue("1")
    await rt.advance("10s")
    assert await job.result() == 3
    assert dying.created == 1


class _DiesOnce(Judit):
    def __init__(self, rt: Harness) -> None:
        super().__init__()
        self._rt = rt
        self._died = False

    async def get_request(self, request_id: str) -> Report:
        if not self._died:
            self._died = True
            self._rt.kill_worker()
            await asyncio.sleep(60)
        return await super().get_request(request_id)


async def test_a_limit_spreads_the_work(rt: Harness) -> None:
    rt.state.judit.reply(*["completed"] * 12)
    for number in range(12):
        await onboard.enqueue(str(number))
    await rt.drain()
    assert rt.state.judit.created == 10
    assert await judit.available() == 0
    await rt.advance("2s")
    assert rt.state.judit.created == 12


async def test_a_handler_is_a_function(rt: Harness) -> None:
    rt.state.openai.reply(cards=1, total_tokens=10)
    assert await flashcards(rt.context(), Deck("cardiology")) == [Card("cardiology 0?", "42")]
    assert await tokens.available() == 89_990


async def test_a_bug_is_found(rt: Harness) -> None:
    job = await flashcards.enqueue(Deck("nothing is planned"))
    await rt.advance("6s")
    assert [type(failure.error) for failure in rt.failures] == [IndexError] * 3
    with pytest.raises(JobFailed, match="pop from an empty deque") as raised:
        await job.result()
    assert isinstance(raised.value.__cause__, IndexError)
