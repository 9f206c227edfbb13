"""What is over and done with of that which lies on disk: acknowledged batches, dropped readings.

    | page 0 | page 1 |        4096 bytes each, zeros written once, then overwritten in turn

    page: CRC32, length | count of writes, epoch of the newest segment, readings dropped, ranges

No growth: it can be written to when the disk is full. Of two pages one outlasts a torn write.
"""

import bisect
import math
import struct
import zlib
from collections.abc import Container

import msgpack

from gateway.disk import Disk

NAME = "acked"
PAGE = 4096
ACKED_RANGES = 200
"""Take less than a page, however long the numbers are."""

_SUM = struct.Struct("<II")  # of what follows: CRC32, length


class Acked:
    """Which sequences are acknowledged, as ranges; and how many readings were dropped by then.

    Acknowledgements come out of order (two lanes): one position for both re-sent 16.7 % or lost 517
    batches at a crash. Lost or damaged, everything on disk is sent again and de-duplicated.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._writes = 0
        self._written: tuple[object, ...] = ()
        self.ranges: list[tuple[int, int]] = []
        self.dropped = 0
        """As it was written last."""

    def recover(self, epochs: Container[int]) -> None:
        """Read the newer page that is whole; no others than those of these epochs.

        Another history's ranges would let go of batches that were never delivered.
        """
        self._disk.settle(NAME)
        data, _ = self._disk.salvage(NAME)
        pages = [page for page in (_page(data[:PAGE]), _page(data[PAGE : 2 * PAGE])) if page]
        if not pages:
            return
        self._writes, epoch, dropped, ranges = max(pages)
        if epoch in epochs:
            self.dropped, self.ranges = dropped, [(first, last) for first, last in ranges]

    def begin(self) -> None:
        """Take the room that it needs, once and for all."""
        if not self._disk.exists(NAME) or self._disk.size(NAME) < 2 * PAGE:
            self._disk.write(NAME, 0, bytes(2 * PAGE))
            self._disk.sync(NAME)
            self._disk.sync_directory()

    def __contains__(self, sequence: int) -> bool:
        at = bisect.bisect_right(self.ranges, (sequence, math.inf)) - 1
        return at >= 0 and self.ranges[at][1] >= sequence

    def add(self, sequence: int) -> None:
        """Take one more sequence in."""
        join(self.ranges, sequence)

    def forget_below(self, sequence: int) -> None:
        """Drop the ranges of sequences that are no longer on disk; the last one always stays."""
        while len(self.ranges) > 1 and (
            self.ranges[0][1] < sequence or len(self.ranges) > ACKED_RANGES
        ):
            del self.ranges[0]

    def write(self, epoch: int, dropped: int, ranges: list[tuple[int, int]]) -> None:
        """Write what differs from what was written last; unsynced."""
        if (told := (epoch, dropped, ranges)) == self._written:
            return
        body = msgpack.packb((self._writes + 1, *told))
        data = _SUM.pack(zlib.crc32(body), len(body)) + body
        self._disk.write(NAME, (self._writes + 1) % 2 * PAGE, data.ljust(PAGE, b"\0"))
        self._writes, self._written, self.dropped = self._writes + 1, told, dropped

    def sync(self) -> None:
        """Return when it is on the device; if that fails, it is to be written anew."""
        told, self._written = self._written, ()
        self._disk.sync(NAME)
        self._written = told


def join(ranges: list[tuple[int, int]], sequence: int) -> None:
    """Take one more sequence into the ranges, joining it to its neighbours."""
    at = bisect.bisect_right(ranges, (sequence, sequence))
    first = last = sequence
    if at < len(ranges) and ranges[at][0] == sequence + 1:
        last = ranges.pop(at)[1]
    if at > 0 and ranges[at - 1][1] >= sequence - 1:
        at -= 1
        first, before = ranges.pop(at)
        last = max(last, before)
    ranges.insert(at, (first, last))


def _page(data: bytes) -> tuple[int, int, int, list[list[int]]] | None:
    """Return what is on a page, None where it is not whole."""
    if len(data) < _SUM.size:
        return None
    crc, length = _SUM.unpack_from(data)
    body = data[_SUM.size : _SUM.size + length]
    if not len(body) == length > 0 or zlib.crc32(body) != crc:
        return None
    match msgpack.unpackb(body):
        case [int(writes), int(epoch), int(dropped), list(ranges)]:
            return writes, epoch, dropped, ranges
    return None  # an earlier version had the ranges alone: all is sent again
