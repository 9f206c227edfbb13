"""What is over and done with of that which lies on disk: acknowledged batches, dropped readings.

    | page 0 | page 1 |        4096 bytes each, zeros written once, then overwritten in turn

    page: CRC32, length | history, ranges, dropped, sealed, last,
          place at which the oldest segment begins, losses, since, writes so far

No growth: it can be written to when the disk is full. Of two pages one outlasts a torn write.
Dropped and sealed are readings, last and since sequences: nothing is known below since. Sealed,
last and the place tell what segments held that are gone, and the ends of those that are not; the
newest losses there bear names, so that nothing counts twice if their record is lost, too.
"""

import bisect
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgpack

from gateway.disk import Disk
from gateway.record import Place

NAME = "acked"
PAGE = 4096
ACKED_RANGES = 120
LOSSES = 8
"""As many of both take less than a page, however long the numbers are."""

_SUM = struct.Struct("<II")  # of what follows: CRC32, length


Range = tuple[int, int, int]
"""The first and the last sequence, and how many readings their batches have."""


class Told(NamedTuple):
    """What a page says."""

    history: int
    ranges: list[Range]
    dropped: int
    sealed: int
    last: int
    oldest: Place
    losses: list[str]
    since: int = 0
    writes: int = 0


class Acked:
    """Which sequences are acknowledged, as ranges; and how many readings were dropped by then.

    Acknowledgements come out of order (two lanes): one position for both re-sent 16.7 % or lost 517
    batches at a crash. Lost or damaged, everything on disk is sent again and de-duplicated.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._broken = False
        self._writes = 0
        self._written: Told | None = None
        self.ranges: list[Range] = []
        self.since = 0
        """Of those below this nothing is known."""
        self.found: Told | None = None
        """What recovery found, if it is of this history."""
        self.unreadable = False
        """Whether recovery could not read all of it."""

    def recover(self, is_ours: Callable[[int], bool]) -> None:
        """Read the newer page that is whole; nothing of a history that is not ours.

        Another history's ranges would let go of batches that were never delivered. Where the file
        is broken it is gone without: nothing is written.
        """
        self._broken = self._disk.broken_for_good(NAME) is not None
        if self._broken:
            return
        self._disk.settle(NAME)
        data, bad = self._disk.salvage(NAME, 2 * PAGE)
        self.unreadable = bool(bad)
        pages = [page for page in (_page(data[:PAGE]), _page(data[PAGE : 2 * PAGE])) if page]
        if not pages:
            return
        newest = max(pages, key=lambda page: page.writes)
        self._writes = newest.writes
        if is_ours(newest.history):
            self.found, self.ranges, self.since = newest, list(newest.ranges), newest.since

    def begin(self) -> None:
        """Take the room that it needs, once and for all."""
        if self._broken:
            return
        if not self._disk.exists(NAME) or self._disk.size(NAME) < 2 * PAGE:
            self._disk.write(NAME, 0, bytes(2 * PAGE))
            self._disk.sync(NAME)
            self._disk.sync_directory()

    def __contains__(self, sequence: int) -> bool:
        at = bisect.bisect_right(self.ranges, (sequence, math.inf)) - 1
        return at >= 0 and self.ranges[at][1] >= sequence

    def add(self, sequence: int, readings: int) -> None:
        """Take one more batch in."""
        join(self.ranges, sequence, readings)

    def forget_below(self, sequence: int) -> None:
        """Drop the ranges of sequences that are no longer on disk; the last one always stays."""
        self.since = max(self.since, sequence)
        while len(self.ranges) > 1 and (
            self.ranges[0][1] < sequence or len(self.ranges) > ACKED_RANGES
        ):
            self.since = max(self.since, self.ranges.pop(0)[1] + 1)

    def write(self, told: Told) -> None:
        """Write what differs from what was written last; unsynced."""
        ranges = told.ranges[-ACKED_RANGES:]  # what no disk could count yet keeps all of them
        told = told._replace(ranges=ranges, writes=self._writes, since=self.since)
        if told == self._written or self._broken:
            return
        told = told._replace(writes=self._writes + 1)
        body = msgpack.packb(told)
        data = _SUM.pack(zlib.crc32(body), len(body)) + body
        self._disk.write(NAME, told.writes % 2 * PAGE, data.ljust(PAGE, b"\0"))
        self._writes, self._written = told.writes, told

    def sync(self) -> None:
        """Return when it is on the device; if that fails, it is to be written anew."""
        if self._broken:
            return
        told, self._written = self._written, None
        self._disk.sync(NAME)
        self._written = told


def join(ranges: list[Range], sequence: int, readings: int) -> None:
    """Take one more batch into the ranges, joining it to its neighbours; one that is in is not."""
    at = bisect.bisect_right(ranges, (sequence, math.inf))
    first = last = sequence
    if at > 0 and ranges[at - 1][1] >= sequence:
        return
    if at < len(ranges) and ranges[at][0] == sequence + 1:
        _, last, more = ranges.pop(at)
        readings += more
    if at > 0 and ranges[at - 1][1] == sequence - 1:
        at -= 1
        first, _, more = ranges.pop(at)
        readings += more
    ranges.insert(at, (first, last, readings))


def within(ranges: Iterable[Range], hole: range) -> tuple[list[Range], bool]:
    """Return the ranges inside of `hole`, and if others reach into it."""
    near = [one for one in ranges if one[0] < hole.stop and one[1] >= hole.start]
    inside = [one for one in near if one[0] >= hole.start and one[1] < hole.stop]
    return inside, len(near) > len(inside)


def is_ours(data: bytes) -> bool:
    """Whether a page in it is whole, or none was ever written; its first one may be torn."""
    pages = data[:PAGE], data[PAGE : 2 * PAGE]
    return not any(data) or any(_page(page) or page == bytes(PAGE) for page in pages)


def _page(data: bytes) -> Told | None:
    """Return what is on a page, None where it is not whole."""
    if len(data) < _SUM.size:
        return None
    crc, length = _SUM.unpack_from(data)
    body = data[_SUM.size : _SUM.size + length]
    if not len(body) == length > 0 or zlib.crc32(body) != crc:
        return None
    match msgpack.unpackb(body):
        case [history, list(ranges), dropped, sealed, last, [a, b, c], list(losses), since, writes]:
            there = [(first, last, readings) for first, last, readings in ranges]
            oldest = Place(a, b, c)
            return Told(history, there, dropped, sealed, last, oldest, losses, since, writes)
    return None  # of an earlier version: all is sent again
