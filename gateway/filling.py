"""The batch that is being filled: what it takes, and what needs one of its own."""

from dataclasses import dataclass, field

from gateway.reading import Instant, Reading
from gateway.wire import DEFAULT_SIZE, SizeBound

BATCH_READINGS = 1000
"""A batch holds no more."""
OFFSET_TOLERANCE_MS = 100


@dataclass(slots=True)
class Filling:
    """The batch that is being filled; `journaled` of its readings are on disk."""

    first: Instant
    began: float
    bound: SizeBound
    readings: list[Reading] = field(default_factory=list)
    journaled: int = 0

    def takes(self, reading: Reading) -> bool:
        """Take the reading in, unless it needs a batch of its own."""
        at = reading.instant
        drift = (at.wall_ms - at.boot_ms) - (self.first.wall_ms - self.first.boot_ms)
        if (
            len(self.readings) >= BATCH_READINGS
            or at.clock != self.first.clock
            or abs(drift) > OFFSET_TOLERANCE_MS
            or self.bound.add(reading) > DEFAULT_SIZE
        ):
            return False
        self.readings.append(reading)
        return True
