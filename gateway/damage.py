"""What recovery finds on the disk that is not what was written there: kept aside, then blanked."""

import zlib
from contextlib import suppress
from dataclasses import dataclass

from gateway.disk import Disk

DAMAGED = ".damaged"
"""What the name of a file that is set aside ends with."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a file that are not what was written there, and what that costs."""

    name: str
    at: int
    data: bytes
    lost: int | None
    """How many readings the bytes say to be, which are found nowhere else; None: not known."""
    mended: bytes = b""
    """What belongs there, as far as that is known."""
    unreadable: bool = False
    """Whether the file is let be, since zeros stand in `data` for what cannot be read."""
    unsure: bool = False
    """Whether fewer may be lost."""
    loss: str = ""
    """What the loss is known by, where another start may see it elsewhere."""
    of: str = ""
    """Which batch the bytes belong to, where other ones may come there after them."""

    @property
    def cost(self) -> str:
        """How many readings are lost, as text."""
        if self.lost is None:
            return "unknown"
        return f"at most {self.lost}" if self.unsure else str(self.lost)

    @property
    def aside(self) -> str:
        """The name of the file that they are copied to."""
        return f"{self.mark}{DAMAGED}"

    @property
    def mark(self) -> str:
        """What tells it from other damage, at the same place too."""
        mark = f"{self.name}-{self.at}-{zlib.crc32(self.data):08x}"
        return f"{mark}-{self.of}" if self.of else mark

    @property
    def names(self) -> list[str]:
        """What its loss is known by: bytes that are not there tell it from no other."""
        return [*filter(None, [self.loss]), *([self.mark] if self.data or not self.loss else [])]

    def copy(self, disk: Disk) -> bool:
        """Return whether a copy is on the device; a disk too full for it is not worth a fault."""
        try:
            disk.write(self.aside, 0, self.data)
            disk.cut(self.aside, len(self.data))
            disk.sync(self.aside)
            disk.sync_directory()
        except OSError:
            with suppress(OSError):
                disk.remove(self.aside)
            return False
        disk.close(self.aside)
        return True

    def blank(self, disk: Disk) -> None:
        """Put what belongs there or zeros in their place, so that they are met once."""
        if disk.exists(self.name) and not self.unreadable:
            disk.write(self.name, self.at, self.mended.ljust(len(self.data), b"\0"))
            disk.sync(self.name)
