"""The few things the buffer does to its directory: the seam below which a test can cut the power.

Only `sync` and `sync_directory` promise that anything survives; what was written before and not
synced may survive a power cut in any part and any order.
"""

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from gateway.cause import ELSEWHERE, cause, out_of_inodes

LOCK = "."
"""The directory itself: that can be locked on a disk that is read-only, too."""
FOREIGN = ".foreign"
"""What the name ends with of what is set aside: none of ours, or of another version."""
BLOCK = 4096
PROBED = 0.5
"""Seconds within which who only looks whether a directory is locked has let go of it, by far."""
UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""How Linux says that bytes cannot be read: by the device, by the checks of a file system."""
PATIENCE = 30.0
"""Seconds from the first failure on in which nothing is given up that cannot be read: a loose
plug, a bus that is reset or a server that starts anew is back by then. A bad block holds up a start
for so long, once for all of them: RAM has room for the readings that come meanwhile, and for more.
"""
_PROBE = "probe"
_READ_ONLY = (errno.EROFS, errno.EACCES)


class Disk:
    """Files of one directory, by name. Every method may raise OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written = 0
        """Bytes written since the start, in blocks: of less a device writes the whole."""
        self.now = 0.0
        """The time of whoever uses it, in seconds of any steady clock: `PATIENCE` runs by it."""
        self._open: dict[str, int] = {}
        self._identity: tuple[int, int] | None = None
        self._alone = False
        self._failed_first: float | None = None

    def __del__(self) -> None:
        """Close what is open: descriptors are no objects that would do so themselves."""
        for fd in self._open.values():
            os.close(fd)

    def lock(self) -> bool:
        """Return whether the directory is ours alone, from now until this process ends.

        Where it cannot be had yet, the first `names` that can be told locks it, or raises.
        """
        self._alone, until = True, time.monotonic() + PROBED
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                self._take()
                return True
            time.sleep(0.01)
        return False

    def names(self) -> list[str]:
        """Return the names of all files, creating the directory where it is missing."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._identity is None:
            self._take()
        return sorted(entry.name for entry in os.scandir(self.directory) if _is_file(entry))

    def entries(self) -> list[str]:
        """Return the names of all that stands there, be it files or not."""
        return sorted(path.name for path in self.directory.iterdir())

    def _take(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        here = self._now()
        if self._alone:
            self._lock(self._fd(LOCK, os.O_RDONLY))
        self._identity = here

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close(LOCK)
            raise BlockingIOError(errno.EWOULDBLOCK, "another bygate uses it") from None
        except OSError:  # NFS locks only what can be written to, which a directory cannot
            return

    def replaced(self) -> bool:
        """Whether the directory or a file in it that is open was removed, or gave way to another.

        Who goes on writing writes into files without a name, which are gone when they are closed.
        """
        if self._identity is None:
            return False
        return self._now() != self._identity or not all(map(self._stands, self._open))

    def _stands(self, name: str) -> bool:
        """Whether an open file is what stands under its name: somebody may have moved it."""
        with suppress(FileNotFoundError):
            here = (self.directory / name).stat()
            return os.path.samestat(here, os.fstat(self._open[name]))
        return False

    def _now(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = self.directory.stat()
            return found.st_dev, found.st_ino
        return None

    def reopen(self) -> None:
        """Take the directory that is there now for ours, creating it where it is missing."""
        for name in list(self._open):
            self.close(name)
        self._identity, self._alone = (0, 0), True  # until it is ours, it counts as replaced
        self._failed_first = None
        self._take()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.directory / name).is_file()

    def broken(self, name: str) -> OSError | None:
        """Return why not even its inode can be read: it can neither be moved nor written over."""
        try:
            self.size(name)
        except OSError as error:
            return error if error.errno in UNREADABLE else None
        return None

    def broken_for_good(self, name: str) -> OSError | None:
        """Return the same; it raises as long as that may pass."""
        error = self.broken(name)
        if error and self._may_pass():
            raise error
        return error

    def size(self, name: str) -> int:
        """Return how many bytes the file has."""
        return (self.directory / name).stat().st_size

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Return `length` bytes from `offset` on, fewer at the end, none where it is missing.

        All of them for -1.
        """
        data = b""
        with suppress(FileNotFoundError), self._telling(name), self._reading(name) as fd:
            left = max(os.fstat(fd).st_size - offset, 0) if length < 0 else length
            # One call ends short before a block that cannot be read, as if the file ended there
            while len(data) < left:
                if not (part := os.pread(fd, left - len(data), offset + len(data))):
                    break
                data += part
        return data

    @contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        """Give the file as it is open to be written, else for this once: it may be read-only."""
        if name in self._open:
            yield self._open[name]
            return
        fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def salvage(self, name: str, most: int = -1) -> tuple[bytes, list[int]]:
        """Return all bytes, zeros for the blocks that cannot be read, and where those begin.

        No more than `most` of them, but for -1. It raises as long as that may pass: a disk that
        lost its cable for a moment is not damaged.
        """
        try:
            return self.read(name, 0, most), []
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            size = self.size(name)
            data, bad = self._blocks(name, size if most < 0 else min(size, most))
            if bad and self._may_pass():
                raise
        return data, bad

    def _blocks(self, name: str, size: int) -> tuple[bytes, list[int]]:
        data, bad = bytearray(size), []
        for at in range(0, len(data), BLOCK):
            try:
                data[at : at + BLOCK] = self.read(name, at, min(BLOCK, len(data) - at))
            except OSError:
                bad.append(at)
        return bytes(data), bad

    def _may_pass(self) -> bool:
        """Whether all could be read lately, or not even a write tells the disk from a dead one."""
        if self._failed_first is None:
            self._failed_first = self.now
        return self.now < self._failed_first + PATIENCE or self.dead()

    def dead(self) -> bool:
        """Whether nothing can be written, for the same reason that something cannot be read."""
        try:
            self.probe()
        except OSError as error:
            return error.errno in UNREADABLE
        return False

    def probe(self) -> None:
        """Raise what a new file raises."""
        self.write(_PROBE, 0, b"\0")
        self.sync(_PROBE)
        self.remove(_PROBE)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`, creating the file where it is missing."""
        fd, rest = self._fd(name), memoryview(data)
        while rest:
            with self._telling(name):
                done = os.pwrite(fd, rest, offset)
            self.written += (-(-(offset + done) // BLOCK) - offset // BLOCK) * BLOCK
            offset, rest = offset + done, rest[done:]

    def note(self, name: str, data: bytes) -> None:
        """Write what the buffer can go on without: it is not kept open, for then it is missed."""
        try:
            self.write(name, 0, data)
        finally:
            self.close(name)

    def settle(self, name: str) -> None:
        """Make what is read what is on the device.

        After a failed sync, or a kill before one, Linux goes on showing bytes that the device has
        not got; whoever takes them for stored loses them with the next power cut.
        """
        with suppress(FileNotFoundError), self._reading(name) as fd:
            _datasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def cut(self, name: str, length: int) -> None:
        """Let the file end at `length`."""
        with self._telling(name):
            os.ftruncate(self._fd(name), length)

    def sync(self, name: str) -> None:
        """Return when all that was written to the file is on the device."""
        with self._telling(name):
            os.fdatasync(self._fd(name))

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Have an error tell which file it is about: of an open one Linux does not know."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.directory / name)
            raise

    def sync_directory(self) -> None:
        """Return when all that was created and removed is on the device."""
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, name: str, to: str) -> None:
        """Give the file another name, in place of whatever had that."""
        self.close(name)
        self.close(to)
        (self.directory / name).rename(self.directory / to)

    def make_way(self, name: str, fits: Callable[[Path], bool] = Path.is_file) -> str | None:
        """Rename what stands where one of ours belongs and is none; return its new name.

        Such as a directory, or a link that leads nowhere. What is broken stays.
        """
        path = self.directory / name
        if self.broken_for_good(name) or fits(path) or not os.path.lexists(path):
            return None
        names = (f"{name}-{number}{FOREIGN}" for number in count())
        aside = next(new for new in names if not os.path.lexists(self.directory / new))
        path.rename(self.directory / aside)
        return aside

    def remove(self, name: str) -> None:
        """Remove the file."""
        self.close(name)
        (self.directory / name).unlink(missing_ok=True)

    def close(self, name: str) -> None:
        """Let go of the file; the next use opens it anew."""
        fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)

    def close_all(self) -> None:
        """Let go of every file but the lock, which is held until the process ends."""
        for name in self._open.keys() - {LOCK}:
            self.close(name)

    def _fd(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        if name not in self._open:
            self._open[name] = os.open(self.directory / name, flags | os.O_CLOEXEC, 0o640)
        return self._open[name]

    def room(self) -> tuple[int, int]:
        """Return how many bytes are free to us, and how many the whole file system has."""
        stat = os.statvfs(self.directory)
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize

    def out_of_inodes(self) -> bool:
        """Whether no file can be created for want of an inode alone: there is room for bytes."""
        return out_of_inodes(self.directory)

    def below(self, name: str) -> "Disk":
        """Return the disk of a directory inside this one."""
        return Disk(self.directory / name)


def _datasync(fd: int) -> None:
    """Return when all of it is on the device; a disk that is read-only has no more to come."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # such as a link to itself
        return False


class Onlooker(Disk):
    """The same files as seen by a process that does not own them: it changes nothing."""

    def _may_pass(self) -> bool:
        """Show what can be seen now."""
        return False

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(entry.name for entry in os.scandir(self.directory) if _is_file(entry))

    def settle(self, name: str) -> None:
        """Leave the file to its owner."""

    def cut(self, name: str, length: int) -> None:
        """Leave the file to its owner, who may be about to write on."""

    def sync(self, name: str) -> None:
        """Return when all that its owner wrote to the file is on the device."""
        with self._reading(name) as fd:
            _datasync(fd)

    def below(self, name: str) -> "Onlooker":
        """Return the disk of a directory inside this one."""
        return Onlooker(self.directory / name)


def in_use(directory: Path) -> bool | None:
    """Return whether a gateway works on the directory; None where that cannot be told.

    A lock is had for an instant, which `lock` waits for: there is no other way to ask for one.
    Others who ask may have theirs beside it.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return False if isinstance(error, FileNotFoundError | NotADirectoryError) else None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # as NFS
        return None
    finally:
        os.close(fd)
    return False


def of_another_version(path: Path, magic: bytes) -> bool:
    """Whether a file begins with `magic` but for its digit, and has it nowhere: no flipped bit."""
    with suppress(OSError), path.open("rb") as file:
        begin = file.read(len(magic))
        if begin[:-1] == magic[:-1] and begin != magic and begin[-1:].isdigit():
            return magic not in file.read()
    return False


def remedy(error: OSError, path: Path) -> str:
    """Return what was seen and what mends it, in `path` unless the error says where."""
    at, mend = cause(error, path)
    return f"{at}: {error.strerror}: {mend}"


_VOLATILE = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x794C7630: "overlay"}
"""Magic numbers of file systems; source: statfs(2). What is written to an overlay, such as that of
raspi-config, or a container's own layer, is in RAM or goes with the container."""

_libc = ctypes.CDLL(None, use_errno=True)


def volatile(directory: Path) -> str | None:
    """Return the kind of a file system that does not outlast a reboot, None for any other."""
    statfs = (ctypes.c_long * 64)()  # struct statfs: its first word is the type
    if _libc.statfs(os.fsencode(directory), ctypes.byref(statfs)) < 0:
        return None
    return _VOLATILE.get(statfs[0] & 0xFFFFFFFF)


VOLATILE = f"does not outlast a reboot: {ELSEWHERE}"
