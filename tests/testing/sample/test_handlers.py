"""Its tests: each has `rt`, a real server with a real worker, and a clock that stands still."""

from runtime.testing import Harness

from .deps import Deck
from .handlers import flashcards, onboard, tokens


async def test_flashcards_pay_what_they_used(rt: Harness) -> None:
    rt.state.openai.reply(cards=15, total_tokens=3_456)
    job = await flashcards.options(priority=10).enqueue(Deck("cardiology"))
    await rt.drain()
    assert len(await job.result()) == 15
    assert await tokens.available() == 90_000 - 3_456


async def test_onboarding_polls_without_burning_attempts(rt: Harness) -> None:
    rt.state.judit.reply("pending", "pending", "completed")
    job = await onboard.enqueue("00.000.000/0001-91")
    await rt.advance("30s")  # no sleeping in the test
    assert await job.result() == 3 and rt.state.judit.created == 1  # noqa: PT018  as a user writes it
