"""A TCP proxy between a gateway and its broker that fails on request, or is merely far away.

    async with Valve(broker.port) as valve:
        ...                      # connect a real client to valve.host, valve.port
        valve.cut("rst")         # every connection there is
        valve.holes = {"up"}     # what the client sends from now on is taken, and never arrives
        await valve.shut()       # connects are refused, until it is opened again

A hole lasts as long as a connection that it has met: bytes that were swallowed leave a stream that
means nothing any more.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from hil.seat import HOST, Seat

Way = Literal["up", "down"]
"""Up: from the client to the broker."""

_CHUNK = 1 << 16
_NARROW = 2048
_RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST


class Valve:
    """The proxy; it listens while its context is open.

    `delay` is how many seconds every byte takes in each direction, half of the round trip. `holes`
    may be set at any time. `rate` is how many bytes a second pass up; no more than a few thousand
    wait in the valve, so that the client's kernel knows what has passed.
    """

    def __init__(
        self, to: int, *, delay: float = 0.0, rate: float | None = None, host: str = HOST
    ) -> None:
        self.host, self.port = host, 0
        self.connects = 0
        self.holes: set[Way] = set()
        self._to, self._delay, self.rate = to, delay, rate
        self._pairs: set[_Pair] = set()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._seat = Seat(host=self.host)
        self.port = self._seat.port
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.shut()
        self._seat.leave()
        self.cut()
        if kind is not asyncio.CancelledError:  # what failed in the body is not the group's affair
            kind = error = trace = None
        await self._tasks.__aexit__(kind, error, trace)

    async def open(self) -> None:
        """Listen, on the same port as before."""
        limit = _NARROW if self.rate else _CHUNK
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=limit)
        if self.rate:
            for sock in self._server.sockets:  # those that it accepts inherit it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)

    async def shut(self) -> None:
        """Listen no more: connects are refused; the connections there are go on."""
        self._server.close()

    def cut(self, how: Literal["rst", "fin"] = "rst") -> None:
        """End every connection, on both sides."""
        for pair in tuple(self._pairs):
            pair.end(how)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connects += 1
        self._tasks.create_task(self._join(reader, writer))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self._to)
        except OSError:
            writer.transport.abort()
            return
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(self, writer, far_writer)
        self._pairs.add(pair)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(pair.pump("up", reader, far_writer, self._delay))
            pumps.create_task(pair.pump("down", far_reader, writer, self._delay))
        await asyncio.sleep(self._delay)  # for what is still on its way
        for end in (writer, far_writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
        self._pairs.discard(pair)


class _Pair:
    """One connection through the valve."""

    def __init__(self, valve: Valve, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._valve, self._ends = valve, (near, far)
        self._swallowed: set[Way] = set()

    async def pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if delay:
                    asyncio.get_running_loop().call_later(delay, self._pass, way, writer, data)
                else:
                    self._pass(way, writer, data)
                    await writer.drain()
                if way == "up" and self._valve.rate:
                    await asyncio.sleep(len(data) / self._valve.rate)
        if not self._swallowed:  # nobody hears of an end beyond a hole
            self.end("fin", after=delay)

    def _pass(self, way: Way, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Write what comes, unless it met a hole on its way."""
        self._swallowed |= self._valve.holes
        if way not in self._swallowed:
            writer.write(data)

    def end(self, how: Literal["rst", "fin"], *, after: float = 0.0) -> None:
        for writer in self._ends:
            if how == "rst":
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(*_RESET)
                writer.transport.abort()
            else:
                asyncio.get_running_loop().call_later(after, writer.close)
