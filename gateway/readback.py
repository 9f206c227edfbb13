"""Reads batches back from their segments, and knows those whose bytes are not to be had.

spoilt:      the bytes are there and damaged: it waits no more, its loss is recorded
unreadable:  the bytes cannot be read: tried again, and given up when the disk is there
"""

from gateway.damage import Damage
from gateway.disk import UNREADABLE, Disk
from gateway.held import Held, Shelf
from gateway.record import records, size_of
from gateway.segments import Segments
from gateway.survey import Gap


class Readback:
    """The batches of one spool as bytes. Used by one thread at a time."""

    def __init__(self, disk: Disk, segments: Segments, shelf: Shelf) -> None:
        self._disk, self._segments, self._shelf = disk, segments, shelf
        self._spoilt: dict[Held, Damage] = {}
        self._unread: dict[int, Held] = {}

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, as they were sealed; None when they are not there any more.

        It was evicted meanwhile, somebody removed the file, or they cannot be read or are damaged.
        """
        if self._shelf.get(held.sequence) != held or held in self._spoilt:
            return None
        at, length = held.offset - size_of(b""), size_of(b"") + held.length
        data = self._read(held.segment, at, length)
        if len(data) < length:
            self._unread[held.sequence] = held
            return None
        record = next(records(data), None)
        if record and (record.epoch, record.sequence, record.at) == (held.epoch, held.sequence, 0):
            return record.payload
        hole = range(held.sequence, held.sequence + 1)
        gap = Gap(held.segment, at, data, missing=held.readings, hole=hole)
        self._spoilt[held] = Damage(gap.segment, at, data, gap.missing, gap.bridge)
        self._shelf.hide(held)
        return None

    def _read(self, name: str, at: int, length: int) -> bytes:
        """Return the bytes, none where they cannot be read."""
        try:
            return self._disk.read(name, at, length)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return b""

    def spoilt(self) -> list[tuple[Held, Damage]]:
        """Return the batches whose bytes were found damaged since recovery, and that are held."""
        held = self._shelf.get
        self._spoilt = {h: damage for h, damage in self._spoilt.items() if held(h.sequence) == h}
        return list(self._spoilt.items())

    def give_up_spoilt(self, held: Held) -> None:
        """Let go of such a batch, whose loss is recorded."""
        self._shelf.drop([held.sequence])

    @property
    def any_unread(self) -> bool:
        """Whether there was a batch that could not be read."""
        return bool(self._unread)

    def read_again(self) -> tuple[bool, list[Held]]:
        """Return whether some that could not be read can be now, and those that cannot."""
        tried, self._unread = self._unread, {}
        readable = [self.payload(held) is not None for held in tried.values()]
        return any(readable), list(self._unread.values())

    def give_up_unread(self, held: Held) -> None:
        """Let go of a batch that cannot be read, whose loss is recorded; its file is kept."""
        self._segments.keep(held.segment, held.offset)
        self._unread.pop(held.sequence, None)
        self._shelf.acknowledge(held)
