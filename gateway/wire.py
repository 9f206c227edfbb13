"""Batches of readings ↔ bytes: the wire format, schema v1, and nothing else.

A payload is one msgpack map, or its zlib stream where that is shorter:

    {v g e s b t u c o [p] [l] n d: [[sensor, times, [quantity, unit, k, x0, x1, …], …], …]}

`gateway/WIRE.md` describes it to whoever receives it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

from gateway.column import (
    MAX_TEXT,
    QUALITY,
    pack_qualities,
    pack_times,
    pack_values,
    plain,
    unpack_times,
    unpack_values,
)
from gateway.payload import (
    MAX_INFLATED,
    MAX_SIZE,
    CutOff,
    WireError,
    content_type,
    pack,
    seen,
    unpack,
)
from gateway.reading import CATALOGUE, Instant, Quantity, Reading, Value

__all__ = [
    "DEFAULT_SIZE",
    "MAX_INFLATED",
    "MAX_SIZE",
    "MAX_TEXT",
    "MAX_VALUES",
    "VERSION",
    "Batch",
    "SizeBound",
    "WireError",
    "content_type",
    "decode",
    "decode_all",
    "encode",
    "plain",
]

VERSION = 1
"""Schema version, `v`."""

DEFAULT_SIZE = 64 * 1024
"""Bytes a batch is kept within unless the settings say otherwise."""

MAX_VALUES = 1 << 18
"""Values in the largest batch, `n`: MAX_SIZE at half a byte a value."""

_LONGEST = 2 * MAX_INFLATED  # even a zlib stream has no more bytes

_T = TypeVar("_T")
_Key = tuple[str, str, str]
_wall_ms = attrgetter("instant.wall_ms")


@dataclass(frozen=True, slots=True)
class Batch:
    """Readings of one boot, one clock state and one wall-to-boot offset (± 100 ms).

    (`gateway`, `epoch`, `sequence`) names it for ever. `oldest` is the lowest sequence still held
    when it was sealed, `previous` the epoch before this one and its last sequence, in the first
    batch of an epoch; `dropped` counts readings given up since the buffer was created.
    """

    gateway: str
    epoch: int
    sequence: int
    boot: int
    clock: int
    oldest: int
    readings: Sequence[Reading]
    previous: tuple[int, int] | None = None
    dropped: int = 0


# Encoding


def encode(batch: Batch) -> bytes:
    """Return the batch as one payload, at most MAX_SIZE bytes; the same batch, the same bytes.

    Raises WireError when it is larger, or when a name or number fits no msgpack type.
    """
    count, fields = _fields(batch)
    if count > MAX_VALUES:
        raise WireError(f"a batch of {count} values: at most {MAX_VALUES}")
    return pack(fields)


def _fields(batch: Batch) -> tuple[int, dict[str, object]]:
    """Return `n` and the whole map; the order of its keys is the format's."""
    series = _by_series(batch.readings)
    instants = (readings[0].instant for readings in series.values())
    first = min(instants, key=lambda instant: instant.wall_ms, default=Instant(0, 0, 0))
    count, blocks = _blocks(series, first.wall_ms)
    fields: dict[str, object] = {
        "v": VERSION,
        "g": batch.gateway,
        "e": batch.epoch,
        "s": batch.sequence,
        "b": batch.boot,
        "t": first.wall_ms,
        "u": first.boot_ms,
        "c": batch.clock,
        "o": batch.oldest,
    }
    if batch.previous is not None:
        fields["p"] = batch.previous
    if batch.dropped:
        fields["l"] = batch.dropped
    return count, {**fields, "n": count, "d": blocks}


def _by_series(readings: Sequence[Reading]) -> dict[_Key, list[Reading]]:
    """Return the readings of each series, oldest first; series in order of first appearance."""
    series: dict[_Key, list[Reading]] = {}
    for reading in readings:
        quantity = reading.quantity
        key = (reading.sensor, quantity.name, quantity.unit)
        same = series.get(key)
        if same is None:
            series[key] = [reading]
        else:
            same.append(reading)
    for same in series.values():
        same.sort(key=_wall_ms)
    return series


def _blocks(series: dict[_Key, list[Reading]], start: int) -> tuple[int, list[list[object]]]:
    """Return how many values there are, and the blocks: a sensor's series with equal times."""
    blocks: dict[tuple[str, tuple[int, ...]], list[object]] = {}
    count = 0
    for (sensor, name, unit), readings in series.items():
        times = tuple([reading.instant.wall_ms for reading in readings])
        block = blocks.get((sensor, times))
        if block is None:
            block = blocks[sensor, times] = [sensor, pack_times(times, start)]
        k, xs = pack_values(readings)
        block.append([name, unit, k, *xs])
        count += len(xs)
        qualities: list[int] = [reading.quality for reading in readings]
        if any(qualities) and any(qualities := [int(quality) & 0xFF for quality in qualities]):
            block.append([name + QUALITY, "", -1, *pack_qualities(qualities)])
            count += len(xs)
    return count, list(blocks.values())


