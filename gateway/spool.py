"""Sealed batches not yet acknowledged, on disk: segments that only grow, and go as a whole.

    NNNNNNNN.seg:  head | record | record | …      about 1 MiB each
    record: magic "bgS1", CRC32, length | kind, epoch, sequence, readings | bytes

    head   sequence: first of this segment; bytes: readings dropped so far, the last batch before it
    batch  bytes: the payload exactly as it is published
    loss   sequence: the last one lost; bytes: the first one, the reason

A segment goes once all its batches are acknowledged, but never the newest: it carries the sequence.
10 million readings are 20 MiB and are found again in 0.05 s with every CRC checked; as SQLite rows
they are 260 MiB and take 1.4 s, and on a full disk SQLite's WAL could not even delete.
"""

import bisect
import enum
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock

import msgpack

from gateway.disk import Disk

SEGMENT_BYTES = 1 << 20
ACKED_BYTES = 4096
ACKED_RANGES = 200

_MAGIC = b"bgS1"
_HEAD = struct.Struct("<4sII")  # magic, CRC32 of all that follows the length, its length
_BODY = struct.Struct("<BIQI")  # kind, epoch, sequence, readings
_SUM = struct.Struct("<II")  # of the acknowledged ranges: CRC32, length
_ENDING = ".seg"


class Kind(enum.IntEnum):
    """What a record holds."""

    HEAD = 0
    BATCH = 1
    LOSS = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a segment, and where its bytes begin in it."""

    kind: int
    epoch: int
    sequence: int
    readings: int
    payload: bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A sealed batch that is not yet acknowledged, and where its payload lies."""

    epoch: int
    sequence: int
    readings: int
    segment: str
    offset: int
    length: int


@dataclass(slots=True)
class _Segment:
    name: str
    size: int = 0
    waiting: set[int] = field(default_factory=set)


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


