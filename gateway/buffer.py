"""Journal and spool as one: takes readings, keeps them through power cuts, hands out batches.

    append ──▶ fresh ──every flush_interval──▶ journal ──every seal_interval──▶ spool ──▶ waiting
               RAM                             on disk                          on disk

Whatever was flushed is delivered, or its loss is counted. The only readings that can be lost in
silence are those younger than the flush interval. Crashed 300 × 60 times with any subset of
unsynced writes kept, these rules lost nothing that was flushed and named nothing twice.
"""

import errno
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from gateway import acked, journal, record
from gateway.bounds import Bounds, most
from gateway.clock import Clock
from gateway.disk import FULL, Disk, of_another_version, remedy
from gateway.filling import BATCH_READINGS, Filling
from gateway.journal import Flushed, Journal, JournalFullError
from gateway.losses import Losses
from gateway.rates import Noted
from gateway.reading import Reading
from gateway.refused import DIRECTORY, REFUSED_BYTES, Aside, Refused, on_disk
from gateway.settings import BufferSettings
from gateway.spool import Held, Spool, is_segment
from gateway.wire import Batch, SizeBound, WireError, decode, encode

RAM_READINGS = 100_000
LARGEST_FILE = 4 << 20
"""Bytes; what is larger is none of ours, and reading it would take all of the memory."""
REFUSED = "refused by the broker"

_sequence = attrgetter("sequence")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sealed:
    """A batch that has its name and its bytes, but is not in the spool yet."""

    epoch: int
    sequence: int
    readings: list[Reading]
    first_ms: int
    journaled: int
    payload: bytes

    @property
    def name(self) -> tuple[int, int]:
        return self.sequence, self.epoch


@dataclass(frozen=True, slots=True)
class Stats:
    """What a buffer says about itself."""

    taken: int
    """Readings taken since the start."""
    waiting_batches: int
    waiting_readings: int
    """Readings that are not acknowledged, the ones not yet sealed included."""
    oldest_ms: int | None
    """Unix ms of the earliest of them."""
    dropped: int
    """Readings dropped since the buffer was created."""
    dropped_by: dict[str, int]
    """The same since the start, by reason."""
    refused: list[str]
    faults: list[str]
    disk_errors: int
    """How often the disk began to fail since the start."""
    sealed: int
    """Bytes of the batches sealed since the start."""
    room: int | None
    """Bytes of batches that still fit, None while that cannot be told."""
    written: int
    """Bytes written to files since the start."""
    size: int
    """Bytes on disk."""


