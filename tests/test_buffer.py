import errno
import fcntl
import logging
import os
import shutil
import struct
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import msgpack
import pytest
from crash_disk import CrashDisk, PowerCut
from hypothesis import given
from hypothesis import strategies as st

from gateway.acked import LOSSES, PAGE, Acked, Told
from gateway.bounds import kept_free, most
from gateway.buffer import Buffer
from gateway.disk import LOCK, Disk, in_use
from gateway.flushed import SLOT, SLOTS
from gateway.glance import Glance
from gateway.held import Held
from gateway.intake import RAM_READINGS
from gateway.judge import judge
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading, Value
from gateway.record import Place, size_of
from gateway.segments import number_of
from gateway.settings import BufferSettings
from gateway.spool import IN_VAIN
from gateway.wire import Batch, decode, encode

SETTINGS = BufferSettings(flush_interval=10, seal_interval=60)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
"""Surrogates that stand alone among it: bytes that were no text."""


def begun(disk: Disk | CrashDisk, epoch: int = 1, settings: BufferSettings = SETTINGS) -> Buffer:
    """Return a buffer on this disk, its first tick over."""
    buffer = Buffer(disk, settings, "trd-0042", boot=7, epoch=epoch)
    buffer.tick(0.0)
    return buffer


def opened(directory: Path, epoch: int = 1, settings: BufferSettings = SETTINGS) -> Buffer:
    return begun(Disk(directory), epoch, settings)


def take(buffer: Buffer, *values: Value, at: int = 0, offset: int = 10**12, **how: bool) -> None:
    for value in values:
        instant = Instant(at + offset, at, ClockState.SYNCED)
        buffer.append(Reading("river", TEMPERATURE, instant, value), **how)


def batches(buffer: Buffer) -> list[Batch]:
    return [decode(buffer.payload(held) or b"") for held in buffer.waiting()]


def values(buffer: Buffer) -> list[Value]:
    return [reading.value for batch in batches(buffer) for reading in batch.readings]


def test_what_was_flushed_is_there_after_a_kill(tmp_path: Path):
    killed = opened(tmp_path)
    take(killed, 0.0, -0.0, False, None, "")
    killed.tick(20.0)
    assert list(map(repr, values(opened(tmp_path, epoch=2)))) == list(
        map(repr, [0.0, -0.0, False, None, ""])
    )


@pytest.mark.parametrize("clock", ClockState)
def test_what_another_boot_finds_in_the_journal_keeps_boot_times_and_clock_state(
    tmp_path: Path, clock: ClockState
):
    killed = Buffer(Disk(tmp_path), SETTINGS, "trd-0042", boot=7, epoch=1)
    for boot_ms in (86_400_457, 86_401_456):
        instant = Instant(boot_ms + 1_763_900_000_123, boot_ms, clock)
        killed.append(Reading("river", TEMPERATURE, instant, 1.0), durable=True)
    killed.tick(0.0)
    found = Buffer(Disk(tmp_path), SETTINGS, "trd-0042", boot=8, epoch=2)
    found.tick(0.0)
    (batch,) = batches(found)
    assert (batch.epoch, batch.boot) == (1, 7)
    assert [(r.instant.boot_ms, r.instant.wall_ms, r.instant.clock) for r in batch.readings] == [
        (86_400_457, 1_763_986_400_580, clock),
        (86_401_456, 1_763_986_401_579, clock),
    ]


def test_what_is_younger_than_the_flush_interval_is_not(tmp_path: Path):
    killed = opened(tmp_path)
    take(killed, 1.0)
    killed.tick(20.0)
    take(killed, 2.0)
    killed.tick(29.0)
    assert values(opened(tmp_path, epoch=2)) == [1.0]


def test_a_durable_reading_is_flushed_at_once(tmp_path: Path):
    killed = opened(tmp_path)
    take(killed, 1.0)
    killed.tick(20.0)
    take(killed, 2.0, durable=True)
    assert killed.urgent
    killed.tick(20.1)
    assert not killed.urgent
    assert values(opened(tmp_path, epoch=2)) == [1.0, 2.0]


def test_the_sequence_runs_on_and_the_first_batch_names_the_epoch_before(tmp_path: Path):
    first = opened(tmp_path, epoch=11)
    take(first, 1.0)
    first.close()
    second = opened(tmp_path, epoch=12)
    for value in (2.0, 3.0):
        take(second, value)
        second.tick(0.0)
        second.tick(60.0)
    names = [(b.epoch, b.sequence, b.previous, b.oldest) for b in batches(second)]
    assert names == [(11, 1, None, 1), (12, 2, (11, 1), 1), (12, 3, None, 1)]


def test_the_oldest_is_the_earliest_whatever_came_first(tmp_path: Path):
    take(buffer := opened(tmp_path), 2.0, at=5000)
    take(buffer, 1.0, at=3000)
    buffer.close()
    assert buffer.stats().oldest_ms == 10**12 + 3000
    assert opened(tmp_path, epoch=2).stats().oldest_ms == 10**12 + 3000


def test_the_epoch_before_is_known_though_all_of_it_was_delivered(tmp_path: Path):
    take(buffer := opened(tmp_path, epoch=11), 1.0)
    buffer.close()
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(100.0)
    opened(tmp_path, epoch=12).close()
    assert not (tmp_path / "00000001.seg").exists()
    take(again := opened(tmp_path, epoch=13), 2.0)
    again.close()
    assert [batch.previous for batch in batches(again)] == [(11, 1)]


def test_a_copy_of_an_older_segment_takes_nothing_back(tmp_path: Path):
    for epoch in (1, 2, 3):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    older = (tmp_path / "00000002.seg").read_bytes()
    buffer._spool.evict("buffer full")
    opened(tmp_path, epoch=4).close()
    (tmp_path / "00000009.seg").write_bytes(older)
    (tmp_path / "acked").unlink()
    take(again := opened(tmp_path, epoch=5), 5.0)
    again.close()
    assert (values(again), again.stats().dropped) == ([2.0, 3.0, 5.0], 1)
    assert batches(again)[-1].previous == (3, 3)


