"""Another disk, or an older image, in place of ours under a daemon that runs."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from delivery import BATCHES, Box, address, both, delivering, from_batch, lane, run, until
from pytest import LogCaptureFixture

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.flushed import SLOT, SLOTS
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading, Value
from gateway.record import size_of
from gateway.settings import BufferSettings
from gateway.wire import Batch, decode
from hil.broker import Broker, Faults

SETTINGS = BufferSettings(flush_interval=10, seal_interval=60)
HEAD = size_of(b"")


class FailingDisk(Disk):
    """One of whose next syncs of a segment the one of that number fails."""

    fails_at = 0
    full = False
    """Whether all behind that one fail as well, for want of room."""
    cuts = True
    """Whether it cuts off what was not synced."""

    def cut(self, name: str, length: int) -> None:
        if self.cuts:
            super().cut(name, length)

    def sync(self, name: str) -> None:
        super().sync(name)
        if name.endswith(".seg"):
            self.fails_at -= 1
            if self.fails_at == 0:
                if self.full:
                    self.fails_at = 1
                    raise OSError(errno.ENOSPC, "No space left on device")
                raise OSError(errno.EIO, "Input/output error")


def opened(directory: Path, epoch: int) -> Buffer:
    disk = FailingDisk(directory)
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=epoch)
    buffer.tick(0.0)
    return buffer


def take(buffer: Buffer, value: Value, offset: int = 10**12) -> None:
    at = Instant(offset, 0, ClockState.SYNCED)
    buffer.append(Reading("river", TEMPERATURE, at, value), durable=True)


def seal(buffer: Buffer, *values: Value) -> Buffer:
    """Have it seal a batch of each of these values."""
    for value in values:
        take(buffer, value)
        buffer.tick(0.0)
        buffer.tick(60.0)
    return buffer


def flush(buffer: Buffer, *values: Value, offset: int = 10**12) -> Buffer:
    for value in values:
        take(buffer, value, offset)
    buffer.tick(1.0)
    return buffer


def deliver(buffer: Buffer) -> None:
    for held in list(buffer.waiting()):
        buffer.acknowledge(held)


def batches(buffer: Buffer) -> list[Batch]:
    return [decode(buffer.payload(held) or b"") for held in buffer.waiting()]


def held(buffer: Buffer) -> list[tuple[int, int, list[Value]]]:
    return [
        (batch.epoch, batch.sequence, [reading.value for reading in batch.readings])
        for batch in batches(buffer)
    ]


def swap(buffer: Buffer, other: Path) -> None:
    """Put another directory in place of the buffer's, which is `other` from then on."""
    state = buffer._disk.directory
    state.rename(aside := state.with_name("aside"))
    other.rename(state)
    aside.rename(other)


def test_an_acknowledgement_lets_go_of_no_other_historys_batch(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 2.0)
    buffer = seal(opened(tmp_path / "state", 1), 1.0)
    sent = next(buffer.waiting())
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    buffer.acknowledge(sent)
    assert held(buffer) == [(2, 1, [2.0])]
    deliver(buffer)
    assert held(buffer) == []


def test_what_another_disks_journal_holds_is_delivered_whatever_ours_had_come_to(tmp_path: Path):
    flush(seal(opened(tmp_path / "other", 2), 1.0), 2.0)
    deliver(buffer := seal(opened(tmp_path / "state", 1), 3.0, 4.0, 5.0))
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(2, 1, [1.0]), (2, 2, [2.0])]
    assert buffer.stats().dropped == 0


def test_what_another_disks_journal_holds_is_sealed_once_though_a_sync_fails(tmp_path: Path):
    other = opened(tmp_path / "other", 2)
    seal(flush(flush(other, 0.0), 1.0))
    other.tick(60.0)
    flush(other, 2.0)  # it stands where the first frame was
    (tmp_path / "other/00000001.seg").unlink()
    buffer = opened(tmp_path / "state", 1)
    buffer._disk.fails_at = 3  # a head and a batch come first
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert "Input/output error" in str(buffer.fault)
    assert held(buffer) == [(2, 1, [1.0])]
    deliver(buffer)
    buffer.tick(3.0)
    assert held(buffer) == [(2, 2, [2.0])]
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)  # that one was in the segment alone


