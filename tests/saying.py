"""A port that says what a test puts into its mouth, one that is silent, and names of both."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

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


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """Give a port at which connecting neither succeeds nor fails: nobody accepts any more."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        with contextlib.ExitStack() as taken:
            for _ in range(3):
                link = taken.enter_context(socket.socket())
                link.setblocking(False)
                link.connect_ex(server.getsockname())
            yield server.getsockname()


def resolves(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: tuple[str, int]) -> None:
    """Have a name mean these addresses, in this order."""
    usual, kind = socket.getaddrinfo, (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return [(*kind, to) for to in addresses] if host == name else usual(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
