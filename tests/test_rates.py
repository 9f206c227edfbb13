"""How fast the buffer fills and writes: noted once an hour, and worth no fault."""

import errno
import math
import os
import tracemalloc
from pathlib import Path

from test_buffer import begun, take, values
from test_unreadable import WornDisk

from gateway.disk import BLOCK, Disk
from gateway.rates import NAME, Meter, Rates, noted


def known(directory: Path) -> Rates | None:
    """Return what is known right after a start."""
    meter = Meter(Disk(directory))
    meter.note(0.0, 0, 0)
    return meter.rates


def test_it_is_noted_once_an_hour(tmp_path: Path):
    meter = Meter(disk := Disk(tmp_path))
    for second in range(0, 86_400, 10):
        meter.note(float(second), second, second)
    assert disk.written == 24 * BLOCK


def test_it_takes_as_little_memory_after_a_day_as_before(tmp_path: Path):
    meter = Meter(Disk(tmp_path))
    tracemalloc.start()
    for second in range(0, 86_400, 10):
        meter.note(float(second), second, second)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000


def test_a_shorter_note_leaves_nothing_of_a_longer_one(tmp_path: Path):
    meter = Meter(Disk(tmp_path))
    for now, written in ((0.0, 0), (600.0, 10**12), (100_000.0, 10**12), (200_000.0, 10**12)):
        meter.note(now, written, 0)
    assert known(tmp_path) == Rates(100_000.0, 0, 0)


def test_the_end_of_the_daemon_leaves_the_rates_as_they_are(tmp_path: Path):
    meter = Meter(Disk(tmp_path))
    for now in (0.0, 600.0, 4000.0):
        meter.note(now, 1000, 1000)
    meter.note(math.inf, 1000, 1000)
    assert meter.rates == Rates(4000.0, 1000, 1000)
    assert known(tmp_path) == Rates(600.0, 1000, 1000)


def test_what_is_too_large_to_be_a_note_is_not_read(tmp_path: Path):
    with (tmp_path / NAME).open("ab") as file:
        file.truncate(1 << 40)  # more than memory holds
    assert noted(Disk(tmp_path)) is None


def test_how_long_unknown_room_lasts_nobody_can_tell():
    assert Rates(700.0, 1, 1).room_days(None) is None


def test_a_note_that_cannot_be_read_holds_up_no_reading(tmp_path: Path):
    (tmp_path / NAME).write_bytes(bytes(BLOCK))
    take(buffer := begun(WornDisk(tmp_path, (NAME, 0))), 1.0)
    buffer.tick(60.0)
    assert (buffer.fault, values(buffer)) == (None, [1.0])


class NoRoomForNotes(Disk):
    """One that is full but for what is there already."""

    def note(self, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_note_that_has_no_room_costs_no_reading(tmp_path: Path):
    take(buffer := begun(NoRoomForNotes(tmp_path)), 1.0)
    buffer.tick(60.0)
    take(buffer, 2.0)
    buffer.tick(6000.0)
    assert buffer.stats().rates
    assert (buffer.fault, buffer.stats().dropped) == (None, 0)
