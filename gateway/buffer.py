"""Journal and spool as one: takes readings, keeps them through power cuts, hands out batches.

    append ──▶ fresh ──every flush_interval──▶ journal ──every seal_interval──▶ spool ──▶ waiting
               RAM                             on disk                          on disk

Whatever was flushed is delivered, or its loss is counted. The only readings that can be lost in
silence are those younger than the flush interval, and on a disk that forgets what it synced, those
since the last batch: nothing but the journal tells of its newest frames. Crashed 300 × 60 times
with any subset of unsynced writes kept, these rules lost nothing that was flushed and named nothing
twice.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter

from gateway.aside import Aside, Inventory, on_disk
from gateway.beside import Beside
from gateway.bounds import Bounds, most
from gateway.cause import FULL
from gateway.clock import Clock
from gateway.disk import Disk, remedy
from gateway.held import Held
from gateway.intake import Intake
from gateway.journal import JournalFullError
from gateway.losses import Losses
from gateway.measure import counted
from gateway.rates import Meter, Rates
from gateway.reading import Reading
from gateway.refused import DIRECTORY, REFUSED_BYTES, Refused
from gateway.settings import BufferSettings
from gateway.spool import Spool
from gateway.store import Store
from gateway.wire import SizeBound

REFUSED = "refused by the broker"
ASIDE, READ, UNREAD = "set aside", "read", "unread"
"""What is tried with a batch; the last one by the spool itself, which gives up in the end."""

_sequence = attrgetter("sequence")

log = logging.getLogger(__name__)


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
    blocked: bool
    """Whether some of them are in no batch on disk, and the disk takes none at present."""
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
    """Bytes written since the start, in whole blocks."""
    size: int
    """Bytes on disk."""
    rates: Rates | None
    """How fast it filled and wrote in the last day, None in a new one's first 10 minutes."""


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
        self.epoch = int.from_bytes(os.urandom(4)) if epoch is None else epoch
        self._disk, self._refused_disk = disk, disk.below(DIRECTORY)
        self._settings = settings
        self._refused = Refused(self._refused_disk, Inventory(disk))
        self._losses = Losses(disk)
        self._bounds = Bounds(disk, settings, self._losses, boot, clock)
        self._intake = Intake(gateway, boot, self.epoch, self._losses, bound)
        self._store = Store(disk, self._refused, self._losses, self._intake)
        self._meter = Meter(disk)
        self._urgent = False
        self._next_flush = 0.0
        self._last_tick = math.inf
        self._fault: str | None = None
        self._unflushed = False  # since the journal took nothing
        self._beside = Beside(disk.directory)
        self._disk_errors = 0

    @property
    def _spool(self) -> Spool:
        return self._store.spool

    # Readings in

    def append(self, reading: Reading, *, durable: bool = False) -> None:
        """Take a reading; `durable` ones are flushed at the next tick, whatever the interval."""
        self._intake.append(reading)
        self._urgent = self._urgent or durable

    @property
    def urgent(self) -> bool:
        """Whether the next tick should not wait for its time."""
        return self._urgent or self._intake.has_a_batch

    def tick(self, now: float) -> None:
        """Flush, seal and tidy up as far as it is time; `now` is in seconds of any steady clock."""
        self._disk.now = now
        if self._urgent:
            self._urgent, self._next_flush = False, min(now, self._next_flush)
        self._work(now, lambda: self._due(now))
        self._last_tick = now

    def next_tick(self, by: float) -> float:
        """Return when the next batch is to be sealed, `by` if that is earlier."""
        filling = self._intake.filling
        if filling is None or self._fault:
            return by
        flush = self._next_flush if filling.journaled < len(filling.readings) else by
        return min(by, flush, filling.began + self._settings.seal_interval)

    def close(self) -> None:
        """Flush and seal everything there is."""
        self._work(math.inf, self._seal)
        self._disk.close_all()
        self._refused_disk.close_all()

    def give_up(self) -> None:
        """Count as dropped what `close` has left in RAM alone: there is no more time to wait."""
        self._losses.give_up(self._spool, self.unsaved)
        self._intake.give_up(self._spool)

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
            self._store.recover()
            self._losses.set_damage_aside(self._spool)
            self._spool.counted()
            self._store.journal.renew()
            self._hand_over()
            self._take_in(now)
            due()
            self._hand_over()
            self._losses.record_all(self._spool)
            self._store.read_again()
            self._look_beside()
            self._bounds.keep(self._spool, self._refused.size)
            self._bounds.drop_old(self._spool, now)
            self._spool.write_acked(now)
            self._refused.tidy(self._spool.waits)
            self._count_lost_aside()
            self._meter.note(now, self._written, self._spool.appended)
            self._try_journal()
        except OSError as error:
            if error.errno not in FULL:
                raise
            if not self._bounds.make_room(self._spool):
                self._hold_out(now)
                raise
            return False
        return True

    def _try_journal(self) -> None:
        """Have a journal that took nothing be a fault still, though all in it was sealed since."""
        if self._unflushed:
            self._store.journal.try_out()
            self._unflushed = False

    def _hold_out(self, now: float) -> None:
        """Flush what the spool has no room for, as far as the journal has slots: it never grows."""
        if not self._store.recovered or now < self._next_flush:
            return
        self._next_flush = now + self._settings.flush_interval
        with suppress(OSError, JournalFullError):
            self._intake.flush_all(self._store.journal, self._spool, self._began(now))

    def _fails(self, fault: str) -> None:
        if fault != self._fault:
            log.error("buffer: %s", fault)
            self._disk_errors += 1
        self._fault = fault

    def _works(self) -> None:
        if self._fault:
            log.warning("buffer: %s: written to again, nothing waits in RAM", self._disk.directory)
        self._fault = None

    def _look_beside(self) -> None:
        """Tell of what cannot be read for now, and forget the faults of what waits no more."""
        unread = self._spool.readback.unread
        for held, why in unread.items():
            if why:
                self._beside.meet(UNREAD, held, why)
        waits = {UNREAD: unread.__contains__}
        gone = [one for one in self._beside if not waits.get(one[0], self._waits)(one[1])]
        if aside := [one for one in gone if one[0] == ASIDE]:
            try:
                self._refused.try_out()
            except OSError:  # else each batch that is refused for a moment would begin it anew
                gone.remove(aside[0])
        self._beside.end(gone)

    def _waits(self, held: Held) -> bool:
        return self._spool.waits(held.epoch, held.sequence) or self.lies_aside(held)

    def _due(self, now: float) -> None:
        filling = self._intake.filling
        if filling is None:
            return
        if now - filling.began >= self._settings.seal_interval:
            self._seal()
        elif now >= self._next_flush:
            self._flush()
            self._next_flush = now + self._settings.flush_interval

    def _take_in(self, now: float) -> None:
        while self._intake.fill(self._began(now)):
            self._seal()
            self._hand_over()

    def _began(self, now: float) -> float:
        """Return when the readings that are met now began to come: after the last tick."""
        return min(now, self._last_tick)

    def _flush(self) -> None:
        try:
            self._intake.flush(self._store.journal, self._spool)
        except JournalFullError:
            self._seal()
        except OSError:
            self._unflushed = True
            raise

    def _seal(self) -> None:
        self._intake.seal(self._spool)

    def _hand_over(self) -> None:
        self._intake.hand_over(self._store.journal, self._spool)

    # Batches out

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield the batches with after < sequence < before, oldest first.

        Refused ones that are offered again are among them; one that is in the spool as well, since
        a kill came before the note that it was refused, is yielded once.
        """
        waiting = self._spool.waiting(after, before)
        if not self._refused.offered.any:
            return waiting
        both = merge(waiting, self._refused.offered.waiting(after, before), key=_sequence)
        return (next(same) for _, same in groupby(both, _sequence))

    @property
    def offered_again(self) -> int:
        """How often batches have come among those that wait; they may be anywhere there.

        Refused ones, and such as could not be read for a while.
        """
        return self._refused.offered.times + self._store.offered_again

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch, None when it was evicted; on the writer's thread.

        None as well when they cannot be read: the next tick tries again. Raises OSError.
        """
        with self._beside.trying(READ, held):
            return self._spool.payload(held) or self._refused.payload(held)

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch that was delivered, and of no other one of its sequence."""
        self._refused.offered.deliver(held.name)
        self._store.acknowledge(held)

    def delivered(self, held: Held) -> None:
        """Note that a batch was delivered, though it is not let go of yet."""
        self._store.delivered(held)

    def lies_aside(self, held: Held) -> bool:
        """Whether the broker refused it before, so that it needs no more room for being kept."""
        return held.name in self._refused.offered.here

    def fits_aside(self, held: Held) -> bool:
        """Whether it can be set aside with no other one going for it; on the writer's thread."""
        allowed = min(REFUSED_BYTES, most(self._disk, self._settings) // 4)
        return self.lies_aside(held) or self._refused.size + on_disk(held.length) <= allowed

    def set_aside(self, held: Held, reason: int) -> bool:
        """Keep a batch that the broker refused, out of the way; on the writer's thread.

        False: it is not there any more. Raises OSError.
        """
        with self._beside.trying(ASIDE, held):
            return self._set_aside(held, reason)

    def _set_aside(self, held: Held, reason: int) -> bool:
        payload = self.payload(held)
        if payload is None:
            return False
        allowed = min(REFUSED_BYTES, most(self._disk, self._settings) // 4)
        more = 0 if self.lies_aside(held) else on_disk(len(payload))
        for oldest in self._refused.over(allowed - more, held):
            self._drop(oldest)
        self._refused.add(held, reason, payload)
        self._spool.acknowledge(held)
        return True

    def _drop(self, aside: Aside) -> None:
        """Give up a refused batch, unless it is only its file that is still there."""
        if self._refused.was_delivered(aside):
            self._refused.remove(aside)
            return
        self._settle_refused()
        readings = self._refused.readings(aside)
        self._losses.record(self._spool, readings, REFUSED, aside.mark)
        self._refused.remove(aside)
        log.error(
            "buffer: %s/%s: %s dropped: there is no room for more that the broker refuses: mend "
            "what it refuses them for",
            *(DIRECTORY, aside.name, counted(readings, "reading")),
        )

    def _settle_refused(self) -> None:
        """Return when no power cut brings one back from the spool, to be refused anew."""
        self._spool.write_acked(-math.inf)
        self._spool.sync_acked()

    def _count_lost_aside(self) -> None:
        """Count refused batches that are lost, but for what a power cut has left in the spool."""
        while self._refused.lost:
            lost, reason = self._refused.lost[0]
            if not self._spool.waits(lost.epoch, lost.sequence):
                self._settle_refused()
                self._losses.record(self._spool, lost.readings, reason, lost.mark)
            self._refused.counted()

    @property
    def fault(self) -> str | None:
        """What the disk does not do at present, and what mends it."""
        return self._fault

    @property
    def unsaved(self) -> int:
        """How many readings are nowhere but in RAM."""
        return self._intake.unsaved

    @property
    def inherited(self) -> int:
        """The highest sequence of the runs before this one; 0 until the disk has told."""
        return self._store.inherited

    @property
    def last(self) -> int:
        """The highest sequence ever given to a batch."""
        return max(self._spool.last, self._intake.last)

    def stats(self) -> Stats:
        """Return the state of the buffer as it is now."""
        batches, readings = self._spool.held()
        sealed, in_ram = self._intake.waiting()
        oldest, journaled = next(self._spool.waiting(), None), self._store.unsealed
        unsealed = len(journaled) + in_ram
        young = min((r.instant.wall_ms for r in journaled), default=self._intake.oldest_ms)
        met = [*self._spool.faults, *self._beside.told]
        told = [*self._losses.told, *self._refused.damage]
        return Stats(
            self._intake.taken,
            batches + sealed,
            readings + unsealed,
            oldest.first_ms if oldest else young,
            self._fault is not None and unsealed > 0,
            self._spool.dropped + self._losses.in_ram,
            dict(self._losses.by),
            self._refused.names,
            [*filter(None, [self._fault, self._refused.fault]), *met, *told],
            self._disk_errors + self._beside.count,
            self._spool.appended,
            None if self._bounds.room is None else max(self._bounds.room, 0),
            self._written,
            self._spool.size,
            self._meter.rates,
        )

    @property
    def _written(self) -> int:
        return self._disk.written + self._refused_disk.written
