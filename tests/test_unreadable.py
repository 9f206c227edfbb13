"""Blocks of a disk that cannot be read, as of a worn card: at a start, and while it runs."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from crash_disk import CrashDisk
from delivery import Box, address, both, delivering, run, until
from test_buffer import SETTINGS, begun, flip, opened, take, values

from gateway.buffer import Buffer
from gateway.disk import BLOCK, PATIENCE, Disk
from gateway.held import Held
from gateway.record import size_of
from gateway.store import _acked, _has_records
from hil.broker import Broker


class WornDisk(Disk):
    """One that cannot read some blocks of its files."""

    def __init__(self, directory: Path, *bad: tuple[str, int]) -> None:
        super().__init__(directory)
        self.bad = set(bad)
        self.block = BLOCK
        self.away = False
        """Whether it is out of reach: its cable is loose."""
        self.cached = False
        """Whether RAM takes what is written all the same."""
        self.failures = -1
        """After so many all is well again; below 0: never."""

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        behind = offset + (length if length >= 0 else 1 << 40)
        if any(of == name and offset - self.block < at < behind for of, at in self.bad):
            self.fail()
        return super().read(name, offset, length)

    def fail(self) -> None:
        self.failures -= 1
        if self.failures == 0:
            self.bad.clear()
            self.away = False
        raise OSError(errno.EIO, "Input/output error")

    def write(self, name: str, offset: int, data: bytes) -> None:
        if self.away and not self.cached:
            self.fail()
        super().write(name, offset, data)

    def sync(self, name: str) -> None:
        if self.away:
            self.fail()
        super().sync(name)


def written(directory: Path) -> list[Held]:
    """Leave batches of 30 readings in a segment, 9 kB each, and three frames in the journal."""
    buffer, random = opened(directory), Random(1)
    for _ in range(4):
        take(buffer, *(random.randbytes(300).hex() for _ in range(30)))
        buffer.tick(0.0)
        buffer.tick(60.0)
    for number in range(3):
        take(buffer, number, durable=True)
        buffer.tick(61.0 + number / 10)
    return list(buffer.waiting())


def started(disk: Disk, epoch: int = 2) -> Buffer:
    """Return a buffer that has had the time to see that blocks cannot be read."""
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=epoch)
    for second in (0.0, PATIENCE, PATIENCE + 1, PATIENCE + 2):
        buffer.tick(second)
    return buffer


# At a start


@pytest.mark.parametrize("at", range(0, 18_654, BLOCK))
def test_a_block_that_cannot_be_read_costs_the_batches_on_it_and_holds_up_nothing(
    tmp_path: Path, at: int
):
    sound = [h.sequence for h in written(tmp_path) if not on_block(h, at)]
    buffer = started(WornDisk(tmp_path, ("00000001.seg", at)))
    assert [held.sequence for held in buffer.waiting()] == [*sound, 5]
    assert values(buffer)[-3:] == [0, 1, 2]
    assert any("readings lost" in told for told in buffer.stats().faults)
    take(buffer, 99.0)
    buffer.close()
    assert (values(buffer)[-1], buffer.fault) == (99.0, None)


def on_block(held: Held, at: int) -> bool:
    return at - held.length < held.offset < at + BLOCK + size_of(b"")


def test_a_segment_that_cannot_be_read_at_all_is_told_and_kept(tmp_path: Path):
    written(tmp_path)
    sound = (tmp_path / "00000001.seg").read_bytes()
    everywhere = [("00000001.seg", at) for at in range(0, len(sound), BLOCK)]
    buffer = started(WornDisk(tmp_path, *everywhere))
    assert values(buffer) == [0, 1, 2]
    (told,) = buffer.stats().faults
    assert told.startswith("120 readings lost: 00000001.seg-0-")
    assert (tmp_path / "00000001.seg.damaged").read_bytes() == sound


def test_what_such_a_block_costs_is_counted_once_and_the_file_is_kept(tmp_path: Path):
    written(tmp_path)
    sound = (tmp_path / "00000001.seg").read_bytes()
    for epoch in (2, 3, 4):
        buffer = started(WornDisk(tmp_path, ("00000001.seg", 16_384)), epoch)
        assert buffer.stats().dropped == 30
        assert (tmp_path / "00000001.seg").read_bytes() == sound
        buffer.close()
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    buffer.tick(40.0)
    assert not (tmp_path / "00000001.seg").exists()
    assert (tmp_path / "00000001.seg.damaged").read_bytes() == sound


@pytest.mark.parametrize(("number", "at"), [(0, 3 * BLOCK), (3, BLOCK)])
def test_damage_before_and_behind_such_a_block_is_blanked(tmp_path: Path, number: int, at: int):
    hit, segment = written(tmp_path)[number], tmp_path / "00000001.seg"
    data = bytearray(segment.read_bytes())
    data[hit.offset + 5] ^= 1
    segment.write_bytes(data)
    assert started(WornDisk(tmp_path, (segment.name, at))).stats().dropped == 90
    assert not any(segment.read_bytes()[hit.offset + 60 : hit.offset + hit.length])


def test_what_is_lost_beside_such_a_block_later_is_counted_as_well(tmp_path: Path):
    written(tmp_path)
    bad = "00000001.seg", 16_384
    started(WornDisk(tmp_path, bad)).close()
    second = tmp_path / "00000002.seg"
    second.write_bytes(bytes(second.stat().st_size))
    for epoch, lost in ((3, {"damaged on disk": 3}), (4, {})):
        again = started(WornDisk(tmp_path, bad), epoch)
        assert (again.stats().dropped, again.stats().dropped_by) == (33, lost)
        again.close()


def test_what_such_a_block_costs_is_counted_once_though_the_record_of_it_is_wiped(tmp_path: Path):
    written(tmp_path)
    bad = "00000001.seg", 16_384
    started(WornDisk(tmp_path, bad)).close()
    for newer in ("00000002.seg", "00000003.seg"):
        (tmp_path / newer).write_bytes(bytes(200))
    again = started(WornDisk(tmp_path, bad), 3)
    assert (again.stats().dropped, again.stats().dropped_by) == (30, {})
    assert values(again)[-3:] == [0, 1, 2]


@pytest.mark.parametrize("name", ["00000001.seg", "journal", "acked"])
def test_what_can_be_read_half_a_minute_later_is_not_lost(tmp_path: Path, name: str):
    written(tmp_path)
    disk = WornDisk(tmp_path, (name, 0))
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    for second in range(30):
        buffer.tick(7.0 + second)
        assert "Input/output error" in buffer.stats().faults[0]
    disk.bad.clear()
    buffer.tick(37.0)
    assert (len(values(buffer)), buffer.stats().faults) == (123, [])


def test_a_stop_gives_up_nothing_that_may_be_read_at_the_next_start(tmp_path: Path):
    written(tmp_path)
    buffer = begun(WornDisk(tmp_path, ("00000001.seg", 0)), 2)
    for _ in range(2):
        buffer.close()
    assert len(values(started(Disk(tmp_path), 3))) == 123


def test_several_files_with_bad_blocks_are_waited_for_together(tmp_path: Path):
    written(tmp_path)
    buffer = started(WornDisk(tmp_path, ("00000001.seg", 0), ("acked", 0), ("journal", 0)))
    assert (buffer.fault, values(buffer)[-2:]) == (None, [1, 2])


def test_another_disk_has_all_of_the_time_again(tmp_path: Path):
    written(tmp_path / "state")
    written(tmp_path / "other")
    buffer = started(WornDisk(tmp_path / "state", ("00000001.seg", 0)))
    (tmp_path / "state").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "state")
    for second in range(40, 70):
        buffer.tick(float(second))
        assert "Input/output error" in str(buffer.fault)
    buffer.tick(70.0)
    assert buffer.fault is None


def test_what_was_acknowledged_is_let_be_until_the_segments_are_read(tmp_path: Path):
    written(tmp_path)
    before = (tmp_path / "acked").read_bytes()
    assert begun(WornDisk(tmp_path, ("00000001.seg", 0)), 2).fault
    assert (tmp_path / "acked").read_bytes() == before


def test_nothing_is_handed_out_until_what_was_acknowledged_is_read(tmp_path: Path):
    written(tmp_path)
    delivered = started(Disk(tmp_path))
    for held in list(delivered.waiting(after=1)):
        delivered.acknowledge(held)
    delivered.close()
    disk = WornDisk(tmp_path, ("acked", 0))
    disk.away = True
    buffer = started(disk, epoch=3)
    assert list(buffer.waiting()) == []
    disk.away = disk.bad.clear() is not None
    buffer.tick(40.0)
    assert (len(values(buffer)), buffer.stats().faults) == (30, [])


def test_what_cannot_be_read_is_no_other_versions_for_that():
    unreadable = Path("/proc/self/mem")  # for anybody, at its beginning
    assert _acked(unreadable)
    assert not _has_records(unreadable)


@pytest.mark.parametrize("cached", [False, True])
def test_a_disk_that_is_out_of_reach_is_waited_for(tmp_path: Path, cached: bool):
    written(tmp_path)
    disk = WornDisk(tmp_path, ("00000001.seg", 0), ("00000001.seg", BLOCK))
    disk.away, disk.cached = True, cached
    buffer = started(disk)
    assert list(buffer.waiting()) == []
    disk.away = disk.bad.clear() is not None
    buffer.tick(40.0)
    assert (len(values(buffer)), buffer.stats().faults) == (123, [])


@pytest.mark.parametrize(("bad", "again"), [([0], (4, 5)), ([BLOCK], (4, 5)), ([0, BLOCK], (5,))])
def test_where_the_ranges_cannot_be_read_that_is_told_and_all_may_be_sent_again(
    tmp_path: Path, bad: list[int], again: tuple[int, ...]
):
    written(tmp_path)
    buffer = started(Disk(tmp_path))
    buffer.acknowledge(next(buffer.waiting(1)))
    buffer.close()
    buffer = started(WornDisk(tmp_path, *(("acked", at) for at in bad)), epoch=3)
    assert len(list(buffer.waiting())) in again
    (told,) = buffer.stats().faults
    assert "acked is unreadable, at least in part: all that lies there may be sent once" in told


@pytest.mark.parametrize("slot", range(3))
def test_a_journal_that_cannot_be_read_is_begun_anew_and_gives_what_it_can(
    tmp_path: Path, slot: int
):
    written(tmp_path)
    before = (tmp_path / "journal").read_bytes()
    buffer = started(WornDisk(tmp_path, ("journal", slot * BLOCK)))
    assert values(buffer)[-2:] == [n for n in range(3) if n != slot]
    (told,) = buffer.stats().faults
    lost = "unknown" if slot == 2 else "1"  # that is the last: nothing behind it tells
    assert told.startswith(f"{lost} readings lost: journal-{slot * BLOCK}")
    assert (tmp_path / "journal.damaged").read_bytes() == before
    assert not any((tmp_path / "journal").read_bytes())
    take(buffer, 99.0, durable=True)
    for second in (40.0, 41.0):
        buffer.tick(second)
    assert values(started(Disk(tmp_path), 3))[-1] == 99.0


class NoNewJournal(WornDisk):
    """One that lets nobody rename a file, or has no room for a new journal at first."""

    full = 0
    protected = False

    def write(self, name: str, offset: int, data: bytes) -> None:
        if name == "journal" and len(data) > BLOCK and self.full:
            self.full -= 1
            super().write(name, offset, data[: self.full * BLOCK])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, data)

    def rename(self, name: str, to: str) -> None:
        if self.protected:
            raise OSError(errno.EPERM, "Operation not permitted", str(self.directory / name))
        super().rename(name, to)
        self.bad.clear()


@pytest.mark.parametrize("full", [1, 2])
def test_a_full_disk_that_has_no_room_for_a_new_journal_leaves_the_old_one_as_it_was(
    tmp_path: Path, full: int
):
    written(tmp_path)
    before = (tmp_path / "journal").read_bytes()
    disk = NoNewJournal(tmp_path, ("journal", 0))
    disk.full = full
    buffer = started(disk)
    assert (buffer.fault, disk.full) == (None, 0)
    assert (tmp_path / "journal.damaged").read_bytes() == before
    assert (tmp_path / "journal").read_bytes() == bytes(len(before))


def test_what_is_flushed_once_there_is_room_for_a_new_journal_is_there_after_a_kill(
    tmp_path: Path,
):
    written(tmp_path)
    disk = NoNewJournal(tmp_path, ("journal", 0))
    disk.full = 60
    take(buffer := started(disk), 99.0, durable=True)
    buffer.tick(40.0)
    assert "No space left" in str(buffer.fault)
    disk.full = 0
    for second in (41.0, 50.0):  # a flush interval after the last one that was tried
        buffer.tick(second)
    written_so_far = disk.written
    buffer.tick(51.0)  # it is begun anew once
    assert disk.written == written_so_far
    assert (buffer.fault, buffer.unsaved) == (None, 0)
    assert values(started(Disk(tmp_path), 3))[-1] == 99.0


class NoOverwriting(WornDisk):
    """One that lets no segment go, nor has room to blank what is damaged there."""

    full = True

    def write(self, name: str, offset: int, data: bytes) -> None:
        there = name.endswith(".seg") and self.exists(name)
        if there and offset < self.size(name) and self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, data)

    def remove(self, name: str) -> None:
        if name.endswith(".seg"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().remove(name)


def test_nothing_is_flushed_to_a_journal_that_is_yet_to_be_begun_anew(tmp_path: Path):
    written(tmp_path)
    for at in (1, 5_000, 15_000):
        flip(tmp_path / "00000001.seg", at)
    disk = NoOverwriting(tmp_path, ("journal", 0))
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    take(buffer, 99.0, durable=True)
    for second in (0.0, PATIENCE):
        buffer.tick(second)
    assert "No space left" in str(buffer.fault)
    disk.full = False
    for second in (PATIENCE + 1, PATIENCE + 20):
        buffer.tick(second)
    assert (buffer.fault, buffer.unsaved) == (None, 0)
    assert (tmp_path / "journal.damaged").exists()
    assert values(started(Disk(tmp_path), 3))[-1] == 99.0


def test_no_journal_of_another_disk_is_begun_anew_for_one_that_could_not_be_read(tmp_path: Path):
    for name in ("state", "other"):
        written(tmp_path / name)
    disk = NoNewJournal(tmp_path / "state", ("journal", 0))
    disk.full = 60
    buffer = started(disk)
    assert "No space left" in str(buffer.fault)
    (tmp_path / "state").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "state")
    buffer.tick(40.0)
    assert buffer.fault is None


def test_a_journal_that_cannot_be_read_nor_renamed_is_written_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    written(tmp_path)
    disk = NoNewJournal(tmp_path, ("journal", 0))
    disk.protected = True
    take(buffer := started(disk), 99.0, durable=True)
    buffer.tick(40.0)
    assert (buffer.fault, buffer.unsaved) == (None, 0)
    assert "Operation not permitted" not in caplog.text
    assert values(started(Disk(tmp_path), 3))[-1] == 99.0


class WornJournal(CrashDisk):
    """One that cannot read the first block of its journal."""

    def salvage(self, name: str, most: int = -1) -> tuple[bytes, list[int]]:
        return self.read(name, 0, most), [0] * (name == "journal" and self.exists("journal"))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_flushed_to_the_new_journal_is_there_after_a_power_cut(seed: int):
    begun(disk := WornJournal(), 1)
    take(buffer := begun(disk, 2), 99.0, durable=True)
    buffer.tick(1.0)
    disk.crash(Random(seed))
    assert values(begun(disk, 3)) == [99.0]


@pytest.mark.parametrize("behind", [0, 1])
def test_a_stretch_of_the_journal_that_cannot_be_read_is_told_once(tmp_path: Path, behind: int):
    written(tmp_path)
    blocks = [("journal", (behind + n) * BLOCK) for n in range(2)]
    buffer = started(WornDisk(tmp_path, *blocks, ("journal", 9 * BLOCK), ("journal", 10 * BLOCK)))
    faults = buffer.stats().faults
    lost = "unknown" if behind else 2
    told = [
        f"{lost} readings lost: journal-{behind * BLOCK}",
        "unknown readings lost: journal-36864",
    ]
    assert [fault[: len(start)] for fault, start in zip(faults, told, strict=True)] == told
    assert values(buffer)[-1] == (2 if not behind else 0)


def test_a_journal_that_cannot_be_read_is_told_of_once_though_the_first_try_to_seal_it_fails():
    take(buffer := begun(disk := WornJournal(), 1), 99.0, durable=True)
    buffer.tick(1.0)
    disk.bad.add("00000002.seg")
    again = begun(disk, 2)
    assert "Input/output error" in str(again.fault)
    again.tick(1.0)
    (told,) = again.stats().faults
    assert told.startswith("unknown readings lost: journal-0-")
    assert values(again) == [99.0]


# Files whose inode cannot be read: Linux moves, removes and opens none of them


def broken(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have no call that is given one of these names succeed, as ext4 does before fsck."""

    def refusing(call: Callable[..., object]) -> Callable[..., object]:
        def called(*given: object, **more: object) -> object:
            for path in given:
                if isinstance(path, str | Path) and Path(path).name in names:
                    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG), str(path))
            return call(*given, **more)

        return called

    for call in ("stat", "lstat", "open", "rename", "unlink"):
        monkeypatch.setattr(os, call, refusing(getattr(os, call)))


