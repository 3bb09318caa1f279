"""progress.lua, and the board that writes with it: how far jobs are, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import IntEnum
from typing import Any

import pytest

from runtime.adapters.redis import board as board_module
from runtime.adapters.redis import keys, scripts
from runtime.adapters.redis.board import RedisBoard, read
from runtime.adapters.redis.connection import connect
from runtime.adapters.redis.scripts import Leased, Noted
from runtime.client import Client
from runtime.core.job import Call, Claim
from runtime.core.progress import NOTE_LIMIT
from runtime.core.redaction import Redactor
from tests.processes import until
from tests.redis.store import Store, back, done, names
from tests.redis.test_follow import ANA, BEA, follow, listening
from tests.servers import Server

# -- the script


def note(store: Store, *jobs: Leased, said: bytes = b"{}") -> list[bool]:
    return store.run(scripts.progress(store.scripts, [Noted(job.id.decode(), job.token, said) for job in jobs]))


def noted(store: Store, job_id: str) -> bytes | None:
    written: bytes | None = store.raw.get(keys.PROGRESS + job_id)
    return written


def test_it_is_noted_with_its_token_and_the_servers_time_and_not_for_ever(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    assert note(store, job, said=b'{"a": "b|c"}') == [True]
    token, at_ms, said = (noted(store, "a") or b"").split(b"|", 2)
    assert (token, said) == (job.token.encode(), b'{"a": "b|c"}')
    assert at_ms.isdigit()
    assert abs(int(at_ms) - store.now_ms()) < 5000
    assert 590_000 < store.raw.pttl(keys.PROGRESS + "a") <= 600_000


def test_what_was_noted_is_kept_for_longer_with_its_time_and_that_is_no_news(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    a, b = worker.take("a", "b")
    assert note(store, a) == [True]
    before = noted(store, "a")
    store.raw.pexpire(keys.PROGRESS + "a", 5000)
    follow(store, "a", ANA)
    with listening(store, ANA) as heard:
        assert note(store, a, b, said=b"") == [True, False]
        assert heard.news() == []
    assert noted(store, "a") == before
    assert noted(store, "b") is None
    assert store.raw.pttl(keys.PROGRESS + "a") > 590_000
    worker.settle(done(a))
    assert note(store, a, said=b"") == [False]


def test_each_job_is_noted_for_itself(store: Store) -> None:
    store.enqueue("a", "b", "c")
    worker = store.worker()
    a, b, c = worker.take("a", "b", "c")
    worker.settle(done(b))
    assert note(store, a, b, c) == [True, False, True]
    assert [job for job in names([a, b, c]) if noted(store, job)] == ["a", "c"]


def test_a_zombie_notes_nothing(store: Store) -> None:
    store.enqueue("a")
    late = store.worker(lease_ms=1).one("a")
    store.lapse(late)
    assert note(store, late) == [False], "nobody's, for now"
    job = store.worker("b-2").one("a")
    assert note(store, job, said=b"mine") == [True]
    before = noted(store, "a")
    assert note(store, late, said=b"zombie") == [False]
    assert noted(store, "a") == before


def test_a_job_given_back_or_ended_is_noted_no_more(store: Store) -> None:
    store.enqueue("a", "b")
    worker = store.worker()
    a, b = worker.take("a", "b")
    worker.settle(done(a), back(b))
    assert note(store, a, b) == [False, False]
    assert (noted(store, "a"), noted(store, "b")) == (None, None)


def test_r19_keys_of_wrong_types_stop_no_other_job(store: Store) -> None:
    store.enqueue("a", "b", "c")
    a, b, c = store.worker().take("a", "b", "c")
    store.spoil(keys.IN_PROGRESS + "a")
    store.spoil(keys.AWAITED + "b")
    store.spoil(keys.PROGRESS + "c")
    assert note(store, a, b, c) == [False, True, True]
    assert noted(store, "c")


def test_r19_out_of_memory_it_is_not_noted_and_nobody_is_told(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    follow(store, "a")
    with listening(store) as heard:
        with store.out_of_memory():
            assert note(store, job) == [False]
        assert heard.news() == []


def test_who_waits_is_told_that_there_is_news_of_its_job(store: Store) -> None:
    store.enqueue("a|b", "c")
    job, other = store.worker().take("a|b", "c")
    follow(store, "a|b", ANA)
    follow(store, "a|b", BEA)
    with listening(store, ANA, BEA) as heard:
        note(store, job, other)
        assert sorted(heard.news()) == [(ANA, b"p3:a|b"), (BEA, b"p3:a|b")]


def test_r19_where_nothing_may_be_published_it_is_noted(store: Store) -> None:
    store.enqueue("a")
    job = store.worker().one("a")
    follow(store, "a")
    store.raw.execute_command("ACL", "SETUSER", "default", "-publish")
    try:
        assert note(store, job) == [True]
    finally:
        store.raw.execute_command("ACL", "SETUSER", "default", "+@all")


# -- the board

EVERY_S = 0.2


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "EVERY_S", EVERY_S)


class Bench:
    """A board, and the jobs that are held."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.redis = connect(url)
        self.held: set[str] = set()
        self.board = RedisBoard(self.redis, self.held.__contains__, Redactor(["s3cret-of-the-settings"]))

    async def take(self, *ids: str) -> list[Claim]:
        jobs = [scripts.NewJob(job_id, b"body", 60_000) for job_id in ids]
        await scripts.enqueue(self.redis, self.store.queue, jobs)
        call = scripts.Claiming([self.store.queue], len(ids), 60_000, "a-1", len(self.held) + 1)
        claims = [
            Claim(job.id.decode(), "q", job.token, job.place, 1, 1, Call("work", (), {}, 0), b"", 0)
            for job in (await call(self.redis)).jobs
        ]
        self.held.update(claim.token for claim in claims)
        return sorted(claims, key=lambda claim: claim.id)

    def at(self, claim: Claim) -> tuple[float, str] | None:
        found = read(noted(self.store, claim.id), claim.token.encode())
        return None if found is None else (found.done, found.note)

    def writes(self) -> int:
        """How many scripts the server has run."""
        return int(self.store.raw.info("commandstats")["cmdstat_evalsha"]["calls"])


