"""The losses on disk: what was missing twice, or in part, counts once."""

from pathlib import Path

import pytest

from gateway.disk import Disk
from gateway.record import NOWHERE, Place
from gateway.recorded import Recorded
from gateway.segments import Segment, Segments


def recorded(*losses: str) -> Recorded:
    """Take up one after the other."""
    those = Recorded()
    for loss in losses:
        those.add([loss])
    return those


@pytest.mark.parametrize(
    ("losses", "span", "counted", "not_lost"),
    [
        (["sealed-14-6-1", "sealed-10-4-3"], range(6, 14), 8, 4),  # 8 to 14, then 6 to 10
        (["sealed-10-10-0", "sealed-4-2-0", "sealed-6-2-0"], range(10), 10, 10),
        (["sealed-10-10-3"], range(5), 5, 5),  # the three may be among the others
        (["sealed-10-10-7"], range(5), 5, 3),
        (["sealed-4-4-4", "sealed-4-4-3"], range(4), 4, 0),
        (["sealed-4-4-4"], range(4, 9), 0, 0),
    ],
)
def test_each_reading_counts_once_and_as_lost_only_where_that_is_certain(
    losses: list[str], span: range, counted: int, not_lost: int
):
    assert recorded(*losses).counted_in(span) == (counted, not_lost)


def test_the_spool_begins_where_the_first_segment_does_that_holds_something(tmp_path: Path):
    segments = Segments(Disk(tmp_path))
    assert segments.begins == NOWHERE
    segments.add(Segment("00000001.seg"))  # what a start left that was cut off
    segments.add(Segment("00000002.seg", first=5, place=Place(20, 10, 5)))
    assert segments.begins == Place(20, 10, 5).begin != NOWHERE


def test_names_are_kept_while_what_they_are_of_may_lie_there(tmp_path: Path):
    """The head of each segment carries them: it would grow for ever."""
    segments = Segments(Disk(tmp_path))
    segments.add(Segment("00000002.seg"))
    ends = [f"sealed-{end}-1-1" for end in range(1, 30)]
    those = recorded("00000001.seg-70-aa", "00000002.seg-70-bb", "00000002.seg", *reversed(ends))
    here = ["00000002.seg", "00000002.seg-70-bb"]
    assert those.still_in(segments, Place(20, 0, 1)) == [*ends[20:], *here]
