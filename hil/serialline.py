"""A simulated serial device on a pty of this machine, for real clients such as the gateway.

The port is a pty behind a symlink, as an adapter is a tty behind /dev/serial/by-id. Clients open it
with any baud rate and parity: these are accepted and mean nothing here.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import secrets
import struct
import tempfile
import termios
import tty
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.device import Device
from hil.line import Line


class SerialLine(Line):
    """A device that can be opened as a serial port under `path` while the context lasts.

    Without a `path` there is a new one in the temporary directory. It stays the same over unplug
    and replug, while the pty behind it becomes another. What is sent while no client has the port
    open is lost, as with a real adapter. The loop never waits: what the pty has no room for is lost
    too.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str] | None = None,
        *,
        fault: str = "",
        faults: Iterable[str] = (),
        delay: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__(device, fault=fault, faults=faults, delay=delay, seed=seed)
        self.path = Path(path or f"{tempfile.gettempdir()}/bygate-hil-{secrets.token_hex(4)}")
        self._pty: _Pty | None = None
        self._pulled: _Pty | None = None

    async def __aenter__(self) -> Self:
        """Make the port, unless it is to begin unplugged."""
        if self.fault != "unplugged":
            self.replug()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Take the port away; a client sees it pulled."""
        self.unplug()
        self._forget_pulled()

    @property
    def tty(self) -> str | None:
        """The pty behind the link, None while unplugged."""
        return self._pty.name if self._pty else None

    @property
    def clients(self) -> int:
        """How many times the port is open."""
        return self._pty.clients() if self._pty else 0

    def _appear(self) -> None:
        self._pty = made = _Pty()
        self._forget_pulled()
        try:
            _publish(made.name, self.path)
        except OSError:
            made.close()
            made.close_slave()
            self._pty = None
            raise
        loop = asyncio.get_running_loop()
        loop.add_reader(made.master, self._on_readable)
        loop.add_reader(made.opens, made.clients)

    def _vanish(self) -> None:
        if self._pty:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._pty.master)
            loop.remove_reader(self._pty.opens)
            with contextlib.suppress(OSError):
                if self.path.readlink() == Path(self._pty.name):
                    self.path.unlink()
            self._pty.close()
            self._pty, self._pulled = None, self._pty

    def _forget_pulled(self) -> None:
        # Held until the next pty is there, so that the kernel gives that one another number.
        if self._pulled:
            self._pulled.close_slave()
            self._pulled = None

    def _on_readable(self) -> None:
        if self._pty:
            self._pty.clients()
            with contextlib.suppress(BlockingIOError):
                self._received(os.read(self._pty.master, 4096))

    def _carry(self, data: bytes) -> bool:
        if not (self._pty and self._heard()):
            return False
        try:
            return os.write(self._pty.master, data) == len(data)
        except BlockingIOError:
            return False

    def _heard(self) -> bool:
        return self.clients > 0


class _Pty:
    """A raw pty that knows whether clients have it open.

    Its own slave stays open, else reading the master gives EIO, again and again, while no client is
    there. So a close cannot be seen on the master; the kernel's inotify tells of it.
    """

    def __init__(self) -> None:
        self.master, self._slave = os.openpty()
        self.name = os.ttyname(self._slave)
        self._clients = 0
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        try:
            self.opens = _watch_opens(self.name)
        except OSError:
            os.close(self.master)
            self.close_slave()
            raise

    def clients(self) -> int:
        """Return how many times it is open, by the kernel's latest word."""
        with contextlib.suppress(BlockingIOError):
            events = os.read(self.opens, 4096)
            for _, mask, _, _ in struct.iter_unpack("iIII", events):
                self._clients += 1 if mask & _IN_OPEN else -1 if mask & _IN_CLOSE else 0
            if not self._clients:
                self._as_new()
        return self._clients

    def close(self) -> None:
        """Hang up: clients read end of file, and the name is gone."""
        os.close(self.opens)
        os.close(self.master)

    def close_slave(self) -> None:
        """Give the number back."""
        os.close(self._slave)

    def _as_new(self) -> None:
        # A real tty is new at each first open; a pty keeps TIOCEXCL and what was not read.
        fcntl.ioctl(self._slave, termios.TIOCNXCL)
        termios.tcflush(self.master, termios.TCOFLUSH)
        termios.tcflush(self._slave, termios.TCIFLUSH)


_IN_OPEN, _IN_CLOSE = 0x20, 0x18
_libc = ctypes.CDLL(None, use_errno=True)


def _watch_opens(path: str) -> int:
    """Return a descriptor on which each open and close of `path` can be read."""
    watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watch < 0:
        raise OSError(ctypes.get_errno(), "too many: raise fs.inotify.max_user_instances")
    if _libc.inotify_add_watch(watch, os.fsencode(path), _IN_OPEN | _IN_CLOSE) < 0:
        os.close(watch)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return int(watch)


def _publish(name: str, path: Path) -> None:
    """Make `path` a link to `name`; only a link to nothing, left by a killed run, is replaced."""
    if path.is_symlink() and not path.exists():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(name)
