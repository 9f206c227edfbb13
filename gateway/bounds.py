"""How much a buffer may hold, and for how long; what is beyond that goes, the oldest first."""

from contextlib import suppress

from gateway.age import age_ms
from gateway.cause import FULL
from gateway.clock import Clock
from gateway.disk import Disk
from gateway.held import Held
from gateway.losses import Losses
from gateway.reading import Instant
from gateway.settings import BufferSettings
from gateway.spool import Spool
from gateway.wire import WireError, decode

MAX_SIZE = 512 << 20
KEEP_FREE = 64 << 20
SMALL = 10
"""KEEP_FREE is at most this part of the partition: on one of 64 MiB it would leave no room."""
SEGMENTS = 8
"""There is room and time for as many at least: what is done with takes little of either."""
AGES_EVERY = 60.0
"""Seconds between two looks for what is older than max_age."""


def most(disk: Disk, settings: BufferSettings) -> int:
    """Return how many bytes there may be at most."""
    return settings.max_size or min(MAX_SIZE, disk.room()[1] // 2)


def kept_free(total: int, settings: BufferSettings) -> int:
    """Return how many bytes of a partition of so many are left to others."""
    given = settings.keep_free
    return min(KEEP_FREE, total // SMALL) if given is None else given


def room(disk: Disk, settings: BufferSettings, size: int) -> int:
    """Return how many bytes still fit beside the `size` that there are; below 0: too many."""
    return min(-_too_few(disk, settings), most(disk, settings) - size)


def _too_few(disk: Disk, settings: BufferSettings) -> int:
    """Return how many more bytes ought to be free; below 0: so many are free besides."""
    free, total = disk.room()
    return kept_free(total, settings) - free


class Bounds:
    """Those of one buffer. `clock` tells what is older than max_age; without one nothing is."""

    def __init__(
        self, disk: Disk, settings: BufferSettings, losses: Losses, boot: int, clock: Clock | None
    ) -> None:
        self.room: int | None = None
        """Bytes that still fit, None while that cannot be told."""
        self._disk, self._settings, self._losses = disk, settings, losses
        self._boot, self._clock, self._next_ages, self._leave_at = boot, clock, 0.0, 0.0

    def keep(self, spool: Spool, beside: int) -> None:
        """Evict what is too much for the space, where `beside` bytes lie beside the spool."""
        spool.tidy()
        held, allowed = spool.size + beside, most(self._disk, self._settings)
        # What cannot be removed takes its room as well, but no more than half: else it would have
        # all go that comes, for as long as it lies there
        held -= max(spool.stuck - allowed // 2, 0)
        spool.bound_segments(allowed // SEGMENTS)
        self.room = room(self._disk, self._settings, held)
        self._evict(spool, held - allowed, "buffer full")
        short = _too_few(self._disk, self._settings)
        # Else it is others that fill the disk, or what cannot be removed: nothing would help
        if short <= spool.size - spool.stuck:
            self._evict(spool, short, "keep_free")

    def _evict(self, spool: Spool, short: int, reason: str) -> None:
        while short > 0 and spool.makes_room and (before := spool.size):
            lost = spool.evict(reason)
            if not lost:
                break
            self._losses.evicted(lost, reason)
            short -= before - spool.size

    def make_room(self, spool: Spool) -> bool:
        """Remove what is done with, else the oldest of what waits; whether anything went."""
        if spool.tidy():
            return True
        if not spool.makes_room:
            return False
        reason = "out of inodes" if self._disk.out_of_inodes() else "disk full"
        lost = spool.evict_unrecorded()
        if lost:
            self._losses.evicted(lost, reason)
        return lost > 0

    def drop_old(self, spool: Spool, now: float) -> None:
        """Drop the segments that are older than max_age, all of their readings, for certain."""
        allowed = self._settings.max_age
        if allowed is None or self._clock is None or now < self._next_ages:
            return
        if now >= self._leave_at and _leave_segment(spool):
            self._leave_at = now + allowed / SEGMENTS
        old, at = "", self._clock.now()
        for held in spool.ends():
            age = self._age_ms(spool, held, at)
            if age is not None and age <= allowed * 1000:
                break
            if age is not None:  # and so is all that was sealed before it
                old = held.segment
        while old and (lost := spool.evict("older than max_age", until=old)):
            self._losses.evicted(lost, "older than max_age")
        self._next_ages = now + AGES_EVERY

    def _age_ms(self, spool: Spool, held: Held, now: Instant) -> int | None:
        with suppress(WireError):
            return age_ms(decode(spool.payload(held) or b""), self._boot, now)
        return None


def _leave_segment(spool: Spool) -> bool:
    """Return whether it could be: on a full disk nothing has to go for it, as for a batch."""
    try:
        spool.leave_segment()
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True
