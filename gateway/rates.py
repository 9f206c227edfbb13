"""How fast the buffer fills, and how much it writes: for the status, and for other processes.

One small file, overwritten in place once an hour, unsynced: 25 blocks a day.
"""

import json
import math
from collections import deque
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


class Meter:
    """Knows the rates of the last day, and writes them down once an hour.

    `note` is for the writer's thread, `rates` may be read beside it.
    """

    def __init__(self, disk: Disk) -> None:
        self.rates: Rates | None = None
        """Of the last 24 to 25 hours, or since the start; in its first 10 minutes as noted last."""
        self._disk = disk
        self._hours: deque[tuple[float, int, int]] = deque()
        self._next = -math.inf

    def note(self, now: float, written: int, sealed: int) -> None:
        """Take down what there is since the start; infinite is the time of the end."""
        if now == math.inf:
            return
        if not self._hours:
            with suppress(OSError):
                self.rates = noted(self._disk)
        self._turn(now, written, sealed)
        began, written_before, sealed_before = self._hours[0]
        if now - began >= RATE_AFTER:
            seconds = round(now - began, 3)
            self.rates = Rates(seconds, written - written_before, sealed - sealed_before)
            self._write(now, self.rates)

    def _turn(self, now: float, written: int, sealed: int) -> None:
        if not self._hours:
            self._hours.append((now, 0, 0))
        if now - self._hours[-1][0] >= NOTED_EVERY:
            self._hours.append((now, written, sealed))
        while len(self._hours) > 1 and now - self._hours[1][0] >= _DAY:
            self._hours.popleft()

    def _write(self, now: float, rates: Rates) -> None:
        if now < self._next:
            return
        with suppress(OSError):  # it is not worth a fault
            self._disk.note(NAME, json.dumps(asdict(rates)).encode().ljust(_SIZE))
        self._next = now + NOTED_EVERY


def noted(disk: Disk) -> Rates | None:
    """Return what was noted last, None where nothing was, or something else stands there."""
    try:
        # At a pipe in its place whoever reads would wait for ever
        rates = Rates(**json.loads(disk.read(NAME, 0, _SIZE) if disk.exists(NAME) else b""))
        known = all(0 <= number < _MOST for number in astuple(rates))
    except (ValueError, TypeError):
        return None
    return rates if known and rates.seconds >= RATE_AFTER else None
