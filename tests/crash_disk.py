"""A disk in memory on which the power can be cut: any subset of what was not synced survives."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

PAGE = 4096


class PowerCut(BaseException):
    """Nothing that runs gets to hear of it."""


class CrashDisk:
    """Has the methods of `gateway.disk.Disk`; `crash` does what a power cut may do at worst.

    Writes that were not synced survive page by page, or not at all; files that were created or
    removed since the last `sync_directory` are there afterwards, or not.
    """

    directory = Path("memory")

    def __init__(self) -> None:
        self.written = 0
        self.failing = 0
        """How many of the next syncs fail."""
        self.bad: set[str] = set()
        """Files that no sync succeeds of any more: a card with a spot that is worn out."""
        self.limit: int | None = None
        """How many bytes its files may have."""
        self.fuse: int | None = None
        """How many changes the disk still takes before the power is cut in the midst of one."""
        self._live: dict[str, bytearray] = {}
        self._durable: dict[str, bytes] = {}
        self._entries: set[str] = set()
        self._unsynced: list[tuple[str, int, bytes | None]] = []
        self._renamed: list[tuple[str, str, bytes | None]] = []
        self._below: dict[str, CrashDisk] = {}
        self._failed = 0
        self._replaced = False

    def names(self) -> list[str]:
        return sorted(self._live)

    def note(self, name: str, data: bytes) -> None:
        self.write(name, 0, data)

    def out_of_inodes(self) -> bool:
        return False

    def entries(self) -> list[str]:
        return self.names()

    def image(self) -> "CrashDisk":
        """Return a copy of it, as a command that copies files makes one."""
        copy = CrashDisk()
        copy._put(self)
        return copy

    def swap(self, other: "CrashDisk") -> None:
        """Put a copy of another in its place, under whoever goes on using it."""
        self._put(other)
        self._replaced = True

    def _put(self, other: "CrashDisk") -> None:
        self._live = {name: bytearray(data) for name, data in other._live.items()}
        self._durable = {name: bytes(data) for name, data in other._live.items()}
        self._entries = set(self._live)
        self._unsynced, self._renamed = [], []
        self.bad, self.limit = set(), None
        for name in self._below.keys() | other._below.keys():
            self.below(name)._put(other.below(name))

    def replaced(self) -> bool:
        return self._replaced

    def reopen(self) -> None:
        self._replaced = False

    def make_way(self, name: str, fits: object) -> None:
        pass

    def broken(self, name: str) -> None:
        pass

    broken_for_good = broken

    def exists(self, name: str) -> bool:
        return name in self._live

    def size(self, name: str) -> int:
        return len(self._live[name])

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        data = self._live.get(name, b"")
        return bytes(data[offset:] if length < 0 else data[offset : offset + length])

    def salvage(self, name: str, most: int = -1) -> tuple[bytes, list[int]]:
        return self.read(name, 0, most), []

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.fuse == 0 and len(data) > 1:
            self.fuse = None
            self.write(name, offset, data[: len(data) // 2])
            self.fuse = 0
        self._burn()
        grows = offset + len(data) - len(self._live.get(name, b""))
        if self.limit is not None and grows > 0 and self.used + grows > self.limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        _put(self._live.setdefault(name, bytearray()), offset, data)
        for at in range(offset - offset % PAGE, offset + len(data), PAGE):
            start = max(at, offset)
            page = data[start - offset : at + PAGE - offset]
            self._unsynced.append((name, start, page))

    @property
    def used(self) -> int:
        return sum(map(len, self._live.values()))

    def cut(self, name: str, length: int) -> None:
        self._burn()
        del self._live[name][length:]
        self._unsynced.append((name, length, None))

    def sync(self, name: str) -> None:
        self._burn()
        if self.failing or name in self.bad:
            # As Linux may: the error is told once, the pages count as clean, the bytes are gone
            self.failing = max(self.failing - 1, 0)
            self._failed += 1
            if self._failed % 2:  # else some of them may be there all the same
                self._unsynced = [write for write in self._unsynced if write[0] != name]
            raise OSError(errno.EIO, "Input/output error")
        self._apply(lambda write: write[0] == name)

    def probe(self) -> None:
        self.write("probe", 0, b"\0")
        self.sync("probe")
        self.remove("probe")

    def settle(self, name: str) -> None:
        if name in self._live:
            self._apply(lambda write: write[0] == name)
            self._live[name] = bytearray(self._durable.get(name, b""))

    def sync_directory(self) -> None:
        self._burn()
        self._entries = set(self._live)
        self._renamed.clear()

    def rename(self, name: str, to: str) -> None:
        """As a file system with a journal does it: one of the two names is there at any time.

        So is what it takes the place of, until the new one is.
        """
        self._burn()
        replaced = self._durable.get(to, b"") if to in self._entries else None
        self._move(name, to)
        self._renamed.append((name, to, replaced))

    def _move(self, name: str, to: str) -> None:
        self._live[to] = self._live.pop(name)
        self._durable[to] = self._durable.pop(name, b"")
        self._unsynced = [(to if n == name else n, at, d) for n, at, d in self._unsynced]
        if name in self._entries:
            self._entries = self._entries - {name} | {to}

    def remove(self, name: str) -> None:
        self._burn()
        self._live.pop(name, None)

    def close(self, name: str) -> None:
        pass

    def close_all(self) -> None:
        pass

    def room(self) -> tuple[int, int]:
        return 1 << 40, 1 << 41

    def below(self, name: str) -> "CrashDisk":
        return self._below.setdefault(name, CrashDisk())

    @contextmanager
    def power_cut(self, changes: int, random: Random) -> Iterator[None]:
        """Cut the power after so many changes, or else at the end."""
        self.fuse = changes
        with suppress(PowerCut):
            yield
        self.crash(random)

    def crash(self, random: Random) -> None:
        """Cut the power."""
        self.fuse = None
        kept = random.randint(0, len(self._renamed))
        for name, to, replaced in reversed(self._renamed[kept:]):
            if to in self._live:
                self._move(to, name)
            if replaced is not None:
                self._live[to], self._durable[to] = bytearray(replaced), replaced
                self._entries = self._entries | {to}
        self._renamed.clear()
        self._apply(lambda _: random.random() < 0.5)
        self._unsynced.clear()
        settled = self._entries & set(self._live)
        doubtful = (self._entries | set(self._live)) - settled
        self._entries = settled | {name for name in sorted(doubtful) if random.random() < 0.5}
        self._live = {name: bytearray(self._durable.get(name, b"")) for name in self._entries}
        self._durable = {name: bytes(data) for name, data in self._live.items()}
        for disk in self._below.values():
            disk.crash(random)

    def may_be_there(self) -> dict[str, bytes]:
        """Return the files that a power cut may show, with what is in them for certain."""
        return {name: self._durable.get(name, b"") for name in self._entries | set(self._live)}

    def spoil(self, name: str, at: int) -> None:
        """Flip a bit, as a card does that grows old."""
        spoilt = bytearray(self._durable[name])
        spoilt[at] ^= 1
        self._live[name], self._durable[name] = spoilt, bytes(spoilt)

    def wipe(self, name: str, begin: int, end: int, filling: bytes) -> None:
        """Lose what is there, as a card does with a block."""
        wiped = bytearray(self._durable[name])
        wiped[begin:end] = filling * len(wiped[begin:end])
        self._live[name], self._durable[name] = wiped, bytes(wiped)

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise PowerCut

    def _apply(self, chosen) -> None:
        left = []
        for write in self._unsynced:
            name, offset, data = write
            if not chosen(write):
                left.append(write)
                continue
            durable = bytearray(self._durable.get(name, b""))
            if data is None:
                del durable[offset:]
            else:
                _put(durable, offset, data)
            self._durable[name] = bytes(durable)
        self._unsynced = left


def _put(into: bytearray, offset: int, data: bytes) -> None:
    if len(into) < offset:
        into.extend(bytes(offset - len(into)))
    into[offset : offset + len(data)] = data