def two_segments(directory: Path) -> None:
    """Leave batches of 30 readings in a segment, and a batch of three in the next one."""
    written(directory)
    started(Disk(directory)).close()


@pytest.mark.parametrize(("name", "lost"), [("00000001.seg", 120), ("00000002.seg", 3)])
def test_a_segment_that_is_broken_holds_up_no_other_and_goes_out_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost: int
):
    two_segments(tmp_path)
    whole = values(opened(tmp_path, epoch=3))
    with monkeypatch.context() as patch:
        broken(patch, name)
        for epoch, here in ((4, {"damaged on disk": lost}), (5, {})):
            take(buffer := started(Disk(tmp_path), epoch), 99.0)
            assert (len(values(buffer)), buffer.fault) == (123 - lost + epoch - 4, None)
            buffer.close()
            assert (values(buffer)[-1], buffer.stats().dropped) == (99.0, lost)
            assert buffer.stats().dropped_by == here
            why = "Bad message: its file system is damaged: umount it and run fsck; until then"
            assert f"{tmp_path}/{name}: {why}" in buffer.stats().faults[0]
            assert all(map(buffer.payload, buffer.waiting()))
    again = started(Disk(tmp_path), 6)
    assert sorted(values(again), key=str) == sorted([*whole, 99.0, 99.0], key=str)
    assert (again.stats().dropped, again.stats().faults) == (lost, [])


