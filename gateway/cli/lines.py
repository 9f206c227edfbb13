"""Readings as lines of text that are not JSON: CSV, and InfluxDB's line protocol.

Every number is written so that it reads back as the same number.
"""

import csv
import io
import json
from collections.abc import Iterator

from gateway.encoding import COLUMNS, row
from gateway.reading import Value
from gateway.wire import Batch


def csv_head() -> str:
    """Return the names of the columns."""
    return ",".join(COLUMNS) + "\r\n"


def csv_lines(batch: Batch) -> Iterator[str]:
    """Yield one line of RFC 4180 a reading.

    A value stands there as JSON has it, so that 5, "5", true and "true" stay apart and no text
    begins a formula; the cell of a value that the sensor called invalid is empty.
    """
    for reading in batch.readings:
        cells, line = row(batch, reading), io.StringIO(newline="")
        value = "" if reading.value is None else json.dumps(reading.value)
        csv.writer(line).writerow({**cells, "value": value}.values())
        yield line.getvalue()


def influx_lines(batch: Batch) -> Iterator[str]:
    """Yield one point a reading: the quantity is the measurement, time is in ns.

    Fields are named by type (`value`, `value_int`, `value_bool`, `value_str`), for InfluxDB refuses
    a point whose field has another type than before. An invalid value has none of them.
    """
    for reading in batch.readings:
        quantity, at = reading.quantity, reading.instant
        tags = {"gateway": batch.gateway, "sensor": reading.sensor, "unit": quantity.unit}
        named = "".join(f",{key}={_tag(value)}" for key, value in tags.items() if value)
        told = f"quality={int(reading.quality)}i,clock={int(at.clock)}i"
        told += f",boot={batch.boot}i,boot_ms={at.boot_ms}i"
        fields = ",".join(filter(None, (_field(reading.value), told)))
        yield f"{_tag(quantity.name, '')}{named} {fields} {at.wall_ms * 1_000_000}\n"


def _tag(text: str, also: str = "=") -> str:
    # A tag cannot hold a line's end, nor end in a backslash
    text = " ".join(text.splitlines()).rstrip("\\") or "_"
    return "".join(f"\\{char}" if char in f", {also}" else char for char in text)


def _field(value: Value) -> str:
    match value:
        case bool():
            return f"value_bool={str(value).lower()}"
        case int():
            unsigned = "u" if value >= 1 << 63 else "i"
            return f"value_int={value}{unsigned}"
        case float():
            return f"value={value!r}"
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'value_str="{escaped}"'
        case None:
            return ""
