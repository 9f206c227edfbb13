"""What recovery found missing, beside what is held and acknowledged: how much of it is lost."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.acked import Acked, Range, Told
from gateway.damage import Damage
from gateway.disk import Disk
from gateway.flushed import Flushed
from gateway.held import Held, Shelf
from gateway.missing import Missing
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading
from gateway.record import NOWHERE, Kind, Place, Record, claims, pack, size_of
from gateway.recorded import Recorded
from gateway.survey import Gap, Survey
from gateway.wire import Batch, encode


def told(sequence: int, readings: int) -> bytes:
    """Damaged bytes whose head says that they were this batch."""
    return pack(Record(Kind.BATCH, 1, sequence, readings, 0, b"", Place(0, 0, 1)))


def gap(missing: int | None, hole: Iterable[int] = (), data: bytes = b"b", before: int = 0) -> Gap:
    hole = range(min(hole, default=5), max(hole, default=4) + 1)
    return Gap("1", 0, data, missing=missing, hole=hole, place=Place(before, 0, 1))


@dataclass
class Found:
    """A disk with these gaps, and these batches held: epoch, sequence, readings."""

    gaps: list[Gap]
    held: list[tuple[int, int, int]] = field(default_factory=list)
    acked: list[Range] = field(default_factory=list)
    lost: set[Range] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.done = Acked(Disk(Path("/none")))
        self.done.ranges = self.acked
        shelf, survey, recorded = Shelf(self.done), Survey(), Recorded()
        survey.gaps, recorded.ranges = self.gaps, self.lost
        for epoch, sequence, readings in self.held:
            shelf.add(Held(epoch, sequence, readings, 0, "2", 0, 0))
        self.missing = Missing(survey, shelf, self.done, recorded)

    @property
    def damage(self) -> Damage:
        (damage,) = self.missing.damage()
        return damage


def test_of_readings_that_no_sequence_is_known_of_none_is_delivered():
    found = Found([gap(3)], acked=[(4, 6, 9)])
    assert found.damage.cost == "at most 3"


def test_where_heads_tell_of_all_that_is_not_settled_that_is_what_is_lost():
    for settled in ({"acked": [(6, 8, 9)]}, {"lost": {(6, 8, 9)}}):
        found = Found([gap(5, {5, 6}, told(5, 2))], **settled)
        assert found.damage.cost == "2"


def test_what_is_recorded_and_acknowledged_as_well_stands_for_no_other():
    known = (([(5, 5, 2)], 3), ([(4, 5, 9)], 3), ([(4, 4, 9)], 3), ([(6, 6, 1)], 2), ([], 3))
    for acked, lost in known:
        assert Found([gap(5, {5, 6})], acked=acked, lost={(5, 5, 2)}).damage.lost == lost


def test_what_is_recorded_is_acknowledged_with_the_readings_that_it_had_but_for_what_is_held():
    for held, acked in (([], [(4, 6, 9)]), ([(2, 5, 1)], [(4, 4, 9), (6, 6, 0)])):
        found = Found([], lost={(4, 6, 9)}, held=held)
        found.missing.counted(9)
        assert found.done.ranges == acked
        found.done.ranges.clear()  # as their segments go
        found.missing.counted(9)
        assert found.done.ranges == []


def test_what_the_journal_had_of_a_batch_that_a_head_tells_of_is_not_lost():
    for held, lost in (((1, 5, 1), 2), ((1, 5, 3), 0), ((1, 5, 4), 0), ((2, 5, 3), 3)):
        assert Found([gap(None, data=told(5, 3))], held=[held]).damage.lost == lost


def test_more_that_is_held_than_is_missing_stands_for_no_other():
    damage = Found([gap(2, {5})], held=[(9, 5, 4)]).damage
    assert (damage.lost, damage.mended) == (0, b"")


def test_what_lies_aside_is_settled_unless_it_waits_or_nobody_knows_what_it_had():
    found = Found([gap(2, {4})], held=[(1, 5, 1)])
    found.missing.lie_aside([(5, 1), (6, 2), (7, 0)])
    assert found.done.ranges == [(6, 6, 2)]


def test_what_lies_aside_is_not_read_where_nothing_is_missing():
    Found([]).missing.lie_aside(those := iter([(5, 1)]))
    assert list(those) == [(5, 1)]


def frame(sequence: int, readings: int) -> Flushed:
    reading = Reading("river", TEMPERATURE, Instant(0, 0, ClockState.SYNCED), 1.0)
    return Flushed(1, sequence, 7, [reading] * readings)


def test_the_journal_stands_for_no_more_than_what_is_missing_at_the_end():
    found = Found([gap(3, {2}), gap(2, {6}, before=7)])
    found.done.found = Told(1, [], 0, 9, 6, NOWHERE, [])
    assert found.missing.saved([frame(6, 5), frame(7, 1)]) == 2
    assert [gap.missing for gap in found.gaps] == [3, 0]


def test_no_damaged_batch_settles_one_that_is_still_to_come_or_has_no_name():
    readings = frame(0, 1).readings
    none = bytes(size_of(b"")) + encode(Batch("g", 1, 0, 7, ClockState.SYNCED, 0, readings))
    found = Found([gap(None, data=none + told(5, 2) + told(99, 2))])
    assert [record.sequence for record in claims(found.gaps[0].data)] == [0, 5, 99]
    found.missing.counted(5)
    assert (found.done.ranges, found.missing.uncounted) == ([(5, 5, 2)], False)
