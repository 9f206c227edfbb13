"""One series as a column of a batch: its times and its values ↔ small integers.

`gateway/WIRE.md` describes both. A number is what it adds to the running sum of those before it, in
units of 10^−k; what that cannot hold exactly is a literal, as are strings, bools and nil.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import copysign, isfinite
from typing import Any, cast

from gateway.payload import WireError, seen
from gateway.reading import Instant, Reading, Value

MAX_TEXT = 256
"""UTF-8 bytes of a value that is a string; what is longer is cut."""

MAX_DECIMALS = 22
"""The largest k: 10^22 is the last power of ten that a float64 holds exactly."""

QUALITY = ".q"
"""Behind the name of a quantity: the column of its values' qualities."""

_EXACT = 1 << 53  # a float64 holds every integer below
_SCALARS = frozenset((int, float, bool, str, type(None)))


def pack_times(times: tuple[int, ...], start: int) -> list[int]:
    """Return the first of these Unix ms, from `start` on; the step; what each gap differs by.

    The step is the median of the gaps; differences at the end that are 0 are left out.
    """
    if len(times) == 1:
        return [times[0] - start]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    step = sorted(gaps)[(len(gaps) - 1) // 2]
    residuals = [gap - step for gap in gaps]
    while residuals and not residuals[-1]:
        residuals.pop()
    return [times[0] - start, step, *residuals]


def pack_values(readings: list[Reading]) -> tuple[int | None, Sequence[Value]]:
    """Return k and the x of one series.

    A column is mostly literals, and so has k = nil, when it has fewer deltas than literals (odd
    numbers, strings, bools; nil is neither), or no delta at all.
    """
    values = [reading.value for reading in readings]
    # One NaN or infinity makes a sum that is neither finite
    if set(map(type, values)) != {float} or not isfinite(sum(cast(list[float], values))):
        values = [plain(value) for value in values]
    quantity = readings[0].quantity
    k = _exponent(values, min(quantity.decimals, MAX_DECIMALS))
    # Only the qualities of a quantity may stand under such a name with k = −1
    if k is None or quantity.name.endswith(QUALITY):
        return None, values
    deltas, xs = _deltas(values, 10 ** max(k, 0))
    if deltas < max(len(xs) - values.count(None) - deltas, 1):
        return None, values
    return k, xs


def pack_qualities(qualities: Sequence[int]) -> list[Value]:
    """Return the x of a series' qualities; their k is −1."""
    return _deltas(qualities, 1)[1]


def plain(value: Value) -> Value:
    """Return the value in a type of msgpack's own.

    NaN, ±inf and integers beyond 64 bit become nil, strings are cut to MAX_TEXT bytes.
    """
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if -(1 << 63) <= value < 1 << 64 else None
    if isinstance(value, str):
        return value.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
    return value if isinstance(value, bool) else None


def _exponent(values: Sequence[Value], decimals: int) -> int | None:
    """Return the k that suits the numbers among `values`; None where none does."""
    numbers: list[float] = [x for x in values if type(x) is float or type(x) is int]
    kinds = set(map(type, numbers))
    if len(kinds) != 1 or (largest := max(map(abs, numbers))) >= _EXACT:
        return None
    if int in kinds:
        return -1
    if 0.0 in numbers and any(number == 0 and copysign(1, number) < 0 for number in numbers):
        return None
    k, factor = 0, 1
    for number in numbers:
        while k < decimals and round(number * factor) / factor != number:
            k, factor = k + 1, factor * 10
    return k if largest < _EXACT / factor else None


def _deltas(values: Sequence[Value], factor: int) -> tuple[int, list[Value]]:
    """Return how many deltas there are, and every x: a delta, a literal or nil."""
    xs: list[Value] = []
    count = total = 0
    for value in values:
        if type(value) is float or type(value) is int:
            scaled = round(value * factor)
            if scaled / factor == value:
                xs.append(scaled - total)
                total = scaled
                count += 1
                continue
        xs.append(value)
    return count, xs


def unpack_times(packed: object, count: int, start: Instant) -> list[Instant]:
    """Return the instants of so many values; raises WireError."""
    if not isinstance(packed, list) or any(type(part) is not int for part in packed):
        raise WireError(f"times {seen(packed)} are not a list of integers")
    if not min(count, 2) <= len(packed) <= (count + 1 if count > 1 else 1):
        raise WireError(f"times {seen(packed)} do not suit {count} values")
    residuals = packed[2:] + [0] * (count + 1 - max(len(packed), 2))
    gaps = [packed[1] + residual for residual in residuals]
    offsets = list(accumulate(gaps, initial=packed[0]))
    if min(gaps, default=0) < 0 or offsets[0] < 0 or start.wall_ms + offsets[-1] >= _EXACT:
        raise WireError(f"times {seen(packed)} run backwards or beyond 2^53 ms")
    return [Instant(start.wall_ms + ms, start.boot_ms + ms, start.clock) for ms in offsets]


def unpack_values(k: object, xs: list[Any]) -> list[Value]:
    """Return the values of a column: running sums, literals and nil; raises WireError."""
    for x in xs:
        if type(x) not in _SCALARS or (type(x) is float and not isfinite(x)):
            raise WireError(f"x is {seen(x)}, not a number, string, bool or nil")
    if k is None:
        return xs
    if type(k) is not int or not -1 <= k <= MAX_DECIMALS:
        raise WireError(f"k is {seen(k)}, not nil or −1 to {MAX_DECIMALS}")
    values: list[Value] = []
    total = 0
    for x in xs:
        if type(x) is int or (type(x) is float and x.is_integer()):
            total += int(x)
            if abs(total) >= _EXACT:
                raise WireError(f"a running sum reaches {seen(total)}, beyond 2^53")
            values.append(total / 10**k if k >= 0 else total)
        else:
            values.append(x)
    return values
