"""What had to be given up: recorded on disk, counted by reason, and told."""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

from gateway import acked, flushed
from gateway.aside import LIST
from gateway.damage import DAMAGED, Damage
from gateway.disk import Disk, remedy
from gateway.held import Held
from gateway.measure import counted
from gateway.refused import GONE
from gateway.spool import Spool

DAMAGED_BYTES = 16 << 20
"""What copies of damaged bytes may take."""
COPIES = 200
"""So many are made in one run: a card in its last days has thousands of bad places."""
TOLD = 20

SEGMENTS = "*.seg"
"""All of them, and acked with them, which else tells what they held."""

_GONE = {
    SEGMENTS: "what was sealed and not delivered is lost with it, nobody knows how much",
    flushed.NAME: "what was flushed since the last batch is lost with it, nobody knows how much",
    acked.NAME: "all that lies there may be sent once more; whether more is missing nobody knows",
    LIST: "whether somebody removed a refused batch nobody knows",
}

_OF_ONE = "what was sealed in it and not delivered counts as lost"

_WHO = "was it somebody, or a failing disk? Look for errors in dmesg"

_REMEDIES = {
    "buffer full": "raise [buffer] max_size, or mend the uplink",
    "keep_free": "free space on this disk, or lower [buffer] keep_free",
    "disk full": "free space on this disk",
    "out of inodes": "remove small files on this disk, `df -i` counts them",
    "older than max_age": "mend the uplink, or raise [buffer] max_age",
}
"""What keeps what is still there, beside `bygate export`, by the reason for an eviction."""

OVERFLOW, STOPPED = "no room in RAM", "stopped while the disk took nothing"

log = logging.getLogger(__name__)


