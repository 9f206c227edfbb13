"""One frame of the journal: readings as bytes, and found again among bytes that may be damaged.

    frame: magic "bgJ4", CRC32, length | epoch, sequence, boot, clock, wall − boot, count, before,
           history | rows

(epoch, sequence) is the batch in which the rows *will* be sealed: with a generation counter in its
place, every one of 300 crash runs sealed readings twice or lost flushed ones. `before` is how many
readings of its batch earlier frames hold: it tells what a damaged one held. `history` is that of
the directory: by its numbers alone, what another box flushed would be taken for sealed.

The CRC is of the magic and of all that follows the length: a frame is known by it though its magic
is damaged, and one of another version is none.

Each begins on a slot. Behind the newest stand older ones, all sealed, or zeros: whatever else does
is damage. Nothing tells of frames that are gone with all behind them, where zeros or an older frame
are left.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgpack

from gateway.damage import Damage
from gateway.filling import BATCH_READINGS
from gateway.reading import ClockState, Instant, Quantity, Reading

NAME = "journal"
SLOT = 4096
SLOTS = 64
MAGIC = b"bgJ4"
"""What each frame begins with; another digit is another version."""
_HEAD = struct.Struct("<4sII")  # magic, CRC32, length of all that follows
_BODY = struct.Struct("<IQIBqIII")
"""Epoch, sequence, boot, clock, wall − boot in ms, count, before, history."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """Readings of one boot, clock state and offset, and the batch they will be sealed in."""

    epoch: int
    sequence: int
    boot: int
    readings: Sequence[Reading]
    before: int = 0
    """Readings of the same batch that were flushed before."""
    history: int = 0
    """What tells the directory from another box's."""

    @property
    def name(self) -> tuple[int, int]:
        """What tells its batch from any other."""
        return self.sequence, self.epoch

    @property
    def mark(self) -> str:
        """The same as text."""
        return f"{self.sequence}-{self.epoch}"


def pack(flushed: Flushed) -> bytes:
    """Return the frame as its slots begin."""
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
    body = _BODY.pack(*ids, flushed.before, flushed.history) + packed
    return _HEAD.pack(MAGIC, _crc(body), len(body)) + body


def _crc(body: bytes) -> int:
    return zlib.crc32(MAGIC + body)


def _columns(quantity: Quantity) -> tuple[str, str, int, float | None, float | None]:
    return quantity.name, quantity.unit, quantity.decimals, quantity.low, quantity.high


class Content(NamedTuple):
    """What a journal holds."""

    unsealed: list[Flushed]
    """Frames that are numbered above all that is sealed."""
    damaged: list[Damage]
    frames: list[tuple[Flushed, Damage]]
    """All of them, each with the damage that it would be if it were none of ours."""

    @property
    def history(self) -> int:
        """That of the frame which is numbered highest; 0: there is none."""
        frames = [frame for frame, _ in self.frames]
        return max(frames, key=lambda frame: frame.sequence).history if frames else 0


@dataclass(eq=False, slots=True)
class _Bad:
    """Slots that hold no frame, and what their head says as far as that can be true."""

    at: int
    data: bytes
    newest: bool
    """Whether they stand where the newest frame would: no older one is before them, nor zeros."""
    sequence: int | None = None
    readings: int | None = None
    before: int = 0
    of: str = ""

    def damage(self, lost: int | None, of: str = "", *, unsure: bool = False) -> Damage:
        """Return it as what so many readings are lost of."""
        return Damage(NAME, self.at, self.data, lost, unsure=unsure, of=of or self.of)


def content(data: bytes, sealed: int) -> Content:
    """Return what the bytes of a journal hold, where `sealed` is the highest number of a batch."""
    data = data[: SLOT * SLOTS].ljust(SLOT * SLOTS, b"\0")
    frames: list[Flushed] = []
    damaged: list[Damage] = []
    known: list[tuple[Flushed, Damage]] = []
    bad: list[_Bad] = []  # since the last good one
    found: dict[tuple[int, int], int] = {}  # readings of each batch so far
    newest = 0  # up to where the newest frames stand
    for at, end, frame, mended in _frames(data):
        last = frames[-1] if frames else None
        if frame is None:
            there = newest == at and any(data[at : at + SLOT])
            newest = end if there else newest
            _add(bad, _head(at, data[at:end], there))
            continue
        if frame.sequence > sealed:
            damaged += _between(bad, last, frame, frame.before - found.get(frame.name, 0), sealed)
            damaged += [Damage(NAME, at, data[at:end], 0, of=frame.mark)] if mended else []
        else:
            damaged += _behind(bad, last, frame, sealed)
        if newest == at and (last is None or last.sequence <= frame.sequence):
            newest = end
        bad.clear()
        frames.append(frame)
        known.append((frame, _as_damage(at, data[at:end], frame)))
        found[frame.name] = frame.before + len(frame.readings)
    damaged += _behind(bad, frames[-1] if frames else None, None, sealed)
    return Content([frame for frame in _once(frames) if frame.sequence > sealed], damaged, known)


