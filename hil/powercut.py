"""A block device that keeps at a power cut what was flushed, and any subset of the rest; for root.

    with PowerCutDisk(image, directory) as disk:
        disk.cut_after(17)   # the power is cut at the 17th request from now on
        ...                  # use disk.path, an ext4; it works on, as if nothing had happened
    disk.image               # the bytes as the power cut left them

A loop device lies on the only file of a FUSE file system that this module serves itself: device
mapper and nbd are not in every kernel, FUSE is. A flush of the device arrives here as FSYNC.
Source: include/uapi/linux/fuse.h.
"""

import ctypes
import errno
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from hil.loopdisk import LoopDiskError, run

_HEAD = struct.Struct("<IIQQIIII")  # length, operation, unique, node, uid, gid, pid, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_ATTR = struct.Struct("<6Q10I")
_IO = struct.Struct("<QQIIQII")  # handle, offset, size, flags, lock owner, flags, padding
_ENTRY = struct.Struct("<QQQQII")
_INIT = struct.Struct("<4I2H2I2H8I")
_NONE = (0,) * 7
_FILE = 2
_MAX_WRITE = 1 << 17
_BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class _Op(IntEnum):
    """What is asked, as far as a single file needs it."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


class PowerCutDisk:
    """The disk, mounted while its context is open. Raises LoopDiskError where that cannot be."""

    def __init__(self, image: bytes, directory: Path, seed: int = 0) -> None:
        self.path = directory / "mounted"
        self.image = b""
        """What the power cut left; empty before."""
        self.on_cut: Callable[[], None] = lambda: None
        """Called at the moment of the cut, on a thread of its own."""
        self._served = directory / "served"
        self._now, self._flushed = bytearray(image), bytearray(image)
        self._unflushed: list[tuple[int, bytes]] = []
        self._random = random.Random(seed)
        self._requests_left = -1
        self._device = ""

    def cut_after(self, requests: int) -> None:
        """Cut the power at the so many-th write or flush from now on."""
        self._requests_left = requests

    def __enter__(self) -> Self:
        for path in (self.path, self._served):
            path.mkdir()
        try:
            self._fuse = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            raise LoopDiskError(f"/dev/fuse: {error.strerror}") from None
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"powercut", os.fsencode(self._served), b"fuse", 0, options):
            os.close(self._fuse)
            raise LoopDiskError(f"mount of FUSE: {os.strerror(ctypes.get_errno())}")
        self._server = Thread(target=self._serve, daemon=True)
        self._server.start()
        try:
            self._device = run("losetup", "--find", "--show", str(self._served / "disk")).strip()
            run("mount", self._device, str(self.path))
        except LoopDiskError:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        run("umount", "--lazy", str(self.path))
        self._leave()

    def _leave(self) -> None:
        if self._device:
            run("losetup", "--detach", self._device)
        run("umount", "--lazy", str(self._served))
        self._server.join(10)
        os.close(self._fuse)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, _MAX_WRITE + _BLOCK)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue  # a request that was withdrawn
            _, operation, unique, node, *_ = _HEAD.unpack_from(request)
            if operation in (_Op.FORGET, _Op.BATCH_FORGET, _Op.INTERRUPT):
                continue
            answer = self._answer(operation, node, request[_HEAD.size :])
            data, error_number = answer or b"", -errno.ENOSYS if answer is None else 0
            with suppress(FileNotFoundError):  # it was withdrawn meanwhile
                os.write(self._fuse, _OUT.pack(_OUT.size + len(data), error_number, unique) + data)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes | None:
        """Return what is said to a request; None: there is no such thing."""
        attributes = self._attributes(node)
        answers: dict[int, Callable[[], bytes]] = {
            _Op.LOOKUP: lambda: _ENTRY.pack(_FILE, 0, 3600, 3600, 0, 0) + self._attributes(_FILE),
            _Op.GETATTR: lambda: struct.pack("<QII", 3600, 0, 0) + attributes,
            _Op.SETATTR: lambda: struct.pack("<QII", 3600, 0, 0) + attributes,
            _Op.OPEN: lambda: struct.pack("<QII", 1, 0, 0),
            _Op.READ: lambda: self._read(body),
            _Op.WRITE: lambda: self._write(body),
            _Op.STATFS: lambda: struct.pack("<5Q10I", 1, 0, 0, 2, 0, _BLOCK, 255, _BLOCK, *_NONE),
            _Op.RELEASE: bytes,
            _Op.FSYNC: self._flush,
            _Op.FLUSH: bytes,
            _Op.INIT: lambda: _INIT.pack(
                7, 31, 1 << 17, 0, 16, 12, _MAX_WRITE, 1, 32, *_NONE, 0, 0
            ),
        }
        return answers[operation]() if operation in answers else None

    def _attributes(self, node: int) -> bytes:
        size, mode = (len(self._now), 0o100600) if node == _FILE else (0, 0o040700)
        return _ATTR.pack(node, size, size // 512, *[0] * 6, mode, 1, 0, 0, 0, _BLOCK, 0)

    def _read(self, body: bytes) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        return bytes(self._now[offset : offset + size])

    def _write(self, body: bytes) -> bytes:
        self._count()
        _, offset, size, *_ = _IO.unpack_from(body)
        data = body[_IO.size : _IO.size + size]
        self._now[offset : offset + len(data)] = data
        for at in range(0, len(data), _BLOCK):
            self._unflushed.append((offset + at, data[at : at + _BLOCK]))
        return struct.pack("<II", size, 0)

    def _flush(self) -> bytes:
        self._count()
        self._flushed[:] = self._now
        self._unflushed.clear()
        return b""

    def _count(self) -> None:
        self._requests_left -= 1
        if self._requests_left:
            return
        left = bytearray(self._flushed)
        for offset, block in self._unflushed:
            if self._random.random() < 0.5:
                left[offset : offset + len(block)] = block
        self.on_cut()
        self.image = bytes(left)
