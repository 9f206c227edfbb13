"""Judges a value: plausible, implausible, or no number at all."""

import math

from gateway.reading import Quality, Quantity, Value

IMPLAUSIBLE = "implausible"
NOT_A_NUMBER = "not a number"

STRING_BYTES = 256
"""Longer strings are cut, and marked as clipped."""


def judge(quantity: Quantity, said: Value) -> tuple[Value, int, str | None]:
    """Return the value to keep, its quality, and what is wrong with it, if anything.

    Floats are rounded to the quantity's decimals. Implausible values are kept and marked; NaN, inf
    and whole numbers from ±2^63 on become None. Raises TypeError for what is no value at all.
    """
    if said is None or isinstance(said, bool):
        return said, Quality.GOOD, None
    if isinstance(said, str):
        kept = said.encode(errors="replace")[:STRING_BYTES].decode(errors="ignore")
        return kept, Quality.GOOD if kept == said else Quality.CLIPPED, None
    if not isinstance(said, int | float):
        raise TypeError(f"{quantity.name}: {type(said).__name__} is no kind of value")
    if not (math.isfinite(said) if isinstance(said, float) else abs(said) < 1 << 63):
        return None, Quality.GOOD, NOT_A_NUMBER
    value = _rounded(said, quantity.decimals) if isinstance(said, float) else said
    low, high = quantity.low, quantity.high
    if (low is not None and value < low) or (high is not None and value > high):
        return value, Quality.SUSPECT, IMPLAUSIBLE
    return value, Quality.GOOD, None


def _rounded(said: float, decimals: int) -> float:
    value = round(said, decimals)
    # −0.0 that the sensor said is kept; −0.0 that rounding made of a small number is not
    return 0.0 if value == 0 and said != 0 else value
