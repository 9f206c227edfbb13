"""What is left of a journal that is damaged, and how much the rest of it is known to have held."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from crash_disk import CrashDisk

from gateway.disk import Disk
from gateway.flushed import MAGIC, SLOT, SLOTS, Flushed, content
from gateway.journal import Journal, JournalFullError
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


def found(data: bytes, sealed: int = 0) -> tuple[list[int], list[tuple[str, int | None]]]:
    """Return the sequences of the frames, and what the others are of and held."""
    frames, damaged, _ = content(bytes(data), sealed)
    return [each.sequence for each in frames], [(each.of, each.lost) for each in damaged]


def test_a_first_slot_that_is_no_frame_is_told_of_and_remains_behind_are_not():
    slot, unused = b"b" * SLOT, bytes(SLOT)
    assert found(slot) == ([], [("", None)])
    assert found(unused + slot) == ([], [])


def test_a_frame_that_is_there_twice_makes_nothing_of_what_is_between(journal: Journal):
    data = written(journal, frame(5, 2), frame(5, 1, before=2), frame(5, 1, before=1))
    data[SLOT : 2 * SLOT] = b"b" * SLOT
    assert found(data) == ([5], [("5-1", None)])


def test_what_is_missing_before_a_frame_is_none_of_another_batch(journal: Journal):
    data = written(journal, frame(4, 3), frame(5, 1, before=2))
    spoil(data, 0)
    assert found(data) == ([5], [("4-1", 3)])


@pytest.mark.parametrize("slot", [0, 1])
def test_what_is_wrong_with_the_only_frame_of_a_batch_is_told(journal: Journal, slot: int):
    data = written(journal, frame(19, 2), frame(20, 2), frame(21, 1))
    data[slot * SLOT + SEQUENCE] = 2
    assert found(data, sealed=18) == ([20 - slot, 21], [("2-1", 2)])


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
    damaged = journal.recover(0).damaged
    assert [each.lost for each in damaged] == [1, 2]


@pytest.fixture
def used(journal: Journal) -> bytearray:
    """Return frames of a batch that is not sealed, of 2 readings and 3, before those of older."""
    written(journal, *(frame(17, 1, before=n) for n in range(6)))
    journal.all_sealed()
    written(journal, *(frame(18, 1, before=n) for n in range(4)))
    journal.all_sealed()
    return written(journal, frame(19, 2), frame(19, 3, before=2))


SEQUENCE = 16
"""Where its lowest byte is in a frame."""
READINGS = 37
"""Likewise how many there are."""


@pytest.mark.parametrize(
    ("at", "wrong", "told"),
    [
        (SLOT + SEQUENCE, bytes([2]), [("19-1", 3)]),
        (SLOT + SEQUENCE, bytes(8), [("", None)]),
        (SLOT + 4, bytes(56), [("", None)]),
        (SLOT, bytes(64), [("", None)]),
        (SLOT, b"\xff" * 512, [("", None)]),
        (SLOT, bytes(range(1, 65)), [("", None)]),
        (SLOT + SEQUENCE, bytes([200]), [("200-1", 3)]),
        (SLOT + SEQUENCE, bytes([2, *[0] * 11, 200]), [("", None)]),
        (SLOT + SEQUENCE, bytes([2, *[0] * 26, 20, 0]), [("", None)]),
        (SLOT + SEQUENCE, bytes([2, *[0] * 20, 3, 0, 0, 0, 9]), [("2-1", 3)]),
        (SLOT, bytes([*[0] * SEQUENCE, 20, *[0] * 47]), [("", None)]),
        (SLOT + READINGS, bytes([0, 0, 1]), [("19-1", None)]),
    ],
)
def test_whatever_is_wrong_with_the_newest_frame_it_is_told(used, at, wrong, told):
    used[at : at + len(wrong)] = wrong
    assert found(used, sealed=18) == ([19], told)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (bytes(60), [("", None)]),
        (b"\xff" * 60, [("", None)]),
        (MAGIC + bytes(56), [("", None)]),
    ],
)
def test_whatever_is_wrong_with_all_of_a_batch_it_is_told(used, wrong, told):
    for slot in (0, 1):
        used[slot * SLOT : slot * SLOT + len(wrong)] = wrong
    assert found(used, sealed=18) == ([], told)


def test_the_first_slot_holds_nothing_that_is_older_than_those_behind_it(journal: Journal):
    written(journal, frame(17, 1), frame(17, 1, before=1))
    journal.all_sealed()
    data = written(journal, frame(19, 2))
    data[SEQUENCE] = 2
    assert found(data, sealed=18) == ([], [("2-1", 2)])
    assert content(bytes(data), 18).damaged[0].cost == "at most 2"


def test_what_is_wrong_with_the_head_of_a_frame_is_known_by_the_one_behind_it(used: bytearray):
    used[SEQUENCE] = 2
    assert found(used, sealed=18) == ([19], [("19-1", 2)])


@pytest.mark.parametrize("slot", [2, 3, 4, 5])
def test_what_is_wrong_with_an_older_frame_is_no_loss(used: bytearray, slot: int):
    spoil(used, slot)
    assert found(used, sealed=18) == ([19, 19], [])
    used[slot * SLOT :] = b"b" * (len(used) - slot * SLOT)
    assert found(used, sealed=18) == ([19, 19], [("", None)] if slot == 2 else [])


def test_an_older_frame_of_several_slots_leaves_none_that_is_taken_for_damage(journal: Journal):
    written(journal, frame(17, 5, value=LONG))
    journal.all_sealed()
    assert found(written(journal, frame(18, 1)), sealed=17) == ([18], [])
    data = written(journal, frame(18, 1, before=1))
    assert found(data, sealed=17) == ([18, 18], [])
    assert data[3 * SLOT : 4 * SLOT].strip(b"\0"), "it goes on behind a slot of zeros"


def test_nor_does_one_whose_sync_failed():
    journal = Journal(disk := CrashDisk())
    journal.recover(0)
    disk.failing = 1
    with pytest.raises(OSError, match="Input/output"):
        journal.write(frame(17, 5, value=LONG))
    journal.all_sealed()
    journal.write(frame(18, 1))
    assert found(disk.read("journal"), sealed=17) == ([18], [])


def test_nor_does_half_of_one_where_the_next_batch_ends():
    journal = Journal(disk := CrashDisk())
    journal.recover(0)
    journal.write(frame(17, 1))
    disk.failing = 1
    with pytest.raises(OSError, match="Input/output"):
        journal.write(frame(17, 1, before=1))
    journal.all_sealed()
    journal.write(frame(18, 1))
    assert not any(disk.read("journal", SLOT)), "a power cut may leave what its head is not of"


def test_nor_after_a_start(journal: Journal):
    written(journal, frame(17, 5, value=LONG))
    again = Journal(journal._disk)
    again.recover(17)
    again.all_sealed()
    assert found(written(again, frame(18, 1)), sealed=17) == ([18], [])


@pytest.mark.parametrize("seed", range(5))
def test_nor_where_the_sync_of_the_zeros_behind_a_frame_failed_and_a_power_cut_came(seed: int):
    journal = Journal(disk := CrashDisk())
    journal.recover(0)
    journal.write(frame(17, 5, value=LONG))
    journal.all_sealed()
    disk.failing = 1
    with pytest.raises(OSError, match="Input/output"):
        journal.write(frame(18, 1))
    journal.write(frame(18, 1))
    disk.crash(Random(seed))
    assert found(disk.read("journal"), sealed=17) == ([18], [])


def test_a_slot_of_zeros_is_written_only_where_a_frame_of_several_stood(journal: Journal):
    written(journal, frame(17, 1, value=LONG))
    journal.all_sealed()
    before = journal._disk.written
    written(journal, frame(18, 1))
    assert journal._disk.written == before + 2 * SLOT
    journal.all_sealed()
    written(journal, frame(19, 1))
    assert journal._disk.written == before + 3 * SLOT
    again = Journal(journal._disk)
    again.recover(19)
    again.write(frame(20, 1))
    assert journal._disk.written == before + 4 * SLOT
    again.recover(20)
    again.all_sealed()
    again.write(frame(21, 2, value=LONG))
    assert journal._disk.written == before + 7 * SLOT


def test_nor_is_one_where_frames_of_one_slot_stood_before_a_start(journal: Journal):
    written(journal, frame(17, 1), frame(17, 1, before=1))
    again = Journal(journal._disk)
    again.recover(17)
    again.all_sealed()
    before = journal._disk.written
    again.write(frame(18, 1))
    assert journal._disk.written == before + SLOT


def test_bad_slots_one_after_the_other_where_the_newest_would_stand_are_told(used: bytearray):
    used[SEQUENCE] = 2
    used[SLOT : SLOT + 60] = bytes(60)
    assert found(used, sealed=18) == ([], [("2-1", 2), ("", None)])


def test_what_is_bad_between_frames_of_sealed_batches_is_no_loss(journal: Journal):
    data = written(journal, *(frame(17, 1, before=n) for n in range(3)))
    data[SLOT : 2 * SLOT] = b"b" * SLOT
    assert found(data, sealed=17) == ([], [])


@pytest.mark.parametrize("slot", [0, 1])
def test_nor_are_heads_of_sealed_batches_that_are_right(journal: Journal, slot: int):
    parts = [frame(17, 1), frame(18, 1)] if slot == 0 else [frame(18, 1), frame(18, 1, before=1)]
    data = written(journal, *parts)
    spoil(data, slot)
    assert found(data, sealed=18) == ([], [])


def test_nor_are_those_between_frames_that_have_all_of_their_batch(journal: Journal):
    data = written(journal, frame(19, 2), frame(18, 1), frame(19, 1, before=2))
    spoil(data, 1)
    assert found(data, sealed=18) == ([19, 19], [])


def test_nor_are_those_behind_the_newest_frame_where_all_is_sealed(journal: Journal):
    data = written(journal, frame(18, 1), frame(2, 3), frame(17, 1))
    spoil(data, 1)
    assert found(data, sealed=18) == ([], [])


def test_zeros_behind_what_is_bad_are_no_part_of_it(journal: Journal):
    data = written(journal, frame(19, 1))
    data[SLOT : 2 * SLOT] = b"b" * SLOT
    (damage,) = content(bytes(data), 18).damaged
    assert damage.data == b"b" * SLOT


def test_several_newest_frames_whose_heads_are_wrong_are_told_each(journal: Journal):
    data = written(journal, frame(19, 2), frame(19, 3, before=2), frame(19, 1, before=5))
    for slot in (1, 2):
        data[slot * SLOT + SEQUENCE] = 2
    assert found(data, sealed=18) == ([19], [("19-1", 3), ("19-1", 1)])
    assert [each.cost for each in content(bytes(data), 18).damaged] == ["at most 3", "at most 1"]
    data[SLOT + SEQUENCE] = 19
    assert found(data, sealed=18) == ([19, 19], [("19-1", 1)])


def test_a_frame_whose_head_is_wrong_is_told_where_another_batch_stands_behind_it(
    journal: Journal,
):
    data = written(journal, frame(19, 2), frame(19, 3, before=2), frame(20, 1))
    data[SLOT + SEQUENCE] = 2
    assert found(data, sealed=18) == ([19, 20], [("19-1", 3)])


def test_a_batch_whose_head_is_wrong_is_told_between_a_sealed_one_and_the_next(journal: Journal):
    data = written(journal, frame(18, 1), frame(19, 2), frame(20, 1))
    data[SLOT + SEQUENCE] = 2
    assert found(data, sealed=18) == ([20], [("2-1", 2)])


@pytest.mark.parametrize("first", [0, 2])
def test_behind_zeros_nothing_that_names_a_sealed_batch_is_a_loss(journal: Journal, first: int):
    more = frame(19, 1), frame(2, 3, before=first), frame(18, 1)
    data = written(journal, frame(19, first or 1), *more)
    data[first // 2 * SLOT : 2 * SLOT] = bytes((2 - first // 2) * SLOT)
    spoil(data, 2)
    assert found(data, sealed=18) == ([19] * (first // 2), [])


def test_what_stands_behind_the_slots_is_none_of_ours(journal: Journal):
    data = written(journal, *(frame(19, 1, before=n) for n in range(SLOTS)))
    assert found(data + b"b" * SLOT, sealed=18) == ([19] * SLOTS, [])


def test_a_journal_that_is_full_takes_no_frame_until_all_are_sealed(journal: Journal):
    full = written(journal, *(frame(19, 1, before=n) for n in range(SLOTS)))
    with pytest.raises(JournalFullError):
        journal.write(frame(20, 1))
    assert journal._disk.read("journal") == full
    journal.all_sealed()
    assert found(written(journal, frame(20, 1)), sealed=19) == ([20], [])


def test_a_bad_frame_of_several_slots_is_told_as_one_and_whole(journal: Journal):
    data = written(journal, frame(19, 5, value=LONG))
    spoil(data, 0)
    (damage,) = content(bytes(data), 18).damaged
    assert (damage.lost, damage.data.rstrip(b"\0")) == (5, bytes(data).rstrip(b"\0"))


def test_what_was_found_of_a_batch_before_is_not_missing(journal: Journal):
    parts = frame(5, 2), frame(5, 1, before=2), frame(5, 1, before=3), frame(5, 1, before=4)
    data = written(journal, *parts)
    data[2 * SLOT : 3 * SLOT] = b"b" * SLOT
    assert found(data) == ([5, 5, 5], [("5-1", 1)])


def test_a_wrong_bit_in_the_head_of_a_frame_is_told_and_costs_nothing(journal: Journal):
    sound = written(journal, frame(19, 2))
    for at in (0, 4, SEQUENCE):
        data = bytearray(sound)
        data[at] ^= 1
        assert found(data, sealed=18) == ([19], [("19-1", 0)])


@pytest.mark.parametrize("end", [0, 5, SLOT, SLOT + 5])
def test_a_journal_that_was_cut_off_keeps_what_is_left_and_has_its_room_again(
    journal: Journal, end: int
):
    data = written(journal, frame(19, 1), frame(19, 1, before=1))
    journal._disk.cut("journal", end)
    for _ in range(2):  # a kill may come before it is sealed
        frames = (again := Journal(journal._disk)).recover(18).unsealed
        assert [each.before for each in frames] == [0] * (end >= SLOT)
    assert journal._disk.size("journal") == len(data)
    again.write(frame(20, 1))
    frames = again.recover(18).unsealed
    assert [each.sequence for each in frames] == [19] * (end >= SLOT) + [20]


@pytest.mark.parametrize("seed", range(5))
def test_the_room_of_a_journal_outlasts_a_power_cut_though_the_disk_is_full_then(seed: int):
    Journal(disk := CrashDisk()).recover(0)
    disk.crash(Random(seed))
    disk.limit = disk.used
    journal = Journal(disk)
    journal.recover(0)
    assert found(written(journal, frame(1, 1))) == ([1], [])


def test_bytes_that_are_too_few_for_a_frame_are_none_though_their_sum_is_right():
    short = MAGIC + struct.pack("<II", zlib.crc32(MAGIC + b"short"), 5) + b"short"
    frames, _ = found(short)
    assert frames == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_frame_that_was_numbered_last_tells_whose_the_journal_is(journal: Journal, order: int):
    theirs, ours = replace(frame(1, 1), history=5), replace(frame(2, 1), history=7)
    assert content(bytes(written(journal, *[theirs, ours][::order])), 2).history == 7


@pytest.mark.parametrize("summed", [b"", b"bgJ3"])
def test_a_frame_of_another_version_is_none_though_its_sum_is_right(summed: bytes):
    """Behind a first slot that was wiped, or the whole journal is known for what it is."""
    body = bytes(60)
    theirs = b"bgJ3" + struct.pack("<II", zlib.crc32(summed + body), len(body)) + body
    assert found(bytes(SLOT) + theirs.ljust(SLOT, b"\0"))[0] == []
