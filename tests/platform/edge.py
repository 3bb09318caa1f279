"""What stands between the internet and a service: it passes connections on, and meets those that come too early."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from enum import Enum

_BODIES = {
    "404 Not Found": b'{"status":"error","code":404,"message":"Application not found"}',
    "502 Bad Gateway": b'{"status":"error","code":502,"message":"Application failed to respond"}',
}


class First(Enum):
    """What the first requests to a service that sleeps meet at its public address: each was documented or seen."""

    HELD = "held until it listens"
    NOT_FOUND = "404 Application not found, for some seconds"
    BAD_GATEWAY = "502, once"


async def refuse(reader: StreamReader, writer: StreamWriter, status: str) -> None:
    """Take one request, answer it with this status, and close."""
    with suppress(OSError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(sizes[0]) if sizes else 0)
        body = _BODIES[status]
        writer.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (status.encode(), len(body), body)
        )
        await writer.drain()


async def forward(reader: StreamReader, writer: StreamWriter, host: str, port: int) -> bool:
    """Pass on what either side says until both have ended; whether there was anybody to pass it on to."""
    try:
        their_reader, their_writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        await asyncio.gather(_pass_on(reader, their_writer), _pass_on(their_reader, writer))
    finally:
        their_writer.transport.abort()
    return True


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    """Until the end of what is said, which is passed on too. A broken connection breaks the other one."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