def test_the_sum_of_what_was_dropped_outlasts_its_records_and_acked(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    buffer._spool.evict("buffer full")
    buffer = opened(tmp_path, epoch=3)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(100.0)
    assert [path.name for path in tmp_path.glob("*.seg")] == ["00000003.seg"]
    (tmp_path / "acked").unlink()
    assert opened(tmp_path, epoch=4).stats().dropped == 1


def test_a_first_batch_that_only_the_journal_knew_names_the_epoch_before(tmp_path: Path):
    for epoch in (11, 12, 13):
        killed = opened(tmp_path, epoch)
        take(killed, float(epoch), durable=True)
        killed.tick(1.0)
    names = [(b.epoch, b.sequence, b.previous) for b in batches(opened(tmp_path, epoch=14))]
    assert names == [(11, 1, None), (12, 2, (11, 1)), (13, 3, (12, 2))]


def test_a_later_batch_of_an_epoch_that_only_the_journal_knew_names_none(tmp_path: Path):
    take(killed := opened(tmp_path, 11), 1.0)
    for now in (0.0, 60.0):
        killed.tick(now)
    take(killed, 2.0, durable=True)
    killed.tick(61.0)
    names = [(b.epoch, b.sequence, b.previous) for b in batches(opened(tmp_path, 12))]
    assert names == [(11, 1, None), (11, 2, None)]


def test_an_acknowledged_batch_does_not_come_back(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.tick(0.0)
    buffer.tick(60.0)
    take(buffer, 2.0)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.close()
    assert values(opened(tmp_path, epoch=2)) == [2.0]


def test_without_the_ranges_everything_on_disk_is_sent_again(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(1.0)
    (tmp_path / "acked").write_bytes(b"\xff" * 4096)
    again = opened(tmp_path, epoch=2)
    assert [(b.epoch, b.sequence) for b in batches(again)] == [(1, 1)]


def test_of_ranges_that_are_torn_the_ones_before_hold(tmp_path: Path):
    buffer = sealed(tmp_path, 1, 1, 1)
    for sequence in (1, 2):
        buffer.acknowledge(next(buffer.waiting(sequence - 1)))
        buffer.tick(100.0 * sequence)
    sound = (tmp_path / "acked").read_bytes()

    def left(*torn: int) -> list[int]:
        spoilt = bytearray(sound)
        for page in torn:
            spoilt[4096 * page + 9] ^= 1
        (tmp_path / "acked").write_bytes(spoilt)
        return [held.sequence for held in Glance(tmp_path, "g").spool.waiting()]

    assert sorted([left(0), left(1)]) == [[2, 3], [3]]
    assert left(0, 1) == [1, 2, 3]


def test_more_ranges_and_longer_names_than_a_page_takes_spoil_no_page(tmp_path: Path):
    most = (1 << 64) - 1
    place, losses = Place(most, most, most), [f"sealed-{most}-{most}-{most}"] * LOSSES
    ranges = [(most - 500 + n, most, most) for n in range(500)]
    written = Acked(Disk(tmp_path))
    for n in range(2):
        written.write(Told(most, ranges, most - n, most, most, place, losses))
    assert (tmp_path / "acked").stat().st_size <= 2 * PAGE
    again = Acked(Disk(tmp_path))
    again.recover(lambda history: True)
    assert again.ranges == ranges[-len(again.ranges) :] != []


def test_a_segment_that_is_removed_stops_nothing_else(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    take(buffer := opened(tmp_path, 3), 3.0)
    buffer.close()
    (tmp_path / "00000001.seg").unlink()
    for second in range(5):
        for held in list(buffer.waiting()):
            buffer.payload(held)
        buffer.tick(float(second))
    buffer.acknowledge(next(buffer.waiting(1)))
    buffer.tick(9.0)
    assert (buffer.fault, buffer.stats().dropped, values(buffer)) == (None, 1, [3.0])
    assert [path.name for path in tmp_path.glob("*.seg")] == ["00000003.seg"]


def test_a_link_to_itself_is_let_be(tmp_path: Path):
    (tmp_path / "note").symlink_to(tmp_path / "note")
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    assert (buffer.fault, values(buffer)) == (None, [1.0])


@pytest.mark.parametrize("name", ["journal", "acked", "00000009.seg"])
def test_what_is_too_large_to_be_ours_is_not_read(tmp_path: Path, name: str):
    opened(tmp_path).close()
    with (tmp_path / name).open("ab") as file:
        file.truncate(5 << 20)
    again = opened(tmp_path, epoch=2)
    assert (tmp_path / f"{name}-0.foreign").stat().st_size == 5 << 20
    assert f"kept as {name}-0.foreign" in again.stats().faults[0]


def test_ranges_of_which_nothing_is_whole_are_set_aside_and_told(tmp_path: Path):
    opened(tmp_path).close()
    (tmp_path / "acked").write_bytes(b"foreign" * 1000)
    again = opened(tmp_path, epoch=2)
    assert (tmp_path / "acked-0.foreign").read_bytes() == b"foreign" * 1000
    assert "kept as acked-0.foreign" in again.stats().faults[0]


@pytest.mark.parametrize("pages", [[b"", b"half"], [b"half", None], [None, b"half"]])
def test_acked_of_which_a_power_cut_tore_a_page_is_no_other_ones(
    tmp_path: Path, pages: list[bytes | None]
):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    with (tmp_path / "acked").open("r+b") as acked:
        for torn in pages:
            if torn is not None:
                acked.write(torn.ljust(PAGE, b"\0"))
            else:
                acked.seek(PAGE, os.SEEK_CUR)
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().faults) == ([1.0], [])


def test_acked_that_is_empty_is_no_other_ones(tmp_path: Path):
    opened(tmp_path).close()
    (tmp_path / "acked").write_bytes(b"")
    (told,) = opened(tmp_path, epoch=2).stats().faults
    assert "acked is cut off: " in told
    assert not list(tmp_path.glob("*.foreign"))


@pytest.mark.parametrize("ranges", [[[1, 1]], [[1, 1], [3, 3], [5, 5], [7, 7]]])
def test_ranges_in_the_form_of_an_earlier_version_are_none(tmp_path: Path, ranges: list[object]):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    body = msgpack.packb(ranges)
    page = struct.pack("<II", zlib.crc32(body), len(body)) + body
    (tmp_path / "acked").write_bytes(page.ljust(4096, b"\0"))
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.fault) == ([1.0], None)


def test_what_another_history_has_acknowledged_is_not_let_go_of(tmp_path: Path):
    other = sealed(tmp_path / "other", 1, 1, 1)
    for sequence in (1, 2, 3):
        other.acknowledge(next(other.waiting(sequence - 1)))
    other.tick(100.0)
    opened(tmp_path / "ours", epoch=3).close()
    take(ours := opened(tmp_path / "ours", epoch=4), 5.0)
    ours.close()
    shutil.copy(tmp_path / "other/acked", tmp_path / "ours/acked")
    assert values(opened(tmp_path / "ours", epoch=5)) == [5.0]


def test_a_journal_without_its_spool_seals_under_the_names_already_given(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.tick(0.0)
    buffer.tick(60.0)
    for segment in tmp_path.glob("*.seg"):
        segment.unlink()
    again = opened(tmp_path, epoch=2)
    assert [(b.epoch, b.sequence, b.boot) for b in batches(again)] == [(1, 1, 7)]
    assert values(again) == [1.0]


def test_what_the_journal_has_of_a_delivered_batch_is_not_sealed_again(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0, durable=True)
    buffer.tick(1.0)
    buffer.close()
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(100.0)
    (tmp_path / "00000001.seg").unlink()
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([], 0)


def test_a_journal_alone_tells_that_there_was_a_spool(tmp_path: Path):
    buffer = opened(tmp_path)
    assert buffer.stats().faults == []
    take(buffer, 1.0, durable=True)
    buffer.tick(1.0)
    for name in ("00000001.seg", "acked"):
        (tmp_path / name).unlink()
    again = opened(tmp_path, epoch=2)
    assert values(again) == [1.0]
    assert "*.seg is gone" in again.stats().faults[0]
    assert opened(tmp_path, epoch=3).stats().faults == []


def test_where_acked_alone_is_gone_no_segment_is_missed(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0, durable=True)
    buffer.tick(1.0)
    (tmp_path / "acked").unlink()
    (told,) = opened(tmp_path, epoch=2).stats().faults
    assert "acked is gone" in told


def test_finished_segments_go_but_never_the_newest(tmp_path: Path):
    for epoch in range(1, 6):
        buffer = opened(tmp_path, epoch)
        take(buffer, float(epoch))
        buffer.close()
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(1.0)
    assert len(list(tmp_path.glob("*.seg"))) == 1
    assert opened(tmp_path, epoch=9).last == 5


def test_a_flipped_bit_costs_one_batch_which_is_set_aside(tmp_path: Path):
    buffer = opened(tmp_path)
    for value in (1.0, 2.0, 3.0):
        take(buffer, value)
        buffer.tick(0.0)
        buffer.tick(60.0)
    second = list(buffer.waiting())[1]
    spoilt = bytearray((tmp_path / second.segment).read_bytes())
    spoilt[second.offset + 5] ^= 1
    (tmp_path / second.segment).write_bytes(spoilt)
    (tmp_path / "journal").unlink()
    again = opened(tmp_path, epoch=2)
    assert values(again) == [1.0, 3.0]
    assert [fault for fault in again.stats().faults if fault.endswith(".damaged")]


def sealed(directory: Path, *sizes: int) -> Buffer:
    """A buffer with a batch of so many readings each, no journal, and closed."""
    buffer = opened(directory)
    for count in sizes:
        take(buffer, *range(count))
        buffer.tick(0.0)
        buffer.tick(60.0)
    buffer.close()
    (directory / "journal").unlink()
    return buffer


def flip(path: Path, at: int) -> None:
    spoilt = bytearray(path.read_bytes())
    spoilt[at] ^= 1
    path.write_bytes(spoilt)


@pytest.mark.parametrize("where", [5, -size_of(b""), 1 - size_of(b"")])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_a_flipped_bit_costs_is_counted_once_and_logged(
    tmp_path: Path, number: int, where: int, caplog: pytest.LogCaptureFixture
):
    sizes = (2, 3, 4)
    hit = list(sealed(tmp_path, *sizes).waiting())[number]
    flip(tmp_path / hit.segment, hit.offset + where)
    lost = sizes[number] if where > 0 else 0  # what stands in a head is known without it
    for epoch in (2, 3, 4):
        again = opened(tmp_path, epoch)
        assert len(values(again)) == 9 - lost
        assert again.stats().dropped == lost
        again.close()
    assert sum(f"{lost} readings lost" in line for line in caplog.messages) == 1
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_what_was_acknowledged_before_it_was_damaged_is_no_loss(tmp_path: Path):
    buffer = sealed(tmp_path, 2, 3, 4)
    held = list(buffer.waiting())
    for sequence in (1, 2):
        buffer.acknowledge(next(buffer.waiting(sequence - 1)))
    buffer.tick(100.0)
    flip(tmp_path / held[1].segment, held[1].offset + 5)
    again = opened(tmp_path, epoch=2)
    assert (len(values(again)), again.stats().dropped) == (4, 0)


def test_what_was_acknowledged_out_of_order_is_not_sent_again(tmp_path: Path):
    buffer = sealed(tmp_path, 1, 1, 1, 1)
    for sequence in (1, 2, 4):
        buffer.acknowledge(next(buffer.waiting(sequence - 1)))
    buffer.tick(100.0)
    buffer.tick(200.0)
    assert [held.sequence for held in opened(tmp_path, epoch=2).waiting()] == [3]


def test_of_a_damaged_batch_the_journal_saves_what_it_still_has(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0, 2.0, durable=True)
    buffer.tick(1.0)
    take(buffer, 3.0)
    buffer.close()
    (held,) = buffer.waiting()
    flip(tmp_path / held.segment, held.offset)
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([1.0, 2.0], 1)


def test_what_a_damaged_frame_of_the_journal_held_is_counted_once_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    killed = opened(tmp_path)
    for second, count in enumerate((1, 2, 3)):
        take(killed, *range(count), durable=True)
        killed.tick(float(second))
    flip(tmp_path / "journal", 4096 + 60)
    for epoch in (2, 3):
        again = opened(tmp_path, epoch)
        assert len(values(again)) == 4
        assert again.stats().dropped == 2
        assert again.stats().dropped_by == ({"damaged on disk": 2} if epoch == 2 else {})
    assert sum("2 readings lost" in line for line in caplog.messages) == 1


def test_a_damaged_frame_that_is_sealed_by_now_costs_nothing(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0, durable=True)
    buffer.tick(1.0)
    buffer.close()
    flip(tmp_path / "journal", 60)
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped, again.stats().faults) == ([1.0], 0, [])


class FullDisk(Disk):
    """Fails with `error` while that is set."""

    error: OSError | None = None
    names_written: list[str]

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.error:
            raise self.error
        self.names_written = [*getattr(self, "names_written", []), name]
        super().write(name, offset, data)


def test_a_disk_that_fails_and_recovers_is_logged_once_each_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    disk = FullDisk(tmp_path)
    buffer = begun(disk)
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    for second in range(1, 5):
        take(buffer, float(second), durable=True)
        buffer.tick(float(second))
    (fault,) = buffer.stats().faults
    assert fault.startswith(f"{tmp_path}: No space left on device: free space there")
    disk.error = None
    for second in (5, 6):
        buffer.tick(float(second))
    assert buffer.stats().faults == []
    assert buffer.stats().disk_errors == 1
    assert caplog.messages == [
        f"buffer: {fault}",
        f"buffer: {tmp_path}: written to again, nothing waits in RAM",
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_a_journal_that_takes_nothing_is_a_fault_until_it_does_though_all_of_it_is_sealed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cached: bool
):
    buffer = begun(disk := SmallDisk(tmp_path))
    disk.worn, disk.cached = "journal", cached
    for now in range(10, 190, 10):
        if now % 60 == 10:
            take(buffer, float(now))
        buffer.tick(float(now))
        assert "Input/output error" in str(buffer.fault)
    assert values(buffer) == [10.0, 70.0, 130.0]
    fault, disk.worn = buffer.fault, ""
    buffer.tick(190.0)
    assert (buffer.fault, buffer.stats().disk_errors) == (None, 1)
    assert caplog.messages == [
        f"buffer: {fault}",
        f"buffer: {tmp_path}: written to again, nothing waits in RAM",
    ]


def test_trying_whether_a_journal_takes_something_costs_nothing_of_what_is_in_it(tmp_path: Path):
    buffer = begun(disk := SmallDisk(tmp_path))
    take(buffer, 1.0)
    buffer.tick(10.0)
    disk.worn = "journal"
    take(buffer, 2.0)
    buffer.tick(20.0)
    disk.worn = ""
    buffer.tick(21.0)
    written = disk.written
    buffer.tick(22.0)  # and nothing from then on
    assert disk.written == written
    assert values(opened(tmp_path, epoch=2)) == [1.0, 2.0]


def test_a_journal_that_has_been_filled_since_does_not_grow_for_that_trial(tmp_path: Path):
    buffer = begun(disk := SmallDisk(tmp_path))
    for number in range(SLOTS):
        disk.worn = "journal" if number == SLOTS - 1 else ""
        take(buffer, float(number), durable=True)
        buffer.tick(number / 10)
    disk.worn = ""
    buffer.tick(50.0)
    assert (buffer.fault, buffer.unsaved) == (None, 0)
    assert (tmp_path / "journal").stat().st_size == SLOT * SLOTS


def test_after_a_failed_sync_it_goes_on_in_a_new_segment():
    disk = CrashDisk()
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=1)
    take(buffer, 1.0)
    buffer.tick(0.0)
    disk.bad.add("00000001.seg")
    buffer.tick(60.0)
    assert "the disk fails" in buffer.fault
    buffer.tick(61.0)
    assert not buffer.fault
    assert values(buffer) == [1.0]
    assert next(buffer.waiting()).segment == "00000002.seg"


def test_what_could_not_be_synced_takes_no_room():
    take(buffer := begun(disk := CrashDisk()), 1.0)
    before, disk.failing = disk.size("00000001.seg"), 1
    buffer.close()
    assert buffer.fault
    assert disk.size("00000001.seg") == before


def test_after_a_failed_sync_a_loss_is_recorded_in_a_new_segment_as_well():
    buffer = begun(disk := CrashDisk())
    disk.bad.add("00000001.seg")
    buffer._losses.record_later(5, "no room in RAM")
    buffer.tick(1.0)
    assert "the disk fails" in str(buffer.fault)
    buffer.tick(2.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 5)


def test_losses_without_a_name_of_their_own_are_each_counted_by_their_records(tmp_path: Path):
    buffer = opened(tmp_path)
    for now, lost in enumerate((5, 2)):
        buffer._losses.record_later(lost, "no room in RAM")
        buffer.tick(float(now))
    buffer.close()
    (tmp_path / "acked").unlink()
    assert opened(tmp_path, epoch=2).stats().dropped == 7


def test_where_acked_cannot_be_synced_all_else_goes_on_and_a_loss_counts_once():
    disk = CrashDisk()
    for epoch in (1, 2):
        take(buffer := begun(disk, epoch), float(epoch))
        buffer.close()
    disk.bad.add("acked")
    take(buffer, 3.0)
    for now in (100.0, 200.0):
        buffer.tick(now)
    buffer._spool.evict("buffer full")
    buffer.tick(300.0)
    assert (buffer.fault, values(buffer), buffer.stats().dropped) == (None, [2.0, 3.0], 1)


def test_what_cannot_be_recorded_is_not_evicted(tmp_path: Path):
    disk = FullDisk(tmp_path)
    for epoch in (1, 2):
        take(buffer := begun(disk, epoch), float(epoch))
        buffer.close()
    disk.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        buffer._spool.evict("buffer full")
    assert values(buffer) == [1.0, 2.0]


def test_nothing_is_flushed_before_it_is_known_what_a_full_disk_holds():
    disk = CrashDisk()
    take(before := begun(disk), 1.0, durable=True)
    before.tick(1.0)
    disk.limit = disk.used
    take(buffer := begun(disk, 2), 2.0, durable=True)
    buffer.tick(10.0)
    assert "No space left" in buffer.fault
    disk.limit = None
    take(buffer, 3.0, durable=True)
    buffer.tick(20.0)
    assert values(begun(disk, 3)) == [1.0, 2.0, 3.0]


def test_what_a_failed_sync_left_in_the_journal_comes_once_though_it_is_elsewhere_by_now():
    take(buffer := begun(disk := CrashDisk()), 1.0, durable=True)
    buffer.tick(0.0)
    disk.limit = disk.used  # so that the batch stays in the journal, and another behind it
    buffer.tick(60.0)
    take(buffer, 2.0, durable=True)
    disk.failing = 1
    buffer.tick(70.0)
    disk.limit = None
    take(buffer, 3.0, durable=True)
    buffer.tick(80.0)
    again = begun(disk, 2)
    assert (values(again), again.stats().faults) == ([1.0, 2.0, 3.0], [])


def test_batches_come_as_often_as_the_seal_interval_says(tmp_path: Path):
    buffer = opened(tmp_path, settings=BufferSettings(flush_interval=10, seal_interval=2))
    for tick in range(1, 11):
        take(buffer, float(tick))
        buffer.tick(float(tick))
    assert [len(batch.readings) for batch in batches(buffer)] == [2] * 5


def test_the_next_tick_is_when_the_batch_is_due(tmp_path: Path):
    buffer = opened(tmp_path, settings=BufferSettings(flush_interval=10, seal_interval=1.5))
    assert buffer.next_tick(1.0) == 1.0
    take(buffer, 1.0)
    buffer.tick(1.0)
    assert buffer.next_tick(2.0) == 1.5
    buffer.tick(1.5)
    assert [batch.readings[0].value for batch in batches(buffer)] == [1.0]
    assert buffer.next_tick(2.5) == 2.5


def test_a_disk_that_fails_is_tried_again_in_the_usual_rhythm_though_a_flush_is_due(tmp_path: Path):
    buffer = begun(disk := FullDisk(tmp_path))
    take(buffer, 1.0)
    disk.error = OSError(errno.EIO, "Input/output error")
    buffer.tick(20.0)
    assert buffer.next_tick(30.0) == 30.0


def test_acknowledgements_are_written_down_once_a_second_at_most(tmp_path: Path):
    disk = FullDisk(tmp_path)
    buffer = Buffer(disk, BufferSettings(seal_interval=0), "trd-0042", boot=7, epoch=1)
    for value in range(31):
        take(buffer, float(value))
        buffer.tick(0.0)
    disk.names_written.clear()
    for tick in range(31):
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(tick / 10)
    assert disk.names_written == ["acked"] * 3
    buffer.close()
    assert list(opened(tmp_path, epoch=2).waiting()) == []


SHORT = struct.pack("<II", zlib.crc32(b"x"), 1) + b"x"
"""What follows a magic whose checksum is right, and that is less than any of ours."""


@pytest.mark.parametrize(
    "foreign",
    [
        *(b"", b"\0" * 5000, b"bgS3" * 100, b"bgJ4" + b"\xff" * 9000),
        *(magic + SHORT + bytes(90) for magic in (b"bgS3", b"bgJ4")),
    ],
)
def test_it_starts_whatever_it_finds(tmp_path: Path, foreign: bytes):
    for name in ("journal", "acked", "00000007.seg", "00000009.seg", "notes.txt"):
        (tmp_path / name).write_bytes(foreign)
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    assert values(opened(tmp_path, epoch=2)) == [1.0]


def test_a_step_of_the_clock_begins_a_new_batch(tmp_path: Path):
    buffer = opened(tmp_path)
    for offset in (10**12, 10**12 + 90, 10**12 + 3_600_000, 10**9):
        take(buffer, 1.0, offset=offset)
    buffer.close()
    assert [len(batch.readings) for batch in batches(buffer)] == [2, 1, 1]


class ReadOnlyDisk(Disk):
    """One that can be read, and nothing else."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def cut(self, name: str, length: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")


def test_what_lies_on_a_read_only_disk_is_handed_out_though_a_segment_ends_in_zeros(tmp_path: Path):
    sealed(tmp_path, 1)
    with (tmp_path / "00000001.seg").open("ab") as file:
        file.write(bytes(9000))
    buffer = begun(ReadOnlyDisk(tmp_path), 2)
    assert (values(buffer), buffer.fault is None) == ([0], False)


def test_segments_of_before_are_not_kept_open(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), 1.0)
        buffer.close()
        with max(tmp_path.glob("*.seg")).open("ab") as file:
            file.write(bytes(100))  # that is cut off
    again = opened(tmp_path, epoch=3)
    assert [n for n in again._disk._open if n.endswith(".seg")] == ["00000003.seg"]


def test_a_batch_holds_at_most_a_thousand_readings_and_64_kib(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, *range(2000))
    take(buffer, *("x" * 256 for _ in range(1000)))
    buffer.close()
    sizes = [len(batch.readings) for batch in batches(buffer)]
    assert sizes[:2] == [1000, 1000]
    assert 1000 > sizes[2] > 0
    assert sum(sizes) == 3000


@pytest.mark.parametrize(
    ("drift", "sizes"), [(100, [2]), (-100, [2]), (101, [1, 1]), (-101, [1, 1])]
)
def test_an_offset_that_is_another_by_more_than_100_ms_begins_a_batch(
    tmp_path: Path, drift: int, sizes: list[int]
):
    take(buffer := opened(tmp_path), 1.0)
    take(buffer, 2.0, at=60_000, offset=10**12 + drift)
    buffer.close()
    assert [len(batch.readings) for batch in batches(buffer)] == sizes


@pytest.mark.parametrize("stands", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/none/x")])
def test_what_stands_where_the_next_segment_belongs_is_set_aside_and_told(
    tmp_path: Path, stands: Callable[[Path], None]
):
    opened(tmp_path).close()
    stands(tmp_path / "00000002.seg")
    again = opened(tmp_path, epoch=2)
    told = f"{tmp_path}: 00000002.seg is not one of this bygate's: kept as 00000002.seg-0.foreign"
    assert (again.fault, again.stats().faults) == (None, [told])
    assert os.path.lexists(tmp_path / "00000002.seg-0.foreign")


def test_its_state_may_be_asked_for_at_any_moment_that_the_writer_works():
    buffer = begun(CrashDisk(), settings=BufferSettings(flush_interval=0, seal_interval=0))

    def work() -> None:
        for second in range(4000):
            take(buffer, float(second))
            buffer.tick(float(second))
            if second % 10 == 0:
                for held in list(buffer.waiting()):
                    buffer.acknowledge(held)

    often, _ = sys.getswitchinterval(), sys.setswitchinterval(1e-6)
    (writer := threading.Thread(target=work)).start()
    try:
        while writer.is_alive():
            assert buffer.stats().waiting_batches < 20
    finally:
        writer.join()
        sys.setswitchinterval(often)


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT)))
def test_whatever_was_judged_can_be_flushed_and_sealed(said: list[Value]):
    buffer = begun(CrashDisk())
    take(buffer, *(judge(TEMPERATURE, value)[0] for value in said))
    buffer.tick(0.0)
    buffer.close()
    assert len(values(buffer)) == len(said)


def test_a_full_journal_is_sealed(tmp_path: Path):
    buffer = opened(tmp_path)
    for second in range(100):
        take(buffer, float(second), durable=True)
        buffer.tick(second / 2)
    assert values(opened(tmp_path, epoch=2)) == [float(second) for second in range(100)]
    assert (tmp_path / "journal").stat().st_size == 64 * 4096


@pytest.mark.parametrize(
    "name", ["journal", "acked", "refused", "refused.list", "00000002.seg", "rates"]
)
@pytest.mark.parametrize("what", ["directory", "file", "empty", "dangling link"])
def test_it_starts_whatever_stands_where_a_file_of_its_own_belongs(
    tmp_path: Path, name: str, what: str
):
    take(first := opened(tmp_path), 1.0)
    first.close()
    ours = tmp_path / name
    shutil.rmtree(ours) if ours.is_dir() else ours.unlink(missing_ok=True)
    if what == "directory":
        (ours / "photos").mkdir(parents=True)
    elif what == "dangling link":
        ours.symlink_to(tmp_path / "none" / "such")
    else:
        ours.write_bytes(b"foreign" * (what == "file"))
    again = opened(tmp_path, epoch=2)
    take(again, 2.0)
    again.tick(0.0)
    again.tick(60.0)
    again.tick(61.0)  # a name that cannot be had is passed by
    assert values(again) == [1.0, 2.0]
    assert (again.unsaved, again.fault) == (0, None)
    if what == "directory":
        kept = [ours, *tmp_path.glob(f"{name}-*.foreign")]
        assert any((path / "photos").is_dir() for path in kept)


def test_a_refused_batch_is_kept_aside_for_the_technician(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    payload = buffer.payload(next(buffer.waiting()))
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.tick(1.0)
    assert buffer.stats().refused == ["1-1-0x99.batch"]
    assert (tmp_path / "refused" / "1-1-0x99.batch").read_bytes() == payload
    again = opened(tmp_path, epoch=2)
    assert values(again) == []
    assert again.stats().refused == ["1-1-0x99.batch"]


def test_over_its_size_the_oldest_go_and_are_counted_for_ever(tmp_path: Path, caplog):
    small = BufferSettings(flush_interval=10, seal_interval=60, max_size=2 << 20)
    buffer = opened(tmp_path, settings=small)
    total = 0
    while not buffer.stats().dropped:
        take(buffer, *(f"{total + n:064}" * 4 for n in range(200)))
        total += 200
        buffer.tick(0.0)
    buffer.close()
    dropped = buffer.stats().dropped
    assert len(values(buffer)) + dropped == total
    assert buffer.stats().dropped_by == {"buffer full": dropped}
    assert "readings dropped, the oldest: buffer full: raise [buffer] max_size, or " in caplog.text
    again = opened(tmp_path, epoch=2, settings=small)
    assert again.stats().dropped == dropped
    assert len(values(again)) + dropped == total


class Partition(Disk):
    """One that tells how much of it is free, ours and others' files included."""

    free, total = 1 << 30, 8 << 30

    def room(self) -> tuple[int, int]:
        return self.free, self.total


@pytest.mark.parametrize(
    ("free", "total", "dropped_by"),
    [
        (1 << 20, 8 << 30, set()),  # others fill it: to drop what waits would not help
        (63 << 20, 8 << 30, {"keep_free"}),
    ],
)
def test_what_waits_goes_for_keep_free_only_where_that_helps(
    tmp_path: Path, free: int, total: int, dropped_by: set[str]
):
    disk = Partition(tmp_path)
    buffer = Buffer(disk, BufferSettings(seal_interval=0), "trd-0042", boot=7, epoch=1)
    for _ in range(200):
        fill(buffer)
    disk.free, disk.total = free, total
    buffer.tick(1.0)
    assert buffer.stats().dropped_by.keys() == dropped_by


class Shared(Disk):
    """A partition of 1 GiB on which nothing else lies."""

    def room(self) -> tuple[int, int]:
        return (1 << 30) - sum(path.stat().st_size for path in self.directory.iterdir()), 1 << 30


def test_what_goes_for_its_size_counts_for_keep_free_as_well(tmp_path: Path):
    buffer = begun(disk := Shared(tmp_path), 1, UNBOUND)
    for _ in range(120):
        fill(buffer)
    buffer.close()
    size, free = buffer.stats().size, disk.room()[0]
    bound = replace(UNBOUND, max_size=size - 10_000, keep_free=free + 10_000)
    assert begun(disk, 2, bound).stats().dropped_by.keys() == {"buffer full"}


def test_of_what_is_too_much_all_goes_at_once_and_no_more(tmp_path: Path):
    buffer = begun(disk := Disk(tmp_path), 1, UNBOUND)
    for _ in range(120):
        fill(buffer)
    buffer.close()
    allowed = buffer.stats().size - (3 << 19)
    size = begun(disk, 2, replace(UNBOUND, max_size=allowed)).stats().size
    assert allowed - (1 << 20) < size <= allowed


def test_nothing_is_kept_free_where_somebody_wants_that():
    assert kept_free(64 << 20, BufferSettings(keep_free=0)) == 0


@pytest.mark.parametrize(("keep_free", "room"), [(None, 32), (40 << 20, 9), (63 << 20, 0)])
def test_a_small_partition_has_room_unless_somebody_wants_that_kept(
    tmp_path: Path, keep_free: int | None, room: int
):
    disk = Partition(tmp_path)
    disk.free, disk.total = 49 << 20, 64 << 20
    buffer = Buffer(disk, BufferSettings(keep_free=keep_free), "trd-0042", boot=7, epoch=1)
    buffer.tick(0.0)
    assert (buffer.stats().room or 0) >> 20 in (room, max(room - 1, 0))


@pytest.mark.parametrize(("total", "allowed"), [(8 << 30, 512 << 20), (64 << 20, 32 << 20)])
def test_without_a_size_given_it_is_512_mib_or_half_of_a_small_partition(
    tmp_path: Path, total: int, allowed: int
):
    disk = Partition(tmp_path)
    disk.total = total
    assert most(disk, BufferSettings()) == allowed


def test_what_lies_aside_counts_in_the_size_that_is_given(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    take(buffer, 2.0)
    buffer.close()
    small = opened(tmp_path, epoch=2, settings=replace(SETTINGS, max_size=4096 + 100))
    assert (values(small), small.stats().dropped_by) == ([], {"buffer full": 1})


def test_of_a_small_buffer_nothing_goes_while_little_of_it_waits(tmp_path: Path):
    smallest = replace(UNBOUND, max_size=1 << 20)
    buffer, under_way, random = opened(tmp_path, settings=smallest), deque[Held](), Random(1)
    for _ in range(60):
        take(buffer, *(random.randbytes(120).hex() for _ in range(400)))
        buffer.tick(0.0)
        buffer.tick(60.0)
        under_way.extend(buffer.waiting(after=under_way[-1].sequence if under_way else 0))
        while len(under_way) > 3:
            buffer.acknowledge(under_way.popleft())
    assert buffer._spool.appended > 3 << 20
    assert buffer.stats().dropped == 0


def test_what_is_recorded_as_lost_is_not_handed_out_though_acked_is_gone(tmp_path: Path):
    sealed(tmp_path, 1, 2, 3)
    buffer = opened(tmp_path, epoch=2)
    buffer._spool.record_loss(2, 2, 2, "damaged on disk", "00000001.seg-999")
    buffer._disk.close_all()
    (tmp_path / "acked").unlink()
    again = opened(tmp_path, epoch=3)
    assert [held.sequence for held in again.waiting()] == [1, 3]
    assert again.stats().dropped == 2


def test_segments_are_told_apart_by_number_whatever_their_names_have_of_digits(tmp_path: Path):
    sealed(tmp_path, 1)
    (tmp_path / "00000001.seg").rename(tmp_path / "99999999.seg")
    for epoch in (2, 3):
        buffer = opened(tmp_path, epoch)
        take(buffer, 1.0)
        buffer.tick(0.0)
        buffer.close()
    spool = buffer._spool
    assert [spool.evict("older than max_age", until="99999999.seg") for _ in range(2)] == [1, 0]
    assert [held.segment for held in buffer.waiting()] == ["100000000.seg", "100000001.seg"]


def test_of_what_waited_in_ram_for_a_small_buffer_no_more_goes_than_there_is_no_room_for(
    tmp_path: Path,
):
    smallest = replace(UNBOUND, max_size=1 << 20)
    buffer, random = Buffer(Disk(tmp_path), smallest, "trd-0042", boot=7), Random(1)
    take(buffer, *(random.randbytes(120).hex() for _ in range(9000)))
    buffer.tick(0.0)
    assert buffer.stats().dropped > 0
    assert buffer._spool.size > 700 << 10


def test_however_small_a_buffer_is_it_makes_no_segment_of_each_batch(tmp_path: Path):
    buffer = opened(tmp_path, settings=replace(UNBOUND, max_size=8000))
    for _ in range(10):
        take(buffer, 1.0)
        buffer.tick(0.0)
        buffer.tick(60.0)
    assert len(list(tmp_path.glob("*.seg"))) == 1


def test_a_batch_that_was_evicted_meanwhile_has_no_payload_and_makes_no_file(tmp_path: Path):
    small = BufferSettings(flush_interval=10, seal_interval=60, max_size=1 << 20)
    buffer = opened(tmp_path, settings=small)
    take(buffer, 1.0)
    buffer.tick(0.0)
    buffer.tick(60.0)
    first = next(buffer.waiting())
    while not buffer.stats().dropped:
        take(buffer, *(f"{n:064}" * 4 for n in range(200)))
        buffer.tick(0.0)
    assert buffer.payload(first) is None
    assert not (tmp_path / first.segment).exists()


class Meanwhile(Disk):
    """A disk at whose next read or sync of a segment something else happens beside."""

    happens: Callable[[], None] | None = None

    def _meanwhile(self, name: str) -> None:
        if name.endswith(".seg") and (happens := self.happens):
            self.happens = None
            happens()

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        self._meanwhile(name)
        return super().read(name, offset, length)

    def sync(self, name: str) -> None:
        self._meanwhile(name)
        super().sync(name)


def test_what_is_delivered_while_its_segment_is_evicted_ends_no_tick(tmp_path: Path):
    sealed(tmp_path, 1, 1)
    take(buffer := begun(disk := Meanwhile(tmp_path), 2), 2.0)
    buffer.close()
    first = next(buffer.waiting())
    disk.happens = lambda: buffer.acknowledge(first)
    assert buffer._spool.evict("buffer full") == 2
    assert (disk.happens, values(buffer)) == (None, [2.0])


def test_what_is_delivered_while_it_is_read_damaged_is_no_loss(tmp_path: Path):
    sealed(tmp_path, 1, 1)
    buffer = begun(disk := Meanwhile(tmp_path), 2)
    first = next(buffer.waiting())
    flip(tmp_path / first.segment, first.offset + 5)
    disk.happens = lambda: buffer.acknowledge(first)
    assert buffer.payload(first) is None
    buffer.tick(1.0)
    assert (buffer.stats().dropped, [held.sequence for held in buffer.waiting()]) == (0, [2])


def test_the_counts_say_what_waits_where(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0, 2.0)
    assert buffer.stats().waiting_readings == 2
    buffer.tick(0.0)
    assert (buffer.stats().waiting_batches, buffer.stats().waiting_readings) == (0, 2)
    buffer.tick(60.0)
    assert (buffer.stats().waiting_batches, buffer.stats().waiting_readings) == (1, 2)
    assert buffer.stats().taken == 2


def test_refused_batches_are_bounded_and_the_oldest_goes_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    buffer = opened(tmp_path / "other")
    take(buffer, 1.0, 2.0)
    buffer.close()
    old = buffer.payload(next(buffer.waiting()))
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "1-1-0x99.batch").write_bytes(old)
    other = encode(replace(decode(old), sequence=10))
    (tmp_path / "refused" / "10-1-0x99.batch").write_bytes(other)
    buffer = opened(tmp_path, settings=replace(SETTINGS, max_size=4 * 2 * 4096))
    take(buffer, 3.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x95)
    buffer.tick(1.0)
    assert buffer.stats().refused == ["10-1-0x99.batch", "11-1-0x95.batch"]
    assert not (tmp_path / "refused" / "1-1-0x99.batch").exists()
    assert buffer.stats().dropped_by == {"refused by the broker": 2}
    assert "refused/1-1-0x99.batch: 2 readings dropped: " in caplog.text


# A directory that somebody removes


@pytest.mark.parametrize("way", ["removed", "made again", "emptied", "moved away"])
def test_a_directory_that_is_gone_is_begun_anew_and_what_it_held_is_counted(
    tmp_path: Path, way: str
):
    state = tmp_path / "state"
    buffer = opened(state)
    take(buffer, 1.0, 2.0)
    buffer.tick(0.0)
    buffer.tick(60.0)
    take(buffer, 3.0, durable=True)
    buffer.tick(61.0)
    if way == "moved away":
        state.rename(tmp_path / "moved")
    else:
        for path in state.rglob("*"):
            path.unlink() if path.is_file() else path.rmdir()
        if way != "emptied":
            state.rmdir()
    if way == "made again":
        state.mkdir()
    take(buffer, 4.0, durable=True)
    buffer.tick(62.0)
    assert buffer.stats().dropped_by == {"state directory removed": 2}
    assert "was removed or replaced" in buffer.stats().faults[0]
    again = opened(state, epoch=2)
    assert values(again) == [3.0, 4.0]
    assert [(b.epoch, b.sequence) for b in batches(again)] == [(1, 2), (1, 3)]
    assert again.stats().dropped == 2


def test_a_file_that_somebody_removed_is_no_empty_batch(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    for segment in tmp_path.glob("*.seg"):
        segment.unlink()
    assert buffer.payload(next(buffer.waiting())) is None


def test_a_directory_that_another_gateway_has_taken_is_left_to_it(tmp_path: Path):
    state = tmp_path / "state"
    buffer = opened(state)
    take(buffer, 1.0, durable=True)
    buffer.tick(1.0)
    state.rename(tmp_path / "moved")
    other = Disk(state)
    assert other.lock()
    buffer.tick(2.0)
    assert "another bygate uses it" in buffer.stats().faults[0]
    assert other.names() == []
    assert buffer.unsaved == 0


def test_whether_a_gateway_works_on_a_directory_can_be_asked_beside_it(tmp_path: Path):
    assert in_use(tmp_path / "state") is False
    disk = Disk(tmp_path / "state")
    assert disk.lock()
    assert in_use(tmp_path / "state") is True
    disk.close(LOCK)
    assert in_use(tmp_path / "state") is False


def test_who_asks_that_is_not_taken_for_a_gateway_by_others_who_ask(tmp_path: Path, monkeypatch):
    told: list[bool | None] = []

    def asked_amid(fd: int, how: int, flock=fcntl.flock) -> None:
        flock(fd, how)
        monkeypatch.setattr(fcntl, "flock", flock)
        told.append(in_use(tmp_path))

    monkeypatch.setattr(fcntl, "flock", asked_amid)
    told.append(in_use(tmp_path))
    assert told == [False, False]


def test_who_asks_that_keeps_no_gateway_from_starting(tmp_path: Path):
    asking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_EX)
    asked = threading.Timer(0.05, os.close, [asking])
    asked.start()
    assert Disk(tmp_path).lock()
    asked.join()


def test_a_directory_that_comes_after_the_start_is_locked_before_anything_is_written(
    tmp_path: Path,
):
    (tmp_path / "state").touch()  # in its way
    disk = Disk(tmp_path / "state")
    with pytest.raises(FileExistsError):
        disk.lock()
    (tmp_path / "state").unlink()
    other = Disk(tmp_path / "state")
    assert other.lock()
    buffer = begun(disk)
    assert "another bygate uses it" in buffer.stats().faults[0]
    assert other.names() == []
    other.close(LOCK)
    buffer.tick(1.0)
    assert (buffer.fault, other.lock()) == (None, False)


def test_whatever_is_called_lock_no_second_gateway_comes_in(tmp_path: Path):
    (tmp_path / "lock").mkdir()
    first = Disk(tmp_path)
    assert first.lock()
    assert not Disk(tmp_path).lock()
    first.close_all()
    assert not Disk(tmp_path).lock()


# A disk that is full


class SmallDisk(Disk):
    """One that holds so many bytes in all; of what is too much it takes half."""

    most = 4 << 20
    dead = False
    worn = ""
    """A file that cannot be written to."""
    cached = False
    """Whether RAM takes what is written to that one, and a sync alone fails."""

    def sync(self, name: str) -> None:
        if name == self.worn and self.cached:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(name)

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.dead or (name == self.worn and not self.cached):
            raise OSError(errno.EIO, "Input/output error")
        sizes = {path.name: path.stat().st_size for path in self.directory.iterdir()}
        grown = offset + len(data) - sizes.get(name, 0)
        if grown > 0 and sum(sizes.values()) + grown > self.most:
            super().write(name, offset, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, data)


UNBOUND = BufferSettings(flush_interval=10, seal_interval=60, max_size=1 << 40, keep_free=0)


def filled(disk: SmallDisk) -> tuple[Buffer, int]:
    """Return a buffer on the disk that has hardly any room left, and what it took."""
    buffer = begun(disk, 1, UNBOUND)
    taken = 0
    while sum(path.stat().st_size for path in disk.directory.iterdir()) < disk.most - 200_000:
        taken += fill(buffer)
    return buffer, taken


def fill(buffer: Buffer) -> int:
    take(buffer, *(os.urandom(120).hex() for n in range(200)))
    buffer.tick(0.0)
    return 200


def test_on_a_full_disk_the_oldest_that_waits_goes_first_and_is_counted(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer, taken = filled(disk)
    while taken < 60_000:
        taken += fill(buffer)
        assert buffer.stats().faults == []
    buffer.close()
    dropped = buffer.stats().dropped
    assert buffer.stats().dropped_by == {"disk full": dropped}
    assert len(values(buffer)) + dropped == taken
    again = opened(tmp_path, epoch=2)
    assert again.stats().dropped == dropped
    assert len(values(again)) + dropped == taken


def test_a_batch_that_has_no_room_makes_no_segment_at_each_attempt():
    take(buffer := begun(disk := CrashDisk()), *(os.urandom(120).hex() for _ in range(20)))
    disk.limit, disk.fuse = disk.used + 1000, 1000
    for second in range(60, 70):
        buffer.tick(float(second))
    assert "No space left" in str(buffer.fault)
    assert [name for name in disk.names() if name.endswith(".seg")] == ["00000001.seg"]


def test_a_full_disk_that_fails_as_well_costs_nothing(tmp_path: Path):
    buffer, _ = filled(disk := SmallDisk(tmp_path))
    disk.worn = "acked"
    while not buffer.fault and not buffer.stats().dropped:
        fill(buffer)
    assert "Input/output error" in str(buffer.fault)
    assert all(buffer.payload(held) for held in buffer.waiting())


def test_what_a_full_disk_took_makes_room_within_max_size_as_well(tmp_path: Path):
    buffer, _ = filled(disk := SmallDisk(tmp_path))
    buffer.close()
    buffer = begun(disk, 2, replace(UNBOUND, max_size=buffer.stats().size + 10_000))
    disk.most = sum(path.stat().st_size for path in tmp_path.iterdir())
    fill(buffer)
    buffer.close()
    assert buffer.stats().dropped_by.keys() == {"disk full"}


class HoggedDisk(SmallDisk):
    """Somebody else takes what is freed."""

    def remove(self, name: str) -> None:
        self.most -= (self.directory / name).stat().st_size
        super().remove(name)


def test_what_a_full_disk_cost_is_known_after_a_kill(tmp_path: Path):
    buffer, _ = filled(HoggedDisk(tmp_path))
    while not buffer.stats().dropped:
        fill(buffer)
    held, dropped = len(values(buffer)), buffer.stats().dropped
    again = opened(tmp_path, epoch=2)
    assert (len(values(again)), again.stats().dropped) == (held, dropped)


@pytest.mark.parametrize("changes", range(6))
def test_what_a_full_disk_cost_is_counted_or_there_after_a_power_cut(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        for epoch in (1, 2):
            take(buffer := begun(disk, epoch), float(epoch))
            buffer.close()
        with disk.power_cut(changes, Random(seed)):
            buffer._spool.evict_unrecorded()
        again = begun(disk, 3)
        assert (values(again), again.stats().dropped) in (([1.0, 2.0], 0), ([2.0], 1))


@pytest.mark.parametrize("changes", range(6))
def test_a_power_cut_makes_no_loss_of_what_was_delivered_and_a_full_disk_took(changes: int):
    for seed in range(10):
        take(buffer := begun(disk := CrashDisk()), 1.0)
        for now in (0.0, 60.0):
            buffer.tick(now)
        take(buffer, 2.0)
        buffer.close()
        take(buffer := begun(disk, 2), 3.0)
        buffer.close()
        buffer.acknowledge(next(buffer.waiting()))
        with disk.power_cut(changes, Random(seed)):
            buffer._spool.evict_unrecorded()
        again = begun(disk, 3)
        there = values(again), again.stats().dropped
        assert there in (([1.0, 2.0, 3.0], 0), ([2.0, 3.0], 0), ([3.0], 1))


class FullForAcked(SmallDisk):
    """One that has no room even for what is overwritten, such as `acked`, while that is said."""

    tight = False

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.tight and name == "acked":
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, data)


def test_what_a_full_disk_cost_is_in_the_next_head_where_acked_cannot_be_written(tmp_path: Path):
    buffer, _ = filled(disk := FullForAcked(tmp_path))
    disk.tight = True
    for _ in range(40):
        if not buffer.stats().dropped:
            fill(buffer)
    dropped = buffer.stats().dropped
    (tmp_path / "acked").unlink()
    assert (dropped > 0, opened(tmp_path, epoch=2).stats().dropped) == (True, dropped)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Disk, BufferSettings(max_size=2 << 20)), (SmallDisk, UNBOUND)],
)
def test_the_next_batch_that_is_sealed_tells_how_many_were_dropped(
    tmp_path: Path, kind: type[Disk], settings: BufferSettings
):
    buffer = Buffer(kind(tmp_path), settings, "trd-0042", boot=7, epoch=1)
    while not (dropped := buffer.stats().dropped):
        fill(buffer)
    last = batches(buffer)[-1].sequence
    take(buffer, 1.0)
    buffer.close()
    told = {batch.sequence: batch.dropped for batch in batches(buffer)}
    assert (told[last], told[last + 1]) == (0, dropped)


