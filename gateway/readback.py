"""Reads batches back from their segments, and knows those whose bytes are not to be had.

spoilt:      the bytes are there and damaged: it waits no more, its loss is recorded
unreadable:  the bytes cannot be read: tried again, and given up when the disk is there and yet they
             cannot be for a while
"""

from gateway.damage import Damage
from gateway.disk import PATIENCE, UNREADABLE, Disk
from gateway.held import Held, Shelf
from gateway.record import records, size_of
from gateway.segments import Segments
from gateway.survey import Gap


class Readback:
    """The batches of one spool as bytes. Used by one thread at a time."""

    def __init__(self, disk: Disk, segments: Segments, shelf: Shelf) -> None:
        self._disk, self._segments, self._shelf = disk, segments, shelf
        self._spoilt: dict[Held, Damage] = {}
        self._unread: dict[Held, tuple[float, OSError | None]] = {}  # until when it is tried

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, as they were sealed; None when they are not there any more.

        It was evicted meanwhile, somebody removed the file, or they cannot be read or are damaged.
        """
        if self._shelf.get(held.sequence) != held or held in self._spoilt:
            self._unread.pop(held, None)
            return None
        at, length = held.offset - size_of(b""), size_of(b"") + held.length
        try:
            data = self._disk.read(held.segment, at, length)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            until, _ = self._unread.get(held, (self._disk.now + PATIENCE, None))
            self._unread[held] = until, error
            return None
        if len(data) < length:
            self._unread[held] = self._disk.now, None
            return None
        self._unread.pop(held, None)
        record = next(records(data), None)
        if record and (record.epoch, record.sequence, record.at) == (held.epoch, held.sequence, 0):
            return record.payload
        hole = range(held.sequence, held.sequence + 1)
        gap = Gap(held.segment, at, data, missing=held.readings, hole=hole)
        self._spoilt[held] = Damage(gap.segment, at, data, gap.missing, gap.bridge)
        self._shelf.hide(held)
        return None

    def spoilt(self) -> list[tuple[Held, Damage]]:
        """Return the batches whose bytes were found damaged since recovery, and that are held."""
        held = self._shelf.get
        self._spoilt = {h: damage for h, damage in self._spoilt.items() if held(h.sequence) == h}
        return list(self._spoilt.items())

    def give_up_spoilt(self, held: Held) -> None:
        """Let go of such a batch, whose loss is recorded."""
        self._shelf.drop([held.sequence])

    @property
    def unread(self) -> dict[Held, OSError | None]:
        """The batches that cannot be read, and why, unless their bytes are not there."""
        return {held: why for held, (_, why) in self._unread.items()}

    def read_again(self) -> tuple[bool, list[Held]]:
        """Return whether some that could not be read can be now, and those given up."""
        readable = [self.payload(held) is not None for held in list(self._unread)]
        now = self._disk.now
        return any(readable), [held for held, (until, _) in self._unread.items() if until <= now]

    def give_up_unread(self, held: Held) -> None:
        """Let go of a batch that cannot be read, whose loss is recorded; its file is kept."""
        self._segments.keep(held.segment, held.offset)
        self._unread.pop(held, None)
        self._shelf.acknowledge(held)
