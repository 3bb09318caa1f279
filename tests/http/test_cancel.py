"""What DELETE answers to each way in which a cancel can end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from runtime.adapters.http.jobs import Ending, Order, Receipt
from runtime.adapters.http.server import HttpServer
from runtime.app import listen
from runtime.core.span import Span
from tests.http.asking import TOKEN, Answer, Site


class Ends:
    """Jobs of which only the end matters."""

    def __init__(self, ending: Ending, status: str) -> None:
        self._answer = (ending, status)
        self.asked: list[tuple[str, str | None]] = []

    async def cancel(self, job_id: str, queue: str | None) -> tuple[Ending, str]:
        self.asked.append((job_id, queue))
        return self._answer

    async def add(self, order: Order) -> Receipt:
        raise ZeroDivisionError("s3cret")

    async def show(self, job_id: str, queue: str | None) -> Mapping[str, Any]:
        raise NotImplementedError

    async def count(self) -> Mapping[str, Mapping[str, Any]]:
        raise NotImplementedError

    async def pause(self, queue: str, reason: str, length: Span | None) -> Mapping[str, Any] | None:
        raise NotImplementedError

    async def resume(self, queue: str) -> Mapping[str, Any] | None:
        raise NotImplementedError


class Well:
    async def probe(self) -> None: ...

    def document(self) -> Mapping[str, Any]:
        return {}

    def detail(self) -> Mapping[str, Any]:
        return {}

    def live(self) -> bool:
        return True

    def unready(self) -> str | None:
        return None


class Lines:
    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, message: str, *, event_name: str) -> None:
        self.events.append(event_name)

    def error(self, message: str, *, event_name: str, exc_info: BaseException) -> None:
        self.events.append(event_name)


def served(jobs: Ends, log: Lines, method: str, path: str, body: Any = None) -> Answer:
    async def serve() -> Answer:
        server = HttpServer(Well(), lambda: None, jobs, tokens=[TOKEN], log=log)
        port = await server.start(listen(0))
        try:
            return await asyncio.to_thread(Site(port).ask, method, path, body)
        finally:
            await server.close()

    return asyncio.run(serve())


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        ("cancelled", "cancelled", 200),
        ("asked", "active", 202),
        ("gone", "unknown", 404),
        ("gone", "completed", 409),
        ("gone", "dead", 409),
    ],
)
def test_each_end_of_a_cancel_has_its_answer(ending: Ending, status: str, code: int) -> None:
    jobs = Ends(ending, status)
    answer = served(jobs, Lines(), "DELETE", "/jobs/a%2Fb?queue=q")
    assert (answer.code, answer.json) == (code, {"jobId": "a/b", "status": status})
    assert jobs.asked == [("a/b", "q")]


def test_a_bug_of_ours_is_500_without_its_text_and_goes_to_the_log() -> None:
    log = Lines()
    answer = served(Ends("gone", "unknown"), log, "POST", "/jobs", {"handler": "a"})
    assert (answer.code, answer.error) == (500, "internal")
    assert b"s3cret" not in answer.body
    assert log.events == ["HTTP_ERROR"]
