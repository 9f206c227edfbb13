"""What the buffer writes to its device, and how soon it starts: against SQLite in the same run.

As root each contestant has an ext4 of its own on a loop device, whose sectors are counted; without,
bytes are counted where they are written to files, which leaves out what the file system adds.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from gateway.buffer import Buffer
from gateway.disk import Disk
from gateway.reading import Reading
from gateway.settings import BufferSettings
from gateway.wire import Batch, encode
from hil.backlog import BATCH, GATEWAY, fill, readings
from hil.loopdisk import LoopDisk, LoopDiskError

RATES = (2, 10)
FLUSH = 10
"""Seconds of readings that are lost at a power cut, of those that lose any."""
IMAGE = 64 << 20


@dataclass(frozen=True)
class Figure:
    """One line of the table; `times` is how many times as much as the gateway's."""

    what: str
    value: float
    unit: str
    times: float | None = None
    target: str = ""


class Ours:
    """The gateway's buffer, with a broker that acknowledges at once."""

    name = "bygate: journal 10 s, spool 60 s"

    def __init__(self, directory: Path) -> None:
        settings = BufferSettings(keep_free=0)
        self._disk = Disk(directory)
        self._buffer = Buffer(self._disk, settings, GATEWAY, 7)
        self._buffer.tick(0.0)

    def take(self, second: int, some: Sequence[Reading]) -> None:
        """Take what was read in this second."""
        for reading in some:
            self._buffer.append(reading)
        self._buffer.tick(float(second))
        for held in list(self._buffer.waiting()):
            self._buffer.acknowledge(held)

    def written(self) -> int:
        """Return how many bytes were written to files."""
        return self._disk.written


