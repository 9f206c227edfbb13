"""Sealed batches not yet acknowledged, on disk: segments that only grow, and go as a whole.

A segment goes once all its batches are acknowledged, but never the newest: it carries the sequence.
10 million readings are 20 MiB and are found again in 0.05 s with every CRC checked; as SQLite rows
they are 260 MiB and take 1.4 s, and on a full disk SQLite's WAL could not even delete.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import msgpack

from gateway.acked import LOSSES, Acked, Told, join
from gateway.cause import FULL
from gateway.damage import Damage
from gateway.disk import BLOCK, Disk
from gateway.flushed import Flushed
from gateway.held import Held, Shelf
from gateway.missing import Missing
from gateway.readback import Readback
from gateway.record import NOWHERE, Kind, Place, Record, pack, records, size_of
from gateway.recorded import Recorded
from gateway.segments import (
    LARGEST_FILE,
    SEGMENT_BYTES,
    SMALLEST,
    Segment,
    Segments,
    number_of,
)
from gateway.survey import Survey, is_bad, loss_of

ACKED_EVERY = 1.0
"""Seconds between two writes of what is acknowledged."""
IN_VAIN = 4
"""So many segments in a row are evicted whose files stay: half of the smallest buffer."""


class Spool:
    """The spool of one directory.

    `recover`, `append`, `evict`, `tidy` and `payload` do disk work, on one thread at a time, and
    may raise OSError; `waiting` and `acknowledge` only touch memory and may run beside them.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._acked = Acked(disk)
        self._shelf = Shelf(self._acked)
        self._segments = Segments(disk)
        self._survey = Survey()
        self.recorded = Recorded()
        """The losses on disk."""
        self._missing = Missing(self._survey, self._shelf, self._acked, self.recorded)
        self.readback = Readback(disk, self._segments, self._shelf)
        self._histories: list[int] = []
        """What tells this directory's segments from another's, the newest one's last: an epoch."""
        self._went: dict[tuple[int, str], None] = {}
        """Which history tells of what is lost, and its name; in order: two may tell of one name."""
        self._lasts: dict[int, int] = {}
        """The highest sequence that each history tells of."""
        self.last = 0
        """The highest sequence ever given to a batch."""
        self.sealed = 0
        """The highest one found that is ours: another box's segment may have higher ones."""
        self.previous: tuple[int, int] | None = None
        """Epoch and sequence of the newest batch."""
        self.dropped = 0
        """Readings dropped since the buffer was created."""
        self.appended = 0
        """Bytes of the batches that were appended."""
        self._removed_below = 0  # what held lower sequences comes back with no power cut
        self._acked_at = -math.inf
        self._saved = 0, 0  # so many sealed and dropped readings `acked` knows of, on the device
        self.recovered = False
        self._in_vain = 0

    # What there is at a start

    def recover(self) -> None:
        """Read everything there is; whatever that is, a usable spool comes of it."""
        for name in self._segments.find(self._disk.names()):
            if self._disk.broken_for_good(name):
                self._missing.may_return = True
            else:
                self._recover_segment(name)
        self._recover_acked()
        self._let_go_of_evicted()
        self._segments.total = self._missing.end()
        self._in_vain = min(len(self._done), IN_VAIN - 1)  # they go at once, but where none can
        self.recovered = True

    def _recover_segment(self, name: str) -> None:
        self._disk.settle(name)
        data, bad = self._disk.salvage(name, LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:  # to be told of and kept as what cannot be read is
            data, bad = data[:LARGEST_FILE], [*bad, LARGEST_FILE - BLOCK]
        if not data and not self._disk.exists(name):  # the daemon has removed it meanwhile
            return
        segment = Segment(name, len(data), bad=bad)
        self._segments.add(segment)
        end = 0
        for record in self._survey.read(name, data, bad, number_of(name)):
            end = record.at + size_of(record.payload)
            self._take(segment, record)
        segment.place = self._survey.place or NOWHERE
        if not any(data[end:]) and not is_bad(bad, end, len(data) - end):
            with suppress(OSError):
                self._disk.cut(name, end)
                segment.size = end
        self._disk.close(name)

    def _recover_acked(self) -> None:
        """Read it; where no segment tells whose it is, it is ours."""
        ours = self._histories
        self._acked.recover(lambda history: history in ours or not ours)
        if self._acked.found:
            self._histories.append(self._acked.found.history)
            self.recorded.add(self._acked.found.losses)
            self.dropped = max(self.dropped, self._acked.found.dropped)
        acked = [last for _, last, _ in self._acked.ranges]
        ours = [last for whose, last in self._lasts.items() if whose in {0, self.history}]
        self.last, self.sealed = max([self.last, *acked]), max([0, *ours, *acked])
        for first, last, _ in self._acked.ranges:
            self._let_go_of(self._shelf.waiting(first - 1, last + 1), self.history)

    def _let_go_of_evicted(self) -> None:
        """Let go of what power cuts bring back, though only a head still tells that it went."""
        for history, name in self._went:
            self._let_go_of(self._shelf.of(name), history)

    def _let_go_of(self, told: Iterable[Held], history: int) -> None:
        """Let go of what a history tells of, as acknowledged or lost, by its number or its name.

        In another history's segment it has that by chance: it goes as well, for nobody knows which
        of the two was meant, but is told of as damage is, and the file is kept.
        """
        for held in list(told):
            whose = self._segments.history(held.segment)
            if history and whose not in {0, history}:
                at = held.offset - size_of(b"")
                data = self._disk.read(held.segment, at, size_of(b"") + held.length)
                self._missing.add_foreign(held.segment, at, data)
                self._segments.keep(held.segment, at)
            self._shelf.drop([held.sequence])

    def _take(self, segment: Segment, record: Record) -> None:
        segment.first = segment.first or record.sequence
        last = record.sequence - (record.kind == Kind.HEAD)
        self.last = max(self.last, last)
        if record.kind == Kind.BATCH:
            self._hold(segment, record)
        elif record.kind == Kind.HEAD:
            dropped, previous, history, *lost = msgpack.unpackb(record.payload)
            self._histories.append(history)
            segment.history = history
            self._went |= dict.fromkeys((history, name) for name in lost)
            self.recorded.add(lost)
            self.dropped = max(self.dropped, dropped)
            self._saw(*previous)
        elif record.kind == Kind.GAP and record.place.first:  # how many were lost it does not tell
            self.recorded.add([loss_of(record.behind.total, record.readings, 0)])
        elif record.kind == Kind.LOSS:
            first, _, *of = msgpack.unpackb(record.payload)
            if not self.recorded.knows(of):  # else written again after a failed sync
                self.dropped += record.readings
            self.recorded.add(of)
            self.recorded.ranges.add((first, record.sequence, record.readings))
            self._went |= dict.fromkeys((segment.history, name) for name in of)
            self._let_go_of(self._shelf.waiting(first - 1, record.sequence + 1), segment.history)
        self._lasts[segment.history] = max(self._lasts.get(segment.history, 0), last)

    def _saw(self, epoch: int, sequence: int) -> None:
        if sequence and (self.previous is None or sequence >= self.previous[1]):
            self.previous = epoch, sequence

    def _hold(self, segment: Segment, record: Record) -> None:
        self._saw(record.epoch, record.sequence)
        self.last = max(self.last, record.sequence)
        if there := self._shelf.get(record.sequence):
            if there.epoch != record.epoch:  # another box's: kept, and told of as damage is
                self._missing.add_foreign(segment.name, record.at, pack(record))
                segment.bad.append(record.at)
                return
            self._shelf.drop([record.sequence])  # written again after a failed sync: this is synced
        offset = record.at + size_of(b"")
        held = Held(
            *(record.epoch, record.sequence, record.readings, record.first_ms),
            *(segment.name, offset, len(record.payload)),
        )
        self._shelf.add(held)

    @property
    def acked_unreadable(self) -> bool:
        """Whether what was acknowledged could not all be read: the disk fails there."""
        return self._acked.unreadable

    def lie_aside(self, batches: Iterable[tuple[int, int]]) -> None:
        """Know the sequences of batches that were set aside, and how many readings each has."""
        self._missing.lie_aside(batches)

    def damage(self) -> list[Damage]:
        """Return what recovery could not read, with the readings that are held nowhere else."""
        return self._missing.damage()

    def counted(self) -> None:
        """Take what is lost for acknowledged, or each start that meets the gap counts it."""
        self._missing.counted(self.last)

    def saved(self, frames: Iterable[Flushed]) -> None:
        """Have these of the journal take the place of what was sealed of them, and is missing."""
        self._segments.total -= self._missing.saved(frames)

    @property
    def history(self) -> int:
        """What tells this directory from another one; 0: nothing here does."""
        return self._histories[-1] if self._histories else 0

    def go_by(self, history: int) -> None:
        """Go on with the history that the journal tells of, where nothing else here tells one.

        Were another one begun, what is flushed already would be taken for another box's.
        """
        if not self.history:
            self._histories.append(history)

    def sealed_names(self) -> set[tuple[int, int]]:
        """Return the names of all batches in the segments, though acknowledged: it takes long."""
        files = (self._disk.salvage(name, LARGEST_FILE)[0] for name in self._segments.names)
        batches = (r for data in files for r in records(data) if r.kind == Kind.BATCH)
        return {(batch.sequence, batch.epoch) for batch in batches}

    def goes_on(self, other: "Spool") -> bool:
        """Whether it holds what `other` does, or did: no other history, nor an older image."""
        return self.history == other.history and self._segments.total >= other._segments.total

    def follow(self, other: "Spool") -> dict[tuple[int, int], range]:
        """Go on where `other` ended, whose files are gone.

        Return which readings of which batches, by name, that costs; where it is the same history
        still, what is missing is counted as damage is.
        """
        counted = self._missing.holes if self.history == other.history else set()
        self.last = max(self.last, other.last)
        if other.previous:
            self._saw(*other.previous)
        self.appended += other.appended
        lacking = self._shelf.lacks(other._shelf)
        return {name: lost for name, lost in lacking.items() if name[0] not in counted}

    # Batches in

    def begin(self, epoch: int) -> None:
        """Begin the first segment of a run; it carries the sequence from now on."""
        self._acked.begin()
        if told := self._acked.found:  # no name is given again, though the batch is gone
            self.last = max(self.last, told.last)
        self._begin(epoch, self.last + 1)

    def _begin(self, epoch: int, sequence: int) -> None:
        history = self.history or epoch
        previous = self.previous or (0, 0)
        lost = self.recorded.still_in(self._segments, self._begins)
        head = msgpack.packb((self.dropped, previous, history, *lost))
        self._segments.begin(Record(Kind.HEAD, epoch, sequence, 0, 0, head))
        self._removed_below = self._segments.oldest.first
        self._histories.append(history)

    def _begin_next(self) -> None:
        """Begin one though there is no batch for it yet."""
        self._begin(self.previous[0] if self.previous else 0, self.last + 1)

    def append(
        self, epoch: int, sequence: int, readings: int, first_ms: int, payload: bytes
    ) -> None:
        """Return when the batch is on the device. If that fails, all of it is to be done again.

        After a failed sync Linux may have marked the pages clean, and a second sync would say yes
        to bytes that are lost: the next attempt writes them anew, into a new segment.
        """
        if not self._segments.has_room(payload):
            self._begin(epoch, sequence)
        record = Record(Kind.BATCH, epoch, sequence, readings, first_ms, payload)
        self._hold(self._segments.newest, self._segments.write(record))
        self.appended += size_of(payload)

    # Batches out

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield what is held with after < sequence < before, oldest first."""
        return self._shelf.waiting(after, before)

    def waits(self, epoch: int, sequence: int) -> bool:
        """Whether that batch is held."""
        here = self._shelf.waiting(sequence - 1, sequence + 1)
        return epoch in [held.epoch for held in here]

    def held(self) -> tuple[int, int]:
        """Return how many batches wait, and how many readings are in them."""
        return self._shelf.counts()

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, as they were sealed; None when they are not to be had."""
        return self.readback.payload(held)

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch: it was delivered, or set aside."""
        self._shelf.acknowledge(held)

    def write_acked(self, now: float) -> None:
        """Write down what was acknowledged; at most once a second, for each costs a block.

        What was sealed or dropped is synced, at once: the newest segment may be damaged, which
        holds the newest batches, and perhaps the only head.
        """
        if (self._segments.total, self.dropped) != self._saved:
            self._save_acked()
        if self._acked_at <= now < self._acked_at + ACKED_EVERY:
            return
        self._write_acked()
        self._acked_at = now

    def _write_acked(self, dropped: int = 0, lost: Sequence[Held] = ()) -> None:
        """Write down what is acknowledged, and these as if they were, for so many are dropped."""
        with self._shelf.lock:
            ranges = list(self._acked.ranges)
        for held in lost:
            join(ranges, held.sequence, held.readings)
        oldest, dropped = self._begins, self.dropped + dropped
        losses = self.recorded.ends(oldest)[-LOSSES:]
        told = Told(
            *(self.history, ranges, dropped, self._segments.total, self.last, oldest, losses)
        )
        if self._missing.uncounted and (found := self._acked.found):  # that tells of them
            sealed, last = max(told.sealed, found.sealed), max(told.last, found.last)
            told = told._replace(sealed=sealed, last=last)
        self._acked.write(told)

    def sync_acked(self) -> None:
        """Return when what was written down is on the device."""
        self._acked.sync()

    @property
    def _begins(self) -> Place:
        """Where the oldest segment begins, or did before what is missing was."""
        begins, found = self._segments.begins, self._acked.found
        kept = self._missing.uncounted or not begins.first
        return found.oldest if found and kept else begins

    def _save_acked(self) -> None:
        """Have it on the device, where that can be."""
        with suppress(OSError):
            self._write_acked()
            self._acked.sync()
            self._saved = self._segments.total, self.dropped

    def bound_segments(self, size: int) -> None:
        """Fill segments up to so many bytes at most, within what is sensible."""
        self._segments.bound = max(SMALLEST, min(size, SEGMENT_BYTES))

    def leave_segment(self) -> None:
        """Begin another, where something waits in the newest: that can go as a whole, then."""
        if self._shelf.any_of(self._segments.newest.name):
            self._begin_next()

    def tidy(self) -> bool:
        """Remove the segments that are done with, all but the newest; whether any went."""
        done = self._done
        # Or one that is missing might be one that was delivered; what stays was here before
        if any(s.name not in self._segments.stuck for s in done):
            self._save_acked()
        if done and not self._segments.usable:  # the newest may be one that only recovery has seen
            self._disk.sync_directory()
        gone = self._segments.remove(done)
        if gone:
            self._in_vain = 0
        if not self._missing.uncounted:
            with self._shelf.lock:
                self._acked.forget_below(self._removed_below)
        return gone

    @property
    def _done(self) -> list[Segment]:
        """Those that nothing waits in, all but the newest."""
        return [s for s in self._segments.older if not self._shelf.any_of(s.name)]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._segments.size

    @property
    def stuck(self) -> int:
        """How many of them are done with, and cannot be removed."""
        return self._segments.stuck_bytes

    @property
    def faults(self) -> list[str]:
        """What keeps files from being removed, and what mends it."""
        return self._segments.faults

    @property
    def end(self) -> tuple[str, int]:
        """The newest segment, and how many bytes it has."""
        return self._segments.end

    # What is given up

    @property
    def makes_room(self) -> bool:
        """Whether to evict something makes room, as far as is known.

        Where one file alone cannot be removed, the next one goes; where none can, as in a directory
        that is append-only, all that waits would go for nothing.
        """
        return self._in_vain < IN_VAIN

    def record_loss(self, first: int, last: int, readings: int, reason: str, *of: str) -> None:
        """Record, for ever, that readings were lost, and why; `of` names what they were in.

        Each has a name, so that a copy of its record, or one written again, counts for nothing.
        """
        names = [*filter(None, of)] or [f"loss-{self.dropped}"]
        if not self._segments.usable:
            self._begin_next()
        payload = msgpack.packb((first, reason, *names))
        self._segments.write(Record(Kind.LOSS, 0, last, readings, 0, payload))
        self.dropped += readings
        self.recorded.add(names)
        self._save_acked()  # the sum stands in two places: one record may be damaged

    def ends(self) -> list[Held]:
        """Return the last batch that waits in each segment but the newest, oldest first."""
        return [held[-1] for s in self._segments.older if (held := self._shelf.of(s.name))]

    def evict(self, reason: str, until: str | None = None) -> int:
        """Drop the oldest segment that still holds something; return how many readings that cost.

        The loss is recorded and synced before the file goes: where that fails, `tidy` tries again.
        A segment after `until` stays.
        """
        victim, lost = self._oldest()
        if not victim or (until is not None and number_of(victim) > number_of(until)):
            return 0
        readings = sum(held.readings for held in lost)
        self.record_loss(lost[0].sequence, lost[-1].sequence, readings, reason, victim)
        if self._segments.stuck:  # behind what stays it is missed, once its record goes as well
            for held in lost:
                self.acknowledge(held)
        self._shelf.drop(held.sequence for held in lost)
        self._let_go()
        return readings

    def _let_go(self) -> None:
        """Have the files go of what was evicted: that is counted, whether they do or not."""
        self._in_vain += 1
        with suppress(OSError):
            self.tidy()

    def evict_unrecorded(self) -> int:
        """Do the same on a disk too full for the record, which `acked` stands for.

        Where that cannot be written either, the next segment's head carries the sum.
        """
        victim, lost = self._oldest()
        if not victim:
            return 0
        readings = sum(held.readings for held in lost)
        try:
            self._write_acked(readings, lost)
            self._acked.sync()
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.dropped += readings
        self.recorded.add([victim])
        for held in lost:
            self.acknowledge(held)
        with suppress(OSError):
            self._disk.remove(victim)
        self._segments.usable = False
        self._let_go()
        return readings

    def drop_unrecorded(self, readings: int) -> None:
        """Count what never was in a segment by `acked` and the next head, as there is no room."""
        self._write_acked(readings)
        self._acked.sync()
        self.dropped += readings
        self._segments.usable = False

    def _oldest(self) -> tuple[str, list[Held]]:
        """Return the oldest segment that is to be emptied, and what is held in it."""
        held = ((s.name, self._shelf.of(s.name)) for s in self._segments.older)
        return next(((name, lost) for name, lost in held if lost), ("", []))
