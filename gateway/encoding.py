"""A batch as its receivers want it: the bytes that the buffer holds, or JSON lines of readings.

For receivers that read JSON only. The buffer holds each batch once, as `wire.py` made it; its lines
are made when it is sent.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from gateway.reading import Reading, Value
from gateway.wire import Batch, SizeBound, content_type, decode, plain

JSON_LINES = "application/x-ndjson"


COLUMNS = (
    *("gateway", "epoch", "sequence", "sensor", "quantity", "unit"),
    *("time_ms", "boot", "boot_ms", "clock", "value", "quality"),
)


def row(batch: Batch, reading: Reading) -> dict[str, Value]:
    """Return all that is known of a reading, keys as in COLUMNS.

    `clock` says how far the time may be trusted (0 never set, 1 hold-over or RTC, 2 NTP, 3 GNSS);
    below 2, `boot` and `boot_ms` say when it was in terms of that boot.
    """
    at, quantity = reading.instant, reading.quantity
    cells = (
        *(batch.gateway, batch.epoch, batch.sequence),
        *(reading.sensor, quantity.name, quantity.unit),
        *(at.wall_ms, batch.boot, at.boot_ms, int(at.clock), reading.value, int(reading.quality)),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def json_lines(batch: Batch) -> Iterator[str]:
    """Yield one JSON object a reading; numbers read back exactly."""
    for reading in batch.readings:
        yield f"{json.dumps(row(batch, reading), separators=(',', ':'))}\n"


class LinesBound(SizeBound):
    """How large a batch and its JSON lines can be at most: the lines, which are the larger."""

    def __init__(self, gateway: str) -> None:
        super().__init__(gateway)
        self._lines = 0
        self._longest = Batch(gateway, 2**32 - 1, 2**63, 2**32 - 1, 3, 0, ())

    def add(self, reading: Reading) -> int:
        """Take the reading into account and return the new size."""
        sent = replace(reading, value=plain(reading.value))
        self._lines += len(next(json_lines(replace(self._longest, readings=[sent]))))
        return max(super().add(reading), self._lines)


def _as_it_is(payload: bytes) -> tuple[bytes, str]:
    return payload, content_type(payload)


def _as_json(payload: bytes) -> tuple[bytes, str]:
    return "".join(json_lines(decode(payload))).encode(), JSON_LINES


ENCODINGS: Mapping[str, Callable[[bytes], tuple[bytes, str]]] = {
    "msgpack": _as_it_is,
    "json": _as_json,
}
"""Makes of a batch's bytes what is sent, and its content type; by the name in the settings."""

BOUNDS: Mapping[str, Callable[[str], SizeBound]] = {"msgpack": SizeBound, "json": LinesBound}
"""What a batch is filled by, so that it has at most 64 KiB when it is sent."""