class Losses:
    """The losses of one buffer. `overflow` is the loop's to call, all else the writer's."""

    def __init__(self, disk: Disk) -> None:
        self.by: Counter[str] = Counter()
        """Readings dropped since the start, by reason."""
        self.told: deque[str] = deque(maxlen=TOLD)
        """What was found to be lost or out of place, for the status; all of it is in the log."""
        self._disk = disk
        self._unrecorded: Counter[str] = Counter()
        self._overflowed = self._overflow_recorded = 0
        self._given_up = 0
        self._damaged: deque[Damage] = deque()
        self._counted: deque[Damage] = deque()
        """What may be blanked by now."""
        self._copied = 0

    @property
    def overflowing(self) -> int:
        """Readings for which there was no room in RAM, and of which the disk does not know yet."""
        return self._overflowed - self._overflow_recorded

    @property
    def in_ram(self) -> int:
        """Readings that are lost, which the disk does not know yet since it takes nothing."""
        return self.overflowing + self._given_up

    def overflow(self) -> None:
        """Count a reading for which there was no room in RAM."""
        if not self.overflowing:
            log.error(
                "buffer: %s: no room in RAM for more readings: the oldest go, and are counted, "
                "until the disk takes what waits there",
                self._disk.directory,
            )
        self._overflowed += 1
        self.by[OVERFLOW] += 1

    def give_up(self, spool: Spool, readings: int) -> None:
        """Count what a stop takes along, for ever where the disk still takes what is overwritten.

        Else it is recorded should the disk take something yet.
        """
        self.by[STOPPED] += readings
        self._given_up += readings
        overflow = self.overflowing
        if spool.recovered:
            with suppress(OSError):
                spool.drop_unrecorded(overflow + self._given_up)
                self._overflow_recorded += overflow
                self._given_up = 0

    def record(self, spool: Spool, readings: int, reason: str, *of: str, sequence: int = 0) -> None:
        """Count a loss, and have the spool remember it; raises OSError.

        `of` names what is removed next: a start after a power cut between the two meets it again,
        perhaps under one of the names alone. `sequence` is that of a batch, where its file stays.
        """
        if spool.recorded.knows(of):
            return
        spool.record_loss(sequence or 1, sequence, readings, reason, *of)
        self.by[reason] += readings

    def record_later(self, readings: int, reason: str) -> None:
        """Have a loss recorded once the disk can."""
        if readings:
            self._unrecorded[reason] += readings

    def record_all(self, spool: Spool) -> None:
        """Record what is not yet; raises OSError."""
        if overflow := self.overflowing:
            spool.record_loss(1, 0, overflow, OVERFLOW)  # by its reason it is counted already
            self._overflow_recorded += overflow
            dropped = counted(overflow, "reading")
            log.error("buffer: %s: %s dropped: %s", self._disk.directory, dropped, OVERFLOW)
        if self._given_up:
            spool.record_loss(1, 0, self._given_up, STOPPED)  # likewise
            self._given_up = 0
        for reason in list(self._unrecorded):
            self.record(spool, self._unrecorded[reason], reason)
            del self._unrecorded[reason]

    def evicted(self, readings: int, reason: str) -> None:
        """Count what the spool has evicted, and recorded."""
        self.by[reason] += readings
        log.warning(
            "buffer: %s: %s dropped, the oldest: %s: %s; `bygate export` saves what is left",
            *(self._disk.directory, counted(readings, "reading"), reason, _REMEDIES[reason]),
        )

    def removed(self, readings: int) -> None:
        """Count what was in a directory that somebody took away."""
        self.record_later(readings, GONE)
        self._tell(
            f"{self._disk.directory} was removed or replaced while it was in use: {readings} "
            f"readings on it are lost; it was begun anew: {_WHO}"
        )

    def made_way(self, name: str, aside: str) -> None:
        """Tell of what stood in place of a file of ours."""
        self._tell(f"{self._disk.directory}: {name} is not one of this bygate's: kept as {aside}")

    def another_journal(self) -> None:
        """Tell that what was flushed was so by another box, at least in part."""
        self._tell(
            f"{self._disk.directory}: {flushed.NAME} is another buffer's, at least in part: what "
            "has numbers in it that were given here counts as lost, the rest goes out: does it "
            "belong on another card?"
        )

    def gone(self, names: Iterable[str], how: str = "gone") -> None:
        """Tell of files of ours that are not there, or not as they were, though others are."""
        for name in names:
            self._tell(f"{self._disk.directory}: {name} is {how}: {_GONE[name]}: {_WHO}")

    def broken(self, names: Mapping[str, OSError]) -> None:
        """Tell of files of ours whose inode cannot be read, and why."""
        for name, error in names.items():
            why = remedy(error, self._disk.directory / name)
            self._tell(f"{why}; until then it is let be: {_GONE.get(name, _OF_ONE)}")

    def found(self, damaged: Iterable[Damage]) -> None:
        """Take up what recovery could not read as it was written."""
        self._damaged, self._counted = deque(damaged), deque()

    @property
    def left(self) -> int:
        """How many readings were lost, of what was found, that are not counted yet."""
        return sum(damage.lost or 0 for damage in self._damaged)

    def set_damage_aside(self, spool: Spool) -> None:
        """Count what cannot be read, once, report it, and keep a copy; raises OSError."""
        self.count_damage(spool)
        self.blank()
        for held, damage in spool.readback.spoilt():
            self._count(spool, damage)
            spool.readback.give_up_spoilt(held)
            self._set_aside(damage)
            self._keep_the_newest()
            self.blank()

    def count_damage(self, spool: Spool) -> None:
        """Do the same, but leave it where it is until `blank`; raises OSError."""
        while self._damaged:
            self._count(spool, self._damaged[0])
            self._set_aside(self._damaged.popleft())
        if self._copied:
            self._keep_the_newest()

    def blank(self) -> None:
        """Have a start meet no more what was counted; raises OSError.

        What cannot be written to is let be then: nothing is to wait for it.
        """
        while self._counted:
            self._counted.popleft().blank(self._disk)

    def _count(self, spool: Spool, damage: Damage) -> None:
        if damage.lost:
            self.record(spool, damage.lost, "damaged on disk", *damage.names)

    def _set_aside(self, damage: Damage) -> None:
        if not damage.data:
            self._tell(
                f"{self._disk.directory}: {damage.cost} readings lost: a file was cut off or "
                f"removed, at byte {damage.at} of {damage.name or 'the first segment'} they are "
                f"missing: {_WHO}"
            )
            self._counted.append(damage)
            return
        copied = self._copied < COPIES and damage.copy(self._disk)
        self._copied += copied
        if copied:
            where = damage.aside
        elif self._copied < COPIES:
            where = f"left in {damage.name}: no copy could be written"
        else:
            where = f"no copy: {COPIES} were made, replace the SD card or drive"
        self.told.append(f"{damage.cost} readings lost: {where}")
        log.error(
            "buffer: %d bytes of %s damaged, %s readings lost, %s: cut off by a power failure, or "
            "a failing disk: look for errors in dmesg",
            *(len(damage.data), damage.name, damage.cost, f"kept as {where}" if copied else where),
        )
        if copied or self._copied >= COPIES:
            self._counted.append(damage)

    def _keep_the_newest(self) -> None:
        """Remove the oldest copies while there are too many: a card that dies makes ever more.

        One that is broken, or cannot be removed, holds up nothing.
        """
        copies = [name for name in self._disk.names() if name.endswith(DAMAGED)]
        names = [name for name in copies if not self._disk.broken(name)]
        over = sum(map(self._disk.size, names)) - DAMAGED_BYTES
        if over > 0:
            names.sort(key=lambda name: (self._disk.directory / name).stat().st_mtime_ns)
        while over > 0 and names:
            size = self._disk.size(name := names.pop(0))
            with suppress(OSError):
                self._disk.remove(name)
                over -= size
                self._tell(
                    f"{self._disk.directory}: {name} removed: only the newest 16 MiB are kept"
                )

    def unreadable(self, spool: Spool, held: Held) -> None:
        """Count a batch that cannot be read, and let go of it; raises OSError."""
        of = f"{held.segment}-{held.offset}"
        self.record(spool, held.readings, "damaged on disk", of, sequence=held.sequence)
        spool.readback.give_up_unread(held)
        self._tell(
            f"{self._disk.directory}: {held.readings} readings lost: {of} cannot be read, the file "
            "is kept: the disk fails: replace the SD card or drive"
        )

    def _tell(self, loss: str) -> None:
        log.error("buffer: %s", loss)
        self.told.append(loss)
