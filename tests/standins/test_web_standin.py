"""The limit of the stand-in for any API, as its clients meet it."""

import asyncio

import aiohttp

from tests.standins.process import running


def test_it_refuses_what_is_over_its_window_and_says_when_to_come_again() -> None:
    async def ask(url: str) -> list[tuple[int, str | None]]:
        async with aiohttp.ClientSession(url) as session:
            answers = [await session.get("/things/a", headers={"X-Caller": str(n)}) for n in range(4)]
            return [(answer.status, answer.headers.get("Retry-After")) for answer in answers]

    with running("web", "--limit", "3", "--window", "60") as web:
        assert asyncio.run(ask(web.url)) == [(200, None)] * 3 + [(429, "60")]
        log = web.log()
    assert [(entry["caller"], entry["cost"], entry["status"]) for entry in log["requests"]] == [
        ("0", 1, 200),
        ("1", 1, 200),
        ("2", 1, 200),
        ("3", 1, 429),
    ]
    assert log["counters"]["rate_limited"] == {"GET /things/{name}": 1}


def test_a_storm_of_refusals_ends_when_it_is_mended() -> None:
    async def ask(url: str) -> tuple[int, str | None]:
        async with aiohttp.ClientSession(url) as session, session.get("/things/a") as answer:
            return answer.status, answer.headers.get("Retry-After")

    with running("web") as web:
        web.fault({"status": 429, "times": None, "retry_after": 2})
        assert [asyncio.run(ask(web.url)) for _ in range(2)] == [(429, "2")] * 2
        web.mend()
        assert asyncio.run(ask(web.url)) == (200, None)