def test_what_waits_in_ram_is_named_above_what_another_disk_has_acknowledged(tmp_path: Path):
    deliver(other := seal(opened(tmp_path / "other", 2), 1.0, 2.0, 3.0))
    other.close()
    buffer = flush(opened(tmp_path / "state", 1), 4.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(opened(tmp_path / "state", 3)) == [(1, 4, [4.0])]


def test_what_waits_in_ram_is_named_above_what_another_disk_holds(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 1.0)
    buffer = flush(opened(tmp_path / "state", 1), 2.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(2, 1, [1.0]), (1, 2, [2.0])]
    assert buffer.stats().dropped == 0


def test_what_waits_in_ram_is_named_above_what_another_disk_has_aside(tmp_path: Path):
    other = seal(opened(tmp_path / "other", 2), 1.0, 2.0)
    for refused in list(other.waiting()):
        other.set_aside(refused, 0x99)
    for path in (tmp_path / "other").iterdir():
        if path.is_file():
            path.unlink()
    buffer = flush(opened(tmp_path / "state", 1), 3.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(1, 3, [3.0])]


def test_what_waits_in_ram_keeps_its_name_where_the_directory_is_begun_anew(tmp_path: Path):
    (tmp_path / "other").mkdir()
    buffer = flush(seal(opened(tmp_path / "state", 1), 1.0), 2.0)
    before = buffer.stats().sealed
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(1, 2, [2.0])]
    assert buffer.stats().dropped_by == {"state directory removed": 1}
    assert buffer.stats().sealed > before


def test_a_first_batch_that_is_named_anew_names_the_epoch_before_as_well(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 1.0, 2.0)
    seal(opened(tmp_path / "state", 1), 3.0)
    buffer = flush(opened(tmp_path / "state", 3), 4.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    last = batches(buffer)[-1]
    assert (last.epoch, last.sequence, last.previous) == (3, 3, (1, 1))


def test_no_other_batch_than_the_first_names_the_epoch_before(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 1.0)
    buffer = seal(opened(tmp_path / "state", 1), 2.0)
    swap(buffer, tmp_path / "other")
    seal(buffer, 3.0)
    assert [(batch.epoch, batch.previous) for batch in batches(buffer)] == [(2, None), (1, None)]


def check_has_one_name(buffer: Buffer, other: Path) -> None:
    """What is delivered once another disk is in place is gone when the first one is put back."""
    swap(buffer, other)
    buffer.tick(2.0)
    assert held(buffer)[-1] == (1, 2, [2.0])
    deliver(buffer)
    swap(buffer, other)
    buffer.tick(2.0)
    assert held(buffer) == []


def test_what_was_named_anew_has_one_name_when_the_disk_of_before_is_put_back(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 1.0)
    buffer = flush(opened(tmp_path / "state", 1), 2.0)
    check_has_one_name(buffer, tmp_path / "other")


@pytest.mark.parametrize("there", [seal, flush])
def test_what_was_named_anew_takes_nothing_along_of_another_box(
    tmp_path: Path, there: Callable[[Buffer, Value], Buffer]
):
    seal(opened(tmp_path / "other", 2), 1.0)
    there(opened(tmp_path / "third", 3), 3.0)
    buffer = flush(opened(tmp_path / "state", 1), 2.0)
    for other in ("other", "third"):
        swap(buffer, tmp_path / other)
        buffer.tick(2.0)
    assert (3, 1, [3.0]) in held(buffer)


def test_a_batch_whose_sync_failed_has_one_name_when_its_disk_is_put_back(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), 1.0)
    take(buffer := opened(tmp_path / "state", 1), 2.0)
    buffer._disk.fails_at, buffer._disk.cuts = 1, False
    buffer.tick(0.0)
    buffer.tick(60.0)
    check_has_one_name(buffer, tmp_path / "other")


def test_a_batch_that_reached_another_disk_though_its_sync_failed_is_there_once(tmp_path: Path):
    take(buffer := opened(tmp_path / "state", 1), 1.0)
    buffer.tick(0.0)
    buffer._disk.fails_at, buffer._disk.cuts = 1, False
    buffer.tick(60.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(1, 1, [1.0])]


