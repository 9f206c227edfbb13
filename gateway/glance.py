"""What lies in a buffer, as another process sees it: nothing is written or held up.

The journal is read first, then the segments, then what is acknowledged: what is sealed meanwhile is
met twice and counted once, what is delivered meanwhile is missing, and that is the truth by then.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gateway import acked, flushed, journal, rates, record
from gateway.aside import LIST, Aside, Listed, read_list
from gateway.damage import DAMAGED, Damage
from gateway.disk import FOREIGN, Onlooker, in_use, of_another_version
from gateway.held import Held
from gateway.reading import ClockState
from gateway.record import Kind, Record, records
from gateway.refused import DIRECTORY, REFUSED_BYTES
from gateway.segments import LARGEST_FILE, is_segment, number_of
from gateway.spool import Spool
from gateway.wire import Batch, WireError, decode

_FILES = (flushed.NAME, acked.NAME, LIST, rates.NAME)


class NoBuffer(Exception):
    """There is no buffer that this program can read; the message says why and what mends it."""


class NoneYet(NoBuffer):
    """There is none at all."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A batch that the broker refused."""

    aside: Aside
    payload: bytes
    since: float
    """Unix seconds of the refusal."""
    listed: Listed | None
    """What the daemon noted of it; None: nothing."""

    @property
    def batch(self) -> Batch | None:
        """What is in it; None when its file is damaged."""
        if self.listed and zlib.crc32(self.payload) != self.listed.crc:
            return None
        return _decoded(self.payload, self.aside)


@dataclass(frozen=True, slots=True)
class MadeWay:
    """What was set aside since it is not this bygate's: file, directory or anything else."""

    name: str
    ours: str
    """What it was called."""
    of_another_version: bool
    """Whether it is of another version of bygate."""


