"""One record of a spool's segment: as bytes, and found again among bytes that may be damaged.

record: magic "bgS3", CRC32, length | kind, epoch, sequence, readings, first ms, place | bytes
place:  readings sealed before it in this directory, in its segment; the segment's first sequence

head    sequence: first of this segment; bytes: readings dropped so far, the last batch before it,
        the history (the first epoch of this directory), names of what is lost and may still lie in
        a segment
batch   bytes: the payload exactly as it is published
loss    sequence: the last one lost; bytes: the first one, the reason, names of what it was in
gap     what was here is lost, and that is counted; sequence: the last one; readings: how many;
        bytes: the first one
"""

import enum
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from gateway.filling import BATCH_READINGS
from gateway.payload import FIRST, MAX_SIZE, content_type, unpack
from gateway.wire import WireError, decode

MAGIC = b"bgS3"
"""What each record begins with; another digit is another version."""
_HEAD = struct.Struct("<4sII")  # magic, CRC32 of all that follows the length, its length
_BODY = struct.Struct("<BIQIqQIQ")  # kind, epoch, sequence, readings, first ms, place
# Where one may begin: its length is one of ours, its kind that of a batch, or its bytes a payload
_BEGIN = re.compile(rb"%b(?=.{7}\x00|.{8}\x01|.{53}%b)" % (MAGIC, FIRST.pattern), re.DOTALL)


class Kind(enum.IntEnum):
    """What a record holds."""

    HEAD = 0
    BATCH = 1
    LOSS = 2
    GAP = 3


class Place(NamedTuple):
    """Where a record stands: what is missing before it is known even when nothing is left of it."""

    total: int
    """Readings sealed before it in this directory."""
    since: int
    """Readings sealed before it in its segment."""
    first: int
    """The first sequence of its segment."""

    @property
    def begin(self) -> "Place":
        """The place at which its segment begins."""
        return Place(self.total - self.since, 0, self.first)

    def after(self, readings: int) -> "Place":
        """Return the place behind so many readings."""
        return Place(self.total + readings, self.since + readings, self.first)


NOWHERE = Place(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a segment, and where its bytes begin in it."""

    kind: int
    epoch: int
    sequence: int
    readings: int
    first_ms: int
    payload: bytes
    place: Place = NOWHERE
    at: int = 0
    mended: bool = False
    """Whether its head is damaged, and this is what belongs there."""

    @property
    def behind(self) -> Place:
        """The place of what follows it."""
        sealed = self.kind in (Kind.BATCH, Kind.GAP)
        return self.place.after(self.readings) if sealed else self.place


def size_of(payload: bytes) -> int:
    """Return how many bytes a record of these bytes has."""
    return _HEAD.size + _BODY.size + len(payload)


def pack(record: Record) -> bytes:
    """Return the record as it stands in a segment."""
    ids = (record.kind, record.epoch, record.sequence, record.readings, record.first_ms)
    body = _BODY.pack(*ids, *record.place) + record.payload
    return _HEAD.pack(MAGIC, zlib.crc32(body), len(body)) + body


def records(data: bytes) -> Iterator[Record]:
    """Yield every record that can be had; after another the search goes on at the next magic."""
    at = 0  # where the record before ended, so that one whose magic is damaged is met as well
    place = NOWHERE  # the one there, as far as it is known
    while 0 <= at <= len(data) - size_of(b""):
        record = _record(data, at) or _mended(data, at, place)
        if record is None:
            at, place = _next(data, at), NOWHERE
            continue
        yield record
        at, place = at + size_of(record.payload), record.behind


def _next(data: bytes, at: int) -> int:
    """Return where the next one may begin, -1 if none does: a magic alone is not looked at."""
    found = _BEGIN.search(data, at + 1)
    return found.start() if found else -1


def _record(data: bytes, at: int) -> Record | None:
    magic, crc, length = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if length < _BODY.size or end > len(data):
        return None
    body = data[at + _HEAD.size : end]
    if zlib.crc32(body) != crc:
        return None
    return replace(_read(data, at, body[_BODY.size :]), mended=magic != MAGIC)


def _mended(data: bytes, at: int, place: Place) -> Record | None:
    """Return the batch whose head alone is damaged; NOWHERE is its place where nothing tells it.

    Its bytes are what was sealed when they have a checksum of their own, or when the head's is that
    of them but for a bit: a bit in the bytes turns many in it.
    """
    record = _sealed(data, at)
    if record is None:
        return None
    there = replace(record, place=place)
    likely = next((r for r in (record, there) if _crc_off(data, r) <= 1), None)
    return likely or (there if _is_zlib(record.payload) else None)


def _sealed(data: bytes, at: int) -> Record | None:
    """Return the record that the bytes behind a head belong in: they say all but its place."""
    with suppress(WireError):
        begin = at + size_of(b"")
        _, length = unpack(memoryview(data)[begin : begin + MAX_SIZE])
        payload = data[begin : begin + length]
        batch = decode(payload)
        first_ms = min((reading.instant.wall_ms for reading in batch.readings), default=0)
        ids = (batch.epoch, batch.sequence, len(batch.readings), first_ms)
        return Record(Kind.BATCH, *ids, payload, _read(data, at, b"").place, at, mended=True)
    return None


def _is_zlib(payload: bytes) -> bool:
    return content_type(payload) == "application/zlib"


def _crc_off(data: bytes, record: Record) -> int:
    """Return how many bits of the CRC on disk are not those of the record."""
    found, right = (_HEAD.unpack_from(*of)[1] for of in ((data, record.at), (pack(record), 0)))
    return int.bit_count(found ^ right)


def _read(data: bytes, at: int, payload: bytes) -> Record:
    kind, epoch, sequence, readings, first_ms, *place = _BODY.unpack_from(data, at + _HEAD.size)
    return Record(kind, epoch, sequence, readings, first_ms, payload, Place(*place), at)


def claims(data: bytes) -> Iterator[Record]:
    """Yield the batches that damaged bytes say to be, going by their heads where that can be."""
    at = 0
    while 0 <= at <= len(data) - size_of(b""):
        record = _read(data, at, b"")
        whole = 0 < record.place.first <= record.sequence  # the last number of its head
        if record.kind == Kind.BATCH and 0 < record.readings <= BATCH_READINGS and whole:
            yield record
        elif sealed := _sealed(data, at):
            yield sealed
        at = _next(data, at)
