"""Readings not yet sealed, on disk: one file of fixed size, overwritten in place.

    | slot 0 | slot 1 | … | slot 63 |          slots of 4096 bytes, zeros written once
    | frame, zeros    | frame |  …             each frame begins on a slot

    frame: magic "bgJ3", CRC32, length | epoch, sequence, boot, clock, wall − boot, count, before
           | rows

No growth, so no metadata to commit and no way to run out of space; a torn page never touches an
earlier frame. (epoch, sequence) is the batch in which the rows *will* be sealed: with a generation
counter in its place, every one of 300 crash runs sealed readings twice or lost flushed ones.
`before` is how many readings of its batch earlier frames hold: it tells what a damaged one held.
Slots are overwritten only when every frame in the file is sealed. 10 s of journal and 60 s of spool
cost 405 bytes of device writes a reading at 2/s, SQLite with a row a reading 28 962.

Nothing tells of frames that are gone with all behind them, where zeros or an older frame are left.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgpack

from gateway.damage import DAMAGED, Damage
from gateway.disk import BLOCK, Disk
from gateway.filling import BATCH_READINGS
from gateway.reading import Instant, Quantity, Reading

NAME = "journal"
SLOT = 4096
SLOTS = 64
MAGIC = b"bgJ3"
"""What each frame begins with; another digit is another version."""
_HEAD = struct.Struct("<4sII")  # magic, CRC32 of all that follows the length, its length
_BODY = struct.Struct("<IQIBqII")  # epoch, sequence, boot, clock, wall − boot in ms, count, before

_ERASED = b"\xff" * SLOT


class JournalFullError(Exception):
    """There are not enough free slots: seal what is in the journal first."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """Readings of one boot, clock state and offset, and the batch they will be sealed in."""

    epoch: int
    sequence: int
    boot: int
    readings: Sequence[Reading]
    before: int = 0
    """Readings of the same batch that were flushed before."""

    @property
    def name(self) -> tuple[int, int]:
        """What tells its batch from any other."""
        return self.sequence, self.epoch


class Journal:
    """The journal of one directory. Used by one thread at a time; methods may raise OSError."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._next = 0
        self._unreadable = False

    def recover(self, sealed: int) -> tuple[list[Flushed], list[Damage]]:
        """Return the frames that are not in a batch up to `sealed`, and what is left of others."""
        data, bad = self._disk.salvage(NAME)
        self._unreadable = bool(bad)
        if len(data) < SLOT * SLOTS:
            self._extend(len(data))
        self._next = -(-len(data.rstrip(b"\0")) // SLOT)  # until all of it is sealed
        frames, damaged = unsealed(data, sealed)
        known = {at for each in damaged for at in range(each.at, each.at + len(each.data), BLOCK)}
        blocks = [Damage(NAME, at, data[at : at + BLOCK], None) for at in bad if at not in known]
        told = _joined(sorted([*damaged, *blocks], key=lambda each: each.at))
        return frames, [replace(each, unreadable=bool(bad)) for each in told]

    def _extend(self, size: int) -> None:
        self._disk.write(NAME, size, bytes(SLOT * SLOTS - size))
        self._disk.sync(NAME)
        self._disk.sync_directory()

    def renew(self) -> None:
        """Go on in another file where this one cannot be read, now that nothing needs it."""
        if self._unreadable:
            self._disk.rename(NAME, f"{NAME}{DAMAGED}")
            self._extend(0)
            self._unreadable = False

    def write(self, flushed: Flushed) -> None:
        """Return when the readings are on the device; if it fails, all of it is to be done again.

        Raises JournalFullError, before anything is written.
        """
        frame = _pack(flushed)
        slots = -(-len(frame) // SLOT)
        if self._next + slots > SLOTS:
            raise JournalFullError
        self._disk.write(NAME, self._next * SLOT, frame.ljust(slots * SLOT, b"\0"))
        self._disk.sync(NAME)
        self._next += slots

    def all_sealed(self) -> None:
        """Every frame in the journal is sealed: its slots may be overwritten."""
        self._next = 0


def unsealed(data: bytes, sealed: int) -> tuple[list[Flushed], list[Damage]]:
    """Return what the bytes of a journal hold that is not in a batch up to `sealed`."""
    frames, damaged = _frames(data[: SLOT * SLOTS].ljust(SLOT * SLOTS, b"\0"))
    return (
        [frame for frame in frames if frame.sequence > sealed],
        [damage for sequence, damage in damaged if sequence > sealed],
    )


def _joined(damaged: list[Damage]) -> list[Damage]:
    """Return each bad stretch as one, where nobody knows what any part of it held."""
    joined: list[Damage] = []
    for each in damaged:
        before = joined[-1] if joined else None
        if before and before.at + len(before.data) == each.at and before.lost is each.lost is None:
            joined[-1] = replace(before, data=before.data + each.data)
        else:
            joined.append(each)
    return joined


def _pack(flushed: Flushed) -> bytes:
    first = flushed.readings[0].instant
    series: dict[tuple[str, Quantity], int] = {}
    rows: list[object] = []
    for r in flushed.readings:
        index = series.setdefault((r.sensor, r.quantity), len(series))
        rows += (index, r.instant.wall_ms - first.wall_ms, r.value, r.quality)
    named = [(sensor, *_columns(quantity)) for sensor, quantity in series]
    packed = msgpack.packb((first.wall_ms, named, rows))
    offset = first.wall_ms - first.boot_ms
    readings = len(flushed.readings)
    ids = (flushed.epoch, flushed.sequence, flushed.boot, first.clock, offset, readings)
    body = _BODY.pack(*ids, flushed.before) + packed
    return _HEAD.pack(MAGIC, zlib.crc32(body), len(body)) + body


def _columns(quantity: Quantity) -> tuple[str, str, int, float | None, float | None]:
    return quantity.name, quantity.unit, quantity.decimals, quantity.low, quantity.high


def _frames(data: bytes) -> tuple[list[Flushed], list[tuple[float, Damage]]]:
    frames: list[Flushed] = []
    damaged: list[tuple[float, Damage]] = []
    bad: list[tuple[int | None, Damage]] = []  # since the last good one
    found: dict[tuple[int, int], int] = {}  # readings of each batch so far
    at = 0
    while at < len(data):
        ours = data.startswith(MAGIC, at)
        sound = _body(data, at)
        body = sound if sound or not ours else _mended(data[at:])
        end = at + _slots(len(body)) if body else _end(data, at) if ours else at + SLOT
        if body:
            frames.append(frame := _unpack(body))
            damaged += _between(bad, frame, frame.before - found.get(frame.name, 0))
            bad.clear()
            found[frame.name] = frame.before + len(frame.readings)
            if not (ours and sound):
                of = "-".join(map(str, frame.name))
                damaged.append((frame.sequence, Damage(NAME, at, data[at:end], 0, of=of)))
        elif ours:
            bad.append(_damaged(data[at:end], at))
        else:
            begin = bad.pop()[1].at if bad and bad[-1][0] is None else at
            bad.append((None, Damage(NAME, begin, data[begin:end], None)))
        at = end
    named = [(named, damage) for named, damage in bad if named is not None]
    gone = [(math.inf, damage) for named, damage in bad if named is None and _is_gone(damage)]
    return frames, damaged + named + gone


def _is_gone(damage: Damage) -> bool:
    """Whether slots without a name, behind all frames, are neither unused nor old remains.

    In the first a frame begins, if any was ever written; of ours none is as an erased block is.
    """
    return (damage.at == 0 and any(damage.data[:SLOT])) or _ERASED in damage.data


def _between(
    bad: list[tuple[int | None, Damage]], frame: Flushed, missing: int
) -> list[tuple[int, Damage]]:
    """Return what is bad before a frame, with the readings of its batch that are missing there."""
    of = "-".join(map(str, frame.name))  # other batches' frames come there after these
    told = [
        (frame.sequence, replace(damage, of=of)) if named is None else (named, damage)
        for named, damage in bad
    ]
    here = [n for n, (sequence, _) in enumerate(told) if sequence == frame.sequence]
    if missing > 0 and here:
        widest = max(here, key=lambda n: len(told[n][1].data))
        for n in here:
            sequence, damage = told[n]
            told[n] = sequence, replace(damage, lost=missing if n == widest else 0)
    return told


def _slots(body: int) -> int:
    """Return how many bytes the slots of a frame have."""
    return -(-(_HEAD.size + body) // SLOT) * SLOT


def _end(data: bytes, at: int) -> int:
    """Return where the slots of a bad frame end: as its head says, or where the next begins."""
    _, _, length = _HEAD.unpack_from(data, at)
    end = min(at + _slots(length), len(data))
    return next((s for s in range(at + SLOT, end, SLOT) if data.startswith(MAGIC, s)), end)


def _damaged(slots: bytes, at: int) -> tuple[int, Damage]:
    """Return the sequence that the head of a bad frame names, and what it says to have held."""
    epoch, sequence, *_, readings, _ = _BODY.unpack_from(slots, _HEAD.size)
    known = readings if readings <= BATCH_READINGS else None
    return sequence, Damage(NAME, at, slots, known, of=f"{sequence}-{epoch}")


def _mended(frame: bytes) -> bytes | None:
    """Return the body of a frame with a single wrong bit in its head: with it right, the CRC is."""
    trial = bytearray(frame)
    for bit in range(8 * len(MAGIC), 8 * (_HEAD.size + _BODY.size)):
        trial[bit // 8] ^= 1 << bit % 8
        if (body := _body(trial, 0)) is not None:
            return body
        trial[bit // 8] ^= 1 << bit % 8
    return None


def _body(data: bytes | bytearray, at: int) -> bytes | None:
    """Return what follows the head where the CRC is right, whatever the magic is."""
    _, crc, length = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if length < _BODY.size or end > len(data):
        return None
    body = bytes(data[at + _HEAD.size : end])
    return body if zlib.crc32(body) == crc else None


def _unpack(body: bytes) -> Flushed:
    epoch, sequence, boot, clock, offset, _, before = _BODY.unpack_from(body)
    start, named, rows = msgpack.unpackb(body[_BODY.size :])
    series = [(sensor, Quantity(*columns)) for sensor, *columns in named]
    readings = []
    for index, ms, value, quality in zip(*[iter(rows)] * 4, strict=True):
        sensor, quantity = series[index]
        instant = Instant(start + ms, start + ms - offset, clock)
        readings.append(Reading(sensor, quantity, instant, value, quality))
    return Flushed(epoch, sequence, boot, readings, before)
