"""The power cut under a real ext4: its device keeps what was flushed, and any part of the rest."""

import asyncio
import math
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from random import Random

import pytest
from gateway_process import batches, gateway
from test_buffer import take
from trials import mounted, times

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.held import Held
from gateway.reading import Value
from gateway.settings import BufferSettings
from gateway.wire import Batch, decode
from hil.broker import Broker
from hil.loopdisk import run
from hil.powercut import PowerCutDisk

SETTINGS = BufferSettings(flush_interval=10, seal_interval=60, keep_free=0)
SIZE = 16 << 20

Named = dict[tuple[int, int], list[Value]]
"""Values by the epoch and sequence of their batch."""


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ext4 with a journal, as bytes."""
    image = tmp_path_factory.mktemp("image") / "disk"
    image.write_bytes(bytes(SIZE))
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    command = ("/usr/sbin/mkfs.ext4", "-q", "-b", "4096", "-E", lazy, str(image))
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 can be made here: {error}")
    return image.read_bytes()


@dataclass
class Past:
    """What was so when the power was cut."""

    flushed: set[Value] = field(default_factory=set)
    """Durable, or older than the flush interval."""
    received: Named = field(default_factory=dict)

    def is_now(self, other: "Past") -> None:
        self.flushed, self.received = set(other.flushed), dict(other.received)


class Box:
    """A buffer on a disk, of which a receiver gets some batches, and acknowledges some of those."""

    def __init__(self, directory: Path, random: Random) -> None:
        self._directory, self._random = directory, random
        self.past = Past()
        self._epochs, self._values, self._now = count(1), count(), 0.0
        self._pending: dict[Value, float] = {}
        self._buffer = opened(directory, next(self._epochs))

    def work(self) -> None:
        self._take(durable=self._random.random() < 0.2)
        for held in list(self._buffer.waiting()):
            if self._random.random() < 0.5:
                self.past.received |= named(self._buffer, held)
                if self._random.random() < 0.7:
                    self._buffer.acknowledge(held)
        if self._random.random() < 0.1:
            self.close()
            self._buffer = opened(self._directory, next(self._epochs))

    def _take(self, *, durable: bool) -> None:
        some = list(islice(self._values, self._random.randint(1, 9)))
        take(self._buffer, *some, durable=durable)
        self._pending |= dict.fromkeys(some, -math.inf if durable else self._now)
        self._now += self._random.choice((1, 4, 10, 30))
        self._buffer.tick(self._now)
        due = {v for v, at in self._pending.items() if self._now - at >= SETTINGS.flush_interval}
        self.past.flushed |= due
        self._pending = {v: at for v, at in self._pending.items() if v not in due}

    def close(self) -> None:
        self._buffer.close()
        self.past.flushed |= self._pending.keys()
        self._pending.clear()


def opened(directory: Path, epoch: int) -> Buffer:
    buffer = Buffer(Disk(directory), SETTINGS, "trd-0042", boot=7, epoch=epoch)
    buffer.tick(0.0)
    return buffer


def named(buffer: Buffer, held: Held) -> Named:
    """Return the values of a batch under its name."""
    return of(decode(buffer.payload(held) or b""))


def of(batch: Batch) -> Named:
    values = [r.value for r in batch.readings if not r.quantity.name.startswith("outcome_")]
    return {(batch.epoch, batch.sequence): values}


@contextmanager
def cut(formatted: bytes, place: Path, seed: int) -> Iterator[tuple[Past, Path]]:
    """Give what was so at a power cut, and the disk that it left, mounted again."""
    random, past, after = Random(seed), Past(), place / "after"
    with ExitStack() as stack:
        disk = mounted(stack, PowerCutDisk(formatted, place, seed))
        box = Box(disk.path / "state", random)
        disk.on_cut = lambda: past.is_now(box.past)
        disk.cut_after(random.randint(1, 120))
        while not disk.image:
            box.work()
        box.close()
    after.mkdir()
    (place / "image").write_bytes(disk.image)
    run("mount", "-o", "loop", str(place / "image"), str(after))
    try:
        yield past, after
    finally:
        run("umount", "--lazy", str(after))


def check(past: Past, waiting: list[Named]) -> None:
    """Everything that was flushed has arrived or waits, under one name."""
    everything = dict(past.received)
    for batch in waiting:
        for name, values in batch.items():
            assert everything.setdefault(name, values) == values
    found = [value for values in everything.values() for value in values]
    assert len(found) == len(set(found))
    assert past.flushed <= set(found)


@pytest.mark.parametrize("seed", range(times(50, 1000)))
def test_what_was_flushed_is_there_after_a_power_cut(formatted: bytes, tmp_path: Path, seed: int):
    with cut(formatted, tmp_path, seed) as (past, after):
        again = opened(after / "state", 99)
        check(past, [named(again, held) for held in again.waiting()])
        assert again.stats().dropped == 0
        again.close()


@pytest.mark.parametrize("seed", range(6, 6 + times(1, 20)))
def test_the_daemon_starts_by_itself_after_a_power_cut(formatted: bytes, tmp_path: Path, seed: int):
    async def scenario(past: Past, after: Path) -> None:
        async with Broker() as broker:
            async with gateway(after, broker.url, keep_free="0B") as daemon:
                await daemon.says("connected")
                assert await daemon.stop() == 0
            check(past, [of(batch) for batch in batches(broker.received)])

    with cut(formatted, tmp_path, seed) as (past, after):
        asyncio.run(scenario(past, after))
