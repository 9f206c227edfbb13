"""A serial port in memory with a simulated device on it: no pty, no I/O, timers of the loop only.

A simulation of `gateway.serialport`, not the thing itself: under a loop whose clock jumps, a day of
polls takes seconds. What the operating system does to a port is seen with `hil.serialline` only.
"""

import asyncio
from collections.abc import Iterable

from gateway.driver import PortError
from gateway.frame import Frame, Framer
from hil.device import Device
from hil.line import Line

_UNPLUGGED = "the simulated adapter is unplugged: replug() it"


class ScriptedPort(Line):
    """The port that the poller and drivers with a dialogue speak to; frames are cut by `frame`.

    It is opened by its first use. While unplugged, `opened` waits and the rest raises PortError.
    Answers come at once, unless a fault says otherwise.
    """

    def __init__(
        self,
        device: Device,
        frame: Frame,
        *,
        fault: str = "",
        faults: Iterable[str] = (),
        delay: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__(device, fault=fault, faults=faults, delay=delay, seed=seed)
        self._framer = Framer(frame)
        self._news = asyncio.Event()
        self._used = False
        self.heard = 0
        """Bytes that have come to the client so far."""

    @property
    def why(self) -> str:
        """Why it is not open; empty while it is."""
        return _UNPLUGGED if self._used and not self.plugged else ""

    async def opened(self) -> None:
        """Return when the adapter is there."""
        self._use()
        while not self.plugged:
            await self._wait()

    async def request(self, data: bytes) -> bytes:
        """Discard what came before, send `data`, return the next frame."""
        self._framer.clear()
        await self.write(data)
        return await self.frame()

    async def frame(self) -> bytes:
        """Return the next frame."""
        self._use()
        while (frame := self._framer.next()) is None:
            self._check()
            await self._wait()
        return frame

    def reject(self) -> bool:
        """Give back the last frame: it was bad. False: it began inside the bad one before."""
        return self._framer.reject()

    async def write(self, data: bytes) -> None:
        """Send `data`."""
        self._use()
        self._check()
        self._received(data)

    def _use(self) -> None:
        if not self._used:
            self._used = True
            if self.fault != "unplugged":
                self.replug()

    def _check(self) -> None:
        if not self.plugged:
            raise PortError(_UNPLUGGED)

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _carry(self, data: bytes) -> bool:
        self.heard += len(data)
        self._framer.feed(data)
        self._news.set()
        return True

    def _appear(self) -> None:
        self._news.set()

    def _vanish(self) -> None:
        self._framer.clear()
        self._news.set()