@asynccontextmanager
async def bench(store: Store, url: str | None = None) -> AsyncIterator[Bench]:
    made = Bench(store, url or store.url)
    try:
        yield made
    finally:
        await made.board.close()
        await made.redis.aclose()


def play(store: Store, test: Callable[[Bench], Any]) -> None:
    async def run() -> None:
        async with bench(store) as it:
            await test(it)

    asyncio.run(run())


def test_of_a_thousand_words_the_first_and_the_last_are_written(store: Store) -> None:
    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        before = it.writes()
        began = time.monotonic()
        for done_ in range(1001):
            it.board.show(claim, done_, 1000, "")
        assert time.monotonic() - began < 1
        await until(lambda: it.at(claim) is not None)
        for done_ in range(1001):
            it.board.show(claim, 1001 + done_, 1000, "")
            await asyncio.sleep(0)
        await until(lambda: it.at(claim) == (2001, ""))
        assert time.monotonic() - began > board_module.EVERY_S / 2, "not at once"
        assert it.writes() - before <= 2 + (time.monotonic() - began)

    play(store, test)


def test_all_jobs_are_written_in_one_call_and_nothing_while_there_is_no_news(store: Store, quickly: None) -> None:
    async def test(it: Bench) -> None:
        claims = await it.take(*(f"job-{number}" for number in range(50)))
        before = it.writes()
        for claim in claims:
            it.board.show(claim, 1, None, "")
        await until(lambda: all(it.at(claim) == (1, "") for claim in claims))
        await asyncio.sleep(3 * EVERY_S)
        assert it.writes() - before <= 2, "one, and one that brings the script"

    play(store, test)


def test_more_jobs_than_go_in_one_call_are_all_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "BATCH", 2)

    async def test(it: Bench) -> None:
        claims = await it.take("a", "b", "c", "d", "e")
        for claim in claims:
            it.board.show(claim, 1, None, "")
        await until(lambda: all(it.at(claim) == (1, "") for claim in claims))

    play(store, test)


def test_a_run_that_has_ended_is_forgotten_and_the_board_comes_to_rest(store: Store, quickly: None) -> None:
    async def test(it: Bench) -> None:
        a, b = await it.take("a", "b")
        it.board.show(a, 1, None, "")
        it.board.show(b, 1, None, "")
        it.held.discard(a.token)
        await until(lambda: len(it.board._reports) == 1)
        it.held.discard(b.token)
        await until(lambda: it.board._writing is not None and it.board._writing.done())
        assert not it.board._reports
        (c,) = await it.take("c")
        it.board.show(c, 7, None, "")
        await until(lambda: it.at(c) == (7, ""))

    play(store, test)


