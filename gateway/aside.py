"""What lies aside: how its file is named, and a list of it all, to miss what somebody removes.

    refused/SEQUENCE-EPOCH-0xREASON.batch    lies aside
    refused/SEQUENCE-EPOCH-0xREASON.again    is offered again, until the broker has answered
    refused.list                             CRC32 | for each: sequence, epoch, readings, CRC32

A batch is in the list from when its file is on the device until before that is removed. So one that
is in the list and has no file was removed by somebody else, and its readings are known.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgpack

from gateway.damage import DAMAGED
from gateway.disk import BLOCK, Disk
from gateway.segments import LARGEST_FILE

LIST = "refused.list"
NEW = "refused.new"
"""What takes the place of the list, as a whole."""
_CRC = 4
_SEQUENCES, _EPOCHS = 1 << 63, 1 << 32
"""Numbers from here on are in no name of ours: a sequence that ran on from there would end."""


def on_disk(length: int) -> int:
    """Return what a file of so many bytes takes on the usual file systems: whole blocks."""
    return length + -length % BLOCK


@dataclass(frozen=True, slots=True)
class Aside:
    """What the name of a refused batch's file says."""

    sequence: int
    epoch: int
    reason: int
    """The broker's reason code."""
    again: bool
    """Whether it is being offered again."""

    @property
    def name(self) -> str:
        """The name of its file."""
        ending = "again" if self.again else "batch"
        return f"{self.sequence}-{self.epoch}-0x{self.reason:02x}.{ending}"

    @property
    def mark(self) -> str:
        """What tells it from all others, whatever its file is called by then."""
        return f"{self.sequence}-{self.epoch}"

    @property
    def batch(self) -> tuple[int, int]:
        """Sequence and epoch, as of a held one."""
        return self.sequence, self.epoch

    @classmethod
    def of(cls, name: str) -> "Aside | None":
        """Return what the name says, None when it is none of ours."""
        match = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,10})-0x([0-9a-f]{2})\.(batch|again)", name)
        if match is None or int(match[1]) >= _SEQUENCES or int(match[2]) >= _EPOCHS:
            return None
        return cls(int(match[1]), int(match[2]), int(match[3], 16), match[4] == "again")


class Listed(NamedTuple):
    """A batch in the list."""

    sequence: int
    epoch: int
    readings: int
    crc: int

    @property
    def mark(self) -> str:
        """The same as that of its file; its loss is recorded by it."""
        return f"{self.sequence}-{self.epoch}"

    @property
    def aside(self) -> Aside:
        """The same as a file, for whatever reason it was refused."""
        return Aside(self.sequence, self.epoch, 0, again=False)


class Inventory:
    """The list of one directory. Used by one thread; its methods may raise OSError."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._broken = False
        self._listed: dict[str, Listed] = {}

    def recover(self) -> bool:
        """Read it; whether all that was in it is known.

        Where the file is broken it is kept in RAM alone.
        """
        self._listed = {}
        self._broken = self._disk.broken_for_good(LIST) is not None
        if self._broken:
            return True
        listed = read_list(self._disk)
        damaged = listed is None and self._disk.exists(LIST)
        if damaged:
            self._disk.rename(LIST, f"{LIST}{DAMAGED}")
        self._listed = listed or {}
        return not damaged

    def begin(self) -> None:
        """Return when it is on the device, be it empty: from then on it is missed."""
        if not self._broken and not self._disk.exists(LIST):
            self._put(self._listed)

    def get(self, aside: Aside) -> Listed | None:
        """Return what is noted of a batch, None when it is not in the list."""
        return self._listed.get(aside.mark)

    def note(self, those: Iterable[Listed]) -> None:
        """Return when they are in the list, on the device."""
        self._write(self._listed | {one.mark: one for one in those})

    def strike(self, marks: Iterable[str]) -> None:
        """Return when they are not in the list any more, on the device."""
        gone = set(marks)
        self._write({mark: one for mark, one in self._listed.items() if mark not in gone})

    def rewrite(self) -> None:
        """Return when it is on the device once more, as it is."""
        self._put(self._listed)

    def without(self, there: Iterable[str]) -> list[Listed]:
        """Return what is in the list and not there."""
        gone = self._listed.keys() - set(there)
        return [one for one in self._listed.values() if one.mark in gone]

    def _write(self, listed: dict[str, Listed]) -> None:
        if listed != self._listed:
            self._put(listed)

    def _put(self, listed: dict[str, Listed]) -> None:
        if not self._broken:
            self._save(listed)
        self._listed = listed

    def _save(self, listed: dict[str, Listed]) -> None:
        body = msgpack.packb(list(listed.values()))
        data = zlib.crc32(body).to_bytes(_CRC) + body
        self._disk.write(NEW, 0, data)
        self._disk.cut(NEW, len(data))
        self._disk.sync(NEW)
        self._disk.rename(NEW, LIST)
        self._disk.sync_directory()


def read_list(disk: Disk) -> dict[str, Listed] | None:
    """Return what is in the list, by mark; None where it is missing or damaged. Raises OSError."""
    data = disk.read(LIST, 0, LARGEST_FILE)
    body = data[_CRC:]
    if not body or zlib.crc32(body) != int.from_bytes(data[:_CRC]):
        return None
    return {one.mark: one for one in map(_of, msgpack.unpackb(body))}


def _of(fields: list[int]) -> Listed:
    return Listed(*fields)
