"""Reads segments as they lie on disk, and finds what is missing between their records.

    segment 7:  head | record | damaged bytes | record |     segment 8:  head | …
                         place ▸              ◂ place  ▸                 ◂ place

Each record says how many readings were sealed before it. What the next one found says besides what
the ones before it hold was sealed and is there no more, though not a byte of it may be left: of 60
batches on 4 KiB that were wiped, going by the heads that were left, 5 of 195 readings were counted.
What no record stands behind, such as the end of the newest segment, `acked` tells of.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import msgpack

from gateway.damage import Damage
from gateway.disk import BLOCK
from gateway.record import NOWHERE, Kind, Place, Record, pack, records, size_of

_SEALED = re.compile(r"sealed-([0-9]+)-([0-9]+)-([0-9]+)")


@dataclass(slots=True)
class Gap:
    """Bytes that are no record, or a place between two records where some are missing."""

    segment: str
    at: int
    data: bytes
    unreadable: bool = False
    """Whether some of the bytes cannot be read; zeros stand for them."""
    last: bool = False
    """Whether nothing stands behind it in its segment."""
    missing: int | None = None
    """How many readings were sealed here; None: nothing tells."""
    again: int = 0
    """How many more were, which the journal has."""
    place: Place = NOWHERE
    """That of the first of them."""
    hole: range = range(0)
    """The sequences that they had, as far as that is known."""
    whole: bool = False
    """Whether whole segments are missing, which may have gone because they were delivered."""
    foreign: bool = False
    """Whether it is another box's batch, of which nothing here tells."""

    @property
    def shows(self) -> bool:
        """Whether it is seen in the bytes themselves."""
        return self.unreadable or any(self.data)

    @property
    def span(self) -> range:
        """Which of all readings ever sealed the missing ones are."""
        return range(self.place.total, self.place.total + (self.missing or 0))

    def loss(self, lost: int) -> str:
        """Return what the loss of so many is known by, wherever another start sees it."""
        return loss_of(self.span.stop, self.missing, lost) if self.missing else ""

    @property
    def bridge(self) -> bytes:
        """What belongs there once the missing ones are counted, so that they are met once."""
        if not self.missing:
            return b""
        first = msgpack.packb(self.hole.start)
        last = self.hole.stop - 1
        # In place of its head a segment begins there, not where the one before did
        place = self.place if self.at else Place(self.place.total, 0, self.hole.start)
        bridge = pack(Record(Kind.GAP, 0, last, self.missing, 0, first, place))
        return bridge if self.last or len(bridge) <= len(self.data) else b""


def loss_of(end: int, missing: int, lost: int) -> str:
    """Return the name of the loss of so many of all ever sealed, of those missing before `end`."""
    return f"sealed-{end}-{missing}-{lost}"


class Sealed(NamedTuple):
    """Some of all readings ever sealed, which were missing."""

    begin: int
    end: int
    lost: int
    """So many of them were lost, beside what was counted of them before."""

    @property
    def span(self) -> range:
        """Which they are."""
        return range(self.begin, self.end)


@lru_cache(1 << 14)  # each loss that is recorded asks for all of them
def sealed(loss: str) -> Sealed | None:
    """Return which sealed readings the name of a loss tells of, if of any."""
    if found := _SEALED.fullmatch(loss):
        end, missing, lost = map(int, found.groups())
        return Sealed(end - missing, end, lost)
    return None


