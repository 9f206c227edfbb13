"""A small ext4 of its own in a file, for root: it can be filled, and counts what is written to it.

with LoopDisk(64 << 20, directory) as disk:
    ...                 # use disk.path
    disk.written()      # bytes that reached the device
"""

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_SECTOR = 512
_UNDO = 'umount --lazy "$1"; rm "$2"'
"""The loop device goes with its last user."""


class LoopDiskError(Exception):
    """No such disk can be made here; the text says why."""


class LoopDisk:
    """The disk, mounted while its context is open, and no longer than this process lives.

    Raises LoopDiskError on entry.
    """

    def __init__(
        self, size: int, directory: Path, name: str = "disk", inodes: int | None = None
    ) -> None:
        """`size` is in bytes; `inodes` bounds how many files there can be, 11 of the system's own.

        None: as many as the size suggests.
        """
        self.path = directory / name
        self._inodes = [] if inodes is None else ["-N", str(inodes)]
        self._image, self._size = directory / f"{name}.img", size

    def __enter__(self) -> Self:
        with self._image.open("wb") as image:
            image.truncate(self._size)
        self.path.mkdir()
        # without lazy initialisation, which would go on writing behind us
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        run("mkfs.ext4", "-q", *self._inodes, "-E", lazy, str(self._image))
        self._undoing = _at_the_end(_UNDO, str(self.path), str(self._image))
        try:
            run("mount", "-o", "loop", str(self._image), str(self.path))
        except LoopDiskError:
            self._undoing.communicate()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        _, said = self._undoing.communicate()
        if said:
            raise LoopDiskError(said.strip())

    def mount_again(self, how: str) -> None:
        """Mount it `ro` or `rw`."""
        run("mount", "-o", f"remount,{how}", str(self.path))

    def damage(self, name: str) -> None:
        """Give a file's inode a wrong checksum; none may be open meanwhile."""
        run("umount", str(self.path))
        run("debugfs", "-wR", f"set_inode_field /{name} checksum 0x1234", str(self._image))
        run("mount", "-o", "loop", str(self._image), str(self.path))

    def written(self) -> int:
        """Return how many bytes were written to the device so far, all that is dirty included."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        run("sync", "--file-system", str(self.path))
        device = self.path.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        stat = Path("/sys/dev/block", number, "stat").read_text().split()
        return int(stat[6]) * _SECTOR


def run(*command: str) -> str:
    """Run a command of the system's and return what it prints; raises LoopDiskError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=_environment()
        )
    except FileNotFoundError:
        raise LoopDiskError(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise LoopDiskError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return done.stdout


def _at_the_end(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Have a shell do it as soon as its input ends: with this process, if that is killed.

    In a session of its own, for a signal may be to all of the group, as those of `timeout` are.
    """
    return subprocess.Popen(
        ["sh", "-c", f"cat; {script}", "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
