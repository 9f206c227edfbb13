"""The power cut under a real ext4: its device keeps what was flushed, and any part of the rest."""

import subprocess
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from test_buffer import batches, take
from trials import mounted, times

from gateway.buffer import Buffer
from gateway.disk import LOCK, Disk
from gateway.settings import BufferSettings
from hil.loopdisk import run
from hil.powercut import PowerCutDisk

SETTINGS = BufferSettings(flush_interval=10, seal_interval=60, keep_free=0)
SIZE = 16 << 20


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ext4 with a journal, as bytes."""
    image = tmp_path_factory.mktemp("image") / "disk"
    image.write_bytes(bytes(SIZE))
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    command = ("/usr/sbin/mkfs.ext4", "-q", "-b", "4096", "-E", lazy, str(image))
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 can be made here: {error}")
    return image.read_bytes()


def work_until_cut(disk: PowerCutDisk, random: Random) -> set[object]:
    """Fill a buffer on the disk till its power is cut; return what was flushed by then."""
    flushed: set[object] = set()
    kept: set[object] = set()
    disk.on_cut = lambda: kept.update(flushed)
    buffer = Buffer(Disk(disk.path / "state"), SETTINGS, "trd-0042", boot=7, epoch=1)
    buffer.tick(0.0)
    disk.cut_after(random.randint(1, 60))
    number, now = 0, 0.0
    while not disk.image:
        some = set(range(number, number + random.randint(1, 9)))
        take(buffer, *some, durable=True)
        now += random.choice((1, 10, 30))
        buffer.tick(now)
        flushed |= some
        number += len(some)
    buffer.close()
    buffer._disk.close(LOCK)
    return kept


@pytest.mark.parametrize("seed", range(times(50, 1000)))
def test_what_was_flushed_is_there_after_a_power_cut(formatted: bytes, tmp_path: Path, seed: int):
    random, after = Random(seed), tmp_path / "after"
    with ExitStack() as stack:
        disk = mounted(stack, PowerCutDisk(formatted, tmp_path, seed))
        kept = work_until_cut(disk, random)
    after.mkdir()
    (tmp_path / "image").write_bytes(disk.image)
    run("mount", "-o", "loop", str(tmp_path / "image"), str(after))
    try:
        again = Buffer(Disk(after / "state"), SETTINGS, "trd-0042", boot=8, epoch=2)
        again.tick(0.0)
        found = [reading.value for batch in batches(again) for reading in batch.readings]
        assert len(found) == len(set(found))
        assert kept <= set(found)
        assert again.stats().dropped == 0
        again.close()
        again._disk.close(LOCK)
    finally:
        run("umount", "--lazy", str(after))
