"""A port that says what a test puts into its mouth."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.settings import Broker as Address

CONNACK = bytes.fromhex("2003000000")


@contextlib.asynccontextmanager
async def saying(answer: bytes, *, close: bool = False) -> AsyncIterator[Address]:
    """Listen, and answer whatever comes first with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            await reader.read(4096)
            writer.write(answer)
            while not close and await reader.read(4096):
                pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    served: set[Any] = set()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1], tls=False)
    await asyncio.wait(served)