def _as_damage(at: int, slots: bytes, frame: Flushed) -> Damage:
    """Return a frame as damage; it may be there twice, or in a batch elsewhere."""
    return Damage(NAME, at, slots, len(frame.readings), unsure=True, of=frame.mark)


def _once(frames: list[Flushed]) -> Iterator[Flushed]:
    """Yield each without what is in those before it: a sync failed, and it was written anew."""
    found: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for frame in frames:
        there, numbered = found[frame.name], dict(enumerate(frame.readings, frame.before))
        if more := [reading for number, reading in numbered.items() if number not in there]:
            yield replace(frame, readings=more)
        there.update(numbered)


def _frames(data: bytes) -> Iterator[tuple[int, int, Flushed | None, bool]]:
    """Yield where each frame begins and ends, whether it was mended; None: what is none."""
    at = 0
    while at < len(data):
        ours = data.startswith(MAGIC, at)
        sound = _body(data, at)
        body = sound if sound or not ours else _mended(data[at:])
        end = at + _slots(len(body)) if body else _end(data, at) if ours else at + SLOT
        yield at, end, _unpack(body) if body else None, not (ours and sound)
        at = end


def _head(at: int, slots: bytes, newest: bool) -> _Bad:
    """Return slots that hold no frame, with what the head of one that is damaged says."""
    epoch, sequence, _, clock, _, readings, before, _ = _BODY.unpack_from(slots, _HEAD.size)
    known = sequence > 0 and clock in set(ClockState) and before < BATCH_READINGS
    if not (slots.startswith(MAGIC) and known):
        return _Bad(at, slots, newest)
    held = readings if readings <= BATCH_READINGS else None
    return _Bad(at, slots, newest, sequence, held, before, f"{sequence}-{epoch}")


def _add(bad: list[_Bad], more: _Bad) -> None:
    """Take up bad slots; those without a name go on with those before them."""
    before = bad[-1] if bad else None
    if before and before.sequence is more.sequence is None and before.newest == more.newest:
        before.data += more.data
    else:
        bad.append(more)


def _between(
    bad: list[_Bad], last: Flushed | None, frame: Flushed, missing: int, sealed: int
) -> list[Damage]:
    """Return what is bad before a frame, with the readings of its batch that are missing there."""
    here = [each for each in bad if each.sequence in (None, frame.sequence)]
    if missing > 0 and not here:  # what a head says is wrong
        here = [each for each in bad if (each.sequence or 0) <= sealed]
    widest = max(here, key=lambda each: len(each.data), default=None)
    told = []
    for each in here:
        lost = each.readings if missing <= 0 else missing if each is widest else 0
        told.append(each.damage(lost, frame.mark))
    begun = last if last and last.sequence > sealed else None
    return told + _behind([each for each in bad if each not in here], begun, frame, sealed)


def _behind(
    bad: list[_Bad], last: Flushed | None, older: Flushed | None, sealed: int
) -> list[Damage]:
    """Return what is bad behind the last good frame and is not, for certain, of a sealed batch."""
    in_order = last and older and last.sequence <= older.sequence
    held = last.before + len(last.readings) if last else 0
    begun = not last or last.sequence > sealed  # else a start before this one has counted it
    told = []
    for each in bad:
        sequence, readings = each.sequence, each.readings
        if sequence is None:
            if each.newest and not in_order:
                told.append(each.damage(None))
        elif sequence > sealed:
            told.append(each.damage(readings))
        elif each.newest and last and begun and each.before == held:
            told.append(each.damage(readings, last.mark, unsure=True))
            held += readings or 0
        elif each.newest and begun and older and sequence + 1 < older.sequence:
            told.append(each.damage(readings, unsure=True))
    return told


def _slots(body: int) -> int:
    """Return how many bytes the slots of a frame have."""
    return -(-(_HEAD.size + body) // SLOT) * SLOT


def _end(data: bytes, at: int) -> int:
    """Return where the slots of a bad frame end: as its head says, or where the next begins."""
    _, _, length = _HEAD.unpack_from(data, at)
    end = min(at + _slots(length), len(data))
    return next((s for s in range(at + SLOT, end, SLOT) if data.startswith(MAGIC, s)), end)


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
    return body if _crc(body) == crc else None


def _unpack(body: bytes) -> Flushed:
    epoch, sequence, boot, clock, offset, _, before, history = _BODY.unpack_from(body)
    start, named, rows = msgpack.unpackb(body[_BODY.size :])
    series = [(sensor, Quantity(*columns)) for sensor, *columns in named]
    readings = []
    for index, ms, value, quality in zip(*[iter(rows)] * 4, strict=True):
        sensor, quantity = series[index]
        instant = Instant(start + ms, start + ms - offset, clock)
        readings.append(Reading(sensor, quantity, instant, value, quality))
    return Flushed(epoch, sequence, boot, readings, before, history)
