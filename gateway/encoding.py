"""A batch as its receivers want it: the bytes that the buffer holds, or JSON lines of readings.

For receivers that read JSON only. The buffer holds each batch once, as `wire.py` made it; its lines
are made when it is sent.
"""

import json
from collections.abc import Callable, Iterator, Mapping

from gateway.wire import Batch, content_type, decode

JSON_LINES = "application/x-ndjson"


def json_lines(batch: Batch) -> Iterator[str]:
    """Yield a line for each reading; numbers read back exactly."""
    for reading in batch.readings:
        at = reading.instant
        fields = {
            "gateway": batch.gateway,
            "epoch": batch.epoch,
            "sequence": batch.sequence,
            "sensor": reading.sensor,
            "quantity": reading.quantity.name,
            "unit": reading.quantity.unit,
            "time_ms": at.wall_ms,
            "boot": batch.boot,
            "boot_ms": at.boot_ms,
            "clock": at.clock,
            "value": reading.value,
            "quality": reading.quality,
        }
        yield f"{json.dumps(fields)}\n"


def _as_it_is(payload: bytes) -> tuple[bytes, str]:
    return payload, content_type(payload)


def _as_json(payload: bytes) -> tuple[bytes, str]:
    return "".join(json_lines(decode(payload))).encode(), JSON_LINES


ENCODINGS: Mapping[str, Callable[[bytes], tuple[bytes, str]]] = {
    "msgpack": _as_it_is,
    "json": _as_json,
}
"""Makes of a batch's bytes what is sent, and its content type; by the name in the settings."""
