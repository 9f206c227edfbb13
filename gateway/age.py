"""How old a batch is for certain, whatever the clocks of this box did meanwhile."""

from gateway.reading import ClockState, Instant
from gateway.wire import Batch


def age_ms(batch: Batch, boot: int, now: Instant) -> int | None:
    """Return the age of the youngest reading in ms; None: the clocks do not tell.

    In the boot that it was taken in, the time since boot tells, which nobody sets. Of another boot
    only the wall clock is left: it must have been synchronised then, and be so now.
    """
    youngest = max(batch.readings, key=lambda reading: reading.instant.boot_ms).instant
    if batch.boot == boot:
        return now.boot_ms - youngest.boot_ms
    if min(batch.clock, now.clock) < ClockState.SYNCED:
        return None
    return now.wall_ms - youngest.wall_ms