def test_what_a_disk_that_was_full_at_the_start_cost_is_known_after_a_kill(tmp_path: Path):
    buffer, _ = filled(SmallDisk(tmp_path))
    buffer.close()
    disk = HoggedDisk(tmp_path)
    disk.most = 0
    killed = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=2)
    for second in range(3):
        killed.tick(float(second))
    held, dropped = len(values(killed)), killed.stats().dropped
    again = opened(tmp_path, epoch=3)
    assert dropped
    assert (len(values(again)), again.stats().dropped) == (held, dropped)


def test_a_start_that_was_cut_off_does_not_cost_the_segment_that_carries_the_sequence(
    tmp_path: Path,
):
    buffer = sealed(tmp_path, 1, 1, 1)
    for sequence in (1, 2, 3):
        buffer.acknowledge(next(buffer.waiting(sequence - 1)))
    (tmp_path / "acked").unlink()
    (tmp_path / "00000002.seg").touch()
    disk = SmallDisk(tmp_path)
    disk.most = 0
    begun(disk, 2, UNBOUND)
    assert opened(tmp_path, epoch=3).last == 3


@pytest.mark.parametrize("changes", range(8))
def test_a_start_that_fails_after_one_that_was_cut_off_leaves_a_segment_on_the_device(changes: int):
    for seed in range(5):
        take(buffer := begun(disk := CrashDisk()), 1.0)
        buffer.close()
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(100.0)
        disk.fuse = changes
        with suppress(PowerCut):  # a kill: what is not synced is shown all the same
            begun(disk, 2)
        disk.fuse, disk.failing = None, 9
        begun(disk, 3)
        disk.failing = 0
        disk.crash(Random(seed))
        take(again := begun(disk, 4), 4.0)
        again.close()
        assert [batch.previous for batch in batches(again)] == [(1, 1)]