def test_what_goes_on_without_a_word_is_not_forgotten(
    store: Store, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PROGRESS_S", 1)

    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        it.board.show(claim, 1, None, "")
        await until(lambda: it.at(claim) is not None)
        written = noted(store, claim.id)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert noted(store, claim.id) == written  # with the time at which it was told
            await asyncio.sleep(0.05)

    play(store, test)


def test_what_was_to_be_kept_and_is_gone_is_written_again(
    store: Store, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PROGRESS_S", 1)

    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        it.board.show(claim, 1, None, "")
        await until(lambda: it.at(claim) is not None)
        store.raw.delete(keys.PROGRESS + "a")
        await until(lambda: it.at(claim) == (1, ""))

    play(store, test)


def test_a_note_is_shown_without_secrets_and_cut(store: Store) -> None:
    async def test(it: Bench) -> None:
        a, b, c = await it.take("a", "b", "c")
        it.board.show(a, 1, None, "with s3cret-of-the-settings and sk-abcdefghijklmnopqrstuvwxyz0123456789")
        it.board.show(b, 1, None, 10_000 * "word ")
        it.board.show(c, 1, None, "\udcff half a character")
        await until(lambda: it.at(c) is not None)
        shown = [(it.at(claim) or (0, ""))[1] for claim in (a, b, c)]
        assert "s3cret" not in shown[0]
        assert "abcdefghij" not in shown[0]
        assert (len(shown[1]), shown[1][-1]) == (NOTE_LIMIT, "…")
        assert shown[2] == "\\udcff half a character"

    play(store, test)


class Share(float):
    """As numpy's numbers are."""


class Page(IntEnum):
    LAST = 9


def test_a_number_of_another_kind_is_written_as_a_number(store: Store) -> None:
    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        it.board.show(claim, Share(0.5), Page.LAST, "")
        await until(lambda: it.at(claim) == (0.5, ""))
        assert b'"total":9' in (noted(store, "a") or b"")

    play(store, test)


def test_while_the_server_is_away_nobody_waits_and_the_last_word_is_written_when_it_is_back(
    server: Server, store: Store, quickly: None
) -> None:
    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        it.board.show(claim, 1, None, "")
        await until(lambda: it.at(claim) == (1, ""))
        server.pause()
        try:
            for done_ in range(20):
                began = time.monotonic()
                it.board.show(claim, done_, None, "")
                assert time.monotonic() - began < 0.5
                await asyncio.sleep(0.05)
        finally:
            server.resume()
        await until(lambda: it.at(claim) == (19, ""))

    play(store, test)


def test_a_word_that_comes_while_another_is_being_written_is_written_too(store: Store, quickly: None) -> None:
    async def test(it: Bench) -> None:
        (claim,) = await it.take("a")
        it.board.show(claim, 1, None, "")
        await asyncio.sleep(0)  # it has begun to write
        it.board.show(claim, 2, None, "")
        await until(lambda: it.at(claim) == (2, ""))

    play(store, test)


def test_what_nobody_holds_is_not_shown_by_the_client(store: Store) -> None:
    async def test(it: Bench) -> None:
        client = Client(store.url)
        try:
            (claim,) = await it.take("a")
            assert await client.progress("a") is None
            it.board.show(claim, 1, 4, "a quarter")
            await until(lambda: it.at(claim) is not None)
            found = await client.progress("a")
            assert found is not None
            assert (found.done, found.total, found.note) == (1, 4, "a quarter")
            store.raw.set(keys.IN_PROGRESS + "a", "1")  # stock arq's
            assert await client.progress("a") is None
            store.raw.delete(keys.IN_PROGRESS + "a")
            assert await client.progress("a") is None
        finally:
            await client.close()

    play(store, test)


def test_what_it_does_is_no_part_of_the_run_that_was_the_first_to_tell(store: Store) -> None:
    """The watchdog would blame that run for whatever stands still here."""
    from contextvars import ContextVar

    mine: ContextVar[str] = ContextVar("mine", default="nobody's")

    async def test(it: Bench) -> None:
        mine.set("the run's")
        seen: list[str] = []
        it.board._holds = lambda token: seen.append(mine.get()) or False  # type: ignore[func-returns-value]
        (claim,) = await it.take("a")
        it.board.show(replace(claim), 1, None, "")
        await until(lambda: seen)
        assert seen == ["nobody's"]

    play(store, test)
