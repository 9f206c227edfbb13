"""Readings as a city's sensors give them, and state directories full of them: for benches."""

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from gateway import reading as q
from gateway.aside import Inventory
from gateway.disk import Disk
from gateway.journal import Journal
from gateway.reading import Instant, Reading
from gateway.spool import Spool
from gateway.wire import Batch, encode

GATEWAY = "bench"
START_MS, BOOT_MS = 1_763_900_000_000, 86_400_123
POLL_S = 10
BATCH = 600
"""Readings of a batch at 10/s and the default seal_interval."""

_QUANTITIES = (q.TEMPERATURE, q.HUMIDITY, q.PRESSURE, q.PM2_5, q.PM10)
_SAMPLES = 50


def readings(rate: int) -> Iterator[Reading]:
    """Yield readings for ever, `rate` in each second: series that walk, polled every 10 s."""
    rng = random.Random(1)
    count = rate * POLL_S // len(_QUANTITIES)
    levels = [[rng.uniform(0, 100) for _ in _QUANTITIES] for _ in range(count)]
    at = 0
    while True:
        for number, level in enumerate(levels):
            jitter = int(abs(rng.gauss(0, 4)))
            ms = at + number * POLL_S * 1000 // count + jitter
            instant = Instant(START_MS + ms, BOOT_MS + ms, 2)
            for i, quantity in enumerate(_QUANTITIES):
                level[i] += rng.gauss(0, 0.1)
                yield Reading(f"street-{number}", quantity, instant, round(level[i], 1))
        at += POLL_S * 1000


class _Unsynced(Disk):
    """A disk for what may be made again."""

    def sync(self, name: str) -> None:
        pass


def fill(directory: Path, count: int) -> int:
    """Fill a state directory with batches of so many readings in all; return how many batches."""
    stream = readings(10)
    samples = [list(islice(stream, BATCH)) for _ in range(_SAMPLES)]
    disk = _Unsynced(directory)
    spool = Spool(disk)
    spool.recover()
    Journal(disk).recover(spool.last)
    Inventory(disk).begin()
    spool.begin(1)
    batches = -(-count // BATCH)
    for sequence in range(1, batches + 1):
        held = samples[sequence % _SAMPLES]
        payload = encode(Batch(GATEWAY, 1, sequence, 7, 2, 1, held))
        spool.append(1, sequence, BATCH, held[0].instant.wall_ms, payload)
    disk.close_all()
    os.sync()
    return batches
