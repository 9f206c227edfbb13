"""The files of the spool: they only grow, the newest at its end, and go as a whole.

    NNNNNNNN.seg:  head | record | record | …      about 1 MiB each, fewer in a small buffer

Each record is told its place: how many readings were sealed before it.
"""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock

from gateway.cause import cause
from gateway.damage import DAMAGED
from gateway.disk import Disk
from gateway.record import NOWHERE, Place, Record, pack, size_of

SEGMENT_BYTES = 1 << 20
SMALLEST = 128 << 10
"""Bytes: the largest batch and a head fit."""
LARGEST_FILE = 4 << 20
"""Bytes; what is behind is none of ours, and reading it would take all of the memory."""

_ENDING = ".seg"
_NUMBERED = re.compile(r"([0-9]{8,200})\.seg")

log = logging.getLogger(__name__)


def is_segment(name: str) -> bool:
    """Whether this is the name of a segment."""
    return _NUMBERED.fullmatch(name) is not None


def number_of(name: str) -> int:
    """Return the number in the name of a segment: they count up."""
    return int(name.removesuffix(_ENDING))


@dataclass(slots=True)
class Segment:
    """One of the files, as far as it is known."""

    name: str
    size: int = 0
    first: int = 0
    """Its lowest sequence; 0 while none is known."""
    place: Place = NOWHERE
    """That of the next record."""
    bad: list[int] = field(default_factory=list)
    """Where the blocks begin that cannot be read: the file is kept for good."""
    history: int = 0
    """Of which directory its head tells; 0: it does not."""


class Segments:
    """Those of one directory. `size` may be asked for beside the writer, who calls all else."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = Lock()
        self._all: dict[str, Segment] = {}
        self._number = 0
        self.bound = SMALLEST
        """Bytes of one that is filled; few until it is known how many there may be."""
        self.usable = False
        """Whether the newest one can be written on: what a sync promised of it holds."""
        self.total = 0
        """Readings that were sealed so far, as the records tell."""
        self.stuck: dict[str, int | None] = {}
        """What is done with and cannot be removed, and the number of the error."""
        self.faults: list[str] = []
        """The same for people, one of each kind, and what mends it."""

    def find(self, names: list[str]) -> list[str]:
        """Return which of the names are segments', in order; new ones come behind all of them."""
        found = [int(number[1]) for number in map(_NUMBERED.match, names) if number]
        self._number = max(found, default=0)  # what was set aside may be put back
        return sorted(filter(is_segment, names), key=number_of)

    def add(self, segment: Segment) -> None:
        """Take up one that was there."""
        with self._lock:
            self._all[segment.name] = segment

    def begin(self, head: Record) -> None:
        """Begin the next one, which has this head, but for its place."""
        self._number += 1
        name = f"{self._number:08}{_ENDING}"
        place = Place(self.total, 0, head.sequence)
        data = pack(replace(head, place=place))
        try:
            self._disk.write(name, 0, data)
            self._disk.sync(name)
            self._disk.sync_directory()
        except OSError:
            with suppress(OSError):  # each attempt would leave one more
                self._disk.remove(name)
            raise
        if self._all:
            self._disk.close(self.newest.name)
        self.add(Segment(name, len(data), head.sequence, place))
        self.usable = True

    def has_room(self, payload: bytes) -> bool:
        """Whether a record of these bytes can still go into the newest one."""
        return self.usable and self.newest.size + size_of(payload) <= self.bound

    def write(self, record: Record) -> Record:
        """Write a record to the newest one; return it with its place, once it is on the device."""
        segment = self.newest
        record = replace(record, place=segment.place, at=segment.size)
        data = pack(record)
        self.usable = False
        try:
            self._disk.write(segment.name, segment.size, data)
        except OSError:
            self._disk.cut(segment.name, segment.size)  # half of it takes room on a full disk
            self.usable = True  # nothing of it was to be synced
            raise
        try:
            self._disk.sync(segment.name)
        except OSError:
            with suppress(OSError):
                self._disk.cut(segment.name, segment.size)
            raise
        self.usable = True
        segment.size += len(data)
        segment.place = record.behind
        self.total = segment.place.total
        return record

    def keep(self, name: str, at: int) -> None:
        """Have the file kept for good, since it cannot be read there."""
        self._all[name].bad.append(at)

    def remove(self, done: list[Segment]) -> bool:
        """Remove all that are done with; whether any went. One that stays holds up no other."""
        stuck: dict[str, OSError] = {}
        for segment in done:
            try:
                self._remove(segment)
            except OSError as error:
                stuck[segment.name] = error
        gone = [segment.name for segment in done if segment.name not in stuck]
        with self._lock:
            for name in gone:
                del self._all[name]
        self._tell(stuck)
        return bool(gone)

    def _remove(self, segment: Segment) -> None:
        """Remove it, but for what cannot be read: that keeps its blocks, under another name."""
        name = segment.name
        if segment.bad and self._disk.exists(name):
            self._disk.rename(name, f"{name}{DAMAGED}")
        else:
            self._disk.remove(name)

    def _tell(self, errors: dict[str, OSError]) -> None:
        """Tell of what stays, the first of each kind: a disk that fails keeps all of them."""
        before, self.stuck = self.stuck, {name: error.errno for name, error in errors.items()}
        directory, faults = self._disk.directory, dict[int | None, str]()
        for name, error in errors.items():
            if error.errno not in faults:
                _, mend = cause(error, directory)
                fault = f"{directory}/{name} cannot be removed: {error.strerror}: {mend}"
                faults[error.errno] = fault
                if error.errno not in before.values():
                    log.error("buffer: %s", fault)
        if before and not errors:
            log.warning("buffer: %s: what could not be removed is gone", directory)
        self.faults = list(faults.values())

    @property
    def stuck_bytes(self) -> int:
        """Bytes on disk that cannot be removed."""
        return sum(self._all[name].size for name in self.stuck)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def history(self, name: str) -> int:
        """Return of which directory a segment's head tells, 0 where it does not."""
        return self._all[name].history

    @property
    def names(self) -> list[str]:
        """Those of all files."""
        return list(self._all)

    @property
    def newest(self) -> Segment:
        """The one that is written to."""
        return next(reversed(self._all.values()))

    @property
    def oldest(self) -> Segment:
        """The first one there is."""
        return next(iter(self._all.values()))

    @property
    def older(self) -> list[Segment]:
        """All but the newest that holds something: that one carries the sequence.

        One that holds nothing is what a start left that was cut off.
        """
        newest = next((s for s in reversed(self._all.values()) if s.first), None)
        return [segment for segment in self._all.values() if segment is not newest]

    @property
    def begins(self) -> Place:
        """Where the oldest that holds something does; NOWHERE: nothing tells."""
        return next((s.place.begin for s in self._all.values() if s.first), NOWHERE)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        with self._lock:
            return sum(segment.size for segment in self._all.values())

    @property
    def end(self) -> tuple[str, int]:
        """The newest segment, and how many bytes it has."""
        return (self.newest.name, self.newest.size) if self._all else ("", 0)
