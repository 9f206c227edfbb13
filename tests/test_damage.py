"""Whatever is on the disk at a start: cut off anywhere, bits flipped, an older image restored."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import pytest
from crash_disk import CrashDisk, PowerCut
from test_buffer import SETTINGS, take
from trials import LONG, times

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.journal import SLOT
from gateway.reading import Value
from gateway.record import records, size_of
from gateway.wire import decode

BATCHES, READINGS = times(4, 2000), times(2, 50)
FRAMES = times(4, 40)
CUTS = 2000


class Unsynced(Disk):
    """Nobody cuts the power here, and thousands of starts are to be made."""

    def sync(self, name: str) -> None:
        pass

    def sync_directory(self) -> None:
        pass

    def settle(self, name: str) -> None:
        pass


def opened(directory: Path, epoch: int) -> Buffer:
    buffer = Buffer(Unsynced(directory), SETTINGS, "trd-0042", boot=7, epoch=epoch)
    buffer.tick(0.0)
    return buffer


def payloads(buffer: Buffer) -> list[bytes]:
    """Return the bytes of each batch that waits."""
    found = [buffer.payload(held) or b"" for held in buffer.waiting()]
    buffer._disk.close_all()
    return found


def values(buffer: Buffer) -> list[Value]:
    return [reading.value for batch in payloads(buffer) for reading in decode(batch).readings]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A directory with batches in two segments, and nothing in the journal."""
    number = count()
    for epoch in (1, 2):
        buffer = opened(tmp_path / "sound", epoch)
        for _ in range(BATCHES // 2):
            take(buffer, *(next(number) + 0.5 for _ in range(READINGS)))
            buffer.tick(0.0)
            buffer.tick(60.0)
        buffer.close()
    (tmp_path / "sound" / "journal").unlink()
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


def places(of: range, full: int) -> list[int]:
    """Return all of them; of a large spool so many at random."""
    return Random(1).sample(of, min(full, len(of))) if LONG else list(of)


def test_a_segment_cut_at_any_byte_loses_what_is_behind_and_nothing_else(spool: Path):
    fresh = copies(spool)
    everything = payloads(opened(next(fresh), 3))
    for segment in sorted(spool.glob("*.seg")):
        held = list(records(segment.read_bytes()))
        for at in places(range(segment.stat().st_size), CUTS // 2):
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
                assert payloads(again) == [b for b in everything if b != record.payload]
                assert any(copy.glob("*.damaged"))
                if at >= record.at + size_of(b""):
                    assert again.stats().dropped == record.readings


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
        for at in range(number * SLOT, number * SLOT + len(frame)):
            spoilt = bytearray(sound)
            spoilt[at] ^= 1 << random.randrange(8)
            copy = next(fresh)
            (copy / "journal").write_bytes(spoilt)
            again = opened(copy, 2)
            assert values(again) == [n for n in range(FRAMES) if n != number]


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
                buffer.acknowledge(held.sequence)

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
            buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=epoch)
            take(buffer, 2.0 * epoch, 2.0 * epoch + 1)
            buffer.close()
        disk.spoil("00000001.seg", 100)
        disk.fuse = changes
        with suppress(PowerCut):
            Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=3).tick(0.0)
        disk.crash(Random(seed))
        again = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=4)
        again.tick(0.0)
        assert (values(again), again.stats().dropped) == ([4.0, 5.0], 2)