def test_a_segment_that_is_broken_for_a_moment_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    two_segments(tmp_path)
    buffer = Buffer(Disk(tmp_path), SETTINGS, "trd-0042", boot=7, epoch=3)
    with monkeypatch.context() as patch:
        broken(patch, "00000001.seg")
        buffer.tick(0.0)
        assert f"{tmp_path}/00000001.seg: Bad message: " in str(buffer.fault)
    buffer.tick(1.0)
    assert (len(values(buffer)), buffer.stats().faults) == (123, [])


@pytest.mark.parametrize("name", ["acked", "journal", "refused.list"])
def test_any_other_file_that_is_broken_is_named_and_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    two_segments(tmp_path)
    broken(monkeypatch, name)
    buffer = started(Disk(tmp_path), 3)
    (told,) = buffer.stats().faults
    assert told.startswith(f"{tmp_path}/{name}: Bad message: ")
    take(buffer, 99.0, durable=True)
    buffer.tick(4.0)
    for held in list(buffer.waiting())[:2]:
        buffer.set_aside(held, 0x99)
    (tmp_path / "refused/1-1-0x99.batch").unlink()
    buffer.tick(5.0)
    assert (buffer.fault, buffer.stats().dropped_by) == (None, {"refused and removed": 30})
    assert (buffer.unsaved, buffer.stats().refused) == (0, ["2-1-0x99.batch"])
    again = started(Disk(tmp_path), 4)
    assert (values(again)[-1], again.fault) == (99.0, None)


