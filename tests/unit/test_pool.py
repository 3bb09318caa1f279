"""What the declaration of a pool says, and what it refuses where it stands."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import HandlerInvalid, Pool


async def launch() -> str:
    raise AssertionError("declaring opens nothing")


async def yielding() -> AsyncGenerator[str]:
    yield "item"


def test_a_declaration_opens_nothing_and_keeps_what_it_was_told() -> None:
    pool = Pool("chromium", size=3, open=launch, close=print, uses=7)
    assert (pool.name, pool.size, pool.open, pool.close, pool.uses) == ("chromium", 3, launch, print, 7)
    assert repr(pool) == "Pool('chromium', size=3, uses=7)"
    assert Pool("chromium", size=1, open=asynccontextmanager(yielding)).uses == 100


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"name": ""}, "its name is a text"),
        ({"name": 7}, "its name is a text"),
        ({"size": 0}, "'p', size=0.*a whole number from 1"),
        ({"size": True}, "a whole number from 1"),
        ({"size": "3"}, "a whole number from 1"),
        ({"uses": 0}, "uses=0.*a whole number from 1"),
        ({"open": "launch"}, "open is a function without arguments.*do not call it"),
        ({"open": yielding}, "asynccontextmanager"),
        ({"close": "close"}, "close is a function"),
    ],
)
def test_a_wrong_one_is_refused_where_it_stands(wrong: dict[str, Any], rule: str) -> None:
    right: dict[str, Any] = {"name": "p", "size": 1, "open": launch}
    with pytest.raises(HandlerInvalid, match=rule):
        Pool(**{**right, **wrong})
