"""The daemon alive on a disk that is full, read-only or fails for a while, and afterwards."""

import asyncio
import errno
import json
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import counting_driver
import pytest
from gateway_process import batches, gateway, measured, readings, sensor
from test_buffer import UNBOUND
from test_buffer import fill as grow
from trials import mounted, times

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.glance import Glance
from hil.backlog import fill
from hil.broker import Broker, Faults, Received
from hil.loopdisk import LoopDisk
from hil.proc import rss_mb

STATUS = "bygate/v1/trd-0042/status"
TRIALS = range(times(1, 20))
RAM_MB = 60
BULK = 20
"""Readings that come with each number, so that batches are larger than a block of the disk."""

# The kernel ends a read-only state that an error brought about, or EIO, only with a new mount: for
# a while both exist at the calls of the daemon alone.
FAILING = """
import os
from pathlib import Path

def failing(call):
    def fails_meanwhile(*arguments):
        if FAULT.exists():
            number, *calls = FAULT.read_text().split()
            if call.__name__ in calls:
                raise OSError(int(number), os.strerror(int(number)))
        return call(*arguments)
    return fails_meanwhile

FAULT = Path(__file__).with_name("fault")
for name in ("pread", "pwrite", "fdatasync", "fsync", "ftruncate", "unlink"):
    setattr(os, name, failing(getattr(os, name)))
"""
SYNCS = "fdatasync fsync"
CHANGES = f"pwrite ftruncate unlink {SYNCS}"
WORN = """
import errno, os
import gateway.cli, gateway.disk

def pread(fd, length, offset, *, read=os.pread):
    if not os.readlink(f"/proc/self/fd/{fd}").endswith("00000001.seg"):
        return read(fd, length, offset)
    if BAD <= offset < BAD + 4096:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return read(fd, min(length, BAD - offset) if offset < BAD else length, offset)

os.pread = pread
gateway.disk.PATIENCE = 1.0
gateway.cli.main()
"""
"""As Linux reads a file with a bad block: at first up to it, as if it ended there."""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sensor that counts, in a daemon whose calls fail while there is a file `fault`."""
    counting_driver.install(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return sensor("it", "counting", interval="100ms", file=tmp_path / "numbers")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with ExitStack() as stack:
        yield mounted(stack, LoopDisk(16 << 20, tmp_path, "state"))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def fail(directory: Path, number: int, calls: str) -> None:
    """Have these calls fail with that number from now on; none of them meets half of this."""
    (directory / "fault.new").write_text(f"{number} {calls}")
    (directory / "fault.new").rename(directory / "fault")


async def said(broker: Broker, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Return what the status says of the buffer, once that holds."""

    def seen(_: object) -> bool:
        return bool(buffer() and holds(buffer()))

    def buffer() -> dict[str, Any]:
        return json.loads(broker.retained.get(STATUS, b"{}")).get("buffer", {})

    await broker.wait_for(seen, timeout=20)
    return buffer()


async def counts_on(numbers: Path) -> None:
    """Return when three more readings were taken."""
    enough = counting_driver.counted(numbers) + 3
    async with asyncio.timeout(10):
        while counting_driver.counted(numbers) < enough:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def numbers(received: list[Received]) -> list[int]:
    return sorted(r.value for r in readings(received) if r.quantity.name == "count")


INTERVALS = {"flush_interval": "100ms", "seal_interval": "200ms", "keep_free": "0B"}


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize(
    ("number", "calls"),
    [(errno.EIO, SYNCS), (errno.EIO, f"pread {CHANGES}"), (errno.EROFS, CHANGES)],
    ids=["EIO of syncs", "EIO", "read-only"],
)
def test_nothing_is_lost_while_the_disk_fails(
    tmp_path: Path, counting: str, number: int, calls: str, trial: int
):
    async def scenario() -> None:
        random, file = Random(trial), tmp_path / "numbers"
        async with Broker() as broker, gateway(tmp_path, broker.url, counting, **INTERVALS) as it:
            for _ in range(2):
                await broker.wait_for(lambda seen: len(readings(seen)) >= random.randint(1, 9))
                fail(tmp_path, number, calls)
                state = await said(broker, lambda buffer: buffer["faults"])
                assert "readings wait in RAM" in state["faults"][0]
                await counts_on(file)
                (tmp_path / "fault").unlink()
                state = await said(broker, lambda buffer: not buffer["faults"])
                assert state["disk_errors"]
            assert await it.stop() == 0
            all_arrived(numbers(broker.received), file)

    run(scenario())


