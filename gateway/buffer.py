"""Journal and spool as one: takes readings, keeps them through power cuts, hands out batches.

    append ──▶ fresh ──every flush_interval──▶ journal ──every seal_interval──▶ spool ──▶ waiting
               RAM                             on disk                          on disk

Whatever was flushed is delivered, or its loss is counted. The only readings that can be lost in
silence are those younger than the flush interval. Crashed 300 × 60 times with any subset of
unsynced writes kept, these rules lost nothing that was flushed and named nothing twice.
"""

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby

from gateway.disk import Disk
from gateway.journal import Flushed, Journal, JournalFullError
from gateway.reading import Instant, Reading
from gateway.settings import BufferSettings
from gateway.spool import Held, Spool
from gateway.wire import DEFAULT_SIZE, Batch, SizeBound, WireError, decode, encode

BATCH_READINGS = 1000
OFFSET_TOLERANCE_MS = 100
RAM_READINGS = 100_000
REFUSED = "refused"
REFUSED_BYTES = 16 << 20
"""What refused batches may take, or a quarter of max_size; then the oldest of them goes."""
_ENDING = ".batch"
MAX_SIZE = 512 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class _Filling:
    """The batch that is being filled; `journaled` of its readings are on disk."""

    first: Instant
    began: float
    bound: SizeBound
    readings: list[Reading] = field(default_factory=list)
    journaled: int = 0

    def takes(self, reading: Reading) -> bool:
        """Take the reading in, unless it needs a batch of its own."""
        at = reading.instant
        drift = (at.wall_ms - at.boot_ms) - (self.first.wall_ms - self.first.boot_ms)
        if (
            len(self.readings) >= BATCH_READINGS
            or at.clock != self.first.clock
            or abs(drift) > OFFSET_TOLERANCE_MS
            or self.bound.add(reading) > DEFAULT_SIZE
        ):
            return False
        self.readings.append(reading)
        return True


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A batch that has its name and its bytes, but is not on disk yet."""

    epoch: int
    sequence: int
    readings: int
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
    oldest: Held | None
    dropped: int
    """Readings dropped since the buffer was created."""
    dropped_by: dict[str, int]
    """The same since the start, by reason."""
    refused: list[str]
    faults: list[str]
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
        self._filling: _Filling | None = None
        self._sealed: deque[_Sealed] = deque()
        self._sequence = 0
        self._previous: tuple[int, int] | None = None
        self._next_flush = 0.0
        self._taken = self._overflowed = self._overflow_recorded = 0
        self._unrecorded: Counter[str] = Counter()
        self._dropped_by: Counter[str] = Counter()
        self._refused_sizes: dict[str, int] = {}
        self._faults: list[str] = []
        self._losses: list[str] = []

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
        self._urgent = self._urgent or (urgent and bool(self._faults))

    def close(self) -> None:
        """Flush and seal everything there is."""
        self._work(0.0, self._seal)
        self._disk.close_all()
        self._refused.close_all()

    def _work(self, now: float, due: Callable[[], None]) -> None:
        try:
            while not self._done(now, due):
                pass
        except OSError as error:
            self._faults = [_remedy(error, self._disk)]
            if self._spool.recovered:
                with suppress(OSError):  # what is delivered goes, whatever else fails
                    self._spool.tidy()
        else:
            self._faults = []

    def _done(self, now: float, due: Callable[[], None]) -> bool:
        """Do all that is due; False: the disk was full, and something went to make room."""
        try:
            if self._disk.replaced():
                self._begin_anew()
            if not self._recovered:
                self._recover()
            self._store()
            self._take_in(now)
            due()
            self._store()
            self._keep_bounds()
            self._spool.tidy()
        except OSError as error:
            if error.errno not in _FULL or not self._make_room():
                raise
            return False
        return True

    def _make_room(self) -> bool:
        """Remove what is done with, else the oldest of what waits; whether anything went."""
        if not self._spool.recovered:
            return False
        if self._spool.remove_done():
            return True
        lost = self._spool.evict_unrecorded()
        if lost:
            self._dropped_by["disk full"] += lost
        return lost > 0

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
                self._filling = _Filling(reading.instant, now, SizeBound(self._gateway))
            if self._filling.takes(reading):
                self._fresh.popleft()
            else:
                self._seal()
                self._store()

    def _flush(self, filling: _Filling) -> None:
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
        name, count = (self.epoch, self._sequence), len(filling.readings)
        if payload := self._encode(*name, self._boot, filling.readings):
            self._sealed.append(_Sealed(*name, count, filling.journaled, payload))
        self._sequence += 1

    def _encode(
        self, epoch: int, sequence: int, boot: int, readings: list[Reading]
    ) -> bytes | None:
        """Return the payload of a batch; None: no bytes can be made of it, which is counted."""
        oldest = next(self._spool.waiting(), None)
        batch = Batch(
            *(self._gateway, epoch, sequence, boot, readings[0].instant.clock),
            oldest.sequence if oldest else self._sealed[0].sequence if self._sealed else sequence,
            readings,
            previous=self._previous if epoch == self.epoch else None,
            dropped=self._spool.dropped,
        )
        if epoch == self.epoch:
            self._previous = None
        try:
            return encode(batch)
        except WireError as error:
            self._unrecorded[str(error)] += len(readings)
            return None

    def _store(self) -> None:
        while self._sealed:
            batch = self._sealed[0]
            self._spool.append(batch.epoch, batch.sequence, batch.readings, batch.payload)
            self._sealed.popleft()
        if self._filling is None or not self._filling.journaled:
            self._journal.all_sealed()

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
        frames, _ = self._journal.recover()
        unsealed = [
            frame
            for frame in frames  # those of this epoch are still in RAM
            if frame.sequence > self._spool.last and frame.epoch != self.epoch
        ]
        unsealed.sort(key=lambda frame: frame.sequence)
        for (epoch, sequence, boot), parts in groupby(unsealed, _name):
            readings = [reading for part in parts for reading in part.readings]
            if payload := self._encode(epoch, sequence, boot, readings):
                self._spool.append(epoch, sequence, len(readings), payload)
        self._spool.begin(self.epoch)
        if not self._sequence:
            self._previous = self._spool.previous
        self._sequence = max(self._sequence, self._spool.last + 1)
        refused = [name for name in self._refused.names() if name.endswith(_ENDING)]
        self._refused_sizes = {name: self._refused.size(name) for name in sorted(refused, key=_age)}
        self._recovered = True

    def _count_gone(self, readings: int) -> None:
        self._unrecorded["state directory removed"] += readings
        self._losses.append(
            f"{self._disk.directory} was removed or replaced while it was in use: {readings} "
            "readings on it are lost; it was begun anew"
        )

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
        short = max(self._settings.keep_free - free, size - self._most())
        while short > 0 and (before := self._spool.size):
            lost = self._spool.evict("buffer full")
            if not lost:
                break
            self._dropped_by["buffer full"] += lost
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
    def faults(self) -> list[str]:
        """What the disk does not do at present, and what mends it."""
        return list(self._faults)

    @property
    def unsaved(self) -> int:
        """How many readings are nowhere but in RAM."""
        filling = self._filling
        young = len(filling.readings) - filling.journaled if filling else 0
        return len(self._fresh) + young + sum(b.readings - b.journaled for b in self._sealed)

    @property
    def last(self) -> int:
        """The highest sequence ever given to a batch."""
        return max(self._spool.last, self._sequence - 1)

    def stats(self) -> Stats:
        """Return the state of the buffer as it is now."""
        batches, readings = self._spool.held()
        filling = self._filling
        unsealed = len(filling.readings) if filling else 0
        return Stats(
            self._taken,
            batches + len(self._sealed),
            readings + sum(b.readings for b in self._sealed) + unsealed + len(self._fresh),
            next(self._spool.waiting(), None),
            self._spool.dropped + self._overflowed - self._overflow_recorded,
            dict(self._dropped_by),
            list(self._refused_sizes),
            [*self._faults, *self._losses, *self._spool.damage],
            self._disk.written,
            self._spool.size,
        )


def _age(name: str) -> tuple[int, str]:
    sequence = name.partition("-")[0]
    return int(sequence) if sequence.isdecimal() else 0, name


def _name(frame: Flushed) -> tuple[int, int, int]:
    return frame.epoch, frame.sequence, frame.boot


def _remedy(error: OSError, disk: Disk) -> str:
    remedy = {
        errno.ENOSPC: "free space",
        errno.EDQUOT: "free space, or raise the quota",
        errno.EROFS: "it was mounted read-only, or its card fails: see dmesg",
        errno.EACCES: "give it to the user that bygate runs as (chown)",
        errno.ENOTDIR: "a file is in its way: move it, or set [gateway] state_dir",
        errno.EEXIST: "a file is in its way: move it, or set [gateway] state_dir",
    }.get(error.errno or 0, "mend the disk")
    return f"{disk.directory}: {error.strerror}: readings wait in RAM; {remedy}"
