"""Readings in RAM: as they came, in the batch that is being filled, sealed but not in the spool.

    append ──▶ fresh ──▶ filling ──▶ sealed ──▶ spool
                            └───────────┴──▶ journal, until they are there

A batch has its name, epoch and sequence, from its first reading on: the journal tells it, too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.filling import BATCH_READINGS, Filling
from gateway.flushed import Flushed
from gateway.journal import Journal
from gateway.losses import Losses
from gateway.reading import Reading
from gateway.spool import Spool
from gateway.wire import Batch, SizeBound, decode, encode

RAM_READINGS = 100_000


@dataclass(slots=True)
class Sealed:
    """A batch that has its name and its bytes, but is not in the spool yet."""

    epoch: int
    sequence: int
    readings: list[Reading]
    first_ms: int
    journaled: int
    payload: bytes

    @property
    def name(self) -> tuple[int, int]:
        """Sequence and epoch, as of a held one."""
        return self.sequence, self.epoch

    def append_to(self, spool: Spool) -> None:
        """Return when it is on the device; raises OSError."""
        spool.append(self.epoch, self.sequence, len(self.readings), self.first_ms, self.payload)


class Intake:
    """The readings of one run that are not in the spool, and the names of the batches they become.

    `append`, and what says how much there is, may be called beside the writer, who calls the rest.
    """

    def __init__(
        self,
        gateway: str,
        boot: int,
        epoch: int,
        losses: Losses,
        bound: Callable[[str], SizeBound],
    ) -> None:
        self.epoch = epoch
        self.taken = 0
        """Readings taken since the start."""
        self.filling: Filling | None = None
        self.sealed: deque[Sealed] = deque()
        self.renamed: set[int] = set()
        """Sequences that batches had before another directory needed them named anew."""
        self._gateway, self._boot, self._losses, self._bound = gateway, boot, losses, bound
        self._fresh: deque[Reading] = deque()
        self._sequence = 0
        self._previous: tuple[int, int] | None = None

    # Readings in

    def append(self, reading: Reading) -> None:
        """Take a reading; where there are too many, the oldest goes."""
        self.taken += 1
        self._fresh.append(reading)
        while len(self._fresh) > RAM_READINGS:
            self._fresh.popleft()
            self._losses.overflow()

    @property
    def has_a_batch(self) -> bool:
        """Whether those that came since the last tick are enough for a batch."""
        return len(self._fresh) >= BATCH_READINGS

    def fill(self, began: float) -> bool:
        """Return whether the batch that is being filled does not take the next reading.

        One that is begun by it counts as begun then.
        """
        while self._fresh:
            reading = self._fresh[0]
            if self.filling is None:
                self.filling = Filling(reading.instant, began, self._bound(self._gateway))
            if not self.filling.takes(reading):
                return True
            self._fresh.popleft()
        return False

    # To the journal

    def flush(self, journal: Journal, spool: Spool) -> None:
        """Flush the batch that is being filled; raises JournalFullError and OSError."""
        if self.filling:
            self._flush(journal, spool, self._sequence, self.filling)

    def flush_all(self, journal: Journal, spool: Spool, began: float) -> None:
        """Flush everything there is, as far as the journal has room; raises the same."""
        for batch in self.sealed:
            self._flush(journal, spool, batch.sequence, batch)
        while self.fill(began):
            self.flush(journal, spool)
            self.seal(spool)
        self.flush(journal, spool)

    def _flush(self, journal: Journal, spool: Spool, sequence: int, part: Filling | Sealed) -> None:
        if readings := part.readings[part.journaled :]:
            before, history = part.journaled, spool.history
            journal.write(Flushed(self.epoch, sequence, self._boot, readings, before, history))
            part.journaled = len(part.readings)

    # To the spool

    def seal(self, spool: Spool) -> None:
        """Make a batch of what is filled so far, to follow on those in `spool`."""
        filling, self.filling = self.filling, None
        if filling is None:
            return
        named = (self.epoch, self._sequence, self._boot)
        batch = self.encode(spool, *named, filling.readings, journaled=filling.journaled)
        self.sealed.append(batch)
        self._sequence += 1

    def encode(
        self,
        spool: Spool,
        epoch: int,
        sequence: int,
        boot: int,
        readings: list[Reading],
        *,
        journaled: int = 0,
    ) -> Sealed:
        """Return the batch. Whatever is in the journal, or was judged, can be made bytes of."""
        oldest = next(spool.waiting(), None)
        before = self._previous if epoch == self.epoch else spool.previous
        batch = Batch(
            *(self._gateway, epoch, sequence, boot, readings[0].instant.clock),
            oldest.sequence if oldest else self.sealed[0].sequence if self.sealed else sequence,
            readings,
            previous=before if before and before[0] != epoch else None,
            dropped=spool.dropped,
        )
        if epoch == self.epoch:
            self._previous = None
        payload = encode(batch)
        first_ms = min(reading.instant.wall_ms for reading in readings)
        return Sealed(epoch, sequence, readings, first_ms, journaled, payload)

    def hand_over(self, journal: Journal, spool: Spool) -> None:
        """Have what is sealed in the spool, and let the journal forget it; raises OSError."""
        while self.sealed:
            self.sealed[0].append_to(spool)
            self.sealed.popleft()
        if self.filling is None or not self.filling.journaled:
            journal.all_sealed()

    # To nowhere

    def give_up(self, spool: Spool) -> None:
        """Let go of what is in RAM alone; of a batch there stays what is in the journal."""
        self._fresh.clear()
        if self.filling:
            del self.filling.readings[self.filling.journaled :]
            self.filling = self.filling if self.filling.readings else None
        batches, self.sealed = self.sealed, deque()
        for batch in batches:
            if left := batch.readings[: batch.journaled]:
                was = decode(batch.payload)
                self._previous = was.previous
                named = (batch.epoch, batch.sequence, was.boot)
                self.sealed.append(self.encode(spool, *named, left, journaled=len(left)))

    # Names

    @property
    def last(self) -> int:
        """The highest sequence given to a batch, -1 before the first."""
        return self._sequence - 1

    def follow(self, previous: tuple[int, int] | None) -> None:
        """Have the first batch of this run say which one it comes after."""
        if not self._sequence:
            self._previous = previous

    def go_on_behind(self, last: int) -> None:
        """Name batches above this sequence from now on."""
        self._sequence = max(self._sequence, last + 1)

    def name_anew(self, spool: Spool, last: int) -> None:
        """Name what waits in RAM above all that is in a directory that came in place of ours.

        At its next start what is named below would be taken for acknowledged. None of it was
        handed out yet under the name that it has.
        """
        if self.sealed and self.sealed[0].name in {held.name for held in spool.waiting()}:
            self.sealed.popleft()  # it was on its way there when the sync failed
        if not self.sealed or last < self.sealed[0].sequence:
            return
        self.go_on_behind(last)
        batches, self.sealed = self.sealed, deque()
        for batch in batches:
            self.renamed.add(batch.sequence)
            self._previous = decode(batch.payload).previous
            named = (self.epoch, self._sequence, self._boot)
            self.sealed.append(self.encode(spool, *named, batch.readings))
            self._sequence += 1

    # What there is

    @property
    def unsaved(self) -> int:
        """How many readings are nowhere but in RAM."""
        filling = self.filling
        young = len(filling.readings) - filling.journaled if filling else 0
        return len(self._fresh) + young + sum(len(b.readings) - b.journaled for b in self.sealed)

    def waiting(self) -> tuple[int, int]:
        """Return how many batches are sealed, and how many readings there are in all."""
        filling, sealed = self.filling, list(self.sealed)
        unsealed = len(filling.readings) if filling else 0
        return len(sealed), sum(len(b.readings) for b in sealed) + unsealed + len(self._fresh)

    @property
    def oldest_ms(self) -> int | None:
        """Unix ms of the first reading, None where there is none."""
        if sealed := list(self.sealed):
            return sealed[0].first_ms
        if filling := self.filling:
            return filling.first.wall_ms
        fresh = list(self._fresh)
        return fresh[0].instant.wall_ms if fresh else None