def test_a_copy_of_what_is_damaged_that_is_broken_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hit, *_ = written(tmp_path)
    (tmp_path / "old.damaged").touch()
    with (tmp_path / hit.segment).open("r+b") as segment:
        segment.seek(hit.offset)
        segment.write(b"X" * 9)
    broken(monkeypatch, "old.damaged")
    buffer = started(Disk(tmp_path))
    assert (buffer.fault, buffer.stats().dropped) == (None, 30)


# While it runs


class Worn(Box):
    """A box on a disk that can read everything for now."""

    def __init__(self, directory: Path, broker: Broker) -> None:
        super().__init__(directory, address(broker), disk=WornDisk)
        self.disk = self.buffer._disk

    def spoil(self, number: int) -> None:
        held = list(self.buffer.waiting())[number]
        self.disk.bad, self.disk.block = {(held.segment, held.offset)}, 1

    async def tick(self, now: float) -> None:
        await asyncio.get_running_loop().run_in_executor(self.writer, self.buffer.tick, now)
        self.uplink.wake()


def test_a_batch_that_cannot_be_read_is_counted_and_holds_up_no_other(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Worn(tmp_path, broker)
            await box.seal(8)
            box.spoil(3)
            async with delivering(box):
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                await box.tick(PATIENCE)
                assert box.delivered
                assert box.buffer.stats().dropped_by == {"damaged on disk": 1}
                assert "1 readings lost: 00000001.seg" in box.buffer.stats().faults[0]
                assert (broker.connects, list(box.state.suspects)) == (1, [])

    run(scenario())


def test_a_batch_that_can_be_read_within_half_a_minute_is_not_lost_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    written(tmp_path)
    buffer = started(disk := WornDisk(tmp_path))
    hit, other, *_ = buffer.waiting()
    disk.bad = {(hit.segment, hit.offset), (hit.segment, other.offset)}
    assert [buffer.payload(held) for held in (hit, other)] == [None, None]
    before = buffer.offered_again
    for second in range(33, 62):
        buffer.tick(float(second))
        (fault,) = buffer.stats().faults
        assert fault.startswith(f"{tmp_path}: Input/output error: the disk fails")
    disk.bad.clear()
    buffer.tick(62.0)
    assert (buffer.stats().dropped, len(values(buffer))) == (0, 123)
    assert (buffer.stats().faults, buffer.offered_again) == ([], before + 1)
    assert caplog.messages == [f"buffer: {fault}", f"buffer: no longer: {fault}"]


def test_a_batch_that_was_delivered_though_it_could_not_be_read_again_is_not_lost(tmp_path: Path):
    written(tmp_path)
    buffer = started(disk := WornDisk(tmp_path))
    hit = next(buffer.waiting())
    disk.bad = {(hit.segment, hit.offset)}
    assert buffer.payload(hit) is None
    buffer.acknowledge(hit)
    buffer.tick(70.0)
    assert (buffer.stats().dropped, buffer.stats().faults) == (0, [])


def test_a_batch_that_cannot_be_read_is_counted_once_though_a_power_cut_comes(tmp_path: Path):
    written(tmp_path)
    disk = WornDisk(tmp_path)
    buffer = started(disk)
    hit, before = next(buffer.waiting()), (tmp_path / "acked").read_bytes()
    disk.bad = {(hit.segment, 0)}
    assert buffer.payload(hit) is None
    buffer.tick(70.0)
    buffer._disk.close_all()
    (tmp_path / "acked").write_bytes(before)  # what was acknowledged since was not synced
    again = started(WornDisk(tmp_path, *disk.bad), 3)
    assert (buffer.stats().dropped, again.stats().dropped) == (30, 30)


def test_what_else_such_a_block_holds_is_counted_at_the_next_start(tmp_path: Path):
    written(tmp_path)
    buffer = started(disk := WornDisk(tmp_path))
    hit = next(buffer.waiting())
    disk.bad = {(hit.segment, BLOCK)}
    assert buffer.payload(hit) is None
    buffer.tick(70.0)
    assert buffer.stats().dropped == 30
    buffer.close()
    again = started(WornDisk(tmp_path, *disk.bad), 3)
    assert (again.stats().dropped, len(values(again))) == (60, 63)


class ClosedDisk(Disk):
    """One whose files nobody may read while it is closed."""

    closed = False

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if self.closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return super().read(name, offset, length)


def test_a_batch_that_nobody_may_read_is_not_given_up(tmp_path: Path):
    disk = ClosedDisk(tmp_path)
    hit, *_ = written(tmp_path)
    buffer = started(disk)
    disk.closed = True
    with pytest.raises(PermissionError):
        buffer.payload(hit)
    for second in range(40, 80):
        buffer.tick(float(second))
        assert "Permission denied" in str(buffer.stats().faults)
    disk.closed = False
    assert (buffer.stats().dropped, len(values(buffer)), buffer.stats().faults) == (0, 123, [])


def test_the_file_of_a_batch_that_cannot_be_read_is_kept(tmp_path: Path):
    written(tmp_path)
    buffer = started(disk := WornDisk(tmp_path))
    hit, *others = buffer.waiting()
    sound = (tmp_path / hit.segment).read_bytes()
    disk.bad, disk.block = {(hit.segment, hit.offset)}, 1
    assert buffer.payload(hit) is None
    for held in others:
        buffer.acknowledge(held)
    buffer.tick(70.0)
    assert (tmp_path / f"{hit.segment}.damaged").read_bytes() == sound


def test_a_file_that_cannot_be_read_is_missed_by_nobody_where_somebody_removed_it(tmp_path: Path):
    written(tmp_path)
    buffer = started(WornDisk(tmp_path, ("00000001.seg", 0)))
    (tmp_path / "00000001.seg").unlink()
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)
    buffer.tick(70.0)
    assert "removed" not in str(buffer.stats().faults)


def test_a_batch_that_can_be_read_a_moment_later_is_delivered_by_the_same_connection(
    tmp_path: Path,
):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Worn(tmp_path, broker)
            await box.seal(8)
            box.spoil(3)
            box.disk.away = True
            async with delivering(box):
                await until(lambda: len(both(broker.received)) == 7)
                box.disk.failures = 3
                for _ in range(2):
                    await box.tick(1.0)
                    assert "Input/output error" in box.buffer.stats().faults[0]
                await box.tick(1.0)
                await box.empty()
                assert box.buffer.stats().dropped == 0
                assert (broker.connects, len(both(broker.received))) == (1, 8)

    run(scenario())
