"""A serial port on the event loop: opens, re-opens, frames in, bytes out, counts.

Opened by pyserial in a thread, read by `add_reader` and `os.read`: 44–47 ms of CPU for 1000 reads
at 100 ports, against 169–256 with a thread each, and no silent port can starve another.
"""

import asyncio
import fcntl
import os
import termios
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import serial

from gateway.driver import PortError, SerialDriver
from gateway.frame import Framer
from gateway.settings import PortSettings

LONGEST_PAUSE = 15.0
"""Seconds between attempts to open a port that is there but will not open."""

_CHUNK = 4096
_FAULTS = (OSError, termios.error, serial.SerialException, ValueError)
# pyserial lets termios.error through, which is no OSError; ValueError: what the adapter cannot do


@dataclass(slots=True)
class PortCounts:
    """What passed, since the start."""

    opens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    frames: int = 0


class SerialPort:
    """One port, used by one sensor; implements `gateway.driver.Port`.

    It is opened when it is first waited for, and again whenever it has vanished. Methods raise
    PortError when it is lost meanwhile. The caller sets every deadline.
    """

    def __init__(self, settings: PortSettings, driver: SerialDriver, threads: Executor) -> None:
        self.path = str(settings.path)
        self.counts = PortCounts()
        self.why = ""
        """Why the port is not open; empty while it is."""
        self._settings, self._driver, self._threads = settings, driver, threads
        self._framer = Framer(driver.frame)
        self._serial: serial.Serial | None = None
        self._opening: asyncio.Future[serial.Serial] | None = None
        self._arrived = asyncio.Event()
        self._pause = self._retry_at = 0.0
        self._empty = 0

    async def opened(self) -> None:
        """Return when the port is open; look for its path once a second until then.

        Pauses between attempts double from 1 s to 15 s, and start afresh when the path appears.
        """
        while self._serial is None:
            if self._opening is None:
                await self._wait_for_path()
                loop = asyncio.get_running_loop()
                self._opening = loop.run_in_executor(self._threads, self._open_now)
            # An attempt that hangs is taken up again by the next wait, never begun a second time
            await asyncio.wait({self._opening})
            opening, self._opening = self._opening, None
            self._open(opening)

    async def _wait_for_path(self) -> None:
        loop = asyncio.get_running_loop()
        while not (there := self._is_there()) or loop.time() < self._retry_at:
            if not there:
                self._pause = self._retry_at = 0.0
                self.why = f"{self.path} is not there: is the adapter plugged in?"
            await asyncio.sleep(1)
        self._pause = min(max(1.0, 2 * self._pause), LONGEST_PAUSE)
        self._retry_at = loop.time() + self._pause

    def _is_there(self) -> bool:
        try:
            return Path(self.path).exists()
        except OSError:  # a directory that may not be entered, a name that is too long
            return False

    def _open(self, opening: "asyncio.Future[serial.Serial]") -> None:
        try:
            self._serial = opening.result()
        except _FAULTS as error:
            self.why = _remedy(self.path, error)
        else:
            self.counts.opens += 1
            self.why, self._pause, self._retry_at, self._empty = "", 0.0, 0.0, 0
            self._framer.clear()
            asyncio.get_running_loop().add_reader(self._serial.fileno(), self._readable)

    def _open_now(self) -> serial.Serial:
        said, driver = self._settings, self._driver
        port = serial.Serial(timeout=0, write_timeout=0, exclusive=True)
        port.baudrate = driver.baudrate if said.baudrate is None else said.baudrate
        port.bytesize = driver.bytesize if said.bytesize is None else said.bytesize
        port.parity = driver.parity if said.parity is None else said.parity
        port.stopbits = driver.stopbits if said.stopbits is None else said.stopbits
        if said.dtr is not None:  # raising DTR resets Arduino and ESP boards
            port.dtr = said.dtr
        if said.rts is not None:
            port.rts = said.rts
        port.port = self.path
        port.open()
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)  # flock stops a second gateway, this minicom
        return port

    @property
    def heard(self) -> int:
        """Bytes that have come in so far."""
        return self.counts.bytes_in

    async def request(self, data: bytes) -> bytes:
        """Discard what came before, send `data`, return the next frame."""
        self._read(ready=False)
        self._framer.clear()
        await self.write(data)
        return await self.frame()

    async def frame(self) -> bytes:
        """Return the next frame; waits for it."""
        while (frame := self._framer.next()) is None:
            self._file()
            self._arrived.clear()
            await self._arrived.wait()
        self.counts.frames += 1
        return frame

    def reject(self) -> bool:
        """Give back the last frame: it was bad; see `Framer.reject`."""
        return self._framer.reject()

    async def write(self, data: bytes) -> None:
        """Send `data`; waits while the transmit buffer is full."""
        rest = memoryview(data)
        while rest:
            try:
                done = os.write(self._file(), rest)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                raise self._lose(error) from error
            self.counts.bytes_out += done
            rest = rest[done:]

    async def _writable(self) -> None:
        loop, fd = asyncio.get_running_loop(), self._file()
        free = asyncio.Event()
        loop.add_writer(fd, free.set)
        try:
            await free.wait()
        finally:
            loop.remove_writer(fd)

    def close(self) -> None:
        """Let go of the port."""
        if self._serial is None:
            return
        asyncio.get_running_loop().remove_reader(self._serial.fileno())
        with suppress(*_FAULTS):
            fcntl.ioctl(self._serial.fileno(), termios.TIOCNXCL)  # a pty would stay exclusive
        with suppress(*_FAULTS):
            self._serial.close()
        self._serial = None
        self._arrived.set()

    def _file(self) -> int:
        if self._serial is None:
            raise PortError(self.why)
        return self._serial.fileno()

    def _readable(self) -> None:
        self._read(ready=True)
        self._arrived.set()

    def _read(self, *, ready: bool) -> None:
        try:
            data = os.read(self._file(), _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        # A pulled adapter is always ready and reads as b"": it spins at 58 % CPU if it is kept.
        # Only once is none pulled: in that round of the loop `request` took what had come.
        self._empty = self._empty + 1 if ready and not data else 0
        if self._empty > 1:
            self._lose(OSError("the device has hung up"))
        self.counts.bytes_in += len(data)
        self._framer.feed(data)

    def _lose(self, error: OSError) -> PortError:
        self.why = f"{self.path} was lost: {error}: was the adapter pulled, or its power cut?"
        self.close()
        self._retry_at = asyncio.get_running_loop().time() + 1
        return PortError(self.why)


def _remedy(path: str, error: Exception) -> str:
    said = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        said = os.strerror(error.errno)
    remedy = {
        "Permission denied": "sudo usermod -aG dialout $USER, then log in again",
        "Resource temporarily unavailable": f"another program holds it: sudo fuser -v {path}",
        "Device or resource busy": f"another program holds it: sudo fuser -v {path}",
    }.get(said, "is it a serial port, and does it take these settings?")
    return f"{path} cannot be opened: {said}: {remedy}"
