"""How fast the buffer fills, and how much it writes: for the status, and for other processes.

One small file, overwritten in place once an hour, unsynced: 25 blocks a day.
"""

import json
import math
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass

from gateway.disk import Disk

NAME = "rates"
RATE_AFTER = 600.0
"""Seconds after which a rate is told of: of less it would be a guess."""
NOTED_EVERY = 3600.0
_SIZE = 256
_DAY = 86_400
_MOST = 1 << 63
"""What no rate comes to, unless the file is damaged: JSON's numbers may be infinite."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What came about in so many seconds."""

    seconds: float
    written: int
    """Bytes written, in whole blocks."""
    sealed: int
    """Bytes of the batches sealed."""

    @property
    def written_day(self) -> int:
        """Bytes written per day, in whole blocks."""
        return round(self.written * _DAY / self.seconds)

    def room_days(self, room: int | None) -> float | None:
        """Return how many days it takes to seal so many bytes; None: nobody can tell."""
        if room is None or not self.sealed:
            return None
        return round(room * self.seconds / _DAY / self.sealed, 1)


class Noted:
    """Writes the rates since the start down, now and then."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._began: float | None = None
        self._next = math.inf

    def note(self, now: float, written: int, sealed: int) -> None:
        """Write them if it is time; where that fails they are not worth a fault."""
        if self._began is None:
            self._began, self._next = now, now + RATE_AFTER
        if self._next <= now < math.inf:
            rates = Rates(round(now - self._began, 3), written, sealed)
            with suppress(OSError):
                self._disk.write(NAME, 0, json.dumps(asdict(rates)).encode().ljust(_SIZE))
            self._next = now + NOTED_EVERY


def noted(disk: Disk) -> Rates | None:
    """Return what was noted last, None where nothing was, or something else stands there."""
    try:
        rates = Rates(**json.loads(disk.read(NAME, 0, _SIZE)))
        known = all(0 <= number < _MOST for number in astuple(rates))
    except (ValueError, TypeError):
        return None
    return rates if known and rates.seconds >= RATE_AFTER else None
