"""How the client of Redis behaves when whoever waits for it gives up, and when the server does not read."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from runtime.adapters.redis import connection
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


@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_has_ended_is_opened_anew_before_it_is_used(reset: bool, turns: int) -> None:
    async def use_it_after_its_end() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)
            client = connect(f"redis://127.0.0.1:{server.getsockname()[1]}")
            pool = client.connection_pool
            await pool.release(await pool.get_connection())
            with server.accept()[0] as there:
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
            for _ in range(turns):  # whether the loop has had the time to see it, or not
                await asyncio.sleep(0.01)
            await pool.release(await pool.get_connection())
            server.accept()[0].close()
            await client.aclose()

    asyncio.run(use_it_after_its_end())


def test_an_answer_that_nobody_has_asked_for_is_nobodys(redis_url: str) -> None:
    async def ask_after_one() -> None:
        client = connect(redis_url)
        held = await client.connection_pool.get_connection()
        await held.send_command("ECHO", "stray")
        assert held._inlet.poll(10_000)  # it has come
        await client.connection_pool.release(held)
        assert await client.execute_command("ECHO", "mine") == b"mine"
        await client.aclose()

    asyncio.run(ask_after_one())


def test_who_finds_all_connections_in_use_waits_for_a_turn_and_not_for_ever(redis_url: str) -> None:
    async def crowd() -> None:
        client = connect(redis_url, connections=2, reply_s=0.5)
        assert await asyncio.gather(*(client.ping() for _ in range(50))) == [True] * 50
        assert len(client.connection_pool._available_connections) == 2
        held = [await client.connection_pool.get_connection() for _ in range(2)]
        with pytest.raises(redis.ConnectionError, match="No connection available"):
            await client.ping()
        for one in held:
            await client.connection_pool.release(one)
        assert await client.ping()
        await client.aclose()

    asyncio.run(crowd())


def test_who_finds_many_before_him_waits_for_as_long_as_the_line_moves(redis_url: str) -> None:
    async def crowd() -> None:
        client, reply_s = connect(redis_url, connections=2, reply_s=0.5), 0.5
        pool = client.connection_pool
        began = time.monotonic()

        async def take_a_turn() -> None:
            one = await pool.get_connection()
            await asyncio.sleep(0.1)  # a long way to the server
            await pool.release(one)

        await asyncio.gather(*(take_a_turn() for _ in range(30)))
        assert time.monotonic() - began > 2 * reply_s  # the last one waited for longer than any reply
        await client.aclose()

    asyncio.run(crowd())


def test_a_line_is_not_given_up_for_an_event_loop_that_was_blocked(redis_url: str) -> None:
    async def crowd() -> None:
        client = connect(redis_url, connections=2, reply_s=1.0)
        pool = client.connection_pool
        held = [await pool.get_connection() for _ in range(2)]
        line = [asyncio.create_task(pool.get_connection()) for _ in range(10)]
        await asyncio.sleep(0.01)
        time.sleep(2)
        await asyncio.sleep(0.05)
        for one in held:
            await pool.release(one)
        for place in line:
            await pool.release(await place)
        await client.aclose()

    asyncio.run(crowd())


def test_a_line_that_does_not_move_is_given_up_by_all_in_it_together() -> None:
    async def crowd() -> list[BaseException]:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            client = connect(f"redis://127.0.0.1:{deaf.getsockname()[1]}", connections=2, reply_s=0.5)
            began = time.monotonic()
            ended = await asyncio.gather(*(client.ping() for _ in range(50)), return_exceptions=True)
            assert time.monotonic() - began < 5
            await client.aclose()
            return ended

    assert all(isinstance(end, redis.TimeoutError | redis.ConnectionError) for end in asyncio.run(crowd()))


def test_who_gives_up_waiting_for_a_connection_takes_none_away(redis_url: str) -> None:
    async def give_up_at_every_step() -> int:
        client, cancelled = connect(redis_url, connections=2, reply_s=2.0), 0
        for ticks in [*range(12)] * 10:
            tasks = [asyncio.create_task(client.ping()) for _ in range(6)]
            for _ in range(ticks):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert ended[1::2] == [True] * 3
            cancelled += sum(isinstance(end, asyncio.CancelledError) for end in ended)
        held = [await client.connection_pool.get_connection() for _ in range(2)]
        for one in held:
            await client.connection_pool.release(one)
        await client.aclose()
        return cancelled

    assert asyncio.run(give_up_at_every_step()) > 100


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("place", ["redis_url", "tcp_url"])
def test_who_asks_while_connections_are_being_closed_is_answered_or_told_so(
    request: pytest.FixtureRequest, place: str, turns: int
) -> None:
    async def ask() -> object:
        client = connect(request.getfixturevalue(place))
        await client.ping()
        closing = asyncio.create_task(client.connection_pool.disconnect())
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            return await client.ping()
        except redis.ConnectionError:
            return True
        finally:
            await closing
            await client.aclose()

    assert asyncio.run(ask()) is True


def test_a_server_that_does_not_answer_the_end_of_tls_takes_no_place_away(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", key, "-out", certificate,
        ], check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        with ExitStack() as peers:
            for answer in (b"", b"+PONG\r\n"):
                peer = peers.enter_context(tls.wrap_socket(listener.accept()[0], server_side=True))
                peer.recv(1000)
                peer.sendall(answer)
            over.wait(20)  # and it reads no more, as a server that hangs

    async def ask_after_a_subscription() -> object:
        url = f"rediss://localhost:{listener.getsockname()[1]}?ssl_ca_certs={certificate}"
        client = connect(url, connections=1, reply_s=1.0)
        channel = client.pubsub()
        await channel.subscribe("x")
        await channel.aclose()
        pong: object = await client.ping()
        await client.aclose()
        return pong

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        assert asyncio.run(ask_after_a_subscription()) is True
    finally:
        over.set()
        listener.close()
    serving.join()


def test_a_subscription_whose_connection_the_system_has_given_up_is_lost_and_not_heard_again_and_again(
    redis_url: str,
) -> None:
    """As after a network that was away for long: K2.6 of the campaign has the real thing."""

    async def main() -> None:
        client = connection.connect(redis_url)
        async with client.pubsub() as channel:
            await channel.subscribe("news")
            assert (await connection.next_message(channel, 5.0) or {})["type"] == "subscribe"
            assert await connection.next_message(channel, 0.05) is None
            channel.connection._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
            with pytest.raises(connection.TROUBLE):
                await connection.next_message(channel, 5.0)
        await client.aclose()

    asyncio.run(main())
