"""What recovery found missing, and how many of those readings are lost: until it is counted.

Some may be held all the same, from the journal or written twice; others were delivered.
"""

from collections.abc import Iterable
from dataclasses import replace

from gateway.acked import Acked, within
from gateway.damage import Damage
from gateway.flushed import Flushed
from gateway.held import Shelf
from gateway.record import Record, claims
from gateway.recorded import Recorded
from gateway.survey import Gap, Survey


class Missing:
    """The gaps of a survey, beside what is held and what `acked` knows."""

    def __init__(self, survey: Survey, shelf: Shelf, acked: Acked, recorded: Recorded) -> None:
        self._survey, self._shelf, self._acked, self._recorded = survey, shelf, acked, recorded
        self.may_return = False
        """Whether a segment is missing that fsck may bring back: what is in it goes out then."""

    @property
    def uncounted(self) -> bool:
        """Whether there is something whose loss is not recorded yet."""
        return bool(self._survey.gaps)

    def add_foreign(self, segment: str, at: int, data: bytes) -> None:
        """Take up another box's batch of a number of ours: it is told of as damage is."""
        self._survey.gaps.append(Gap(segment, at, data, True, foreign=True))

    def end(self) -> int:
        """Settle the ends of the survey once all is read; return how many readings were sealed."""
        total = self._survey.place.total if self._survey.place else 0
        if told := self._acked.found:
            self._survey.end(told.oldest, told.sealed, told.last)
            total = max(total, told.sealed)
        else:
            self._acked.since = self._survey.end_untold()
        return total

    def lie_aside(self, batches: Iterable[tuple[int, int]]) -> None:
        """Take these for acknowledged, by sequence and readings: a power cut may forget that.

        It takes long to read them: only where something is missing.
        """
        for sequence, readings in batches if self.uncounted else ():
            with self._shelf.lock:
                if readings and self._shelf.get(sequence) is None:
                    self._acked.add(sequence, readings)

    def saved(self, frames: Iterable[Flushed]) -> int:
        """Have these of the journal, which are in no batch, take the place of what is missing.

        Return how many readings fewer are missing then: they are sealed again, behind the others.
        """
        told = self._acked.found
        for gap in self._survey.gaps:
            if told and gap.missing and gap.span.stop == told.sealed:
                again = sum(len(f.readings) for f in frames if f.sequence <= told.last)
                gap.again = min(again, gap.missing)
                gap.missing -= gap.again
                return gap.again
        return 0

    @property
    def holes(self) -> set[int]:
        """The sequences that are missing, as far as they are known."""
        return {sequence for gap in self._survey.gaps if gap.missing for sequence in gap.hole}

    def damage(self) -> list[Damage]:
        """Return what recovery could not read, with the readings that are held nowhere else."""
        found = map(self._damage, self._survey.gaps)
        return [*self._survey.mended, *(each for each in found if each.data or each.lost)]

    def _damage(self, gap: Gap) -> Damage:
        told = list(claims(gap.data))
        lost = sum(r.readings if gap.foreign else self._lost(r) for r in told) if told else None
        unsure = False
        if gap.missing is not None:
            lost, unsure = self._missing_in(gap, told)
        gone = max((gap.missing or 0) - self._held(gap), 0)  # else what is held is bridged as well
        bridge = replace(gap, missing=gone).bridge
        more = bridge, gap.unreadable, unsure, gap.loss(lost or 0)
        return Damage(gap.segment, gap.at, gap.data, lost, *more)

    def _missing_in(self, gap: Gap, told: list[Record]) -> tuple[int, bool]:
        """Return how many of the missing readings are lost, and whether it may be fewer.

        It may where some of the batches are delivered, and not even their heads are left.
        """
        counted, spared = self._recorded.counted_in(gap.span)
        missing = (gap.missing or 0) - counted
        if not missing:
            return 0, False
        settled, others = self._settled_in(gap.hole)
        unsure = others or gap.hole.start < self._acked.since
        of = {record.sequence for record in told}
        if unsure and gap.hole and all(s in of or self._is_settled(s, gap.whole) for s in gap.hole):
            return sum(map(self._lost, told)), False
        elsewhere = self._held(gap) + settled - spared
        return max(missing - max(elsewhere, 0), 0), unsure

    def _settled_in(self, hole: range) -> tuple[int, bool]:
        """Return how many readings are acknowledged or recorded, and if more may be.

        What is recorded as lost is acknowledged, too, from the next start on at the latest.
        """
        acked, others = within(self._acked.ranges, hole)
        recorded, more = within(self._recorded.ranges, hole)
        again = {one for one in recorded for first, last, _ in acked if first <= one[0] <= last}
        settled = [*acked, *(one for one in recorded if one not in again)]
        return sum(readings for *_, readings in settled), others or more

    def _held(self, gap: Gap) -> int:
        """Return how many of the missing readings are held, besides those of the journal."""
        return sum(held.readings for s in gap.hole if (held := self._shelf.get(s))) - gap.again

    def _is_settled(self, sequence: int, whole: bool) -> bool:
        """Whether a batch was delivered, or is counted; `whole` segments go for that alone.

        One that is held may be the beginning of what was sealed: the journal had no more.
        """
        gone = any(first <= sequence <= last for first, last, _ in self._recorded.ranges)
        return sequence in self._acked or gone or (whole and sequence < self._acked.since)

    def _lost(self, record: Record) -> int:
        held = self._shelf.get(record.sequence)
        if held and held.epoch == record.epoch:  # from the journal, or written a second time
            return max(record.readings - held.readings, 0)
        return 0 if record.sequence in self._acked else record.readings

    def counted(self, last: int) -> None:
        """Take what is lost for acknowledged, or each start that meets the gap counts it."""
        with self._shelf.lock:
            for gap in () if self.may_return else self._survey.gaps:
                self._settle(gap, last)
            for first, final, readings in self._recorded.ranges:  # their records may go, too
                for sequence in range(first, final + 1):
                    if self._shelf.get(sequence) is None:
                        self._acked.add(sequence, readings if sequence == first else 0)
        self._survey.gaps.clear()
        self._recorded.ranges.clear()

    def _settle(self, gap: Gap, last: int) -> None:
        told = {record.sequence: record.readings for record in claims(gap.data)}
        if gap.missing:  # the name of the loss stands for the readings
            told = dict.fromkeys(gap.hole, 0)
        for sequence, readings in told.items():
            if 0 < sequence <= last and self._shelf.get(sequence) is None:
                self._acked.add(sequence, readings)
