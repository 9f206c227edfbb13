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


class LoopDiskError(Exception):
    """No such disk can be made here; the text says why."""


class LoopDisk:
    """The disk, mounted while its context is open. Raises LoopDiskError on entry."""

    def __init__(self, size: int, directory: Path, name: str = "disk") -> None:
        self.path = directory / name
        self._image, self._size = directory / f"{name}.img", size
        self._device = ""

    def __enter__(self) -> Self:
        with self._image.open("wb") as image:
            image.truncate(self._size)
        self.path.mkdir()
        # without lazy initialisation, which would go on writing behind us
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self._device = run("losetup", "--find", "--show", str(self._image)).strip()
        try:
            run("mount", self._device, str(self.path))
        except LoopDiskError:
            run("losetup", "--detach", self._device)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        run("umount", "--lazy", str(self.path))
        run("losetup", "--detach", self._device)
        self._image.unlink()

    def mount_again(self, how: str) -> None:
        """Mount it `ro` or `rw`."""
        run("mount", "-o", f"remount,{how}", str(self.path))

    def written(self) -> int:
        """Return how many bytes were written to the device so far, all that is dirty included."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        run("sync", "--file-system", str(self.path))
        stat = Path("/sys/block", Path(self._device).name, "stat").read_text().split()
        return int(stat[6]) * _SECTOR


def run(*command: str) -> str:
    """Run a command of the system's and return what it prints; raises LoopDiskError."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
        )
    except FileNotFoundError:
        raise LoopDiskError(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise LoopDiskError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return done.stdout
