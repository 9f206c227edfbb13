"""What a reading costs on the wire, and what it costs to put it there.

104 series of a street's worth of sensors are walked at random, polled at the intervals they have
in the field (meters and noise 10 s, the others 60 s) with the jitter of a serial bus or of BLE
advertisements, and cut into batches of several sizes.
"""

import argparse
import heapq
import json
import random
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TypeVar

from gateway import reading as q
from gateway import wire
from gateway.reading import Instant, Quantity, Reading

_T = TypeVar("_T")

GATEWAY = "trd-0042"
START = 1_763_900_000_000
SIZES = (100, 600, 1000, 10_000)


@dataclass(frozen=True)
class Walk:
    """One quantity of a sensor: starts at `start`, moves by `spread` (σ) a poll, in `grain`s."""

    quantity: Quantity
    start: float
    spread: float
    grain: float
    rises: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Family:
    """Sensors of one kind: their places, what they measure, how often, with which jitter (σ)."""

    prefix: str
    places: tuple[str, ...]
    interval_ms: int
    jitter_ms: float
    walks: tuple[Walk, ...]


def _phases(quantity: Quantity, start: float, spread: float, grain: float) -> tuple[Walk, ...]:
    return tuple(Walk(quantity.part(f"l{n}"), start, spread, grain) for n in (1, 2, 3))


FAMILIES = (
    Family(
        "air",
        ("torget", "elgeseter", "bakke-kirke", "e6-tiller"),
        60_000,
        4,
        (
            Walk(q.PM1, 4.1, 0.2, 0.1),
            Walk(q.PM2_5, 7.4, 0.3, 0.1),
            Walk(q.PM10, 14.2, 0.6, 0.1),
            Walk(q.NO2, 21.0, 0.8, 0.1),
            Walk(q.O3, 48.0, 0.8, 0.1),
            Walk(q.TEMPERATURE, -3.25, 0.03, 0.01),
            Walk(q.HUMIDITY, 81.3, 0.1, 0.01),
            Walk(q.PRESSURE, 1003.42, 0.03, 0.01),
        ),
    ),
    Family(
        "noise",
        ("nordre-gate", "solsiden", "prinsenkrysset", "moholt"),
        10_000,
        4,
        (Walk(q.LAEQ, 58.2, 1.2, 0.1), Walk(q.LAMAX, 71.5, 2.5, 0.1)),
    ),
    Family(
        "river",
        ("nidelva-sluppen", "nidelva-bakklandet", "leirelva"),
        60_000,
        8,
        (
            Walk(q.WATER_LEVEL, 1240, 1.5, 1, integer=True),
            Walk(q.TEMPERATURE, 4.12, 0.02, 0.01),
            Walk(q.BATTERY_VOLTAGE, 3.612, 0.002, 0.001),
        ),
    ),
    Family(
        "meter",
        ("street-light-114", "charger-kongens-gt", "pump-ila"),
        10_000,
        6,
        (
            *_phases(q.VOLTAGE, 231.4, 0.3, 0.1),
            *_phases(q.CURRENT, 3.412, 0.05, 0.001),
            Walk(q.POWER, 2359.5, 20, 0.1),
            Walk(q.POWER_FACTOR, 0.951, 0.002, 0.001),
            Walk(q.FREQUENCY, 50.01, 0.015, 0.01),
            Walk(q.ENERGY, 48_211.337, 0.04, 0.001, rises=True),
        ),
    ),
    Family(
        "tag",
        ("bench-01", "bench-02", "bus-stop-07", "bus-stop-11", "kindergarten-ila"),
        60_000,
        400,
        (
            Walk(q.TEMPERATURE, -2.915, 0.02, 0.005),
            Walk(q.HUMIDITY, 83.4, 0.1, 0.01),
            Walk(q.PRESSURE, 1003.42, 0.03, 0.01),
            Walk(q.BATTERY_VOLTAGE, 2.977, 0.002, 0.001),
            Walk(q.RSSI, -71, 3, 1, integer=True),
        ),
    ),
)


@dataclass(frozen=True)
class Figures:
    """The results of one batch size; bytes are per reading, times in ms per batch."""

    readings: int
    raw: float
    zlib: float
    json_messages: float
    ratio: float
    encode_ms: float
    decode_ms: float
    bound: float


