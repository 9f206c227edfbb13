"""What is left of a journal that is damaged, and how much the rest of it is known to have held."""

from pathlib import Path

import pytest

from gateway.disk import Disk
from gateway.journal import SLOT, Flushed, Journal, unsealed
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading

SHORT, LONG = "x", "x" * SLOT


def frame(sequence: int, readings: int, before: int = 0, value: str = SHORT) -> Flushed:
    reading = Reading("river", TEMPERATURE, Instant(0, 0, ClockState.SYNCED), value)
    return Flushed(1, sequence, 7, [reading] * readings, before)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(Disk(tmp_path))
    journal.recover(0)
    return journal


def written(journal: Journal, *frames: Flushed) -> bytearray:
    for each in frames:
        journal.write(each)
    return bytearray(journal._disk.read("journal"))


def spoil(data: bytearray, slot: int) -> None:
    """Have the frame that begins there known by its head alone."""
    for at in (5, 60):
        data[slot * SLOT + at] ^= 1


def found(data: bytes) -> tuple[list[int], list[tuple[str, int | None]]]:
    """Return the sequences of the frames, and what the others are of and held."""
    frames, damaged = unsealed(bytes(data), 0)
    return [each.sequence for each in frames], [(each.of, each.lost) for each in damaged]


def test_a_first_slot_that_is_no_frame_is_told_of_and_remains_behind_are_not():
    slot, unused = b"b" * SLOT, bytes(SLOT)
    assert found(slot) == ([], [("", None)])
    assert found(unused + slot) == ([], [])


def test_a_frame_that_is_there_twice_makes_nothing_of_what_is_between(journal: Journal):
    data = written(journal, frame(5, 2), frame(5, 1, before=2), frame(5, 1, before=1))
    data[SLOT : 2 * SLOT] = b"b" * SLOT
    assert found(data) == ([5, 5], [("5-1", None)])


def test_what_is_missing_before_a_frame_is_none_of_another_batch(journal: Journal):
    data = written(journal, frame(4, 3), frame(5, 1, before=2))
    spoil(data, 0)
    assert found(data) == ([5], [("4-1", 3)])


def test_what_is_missing_before_a_frame_is_missing_once(journal: Journal):
    parts = frame(5, 1), frame(5, 2, before=1), frame(5, 3, before=3, value=LONG)
    data = written(journal, frame(4, 1), *parts, frame(5, 1, before=6))
    data[SLOT : 2 * SLOT] = b"b" * SLOT
    spoil(data, 2)
    assert found(data) == ([4, 5, 5], [("5-1", 1 + 2), ("5-1", 0)])


def test_a_frame_whose_length_is_wrong_hides_none_behind_it(journal: Journal):
    data = written(journal, frame(5, 1), frame(5, 1, before=1))
    spoil(data, 0)
    data[10] ^= 1  # 64 KiB more
    assert found(data) == ([5], [("5-1", 1)])


def test_two_frames_that_are_damaged_are_counted_each(journal: Journal):
    data = written(journal, frame(4, 1), frame(5, 2))
    for slot in (0, 1):
        spoil(data, slot)
    journal._disk.write("journal", 0, bytes(data))
    _, damaged = journal.recover(0)
    assert [each.lost for each in damaged] == [1, 2]
