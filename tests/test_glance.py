"""A buffer seen by another process while its owner writes: what is there, no more, no less."""

import errno
import os
import random
from pathlib import Path
from threading import Event, Thread

import pytest
from test_buffer import SETTINGS, begun, flip, opened, take
from test_unreadable import on_block, written

from gateway.disk import BLOCK, LOCK, Disk
from gateway.glance import Glance
from gateway.reading import Value
from gateway.record import size_of

HEAD = size_of(b"")
"""Bytes of a record before its payload."""


class Owner:
    """Fills a buffer and has it delivered, as fast as it goes, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        disk = Disk(directory)
        assert disk.lock()
        self.buffer = begun(disk, 1, SETTINGS)
        self.flushed = self.delivered = 0
        """The highest number that was flushed, and that is about to be delivered."""
        self._ends = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Owner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        noise, now = random.Random(1), 0.0
        number = 0
        while not self._ends.is_set():
            for _ in range(20):
                number += 1
                take(self.buffer, f"{number} {noise.randbytes(110).hex()}", at=number)
            now += 11
            self.buffer.tick(now)
            self.flushed = number
            for held in list(self.buffer.waiting())[:-20]:
                payload_end = held.first_ms - 10**12 + held.readings - 1
                self.delivered = payload_end
                self.buffer.acknowledge(held)


def seen(glance: Glance) -> tuple[set[int], int]:
    """Return the numbers that it finds, and how many batches had gone meanwhile."""
    found, gone = set(), 0
    for each in glance.batches():
        if isinstance(each, tuple):
            found |= {int(str(r.value).split()[0]) for r in each[1].readings}
        else:
            gone += 1
    for batch in glance.unsealed():
        found |= {int(str(r.value).split()[0]) for r in batch.readings}
    return found, gone


def test_all_that_was_flushed_and_not_delivered_is_seen_while_the_owner_writes(tmp_path: Path):
    with Owner(tmp_path) as owner:
        looks = rolled = 0
        while rolled < 3 or looks < 100:
            flushed = owner.flushed
            glance = Glance(tmp_path, "trd-0042")
            found, _ = seen(glance)
            assert set(range(owner.delivered + 1, flushed + 1)) <= found
            assert glance.damage == []
            looks += 1
            rolled = max(int(file.stem) for file in tmp_path.glob("*.seg"))


def test_a_segment_that_goes_meanwhile_is_no_damage(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    glance = Glance(tmp_path, "trd-0042")
    for segment in tmp_path.glob("*.seg"):
        segment.unlink()
    assert seen(glance) == (set(), 1)
    assert glance.damage == []


def torn(directory: Path, left: int) -> None:
    """Leave a segment of two batches of one reading, and so many bytes of the second one."""
    buffer = opened(directory)
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    held = list(buffer.waiting())[1]
    os.truncate(directory / held.segment, held.offset - HEAD + left)


@pytest.mark.parametrize("left", [0, HEAD - 1, HEAD, HEAD + 9])
def test_what_ends_amid_a_record_is_damage_unless_a_daemon_may_be_writing_it(
    tmp_path: Path, left: int
):
    torn(tmp_path, left)
    (damage,) = Glance(tmp_path, "trd-0042").damage
    assert (len(damage.data), damage.lost) == (left, 1)
    daemon = Disk(tmp_path)
    assert daemon.lock()
    assert Glance(tmp_path, "trd-0042").damage == []
    daemon.close(LOCK)
    assert len(Glance(tmp_path, "trd-0042").damage) == 1


def test_damage_before_the_newest_record_is_seen_though_a_daemon_runs(tmp_path: Path):
    buffer = opened(tmp_path)
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    first = next(buffer.waiting())
    flip(tmp_path / first.segment, first.offset + 5)
    daemon = Disk(tmp_path)
    assert daemon.lock()
    (damage,) = Glance(tmp_path, "trd-0042").damage
    assert damage.lost == 1


@pytest.mark.parametrize("begins", [False, True])
def test_a_daemon_may_write_it_that_ends_or_begins_while_it_is_read(
    tmp_path: Path, monkeypatch, begins: bool
):
    torn(tmp_path, HEAD)
    daemon = Disk(tmp_path)
    assert begins or daemon.lock()

    def pread(fd: int, length: int, offset: int, read=os.pread) -> bytes:
        assert daemon.lock() if begins else not daemon.close(LOCK)
        return read(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert Glance(tmp_path, "trd-0042").damage == []


def looked_at(directory: Path) -> list[Value]:
    """Return the values that are in no batch yet."""
    glance = Glance(directory, "trd-0042")
    return [reading.value for batch in glance.unsealed() for reading in batch.readings]


def newest(directory: Path) -> list[Value]:
    found = Glance(directory, "trd-0042").newest()
    return [reading.value for reading in found[1].readings] if found else []


def test_what_is_sealed_is_seen_once_though_it_is_in_the_journal_still(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0, durable=True)
    buffer.tick(0.0)
    assert looked_at(tmp_path) == [1.0]
    buffer.tick(60.0)
    assert looked_at(tmp_path) == []


def test_what_is_in_the_journal_is_seen_where_there_is_no_segment(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0, at=7, durable=True)
    buffer.tick(0.0)
    (tmp_path / "00000001.seg").unlink()
    glance = Glance(tmp_path, "trd-0042")
    assert (looked_at(tmp_path), glance.oldest_ms) == ([1.0], 10**12 + 7)


def test_of_a_batch_that_is_gone_the_other_refused_ones_are_seen(tmp_path: Path):
    buffer = opened(tmp_path)
    for value in (1.0, 2.0, 3.0):
        take(buffer, value)
        buffer.close()
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    refused = Glance(tmp_path, "trd-0042").refused()
    assert next(refused).aside.sequence == 1
    (tmp_path / "refused/2-1-0x99.batch").unlink()
    assert [each.aside.sequence for each in refused] == [3]


def test_the_refused_are_seen_in_the_order_of_their_sequences(tmp_path: Path):
    opened(tmp_path)
    for sequence in (10, 9, 2):
        (tmp_path / f"refused/{sequence}-1-0x99.batch").touch()
    refused = Glance(tmp_path, "trd-0042").refused()
    assert [each.aside.sequence for each in refused] == [2, 9, 10]


def worn(monkeypatch: pytest.MonkeyPatch, name: str, at: int = 0, why: int = errno.EIO) -> None:
    """Let the block of that file that begins there be one that cannot be read."""

    def pread(fd: int, length: int, offset: int, read=os.pread) -> bytes:
        here = Path(f"/proc/self/fd/{fd}").readlink().name == name
        if here and at - length < offset < at + BLOCK:
            raise OSError(why, os.strerror(why))
        return read(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)


def test_a_block_of_the_journal_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch):
    written(tmp_path)
    worn(monkeypatch, "journal", BLOCK)
    assert looked_at(tmp_path) == [0, 2]


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize(("slot", "lost"), [(0, 1), (1, 1), (2, None), (9, None)])
def test_a_block_of_the_journal_that_cannot_be_read_is_damage_though_a_daemon_runs(
    tmp_path: Path, monkeypatch, slot: int, lost: int | None, runs: bool
):
    written(tmp_path)
    daemon = Disk(tmp_path)
    assert not runs or daemon.lock()
    worn(monkeypatch, "journal", slot * BLOCK)
    (damage,) = Glance(tmp_path, "trd-0042").damage
    assert (damage.name, damage.at, damage.lost) == ("journal", slot * BLOCK, lost)


@pytest.mark.parametrize("first", [0, 16_384])
def test_the_end_of_the_newest_segment_that_cannot_be_read_is_damage_though_a_daemon_runs(
    tmp_path: Path, monkeypatch, first: int
):
    lost = sum(each.readings for each in written(tmp_path) if each.offset + each.length > first)
    size = (tmp_path / "00000001.seg").stat().st_size
    daemon = Disk(tmp_path)
    assert daemon.lock()
    for at in range(first, size, BLOCK):
        worn(monkeypatch, "00000001.seg", at)
    (damage,) = Glance(tmp_path, "trd-0042").damage
    assert (damage.name, damage.at + len(damage.data), damage.lost) == ("00000001.seg", size, lost)


@pytest.mark.parametrize("away", [False, True])
def test_a_list_of_the_refused_that_cannot_be_read_hides_none_of_them(
    tmp_path: Path, monkeypatch, away: bool
):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    if away:
        (tmp_path / "refused.list").unlink()
    worn(monkeypatch, "refused.list")
    (refused,) = Glance(tmp_path, "trd-0042").refused()
    assert refused.batch


def test_a_refused_batch_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch):
    buffer = opened(tmp_path)
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer.close()
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    worn(monkeypatch, "1-1-0x99.batch")
    refused = Glance(tmp_path, "trd-0042").refused()
    assert [bool(each.batch) for each in refused] == [False, True]


# The batch that was sealed last


@pytest.mark.parametrize("at", range(BLOCK, 18_654, BLOCK))
def test_the_newest_that_can_be_read_is_the_newest(tmp_path: Path, monkeypatch, at: int):
    sound = [held for held in written(tmp_path) if not on_block(held, at)]
    worn(monkeypatch, "00000001.seg", at)
    _, batch = Glance(tmp_path, "trd-0042").newest()
    assert batch.sequence == sound[-1].sequence


def test_the_newest_is_in_the_segment_of_the_highest_number(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    (tmp_path / "00000001.seg").rename(tmp_path / "99999999.seg")
    (tmp_path / "00000002.seg").rename(tmp_path / "100000000.seg")
    assert newest(tmp_path) == [2.0]


def test_what_is_no_batch_is_not_the_newest(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    buffer._spool.append(1, 2, 1, 0, b"no batch")
    (tmp_path / "photos.seg").touch()
    with (tmp_path / "00000009.seg").open("wb") as file:
        file.truncate(1 << 40)  # more than memory holds
    assert newest(tmp_path) == [1.0]


def test_what_is_not_on_the_device_is_not_the_newest(tmp_path: Path, monkeypatch):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()

    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="Input/output error"):
        newest(tmp_path)