def test_the_journal_of_an_image_gives_back_what_was_sealed_since(tmp_path: Path):
    buffer = flush(opened(tmp_path / "state", 1), 1.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    flush(seal(buffer, 2.0), 3.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(1, 1, [1.0]), (1, 2, [3.0])]
    assert buffer.stats().dropped_by == {"state directory removed": 1}


def test_what_the_journal_of_an_image_has_and_ram_as_well_is_sealed_once(tmp_path: Path):
    buffer = flush(opened(tmp_path / "state", 1), 1.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    flush(buffer, 2.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert held(buffer) == [(1, 1, [1.0, 2.0])]
    assert buffer.stats().dropped == 0


def test_what_the_journal_of_an_image_has_stays_until_it_is_in_the_spool(tmp_path: Path):
    buffer = flush(opened(tmp_path / "state", 1), 1.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    frame = (tmp_path / "other/journal").read_bytes()[:4096]
    take(buffer, 2.0)
    buffer.tick(2.0)
    swap(buffer, tmp_path / "other")
    buffer._disk.fails_at, buffer._disk.full = 2, True  # a head comes first
    buffer.tick(30.0)
    assert "No space left" in str(buffer.fault)
    assert (tmp_path / "state/journal").read_bytes()[:4096] == frame
    assert held(opened(tmp_path / "state", 2))[0] == (1, 1, [1.0, 2.0])


def test_where_the_journal_of_an_image_is_damaged_all_of_the_batch_is_flushed_again(
    tmp_path: Path,
):
    buffer = flush(flush(opened(tmp_path / "state", 1), 1.0), 2.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    with (tmp_path / "other/journal").open("r+b") as journal:
        journal.seek(60)
        journal.write(b"wiped")
    swap(buffer, tmp_path / "other")
    buffer._disk.fails_at, buffer._disk.full = 4, True
    buffer.tick(30.0)
    assert "No space left" in str(buffer.fault)
    assert buffer.unsaved == 0
    ((*_, values),) = held(opened(tmp_path / "state", 2))
    assert {1.0, 2.0} <= set(values)


def test_what_is_acknowledged_before_another_disk_is_known_is_not_counted(tmp_path: Path):
    flush(opened(tmp_path / "other", 2), 1.0)
    buffer = seal(opened(tmp_path / "state", 1), 2.0, 3.0)
    sent = next(buffer.waiting())
    buffer._disk.fails_at = 1
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    buffer.acknowledge(sent)
    buffer.tick(3.0)
    assert buffer.stats().dropped_by == {"state directory removed": 1}


def test_a_disk_that_goes_again_before_its_journal_is_sealed_is_counted_as_well(tmp_path: Path):
    flush(opened(tmp_path / "other", 2), 1.0)
    (tmp_path / "third").mkdir()
    buffer = seal(opened(tmp_path / "state", 1), 2.0, 3.0)
    buffer._disk.fails_at = 1
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    swap(buffer, tmp_path / "third")
    buffer.tick(2.0)
    assert buffer.stats().dropped_by == {"state directory removed": 3}


class DeafDisk(FailingDisk):
    """One of which files whose names end so cannot be read while that is said."""

    deaf: str | None = None

    def salvage(self, name: str, most: int = -1) -> tuple[bytes, list[int]]:
        if self.deaf is not None and name.endswith(self.deaf):
            raise OSError(errno.EIO, "Input/output error")
        return super().salvage(name, most)


def test_nothing_is_lost_with_a_disk_that_comes_back_before_the_other_one_was_known(
    tmp_path: Path,
):
    seal(opened(tmp_path / "other", 2), 1.0)
    buffer = Buffer(disk := DeafDisk(tmp_path / "state"), SETTINGS, "trd-0042", boot=7, epoch=1)
    seal(buffer, 2.0, 3.0)
    disk.deaf = ""
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert "Input/output error" in str(buffer.fault)
    disk.deaf = None
    swap(buffer, tmp_path / "other")
    buffer.tick(3.0)
    assert (len(held(buffer)), buffer.stats().dropped) == (2, 0)


def test_what_was_flushed_is_in_ram_alone_while_another_disk_is_not_known(tmp_path: Path):
    (tmp_path / "other").mkdir()
    buffer = Buffer(disk := DeafDisk(tmp_path / "state"), SETTINGS, "trd-0042", boot=7, epoch=1)
    buffer.tick(0.0)
    assert flush(buffer, 1.0).unsaved == 0
    disk.deaf = ""
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert buffer.unsaved == 1


def test_the_sum_of_what_another_disk_has_dropped_is_not_forgotten(tmp_path: Path):
    for epoch in (2, 3):
        other = seal(opened(tmp_path / "other", epoch), 1.0)
    other._spool.evict("buffer full")
    buffer = opened(tmp_path / "state", 1)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert buffer.stats().dropped == 1


def test_what_lay_aside_on_the_disk_that_is_gone_is_named_and_counted_once(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0, 2.0)
    for refused in list(buffer.waiting()):
        buffer.set_aside(refused, 0x99)
    (tmp_path / "other").mkdir()
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert buffer.stats().refused == []
    assert "refused/1-1-0x99.batch, 2-1-0x99.batch: gone with the disk" in buffer.stats().faults[-1]
    swap(buffer, tmp_path / "other")
    buffer.tick(3.0)
    (tmp_path / "third").mkdir()
    swap(buffer, tmp_path / "third")
    buffer.tick(4.0)
    assert buffer.stats().dropped_by == {"state directory removed": 2}


def test_what_lies_aside_on_a_copy_of_the_disk_as_well_is_not_lost(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0)
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer.tick(2.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    swap(buffer, tmp_path / "other")
    buffer.tick(3.0)
    assert (buffer.stats().dropped, buffer.stats().refused) == (0, ["1-1-0x99.batch"])


def test_one_that_lay_aside_and_was_delivered_is_not_lost_with_its_disk(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0)
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "state/refused/retry").touch()
    buffer.tick(2.0)
    deliver(buffer)
    (tmp_path / "other").mkdir()
    swap(buffer, tmp_path / "other")
    buffer.tick(3.0)
    assert buffer.stats().dropped == 0


def test_one_that_is_damaged_is_told_of_once_though_a_copy_of_its_disk_comes(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0)
    buffer.set_aside(next(buffer.waiting()), 0x99)
    (tmp_path / "state/refused/1-1-0x99.batch").write_bytes(b"foreign")
    (tmp_path / "state/refused/retry").touch()
    buffer.tick(2.0)
    assert buffer.payload(next(buffer.waiting())) is None
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    swap(buffer, tmp_path / "other")
    buffer.tick(3.0)
    assert [told for told in buffer.stats().faults if "gone: did" in told] == []


def test_a_batch_that_was_delivered_and_is_kept_for_a_moment_is_not_lost_with_its_disk(
    tmp_path: Path,
):
    buffer = seal(opened(tmp_path / "state", 1), 1.0, 2.0)
    first, _ = buffer.waiting()
    buffer.delivered(first)
    (tmp_path / "other").mkdir()
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert buffer.stats().dropped == 1


def test_a_directory_that_is_begun_anew_gives_no_sequence_again(tmp_path: Path):
    (tmp_path / "other").mkdir()
    buffer = seal(opened(tmp_path / "state", 1), 1.0, 2.0, 3.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert opened(tmp_path / "state", 2).last == 3


def test_a_directory_that_is_begun_anew_knows_the_epoch_before(tmp_path: Path):
    (tmp_path / "other").mkdir()
    buffer = seal(opened(tmp_path / "state", 1), 1.0, 2.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert batches(seal(opened(tmp_path / "state", 2), 3.0))[-1].previous == (1, 2)


def test_what_is_missing_on_another_disk_is_none_of_what_ours_held(tmp_path: Path):
    other = seal(opened(tmp_path / "other", 2), 1.0, 2.0)
    first, second = other.waiting()
    segment = tmp_path / "other" / first.segment
    data = segment.read_bytes()
    segment.write_bytes(data[: first.offset] + b"b" * first.length + data[second.offset - HEAD :])
    buffer = seal(opened(tmp_path / "state", 1), 3.0)
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert buffer.stats().dropped_by == {"state directory removed": 1, "damaged on disk": 1}


def test_the_sum_of_what_was_dropped_does_not_shrink_while_another_disk_fails(tmp_path: Path):
    flush(opened(tmp_path / "other", 2), 1.0)
    (tmp_path / "third").mkdir()
    buffer = seal(opened(tmp_path / "state", 1), 2.0, 3.0)
    swap(buffer, tmp_path / "third")
    buffer.tick(2.0)
    buffer._disk.fails_at = 1
    swap(buffer, tmp_path / "other")
    buffer.tick(2.0)
    assert (buffer.stats().dropped, buffer.fault is None) == (2, False)


# While a broker is there


def test_what_another_disk_holds_is_delivered_as_backlog_in_the_same_session(tmp_path: Path):
    flush(seal(opened(tmp_path / "other", 2), *map(float, range(8))), 9.0)

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path / "state", address(broker))
            await box.seal(3)
            async with delivering(box):
                await box.empty()
                swap(box.buffer, tmp_path / "other")
                await box.seal()
                await box.empty()
                await box.seal()
                await box.empty()
            assert broker.connects == 1
            assert lane(broker.received, "backlog") == [1, 2, 3, *range(1, 10)]
            assert lane(broker.received, "live") == [10, 11]

    run(scenario())


def test_a_batch_of_the_sequence_of_one_that_is_under_way_is_not_passed_over(tmp_path: Path):
    seal(opened(tmp_path / "other", 2), *map(float, range(6)))

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path / "state", address(broker))
            async with delivering(box):
                await until(lambda: box.state.connected)
                from_batch(4, broker, Faults(ack_withheld=True, ack_topics=BATCHES))
                await box.seal(4)
                await broker.wait_for(lambda got: len(both(got)) == 4)
                broker.faults = Faults()
                swap(box.buffer, tmp_path / "other")
                await box.seal()
                await box.empty()
            assert broker.connects == 1
            assert lane(broker.received, "backlog") == list(range(1, 7))
            assert lane(broker.received, "live") == [1, 2, 3, 4, 7]

    run(scenario())


def test_a_batch_that_is_kept_for_a_moment_behind_its_puback_is_not_lost(tmp_path: Path):
    (tmp_path / "other").mkdir()

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path / "state", address(broker), saved_within=3600.0)
            await box.seal()
            async with delivering(box):
                await until(lambda: box.state.last_ack_ms)
                swap(box.buffer, tmp_path / "other")
                await box.seal()
                assert box.buffer.stats().dropped == 0

    run(scenario())


def test_a_batch_whose_disk_is_gone_when_it_is_refused_is_not_said_to_be_set_aside(
    tmp_path: Path, caplog: LogCaptureFixture
):
    (tmp_path / "other").mkdir()

    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path / "state", address(broker))
            async with delivering(box):
                await until(lambda: box.state.connected)
                from_batch(3, broker, Faults(ack_code=0x99, ack_reversed=2, ack_topics=BATCHES))
                await box.seal(3)
                await broker.wait_for(lambda got: len(both(got)) == 3)
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                swap(box.buffer, tmp_path / "other")
                await box.seal()
                await box.empty()
            assert [name[:2] for name in box.refused] == ["4-"]

    run(scenario())
    told = [record.getMessage() for record in caplog.records if "set aside" in record.getMessage()]
    assert [line.partition(":")[0] for line in told] == ["batch 4 set aside"]


def test_a_mount_that_comes_and_goes_is_counted_once(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0, 2.0, 3.0)
    state, away = tmp_path / "state", tmp_path / "away"
    for second in range(3):
        state.rename(away)
        buffer.tick(100.0 + second)
        shutil.rmtree(state)
        away.rename(state)
        buffer.tick(200.0 + second)
    assert [values for *_, values in held(buffer)] == [[1.0], [2.0], [3.0]]
    # When it was away the first time nobody knew that it returns
    assert (buffer.stats().dropped, len(buffer.stats().faults)) == (3, 6)


@pytest.mark.parametrize(
    "swaps",
    [
        [("other", 2), ("third", 3), ("third", 3), ("other", 3)],
        [("third", 3), ("third", 3), ("other", 3)],
    ],
)
def test_what_was_left_of_a_batch_is_counted_when_that_goes_as_well(
    tmp_path: Path, swaps: list[tuple[str, int]]
):
    buffer = flush(opened(tmp_path / "state", 1), 1.0)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    (tmp_path / "third").mkdir()
    seal(buffer, 2.0, 3.0)
    for other, dropped in swaps:
        swap(buffer, tmp_path / other)
        buffer.tick(100.0)
        assert buffer.stats().dropped == dropped


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Make images of a disk that has one batch, of one reading, of two, of three."""
    buffer = opened(tmp_path / "first", 1)
    made = [tmp_path / name for name in ("one", "two", "three")]
    for image in made:
        flush(buffer, 1.0)
        shutil.copytree(tmp_path / "first", image)
    return made


def put(buffer: Buffer, image: Path) -> dict[str, int]:
    """Put an image in place of the buffer's directory; return what was dropped by then."""
    swap(buffer, image)
    buffer.tick(100.0)
    return buffer.stats().dropped_by


def test_of_a_batch_that_comes_and_goes_with_fewer_readings_no_more_are_counted(
    tmp_path: Path, images: list[Path]
):
    one, two, three = images
    (tmp_path / "empty").mkdir()
    buffer = opened(tmp_path / "state", 9)
    assert put(buffer, three) == {}
    assert put(buffer, two) == {"state directory removed": 1}
    deliver(buffer)
    put(buffer, one)
    assert put(buffer, tmp_path / "empty") == {"state directory removed": 1 + 1}


def test_what_is_not_lost_when_a_disk_goes_counts_when_a_later_one_does(
    tmp_path: Path, images: list[Path]
):
    one, _, three = images
    (tmp_path / "empty").mkdir()
    buffer = opened(tmp_path / "state", 9)
    put(buffer, one)
    assert put(buffer, three) == {}
    assert put(buffer, tmp_path / "empty") == {"state directory removed": 3}


def damaged(directory: Path, kind: type[FailingDisk] = FailingDisk, *, at: int = 1) -> Buffer:
    """Start where a batch is wiped, on a disk that fails before that is counted."""
    (segment,) = directory.glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:70] + b"wiped")
    (directory / "journal").write_bytes(bytes(SLOT * SLOTS))
    disk = kind(directory)
    disk.fails_at = at
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    buffer.tick(0.0)
    assert buffer.fault and not buffer.stats().dropped
    return buffer


def test_damage_that_is_not_counted_yet_is_when_an_older_image_is_put_in_place(tmp_path: Path):
    buffer = opened(tmp_path / "state", 1)
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    seal(buffer, 1.0)
    buffer = damaged(tmp_path / "state")
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)


