"""Which batches are acknowledged, while they still lie on disk: one small file."""

import bisect
import struct
import zlib

import msgpack

from gateway.disk import Disk

ACKED_BYTES = 4096
ACKED_RANGES = 200

_SUM = struct.Struct("<II")  # of the ranges: CRC32, length


class Acked:
    """Which sequences are acknowledged, as ranges in one small file, overwritten unsynced.

    Acknowledgements come out of order (two lanes): one position for both re-sent 16.7 % or lost 517
    batches at a crash. Lost or damaged, everything on disk is sent again and de-duplicated.
    """

    NAME = "acked"

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._written = b""
        self.ranges: list[tuple[int, int]] = []

    def recover(self) -> None:
        """Read the ranges; none where the file is missing or damaged."""
        data = self._disk.read(self.NAME, 0, ACKED_BYTES)
        if len(data) < _SUM.size:
            return
        crc, length = _SUM.unpack_from(data)
        body = data[_SUM.size : _SUM.size + length]
        if len(body) == length > 0 and zlib.crc32(body) == crc:
            self.ranges = [(first, last) for first, last in msgpack.unpackb(body)]

    def __contains__(self, sequence: int) -> bool:
        return any(first <= sequence <= last for first, last in self.ranges)

    def add(self, sequence: int) -> None:
        """Take one more sequence in, joining it to its neighbours."""
        at = bisect.bisect_right(self.ranges, (sequence, sequence))
        first = last = sequence
        if at < len(self.ranges) and self.ranges[at][0] == sequence + 1:
            last = self.ranges.pop(at)[1]
        if at > 0 and self.ranges[at - 1][1] >= sequence - 1:
            at -= 1
            first, before = self.ranges.pop(at)
            last = max(last, before)
        self.ranges.insert(at, (first, last))

    def forget_below(self, sequence: int) -> None:
        """Drop the ranges of sequences that are no longer on disk; the last one always stays."""
        while len(self.ranges) > 1 and (
            self.ranges[0][1] < sequence or len(self.ranges) > ACKED_RANGES
        ):
            del self.ranges[0]

    def write(self, ranges: list[tuple[int, int]]) -> None:
        """Write the ranges where they differ from what was written last."""
        body = msgpack.packb(ranges)
        if body != self._written:
            data = _SUM.pack(zlib.crc32(body), len(body)) + body
            self._disk.write(self.NAME, 0, data.ljust(ACKED_BYTES, b"\0"))
            self._written = body
