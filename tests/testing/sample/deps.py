"""What the handlers depend on, each as a stand-in that remembers what was asked of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class TransientError(Exception):
    """It may work next time."""


@dataclass
class Deck:
    topic: str
    cards: int = 15


@dataclass
class Card:
    question: str
    answer: str


def estimate_tokens(deck: Deck) -> int:
    return 300 * deck.cards


@dataclass
class Cards:
    cards: list[Card]
    total_tokens: int


class OpenAI:
    """Answers with what `reply` has planned."""

    def __init__(self) -> None:
        self._planned: deque[tuple[int, int]] = deque()

    def reply(self, *, cards: int, total_tokens: int) -> None:
        self._planned.append((cards, total_tokens))

    async def make_cards(self, deck: Deck) -> Cards:
        count, tokens = self._planned.popleft()
        return Cards([Card(f"{deck.topic} {number}?", "42") for number in range(count)], tokens)


@dataclass
class Report:
    pending: bool
    lawsuits: list[str] = field(default_factory=list)


class Judit:
    """Answers with the states that `reply` has planned."""

    def __init__(self) -> None:
        self.created = 0
        self._planned: deque[str] = deque()

    def reply(self, *states: str) -> None:
        self._planned.extend(states)

    async def create_request(self, cnpj: str) -> str:
        self.created += 1
        return f"request {self.created} for {cnpj}"

    async def get_request(self, request_id: str) -> Report:
        state = self._planned.popleft()
        if state == "down":
            raise TransientError(request_id)
        return Report(True) if state == "pending" else Report(False, ["a", "b", "c"])


@dataclass
class Row:
    id: int
    topic: str
    priority: int = 0


class Database:
    """Rows in memory."""

    def __init__(self) -> None:
        self.outbox: list[Row] = []
        self.cleaned = 0

    async def save_lawsuits(self, cnpj: str, lawsuits: Sequence[str]) -> int:
        return len(lawsuits)

    async def menu_pages(self, menu_id: str) -> list[str]:
        return [f"{menu_id}/{page}" for page in (1, 2, 3)]

    async def delete_jobs(self, *, done_before_days: int, failed_before_days: int) -> int:
        self.cleaned += 1
        return self.cleaned

    async def claim_outbox(self, limit: int) -> list[Row]:
        return self.outbox[:limit]


class Storage:
    """Files in memory."""

    def __init__(self) -> None:
        self.files: dict[str, list[bytes]] = {}
        self.full = asyncio.Event()
        """Set: nothing more can be written for now."""

    async def append(self, path: str, data: bytes) -> None:
        self.files.setdefault(path, []).append(data)
        while self.full.is_set():
            await asyncio.sleep(0.01)

    async def delete(self, path: str) -> None:
        await asyncio.sleep(0)
        del self.files[path]


class Bus:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, int]] = []

    async def publish(self, topic: str, event_id: int) -> None:
        self.published.append((topic, event_id))


class Browser:
    """Prints."""

    async def pdf(self, page: str) -> bytes:
        return page.encode()


@asynccontextmanager
async def launch_browser() -> AsyncGenerator[Browser]:
    yield Browser()


@dataclass
class State:
    openai: OpenAI = field(default_factory=OpenAI)
    judit: Judit = field(default_factory=Judit)
    db: Database = field(default_factory=Database)
    storage: Storage = field(default_factory=Storage)
    bus: Bus = field(default_factory=Bus)


@asynccontextmanager
async def open_state() -> AsyncGenerator[State]:
    yield State()
