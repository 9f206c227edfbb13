"""What lies on the disk: found again at a start, and in another directory that came in its place.

    start, or another directory ──▶ make way ──▶ spool ──▶ journal ──▶ names above all of them
                                                  ▲            │
                                                  └── frames ──┘

Each step is done once for a directory, however often the disk fails meanwhile.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, starmap
from pathlib import Path

from gateway import acked, flushed, record
from gateway.aside import LIST, NEW
from gateway.damage import Damage
from gateway.disk import Disk, of_another_version
from gateway.flushed import Content, Flushed
from gateway.held import Held
from gateway.intake import Intake
from gateway.journal import Journal
from gateway.losses import SEGMENTS, Losses
from gateway.reading import Reading
from gateway.refused import DIRECTORY, Refused
from gateway.segments import LARGEST_FILE, is_segment
from gateway.spool import Spool

_BEGUN = {flushed.NAME: flushed.SLOT * flushed.SLOTS, acked.NAME: 2 * acked.PAGE, LIST: 0}
"""What is there before the first segment, and how many bytes it has at least from then on."""


class Store:
    """Journal and spool of the directory that is there now.

    `acknowledge`, `delivered` and `unsealed` only touch memory; all else works on the disk, is the
    writer's, and may raise OSError: it goes on where it failed when it is called again.
    """

    def __init__(self, disk: Disk, refused: Refused, losses: Losses, intake: Intake) -> None:
        self.journal, self.spool = Journal(disk), Spool(disk)
        self.recovered = False
        """Whether all is known of what the directory holds."""
        self.inherited = 0
        """The highest sequence of the runs before this one; 0 until the disk has told."""
        self.offered_again = 0
        """How often batches have come among those that wait, which may be anywhere there."""
        self._disk, self._refused, self._losses, self._intake = disk, refused, losses, intake
        self._gone: Spool | None = None
        """That of the directory before, until all is known of what came in its place."""
        self._removed: dict[tuple[int, int], int] = {}
        """How many readings were left of the batches, by name, of which some are counted."""
        self._delivered: tuple[int, int] | None = None
        """The batch that was delivered last, which may wait for a moment more."""
        self._left = 0
        """Readings that were lost there, which could not be recorded yet."""
        self._another = False
        """Whether the journal is another buffer's, and that is not told yet."""
        self._unsealed: deque[list[Flushed]] | None = None
        """What the journal holds of batches still to be sealed; None while it is unread."""

    @property
    def unsealed(self) -> list[Reading]:
        """What the journal holds for batches still to be sealed, as far as it is known."""
        return [r for parts in list(self._unsealed or ()) for part in parts for r in part.readings]

    def recover(self) -> None:
        """Know what the directory holds, whichever it is by now."""
        if self._disk.replaced():
            self._begin_anew()
        if not self.recovered:
            self._recover()

    def _begin_anew(self) -> None:
        """Go on in another directory: somebody removed ours, or put one in its place."""
        self._disk.reopen()
        # What a journal there holds of it is overwritten only when it is in the spool
        self._intake.seal(self.spool)
        for batch in self._intake.sealed:
            batch.journaled = 0
        if self._unsealed:
            self._losses.removed(len(self.unsealed))
        if self.spool.recovered:
            self._follow()  # that one was gone before it was known
            left = self._losses.left
            if not self.recovered:  # of what was found in the journal alone
                left += sum(damage.lost or 0 for damage in self.spool.damage())
            self._gone, self._left = self.spool, left
            self._losses.found(())
        self.spool, self.recovered = Spool(self._disk), False
        self._unsealed = None

    def _follow(self) -> None:
        """Go on where the directory before ended, and count what is not here of what it held."""
        if self._gone:
            self._losses.removed(sum(starmap(self._count, self.spool.follow(self._gone).items())))
            if not self.spool.goes_on(self._gone):  # else the damage is found again
                self._losses.record_later(self._left, "damaged on disk")
            self._gone, self._left = None, 0

    def _count(self, name: tuple[int, int], readings: range) -> int:
        """Return how many of these of a batch, which are not here, are not counted yet.

        A mount that comes and goes takes the same ones with it each time.
        """
        if name == self._delivered:
            return 0
        left = min(self._removed.get(name, readings.stop), readings.stop)
        self._removed[name] = min(left, readings.start)
        return left - self._removed[name]

    def _make_way(self) -> None:
        # To ask for the names locks the directory: before anything changes there it is ours
        segments = filter(is_segment, self._disk.names())  # files: who opens a pipe waits for ever
        if _are_of_another_version([Path(self._disk.directory, name) for name in segments]):
            self._move({acked.NAME: _is_none})  # it tells of them
            self._disk.sync_directory()  # without them it would be taken for ours
        self._move({flushed.NAME: _journal, acked.NAME: _acked, DIRECTORY: Path.is_dir})
        self._move(dict.fromkeys((LIST, NEW), _small))
        self._move(dict.fromkeys(filter(is_segment, self._disk.entries()), _segment))

    def _move(self, ours: Mapping[str, Callable[[Path], bool]]) -> None:
        for name, fits in ours.items():
            if aside := self._disk.make_way(name, fits):
                self._losses.made_way(name, aside)

    def _recover(self) -> None:
        self._make_way()
        if not self.spool.recovered:
            self._recover_spool()
        if self._unsealed is None:
            self._unsealed = self._recover_journal()
        # Once the others are sealed under its name, a start that is cut off here knows it no more
        self._losses.count_damage(self.spool)
        if self._another:
            self._losses.another_journal()
            self._another = False
        while self._unsealed:
            self._seal_frames(self._unsealed[0])
            self._unsealed.popleft()
        # Not before: such a start would miss what stood there once more, and what was mended
        self._losses.blank()
        self._intake.follow(self.spool.previous)
        self._intake.name_anew(self.spool, max(self.spool.last, self._refused.last))
        self._follow()
        self._refused.begin()
        self.spool.begin(self._intake.epoch)
        self._intake.go_on_behind(max(self.spool.last, self._refused.last))
        self._losses.found(self.spool.damage())
        self.recovered = True

    def _recover_spool(self) -> None:
        """Read what there is, which can be delivered although the disk may take nothing."""
        spool, intake = Spool(self._disk), self._intake
        names = self._disk.names()
        spool.recover()
        ours = [name for name in names if name in _BEGUN or is_segment(name)]
        broken = {name: why for name in ours if (why := self._disk.broken_for_good(name))}
        self._losses.broken(broken)
        if any(map(is_segment, names)):
            self._losses.gone(name for name in _BEGUN if name not in names)
            there = (name for name in _BEGUN if name in names and name not in broken)
            self._losses.gone((n for n in there if self._disk.size(n) < _BEGUN[n]), "cut off")
            self._losses.gone([acked.NAME] * spool.acked_unreadable, "unreadable, at least in part")
        for held in list(spool.waiting()):
            if held.epoch == intake.epoch and held.sequence in intake.renamed:
                spool.acknowledge(held)
        if self._gone:
            spool.dropped = max(spool.dropped, self._gone.dropped)
        self.inherited = max(self.inherited, spool.last)
        self.spool = spool
        self._refused.recover(spool.waits)
        spool.lie_aside(self._refused.kept())
        self._let_go_of_refused()
        if self._gone:
            self.offered_again += 1

    def _let_go_of_refused(self) -> None:
        """Note what a kill left unnoted: evicted, too, such a batch would be counted twice."""
        for held in list(self.spool.waiting()):
            here = held.name in self._refused.offered.here and self._refused.on_device(held.name)
            if here and here == self.spool.payload(held):
                self.spool.acknowledge(held)

    def _recover_journal(self) -> deque[list[Flushed]]:
        """Return the frames of what is neither in the spool, in RAM nor aside, by batch in order.

        Of one that lies aside there may be the beginning alone, which would take its place.
        """
        names = self._disk.names()
        there = self.journal.recover(self.spool.sealed)
        self.spool.go_by(there.history)
        frames, damaged, theirs = there.unsealed, there.damaged, list(self._theirs(there))
        self._losses.found([*damaged, *theirs])
        self._another = bool(theirs)
        if frames and acked.NAME not in names and not any(map(is_segment, names)):
            self._losses.gone([SEGMENTS])
        intake = self._intake
        for batch in intake.sealed:  # an image of this run may have the beginning of one
            begun = [len(frame.readings) for frame in frames if frame.name == batch.name]
            batch.journaled = 0 if damaged else sum(begun)
        in_ram = intake.renamed | {batch.sequence for batch in intake.sealed}
        frames = [f for f in frames if f.epoch != intake.epoch or f.sequence not in in_ram]
        aside = {name for name in {frame.name for frame in frames} if self._refused.keeps(name)}
        frames = [frame for frame in frames if frame.name not in aside]
        frames.sort(key=_name)
        self.spool.saved(frames)
        self.inherited = max([self.inherited, *(frame.sequence for frame in frames)])
        return deque(list(parts) for _, parts in groupby(frames, _name))

    def _theirs(self, there: Content) -> Iterator[Damage]:
        """Yield the frames that another buffer's journal has, as damage, with what each costs.

        One costs something if its number was given here, to another batch. One that is numbered
        above goes on as ours do, and is blanked, or the next start would take it for such a one.
        What this run flushed is ours, though the segments are another's by now.
        """
        run, ours = self._intake.epoch, self.spool.history
        theirs = [(f, damage) for f, damage in there.frames if f.history != ours and f.epoch != run]
        names = self.spool.sealed_names() if theirs else set()
        for frame, damage in theirs:
            lost = frame.sequence <= self.spool.sealed and frame.name not in names
            yield damage if lost else replace(damage, lost=0, unsure=False)

    def _seal_frames(self, parts: list[Flushed]) -> None:
        readings = [reading for part in parts for reading in part.readings]
        sequence, epoch, boot = _name(parts[0])
        self._intake.encode(self.spool, epoch, sequence, boot, readings).append_to(self.spool)

    def delivered(self, held: Held) -> None:
        """Note that a batch was delivered, though it is kept: it is not lost with its disk."""
        self._delivered = held.name

    def acknowledge(self, held: Held) -> None:
        """Let go of a batch that was delivered, also of one in the directory before."""
        gone = self._gone
        if gone and held in gone.waiting(held.sequence - 1, held.sequence + 1):
            gone.acknowledge(held)
        self.spool.acknowledge(held)

    def read_again(self) -> None:
        """Offer what can be read by now; give up what cannot for long, though the disk is there."""
        if not self.spool.readback.unread:
            return
        if self._disk.dead():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        readable, lost = self.spool.readback.read_again()
        self.offered_again += readable
        for held in lost:
            self._losses.unreadable(self.spool, held)


def _small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST_FILE


def _journal(path: Path) -> bool:
    return _small(path) and not of_another_version(path, flushed.MAGIC)


def _acked(path: Path) -> bool:
    if not _small(path):
        return False
    with suppress(OSError):
        return acked.is_ours(path.read_bytes())
    return True  # what cannot be read is no other's for that


def _is_none(_: Path) -> bool:
    return False


def _are_of_another_version(segments: list[Path]) -> bool:
    """Whether some are, and none of the others has a record of this version."""
    theirs = {path for path in segments if of_another_version(path, record.MAGIC)}
    return bool(theirs) and not any(_has_records(path) for path in set(segments) - theirs)


def _has_records(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return record.MAGIC in file.read(LARGEST_FILE)
    return False


def _segment(path: Path) -> bool:
    if path.is_file() and not _small(path):  # somebody may have written behind what is ours
        with path.open("rb") as file:
            return file.read(len(record.MAGIC)) == record.MAGIC
    return _small(path) and not of_another_version(path, record.MAGIC)


def _name(frame: Flushed) -> tuple[int, int, int]:
    return frame.sequence, frame.epoch, frame.boot
