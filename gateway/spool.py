"""Sealed batches not yet acknowledged, on disk: segments that only grow, and go as a whole.

    NNNNNNNN.seg:  head | record | record | …      about 1 MiB each

A segment goes once all its batches are acknowledged, but never the newest: it carries the sequence.
10 million readings are 20 MiB and are found again in 0.05 s with every CRC checked; as SQLite rows
they are 260 MiB and take 1.4 s, and on a full disk SQLite's WAL could not even delete.
"""

import bisect
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock

import msgpack

from gateway.acked import LOSSES, Acked, Range, Told, join, within
from gateway.disk import DAMAGED, FOREIGN, FULL, UNREADABLE, Damage, Disk
from gateway.record import NOWHERE, Kind, Place, Record, claims, pack, records, size_of
from gateway.survey import Gap, Survey, is_bad, sealed_span

SEGMENT_BYTES = 1 << 20
ACKED_EVERY = 1.0
"""Seconds between two writes of what is acknowledged."""

_ENDING = ".seg"
_NUMBERED = re.compile(r"([0-9]{8,12})\.seg")


def is_segment(name: str) -> bool:
    """Whether this is the name of a segment."""
    return _NUMBERED.fullmatch(name) is not None


def _number(name: str) -> int:
    return int(name.removesuffix(_ENDING))


@dataclass(frozen=True, slots=True)
class Held:
    """A sealed batch that is not yet acknowledged, and where its payload lies."""

    epoch: int
    sequence: int
    readings: int
    first_ms: int
    """Unix ms of its earliest reading."""
    segment: str
    offset: int
    length: int

    @property
    def name(self) -> tuple[int, int]:
        """Sequence and epoch: what tells it from all others, also from those of another disk."""
        return self.sequence, self.epoch


@dataclass(slots=True)
class _Segment:
    name: str
    size: int = 0
    first: int = 0
    """Its lowest sequence; 0 while none is known."""
    place: Place = NOWHERE
    """That of the next record."""
    waiting: set[int] = field(default_factory=set)
    bad: list[int] = field(default_factory=list)
    """Where the blocks begin that cannot be read."""


