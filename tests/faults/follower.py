"""A TCP proxy that follows the primary, as HAProxy does before a Redis with Sentinel: `follower.py PORT SENTINEL…`.

New connections go to whom the sentinels name; those that are there stay where they are until an end of them closes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress

ASK = b"*3\r\n$8\r\nSENTINEL\r\n$23\r\nget-master-addr-by-name\r\n$4\r\nmain\r\n"


async def primary(sentinels: Sequence[int]) -> int | None:
    """Its port, as the first sentinel that answers has it."""
    for port in sentinels:
        with suppress(OSError, TimeoutError, ValueError, IndexError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(ASK)
                    words = [await reader.readline() for _ in range(5)]
                    return int(words[4])
                finally:
                    writer.transport.abort()
    return None


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(port: int, sentinels: Sequence[int]) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            to = await primary(sentinels)
            if to is not None:
                there, back = await asyncio.open_connection("127.0.0.1", to)
                await asyncio.gather(carry(reader, back), carry(there, writer))
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
