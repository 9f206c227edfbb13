"""The losses that are recorded on disk, by name and by sequence: none of them counts twice."""

from collections.abc import Iterable

from gateway.acked import Range
from gateway.segments import Segments
from gateway.survey import sealed_span


class Recorded:
    """Those of one spool. One is known by the names of what it was of, as far as that has any."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.ranges: list[Range] = []
        """The batches that went, with the segment that they were in."""

    def knows(self, names: Iterable[str]) -> bool:
        """Whether one of these names is that of a loss."""
        return not self.names.isdisjoint(names)

    def counted_in(self, span: range) -> int:
        """Return how many of these readings, of all ever sealed, the losses stand for."""
        counted, end = 0, span.start
        for loss in sorted(map(sealed_span, self.names), key=lambda one: one.start):
            begin, stop = max(loss.start, end), min(loss.stop, span.stop)
            if begin < stop:
                counted, end = counted + stop - begin, stop
        return counted

    def still_in(self, segments: Segments) -> list[str]:
        """Return the names of what may still lie in a segment, or between two."""
        here = sorted(of for of in self.names if of.partition("-")[0] in segments)
        return self.ends(segments) + here

    def ends(self, segments: Segments) -> list[str]:
        """Return the names of those that end behind where the oldest segment begins, in order."""
        since = segments.begins.total
        ends = [(end, of) for of in self.names if (end := sealed_span(of).stop)]
        return [of for end, of in sorted(ends) if end > since]
