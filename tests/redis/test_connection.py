"""How the client of Redis behaves when whoever waits for it gives up, and when the server does not read."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import redis

from runtime.adapters.redis.connection import connect


@pytest.mark.parametrize("place", ["redis_url", "tcp_url"])
def test_no_cancellation_is_lost_whenever_it_comes(request: pytest.FixtureRequest, place: str) -> None:
    url: str = request.getfixturevalue(place)

    async def cancel_at_every_step() -> tuple[int, int]:
        client, cancelled, lost = connect(url), 0, 0
        await client.execute_command("PING")
        for ticks in [*range(8)] * 20:
            task = asyncio.create_task(client.execute_command("PING"))
            for _ in range(ticks):
                await asyncio.sleep(0)
            if task.done():
                continue
            task.cancel()
            try:
                await task
                lost += 1
            except asyncio.CancelledError:
                cancelled += 1
        assert await client.execute_command("PING")
        await client.aclose()
        return cancelled, lost

    cancelled, lost = asyncio.run(cancel_at_every_step())
    assert cancelled > 40
    assert lost == 0


def test_a_server_that_does_not_read_is_given_up_in_time() -> None:
    async def send_much() -> float:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            client = connect(f"redis://127.0.0.1:{deaf.getsockname()[1]}", reply_s=0.5)
            began = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                await client.execute_command("SET", "k", b"x" * 50_000_000)
            await client.aclose()
            return time.monotonic() - began

    assert asyncio.run(send_much()) < 5
