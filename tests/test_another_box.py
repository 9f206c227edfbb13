"""Files of another box's buffer that somebody put into ours: nothing goes in silence."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from test_buffer import begun, opened, take, values
from test_unreadable import WornDisk, started

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.flushed import SLOT
from gateway.spool import Spool


def filled(directory: Path, epoch: int, *readings: float) -> Buffer:
    """Return a buffer of a new run, closed, with a batch a reading in its newest segment."""
    buffer = opened(directory, epoch)
    for reading in readings:
        take(buffer, reading)
        buffer._work(0.0, buffer._seal)
    buffer.close()
    return buffer


def delivered(buffer: Buffer) -> None:
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    buffer.close()


def evicted(buffer: Buffer) -> None:
    buffer._spool.evict("buffer full")
    buffer.close()


def put(tmp_path: Path, name: str, theirs: str = "00000001.seg") -> bytes:
    """Put a segment of theirs into ours under this name; return what it holds."""
    return shutil.copy(tmp_path / "theirs" / theirs, tmp_path / "ours" / name).read_bytes()


def check_counted(ours: Path, waits: list[float], dropped: int, name: str, data: bytes) -> None:
    """What was let go of is counted once, told, and its file is kept."""
    buffer = opened(ours, 7)
    assert (values(buffer), buffer.stats().dropped) == (waits, dropped)
    assert any(name in fault for fault in buffer.stats().faults)
    buffer.close()
    again = opened(ours, 8)
    assert (values(again), again.stats().dropped) == (waits, dropped)
    assert (ours / f"{name}.damaged").read_bytes() == data


@pytest.mark.parametrize("name", ["00000000.seg", "00000007.seg"])
def test_what_was_delivered_under_their_numbers_is_not_theirs(tmp_path: Path, name: str):
    filled(tmp_path / "theirs", 50, 50.0, 51.0)
    delivered(filled(tmp_path / "ours", 1, 1.0, 2.0, 3.0))
    filled(tmp_path / "ours", 2, 4.0)
    check_counted(tmp_path / "ours", [4.0], 2, name, put(tmp_path, name))


def test_one_named_as_what_was_evicted_is_not_that(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0, 51.0)
    filled(tmp_path / "theirs", 51, 52.0)
    filled(tmp_path / "ours", 1, 1.0)
    evicted(filled(tmp_path / "ours", 2, 2.0))
    data = put(tmp_path, "00000001.seg", "00000002.seg")
    check_counted(tmp_path / "ours", [2.0], 2, "00000001.seg", data)


def test_what_theirs_lost_costs_nothing_of_ours_in_silence(tmp_path: Path):
    """By its number, as by its name: they dropped the first batch, of a segment called as ours."""
    filled(tmp_path / "theirs", 50, 50.0)
    evicted(filled(tmp_path / "theirs", 51, 51.0))
    for epoch in (1, 2, 3):
        filled(tmp_path / "ours", epoch, float(epoch))
    data = (tmp_path / "ours/00000001.seg").read_bytes()
    put(tmp_path, "00000007.seg", "00000002.seg")
    # Theirs is of the number of 2.0, and they dropped one before
    check_counted(tmp_path / "ours", [2.0, 3.0], 3, "00000001.seg", data)


def test_a_name_that_theirs_tells_of_costs_nothing_of_ours_in_silence(tmp_path: Path):
    delivered(filled(tmp_path / "theirs", 50, *range(50, 70)))
    filled(tmp_path / "theirs", 51, 70.0)
    evicted(filled(tmp_path / "theirs", 52, 71.0))
    for epoch in (1, 2, 3):
        filled(tmp_path / "ours", epoch, float(epoch))
    data = (tmp_path / "ours/00000002.seg").read_bytes()
    put(tmp_path, "00000007.seg", "00000003.seg")
    buffer = opened(tmp_path / "ours", 7)
    assert values(buffer) == [1.0, 3.0, 71.0]
    assert any("1 readings lost: 00000002.seg-" in fault for fault in buffer.stats().faults)
    assert (tmp_path / "ours/00000002.seg.damaged").read_bytes() == data


def no_head(segment: Path) -> None:
    with segment.open("r+b") as file:
        file.write(bytes(63))


def test_what_is_acknowledged_of_a_segment_without_a_head_is_ours(tmp_path: Path):
    buffer = filled(tmp_path, 1, 1.0, 2.0)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.close()
    no_head(tmp_path / "00000001.seg")
    (spool := Spool(Disk(tmp_path))).recover()
    assert spool.sealed == 2
    buffer = opened(tmp_path, 2)
    assert (values(buffer), buffer.stats().dropped) == ([2.0], 0)


def test_a_loss_that_is_told_of_without_a_head_is_ours(tmp_path: Path):
    filled(tmp_path, 1, 1.0)
    gone = (tmp_path / "00000001.seg").read_bytes()
    evicted(filled(tmp_path, 2, 2.0))
    no_head(tmp_path / "00000002.seg")
    (tmp_path / "00000001.seg").write_bytes(gone)  # a power cut brings it back
    buffer = opened(tmp_path, 3)
    assert (values(buffer), buffer.stats().dropped) == ([2.0], 1)


@pytest.mark.parametrize("name", ["00000000.seg", "00000007.seg"])
def test_what_was_flushed_is_delivered_or_counted_though_theirs_have_its_number(
    tmp_path: Path, name: str
):
    filled(tmp_path / "theirs", 50, 50.0, 51.0, 52.0)
    buffer = filled(tmp_path / "ours", 1, 1.0)
    take(buffer, 2.0, 3.0, durable=True)
    buffer.tick(1.0)
    buffer._disk.close_all()
    put(tmp_path, name)
    buffer = opened(tmp_path / "ours", 2)
    assert len(values(buffer)) + buffer.stats().dropped == 6


def flushed(directory: Path, epoch: int, *readings: float) -> bytes:
    """Leave readings in a journal, as a power cut does; return what it holds."""
    take(buffer := opened(directory, epoch), *readings, durable=True)
    buffer.tick(1.0)
    buffer._disk.close_all()
    return (directory / "journal").read_bytes()


def check_told(ours: Path, waits: list[float], lost: str, theirs: bytes, mark: str) -> None:
    """Their frame is counted once, told, and kept as it was."""
    for epoch in (7, 8):
        buffer = opened(ours, epoch)
        assert (values(buffer), buffer.stats().dropped) == (waits, int(lost[-1]))
        faults = buffer.stats().faults
        assert len([f for f in faults if f.startswith(f"{lost} readings")]) == (epoch == 7)
        assert any("is another buffer's" in fault for fault in faults) == (epoch == 7)
        buffer.close()
    (aside,) = ours.glob(f"journal-0-*-{mark}.damaged")
    assert aside.read_bytes() == theirs[:SLOT]


def test_what_was_flushed_under_numbers_of_ours_is_not_sealed(tmp_path: Path):
    """Their journal stands in place of ours: the number of two of its readings is ours."""
    filled(tmp_path / "theirs", 50, 50.0)
    theirs = flushed(tmp_path / "theirs", 51, 51.0, 52.0)
    delivered(filled(tmp_path / "ours", 1, 1.0, 2.0))
    (tmp_path / "ours/journal").write_bytes(theirs)
    check_told(tmp_path / "ours", [], "at most 2", theirs, "2-51")


def test_what_was_flushed_above_our_numbers_goes_out_though_it_is_told(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0, 51.0)
    theirs = flushed(tmp_path / "theirs", 51, 52.0)
    buffer = filled(tmp_path / "ours", 1, 1.0, 2.0)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.close()
    (tmp_path / "ours/journal").write_bytes(theirs)
    check_told(tmp_path / "ours", [2.0, 52.0], "0", theirs, "3-51")


class Killed(BaseException):
    """The process ends."""


class KilledBeforeItIsBlanked(Disk):
    def write(self, name: str, offset: int, data: bytes) -> None:
        if name == "journal":
            raise Killed
        super().write(name, offset, data)


def test_what_is_sealed_of_their_journal_is_not_lost_though_a_kill_comes_then(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0)
    theirs = flushed(tmp_path / "theirs", 51, 51.0)
    filled(tmp_path / "ours", 1, 1.0)
    (tmp_path / "ours/journal").write_bytes(theirs)
    with pytest.raises(Killed):
        begun(disk := KilledBeforeItIsBlanked(tmp_path / "ours"), 6)
    disk.close_all()
    del disk
    check_told(tmp_path / "ours", [1.0, 51.0], "0", theirs, "2-51")


class NotBlanked(Disk):
    def write(self, name: str, offset: int, data: bytes) -> None:
        if name == "journal":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(name, offset, data)


def test_nor_is_what_was_delivered_by_then(tmp_path: Path):
    """Where its segment is still there, since something waits in it."""
    filled(tmp_path / "theirs", 50, 50.0)
    first = flushed(tmp_path / "theirs", 51, 51.0)[:SLOT]
    then = flushed(tmp_path / "theirs", 52, 52.0)
    filled(tmp_path / "ours", 1, 1.0)
    (tmp_path / "ours/journal").write_bytes(then[:SLOT] + first + then[2 * SLOT :])
    buffer = begun(NotBlanked(tmp_path / "ours"), 6)
    buffer.tick(1.0)
    assert values(buffer) == [1.0, 51.0, 52.0]
    for held in list(buffer.waiting())[:2]:
        buffer.acknowledge(held)
    buffer.close()
    again = opened(tmp_path / "ours", 8)
    assert (values(again), again.stats().dropped) == ([52.0], 0)


def test_their_journal_is_kept_as_it_is_where_it_cannot_be_read(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0)
    theirs = flushed(tmp_path / "theirs", 51, 51.0)
    delivered(filled(tmp_path / "ours", 1, 1.0, 2.0))
    (tmp_path / "ours/journal").write_bytes(theirs)
    buffer = started(WornDisk(tmp_path / "ours", ("journal", 2 * SLOT)), epoch=7)
    assert buffer.stats().dropped == 1
    assert (tmp_path / "ours/journal.damaged").read_bytes() == theirs


class Full(Disk):
    """No segment takes anything more while `full`, but for its head."""

    full = False

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.full and name.endswith(".seg") and offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(name, offset, data)


@pytest.mark.parametrize("full", [True, False])
def test_what_we_flushed_stays_in_the_journal_until_it_is_sealed_behind_theirs(
    tmp_path: Path, *, full: bool
):
    """Their segment comes in place of ours while the daemon runs, and the history with it."""
    filled(tmp_path / "theirs", 50, 50.0)
    buffer = begun(disk := Full(tmp_path / "ours"), 1)
    take(buffer, 1.0)
    buffer._work(0.0, buffer._seal)
    buffer.acknowledge(next(buffer.waiting()))
    take(buffer, 2.0, 3.0, durable=True)
    buffer.tick(1.0)
    (tmp_path / "ours/00000001.seg").unlink()
    put(tmp_path, "00000001.seg")
    disk.full = full
    buffer.tick(2.0)
    assert buffer.unsaved == 0
    disk.close_all()
    del buffer, disk
    again = opened(tmp_path / "ours", 2)
    assert (values(again)[-2:], again.stats().dropped) == ([2.0, 3.0], int(full))


def test_what_we_flushed_under_a_number_of_theirs_is_not_lost_while_it_is_in_ram(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0)
    take(buffer := opened(tmp_path / "ours", 1), 2.0, durable=True)
    buffer.tick(1.0)
    (tmp_path / "ours/00000001.seg").unlink()
    put(tmp_path, "00000001.seg")
    buffer.tick(2.0)
    assert (values(buffer), buffer.stats().dropped) == ([50.0, 2.0], 0)
    buffer._disk.close_all()
    assert values(opened(tmp_path / "ours", 2)) == [50.0, 2.0]


class NoSegments(Disk):
    works = False

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name.endswith(".seg") and not self.works:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(name, offset, data)


def test_a_first_start_that_fails_leaves_a_buffer_that_tells_whose_it_is(tmp_path: Path):
    ours = tmp_path / "ours"
    begun(disk := NoSegments(ours), 1)
    disk.close_all()
    del disk
    delivered(filled(ours, 2, 1.0, 2.0))
    filled(tmp_path / "theirs", 50, 50.0)
    theirs = flushed(tmp_path / "theirs", 51, 51.0)
    (ours / "journal").write_bytes(theirs)
    check_told(ours, [], "at most 1", theirs, "2-51")


@pytest.mark.parametrize("sealed", [True, False])
def test_a_journal_tells_whose_it_is_where_nothing_else_does(tmp_path: Path, *, sealed: bool):
    """Else it would be taken for another box's from the next start on."""
    opened(tmp_path, 1).close()
    flushed(tmp_path, 2, 1.0)
    if sealed:
        opened(tmp_path, 3).close()
    for segment in tmp_path.glob("*.seg"):
        no_head(segment)
    (tmp_path / "acked").unlink()
    for epoch in (4, 5):
        buffer = opened(tmp_path, epoch)
        assert (values(buffer), buffer.stats().dropped) == ([1.0], 0)
        buffer.close()
    assert not [*tmp_path.glob("journal-*")]


def test_our_own_journal_is_let_be(tmp_path: Path):
    filled(tmp_path, 1, 1.0)
    flushed(tmp_path, 2, 2.0)
    flushed(tmp_path, 3, 3.0)
    for epoch in (4, 5):
        buffer = opened(tmp_path, epoch)
        assert (values(buffer), buffer.stats().faults) == ([1.0, 2.0, 3.0], [])
        buffer.close()


def test_it_is_told_once_though_the_disk_fails_then(tmp_path: Path):
    filled(tmp_path / "theirs", 50, 50.0)
    theirs = flushed(tmp_path / "theirs", 51, 51.0)
    filled(tmp_path / "ours", 1, 1.0)
    (tmp_path / "ours/journal").write_bytes(theirs)
    buffer = begun(disk := NoSegments(tmp_path / "ours"), 7)
    disk.works = True
    buffer.tick(1.0)
    assert values(buffer) == [1.0, 51.0]
    assert len([f for f in buffer.stats().faults if "is another buffer's" in f]) == 1
