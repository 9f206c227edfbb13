"""Batches that the broker refused: out of the way, and offered again when somebody asks for it.

    SEQUENCE-EPOCH-0xREASON.batch    lies aside
    SEQUENCE-EPOCH-0xREASON.again    is offered again, until the broker has answered
    retry                            somebody asks: every .batch becomes an .again

Another process makes `retry` and nothing else. All that becomes of a batch is one rename or the
removal of its file, so that a kill between any two steps leaves it there once, under its own name.
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import attrgetter

from gateway.disk import BLOCK, Disk, remedy
from gateway.held import Held
from gateway.wire import WireError, decode

DIRECTORY = "refused"
REFUSED_BYTES = 16 << 20
"""What refused batches may take, or a quarter of max_size; then the oldest of them goes."""
LISTED = 20
"""How many of their names go into the status."""
RETRY = "retry"
"""The file that asks for all of them to be offered again."""
_GONE = "gone: did somebody remove it? its readings are not delivered"
_SEQUENCES, _EPOCHS = 1 << 63, 1 << 32
"""Numbers from here on are in no name of ours: a sequence that ran on from there would end."""

_sequence = attrgetter("sequence")

log = logging.getLogger(__name__)


def on_disk(length: int) -> int:
    """Return what a file of so many bytes takes on the usual file systems: whole blocks."""
    return length + -length % BLOCK


@dataclass(frozen=True, slots=True)
class Aside:
    """What the name of a refused batch's file says."""

    sequence: int
    epoch: int
    reason: int
    """The broker's reason code."""
    again: bool
    """Whether it is being offered again."""

    @property
    def name(self) -> str:
        """The name of its file."""
        ending = "again" if self.again else "batch"
        return f"{self.sequence}-{self.epoch}-0x{self.reason:02x}.{ending}"

    @property
    def mark(self) -> str:
        """What tells it from all others, whatever its file is called by then."""
        return f"{self.sequence}-{self.epoch}"

    @classmethod
    def of(cls, name: str) -> "Aside | None":
        """Return what the name says, None when it is none of ours."""
        match = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,10})-0x([0-9a-f]{2})\.(batch|again)", name)
        if match is None or int(match[1]) >= _SEQUENCES or int(match[2]) >= _EPOCHS:
            return None
        return cls(int(match[1]), int(match[2]), int(match[3], 16), match[4] == "again")


