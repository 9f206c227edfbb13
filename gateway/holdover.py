"""Remembers over starts of the daemon that the clock was set in this boot, and is held over.

The kernel does not tell: nine hours after the last NTP answer its bound on the error is again what
it was before the first one (16 s at 500 ppm). Good times would be told as never set (c = 0).
"""

from contextlib import suppress

from gateway.clock import Clock
from gateway.disk import Disk

NAME = "clock"
"""File with the id of the boot; unsynced, for it need not outlast a power cut, the next boot."""


class HoldOver:
    """`note` is for the writer's thread; a fault of the disk is not worth one of the clock."""

    def __init__(self, clock: Clock, disk: Disk) -> None:
        self._clock, self._disk = clock, disk
        self._this_boot = f"{clock.boot:08x}".encode()
        self._noted = False

    def recall(self) -> None:
        """Tell the clock when an earlier run of this boot has seen it set."""
        with suppress(OSError):
            held = self._disk.exists(NAME) and self._disk.read(NAME, 0, len(self._this_boot))
            if held == self._this_boot:
                self._clock.hold_over()

    def note(self) -> None:
        """Write it down once the clock was set."""
        if self._noted or not self._clock.state():
            return
        with suppress(OSError):
            self._disk.note(NAME, self._this_boot)
            self._noted = True
