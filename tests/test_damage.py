"""Whatever is on the disk at a start: cut off anywhere, bits flipped, an older image restored."""

import errno
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest
from crash_disk import CrashDisk
from test_buffer import SETTINGS, begun, take
from trials import LONG, times

from gateway.acked import ACKED_RANGES, PAGE, Acked
from gateway.buffer import Buffer
from gateway.disk import BLOCK, Disk
from gateway.flushed import MAGIC, SLOT, SLOTS
from gateway.held import Held
from gateway.intake import RAM_READINGS
from gateway.losses import COPIES, DAMAGED_BYTES, TOLD
from gateway.reading import Value
from gateway.record import Kind, Record, claims, records, size_of
from gateway.segments import LARGEST_FILE
from gateway.spool import Spool
from gateway.wire import decode

SPOOLS = [(100, 4), (2000, 50)] if LONG else [(4, 2)]
"""Batches, and readings in each."""
FRAMES = times(4, 40)
EVERY, CUTS = 8000, 1000
"""A segment of so many bytes is cut at each of them, a larger one at so many."""
FRAME_HEAD = 49
"""Bytes of a frame before its rows."""


class Unsynced(Disk):
    """Nobody cuts the power here, and thousands of starts are to be made."""

    def sync(self, name: str) -> None:
        pass

    def sync_directory(self) -> None:
        pass

    def settle(self, name: str) -> None:
        pass


def opened(directory: Path, epoch: int) -> Buffer:
    return begun(Unsynced(directory), epoch)


def payloads(buffer: Buffer) -> list[bytes]:
    """Return the bytes of each batch that waits."""
    found = [buffer.payload(held) or b"" for held in buffer.waiting()]
    buffer._disk.close_all()
    return found


def values(buffer: Buffer) -> list[Value]:
    return [reading.value for batch in payloads(buffer) for reading in decode(batch).readings]


@pytest.fixture(params=SPOOLS, ids=lambda param: f"{param[0]} batches")
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with batches in two segments, and nothing in the journal."""
    number, (batches, readings) = count(), request.param
    for epoch in (1, 2):
        buffer = opened(tmp_path / "sound", epoch)
        for _ in range(batches // 2):
            take(buffer, *(next(number) + 0.5 for _ in range(readings)))
            buffer.tick(0.0)
            buffer.tick(60.0)
        buffer.close()
    (tmp_path / "sound" / "journal").write_bytes(bytes(SLOT * SLOTS))
    return tmp_path / "sound"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A directory with frames of one reading each in the journal, and nothing sealed."""
    buffer = opened(tmp_path / "sound", 1)
    for number in range(FRAMES):
        take(buffer, number, durable=True)
        buffer.tick(number / 10)
    buffer._disk.close_all()
    return tmp_path / "sound"


def copies(sound: Path) -> Iterator[Path]:
    """Give fresh copies for ever."""
    while True:
        copy = sound.parent / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sound, copy)
        yield copy