class SizeBound:
    """How large the batch of the readings added so far can be at most, known before encoding.

    At any moment `size >= len(encode(batch))`, in bytes, for a batch of exactly these readings.
    It counts the map without zlib and takes every number as the longest, 21 bytes a reading:
    1000 readings of 100 series come out at a ninth of it, at a fifteenth with zlib.
    """

    def __init__(self, gateway: str) -> None:
        self.size = 140 + _length(gateway)  # 13 keys of 2 bytes; v to n of at most 9, p 19
        self._series: set[_Key] = set()

    def add(self, reading: Reading) -> int:
        """Take the reading into account and return the new size."""
        quantity = reading.quantity
        key = (reading.sensor, quantity.name, quantity.unit)
        if key not in self._series:
            self._series.add(key)
            sensor, name, unit = map(_length, key)
            # 4 array heads, 4 string heads, 2 k, the step, ".q" and its empty unit
            self.size += 4 * 5 + 4 * 5 + 2 + 9 + 3 + sensor + 2 * name + unit
        value = reading.value
        longest = 3 + min(_length(value), MAX_TEXT) if isinstance(value, str) else 9
        self.size += 9 + longest + 3  # its time, its value, its quality
        return self.size


def _length(text: str) -> int:
    return len(text.encode(errors="replace"))


# Decoding


def decode(payload: bytes) -> Batch:
    """Return the batch of one payload, readings ordered by block, quantity and time.

    Any bytes give a batch or a WireError, within 75 × MAX_INFLATED bytes of memory.
    """
    fields, used = unpack(memoryview(payload))
    if used < len(payload):
        raise WireError(f"{len(payload) - used} bytes follow the batch")
    return _batch(fields)


def decode_all(chunks: Iterable[bytes]) -> Iterator[Batch]:
    """Yield the batches of payloads that stand back to back, each as soon as it is whole.

    Maps and zlib streams may be mixed, and chunks end anywhere; hardly more than a payload and a
    chunk is held. Raises WireError, with the offset of the payload, at the first invalid one.
    """
    held, at, offset = b"", 0, 0
    for chunk in chain(chunks, (b"",)):
        held, at = held[at:] + chunk, 0
        while at < len(held):
            try:
                fields, used = unpack(memoryview(held)[at:])
                batch = _batch(fields)
            except WireError as error:
                if isinstance(error, CutOff) and chunk and len(held) - at <= _LONGEST:
                    break
                raise WireError(f"payload at byte {offset}: {error}") from error
            yield batch
            at, offset = at + used, offset + used


def _batch(fields: dict[str, Any]) -> Batch:
    version = fields.get("v")
    if type(version) is not int or version != VERSION:
        raise WireError(f"schema version {seen(version)}: this decoder reads version {VERSION}")
    return Batch(
        gateway=_typed(fields.get("g"), str, "g"),
        epoch=_uint(fields.get("e"), "e", 32),
        sequence=_uint(fields.get("s"), "s"),
        boot=_uint(fields.get("b"), "b", 32),
        clock=_uint(fields.get("c"), "c"),
        oldest=_uint(fields.get("o"), "o"),
        readings=_readings(fields),
        previous=_previous(fields.get("p")),
        dropped=_uint(fields.get("l", 0), "l"),
    )


def _typed(value: object, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise WireError(f"{what} is {seen(value)}, not {kind.__name__}")
    return value


def _uint(value: object, what: str, bits: int = 64) -> int:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise WireError(f"{what} is {seen(value)}, not an unsigned integer of {bits} bits")
    return value


def _previous(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise WireError(f"p is {seen(value)}, not [epoch, last sequence]")
    return _uint(value[0], "p[0]", 32), _uint(value[1], "p[1]")


def _readings(fields: dict[str, Any]) -> list[Reading]:
    left = _uint(fields.get("n"), "n")
    if left > MAX_VALUES:
        raise WireError(f"n is {left}, more than {MAX_VALUES}")
    start = Instant(
        _uint(fields.get("t"), "t", 53),
        _uint(fields.get("u"), "u", 53),
        _uint(fields.get("c"), "c"),
    )
    readings: list[Reading] = []
    for block in _typed(fields.get("d"), list, "d"):
        sensor, packed, columns, count = _block(block)
        left -= count * len(columns)
        if left < 0:
            break
        readings += _block_readings(sensor, unpack_times(packed, count, start), columns)
    if left:
        raise WireError(f"d holds {fields['n'] - left} values or more, n says {fields['n']}")
    return readings


def _block(block: object) -> tuple[str, object, list[list[Any]], int]:
    """Return the sensor, the packed times, the columns and how many x each column has."""
    if not isinstance(block, list) or len(block) < 3 or not isinstance(block[0], str):
        raise WireError(f"block {seen(block)} is not [sensor, times, column, …]")
    sensor, packed, *columns = block
    for column in columns:
        if not isinstance(column, list) or not 4 <= len(column) == len(columns[0]):
            raise WireError(f"column {seen(column)} of {seen(sensor)} has not one x a time")
    return sensor, packed, columns, len(columns[0]) - 3


def _block_readings(
    sensor: str, instants: list[Instant], columns: list[list[Any]]
) -> Iterator[Reading]:
    """Yield the readings of one block; a column of qualities stands directly behind its values."""
    series: list[tuple[Quantity, list[Value], list[int]]] = []
    for name, unit, k, *xs in columns:
        values = unpack_values(k, xs)
        if k == -1 and series and name == series[-1][0].name + QUALITY:
            series[-1] = (*series[-1][:2], [_uint(value, name) for value in values])
        else:
            quantity = _quantity(_typed(name, str, "quantity"), _typed(unit, str, "unit"))
            series.append((quantity, values, [0] * len(values)))
    for quantity, values, qualities in series:
        for instant, value, quality in zip(instants, values, qualities, strict=True):
            yield Reading(sensor, quantity, instant, value, quality)


def _quantity(name: str, unit: str) -> Quantity:
    known = CATALOGUE.get(name)
    return known if known is not None and known.unit == unit else Quantity(name, unit)
