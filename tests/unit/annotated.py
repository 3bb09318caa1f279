"""Handlers whose annotations are text until somebody asks, some of them names that only a type checker knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from nowhere import Ghost  # type: ignore[import-not-found]


async def late(ctx: Any, later: Later, count: int = 1) -> Later:
    return later


async def haunted(ctx: Any, ghost: Ghost, count: int = 1) -> Ghost:
    return ghost


@dataclass
class Later:
    """Defined after the handler that takes it."""

    name: str


class Card(TypedDict):
    question: str
    answer: str
