"""The batches that wait, by sequence: the writer puts them here, the loop lets go of them."""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from gateway.acked import Acked


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


class Shelf:
    """What is held of one directory, and with `acked` what became of the rest.

    It only touches memory; any thread may call its methods beside the others.
    """

    def __init__(self, acked: Acked) -> None:
        self.lock = Lock()
        """For who needs this and `acked` as they are at one moment; most methods here take it."""
        self._acked = acked
        self._held: dict[int, Held] = {}
        self._order: list[int] = []
        self._in: defaultdict[str, set[int]] = defaultdict(set)
        self._readings = 0

    def get(self, sequence: int) -> Held | None:
        """Return the batch of a sequence; this one takes no lock."""
        return self._held.get(sequence)

    def add(self, held: Held) -> None:
        """Hold one more batch, of a sequence that is not held."""
        with self.lock:
            self._held[held.sequence] = held
            self._in[held.segment].add(held.sequence)
            self._readings += held.readings
            bisect.insort(self._order, held.sequence)  # one of before a late mount may be low

    def waiting(self, after: int = 0, before: int | None = None) -> Iterator[Held]:
        """Yield what is held with after < sequence < before, oldest first."""
        while True:
            with self.lock:
                at = bisect.bisect_right(self._order, after)
                if at == len(self._order):
                    return
                held = self._held[self._order[at]]
            if before is not None and held.sequence >= before:
                return
            yield held
            after = held.sequence

    def any_of(self, segment: str) -> bool:
        """Whether something is held in a segment."""
        with self.lock:
            return segment in self._in

    def of(self, segment: str) -> list[Held]:
        """Return what is held in a segment, oldest first."""
        with self.lock:
            return [self._held[sequence] for sequence in sorted(self._in.get(segment, ()))]

    def counts(self) -> tuple[int, int]:
        """Return how many batches wait, and how many readings are in them."""
        with self.lock:
            return len(self._order), self._readings

    def lacks(self, other: "Shelf") -> dict[tuple[int, int], range]:
        """Return which readings of which batches, by name, are held there and not here."""
        with self.lock, other.lock:
            here = {held.name: held.readings for held in self._held.values()}
            lacking = {h.name: range(here.get(h.name, 0), h.readings) for h in other._held.values()}
        return {name: readings for name, readings in lacking.items() if readings}

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch: it was delivered, or set aside.

        Another epoch's of that sequence stays: it came with a disk that was put in place of ours.
        """
        with self.lock:
            here = self._held.get(held.sequence)
            if here and here.epoch == held.epoch:
                self._acked.add(held.sequence, held.readings)
                self._drop(held.sequence)

    def hide(self, held: Held) -> None:
        """Have a batch wait no more; it keeps its segment until it is dropped."""
        with self.lock:
            if held.sequence in self._held:
                self._order.remove(held.sequence)

    def drop(self, sequences: Iterable[int]) -> None:
        """Let go of batches that are told of elsewhere, as acknowledged or lost."""
        with self.lock:
            for sequence in sequences:
                if sequence in self._held:
                    self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        held = self._held.pop(sequence)
        self._readings -= held.readings
        at = bisect.bisect_left(self._order, sequence)
        if at < len(self._order) and self._order[at] == sequence:
            del self._order[at]
        self._in[held.segment].discard(sequence)
        if not self._in[held.segment]:
            del self._in[held.segment]
