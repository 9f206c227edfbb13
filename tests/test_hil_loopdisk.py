"""A disk of its own for a test: it counts what reaches it, and goes with whoever made it."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from select import POLLPRI, poll

import pytest
from trials import mounted

from hil.loopdisk import LoopDisk, run

MAKES_ONE = """
import sys
from pathlib import Path
from hil.loopdisk import LoopDisk

with LoopDisk(1 << 20, Path(sys.argv[1])):
    print("mounted", flush=True)
    sys.stdin.read()
"""
SECONDS = 20


@pytest.fixture
def disk(tmp_path: Path) -> LoopDisk:
    with ExitStack() as stack:
        return mounted(stack, LoopDisk(1 << 20, tmp_path))


def gone(path: Path) -> bool:
    """Whether it is no mount any more within a while, as the kernel tells of each change."""
    with Path("/proc/self/mountinfo").open() as mounts:
        changes = poll()
        changes.register(mounts, POLLPRI)
        while path.is_mount():
            if not changes.poll(SECONDS * 1000):
                return False
    return True


def test_it_counts_what_reaches_the_device(tmp_path: Path):
    with ExitStack() as stack:
        disk = mounted(stack, LoopDisk(4 << 20, tmp_path))
        before = disk.written()
        (disk.path / "file").write_bytes(bytes(1 << 20))
        assert 1 << 20 <= disk.written() - before < 2 << 20


def test_nothing_of_it_is_left(disk: LoopDisk, tmp_path: Path):
    assert not disk.path.is_mount()
    assert list(tmp_path.iterdir()) == [disk.path]
    assert str(tmp_path) not in run("losetup", "--list")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=lambda sign: sign.name)
@pytest.mark.usefixtures("disk")
def test_nothing_of_it_is_left_by_a_group_of_processes_that_is_killed(
    tmp_path: Path, sign: signal.Signals
):
    (place := tmp_path / "place").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", MAKES_ONE, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stdout and process.stdout.readline() == b"mounted\n"
        assert (place / "disk").is_mount()
        os.killpg(process.pid, sign)
        assert gone(place / "disk")
