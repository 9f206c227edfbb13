"""What is older than max_age goes, counted; a clock that jumps or is not set costs nothing."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from test_buffer import flip, values

from gateway.bounds import AGES_EVERY
from gateway.buffer import Buffer
from gateway.clock import Clock
from gateway.disk import Disk
from gateway.reading import Quantity, Reading
from gateway.settings import BufferSettings

TEXT = Quantity("text")
DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
SETTINGS = BufferSettings(seal_interval=60, max_age=10 * 86_400.0, max_size=1 << 30, keep_free=0)


class Meanwhile(Disk):
    """A disk at whose next read of a segment something else happens beside."""

    happens: Callable[[], None] | None = None
    kept = ""
    """A file that stays, whatever is done to remove it."""

    def remove(self, name: str) -> None:
        if name == self.kept:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().remove(name)

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if self.happens and name.endswith(".seg"):
            self.happens()
        return super().read(name, offset, length)


class Box:
    """A buffer whose clocks the test turns; every day has a segment of its own."""

    def __init__(self, directory: Path, settings: BufferSettings = SETTINGS) -> None:
        self.directory, self.settings = directory, settings
        self.wall_ms, self.boot_ms, self.synced = 50 * YEAR_MS, 0, True
        self.tick_at, self.boots = 0.0, 0
        self.start(reboot=True)

    def start(self, *, reboot: bool) -> None:
        self.boots += reboot
        self.boot_ms = 0 if reboot else self.boot_ms
        self.clock = Clock(
            wall_ns=lambda: self.wall_ms * 10**6,
            boot_ns=lambda: self.boot_ms * 10**6,
            kernel=lambda: (4000 if self.synced else 1 << 40, False),
            boot=self.boots,
        )
        self.disk = Meanwhile(self.directory)
        self.buffer = Buffer(self.disk, self.settings, "g", self.boots, clock=self.clock)
        self.tick()

    def tick(self) -> None:
        self.tick_at += AGES_EVERY
        self.buffer.tick(self.tick_at)

    def pass_by(self, days: float) -> None:
        self.wall_ms += round(days * DAY_MS)
        self.boot_ms += round(days * DAY_MS)
        self.tick()
        self.tick()

    def day(self, name: str) -> None:
        """Take readings named by the day; the start after it begins another segment."""
        for _ in range(3):
            self.buffer.append(Reading("it", TEXT, self.clock.now(), name))
        self.tick()
        self.buffer.close()
        self.start(reboot=False)

    @property
    def days(self) -> list[str]:
        return list(dict.fromkeys(map(str, values(self.buffer))))

    @property
    def dropped(self) -> dict[str, int]:
        return self.buffer.stats().dropped_by


def test_what_is_older_goes_and_is_counted_and_what_is_younger_stays(tmp_path: Path):
    box = Box(tmp_path)
    for name in ("one", "two", "three"):
        box.day(name)
        box.pass_by(4)
    assert values(box.buffer) == ["two"] * 3 + ["three"] * 3
    assert (box.dropped, box.buffer.stats().dropped) == ({"older than max_age": 3}, 3)
    box.start(reboot=False)
    assert (box.buffer.stats().dropped, box.days) == (3, ["two", "three"])


def test_an_old_segment_that_is_delivered_meanwhile_does_not_take_the_next_one_along(
    tmp_path: Path,
):
    box = Box(tmp_path)
    box.day("one")
    box.pass_by(4)
    box.day("two")
    first = next(box.buffer.waiting())
    box.disk.happens = lambda: box.buffer.acknowledge(first)
    box.pass_by(7)
    assert (box.days, box.dropped) == (["two"], {})


def test_an_old_segment_that_cannot_be_removed_holds_up_no_other(tmp_path: Path):
    box = Box(tmp_path)
    for name in ("one", "two", "three"):
        box.day(name)
    box.disk.kept = "00000001.seg"
    box.pass_by(11)
    assert (box.days, box.dropped) == ([], {"older than max_age": 9})
    assert box.buffer.fault is None
    assert "00000001.seg cannot be removed: " in str(box.buffer.stats().faults)
    assert not (tmp_path / "00000002.seg").exists()


def test_ages_are_looked_at_once_a_minute(tmp_path: Path):
    box, looks = Box(tmp_path), list[float]()
    box.day("one")
    for second in range(1, round(2 * AGES_EVERY)):
        box.disk.happens = lambda at=second: looks.append(at)
        box.buffer.tick(box.tick_at + second)
    assert looks == [AGES_EVERY]


def test_a_batch_that_is_damaged_when_its_age_is_looked_at_is_counted_as_that(tmp_path: Path):
    box = Box(tmp_path)
    box.day("one")
    held = next(box.buffer.waiting())
    flip(tmp_path / held.segment, held.offset + 5)
    box.pass_by(11)
    assert (box.days, box.dropped) == ([], {"damaged on disk": 3})


def test_a_segment_whose_last_batch_is_young_stays_whole(tmp_path: Path):
    box = Box(tmp_path)
    box.buffer.append(Reading("it", TEXT, box.clock.now(), "old"))
    box.pass_by(11)
    box.day("young")
    box.pass_by(0)
    assert (box.days, box.dropped) == (["old", "young"], {})


def test_the_last_batch_of_a_segment_is_the_last_whatever_the_numbers_of_its_batches(
    tmp_path: Path,
):
    box = Box(tmp_path)
    for _ in range(6):
        box.buffer.append(Reading("it", TEXT, box.clock.now(), "older"))
        box.pass_by(0)
    box.start(reboot=False)
    box.buffer.append(Reading("it", TEXT, box.clock.now(), "old"))
    box.pass_by(11)
    box.day("young")
    box.pass_by(0)
    assert [held.sequence for held in box.buffer.waiting()] == [7, 8]  # a set of both begins with 8
    assert box.buffer.stats().dropped == 6


def test_few_batches_go_as_soon_as_many_do(tmp_path: Path):
    box = Box(tmp_path)
    for day in range(40):
        box.buffer.append(Reading("it", TEXT, box.clock.now(), f"{day}"))
        box.tick_at += 86_400 - 2 * AGES_EVERY
        box.pass_by(1)
    assert (box.days[0], box.days[-1]) == ("30", "39")  # in segments of two
    assert box.dropped == {"older than max_age": 30}


def test_what_came_last_of_all_goes_as_well(tmp_path: Path):
    box = Box(tmp_path)
    box.buffer.append(Reading("it", TEXT, box.clock.now(), "one"))
    box.pass_by(5)
    box.tick_at += 5 * 86_400
    box.pass_by(6)
    assert (box.days, box.dropped) == ([], {"older than max_age": 1})
    segments = list(tmp_path.glob("*.seg"))
    box.tick_at += 50 * 86_400
    box.pass_by(50)
    assert list(tmp_path.glob("*.seg")) == segments  # where nothing waits none is begun
    assert len(segments) == 1


@pytest.mark.parametrize("fails", [errno.ENOSPC, errno.EIO])
def test_nothing_goes_where_another_segment_alone_cannot_be_begun(
    fails: int, tmp_path: Path, monkeypatch
):
    def write(name: str, offset: int, data: bytes) -> None:
        if not disk.exists(name):
            raise OSError(fails, "the device says no")
        Disk.write(disk, name, offset, data)

    box = Box(tmp_path)
    for name in ("one", "two"):
        box.day(name)
    box.buffer.append(Reading("it", TEXT, box.clock.now(), "three"))
    box.pass_by(0)
    disk = box.disk
    monkeypatch.setattr(disk, "write", write)
    box.tick_at += 2 * 86_400
    box.pass_by(2)
    assert (box.days, box.dropped) == (["one", "two", "three"], {})
    assert (box.buffer.fault is None) == (fails == errno.ENOSPC)  # there is room for batches yet
    monkeypatch.undo()
    box.pass_by(9)
    assert (box.days, box.dropped) == ([], {"older than max_age": 7})


def test_a_wall_clock_that_jumps_drops_nothing_in_its_own_boot(tmp_path: Path):
    box = Box(tmp_path)
    for name in ("one", "two"):
        box.day(name)
    for step in (30 * YEAR_MS, -60 * YEAR_MS, 30 * YEAR_MS):
        box.wall_ms += step
        box.pass_by(0)
    assert (box.days, box.dropped) == (["one", "two"], {})


def test_age_is_known_by_the_boot_clock_although_the_wall_clock_was_never_set(tmp_path: Path):
    box = Box(tmp_path)
    box.synced = False
    for name in ("one", "two"):
        box.day(name)
    box.pass_by(11)
    assert box.dropped


def test_another_boots_batches_without_a_set_clock_stay(tmp_path: Path):
    box = Box(tmp_path)
    box.synced, box.wall_ms = False, 0
    for name in ("one", "two"):
        box.day(name)
    box.synced, box.wall_ms = True, 50 * YEAR_MS
    box.start(reboot=True)
    box.pass_by(0)
    assert (box.days, box.dropped) == (["one", "two"], {})


def test_while_the_clock_is_not_set_another_boots_batches_stay(tmp_path: Path):
    box = Box(tmp_path)
    for name in ("one", "two"):
        box.day(name)
    box.synced, box.wall_ms = False, 80 * YEAR_MS
    box.start(reboot=True)
    box.pass_by(0)
    assert (box.days, box.dropped) == (["one", "two"], {})
    box.synced = True
    box.pass_by(0)
    assert box.dropped


def test_what_was_sealed_before_something_too_old_is_older_still(tmp_path: Path):
    box = Box(tmp_path)
    box.synced, box.wall_ms = False, 0
    box.day("unset")
    box.synced, box.wall_ms = True, 50 * YEAR_MS
    box.start(reboot=True)
    box.day("one")
    box.day("two")
    box.wall_ms += 11 * DAY_MS
    box.start(reboot=True)
    box.pass_by(0)
    assert (box.days, box.dropped) == ([], {"older than max_age": 9})


def test_unless_it_is_set_nothing_goes_by_age(tmp_path: Path):
    box = Box(tmp_path, BufferSettings())
    for name in ("monday", "tuesday"):
        box.day(name)
    box.pass_by(10_000)
    assert (box.buffer.fault, box.days, box.dropped) == (None, ["monday", "tuesday"], {})
