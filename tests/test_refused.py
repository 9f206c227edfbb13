"""Refused batches are offered again when somebody asks, under their own names, and lost never."""

import errno
import os
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
from crash_disk import CrashDisk
from test_buffer import SETTINGS, batches, begun, opened, take, values
from test_unreadable import broken, started
from trials import mounted

from gateway.aside import on_disk
from gateway.buffer import Buffer
from gateway.disk import Disk
from hil.loopdisk import LoopDisk


def refused(directory: Path, count: int = 2) -> Buffer:
    """Return a buffer all of whose batches the broker has refused, its first two ticks over."""
    buffer = opened(directory)
    for value in range(count):
        take(buffer, float(value))
        buffer.tick(0.0)
        buffer.tick(60.0)
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    buffer.tick(61.0)
    return buffer


def ask(directory: Path) -> None:
    (directory / "refused/retry").touch()


def names(directory: Path, within: str = "refused") -> list[str]:
    return [file.name for file in (directory / within).iterdir()]


def test_they_wait_again_under_their_own_names_when_somebody_asks(tmp_path: Path):
    buffer = refused(tmp_path)
    assert values(buffer) == []
    ask(tmp_path)
    buffer.tick(62.0)
    assert [(b.epoch, b.sequence) for b in batches(buffer)] == [(1, 1), (1, 2)]
    assert values(buffer) == [0.0, 1.0]
    assert buffer.stats().refused == ["1-1-0x99.again", "2-1-0x99.again"]
    assert not (tmp_path / "refused/retry").exists()


def test_one_that_is_delivered_is_gone(tmp_path: Path):
    buffer = refused(tmp_path)
    ask(tmp_path)
    buffer.tick(62.0)
    buffer.acknowledge(next(buffer.waiting()))
    assert values(buffer) == [1.0]
    buffer.tick(63.0)
    assert buffer.stats().refused == ["2-1-0x99.again"]
    assert names(tmp_path) == ["2-1-0x99.again"]
    assert values(buffer) == [1.0]


class BusyDisk(Disk):
    """Something happens while a file of the refused is removed."""

    meanwhile: ClassVar[Callable[[], None] | None] = None

    def remove(self, name: str) -> None:
        if happens := BusyDisk.meanwhile:
            BusyDisk.meanwhile = None
            happens()
        super().remove(name)

    def below(self, name: str) -> "BusyDisk":
        return BusyDisk(self.directory / name)


def test_one_that_is_delivered_while_another_is_removed_is_gone_as_well(tmp_path: Path):
    refused(tmp_path).close()
    ask(tmp_path)
    buffer = begun(BusyDisk(tmp_path), 2)
    first, second = buffer.waiting()
    buffer.acknowledge(first)
    BusyDisk.meanwhile = lambda: buffer.acknowledge(second)
    for now in (1.0, 2.0):
        buffer.tick(now)
    assert (names(tmp_path), buffer.stats().dropped) == ([], 0)


def test_one_that_is_delivered_and_then_removed_by_somebody_is_not_lost(tmp_path: Path):
    buffer = refused(tmp_path, 1)
    ask(tmp_path)
    buffer.tick(62.0)
    buffer.acknowledge(next(buffer.waiting()))
    (tmp_path / "refused/1-1-0x99.again").unlink()
    buffer.tick(63.0)
    assert (buffer.stats().dropped, buffer.stats().faults) == (0, [])


def test_one_that_is_refused_again_lies_there_once_with_its_new_reason(tmp_path: Path):
    buffer = refused(tmp_path)
    ask(tmp_path)
    buffer.tick(62.0)
    buffer.set_aside(next(buffer.waiting()), 0x95)
    assert values(buffer) == [1.0]
    assert sorted(names(tmp_path)) == ["1-1-0x95.batch", "2-1-0x99.again"]
    assert sorted(names(tmp_path)) == sorted(buffer.stats().refused)


def test_one_that_is_delivered_while_another_takes_its_room_is_not_lost(tmp_path: Path):
    buffer = opened(tmp_path, settings=replace(SETTINGS, max_size=2 * 4 * 4096))
    for value in (1.0, 2.0, 3.0):
        take(buffer, value)
        buffer.close()
    first, second, third = list(buffer.waiting())
    buffer.set_aside(first, 0x99)
    buffer.set_aside(second, 0x99)
    ask(tmp_path)
    buffer.tick(1.0)
    _, offered, _ = buffer.waiting()
    buffer.acknowledge(offered)
    buffer.set_aside(third, 0x99)
    assert (buffer.stats().dropped, buffer.stats().refused) == (
        0,
        ["1-1-0x99.again", "3-1-0x99.batch"],
    )


def test_one_that_is_refused_again_takes_no_room_of_another(tmp_path: Path):
    refused(tmp_path, 2)
    buffer = opened(tmp_path, epoch=2, settings=replace(SETTINGS, max_size=4 * 2 * 4096))
    ask(tmp_path)
    buffer.tick(1.0)
    buffer.set_aside(next(buffer.waiting()), 0x95)
    buffer.tick(2.0)
    assert sorted(buffer.stats().refused) == ["1-1-0x95.batch", "2-1-0x99.again"]
    assert buffer.stats().dropped == 0


def test_of_a_large_buffer_16_mib_at_most_are_for_the_refused():
    buffer, random, now = begun(CrashDisk()), Random(1), 0.0
    while not buffer.stats().dropped:
        kept = buffer._refused.size
        take(buffer, *(b64encode(random.randbytes(180)).decode() for _ in range(250)))
        buffer.tick(now := now + 60)
        buffer.tick(now := now + 60)
        (held,) = buffer.waiting()
        fits = buffer.fits_aside(held)
        assert fits == (kept + on_disk(held.length) <= 16 << 20)
        buffer.set_aside(held, 0x99)
        assert fits == (not buffer.stats().dropped)
    assert (16 << 20) - on_disk(held.length) < buffer._refused.size <= 16 << 20


def test_a_kill_forgets_neither_the_asking_nor_how_far_it_has_come(tmp_path: Path):
    refused(tmp_path, 3)
    ask(tmp_path)
    (tmp_path / "refused/2-1-0x99.batch").rename(tmp_path / "refused/2-1-0x99.again")
    again = opened(tmp_path, epoch=2)
    assert [(b.epoch, b.sequence) for b in batches(again)] == [(1, 1), (1, 2), (1, 3)]
    once_more = opened(tmp_path, epoch=3)
    assert values(once_more) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_does_not_forget_the_asking(seed: int):
    disk = CrashDisk()
    buffer = begun(disk)
    for value in range(3):
        take(buffer, float(value))
        buffer.tick(0.0)
        buffer.tick(60.0)
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    disk.below("refused").write("retry", 0, b"")
    disk.below("refused").sync_directory()
    buffer.tick(61.0)
    disk.crash(Random(seed))
    again = begun(disk, 2)
    assert values(again) == [0.0, 1.0, 2.0]


def test_those_that_are_offered_are_so_in_their_order_after_a_start_too(tmp_path: Path):
    buffer = refused(tmp_path, 11)
    ask(tmp_path)
    buffer.tick(62.0)
    buffer.close()
    assert values(opened(tmp_path, epoch=2)) == [float(value) for value in range(11)]


class Killed(BaseException):
    """SIGKILL, at a step of the disk."""