class Spool:
    """The spool of one directory.

    `recover`, `append`, `evict`, `tidy` and `payload` do disk work, on one thread at a time, and
    may raise OSError; `waiting` and `acknowledge` only touch memory and may run beside them.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = Lock()
        self._segments: dict[str, _Segment] = {}
        self._held: dict[int, Held] = {}
        self._readings = 0
        self._order: list[int] = []
        self._acked = Acked(disk)
        self._histories: list[int] = []
        """What tells this directory's segments from another's, the newest one's last: an epoch."""
        self._number = 0
        self._usable = False
        self.last = 0
        """The highest sequence ever given to a batch."""
        self.previous: tuple[int, int] | None = None
        """Epoch and sequence of the newest batch."""
        self.dropped = 0
        """Readings dropped since the buffer was created."""
        self.appended = 0
        """Bytes of the batches that were appended."""
        self.lost: set[str] = set()
        """What the losses on disk were of, as far as that has a name."""
        self._survey = Survey()
        self._gone: list[Range] = []
        """Those whose loss is recorded, with the segment that they were in."""
        self._total = 0
        """Readings that were sealed so far, as the records tell."""
        self._spoilt: dict[int, Damage] = {}
        self._unread: dict[int, Held] = {}
        self._acked_at = -math.inf
        self._aside: list[Range] = []
        self._since = 0  # of those below nothing was known at recovery
        self._saved = 0  # so many sealed readings `acked` knows of, on the device
        self.recovered = False

    def recover(self) -> None:
        """Read everything there is; whatever that is, a usable spool comes of it."""
        names = self._disk.names()
        found = [int(number[1]) for number in map(_NUMBERED.match, names) if number]
        self._number = max(found, default=0)  # what was set aside may be put back
        for name in sorted(filter(is_segment, names), key=_number):
            self._recover_segment(name)
        self._recover_acked(other=any(name.endswith(FOREIGN) for name in names))
        self._end_survey()
        self._order = sorted(self._held)
        self.recovered = True

    def _end_survey(self) -> None:
        self._total = self._survey.place.total if self._survey.place else 0
        if told := self._acked.found:
            self._survey.end(told.oldest, told.sealed, told.last)
            self._total = max(self._total, told.sealed)
        else:
            self._survey.end_untold()
            self._acked.since = self.last + 1
        self._since = self._acked.since

    def _recover_acked(self, other: bool) -> None:
        """Read it; where segments of another version were set aside it may be theirs."""
        ours = self._histories
        self._acked.recover(lambda history: history in ours if ours else not other)
        if self._acked.found:
            self._histories.append(self._acked.found.history)
            self.lost.update(self._acked.found.losses)
            self.dropped = max(self.dropped, self._acked.found.dropped)
        self.last = max([self.last, *(last for _, last, _ in self._acked.ranges)])
        for sequence in [s for s in self._held if s in self._acked]:
            self._forget(sequence)

    def _recover_segment(self, name: str) -> None:
        self._disk.settle(name)
        data, bad = self._disk.salvage(name)
        if not data and not self._disk.exists(name):  # the daemon has removed it meanwhile
            return
        segment = self._segments[name] = _Segment(name, len(data), bad=bad)
        end = 0
        for record in self._survey.read(name, data, bad, _number(name)):
            end = record.at + size_of(record.payload)
            self._take(segment, record)
        segment.place = self._survey.place or NOWHERE
        if not any(data[end:]) and not is_bad(bad, end, len(data) - end):
            with suppress(OSError):
                self._disk.cut(name, end)
                segment.size = end
        self._disk.close(name)

    def damage(self, aside: Iterable[Range] = ()) -> list[Damage]:
        """Return what recovery could not read, with the readings that are held nowhere else.

        `aside` are the batches that were set aside, of which `acked` may not know yet.
        """
        if self._survey.gaps:
            self._aside = [one for one in aside if one[0] not in self._acked]
        found = map(self._damage, self._survey.gaps)
        return [*self._survey.mended, *(each for each in found if each.data or each.lost)]

    def _damage(self, gap: Gap) -> Damage:
        told = list(claims(gap.data))
        lost = sum(map(self._lost, told)) if told else None
        unsure = False
        if gap.missing is not None:
            lost, unsure = self._missing_in(gap, told)
        more = gap.bridge, gap.unreadable, unsure, gap.loss
        return Damage(gap.segment, gap.at, gap.data, lost, *more)

    def _missing_in(self, gap: Gap, told: list[Record]) -> tuple[int, bool]:
        """Return how many of the missing readings are lost, and whether it may be fewer.

        It may where some of the batches are delivered, and not even their heads are left.
        """
        missing = (gap.missing or 0) - self._counted_in(gap.span)
        if not missing:
            return 0, False
        held = sum(self._held[s].readings for s in gap.hole if s in self._held)
        settled, others = within((*self._acked.ranges, *self._gone, *self._aside), gap.hole)
        unsure = others or gap.hole.start < self._since
        if unsure and all(self._is_settled(s, gap.whole) for s in gap.hole):
            return sum(map(self._lost, told)), False
        return max(missing - held - settled, 0), unsure

    def _counted_in(self, span: range) -> int:
        """Return how many of these readings losses stand for that are recorded."""
        counted, end = 0, span.start
        for loss in sorted(map(sealed_span, self.lost), key=lambda one: one.start):
            begin, stop = max(loss.start, end), min(loss.stop, span.stop)
            if begin < stop:
                counted, end = counted + stop - begin, stop
        return counted

    def _is_settled(self, sequence: int, whole: bool) -> bool:
        """Whether a batch is here, delivered, or counted; `whole` segments go for that alone."""
        known = sequence in self._held or sequence in self._acked
        gone = any(first <= sequence <= last for first, last, _ in (*self._gone, *self._aside))
        return known or gone or (whole and sequence < self._since)

    def counted(self) -> None:
        """Take what is lost for acknowledged, or each start that meets the gap counts it."""
        if not self._survey.gaps:
            return
        with self._lock:
            for gap in self._survey.gaps:
                self._settle(gap)
        self._survey.gaps.clear()
        self._save_acked()

    def _settle(self, gap: Gap) -> None:
        told = {record.sequence: record.readings for record in claims(gap.data)}
        if gap.missing:  # the name of the loss stands for the readings
            told = dict.fromkeys(gap.hole, 0)
        for sequence, readings in told.items():
            if 0 < sequence <= self.last and sequence not in self._held:
                self._acked.add(sequence, readings)

    def _lost(self, record: Record) -> int:
        held = self._held.get(record.sequence)
        if held and held.epoch == record.epoch:  # from the journal, or written a second time
            return max(record.readings - held.readings, 0)
        elsewhere = record.sequence in {sequence for sequence, *_ in self._aside}
        return 0 if elsewhere or record.sequence in self._acked else record.readings

    def _take(self, segment: _Segment, record: Record) -> None:
        segment.first = segment.first or record.sequence
        self.last = max(self.last, record.sequence - (record.kind == Kind.HEAD))
        if record.kind == Kind.BATCH:
            self._hold(segment, record)
        elif record.kind == Kind.HEAD:
            dropped, previous, history, *lost = msgpack.unpackb(record.payload)
            self._histories.append(history)
            self.lost.update(lost)
            self.dropped = max(self.dropped, dropped)
            self._saw(*previous)
        elif record.kind == Kind.LOSS:
            first, _, *of = msgpack.unpackb(record.payload)
            self._gone.append((first, record.sequence, record.readings))
            named = set(of)
            if not named & self.lost:  # else written again after a failed sync
                self.dropped += record.readings
            self.lost |= named
            for sequence in [s for s in self._held if first <= s <= record.sequence]:
                self._forget(sequence)

    def _saw(self, epoch: int, sequence: int) -> None:
        if sequence and (self.previous is None or sequence >= self.previous[1]):
            self.previous = epoch, sequence

    def _hold(self, segment: _Segment, record: Record) -> None:
        self._saw(record.epoch, record.sequence)
        self.last = max(self.last, record.sequence)
        if there := self._held.get(record.sequence):
            if there.epoch != record.epoch:  # another box's: kept, and told of as damage is
                self._survey.gaps.append(Gap(segment.name, record.at, pack(record), True))
                segment.bad.append(record.at)
            return  # else written again after a failed sync
        offset = record.at + size_of(b"")
        self._held[record.sequence] = Held(
            *(record.epoch, record.sequence, record.readings, record.first_ms),
            *(segment.name, offset, len(record.payload)),
        )
        self._readings += record.readings
        segment.waiting.add(record.sequence)

    def follow(self, other: "Spool") -> int:
        """Go on where `other` ended, whose files are gone; return how many readings that cost."""
        self.last = max(self.last, other.last)
        if other.previous:
            self._saw(*other.previous)
        self.appended += other.appended
        with self._lock, other._lock:
            here = {held.name: held.readings for held in self._held.values()}
            gone = [max(h.readings - here.get(h.name, 0), 0) for h in other._held.values()]
        return sum(gone)

    def append(
        self, epoch: int, sequence: int, readings: int, first_ms: int, payload: bytes
    ) -> None:
        """Return when the batch is on the device. If that fails, all of it is to be done again.

        After a failed sync Linux may have marked the pages clean, and a second sync would say yes
        to bytes that are lost: the next attempt writes them anew, into a new segment.
        """
        if not self._usable or self._newest.size + size_of(payload) > SEGMENT_BYTES:
            self._begin(epoch, sequence)
        self._write(Record(Kind.BATCH, epoch, sequence, readings, first_ms, payload))
        self.appended += size_of(payload)

    def begin(self, epoch: int) -> None:
        """Begin the first segment of a run; it carries the sequence from now on."""
        self._acked.begin()
        self._begin(epoch, self.last + 1)

    def _begin(self, epoch: int, sequence: int) -> None:
        self._number += 1
        name = f"{self._number:08}{_ENDING}"
        history = self._histories[-1] if self._histories else epoch
        previous = self.previous or (0, 0)
        head = msgpack.packb((self.dropped, previous, history, *self._lost_here()))
        place = Place(self._total, 0, sequence)
        data = pack(Record(Kind.HEAD, epoch, sequence, 0, 0, head, place))
        try:
            self._disk.write(name, 0, data)
            self._disk.sync(name)
            self._disk.sync_directory()
        except OSError:
            with suppress(OSError):  # each attempt would leave one more
                self._disk.remove(name)
            raise
        if self._segments:
            self._disk.close(self._newest.name)
        with self._lock:
            self._segments[name] = _Segment(name, len(data), sequence, place)
        self._usable = True
        self._histories.append(history)

    @property
    def _newest(self) -> _Segment:
        return next(reversed(self._segments.values()))

    def _lost_here(self) -> list[str]:
        """Return what the losses were of that may still lie in a segment, or between two."""
        return self._ends + sorted(of for of in self.lost if of.partition("-")[0] in self._segments)

    @property
    def _ends(self) -> list[str]:
        """The names of losses that end behind where the oldest segment begins, in their order."""
        ends = [(end, of) for of in self.lost if (end := sealed_span(of).stop)]
        return [of for end, of in sorted(ends) if end > self._begins.total]

    @property
    def _begins(self) -> Place:
        """Where the oldest segment does, as far as that is known."""
        return next((s.place.begin for s in self._segments.values() if s.place.first), NOWHERE)

    def _write(self, record: Record) -> None:
        segment = self._newest
        data = pack(record := replace(record, place=segment.place))
        self._usable = False
        try:
            self._disk.write(segment.name, segment.size, data)
        except OSError:
            self._disk.cut(segment.name, segment.size)  # half of it takes room on a full disk
            self._usable = True  # nothing of it was to be synced
            raise
        try:
            self._disk.sync(segment.name)
        except OSError:
            with suppress(OSError):
                self._disk.cut(segment.name, segment.size)
            raise
        self._usable = True
        with self._lock:
            if record.kind == Kind.BATCH:
                self._hold(segment, replace(record, at=segment.size))
                bisect.insort(self._order, record.sequence)  # one of before a late mount may be low
            segment.size += len(data)
        segment.place = record.behind
        self._total = segment.place.total

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

        It was evicted meanwhile, somebody removed the file, or they cannot be read or are damaged.
        """
        if self._held.get(held.sequence) != held or held.sequence in self._spoilt:
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
        self._spoil(held.sequence, Damage(gap.segment, at, data, gap.missing, gap.bridge))
        return None

    def _read(self, name: str, at: int, length: int) -> bytes:
        """Return the bytes, none where they cannot be read."""
        try:
            return self._disk.read(name, at, length)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return b""

    def _spoil(self, sequence: int, damage: Damage) -> None:
        """Have it wait no more; it keeps its segment until its loss is recorded."""
        with self._lock:
            if sequence in self._held:
                self._spoilt[sequence] = damage
                self._order.remove(sequence)

    def spoilt(self) -> list[tuple[int, Damage]]:
        """Return the batches whose bytes were found damaged since recovery."""
        return list(self._spoilt.items())

    def give_up_spoilt(self, sequence: int) -> None:
        """Let go of such a batch, whose loss is recorded."""
        with self._lock:
            if sequence in self._held:
                self._forget(sequence)

    @property
    def any_unread(self) -> bool:
        """Whether there was a batch that could not be read."""
        return bool(self._unread)

    def read_again(self) -> tuple[bool, list[Held]]:
        """Return whether some that could not be read can be now, and those that cannot."""
        tried, self._unread = self._unread, {}
        readable = [self.payload(held) is not None for held in tried.values()]
        return any(readable), list(self._unread.values())

    def give_up(self, held: Held) -> None:
        """Let go of a batch that cannot be read, whose loss is recorded; its file is kept."""
        if held.segment in self._segments:
            self._segments[held.segment].bad.append(held.offset)
        self._unread.pop(held.sequence, None)
        self.acknowledge(held)

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch: it was delivered, or set aside.

        Another epoch's of that sequence stays: it came with a disk that was put in place of ours.
        """
        with self._lock:
            here = self._held.get(held.sequence)
            if here and here.epoch == held.epoch:
                self._acked.add(held.sequence, held.readings)
                self._forget(held.sequence)

    def _forget(self, sequence: int) -> None:
        held = self._held.pop(sequence)
        self._readings -= held.readings
        self._spoilt.pop(sequence, None)
        at = bisect.bisect_left(self._order, sequence)
        if at < len(self._order) and self._order[at] == sequence:
            del self._order[at]
        if held.segment in self._segments:
            self._segments[held.segment].waiting.discard(sequence)

    def ends(self) -> list[Held]:
        """Return the last batch that waits in each segment but the newest, oldest first."""
        with self._lock:
            return [self._held[max(s.waiting)] for s in self._older if s.waiting]

    def evict(self, reason: str, until: str | None = None) -> int:
        """Drop the oldest segment that still holds something; return how many readings that cost.

        The loss is recorded and synced before the file goes. A segment after `until` stays.
        """
        victim = self._oldest()
        if victim is None or (until is not None and _number(victim.name) > _number(until)):
            return 0
        lost = self._lost_with(victim)
        if not lost:  # all acknowledged a moment ago
            return 0
        readings = sum(held.readings for held in lost)
        self.record_loss(lost[0].sequence, lost[-1].sequence, readings, reason, victim.name)
        self._let_go(lost)
        self.tidy()
        return readings

    def evict_unrecorded(self) -> int:
        """Do the same on a disk too full for the record, which `acked` stands for.

        Where that cannot be written either, the next segment's head carries the sum.
        """
        victim = self._oldest()
        if victim is None:
            return 0
        lost = self._lost_with(victim)
        readings = sum(held.readings for held in lost)
        try:
            self._write_acked(readings, lost)
            self._acked.sync()
        except OSError as error:
            if error.errno not in FULL:
                raise
        self.dropped += readings
        for held in lost:
            self.acknowledge(held)
        self._disk.remove(victim.name)
        self._usable = False
        self.tidy()
        return readings

    def _oldest(self) -> _Segment | None:
        return next((s for s in self._older if s.waiting), None)

    @property
    def _older(self) -> list[_Segment]:
        """All but the newest that holds something: that one carries the sequence.

        One that holds nothing is what a start left that was cut off.
        """
        newest = next((s for s in reversed(self._segments.values()) if s.first), None)
        return [segment for segment in self._segments.values() if segment is not newest]

    def _lost_with(self, victim: _Segment) -> list[Held]:
        with self._lock:
            return [self._held[sequence] for sequence in sorted(victim.waiting)]

    def _let_go(self, lost: list[Held]) -> None:
        with self._lock:
            for held in lost:
                if held.sequence in self._held:
                    self._forget(held.sequence)

    def record_loss(self, first: int, last: int, readings: int, reason: str, *of: str) -> None:
        """Record, for ever, that readings were lost, and why; `of` names what they were in."""
        names = [*filter(None, of)]
        if not self._usable:
            self._begin(self.previous[0] if self.previous else 0, self.last + 1)
        payload = msgpack.packb((first, reason, *names))
        self._write(Record(Kind.LOSS, 0, last, readings, 0, payload))
        self.dropped += readings
        self.lost.update(names)
        self._save_acked()  # the sum stands in two places: one record may be damaged

    def write_acked(self, now: float) -> None:
        """Write down what was acknowledged; at most once a second, for each costs a block.

        What was sealed is synced, too: it tells of the newest batches if they are damaged.
        """
        if self._acked_at <= now < self._acked_at + ACKED_EVERY:
            return
        self._write_acked()
        self._acked_at = now
        if self._total != self._saved:
            self._save_acked()

    def _write_acked(self, dropped: int = 0, lost: Sequence[Held] = ()) -> None:
        """Write down what is acknowledged, and these as if they were, for so many are dropped."""
        with self._lock:
            ranges = list(self._acked.ranges)
        for held in lost:
            join(ranges, held.sequence, held.readings)
        oldest, dropped = self._begins, self.dropped + dropped
        history = self._histories[-1] if self._histories else 0
        losses = self._ends[-LOSSES:]
        told = Told(history, ranges, dropped, self._total, self.last, oldest, losses)
        if self._survey.gaps and (found := self._acked.found):  # it tells of what is not counted
            told = told._replace(oldest=found.oldest)
        self._acked.write(told)

    def _save_acked(self) -> None:
        """Have it on the device, where that can be."""
        with suppress(OSError):
            self._write_acked()
            self._acked.sync()
            self._saved = self._total

    def tidy(self) -> bool:
        """Remove the segments that are done with, all but the newest; whether there were any."""
        with self._lock:
            done = {s.name: bool(s.bad) for s in self._older if not s.waiting}
        if done:  # or one that is missing might be one that was delivered
            self._save_acked()
        if done and not self._usable:  # the newest may be one that only recovery has seen
            self._disk.sync_directory()
        for name, bad in done.items():
            if bad and self._disk.exists(name):  # it keeps its blocks: nothing else comes there
                self._disk.rename(name, f"{name}{DAMAGED}")
            else:
                self._disk.remove(name)
        with self._lock:
            for name in done:
                del self._segments[name]
            oldest = next(iter(self._segments.values()), None)
            if oldest and not self._survey.gaps:  # whose loss is not recorded yet
                self._acked.forget_below(oldest.first)
        return bool(done)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    @property
    def end(self) -> tuple[str, int]:
        """The newest segment, and how many bytes it has."""
        return (self._newest.name, self._newest.size) if self._segments else ("", 0)

    def held(self) -> tuple[int, int]:
        """Return how many batches wait, and how many readings are in them."""
        with self._lock:
            return len(self._order), self._readings