def test_damage_that_is_not_counted_yet_is_once_when_a_copy_of_its_disk_comes(tmp_path: Path):
    seal(opened(tmp_path / "state", 1), 1.0)
    buffer = damaged(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)


def test_damage_that_is_not_counted_yet_is_when_another_box_has_sealed_more(tmp_path: Path):
    seal(opened(tmp_path / "other", 9), 1.0, 2.0, 3.0)
    seal(opened(tmp_path / "state", 1), 1.0)
    buffer = damaged(tmp_path / "state")
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)


def test_damage_of_which_nobody_knows_the_cost_is_left_behind_with_its_disk(tmp_path: Path):
    seal(opened(tmp_path / "state", 1), 1.0)
    (tmp_path / "state/acked").unlink()
    (tmp_path / "other").mkdir()
    buffer = damaged(tmp_path / "state")
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 0)


def test_damage_that_is_counted_is_not_counted_again_when_another_boxs_disk_comes(
    tmp_path: Path,
):
    seal(opened(tmp_path / "other", 9), 9.0)
    first = next(seal(opened(tmp_path / "state", 1), 1.0).waiting())
    (segment,) = (tmp_path / "state").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[first.offset + 5] ^= 1
    segment.write_bytes(data)
    for name in ("acked", "journal"):
        (tmp_path / "state" / name).unlink()
    disk = FailingDisk(tmp_path / "state")
    disk.fails_at = 3  # a head comes first, and the record
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    buffer.tick(0.0)
    assert (buffer.fault is None, buffer.stats().dropped) == (False, 1)
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)


