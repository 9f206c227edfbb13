"""The losses that are recorded on disk, by name and by sequence: none of them counts twice."""

from collections.abc import Iterable

from gateway.acked import Range
from gateway.record import Place
from gateway.segments import Segments
from gateway.survey import Sealed, sealed


class Recorded:
    """Those of one spool. One is known by what it was of, as far as its names tell that."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.ranges: set[Range] = set()
        """The batches that went, with the segment that they were in."""
        self._sealed: list[Sealed] = []

    def add(self, names: Iterable[str]) -> None:
        """Take up losses."""
        new = set(names) - self.names
        self.names |= new
        self._sealed += filter(None, map(sealed, new))

    def knows(self, names: Iterable[str]) -> bool:
        """Whether a loss of these names is recorded: its readings, else under one of the names.

        The same bytes may be met again, and stand for more.
        """
        for loss in filter(None, map(sealed, names)):
            counted, _ = self.counted_in(loss.span)
            if counted:
                return counted == len(loss.span)
        return not self.names.isdisjoint(names)

    def counted_in(self, span: range) -> tuple[int, int]:
        """Return how many of these readings, of all ever sealed, there was a count of before.

        And how many of those were not lost.
        """
        counted, lost, end = 0, 0, span.start
        near = [one for one in self._sealed if one.begin < span.stop and one.end > span.start]
        for one in sorted(near):
            begin, stop = max(one.begin, span.start), min(one.end, span.stop)
            lost += max(one.lost - (len(one.span) - (stop - begin)), 0)
            counted += max(stop - max(begin, end), 0)
            end = max(end, stop)
        return counted, max(counted - lost, 0)

    def still_in(self, segments: Segments, oldest: Place) -> list[str]:
        """Return the names of what may still lie in a segment, or between two."""
        here = sorted(of for of in self.names if of.partition("-")[0] in segments)
        return self.ends(oldest) + here

    def ends(self, oldest: Place) -> list[str]:
        """Return the names of those that end behind where the oldest segment begins, in order."""
        ends = [(loss.end, of) for of in self.names if (loss := sealed(of))]
        return [of for end, of in sorted(ends) if end > oldest.total]