def readings(seed: int = 1) -> Iterator[Reading]:
    """Yield the readings of all sensors for ever, in the order in which they are polled."""
    rng = random.Random(seed)
    sensors = [
        _polls(f"{family.prefix}-{place}", family, random.Random(rng.random()))
        for family in FAMILIES
        for place in family.places
    ]
    for poll in heapq.merge(*sensors, key=lambda poll: poll[0].instant.wall_ms):
        yield from poll


def _polls(name: str, family: Family, rng: random.Random) -> Iterator[list[Reading]]:
    levels = [walk.start * rng.uniform(0.7, 1.3) for walk in family.walks]
    due = rng.randrange(10_000)
    while True:
        at = due + int(abs(rng.gauss(0, family.jitter_ms)))
        instant = Instant(START + at, 86_400_123 + at, 2)
        for i, walk in enumerate(family.walks):
            move = rng.gauss(0, walk.spread)
            levels[i] += abs(move) if walk.rises else move
        yield [
            Reading(name, walk.quantity, instant, _seen(walk, level))
            for walk, level in zip(family.walks, levels, strict=True)
        ]
        due += family.interval_ms


def _seen(walk: Walk, level: float) -> float | int:
    value = round(round(level / walk.grain) * walk.grain, walk.quantity.decimals)
    return int(value) if walk.integer else value


def json_message(reading: Reading) -> int:
    """Return the bytes of one MQTT 5 PUBLISH at QoS 1 that says this reading alone in JSON."""
    quantity = reading.quantity
    topic = f"bygate/v1/{GATEWAY}/{reading.sensor}/{quantity.name}"
    fields = {"t": reading.instant.wall_ms, "v": reading.value, "u": quantity.unit}
    payload = json.dumps(fields, separators=(",", ":"))
    return 2 + 2 + len(topic) + 2 + 1 + len(payload)


def measure(size: int) -> Figures:
    """Return the figures of batches of `size` readings: means over ten batches."""
    stream = readings()
    batches = [_batch(sequence, list(islice(stream, size))) for sequence in range(1, 11)]
    payloads = [wire.encode(batch) for batch in batches]
    total = size * len(batches)
    messages = sum(json_message(reading) for batch in batches for reading in batch.readings)
    packed = sum(map(len, payloads))
    bounds = [wire.SizeBound(GATEWAY) for _ in batches]
    for bound, batch in zip(bounds, batches, strict=True):
        for reading in batch.readings:
            bound.add(reading)
    return Figures(
        readings=size,
        raw=sum(len(_inflated(payload)) for payload in payloads) / total,
        zlib=packed / total,
        json_messages=messages / total,
        ratio=messages / packed,
        encode_ms=_milliseconds(wire.encode, batches),
        decode_ms=_milliseconds(wire.decode, payloads),
        bound=sum(bound.size for bound in bounds) / total,
    )


def _batch(sequence: int, held: list[Reading]) -> wire.Batch:
    return wire.Batch(GATEWAY, 2_670_477_783, 4710 + sequence, 487_347_626, 2, 4698, held)


def _inflated(payload: bytes) -> bytes:
    return zlib.decompress(payload) if payload[0] == 0x78 else payload


def _milliseconds(work: Callable[[_T], object], jobs: Sequence[_T]) -> float:
    """Return the median over the jobs of the best of 20 runs: what else runs here is left out."""
    return 1000 * statistics.median(min(_seconds(work, job) for _ in range(20)) for job in jobs)


def _seconds(work: Callable[[_T], object], job: _T) -> float:
    begin = time.perf_counter()
    work(job)
    return time.perf_counter() - begin


def parser() -> argparse.ArgumentParser:
    """Return what its command line takes."""
    takes = argparse.ArgumentParser(prog="bench wire", description=__doc__)
    takes.add_argument("--json", action="store_true", help="figures as JSON")
    takes.add_argument("--quick", action="store_true", help="the two smallest batches alone")
    return takes


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table, or with `--json` one JSON list of its lines."""
    args = parser().parse_args(arguments)
    lines = [measure(size) for size in (SIZES[:2] if args.quick else SIZES)]
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return
    series = sum(len(family.places) * len(family.walks) for family in FAMILIES)
    print(f"{series} series polled every 10 s or 60 s; bytes per reading, ms per batch\n")
    print("readings    raw   zlib   JSON, one message each   ratio   encode ms   decode ms   bound")
    for line in lines:
        print(
            f"{line.readings:8} {line.raw:6.2f} {line.zlib:6.2f} {line.json_messages:24.1f}"
            f" {line.ratio:7.1f} {line.encode_ms:11.2f} {line.decode_ms:11.2f} {line.bound:7.1f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
