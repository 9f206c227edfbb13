"""Durations, sizes and counts as people write them: "60s", "512 MiB", "1 batch"."""

import math
import re
from collections.abc import Mapping
from typing import Annotated

Duration = Annotated[float, "duration"]
"""Type of a setting in seconds, written with its unit: "250ms", "60s", "10min", "1h", "1d"."""
Size = Annotated[int, "size"]
"""Type of a setting in bytes, written with its unit: "64 KiB", "512 MiB", "10 MB"."""

SECONDS: Mapping[str, float] = {"s": 1, "min": 60, "h": 3600, "d": 86400, "ms": 0.001}
"""The units of a Duration."""
BYTES: Mapping[str, float] = {
    **{"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4},
    **{"kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4},
}
"""The units of a Size."""


def duration(text: str) -> float:
    """Return the seconds in `"60s"`; raises ValueError."""
    return _measure(text, SECONDS)


def size(text: str) -> int:
    """Return the bytes in `"512 MiB"`; raises ValueError."""
    return int(_measure(text, BYTES))


def shown_duration(seconds: float) -> str:
    """Return `60s`, `10min`, `1h`: the largest unit that leaves a whole number."""
    for unit in ("d", "h", "min"):
        if seconds > SECONDS["min"] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.12g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:.12g}ms"


def shown_size(count: int) -> str:
    """Return `512 MiB`: the largest unit that leaves a whole number."""
    for unit in ("TiB", "GiB", "MiB", "KiB", "GB", "MB", "kB"):
        if count and count % BYTES[unit] == 0:
            return f"{count // int(BYTES[unit])} {unit}"
    return f"{count} B"


def counted(number: int, noun: str) -> str:
    """Return `1 batch`, `2 batches`."""
    plural = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{plural}"


def _measure(text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if not match or match[2] not in units:
        raise ValueError(text)
    measure = float(match[1]) * units[match[2]]
    if not math.isfinite(measure):
        raise ValueError(text)
    return measure