class _Files(Onlooker):
    """Files and nothing else: at a pipe in place of one, whoever reads it would wait for ever."""

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Return what is there, nothing where that is no file."""
        return super().read(name, offset, length) if self.exists(name) else b""

    def exists(self, name: str) -> bool:
        """Whether there is such a file, and its inode can be read."""
        return not self.broken(name) and super().exists(name)


class Glance:
    """A buffer's directory at one moment. Raises NoBuffer, and OSError where it cannot be read."""

    def __init__(self, directory: Path, gateway: str) -> None:
        self.disk, self._gateway = _Files(directory), gateway
        owned = in_use(directory)
        names = self._names()
        for name in names:
            self._check_version(name)
        journaled = self.disk.salvage(flushed.NAME, flushed.SLOT * flushed.SLOTS)
        self.spool = Spool(self.disk)
        self.spool.recover()
        # A daemon may have begun or ended meanwhile; where nobody can tell, there may be one
        self._owned = owned is not False or in_use(directory) is not False
        self._flushed, self._in_journal, _ = journal.found(*journaled, self.spool.last)
        self.aside = [name for name in names if name.endswith(DAMAGED)]
        self.aside += [f"{DIRECTORY}/{n}" for n in self._aside_names() if n.endswith(DAMAGED)]
        """Files that earlier damage was moved to."""
        aside = (f"{DIRECTORY}/{name}" for name in self._aside_names())
        named = {name: self.disk.broken(name) for name in (*self.disk.entries(), *aside)}
        self.broken = {name: error for name, error in named.items() if error}
        """Files of which not even the inode can be read, and why."""
        self.foreign = list(self._foreign())
        """Names at which something stands that cannot be bygate's."""

    def _names(self) -> list[str]:
        directory = self.disk.directory
        where = "set [gateway] state_dir to that of the daemon, or name its file by -c"
        try:
            names = self.disk.names()
        except FileNotFoundError:
            raise NoneYet(f"{directory}: no such directory: has bygate run yet? {where}") from None
        except NotADirectoryError:
            raise NoBuffer(f"{directory}: not a directory: {where}") from None
        if not any(name == flushed.NAME or name.endswith(".seg") for name in names):
            raise NoneYet(f"{directory}: no buffer: neither a journal nor a segment; {where}")
        return names

    def _foreign(self) -> Iterator[str]:
        for name in (*_FILES, DIRECTORY, *filter(is_segment, self.disk.entries())):
            path = self.disk.directory / name
            fits = Path.is_dir if name == DIRECTORY else Path.is_file
            if os.path.lexists(path) and not fits(path):  # False for what is broken
                yield name

    @cached_property
    def made_way(self) -> list[MadeWay]:
        """What stood in place of a file of this bygate's until the daemon set it aside, whole."""
        return [_made_way(path) for path in sorted(self.disk.directory.glob(f"*{FOREIGN}"))]

    def _check_version(self, name: str) -> None:
        ours = _magic(name)
        if of_another_version(self.disk.directory / name, ours):
            found = self.disk.read(name, 0, len(ours))
            raise NoBuffer(
                f"{self.disk.directory}/{name}: written by another version of bygate ("
                f"{found.decode()}, this one reads {ours.decode()}): use the bygate that runs there"
            )

    @cached_property
    def damage(self) -> list[Damage]:
        """What cannot be read, but for what the daemon may be writing."""
        found = [*self.spool.damage(), *self._in_journal]
        return [damage for damage in found if not self._under_way(damage)]

    def _under_way(self, damage: Damage) -> bool:
        """Whether it may be what the daemon is writing: nothing tells them apart."""
        end = damage.name, damage.at + len(damage.data)
        written = damage.name == flushed.NAME or end == self.spool.end
        return self._owned and written and not damage.unreadable

    @property
    def oldest_ms(self) -> int | None:
        """Unix ms of the first reading that waits."""
        if held := next(self.spool.waiting(), None):
            return held.first_ms
        return self._flushed[0].readings[0].instant.wall_ms if self._flushed else None

    def batches(self) -> Iterator[tuple[bytes, Batch] | Held]:
        """Yield what is sealed and waits, oldest first; a Held alone cannot be read, or is gone."""
        for held in self.spool.waiting():
            payload = self.spool.payload(held) or b""
            batch = _decoded(payload, held)
            yield held if batch is None else (payload, batch)

    def newest(self) -> tuple[bytes, Batch] | None:
        """Return the batch that was sealed last, whether it waits or was delivered.

        None where there is none, or only such as are another gateway's or lie aside. It is on the
        device: one that a power cut takes back would leave its name to another.
        """
        aside = {each.mark for name in self._aside_names() if (each := Aside.of(name))}
        segments = filter(is_segment, self.disk.names())
        for name in sorted(segments, key=number_of, reverse=True):
            data, _ = self.disk.salvage(name, LARGEST_FILE)
            for found in reversed([each for each in records(data) if each.kind == Kind.BATCH]):
                batch = _decoded(found.payload, found)
                ours = batch and batch.gateway == self._gateway
                if batch and ours and f"{found.sequence}-{found.epoch}" not in aside:
                    self.disk.sync(name)
                    return found.payload, batch
        return None

    def unsealed(self) -> list[Batch]:
        """Return what is flushed and in no batch yet, as parts of the batches it will be in."""
        return [
            Batch(
                *(self._gateway, frame.epoch, frame.sequence, frame.boot),
                *(ClockState(frame.readings[0].instant.clock), 0, frame.readings),
            )
            for frame in self._flushed
        ]

    def _aside_names(self) -> list[str]:
        disk = self.disk.below(DIRECTORY)
        return disk.names() if not self.disk.broken(DIRECTORY) and disk.directory.is_dir() else []

    def refused(self) -> Iterator[Refused]:
        """Yield the batches that lie aside, oldest first."""
        disk, listed = self.disk.below(DIRECTORY), self._listed()
        found = [aside for name in self._aside_names() if (aside := Aside.of(name))]
        for aside in sorted(found, key=lambda aside: aside.sequence):
            if disk.broken(aside.name):
                continue
            try:
                since = (disk.directory / aside.name).stat().st_mtime
            except FileNotFoundError:  # delivered, or refused again, meanwhile
                continue
            payload, _ = disk.salvage(aside.name, REFUSED_BYTES)
            yield Refused(aside, payload, since, listed.get(aside.mark))

    def _listed(self) -> dict[str, Listed]:
        with suppress(OSError):  # then what decodes counts as whole
            return read_list(self.disk) or {}
        return {}


def _made_way(path: Path) -> MadeWay:
    ours = _ours(path.name)
    with_it = path.parent.glob(f"*.seg-*{FOREIGN}") if ours == acked.NAME else ()
    other = any(map(_is_of_another_version, (path, *with_it)))
    return MadeWay(path.name, ours, of_another_version=other)


def _is_of_another_version(aside: Path) -> bool:
    magic = _magic(_ours(aside.name))
    return aside.is_file() and of_another_version(aside, magic)  # a pipe would never end


def _ours(name: str) -> str:
    """Return what it was called that was set aside under that name."""
    return name.removesuffix(FOREIGN).rpartition("-")[0]


def _magic(name: str) -> bytes:
    """Return what the file of that name begins with; nothing: that differs, or it is none."""
    if name == flushed.NAME:
        return flushed.MAGIC
    return record.MAGIC if name.endswith(".seg") else b""


def _decoded(payload: bytes, named: Held | Aside | Record) -> Batch | None:
    """Return the batch, None where the bytes are not the one that is meant."""
    try:
        batch = decode(payload)
    except WireError:
        return None
    same = (batch.epoch, batch.sequence) == (named.epoch, named.sequence)
    return batch if same else None