class Spool:
    """The spool of one directory.

    `recover`, `append`, `evict`, `tidy` and `payload` do disk work, on one thread at a time, and
    may raise OSError; `waiting` and `acknowledge` only touch memory and may run beside them.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = Lock()
        self._segments: list[_Segment] = []
        self._held: dict[int, Held] = {}
        self._order: list[int] = []
        self._acked = Acked(disk)
        self._number = 0
        self._usable = False
        self.last = 0
        """The highest sequence ever given to a batch."""
        self.previous: tuple[int, int] | None = None
        """Epoch and sequence of the newest batch."""
        self.dropped = 0
        """Readings dropped since the buffer was created."""
        self.damage: list[str] = []
        """Files in which recovery set aside what it could not read."""
        self.recovered = False

    def recover(self) -> None:
        """Read everything there is; whatever that is, a usable spool comes of it."""
        for name in self._disk.names():
            if name.endswith(_ENDING) and name.removesuffix(_ENDING).isdecimal():
                self._number = max(self._number, int(name.removesuffix(_ENDING)))
                self._recover_segment(name)
        self._order = sorted(self._held)
        self._acked.recover()
        for first, last in self._acked.ranges:
            self.last = max(self.last, last)
            for held in list(self.waiting(first - 1, last + 1)):
                self._forget(held.sequence)
        self.recovered = True

    def _recover_segment(self, name: str) -> None:
        self._disk.settle(name)
        data = self._disk.read(name)
        segment = _Segment(name, len(data))
        self._segments.append(segment)
        end = 0
        for record in _records(data):
            self._set_aside(name, end, data[end : record.at])
            end = record.at + _size(record.payload)
            self._take(segment, record)
        if end < len(data):
            self._set_aside(name, end, data[end:])
            with suppress(OSError):
                self._disk.cut(name, end)
                segment.size = end
        self._disk.close(name)

    def _take(self, segment: _Segment, record: Record) -> None:
        self.last = max(self.last, record.sequence - (record.kind == Kind.HEAD))
        if record.kind == Kind.BATCH:
            self._hold(segment, record)
        elif record.kind == Kind.HEAD:
            dropped, previous = msgpack.unpackb(record.payload)
            self.dropped = max(self.dropped, dropped)
            self._saw(*previous)
        elif record.kind == Kind.LOSS:
            first, _ = msgpack.unpackb(record.payload)
            self.dropped += record.readings
            for sequence in [s for s in self._held if first <= s <= record.sequence]:
                self._forget(sequence)

    def _saw(self, epoch: int, sequence: int) -> None:
        if sequence and (self.previous is None or sequence >= self.previous[1]):
            self.previous = epoch, sequence

    def _hold(self, segment: _Segment, record: Record) -> None:
        self._saw(record.epoch, record.sequence)
        self.last = max(self.last, record.sequence)
        if record.sequence in self._held:  # written again after a failed sync
            return
        offset = record.at + _size(b"")
        self._held[record.sequence] = Held(
            *(record.epoch, record.sequence, record.readings),
            *(segment.name, offset, len(record.payload)),
        )
        segment.waiting.add(record.sequence)

    def _set_aside(self, name: str, at: int, data: bytes) -> None:
        if any(data):
            aside = f"{name}-{at}.damaged"
            self.damage.append(aside)
            with suppress(OSError):  # a full disk is no reason not to start
                self._disk.write(aside, 0, data)
            self._disk.close(aside)

    def follow(self, other: "Spool") -> int:
        """Go on where `other` ended, whose files are gone; return how many readings that cost."""
        self.last = max(self.last, other.last)
        self.dropped = max(self.dropped, other.dropped)
        if other.previous:
            self._saw(*other.previous)
        return sum(h.readings for h in other.waiting() if h.sequence not in self._held)

    def append(self, epoch: int, sequence: int, readings: int, payload: bytes) -> None:
        """Return when the batch is on the device. If that fails, all of it is to be done again.

        After a failed sync Linux may have marked the pages clean, and a second sync would say yes
        to bytes that are lost: the next attempt writes them anew, into a new segment.
        """
        if not self._usable or self._segments[-1].size + _size(payload) > SEGMENT_BYTES:
            self._begin(epoch, sequence)
        self._write(Record(Kind.BATCH, epoch, sequence, readings, payload))

    def begin(self, epoch: int) -> None:
        """Begin the first segment of a run; it carries the sequence from now on."""
        self._begin(epoch, self.last + 1)

    def _begin(self, epoch: int, sequence: int) -> None:
        self._number += 1
        name = f"{self._number:08}{_ENDING}"
        head = msgpack.packb((self.dropped, self.previous or (0, 0)))
        data = _pack(Record(Kind.HEAD, epoch, sequence, 0, head))
        try:
            self._disk.write(name, 0, data)
            self._disk.sync(name)
            self._disk.sync_directory()
        except OSError:
            with suppress(OSError):  # each attempt would leave one more
                self._disk.remove(name)
            raise
        with self._lock:
            self._segments.append(_Segment(name, len(data)))
        self._usable = True

    def _write(self, record: Record) -> None:
        segment, data = self._segments[-1], _pack(record)
        self._usable = False
        try:
            self._disk.write(segment.name, segment.size, data)
            self._disk.sync(segment.name)
        except OSError:
            with suppress(OSError):  # half a record takes room that a full disk has not got
                self._disk.cut(segment.name, segment.size)
            raise
        self._usable = True
        with self._lock:
            if record.kind == Kind.BATCH:
                self._hold(segment, replace(record, at=segment.size))
                self._order.append(record.sequence)
            segment.size += len(data)

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield what is held with after < sequence < before, oldest first."""
        while True:
            with self._lock:
                at = bisect.bisect_right(self._order, after)
                if at == len(self._order):
                    return
                held = self._held[self._order[at]]
            if before is not None and held.sequence >= before:
                return
            yield held
            after = held.sequence

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, as they were sealed; None when they are not there any more.

        It was evicted meanwhile, or somebody removed the file.
        """
        if held.sequence not in self._held:
            return None
        payload = self._disk.read(held.segment, held.offset, held.length)
        return payload if len(payload) == held.length else None

    def acknowledge(self, sequence: int) -> None:
        """Let go of a batch: it was delivered, or set aside."""
        with self._lock:
            if sequence in self._held:
                self._acked.add(sequence)
                self._forget(sequence)

    def _forget(self, sequence: int) -> None:
        held = self._held.pop(sequence)
        at = bisect.bisect_left(self._order, sequence)
        if at < len(self._order) and self._order[at] == sequence:
            del self._order[at]
        for segment in self._segments:
            if segment.name == held.segment:
                segment.waiting.discard(sequence)

    def evict(self, reason: str) -> int:
        """Drop the oldest segment that still holds something; return how many readings that cost.

        The loss is recorded and synced before the file goes.
        """
        victim = self._oldest()
        if victim is None:
            return 0
        lost = self._lost(victim)
        readings = sum(held.readings for held in lost)
        self.record_loss(lost[0].sequence, lost[-1].sequence, readings, reason)
        self._let_go(lost)
        self.remove_done()
        return readings

    def evict_unrecorded(self) -> int:
        """Do the same on a disk too full for the record: the next segment's head carries the sum.

        That head is synced with the directory, so never without the file being gone.
        """
        victim = self._oldest()
        if victim is None:
            return 0
        lost = self._lost(victim)
        self._disk.remove(victim.name)
        self._usable = False
        readings = sum(held.readings for held in lost)
        self.dropped += readings
        self._let_go(lost)
        self.remove_done()
        return readings

    def _oldest(self) -> _Segment | None:
        return next((s for s in self._segments[:-1] if s.waiting), None)

    def _lost(self, victim: _Segment) -> list[Held]:
        with self._lock:
            return [self._held[sequence] for sequence in sorted(victim.waiting)]

    def _let_go(self, lost: list[Held]) -> None:
        with self._lock:
            for held in lost:
                if held.sequence in self._held:
                    self._forget(held.sequence)

    def record_loss(self, first: int, last: int, readings: int, reason: str) -> None:
        """Record, for ever, that readings were lost, and why."""
        if not self._usable:
            self._begin(self.previous[0] if self.previous else 0, self.last + 1)
        payload = msgpack.packb((first, reason))
        self._write(Record(Kind.LOSS, 0, last, readings, payload))
        self.dropped += readings

    def tidy(self) -> None:
        """Write down what was acknowledged, and remove the segments that are done with."""
        self.remove_done()
        with self._lock:
            oldest = self._order[0] if self._order else self.last
            if self._segments:
                self._acked.forget_below(min([oldest, *self._segments[0].waiting]))
            ranges = list(self._acked.ranges)
        self._acked.write(ranges)

    def remove_done(self) -> bool:
        """Remove the segments that are done with, all but the newest; whether there were any."""
        with self._lock:
            done = [segment.name for segment in self._segments[:-1] if not segment.waiting]
        if done and not self._usable:  # the newest may be one that only recovery has seen
            self._disk.sync_directory()
        for name in done:
            self._disk.remove(name)
        with self._lock:
            self._segments = [s for s in self._segments if s.name not in done]
        return bool(done)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    def held(self) -> tuple[int, int]:
        """Return how many batches wait, and how many readings are in them."""
        with self._lock:
            return len(self._order), sum(held.readings for held in self._held.values())


def _size(payload: bytes) -> int:
    return _HEAD.size + _BODY.size + len(payload)


def _pack(record: Record) -> bytes:
    ids = (record.kind, record.epoch, record.sequence, record.readings)
    body = _BODY.pack(*ids) + record.payload
    return _HEAD.pack(_MAGIC, zlib.crc32(body), len(body)) + body


def _records(data: bytes) -> Iterator[Record]:
    at = 0
    while (at := data.find(_MAGIC, at)) >= 0:
        record = _record(data, at)
        if record is not None:
            yield record
        at += 1 if record is None else _size(record.payload)


def _record(data: bytes, at: int) -> Record | None:
    if at + _HEAD.size > len(data):
        return None
    _, crc, length = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    if not len(body) == length >= _BODY.size or zlib.crc32(body) != crc:
        return None
    kind, epoch, sequence, readings = _BODY.unpack_from(body)
    return Record(kind, epoch, sequence, readings, body[_BODY.size :], at)