@pytest.mark.parametrize("trial", TRIALS)
def test_it_starts_on_a_read_only_disk_and_loses_nothing_when_that_ends(
    tmp_path: Path, counting: str, disk: LoopDisk, trial: int
):
    async def scenario() -> None:
        file = tmp_path / "numbers"
        disk.mount_again("ro")
        async with Broker() as broker, gateway(tmp_path, broker.url, counting, **INTERVALS) as it:
            state = await said(broker, lambda buffer: buffer["faults"])
            assert "Read-only file system: look for the cause" in state["faults"][0]
            await counts_on(file)
            disk.mount_again("rw")
            await said(broker, lambda buffer: not buffer["faults"])
            await counts_on(file)
            assert await it.stop() == 0
            all_arrived(numbers(broker.received), file)

    run(scenario())


def test_what_a_stop_gives_up_is_dropped_in_the_last_status(tmp_path: Path, counting: str):
    async def scenario() -> None:
        async with Broker() as broker, gateway(tmp_path, broker.url, counting, **INTERVALS) as it:
            await broker.wait_for(readings)
            fail(tmp_path, errno.EROFS, CHANGES)
            await said(broker, lambda buffer: buffer["faults"])
            await counts_on(tmp_path / "numbers")
            assert await it.stop() == 1
            last = await said(broker, lambda buffer: buffer["dropped"])
            assert await it.says(f"stopped: {last['dropped']} readings lost: ")
            assert last["dropped_by"] == {"stopped while the disk took nothing": last["dropped"]}
            arrived = len(readings(broker.received))
            assert last["taken_readings"] - arrived == last["dropped"] + last["waiting_readings"]

    run(scenario())


def test_what_a_stop_gave_up_is_recorded_where_the_disk_takes_that(tmp_path: Path, counting: str):
    async def scenario() -> None:
        async with Broker() as broker, gateway(tmp_path, broker.url, counting, **INTERVALS) as it:
            await broker.wait_for(readings)
            fail(tmp_path, errno.EROFS, CHANGES)
            await said(broker, lambda buffer: buffer["faults"])
            await counts_on(tmp_path / "numbers")
            broker.faults = Faults(ack_withheld=True)  # so that the farewell lasts
            it.process.terminate()
            dropped = (await said(broker, lambda buffer: buffer["dropped"]))["dropped"]
            (tmp_path / "fault").unlink()
            assert await it.process.wait() == 1
            assert "Read-only" in await it.says(f"stopped: {dropped} readings lost: ")
        assert Glance(tmp_path / "state", "trd-0042").spool.dropped == dropped

    run(scenario())


def test_a_bad_block_costs_the_batches_on_it_alone(tmp_path: Path):
    async def scenario() -> None:
        fill(tmp_path / "state", 60_000)
        worn = "-c", WORN.replace("BAD", str(20 * 4096))
        async with Broker() as broker, gateway(tmp_path, broker.url, program=worn) as it:
            await broker.wait_for(lambda seen: len(batches(seen)) >= 95, timeout=20)
            await said(broker, lambda buffer: "lost: 00000001.seg" in str(buffer["faults"]))
            assert await it.stop() == 0

    run(scenario())


def test_what_lies_on_a_read_only_disk_is_delivered(tmp_path: Path, counting: str, disk: LoopDisk):
    async def scenario() -> None:
        fill(disk.path, 60_000)
        disk.mount_again("ro")
        async with Broker() as broker, gateway(tmp_path, broker.url, counting, **INTERVALS):
            await broker.wait_for(lambda seen: len(batches(seen)) == 100, timeout=20)
            assert {m.topic.split("/")[-1] for m in broker.received if "/batch/" in m.topic} == {
                "backlog"
            }
            assert broker.connects == 1

    run(scenario())


def test_what_waits_is_read_from_a_disk_that_went_read_only(disk: LoopDisk):
    fill(disk.path, 1000)
    buffer = Buffer(Disk(disk.path), UNBOUND, "bench", boot=7)
    buffer.tick(0.0)
    buffer.close()
    disk.mount_again("ro")
    assert [bool(buffer.payload(held)) for held in buffer.waiting()] == [True] * 2


def test_a_damaged_inode_of_the_journal_keeps_nothing_that_is_sealed(disk: LoopDisk):
    fill(disk.path, 1200)
    disk.damage("journal")
    buffer = buffered(disk, 2)
    buffer.tick(60.0)
    assert [bool(buffer.payload(held)) for held in buffer.waiting()] == [True] * 2
    (told,) = buffer.stats().faults
    assert told.startswith(f"{disk.path}/journal: Bad message: its file system is damaged")