def test_damage_that_is_not_counted_yet_is_once_though_two_other_boxes_disks_come(tmp_path: Path):
    for epoch, name in enumerate(("other", "third"), 8):
        seal(opened(tmp_path / name, epoch), 9.0)
    seal(opened(tmp_path / "state", 1), 1.0)
    buffer = damaged(tmp_path / "state", DeafDisk, at=2)  # a head comes first
    buffer._disk.deaf = "journal"
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert "Input/output error" in str(buffer.fault)
    buffer._disk.deaf = None
    swap(buffer, tmp_path / "third")
    buffer.tick(2.0)
    assert buffer.stats().dropped_by == {"damaged on disk": 1, "state directory removed": 1}


def test_damage_in_a_journal_that_is_not_counted_yet_is_when_another_boxs_disk_comes(
    tmp_path: Path,
):
    seal(opened(tmp_path / "other", 9), 9.0)
    flush(flush(opened(tmp_path / "state", 1), 1.0), 2.0)
    with (tmp_path / "state/journal").open("r+b") as journal:
        journal.seek(SLOT + 60)
        journal.write(b"wiped")
    disk = FailingDisk(tmp_path / "state")
    disk.fails_at = 1
    buffer = Buffer(disk, SETTINGS, "trd-0042", boot=7, epoch=2)
    buffer.tick(0.0)
    assert (buffer.fault is None, buffer.stats().dropped) == (False, 0)
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert buffer.stats().dropped_by == {"damaged on disk": 1, "state directory removed": 1}