def test_on_a_full_disk_what_is_acknowledged_goes_first(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer, _ = filled(disk)
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    disk.most = sum(path.stat().st_size for path in tmp_path.iterdir())
    for _ in range(20):
        fill(buffer)
    assert buffer.stats().faults == []
    assert buffer.stats().dropped == 0
    assert len(list(tmp_path.glob("*.seg"))) < 4


def test_on_a_full_disk_nothing_that_waits_goes_while_something_is_done_with(tmp_path: Path):
    buffer, _ = filled(disk := SmallDisk(tmp_path))
    waiting = list(buffer.waiting())
    waits = next(held for held in waiting if held.segment == "00000002.seg")
    for held in waiting:
        if held != waits:
            buffer.acknowledge(held)
    disk.most = sum(path.stat().st_size for path in tmp_path.iterdir())
    for _ in range(10):
        fill(buffer)
    assert (buffer.stats().dropped, next(buffer.waiting())) == (0, waits)


class KeptDisk(SmallDisk):
    """One that keeps some files whatever is done to remove them, as after `chattr +i`."""

    most = 1 << 40

    def __init__(self, directory: Path, kept: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__(directory)
        self.kept = kept
        self.syncs = 0

    def sync(self, name: str) -> None:
        self.syncs += 1
        super().sync(name)

    def remove(self, name: str) -> None:
        if name.endswith(".seg") and self.kept(number_of(name)):
            self.close(name)
            path = self.directory / name
            raise OSError(errno.EPERM, "Operation not permitted", str(path))
        super().remove(name)


def first(number: int) -> bool:
    return number == 1


SMALL = replace(UNBOUND, max_size=2 << 20)
FOR_ROOM = pytest.mark.parametrize(
    ("reason", "most"), [("buffer full", 1 << 40), ("disk full", 7 << 18)]
)
"""Why something goes, and how many bytes the disk has."""


@FOR_ROOM
def test_a_file_that_cannot_be_removed_holds_up_no_other(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    most: int,
):
    buffer = begun(disk := KeptDisk(tmp_path, first), 1, SMALL)
    disk.most, taken = most, 0
    while taken < 60_000:
        taken += fill(buffer)
        stats = buffer.stats()
        assert stats.size <= min(most, 2 << 20)
        assert sum(stats.dropped_by.values()) == stats.dropped
    assert stats.dropped_by.keys() == {reason}
    assert (
        f"{tmp_path}/00000001.seg cannot be removed: Operation not permitted: " in stats.faults[0]
    )
    assert caplog.messages.count(f"buffer: {stats.faults[0]}") == 1
    assert len(stats.faults) == 1
    buffer.close()
    left, dropped = values(buffer), buffer.stats().dropped
    assert len(left) + dropped == taken
    for epoch, gone in ((2, "none"), (3, "acked")):
        (tmp_path / gone).unlink(missing_ok=True)
        buffer = begun(disk := KeptDisk(tmp_path, first), epoch, UNBOUND)
        assert (values(buffer), buffer.stats().dropped) == (left, dropped)
        assert buffer.stats().faults[0] == stats.faults[0]
        assert (tmp_path / "00000001.seg").exists()
    told = f"buffer: {tmp_path}: what could not be removed is gone"
    assert told not in caplog.messages
    disk.kept = lambda number: False
    for now in (1.0, 2.0):
        buffer.tick(now)
    assert caplog.messages.count(told) == 1
    assert "removed" not in str(buffer.stats().faults)
    assert not (tmp_path / "00000001.seg").exists()


@FOR_ROOM
def test_where_nothing_can_be_removed_not_all_goes_for_nothing(
    tmp_path: Path, reason: str, most: int
):
    buffer = begun(disk := KeptDisk(tmp_path, lambda number: True), 1, SMALL)
    disk.most = most
    for _ in range(150):
        fill(buffer)
    assert buffer.stats().dropped_by.keys() == {reason}
    assert number_of(next(buffer.waiting()).segment) == IN_VAIN + 1
    buffer.close()
    disk = KeptDisk(tmp_path, lambda number: True)
    disk.most = most
    fill(buffer := begun(disk, 2, SMALL))
    assert number_of(next(buffer.waiting()).segment) == IN_VAIN + 2  # one more, to find out
    disk.kept = lambda number: False
    buffer.tick(1.0)
    fill(buffer)
    assert buffer.stats().faults == []
    assert buffer.stats().size <= min(most, 2 << 20)


def test_files_that_cannot_be_removed_leave_what_comes_half_of_the_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = replace(UNBOUND, max_size=1 << 20)
    buffer = begun(KeptDisk(tmp_path, lambda number: number % 2), 1, settings)
    for _ in range(300):
        fill(buffer)
    size, stuck = buffer.stats().size, buffer._spool.stuck
    assert stuck > 1 << 20
    assert 300 << 10 < size - stuck <= 1 << 19
    again = begun(KeptDisk(tmp_path, lambda number: number % 2), 2, settings)
    assert len(again.stats().faults) == 1
    assert caplog.text.count("cannot be removed") == 2  # one line for all of a kind, at each start


def test_for_keep_free_nothing_goes_where_that_would_need_what_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    buffer = begun(disk := KeptDisk(tmp_path, first), 1, UNBOUND)
    while len(list(tmp_path.glob("*.seg"))) < 3:
        fill(buffer)
    for held in list(buffer.waiting()):
        if held.segment == "00000001.seg":
            buffer.acknowledge(held)
    buffer.close()
    monkeypatch.setattr(disk, "room", lambda: (63 << 20, 8 << 30))
    for short, dropped_by in ((5 << 18, set()), (3 << 18, {"keep_free"})):
        keeping = replace(UNBOUND, keep_free=(63 << 20) + short)
        assert begun(disk, 2, keeping).stats().dropped_by.keys() == dropped_by


def test_what_is_delivered_and_cannot_be_removed_is_not_delivered_again(tmp_path: Path):
    for epoch in range(1, 5):
        take(buffer := begun(disk := KeptDisk(tmp_path, first), epoch), float(epoch))
        buffer.close()
    for held in list(buffer.waiting())[:3]:
        buffer.acknowledge(held)
    buffer.tick(100.0)
    syncs = disk.syncs
    buffer.tick(101.0)
    assert disk.syncs == syncs  # it is tried each second, which costs a card no write
    assert sorted(path.name for path in tmp_path.glob("*.seg")) == ["00000001.seg", "00000004.seg"]
    assert "00000001.seg cannot be removed" in str(buffer.stats().faults)
    assert buffer.fault is None
    again = begun(KeptDisk(tmp_path, first), 5)
    assert (values(again), again.stats().dropped) == ([4.0], 0)


@pytest.mark.parametrize("back", [["acked"], ["acked", "00000002.seg"]])
def test_what_went_behind_a_file_that_stays_counts_once_though_a_kill_came_before_acked(
    tmp_path: Path, back: list[str]
):
    for epoch in range(1, 5):
        take(buffer := begun(KeptDisk(tmp_path, first), epoch), float(epoch))
        buffer.close()
    buffer._spool.evict("buffer full")
    before = {name: (tmp_path / name).read_bytes() for name in back}
    buffer._spool.evict("buffer full")
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    for epoch in range(5, 8):
        buffer = begun(KeptDisk(tmp_path, first), epoch)
        for held in list(buffer.waiting()):  # and with them the records of what was lost
            buffer.acknowledge(held)
        buffer.tick(100.0)
        assert buffer.stats().dropped == 2
    assert sorted(path.name for path in tmp_path.glob("*.seg")) == ["00000001.seg", "00000007.seg"]


def test_a_loss_that_is_recorded_twice_stands_for_no_other(tmp_path: Path):
    for epoch in range(1, 5):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    before = (tmp_path / "acked").read_bytes()
    buffer._spool.evict("buffer full")
    (tmp_path / "acked").write_bytes(before)
    (tmp_path / "00000002.seg").unlink()
    shutil.copy(tmp_path / "00000004.seg", tmp_path / "00000005.seg")
    again = opened(tmp_path, 5)
    assert (values(again), again.stats().dropped) == ([3.0, 4.0], 2)


def test_a_segment_of_another_box_that_bears_what_we_lost_is_delivered(tmp_path: Path):
    for name, epoch in (("ours", 1), ("theirs", 2), ("ours", 3)):
        take(buffer := opened(tmp_path / name, epoch), float(epoch))
        buffer.close()
    buffer._spool.evict("buffer full")
    (tmp_path / "theirs/00000001.seg").rename(tmp_path / "ours/00000007.seg")
    for epoch in (4, 5):
        assert sorted(values(opened(tmp_path / "ours", epoch))) == [2.0, 3.0]


def test_a_directory_that_cannot_be_synced_when_something_goes_does_not_hide_that(tmp_path: Path):
    buffer, _ = filled(disk := SmallDisk(tmp_path))
    buffer.close()
    disk.most = 0
    disk.sync_directory = fails
    buffer = begun(disk, 2, UNBOUND)
    stats = buffer.stats()
    assert stats.dropped_by == {"disk full": stats.dropped}


def fails() -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_others_filled_is_no_deadlock(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    fill(buffer)
    segments = len(list(tmp_path.glob("*.seg")))
    disk.most = 0
    for second in range(20):
        take(buffer, 1.0)
        buffer.tick(100.0 * second)
    assert "No space left" in buffer.stats().faults[0]
    assert len(list(tmp_path.glob("*.seg"))) == segments
    disk.most = 4 << 20
    buffer.tick(3000.0)
    assert buffer.stats().faults == []
    assert buffer.stats().dropped == 0
    buffer.close()
    assert len(values(buffer)) == 220


def test_what_a_full_disk_has_no_room_for_is_flushed_as_far_as_the_journal_goes(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    disk.most = 0
    for second in range(1, 300):
        take(buffer, *(20 * second + n for n in range(20)))
        buffer.tick(float(second))
    assert "No space left" in buffer.stats().faults[0]
    assert buffer.unsaved < 200
    kept = buffer.stats().taken - buffer.unsaved
    assert values(opened(tmp_path, epoch=2)) == list(range(20, 20 + kept))


def test_a_durable_reading_is_flushed_at_once_on_a_full_disk_too(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    disk.most = 0
    take(buffer, 1.0)
    buffer.tick(100.0)
    for second in range(101, 200):
        take(buffer, float(second), durable=second == 102)
        buffer.tick(float(second))
        assert buffer.unsaved < 10 + (second == 101)
        assert buffer.unsaved == 0 or second != 102


def test_what_a_full_disk_keeps_in_the_journal_goes_on_under_the_same_names(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    disk.most = 0
    for second in range(10):
        take(buffer, *range(500 * second, 500 * second + 500))
        buffer.tick(10.0 * second)
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    disk.most = 4 << 20
    buffer.tick(200.0)
    buffer.close()
    again = opened(tmp_path.parent / "copy", epoch=2)
    assert values(buffer) == values(again) == list(range(5000))
    assert [(b.epoch, b.sequence) for b in batches(buffer)] == [
        (b.epoch, b.sequence) for b in batches(again)
    ]


def test_what_is_delivered_goes_although_the_disk_takes_nothing(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer, _ = filled(disk)
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    disk.dead = True
    fill(buffer)
    assert "Input/output error" in buffer.stats().faults[0]
    assert len(list(tmp_path.glob("*.seg"))) == 1


def test_what_is_delivered_is_noted_although_the_disk_has_no_room(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=1)
    take(buffer, 1.0)
    buffer.tick(0.0)
    buffer.tick(60.0)
    disk.most = 0
    take(buffer, 2.0)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.tick(120.0)
    assert "No space left" in str(buffer.fault)
    assert values(opened(tmp_path, epoch=2)) == [2.0]


def test_it_says_how_many_readings_are_in_ram_alone(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    take(buffer, 1.0)
    buffer.tick(20.0)
    assert buffer.unsaved == 0
    disk.dead = True
    take(buffer, 2.0, 3.0)
    assert buffer.unsaved == 2
    buffer.close()
    assert buffer.unsaved == 2
    assert values(opened(tmp_path, epoch=2)) == [1.0]


def given_up(buffer: Buffer) -> tuple[int, int, dict[str, int]]:
    told = buffer.stats()
    assert buffer.unsaved == 0
    return told.waiting_readings, told.dropped, told.dropped_by


@pytest.mark.parametrize("flushed", [[], [1.0]])
@pytest.mark.parametrize("way", [[], [lambda buffer: buffer.tick(31.0)], [Buffer.close]])
def test_what_a_stop_gives_up_is_dropped_and_what_was_flushed_waits(
    tmp_path: Path, flushed: list[float], way: list[Callable[[Buffer], None]]
):
    buffer = begun(disk := SmallDisk(tmp_path), 1, UNBOUND)
    take(buffer, *flushed)
    buffer.tick(20.0)
    disk.dead = True
    take(buffer, 2.0, 3.0)
    for step in way:
        step(buffer)
    buffer.give_up()
    expected = len(flushed), 2, {"stopped while the disk took nothing": 2}
    assert given_up(buffer) == expected
    buffer.close()
    assert given_up(buffer) == expected
    assert opened(tmp_path, epoch=2).stats().dropped == 0
    disk.dead = False
    for _ in range(2):
        buffer.close()
        assert given_up(buffer) == expected
    again = opened(tmp_path, epoch=3)
    assert (values(again), again.stats().dropped) == (flushed, 2)


@pytest.mark.parametrize("room", [False, True])
def test_what_a_stop_on_a_full_disk_gives_up_is_known_at_the_next_starts(
    tmp_path: Path, *, room: bool
):
    take(killed := begun(disk := SmallDisk(tmp_path)), 1.0)
    killed.tick(20.0)
    disk.most = 0
    buffer = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=2)
    take(buffer, *range(RAM_READINGS + 5))
    buffer.close()
    buffer.give_up()
    (known := Acked(Disk(tmp_path))).recover(lambda history: True)
    assert known.found
    assert known.found.dropped == RAM_READINGS + 5
    disk.most = room << 22
    buffer.close()
    for epoch in (3, 4):
        again = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=epoch)
        again.tick(0.0)
        assert (again.stats().waiting_readings, again.stats().dropped) == (1, RAM_READINGS + 5)
    disk.most = 1 << 22
    take(again, 2.0)
    again.close()
    assert (values(again), batches(again)[-1].dropped) == ([1.0, 2.0], RAM_READINGS + 5)


def test_what_a_stop_on_a_full_disk_gives_up_is_in_the_next_head_as_well(tmp_path: Path):
    take(buffer := begun(disk := SmallDisk(tmp_path)), 1.0)
    buffer.tick(20.0)
    disk.most, disk.worn = 0, "journal"
    take(buffer, 2.0, 3.0)
    buffer.close()
    buffer.give_up()
    disk.most, disk.worn = 4 << 20, ""
    buffer.close()
    (tmp_path / "acked").unlink()
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([1.0], 2)


def test_what_is_given_up_before_the_disk_was_read_takes_no_acknowledgement_along(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0)
    buffer.tick(60.0)
    buffer.acknowledge(next(buffer.waiting()))
    buffer.close()
    take(unread := Buffer(Disk(tmp_path), SETTINGS, "trd-0042", boot=7, epoch=2), 2.0)
    unread.give_up()
    assert values(opened(tmp_path, epoch=3)) == []


@pytest.mark.parametrize("fails", [1, 2])
def test_a_batch_whose_rest_is_given_up_after_failed_syncs_is_there_once(fails: int):
    take(before := begun(disk := CrashDisk()), 0.0)
    before.close()
    take(buffer := begun(disk, 2), 1.0)
    buffer.tick(20.0)
    take(buffer, 2.0)
    disk.bad = {"00000002.seg", "00000003.seg"}
    for _ in range(fails):
        buffer.close()
    buffer.give_up()
    disk.bad.clear()
    buffer.close()
    again = begun(disk, 3)
    assert (values(again), again.stats().dropped) == ([0.0, 1.0], 1)
    assert batches(again)[-1].previous == (1, 1)


def test_what_could_not_be_flushed_is_flushed_once_the_disk_works_again(tmp_path: Path):
    buffer = begun(disk := SmallDisk(tmp_path))
    take(buffer, 1.0)
    disk.worn = "journal"
    buffer.tick(20.0)
    assert (buffer.unsaved, buffer.fault is None) == (1, False)
    disk.worn = ""
    buffer.tick(31.0)
    assert (buffer.unsaved, values(opened(tmp_path, epoch=2))) == (0, [1.0])


def test_what_waits_in_ram_is_bounded_and_the_oldest_go_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    disk = SmallDisk(tmp_path)
    buffer = begun(disk, 1, UNBOUND)
    disk.dead = True
    take(buffer, *range(RAM_READINGS + 5))
    buffer.tick(1.0)
    assert buffer.stats().waiting_readings == RAM_READINGS
    assert (buffer.stats().dropped, buffer.stats().dropped_by) == (5, {"no room in RAM": 5})
    assert caplog.text.count("no room in RAM for more readings") == 1
    disk.dead = False
    buffer.tick(2.0)
    buffer.close()
    assert values(buffer) == list(range(5, RAM_READINGS + 5))
    assert (buffer.stats().dropped, buffer.stats().dropped_by) == (5, {"no room in RAM": 5})
    assert "5 readings dropped: no room in RAM" in caplog.text


def test_it_starts_on_a_full_disk_and_recovers_once(tmp_path: Path):
    disk = SmallDisk(tmp_path)
    buffer, taken = filled(disk)
    buffer.close()
    disk.most = 0
    again = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=2)
    for second in range(20):
        again.tick(100.0 * second)
    assert len(values(again)) + again.stats().dropped == taken
    assert len(list(tmp_path.glob("*.seg"))) <= 1
    disk.most = 4 << 20
    again.tick(3000.0)
    assert again.stats().faults == []


def test_what_the_journal_has_is_counted_where_a_full_disk_keeps_it_from_being_sealed(
    tmp_path: Path,
):
    killed = begun(disk := SmallDisk(tmp_path))
    take(killed, 1.0, 2.0, at=5)
    killed.tick(20.0)
    disk.most = 0
    again = Buffer(disk, UNBOUND, "trd-0042", boot=7, epoch=2)
    again.tick(0.0)
    assert again.stats().blocked
    take(again, 3.0, at=8)
    told = again.stats()
    assert (told.waiting_batches, told.waiting_readings, told.oldest_ms) == (0, 3, 10**12 + 5)
    disk.most = 4 << 20
    again.tick(61.0)
    again.close()
    assert (again.stats().waiting_batches, again.stats().waiting_readings) == (2, 3)
    assert values(again) == [1.0, 2.0, 3.0]


def test_a_batch_names_the_oldest_that_waits_though_that_is_in_ram_alone():
    buffer = begun(disk := CrashDisk())
    take(buffer, 1.0)
    buffer.tick(0.0)
    disk.limit = disk.used
    buffer.tick(60.0)
    take(buffer, 2.0)
    buffer.tick(75.0)
    disk.swap(CrashDisk())  # what is in RAM is sealed before it is known
    for now in (76.0, 136.0):
        buffer.tick(now)
    assert [(batch.sequence, batch.oldest) for batch in batches(buffer)] == [(1, 1), (2, 1)]


def test_the_oldest_reading_that_waits_is_known_wherever_it_is(tmp_path: Path):
    buffer = opened(tmp_path)
    assert buffer.stats().oldest_ms is None
    take(buffer, 1.0, at=5)
    assert buffer.stats().oldest_ms == 10**12 + 5
    buffer.tick(1.0)
    assert buffer.stats().oldest_ms == 10**12 + 5
    buffer.close()
    again = opened(tmp_path, epoch=2)
    take(again, 2.0, at=8)
    assert again.stats().oldest_ms == 10**12 + 5
    again.acknowledge(next(again.waiting()))
    assert again.stats().oldest_ms == 10**12 + 8


def test_segments_are_in_the_order_of_their_numbers(tmp_path: Path):
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    (tmp_path / "00000001.seg").rename(tmp_path / "99999999.seg")
    for epoch in (2, 3):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    buffer._spool.evict("buffer full")
    assert values(buffer) == [2.0, 3.0]
    assert not (tmp_path / "99999999.seg").exists()


def test_an_evicted_segment_that_power_cuts_bring_back_twice_is_lost_once(tmp_path: Path):
    for epoch in (1, 2, 3):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    back = (tmp_path / "00000001.seg").read_bytes()
    buffer._spool.evict("buffer full")
    (tmp_path / "00000001.seg").write_bytes(back)
    again = opened(tmp_path, epoch=4)
    assert not (tmp_path / "00000001.seg").exists()
    for held in list(again.waiting()):  # and with them the record of what was lost
        again.acknowledge(held)
    again.close()
    (tmp_path / "00000001.seg").write_bytes(back)
    third = opened(tmp_path, epoch=5)
    assert (values(third), third.stats().dropped) == ([], 1)
    assert not (tmp_path / "00000001.seg").exists()


class StuckDisk(Disk):
    """Fails to sync segments while `stuck`, and to take back what it wrote to them."""

    stuck = False

    def sync(self, name: str) -> None:
        self._fail(name)
        super().sync(name)

    def cut(self, name: str, length: int) -> None:
        self._fail(name)
        super().cut(name, length)

    def _fail(self, name: str) -> None:
        if self.stuck and name.endswith(".seg"):
            raise OSError(errno.EIO, "Input/output error")


def test_an_evicted_segment_that_comes_back_takes_nothing_that_was_written_again(tmp_path: Path):
    take(buffer := begun(disk := StuckDisk(tmp_path)), 1.0)
    buffer.tick(60.0)
    take(buffer, 2.0)
    disk.stuck = True
    buffer.tick(120.0)
    disk.stuck = False
    buffer.tick(180.0)
    back = (tmp_path / "00000001.seg").read_bytes()
    buffer._spool.evict("buffer full")
    buffer.close()
    (tmp_path / "00000001.seg").write_bytes(back)
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([2.0], 1)


@pytest.mark.parametrize(
    "name", ["999999999999.seg", "999999999999.seg-0.foreign", f"{'9' * 251}.seg"]
)
def test_behind_whatever_number_there_is_what_is_sealed_is_found_again(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"foreign")
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    assert values(opened(tmp_path, epoch=2)) == [1.0]


def test_segments_that_are_full_are_not_kept_open(tmp_path: Path):
    buffer = opened(tmp_path)
    for _ in range(300):
        fill(buffer)
    assert len(list(tmp_path.glob("*.seg"))) > 3
    assert len([name for name in buffer._disk._open if name.endswith(".seg")]) == 1
