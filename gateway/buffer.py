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
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

from gateway.disk import Damage, Disk, remedy
from gateway.filling import BATCH_READINGS, Filling
from gateway.journal import Flushed, Journal, JournalFullError
from gateway.reading import Reading
from gateway.settings import BufferSettings
from gateway.spool import Held, Spool
from gateway.wire import Batch, SizeBound, WireError, decode, encode

RAM_READINGS = 100_000
REFUSED = "refused"
REFUSED_BYTES = 16 << 20
"""What refused batches may take, or a quarter of max_size; then the oldest of them goes."""
_ENDING = ".batch"
MAX_SIZE = 512 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A batch that has its name and its bytes, but is not on disk yet."""

    epoch: int
    sequence: int
    readings: int
    first_ms: int
    journaled: int
    payload: bytes


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
    ) -> None:
        self._disk, self._refused = disk, disk.below(REFUSED)
        self._settings, self._gateway, self._boot = settings, gateway, boot
        self.epoch = int.from_bytes(os.urandom(4)) if epoch is None else epoch
        self._journal, self._spool = Journal(disk), Spool(disk)
        self._recovered = self._urgent = False
        self._gone: Spool | None = None
        self._fresh: deque[Reading] = deque()
        self._filling: Filling | None = None
        self._sealed: deque[_Sealed] = deque()
        self._sequence = 0
        self._inherited = 0
        self._previous: tuple[int, int] | None = None
        self._next_flush = 0.0
        self._taken = self._overflowed = self._overflow_recorded = 0
        self._unrecorded: Counter[str] = Counter()
        self._dropped_by: Counter[str] = Counter()
        self._refused_sizes: dict[str, int] = {}
        self._losses: list[str] = []
        self._damaged: deque[Damage] = deque()
        self._damage: list[str] = []
        self._fault: str | None = None
        self._disk_errors = 0
        self._room: int | None = None
        self._last_tick = math.inf

    # Readings in

    def append(self, reading: Reading, *, durable: bool = False) -> None:
        """Take a reading; `durable` ones are flushed at the next tick, whatever the interval."""
        self._taken += 1
        self._fresh.append(reading)
        self._urgent = self._urgent or durable
        while len(self._fresh) > RAM_READINGS:
            self._fresh.popleft()
            self._overflowed += 1

    @property
    def urgent(self) -> bool:
        """Whether the next tick should not wait for its time."""
        return self._urgent or len(self._fresh) >= BATCH_READINGS

    def tick(self, now: float) -> None:
        """Flush, seal and tidy up as far as it is time; `now` is in seconds of any steady clock."""
        urgent, self._urgent = self._urgent, False
        self._work(now, lambda: self._due(now, urgent=urgent))
        self._urgent = self._urgent or (urgent and self._fault is not None)
        self._last_tick = now

    def next_tick(self, by: float) -> float:
        """Return when the next batch is to be sealed, `by` if that is earlier."""
        filling = self._filling
        if filling is None or self._fault:
            return by
        return min(by, filling.began + self._settings.seal_interval)

    def close(self) -> None:
        """Flush and seal everything there is."""
        self._work(math.inf, self._seal)
        self._disk.close_all()
        self._refused.close_all()

    def _work(self, now: float, due: Callable[[], None]) -> None:
        try:
            while not self._done(now, due):
                pass
        except OSError as error:
            self._fails(f"{remedy(error, self._disk.directory)}; readings wait in RAM")
            if self._spool.recovered:
                with suppress(OSError):  # what is delivered goes, whatever else fails
                    self._spool.tidy()
        else:
            self._works()

    def _done(self, now: float, due: Callable[[], None]) -> bool:
        """Do all that is due; False: the disk was full, and something went to make room."""
        try:
            if self._disk.replaced():
                self._begin_anew()
            if not self._recovered:
                self._recover()
            self._set_damage_aside()
            self._store()
            self._take_in(now)
            due()
            self._store()
            self._keep_bounds()
            self._spool.tidy()
            self._spool.write_acked(now)
        except OSError as error:
            if error.errno not in _FULL or not self._make_room():
                raise
            return False
        return True

    def _make_room(self) -> bool:
        """Remove what is done with, else the oldest of what waits; whether anything went."""
        if not self._spool.recovered:
            return False
        if self._spool.tidy():
            return True
        lost = self._spool.evict_unrecorded()
        if lost:
            self._count_dropped(lost, "disk full")
        return lost > 0

    def _count_dropped(self, readings: int, reason: str) -> None:
        self._dropped_by[reason] += readings
        log.warning(
            "buffer: %s: %d readings dropped, the oldest: %s",
            *(self._disk.directory, readings, reason),
        )

    def _fails(self, fault: str) -> None:
        if fault != self._fault:
            log.error("buffer: %s", fault)
            self._disk_errors += 1
        self._fault = fault

    def _works(self) -> None:
        if self._fault:
            log.warning("buffer: %s: written to again, nothing waits in RAM", self._disk.directory)
        self._fault = None

    def _due(self, now: float, *, urgent: bool) -> None:
        filling = self._filling
        if filling is None:
            return
        if now - filling.began >= self._settings.seal_interval:
            self._seal()
        elif urgent or now >= self._next_flush:
            self._flush(filling)
            self._next_flush = now + self._settings.flush_interval

    def _take_in(self, now: float) -> None:
        while self._fresh:
            reading = self._fresh[0]
            if self._filling is None:
                began = min(now, self._last_tick)  # it came after that
                self._filling = Filling(reading.instant, began, SizeBound(self._gateway))
            if self._filling.takes(reading):
                self._fresh.popleft()
            else:
                self._seal()
                self._store()

    def _flush(self, filling: Filling) -> None:
        readings = filling.readings[filling.journaled :]
        if not readings:
            return
        try:
            self._journal.write(Flushed(self.epoch, self._sequence, self._boot, readings))
            filling.journaled = len(filling.readings)
        except JournalFullError:
            self._seal()

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
            self._unrecorded[str(error)] += len(readings)
            return None
        first_ms = min(reading.instant.wall_ms for reading in readings)
        return _Sealed(epoch, sequence, len(readings), first_ms, journaled, payload)

    def _store(self) -> None:
        while self._sealed:
            self._append(self._sealed[0])
            self._sealed.popleft()
        if self._filling is None or not self._filling.journaled:
            self._journal.all_sealed()

    def _append(self, batch: _Sealed) -> None:
        self._spool.append(
            *(batch.epoch, batch.sequence, batch.readings, batch.first_ms, batch.payload)
        )

    # Recovery

    def _begin_anew(self) -> None:
        """Go on in another directory: somebody removed ours, or put one in its place."""
        self._disk.reopen()
        if self._spool.recovered:
            self._gone = self._spool
        self._spool, self._journal, self._recovered = Spool(self._disk), Journal(self._disk), False
        self._sealed = deque(replace(batch, journaled=0) for batch in self._sealed)
        if self._filling:
            self._filling.journaled = 0

    def _recover(self) -> None:
        if not self._spool.recovered:
            spool = Spool(self._disk)
            spool.recover()
            if self._gone:
                self._count_gone(spool.follow(self._gone))
            self._spool, self._gone = spool, None
        frames, damaged = self._journal.recover(self._spool.last)
        unsealed = [frame for frame in frames if frame.epoch != self.epoch]  # those are in RAM
        unsealed.sort(key=lambda frame: frame.sequence)
        for name, parts in groupby(unsealed, _name):
            readings = [reading for part in parts for reading in part.readings]
            if batch := self._encode(*name, readings, len(readings)):
                self._append(batch)
        self._spool.begin(self.epoch)
        if not self._sequence:
            self._previous, self._inherited = self._spool.previous, self._spool.last
        self._sequence = max(self._sequence, self._spool.last + 1)
        refused = [name for name in self._refused.names() if name.endswith(_ENDING)]
        self._refused_sizes = {name: self._refused.size(name) for name in sorted(refused, key=_age)}
        self._damaged = deque([*damaged, *self._spool.damage()])
        self._recovered = True

    def _count_gone(self, readings: int) -> None:
        self._unrecorded["state directory removed"] += readings
        loss = (
            f"{self._disk.directory} was removed or replaced while it was in use: {readings} "
            "readings on it are lost; it was begun anew"
        )
        log.error("buffer: %s", loss)
        self._losses.append(loss)

    def _set_damage_aside(self) -> None:
        """Count what recovery could not read, once, and report it."""
        while self._damaged:
            damage = self._damaged[0]
            if damage.lost:
                self._record_loss(damage.lost, "damaged on disk")
            self._damaged.popleft()
            self._damage.append(f"{damage.lost or 'unknown'} readings lost: {damage.aside}")
            log.error(
                "buffer: %d bytes of %s damaged, %s readings lost, kept as %s: cut off by a power "
                "failure, or a failing disk: look for errors in dmesg",
                *(len(damage.data), damage.name, damage.lost or "unknown", damage.aside),
            )
            damage.move(self._disk)

    # Bounds

    def _keep_bounds(self) -> None:
        if overflow := self._overflowed - self._overflow_recorded:
            self._record_loss(overflow, "no room in RAM")
            self._overflow_recorded += overflow
        for reason in list(self._unrecorded):
            self._record_loss(self._unrecorded[reason], reason)
            del self._unrecorded[reason]
        free, _ = self._disk.room()
        size = self._spool.size + sum(self._refused_sizes.values())
        self._room = min(free - self._settings.keep_free, self._most() - size)
        short = -self._room
        while short > 0 and (before := self._spool.size):
            lost = self._spool.evict("buffer full")
            if not lost:
                break
            self._count_dropped(lost, "buffer full")
            short -= before - self._spool.size

    def _most(self) -> int:
        return self._settings.max_size or min(MAX_SIZE, self._disk.room()[1] // 2)

    def _record_loss(self, readings: int, reason: str) -> None:
        self._spool.record_loss(1, 0, readings, reason)
        self._dropped_by[reason] += readings

    # Batches out

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield the batches with after < sequence < before, oldest first."""
        return self._spool.waiting(after, before)

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, None when it was evicted; on the writer's thread.

        Raises OSError.
        """
        return self._spool.payload(held)

    def acknowledge(self, sequence: int) -> None:
        """Let go of a batch that was delivered."""
        self._spool.acknowledge(sequence)

    def set_aside(self, held: Held, reason: int) -> None:
        """Keep a batch that the broker refused, out of the way; on the writer's thread."""
        payload = self._spool.payload(held)
        if payload is None:
            return
        name = f"{held.sequence}-{held.epoch}-0x{reason:02x}{_ENDING}"
        self._refused.names()
        self._make_room_for_refused(len(payload))
        self._refused.write(name, 0, payload)
        self._refused.sync(name)
        self._refused.sync_directory()
        self._refused.close(name)
        self._refused_sizes[name] = len(payload)
        self._spool.acknowledge(held.sequence)

    def _make_room_for_refused(self, size: int) -> None:
        most = min(REFUSED_BYTES, self._most() // 4)
        for name in list(self._refused_sizes):
            if sum(self._refused_sizes.values()) + size <= most:
                break
            with suppress(WireError):
                lost = len(decode(self._refused.read(name)).readings)
                self._unrecorded["refused by the broker"] += lost
            self._refused.remove(name)
            del self._refused_sizes[name]

    @property
    def fault(self) -> str | None:
        """What the disk does not do at present, and what mends it."""
        return self._fault

    @property
    def unsaved(self) -> int:
        """How many readings are nowhere but in RAM."""
        filling = self._filling
        young = len(filling.readings) - filling.journaled if filling else 0
        return len(self._fresh) + young + sum(b.readings - b.journaled for b in self._sealed)

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
        return Stats(
            self._taken,
            batches + len(sealed),
            readings + sum(b.readings for b in sealed) + unsealed + len(self._fresh),
            self._oldest_ms(),
            self._spool.dropped + self._overflowed - self._overflow_recorded,
            dict(self._dropped_by),
            list(self._refused_sizes),
            [*filter(None, [self._fault]), *self._losses, *self._damage],
            self._disk_errors,
            self._spool.appended,
            None if self._room is None else max(self._room, 0),
            self._disk.written,
            self._spool.size,
        )

    def _oldest_ms(self) -> int | None:
        if held := next(self._spool.waiting(), None):
            return held.first_ms
        if sealed := list(self._sealed):
            return sealed[0].first_ms
        if filling := self._filling:
            return filling.first.wall_ms
        fresh = list(self._fresh)
        return fresh[0].instant.wall_ms if fresh else None


def _age(name: str) -> tuple[int, str]:
    sequence = name.partition("-")[0]
    return int(sequence) if sequence.isdecimal() else 0, name


def _name(frame: Flushed) -> tuple[int, int, int]:
    return frame.epoch, frame.sequence, frame.boot