def test_of_damage_that_is_left_behind_what_lay_aside_is_counted_once(tmp_path: Path):
    buffer = seal(opened(tmp_path / "state", 1), 1.0)
    before = (tmp_path / "state/acked").read_bytes()
    buffer.set_aside(next(buffer.waiting()), 0x99)
    buffer._disk.close_all()
    (tmp_path / "state/acked").write_bytes(before)
    (tmp_path / "other").mkdir()
    buffer = damaged(tmp_path / "state")
    swap(buffer, tmp_path / "other")
    buffer.tick(1.0)
    assert (buffer.fault, buffer.stats().dropped) == (None, 1)
    assert "refused/1-1-0x99.batch: gone" in " ".join(buffer.stats().faults)


def test_the_newest_segment_that_is_removed_while_it_runs_is_counted_once(tmp_path: Path):
    for epoch in (1, 2):
        buffer = seal(opened(tmp_path / "state", epoch), 1.0, 2.0, 3.0)
    buffer._disk.close_all()
    buffer = seal(opened(tmp_path / "state", 3), 4.0, 5.0)
    max((tmp_path / "state").glob("*.seg")).unlink()
    buffer.tick(100.0)
    assert (len(held(buffer)), buffer.stats().dropped) == (7, 1)  # the journal has the last


def test_all_segments_that_are_removed_while_it_runs_are_counted_once(tmp_path: Path):
    seal(opened(tmp_path / "state", 1), 1.0)._disk.close_all()
    buffer = seal(opened(tmp_path / "state", 2), 2.0, 3.0)
    for path in (tmp_path / "state").glob("*.seg"):
        path.unlink()
    buffer.tick(100.0)
    assert ([values for *_, values in held(buffer)], buffer.stats().dropped) == ([[3.0]], 2)
    assert not any("*.seg is gone" in told for told in buffer.stats().faults)  # acked tells


def test_the_epoch_before_ours_is_named_though_another_disks_journal_is_sealed_first(
    tmp_path: Path,
):
    flush(opened(tmp_path / "other", 9), 9.0)
    seal(opened(tmp_path / "state", 1), 1.0)
    swap(buffer := opened(tmp_path / "state", 2), tmp_path / "other")
    buffer.tick(2.0)
    seal(buffer, 2.0)
    assert [batch.readings[0].value for batch in batches(buffer)] == [9.0, 2.0]
    assert batches(buffer)[-1].previous == (1, 1)
