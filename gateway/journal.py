"""Readings not yet sealed, on disk: one file of fixed size, overwritten in place.

    | slot 0 | slot 1 | … | slot 63 |          slots of 4096 bytes, zeros written once
    | frame, zeros    | frame |  …             each frame begins on a slot

No growth, so no metadata to commit and no way to run out of space; a torn page never touches an
earlier frame. Slots are overwritten only when every frame in the file is sealed. 10 s of journal
and 60 s of spool cost 405 bytes of device writes a reading at 2/s, SQLite with a row a reading
28 962.
"""

from contextlib import suppress
from dataclasses import replace

from gateway.damage import DAMAGED, Damage
from gateway.disk import BLOCK, Disk
from gateway.flushed import MAGIC, NAME, SLOT, SLOTS, Content, Flushed, content, pack


class JournalFullError(Exception):
    """There are not enough free slots: seal what is in the journal first."""


class Journal:
    """The journal of one directory. Used by one thread at a time; methods may raise OSError."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._next = 0
        self._amid: set[int] = set()
        """Slots in which a frame goes on that began before them, or is half written."""
        self._unreadable = self._renamed = self._broken = False

    def recover(self, sealed: int) -> Content:
        """Return what it holds, where `sealed` is the highest number of a batch.

        One that is broken is full from then on: what would be flushed is sealed.
        """
        self._unreadable = self._renamed = False
        self._broken = self._disk.broken_for_good(NAME) is not None
        if self._broken:
            return Content([], [], [])
        data, bad = self._disk.salvage(NAME)
        self._unreadable = bool(bad)
        if len(data) < SLOT * SLOTS:
            self._extend(len(data))
        self._next = -(-len(data.rstrip(b"\0")) // SLOT)  # until all of it is sealed
        slots = [data[at : at + SLOT] for at in range(0, len(data), SLOT)]
        self._amid = {n for n, slot in enumerate(slots) if any(slot) and slot[:4] != MAGIC}
        return found(data, bad, sealed)

    def _extend(self, size: int) -> None:
        self._disk.write(NAME, size, bytes(SLOT * SLOTS - size))
        self._disk.sync(NAME)
        self._disk.sync_directory()

    def renew(self) -> None:
        """Go on in another file where this one cannot be read, now that nothing needs it.

        One that cannot be renamed is written over.
        """
        if self._unreadable:
            self._unreadable = False
            with suppress(OSError):
                self._disk.rename(NAME, f"{NAME}{DAMAGED}")
                self._renamed = True
        if self._renamed:
            self._extend(0)
            self._renamed = False

    def write(self, flushed: Flushed) -> None:
        """Return when the readings are on the device; if it fails, all of it is to be done again.

        Raises JournalFullError, before anything is written; also until the file is renewed.
        """
        frame = pack(flushed)
        begin, end = self._next, self._next - (-len(frame) // SLOT)
        if self._broken or self._unreadable or self._renamed or end > SLOTS:
            raise JournalFullError
        self._amid.update(range(begin, end))
        # Else what is left of an older frame would stand where the next one is looked for
        length = (end - begin + (end in self._amid)) * SLOT
        self._disk.write(NAME, begin * SLOT, frame.ljust(length, b"\0"))
        self._disk.sync(NAME)
        self._amid -= {begin, end}
        self._next = end

    def try_out(self) -> None:
        """Raise what a write raises: of the next slot as it is; where all are taken, of none."""
        at = self._next * SLOT
        self._disk.write(NAME, at, self._disk.read(NAME, at, SLOT))
        self._disk.sync(NAME)

    def all_sealed(self) -> None:
        """Every frame in the journal is sealed: its slots may be overwritten."""
        self._next = 0


def found(data: bytes, bad: list[int], sealed: int) -> Content:
    """Return what the bytes of a journal hold, where `sealed` is the highest number of a batch.

    `bad` is where the blocks begin that cannot be read.
    """
    there = content(data, sealed)
    known = {at for each in there.damaged for at in range(each.at, each.at + len(each.data), BLOCK)}
    blocks = [Damage(NAME, at, data[at : at + BLOCK], None) for at in bad if at not in known]
    told = _joined(sorted([*there.damaged, *blocks], key=lambda each: each.at))
    return there._replace(
        damaged=[replace(each, unreadable=bool(bad)) for each in told],
        frames=[(frame, replace(each, unreadable=bool(bad))) for frame, each in there.frames],
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