def aside(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.damaged"))


def first_batch(path: Path) -> Record:
    return next(r for r in records(path.read_bytes()) if r.kind == Kind.BATCH)


def places(of: range, full: int) -> list[int]:
    """Return all of them; of a large spool so many at random."""
    return Random(1).sample(of, min(full, len(of))) if LONG else list(of)


def test_a_segment_cut_at_any_byte_loses_what_is_behind_and_nothing_else(spool: Path):
    fresh = copies(spool)
    everything = payloads(opened(next(fresh), 3))
    for segment in sorted(spool.glob("*.seg")):
        held = list(records(segment.read_bytes()))
        size = segment.stat().st_size
        for at in places(range(size), size if size <= EVERY else CUTS):
            copy = next(fresh)
            with (copy / segment.name).open("r+b") as file:
                file.truncate(at)
            gone = {r.payload for r in held if r.at + size_of(r.payload) > at}
            again = opened(copy, 3)
            assert payloads(again) == [batch for batch in everything if batch not in gone]
            take(again, -99.0)
            again.close()
            newest = payloads(opened(copy, 4))[-1]
            assert [reading.value for reading in decode(newest).readings] == [-99.0]


def test_a_bit_flipped_in_any_byte_of_a_segment_costs_that_record_alone(spool: Path):
    fresh, random = copies(spool), Random(1)
    everything = payloads(opened(next(fresh), 3))
    for segment in sorted(spool.glob("*.seg")):
        sound = segment.read_bytes()
        for record in records(sound):
            for at in places(range(record.at, record.at + size_of(record.payload)), 1):
                spoilt = bytearray(sound)
                spoilt[at] ^= 1 << random.randrange(8)
                copy = next(fresh)
                (copy / segment.name).write_bytes(spoilt)
                again = opened(copy, 3)
                spared = at < record.at + size_of(b"")
                lost = b"" if spared else record.payload
                assert payloads(again) == [b for b in everything if b != lost]
                assert any(copy.glob("*.damaged"))
                assert again.stats().dropped == (0 if spared else record.readings)


def test_any_bit_flipped_in_the_head_of_a_batch_costs_nothing(spool: Path):
    fresh, segment = copies(spool), min(spool.glob("*.seg"))
    everything, sound = values(opened(next(fresh), 3)), segment.read_bytes()
    batch = first_batch(segment)
    for bit in range(8 * batch.at, 8 * (batch.at + size_of(b""))):
        spoilt = bytearray(sound)
        spoilt[bit // 8] ^= 1 << bit % 8
        copy = next(fresh)
        (copy / segment.name).write_bytes(spoilt)
        again = opened(copy, 3)
        assert (values(again), again.stats().dropped) == (everything, 0)
        assert (copy / segment.name).read_bytes() == sound
        assert len(again.stats().faults) == len(list(copy.glob("*.damaged"))) == 1


@pytest.mark.parametrize(("count", "arrive", "lost"), [(2, 0, 2), (1000, 1000, 0)])
def test_a_head_that_is_gone_is_told_by_what_is_behind_it(
    tmp_path: Path, count: int, arrive: int, lost: int
):
    """A large batch is compressed, and so has a checksum of its own."""
    buffer = opened(tmp_path, 1)
    take(buffer, *range(count))
    buffer.close()
    (tmp_path / "journal").unlink()
    (held,) = buffer.waiting()
    with (tmp_path / held.segment).open("r+b") as file:
        file.seek(held.offset - size_of(b""))
        file.write(bytes(size_of(b"")))
    again = opened(tmp_path, 2)
    assert (len(values(again)), again.stats().dropped) == (arrive, lost)


def sealed(directory: Path, sizes: Iterable[int], epoch: int = 1) -> list[Held]:
    """Leave batches of so many readings in one segment, and nothing in the journal."""
    buffer = opened(directory, epoch)
    for size in sizes:
        take(buffer, *(f"{value} {'x' * 40}" for value in range(size)))
        buffer._work(0.0, buffer._seal)
    buffer.close()
    (directory / "journal").write_bytes(bytes(SLOT * SLOTS))
    return [held for held in buffer.waiting() if held.epoch == epoch]


def wipe(path: Path, begin: int, end: int, filling: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(filling * (end - begin))


def check_wiped(directory: Path, lost: int) -> None:
    """Start twice: the loss is counted once, and told once."""
    for epoch, told in ((11, lost), (12, 0)):
        again = opened(directory, epoch)
        assert again.stats().dropped == lost
        assert again.stats().dropped_by == ({"damaged on disk": told} if told else {})
        assert again.stats().faults or not told
        again.close()
    assert again.stats().faults == []


SIZES = [1 + n % 7 for n in range(60)]


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"b"])
@pytest.mark.parametrize("block", range(3))
def test_what_a_block_held_that_is_wiped_is_counted_to_the_last_reading(
    tmp_path: Path, block: int, filling: bytes
):
    """Of most batches on it not even the head is left; the first and the last are cut."""
    held = sealed(tmp_path, SIZES)
    begin, end = block * BLOCK, (block + 1) * BLOCK
    wipe(tmp_path / "00000001.seg", begin, end, filling)
    hit = [h for h in held if h.offset - size_of(b"") < end and h.offset + h.length > begin]
    check_wiped(tmp_path, sum(h.readings for h in hit))
    assert len(hit) > 3


@pytest.mark.parametrize("filling", [b"", b"\0", b"\xff", b"b"])
@pytest.mark.parametrize("newer", [False, True])
def test_the_end_of_a_segment_that_is_gone_is_counted(tmp_path: Path, filling: bytes, newer: bool):
    """A segment behind it tells, else `acked`; cut off, zeros or something else."""
    held = sealed(tmp_path, SIZES)
    if newer:
        sealed(tmp_path, [3], epoch=2)
    segment, half = tmp_path / "00000001.seg", held[30].offset
    end = segment.stat().st_size
    os.truncate(segment, half)
    if filling:
        wipe(segment, half, end, filling)
    check_wiped(tmp_path, sum(h.readings for h in held[30:]))


def test_zeros_at_the_end_of_a_segment_are_counted_bridged_and_not_copied(tmp_path: Path):
    held, segment = sealed(tmp_path, [3, 4]), tmp_path / "00000001.seg"
    wipe(segment, held[1].offset - size_of(b""), segment.stat().st_size, b"\0")
    check_wiped(tmp_path, 4)
    assert [*records(segment.read_bytes())][-1].kind == Kind.GAP
    assert aside(tmp_path) == []


def test_zeros_behind_the_last_record_are_cut_off(tmp_path: Path):
    sealed(tmp_path, [3])
    segment = tmp_path / "00000001.seg"
    size = segment.stat().st_size
    os.truncate(segment, size + 5000)
    buffer = opened(tmp_path, epoch=2)
    assert (segment.stat().st_size, buffer.stats().faults) == (size, [])
    assert buffer._spool.size == sum(one.stat().st_size for one in tmp_path.glob("*.seg"))


def test_segments_that_were_delivered_after_a_start_are_not_missing_at_the_next(tmp_path: Path):
    for epoch in (1, 2, 3):
        sealed(tmp_path, [epoch], epoch)
    buffer = opened(tmp_path, epoch=4)
    for held in list(buffer.waiting())[:2]:
        buffer.acknowledge(held)
    for now in (1.0, 2.0, 3.0):
        buffer.tick(now)
    buffer.close()
    assert len(list(tmp_path.glob("*.seg"))) == 2
    again = opened(tmp_path, epoch=5)
    assert (again.stats().dropped, again.stats().faults) == (0, [])
    assert len(payloads(again)) == 1


def test_the_end_of_a_segment_that_is_gone_is_counted_though_nobody_knows_what_was_acknowledged(
    tmp_path: Path,
):
    held = sealed(tmp_path, [3, 4])
    sealed(tmp_path, [5], epoch=2)
    (tmp_path / "acked").write_bytes(bytes(8192))
    os.truncate(tmp_path / "00000001.seg", held[1].offset - size_of(b""))
    check_wiped(tmp_path, 4)


def test_two_losses_of_as_many_are_two_though_nobody_knows_where_they_stood(tmp_path: Path):
    first, _, last = (sealed(tmp_path, [size], epoch)[0] for epoch, size in enumerate((3, 4, 3), 1))
    for held in (first, last):
        spoil(tmp_path / held.segment, held.offset + 5)
    (tmp_path / "acked").write_bytes(bytes(8192))
    wipe(tmp_path / "00000001.seg", 0, 60, b"b")
    check_wiped(tmp_path, 6)


def test_where_no_record_is_left_the_heads_of_batches_tell(tmp_path: Path):
    for epoch, size in enumerate((3, 4, 5), 1):
        sealed(tmp_path, [size], epoch)
    (tmp_path / "acked").write_bytes(bytes(8192))
    for segment in ("00000001.seg", "00000002.seg"):
        wipe(tmp_path / segment, 0, 60, b"b")
        spoil(tmp_path / segment, (tmp_path / segment).stat().st_size - 5)
    check_wiped(tmp_path, 3 + 4)


class Clinging(Disk):
    """Removes no segment, as after a power cut that undoes it."""

    def remove(self, name: str) -> None:
        if not name.endswith(".seg"):
            super().remove(name)


def test_a_segment_whose_head_is_bridged_does_not_begin_where_the_one_before_did(tmp_path: Path):
    (first,) = sealed(tmp_path, [2])
    (second,) = sealed(tmp_path, [3], epoch=2)
    opened(tmp_path, epoch=3).close()
    wipe(tmp_path / "00000002.seg", 0, second.offset + 1, b"\0")
    buffer = Buffer(Clinging(tmp_path), SETTINGS, "trd-0042", boot=7, epoch=4)
    buffer.tick(0.0)
    assert buffer.stats().dropped == 3
    wipe(tmp_path / "00000001.seg", 0, first.offset - size_of(b""), b"\0")
    wipe(tmp_path / "00000001.seg", first.offset, first.offset + 1, b"\0")
    assert opened(tmp_path, epoch=5).stats().dropped == 5


def test_a_copy_of_an_older_segment_hides_no_loss(tmp_path: Path):
    sealed(tmp_path, [3])
    (second,) = sealed(tmp_path, [4], epoch=2)
    shutil.copy(tmp_path / "00000001.seg", tmp_path / "00000009.seg")
    (tmp_path / "acked").write_bytes(bytes(8192))
    (third,) = sealed(tmp_path, [5], epoch=3)
    os.truncate(tmp_path / third.segment, third.offset)
    assert opened(tmp_path, 4).stats().dropped == 5
    os.truncate(tmp_path / second.segment, second.offset)
    assert opened(tmp_path, 5).stats().dropped == 5 + 4


def test_what_acked_knew_less_of_than_the_segments_is_counted(tmp_path: Path):
    sealed(tmp_path, [3])
    before = (tmp_path / "acked").read_bytes()
    sealed(tmp_path, [4], epoch=2)
    (tmp_path / "acked").write_bytes(before)
    (held,) = sealed(tmp_path, [5], epoch=3)
    os.truncate(tmp_path / held.segment, held.offset)
    check_wiped(tmp_path, 5)


@pytest.mark.parametrize("content", [b"", b"\0" * 9000, b"\xff" * 9000])
def test_a_segment_of_which_nothing_is_left_is_counted(tmp_path: Path, content: bytes):
    for epoch in (1, 2, 3):
        sealed(tmp_path, SIZES, epoch)
    (tmp_path / "00000002.seg").write_bytes(content)
    check_wiped(tmp_path, sum(SIZES))


def test_of_what_is_wiped_the_delivered_is_not_lost(tmp_path: Path):
    for epoch in (1, 2):
        sealed(tmp_path, SIZES, epoch)
    buffer = opened(tmp_path, 3)
    first = [held for held in buffer.waiting() if held.epoch == 1]
    for held in first[:-1]:
        buffer.acknowledge(held)
    buffer.tick(10.0)
    buffer.close()
    segment = tmp_path / "00000001.seg"
    size = segment.stat().st_size
    wipe(segment, 0, first[-3].offset, b"\0")
    shutil.copytree(tmp_path, tmp_path.with_suffix(".all"))
    check_wiped(tmp_path, 0)
    wipe(tmp_path.with_suffix(".all") / segment.name, 0, size, b"\0")
    check_wiped(tmp_path.with_suffix(".all"), first[-1].readings)


@pytest.mark.parametrize("gone", [[1], [2], [3], [1, 2], [2, 3], [1, 2, 3]])
def test_what_segments_held_that_somebody_removed_is_counted(tmp_path: Path, gone: list[int]):
    for epoch in (1, 2, 3):
        sealed(tmp_path, SIZES, epoch)
    for number in gone:
        (tmp_path / f"0000000{number}.seg").unlink()
    check_wiped(tmp_path, len(gone) * sum(SIZES))


class NoSegments(Unsynced):
    """Whose segments can be read, and not written to."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name.endswith(".seg"):
            raise OSError(errno.EIO, "Input/output error")
        super().write(name, offset, data)


@pytest.mark.parametrize("delivered", [0, 1, len(SIZES) - 1])
def test_a_start_that_fails_forgets_nothing_of_what_is_missing(tmp_path: Path, delivered: int):
    for epoch in (1, 2, 3):
        sealed(tmp_path, SIZES, epoch)
    buffer = opened(tmp_path, 4)
    held = list(buffer.waiting())
    for one in held[:delivered] + held[len(SIZES) : len(SIZES) + 1]:
        buffer.acknowledge(one)
    buffer.tick(10.0)
    buffer.close()
    (tmp_path / "00000001.seg").unlink()
    failing = begun(NoSegments(tmp_path), 5)
    assert (failing.fault is None, failing.stats().dropped) == (False, 0)
    check_wiped(tmp_path, sum(SIZES[delivered:]))


def test_a_segment_that_went_for_it_was_delivered_is_not_lost(tmp_path: Path):
    for epoch in (1, 2, 3):
        sealed(tmp_path, SIZES, epoch)
    buffer = opened(tmp_path, 4)
    for held in list(buffer.waiting()):
        if held.epoch == 2:
            buffer.acknowledge(held)
    buffer.tick(10.0)
    assert not (tmp_path / "00000002.seg").exists()
    shutil.copytree(tmp_path, tmp_path.with_suffix(".again"))
    check_wiped(tmp_path, 0)
    (tmp_path.with_suffix(".again") / "acked").unlink()  # then nobody knows
    check_wiped(tmp_path.with_suffix(".again"), 0)


def test_a_journal_cut_at_any_byte_loses_what_is_behind_and_nothing_else(journal: Path):
    fresh, data = copies(journal), (journal / "journal").read_bytes()
    ends = [n * SLOT + len(data[n * SLOT : (n + 1) * SLOT].rstrip(b"\0")) for n in range(FRAMES)]
    for number, end in enumerate(ends):
        for at in {*range(number * SLOT, end + 1), (number + 1) * SLOT - 1}:
            copy = next(fresh)
            with (copy / "journal").open("r+b") as file:
                file.truncate(at)
            assert values(opened(copy, 2)) == [float(n) for n in range(number + (at >= end))]


def test_a_bit_flipped_in_any_byte_of_the_journal_costs_that_frame_alone(journal: Path):
    fresh, random = copies(journal), Random(1)
    sound = (journal / "journal").read_bytes()
    for number in range(FRAMES):
        frame = sound[number * SLOT : (number + 1) * SLOT].rstrip(b"\0")
        for at in range(len(frame)):
            spoilt = bytearray(sound)
            spoilt[number * SLOT + at] ^= 1 << random.randrange(8)
            copy = next(fresh)
            (copy / "journal").write_bytes(spoilt)
            again = opened(copy, 2)
            lost = [number] if at >= FRAME_HEAD else []
            assert values(again) == [n for n in range(FRAMES) if n not in lost]
            assert again.stats().dropped == len(lost)
            assert any(copy.glob("*.damaged"))


def test_any_bit_flipped_in_the_head_of_a_frame_costs_nothing(journal: Path):
    fresh, sound = copies(journal), (journal / "journal").read_bytes()
    for bit in range(8 * SLOT, 8 * (SLOT + FRAME_HEAD)):
        spoilt = bytearray(sound)
        spoilt[bit // 8] ^= 1 << bit % 8
        copy = next(fresh)
        (copy / "journal").write_bytes(spoilt)
        again = opened(copy, 2)
        assert (values(again), again.stats().dropped) == (list(range(FRAMES)), 0)
        assert again.stats().faults == [f"0 readings lost: {one.name}" for one in aside(copy)]
        assert len(aside(copy)) == 1


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_a_frame_that_is_gone_is_told_if_a_newer_one_stands_behind_it(
    journal: Path, filling: bytes
):
    with (journal / "journal").open("r+b") as file:
        file.seek(SLOT)
        file.write(filling * SLOT)
    again = opened(journal, 2)
    assert values(again) == [0, *range(2, FRAMES)]
    told = ["1 readings lost: " + one.name for one in aside(journal)]
    assert (again.stats().faults, again.stats().dropped) == (told, 1)
    assert [one.read_bytes() for one in aside(journal)] == [filling * SLOT]


def test_remains_of_a_longer_frame_are_no_damage(tmp_path: Path):
    buffer = opened(tmp_path, 1)
    for value in ("x" * 9000, "short"):
        take(buffer, value, durable=True)
        buffer.tick(0.0)
        buffer._work(0.0, buffer._seal)
    take(buffer, "last", durable=True)
    buffer.tick(0.0)
    assert opened(tmp_path, 2).stats().faults == []


def test_all_slots_of_a_damaged_frame_are_kept(tmp_path: Path):
    buffer = opened(tmp_path, 1)
    take(buffer, *(f"{n} {'x' * 200}" for n in range(100)), durable=True)
    buffer.tick(0.0)
    take(buffer, "behind", durable=True)
    buffer.tick(1.0)
    buffer._disk.close_all()
    spoilt = bytearray((tmp_path / "journal").read_bytes())
    spoilt[SLOT + 5] ^= 1
    (tmp_path / "journal").write_bytes(spoilt)
    again = opened(tmp_path, 2)
    assert (values(again), again.stats().dropped) == (["behind"], 100)
    (kept,) = aside(tmp_path)
    assert kept.read_bytes() == spoilt[: kept.stat().st_size]
    assert spoilt[kept.stat().st_size :].startswith(MAGIC)


def spoil(path: Path, at: int) -> bytes:
    """Flip a bit, and return what the file then holds."""
    spoilt = bytearray(path.read_bytes())
    spoilt[at] ^= 1
    path.write_bytes(spoilt)
    return bytes(spoilt)


def test_what_is_damaged_after_the_start_is_counted_once_and_not_handed_out(tmp_path: Path):
    buffer = opened(tmp_path, 1)
    for value in (1.0, 2.0, 3.0):
        take(buffer, value, value)
        buffer._work(0.0, buffer._seal)
    hit = list(buffer.waiting())[1]
    segment = tmp_path / hit.segment
    begin, end = hit.offset - size_of(b""), hit.offset + hit.length
    record = spoil(segment, end - 2)[begin:end]
    assert buffer.payload(hit) is None
    assert [held.sequence for held in buffer.waiting()] == [1, 3]
    buffer.tick(1.0)
    buffer.tick(2.0)
    assert (values(buffer), buffer.stats().dropped) == ([1.0, 1.0, 3.0, 3.0], 2)
    assert buffer.stats().dropped_by == {"damaged on disk": 2}
    assert buffer.stats().waiting_readings == 4
    assert [one.read_bytes() for one in aside(tmp_path)] == [record]
    again = opened(tmp_path, 2)
    assert (values(again), again.stats().dropped) == ([1.0, 1.0, 3.0, 3.0], 2)
    assert again.stats().faults == []


def test_what_was_counted_a_moment_ago_is_told_at_no_start_again(tmp_path: Path):
    held, _ = sealed(tmp_path, [2, 2])
    buffer = opened(tmp_path, 2)
    spoil(tmp_path / held.segment, held.offset + 5)
    assert buffer.payload(held) is None
    buffer.tick(1.0)
    again = opened(tmp_path, 3)
    assert (again.stats().dropped, again.stats().faults) == (2, [])
    assert len(aside(tmp_path)) == 1


def test_another_batch_in_the_place_of_ours_is_not_taken_for_it(tmp_path: Path):
    for epoch, name in ((1, "ours"), (2, "theirs")):
        take(buffer := opened(tmp_path / name, epoch), 1.0)
        buffer.close()
    theirs = (tmp_path / "theirs/00000001.seg").read_bytes()
    buffer = opened(tmp_path / "ours", 3)
    (held,) = buffer.waiting()
    (tmp_path / "ours/00000001.seg").write_bytes(theirs)
    assert (held.offset + held.length, buffer.payload(held)) == (len(theirs), None)
    buffer.tick(1.0)
    assert buffer.stats().dropped_by == {"damaged on disk": 1}


def test_another_batch_of_this_run_in_the_place_of_one_is_not_taken_for_it(tmp_path: Path):
    first, second = sealed(tmp_path, [2, 2])
    buffer, segment = opened(tmp_path, 2), tmp_path / first.segment
    data, head = segment.read_bytes(), size_of(b"")
    record = data[second.offset - head : second.offset + second.length]
    assert first.length == second.length
    with segment.open("r+b") as file:
        file.seek(first.offset - head)
        file.write(record)
    assert (buffer.payload(first), len(payloads(buffer))) == (None, 1)


def test_what_was_read_damaged_once_is_not_handed_out_though_it_reads_well_again(tmp_path: Path):
    (held,) = sealed(tmp_path, [2])
    buffer, segment = opened(tmp_path, 2), tmp_path / held.segment
    sound = segment.read_bytes()
    spoil(segment, held.offset + 5)
    assert buffer.payload(held) is None
    segment.write_bytes(sound)
    assert buffer.payload(held) is None
    buffer.tick(1.0)
    assert buffer.stats().dropped == 2


def test_what_is_damaged_after_the_start_and_evicted_is_counted_once(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), 1.0 * epoch, 1.0 * epoch)
        buffer.close()
    hit = next(buffer.waiting())
    spoil(tmp_path / hit.segment, hit.offset + 5)
    assert buffer.payload(hit) is None
    buffer._spool.evict("buffer full")
    buffer.tick(1.0)
    assert (values(buffer), buffer.stats().dropped) == ([2.0, 2.0], 2)


@pytest.mark.parametrize("changes", range(8))
def test_a_power_cut_when_damage_is_met_counts_it_once(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        buffer = begun(disk)
        take(buffer, 1.0, 2.0)
        buffer.close()
        (held,) = buffer.waiting()
        disk.spoil(held.segment, held.offset + 5)
        with disk.power_cut(changes, Random(seed)):
            buffer.payload(held)
            buffer.tick(1.0)
        again = begun(disk, 2)
        assert (values(again), again.stats().dropped) == ([], 2)


def test_damage_that_is_met_while_the_disk_fails_is_counted_when_it_works_again():
    disk = CrashDisk()
    buffer = begun(disk)
    take(buffer, 1.0, 2.0)
    buffer.close()
    (held,) = buffer.waiting()
    disk.spoil(held.segment, held.offset + 5)
    assert buffer.payload(held) is None
    disk.failing = 2
    for now in (1.0, 2.0):
        buffer.tick(now)
        assert (buffer.stats().dropped, held.segment in disk.names()) == (0, True)
    buffer.tick(3.0)
    assert (values(buffer), buffer.stats().dropped) == ([], 2)


class NoCopies(Disk):
    """Too full for a copy of what is damaged, at its first byte or at its sync."""

    fails = "write"

    def write(self, name: str, offset: int, data: bytes) -> None:
        super().write(name, offset, data)
        self._fail("write", name)

    def sync(self, name: str) -> None:
        super().sync(name)
        self._fail("sync", name)

    def _fail(self, what: str, name: str) -> None:
        if what == self.fails and name.endswith(".damaged"):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["write", "sync"])
def test_what_cannot_be_copied_stays_where_it_is_and_is_counted_once(spool: Path, fails: str):
    segment = min(spool.glob("*.seg"))
    batch = first_batch(segment)
    spoilt = spoil(segment, batch.at + size_of(b"") + 5)
    for epoch, lost in ((3, batch.readings), (4, 0)):
        disk = NoCopies(spool)
        disk.fails = fails
        buffer = begun(disk, epoch)
        assert segment.read_bytes() == spoilt
        assert aside(spool) == []
        assert buffer.stats().dropped == batch.readings
        assert f"{lost} readings lost: left in {segment.name}" in buffer.stats().faults[0]
    again = opened(spool, 5)
    assert [again.stats().dropped, *again.stats().faults] == [
        *(batch.readings, f"0 readings lost: {aside(spool)[0].name}")
    ]


class FullOnce(Unsynced):
    """Full when the first loss is to be recorded."""

    full = True

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.full and name.endswith(".seg") and offset:
            self.full = False
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, data)


def test_damage_whose_segment_went_to_make_room_is_kept_and_no_segment_made_of_it(tmp_path: Path):
    buffer = opened(tmp_path, 1)
    take(buffer, 1.0, 2.0)
    buffer.close()
    (held,) = buffer.waiting()
    (tmp_path / "journal").unlink()
    spoil(tmp_path / held.segment, held.offset + 5)
    again = begun(FullOnce(tmp_path), 2)
    assert (again.fault, again.stats().dropped, len(aside(tmp_path))) == (None, 2, 1)
    assert not (tmp_path / held.segment).exists()


class Worn(Unsynced):
    """One with a file that can be read, and not written to."""

    worn = ""

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name == self.worn:
            raise OSError(errno.EIO, "Input/output error")
        super().write(name, offset, data)


@pytest.mark.parametrize("name", ["journal", "00000001.seg"])
def test_damage_that_cannot_be_blanked_holds_up_no_reading(tmp_path: Path, name: str):
    sealed(tmp_path, SIZES)
    take(buffer := opened(tmp_path, 2), 1.0, durable=True)
    buffer.tick(0.0)
    buffer._disk.close_all()
    spoil(tmp_path / name, len((tmp_path / name).read_bytes().rstrip(b"\0")) - 5)
    disk = Worn(tmp_path)
    disk.worn = name
    buffer = begun(disk, 3)
    for second in (60.0, 120.0, 180.0):
        take(buffer, second)
        buffer.tick(second)
    buffer.tick(240.0)
    assert (buffer.fault, values(buffer)[-3:]) == (None, [60.0, 120.0, 180.0])
    assert buffer.stats().dropped == (1 if name == "journal" else SIZES[-1])


def test_the_copy_is_on_the_device_before_the_bytes_are_blanked():
    for changes in range(12):
        disk = CrashDisk()
        buffer = begun(disk)
        take(buffer, 1.0, 2.0)
        buffer.close()
        (held,) = buffer.waiting()
        disk.spoil(held.segment, held.offset + 5)
        record = disk.read(held.segment, held.offset - size_of(b""), size_of(b"") + held.length)
        with disk.power_cut(changes, Random(changes)):
            begun(disk, 2)
        assert any(record in disk.read(name) for name in disk.names())


def test_of_copies_the_newest_are_kept_and_the_removal_is_told(spool: Path):
    for number, name in enumerate(("old", "older", "oldest")):
        with (spool / f"{name}.damaged").open("wb") as file:
            file.truncate(DAMAGED_BYTES // 2)
        os.utime(spool / f"{name}.damaged", (10**9 - number, 10**9 - number))
    segment = min(spool.glob("*.seg"))
    spoil(segment, segment.stat().st_size - 5)
    again = opened(spool, 3)
    kept = [one.name for one in aside(spool)]
    assert [kept[0].startswith(segment.name), *kept[1:]] == [True, "old.damaged"]
    assert any("older.damaged removed" in fault for fault in again.stats().faults)


def test_the_newest_copies_are_kept_of_what_is_met_while_it_runs_as_well(tmp_path: Path):
    (held,) = sealed(tmp_path, [2])
    buffer = opened(tmp_path, 2)
    with (tmp_path / "old.damaged").open("wb") as file:
        file.truncate(DAMAGED_BYTES)
    os.utime(tmp_path / "old.damaged", (10**9, 10**9))
    spoil(tmp_path / held.segment, held.offset + 5)
    assert buffer.payload(held) is None
    buffer.tick(1.0)
    assert [one.name[:9] for one in aside(tmp_path)] == ["00000001."]


class Protected(Disk):
    """One on which nobody removes copies of what is damaged, as after `chattr +i`."""

    kept: Container[str] = ()

    def remove(self, name: str) -> None:
        if name.endswith(".damaged") and name in self.kept:
            raise OSError(errno.EPERM, "Operation not permitted", str(self.directory / name))
        super().remove(name)


COPIED = ["newest.damaged", "old.damaged", "oldest.damaged"]


@pytest.mark.parametrize(("kept", "left"), [(COPIED[2:], COPIED[2:]), (COPIED, COPIED)])
def test_a_copy_that_cannot_be_removed_holds_up_nothing_and_the_next_one_goes(
    spool: Path, kept: list[str], left: list[str]
):
    for number, name in enumerate((*COPIED, "none of ours")):
        with (spool / name).open("wb") as file:
            file.truncate(DAMAGED_BYTES // 2)
        os.utime(spool / name, (10**9 - number, 10**9 - number))
    segment = min(spool.glob("*.seg"))
    spoil(segment, segment.stat().st_size - 5)
    disk = Protected(spool)
    disk.kept = kept
    assert begun(disk, 3).fault is None
    assert [one.name for one in aside(spool)][-len(left) :] == left
    assert (spool / "none of ours").exists()


def as_of(version: bytes, directory: Path) -> dict[str, bytes]:
    """Make a buffer one of another version; return its files."""
    files = [*directory.glob("*.seg"), directory / "journal"]
    for file in files:
        data = file.read_bytes().replace(b"bgS3", b"bgS" + version)
        file.write_bytes(data.replace(b"bgJ4", b"bgJ" + version))
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("version", [b"1", b"5"])
def test_a_buffer_of_another_version_is_kept_whole_and_told(tmp_path: Path, version: bytes):
    buffer = opened(tmp_path, 1)
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    buffer.acknowledge(next(buffer.waiting(1)))
    buffer.tick(100.0)
    take(buffer, 3.0, durable=True)
    buffer.tick(101.0)
    theirs = as_of(version, tmp_path) | {"acked": (tmp_path / "acked").read_bytes()}
    for epoch in (2, 3):
        again = opened(tmp_path, epoch)
        take(again, 4.0)
        again.close()
        kept = {name: (tmp_path / f"{name}-0.foreign").read_bytes() for name in theirs}
        assert kept == theirs
        assert len(again.stats().faults) == (len(theirs) if epoch == 2 else 0)
    assert (values(again), aside(tmp_path)) == ([4.0, 4.0], [])
    assert [(held.epoch, held.sequence) for held in again.waiting()] == [(2, 1), (3, 2)]
    assert not theirs.keys() & {file.name for file in tmp_path.glob("*.seg")}


class Killed(BaseException):
    """SIGKILL."""


class MortalDisk(Disk):
    """A disk whose user is killed once it has set so many files aside.

    Or the power fails: of what is not synced the oldest change is undone then, no later one.
    """

    aside = 0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.unsynced: list[tuple[str, str]] = []

    def make_way(self, name: str, fits: Callable[[Path], bool] = Path.is_file) -> str | None:
        if made_way := super().make_way(name, fits):
            self.unsynced.append((made_way, name))
            self.aside -= 1
            if not self.aside:
                raise Killed
        return made_way

    def sync_directory(self) -> None:
        super().sync_directory()
        self.unsynced.clear()

    def power_cut(self) -> None:
        for made_way, name in self.unsynced[:1]:
            (self.directory / made_way).rename(self.directory / name)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("aside", [1, 2, 3, 4])
def test_a_kill_while_another_versions_buffer_is_set_aside_makes_no_loss(
    tmp_path: Path, aside: int, cut: bool
):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), 1.0)
        buffer.close()
    take(buffer, 2.0, durable=True)
    buffer.tick(0.0)
    theirs = as_of(b"5", tmp_path)
    disk = MortalDisk(tmp_path)
    disk.aside = aside
    with pytest.raises(Killed):
        Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=3).tick(0.0)
    if cut:
        disk.power_cut()
    del disk
    again = opened(tmp_path, 4)
    assert (values(again), again.stats().dropped) == ([], 0)
    assert {name: (tmp_path / f"{name}-0.foreign").read_bytes() for name in theirs} == theirs


@pytest.mark.parametrize("empty", [False, True])
def test_beside_what_another_version_left_a_loss_is_counted(tmp_path: Path, empty: bool):
    take(buffer := opened(tmp_path, 1), 1.0)
    buffer.close()
    as_of(b"5", tmp_path)
    if empty:  # as a start leaves that was cut off
        (tmp_path / "00000002.seg").touch()
    take(buffer := opened(tmp_path, 2), 2.0, 3.0)
    buffer.close()
    for file in tmp_path.glob("*.seg"):
        file.unlink()
    again = opened(tmp_path, 3).stats()
    assert (again.dropped, again.dropped_by) == (2, {"damaged on disk": 2})


def test_a_segment_of_another_version_takes_no_ranges_of_ours_along(tmp_path: Path):
    take(buffer := opened(tmp_path, 1), 1.0)
    buffer.close()
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(100.0)
    (tmp_path / "00000009.seg").write_bytes(b"bgS4")
    again = opened(tmp_path, 2)
    assert (values(again), [*tmp_path.glob("acked-*")]) == ([], [])


@pytest.mark.parametrize(("at", "ours"), [(0, True), (4090, True), (LARGEST_FILE, False)])
def test_a_record_of_ours_tells_wherever_in_a_segment_it_is_whose_the_ranges_are(
    tmp_path: Path, at: int, ours: bool
):
    take(buffer := opened(tmp_path, 1), 1.0)
    buffer.close()
    segment = tmp_path / "00000001.seg"
    segment.write_bytes(bytes(at) + segment.read_bytes())
    (tmp_path / "00000009.seg").write_bytes(b"bgS4")
    opened(tmp_path, 2)
    assert (tmp_path / "acked-0.foreign").exists() != ours


@pytest.mark.parametrize("name", ["journal-0.foreign", "00000001.seg-0.foreign"])
def test_what_was_set_aside_hides_no_loss(tmp_path: Path, name: str):
    take(buffer := opened(tmp_path, 1), 1.0)
    buffer.close()
    (tmp_path / name).write_bytes(b"foreign")
    (tmp_path / "00000001.seg").unlink()
    again = opened(tmp_path, 2)
    assert again.stats().dropped_by == {"damaged on disk": 1}
    assert "1 readings lost" in again.stats().faults[0]


@pytest.mark.parametrize("name", ["00000001.seg", "journal"])
@pytest.mark.usefixtures("spool")
def test_a_flipped_bit_makes_no_other_version(journal: Path, name: str):
    everything = values(opened(next(copies(journal)), 3))
    spoil(journal / name, 3)
    assert values(opened(journal, 3)) == everything
    assert list(journal.glob("*.foreign")) == []


@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_what_comes_after_an_older_image_was_restored_is_new_to_the_receiver(
    tmp_path: Path, seed: int
):
    random, state, image = Random(seed), tmp_path / "state", tmp_path / "image"
    received: dict[tuple[int, int], list[Value]] = {}
    taken = 0

    def run(batches: int) -> None:
        """Take readings, deliver some of them, and end without a farewell."""
        nonlocal taken
        buffer = Buffer(Unsynced(state), SETTINGS, "trd-0042", boot=7)
        buffer.tick(0.0)
        for _ in range(batches):
            for _ in range(random.randint(1, 4)):
                take(buffer, taken, durable=True)
                taken += 1
                buffer.tick(0.0)
            if random.random() < 0.8:
                buffer.tick(60.0)
            deliver(buffer, 0.7)
        buffer.tick(100.0)
        buffer._disk.close_all()

    def deliver(buffer: Buffer, share: float) -> None:
        for held in list(buffer.waiting()):
            if random.random() < share:
                batch = decode(buffer.payload(held) or b"")
                found = [reading.value for reading in batch.readings]
                received.setdefault((batch.epoch, batch.sequence), found)
                buffer.acknowledge(held)

    run(random.randint(1, 9))
    shutil.copytree(state, image)
    run(random.randint(1, 9))
    for _ in range(3):
        shutil.rmtree(state)
        shutil.copytree(image, state)
        began = taken
        run(random.randint(1, 9))
        last = Buffer(Unsynced(state), SETTINGS, "trd-0042", boot=7)
        last.tick(0.0)
        deliver(last, 1.1)
        last._disk.close_all()
        new = [v for found in received.values() for v in found if v >= began]
        assert sorted(new) == list(range(began, taken))


@pytest.mark.parametrize("changes", range(12))
def test_a_power_cut_amid_a_start_counts_what_is_damaged_once(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        for epoch in (1, 2):
            buffer = begun(disk, epoch)
            take(buffer, 2.0 * epoch, 2.0 * epoch + 1)
            buffer.close()
        disk.spoil("00000001.seg", 130)
        with disk.power_cut(changes, Random(seed)):
            begun(disk, 3)
        again = begun(disk, 4)
        assert (values(again), again.stats().dropped) == ([4.0, 5.0], 2)


def test_a_bad_frame_that_says_to_have_held_more_than_a_batch_can_is_not_believed(tmp_path: Path):
    take(buffer := opened(tmp_path, 1), 1.0, durable=True)
    buffer.tick(0.0)
    for at in (FRAME_HEAD - 5, FRAME_HEAD + 2):  # the highest byte of the count, and one of a row
        spoil(tmp_path / "journal", at)
    again = opened(tmp_path, 2)
    assert again.stats().dropped == 0
    assert again.stats().faults[0].startswith("unknown readings lost")


@pytest.mark.parametrize(("at", "lost"), [(60, 1), (5, 0)])  # a row; the head, which is mended
@pytest.mark.parametrize("changes", range(16))
def test_a_power_cut_amid_a_start_counts_damage_of_the_journal_once(changes, at, lost):
    for seed in range(10):
        disk = CrashDisk()
        buffer = begun(disk)
        for second in range(3):
            take(buffer, float(second), durable=True)
            buffer.tick(float(second))
        disk.spoil("journal", SLOT + at)
        with disk.power_cut(changes, Random(seed)):
            begun(disk, 2)
        again = begun(disk, 3)
        assert (values(again), again.stats().dropped) == ([0.0, 1.0, 2.0][:: lost + 1], lost)


def test_a_segment_of_another_box_is_kept_though_its_sequences_are_ours(tmp_path: Path):
    for name, epoch in (("ours", 1), ("theirs", 2)):
        take(buffer := opened(tmp_path / name, epoch), float(epoch))
        buffer.close()
    theirs = (tmp_path / "theirs/00000001.seg").read_bytes()
    (tmp_path / "ours/00000007.seg").write_bytes(theirs)
    again = opened(tmp_path / "ours", 3)
    for held in list(again.waiting()):
        again.acknowledge(held)
    again.tick(100.0)
    assert (tmp_path / "ours/00000007.seg.damaged").read_bytes() == theirs
    assert again.stats().dropped == 1


# A disk that loses blocks, and what was not synced


def sealed_on(buffer: Buffer, *sizes: int) -> None:
    for size in sizes:
        take(buffer, *range(size))
        buffer._work(0.0, buffer._seal)
    buffer.tick(1.0)


def cut_and_wipe(disk: CrashDisk, seed: int) -> None:
    """Cut the power, and lose all that the newest segment holds."""
    disk.crash(Random(seed))
    newest = max(name for name in disk.names() if name.endswith(".seg"))
    disk.wipe(newest, 0, disk.size(newest), b"\0")


@pytest.mark.parametrize("seed", range(5))
def test_what_was_sealed_is_written_down_anew_when_that_could_not_be_synced(seed: int):
    take(buffer := begun(disk := CrashDisk(), 1), 1.0, 2.0)
    disk.bad.add("acked")
    buffer._work(0.0, buffer._seal)
    disk.bad.clear()
    buffer.tick(1.0)
    cut_and_wipe(disk, seed)
    assert begun(disk, 2).stats().dropped == 2


@pytest.mark.parametrize("seed", range(10))
def test_what_was_just_sealed_and_is_wiped_is_counted_after_a_power_cut(seed: int):
    sealed_on(begun(disk := CrashDisk(), 1), 3, 4)
    cut_and_wipe(disk, seed)
    assert begun(disk, 2).stats().dropped == 7


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_whose_record_is_wiped_is_not_forgotten(seed: int):
    sealed_on(begun(disk := CrashDisk(), 1), 3, 4)
    for epoch in (2, 3, 4):
        cut_and_wipe(disk, seed)
        assert begun(disk, epoch).stats().dropped == 7


@pytest.mark.parametrize("changes", range(8))
def test_a_power_cut_amid_a_start_forgets_no_acknowledgement(changes: int):
    for seed in range(10):
        sealed_on(buffer := begun(disk := CrashDisk(), 1), 3, 4)
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(10.0)
        disk.sync("acked")
        with disk.power_cut(changes, Random(seed)):
            begun(disk, 2)
        assert [held.sequence for held in begun(disk, 3).waiting()] == [2]


@pytest.mark.parametrize("changes", range(16))
def test_a_power_cut_that_wipes_the_record_of_a_loss_forgets_nothing(changes: int):
    for seed in range(5):
        sealed_on(begun(disk := CrashDisk(), 1), 3, 4)
        disk.spoil("00000001.seg", 130)
        with disk.power_cut(changes, Random(seed)):
            begun(disk, 2)
        if "00000002.seg" in disk.names():
            disk.wipe("00000002.seg", 0, disk.size("00000002.seg"), b"\0")
        assert begun(disk, 3).stats().dropped == 3


@pytest.mark.parametrize("seed", range(10))
def test_each_loss_is_counted_though_the_same_number_was_lost_before(seed: int):
    disk = CrashDisk()
    for epoch in range(1, 5):
        buffer = begun(disk, epoch)
        assert buffer.stats().dropped == 7 * (epoch - 1)
        sealed_on(buffer, 3, 4)
        cut_and_wipe(disk, seed)


@pytest.mark.parametrize("seed", range(10))
def test_a_power_cut_makes_no_loss_of_a_segment_that_was_delivered(seed: int):
    disk = CrashDisk()
    for epoch in (1, 2, 3):
        sealed_on(buffer := begun(disk, epoch), 3, 4)
    for held in list(buffer.waiting()):
        if held.epoch == 2:
            buffer.acknowledge(held)
    buffer.tick(1.5)  # too soon to write down what is acknowledged, but the segment may go
    disk.crash(Random(seed))
    again = begun(disk, 4)
    assert (again.stats().dropped, again.stats().faults) == (0, [])


@pytest.mark.parametrize("seed", range(10))
def test_a_segment_that_a_power_cut_brings_back_is_known_to_be_delivered(seed: int):
    disk = CrashDisk()
    for epoch in (1, 2, 3):
        sealed_on(buffer := begun(disk, epoch), 3, 4)
    for held in list(buffer.waiting()):
        if held.epoch != 2:
            buffer.acknowledge(held)
    buffer.tick(1.5)  # the segment goes
    buffer.tick(9.0)  # and what is acknowledged is written down anew
    disk.crash(Random(seed))
    assert not {1, 2} & {held.sequence for held in begun(disk, 4).waiting()}


def test_what_no_power_cut_brings_back_is_forgotten(tmp_path: Path):
    for epoch in (1, 2):
        sealed_on(buffer := opened(tmp_path, epoch), 3)
    for epoch, since in ((2, 1), (3, 2)):
        buffer = opened(tmp_path, epoch)
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(1.5)
        buffer.close()
        acked = Acked(Disk(tmp_path))
        acked.recover(lambda history: True)
        assert acked.since == since


def test_what_was_delivered_is_known_until_what_is_missing_beside_it_is_counted(tmp_path: Path):
    sealed_on(buffer := opened(tmp_path, 1), 3, 4)
    sealed_on(opened(tmp_path, 2), 5, 6)
    buffer = opened(tmp_path, 3)
    for held in list(buffer.waiting())[::3]:
        buffer.acknowledge(held)
    buffer.close()
    (tmp_path / "00000001.seg").unlink()
    spool = Spool(Disk(tmp_path))
    spool.recover()
    spool.begin(4)
    spool.tidy()
    assert [damage.lost for damage in spool.damage()] == [4]
    spool.write_acked(0.0)
    again = Spool(Disk(tmp_path))  # killed before that was counted
    again.recover()
    assert [damage.lost for damage in again.damage()] == [4]


@pytest.mark.parametrize("name", ["journal", "acked"])
def test_a_file_that_is_gone_beside_segments_is_told_of(tmp_path: Path, name: str):
    sealed(tmp_path, [3, 4])
    (tmp_path / name).unlink()
    assert f"{name} is gone: " in opened(tmp_path, 2).stats().faults[0]
    assert opened(tmp_path, 3).stats().faults == []


@pytest.mark.parametrize(
    ("name", "size"), [("journal", 0), ("journal", 2048), ("journal", 8192), ("acked", 4096)]
)
def test_a_file_that_is_cut_off_beside_segments_is_told_of(tmp_path: Path, name: str, size: int):
    sealed(tmp_path, [3, 4])
    os.truncate(tmp_path / name, size)
    assert f"{name} is cut off: " in opened(tmp_path, 2).stats().faults[0]
    assert opened(tmp_path, 3).stats().faults == []


def test_acked_of_which_a_page_is_left_is_not_said_to_have_all_sent_again(tmp_path: Path):
    sealed(tmp_path, [3] * 5)
    buffer = opened(tmp_path, 2)
    for held in list(buffer.waiting())[:4]:
        buffer.acknowledge(held)
        buffer.tick(held.sequence * 10.0)
    buffer.close()
    os.truncate(tmp_path / "acked", PAGE)
    buffer = opened(tmp_path, 3)
    assert len(list(buffer.waiting())) in (1, 2)
    assert "all that lies there may be sent once more" in buffer.stats().faults[0]


def test_what_is_emptied_altogether_is_told_of(tmp_path: Path):
    sealed(tmp_path, [3, 4])
    for path in [*tmp_path.glob("*.seg"), tmp_path / "acked"]:
        os.truncate(path, 0)
    assert "acked is cut off: " in opened(tmp_path, 2).stats().faults[0]


def test_a_damaged_batch_that_the_journal_saves_is_not_counted_later_either(tmp_path: Path):
    buffer = opened(tmp_path, 1)
    take(buffer, 1.0, 2.0, durable=True)
    buffer.tick(1.0)
    buffer.close()
    (held,) = buffer.waiting()
    spoil(tmp_path / held.segment, held.offset + 5)
    for epoch in (2, 3, 4):
        again = opened(tmp_path, epoch)
        assert (values(again), again.stats().dropped) == ([1.0, 2.0], 0)
        again.close()


def test_what_is_sealed_after_a_loss_and_delivered_is_not_lost(tmp_path: Path):
    """A sequence whose batch is lost is not given again: its acknowledgement would be another's."""
    sealed(tmp_path, [3])
    sealed(tmp_path, [20], epoch=2)
    (tmp_path / "00000002.seg").unlink()
    buffer = opened(tmp_path, 3)
    take(buffer, *range(100))
    buffer._work(0.0, buffer._seal)
    buffer.acknowledge(list(buffer.waiting())[-1])
    buffer.close()
    for epoch in (4, 5):
        again = opened(tmp_path, epoch)
        assert again.stats().dropped == 20
        again.close()


@pytest.mark.parametrize("length", [512, BLOCK])
def test_a_block_that_shows_what_another_one_holds_costs_what_was_there(
    tmp_path: Path, length: int
):
    held = sealed(tmp_path, SIZES)
    sealed(tmp_path, [3], epoch=2)
    segment = tmp_path / "00000001.seg"
    data = segment.read_bytes()
    segment.write_bytes(data[:-length] + data[:length])
    check_wiped(tmp_path, sum(h.readings for h in held if h.offset + h.length > len(data) - length))


def test_a_journal_that_holds_no_frame_where_one_began_is_told_of(tmp_path: Path):
    take(buffer := opened(tmp_path, 1), 1.0, durable=True)
    buffer.tick(1.0)
    wipe(tmp_path / "journal", 0, SLOT, b"\xff")
    (told,) = opened(tmp_path, 2).stats().faults
    assert told.startswith("unknown readings lost: journal-0-")
    assert opened(tmp_path, 3).stats().faults == []


@pytest.mark.parametrize("slot", range(1, FRAMES))
def test_a_block_of_the_journal_that_is_erased_is_told_of_behind_all_frames(
    journal: Path, slot: int
):
    wipe(journal / "journal", slot * SLOT, FRAMES * SLOT, b"\xff")
    again = opened(journal, 2)
    assert values(again) == list(range(slot))
    (told,) = again.stats().faults
    assert told.startswith(f"unknown readings lost: journal-{slot * SLOT}-")
    assert opened(journal, 3).stats().faults == []


def test_a_copy_of_a_segment_counts_no_loss_again(tmp_path: Path):
    take(buffer := opened(tmp_path, 1), 1.0)
    for _ in range(RAM_READINGS + 5):
        take(buffer, 2.0)
    buffer.close()
    assert buffer.stats().dropped == 6
    shutil.copy(tmp_path / "00000001.seg", tmp_path / "00000009.seg")
    assert opened(tmp_path, 2).stats().dropped == 6


def test_what_is_lost_is_counted_though_the_place_of_the_next_is_damaged_and_acked_gone(
    tmp_path: Path,
):
    held = sealed(tmp_path, [1000] * 8)
    (tmp_path / "acked").write_bytes(bytes(8192))
    segment, head = tmp_path / "00000001.seg", size_of(b"")
    wipe(segment, held[3].offset + 10, held[3].offset + 30, b"\xff")
    wipe(segment, held[4].offset - 20, held[4].offset - 12, b"\x55")
    assert head > 20
    assert opened(tmp_path, 2).stats().dropped == 1000


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_a_batch_whose_place_nothing_tells_is_counted_once_it_is_lost(
    tmp_path: Path, filling: bytes
):
    (held,) = sealed(tmp_path, [1000])
    sealed(tmp_path, [3], epoch=2)
    segment, begin = tmp_path / held.segment, held.offset - size_of(b"")
    wipe(segment, 0, begin, filling)
    wipe(segment, held.offset - 20, held.offset - 12, b"\x55")
    again = opened(tmp_path, 3)
    assert (len(values(again)), again.stats().dropped) == (1003, 0)
    wipe(segment, begin, segment.stat().st_size, b"\0")
    check_wiped(tmp_path, 1000)


def test_such_a_batch_makes_no_loss_of_the_segments_before_it_that_were_delivered(tmp_path: Path):
    _, held, _ = (sealed(tmp_path, [size], epoch)[0] for epoch, size in enumerate((7, 1000, 3), 1))
    buffer = opened(tmp_path, 4)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.close()
    assert not (tmp_path / "00000001.seg").exists()
    wipe(tmp_path / held.segment, 0, held.offset - size_of(b""), b"\0")
    wipe(tmp_path / held.segment, held.offset - 20, held.offset - 12, b"\x55")
    (tmp_path / "acked").write_bytes(bytes(8192))
    again = opened(tmp_path, 5)
    assert (len(values(again)), again.stats().dropped) == (1003, 0)


@pytest.fixture
def wiped(tmp_path: Path) -> tuple[Path, int, int]:
    """A segment, and where it is wiped: of a batch that lies aside, which a power cut forgot."""
    buffer = opened(tmp_path, 1)
    for number in range(2):
        take(buffer, number + 0.25, number + 0.5)
        buffer._work(0.0, buffer._seal)
    buffer.tick(10.0)
    refused, behind = buffer.waiting()
    before = (tmp_path / "acked").read_bytes()
    buffer.set_aside(refused, 0x99)
    buffer._disk.close_all()
    (tmp_path / "acked").write_bytes(before)
    begin, end = (held.offset - size_of(b"") for held in (refused, behind))
    wipe(tmp_path / refused.segment, begin, end, b"\0")
    return tmp_path / refused.segment, begin, end


def test_a_batch_that_lies_aside_is_not_lost_with_its_bytes(wiped: tuple[Path, int, int]):
    segment, begin, end = wiped
    for epoch in (2, 3):
        again = opened(segment.parent, epoch)
        assert (values(again), again.stats().dropped) == ([1.25, 1.5], 0)
        wipe(segment, begin, end, b"\0")


def test_nor_is_it_lost_with_them_once_it_is_delivered(wiped: tuple[Path, int, int]):
    segment, begin, end = wiped
    again = opened(segment.parent, 2)
    (segment.parent / "refused/retry").touch()
    again.tick(1.0)
    again.acknowledge(next(again.waiting()))
    again.tick(2.0)
    assert not any((segment.parent / "refused").iterdir())
    wipe(segment, begin, end, b"\0")
    assert opened(segment.parent, 3).stats().dropped == 0


@pytest.mark.parametrize("behind", [b"", b"\xff", b"bgS3"])
def test_a_segment_that_somebody_wrote_behind_is_read_and_kept(tmp_path: Path, behind: bytes):
    sealed(tmp_path, [3])
    held, segment = sealed(tmp_path, [5, 7], epoch=2), tmp_path / "00000002.seg"
    spoil(segment, held[0].offset + 5)
    with segment.open("ab") as file:
        file.write(behind * (5 << 18))
        file.truncate(9 << 20)
    whole = segment.read_bytes()
    for epoch, lost in ((3, {"damaged on disk": 5}), (4, {})):
        again = opened(tmp_path, epoch)
        assert (len(values(again)), again.stats().dropped) == (10, 5)
        assert again.stats().dropped_by == lost
        assert "readings lost: 00000002.seg-" in again.stats().faults[-1]
        again.close()
    for one in list(again.waiting()):
        again.acknowledge(one)
    again.tick(10.0)
    kept = (tmp_path / "00000002.seg.damaged").read_bytes()
    assert (len(kept), kept[held[1].offset :]) == (len(whole), whole[held[1].offset :])


def test_of_a_card_with_thousands_of_bad_places_not_all_are_copied(tmp_path: Path):
    held = sealed(tmp_path, [3] * 2 * (COPIES + 50))[::2]
    for one in held:
        spoil(tmp_path / one.segment, one.offset + 5)
    for epoch in (2, 3):
        again = opened(tmp_path, epoch)
        assert (again.stats().dropped, len(aside(tmp_path))) == (3 * len(held), COPIES)
        assert len(again.stats().faults) <= TOLD
        assert (tmp_path / "acked").stat().st_size == 2 * PAGE
        again.close()
    assert again.stats().faults == []


def test_losses_in_many_places_have_nothing_sent_again_that_was_delivered(tmp_path: Path):
    held = sealed(tmp_path, [3] * 2 * (ACKED_RANGES + 5))
    for one in held[::2]:
        wipe(tmp_path / one.segment, one.offset - size_of(b""), one.offset + one.length, b"\0")
    buffer = opened(tmp_path, 2)
    *delivered, last = buffer.waiting()
    for one in delivered:
        buffer.acknowledge(one)
    buffer.close()
    assert [one.sequence for one in opened(tmp_path, 3).waiting()] == [last.sequence]


@pytest.mark.parametrize("changes", range(14))
def test_a_power_cut_amid_a_start_counts_nothing_that_the_journal_saves(changes: int):
    for seed in range(10):
        buffer = begun(disk := CrashDisk(), 1)
        take(buffer, 1.0, 2.0, durable=True)
        buffer.tick(1.0)
        buffer.close()
        (held,) = buffer.waiting()
        disk.spoil(held.segment, held.offset + 5)
        with disk.power_cut(changes, Random(seed)):
            begun(disk, 2)
        again = begun(disk, 3)
        assert (values(again), again.stats().dropped) == ([1.0, 2.0], 0)


# More than one thing at a time


def test_what_is_lost_beside_a_loss_that_was_counted_counts_in_full(tmp_path: Path):
    """Of what was missing the first time a batch was delivered."""
    held = sealed(tmp_path, [3, 4, 5, 6])
    buffer = opened(tmp_path, 2)
    buffer.acknowledge(held[2])
    buffer.tick(10.0)
    buffer.close()
    segment, ends = tmp_path / "00000001.seg", held[3].offset - size_of(b"")
    for first, lost in ((held[1], 4), (held[0], 4 + 3)):
        wipe(segment, first.offset, ends, b"\xff")
        assert opened(tmp_path, 2 + lost).stats().dropped == lost


def test_what_is_lost_before_what_was_counted_is_no_part_of_it(tmp_path: Path):
    held = sealed(tmp_path, [3, 4, 5, 6, 7])
    segment = tmp_path / "00000001.seg"
    begins = [one.offset - size_of(b"") for one in held]
    wipe(segment, begins[2], begins[4], b"\xff")
    buffer = opened(tmp_path, 2)
    buffer.acknowledge(held[4])
    buffer.close()
    wipe(segment, begins[1], begins[2], b"\xff")
    assert opened(tmp_path, 3).stats().faults[0].startswith("4 readings lost")


def test_what_was_lost_while_it_ran_is_no_part_of_what_is_lost_later(tmp_path: Path):
    first, second = (sealed(tmp_path, [3], epoch)[0] for epoch in (1, 2))
    sealed(tmp_path, [4], epoch=3)
    buffer = opened(tmp_path, 4)
    spoil(tmp_path / second.segment, second.offset + 5)
    assert buffer.payload(second) is None
    buffer._losses.set_damage_aside(buffer._spool)  # a power cut comes before that segment goes
    wipe(tmp_path / first.segment, first.offset, first.offset + first.length, b"b")
    assert opened(tmp_path, 5).stats().dropped == 3 + 3


def test_damage_that_was_counted_stands_for_more_once_what_is_behind_it_is_gone(tmp_path: Path):
    held = sealed(tmp_path, [3, 4])
    for epoch in (2, 3):
        sealed(tmp_path, [5], epoch)
    segment = tmp_path / "00000001.seg"
    wipe(segment, held[1].offset, segment.stat().st_size, b"\xff")
    damaged = segment.read_bytes()
    assert opened(tmp_path, 4).stats().dropped == 4
    segment.write_bytes(damaged)  # as where there was no room for a copy of it
    (tmp_path / "00000002.seg").unlink()
    for epoch in (5, 6):
        assert opened(tmp_path, epoch).stats().dropped == 4 + 5


def test_what_was_counted_is_known_by_what_stands_in_its_place_as_well(tmp_path: Path):
    """Of the records, and the names in `acked`, there may be too few left."""
    held = sealed(tmp_path, [3] * 20)
    for one in held[::2]:
        spoil(tmp_path / one.segment, one.offset + 5)
    assert opened(tmp_path, 2).stats().dropped == 30
    (tmp_path / "00000002.seg").unlink()
    opened(tmp_path, 3).close()
    wipe(tmp_path / "00000001.seg", held[0].offset, held[1].offset + held[1].length, b"b")
    assert opened(tmp_path, 4).stats().dropped == 30 + 3


def partly_flushed_by(buffer: Buffer) -> None:
    """Have it seal a batch of three readings, one of which the journal has as well."""
    take(buffer, 1.0, durable=True)
    buffer.tick(0.0)
    take(buffer, 2.0, 3.0)
    buffer._work(0.0, buffer._seal)
    buffer.tick(0.0)


def test_what_the_journal_saved_of_a_lost_batch_may_be_lost_later(tmp_path: Path):
    partly_flushed_by(buffer := opened(tmp_path, 1))
    for epoch, lost in ((2, 2), (3, 3)):
        (held,) = buffer.waiting()
        wipe(tmp_path / held.segment, held.offset - size_of(b""), held.offset + 30, b"b")
        buffer = opened(tmp_path, epoch)
        assert buffer.stats().dropped == lost
        (tmp_path / "journal").write_bytes(bytes(SLOT * SLOTS))
    assert values(buffer) == []


def test_what_the_journal_has_of_a_batch_does_not_stand_for_all_of_it(tmp_path: Path):
    """Nor where all others that are missing with it were delivered."""
    sealed(tmp_path, [5])
    buffer = opened(tmp_path, 2)
    take(buffer, *range(5))
    buffer._work(0.0, buffer._seal)
    partly_flushed_by(buffer)
    for held in list(buffer.waiting())[:2]:
        buffer.acknowledge(held)
    buffer.tick(10.0)
    (segment,) = tmp_path.glob("*.seg")
    wipe(segment, 0, segment.stat().st_size, b"\xff")
    again = opened(tmp_path, 3)
    assert (values(again), again.stats().dropped) == ([1.0], 7)
    assert "at most 7 readings lost" in again.stats().faults[0]


@pytest.mark.parametrize("begin", range(size_of(b"")))
def test_of_a_head_whose_end_is_wiped_only_what_is_whole_counts(tmp_path: Path, begin: int):
    (held,) = sealed(tmp_path, [7])
    data = (tmp_path / held.segment).read_bytes()[held.offset - size_of(b"") :]
    told = [record.readings for record in claims(data[:begin].ljust(len(data), b"\0"))]
    assert told in ([], [7])


@pytest.mark.parametrize("filling", [b"\0", b"b"])
def test_a_wiped_batch_is_lost_though_nobody_knew_once_what_was_acknowledged(
    tmp_path: Path, filling: bytes
):
    (held,) = sealed(tmp_path, [3])
    (tmp_path / "acked").unlink()
    for epoch in (2, 3):  # of these segments the empty one went
        opened(tmp_path, epoch).close()
    wipe(tmp_path / held.segment, held.offset - size_of(b""), held.offset + held.length, filling)
    assert opened(tmp_path, 4).stats().dropped == 3


def test_a_wiped_batch_beside_a_segment_of_which_nobody_knows_may_be_lost_with_it(tmp_path: Path):
    for epoch, size in ((1, 3), (2, 4), (3, 5)):
        sealed(tmp_path, [size], epoch)
    (tmp_path / "acked").unlink()
    (tmp_path / "00000002.seg").unlink()
    opened(tmp_path, 4).close()
    segment = tmp_path / "00000001.seg"
    wipe(segment, segment.stat().st_size - 40, segment.stat().st_size, b"b")
    wipe(segment, 70, 110, b"b")
    again = opened(tmp_path, 5)
    assert again.stats().dropped == 7
    assert "at most 7 readings lost" in again.stats().faults[0]


def test_a_start_on_a_full_disk_forgets_nothing_of_what_is_missing():
    disk = CrashDisk()
    for epoch in (1, 2):
        sealed_on(buffer := begun(disk, epoch), 2)
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    partly_flushed_by(buffer)
    sealed_on(buffer, 4)
    (segment,) = [name for name in disk.names() if name.endswith(".seg")]
    disk.wipe(segment, 70, disk.size(segment), b"b")
    disk.limit = disk.used
    assert "No space left" in str(begun(disk, 3).fault)
    disk.limit = None
    assert begun(disk, 4).stats().dropped >= 2 + 4


def test_a_loss_is_counted_once_though_its_record_is_wiped_before_the_damage_is_blanked():
    sealed_on(begun(disk := CrashDisk(), 1), 7)
    disk.wipe("00000001.seg", 0, disk.size("00000001.seg"), b"b")
    disk.bad.add("00000001.seg")
    again = begun(disk, 2)
    assert (again.stats().dropped, again.stats().disk_errors) == (7, 1)
    newest = max(name for name in disk.names() if name.endswith(".seg"))
    disk.wipe(newest, disk.size(newest) - 20, disk.size(newest), b"b")
    assert begun(disk, 3).stats().dropped == 7


@pytest.mark.parametrize("seed", range(10))
def test_the_sum_of_what_was_lost_is_not_forgotten_on_another_disk(seed: int):
    sealed_on(buffer := begun(disk := CrashDisk(), 1), 3)
    for _ in range(2):
        disk.swap(CrashDisk())
        buffer.tick(1.0)
    cut_and_wipe(disk, seed)
    assert begun(disk, 2).stats().dropped == 3