class MortalDisk(Disk):
    """A disk whose user is killed before its step number `steps`."""

    steps = 1 << 30

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._step()
        super().write(name, offset, data)

    def rename(self, name: str, to: str) -> None:
        self._step()
        super().rename(name, to)

    def remove(self, name: str) -> None:
        self._step()
        super().remove(name)

    def sync_directory(self) -> None:
        self._step()
        super().sync_directory()

    def below(self, name: str) -> "MortalDisk":
        return MortalDisk(self.directory / name)

    def _step(self) -> None:
        MortalDisk.steps -= 1
        if MortalDisk.steps < 0:
            raise Killed


def refuse_ask_and_deliver(buffer: Buffer, directory: Path, arrived: set[tuple[int, int]]) -> None:
    """Have all refused, asked for, one refused again for another reason, the others delivered."""
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    ask(directory)
    buffer.tick(100.0)
    waiting = list(buffer.waiting())
    buffer.set_aside(waiting[0], 0x95)
    for held in waiting[1:]:
        assert buffer.payload(held)
        arrived.add((held.epoch, held.sequence))
        buffer.acknowledge(held)
    buffer.tick(101.0)


def test_killed_at_any_step_each_is_there_once_or_has_arrived(tmp_path: Path):
    killed_at, kept = 0, {(1, sequence) for sequence in range(1, 5)}
    while True:
        directory, arrived = tmp_path / str(killed_at), set[tuple[int, int]]()
        MortalDisk.steps = 1 << 30
        buffer = begun(MortalDisk(directory))
        for value in range(4):
            take(buffer, float(value))
            buffer.tick(value * 61.0)
            buffer.tick(value * 61.0 + 60.0)
        MortalDisk.steps = killed_at
        with suppress(Killed):
            refuse_ask_and_deliver(buffer, directory, arrived)
        survived = MortalDisk.steps >= 0
        MortalDisk.steps = 1 << 30
        again = opened(directory, epoch=2)
        ask(directory)
        again.tick(300.0)
        names = [(batch.epoch, batch.sequence) for batch in batches(again)]
        assert len(names) == len(set(names))
        assert set(names) | arrived == kept
        assert again.stats().dropped == 0
        lie = [name.split("-0x")[0] for name in again.stats().refused]
        assert len(lie) == len(set(lie))
        if survived:
            break
        killed_at += 1
    assert killed_at > 20


