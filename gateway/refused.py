"""Batches that the broker refused: out of the way, and offered again when somebody asks for it.

    .batch    lies aside
    .again    is offered again, until the broker has answered
    retry     somebody asks: every .batch becomes an .again

Another process makes `retry` and nothing else. All that becomes of a batch is one rename or the
removal of its file, so that a kill between any two steps leaves it there once, under its own name.
Somebody may remove such a file: that is how a batch is given up, and it is counted.
"""

import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from gateway.aside import LIST, Aside, Inventory, Listed, on_disk
from gateway.disk import Disk, remedy
from gateway.held import Held
from gateway.measure import counted
from gateway.offered import Offered
from gateway.wire import WireError, decode

DIRECTORY = "refused"
REFUSED_BYTES = 16 << 20
"""What refused batches may take, or a quarter of max_size; then the oldest of them goes."""
LISTED = 20
"""How many of their names go into the status."""
RETRY = "retry"
"""The file that asks for all of them to be offered again."""
REMOVED = "refused and removed"
"""The reason for which readings are dropped when somebody removes the file of their batch."""
GONE = "state directory removed"
"""The reason when all of the disk is gone that they were on."""

log = logging.getLogger(__name__)


class Refused:
    """The refused batches of one buffer.

    `offered` and `names` may be used beside the others, which do disk work on one thread at a time.
    All but `recover` and `tidy` may raise OSError: these are part of what the whole buffer does in
    its rhythm, which is not to end where only this fails.
    """

    def __init__(self, disk: Disk, inventory: Inventory) -> None:
        self._disk, self._inventory = disk, inventory
        self._sizes: dict[Aside, int] = {}
        self.offered = Offered()
        self._recovered = False
        self._broken: set[Aside] = set()  # those of which not even the inode can be read for now
        self._had: dict[Aside, Listed | None] = {}  # on the disks before this one
        self._unseen: dict[Aside, Listed] = {}  # in the list of one whose files nobody could see
        self._unchecked: set[str] = set()  # those that lay here at the start, by their marks
        self._unlisted: dict[str, Listed] = {}  # what is not in the list yet, by mark
        self.fault: str | None = None
        """What the directory does not do at present, and what mends it."""
        self.damage: deque[str] = deque(maxlen=LISTED)
        """The newest that were found damaged or missing since the start."""
        self.lost: deque[tuple[Listed, str]] = deque()
        """Batches that are lost, and by which reason, until they are counted."""
        self._gone: set[Listed] = set()  # with a disk; a mount may take them along again and again

    def recover(self, waits: Callable[[int, int], bool]) -> None:
        """Read which there are; files that are none of ours are let be.

        Where that fails, `tidy` tries again. `waits` says of an epoch and a sequence whether the
        spool has that batch as well.
        """
        if self._recovered:
            self._had = {aside: self._noted(aside) for aside in self._sizes}
        else:
            self._had |= self._unseen
        self._recovered = False
        with self._kept_in_mind():
            self._read_names()
            self._list()
        self._leave(waits)
        listed = [] if self._recovered else self._inventory.without(())
        self._unseen = {one.aside: one for one in listed if not waits(one.epoch, one.sequence)}

    @contextmanager
    def _kept_in_mind(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fails(remedy(error, self._disk.directory))
        else:
            self.fault = None

    def _fails(self, fault: str) -> None:
        if fault != self.fault:
            log.error("buffer: %s", fault)
        self.fault = fault

    def _read_names(self) -> None:
        known = self._inventory.recover()
        found = [aside for name in self._disk.names() if (aside := Aside.of(name))]
        found.sort(key=lambda aside: (aside.sequence, aside.epoch))
        if not known:
            why = "damaged, kept as .damaged: whether somebody removed a batch nobody knows"
            self._tell(LIST, why)
        broken = {aside: error for aside in found if (error := self._disk.broken(aside.name))}
        if new := [aside for aside in broken if aside not in self._broken]:
            why = remedy(broken[new[0]], self._disk.directory / new[0].name)
            self._tell(_named([aside.name for aside in new]), why)
        self._broken = set(broken)
        sound = [aside for aside in found if aside not in broken]
        before, self._sizes = self._sizes, {a: self._disk.size(a.name) for a in sound}
        for aside in [one for one, size in self._sizes.items() if size > REFUSED_BYTES]:
            self._give_up(aside)  # counted as what waits, it would take the place of all that does
        self.offered.put(self._sizes)
        self._unchecked = {aside.mark for aside in self._sizes}
        unlisted = (self._seen(aside) for aside in found if not self._inventory.get(aside))
        self._unlisted = {one.mark: one for one in filter(None, unlisted)}
        self._recovered = True
        had = dict.fromkeys((*before, *self._had))
        left = self.offered.here | self.offered.delivered
        gone = [aside for aside in had if aside.batch not in left]
        if gone:
            names = [aside.name if aside in before else aside.mark for aside in gone]
            self._tell(_named(names), "gone with the disk it was on")
            lost = {one for aside in gone if (one := self._had.get(aside))} - self._gone
            self._gone |= lost
            self.lost += [(one, GONE) for one in sorted(lost)]
        self._had = {}
        self._miss(self._inventory.without(aside.mark for aside in found), {})

    def _list(self) -> None:
        here = {aside.mark for aside in self._sizes}
        if those := [one for mark, one in self._unlisted.items() if mark in here]:
            self._disk.sync_directory()
            self._inventory.note(those)
        self._unlisted = {}

    def _leave(self, waits: Callable[[int, int], bool]) -> None:
        """List none that the spool counts where it goes from there."""
        for one in list(self._unlisted.values()):
            if waits(one.epoch, one.sequence):
                del self._unlisted[one.mark]

    def _noted(self, aside: Aside) -> Listed | None:
        return self._inventory.get(aside) or self._unlisted.get(aside.mark)

    def begin(self) -> None:
        """Return when there is a list on the device."""
        self._inventory.begin()

    def _seen(self, aside: Aside) -> Listed | None:
        with suppress(OSError):
            self._disk.settle(aside.name)
            return _listed(aside, self._read(aside))
        return None

    def _miss(self, those: list[Listed], names: dict[str, str]) -> None:
        """Have what somebody removed counted, and tell of it, by the names of files as known."""
        known = {one for one, _ in self.lost}
        if those := [one for one in those if one not in known]:
            dropped = sum(one.readings for one in those)
            told = _named([names.get(one.mark, one.mark) for one in those])
            self._tell(told, f"gone: did somebody remove it? {dropped} readings dropped with it")
            self.lost += [(one, REMOVED) for one in those]

    def counted(self) -> None:
        """Strike the first of the lost ones from the list: its loss is recorded."""
        self._inventory.strike([self.lost[0][0].mark])
        self.lost.popleft()

    @property
    def names(self) -> list[str]:
        """The names of their files, oldest first; the last of many entries says how many more."""
        names = [aside.name for aside in list(self._sizes)]
        more = [f"and {len(names) - LISTED} more: bygate buffer lists them"]
        return names if len(names) <= LISTED else names[:LISTED] + more

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(map(on_disk, self._sizes.values()))

    @property
    def last(self) -> int:
        """The highest sequence among them, 0 when there is none."""
        return max((aside.sequence for aside in self._sizes), default=0)

    def was_delivered(self, aside: Aside) -> bool:
        """Whether it was, and `tidy` has not removed its file yet."""
        return aside.batch in self.offered.delivered

    def payload(self, held: Held) -> bytes | None:
        """Return the bytes of a batch that is offered; None when they are not there any more.

        A file that is not that batch is renamed, so that it is met once.
        """
        aside = Aside.of(held.segment)
        if aside not in self._sizes:
            return None
        try:
            payload = self._read(aside)
        except OSError as error:
            why = remedy(error, self._disk.directory / aside.name)
            self._forget([aside])
            self._tell(_named([aside.name]), f"not offered before the next start: {why}")
            return None
        if self._is_sound(aside, payload):
            return payload
        self._give_up(aside)
        return None

    def _check(self, waits: Callable[[int, int], bool]) -> None:
        """Give up what is damaged, but for what waits in the spool, too: from there it is whole."""
        for aside in [one for one in self._sizes if one.mark in self._unchecked]:
            if not waits(aside.epoch, aside.sequence) and self._is_damaged(aside):
                self._give_up(aside)
            self._unchecked.discard(aside.mark)

    def _is_damaged(self, aside: Aside) -> bool:
        try:
            return not self._is_sound(aside, self._read(aside))
        except OSError as error:  # perhaps only for now: it is tried again when it is offered
            self._tell(_named([aside.name]), remedy(error, self._disk.directory / aside.name))
            return False

    def _is_sound(self, aside: Aside, payload: bytes) -> bool:
        if listed := self._noted(aside):
            return zlib.crc32(payload) == listed.crc
        return _listed(aside, payload) is not None

    def _give_up(self, aside: Aside) -> None:
        if not self._disk.exists(aside.name):
            self._forget_gone()
            return
        self._disk.rename(aside.name, f"{aside.name}.damaged")
        self._forget([aside])
        lost = "unknown"
        if listed := self._noted(aside):
            self.lost.append((listed, "damaged on disk"))
            lost = str(listed.readings)
        why = f"damaged, {lost} readings lost, kept as .damaged: look for disk errors in dmesg"
        self._tell(_named([aside.name]), why)

    def _forget_gone(self) -> None:
        """Forget those whose files somebody removed, all at once, so that they are told of once."""
        there, delivered = set(self._disk.names()), set(self.offered.delivered)
        gone = [
            aside
            for aside in self._sizes
            if aside.name not in there and aside.batch not in delivered
        ]
        self._forget(gone)
        unknown = (Listed(aside.sequence, aside.epoch, 0, 0) for aside in gone)
        listed = [self._noted(aside) or no for aside, no in zip(gone, unknown, strict=True)]
        self._miss(listed, {aside.mark: aside.name for aside in gone})

    def _forget(self, those: list[Aside]) -> None:
        for aside in those:
            del self._sizes[aside]
        if those:
            self.offered.put(self._sizes)

    def _tell(self, what: str, why: str) -> None:
        self.damage.append(f"{what}: {why}")
        log.error("buffer: %s", self.damage[-1])

    def _read(self, aside: Aside) -> bytes:
        return self._disk.read(aside.name, 0, REFUSED_BYTES)

    def on_device(self, name: tuple[int, int]) -> bytes | None:
        """Return the bytes of the batch of this sequence and epoch, if it is one of these.

        They are on the device, too: it is in the list.
        """
        with suppress(OSError):
            for aside in self._sizes:
                if aside.batch == name and self._inventory.get(aside):
                    return self._read(aside)
        return None

    def keeps(self, name: tuple[int, int]) -> bool:
        """Whether that batch is one of these, whole and on the device."""
        with suppress(WireError):
            batch = decode(self.on_device(name) or b"")
            return (batch.sequence, batch.epoch) == name
        return False

    def over(self, most: int, but: Held) -> Iterator[Aside]:
        """Yield the oldest but one for as long as all of them take more than so many bytes.

        Before them those that were delivered, whose files are still there.
        """
        for aside in sorted(self._sizes, key=self.was_delivered, reverse=True):
            if self.size <= most:
                return
            if aside.batch != but.name:
                yield aside

    def readings(self, aside: Aside) -> int:
        """Return how many readings are in it; 0 when nobody knows: it is damaged and in no list."""
        listed = self._noted(aside) or self._seen(aside)
        return listed.readings if listed else 0

    def kept(self) -> Iterator[tuple[int, int]]:
        """Yield the sequence of each, and how many readings are in it; 0 when nobody knows."""
        for aside in self._sizes:
            yield aside.sequence, self.readings(aside)

    def remove(self, aside: Aside) -> None:
        """Remove its file."""
        self._inventory.strike([aside.mark])
        self._withdraw(aside)

    def _withdraw(self, aside: Aside) -> None:
        self._disk.remove(aside.name)
        self._forget([aside])

    def add(self, held: Held, reason: int, payload: bytes) -> None:
        """Keep a batch, on the device when it returns.

        One that lies here already is renamed for its new reason.
        """
        aside = Aside(held.sequence, held.epoch, reason, again=False)
        before = next((one for one in self._sizes if one.batch == aside.batch), aside)
        lay_here = before in self._sizes
        self._disk.names()
        self._disk.write(before.name, 0, payload)
        self._disk.cut(before.name, len(payload))
        self._disk.sync(before.name)
        self._disk.close(before.name)
        self._sizes[before] = len(payload)
        if before != aside:
            self._rename(before, aside)
        self.offered.put(self._sizes)
        self._disk.sync_directory()
        try:
            self._inventory.note(filter(None, [_listed(aside, payload)]))
        except OSError:
            if not lay_here:  # it waits in the spool, and must not be lost there and here
                self._withdraw(aside)
                self._disk.sync_directory()  # no power cut brings it back
            raise

    def try_out(self) -> None:
        """Raise what `add` raises, whichever batch it is."""
        self._disk.names()
        self._disk.probe()
        if self._recovered:  # else it is not known what is in the list
            self._inventory.rewrite()

    def _rename(self, before: Aside, after: Aside) -> None:
        self._disk.rename(before.name, after.name)
        self._sizes[after] = self._sizes.pop(before)

    def tidy(self, waits: Callable[[int, int], bool]) -> None:
        """Remove what was delivered, miss what is gone, and offer again what somebody asks for.

        Once after a start, give up what is damaged. `waits` is as `recover` has it.
        """
        with self._kept_in_mind():
            mended = not all(self._disk.broken(aside.name) for aside in self._broken)
            if mended or not self._recovered:
                self._read_names()
                self._leave(waits)
            if self._sizes:
                self._forget_gone()
            self._remove_delivered()
            if self._disk.exists(RETRY):
                self._offer_all()
            self._check(waits)
            self._list()

    def _remove_delivered(self) -> None:
        done = set(self.offered.delivered)
        gone = [one for one in self._sizes if one.batch in done]
        self._inventory.strike(aside.mark for aside in gone)
        for aside in gone:
            self._disk.remove(aside.name)
            del self._sizes[aside]
        if done:
            self.offered.put(self._sizes)
        self.offered.delivered -= done

    def _offer_all(self) -> None:
        aside = [one for one in self._sizes if not one.again]
        for one in aside:
            self._rename(one, replace(one, again=True))
        self._sizes = dict(sorted(self._sizes.items(), key=lambda item: item[0].sequence))
        self._disk.sync_directory()  # before the asking is forgotten
        self._disk.remove(RETRY)
        self.offered.put(self._sizes)
        log.info("buffer: offered again: %s", counted(len(aside), "refused batch"))


def _listed(aside: Aside, payload: bytes) -> Listed | None:
    """Return what the list says of a batch, None where these bytes are not that one."""
    with suppress(WireError):
        batch = decode(payload)
        if (batch.sequence, batch.epoch) == aside.batch:
            return Listed(batch.sequence, batch.epoch, len(batch.readings), zlib.crc32(payload))
    return None


def _named(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if names[LISTED:] else ""
    return f"{DIRECTORY}/{', '.join(names[:LISTED])}{more}"