class Refused:
    """The refused batches of one buffer.

    `offered`, `delivered` and `names` only touch memory and may run beside the others, which do
    disk work on one thread at a time. All but `recover` and `tidy` may raise OSError: these are
    part of what the whole buffer does in its rhythm, which is not to end where only this fails.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._sizes: dict[Aside, int] = {}
        self._offered: tuple[Held, ...] = ()
        self._known: frozenset[tuple[int, int]] = frozenset()
        self._delivered: set[tuple[int, int]] = set()
        self.times = 0
        """How often batches were put up to be offered again."""
        self._recovered = False
        self.fault: str | None = None
        """What the directory does not do at present, and what mends it."""
        self.damage: list[str] = []
        """What was found damaged or missing since the start."""

    def recover(self) -> None:
        """Read which there are; files that are none of ours are let be.

        Where that fails, `tidy` tries again.
        """
        self._recovered = False
        with self._kept_in_mind():
            self._read_names()

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
        found = [aside for name in self._disk.names() if (aside := Aside.of(name))]
        found.sort(key=lambda aside: (aside.sequence, aside.epoch))
        before, self._sizes = self._sizes, {a: self._disk.size(a.name) for a in found}
        self._offer()
        self._recovered = True
        gone = [a for a in before if (a.epoch, a.sequence) not in self._known | self._delivered]
        self._tell(gone, _GONE)  # another disk is in place of the one that they were on

    def _offer(self) -> None:
        """Say which are offered; their readings are not counted: 16 MiB take 10 s to decode."""
        offered = tuple(
            Held(aside.epoch, aside.sequence, 0, 0, aside.name, 0, size)
            for aside, size in self._sizes.items()
            if aside.again
        )
        if set(offered) - set(self._offered):
            self.times += 1
        self._known = frozenset((aside.epoch, aside.sequence) for aside in self._sizes)
        self._offered = offered

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

    @property
    def any_offered(self) -> bool:
        """Whether there is one to be offered again."""
        return bool(self._offered)

    def offered(self, after: int, before: int | None) -> Iterator[Held]:
        """Yield those to be offered again with after < sequence < before, oldest first."""
        offered = self._offered
        for at in range(bisect_right(offered, after, key=_sequence), len(offered)):
            held = offered[at]
            if before is not None and held.sequence >= before:
                return
            if (held.epoch, held.sequence) not in self._delivered:
                yield held

    def delivered(self, epoch: int, sequence: int) -> None:
        """Let go of a batch, if it is one of these; `tidy` removes its file."""
        if (epoch, sequence) in self._known:
            self._delivered.add((epoch, sequence))

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
            self._forget([aside], f"not offered before the next start: {why}")
            return None
        with suppress(WireError):
            batch = decode(payload)
            if (batch.epoch, batch.sequence) == (held.epoch, held.sequence):
                return payload
        self._give_up(aside)
        return None

    def _give_up(self, aside: Aside) -> None:
        if self._disk.exists(aside.name):
            self._disk.rename(aside.name, f"{aside.name}.damaged")
            self._forget([aside], "not that batch: kept as .damaged")
        else:
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Forget those whose files somebody removed, all at once, so that they are told of once."""
        there = set(self._disk.names())
        gone = [aside for aside in self._sizes if aside.name not in there]
        self._forget(gone, _GONE)

    def _forget(self, those: list[Aside], why: str) -> None:
        for aside in those:
            del self._sizes[aside]
        if those:
            self._offer()
        self._tell(those, why)

    def _tell(self, those: list[Aside], why: str) -> None:
        if not those:
            return
        more = f" and {len(those) - 1} more" if those[1:] else ""
        self.damage.append(f"{DIRECTORY}/{those[0].name}{more}: {why}")
        log.error("buffer: %s", self.damage[-1])

    def _read(self, aside: Aside) -> bytes:
        try:
            return self._disk.read(aside.name)
        finally:
            self._disk.close(aside.name)

    def lies_here(self, held: Held) -> bool:
        """Whether the batch is one of these."""
        return (held.epoch, held.sequence) in self._known

    def on_device(self, name: tuple[int, int]) -> bytes | None:
        """Return the bytes of the batch of this sequence and epoch, if it is one of these.

        They are on the device, too.
        """
        with suppress(OSError):
            for aside in [one for one in self._sizes if (one.sequence, one.epoch) == name]:
                self._disk.settle(aside.name)
                self._disk.sync_directory()
                return self._read(aside)
        return None

    def keeps(self, name: tuple[int, int]) -> bool:
        """Whether that batch is one of these, whole and on the device."""
        with suppress(WireError):
            batch = decode(self.on_device(name) or b"")
            return (batch.sequence, batch.epoch) == name
        return False

    def over(self, most: int, but: Held) -> Iterator[Aside]:
        """Yield the oldest but one for as long as all of them take more than so many bytes."""
        for aside in list(self._sizes):
            if self.size <= most:
                return
            if (aside.epoch, aside.sequence) != (but.epoch, but.sequence):
                yield aside

    def readings(self, aside: Aside) -> int:
        """Return how many readings are in it; 0 when it is damaged."""
        with suppress(WireError):
            return len(decode(self._read(aside)).readings)
        return 0

    def kept(self) -> Iterator[tuple[int, int]]:
        """Yield the sequence of each that can be read, and how many readings are in it."""
        for aside in self._sizes:
            with suppress(OSError):
                yield aside.sequence, self.readings(aside)

    def remove(self, aside: Aside) -> None:
        """Remove its file."""
        self._disk.remove(aside.name)
        del self._sizes[aside]
        self._offer()

    def add(self, held: Held, reason: int, payload: bytes) -> None:
        """Keep a batch, on the device when it returns.

        One that lies here already is renamed for its new reason.
        """
        aside = Aside(held.sequence, held.epoch, reason, again=False)
        key = (aside.sequence, aside.epoch)
        before = next((one for one in self._sizes if (one.sequence, one.epoch) == key), aside)
        self._disk.names()
        self._disk.write(before.name, 0, payload)
        self._disk.cut(before.name, len(payload))
        self._disk.sync(before.name)
        self._disk.close(before.name)
        self._sizes[before] = len(payload)
        if before != aside:
            self._rename(before, aside)
        self._offer()
        self._disk.sync_directory()

    def _rename(self, before: Aside, after: Aside) -> None:
        self._disk.rename(before.name, after.name)
        self._sizes[after] = self._sizes.pop(before)

    def tidy(self) -> None:
        """Remove what was delivered, and offer again what somebody asks for."""
        with self._kept_in_mind():
            if not self._recovered:
                self._read_names()
            self._remove_delivered()
            if self._disk.exists(RETRY):
                self._offer_all()

    def _remove_delivered(self) -> None:
        done = set(self._delivered)
        for aside in [one for one in self._sizes if (one.epoch, one.sequence) in done]:
            self._disk.remove(aside.name)
            del self._sizes[aside]
        if done:
            self._offer()
        self._delivered -= done

    def _offer_all(self) -> None:
        self._forget_gone()
        aside = [one for one in self._sizes if not one.again]
        for one in aside:
            self._rename(one, replace(one, again=True))
        self._sizes = dict(sorted(self._sizes.items(), key=lambda item: item[0].sequence))
        self._disk.sync_directory()  # before the asking is forgotten
        self._disk.remove(RETRY)
        self._offer()
        log.info("buffer: %d refused batches are offered again", len(aside))
