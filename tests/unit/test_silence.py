"""What goes on while a worker speaks, and not while it is silent."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from runtime.silence import Silence


class Mute:
    """Stands in for all that has a connection: here there is none."""

    def __init__(self) -> None:
        self.counted = asyncio.Event()
        self.counted.set()

    def close_idle(self) -> None:
        pass

    def appear(self) -> None:
        pass

    async def close(self) -> None:
        pass

    disconnect = farewell = open = close


class MuteKeeper:
    def disconnect(self) -> None:
        pass


@pytest.mark.parametrize("turns", range(4))
def test_nothing_begins_in_the_turn_in_which_it_falls_silent(turns: int) -> None:
    async def run() -> None:
        mute: Any = Mute()
        keeper: Any = MuteKeeper()
        silence = Silence(["q"], [], [], mute, mute, keeper, mute, mute, mute, mute, mute, mute, None)
        going_on = 0

        async def part() -> None:
            nonlocal going_on
            going_on += 1
            try:
                await asyncio.sleep(30)
            finally:
                going_on -= 1

        speaking = asyncio.create_task(silence.while_speaking(part))
        for _ in range(turns):
            await asyncio.sleep(0)
        await silence.fall_silent()
        await asyncio.sleep(0.05)
        assert going_on == 0
        await silence.speak()
        await asyncio.sleep(0.05)
        assert going_on == 1
        speaking.cancel()
        with suppress(asyncio.CancelledError):
            await speaking

    asyncio.run(run())