@pytest.mark.parametrize("trial", TRIALS)
def test_on_a_full_disk_the_oldest_go_counted_and_what_comes_waits_for_room(
    tmp_path: Path, counting: str, disk: LoopDisk, trial: int
):
    async def scenario() -> None:
        file, before = tmp_path / "numbers", 600_000
        fill(disk.path, before)
        sensors = sensor("it", "counting", interval="100ms", file=file, bulk=BULK)
        no_acks = Faults(ack_withheld=True, ack_topics="bygate/v1/+/batch/#")
        async with (
            Broker(faults=no_acks) as broker,
            gateway(tmp_path, broker.url, sensors, **INTERVALS) as it,
        ):
            await counts_on(file)
            with (disk.path / "hog").open("wb", buffering=0) as hog:
                hogging = asyncio.create_task(take_all(hog))
                state = await said(broker, lambda buffer: buffer["faults"])
                await counts_on(file)
                hogging.cancel()
            assert "No space left on device: free space there" in state["faults"][0]
            assert state["dropped_by"].keys() == {"disk full"}
            assert rss_mb(it.process.pid) < RAM_MB
            (disk.path / "hog").unlink()
            await said(broker, lambda buffer: not buffer["faults"])
            broker.faults = Faults()
            broker.drop()
            await broker.wait_for(lambda seen: numbers(acknowledged(seen)), timeout=20)
            assert await it.stop() == 0
            arrived = acknowledged(broker.received)
            taken = numbers(arrived)[-1] + 1
            assert counting_driver.counted(file) - taken <= 1, "more than was read at the stop"
            dropped = max(batch.dropped for batch in batches(arrived))
            assert len(measured(arrived)) + dropped == before + taken * (1 + BULK)

    run(scenario())


@pytest.fixture
def few(tmp_path: Path) -> Iterator[LoopDisk]:
    """A disk with room for bytes, and inodes for few files."""
    with ExitStack() as stack:
        yield mounted(stack, LoopDisk(16 << 20, tmp_path, "state", inodes=32))


def take_inodes(disk: LoopDisk) -> list[Path]:
    """Leave no inode; return the files that have them now."""
    files: list[Path] = []
    with pytest.raises(OSError, match="No space left"):
        while True:
            files.append(disk.path / f"hog-{len(files)}")
            files[-1].touch()
    return files[:-1]


def buffered(disk: LoopDisk, epoch: int) -> Buffer:
    buffer = Buffer(Disk(disk.path), UNBOUND, "bench", boot=7, epoch=epoch)
    buffer.tick(0.0)
    return buffer


def test_out_of_inodes_what_has_to_go_is_told_so(few: LoopDisk, caplog: pytest.LogCaptureFixture):
    fill(few.path, 1200)
    buffer = buffered(few, 2)
    take_inodes(few)
    while not (dropped := buffer.stats().dropped_by):
        grow(buffer)
    assert dropped.keys() == {"out of inodes"}
    assert "out of inodes: remove small files on this disk, `df -i` counts them" in caplog.text


def test_a_file_that_is_protected_holds_up_no_other_on_a_full_disk(disk: LoopDisk):
    fill(disk.path, 600_000)
    buffer, oldest = buffered(disk, 2), disk.path / "00000001.seg"
    subprocess.run(["chattr", "+i", oldest], check=True)
    with (disk.path / "hog").open("wb", buffering=0) as hog:
        fill_up(hog)
    while (disk.path / "00000002.seg").exists():
        grow(buffer)
    stats = buffer.stats()
    (fault,) = stats.faults
    assert fault.startswith(f"{oldest} cannot be removed: Operation not permitted: it is protected")
    assert stats.dropped_by == {"disk full": stats.dropped}
    subprocess.run(["chattr", "-i", oldest], check=True)
    buffer.tick(1.0)
    assert (buffer.stats().faults, oldest.exists()) == ([], False)


def all_arrived(arrived: list[int], file: Path) -> None:
    """All but perhaps one that was read, and not handed over yet, when the daemon was stopped."""
    assert arrived == list(range(len(arrived)))
    assert counting_driver.counted(file) - len(arrived) <= 1


def acknowledged(received: list[Received]) -> list[Received]:
    return [message for message in received if message.answer is not None]


async def take_all(hog: Any) -> None:
    """Leave no room to the daemon, whatever it frees."""
    while True:
        fill_up(hog)
        await asyncio.sleep(0.001)


def fill_up(hog: Any) -> None:
    for size in (1 << 16, 1 << 10):
        try:
            while hog.write(bytes(size)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