class Buffer:
    """One directory of readings that wait for their acknowledgement.

    `append`, `waiting`, `acknowledge` and `stats` only touch memory. The others work on the disk
    and belong to one thread, the writer's; a fault of the disk is kept in `stats().faults`, the
    readings wait in RAM, and the next `tick` tries again.
    """

    def __init__(
        self,
        disk: Disk,
        settings: BufferSettings,
        gateway: str,
        boot: int,
        epoch: int | None = None,
        *,
        clock: Clock | None = None,
        bound: Callable[[str], SizeBound] = SizeBound,
    ) -> None:
        """`clock` tells what is older than max_age; without one nothing is."""
        self._bound = bound
        self._disk, self._refused_disk = disk, disk.below(DIRECTORY)
        self._refused = Refused(self._refused_disk)
        self._settings, self._gateway, self._boot = settings, gateway, boot
        self.epoch = int.from_bytes(os.urandom(4)) if epoch is None else epoch
        self._journal, self._spool = Journal(disk), Spool(disk)
        self._recovered = self._urgent = False
        self._gone: Spool | None = None
        """That of the directory before, until all is known of what came in its place."""
        self._unsealed: deque[list[Flushed]] | None = None
        """What the journal holds of batches still to be sealed; None while it is unread."""
        self._renamed: set[int] = set()
        """Sequences that batches had before another directory needed them named anew."""
        self._fresh: deque[Reading] = deque()
        self._filling: Filling | None = None
        self._sealed: deque[_Sealed] = deque()
        self._sequence = 0
        self._inherited = 0
        self._previous: tuple[int, int] | None = None
        self._readable_again = 0
        self._next_flush = 0.0
        self._taken = 0
        self._losses = Losses(disk)
        self._bounds = Bounds(disk, settings, self._losses, boot, clock)
        self._fault: str | None = None
        self._disk_errors = 0
        self._rates = Noted(disk)
        self._last_tick = math.inf

    # Readings in

    def append(self, reading: Reading, *, durable: bool = False) -> None:
        """Take a reading; `durable` ones are flushed at the next tick, whatever the interval."""
        self._taken += 1
        self._fresh.append(reading)
        self._urgent = self._urgent or durable
        while len(self._fresh) > RAM_READINGS:
            self._fresh.popleft()
            self._losses.overflow()

    @property
    def urgent(self) -> bool:
        """Whether the next tick should not wait for its time."""
        return self._urgent or len(self._fresh) >= BATCH_READINGS

    def tick(self, now: float) -> None:
        """Flush, seal and tidy up as far as it is time; `now` is in seconds of any steady clock."""
        if self._urgent:
            self._urgent, self._next_flush = False, min(now, self._next_flush)
        self._work(now, lambda: self._due(now))
        self._last_tick = now

    def next_tick(self, by: float) -> float:
        """Return when the next batch is to be sealed, `by` if that is earlier."""
        filling = self._filling
        if filling is None or self._fault:
            return by
        flush = self._next_flush if filling.journaled < len(filling.readings) else by
        return min(by, flush, filling.began + self._settings.seal_interval)

    def close(self) -> None:
        """Flush and seal everything there is."""
        self._work(math.inf, self._seal)
        self._disk.close_all()
        self._refused_disk.close_all()

    def _work(self, now: float, due: Callable[[], None]) -> None:
        try:
            while not self._done(now, due):
                pass
        except OSError as error:
            self._fails(f"{remedy(error, self._disk.directory)}; readings wait in RAM")
            if self._spool.recovered:
                with suppress(OSError):  # what is delivered goes, whatever else fails
                    self._spool.tidy()
                    self._spool.write_acked(now)
        else:
            self._works()

    def _done(self, now: float, due: Callable[[], None]) -> bool:
        """Do all that is due; False: the disk was full, and something went to make room."""
        try:
            if self._disk.replaced():
                self._begin_anew()
            if not self._recovered:
                self._recover()
            self._losses.set_damage_aside(self._spool)
            self._spool.counted()
            self._journal.renew()
            self._store()
            self._take_in(now)
            due()
            self._store()
            self._losses.record_all(self._spool)
            self._read_again()
            self._bounds.keep(self._spool, self._refused.size)
            self._bounds.drop_old(self._spool, now)
            self._spool.tidy()
            self._spool.write_acked(now)
            self._refused.tidy()
            self._rates.note(now, self._written, self._spool.appended)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not self._bounds.make_room(self._spool):
                self._hold_out(now)
                raise
            return False
        return True

    def failed(self, error: OSError) -> None:
        """Note a fault that was met beside the ticks; on the writer's thread."""
        self._fails(remedy(error, self._disk.directory))

    def _hold_out(self, now: float) -> None:
        """Flush what the spool has no room for, as far as the journal has slots: it never grows."""
        if not self._recovered or now < self._next_flush:
            return
        self._next_flush = now + self._settings.flush_interval
        with suppress(OSError, JournalFullError):
            for batch in self._sealed:
                self._write_frame(batch.sequence, batch)
            while self._fill(now) and self._filling:
                self._write_frame(self._sequence, self._filling)
                self._seal()
            if self._filling:
                self._write_frame(self._sequence, self._filling)

    def _fails(self, fault: str) -> None:
        if fault != self._fault:
            log.error("buffer: %s", fault)
            self._disk_errors += 1
        self._fault = fault

    def _works(self) -> None:
        if self._fault:
            log.warning("buffer: %s: written to again, nothing waits in RAM", self._disk.directory)
        self._fault = None

    def _due(self, now: float) -> None:
        filling = self._filling
        if filling is None:
            return
        if now - filling.began >= self._settings.seal_interval:
            self._seal()
        elif now >= self._next_flush:
            self._flush(filling)
            self._next_flush = now + self._settings.flush_interval

    def _take_in(self, now: float) -> None:
        while self._fill(now):
            self._seal()
            self._store()

    def _fill(self, now: float) -> bool:
        """Return whether the batch that is being filled does not take the next reading."""
        while self._fresh:
            reading = self._fresh[0]
            if self._filling is None:
                began = min(now, self._last_tick)  # it came after that
                self._filling = Filling(reading.instant, began, self._bound(self._gateway))
            if not self._filling.takes(reading):
                return True
            self._fresh.popleft()
        return False

    def _flush(self, filling: Filling) -> None:
        try:
            self._write_frame(self._sequence, filling)
        except JournalFullError:
            self._seal()

    def _write_frame(self, sequence: int, part: Filling | _Sealed) -> None:
        if readings := part.readings[part.journaled :]:
            before = part.journaled
            self._journal.write(Flushed(self.epoch, sequence, self._boot, readings, before))
            part.journaled = len(part.readings)

    # Batches

    def _seal(self) -> None:
        filling, self._filling = self._filling, None
        if filling is None:
            return
        batch = self._encode(
            *(self.epoch, self._sequence, self._boot, filling.readings, filling.journaled)
        )
        if batch:
            self._sealed.append(batch)
        self._sequence += 1

    def _encode(
        self, epoch: int, sequence: int, boot: int, readings: list[Reading], journaled: int
    ) -> _Sealed | None:
        """Return the batch; None: no bytes can be made of it, which is counted."""
        oldest = next(self._spool.waiting(), None)
        before = self._previous if epoch == self.epoch else self._spool.previous
        batch = Batch(
            *(self._gateway, epoch, sequence, boot, readings[0].instant.clock),
            oldest.sequence if oldest else self._sealed[0].sequence if self._sealed else sequence,
            readings,
            previous=before if before and before[0] != epoch else None,
            dropped=self._spool.dropped,
        )
        if epoch == self.epoch:
            self._previous = None
        try:
            payload = encode(batch)
        except WireError as error:
            self._losses.record_later(len(readings), str(error))
            return None
        first_ms = min(reading.instant.wall_ms for reading in readings)
        return _Sealed(epoch, sequence, readings, first_ms, journaled, payload)

    def _store(self) -> None:
        while self._sealed:
            self._append(self._sealed[0])
            self._sealed.popleft()
        if self._filling is None or not self._filling.journaled:
            self._journal.all_sealed()

    def _append(self, batch: _Sealed) -> None:
        self._spool.append(
            *(batch.epoch, batch.sequence, len(batch.readings), batch.first_ms, batch.payload)
        )

    # Recovery

    def _begin_anew(self) -> None:
        """Go on in another directory: somebody removed ours, or put one in its place."""
        self._disk.reopen()
        self._seal()  # what a journal there holds of it is overwritten only when it is in the spool
        for batch in self._sealed:
            batch.journaled = 0
        if self._unsealed:
            self._losses.removed(sum(len(f.readings) for parts in self._unsealed for f in parts))
        if self._spool.recovered:
            self._follow()  # that one was gone before it was known
            self._gone = self._spool
        self._spool, self._journal, self._recovered = Spool(self._disk), Journal(self._disk), False
        self._unsealed = None

    def _follow(self) -> None:
        """Go on where the directory before ended, and count what is not here of what it held."""
        if self._gone:
            self._losses.removed(self._spool.follow(self._gone))
            self._gone = None

    def _make_way(self) -> None:
        ours = {journal.NAME: _journal, acked.NAME: _small, DIRECTORY: Path.is_dir}
        ours |= dict.fromkeys(filter(is_segment, self._disk.names()), _segment)
        for name, fits in ours.items():
            if aside := self._disk.make_way(name, fits):
                self._losses.made_way(name, aside)

    def _recover(self) -> None:
        self._disk.names()  # before anything changes there it is ours
        self._make_way()
        if not self._spool.recovered:
            self._recover_spool()
        if self._unsealed is None:
            self._unsealed = self._recover_journal()
        # Once the others are sealed under its name, a start that is cut off here knows it no more
        self._losses.set_damage_aside(self._spool)
        while self._unsealed:
            self._seal_frames(self._unsealed[0])
            self._unsealed.popleft()
        if not self._sequence:
            self._previous = self._spool.previous
        self._name_anew()
        self._follow()
        self._spool.begin(self.epoch)
        self._sequence = max(self._sequence, self._spool.last + 1, self._refused.last + 1)
        self._losses.found(self._spool.damage(self._refused.kept()))
        self._recovered = True

    def _recover_spool(self) -> None:
        """Read what there is, which can be delivered although the disk may take nothing."""
        spool = Spool(self._disk)
        spool.recover()
        for held in list(spool.waiting()):
            if held.epoch == self.epoch and held.sequence in self._renamed:
                spool.acknowledge(held)
        if self._gone:
            spool.dropped = max(spool.dropped, self._gone.dropped)
        self._inherited = max(self._inherited, spool.last)
        self._spool = spool
        self._refused.recover()
        self._let_go_of_refused()
        if self._gone:
            self._readable_again += 1

    def _recover_journal(self) -> deque[list[Flushed]]:
        """Return the frames that are neither in the spool nor in RAM, by batch, oldest first."""
        frames, damaged = self._journal.recover(self._spool.last)
        self._losses.found(damaged)
        for batch in self._sealed:  # an image of this run may have the beginning of one
            there = [len(frame.readings) for frame in frames if _name(frame)[:2] == batch.name]
            batch.journaled = 0 if damaged else sum(there)
        in_ram = self._renamed | {batch.sequence for batch in self._sealed}
        frames = [f for f in frames if f.epoch != self.epoch or f.sequence not in in_ram]
        frames.sort(key=_name)
        self._inherited = max([self._inherited, *(frame.sequence for frame in frames)])
        return deque(list(parts) for _, parts in groupby(frames, _name))

    def _seal_frames(self, parts: list[Flushed]) -> None:
        readings = [reading for part in parts for reading in part.readings]
        sequence, epoch, boot = _name(parts[0])
        if batch := self._encode(epoch, sequence, boot, readings, len(readings)):
            self._append(batch)

    def _name_anew(self) -> None:
        """Name what waits in RAM above all that is in a directory that came in place of ours.

        At its next start what is named below would be taken for acknowledged. None of it was
        handed out yet under the name that it has.
        """
        if self._sealed and self._sealed[0].name in {held.name for held in self._spool.waiting()}:
            self._sealed.popleft()  # it was on its way there when the sync failed
        last = max(self._spool.last, self._refused.last)
        if not self._sealed or last < self._sealed[0].sequence:
            return
        self._sequence = max(self._sequence, last + 1)
        batches, self._sealed = self._sealed, deque()
        for batch in batches:
            self._renamed.add(batch.sequence)
            self._previous = decode(batch.payload).previous
            named = (self.epoch, self._sequence, self._boot)
            if anew := self._encode(*named, batch.readings, 0):
                self._sealed.append(anew)
            self._sequence += 1

    def _let_go_of_refused(self) -> None:
        """Note what a kill left unnoted: evicted, too, such a batch would be counted twice."""
        for held in list(self._spool.waiting()):
            here = self._refused.lies_here(held)
            if here and self._refused.holds(held, self._spool.payload(held)):
                self._spool.acknowledge(held)

    # Batches out

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield the batches with after < sequence < before, oldest first.

        Refused ones that are offered again are among them; one that is in the spool as well, since
        a kill came before the note that it was refused, is yielded once.
        """
        waiting = self._spool.waiting(after, before)
        if not self._refused.any_offered:
            return waiting
        both = merge(waiting, self._refused.offered(after, before), key=_sequence)
        return (next(same) for _, same in groupby(both, _sequence))

    @property
    def offered_again(self) -> int:
        """How often batches have come among those that wait; they may be anywhere there.

        Refused ones, and such as could not be read for a while.
        """
        return self._refused.times + self._readable_again

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, None when it was evicted; on the writer's thread.

        None as well when they cannot be read: the next tick tries again. Raises OSError.
        """
        return self._spool.payload(held) or self._refused.payload(held)

    def _read_again(self) -> None:
        """Offer what can be read by now; give up what cannot, though the disk is there."""
        if not self._spool.any_unread:
            return
        if self._disk.dead():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        readable, lost = self._spool.read_again()
        self._readable_again += readable
        for held in lost:
            self._losses.unreadable(self._spool, held)

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch that was delivered, and of no other one of its sequence."""
        self._refused.delivered(held.epoch, held.sequence)
        gone = self._gone
        if gone and held in gone.waiting(held.sequence - 1, held.sequence + 1):
            gone.acknowledge(held)
        self._spool.acknowledge(held)

    def lies_aside(self, held: Held) -> bool:
        """Whether the broker refused it before, so that it needs no more room for being kept."""
        return self._refused.lies_here(held)

    def fits_aside(self, held: Held) -> bool:
        """Whether it can be set aside with no other one going for it; on the writer's thread."""
        allowed = min(REFUSED_BYTES, most(self._disk, self._settings) // 4)
        return self.lies_aside(held) or self._refused.size + on_disk(held.length) <= allowed

    def set_aside(self, held: Held, reason: int) -> None:
        """Keep a batch that the broker refused, out of the way; on the writer's thread."""
        payload = self.payload(held)
        if payload is None:
            return
        allowed = min(REFUSED_BYTES, most(self._disk, self._settings) // 4)
        more = 0 if self._refused.lies_here(held) else on_disk(len(payload))
        for oldest in self._refused.over(allowed - more, held):
            self._drop(oldest)
        self._refused.add(held, reason, payload)
        self._spool.acknowledge(held)

    def _drop(self, aside: Aside) -> None:
        """Give up a refused batch, once no power cut can bring it back to be refused anew."""
        self._spool.write_acked(-math.inf)
        self._disk.sync(acked.NAME)
        self._losses.record(self._spool, self._refused.readings(aside), REFUSED, aside.mark)
        self._refused.remove(aside)

    @property
    def fault(self) -> str | None:
        """What the disk does not do at present, and what mends it."""
        return self._fault

    @property
    def unsaved(self) -> int:
        """How many readings are nowhere but in RAM."""
        filling = self._filling
        young = len(filling.readings) - filling.journaled if filling else 0
        return len(self._fresh) + young + sum(len(b.readings) - b.journaled for b in self._sealed)

    @property
    def inherited(self) -> int:
        """The highest sequence of the runs before this one; 0 until the disk has told."""
        return self._inherited

    @property
    def last(self) -> int:
        """The highest sequence ever given to a batch."""
        return max(self._spool.last, self._sequence - 1)

    def stats(self) -> Stats:
        """Return the state of the buffer as it is now."""
        batches, readings = self._spool.held()
        filling, sealed = self._filling, list(self._sealed)
        unsealed = len(filling.readings) if filling else 0
        told = [*self._losses.told, *self._refused.damage]
        return Stats(
            self._taken,
            batches + len(sealed),
            readings + sum(len(b.readings) for b in sealed) + unsealed + len(self._fresh),
            self._oldest_ms(),
            self._spool.dropped + self._losses.overflowing,
            dict(self._losses.by),
            self._refused.names,
            [*filter(None, [self._fault, self._refused.fault]), *told],
            self._disk_errors,
            self._spool.appended,
            None if self._bounds.room is None else max(self._bounds.room, 0),
            self._written,
            self._spool.size,
        )

    @property
    def _written(self) -> int:
        return self._disk.written + self._refused_disk.written

    def _oldest_ms(self) -> int | None:
        if held := next(self._spool.waiting(), None):
            return held.first_ms
        if sealed := list(self._sealed):
            return sealed[0].first_ms
        if filling := self._filling:
            return filling.first.wall_ms
        fresh = list(self._fresh)
        return fresh[0].instant.wall_ms if fresh else None


def _small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST_FILE


def _journal(path: Path) -> bool:
    return _small(path) and not of_another_version(path, journal.MAGIC)


def _segment(path: Path) -> bool:
    return _small(path) and not of_another_version(path, record.MAGIC)


def _name(frame: Flushed) -> tuple[int, int, int]:
    return frame.sequence, frame.epoch, frame.boot