class FailingDisk(Disk):
    """A disk on which nothing can be renamed, removed, read, listed or synced while that holds."""

    cannot: ClassVar[set[str]] = set()
    number: ClassVar[int] = errno.EACCES

    def names(self) -> list[str]:
        self._fail(f"list {self.directory.name}")
        return super().names()

    def rename(self, name: str, to: str) -> None:
        self._fail("rename", str(self.directory / name))
        super().rename(name, to)

    def remove(self, name: str) -> None:
        self._fail("remove")
        super().remove(name)

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        self._fail(f"read {name}")
        return super().read(name, offset, length)

    def sync_directory(self) -> None:
        self._fail(f"sync {self.directory.name}")
        super().sync_directory()

    def below(self, name: str) -> "FailingDisk":
        return FailingDisk(self.directory / name)

    def _fail(self, what: str, name: str | None = None) -> None:
        if what in self.cannot:
            raise OSError(self.number, os.strerror(self.number), name)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    yield FailingDisk(tmp_path)
    FailingDisk.cannot.clear()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with ExitStack() as stack:
        yield mounted(stack, LoopDisk(16 << 20, tmp_path, "state"))


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The file of a batch that was refused, and a kill came before `acked` was written."""
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    return tmp_path / "refused/1-1-0x99.batch"


def test_a_kill_between_refusal_and_its_note_leaves_it_there_once(tmp_path: Path, killed: Path):
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().refused) == ([], [killed.name])
    ask(tmp_path)
    again.tick(1.0)
    assert values(again) == [1.0]
    again.set_aside(next(again.waiting()), 0x95)
    assert again.stats().refused == ["1-1-0x95.batch"]


def test_one_that_such_a_kill_left_torn_is_taken_from_the_spool(tmp_path: Path, killed: Path):
    killed.write_bytes(killed.read_bytes()[:20])
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().faults) == ([1.0], [])
    again.set_aside(next(again.waiting()), 0x95)
    again.tick(1.0)
    assert again.stats().refused == ["1-1-0x95.batch"]
    third = opened(tmp_path, epoch=3)
    assert (values(third), third.stats().refused) == ([], ["1-1-0x95.batch"])


@pytest.mark.parametrize("seed", range(10))
def test_one_that_such_a_kill_left_unsynced_is_on_the_device_once_the_spool_lets_go(seed: int):
    disk = CrashDisk()
    buffer = begun(disk)
    take(buffer, 1.0)
    buffer.close()
    (held,) = buffer.waiting()
    disk.below("refused").write("1-1-0x99.batch", 0, buffer.payload(held) or b"")
    assert values(begun(disk, 2)) == []
    disk.crash(Random(seed))
    disk.below("refused").write("retry", 0, b"")
    again = begun(disk, 3)
    assert (values(again), again.stats().dropped) == ([1.0], 0)


def test_one_that_such_a_kill_left_is_sent_from_the_spool_where_it_cannot_be_listed(
    tmp_path: Path, killed: Path, failing_disk: FailingDisk
):
    (tmp_path / "refused.list").unlink()
    FailingDisk.cannot.add("sync refused")
    again = begun(failing_disk, 2)
    assert (values(again), again.stats().refused) == ([1.0], [killed.name])


def test_one_that_such_a_kill_left_is_sent_from_the_spool_where_it_cannot_be_read(
    killed: Path, failing_disk: FailingDisk
):
    FailingDisk.cannot.add(f"read {killed.name}")
    again = begun(failing_disk, 2)
    assert (again.fault, values(again), again.stats().refused) == (None, [1.0], [killed.name])


def test_a_delivery_after_such_a_kill_removes_it(tmp_path: Path, killed: Path):
    killed.write_bytes(b"")
    again = opened(tmp_path, epoch=2)
    again.acknowledge(next(again.waiting()))
    again.tick(1.0)
    assert again.stats().refused == []


def test_after_such_a_kill_it_is_not_counted_as_dropped_where_the_spool_is_full(
    tmp_path: Path, killed: Path
):
    again = opened(tmp_path, epoch=2, settings=replace(SETTINGS, max_size=1))
    assert (again.stats().dropped, again.stats().refused) == (0, [killed.name])


@pytest.mark.parametrize("fails", ["sync refused", "list refused"])
def test_one_that_such_a_kill_left_is_counted_once_where_it_cannot_be_listed(
    tmp_path: Path, killed: Path, failing_disk: FailingDisk, fails: str
):
    (tmp_path / "refused.list").unlink()
    FailingDisk.cannot.add(fails)
    buffer = begun(failing_disk, 2, replace(SETTINGS, max_size=4 * 4096))
    FailingDisk.cannot.clear()
    buffer.tick(61.0)
    take(buffer, *(1 / number for number in range(2, 5000)))
    buffer.close()
    assert 1.0 not in values(buffer)
    dropped = buffer.stats().dropped
    killed.unlink()
    buffer.tick(62.0)
    assert buffer.stats().dropped == dropped > 0


def test_one_that_takes_the_place_of_a_longer_file_ends_where_it_ends(tmp_path: Path, killed: Path):
    batch = killed.read_bytes()
    killed.write_bytes(batch + b"rest")
    again = opened(tmp_path, epoch=2)
    again.set_aside(next(again.waiting()), 0x95)
    assert (tmp_path / "refused/1-1-0x95.batch").read_bytes() == batch


def test_the_beginning_that_the_journal_has_of_one_takes_no_place_of_it(tmp_path: Path):
    """A power cut forgot that it was refused, and took its segment along."""
    buffer = opened(tmp_path)
    take(buffer, 1.0, durable=True)
    buffer.tick(0.0)
    take(buffer, 2.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "00000001.seg").unlink()
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([], 0)
    ask(tmp_path)
    again.tick(1.0)
    assert values(again) == [1.0, 2.0]


def test_what_the_journal_has_is_sealed_where_another_batch_lies_under_that_name(tmp_path: Path):
    take(other := opened(tmp_path / "other", epoch=9), 5.0)
    other.close()
    buffer = opened(tmp_path)
    take(buffer, 1.0, durable=True)
    buffer.tick(0.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "00000001.seg").unlink()
    file = tmp_path / "refused/1-1-0x99.batch"
    file.write_bytes(other.payload(next(other.waiting())) or b"")
    assert values(opened(tmp_path, epoch=2)) == [1.0]


def test_one_that_is_refused_again_never_makes_room_for_itself(tmp_path: Path):
    refused(tmp_path, 1)
    ask(tmp_path)
    small = opened(tmp_path, epoch=2, settings=replace(SETTINGS, max_size=1))
    small.set_aside(next(small.waiting()), 0x95)
    assert (small.stats().refused, small.stats().dropped) == (["1-1-0x95.batch"], 0)


def test_no_new_batch_bears_the_sequence_of_a_refused_one(tmp_path: Path):
    refused(tmp_path)
    for file in tmp_path.iterdir():
        if file.is_file():
            file.unlink()
    again = opened(tmp_path, epoch=2)
    take(again, 5.0)
    again.close()
    assert [(b.epoch, b.sequence) for b in batches(again)] == [(2, 3)]


@pytest.mark.parametrize("whose", ["foreign", "another's"])
def test_bytes_that_are_not_that_batch_are_not_offered_but_kept(tmp_path: Path, whose: str):
    buffer = refused(tmp_path)
    other = (tmp_path / "refused/2-1-0x99.batch").read_bytes()
    data = b"foreign" if whose == "foreign" else other
    (tmp_path / "refused/1-1-0x99.batch").write_bytes(data)
    ask(tmp_path)
    buffer.tick(62.0)
    first = next(buffer.waiting())
    assert buffer.payload(first) is None
    assert values(buffer) == [1.0]
    assert (tmp_path / "refused/1-1-0x99.again.damaged").read_bytes() == data
    assert "refused/1-1-0x99.again: damaged, 1 readings lost" in buffer.stats().faults[0]
    buffer.tick(63.0)
    assert buffer.stats().dropped_by == {"damaged on disk": 1}


@pytest.mark.parametrize("name", ["1-1-0x99.batch", "7-7-0x99.batch"])
def test_a_file_too_large_to_be_a_batch_is_not_read_and_takes_no_room(tmp_path: Path, name: str):
    refused(tmp_path, 1)
    with (tmp_path / "refused" / name).open("ab") as file:
        file.truncate(1 << 40)  # more than memory holds
    buffer = opened(tmp_path, epoch=2)
    take(buffer, 5.0)
    buffer.close()
    assert values(buffer) == [5.0]
    assert buffer.stats().refused == ["1-1-0x99.batch"] * (name[0] == "7")
    assert buffer.stats().faults[0].startswith(f"refused/{name}: damaged")
    assert buffer.stats().dropped == int(name[0] == "1")


def test_one_that_has_grown_too_large_since_is_not_read_when_it_is_offered(tmp_path: Path):
    buffer = refused(tmp_path)
    ask(tmp_path)
    buffer.tick(62.0)
    with (tmp_path / "refused/1-1-0x99.again").open("ab") as file:
        file.truncate(1 << 40)
    assert buffer.payload(next(buffer.waiting())) is None
    assert values(buffer) == [1.0]


def test_a_file_too_large_to_be_a_batch_takes_no_place_of_what_waits(tmp_path: Path):
    take(buffer := refused(tmp_path, 1), 4.0)
    buffer.close()
    with (tmp_path / "refused/1-1-0x99.batch").open("ab") as file:
        file.truncate(1 << 40)
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped_by) == ([4.0], {"damaged on disk": 1})


def test_only_those_of_the_sequences_that_are_asked_for_wait(tmp_path: Path):
    buffer = refused(tmp_path, 3)
    ask(tmp_path)
    buffer.tick(62.0)
    assert [held.sequence for held in buffer.waiting(1, 3)] == [2]


def test_what_stands_where_the_list_is_written_is_set_aside(tmp_path: Path):
    (tmp_path / "refused.new").mkdir()
    buffer = refused(tmp_path)
    assert (values(buffer), buffer.stats().refused) == ([], ["1-1-0x99.batch", "2-1-0x99.batch"])
    assert "refused.new is not one of this bygate's" in buffer.stats().faults[0]


def test_a_file_where_their_directory_belongs_is_set_aside(tmp_path: Path):
    (tmp_path / "refused").write_text("mine")
    assert refused(tmp_path, 1).stats().refused == ["1-1-0x99.batch"]
    assert (tmp_path / "refused-0.foreign").read_text() == "mine"


def test_of_many_that_are_damaged_the_status_tells_the_newest_twenty(tmp_path: Path):
    buffer = refused(tmp_path, 21)
    for file in (tmp_path / "refused").iterdir():
        file.write_bytes(b"foreign")
    ask(tmp_path)
    buffer.tick(62.0)
    assert not any(map(buffer.payload, list(buffer.waiting())))
    told = [fault.partition(":")[0] for fault in buffer.stats().faults]
    assert told == [f"refused/{sequence}-1-0x99.again" for sequence in range(2, 22)]


def test_one_is_set_aside_though_somebody_removed_the_directory(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    (tmp_path / "refused").rmdir()
    assert buffer.set_aside(next(buffer.waiting()), 0x99)
    assert names(tmp_path) == ["1-1-0x99.batch"]


def test_one_that_nobody_here_can_decode_is_set_aside_all_the_same(tmp_path: Path):
    buffer = opened(tmp_path)
    buffer._spool.append(1, 1, 1, 0, b"of a later version")
    assert buffer.set_aside(next(buffer.waiting()), 0x99)
    assert buffer.stats().refused == ["1-1-0x99.batch"]


def test_one_that_was_evicted_while_it_was_under_way_is_not_set_aside(tmp_path: Path):
    for epoch in (1, 2):
        take(buffer := opened(tmp_path, epoch), float(epoch))
        buffer.close()
    first = next(buffer.waiting())
    buffer._spool.evict("buffer full")
    assert not buffer.set_aside(first, 0x99)
    assert (values(buffer), buffer.stats().refused) == ([2.0], [])


def test_one_that_somebody_removed_is_told_of_and_does_not_hold_up_the_others(tmp_path: Path):
    buffer = refused(tmp_path, 3)
    for sequence in (1, 2):
        (tmp_path / f"refused/{sequence}-1-0x99.batch").unlink()
    ask(tmp_path)
    buffer.tick(62.0)
    assert values(buffer) == [2.0]
    assert buffer.stats().refused == ["3-1-0x99.again"]
    (told,) = buffer.stats().faults
    assert told.startswith("refused/1-1-0x99.batch, 2-1-0x99.batch: gone: did somebody remove it?")


def check_gone(buffer: Buffer, lost: int, *told: str) -> None:
    assert buffer.stats().dropped_by == {"refused and removed": lost}
    assert [fault.split(": gone")[0] for fault in buffer.stats().faults] == [*told]


def test_one_that_somebody_removes_while_it_runs_is_counted_at_once(tmp_path: Path):
    buffer = refused(tmp_path)
    (tmp_path / "refused/2-1-0x99.batch").unlink()
    for second in (62.0, 63.0):
        buffer.tick(second)
        assert buffer.stats().refused == ["1-1-0x99.batch"]
        check_gone(buffer, 1, "refused/2-1-0x99.batch")


@pytest.mark.parametrize("what", ["a file", "the directory"])
def test_what_somebody_removes_between_two_runs_is_counted_once(tmp_path: Path, what: str):
    refused(tmp_path, 3).close()
    if what == "a file":
        (tmp_path / "refused/2-1-0x99.batch").unlink()
    else:
        shutil.rmtree(tmp_path / "refused")
    again = opened(tmp_path, epoch=2)
    gone = {"a file": ["refused/2-1"], "the directory": ["refused/1-1, 2-1, 3-1"]}
    check_gone(again, 1 if what == "a file" else 3, *gone[what])
    dropped = again.stats().dropped
    third = opened(tmp_path, epoch=3)
    assert (third.stats().dropped, third.stats().faults) == (dropped, [])


def test_a_wrong_bit_in_a_value_is_not_delivered(tmp_path: Path):
    buffer = refused(tmp_path, 1)
    file = tmp_path / "refused/1-1-0x99.batch"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")  # what was 0 before
    ask(tmp_path)
    buffer.tick(62.0)
    assert buffer.payload(next(buffer.waiting())) is None


DAMAGES = {
    "a flipped bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: Random(1).randbytes(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"mine",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_is_damaged_is_counted_and_told_at_the_start(tmp_path: Path, damage: str):
    refused(tmp_path).close()
    file = tmp_path / "refused/1-1-0x99.batch"
    file.write_bytes(data := DAMAGES[damage](file.read_bytes()))
    again = opened(tmp_path, epoch=2)
    assert again.stats().dropped_by == {"damaged on disk": 1}
    assert again.stats().faults[0].startswith("refused/1-1-0x99.batch: damaged, 1 readings lost")
    assert (tmp_path / "refused/1-1-0x99.batch.damaged").read_bytes() == data
    assert again.stats().refused == ["2-1-0x99.batch"]
    third = opened(tmp_path, epoch=3)
    assert (third.stats().dropped, third.stats().faults) == (1, [])


@pytest.mark.parametrize("whose", ["foreign", "another's"])
def test_one_that_is_damaged_and_in_no_list_is_told_at_the_start(tmp_path: Path, whose: str):
    refused(tmp_path).close()
    other = (tmp_path / "refused/2-1-0x99.batch").read_bytes()
    data = b"foreign" if whose == "foreign" else other
    (tmp_path / "refused/7-7-0x99.batch").write_bytes(data)
    again = opened(tmp_path, epoch=2)
    assert again.stats().faults[0].startswith("refused/7-7-0x99.batch: damaged, unknown readings")
    assert (tmp_path / "refused/7-7-0x99.batch.damaged").read_bytes() == data


def test_one_that_is_damaged_and_missing_in_the_spool_is_counted_once(tmp_path: Path):
    """A power cut forgot that it was refused, and took its segment along."""
    take(buffer := opened(tmp_path), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "00000001.seg").unlink()
    (tmp_path / "refused/1-1-0x99.batch").write_bytes(b"")
    assert opened(tmp_path, epoch=2).stats().dropped_by == {"damaged on disk": 1}


def test_one_whose_refusal_was_forgotten_is_not_lost_with_its_file(tmp_path: Path, killed: Path):
    killed.unlink()
    again = opened(tmp_path, epoch=2)
    assert (values(again), again.stats().dropped) == ([1.0], 0)
    assert [fault.split(",")[0] for fault in again.stats().faults]


@pytest.mark.parametrize("changes", range(10))
def test_a_power_cut_counts_what_somebody_removed_once(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        buffer = begun(disk)
        take(buffer, 1.0, 2.0)
        buffer.close()
        buffer.set_aside(next(buffer.waiting()), 0x99)
        buffer.tick(61.0)
        disk.below("refused").remove("1-1-0x99.batch")
        disk.below("refused").sync_directory()
        with disk.power_cut(changes, Random(seed)):
            buffer.tick(62.0)
        again = begun(disk, 2)
        assert (values(again), again.stats().dropped) in (([], 2), ([1.0, 2.0], 0))


@pytest.mark.parametrize("changes", range(20))
def test_a_power_cut_makes_no_loss_of_what_is_refused_or_delivered(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        buffer = begun(disk)
        take(buffer, 1.0)
        buffer.close()
        with disk.power_cut(changes, Random(seed)):
            buffer.set_aside(next(buffer.waiting()), 0x99)
            disk.below("refused").write("retry", 0, b"")
            buffer.tick(61.0)
            buffer.acknowledge(next(buffer.waiting()))
            buffer.tick(62.0)
        again = begun(disk, 2)
        assert (again.stats().dropped, again.stats().faults) == (0, [])


@pytest.mark.parametrize("damaged", [b"\xff" * 40, b"\0" * 4, b""], ids=["wrong", "cut", "empty"])
def test_a_list_that_is_damaged_is_told_of_and_made_anew(tmp_path: Path, damaged: bytes):
    refused(tmp_path).close()
    (tmp_path / "refused.list").write_bytes(damaged)
    assert opened(tmp_path, epoch=2).stats().faults == [
        "refused.list: damaged, kept as .damaged: whether somebody removed a batch nobody knows"
    ]
    assert (tmp_path / "refused.list.damaged").read_bytes() == damaged
    (tmp_path / "refused/1-1-0x99.batch").unlink()
    check_gone(opened(tmp_path, epoch=3), 1, "refused/1-1")


@pytest.mark.parametrize("count", [0, 1])
def test_a_list_that_a_kill_left_half_written_is_not_in_the_way_of_the_next(
    tmp_path: Path, count: int
):
    (tmp_path / "refused.new").write_bytes(bytes(4096))
    refused(tmp_path, count).close()
    assert opened(tmp_path, epoch=2).stats().faults == []


@pytest.mark.parametrize("name", ["refused.list", "refused"])
def test_a_damaged_inode_of_theirs_holds_up_nothing_that_waits(disk: LoopDisk, name: str):
    take(buffer := refused(disk.path, 1), 1.0)
    buffer.close()
    take(buffer, 2.0)
    buffer.tick(120.0)
    buffer._disk.close_all()
    disk.damage(name)
    again = started(Disk(disk.path))
    take(again, 3.0)
    again.close()
    assert values(again) == [1.0, 2.0, 3.0]
    assert again.fault is None
    (told,) = again.stats().faults
    assert told.startswith(f"{disk.path / name}: Bad message: its file system is damaged")


def test_a_list_that_cannot_be_read_for_now_is_not_begun_anew(
    tmp_path: Path, failing_disk: FailingDisk
):
    refused(tmp_path, 1).close()
    listed = (tmp_path / "refused.list").read_bytes()
    FailingDisk.cannot.add("read refused.list")
    begun(failing_disk, 2).close()
    assert (tmp_path / "refused.list").read_bytes() == listed


def test_one_that_cannot_be_read_at_the_start_and_is_in_no_list_is_counted_when_it_goes(
    tmp_path: Path, failing_disk: FailingDisk
):
    refused(tmp_path, 2).close()
    (tmp_path / "refused.list").unlink()
    FailingDisk.cannot.add("read 1-1-0x99.batch")
    buffer = begun(failing_disk, 2)
    FailingDisk.cannot.clear()
    take(buffer, 2.0)
    buffer.close()
    (held,) = buffer.waiting()
    buffer._settings = replace(SETTINGS, max_size=4 * 2 * on_disk(held.length))
    buffer.set_aside(held, 0x99)
    assert sorted(names(tmp_path)) == ["2-1-0x99.batch", "3-2-0x99.batch"]
    assert buffer.stats().dropped_by == {"refused by the broker": 1}


class UnsyncedOnce(CrashDisk):
    """One that fails to sync its directory once."""

    fails = False

    def sync_directory(self) -> None:
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, "Input/output error")
        super().sync_directory()


@pytest.mark.parametrize("seed", range(10))
def test_one_whose_list_could_not_be_synced_at_first_is_missed_after_a_power_cut(seed: int):
    take(buffer := begun(disk := UnsyncedOnce()), 1.0)
    buffer.close()
    (held,) = buffer.waiting()
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        buffer.set_aside(held, 0x99)
    buffer.set_aside(held, 0x99)
    buffer.tick(61.0)
    disk.crash(Random(seed))
    disk.below("refused").remove("1-1-0x99.batch")
    again = begun(disk, 2)
    assert len(values(again)) + again.stats().dropped == 1


def put(buffer: Buffer, other: Path) -> None:
    """Put another disk in place, whose list of the refused cannot be read for now."""
    FailingDisk.cannot.add("read refused.list")
    state = buffer._disk.directory
    state.rename(other.with_suffix(".before"))
    other.rename(state)
    buffer.tick(70.0)
    FailingDisk.cannot.clear()


@pytest.mark.usefixtures("failing_disk")
@pytest.mark.parametrize("others", [1, 2])
def test_one_that_goes_with_its_disk_is_counted_though_the_next_ones_list_cannot_be_read_yet(
    tmp_path: Path, others: int
):
    refused(tmp_path / "state", 1).close()
    buffer = begun(FailingDisk(tmp_path / "state"), 2)
    for number in range(others):
        refused(other := tmp_path / f"other{number}", 0).close()
        put(buffer, other)
    for now in (71.0, 72.0):
        buffer.tick(now)
    assert buffer.stats().dropped_by == {"state directory removed": 1}


def test_one_that_is_removed_before_the_list_can_be_read_is_counted(
    tmp_path: Path, failing_disk: FailingDisk
):
    FailingDisk.cannot.add("read refused.list")
    take(buffer := begun(failing_disk), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "refused/1-1-0x99.batch").unlink()
    FailingDisk.cannot.clear()
    buffer.tick(61.0)
    assert buffer.stats().dropped_by == {"refused and removed": 1}


@pytest.mark.usefixtures("failing_disk")
def test_one_of_the_disk_before_takes_no_place_of_what_is_missing_on_this_one(tmp_path: Path):
    take(other := opened(tmp_path / "other", 9), 9.0, 9.0)
    other.close()
    (tmp_path / "other/00000001.seg").write_bytes(b"wiped")
    (tmp_path / "other/journal").unlink()
    refused(tmp_path / "state", 1).close()
    buffer = begun(FailingDisk(tmp_path / "state"), 2)
    put(buffer, tmp_path / "other")
    assert buffer.stats().dropped_by["damaged on disk"] == 2


@pytest.mark.parametrize("ever", ["never any", "one that was delivered", "one that goes, too"])
def test_a_list_that_is_gone_is_told_once(tmp_path: Path, ever: str):
    buffer = refused(tmp_path, int(ever != "never any"))
    if ever == "one that was delivered":
        ask(tmp_path)
        buffer.tick(62.0)
        buffer.acknowledge(next(buffer.waiting()))
        buffer.tick(63.0)
    buffer.close()
    shutil.rmtree(tmp_path / "refused")
    (tmp_path / "refused.list").unlink()
    (told,) = opened(tmp_path, epoch=2).stats().faults
    assert "refused.list is gone: whether somebody removed a refused batch nobody knows" in told
    assert opened(tmp_path, epoch=3).stats().faults == []


@pytest.mark.parametrize("seed", range(5))
def test_one_that_there_is_no_room_to_list_waits_on_and_is_lost_once(seed: int):
    disk = CrashDisk()
    for epoch in (1, 2):
        take(buffer := begun(disk, epoch), float(epoch))
        buffer.close()
    disk.limit = disk.used
    with pytest.raises(OSError, match="No space left"):
        buffer.set_aside(next(buffer.waiting()), 0x99)
    assert (values(buffer), buffer.stats().refused) == ([1.0, 2.0], [])
    disk.crash(Random(seed))
    again = begun(disk, 3)
    assert (values(again), again.stats().refused, again.stats().dropped) == ([2.0], [], 1)


def test_one_that_lay_there_stays_where_there_is_no_room_to_list_it():
    take(buffer := begun(disk := CrashDisk()), 1.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.close()
    disk.below("refused").rename("1-1-0x99.batch", "1-1-0x99.again")
    disk.remove("refused.list")
    disk.limit = disk.used
    again = begun(disk, 2)
    with pytest.raises(OSError, match="No space left"):
        again.set_aside(next(again.waiting()), 0x97)
    assert again.stats().refused == ["1-1-0x97.batch"]
    assert disk.below("refused").names() == ["1-1-0x97.batch"]


def test_one_that_there_was_no_room_to_list_is_counted_when_it_goes():
    take(buffer := begun(disk := CrashDisk()), 1.0, 2.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.close()
    disk.remove("refused.list")
    disk.limit = disk.used
    again = begun(disk, 2, replace(SETTINGS, max_size=4 * 4096))
    disk.limit = None
    take(again, 3.0)
    again.close()
    again.set_aside(next(again.waiting()), 0x99)
    assert again.stats().refused == ["2-2-0x99.batch"]
    assert again.stats().dropped_by == {"refused by the broker": 2}


def begun_without_a_list(disk: CrashDisk, *, offered: bool = False) -> Buffer:
    """Return a buffer with a refused batch of two readings that there is no room to list."""
    take(buffer := begun(disk), 1.0, 2.0)
    buffer.close()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.close()
    disk.remove("refused.list")
    if offered:
        disk.below("refused").rename("1-1-0x99.batch", "1-1-0x99.again")
    disk.limit = disk.used
    again = begun(disk, 2)
    assert "No space left" in str(again.stats().faults)
    disk.limit = None
    return again


def test_one_that_there_was_no_room_to_list_is_counted_when_somebody_removes_it():
    again = begun_without_a_list(disk := CrashDisk())
    disk.below("refused").remove("1-1-0x99.batch")
    again.tick(61.0)
    assert again.stats().dropped_by == {"refused and removed": 2}
    assert begun(disk, 3).stats().dropped == 2


def test_one_that_there_was_no_room_to_list_is_listed_once_there_is():
    begun_without_a_list(disk := CrashDisk()).tick(61.0)
    disk.below("refused").remove("1-1-0x99.batch")
    check_gone(begun(disk, 3), 2, "refused/1-1")


def test_once_all_are_listed_nothing_is_synced_for_the_list_any_more(
    tmp_path: Path, failing_disk: FailingDisk
):
    refused(tmp_path).close()
    (tmp_path / "refused.list").unlink()
    buffer = begun(failing_disk, 2)
    FailingDisk.cannot.add("sync refused")
    buffer.tick(61.0)
    assert "Permission denied" not in str(buffer.stats().faults)


def test_one_that_there_was_no_room_to_list_and_is_delivered_is_not_missed():
    again = begun_without_a_list(disk := CrashDisk(), offered=True)
    again.acknowledge(next(again.waiting()))
    again.tick(61.0)
    assert begun(disk, 3).stats().dropped == 0


def test_one_that_cannot_be_removed_is_still_told_and_counted_once(
    tmp_path: Path, failing_disk: FailingDisk
):
    refused(tmp_path, 1).close()
    buffer = begun(failing_disk, 2, replace(SETTINGS, max_size=4 * 4096))
    take(buffer, 5.0)
    buffer.close()
    FailingDisk.cannot.add("remove")
    with pytest.raises(PermissionError):
        buffer.set_aside(next(buffer.waiting()), 0x95)
    assert buffer.stats().refused == ["1-1-0x99.batch"]
    FailingDisk.cannot.clear()
    buffer.set_aside(next(buffer.waiting()), 0x95)
    assert (buffer.stats().refused, buffer.stats().dropped) == (["2-2-0x95.batch"], 1)


def test_a_list_for_which_there_was_no_room_at_first_is_not_missed():
    disk = CrashDisk()
    disk.limit = 0
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=1)
    buffer.tick(0.0)
    assert "No space left" in str(buffer.fault)
    disk.limit = None
    buffer.tick(1.0)
    again = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    again.tick(0.0)
    assert again.stats().faults == []


@pytest.mark.parametrize("changes", range(20))
def test_a_power_cut_in_the_first_start_makes_no_list_that_is_gone(changes: int):
    for seed in range(10):
        disk = CrashDisk()
        with disk.power_cut(changes, Random(seed)):
            Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=1).tick(0.0)
        again = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
        again.tick(0.0)
        assert not any("refused.list" in told for told in again.stats().faults)


def test_one_that_is_removed_while_it_is_offered_is_told_of_once(tmp_path: Path):
    buffer = refused(tmp_path)
    ask(tmp_path)
    buffer.tick(62.0)
    (tmp_path / "refused/1-1-0x99.again").unlink()
    assert buffer.payload(next(buffer.waiting())) is None
    assert values(buffer) == [1.0]
    assert buffer.stats().refused == ["2-1-0x99.again"]
    assert [told[:28] for told in buffer.stats().faults] == ["refused/1-1-0x99.again: gone"]


@pytest.fixture
def failing(tmp_path: Path, failing_disk: FailingDisk) -> Buffer:
    """A buffer with two refused batches that are offered again, on a disk that may fail."""
    refused(tmp_path)
    ask(tmp_path)
    return begun(failing_disk, 2)


def test_one_that_cannot_be_renamed_is_still_under_the_name_that_it_has(
    tmp_path: Path, failing: Buffer
):
    FailingDisk.cannot.add("rename")
    with pytest.raises(PermissionError):
        failing.set_aside(next(failing.waiting()), 0x95)
    assert failing.stats().refused == ["1-1-0x99.again", "2-1-0x99.again"]
    assert values(failing) == [0.0, 1.0]
    FailingDisk.cannot.clear()
    failing.set_aside(next(failing.waiting()), 0x95)
    ask(tmp_path)
    failing.tick(1.0)
    assert failing.stats().faults == []
    assert sorted(names(tmp_path)) == ["1-1-0x95.again", "2-1-0x99.again"]


def test_that_batches_cannot_be_set_aside_is_a_fault_told_once_until_each_of_them_is(
    tmp_path: Path, failing: Buffer, caplog: pytest.LogCaptureFixture
):
    caplog.clear()
    FailingDisk.cannot.add("rename")
    both = list(failing.waiting())
    for now in (1.0, 31.0):
        for held in both:
            with pytest.raises(PermissionError):
                failing.set_aside(held, 0x95)
            assert failing.payload(held)  # that it can be read tells nothing of that
            failing.tick(now)
            (fault,) = failing.stats().faults
    FailingDisk.cannot.clear()
    failing.set_aside(both[0], 0x95)
    failing.tick(61.0)
    assert failing.stats().faults == [fault]
    failing.set_aside(both[1], 0x95)
    assert (failing.stats().faults, failing.stats().disk_errors) == ([], 1)
    assert caplog.messages == [f"buffer: {fault}", f"buffer: no longer: {fault}"]


@pytest.mark.parametrize("cannot", ["list refused", "remove", "rename"])
def test_it_is_one_until_a_batch_could_be_set_aside_though_those_that_were_refused_wait_no_more(
    tmp_path: Path, failing: Buffer, caplog: pytest.LogCaptureFixture, cannot: str
):
    both = list(failing.waiting())
    FailingDisk.cannot.add("rename")
    for held in both:
        with pytest.raises(PermissionError):
            failing.set_aside(held, 0x95)
    fault = failing.stats().faults[0]
    FailingDisk.cannot.clear()
    for held, now in zip(both, (1.0, 2.0), strict=True):
        failing.acknowledge(held)
        failing.tick(now)
        FailingDisk.cannot.add(cannot)
        failing.tick(now)
        assert failing.stats().faults[-1] == fault
        assert "readings wait in RAM" not in str(failing.stats().faults)
        FailingDisk.cannot.clear()
    failing.tick(3.0)
    assert failing.stats().faults == []
    told = [message for message in caplog.messages if fault in message]
    assert told == [f"buffer: {fault}", f"buffer: no longer: {fault}"]


@pytest.mark.usefixtures("failing_disk")
def test_that_one_cannot_be_read_is_a_fault_as_long_as_it_waits_whatever_else_fails(tmp_path: Path):
    take(buffer := begun(FailingDisk(tmp_path), 1), 1.0)
    buffer.tick(60.0)
    FailingDisk.cannot.add("read 00000001.seg")
    held = next(buffer.waiting())
    with pytest.raises(PermissionError):
        buffer.payload(held)
    assert buffer.stats().faults
    buffer.acknowledge(held)
    FailingDisk.cannot.add("rename")
    buffer.tick(61.0)
    assert buffer.stats().faults == []


@pytest.mark.usefixtures("failing_disk")
def test_to_try_whether_one_could_be_set_aside_costs_no_list_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refused(tmp_path / "other").close()
    (tmp_path / "other/refused/2-1-0x99.batch").unlink()
    take(buffer := begun(FailingDisk(state := tmp_path / "state"), 2), 3.0)
    buffer.tick(60.0)
    FailingDisk.cannot = {"rename"}
    with pytest.raises(PermissionError):
        buffer.set_aside(held := next(buffer.waiting()), 0x95)
    buffer.acknowledge(held)
    state.rename(tmp_path / "away")
    (tmp_path / "other").rename(state)
    monkeypatch.setattr(FailingDisk, "number", errno.EIO)
    FailingDisk.cannot = {"read refused.list"}
    buffer.tick(61.0)
    FailingDisk.cannot = set()
    buffer.tick(62.0)
    assert buffer.stats().dropped_by == {"refused and removed": 1}


def test_one_that_somebody_removed_is_told_of_once_though_the_list_cannot_be_written_at_first(
    tmp_path: Path, failing: Buffer
):
    (tmp_path / "refused/2-1-0x99.again").unlink()
    FailingDisk.cannot.add("rename")
    failing.tick(1.0)
    assert "Permission denied" in str(failing.fault)
    FailingDisk.cannot.clear()
    failing.tick(2.0)
    failing.close()
    again = opened(tmp_path, epoch=3)
    assert (again.stats().dropped, again.stats().faults) == (1, [])


def test_one_that_was_delivered_is_removed_once_that_can_be(tmp_path: Path, failing: Buffer):
    FailingDisk.cannot.add("remove")
    failing.acknowledge(next(failing.waiting()))
    failing.tick(1.0)
    assert "Permission denied" in failing.stats().faults[0]
    FailingDisk.cannot.clear()
    failing.tick(2.0)
    assert names(tmp_path) == ["2-1-0x99.again"]
    assert (failing.stats().faults, failing.stats().dropped) == ([], 0)


def test_one_that_cannot_be_read_does_not_hold_up_the_others(tmp_path: Path, failing: Buffer):
    FailingDisk.cannot.add("read 1-1-0x99.again")
    assert failing.payload(next(failing.waiting())) is None
    assert values(failing) == [1.0]
    (told,) = failing.stats().faults
    assert f"{tmp_path}/refused/1-1-0x99.again: Permission denied: " in told
    assert values(opened(tmp_path, epoch=3)) == [0.0, 1.0]


def test_one_that_is_broken_hides_no_other_and_is_offered_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refused(tmp_path, 3).close()
    with monkeypatch.context() as patch:
        broken(patch, "2-1-0x99.batch")
        with monkeypatch.context() as more:
            broken(more, "1-1-0x99.batch")
            again = started(Disk(tmp_path))
            assert again.stats().refused == ["3-1-0x99.batch"]
        ask(tmp_path)
        again.tick(70.0)
        assert values(again) == [0.0, 2.0]
    ask(tmp_path)
    again.tick(71.0)
    assert (values(again), again.stats().dropped) == ([0.0, 1.0, 2.0], 0)
    (told,) = again.stats().faults
    where = f"{tmp_path}/refused/1-1-0x99.batch: Bad message: its file system is damaged: "
    assert told.startswith(f"refused/1-1-0x99.batch, 2-1-0x99.batch: {where}")


@pytest.mark.parametrize("listed", [True, False])
def test_one_that_cannot_be_read_holds_up_no_start_on_a_disk_that_is_damaged(
    tmp_path: Path, failing: Buffer, listed: bool
):
    failing.close()
    if not listed:
        (tmp_path / "refused.list").unlink()
    FailingDisk.cannot.add("read 1-1-0x99.again")
    segment = max(tmp_path.glob("*.seg"))
    segment.write_bytes(segment.read_bytes() + b"damage")
    again = begun(FailingDisk(tmp_path), 3)
    again.tick(1.0)
    assert (again.fault, again.stats().dropped) == (None, 0)
    told = "".join(again.stats().faults)
    assert told.count(f"{tmp_path}/refused/1-1-0x99.again: Permission denied: ") == 1
    assert again.stats().refused == ["1-1-0x99.again", "2-1-0x99.again"]


def test_one_that_is_in_no_list_is_told_of_as_well_when_somebody_removes_it(
    tmp_path: Path, failing: Buffer
):
    failing.close()
    (tmp_path / "refused.list").unlink()
    FailingDisk.cannot.add("read 1-1-0x99.again")
    again = begun(FailingDisk(tmp_path), 3)
    (tmp_path / "refused/1-1-0x99.again").unlink()
    again.tick(1.0)
    assert (again.fault, again.stats().dropped) == (None, 0)
    assert again.stats().faults[-1].startswith("refused/1-1-0x99.again: gone: did somebody")


def test_one_that_is_damaged_is_given_up_once_it_can_be_renamed(tmp_path: Path, failing: Buffer):
    failing.close()
    (tmp_path / "refused/1-1-0x99.again").write_bytes(b"")
    FailingDisk.cannot.add("rename")
    again = begun(FailingDisk(tmp_path), 3)
    assert again.stats().refused == ["1-1-0x99.again", "2-1-0x99.again"]
    FailingDisk.cannot.clear()
    again.tick(1.0)
    assert again.stats().refused == ["2-1-0x99.again"]
    assert again.stats().dropped_by == {"damaged on disk": 1}


def test_the_buffer_goes_on_without_them_while_the_directory_cannot_be_read(
    tmp_path: Path, failing: Buffer, caplog: pytest.LogCaptureFixture
):
    failing.close()
    FailingDisk.cannot.add("list refused")
    again = begun(FailingDisk(tmp_path), 3)
    segments = names(tmp_path, ".")
    take(again, 5.0)
    again.close()
    assert (values(again), again.fault, names(tmp_path, ".")) == ([5.0], None, segments)
    (told,) = again.stats().faults
    assert told.startswith(f"{tmp_path}/refused: Permission denied: ")
    assert caplog.messages == [f"buffer: {told}"]
    FailingDisk.cannot.clear()
    again.tick(71.0)
    assert again.stats().faults == []
    assert again.stats().refused == ["1-1-0x99.again", "2-1-0x99.again"]


@pytest.mark.usefixtures("failing_disk")
def test_those_of_another_disk_are_known_once_its_directory_can_be_read(tmp_path: Path):
    state, other = tmp_path / "state", tmp_path / "other"
    refused(other, 1).close()
    buffer = begun(FailingDisk(state))
    FailingDisk.cannot.add("list refused")
    state.rename(tmp_path / "away")
    other.rename(state)
    buffer.tick(1.0)
    assert buffer.stats().refused == []
    FailingDisk.cannot.clear()
    buffer.tick(2.0)
    assert buffer.stats().refused == ["1-1-0x99.batch"]


@pytest.mark.usefixtures("failing_disk")
def test_those_that_go_with_their_disk_are_counted_though_their_directory_could_not_be_read(
    tmp_path: Path,
):
    refused(state := tmp_path / "state").close()
    FailingDisk.cannot.add("list refused")
    buffer = begun(FailingDisk(state), 2)
    for gone in ("away", "other"):
        state.rename(tmp_path / gone)
        buffer.tick(2.0)
    FailingDisk.cannot.clear()
    buffer.tick(3.0)
    assert buffer.stats().dropped_by == {"state directory removed": 2}
    assert "refused/1-1, 2-1: gone with the disk it was on" in buffer.stats().faults


@pytest.mark.usefixtures("failing_disk")
def test_those_that_come_back_with_their_disk_are_not_counted_though_they_could_not_be_read(
    tmp_path: Path,
):
    refused(state := tmp_path / "state").close()
    FailingDisk.cannot.add("list refused")
    buffer = begun(FailingDisk(state), 2)
    shutil.copytree(state, tmp_path / "copy")
    state.rename(tmp_path / "away")
    (tmp_path / "copy").rename(state)
    FailingDisk.cannot.clear()
    buffer.tick(2.0)
    assert (buffer.stats().dropped, len(buffer.stats().refused)) == (0, 2)


@pytest.mark.usefixtures("failing_disk")
def test_one_that_waits_as_well_is_counted_once_where_its_directory_could_not_be_read(
    tmp_path: Path,
):
    take(before := opened(state := tmp_path / "state"), 1.0)
    before.close()
    before.set_aside(next(before.waiting()), 0x99)
    FailingDisk.cannot.add("list refused")
    buffer = begun(FailingDisk(state), 2)
    assert values(buffer) == [1.0]
    state.rename(tmp_path / "away")
    FailingDisk.cannot.clear()
    buffer.tick(2.0)
    assert buffer.stats().dropped_by == {"state directory removed": 1}


@pytest.mark.usefixtures("failing_disk")
def test_one_of_which_nobody_knows_what_it_held_goes_with_its_disk_and_holds_up_nothing(
    tmp_path: Path,
):
    state = tmp_path / "state"
    refused(state, 1).close()
    (state / "refused.list").unlink()
    FailingDisk.cannot.add("read 1-1-0x99.batch")
    buffer = begun(FailingDisk(state))
    state.rename(tmp_path / "away")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped, buffer.stats().refused) == (None, 0, [])


@pytest.mark.parametrize("name", ["notes.txt", "x.batch", "1-1-0x99.batch~"])
def test_files_that_are_none_of_ours_are_let_be(tmp_path: Path, name: str):
    refused(tmp_path)
    (tmp_path / "refused" / name).write_text("mine")
    (tmp_path / "refused/7-7-0x99.batch").mkdir()
    ask(tmp_path)
    again = opened(tmp_path, epoch=2)
    assert values(again) == [0.0, 1.0]
    assert again.stats().faults == []
    assert (tmp_path / "refused" / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["99999999999999999999-1-0x99", f"{1 << 63}-1-0x99", "5-9999999999-0x99"]
)
def test_a_name_with_numbers_that_are_never_ours_is_let_be(tmp_path: Path, name: str):
    refused(tmp_path)
    (tmp_path / f"refused/{name}.batch").touch()
    again = opened(tmp_path, epoch=2)
    take(again, 5.0)
    again.close()
    assert [(batch.sequence, batch.readings[0].value) for batch in batches(again)] == [(3, 5.0)]
    assert again.stats().refused == ["1-1-0x99.batch", "2-1-0x99.batch"]


def test_one_that_a_power_cut_brings_back_is_not_counted_again_under_another_name(tmp_path: Path):
    buffer = refused(tmp_path, 1)
    first = (tmp_path / "refused/1-1-0x99.batch").read_bytes()
    for epoch in (2, 3):
        (tmp_path / "refused/1-1-0x99.batch").write_bytes(first)
        ask(tmp_path) if epoch == 3 else None
        buffer = opened(tmp_path, epoch, replace(SETTINGS, max_size=4 * 4096))
        take(buffer, 5.0)
        buffer.close()
        buffer.set_aside(list(buffer.waiting())[-1], 0x99)
        assert not list((tmp_path / "refused").glob("1-1-*"))
    assert buffer.stats().dropped == 2  # batches 1 and 2


def test_one_that_was_dropped_is_not_sent_again_after_a_power_cut():
    disk = CrashDisk()
    buffer = begun(disk, 1, replace(SETTINGS, max_size=4 * 4096))
    for value in (1.0, 2.0):
        take(buffer, value)
        buffer._work(0.0, buffer._seal)
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    assert buffer.stats().dropped == 1
    disk.sync_directory()
    disk.crash(Random(1))
    again = begun(disk, 2)
    assert (values(again), again.stats().dropped) == ([], 1)


def test_each_counts_the_blocks_that_it_takes_on_disk(tmp_path: Path):
    buffer = refused(tmp_path, 3)
    taken = sum(file.stat().st_blocks * 512 for file in (tmp_path / "refused").iterdir())
    assert buffer._refused.size == 3 * 4096 == taken
    assert [on_disk(length) for length in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_many_small_ones_are_bounded_by_their_blocks(tmp_path: Path):
    buffer = opened(tmp_path, settings=replace(SETTINGS, max_size=1 << 20))
    for value in range(70):
        take(buffer, float(value))
        buffer.close()
    for held in list(buffer.waiting()):
        buffer.set_aside(held, 0x99)
    assert len(names(tmp_path)) == (1 << 18) // 4096
    assert buffer.stats().dropped_by == {"refused by the broker": 6}
    assert not buffer._refused_disk._open
    assert opened(tmp_path, epoch=2).stats().faults == []


def test_of_many_the_status_names_the_first_twenty_and_counts_the_others(tmp_path: Path):
    twenty = [f"{sequence}-1-0x99.batch" for sequence in range(1, 21)]
    assert refused(tmp_path / "20", 20).stats().refused == twenty
    more = "and 2 more: bygate buffer lists them"
    buffer = refused(tmp_path / "22", 22)
    assert buffer.stats().refused == [*twenty, more]
    shutil.rmtree(tmp_path / "22/refused")
    buffer.tick(62.0)
    assert buffer.stats().faults[0].startswith(f"refused/{', '.join(twenty)} and 2 more: gone")


def test_their_names_are_told_while_more_are_set_aside(tmp_path: Path):
    buffer = refused(tmp_path, 60)
    for value in range(20):
        take(buffer, float(value))
        buffer.close()
    more = list(buffer.waiting())
    writer = threading.Thread(target=lambda: [buffer.set_aside(held, 0x99) for held in more])
    writer.start()
    while writer.is_alive():
        assert len(buffer._refused.names) == 21
    assert buffer._refused.names[-1].startswith("and 60 more")


@pytest.mark.parametrize("changes", range(12))
def test_a_power_cut_counts_what_has_no_room_any_more_once(changes: int):
    small = replace(SETTINGS, max_size=4 * 4096)
    for seed in range(10):
        disk = CrashDisk()
        buffer = begun(disk, 1, small)
        for _ in range(2):
            take(buffer, *(Random(n).randbytes(100).hex() for n in range(5)))
            buffer._work(0.0, buffer._seal)
        first, second = list(buffer.waiting())
        buffer.set_aside(first, 0x99)
        buffer.tick(1.0)
        disk.sync("acked")
        disk.sync_directory()
        with disk.power_cut(changes, Random(seed)):
            buffer.set_aside(second, 0x99)
        again = begun(disk, 2, small)
        assert not any(": gone" in told for told in again.stats().faults)
        for held in list(again.waiting()):
            again.set_aside(held, 0x99)
        assert again.stats().refused == ["2-1-0x99.batch"]
        assert again.stats().dropped == 5


def test_one_that_had_no_room_is_not_counted_once_more_as_damaged():
    disk, small = CrashDisk(), replace(SETTINGS, max_size=4 * 4096)
    first, second, third = (Buffer(disk, small, "g", boot=7, epoch=epoch) for epoch in (1, 2, 3))
    take(first, 1.0, 2.0)
    first._work(0.0, first._seal)
    first.set_aside(next(first.waiting()), 0x99)
    take(first, 3.0, durable=True)
    first.tick(0.0)
    disk.crash(Random(1))
    disk.wipe("00000001.seg", 70, disk.size("00000001.seg"), b"b")
    disk.bad.add("00000001.seg")  # the next start meets it, and cannot blank it
    second.tick(0.0)
    second.set_aside(next(second.waiting()), 0x99)
    third.tick(0.0)
    assert (third.stats().dropped, third.stats().refused) == (2, ["2-1-0x99.batch"])