class SqliteRows:
    """One row and one commit a reading, deleted a minute later."""

    name = "SQLite, row a reading, FULL"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "buffer.db"
        self._db = sqlite3.connect(self._path, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE buffer (at INTEGER, sensor, quantity, value, quality)")

    def take(self, second: int, some: Sequence[Reading]) -> None:
        """Take what was read in this second."""
        for r in some:
            row = (r.instant.wall_ms, r.sensor, r.quantity.name, r.value, r.quality)
            with self._db:
                self._db.execute("INSERT INTO buffer VALUES (?, ?, ?, ?, ?)", row)
        if second % 60 == 0:
            with self._db:
                self._db.execute("DELETE FROM buffer")

    def written(self) -> int:
        """Return how large its files are: less than was written."""
        return sum(path.stat().st_size for path in self._path.parent.glob("buffer.db*"))


class SqliteBatches(SqliteRows):
    """One row and one commit for a batch of 10 s, deleted after the next."""

    name = "SQLite, row a 10 s batch, FULL"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._db.execute("CREATE TABLE batches (sequence INTEGER PRIMARY KEY, payload)")
        self._held: list[Reading] = []
        self._sequence = 0

    def take(self, second: int, some: Sequence[Reading]) -> None:
        """Take what was read in this second."""
        self._held += some
        if second % FLUSH == 0:
            self.store(self._held)
            self._held = []

    def store(self, held: Sequence[Reading]) -> None:
        """Store one batch, and delete the one before."""
        self._sequence += 1
        payload = encode(Batch(GATEWAY, 1, self._sequence, 7, 2, 1, held))
        with self._db:
            self._db.execute("INSERT INTO batches VALUES (?, ?)", (self._sequence, payload))
        with self._db:
            self._db.execute("DELETE FROM batches WHERE sequence < ?", (self._sequence,))


Contestant = Ours | SqliteRows | SqliteBatches
CONTESTANTS: tuple[Callable[[Path], Contestant], ...] = (Ours, SqliteRows, SqliteBatches)


def device_bytes(seconds: int, place: Path) -> Iterator[Figure]:
    """Yield bytes a reading at each rate, all measured at once over so many seconds."""
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        runs = []
        for rate in RATES:
            for number, contestant in enumerate(CONTESTANTS):
                name = f"{rate}-{number}"
                try:
                    disk = stack.enter_context(LoopDisk(IMAGE, place, name))
                except LoopDiskError as error:
                    _say(f"no loop devices ({error}): bytes written to files instead")
                    disk = None
                    (place / f"{name}-plain").mkdir()
                directory = disk.path if disk else place / f"{name}-plain"
                runs.append(
                    (rate, threads.submit(_feed, contestant, directory, disk, rate, seconds))
                )
        figures = [(rate, *run.result()) for rate, run in runs]
    for rate in RATES:
        lines = [(name, value) for at, name, value in figures if at == rate]
        ours = lines[0][1]
        target = "≤ 480" if rate == 2 else "≤ 140"
        for name, value in lines:
            goal = target if name == Ours.name else ""
            yield Figure(f"{rate}/s, {name}", value, "B/reading", value / ours, goal)


def _feed(
    contestant: Callable[[Path], Contestant],
    directory: Path,
    disk: LoopDisk | None,
    rate: int,
    seconds: int,
) -> tuple[str, float]:
    """Feed it in real time, as the file system's own writes are; return name, bytes a reading."""
    stream = readings(rate)
    fed = contestant(directory)
    fed.take(0, list(islice(stream, rate)))
    before, began = (disk or fed).written(), time.monotonic()
    for second in range(1, seconds + 1):
        time.sleep(max(began + second - time.monotonic(), 0))
        fed.take(second, list(islice(stream, rate)))
    return fed.name, ((disk or fed).written() - before) / (rate * seconds)


def to_disk(count: int, place: Path) -> Iterator[Figure]:
    """Yield how many readings a second reach the disk, batches of 1000 and rows of one."""
    held = list(islice(readings(10), 1000))
    ours = 0.0
    for contestant in CONTESTANTS:
        directory = place / contestant.__name__ if isinstance(contestant, type) else place
        directory.mkdir()
        fed = contestant(directory)
        rows = type(fed) is SqliteRows
        rounds = 1 if rows else -(-count // len(held))
        began = time.perf_counter()
        for second in range(1, rounds + 1):
            if isinstance(fed, SqliteBatches):
                fed.store(held)
            else:
                fed.take(second, held)
        value = rounds * len(held) / (time.perf_counter() - began)
        ours = ours or value
        name = "SQLite, row a batch of 1000, FULL" if isinstance(fed, SqliteBatches) else fed.name
        yield Figure(f"to disk at full speed, {name}", value, "readings/s", value / ours)


def recovery(count: int, place: Path) -> Iterator[Figure]:
    """Yield how long a start takes that finds so many readings."""
    batches = fill(place, count)
    buffer = Buffer(Disk(place), BufferSettings(keep_free=0), GATEWAY, 7)
    began = time.perf_counter()
    buffer.tick(0.0)
    took = time.perf_counter() - began
    found = buffer.stats()
    assert found.waiting_batches == batches, found
    million = found.waiting_readings / 1e6
    yield Figure(f"start with {million:.1f} M readings", took, "s", target="≤ 1 for 10 M")
    yield Figure(
        f"size of {million:.1f} M readings", found.size / found.waiting_readings, "B/reading"
    )


def parser() -> argparse.ArgumentParser:
    """Return what its command line takes."""
    takes = argparse.ArgumentParser(prog="bench buffer", description=__doc__)
    takes.add_argument("--json", action="store_true", help="figures as JSON")
    takes.add_argument("--quick", action="store_true", help="20 s and a tenth of the readings")
    takes.add_argument("--seconds", type=int, help="how long the device is watched, 120 if not")
    return takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print figures as they come, or with `--json` all of them as one JSON list at the end."""
    args = parser().parse_args(arguments)
    seconds = args.seconds or (20 if args.quick else 120)
    count = 1_000_000 if args.quick else 10_000_000
    figures = []
    with tempfile.TemporaryDirectory() as place:
        parts = [Path(place, name) for name in ("recovery", "speed", "device")]
        for part in parts:
            part.mkdir()
        if not args.json:
            print(f"{seconds} s of device writes, batches of {BATCH} readings\n")
        for figure in _all(count, seconds, *parts):
            figures.append(figure)
            if not args.json:
                show(figure)
    if args.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))


def _all(count: int, seconds: int, found: Path, speed: Path, device: Path) -> Iterator[Figure]:
    yield from recovery(count, found)
    yield from to_disk(count // 50, speed)
    yield from device_bytes(seconds, device)


def show(figure: Figure) -> None:
    """Print one line of the table."""
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    times = f"× {figure.times:.3g}" if figure.times else ""
    print(f"{figure.what:58} {value:>10} {figure.unit:11} {times:>9}  {figure.target}", flush=True)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