class Survey:
    """What is in the segments of one directory, read in their order."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self.mended: list[Damage] = []
        """Heads that are damaged, and what belongs there."""
        self.place: Place | None = None
        """That behind the last record found; None: there is none that tells it."""
        self._open: list[Gap] = []  # those that nothing has been found behind yet
        self._before: list[Gap] = []  # those before all that was found, which begins here
        self._begin: Place | None = None
        self._last = 0
        self._number: int | None = None

    def read(self, name: str, data: bytes, bad: Sequence[int], number: int) -> Iterator[Record]:
        """Yield the records of a segment; `bad` is where the blocks begin that cannot be read."""
        skipped = self._number is not None and number > self._number + 1
        self._number, end = number, 0
        found = list(records(data))
        if place := next((record.place for record in found if record.place.first), None):
            self._enter(name, place.begin, skipped)
        for record in found:
            if record.at != end or self._is_behind(record):
                self._open.append(_gap(name, end, data[end : record.at], bad))
            placed = self._pass(record)
            if record.mended:
                self._mend(name, data, placed, bad)
            end = record.at + size_of(record.payload)
            yield record
        rest = _gap(name, end, data[end:], bad)
        self._open.append(replace(rest, data=rest.data if rest.shows else b"", last=True))

    def _enter(self, name: str, begin: Place, skipped: bool) -> None:
        """Settle what is open before the segment that begins there."""
        if self.place is None:
            self._before, self._open = self._open or [Gap(name, 0, b"")], []
            self._begin = begin
        elif begin.total < self.place.total:  # a copy, or written again after a failed sync
            return
        else:
            self._settle(self.place, begin.total, begin.first - 1, skipped)
        self.place, self._last = begin, begin.first - 1

    def _is_behind(self, record: Record) -> bool:
        """Whether something ought to stand between this record and the one before it."""
        return record.kind != Kind.LOSS and record.place.first > 0 and record.place != self.place

    def _pass(self, record: Record) -> Record:
        """Go on behind a record; return it with its place."""
        if record.kind == Kind.LOSS:  # what it tells of lay elsewhere
            return record
        if self.place is None:
            return record
        if not record.place.first:  # a gap, or a head that does not tell
            record = replace(record, place=self.place)
        if record.place.total < self.place.total:  # a block that holds what it did long ago, too
            return record
        first = record.sequence if record.kind != Kind.GAP else msgpack.unpackb(record.payload)
        self._settle(self.place, record.place.total, first - 1)
        self.place = record.behind
        self._last = max(self._last, record.sequence - (record.kind == Kind.HEAD))
        return record

    def _settle(self, begin: Place | None, end: int, last: int, skipped: bool = False) -> None:
        """Have what is open stand for readings from `begin` to `end`, of batches up to `last`."""
        missing = end - begin.total if begin else None
        gaps = [gap for gap in self._open if gap.shows]
        if missing and not gaps:  # zeros, a file that was cut off, or is gone
            gaps = self._open
        for gap in gaps:
            gap.missing = missing and 0
        if gaps:
            widest = max(gaps, key=lambda gap: len(gap.data))
            widest.missing, widest.hole = missing, range(self._last + 1, last + 1)
            widest.place, widest.whole = begin or NOWHERE, skipped and not widest.shows
        self.gaps += [gap for gap in gaps if gap.shows or gap.missing]
        self._open = []

    def _mend(self, name: str, data: bytes, record: Record, bad: Sequence[int]) -> None:
        at, size = record.at, size_of(b"")
        unreadable = is_bad(bad, at, size)
        found, right = data[at : at + size], pack(record)[:size]
        self.mended.append(Damage(name, at, found, 0, right, unreadable))

    def end(self, oldest: Place, sealed: int, last: int) -> None:
        """Settle what is open at the ends, by another's word.

        That is: where the oldest segment began, how many readings were sealed, the last sequence.
        """
        if self.place is None:
            self._before = self._open or [Gap("", 0, b"")]
            end = Place(sealed, 0, last + 1)
        else:
            self._settle(self.place if sealed > self.place.total else None, sealed, last)
            end = self._begin or self.place
        self._open, self._last = self._before, oldest.first - 1
        known = oldest.first and end.total > oldest.total
        self._settle(oldest if known else None, end.total, end.first - 1)

    def end_untold(self) -> int:
        """Settle it when nobody tells; return below which sequence that leaves something open."""
        since = max([gap.hole.stop for gap in self.gaps if gap.missing], default=0)
        self.gaps = [gap for gap in self.gaps if not gap.whole]
        self._settle(None, 0, 0)
        self._open = self._before
        self._settle(None, 0, 0)
        return max(since, self._begin.first if self._begin else 0)


def _gap(name: str, at: int, data: bytes, bad: Sequence[int]) -> Gap:
    unreadable = bool(data) and is_bad(bad, at, len(data))
    return Gap(name, at, data, unreadable)


def is_bad(bad: Sequence[int], at: int, length: int) -> bool:
    """Whether some of these bytes cannot be read."""
    return any(at - BLOCK < block < at + length for block in bad)
